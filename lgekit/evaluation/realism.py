"""How real synthetic scars, phantom cohorts and the heart network's contours are."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lgekit.anatomy.segments import findings_from_labels, wall_depth
from lgekit.errors import InputError
from lgekit.evaluation.baselines import remote_of, threshold_shares
from lgekit.evaluation.metrics import auc_interval, bootstrap_weights, with_limits
from lgekit.scars.transforms import AddScar, ScarPainter
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, SCAR, SCARRED, WALL_CODES, Cohort, Study

MINIMUM_SCAR_VOXELS = 15
FOLDS = 5  # of patients, to tell synthetic scars from real ones
QUANTILES = {"median": 0.5, "95th percentile": 0.95}
# Columns of `evaluate_heart_network` and how they are summarized; a share is a mean.
OVERLAPS = [(f"dice_{name}", "median") for name in ("cavity", "myocardium", "rv")]
POINTS = [("anterior_error_deg", "median"), ("anterior_error_deg", "95th percentile")]
POINTS += [("inferior_error_deg", "median"), ("mirror_right", "share")]
REFERENCE_CONFIDENCE = 0.5  # of a reference insertion point that errors are measured from


def scar_features(study: Study) -> pd.DataFrame:
    """Describe the scar of each slice with 15 voxels of scar or more, one row per slice.

    Columns: ``study_id, patient_id, slice`` and

    - ``contrast_to_noise``: (scar − remote) / standard deviation of remote; medians; remote
      myocardium is more than 4 mm from scar;
    - ``heterogeneity``: standard deviation of scar / of remote;
    - ``edge_width_mm``: from 75 % to 25 % of (scar − remote), across the border within the wall;
    - ``grey_zone``: mean level 2–4 mm outside the border, as a share of (scar − remote);
    - ``smoothness``: correlation of neighbouring voxels inside the scar, mean of both axes;
    - ``size_percent`` of the slice's wall; ``reach_percent`` across it, 95th percentile;
      ``mean_depth`` (0 endocardium, 1 epicardium); ``roughness``: perimeter² / (4π area).
    """
    labels, rows = study.label_map, []
    if labels is None:
        raise InputError(study["study_id"], "no labels", "Give a label map with scar.")
    for s in np.flatnonzero(np.isin(labels, SCARRED).sum((0, 1)) >= MINIMUM_SCAR_VOXELS):
        if row := _slice_features(study.pixels[..., s], labels[..., s], study.spacing_mm):
            place = {"study_id": study["study_id"], "patient_id": study["patient_id"], "slice": s}
            rows.append(place | row)
    return pd.DataFrame(rows)


def _slice_features(
    image: np.ndarray, labels: np.ndarray, spacing: Sequence[float]
) -> dict[str, float]:
    """Describe the scar of one slice; empty if too little of it can be measured."""
    scar, area, wall = labels == SCAR, np.isin(labels, SCARRED), np.isin(labels, WALL_CODES)
    inside, outside = (
        ndimage.distance_transform_edt(part, sampling=spacing[:2]) for part in (area, ~area)
    )
    depth, distance = wall_depth(labels, spacing), outside - inside  # mm, outwards
    middle = (depth > 0.2) & (depth < 0.8)
    remote = image[(labels == MYOCARDIUM) & middle & (distance > 4)]
    if min(len(remote), scar.sum()) < MINIMUM_SCAR_VOXELS:
        return {}
    noise = max(float(remote.std()), 1e-6)
    rise = np.median(image[scar]) - np.median(remote)
    # Mean level at each distance from the border, in the middle layers of the wall.
    ring, steps = wall & middle & (labels != NO_REFLOW), np.arange(-4, 6)
    levels = [image[ring & (distance > step) & (distance <= step + 2)] for step in steps]
    known = np.array([len(level) >= 3 for level in levels])
    if known.sum() < 4:
        return {}
    means = [level.mean() for level, enough in zip(levels, known, strict=True) if enough]
    profile = np.interp(steps, steps[known], means - np.median(remote)) / max(rise, noise / 2)
    start, end = np.interp([-0.75, -0.25], -np.minimum.accumulate(profile), steps + 1.0)
    correlations, perimeter = [], 0.0
    for axis in (0, 1):
        perimeter += np.count_nonzero(np.diff(area, axis=axis)) * spacing[1 - axis]
        both, neighbour = scar & np.roll(scar, 1, axis), np.roll(image, 1, axis)
        if both.sum() > 5 and np.ptp(image[both]) * np.ptp(neighbour[both]):
            correlations.append(np.corrcoef(image[both], neighbour[both])[0, 1])
    return {
        "contrast_to_noise": rise / noise,
        "heterogeneity": image[scar].std() / noise,
        "edge_width_mm": end - start,
        "grey_zone": np.clip(profile[steps == 2][0], -1, 2),
        "smoothness": np.mean(correlations) if correlations else 1.0,
        "size_percent": 100 * (area.sum() / wall.sum()),
        "reach_percent": 100 * np.percentile(depth[area], 95),
        "mean_depth": depth[area].mean(),
        "roughness": perimeter**2 / (4 * np.pi * area.sum() * spacing[0] * spacing[1]),
    }


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
            painted = AddScar(ScarPainter(host).within_stack(wanted), seed=int(rng.integers(2**31)))
            try:
                twin = cast(Study, painted(host))
            except InputError:
                continue
            twin["study_id"] = f"{host['study_id']} as {study['study_id']}"
            if constant:
                labels = np.asarray(twin.label_map)
                twin.pixels[np.isin(labels, SCARRED)] = np.median(twin.pixels[labels == CAVITY])
            twins.append(twin)
            break
    return Cohort(twins, f"{healthy.name} as {real.name}")


def scar_realism(
    real: Cohort, synthetic: Cohort, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Compare the scars of two cohorts with scar masks by their `scar_features`.

    Returns a table with one row per feature (medians of both cohorts, AUC of the feature alone),
    and the AUC with interval of a logistic regression on all features that tells synthetic from
    real, cross-validated by patient.
    """
    features = [[scar_features(one) for one in cohort.studies] for cohort in (real, synthetic)]
    data = pd.concat(map(pd.concat, features), keys=["real", "synthetic"])
    truth = data.index.get_level_values(0) == "synthetic"
    if min(truth.sum(), (~truth).sum()) < FOLDS:
        problem = f"{truth.sum()} synthetic and {(~truth).sum()} real slices"
        raise InputError("scar_realism", problem, "Give larger cohorts.")
    values = data.drop(columns=["study_id", "patient_id", "slice"])
    table = values.groupby(level=0).median().T.add_suffix("_median")
    singles = np.array([roc_auc_score(truth, values[name]) for name in values])
    table["auc_alone"] = np.maximum(singles, 1 - singles)
    regression = LogisticRegression(class_weight="balanced", max_iter=1000)
    model = make_pipeline(StandardScaler(), regression)
    patients = data["patient_id"].astype(str).to_numpy()
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed).split(values, groups=patients)
    score = cross_val_predict(model, values, truth, cv=folds, method="decision_function")
    return table.rename_axis("feature"), auc_interval(truth, score, patients, seed)


