"""Score predictions against the truth of a cohort, and split cohorts for cross-validation."""

import json
import re
import tomllib
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lgekit.clip.detector import read_predictions
from lgekit.errors import InputError
from lgekit.evaluation import metrics
from lgekit.evaluation.metrics import interval, ratio
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.reports.tables import report_states
from lgekit.reports.writer import canonical_text, report_texts
from lgekit.study import SCARRED, SPLITS, Cohort, Study, hash_unit

REMEDY = "Give the table that `lgekit predict` wrote, and the cohort that it read"
LISTS = ("slice_weights", "attention", "segments")  # columns of JSON lists
CELL = "Write probabilities from 0 to 1 and JSON lists as `lgekit predict` does, or predict again"
_FILE = tomllib.loads(Path(__file__).with_name("scores.toml").read_text("utf-8"))
SCORES: dict[str, dict[str, Any]] = _FILE["scores"]
TRUE_WALLS = [f"scar_{wall}" for wall in WALLS]
SEGMENTS = [f"segment_{number}" for number in range(1, 18)]
LEVELS_AND_DEPTHS = [f"level_{name}" for name in LEVELS] + [f"depth_{name}" for name in DEPTHS]


def in_both(path: Path, cohort: Cohort) -> tuple[pd.DataFrame, Cohort]:
    """Return the predictions and studies that are in both; warn of rows of other studies.

    Raises InputError if the file or a cell of it cannot be used, or it has none of the studies.
    """
    try:
        table = read_predictions(path)
    except (OSError, ValueError) as error:
        raise InputError(path, f"not a readable table ({error})", REMEDY) from error
    for name in ("study_id", "p_lge"):
        if name not in table:
            raise InputError(path, f"column {name!r} is missing", REMEDY)
    if (twice := table["study_id"].duplicated()).any():
        problem = f"a study appears in two rows: {table['study_id'][twice].iloc[0]!r}"
        raise InputError(path, problem, REMEDY)
    studies = {study["study_id"]: study for study in cohort.studies}
    known = table["study_id"].isin(studies)
    if not known.any():
        raise InputError(path, f"contains no study of {cohort.name}", REMEDY)
    if other := table["study_id"][~known].tolist():
        shown = ", ".join(map(repr, other[:5])) + ", …" * (len(other) > 5)
        warning = f"{path}: {len(other)} rows match no study of {cohort.name}: {shown}"
        warnings.warn(warning, stacklevel=2)
    table = table[known]
    for column in table.columns.intersection(["p_lge", *(f"p_{wall}" for wall in WALLS), *LISTS]):
        for name, cell in zip(table["study_id"], table[column], strict=True):
            if not _usable(column, cell, studies[name]):
                found = "is empty" if pd.isna(cell) else f"cannot be used: {str(cell)[:60]!r}"
                raise InputError(f"{path}, {name}, {column}", found, CELL)
    return table, cohort.subset(table["study_id"])


def _usable(column: str, cell: Any, study: Study) -> bool:
    """Tell whether a cell holds what `lgekit predict` writes: numbers from 0 to 1."""
    if pd.isna(cell):  # slice weights are needed where a mask gives the truth of each slice
        return column not in {"p_lge", "slice_weights" if study.label_map is not None else ""}
    try:
        values = np.array(json.loads(str(cell)), float)
    except (TypeError, ValueError):
        return False
    shape = {"segments": (17,)} | dict.fromkeys(LISTS[:2], study.spatial_shape[2:])
    inside = (values >= 0) & (values <= 1) | (np.isnan(values) & (column == "segments"))
    return values.shape == shape.get(column, ()) and bool(inside.all())


def _truth(findings: Findings | None) -> dict[str, bool]:
    """Tell where scar is: ``scar_<wall>``, ``segment_…``, ``true_level_…``, ``true_depth_…``.

    What is not known is left out. A scar of unknown walls may be anywhere, except one of the apex,
    which is in no wall. Levels and depths are of studies with scar.
    """
    if findings is None:
        return {}
    scars, row = findings.scars, {"scar": findings.present}
    if all(scar.walls or scar.levels == ("apex",) for scar in scars):
        sure = {number for scar in scars if scar.levels for number in scar.segments}
        known = sure | ({*range(1, 18)} - findings.segments)
        row |= {f"segment_{number}": number in sure for number in known}
        if findings.walls or not scars:
            row |= {f"scar_{wall}": wall in findings.walls for wall in WALLS}
    if scars and all(scar.levels for scar in scars):
        stated = {level for scar in scars for level in scar.levels}
        row |= {f"true_level_{level}": level in stated for level in LEVELS}
    if scars and all(scar.depth for scar in scars):
        row |= {f"true_depth_{depth}": depth in {s.depth for s in scars} for depth in DEPTHS}
    return row


