"""Metrics with intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from lgekit.errors import InputError
from lgekit.findings import WALLS

RESAMPLES = 2000
PRESENCE_STATISTICS = ("balanced_accuracy", "sensitivity", "specificity", "auc")
ROC_COLUMNS = ["false_positive_rate", "sensitivity", "low", "high"]


def title_of(name: str) -> str:
    """A row or a statistic as tables and figures write it.

    Examples:
        >>> title_of("plain_clip"), title_of("balanced_accuracy"), title_of("auc")
        ('plain CLIP', 'balanced accuracy', 'AUC')
    """
    return re.sub(r"\b(auc|clip)\b", lambda word: word[0].upper(), str(name).replace("_", " "))


def presence_statistic(
    name: str, truth: np.ndarray, probability: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """One statistic of a binary reading for many weightings of the studies at once.

    Args:
        name: ``balanced_accuracy``, ``sensitivity``, ``specificity`` (decision: probability > 0.5) or ``auc``.
        truth: ``(studies,)`` bool.
        probability: ``(studies,)`` float; only its order matters to the AUC.
        weights: ``(resamples, studies)``, how often each study counts.

    Returns:
        ``(resamples,)`` float64; NaN where a resample holds only one of the two classes.
    """
    truth = np.asarray(truth, dtype=bool)
    positive, negative = weights[:, truth], weights[:, ~truth]
    with np.errstate(invalid="ignore", divide="ignore"):
        if (
            name == "auc"
        ):  # the Mann–Whitney form: how often a positive outranks a negative, ties count half
            above = (
                np.asarray(probability)[truth][:, None] - np.asarray(probability)[~truth][None, :]
            )
            wins = (above > 0) + 0.5 * (above == 0)  # (positives, negatives)
            return ((positive @ wins) * negative).sum(1) / (positive.sum(1) * negative.sum(1))
        called = np.asarray(probability) > 0.5
        sensitivity = positive[:, called[truth]].sum(1) / positive.sum(1)
        specificity = negative[:, ~called[~truth]].sum(1) / negative.sum(1)
    if name == "balanced_accuracy":
        return (sensitivity + specificity) / 2
    return {"sensitivity": sensitivity, "specificity": specificity}[name]


def patient_resamples(
    patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Bootstrap weights ``(resamples, studies)``: patients drawn with replacement, all studies of one together.

    The patients are put in order of their names first, so that the order of the table changes nothing.
    """
    names, position = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, position].astype(float)  # (resamples, patients) → (resamples, studies)


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], patients: Sequence[str], seed: int = 0
) -> dict:
    """A statistic with its patient-level 95 % percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13).

    Args:
        statistic: weights ``(resamples, studies)`` → ``(resamples,)``.
        patients: the patient of each study.
        seed: of the resampling.

    Returns:
        ``{"value", "low", "high"}``; NaN where the statistic does not exist.
    """
    if not len(patients):
        return {"value": np.nan, "low": np.nan, "high": np.nan}
    value = float(statistic(np.ones((1, len(patients))))[0])
    draws = statistic(patient_resamples(patients, seed=seed))
    draws = draws[np.isfinite(draws)]
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (np.nan, np.nan)
    return {"value": value, "low": float(low), "high": float(high)}


def presence_metrics(predictions: pd.DataFrame, seed: int = 0) -> dict[str, dict]:
    """Balanced accuracy, sensitivity, specificity, AUC and Brier score of presence, each with its interval.

    Args:
        predictions: columns ``patient_id``, ``scar`` (truth), ``p_lge`` (decision: > 0.5); one row a study.

    Raises:
        InputError: a column is missing, or no study's truth is known.
    """
    known = known_truth(predictions, ["patient_id", "scar", "p_lge"])
    truth, probability = known["scar"].to_numpy(bool), known["p_lge"].to_numpy(float)
    patients = known["patient_id"].tolist()
    rows = {
        name: interval(partial(presence_statistic, name, truth, probability), patients, seed)
        for name in PRESENCE_STATISTICS
    }
    squares = (
        probability - truth
    ) ** 2  # Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    rows["brier"] = interval(lambda weights: weights @ squares / weights.sum(1), patients, seed)
    return rows


