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
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lgekit.anatomy.labels import Ventricle, angle_map, wall_depth
from lgekit.anatomy.segments import findings_from_labels
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.evaluation.baselines import THRESHOLD_RULES, remote_of
from lgekit.evaluation.metrics import auc_interval, mean_interval, median_interval
from lgekit.findings import Findings
from lgekit.scars.transforms import AddScar, ScarPainter
from lgekit.segmentation.train import evaluate_heart_network, heart_network
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, SCAR, SCARRED, Cohort, Study, patient_folds

TEXTURE = (
    *("contrast", "contrast_to_noise", "heterogeneity", "edge_width_mm"),
    *("grey_zone", "endocardial_rim", "smoothness"),
)
SHAPE = ("size_percent", "extent_deg", "transmurality_percent", "mean_depth", "roughness")
MINIMUM_SCAR_VOXELS = 15
# Measurement of a study → its name in `realism_table`.
MEDIANS = {
    "scar_share": "scar share of the myocardium (positive studies)",
    "scar_slices": "slices with scar (positive studies)",
    "blood_contrast": "blood − remote, in remote SD",
    "scar_contrast": "scar − remote, in remote SD (positive studies)",
    "wall_over_radius": "wall thickness / LV radius",
}
FOLDS = 5  # of patients, in which synthetic scars are told from real ones
MINIMUM_CONFIDENCE = 0.5  # of a reference insertion point that errors are measured from


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
    labels, rows = study.label_map, []
    if labels is None:
        raise InputError(study["study_id"], "no labels", "Give a label map with scar.")
    for s in np.flatnonzero(np.isin(labels, SCARRED).sum((0, 1)) >= MINIMUM_SCAR_VOXELS):
        ids = {"study_id": study["study_id"], "patient_id": study["patient_id"], "slice": int(s)}
        if row := _slice_features(study.pixels[..., s], labels[..., s], study.spacing_mm):
            rows.append(ids | row)
    return pd.DataFrame(rows, columns=["study_id", "patient_id", "slice", *TEXTURE, *SHAPE])


def _slice_features(
    image: np.ndarray, labels: np.ndarray, spacing: Sequence[float]
) -> dict[str, float]:
    """Describe the scar of one slice; empty if too little of it can be measured."""
    scar, area = labels == SCAR, np.isin(labels, SCARRED)
    wall = (labels == MYOCARDIUM) | area
    depth = np.nan_to_num(wall_depth(labels, spacing), nan=-1.0)
    inside, outside = (
        ndimage.distance_transform_edt(part, sampling=spacing[:2]) for part in (area, ~area)
    )
    middle = (depth > 0.2) & (depth < 0.8)
    remote = (labels == MYOCARDIUM) & middle & (outside > 4)
    blood = ndimage.binary_erosion(labels == CAVITY, iterations=2)
    if min(remote.sum(), blood.sum(), scar.sum()) < MINIMUM_SCAR_VOXELS:
        return {}
    remote_level, noise = np.median(image[remote]), max(float(image[remote].std()), 1e-6)
    rise = np.median(image[scar]) - remote_level
    unit = max(rise, 0.5 * noise)

    # Mean level at each distance in mm from the border, in the middle layers of the wall.
    steps, distance = np.arange(-4, 6), np.where(area, -inside, outside)
    ring = wall & middle & (labels != NO_REFLOW)
    levels = [image[ring & (distance > step) & (distance <= step + 2)] for step in steps]
    means = [(one.mean() - remote_level) / unit if len(one) >= 3 else np.nan for one in levels]
    known = np.isfinite(means)
    if known.sum() < 4:
        return {}
    profile = np.interp(steps, steps[known], np.array(means)[known])
    start, end = np.interp([-0.75, -0.25], -np.minimum.accumulate(profile), steps + 1.0)

    inner, rest, rim = scar & (depth < 0.2), scar & (depth >= 0.2), 0.0
    if min(inner.sum(), rest.sum()) >= 3:
        rim = (image[inner].mean() - image[rest].mean()) / unit
    correlations, perimeter = [], 0.0
    for axis in (0, 1):
        first, second = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        both = scar[first] & scar[second]
        values, neighbours = image[first][both], image[second][both]
        if len(values) > 5 and np.ptp(values) * np.ptp(neighbours):
            correlations.append(np.corrcoef(values, neighbours)[0, 1])
        perimeter += np.count_nonzero(np.diff(area, axis=axis)) * spacing[1 - axis]

    sector = (angle_map(labels.shape, Ventricle.of(labels[..., None]).centre, spacing) // 6).astype(
        int
    )
    count = [np.bincount(sector[part] % 60, minlength=60) for part in (area, wall)]
    share = count[0] / np.maximum(count[1], 1)
    touched = share[share > 0.1]
    contrast = rise / max(np.median(image[blood]) - remote_level, noise)
    features = {
        "contrast": np.clip(contrast, -1, 4),
        "contrast_to_noise": rise / noise,
        "heterogeneity": image[scar].std() / noise,
        "edge_width_mm": end - start,
        "grey_zone": np.clip(profile[steps == 2][0], -1, 2),
        "endocardial_rim": np.clip(rim, -2, 2),
        "smoothness": np.mean(correlations) if correlations else 1.0,
        "size_percent": 100 * (area.sum() / wall.sum()),
        "extent_deg": 6.0 * len(touched),
        "transmurality_percent": 100 * touched.mean() if len(touched) else 0.0,
        "mean_depth": depth[area].mean(),
        "roughness": perimeter**2 / (4 * np.pi * area.sum() * spacing[0] * spacing[1]),
    }
    return {name: float(value) for name, value in features.items()}


