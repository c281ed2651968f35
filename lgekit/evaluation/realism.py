"""Realism."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from lgekit.evaluation.metrics import interval, median_interval, presence_statistic
from lgekit.scars.transforms import AddScar, prepare_canvas
from lgekit.segmentation.train import base_network, evaluate_heart_network, heart_network
from lgekit.study import (
    CAVITY,
    MYOCARDIUM,
    NO_REFLOW,
    SCAR,
    Cohort,
    Study,
    patient_folds,
)

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


def scar_features(study: Study) -> pd.DataFrame:
    """What the scar of each slice is like; one row a slice with 15 voxels of scar or more.

    Columns: ``study_id, patient_id, slice`` and

    - ``contrast``: (scar − remote) / (blood − remote), medians; remote is myocardium 4 mm or more from scar;
    - ``contrast_to_noise``: (scar − remote) / standard deviation of remote;
    - ``heterogeneity``: standard deviation of scar / of remote;
    - ``edge_width_mm``: from 75 % to 25 % of (scar − remote), along the distance to the scar's border within the wall;
    - ``grey_zone``: mean level 2–4 mm outside the border, as a share of (scar − remote);
    - ``endocardial_rim``: level of the scar's inner fifth of the wall less that of the rest, the same unit;
    - ``smoothness``: correlation of neighbouring voxels inside the scar, mean of both axes;
    - ``size_percent`` of the slice's wall, ``extent_deg`` of the circle, ``transmurality_percent``, ``mean_depth`` (0
      endocardium … 1 epicardium), ``roughness``: perimeter² / (4π area).
    """
    labels, image = study.label_map, study.pixels
    if labels is None:
        raise InputError(study["study_id"], "no labels", "Give a label map with scar.")
    rows = []
    for s in np.flatnonzero(np.isin(labels, (SCAR, NO_REFLOW)).sum((0, 1)) >= MINIMUM_SCAR_VOXELS):
        row = _slice_features(image[..., s], labels[..., s], study.spacing_mm)
        if row is not None:
            rows.append(
                {"study_id": study["study_id"], "patient_id": study["patient_id"], "slice": int(s)}
                | row
            )
    return pd.DataFrame(rows, columns=["study_id", "patient_id", "slice", *TEXTURE, *SHAPE])


def _slice_features(
    image: np.ndarray, labels: np.ndarray, spacing: Sequence[float]
) -> dict[str, float] | None:
    area = (labels == SCAR) | (labels == NO_REFLOW)
    scar, wall = labels == SCAR, (labels == MYOCARDIUM) | area
    depth = np.nan_to_num(wall_depth(labels, spacing), nan=-1.0)
    outside = ndimage.distance_transform_edt(~area, sampling=spacing[:2])
    distance = np.where(area, -ndimage.distance_transform_edt(area, sampling=spacing[:2]), outside)
    middle = (depth > 0.2) & (depth < 0.8)
    remote = (labels == MYOCARDIUM) & middle & (outside > 4)
    blood = ndimage.binary_erosion(labels == CAVITY, iterations=2)
    if min(remote.sum(), blood.sum(), scar.sum()) < MINIMUM_SCAR_VOXELS:
        return None
    far, near = np.median(image[remote]), np.median(image[scar])
    rise, noise = near - far, max(float(image[remote].std()), 1e-6)
    unit = rise if rise > 0.5 * noise else 0.5 * noise
    # level at the distance of each millimetre from the border
    steps = np.arange(-4, 6)
    ring = wall & middle & (labels != NO_REFLOW)
    levels = [image[ring & (distance > step) & (distance <= step + 2)] for step in steps]
    profile = np.array(
        [(level.mean() - far) / unit if len(level) >= 3 else np.nan for level in levels]
    )
    known = np.isfinite(profile)
    if known.sum() < 4:
        return None
    falling = np.minimum.accumulate(np.interp(steps, steps[known], profile[known]))
    width = np.interp(-0.25, -falling, steps + 1.0) - np.interp(-0.75, -falling, steps + 1.0)
    inner = scar & (depth < 0.2)
    rest = scar & (depth >= 0.2)
    rim = (
        (image[inner].mean() - image[rest].mean()) / unit
        if min(inner.sum(), rest.sum()) >= 3
        else 0.0
    )
    pairs = [(image[:-1], image[1:], scar[:-1] & scar[1:])]
    pairs.append((image[:, :-1], image[:, 1:], scar[:, :-1] & scar[:, 1:]))
    alike = [
        np.corrcoef(a[both], b[both])[0, 1]
        for a, b, both in pairs
        if both.sum() > 5 and np.ptp(a[both]) * np.ptp(b[both])
    ]
    angle = angle_map(labels.shape, lv_centre(labels[..., None])[0], spacing)
    sector = (angle // 6).astype(int) % 60
    share = np.bincount(sector[area], minlength=60) / np.maximum(
        np.bincount(sector[wall], minlength=60), 1
    )
    touched = share[share > 0.1]
    sides = (
        np.count_nonzero(np.diff(area, axis=0)) * spacing[1]
        + np.count_nonzero(np.diff(area, axis=1)) * spacing[0]
    )
    return {
        "contrast": float(np.clip(rise / max(np.median(image[blood]) - far, noise), -1, 4)),
        "contrast_to_noise": float(rise / noise),
        "heterogeneity": float(image[scar].std() / noise),
        "edge_width_mm": float(width),
        "grey_zone": float(np.clip(np.interp(2, steps[known], profile[known]), -1, 2)),
        "endocardial_rim": float(np.clip(rim, -2, 2)),
        "smoothness": float(np.mean(alike)) if alike else 1.0,
        "size_percent": 100 * float(area.sum() / wall.sum()),
        "extent_deg": 6.0 * len(touched),
        "transmurality_percent": 100 * float(touched.mean()) if len(touched) else 0.0,
        "mean_depth": float(depth[area].mean()),
        "roughness": float(sides**2 / (4 * np.pi * area.sum() * spacing[0] * spacing[1])),
    }


def synthetic_twins(real: Cohort, healthy: Cohort, seed: int = 0, constant: bool = False) -> Cohort:
    """For each real study with scar a healthy one with a synthetic scar of the same description.

    Args:
        real: studies with scar masks and landmarks.
        healthy: studies without scar, used in turn; a twin keeps the ``patient_id`` of its healthy study.
        seed: of all draws.
        constant: the control: the region filled with the median of the blood, no border, no texture.
    """
    rng = np.random.default_rng(seed)
    twins: list[Study] = []
    for number, study in enumerate(real.studies):
        wanted = findings_from_labels(study)
        order = np.roll(np.arange(len(healthy.studies)), -number)
        for host in (healthy.studies[i] for i in order):
            canvas, draw = prepare_canvas(host), int(rng.integers(2**31))
            found = canvas.fit(wanted)
            try:
                twin = _fill(host, found, draw) if constant else AddScar(found, seed=draw)(host)
            except InputError:
                continue
            twin["study_id"] = f"{host['study_id']} as {study['study_id']}"
            twins.append(cast(Study, twin))
            break
    return Cohort(twins, f"{healthy.name} as {real.name}")


def _fill(host: Study, found, seed: int) -> Study:
    """A copy of the study with its scars as blobs of constant intensity."""
    canvas, rng = prepare_canvas(host), np.random.default_rng(seed)
    image, labels = canvas.image.copy(), canvas.labels.copy()
    for scar in found.scars:
        region = canvas.draw_region(scar, rng)
        voxels = region.voxels[region.depth_mm > 0]
        where = canvas.x[voxels], canvas.y[voxels], canvas.plane[voxels]
        image[canvas.box][where] = canvas.blood[canvas.plane[voxels]]
        labels[canvas.box][where] = SCAR
    fields = {key: host[key] for key in host if not isinstance(host[key], tio.Image)}
    affine = host.get_image("image").affine
    return Study(
        image=tio.ScalarImage(tensor=torch.from_numpy(image)[None], affine=affine),
        labels=tio.LabelMap(tensor=torch.from_numpy(labels)[None], affine=affine),
        **fields,
    )


def scar_realism(
    real: Cohort, synthetic: Cohort, folds: int = 5, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Compare the scars of two cohorts.

    Args:
        real, synthetic: studies with scar masks.
        folds: of the cross-validation; all slices of a patient are in one fold.
        seed: of the folds and the intervals.

    Returns:
        A table with one row a feature (median and quartiles over slices of both, and the AUC of the feature alone); and
        the AUC of telling synthetic from real by a logistic fit, ``{"texture": …, "shape": …, "both": …}``, each
        ``{"value", "low", "high"}`` with its 95 % interval over patients.
    """
    parts = [
        pd.concat([scar_features(study) for study in cohort.studies])
        for cohort in (real, synthetic)
    ]
    data = pd.concat(parts, keys=["real", "synthetic"], names=["kind", None]).reset_index("kind")
    truth = (data["kind"] == "synthetic").to_numpy()
    if min(truth.sum(), (~truth).sum()) < folds:
        raise InputError(
            "scar_realism",
            f"{truth.sum()} synthetic and {(~truth).sum()} real slices",
            "Give larger cohorts.",
        )
    table = pd.DataFrame(index=pd.Index([*TEXTURE, *SHAPE], name="feature"))
    for kind, part in data.groupby("kind"):
        for name, quantile in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            table[f"{kind}_{name}"] = part[[*TEXTURE, *SHAPE]].quantile(quantile)
    singles = [roc_auc_score(truth, data[name]) for name in table.index]
    table["auc_alone"] = np.maximum(singles, 1 - np.array(singles))
    patients = data["patient_id"].astype(str).to_numpy()
    aucs = {}
    for name, columns in (("texture", TEXTURE), ("shape", SHAPE), ("both", (*TEXTURE, *SHAPE))):
        score = _cross_validated(data[list(columns)].to_numpy(float), truth, patients, folds, seed)
        aucs[name] = interval(partial(presence_statistic, "auc", truth, score), patients, seed)
    return table, aucs