def cohort_figures(cohort: Cohort) -> pd.DataFrame:
    """Measure contrast and size of hearts and scars, per ``study_id``; NaN where undefined.

    Columns ``present``; each threshold rule; ``scar_share`` of the wall; ``scar_slices``;
    ``blood_contrast`` and ``scar_contrast`` to remote myocardium, in its SD, without no-reflow;
    ``wall_over_radius`` from circles of equal area, median over slices with a cavity. Raises as
    `lgekit.evaluation.baselines.remote_of`.
    """
    rows = {}
    for study in cohort.studies:
        (mean, sd, blood), labels = remote_of(study), np.asarray(study.label_map)
        scar, cavity, bright = (np.isin(labels, part) for part in (SCARRED, CAVITY, SCAR))
        wall, full = np.isin(labels, WALL_CODES), cavity.any((0, 1))
        inner, outer = (part.sum((0, 1))[full] for part in (cavity, wall | cavity))
        level = float(study.pixels[bright].mean()) if bright.any() else np.nan
        rows[study["study_id"]] = {
            "present": float(scar.any()),
            **threshold_shares(study),
            "scar_share": scar.sum() / wall.sum() if scar.any() else np.nan,
            "scar_slices": float(scar.any((0, 1)).sum()) if scar.any() else np.nan,
            "blood_contrast": (blood - mean) / sd,
            "scar_contrast": (level - mean) / sd,
            "wall_over_radius": np.median(1 - np.sqrt(inner / outer)) if full.any() else np.nan,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("study_id")


def quality_table(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Summarize what `evaluate_heart_network` measured, with 95 % intervals over patients.

    Errors of insertion points count where the reference has confidence 0.5 or more. Returns index
    ``figure``: medians of ``dice_…`` and ``…_error_deg``, a 95th percentile, and the share of
    ``mirror_right``; columns ``value, low, high, studies``.
    """
    sure = measured[measured["reference_confidence"] >= REFERENCE_CONFIDENCE]
    rows: dict[str, dict[str, float]] = {}
    for name, summary in OVERLAPS + POINTS:
        kept = measured if (name, summary) in OVERLAPS else sure
        known = kept.dropna(subset=name).sort_values(name)
        if known.empty:
            continue
        values = known[name].to_numpy(float)
        weights = bootstrap_weights(known["patient_id"], seed=seed)
        draws = weights @ values / weights.sum(1)
        if quantile := QUANTILES.get(summary):
            reached = weights.cumsum(1) >= quantile * weights.sum(1, keepdims=True)
            draws = values[reached.argmax(1)]
            draws[0] = np.quantile(values, quantile)
        rows[f"{name}, {summary}"] = with_limits(draws) | {"studies": len(known)}
    return pd.DataFrame(rows).T.astype({"studies": int}).rename_axis("figure")