def synthetic_twins(real: Cohort, healthy: Cohort, seed: int = 0, constant: bool = False) -> Cohort:
    """Paint the scar of each real study, as described in words, into a healthy study.

    The real studies have scar masks and landmarks. The healthy ones are used in turn; a twin keeps
    the ``patient_id`` of its host. ``constant``: as a control, fill with the median of blood.
    """
    rng, twins = np.random.default_rng(seed), []
    for number, study in enumerate(real.studies):
        wanted = findings_from_labels(study)
        start = number % len(healthy.studies)
        for host in healthy.studies[start:] + healthy.studies[:start]:
            found, draw = ScarPainter(host).fit(wanted), int(rng.integers(2**31))
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
    canvas, rng = ScarPainter(host), np.random.default_rng(seed)
    image, labels = canvas.image.copy(), canvas.labels.copy()
    for scar in found.scars:
        region = canvas.draw_region(scar, rng)
        voxels = region.voxels[region.depth_mm > 0]
        where = canvas.x[voxels], canvas.y[voxels], canvas.plane[voxels]
        image[canvas.box][where] = canvas.blood[canvas.plane[voxels]]
        labels[canvas.box][where] = SCAR
    affine = host.get_image("image").affine
    images = {
        "image": tio.ScalarImage(tensor=torch.from_numpy(image)[None], affine=affine),
        "labels": tio.LabelMap(tensor=torch.from_numpy(labels)[None], affine=affine),
    }
    return Study(**({key: host[key] for key in host} | images))


