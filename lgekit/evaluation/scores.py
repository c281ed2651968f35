"""Score predictions."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lgekit.clip.data import make_view
from lgekit.clip.detector import Detector
from lgekit.errors import InputError
from lgekit.evaluation import metrics
from lgekit.evaluation.metrics import interval
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.reports.training_texts import report_texts
from lgekit.reports.writer import canonical_text
from lgekit.study import (
    NO_REFLOW,
    SCAR,
    SPLITS,
    Cohort,
    Study,
    hash_unit,
    patient_folds,
)

REMEDY = "Give the table that `lgekit predict` wrote, and the cohort that it read"
CELL = "Write the cell as `lgekit predict` does, with a point for decimals, or predict again"
NAMED = 5  # studies that a message lists


def read_predictions(path: Path) -> pd.DataFrame:
    """A table with its study ids as text: a study may be called ``NA`` or ``007``.

    Raises:
        OSError, ValueError: no readable table.
    """
    table = pd.read_csv(path)
    if "study_id" in table:
        ids = pd.read_csv(path, usecols=["study_id"], dtype=str, keep_default_na=False)
        table["study_id"] = ids["study_id"]
    return table


def in_both(path: Path, cohort: Cohort) -> tuple[pd.DataFrame, Cohort]:
    """The predictions of a file and the studies of a cohort, those that are in both; others are named in a warning.

    Raises:
        InputError: the file is not what `lgekit predict` writes, holds none of the studies, or a cell (which the
            message names by study and column) that cannot be used.
    """
    try:
        table = read_predictions(path)
    except (OSError, ValueError) as error:
        raise InputError(path, f"not a readable table ({error})", REMEDY) from error
    if lacking := [
        name for name in ("study_id", "p_lge", "slice_weights", "caption") if name not in table
    ]:
        raise InputError(path, f"column {lacking[0]!r} is missing", REMEDY)
    if (twice := table["study_id"].duplicated()).any():
        problem = f"a study stands in two rows: {table['study_id'][twice].iloc[0]!r}"
        raise InputError(path, problem, REMEDY)
    predicted = set(table["study_id"])
    common = [study["study_id"] for study in cohort.studies if study["study_id"] in predicted]
    if not common:
        raise InputError(path, f"holds no study of {cohort.name}", REMEDY)
    if other := [name for name in table["study_id"] if name not in set(common)]:
        shown = ", ".join(map(repr, other[:NAMED])) + ", …" * (len(other) > NAMED)
        warnings.warn(
            f"{path}: {len(other)} rows are of no study of {cohort.name}: {shown}", stacklevel=2
        )
    table, studies = table[table["study_id"].isin(common)], cohort.subset(common)
    return _checked(table, studies, path), studies


def _checked(table: pd.DataFrame, studies: Cohort, path: Path) -> pd.DataFrame:
    """The table with numbers in its columns of probabilities.

    Raises:
        InputError: the first cell that cannot be used.
    """
    by_id = {study["study_id"]: study for study in studies.studies}
    checks: dict[str, Callable[[Any, Study], str]] = {f"p_{wall}": _number for wall in WALLS}
    checks |= {
        "p_lge": _present_number,
        "slice_weights": _slices,
        "attention": _further_slices,
        "segments": _segments,
    }
    for column in (name for name in checks if name in table):
        for name, cell in zip(table["study_id"], table[column], strict=True):
            if problem := checks[column](cell, by_id[name]):
                raise InputError(f"{path}, {name}, {column}", problem, CELL)
    return table.astype({name: float for name in checks if name.startswith("p_") and name in table})


def _number(cell: Any, study: Study) -> str:
    if pd.isna(cell):
        return ""
    try:
        inside = 0 <= float(cell) <= 1
    except ValueError:
        return f"{cell!r} is not a number"
    return "" if inside else f"{cell} is not between 0 and 1"


def _present_number(cell: Any, study: Study) -> str:
    return "is empty" if pd.isna(cell) else _number(cell, study)


def _slices(cell: Any, study: Study) -> str:
    if pd.isna(cell) and study.label_map is None:  # then nobody asks for it
        return ""
    return _listed(cell, study.spatial_shape[2], "one number a slice", (int, float))


def _further_slices(cell: Any, study: Study) -> str:
    return "" if pd.isna(cell) else _slices(cell, study)


def _segments(cell: Any, study: Study) -> str:
    return (
        ""
        if pd.isna(cell)
        else _listed(cell, 17, "one number or null a segment", (int, float, type(None)))
    )


def _listed(cell: Any, count: int, what: str, kinds: tuple[type, ...]) -> str:
    """What is wrong with a cell that holds a JSON list."""
    try:
        values = json.loads(cell)
    except (TypeError, ValueError):
        return f"{str(cell)[:60]!r} is not a JSON list"
    if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
        return f"{str(cell)[:60]!r} is not a list of {what}"
    return "" if len(values) == count else f"holds {len(values)} numbers, not {count}: {what}"


def clinical_f1(
    truth: Sequence[Findings], read: Sequence[Findings], patients: Sequence[str], seed: int = 0
) -> dict[str, dict]:
    """Clinical F1 of texts against the truth: ``presence_f1`` over studies, ``walls_f1`` pooled over study × wall.

    A true scar in no known wall says nothing of walls: its study counts for presence alone.

    Args:
        truth: of each study.
        read: what its text says.
        patients: the patient of each study.
        seed: of the bootstrap.

    Returns:
        For each of the two ``{"value", "low", "high"}``; NaN where neither truth nor texts hold scar.
    """

    def f1(of_truth: list[list[bool]], of_texts: list[list[bool]], names: Sequence[str]) -> dict:
        """Of a label a column; 2 TP / (2 TP + FP + FN), van Rijsbergen 1979, ch. 7."""
        labels = len(of_truth[0]) if of_truth else 1
        expected, found = (
            np.array(rows, bool).reshape(-1, labels) for rows in (of_truth, of_texts)
        )
        both, either = (expected & found).sum(1), expected.sum(1) + found.sum(1)  # (studies,)
        return interval(lambda weights: _ratio(2 * (weights @ both), weights @ either), names, seed)

    placed = [
        index for index, findings in enumerate(truth) if findings.walls or not findings.present
    ]
    present = [[[findings.present] for findings in texts] for texts in (truth, read)]
    walls = [
        [[wall in texts[index].walls for wall in WALLS] for index in placed]
        for texts in (truth, read)
    ]
    return {
        "presence_f1": f1(present[0], present[1], patients),
        "walls_f1": f1(walls[0], walls[1], [patients[index] for index in placed]),
    }


def bleu(
    written: Sequence[str], references: Sequence[str], patients: Sequence[str], seed: int = 0
) -> dict:
    """BLEU-4 of texts against one reference each, 0 to 1, counted over all texts together (Papineni 2002, ACL,
    doi:10.3115/1073083.1073135); lower case, punctuation marks are words of their own. NaN without texts.

    It counts shared runs of words: "no scar" beside "scar" costs little, which is why the clinical F1 stands first.

    Args:
        written: the texts.
        references: one each.
        patients: the patient of each text.
        seed: of the bootstrap, in which a text drawn twice counts twice.

    Returns:
        ``{"value", "low", "high"}``.
    """
    from nltk.translate.bleu_score import modified_precision

    counts, lengths = [], []
    for text, reference in zip(map(_words, written), map(_words, references), strict=True):
        precisions = [modified_precision([reference], text, n) for n in range(1, 5)]
        counts.append([(precision.numerator, precision.denominator) for precision in precisions])
        lengths.append((len(text), len(reference)))
    # (texts, 4 lengths of runs, shared and all) and (texts, written and wanted)
    shared, runs = np.moveaxis(np.array(counts, float).reshape(-1, 4, 2), -1, 0)
    own, wanted = np.array(lengths, float).reshape(-1, 2).T

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(
            divide="ignore"
        ):  # no run of four in common: the score is 0, and that is the answer
            mean = np.log(_ratio(weights @ shared, weights @ runs)).mean(
                1
            )  # (resamples, 4) → (resamples,)
        longer = _ratio(
            weights @ wanted, weights @ own
        )  # NaN where nothing was written at all: no run is shared then
        return np.exp(mean + np.minimum(0, 1 - np.nan_to_num(longer)))

    return interval(statistic, patients, seed)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``; NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


# What `score_table` says of where scar is, beside the walls.
PLACES = ("auc_segments", "auc_slices", "auc_attention", "caption_presence_f1", "caption_walls_f1")


def with_truth(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Predictions with ``patient_id``, ``scar`` and ``scar_<wall>`` beside them; missing where the truth is unknown.

    Args:
        predictions: column ``study_id``; what ``Detector.predict`` gives.
        cohort: the same studies, with findings.
    """
    rows = []
    for study in cohort.studies:
        findings = study["findings"]
        known = findings is not None
        row = {"study_id": study["study_id"], "patient_id": study["patient_id"]}
        row["scar"] = findings.present if known else None
        placed = known and (
            findings.walls or not findings.present
        )  # a scar in no known wall says nothing of walls
        row |= {f"scar_{wall}": wall in findings.walls if placed else None for wall in WALLS}
        rows.append(row)
    truth = pd.DataFrame(rows)
    return truth.merge(predictions, on="study_id", validate="one_to_one")


