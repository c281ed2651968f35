"""How well hearts are outlined and turned on studies never trained on: folds by patient, medians with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lgekit.metrics import interval, median_interval
from lgekit.segmentation import evaluate_heart_network
from lgekit.settings import FitSettings
from lgekit.stages import base_network, heart_network
from lgekit.studies import Cohort, patient_folds

SURE = 0.5  # least confidence of a reference point that errors are measured against


def measure_folds(
    cohort: Cohort, pretrain_on: Sequence[Cohort], settings: FitSettings, folds: int = 0, progress: bool = True
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
        What `lgekit.segmentation.evaluate_heart_network` gives, and ``fold``.
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
        measured: what `lgekit.segmentation.evaluate_heart_network` gives; errors of insertion points count where the
            reference is sure (confidence 0.5 or more: high and medium of EMIDEC's table).
        seed: of the bootstrap.

    Returns:
        Index ``figure``: ``dice_cavity``, ``dice_myocardium``, ``dice_rv`` (medians), ``anterior_error_deg`` and
        ``inferior_error_deg`` (medians), ``anterior_error_deg, 95th percentile``, ``mirror_right`` (share); columns
        ``value, low, high, studies``. Figures without a single study are left out.
    """
    sure = measured[measured["reference_confidence"] >= SURE]
    rows: dict[str, dict[str, float]] = {}
    for name in ("dice_cavity", "dice_myocardium", "dice_rv", "anterior_error_deg", "inferior_error_deg"):
        table = (measured if name.startswith("dice") else sure).dropna(subset=[name])
        for label, quantile in ((f"{name}, median", 0.5), (f"{name}, 95th percentile", 0.95)):
            if len(table) and (quantile == 0.5 or name == "anterior_error_deg"):
                found = median_interval(table[name], table["patient_id"].tolist(), quantile, seed)
                rows[label] = found | {"studies": len(table)}
    right = sure.dropna(subset=["mirror_right"])
    if len(right):
        values = right["mirror_right"].to_numpy(float)
        found = interval(lambda weights: weights @ values / weights.sum(1), right["patient_id"].tolist(), seed)
        rows["mirror_right, share"] = found | {"studies": len(right)}
    return pd.DataFrame(rows).T.astype({"studies": int}).rename_axis("figure")
