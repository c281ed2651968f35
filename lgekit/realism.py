"""Is one cohort as hard as another? The figures that the phantom was held against real studies by."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from lgekit.baselines import THRESHOLD_RULES, remote_of, wall_mask
from lgekit.studies import CAVITY, NO_REFLOW, SCAR, Cohort, Study

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
        "scar_contrast": (float(image[bright].mean()) - remote.mean) / remote.sd if bright.any() else np.nan,
        "wall_over_radius": float(np.median(1 - np.sqrt(areas[0][full] / areas[1][full]))) if full.any() else np.nan,
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
            f"AUC, {rule} rule": float(roc_auc_score(table["present"], table[rule])) if two_classes else np.nan
            for rule in THRESHOLD_RULES
        }
        column |= {text: float(table[key].median()) for key, text in MEDIANS.items()}
        column["studies"] = float(len(table))
        columns[name] = column
    frame = pd.DataFrame(columns).rename_axis("figure")
    frame["difference"] = frame[names[1]] - frame[names[0]]
    frame["relative"] = frame["difference"] / frame[names[0]].abs()
    return frame