def slice_table(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """One row a slice with a heart: ``study_id, patient_id, slice`` (from 0, stored order), ``weight`` (its own
    probability of scar, 0 to 1), ``attention`` (its share of the study's embedding, which sums to 1 over the stack; NaN
    where the predictions lack it), ``scar``.

    Args:
        predictions: columns ``study_id`` and ``slice_weights`` (a JSON list, one number a stored slice), and
            ``attention`` (likewise), which older tables lack.
        cohort: the same studies; those without labels are passed over.
    """
    by_study = predictions.set_index("study_id").reindex(columns=["slice_weights", "attention"])
    parts = []
    for study in cohort.studies:
        if study.label_map is None:
            continue
        heart = np.flatnonzero((study.label_map > 0).any((0, 1)))
        said, attended = by_study.loc[study["study_id"]]
        values = {"weight": np.array(json.loads(said), float)[heart], "attention": np.nan}
        if isinstance(attended, str):
            values["attention"] = np.array(json.loads(attended), float)[heart]
        scar = np.asarray(np.isin(study.label_map, (SCAR, NO_REFLOW)).any((0, 1)))
        ids = {"study_id": study["study_id"], "patient_id": study["patient_id"]}
        parts.append(pd.DataFrame({**ids, "slice": heart, **values, "scar": scar[heart]}))
    columns = ["study_id", "patient_id", "slice", "weight", "attention", "scar"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def score_table(
    predictions: pd.DataFrame, cohort: Cohort, seed: int = 0, text: str = "findings"
) -> pd.DataFrame:
    """Every score of a detector with its patient-level 95 % interval.

    Args:
        predictions: what ``Detector.predict`` gives for this cohort.
        cohort: with findings; scores whose truth is unknown are missing.
        seed: of the bootstrap.
        text: in which words the captions were learned (`lgekit.reports.training_texts.report_texts`).

    Returns:
        Index ``score``: ``balanced_accuracy, sensitivity, specificity, auc, brier``, ``auc_<wall>``,
        ``auc_walls`` (their mean), ``auc_segments`` (mean of `segment_scores`), ``auc_slices``, ``auc_attention`` (the
        slices ranked by their share of the study's embedding instead; these two of segments and attention where the
        predictions have such a column), ``caption_presence_f1``, ``caption_walls_f1`` against the truth and
        ``caption_bleu`` against the words of the reports; columns ``value, low, high``.

    Raises:
        InputError: the truth of no study is known.
    """
    table = with_truth(predictions, cohort)
    rows = metrics.presence_metrics(table, seed)
    if table[[f"scar_{wall}" for wall in WALLS]].notna().all(axis=1).any():
        walls = metrics.wall_metrics(table, seed)
        rows |= {f"auc_{'walls' if wall == 'macro' else wall}": row for wall, row in walls.items()}
    if "segments" in predictions:
        rows["auc_segments"] = metrics.segment_metrics(
            *_evaluation_segments(predictions, cohort), seed
        )[-1]
    slices = slice_table(predictions, cohort)
    slices = slices[slices["study_id"].isin(table.loc[table["scar"].eq(True), "study_id"])]
    rows["auc_slices"] = metrics.slice_metrics(slices, seed)
    if "attention" in predictions:
        attended = slices.assign(weight=slices["attention"]).dropna(subset="weight")
        rows["auc_attention"] = metrics.slice_metrics(attended, seed)
    known = [study for study in cohort.studies if study["findings"] is not None]
    captions = predictions.set_index("study_id")["caption"].fillna("")
    read = [read_report(str(captions[study["study_id"]])) for study in known]
    truth: list[Findings] = [study["findings"] for study in known]
    scored = clinical_f1(truth, read, [study["patient_id"] for study in known], seed)
    rows |= {f"caption_{name}": row for name, row in scored.items()}
    reported = [study for study in cohort.studies if states_enhancement(study["report"])]
    written = [str(captions[study["study_id"]]) for study in reported]
    words = [report_texts(study["report"], text)[0] for study in reported]
    rows["caption_bleu"] = bleu(written, words, [study["patient_id"] for study in reported], seed)
    return pd.DataFrame(rows).T.astype(float).rename_axis("score")


def place_scores(places: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """How well levels and depths are told among the studies with scar: AUC of each, one against the others.

    Args:
        places: what ``Detector.levels_and_depths`` gives for this cohort.
        cohort: with findings; a study counts where its findings name a level, or a depth, respectively.
        seed: of the bootstrap.

    Returns:
        Index ``place`` (``level_<level>``, ``depth_<depth>``); columns ``value, low, high, with, without`` (studies).
    """
    table, rows = places.set_index("study_id"), {}
    positive = [
        study
        for study in cohort.studies
        if study["findings"] is not None and study["findings"].present
    ]
    for kind, labels in (("level", LEVELS), ("depth", DEPTHS)):
        named = {
            s["study_id"]: _named(s["findings"], kind)
            for s in positive
            if _named(s["findings"], kind)
        }
        patients = [study["patient_id"] for study in positive if study["study_id"] in named]
        for label in labels:
            truth = np.array([label in names for names in named.values()], dtype=bool)
            scores = table.loc[list(named), f"{kind}_{label}"].to_numpy(float)
            statistic = partial(metrics.presence_statistic, "auc", truth, scores)
            counts = {"with": int(truth.sum()), "without": int((~truth).sum())}
            rows[f"{kind}_{label}"] = metrics.interval(statistic, patients, seed) | counts
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("place")


def grid_places(predictions: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """How well rows of an ablation say where scar is, by seed, all folds taken together.

    Args:
        predictions: of the grid, columns ``row`` and ``seed`` before what `Detector.predict` gives.
        cohort: with findings; the studies that were predicted, and perhaps others.
        seed: of the bootstrap.

    Returns:
        Columns ``row, seed, score, value, low, high``; scores are those of `PLACES` that `score_table` has.

    Raises:
        InputError: a study that was predicted is not in the cohort; as `score_table`.
    """
    parts = []
    for (row, of_seed), run in predictions.groupby(["row", "seed"], sort=False):
        own = run.drop(
            columns=[name for name in run if name.startswith("scar") or name == "patient_id"]
        )
        studies = cohort.subset(list(own["study_id"]))
        if len(studies.studies) != len(own):
            raise InputError(
                f"predictions of {row}",
                f"are not all of {cohort.name}",
                "Give the cohort they are of.",
            )
        scores = score_table(own, studies, seed)
        parts.append(
            scores.reindex([name for name in PLACES if name in scores.index]).reset_index()
        )
        parts[-1].insert(0, "row", row)
        parts[-1].insert(1, "seed", of_seed)
    return pd.concat(parts, ignore_index=True)


def segment_scores(predictions: pd.DataFrame, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """How well each AHA segment is told: AUC of its value against whether the truth's findings hold the segment.

    Args:
        predictions: columns ``study_id`` and ``segments`` (a JSON list of 17), as ``Detector.predict`` gives.
        cohort: with findings; a study counts where its truth is known, each of its scars has a place, and the segment
            has a value. A scar of a stated wall and no stated level holds all three rings, as `Scar.segments` says.
        seed: of the bootstrap.

    Returns:
        17 rows, columns ``segment, value, low, high`` (patient-level 95 % interval; NaN where all studies are of one
        class), ``with, without`` (studies).

    Raises:
        InputError: the predictions have no column ``segments``.
    """
    truth, values, patients = _evaluation_segments(predictions, cohort)
    known = np.isfinite(values)
    table = pd.DataFrame(metrics.segment_metrics(truth, values, patients, seed)[:-1])
    table.insert(0, "segment", range(1, 18))
    return table.assign(**{"with": (known & truth).sum(0), "without": (known & ~truth).sum(0)})


def _evaluation_segments(
    predictions: pd.DataFrame, cohort: Cohort
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Truth and values of the 17 segments, and the patient, of the studies that say where scar is and where not."""
    if "segments" not in predictions:
        remedy = "Predict the cohort again: the table is from before `lgekit predict` wrote it."
        raise InputError("predictions", "column 'segments' is missing", remedy)
    told = [study for study in cohort.studies if study["findings"] is not None]
    # a scar of no stated place may lie in any segment
    placed = [study for study in told if all(scar.segments for scar in study["findings"].scars)]
    cells = predictions.set_index("study_id")["segments"]
    said = [cells[study["study_id"]] for study in placed]
    listed = [json.loads(cell) if isinstance(cell, str) else [None] * 17 for cell in said]
    truth = [[number in study["findings"].segments for number in range(1, 18)] for study in placed]
    values = np.array(listed, float).reshape(-1, 17)  # null → NaN
    return np.array(truth, bool).reshape(-1, 17), values, [study["patient_id"] for study in placed]


def _named(findings: Findings, kind: str) -> set[str]:
    """The levels, or the depths, that findings name."""
    if kind == "level":
        return {level for scar in findings.scars for level in scar.levels}
    return {scar.depth for scar in findings.scars if scar.depth}


def wall_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The walls' part of a score table: columns ``wall, value, low, high``."""
    rows = scores.reindex([f"auc_{wall}" for wall in WALLS])
    return rows.assign(wall=list(WALLS))[["wall", "value", "low", "high"]].reset_index(drop=True)


def caption_table(predictions: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Captions beside the truth: ``study_id, caption, truth, right`` (presence and, where known, all walls agree)."""
    captions = predictions.set_index("study_id")["caption"].fillna("")
    rows = []
    for study in cohort.studies:
        if study["findings"] is not None:
            caption, truth = str(captions[study["study_id"]]), study["findings"]
            read = read_report(caption)
            placed = truth.walls or not truth.present
            said = states_enhancement(
                caption
            )  # words that say nothing are not right of a heart without scar
            right = (
                said and read.present == truth.present and (not placed or read.walls == truth.walls)
            )
            words = {
                "study_id": study["study_id"],
                "caption": caption,
                "truth": canonical_text(truth),
            }
            rows.append(words | {"right": right})
    return pd.DataFrame(rows, columns=["study_id", "caption", "truth", "right"]).astype(
        {"right": bool}
    )


def plain_words(report: str) -> str:
    """What a report says of scar, in fixed words; nothing but the report is used."""
    return canonical_text(read_report(report))


def flat_scores(scores: pd.DataFrame) -> dict[str, float]:
    """A score table as plain numbers for ``metrics.json``: ``name``, ``name_low``, ``name_high``."""
    flat = {}
    for name, row in scores.iterrows():
        flat[str(name)] = float(row["value"])
        if np.isfinite([row["low"], row["high"]]).all():
            flat |= {f"{name}_low": float(row["low"]), f"{name}_high": float(row["high"])}
    return flat


def with_fold(cohort: Cohort, fold: int, folds: int, seed: int = 0) -> Cohort:
    """The cohort split for one fold of a cross-validation by patient; the studies themselves are not changed.

    Each study carries the number of its fold as ``fold``.

    Args:
        cohort: its own splits are put aside, unless ``fold`` is -1: then they stay.
        fold: this one is ``test``, the next one ``validation``, the others are ``train``.
        folds: at least 3.
        seed: of the folds.
    """
    if fold < 0:
        return cohort
    number = patient_folds(cohort, folds, seed)
    names = {fold: SPLITS[2], (fold + 1) % folds: SPLITS[1]}
    studies = [
        Study(**{**study, "split": names.get(int(own), SPLITS[0]), "fold": int(own)})
        for study, own in zip(cohort.studies, number, strict=True)
    ]
    return Cohort(studies, cohort.name)


def development(cohort: Cohort) -> Cohort:
    """The studies that a cross-fit may learn and set its threshold from: ``train`` and ``validation`` as one."""
    kept = [study for study in cohort.studies if study["split"] in SPLITS[:2]]
    return Cohort([Study(**{**study, "split": SPLITS[0]}) for study in kept], cohort.name)


def with_fewer(cohort: Cohort, train_studies: int) -> Cohort:
    """The cohort with only so many training studies; those kept for a small number are among those for a larger one.

    Args:
        cohort: with splits.
        train_studies: how many to keep, those whose ids hash lowest; 0 keeps all.
    """
    train = sorted(cohort.split(SPLITS[0]).manifest["study_id"], key=hash_unit)
    if not train_studies or train_studies >= len(train):
        return cohort
    dropped = set(train[train_studies:])
    return cohort.subset([name for name in cohort.manifest["study_id"] if name not in dropped])


def method_steps(detector: Detector, study: Study) -> dict[str, np.ndarray]:
    """One study through the method, a picture `(X, Y)` a step, named by what it shows; the last name ends in the words
    that the detector reads.

    Args:
        detector: fitted.
        study: its image alone is used.
    """
    from lgekit.anatomy.frame import StandardizeShortAxis
    from lgekit.clip.data import batch_of
    from lgekit.clip.zeroshot import heat_map
    from lgekit.reports.training_texts import prompt_sets

    alone = Cohort([study], "one study")
    located = detector.locate(alone).studies[0]
    view = make_view(located, detector.settings)
    prompts = prompt_sets(detector.settings.text)["presence"]
    fall = heat_map(
        *detector.networks[0], batch_of([view]), prompts["positive"], prompts["negative"]
    )
    strongest = int(fall.reshape(len(fall), -1).max(1).argmax())
    stored = int(view.own_slices[strongest])
    steps = {"as stored": study.pixels[:, :, stored]}
    if detector.settings.orientation != "none":
        turned = StandardizeShortAxis(pixels=96, min_confidence=detector.settings.min_confidence)(
            located
        ).pixels
        backwards = view.own_slices[0] > view.own_slices[-1]
        steps["in the standard frame"] = turned[
            :, :, turned.shape[2] - 1 - stored if backwards else stored
        ]
    unrolled = "the wall unrolled: " if detector.settings.frame == "polar" else ""
    steps[f"{unrolled}what the network sees"] = view.images[strongest, 0].numpy().T
    found = detector.predict(alone).iloc[0]
    steps[f'what speaks for scar. Read as: "{found["caption"]}", p = {found["p_lge"]:.2f}'] = fall[
        strongest
    ].T
    return steps
