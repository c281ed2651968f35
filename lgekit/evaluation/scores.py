"""Scores of a detector's predictions against the truth of a cohort, and cohorts split for it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lgekit.clip.data import make_view
from lgekit.clip.detector import Detector
from lgekit.errors import InputError
from lgekit.evaluation import metrics
from lgekit.evaluation.metrics import interval, ratio
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.reports.training_texts import report_texts
from lgekit.reports.writer import canonical_text
from lgekit.study import NO_REFLOW, SCAR, SPLITS, Cohort, Study, hash_unit, patient_folds

REMEDY = "Give the table that `lgekit predict` wrote, and the cohort that it read"
CELL = "Write the cell as `lgekit predict` does, with a point for decimals, or predict again"
NAMED = 5  # studies that a message lists
# The scores of `score_table` that say where scar is, besides the walls.
PLACES = ("auc_segments", "auc_slices", "auc_attention", "caption_presence_f1", "caption_walls_f1")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a table of predictions; study ids such as ``NA`` or ``007`` stay text."""
    table = pd.read_csv(path)
    if "study_id" in table:
        ids = pd.read_csv(path, usecols=["study_id"], dtype=str, keep_default_na=False)
        table["study_id"] = ids["study_id"]
    return table


def in_both(path: Path, cohort: Cohort) -> tuple[pd.DataFrame, Cohort]:
    """Return the predictions and studies that are in both; warn of rows of other studies.

    Raises:
        InputError: the file is not what `lgekit predict` writes, has none of the studies, or has
            a cell that cannot be used (named by study and column).
    """
    try:
        table = read_predictions(path)
    except (OSError, ValueError) as error:
        raise InputError(path, f"not a readable table ({error})", REMEDY) from error
    for name in ("study_id", "p_lge", "slice_weights", "caption"):
        if name not in table:
            raise InputError(path, f"column {name!r} is missing", REMEDY)
    if (twice := table["study_id"].duplicated()).any():
        problem = f"a study appears in two rows: {table['study_id'][twice].iloc[0]!r}"
        raise InputError(path, problem, REMEDY)
    by_id = {study["study_id"]: study for study in cohort.studies}
    if not table["study_id"].isin(by_id).any():
        raise InputError(path, f"holds no study of {cohort.name}", REMEDY)
    if other := [name for name in table["study_id"] if name not in by_id]:
        shown = ", ".join(map(repr, other[:NAMED])) + ", …" * (len(other) > NAMED)
        warning = f"{path}: {len(other)} rows are of no study of {cohort.name}: {shown}"
        warnings.warn(warning, stacklevel=2)
    table = table[table["study_id"].isin(by_id)]
    numbers = [name for name in (*(f"p_{wall}" for wall in WALLS), "p_lge") if name in table]
    lists = [name for name in ("slice_weights", "attention", "segments") if name in table]
    for column in (*numbers, *lists):
        for name, cell in zip(table["study_id"], table[column], strict=True):
            if problem := _cell_problem(column, cell, by_id[name]):
                raise InputError(f"{path}, {name}, {column}", problem, CELL)
    return table.astype(dict.fromkeys(numbers, float)), cohort.subset(table["study_id"])


def _cell_problem(column: str, cell: Any, study: Study) -> str:
    """Say why a cell cannot be used; empty if it can."""
    if column.startswith("p_"):
        if pd.isna(cell):
            return "is empty" if column == "p_lge" else ""
        try:
            return "" if 0 <= float(cell) <= 1 else f"{cell} is not between 0 and 1"
        except ValueError:
            return f"{cell!r} is not a number"
    # Slice weights are needed where a mask gives the truth of each slice.
    if pd.isna(cell) and not (column == "slice_weights" and study.label_map is not None):
        return ""
    kinds: tuple[type, ...] = (int, float)
    count, what = study.spatial_shape[2], "one number a slice"
    if column == "segments":
        kinds, count, what = (*kinds, type(None)), 17, "one number or null a segment"
    try:
        values = json.loads(cell)
    except (TypeError, ValueError):
        return f"{str(cell)[:60]!r} is not a JSON list"
    if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
        return f"{str(cell)[:60]!r} is not a list of {what}"
    return "" if len(values) == count else f"holds {len(values)} numbers, not {count}: {what}"