def roc_table(predictions: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Receiver operating characteristic with its patient-level 95 % band.

    Args:
        predictions: columns ``patient_id``, ``scar`` (truth) and ``p_lge``.
        seed: of the bootstrap.

    Returns:
        Columns ``false_positive_rate``, ``sensitivity``, ``low``, ``high`` on 101 evenly spaced rates; NaN with one
        class only.
    """
    known = predictions.dropna(subset=["scar"])
    truth, score = known["scar"].to_numpy(bool), known["p_lge"].to_numpy(float)
    weights = np.vstack(
        [np.ones(len(known)), patient_resamples(known["patient_id"].tolist(), 500, seed)]
    )
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.diff(score[order]) != 0, True)
    rates = np.linspace(0, 1, 101)
    curves = []
    for weight in weights[:, order]:
        positive, negative = weight * truth[order], weight * ~truth[order]
        if positive.sum() and negative.sum():
            hits = np.append(0, (positive.cumsum() / positive.sum())[last_of_tie])
            alarms = np.append(0, (negative.cumsum() / negative.sum())[last_of_tie])
            curves.append(np.interp(rates, alarms, hits))
    if not curves:  # one class only
        return pd.DataFrame({"false_positive_rate": rates}).reindex(columns=ROC_COLUMNS)
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    return pd.DataFrame(
        {"false_positive_rate": rates, "sensitivity": curves[0], "low": low, "high": high}
    )


def wall_metrics(predictions: pd.DataFrame, seed: int = 0) -> dict[str, dict]:
    """AUC of each of the six AHA walls and their mean (``macro``), over all studies whose walls are known.

    Args:
        predictions: columns ``patient_id``, ``scar_<wall>`` (truth) and ``p_<wall>`` for each wall.
    """
    columns = [f"{kind}_{wall}" for wall in WALLS for kind in ("scar", "p")]
    known = known_truth(predictions, ["patient_id", *columns])
    patients = known["patient_id"].tolist()

    def auc(wall: str, weights: np.ndarray) -> np.ndarray:
        return presence_statistic(
            "auc", known[f"scar_{wall}"], known[f"p_{wall}"].to_numpy(float), weights
        )

    rows = {wall: interval(partial(auc, wall), patients, seed) for wall in WALLS}
    return rows | {"macro": interval(partial(mean_wall_auc, known), patients, seed)}


def mean_wall_auc(known: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Mean AUC of the walls that have studies of both kinds, for many weightings of the studies.

    Args:
        known: columns ``scar_<wall>`` (truth, none missing) and ``p_<wall>``.
        weights: ``(resamples, studies)``.

    Returns:
        ``(resamples,)`` float64.
    """
    scores = np.stack(
        [
            presence_statistic("auc", known[f"scar_{w}"], known[f"p_{w}"].to_numpy(float), weights)
            for w in WALLS
        ]
    )  # (walls, resamples)
    return _mean_of_known(scores)


def _mean_of_known(scores: np.ndarray) -> np.ndarray:
    """Mean of the finite values over the first axis; NaN where there is none."""
    return np.where(
        np.isfinite(scores).any(0),
        np.nansum(scores, 0) / np.isfinite(scores).sum(0).clip(1),
        np.nan,
    )


def segment_metrics(
    truth: np.ndarray, values: np.ndarray, patients: Sequence[str], seed: int = 0
) -> list[dict]:
    """AUC of each AHA segment over the studies that have a value for it, and last the mean of those that have one.

    Args:
        truth: ``(studies, 17)`` bool, whether the segment holds scar.
        values: ``(studies, 17)`` float, NaN where a study says nothing of a segment.
        patients: the patient of each study.
        seed: of the bootstrap.

    Returns:
        18 times ``{"value", "low", "high"}``; NaN where all studies are of one class.
    """
    known, names = np.isfinite(values), np.asarray(patients, dtype=str)

    def auc(weights: np.ndarray, number: int, own: np.ndarray) -> np.ndarray:
        return presence_statistic("auc", truth[own, number], values[own, number], weights)

    def mean(weights: np.ndarray) -> np.ndarray:
        return _mean_of_known(
            np.stack([auc(weights[:, own], number, own) for number, own in enumerate(known.T)])
        )

    each = [
        interval(partial(auc, number=number, own=own), names[own].tolist(), seed)
        for number, own in enumerate(known.T)
    ]
    return [*each, interval(mean, names.tolist(), seed)]


def slice_metrics(slices: pd.DataFrame, seed: int = 0) -> dict:
    """AUC of slice weights for slices with scar inside positive studies: mean over studies, interval over patients.

    Args:
        slices: one row a slice, columns ``study_id``, ``patient_id``, ``weight``, ``scar`` (truth of the slice).
    """
    scores, patients = [], []
    for _, study in slices.groupby("study_id", sort=True):
        if study["scar"].nunique() == 2:  # a study whose slices are all alike ranks nothing
            ones = np.ones((1, len(study)))
            scores.append(
                presence_statistic(
                    "auc", study["scar"].to_numpy(bool), study["weight"].to_numpy(), ones
                )[0]
            )
            patients.append(study["patient_id"].iloc[0])
    if not scores:
        return {"value": np.nan, "low": np.nan, "high": np.nan}
    return interval(lambda weights: weights @ np.array(scores) / weights.sum(1), patients, seed)


def summary(values: np.ndarray, first: str = "value") -> dict[str, float]:
    """A value and the middle 95 % of its resamples.

    Args:
        values: ``(1 + resamples,)``, the value itself first; resamples without the statistic are NaN.
        first: name of the value; empty: what is returned gets a name put before.

    Returns:
        The value, ``low`` and ``high``; with an empty name ``_low`` and ``_high``.
    """
    finite = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    prefix = "" if first else "_"
    return {first: float(values[0]), f"{prefix}low": float(low), f"{prefix}high": float(high)}


def known_truth(predictions: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The predictions whose truth is known.

    Raises:
        InputError: a column is missing, no truth is known, or a probability (``p_…``) is missing in a row.
    """
    missing = [column for column in columns if column not in predictions]
    if missing:
        raise InputError(
            "predictions", f"columns {missing} are missing", "Give the table that `predict` writes."
        )
    known = predictions.dropna(subset=[column for column in columns if column.startswith("scar")])
    if known.empty:
        raise InputError(
            "predictions", "no study's truth is known", "Score a cohort with masks or findings."
        )
    for column in columns:
        lacking = (
            ~np.isfinite(known[column].astype(float))
            if column.startswith("p_")
            else np.zeros(len(known), bool)
        )
        if lacking.any():
            names = ", ".join(map(str, known.loc[lacking, "study_id"].head(5)))
            remedy = "Predict them again, or leave their rows out."
            raise InputError("predictions", f"{column} is missing in {names}", remedy)
    return known


def median_interval(
    values: Sequence[float], patients: Sequence[str], quantile: float = 0.5, seed: int = 0
) -> dict:
    """A quantile over studies with its patient-level 95 % bootstrap interval; missing values are left out.

    Args:
        values: one a study.
        patients: the patient of each.
        quantile: 0.5 is the median.
        seed: of the resampling.
    """
    finite = np.isfinite(np.asarray(values, float))
    kept = np.asarray(values, float)[finite]
    order = np.argsort(kept, kind="stable")
    names = np.asarray(patients, dtype=str)[finite][order]
    if not len(kept):
        return {"value": np.nan, "low": np.nan, "high": np.nan}

    def statistic(weights: np.ndarray) -> np.ndarray:
        reached = weights.cumsum(1) >= quantile * weights.sum(1, keepdims=True)  # weighted quantile
        return kept[order][reached.argmax(1)]

    row = interval(statistic, names.tolist(), seed)
    return row | {"value": float(np.quantile(kept, quantile))}


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
        remedy = (
            "Take one value of each further axis of the grid (`lgekit.grid.report.last_point`)."
        )
        raise InputError("predictions", "a study stands twice under one row and seed", remedy)
    if reference not in set(predictions["row"]):
        raise InputError(
            "predictions",
            f"no row named {reference!r}",
            f"Rows: {sorted(set(predictions['row']))}.",
        )
    known = known_truth(predictions, ["row", "seed", "study_id", "patient_id", "scar", "p_lge"])
    studies = {
        row: {*zip(run["seed"], run["study_id"], strict=True)}
        for row, run in known.groupby("row", sort=False)
    }
    if unlike := [row for row in studies if studies[row] != studies.get(reference)]:
        remedy = "Compare whole seeds alone (`lgekit.grid.report.of_whole_seeds`)."
        raise InputError(
            "predictions", f"{unlike} are of other seeds or studies than {reference!r}", remedy
        )
    if (known.groupby("study_id")["scar"].nunique() > 1).any():
        raise InputError(
            "predictions", "rows differ in a study's truth", "Collect runs of one cohort alone."
        )
    patients = np.unique(known["patient_id"].astype(str))
    # The least p is 2 / (1 + resamples), and Holm multiplies it by the rows compared: of any number it must stay
    # below 0.05.
    resamples = max(RESAMPLES, 100 * (len(studies) - 1))
    weights = np.vstack(
        [np.ones(len(patients)), patient_resamples(patients.tolist(), resamples, seed)]
    )
    seeds = np.unique(known["seed"])
    drawn = np.random.default_rng((seed, 1)).multinomial(
        len(seeds), np.full(len(seeds), 1 / len(seeds)), resamples
    )
    seed_weights = np.vstack(
        [np.ones(len(seeds)), drawn]
    ).T  # (seeds, 1 + resamples), the same for all rows
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
            counted = np.where(
                seed_weights > 0, seed_weights * per_seed, 0
            )  # a seed not drawn may lack the statistic
            draws[row] = counted.sum(0) / len(seeds)  # (1 + resamples,)
        for row, values in draws.items():
            line = {"row": row, "statistic": statistic} | summary(values)
            if row != reference:
                difference = values - draws[reference]
                line |= {
                    f"difference{key}": value for key, value in summary(difference, "").items()
                }
                tail = difference[1:][np.isfinite(difference[1:])]
                line["p"] = min(
                    1.0, 2 * (1 + min((tail <= 0).sum(), (tail >= 0).sum())) / (1 + len(tail))
                )
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
