"""Score predictions against the truth of a cohort, and split cohorts for cross-validation."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.clip.data import batch_of, make_view
from lgekit.clip.detector import Detector, read_predictions
from lgekit.clip.zeroshot import occlusion_map
from lgekit.errors import InputError
from lgekit.evaluation import metrics
from lgekit.evaluation.metrics import interval, ratio
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.reports.training_texts import prompt_sets, report_texts
from lgekit.reports.writer import canonical_text
from lgekit.study import SCARRED, SPLITS, Cohort, Study, hash_unit, patient_folds

REMEDY = "Give the table that `lgekit predict` wrote, and the cohort that it read"
LISTS = ("slice_weights", "attention", "segments")  # columns of JSON lists
CELL = (
    "Write probabilities from 0 to 1 with a point for decimals, slice_weights and attention as "
    "JSON lists of one number per slice, segments as one of 17 numbers or nulls, or predict again"
)
# The scores of `score_table` that say where scar is, besides the walls.
PLACES = ("auc_segments", "auc_slices", "auc_attention", "caption_presence_f1", "caption_walls_f1")


def in_both(path: Path, cohort: Cohort) -> tuple[pd.DataFrame, Cohort]:
    """Return the predictions and studies that are in both; warn of rows of other studies.

    Raises InputError if the file is not what `lgekit predict` writes, has none of the studies, or
    has a cell that cannot be used (named by study and column).
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
    studies = {study["study_id"]: study for study in cohort.studies}
    known = table["study_id"].isin(studies)
    if not known.any():
        raise InputError(path, f"contains no study of {cohort.name}", REMEDY)
    if other := table["study_id"][~known].tolist():
        shown = ", ".join(map(repr, other[:5])) + ", …" * (len(other) > 5)
        warning = f"{path}: {len(other)} rows match no study of {cohort.name}: {shown}"
        warnings.warn(warning, stacklevel=2)
    table, numbers = table[known], ["p_lge", *(f"p_{wall}" for wall in WALLS)]
    for column in table.columns.intersection([*numbers, *LISTS]):
        for name, cell in zip(table["study_id"], table[column], strict=True):
            if not _usable(column, cell, studies[name]):
                found = "is empty" if pd.isna(cell) else f"cannot be used: {str(cell)[:60]!r}"
                raise InputError(f"{path}, {name}, {column}", found, CELL)
    types = dict.fromkeys(table.columns.intersection(numbers), float)
    return table.astype(types), cohort.subset(table["study_id"])


def _usable(column: str, cell: Any, study: Study) -> bool:
    """Tell whether a cell holds what `lgekit predict` writes."""
    if pd.isna(cell):  # slice weights are needed where a mask gives the truth of each slice
        return column not in {"p_lge", "slice_weights" if study.label_map is not None else ""}
    count = 17 if column == "segments" else study.spatial_shape[2]
    try:
        if column.startswith("p_"):
            return 0 <= float(cell) <= 1
        numbers = _numbers(str(cell), count)
    except (TypeError, ValueError):
        return False
    return numbers.shape == (count,) and (column == "segments" or bool(np.isfinite(numbers).all()))


def _walls_known(findings: Findings | None) -> bool:
    """Tell whether findings say which walls have scar; a scar may have no stated wall."""
    return findings is not None and (bool(findings.walls) or not findings.present)