def compare_scars(cohort: Cohort, random_scar: tio.Transform, seed: int = 0) -> pd.DataFrame:
    """The table of :func:`scar_realism` for one cohort: its own scars, and ``random_scar`` in its scar-free studies.

    Args:
        cohort: studies with label maps, with and without scar.
        random_scar: a ``RandomScar`` with ``p=1``.
        seed: of PyTorch's generator while painting, and of the folds.

    Returns:
        The table, with the AUC of the logistic fits in three more rows (``fit: texture`` …).
    """
    scarred = [study for study in cohort.studies if _scarred(study)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        painted = [
            cast(Study, random_scar(study)) for study in cohort.studies if not _scarred(study)
        ]
    painted = [study for study in painted if _scarred(study)]
    folds = min(5, *(len({s["patient_id"] for s in group}) for group in (scarred, painted)))
    if folds < 2:
        raise InputError(
            "cohort",
            f"{len(scarred)} scarred and {len(painted)} painted studies",
            "Give two or more each.",
        )
    table, aucs = scar_realism(Cohort(scarred), Cohort(painted), folds, seed)
    fits = pd.DataFrame({"auc_alone": {f"fit: {name}": auc["value"] for name, auc in aucs.items()}})
    return pd.concat([table, fits]).rename_axis("feature")


def _scarred(study: Study) -> bool:
    labels = study.label_map
    return labels is not None and bool(((labels == SCAR) | (labels == NO_REFLOW)).any())


def _cross_validated(
    features: np.ndarray, truth: np.ndarray, patients: np.ndarray, folds: int, seed: int
) -> np.ndarray:
    score = np.zeros(len(truth))
    for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(
        features, truth, patients
    ):
        fit = make_pipeline(
            StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
        )
        score[test] = fit.fit(features[train], truth[train]).decision_function(features[test])
    return score


def scar_patches(study: Study, size: int = 40, remote: bool = False) -> np.ndarray:
    """Pieces of the standard frame, 1.25 mm pixels, around each slice's scar: ``(slices, 1, size, size)`` float32.

    Remote myocardium is 0 and blood is 1, slice by slice. With ``remote``, around the wall opposite the scar instead.
    """
    frame = StandardizeShortAxis(pixels=128, field_of_view_mm=160.0)(study)
    image, labels, patches = frame.pixels, np.asarray(frame.label_map), []
    for s in np.flatnonzero(np.isin(labels, (SCAR, NO_REFLOW)).sum((0, 1)) >= MINIMUM_SCAR_VOXELS):
        codes = labels[..., s]
        area, healthy, blood = (
            (codes == SCAR) | (codes == NO_REFLOW),
            codes == MYOCARDIUM,
            codes == CAVITY,
        )
        if min(healthy.sum(), blood.sum()) < MINIMUM_SCAR_VOXELS:
            continue
        dark, light = np.median(image[..., s][healthy]), np.median(image[..., s][blood])
        middle = np.array([64, 64])
        x, y = np.nonzero(area)
        angle = np.angle(np.exp(1j * np.arctan2(y - 64, x - 64)).mean()) + (np.pi if remote else 0)
        distance = np.hypot(*(np.argwhere(area) - middle).T).mean()
        x, y = np.clip(
            np.rint(middle + distance * np.array([np.cos(angle), np.sin(angle)])),
            size // 2,
            128 - size // 2,
        )
        piece = image[
            int(x) - size // 2 : int(x) + size // 2, int(y) - size // 2 : int(y) + size // 2, s
        ]
        patches.append(np.clip((piece - dark) / max(light - dark, 1e-3), -3, 4))
    return (
        np.stack(patches)[:, None].astype(np.float32)
        if patches
        else np.zeros((0, 1, size, size), np.float32)
    )


def patch_realism(
    real: Cohort,
    synthetic: Cohort,
    folds: int = 5,
    epochs: int = 30,
    seed: int = 0,
    remote: bool = False,
) -> dict[str, float]:
    """AUC of a small CNN that tells patches with a synthetic from patches with a real scar, patients cross-validated.

    The hosts of synthetic scars are other people than the patients, so part of it may be told from the heart rather
    than the scar: ``remote=True`` looks away from the scar and measures that part.

    Returns:
        ``{"value", "low", "high"}`` with the 95 % interval over patients.
    """
    pieces, truth, patients = [], [], []
    for kind, cohort in enumerate((real, synthetic)):
        for study in cohort.studies:
            patches = scar_patches(study, remote=remote)
            pieces.append(patches)
            truth += [kind] * len(patches)
            patients += [str(study["patient_id"])] * len(patches)
    inputs, targets = (
        torch.from_numpy(np.concatenate(pieces)),
        torch.tensor(truth, dtype=torch.float32),
    )
    score = np.zeros(len(truth))
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (train, test) in enumerate(splitter.split(truth, truth, patients)):
        with torch.random.fork_rng():
            torch.manual_seed(seed + fold)
            network = _fit_patches(inputs[train], targets[train], epochs)
        with torch.no_grad():
            score[test] = network(inputs[test])[:, 0].numpy()
    return interval(
        partial(presence_statistic, "auc", np.array(truth, bool), score), patients, seed
    )


def _fit_patches(inputs: torch.Tensor, targets: torch.Tensor, epochs: int) -> torch.nn.Module:
    """Three convolutions and a mean, trained with flips and gain."""
    nn, layers, channels = torch.nn, [], 1
    for wide in (16, 32, 64):
        layers += [
            nn.Conv2d(channels, wide, 3, padding=1),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = wide
    network = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels, 1)
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    positive = (len(targets) - targets.sum()) / targets.sum()
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(32):
            seen = inputs[batch] * (0.8 + 0.4 * torch.rand(len(batch), 1, 1, 1))
            seen = seen.flip([axis for axis in (2, 3) if torch.rand(()) < 0.5])
            loss = nn.functional.binary_cross_entropy_with_logits(
                network(seen)[:, 0], targets[batch], pos_weight=positive
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


MEDIANS = {
    "scar_share": "scar share of the myocardium (positive studies)",
    "scar_slices": "slices with scar (positive studies)",
    "blood_contrast": "blood − remote, in remote SD",
    "scar_contrast": "scar − remote, in remote SD (positive studies)",
    "wall_over_radius": "wall thickness / LV radius",
}


def study_figures(study: Study) -> dict[str, float]:
    """What the realism table needs of one study.

    Args:
        study: with labels.

    Returns:
        ``present``; a score by each threshold rule; ``scar_share`` (no-reflow included), ``scar_slices``;
        ``blood_contrast`` and ``scar_contrast`` (no-reflow left out) in SDs of the remote sector;
        ``wall_over_radius``: epicardial minus endocardial radius over the epicardial one, of circles of equal
        area, median over slices with a cavity. NaN where a figure has no meaning.

    Raises:
        InputError: no label map, or no myocardium in it.
    """
    wall = wall_mask(study)
    labels, image = np.asarray(study.label_map), study.pixels
    remote = remote_of(study)
    scar = (labels == SCAR) | (labels == NO_REFLOW)
    bright = labels == SCAR
    areas = (labels == CAVITY).sum((0, 1)), (wall | (labels == CAVITY)).sum((0, 1))
    full = areas[0] > 0
    present = bool(scar.any())
    figures = {"present": float(present)}
    figures |= {name: rule(study) for name, rule in THRESHOLD_RULES.items()}
    figures |= {
        "scar_share": float(scar.sum() / wall.sum()) if present else np.nan,
        "scar_slices": float(scar.any((0, 1)).sum()) if present else np.nan,
        "blood_contrast": (remote.blood - remote.mean) / remote.sd,
        "scar_contrast": (float(image[bright].mean()) - remote.mean) / remote.sd
        if bright.any()
        else np.nan,
        "wall_over_radius": float(np.median(1 - np.sqrt(areas[0][full] / areas[1][full])))
        if full.any()
        else np.nan,
    }
    return figures


def cohort_figures(cohort: Cohort) -> pd.DataFrame:
    """:func:`study_figures` of every study, indexed by ``study_id``: the distributions behind the table."""
    rows = {study["study_id"]: study_figures(study) for study in cohort.studies}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("study_id")


def realism_table(cohort_a: Cohort, cohort_b: Cohort) -> pd.DataFrame:
    """Two cohorts side by side.

    Returns:
        Index ``figure``; columns named after the cohorts (``a`` and ``b`` where they have no names, or the same),
        ``difference`` (second − first) and ``relative`` (difference over the first). First the AUC of each
        threshold rule for the presence of scar (NaN where only one class is there), then medians.
    """
    tables = [cohort_figures(cohort) for cohort in (cohort_a, cohort_b)]
    names = [cohort_a.name, cohort_b.name]
    if not all(names) or names[0] == names[1]:
        names = ["a", "b"]
    columns = {}
    for name, table in zip(names, tables, strict=True):
        two_classes = table["present"].nunique() == 2
        column = {
            f"AUC, {rule} rule": float(roc_auc_score(table["present"], table[rule]))
            if two_classes
            else np.nan
            for rule in THRESHOLD_RULES
        }
        column |= {text: float(table[key].median()) for key, text in MEDIANS.items()}
        column["studies"] = float(len(table))
        columns[name] = column
    frame = pd.DataFrame(columns).rename_axis("figure")
    frame["difference"] = frame[names[1]] - frame[names[0]]
    frame["relative"] = frame["difference"] / frame[names[0]].abs()
    return frame


SURE = 0.5  # least confidence of a reference point that errors are measured against


def measure_folds(
    cohort: Cohort,
    pretrain_on: Sequence[Cohort],
    settings: FitSettings,
    folds: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Every labelled study, measured with a heart network that was trained on the other folds' patients.

    Args:
        cohort: with labels.
        pretrain_on: further cohorts with labels, for the base that all folds share; none of them may hold the
            cohort's patients.
        settings: size, steps, seed; trained networks come from the cache.
        folds: by patient; 0: ``settings.heart_folds``, whose networks a fit on all studies uses too.
        progress: show bars.

    Returns:
        What `lgekit.segmentation.train.evaluate_heart_network` gives, and ``fold``.
    """
    ids, parts = cohort.manifest["study_id"].to_numpy(), []
    fold = patient_folds(cohort, folds or settings.heart_folds, settings.seed)
    for number in np.unique(fold):
        network = heart_network(cohort.subset(ids[fold != number]), pretrain_on, settings, progress)
        held_out = cohort.subset(ids[fold == number])
        parts.append(evaluate_heart_network(network, held_out, settings.seed).assign(fold=number))
    return pd.concat(parts, ignore_index=True)


def measure_base(
    cohort: Cohort, pretrain_on: Sequence[Cohort], settings: FitSettings, progress: bool = True
) -> pd.DataFrame:
    """The cohort measured with a network that has seen none of it: phantoms and ``pretrain_on`` alone."""
    network = base_network(pretrain_on, settings, progress)
    assert network is not None, "no phantoms and no other cohort to train on"
    return evaluate_heart_network(network, cohort, settings.seed)


def quality_table(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Medians over studies with 95 % intervals over patients.

    Args:
        measured: what `lgekit.segmentation.train.evaluate_heart_network` gives; errors of insertion points count where the
            reference is sure (confidence 0.5 or more: high and medium of EMIDEC's table).
        seed: of the bootstrap.

    Returns:
        Index ``figure``: ``dice_cavity``, ``dice_myocardium``, ``dice_rv`` (medians), ``anterior_error_deg`` and
        ``inferior_error_deg`` (medians), ``anterior_error_deg, 95th percentile``, ``mirror_right`` (share); columns
        ``value, low, high, studies``. Figures without a single study are left out.
    """
    sure = measured[measured["reference_confidence"] >= SURE]
    rows: dict[str, dict[str, float]] = {}
    for name in (
        "dice_cavity",
        "dice_myocardium",
        "dice_rv",
        "anterior_error_deg",
        "inferior_error_deg",
    ):
        table = (measured if name.startswith("dice") else sure).dropna(subset=[name])
        for label, quantile in ((f"{name}, median", 0.5), (f"{name}, 95th percentile", 0.95)):
            if len(table) and (quantile == 0.5 or name == "anterior_error_deg"):
                found = median_interval(table[name], table["patient_id"].tolist(), quantile, seed)
                rows[label] = found | {"studies": len(table)}
    right = sure.dropna(subset=["mirror_right"])
    if len(right):
        values = right["mirror_right"].to_numpy(float)
        found = interval(
            lambda weights: weights @ values / weights.sum(1), right["patient_id"].tolist(), seed
        )
        rows["mirror_right, share"] = found | {"studies": len(right)}
    return pd.DataFrame(rows).T.astype({"studies": int}).rename_axis("figure")
