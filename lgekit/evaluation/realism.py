"""How real synthetic scars, phantom cohorts and the heart network's contours are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
import torch
import torchio as tio
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.anatomy.labels import angle_map, lv_centre, wall_depth
from lgekit.anatomy.segments import findings_from_labels
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.evaluation.baselines import THRESHOLD_RULES, remote_of, wall_mask
from lgekit.evaluation.metrics import auc_interval, mean_interval, median_interval
from lgekit.findings import Findings
from lgekit.scars.region import draw_region
from lgekit.scars.transforms import AddScar, prepare_canvas
from lgekit.segmentation.train import evaluate_heart_network, heart_network
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, SCAR, Cohort, Study, patient_folds

TEXTURE = (
    "contrast",
    "contrast_to_noise",
    "heterogeneity",
    "edge_width_mm",
    "grey_zone",
    "endocardial_rim",
    "smoothness",
)
SHAPE = ("size_percent", "extent_deg", "transmurality_percent", "mean_depth", "roughness")
MINIMUM_SCAR_VOXELS = 15
# Figure of a study → its name in `realism_table`.
MEDIANS = {
    "scar_share": "scar share of the myocardium (positive studies)",
    "scar_slices": "slices with scar (positive studies)",
    "blood_contrast": "blood − remote, in remote SD",
    "scar_contrast": "scar − remote, in remote SD (positive studies)",
    "wall_over_radius": "wall thickness / LV radius",
}
MINIMUM_CONFIDENCE = 0.5  # of a reference insertion point that errors are measured from


def _scarred_slices(labels: np.ndarray) -> np.ndarray:
    """Return the slices with enough scar to describe."""
    return np.flatnonzero(np.isin(labels, (SCAR, NO_REFLOW)).sum((0, 1)) >= MINIMUM_SCAR_VOXELS)


def scar_features(study: Study) -> pd.DataFrame:
    """Describe the scar of each slice with 15 voxels of scar or more, one row per slice.

    Columns: ``study_id, patient_id, slice`` and

    - ``contrast``: (scar − remote) / (blood − remote), medians; remote myocardium is more than 4 mm
      from scar;
    - ``contrast_to_noise``: (scar − remote) / standard deviation of remote;
    - ``heterogeneity``: standard deviation of scar / of remote;
    - ``edge_width_mm``: from 75 % to 25 % of (scar − remote), across the border within the wall;
    - ``grey_zone``: mean level 2–4 mm outside the border, as a share of (scar − remote);
    - ``endocardial_rim``: level of the scar in the wall's inner fifth minus the rest, likewise;
    - ``smoothness``: correlation of neighbouring voxels inside the scar, mean of both axes;
    - ``size_percent`` of the slice's wall; ``extent_deg``; ``transmurality_percent``;
      ``mean_depth`` (0 endocardium, 1 epicardium); ``roughness``: perimeter² / (4π area).
    """
    labels, image = study.label_map, study.pixels
    if labels is None:
        raise InputError(study["study_id"], "no labels", "Give a label map with scar.")
    rows = []
    for s in _scarred_slices(labels):
        row = _slice_features(image[..., s], labels[..., s], study.spacing_mm)
        if row is not None:
            ids = {"study_id": study["study_id"], "patient_id": study["patient_id"]}
            rows.append(ids | {"slice": int(s)} | row)
    return pd.DataFrame(rows, columns=["study_id", "patient_id", "slice", *TEXTURE, *SHAPE])


def _slice_features(
    image: np.ndarray, labels: np.ndarray, spacing: Sequence[float]
) -> dict[str, float] | None:
    """Describe the scar of one slice; None if too little of it can be measured."""
    scar, area = labels == SCAR, np.isin(labels, (SCAR, NO_REFLOW))
    wall = (labels == MYOCARDIUM) | area
    depth = np.nan_to_num(wall_depth(labels, spacing), nan=-1.0)
    outside = ndimage.distance_transform_edt(~area, sampling=spacing[:2])
    distance = np.where(area, -ndimage.distance_transform_edt(area, sampling=spacing[:2]), outside)
    middle = (depth > 0.2) & (depth < 0.8)
    remote = (labels == MYOCARDIUM) & middle & (outside > 4)
    blood = ndimage.binary_erosion(labels == CAVITY, iterations=2)
    if min(remote.sum(), blood.sum(), scar.sum()) < MINIMUM_SCAR_VOXELS:
        return None
    remote_level, noise = np.median(image[remote]), max(float(image[remote].std()), 1e-6)
    rise = np.median(image[scar]) - remote_level
    unit = max(rise, 0.5 * noise)

    # Mean level at each distance in mm from the border, in the middle layers of the wall.
    steps = np.arange(-4, 6)
    ring = wall & middle & (labels != NO_REFLOW)
    levels = [image[ring & (distance > step) & (distance <= step + 2)] for step in steps]
    profile = [
        (level.mean() - remote_level) / unit if len(level) >= 3 else np.nan for level in levels
    ]
    known = np.isfinite(profile)
    if known.sum() < 4:
        return None
    profile = np.interp(steps, steps[known], np.array(profile)[known])
    falling = -np.minimum.accumulate(profile)
    start, end = np.interp([-0.75, -0.25], falling, steps + 1.0)

    inner, rest, rim = scar & (depth < 0.2), scar & (depth >= 0.2), 0.0
    if min(inner.sum(), rest.sum()) >= 3:
        rim = (image[inner].mean() - image[rest].mean()) / unit
    correlations = []
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        both = scar[first] & scar[second]
        here, next_to_it = image[first][both], image[second][both]
        if both.sum() > 5 and np.ptp(here) * np.ptp(next_to_it):
            correlations.append(np.corrcoef(here, next_to_it)[0, 1])

    angle = angle_map(labels.shape, lv_centre(labels[..., None])[0], spacing)
    sector = (angle // 6).astype(int) % 60
    of_wall = np.maximum(np.bincount(sector[wall], minlength=60), 1)
    share = np.bincount(sector[area], minlength=60) / of_wall
    touched = share[share > 0.1]
    perimeter = sum(
        np.count_nonzero(np.diff(area, axis=axis)) * spacing[1 - axis] for axis in (0, 1)
    )
    return {
        "contrast": float(
            np.clip(rise / max(np.median(image[blood]) - remote_level, noise), -1, 4)
        ),
        "contrast_to_noise": float(rise / noise),
        "heterogeneity": float(image[scar].std() / noise),
        "edge_width_mm": float(end - start),
        "grey_zone": float(np.clip(profile[steps == 2][0], -1, 2)),
        "endocardial_rim": float(np.clip(rim, -2, 2)),
        "smoothness": float(np.mean(correlations)) if correlations else 1.0,
        "size_percent": 100 * float(area.sum() / wall.sum()),
        "extent_deg": 6.0 * len(touched),
        "transmurality_percent": 100 * float(touched.mean()) if len(touched) else 0.0,
        "mean_depth": float(depth[area].mean()),
        "roughness": float(perimeter**2 / (4 * np.pi * area.sum() * spacing[0] * spacing[1])),
    }


def synthetic_twins(real: Cohort, healthy: Cohort, seed: int = 0, constant: bool = False) -> Cohort:
    """Paint the scar of each real study, as described in words, into a healthy study.

    Args:
        real: studies with scar masks and landmarks.
        healthy: studies without scar, used in turn; a twin keeps the ``patient_id`` of its host.
        seed: of all draws.
        constant: as a control, fill the region with the median of blood.
    """
    rng = np.random.default_rng(seed)
    twins: list[Study] = []
    for number, study in enumerate(real.studies):
        wanted = findings_from_labels(study)
        start = number % len(healthy.studies)
        for host in healthy.studies[start:] + healthy.studies[:start]:
            found, draw = prepare_canvas(host).fit(wanted), int(rng.integers(2**31))
            try:
                twin = _fill(host, found, draw) if constant else AddScar(found, seed=draw)(host)
            except InputError:
                continue
            twin["study_id"] = f"{host['study_id']} as {study['study_id']}"
            twins.append(cast(Study, twin))
            break
    return Cohort(twins, f"{healthy.name} as {real.name}")


def _fill(host: Study, found: Findings, seed: int) -> Study:
    """Return a copy of the study with its scars as blobs of constant intensity."""
    canvas, rng = prepare_canvas(host), np.random.default_rng(seed)
    image, labels = canvas.image.copy(), canvas.labels.copy()
    g = canvas.geometry
    for scar in found.scars:
        region = draw_region(g, canvas.free, scar, rng)
        voxels = region.voxels[region.depth_mm > 0]
        where = np.unravel_index(g.index[voxels], g.shape)
        image[g.box][where], labels[g.box][where] = canvas.blood[g.plane[voxels]], SCAR
    affine = host.get_image("image").affine
    images = {
        "image": tio.ScalarImage(tensor=torch.from_numpy(image)[None], affine=affine),
        "labels": tio.LabelMap(tensor=torch.from_numpy(labels)[None], affine=affine),
    }
    return Study(**({key: host[key] for key in host} | images))


def scar_realism(
    real: Cohort, synthetic: Cohort, folds: int = 5, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Compare the scars of two cohorts by their `scar_features`.

    Args:
        real, synthetic: studies with scar masks.
        folds: of the cross-validation; all slices of a patient are in one fold.
        seed: of the folds and the intervals.

    Returns:
        A table with one row per feature (quartiles of both cohorts, AUC of the feature alone), and
        the AUC with interval of a logistic regression that tells synthetic from real, from
        ``texture``, ``shape`` or ``both``.
    """
    data = pd.concat(
        [scar_features(study).assign(kind="real") for study in real.studies]
        + [scar_features(study).assign(kind="synthetic") for study in synthetic.studies]
    )
    truth = (data["kind"] == "synthetic").to_numpy()
    if min(truth.sum(), (~truth).sum()) < folds:
        problem = f"{truth.sum()} synthetic and {(~truth).sum()} real slices"
        raise InputError("scar_realism", problem, "Give larger cohorts.")
    features = [*TEXTURE, *SHAPE]
    table = pd.DataFrame(index=pd.Index(features, name="feature"))
    for kind, part in data.groupby("kind"):
        for name, quantile in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            table[f"{kind}_{name}"] = part[features].quantile(quantile)
    singles = np.array([roc_auc_score(truth, data[name]) for name in features])
    table["auc_alone"] = np.maximum(singles, 1 - singles)
    patients, aucs = data["patient_id"].astype(str).to_numpy(), {}
    for name, columns in (("texture", TEXTURE), ("shape", SHAPE), ("both", features)):
        values, score = data[list(columns)].to_numpy(float), np.zeros(len(truth))
        splitter = GroupKFold(folds, shuffle=True, random_state=seed)
        for train, test in splitter.split(values, truth, patients):
            classifier = make_pipeline(
                StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
            )
            classifier.fit(values[train], truth[train])
            score[test] = classifier.decision_function(values[test])
        aucs[name] = auc_interval(truth, score, patients.tolist(), seed)
    return table, aucs