def _walls_known(findings: Findings) -> bool:
    """Tell whether findings say which walls have scar; a scar may have no stated wall."""
    return bool(findings.walls) or not findings.present


def clinical_f1(
    truth: Sequence[Findings], read: Sequence[Findings], patients: Sequence[str], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Compute ``presence_f1`` over studies and ``walls_f1`` over study × wall, with intervals.

    F1 = 2 TP / (2 TP + FP + FN), van Rijsbergen 1979, ch. 7; NaN if there is no scar at all.
    Studies whose true walls are unknown count for presence only.

    Args:
        truth, read: the true findings of each study, and those that its text states.
        patients: the patient of each study.
    """

    def f1(labels: list[np.ndarray], kept: list[int]) -> dict[str, float]:
        expected, found = (array[kept] for array in labels)  # (studies, labels) bool
        both, either = (expected & found).sum(1), expected.sum(1) + found.sum(1)
        names = [patients[index] for index in kept]
        return interval(lambda weights: ratio(2 * (weights @ both), weights @ either), names, seed)

    groups, everyone = (truth, read), list(range(len(truth)))
    walls = [
        np.array([[wall in one.walls for wall in WALLS] for one in group], bool).reshape(-1, 6)
        for group in groups
    ]
    presence = [np.array([[one.present] for one in group], bool).reshape(-1, 1) for group in groups]
    placed = [index for index in everyone if _walls_known(truth[index])]
    return {"presence_f1": f1(presence, everyone), "walls_f1": f1(walls, placed)}


def bleu(
    written: Sequence[str], references: Sequence[str], patients: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Compute BLEU-4 of texts against one reference each, 0 to 1, pooled over all texts.

    Source: Papineni 2002, doi:10.3115/1073083.1073135. Lower case; punctuation marks are words.
    It counts shared runs of words, so a missing "no" costs little: read it after the clinical F1.
    The interval is over patients, and a text drawn twice counts twice. NaN without texts.
    """
    from nltk.translate.bleu_score import modified_precision

    counts, lengths = [], []
    for text, reference in zip(map(_words, written), map(_words, references), strict=True):
        precisions = [modified_precision([reference], text, n) for n in range(1, 5)]
        counts.append([(precision.numerator, precision.denominator) for precision in precisions])
        lengths.append((len(text), len(reference)))
    # (texts, 4 run lengths): shared and all runs; (texts,): length of text and reference
    shared, runs = np.moveaxis(np.array(counts, float).reshape(-1, 4, 2), -1, 0)
    own, wanted = np.array(lengths, float).reshape(-1, 2).T

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):  # no shared run of four: the score is 0
            mean = np.log(ratio(weights @ shared, weights @ runs)).mean(1)
        longer = np.nan_to_num(ratio(weights @ wanted, weights @ own))
        return np.exp(mean + np.minimum(0, 1 - longer))

    return interval(statistic, patients, seed)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def with_truth(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Add ``patient_id``, ``scar`` and ``scar_<wall>`` to predictions; missing where unknown."""
    rows = []
    for study in cohort.studies:
        findings = study["findings"]
        row = {"study_id": study["study_id"], "patient_id": study["patient_id"]}
        row["scar"] = None if findings is None else findings.present
        placed = findings is not None and _walls_known(findings)
        row |= {f"scar_{wall}": wall in findings.walls if placed else None for wall in WALLS}
        rows.append(row)
    return pd.DataFrame(rows).merge(predictions, on="study_id", validate="one_to_one")


def slice_table(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Tabulate the slices that show heart, of the studies with labels.

    Args:
        predictions: column ``slice_weights`` (JSON list, one number per stored slice) and, in newer
            tables, ``attention`` (likewise).
        cohort: the same studies.

    Returns:
        Columns ``study_id, patient_id, slice`` (from 0, stored order), ``weight`` (the slice's own
        probability of scar), ``attention`` (its share of the study's embedding), ``scar`` (truth).
    """
    by_study = predictions.set_index("study_id").reindex(columns=["slice_weights", "attention"])
    columns = ["study_id", "patient_id", "slice", "weight", "attention", "scar"]
    parts = []
    for study in cohort.studies:
        if study.label_map is None:
            continue
        heart = np.flatnonzero((study.label_map > 0).any((0, 1)))
        weights, attention = by_study.loc[study["study_id"]]
        rows = pd.DataFrame({"slice": heart, "weight": np.array(json.loads(weights), float)[heart]})
        rows["attention"] = np.nan
        if isinstance(attention, str):
            rows["attention"] = np.array(json.loads(attention), float)[heart]
        rows["scar"] = np.isin(study.label_map[..., heart], (SCAR, NO_REFLOW)).any((0, 1))
        rows = rows.assign(study_id=study["study_id"], patient_id=study["patient_id"])
        parts.append(rows[columns])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def score_table(
    predictions: pd.DataFrame, cohort: Cohort, seed: int = 0, text: str = "findings"
) -> pd.DataFrame:
    """Compute every score of a detector with its 95 % interval over patients.

    Args:
        predictions: what ``Detector.predict`` returns for this cohort.
        cohort: with findings; scores whose truth is unknown are missing.
        text: kind of training text (`lgekit.reports.training_texts.report_texts`).

    Returns:
        Columns ``value, low, high``; index ``score``: ``balanced_accuracy, sensitivity,
        specificity, auc, brier``; ``auc_<wall>`` and their mean ``auc_walls``; ``auc_segments``
        (mean of `segment_scores`); ``auc_slices`` by slice weight and ``auc_attention`` by
        attention; ``caption_presence_f1, caption_walls_f1`` against the truth and
        ``caption_bleu`` against the reports.

    Raises:
        InputError: the truth of no study is known.
    """
    table = with_truth(predictions, cohort)
    rows = metrics.presence_metrics(table, seed)
    if table[[f"scar_{wall}" for wall in WALLS]].notna().all(axis=1).any():
        walls = metrics.wall_metrics(table, seed)
        rows |= {f"auc_{wall}": walls[wall] for wall in WALLS} | {"auc_walls": walls["macro"]}
    if "segments" in predictions:
        rows["auc_segments"] = metrics.column_metrics(*_segments(predictions, cohort), seed)[-1]
    slices = slice_table(predictions, cohort)
    slices = slices[slices["study_id"].isin(table.loc[table["scar"].eq(True), "study_id"])]
    rows["auc_slices"] = metrics.slice_metrics(slices, seed)
    if "attention" in predictions:
        attended = slices.assign(weight=slices["attention"]).dropna(subset="weight")
        rows["auc_attention"] = metrics.slice_metrics(attended, seed)
    captions = predictions.set_index("study_id")["caption"].fillna("").astype(str)
    known = [study for study in cohort.studies if study["findings"] is not None]
    read = [read_report(captions[study["study_id"]]) for study in known]
    patients = [study["patient_id"] for study in known]
    scored = clinical_f1([study["findings"] for study in known], read, patients, seed)
    rows |= {f"caption_{name}": row for name, row in scored.items()}
    reported = [study for study in cohort.studies if states_enhancement(study["report"])]
    written = [captions[study["study_id"]] for study in reported]
    references = [report_texts(study["report"], text)[0] for study in reported]
    patients = [study["patient_id"] for study in reported]
    rows["caption_bleu"] = bleu(written, references, patients, seed)
    return pd.DataFrame(rows).T.astype(float).rename_axis("score")


def place_scores(places: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Compute the AUC of each level and depth against the others, among the studies with scar.

    Args:
        places: what ``Detector.levels_and_depths`` returns for this cohort.
        cohort: with findings; a study counts where they state a level (or a depth).

    Returns:
        Index ``place`` (``level_…``, ``depth_…``); columns ``value, low, high, with, without``.
    """
    table, rows = places.set_index("study_id"), {}
    known = [study for study in cohort.studies if study["findings"] is not None]
    levels = [{name for scar in study["findings"].scars for name in scar.levels} for study in known]
    depths = [{scar.depth for scar in study["findings"].scars if scar.depth} for study in known]
    for kind, labels, stated in (("level", LEVELS, levels), ("depth", DEPTHS, depths)):
        kept = [(study, names) for study, names in zip(known, stated, strict=True) if names]
        ids = [study["study_id"] for study, _ in kept]
        patients = [study["patient_id"] for study, _ in kept]
        for label in labels:
            truth = np.array([label in names for _, names in kept], dtype=bool)
            scores = table.loc[ids, f"{kind}_{label}"].to_numpy(float)
            row: dict[str, Any] = metrics.auc_interval(truth, scores, patients, seed)
            counts = {"with": int(truth.sum()), "without": int((~truth).sum())}
            rows[f"{kind}_{label}"] = row | counts
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("place")


def grid_places(predictions: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Compute the `PLACES` scores of an ablation, per row and seed, over all folds.

    Args:
        predictions: of the grid: ``row`` and ``seed``, then what `Detector.predict` returns.
        cohort: with findings; all predicted studies, and perhaps others.

    Returns:
        Columns ``row, seed, score, value, low, high``.

    Raises:
        InputError: a predicted study is not in the cohort; as `score_table`.
    """
    parts = []
    for (row, of_seed), run in predictions.groupby(["row", "seed"], sort=False):
        truth = [name for name in run if name.startswith("scar") or name == "patient_id"]
        studies = cohort.subset(run["study_id"])
        if len(studies) != len(run):
            problem, remedy = f"are not all of {cohort.name}", "Give the cohort that was predicted."
            raise InputError(f"predictions of {row}", problem, remedy)
        scores = score_table(run.drop(columns=truth), studies, seed)
        kept = scores.loc[[name for name in PLACES if name in scores.index]].reset_index()
        kept.insert(0, "row", row)
        kept.insert(1, "seed", of_seed)
        parts.append(kept)
    return pd.concat(parts, ignore_index=True)


def segment_scores(predictions: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Compute the AUC of each AHA segment.

    Args:
        predictions: columns ``study_id`` and ``segments`` (JSON list of 17).
        cohort: with findings. A study counts where its findings are known, each of its scars has
            a place, and the segment has a value. A scar with walls but no level is in all rings.

    Returns:
        17 rows; columns ``segment, value, low, high, with, without`` (numbers of studies).

    Raises:
        InputError: the predictions have no column ``segments``.
    """
    truth, values, patients = _segments(predictions, cohort)
    known = np.isfinite(values)
    table = pd.DataFrame(metrics.column_metrics(truth, values, patients, seed)[:-1])
    table.insert(0, "segment", range(1, 18))
    return table.assign(**{"with": (known & truth).sum(0), "without": (known & ~truth).sum(0)})


def _segments(
    predictions: pd.DataFrame, cohort: Cohort
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return truth and value of the segments, ``(studies, 17)``, and the patients."""
    if "segments" not in predictions:
        remedy = "Predict the cohort again: an older `lgekit predict` wrote this table."
        raise InputError("predictions", "column 'segments' is missing", remedy)
    known = [study for study in cohort.studies if study["findings"] is not None]
    placed = [study for study in known if all(scar.segments for scar in study["findings"].scars)]
    cells = predictions.set_index("study_id")["segments"]
    cells = [cells[study["study_id"]] for study in placed]
    listed = [json.loads(cell) if isinstance(cell, str) else [None] * 17 for cell in cells]
    values = np.array(listed, float).reshape(-1, 17)  # null → NaN
    truth = [[number in study["findings"].segments for number in range(1, 18)] for study in placed]
    return np.array(truth, bool).reshape(-1, 17), values, [study["patient_id"] for study in placed]


def wall_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the walls of a `score_table`: columns ``wall, value, low, high``."""
    rows = scores.reindex([f"auc_{wall}" for wall in WALLS]).reset_index(drop=True)
    return rows.assign(wall=list(WALLS))[["wall", "value", "low", "high"]]


def caption_table(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Put captions next to the truth: columns ``study_id, caption, truth, right``.

    A caption is right if it states presence correctly and, where the truth has them, all walls.
    """
    captions = predictions.set_index("study_id")["caption"].fillna("").astype(str)
    rows = []
    for study in cohort.studies:
        if (truth := study["findings"]) is None:
            continue
        caption = captions[study["study_id"]]
        read = read_report(caption)
        right = states_enhancement(caption) and read.present == truth.present
        right = right and (not _walls_known(truth) or read.walls == truth.walls)
        rows.append((study["study_id"], caption, canonical_text(truth), right))
    table = pd.DataFrame(rows, columns=["study_id", "caption", "truth", "right"])
    return table.astype({"right": bool})


def plain_words(report: str) -> str:
    """Say the findings of a report in fixed sentences."""
    return canonical_text(read_report(report))


def flat_scores(scores: pd.DataFrame) -> dict[str, float]:
    """Flatten a score table for ``metrics.json``: ``name``, ``name_low``, ``name_high``."""
    flat = {}
    for name, row in scores.iterrows():
        flat[str(name)] = float(row["value"])
        if np.isfinite([row["low"], row["high"]]).all():
            flat |= {f"{name}_low": float(row["low"]), f"{name}_high": float(row["high"])}
    return flat


def with_fold(cohort: Cohort, fold: int, folds: int, seed: int = 0) -> Cohort:
    """Split a copy of the cohort for one fold of a cross-validation by patient.

    Args:
        cohort: its own splits are replaced; each study gets its number as ``fold``.
        fold: this one is ``test``, the next ``validation``, the others ``train``. -1: no change.
        folds: at least 3.
        seed: of the folds.
    """
    if fold < 0:
        return cohort
    names = {fold: SPLITS[2], (fold + 1) % folds: SPLITS[1]}
    studies = [
        Study(**{**study, "split": names.get(int(own), SPLITS[0]), "fold": int(own)})
        for study, own in zip(cohort.studies, patient_folds(cohort, folds, seed), strict=True)
    ]
    return Cohort(studies, cohort.name)


def development(cohort: Cohort) -> Cohort:
    """Return ``train`` and ``validation`` as one split: what a cross-fit may learn from."""
    kept = [study for study in cohort.studies if study["split"] in SPLITS[:2]]
    return Cohort([Study(**{**study, "split": SPLITS[0]}) for study in kept], cohort.name)


def with_fewer(cohort: Cohort, train_studies: int) -> Cohort:
    """Keep only so many training studies (0: all); a smaller selection is in every larger one."""
    train = sorted(cohort.split(SPLITS[0]).manifest["study_id"], key=hash_unit)
    dropped = set(train[train_studies:] if train_studies else [])
    return cohort.subset(name for name in cohort.manifest["study_id"] if name not in dropped)


def method_steps(detector: Detector, study: Study) -> dict[str, np.ndarray]:
    """Show one slice of a study in each step of the method: title → picture ``(X, Y)``.

    Only the image of the study is used. The last title quotes caption and probability.
    """
    from lgekit.anatomy.frame import StandardizeShortAxis
    from lgekit.clip.data import batch_of
    from lgekit.clip.zeroshot import heat_map
    from lgekit.reports.training_texts import prompt_sets

    alone, settings = Cohort([study], "one study"), detector.settings
    located = detector.locate(alone).studies[0]
    view = make_view(located, settings)
    prompts = prompt_sets(settings.text)["presence"]
    fall = heat_map(
        *detector.networks[0], batch_of([view]), prompts["positive"], prompts["negative"]
    )
    strongest = int(fall.reshape(len(fall), -1).max(1).argmax())
    stored = int(view.own_slices[strongest])
    steps = {"as stored": study.pixels[:, :, stored]}
    if settings.orientation != "none":
        frame = StandardizeShortAxis(pixels=96, min_confidence=settings.min_confidence)(located)
        reversed_order = view.own_slices[0] > view.own_slices[-1]
        number = frame.pixels.shape[2] - 1 - stored if reversed_order else stored
        steps["in the standard frame"] = frame.pixels[:, :, number]
    unrolled = "the wall unrolled: " if settings.frame == "polar" else ""
    steps[f"{unrolled}what the network sees"] = view.images[strongest, 0].numpy().T
    found = detector.predict(alone).iloc[0]
    title = f'what speaks for scar. Read as: "{found["caption"]}", p = {found["p_lge"]:.2f}'
    return steps | {title: fall[strongest].T}
