"""Statistics with 95 % bootstrap intervals over patients, and the comparison of ablation rows."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve
from statsmodels.stats.multitest import multipletests

from lgekit.config import PLAIN_CLIP
from lgekit.errors import InputError
from lgekit.findings import WALLS

RESAMPLES = 2000
PRESENCE_STATISTICS = ("balanced_accuracy", "sensitivity", "specificity", "auc")


def title_of(name: str) -> str:
    """Return the name of a row or statistic for display: ``plain_clip`` → ``plain CLIP``."""
    return re.sub(r"\b(auc|clip|lge)\b", lambda word: word[0].upper(), str(name).replace("_", " "))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return ``part / whole``, NaN where ``whole`` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def presence_statistic(
    name: str, truth: ArrayLike, probability: ArrayLike, weights: np.ndarray
) -> np.ndarray:
    """Compute one statistic of a binary prediction for many weightings of the studies.

    ``name``: one of `PRESENCE_STATISTICS` (positive: probability > 0.5). ``weights``: ``(resamples,
    studies)``, how often each study counts; one without truth or probability (NaN) does not.
    Returns ``(resamples,)``; NaN where a class is missing.
    """
    truth, score = np.asarray(truth, float), np.asarray(probability, float)
    known = np.isfinite(truth) & np.isfinite(score)
    present, score, weights = truth[known] == 1, score[known], weights[:, known]
    positive, negative = weights[:, present], weights[:, ~present]
    with np.errstate(invalid="ignore", divide="ignore"):
        if name == "auc":  # Mann–Whitney: share of pairs in the right order, ties count half
            wins = np.heaviside(score[present][:, None] - score[~present], 0.5)
            return ((positive @ wins) * negative).sum(1) / (positive.sum(1) * negative.sum(1))
        called = score > 0.5
        sensitivity = positive[:, called[present]].sum(1) / positive.sum(1)
        specificity = negative[:, ~called[~present]].sum(1) / negative.sum(1)
    if name == "balanced_accuracy":
        return (sensitivity + specificity) / 2
    return sensitivity if name == "sensitivity" else specificity


def patient_resamples(
    patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Draw patients with replacement, whatever their order: ``(resamples, studies)`` weights."""
    names, position = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, position].astype(float)  # (resamples, patients) → (resamples, studies)


def _with_limits(value: float, draws: np.ndarray) -> dict[str, float]:
    """Return a value with the 2.5th and 97.5th percentile of its finite resamples."""
    finite = draws[np.isfinite(draws)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return {"value": float(value), "low": float(low), "high": float(high)}


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], patients: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Compute ``value, low, high``: a statistic with its 95 % bootstrap interval over patients.

    Percentile bootstrap (Efron & Tibshirani 1993, ch. 13); NaN where the statistic is undefined.
    ``statistic`` maps weights ``(resamples, studies)`` to ``(resamples,)``; ``patients`` names the
    patient of each study. All studies of a patient are drawn together; one patient has no interval.
    """
    if not len(patients):
        return dict.fromkeys(("value", "low", "high"), np.nan)
    value = statistic(np.ones((1, len(patients))))[0]
    if len(set(map(str, patients))) == 1:
        return _with_limits(value, np.array([]))
    return _with_limits(value, statistic(patient_resamples(patients, seed=seed)))


def auc_interval(
    truth: ArrayLike, score: ArrayLike, patients: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Compute the AUC of a score with its `interval`."""
    return interval(partial(presence_statistic, "auc", truth, score), patients, seed)