def compare_scars(cohort: Cohort, random_scar: tio.Transform, seed: int = 0) -> pd.DataFrame:
    """Compare a cohort's scars with those that a ``RandomScar`` paints into scar-free studies.

    Returns:
        The table of `scar_realism`, with the AUC of the fits in three rows (``fit: texture`` …).
    """
    scarred = [study for study in cohort.studies if _scarred(study)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        healthy = [study for study in cohort.studies if not _scarred(study)]
        painted = [cast(Study, random_scar(study)) for study in healthy]
    painted = [study for study in painted if _scarred(study)]
    folds = min(5, *(len({s["patient_id"] for s in group}) for group in (scarred, painted)))
    if folds < 2:
        problem = f"{len(scarred)} scarred and {len(painted)} painted studies"
        raise InputError("cohort", problem, "Give two or more each.")
    table, aucs = scar_realism(Cohort(scarred), Cohort(painted), folds, seed)
    fits = pd.DataFrame({"auc_alone": {f"fit: {name}": auc["value"] for name, auc in aucs.items()}})
    return pd.concat([table, fits]).rename_axis("feature")


def _scarred(study: Study) -> bool:
    return study.label_map is not None and bool(np.isin(study.label_map, (SCAR, NO_REFLOW)).any())


def scar_patches(study: Study, size: int = 40, remote: bool = False) -> np.ndarray:
    """Cut a patch of 1.25 mm pixels around each slice's scar: ``(slices, 1, size, size)``.

    Remote myocardium is 0, blood 1. ``remote`` cuts at the opposite wall instead.
    """
    frame = StandardizeShortAxis(pixels=128, field_of_view_mm=160.0)(study)
    image, labels, patches = frame.pixels, np.asarray(frame.label_map), []
    for s in _scarred_slices(labels):
        codes = labels[..., s]
        area, healthy, blood = (
            np.isin(codes, (SCAR, NO_REFLOW)),
            codes == MYOCARDIUM,
            codes == CAVITY,
        )
        if min(healthy.sum(), blood.sum()) < MINIMUM_SCAR_VOXELS:
            continue
        dark, light = np.median(image[..., s][healthy]), np.median(image[..., s][blood])
        x, y = np.nonzero(area) - np.array([[64], [64]])
        angle = np.angle(np.exp(1j * np.arctan2(y, x)).mean()) + (np.pi if remote else 0)
        centre = 64 + np.hypot(x, y).mean() * np.array([np.cos(angle), np.sin(angle)])
        left, top = np.clip(np.rint(centre), size // 2, 128 - size // 2).astype(int) - size // 2
        piece = image[left : left + size, top : top + size, s]
        patches.append(np.clip((piece - dark) / max(light - dark, 1e-3), -3, 4))
    return np.array(patches, np.float32).reshape(-1, 1, size, size)


def patch_realism(
    real: Cohort,
    synthetic: Cohort,
    folds: int = 5,
    epochs: int = 30,
    seed: int = 0,
    remote: bool = False,
) -> dict[str, float]:
    """Compute the cross-validated AUC of a small CNN that tells synthetic from real patches.

    Hosts of synthetic scars are other people than the patients, so the heart may give part of it
    away; ``remote=True`` looks at the opposite wall and measures that part.
    """
    pieces, truth, patients = [], [], []
    for kind, cohort in enumerate((real, synthetic)):
        for study in cohort.studies:
            pieces.append(scar_patches(study, remote=remote))
            truth += [kind] * len(pieces[-1])
            patients += [str(study["patient_id"])] * len(pieces[-1])
    inputs, targets = torch.from_numpy(np.concatenate(pieces)), torch.tensor(truth).float()
    score = np.zeros(len(truth))
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (train, test) in enumerate(splitter.split(truth, truth, patients)):
        with torch.random.fork_rng():
            torch.manual_seed(seed + fold)
            network = _fit_patches(inputs[train], targets[train], epochs)
        with torch.no_grad():
            score[test] = network(inputs[test])[:, 0].numpy()
    return auc_interval(np.array(truth, bool), score, patients, seed)


def _fit_patches(inputs: torch.Tensor, targets: torch.Tensor, epochs: int) -> torch.nn.Module:
    """Train three convolutions and a mean, with random flips and gain."""
    nn = torch.nn
    layers: list[torch.nn.Module] = []
    for channels, wider in ((1, 16), (16, 32), (32, 64)):
        convolution = nn.Conv2d(channels, wider, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 1)]
    network = nn.Sequential(*layers, *head)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    positive = (len(targets) - targets.sum()) / targets.sum()
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(32):
            images = inputs[batch] * (0.8 + 0.4 * torch.rand(len(batch), 1, 1, 1))
            images = images.flip([axis for axis in (2, 3) if torch.rand(()) < 0.5])
            loss = nn.functional.binary_cross_entropy_with_logits(
                network(images)[:, 0], targets[batch], pos_weight=positive
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def study_figures(study: Study) -> dict[str, float]:
    """Measure what `realism_table` compares; NaN where undefined.

    Returns:
        ``present``; a score by each threshold rule; ``scar_share`` (no-reflow included) and
        ``scar_slices``; ``blood_contrast`` and ``scar_contrast`` (no-reflow left out) in SDs of
        remote myocardium; ``wall_over_radius``: (epicardial − endocardial) / epicardial radius of
        circles of equal area, median over slices with a cavity.

    Raises:
        InputError: as `lgekit.evaluation.baselines.wall_mask`.
    """
    wall, remote = wall_mask(study), remote_of(study)
    labels, image = np.asarray(study.label_map), study.pixels
    scar, bright, cavity = np.isin(labels, (SCAR, NO_REFLOW)), labels == SCAR, labels == CAVITY
    figures = {"present": float(scar.any())}
    figures |= {name: rule(study) for name, rule in THRESHOLD_RULES.items()}
    figures |= dict.fromkeys(MEDIANS, np.nan)
    figures["blood_contrast"] = (remote.blood - remote.mean) / remote.sd
    if scar.any():
        figures["scar_share"] = float(scar.sum() / wall.sum())
        figures["scar_slices"] = float(scar.any((0, 1)).sum())
    if bright.any():
        figures["scar_contrast"] = (float(image[bright].mean()) - remote.mean) / remote.sd
    if cavity.any():
        full = cavity.any((0, 1))
        inner, outer = cavity.sum((0, 1))[full], (wall | cavity).sum((0, 1))[full]
        figures["wall_over_radius"] = float(np.median(1 - np.sqrt(inner / outer)))
    return figures


def cohort_figures(cohort: Cohort) -> pd.DataFrame:
    """Return the `study_figures` of every study, indexed by ``study_id``."""
    rows = {study["study_id"]: study_figures(study) for study in cohort.studies}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("study_id")


def realism_table(cohort_a: Cohort, cohort_b: Cohort) -> pd.DataFrame:
    """Compare two cohorts by the AUC of the threshold rules and the medians of `study_figures`.

    Returns:
        Index ``figure``; columns named after the cohorts (``a`` and ``b`` if unnamed or alike),
        ``difference`` (second − first) and ``relative`` (difference / first).
    """
    names = [cohort_a.name, cohort_b.name]
    if not all(names) or names[0] == names[1]:
        names = ["a", "b"]
    columns = {}
    for name, cohort in zip(names, (cohort_a, cohort_b), strict=True):
        figures, column = cohort_figures(cohort), {}
        for rule in THRESHOLD_RULES:
            both_classes = figures["present"].nunique() == 2
            auc = roc_auc_score(figures["present"], figures[rule]) if both_classes else np.nan
            column[f"AUC, {rule} rule"] = float(auc)
        column |= {title: float(figures[key].median()) for key, title in MEDIANS.items()}
        columns[name] = column | {"studies": float(len(figures))}
    table = pd.DataFrame(columns).rename_axis("figure")
    table["difference"] = table[names[1]] - table[names[0]]
    return table.assign(relative=table["difference"] / table[names[0]].abs())


def measure_folds(
    cohort: Cohort,
    pretrain_on: Sequence[Cohort],
    settings: FitSettings,
    folds: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the heart network by cross-validation over patients.

    Args:
        cohort: with labels.
        pretrain_on: further cohorts with labels, of other patients, for the base of all folds.
        settings: size, steps, seed; trained networks come from the cache.
        folds: 0: ``settings.heart_folds``, whose networks a fit on all studies uses too.

    Returns:
        What `lgekit.segmentation.train.evaluate_heart_network` returns, and ``fold``.
    """
    ids, parts = cohort.manifest["study_id"].to_numpy(), []
    fold = patient_folds(cohort, folds or settings.heart_folds, settings.seed)
    for number in np.unique(fold):
        network = heart_network(cohort.subset(ids[fold != number]), pretrain_on, settings, progress)
        held_out = cohort.subset(ids[fold == number])
        parts.append(evaluate_heart_network(network, held_out, settings.seed).assign(fold=number))
    return pd.concat(parts, ignore_index=True)


def quality_table(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Summarise `measure_folds` over studies, with 95 % intervals over patients.

    Errors of insertion points count where the reference has confidence 0.5 or more.

    Returns:
        Index ``figure``: medians of ``dice_…`` and ``…_error_deg``, a 95th percentile, and the
        share of ``mirror_right``; columns ``value, low, high, studies``.
    """
    sure = measured[measured["reference_confidence"] >= MINIMUM_CONFIDENCE]
    dice = [f"dice_{name}" for name in ("cavity", "myocardium", "rv")]
    wanted = [(measured, name, 0.5) for name in dice]
    wanted += [(sure, "anterior_error_deg", 0.5), (sure, "anterior_error_deg", 0.95)]
    wanted += [(sure, "inferior_error_deg", 0.5)]
    rows: dict[str, dict[str, float]] = {}
    for source, name, quantile in wanted:
        table = source.dropna(subset=[name])
        label = f"{name}, median" if quantile == 0.5 else f"{name}, 95th percentile"
        if len(table):
            found = median_interval(table[name], table["patient_id"].tolist(), quantile, seed)
            rows[label] = found | {"studies": len(table)}
    if len(right := sure.dropna(subset=["mirror_right"])):
        values = right["mirror_right"].to_numpy(float)
        found = mean_interval(values, right["patient_id"].tolist(), seed)
        rows["mirror_right, share"] = found | {"studies": len(right)}
    return pd.DataFrame(rows).T.astype({"studies": int}).rename_axis("figure")