def clinical_f1(
    truth: Sequence[Findings], read: Sequence[Findings], patients: Sequence[str], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Compute ``presence_f1`` over studies and ``walls_f1`` over study × wall, with intervals.

    F1 = 2 TP / (2 TP + FP + FN), van Rijsbergen 1979, ch. 7; NaN if there is no scar at all.
    Studies whose true walls are unknown count for presence only.
    """

    def f1(kept: list[int], labels: Callable[[Findings], Iterable]) -> dict[str, float]:
        sets = [(set(labels(truth[index])), set(labels(read[index]))) for index in kept]
        both = np.array([len(expected & found) for expected, found in sets])
        either = np.array([len(expected) + len(found) for expected, found in sets])
        names = [patients[index] for index in kept]
        return interval(lambda weights: ratio(2 * (weights @ both), weights @ either), names, seed)

    placed = [index for index, findings in enumerate(truth) if _walls_known(findings)]
    presence = f1([*range(len(truth))], lambda findings: ["scar"] * findings.present)
    return {"presence_f1": presence, "walls_f1": f1(placed, lambda findings: findings.walls)}


def bleu(
    written: Sequence[str], references: Sequence[str], patients: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Compute BLEU-4 of texts against one reference each, 0 to 1, pooled over all texts.

    Source: Papineni 2002, doi:10.3115/1073083.1073135. Lower case; punctuation marks are words.
    It counts shared runs of words, so a missing "no" costs little: read it after the clinical F1.
    """
    from nltk.translate.bleu_score import modified_precision

    counts, lengths = [], []
    words = re.compile(r"\w+|[^\w\s]")
    for texts in zip(written, references, strict=True):
        text, reference = (words.findall(one.lower()) for one in texts)
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


def _joined(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Put ``patient_id``, ``report`` and ``findings`` of each study before its predictions."""
    keys = ["study_id", "patient_id", "report", "findings"]
    studies = pd.DataFrame([[study[key] for key in keys] for study in cohort.studies], columns=keys)
    if "caption" in predictions:
        captions = predictions["caption"].fillna("").astype(str)
        predictions = predictions.assign(caption=captions)
    return studies.merge(predictions, on="study_id", validate="one_to_one")


def with_truth(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Add ``patient_id``, ``scar`` and ``scar_<wall>`` to predictions; missing where unknown."""
    table = _joined(predictions, cohort)
    truth = pd.DataFrame({"scar": [one and one.present for one in table["findings"]]})
    walls = [one.walls if _walls_known(one) else None for one in table["findings"]]
    for wall in WALLS:
        truth[f"scar_{wall}"] = [None if known is None else wall in known for known in walls]
    return pd.concat([table[["study_id", "patient_id"]], truth, table.iloc[:, 4:]], axis=1)


def _numbers(cell: object, count: int) -> np.ndarray:
    """Parse a JSON list of numbers; null is NaN, and an empty cell is all NaN."""
    return np.array(json.loads(cell), float) if isinstance(cell, str) else np.full(count, np.nan)


def slice_table(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Tabulate the slices that show heart, of the studies with labels.

    Returns columns ``study_id, patient_id, slice`` (from 0, stored order), ``weight`` (the slice's
    own probability of scar), ``attention`` (its share of the study's embedding; missing in older
    predictions), ``scar`` (truth).
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

    Args:
        predictions: what ``Detector.predict`` returns for this cohort.
        cohort: with findings; scores whose truth is unknown are missing.
        text: kind of training text (`lgekit.reports.training_texts.report_texts`).

    Returns columns ``value, low, high``; index ``score``: ``balanced_accuracy, sensitivity,
    specificity, auc, brier``; ``auc_<wall>`` and their mean ``auc_walls``; ``auc_segments`` (mean
    of `segment_scores`); ``auc_slices`` by slice weight and ``auc_attention`` by attention;
    ``caption_presence_f1, caption_walls_f1`` against the truth and ``caption_bleu`` against the
    reports. Raises InputError if the truth of no study is known.
    """
    table = with_truth(predictions, cohort)
    rows = metrics.presence_metrics(table, seed)
    if table[[f"scar_{wall}" for wall in WALLS]].notna().all(axis=1).any():
        placed, walls, values = metrics.known_walls(table)
        found = metrics.column_metrics(walls, values, placed["patient_id"].tolist(), seed)
        rows |= dict(zip([f"auc_{name}" for name in (*WALLS, "walls")], found, strict=True))
    if "segments" in predictions:
        rows["auc_segments"] = metrics.column_metrics(*_segments(predictions, cohort), seed)[-1]
    slices = slice_table(predictions, cohort)
    slices = slices[slices["study_id"].isin(table.loc[table["scar"].eq(True), "study_id"])]
    rows["auc_slices"] = metrics.slice_metrics(slices, seed)
    if "attention" in predictions:
        attended = slices.assign(weight=slices["attention"]).dropna(subset="weight")
        rows["auc_attention"] = metrics.slice_metrics(attended, seed)
    table = _joined(predictions, cohort)
    known = table[table["findings"].notna()]
    truth, read = known["findings"].tolist(), known["caption"].map(read_report).tolist()
    clinical = clinical_f1(truth, read, known["patient_id"].tolist(), seed)
    rows |= {f"caption_{name}": row for name, row in clinical.items()}
    reported = table[table["report"].map(states_enhancement).astype(bool)]
    references = [report_texts(report, text)[0] for report in reported["report"]]
    patients = reported["patient_id"].tolist()
    rows["caption_bleu"] = bleu(reported["caption"].tolist(), references, patients, seed)
    return pd.DataFrame(rows).T.astype(float).rename_axis("score")


def place_scores(places: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Compute the AUC of each level and depth against the others, among the studies with scar.

    Takes what ``Detector.levels_and_depths`` returns; a study counts where its findings state a
    level (or a depth). Returns index ``place`` (``level_…``, ``depth_…``) and columns ``value, low,
    high, with, without``.
    """
    table = _joined(places, cohort).dropna(subset="findings")
    scars = [findings.scars for findings in table["findings"]]
    levels = [{level for scar in each for level in scar.levels} for each in scars]
    depths = [{scar.depth for scar in each if scar.depth} for each in scars]
    parts = []
    for kind, labels, stated in (("level", LEVELS, levels), ("depth", DEPTHS, depths)):
        kept = table.assign(stated=stated)[[bool(names) for names in stated]]
        columns = [f"{kind}_{label}" for label in labels]
        truth = [[label in names for label in labels] for names in kept["stated"]]
        parts.append(_auc_table(truth, kept[columns], kept["patient_id"].tolist(), seed))
    return pd.concat(parts).rename_axis("place")


def _auc_table(truth: list, values: pd.DataFrame, patients: list[str], seed: int) -> pd.DataFrame:
    """Tabulate the AUC of each column (place or segment), with the numbers of studies."""
    present, scores = np.array(truth, bool).reshape(values.shape), values.to_numpy(float)
    found = metrics.column_metrics(present, scores, patients, seed)[:-1]
    table, known = pd.DataFrame(found, index=values.columns), np.isfinite(scores)
    return table.assign(**{"with": (known & present).sum(0), "without": (known & ~present).sum(0)})


def grid_places(predictions: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Compute the `PLACES` scores of an ablation, per row and seed, over all folds.

    Takes the grid's predictions (``row`` and ``seed``, then what `Detector.predict` returns);
    returns columns ``row, seed, score, value, low, high``. Raises InputError if a predicted study
    is not in the cohort.
    """
    parts, columns = [], ["row", "seed", "score", "value", "low", "high"]
    for (row, of_seed), run in predictions.groupby(["row", "seed"], sort=False):
        studies = cohort.subset(run["study_id"])
        if len(studies) != len(run):
            problem, remedy = f"are not all in {cohort.name}", "Give the cohort that was predicted."
            raise InputError(f"predictions of {row}", problem, remedy)
        truth = [name for name in run if name.startswith("scar") or name == "patient_id"]
        scores = score_table(run.drop(columns=truth), studies, seed)
        scores = scores[scores.index.isin(PLACES)].reset_index()
        parts.append(scores.assign(row=row, seed=of_seed))
    return pd.concat(parts, ignore_index=True)[columns]


def segment_scores(predictions: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Compute the AUC of each AHA segment.

    A study counts where its findings are known, each of its scars has a place, and the segment has
    a value. A scar with walls but no level is in all rings. Returns 17 rows; columns ``segment,
    value, low, high, with, without`` (numbers of studies). Raises InputError without ``segments``.
    """
    truth, values, patients = _segments(predictions, cohort)
    segments = pd.DataFrame(values, columns=pd.Index(range(1, 18), name="segment"))
    return _auc_table(truth.tolist(), segments, patients, seed).reset_index()


def _segments(
    predictions: pd.DataFrame, cohort: Cohort
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return truth and value of the segments, ``(studies, 17)``, and the patients."""
    if "segments" not in predictions:
        remedy = "Predict the cohort again: an older `lgekit predict` wrote this table."
        raise InputError("predictions", "column 'segments' is missing", remedy)
    table = _joined(predictions, cohort).dropna(subset="findings")
    table = table[[all(scar.segments for scar in one.scars) for one in table["findings"]]]
    truth = [[number in one.segments for number in range(1, 18)] for one in table["findings"]]
    values = [_numbers(cell, 17) for cell in table["segments"]]
    shaped = np.array(truth, bool).reshape(-1, 17), np.array(values, float).reshape(-1, 17)
    return *shaped, table["patient_id"].tolist()


def wall_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the walls of a `score_table`: columns ``wall, value, low, high``."""
    rows = scores.reindex([f"auc_{wall}" for wall in WALLS]).reset_index(drop=True)
    return rows.assign(wall=list(WALLS))[["wall", "value", "low", "high"]]


def caption_table(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Put captions next to the truth: columns ``study_id, caption, truth, right``.

    A caption is right if it states presence correctly and, where the truth has them, all walls.
    """
    rows = []
    known = _joined(predictions, cohort).dropna(subset="findings")
    for name, caption, truth in known[["study_id", "caption", "findings"]].itertuples(index=False):
        read = read_report(caption)
        right = states_enhancement(caption) and read.present == truth.present
        right = right and (not _walls_known(truth) or read.walls == truth.walls)
        rows.append((name, caption, canonical_text(truth), right))
    columns = ["study_id", "caption", "truth", "right"]
    return pd.DataFrame(rows, columns=columns).astype({"right": bool})


def flat_scores(scores: pd.DataFrame) -> dict[str, float]:
    """Flatten a score table for ``metrics.json``: ``name``, ``name_low``, ``name_high``."""
    flat = {}
    for name, row in scores.astype(float).iterrows():
        flat[str(name)] = row["value"]
        if np.isfinite([row["low"], row["high"]]).all():
            flat |= {f"{name}_{limit}": row[limit] for limit in ("low", "high")}
    return flat


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
        for study, own in zip(cohort.studies, patient_folds(cohort, folds, seed), strict=True)
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


def method_steps(detector: Detector, study: Study) -> dict[str, np.ndarray]:
    """Show one slice of a study in each step of the method: title → picture ``(X, Y)``.

    Only the image of the study is used. The last title quotes caption and probability.
    """
    alone, settings = Cohort([study], "one study"), detector.settings
    located = detector.locate(alone).studies[0]
    view = make_view(located, settings)
    prompts = prompt_sets(settings.prompts)["presence"]
    classes = prompts["positive"], prompts["negative"]
    evidence = occlusion_map(*detector.networks[0], batch_of([view]), *classes)
    strongest = int(evidence.reshape(len(evidence), -1).max(1).argmax())
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
    reading = f'Read as: "{found["caption"]}", p = {found["p_lge"]:.2f}'
    title = f"evidence for scar (occlusion map). {reading}"
    return steps | {title: evidence[strongest].T}
