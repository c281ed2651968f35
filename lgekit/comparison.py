"""Rows of an ablation against one of them: paired over patients and seeds, corrected for their number."""

from __future__ import annotations

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from lgekit.errors import InputError
from lgekit.findings import WALLS
from lgekit.metrics import (
    PRESENCE_STATISTICS,
    RESAMPLES,
    known_truth,
    mean_wall_auc,
    patient_resamples,
    presence_statistic,
    summary,
)


def compare_rows(predictions: pd.DataFrame, reference: str = "full", seed: int = 0) -> pd.DataFrame:
    """Each row of an ablation against the reference: paired bootstrap over patients and seeds, Holm-corrected.

    Each resample draws patients and, on their own, seeds, the same for all rows (Owen 2007, doi:10.1214/07-AOAS122);
    the statistic is averaged over the seeds drawn. With one seed the interval is over patients alone; two or three
    seeds show little of what further ones would do.

    Args:
        predictions: columns ``row``, ``seed``, ``study_id``, ``patient_id``, ``scar``, ``p_lge``; all rows of the same
            seeds and studies. With ``scar_<wall>`` and ``p_<wall>`` the mean AUC of the walls is compared too
            (``auc_walls``).
        reference: the row that the others are compared with.
        seed: of the resampling.

    Returns:
        One line a row and statistic: ``value, low, high`` (of the row), ``difference, difference_low,
        difference_high, p, p_holm`` (row minus reference; two-sided bootstrap p, Holm 1979 within a statistic).

    Raises:
        InputError: the reference row is not there, a study stands twice under one row and seed, or rows are of other
            seeds or studies than the reference.
    """
    if predictions.duplicated(["row", "seed", "study_id"]).any():
        remedy = "Take one value of each further axis of the grid (`lgekit.ablation_report.last_point`)."
        raise InputError("predictions", "a study stands twice under one row and seed", remedy)
    if reference not in set(predictions["row"]):
        raise InputError("predictions", f"no row named {reference!r}", f"Rows: {sorted(set(predictions['row']))}.")
    known = known_truth(predictions, ["row", "seed", "study_id", "patient_id", "scar", "p_lge"])
    studies = {row: {*zip(run["seed"], run["study_id"], strict=True)} for row, run in known.groupby("row", sort=False)}
    if unlike := [row for row in studies if studies[row] != studies.get(reference)]:
        remedy = "Compare whole seeds alone (`lgekit.ablation_report.of_whole_seeds`)."
        raise InputError("predictions", f"{unlike} are of other seeds or studies than {reference!r}", remedy)
    if (known.groupby("study_id")["scar"].nunique() > 1).any():
        raise InputError("predictions", "rows differ in a study's truth", "Collect runs of one cohort alone.")
    patients = np.unique(known["patient_id"].astype(str))
    # The least p is 2 / (1 + resamples), and Holm multiplies it by the rows compared: of any number it must stay
    # below 0.05.
    resamples = max(RESAMPLES, 100 * (len(studies) - 1))
    weights = np.vstack([np.ones(len(patients)), patient_resamples(patients.tolist(), resamples, seed)])
    seeds = np.unique(known["seed"])
    drawn = np.random.default_rng((seed, 1)).multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), resamples)
    seed_weights = np.vstack([np.ones(len(seeds)), drawn]).T  # (seeds, 1 + resamples), the same for all rows
    walls = [f"scar_{wall}" for wall in WALLS]
    with_walls = known[known[walls].notna().all(axis=1)] if {*walls} <= {*known} else known.iloc[:0]
    if len(with_walls):
        with_walls = known_truth(with_walls, ["study_id", *walls, *(f"p_{wall}" for wall in WALLS)])
    lines = []
    for statistic in (*PRESENCE_STATISTICS, *(["auc_walls"] if len(with_walls) else [])):
        draws = {}
        table = with_walls if statistic == "auc_walls" else known
        for row, of_row in table.groupby("row", sort=False):
            per_seed = []
            for run in (of_row[of_row["seed"] == one] for one in seeds):
                of_run = weights[:, np.searchsorted(patients, run["patient_id"].astype(str))]
                if statistic == "auc_walls":
                    per_seed.append(mean_wall_auc(run, of_run))
                else:
                    truth, probability = run["scar"].to_numpy(bool), run["p_lge"].to_numpy(float)
                    per_seed.append(presence_statistic(statistic, truth, probability, of_run))
            counted = np.where(seed_weights > 0, seed_weights * per_seed, 0)  # a seed not drawn may lack the statistic
            draws[row] = counted.sum(0) / len(seeds)  # (1 + resamples,)
        for row, values in draws.items():
            line = {"row": row, "statistic": statistic} | summary(values)
            if row != reference:
                difference = values - draws[reference]
                line |= {f"difference{key}": value for key, value in summary(difference, "").items()}
                tail = difference[1:][np.isfinite(difference[1:])]
                line["p"] = min(1.0, 2 * (1 + min((tail <= 0).sum(), (tail >= 0).sum())) / (1 + len(tail)))
            lines.append(line)
    compared = pd.DataFrame(lines)
    if "p" in compared:
        for _, group in compared[compared["p"].notna()].groupby("statistic"):
            compared.loc[group.index, "p_holm"] = multipletests(group["p"], method="holm")[1]
    return compared


def claim_answer(difference: float, low: float, high: float, p_holm: float) -> str:
    """Does the component help? ``yes`` or ``no`` where the 95 % interval of (without − with) excludes 0 and so
    does the test that is corrected for the number of rows, at 5 %.

    Args:
        difference: statistic of the row without the component, minus that of the full method.
        low: lower end of its interval.
        high: upper end of its interval.
        p_holm: p value after Holm's correction.
    """
    if not np.isfinite([difference, low, high]).all() or low <= 0 <= high or not p_holm < 0.05:
        return "not shown"
    return "yes" if high < 0 else "no"
