"""Threshold rules: what a scanner console would say of a study when the myocardium's mask is known.

Both compare the wall with its remote (healthy) part. Remote is found without knowing the scar: in each slice the
60° sector of the wall with the lowest mean, then the median over slices. Both rules see the **true** mask of the
myocardium (scar included), which no fair competitor does: a yardstick for how hard a cohort is, not a method to use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lgekit.errors import InputError
from lgekit.studies import CAVITY, WALL_CODES, Cohort, Study

MINIMUM_WALL = 20  # voxels of wall below which a slice tells nothing


@dataclass(frozen=True)
class Remote:
    """Intensities that the rules compare with, one number a study, in the image's own units.

    Attributes:
        mean, sd: of the remote sector, medians over slices.
        blood: mean of the cavity, median over slices; NaN without a cavity.
    """

    mean: float
    sd: float
    blood: float


def darkest_sector(intensities: np.ndarray, degrees: np.ndarray, width: int = 60) -> np.ndarray:
    """The sector of the wall with the lowest mean: ``(voxels,)`` bool.

    Args:
        intensities: of the voxels of the wall in one slice, ``(voxels,)``.
        degrees: their angles seen from the LV's centre.
        width: degrees of a sector; sectors of fewer than 4 voxels are passed over.
    """
    sector = (np.asarray(degrees) % 360 // width).astype(int)
    count = np.bincount(sector, minlength=360 // width)
    mean = np.bincount(sector, weights=intensities, minlength=360 // width) / np.maximum(count, 1)
    if not (count >= 4).any():
        return np.ones(len(sector), dtype=bool)
    return sector == np.where(count >= 4, mean, np.inf).argmin()


def wall_mask(study: Study) -> np.ndarray:
    """The whole myocardium, scar included: ``(X, Y, slices)`` bool.

    Raises:
        InputError: the study has no label map, or no slice with enough wall.
    """
    if study.label_map is None:
        raise InputError(study["study_id"], "no label map", "The threshold rules need the myocardium's mask.")
    mask = np.isin(study.label_map, WALL_CODES)
    if not (mask.sum((0, 1)) >= MINIMUM_WALL).any():
        raise InputError(
            study["study_id"], f"no slice with {MINIMUM_WALL} voxels of myocardium", "Check the label codes."
        )
    return mask


def remote_of(study: Study) -> Remote:
    """Remote myocardium and blood of a study, by the rule in the module's docstring.

    Raises:
        InputError: no label map, or no myocardium in it.
    """
    mask, image = wall_mask(study), study.pixels
    cavity = np.asarray(study.label_map) == CAVITY
    spacing = study.spacing_mm
    rows = []
    for s in np.flatnonzero(mask.sum((0, 1)) >= MINIMUM_WALL):
        x, y = np.nonzero(mask[..., s])
        degrees = np.degrees(np.arctan2(-(y - y.mean()) * spacing[1], (x - x.mean()) * spacing[0])) % 360
        values = image[x, y, s].astype(np.float64)
        remote = values[darkest_sector(values, degrees)]
        blood = image[..., s][cavity[..., s]].astype(np.float64)
        rows.append((remote.mean(), remote.std(), blood.mean() if len(blood) else np.nan))
    table = np.array(rows)
    blood = table[np.isfinite(table[:, 2]), 2]
    return Remote(
        float(np.median(table[:, 0])),
        float(max(np.median(table[:, 1]), 1e-6)),
        float(np.median(blood)) if len(blood) else float("nan"),
    )


def _share_above(study: Study, threshold: float) -> float:
    """Share of the wall, in slices with enough of it, that is brighter than a threshold."""
    mask = wall_mask(study)
    mask = mask & (mask.sum((0, 1)) >= MINIMUM_WALL)
    return float((study.pixels[mask] > threshold).mean())


def n_sd_rule(study: Study, n: float = 5.0) -> float:
    """Share of the myocardium brighter than the remote mean + ``n`` SD, 0–1: the patient's score.

    Source: n-SD thresholds for LGE, e.g. Bondarenko et al., J Cardiovasc Magn Reson 2005;7:481 (5 SD).

    Raises:
        InputError: no label map, or no myocardium in it.
    """
    remote = remote_of(study)
    return _share_above(study, remote.mean + n * remote.sd)


def half_maximum_rule(study: Study) -> float:
    """Share of the myocardium brighter than half-way from remote to blood, 0–1: the patient's score.

    A form of the full-width-half-maximum rule (Amado et al., J Am Coll Cardiol 2004;44:2383) with the blood pool as
    the maximum, so that it needs no scar to be found first. 0 without a cavity.

    Raises:
        InputError: no label map, or no myocardium in it.
    """
    remote = remote_of(study)
    return _share_above(study, (remote.mean + remote.blood) / 2) if np.isfinite(remote.blood) else 0.0


THRESHOLD_RULES: dict[str, Callable[[Study], float]] = {"5 SD": n_sd_rule, "half maximum": half_maximum_rule}


def rule_scores(cohort: Cohort) -> dict[str, np.ndarray]:
    """Score of every study by each rule: name → ``(studies,)`` float64."""
    return {name: np.array([rule(study) for study in cohort.studies]) for name, rule in THRESHOLD_RULES.items()}
