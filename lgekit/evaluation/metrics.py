"""Statistics with 95 % bootstrap intervals over patients, and the comparison of ablation rows."""

import itertools
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score, roc_curve
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


def presence_statistics(
    truth: ArrayLike, probability: ArrayLike, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the `PRESENCE_STATISTICS` of a binary prediction for many weightings of the studies.

    ``weights``: ``(resamples, studies)``, how often each study counts; one without truth or
    probability (NaN) does not. Positive: probability > 0.5. Returns name → ``(resamples,)``; NaN
    where a class is missing.
    """
    truth, score = np.asarray(truth, float), np.asarray(probability, float)
    known = np.isfinite(truth) & np.isfinite(score)
    present, score, weights = truth[known] == 1, score[known], weights[:, known]
    positive, negative, called = weights[:, present], weights[:, ~present], score > 0.5
    sensitivity = ratio(positive[:, called[present]].sum(1), positive.sum(1))
    specificity = ratio(negative[:, ~called[~present]].sum(1), negative.sum(1))
    # Mann–Whitney: share of pairs in the right order, ties count half
    wins = np.heaviside(score[present][:, None] - score[~present], 0.5)
    auc = ratio(((positive @ wins) * negative).sum(1), positive.sum(1) * negative.sum(1))
    values = (sensitivity + specificity) / 2, sensitivity, specificity, auc
    return dict(zip(PRESENCE_STATISTICS, values, strict=True))


def bootstrap_weights(
    names: ArrayLike, resamples: int = RESAMPLES, seed: int | tuple[int, int] = 0
) -> np.ndarray:
    """Draw patients with replacement, whatever their order: ``(1 + resamples, studies)`` weights.

    ``names`` has the patient of each study. The first row is the sample itself, and the only one if
    there are fewer than two patients.
    """
    unique, position = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    once, count = np.ones((1, len(position))), len(unique)
    if count < 2:
        return once
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)
    return np.vstack([once, drawn[:, position]])  # (resamples, patients) → (resamples, studies)


def with_limits(draws: np.ndarray) -> dict[str, float]:
    """Return ``value, low, high``: a statistic with its 95 % bootstrap interval.

    ``draws``: its value in each row of `bootstrap_weights`. Percentile bootstrap (Efron &
    Tibshirani 1993, ch. 13); NaN where it is undefined.
    """
    finite = draws[1:][np.isfinite(draws[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return {"value": float(draws[0]), "low": float(low), "high": float(high)}


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], patients: ArrayLike, seed: int = 0
) -> dict[str, float]:
    """Compute a statistic `with_limits`. It maps `bootstrap_weights` of patients to values."""
    return with_limits(statistic(bootstrap_weights(patients, seed=seed)))


def auc_interval(
    truth: ArrayLike, score: ArrayLike, patients: ArrayLike, seed: int = 0
) -> dict[str, float]:
    """Compute the AUC of a score with its 95 % interval over patients."""
    return interval(lambda drawn: presence_statistics(truth, score, drawn)["auc"], patients, seed)


def mean_interval(values: ArrayLike, patients: ArrayLike, seed: int = 0) -> dict[str, float]:
    """Compute the mean over studies with its 95 % interval over patients."""
    array = np.asarray(values, float)
    return interval(lambda weights: ratio(weights @ array, weights.sum(1)), patients, seed)


def presence_metrics(predictions: pd.DataFrame, seed: int = 0) -> dict[str, dict[str, float]]:
    """Compute the `PRESENCE_STATISTICS` and the Brier score of presence, with intervals.

    Columns ``study_id, patient_id, scar`` (truth) and ``p_lge``. Raises as `known_truth`.
    """
    known = known_truth(predictions)
    truth, probability = known["scar"].to_numpy(bool), known["p_lge"].to_numpy(float)
    patients = known["patient_id"]
    drawn = presence_statistics(truth, probability, bootstrap_weights(patients, seed=seed))
    rows = {name: with_limits(draws) for name, draws in drawn.items()}
    # Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    return rows | {"brier": mean_interval((probability - truth) ** 2, patients, seed)}


def roc_table(predictions: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compute the ROC curve with its 95 % band over patients.

    From columns ``patient_id, scar`` (truth) and ``p_lge``; returns ``false_positive_rate,
    sensitivity, low, high`` at 101 even rates, NaN if there is one class only.
    """
    known = known_truth(predictions)
    truth, score = known["scar"].to_numpy(bool), known["p_lge"].to_numpy(float)
    rates, curves = np.linspace(0, 1, 101), []
    for weight in bootstrap_weights(known["patient_id"], 500, seed):
        if len(np.unique(truth[weight > 0])) == 2:
            alarms, hits, _ = roc_curve(truth, score, sample_weight=weight, drop_intermediate=False)
            curves.append(np.interp(rates, alarms, hits))
    curves = curves or [np.full(101, np.nan)]
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    columns = {"false_positive_rate": rates, "sensitivity": curves[0], "low": low, "high": high}
    return pd.DataFrame(columns)


def mean_auc(truth: ArrayLike, values: ArrayLike, weights: np.ndarray) -> np.ndarray:
    """Average the AUC over columns ``(studies, columns)`` that have both classes; NaN: unknown."""
    columns = zip(np.asarray(truth, float).T, np.asarray(values, float).T, strict=True)
    scores = [presence_statistics(*column, weights)["auc"] for column in columns]
    return ratio(np.nansum(scores, 0), np.isfinite(scores).sum(0))


def auc_table(
    truth: pd.DataFrame, values: pd.DataFrame, patients: ArrayLike, seed: int = 0
) -> pd.DataFrame:
    """Compute the AUC of each column (wall, segment, …), and last the row ``mean`` (`mean_auc`).

    ``truth`` (missing where unknown) and ``values`` have one row per study and the same order of
    columns. Returns columns ``value, low, high, with, without`` (numbers of studies).
    """
    expected, found = truth.to_numpy(float), values.to_numpy(float)
    names, rows = np.asarray(patients), []
    for present, score in zip(expected.T, found.T, strict=True):
        own = np.isfinite(present) & np.isfinite(score)
        row = auc_interval(present[own], score[own], names[own], seed)
        with_scar = int(present[own].sum())
        rows.append(row | {"with": with_scar, "without": own.sum() - with_scar})
    some = np.isfinite(expected).any(1)
    mean = interval(lambda drawn: mean_auc(expected[some], found[some], drawn), names[some], seed)
    rows.append(mean | {"with": 0, "without": 0})  # the mean has no studies of its own
    return pd.DataFrame(rows, index=[*values.columns, "mean"])


def known_walls(predictions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return truth (``scar_…``) and values (``p_…``) of the six walls; missing where unknown."""
    truth, values = ([f"{kind}_{wall}" for wall in WALLS] for kind in ("scar", "p"))
    return predictions.reindex(columns=truth), predictions.reindex(columns=values)


def slice_metrics(slices: pd.DataFrame, column: str, seed: int = 0) -> dict[str, float]:
    """Compute the AUC of a column for ``scar`` within each study of a `slice_table`, averaged."""
    scores, patients = [], []
    for _, study in slices.dropna(subset=column).groupby("study_id"):
        if study["scar"].nunique() == 2:
            scores.append(roc_auc_score(study["scar"].astype(bool), study[column]))
            patients.append(study["patient_id"].iloc[0])
    return mean_interval(scores, patients, seed)


def known_truth(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of known ``scar``. Raises InputError if there are none, or lack ``p_lge``."""
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
    little about further seeds; one says nothing. Predictions have columns ``row, seed, study_id,
    patient_id, scar, p_lge``; with ``scar_<wall>`` and ``p_<wall>`` the mean AUC of the walls is
    compared too (``auc_walls``). An empty ``reference`` is the row ``full``, else the first.

    Returns one line per row and statistic: ``value, low, high``; ``difference, difference_low,
    difference_high`` from the reference, its two-sided ``p``, and ``p_holm`` within the statistic
    (Holm 1979). Raises InputError if a study appears twice in one row and seed, or rows differ in
    their seeds, studies or truth.
    """
    known = _comparable(predictions)
    rows = known["row"].unique().tolist()
    reference = reference or ("full" if "full" in rows else rows[0])
    patients, seeds = known["patient_id"].astype(str).unique(), np.unique(known["seed"])
    # The least p, 2 / (1 + resamples), must stay below 0.05 when Holm multiplies it by the rows.
    resamples = max(RESAMPLES, 100 * (len(rows) - 1))
    patient_weights = bootstrap_weights(patients, resamples, seed)
    place = pd.Series(range(len(patients)), patients)
    seed_weights = bootstrap_weights(seeds, resamples, (seed, 1)).T  # (seeds, 1 + resamples)
    truth, values = known_walls(known)
    places_known = truth.eq(True).any(axis=None)
    places_known &= values[truth.notna().all(axis=1)].notna().all(axis=None)

    def draws(of_row: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return statistics of all studies, then of each resample: ``(1 + resamples,)``."""
        runs = []
        for _, run in of_row.groupby("seed"):
            weights = patient_weights[:, place[run["patient_id"].astype(str)]]
            runs.append(presence_statistics(run["scar"], run["p_lge"], weights))
            if places_known:
                runs[-1]["auc_walls"] = mean_auc(*known_walls(run), weights)
        by_seed = {name: seed_weights * [run[name] for run in runs] for name in runs[0]}
        # A seed that was not drawn may have an undefined statistic.
        return {name: np.where(seed_weights, a, 0).mean(0) for name, a in by_seed.items()}

    found = {row: draws(part) for row, part in known.groupby("row", sort=False)}
    lines = []
    for statistic, (row, drawn) in itertools.product(found[reference], found.items()):
        lines.append({"row": row, "statistic": statistic, **with_limits(drawn[statistic])})
        if row != reference:
            lines[-1] |= _difference(drawn[statistic] - found[reference][statistic])
    compared = pd.DataFrame(lines)
    if "p" in compared:
        each = compared.dropna(subset="p").groupby("statistic")["p"]
        compared["p_holm"] = each.transform(lambda p: multipletests(p, method="holm")[1])
    return compared


def _difference(draws: np.ndarray) -> dict[str, float]:
    """Return a difference with its interval, and its two-sided p from the resamples."""
    value, low, high = with_limits(draws).values()
    resampled = draws[1:][np.isfinite(draws[1:])]
    fewer = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p = min(1.0, 2 * (1 + fewer) / (1 + len(resampled)))
    return {"difference": value, "difference_low": low, "difference_high": high, "p": p}


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
    """Say why rows are not in a comparison: ``not run`` or ``not compared (2 of 3 runs done)``."""
    if runs is None:
        return {}
    missing = runs[~runs["row"].isin(comparison["row"])]
    done = missing["state"].eq("done").groupby(missing["row"], sort=False).agg(["sum", "size"])
    words = "not compared ({} of {} runs done)"
    return {
        str(row): words.format(*own) if own[0] else "not run" for row, *own in done.itertuples()
    }


def claims_table(
    comparison: pd.DataFrame, statistic: str = "balanced_accuracy", runs: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Answer each claim of the paper from the row that tests it, compared with the row ``full``.

    ``yes`` (worse without the component) or ``no`` if the interval of the difference excludes 0 and
    ``p_holm`` is below 0.05, else ``not shown``. Takes what `compare_rows` returns, the statistic
    that decides and the grid's runs (see `uncompared`); returns ``claim, row, difference, low,
    high, p_holm, answer``.
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