def _joined(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Put ``patient_id``, ``report``, ``findings`` and their `_truth` before the predictions."""
    keys = ["study_id", "patient_id", "report", "findings"]
    rows = [{key: one[key] for key in keys} | _truth(one["findings"]) for one in cohort.studies]
    places = [f"true_{place}" for place in LEVELS_AND_DEPTHS]
    truth = pd.DataFrame(rows).reindex(columns=[*keys, "scar", *TRUE_WALLS, *SEGMENTS, *places])
    return truth.merge(predictions, on="study_id", validate="one_to_one", suffixes=("", "_read"))


def with_truth(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Add ``patient_id``, ``scar`` and ``scar_<wall>`` to predictions; missing where unknown."""
    columns = ["study_id", "patient_id", "scar", *TRUE_WALLS, *predictions.columns.drop("study_id")]
    return _joined(predictions, cohort)[columns]


def f1(
    truth: pd.DataFrame, read: pd.DataFrame, patients: ArrayLike, seed: int = 0
) -> dict[str, float]:
    """Compute F1 (van Rijsbergen 1979, ch. 7) of presence or walls; NaN if nothing is true."""
    known = truth.notna().all(axis=1).to_numpy() & bool(truth.eq(True).any(axis=None))
    expected, found = truth[known].to_numpy(bool), read[known].to_numpy(bool)
    both, either = (expected & found).sum(1), expected.sum(1) + found.sum(1)
    names = np.asarray(patients)[known]
    return interval(lambda weights: ratio(2 * (weights @ both), weights @ either), names, seed)


def bleu(
    written: Collection[str], references: Collection[str], patients: ArrayLike, seed: int = 0
) -> dict[str, float]:
    """Compute BLEU-4 of texts against one reference each, 0 to 1, pooled over all texts.

    Source: Papineni 2002, doi:10.3115/1073083.1073135. Lower case; punctuation marks are words.
    It counts shared runs of words, so a missing "no" costs little: read it after the clinical F1.
    """
    from nltk.translate.bleu_score import modified_precision

    counts = np.zeros((len(written), 10))  # shared runs of 1-4 words, all runs, words of both texts
    for row, *texts in zip(counts, written, references, strict=True):
        text, reference = (re.findall(r"\w+|[^\w\s]", one.lower()) for one in texts)
        found = [modified_precision([reference], text, n) for n in range(1, 5)]
        row[:8] = [part.numerator for part in found] + [part.denominator for part in found]
        row[8:] = len(text), len(reference)

    def statistic(weights: np.ndarray) -> np.ndarray:
        shared, runs, own, wanted = np.split(weights @ counts, [4, 8, 9], axis=1)
        with np.errstate(divide="ignore"):  # no shared run of four: the score is 0
            mean = np.log(ratio(shared, runs)).mean(1)
        longer = np.nan_to_num(ratio(wanted, own))[:, 0]
        return np.exp(mean + np.minimum(0, 1 - longer))

    return interval(statistic, patients, seed)


def _numbers(cell: object, count: int) -> np.ndarray:
    """Parse a JSON list of numbers; null is NaN, and an empty cell is all NaN."""
    return np.array(json.loads(cell), float) if isinstance(cell, str) else np.full(count, np.nan)


def slice_table(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Tabulate the slices that show heart, of the studies with labels.

    Returns columns ``study_id, patient_id, slice`` (from 0, stored order), ``weight`` (the slice's
    own probability of scar), ``attention`` (its share of the embedding), ``scar`` (truth).
    """
    cells = predictions.set_index("study_id").reindex(columns=["slice_weights", "attention"])
    names, parts = ["study_id", "patient_id", "slice", "weight", "attention", "scar"], []
    for study in cohort.studies:
        if (labels := study.label_map) is None:
            continue
        heart = np.flatnonzero((labels > 0).any((0, 1)))
        weight, attention = (_numbers(cell, len(labels.T)) for cell in cells.loc[study["study_id"]])
        columns = {"study_id": study["study_id"], "patient_id": study["patient_id"], "slice": heart}
        columns |= {"weight": weight[heart], "attention": attention[heart]}
        scar = np.isin(labels[..., heart], SCARRED).any((0, 1))
        parts.append(pd.DataFrame(columns | {"scar": scar}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names)


def score_table(
    predictions: pd.DataFrame, cohort: Cohort, seed: int = 0, text: str = "findings"
) -> pd.DataFrame:
    """Compute every score of a detector with its 95 % interval over patients.

    Takes what ``Detector.predict`` returns for this cohort, or some of its columns. ``text`` is the
    kind of training text (`lgekit.reports.writer.report_texts`). Returns the scores of
    ``scores.toml``: index ``score``, columns ``value, low, high``, NaN if it cannot be known.
    ``attrs["notes"]`` says why, and which studies other scores leave out. Raises InputError if the
    truth of no study is known.
    """
    table = _joined(predictions, cohort)
    patients, (truth, values) = table["patient_id"], metrics.known_walls(table)
    rows: dict[str, Any] = metrics.presence_metrics(table, seed)
    found = metrics.auc_table(truth, values, patients, seed)
    rows |= found.set_axis([f"auc_{name}" for name in (*WALLS, "walls")]).to_dict("index")
    if "segments" in predictions and truth.eq(True).any(axis=None):
        found = metrics.auc_table(table[SEGMENTS], _segments(table), patients, seed)
        rows["auc_segments"] = found.loc["mean"]
    slices = slice_table(predictions, cohort)
    slices = slices[slices["study_id"].isin(table.loc[table["scar"].eq(True), "study_id"])]
    for name, column in (("auc_slices", "weight"), ("auc_attention", "attention")):
        rows[name] = metrics.slice_metrics(slices, column, seed)
    if "caption" in predictions and predictions["caption"].notna().any():
        told = table.dropna(subset="caption")
        read, patients = told["caption"].map(read_report), told["patient_id"]
        walls = pd.DataFrame([[wall in findings.walls for wall in WALLS] for findings in read])
        rows["caption_walls_f1"] = f1(told[TRUE_WALLS], walls, patients, seed)
        if told["scar"].nunique() > 1:  # of one class, a constant answer would be perfect
            present = read.map(lambda findings: findings.present).to_frame()
            rows["caption_presence_f1"] = f1(told[["scar"]], present, patients, seed)
        reported = told[told["report"].map(states_enhancement).astype(bool)]
        references = [report_texts(report, text)[0] for report in reported["report"]]
        rows["caption_bleu"] = bleu(reported["caption"], references, reported["patient_id"], seed)
    scores = pd.DataFrame(rows).T.reindex(index=[*SCORES], columns=["value", "low", "high"])
    if table["scar"].nunique() < 2:
        scores.loc["brier"] = np.nan
    scores = scores.astype(float).rename_axis("score")
    scores.attrs["notes"] = _notes(scores, predictions, cohort, table)
    return scores


def _notes(
    scores: pd.DataFrame, predictions: pd.DataFrame, cohort: Cohort, truth: pd.DataFrame
) -> list[str]:
    """Say which scores are missing and why, and which studies the others leave out."""
    given = set(predictions.columns[predictions.notna().any()])
    scarred, reasons = truth["scar"].eq(True), dict[str, list[str]]()
    placed = scarred & truth[TRUE_WALLS].notna().all(axis=1)
    for name in scores.index[scores["value"].isna()]:
        reason = SCORES[name]["reason"]
        if SCORES[name]["column"] not in given:
            reason = "the predictions lack the column that it is computed from"
        elif SCORES[name].get("walls") and not placed.any():
            reason = _FILE["nowhere"]
        reasons.setdefault(reason, []).append(name)
    notes = [f"left out: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    if placed.any() and (lost := (scarred & ~placed).sum()):
        count = f"{lost} of {scarred.sum()} studies with scar"
        notes.append(f"scores of walls and segments leave out {count}: their walls are not known")
    if "caption" in given and (silent := predictions["caption"].isna().sum()):
        notes.append(f"scores of captions leave out {silent} of {len(truth)} studies, without one")
    states = report_states(cohort).query("mask.isna() and report != 'unsaid'")
    if reported := truth["study_id"].isin(states["study_id"]).sum():
        notes.append(f"the truth of {reported} studies is what their reports say, not a scar mask")
    return notes


def place_scores(places: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Compute the AUC of each level and depth against the others, among the studies with scar.

    Takes what ``Detector.levels_and_depths`` returns; a study counts where its findings state the
    level (or the depth) of every scar. Returns index ``place`` (``level_…``, ``depth_…``) and
    columns ``value, low, high, with, without``.
    """
    table = _joined(places, cohort)
    truth, values = table[[f"true_{name}" for name in LEVELS_AND_DEPTHS]], table[LEVELS_AND_DEPTHS]
    found = metrics.auc_table(truth, values, table["patient_id"], seed)
    return found.drop("mean").rename_axis("place")


def segment_scores(predictions: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Compute the AUC of each AHA segment.

    A study counts where the walls of each scar are known and the segment has a value. Where a scar
    has no level, the segments of its walls are left out. Returns 17 rows; columns ``segment, value,
    low, high, with, without`` (numbers of studies).
    """
    table = _joined(predictions, cohort)
    found = metrics.auc_table(table[SEGMENTS], _segments(table), table["patient_id"], seed)[:-1]
    return found.set_index(pd.RangeIndex(1, 18, name="segment")).reset_index()


def _segments(table: pd.DataFrame) -> pd.DataFrame:
    """Return the predicted probability in each segment, ``(studies, 17)``."""
    return pd.DataFrame([_numbers(cell, 17) for cell in table["segments"]], columns=SEGMENTS)


def caption_table(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Put captions next to the truth: columns ``study_id, caption, truth, right``.

    A caption is right if it states presence correctly and, where the truth has them, all walls.
    """
    rows = []
    for _, study in _joined(predictions, cohort).dropna(subset="findings").iterrows():
        caption = study["caption"] if isinstance(study["caption"], str) else ""
        truth, read = study["findings"], read_report(caption)
        right = states_enhancement(caption) and read.present == truth.present
        right &= pd.isna(study[TRUE_WALLS[0]]) or read.walls == truth.walls
        rows.append((study["study_id"], caption, canonical_text(truth), right))
    columns = ["study_id", "caption", "truth", "right"]
    return pd.DataFrame(rows, columns=columns).astype({"right": bool})


def flat_scores(scores: pd.DataFrame) -> dict[str, float]:
    """Flatten a score table for ``metrics.json``: ``name``, ``name_low``, ``name_high``."""
    limits = [scores[limit].dropna().add_suffix(f"_{limit}") for limit in ("low", "high")]
    return pd.concat([scores["value"], *limits]).to_dict()


def with_fold(cohort: Cohort, fold: int, folds: int, seed: int = 0) -> Cohort:
    """Split a copy of the cohort for one fold of a cross-validation by patient.

    ``fold`` is ``test``, the next one ``validation``, the others ``train`` (-1: no change). Each
    study gets its number as ``fold``.
    """
    if fold < 0:
        return cohort
    names = {fold: SPLITS[2], (fold + 1) % folds: SPLITS[1]}
    studies = [
        Study(**{**study, "split": names.get(int(own), SPLITS[0]), "fold": int(own)})
        for study, own in zip(cohort.studies, cohort.patient_folds(folds, seed), strict=True)
    ]
    return Cohort(studies, cohort.name)


def without_test(cohort: Cohort) -> Cohort:
    """Return ``train`` and ``validation`` as one split: what a cross-fit may learn from."""
    kept = [study for study in cohort.studies if study["split"] in SPLITS[:2]]
    return Cohort([Study(**{**study, "split": SPLITS[0]}) for study in kept], cohort.name)


def with_fewer(cohort: Cohort, train_studies: int) -> Cohort:
    """Keep only so many training studies (0: all); a smaller selection is in every larger one."""
    train = sorted(cohort.split(SPLITS[0]).manifest["study_id"], key=hash_unit)
    dropped = set(train[train_studies:] if train_studies else [])
    return cohort.subset(name for name in cohort.manifest["study_id"] if name not in dropped)