def scar_realism(
    real: Cohort, synthetic: Cohort, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Compare the scars of two cohorts with scar masks by their `scar_features`.

    Returns a table with one row per feature (quartiles of both cohorts, AUC of the feature alone),
    and the AUC with interval of a logistic regression that tells synthetic from real, from
    ``texture``, ``shape`` or ``both``, cross-validated by patient.
    """
    kinds = (("real", real), ("synthetic", synthetic))
    data = pd.concat(
        [scar_features(one).assign(kind=kind) for kind, cohort in kinds for one in cohort.studies]
    )
    truth = (data["kind"] == "synthetic").to_numpy()
    if min(truth.sum(), (~truth).sum()) < FOLDS:
        problem = f"{truth.sum()} synthetic and {(~truth).sum()} real slices"
        raise InputError("scar_realism", problem, "Give larger cohorts.")
    features = [*TEXTURE, *SHAPE]
    table = pd.DataFrame(index=pd.Index(features, name="feature"))
    for kind, part in data.groupby("kind"):
        for name, quantile in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            table[f"{kind}_{name}"] = part[features].quantile(quantile)
    singles = np.array([roc_auc_score(truth, data[name]) for name in features])
    table["auc_alone"] = np.maximum(singles, 1 - singles)
    patients, aucs = data["patient_id"].astype(str).tolist(), {}
    regression = LogisticRegression(class_weight="balanced", max_iter=1000)
    classifier = make_pipeline(StandardScaler(), regression)
    splitter = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    for name, columns in (("texture", TEXTURE), ("shape", SHAPE), ("both", features)):
        values = data[list(columns)].to_numpy(float)
        score = cross_val_predict(
            classifier, values, truth, groups=patients, cv=splitter, method="decision_function"
        )
        aucs[name] = auc_interval(truth, score, patients, seed)
    return table, aucs


def cohort_figures(cohort: Cohort) -> pd.DataFrame:
    """Measure what `realism_table` compares, per ``study_id``; NaN where undefined.

    Columns ``present``; each threshold rule; the keys of `MEDIANS` (``scar_contrast`` without
    no-reflow; ``wall_over_radius`` from circles of equal area, median over slices with a cavity).
    Raises as `lgekit.evaluation.baselines.remote_of`.
    """
    rows = {}
    for study in cohort.studies:
        remote, labels = remote_of(study), np.asarray(study.label_map)
        scar, bright, cavity = np.isin(labels, SCARRED), labels == SCAR, labels == CAVITY
        wall = (labels == MYOCARDIUM) | scar
        row = {"present": float(scar.any())}
        row |= {name: rule(study) for name, rule in THRESHOLD_RULES.items()}
        row |= dict.fromkeys(MEDIANS, np.nan)
        row["blood_contrast"] = (remote.blood - remote.mean) / remote.sd
        if scar.any():
            row["scar_share"] = float(scar.sum() / wall.sum())
            row["scar_slices"] = float(scar.any((0, 1)).sum())
        if bright.any():
            row["scar_contrast"] = (float(study.pixels[bright].mean()) - remote.mean) / remote.sd
        if cavity.any():
            full = cavity.any((0, 1))
            inner, outer = cavity.sum((0, 1))[full], (wall | cavity).sum((0, 1))[full]
            row["wall_over_radius"] = float(np.median(1 - np.sqrt(inner / outer)))
        rows[study["study_id"]] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("study_id")


def realism_table(cohort_a: Cohort, cohort_b: Cohort) -> pd.DataFrame:
    """Compare two cohorts by the AUC of the threshold rules and the medians of `cohort_figures`.

    Returns index ``figure``; columns named after the cohorts (``a`` and ``b`` if alike),
    ``difference`` (second − first) and ``relative`` (difference / first).
    """
    names = [cohort_a.name or "a", cohort_b.name or "b"]
    if names[0] == names[1]:
        names = ["a", "b"]
    table = pd.DataFrame()
    for name, cohort in zip(names, (cohort_a, cohort_b), strict=True):
        figures = cohort_figures(cohort)
        column = {}
        for rule in THRESHOLD_RULES:
            known = figures.dropna(subset=rule)
            auc = np.nan
            if known["present"].nunique() == 2:
                auc = roc_auc_score(known["present"], known[rule])
            column[f"AUC, {rule} rule"] = auc
        column |= {title: figures[key].median() for key, title in MEDIANS.items()}
        table[name] = pd.Series(column | {"studies": len(figures)}, dtype=float)
    first, second = (table[name] for name in names)
    table = table.assign(difference=second - first, relative=(second - first) / first.abs())
    return table.rename_axis("figure")


def measure_folds(
    cohort: Cohort, pretrain_on: Sequence[Cohort], settings: FitSettings, folds: int = 0
) -> pd.DataFrame:
    """Measure the heart network by cross-validation over patients.

    ``pretrain_on``: further cohorts with labels, of other patients, for the base of all folds.
    ``folds`` 0: ``settings.heart_folds``, whose networks a fit on all studies uses too. Returns
    what `lgekit.segmentation.train.evaluate_heart_network` returns, and ``fold``.
    """
    ids, parts = cohort.manifest["study_id"].to_numpy(), []
    fold = patient_folds(cohort, folds or settings.heart_folds, settings.seed)
    for number in np.unique(fold):
        network = heart_network(cohort.subset(ids[fold != number]), pretrain_on, settings)
        held_out = cohort.subset(ids[fold == number])
        parts.append(evaluate_heart_network(network, held_out, settings.seed).assign(fold=number))
    return pd.concat(parts, ignore_index=True)


def quality_table(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Summarize `measure_folds` over studies, with 95 % intervals over patients.

    Errors of insertion points count where the reference has confidence 0.5 or more. Returns index
    ``figure``: medians of ``dice_…`` and ``…_error_deg``, a 95th percentile, and the share of
    ``mirror_right``; columns ``value, low, high, studies``.
    """
    sure = measured[measured["reference_confidence"] >= MINIMUM_CONFIDENCE]
    dice = [(measured, f"dice_{name}", "median") for name in ("cavity", "myocardium", "rv")]
    anterior = [(sure, "anterior_error_deg", word) for word in ("median", "95th percentile")]
    others = [(sure, "inferior_error_deg", "median"), (sure, "mirror_right", "share")]
    rows: dict[str, dict[str, float]] = {}
    for source, name, word in (*dice, *anterior, *others):
        known = source.dropna(subset=[name])
        values, patients = known[name].to_numpy(float), known["patient_id"].tolist()
        if word == "share":
            found = mean_interval(values, patients, seed)
        else:
            found = median_interval(values, patients, 0.5 if word == "median" else 0.95, seed)
        if len(known):
            rows[f"{name}, {word}"] = found | {"studies": len(known)}
    return pd.DataFrame(rows).T.astype({"studies": int}).rename_axis("figure")