def mean_interval(values: ArrayLike, patients: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Compute the mean over studies with its `interval`."""
    array = np.asarray(values, float)
    return interval(lambda weights: weights @ array / weights.sum(1), patients, seed)


def quantile_interval(
    values: ArrayLike, patients: Sequence[str], quantile: float = 0.5, seed: int = 0
) -> dict[str, float]:
    """Compute a quantile over studies with its `interval`."""
    order = np.argsort(values)
    ordered = np.asarray(values, float)[order]

    def weighted_quantile(weights: np.ndarray) -> np.ndarray:
        reached = weights[:, order].cumsum(1) >= quantile * weights.sum(1, keepdims=True)
        return ordered[reached.argmax(1)]

    return interval(weighted_quantile, patients, seed) | {"value": np.quantile(ordered, quantile)}


def presence_metrics(predictions: pd.DataFrame, seed: int = 0) -> dict[str, dict[str, float]]:
    """Compute the `PRESENCE_STATISTICS` and the Brier score of presence, with intervals.

    Columns ``study_id, patient_id, scar`` (truth) and ``p_lge``. Raises as `known_truth`.
    """
    known = known_truth(predictions)
    truth, probability = known["scar"].to_numpy(bool), known["p_lge"].to_numpy(float)
    patients = known["patient_id"].tolist()
    rows = {
        name: interval(partial(presence_statistic, name, truth, probability), patients, seed)
        for name in PRESENCE_STATISTICS
    }
    # Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    return rows | {"brier": mean_interval((probability - truth) ** 2, patients, seed)}


def roc_table(predictions: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compute the ROC curve with its 95 % band over patients.

    From columns ``patient_id, scar`` (truth) and ``p_lge``; returns ``false_positive_rate,
    sensitivity, low, high`` at 101 even rates, NaN if there is one class only.
    """
    known = known_truth(predictions)
    truth, score = known["scar"].to_numpy(bool), known["p_lge"].to_numpy(float)
    resamples = patient_resamples(known["patient_id"].tolist(), 500, seed)
    rates, curves = np.linspace(0, 1, 101), []
    for weight in np.vstack([np.ones(len(known)), resamples]):
        if len(np.unique(truth[weight > 0])) == 2:
            alarms, hits, _ = roc_curve(truth, score, sample_weight=weight, drop_intermediate=False)
            curves.append(np.interp(rates, alarms, hits))
    curves = curves or [np.full(101, np.nan)]
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    columns = {"false_positive_rate": rates, "sensitivity": curves[0], "low": low, "high": high}
    return pd.DataFrame(columns)


def mean_auc(truth: ArrayLike, values: ArrayLike, weights: np.ndarray) -> np.ndarray:
    """Average the AUC over the columns that have both classes, for each weighting.

    ``truth, values``: ``(studies, columns)``; NaN where unknown.
    """
    columns = zip(np.asarray(truth, float).T, np.asarray(values, float).T, strict=True)
    scores = [presence_statistic("auc", *column, weights) for column in columns]
    return ratio(np.nansum(scores, 0), np.isfinite(scores).sum(0))


def auc_table(
    truth: pd.DataFrame, values: pd.DataFrame, patients: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """Compute the AUC of each column (wall, segment, …), and last the row ``mean`` (`mean_auc`).

    ``truth`` (missing where unknown) and ``values`` have one row per study and the same order of
    columns. Returns columns ``value, low, high, with, without`` (numbers of studies).
    """
    expected, found = truth.to_numpy(float), values.to_numpy(float)
    names, rows = np.asarray(patients, dtype=str), []
    for present, score in zip(expected.T, found.T, strict=True):
        own = np.isfinite(present) & np.isfinite(score)
        row = auc_interval(present[own], score[own], names[own].tolist(), seed)
        with_scar = int(present[own].sum())
        rows.append(row | {"with": with_scar, "without": own.sum() - with_scar})
    some = np.isfinite(expected).any(1)
    mean = interval(partial(mean_auc, expected[some], found[some]), names[some].tolist(), seed)
    rows.append(mean | {"with": 0, "without": 0})  # the mean has no studies of its own
    return pd.DataFrame(rows, index=[*values.columns, "mean"])


def known_walls(predictions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return truth (``scar_…``) and values (``p_…``) of the six walls; missing where unknown."""
    truth, values = ([f"{kind}_{wall}" for wall in WALLS] for kind in ("scar", "p"))
    return predictions.reindex(columns=truth), predictions.reindex(columns=values)


def slice_metrics(slices: pd.DataFrame, column: str, seed: int = 0) -> dict[str, float]:
    """Compute the AUC of a column for ``scar`` within each study, averaged over studies.

    One row per slice; columns ``study_id, patient_id, scar`` and the given one.
    """
    scores, patients = [], []
    for _, study in slices.dropna(subset=column).groupby("study_id"):
        if study["scar"].nunique() == 2:
            once = np.ones((1, len(study)))
            scores += [*presence_statistic("auc", study["scar"], study[column], once)]
            patients.append(study["patient_id"].iloc[0])
    return mean_interval(scores, patients, seed)


def known_truth(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose truth (``scar``) is known.

    Raises InputError if all truth or a ``p_lge`` is missing.
    """
    known = predictions.dropna(subset="scar")
    if known.empty:
        remedy = "Score a cohort with scar masks, or whose reports say whether scar is there."
        raise InputError("predictions", "no study's truth is known", remedy)
    if (empty := known["p_lge"].isna()).any():
        names = ", ".join(known.loc[empty, "study_id"].head(5))
        remedy = "Predict these studies again, or remove their rows."
        raise InputError("predictions", f"p_lge is missing in {names}", remedy)
    return known


def compare_rows(predictions: pd.DataFrame, reference: str = "", seed: int = 0) -> pd.DataFrame:
    """Compare each row of an ablation with a reference row by a paired bootstrap.

    Each resample draws patients and, independently, seeds; all rows share the draws (Owen 2007,
    doi:10.1214/07-AOAS122). The statistic is averaged over the drawn seeds. Two or three seeds say
    little about further seeds; one says nothing.

    Args:
        predictions: columns ``row, seed, study_id, patient_id, scar, p_lge``. With ``scar_<wall>``
            and ``p_<wall>`` the mean AUC of the walls is compared too (``auc_walls``).
        reference: the row that the others are compared with; empty: ``full``, else the first.

    Returns one line per row and statistic: ``value, low, high``; ``difference, difference_low,
    difference_high`` from the reference, its two-sided ``p``, and ``p_holm`` within the statistic
    (Holm 1979). Raises InputError if the reference is missing, a study appears twice in one row
    and seed, or rows differ in their seeds, studies or truth.
    """
    known = _comparable(predictions)
    rows = known["row"].unique().tolist()
    reference = reference or ("full" if "full" in rows else rows[0])
    if reference not in rows:
        raise InputError("predictions", f"no row named {reference!r}", f"Rows: {sorted(rows)}.")
    patients, seeds = np.unique(known["patient_id"].astype(str)), np.unique(known["seed"])
    # The least p, 2 / (1 + resamples), must stay below 0.05 when Holm multiplies it by the rows.
    resamples = max(RESAMPLES, 100 * (len(rows) - 1))
    drawn = patient_resamples(patients.tolist(), resamples, seed)
    patient_weights = np.vstack([np.ones(len(patients)), drawn])
    share = np.full(len(seeds), 1 / len(seeds))
    drawn = np.random.default_rng((seed, 1)).multinomial(len(seeds), share, resamples)
    seed_weights = np.vstack([np.ones(len(seeds)), drawn]).T  # (seeds, 1 + resamples)

    def draws(statistic: str, of_row: pd.DataFrame) -> np.ndarray:
        """Return the statistic of all studies, then of each resample: ``(1 + resamples,)``."""
        per_seed = []
        for _, run in of_row.groupby("seed"):
            weights = patient_weights[:, np.searchsorted(patients, run["patient_id"].astype(str))]
            if statistic == "auc_walls":
                per_seed.append(mean_auc(*known_walls(run), weights))
            else:
                per_seed.append(presence_statistic(statistic, run["scar"], run["p_lge"], weights))
        # A seed that was not drawn may have an undefined statistic.
        return np.where(seed_weights > 0, seed_weights * per_seed, 0).sum(0) / len(seeds)

    tables = dict.fromkeys(PRESENCE_STATISTICS, known)
    truth, values = known_walls(known)
    placed = truth.notna().all(axis=1)
    if truth.eq(True).any(axis=None) and values[placed].notna().all(axis=None):
        tables["auc_walls"] = known[placed]
    lines = []
    for statistic, table in tables.items():
        of_rows = {row: draws(statistic, part) for row, part in table.groupby("row", sort=False)}
        for row, draw in of_rows.items():
            line = {"row": row, "statistic": statistic, **_with_limits(draw[0], draw[1:])}
            other = row != reference
            lines.append(line | (_difference(draw - of_rows[reference]) if other else {}))
    compared = pd.DataFrame(lines)
    if "p" in compared:
        of_statistic = compared.dropna(subset="p").groupby("statistic")["p"]
        corrected = of_statistic.transform(lambda p: multipletests(p, method="holm")[1])
        compared["p_holm"] = corrected
    return compared


def _difference(draws: np.ndarray) -> dict[str, float]:
    """Return the difference of all studies (first of the draws), its interval and its p."""
    resampled = draws[1:][np.isfinite(draws[1:])]
    value, low, high = _with_limits(draws[0], resampled).values()
    fewer = min((resampled <= 0).sum(), (resampled >= 0).sum())
    row = {"difference": value, "difference_low": low, "difference_high": high}
    return row | {"p": min(1.0, 2 * (1 + fewer) / (1 + len(resampled)))}


def _comparable(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions of known truth after the checks that `compare_rows` documents."""
    known = known_truth(predictions)
    rows, run = known["row"].nunique(), ["seed", "study_id"]
    faults = {
        "a study appears twice under one row and seed": known.duplicated(["row", *run]).any(),
        "rows have different seeds or studies": (known.groupby(run).size() < rows).any(),
        "rows differ in a study's truth": (known.groupby("study_id")["scar"].nunique() > 1).any(),
    }
    for problem, found in faults.items():
        if found:
            remedy = "Compare complete runs of one cohort (`complete_runs` of lgekit.grid.report)."
            raise InputError("predictions", problem, remedy)
    return known


_ABLATIONS = tomllib.loads(Path(__file__).with_name("ablations.toml").read_text("utf-8"))
ROWS: dict[str, dict[str, Any]] = _ABLATIONS["rows"] | {"plain_clip": PLAIN_CLIP}
CLAIMS: dict[str, str] = _ABLATIONS["claims"]
WORKBOOK: dict[str, dict[str, Any]] = _ABLATIONS["workbook"]  # size → rows, epochs, seeds


def uncompared(comparison: pd.DataFrame, runs: pd.DataFrame | None) -> dict[str, str]:
    """Describe the runs (columns ``row, state``) of the rows that a comparison lacks.

    Row → ``not run``, or for example ``not compared (2 of 3 runs done)``.
    """
    words: dict[str, str] = {}
    if runs is None:
        return words
    missing = runs[~runs["row"].isin(comparison["row"])]
    for row, states in missing.groupby("row", sort=False)["state"]:
        done = f"not compared ({(states == 'done').sum()} of {len(states)} runs done)"
        words[str(row)] = done if states.isin(["done", "failed"]).any() else "not run"
    return words


def claims_table(
    comparison: pd.DataFrame, statistic: str = "balanced_accuracy", runs: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Answer each claim of the paper from the row that tests it, compared with the row ``full``.

    ``yes`` (worse without the component) or ``no`` if the interval of the difference excludes 0 and
    ``p_holm`` is below 0.05, else ``not shown``.

    Takes what `compare_rows` returns, the statistic that decides and the grid's runs (see
    `uncompared`); returns ``claim, row, difference, low, high, p_holm, answer``.
    """
    shown = comparison[comparison["statistic"] == statistic].set_index("row")
    shown = shown if "full" in shown.index else shown[:0]
    columns = ["difference", "difference_low", "difference_high", "p_holm"]
    table = shown.reindex(index=[*CLAIMS], columns=columns).astype(float)
    table = table.set_axis(["difference", "low", "high", "p_holm"], axis=1)
    sure = (table["low"] * table["high"] > 0) & (table["p_holm"] < 0.05)
    table["answer"] = np.select([~sure, table["high"] < 0], ["not shown", "yes"], "no")
    left_out = uncompared(comparison, runs)
    for row in set(CLAIMS) - set(shown.index):
        table.loc[row, "answer"] = left_out.get(row, "not run")
    table = table.rename_axis("row").reset_index()
    table.insert(0, "claim", table["row"].map(CLAIMS))
    return table
