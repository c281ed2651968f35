"""Predictions beside the truth: one table to keep, one of slices, one of scores with intervals."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd

from lgekit import metrics
from lgekit.caption_scores import bleu, clinical_f1
from lgekit.detection import Detector
from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings
from lgekit.reports import canonical_text, read_report, states_enhancement
from lgekit.stages import make_view
from lgekit.studies import NO_REFLOW, SCAR, SPLITS, Cohort, Study, hash_unit, patient_folds
from lgekit.supervision import report_texts

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
        placed = known and (findings.walls or not findings.present)  # a scar in no known wall says nothing of walls
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


def score_table(predictions: pd.DataFrame, cohort: Cohort, seed: int = 0, text: str = "findings") -> pd.DataFrame:
    """Every score of a detector with its patient-level 95 % interval.

    Args:
        predictions: what ``Detector.predict`` gives for this cohort.
        cohort: with findings; scores whose truth is unknown are missing.
        seed: of the bootstrap.
        text: in which words the captions were learned (`lgekit.supervision.report_texts`).

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
        rows["auc_segments"] = metrics.segment_metrics(*_segments(predictions, cohort), seed)[-1]
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
    positive = [study for study in cohort.studies if study["findings"] is not None and study["findings"].present]
    for kind, labels in (("level", LEVELS), ("depth", DEPTHS)):
        named = {s["study_id"]: _named(s["findings"], kind) for s in positive if _named(s["findings"], kind)}
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
        own = run.drop(columns=[name for name in run if name.startswith("scar") or name == "patient_id"])
        studies = cohort.subset(list(own["study_id"]))
        if len(studies.studies) != len(own):
            raise InputError(f"predictions of {row}", f"are not all of {cohort.name}", "Give the cohort they are of.")
        scores = score_table(own, studies, seed)
        parts.append(scores.reindex([name for name in PLACES if name in scores.index]).reset_index())
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
    truth, values, patients = _segments(predictions, cohort)
    known = np.isfinite(values)
    table = pd.DataFrame(metrics.segment_metrics(truth, values, patients, seed)[:-1])
    table.insert(0, "segment", range(1, 18))
    return table.assign(**{"with": (known & truth).sum(0), "without": (known & ~truth).sum(0)})


def _segments(predictions: pd.DataFrame, cohort: Cohort) -> tuple[np.ndarray, np.ndarray, list[str]]:
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
            said = states_enhancement(caption)  # words that say nothing are not right of a heart without scar
            right = said and read.present == truth.present and (not placed or read.walls == truth.walls)
            words = {"study_id": study["study_id"], "caption": caption, "truth": canonical_text(truth)}
            rows.append(words | {"right": right})
    return pd.DataFrame(rows, columns=["study_id", "caption", "truth", "right"]).astype({"right": bool})


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
    from lgekit.detection import batch_of
    from lgekit.standardize import StandardizeShortAxis
    from lgekit.supervision import prompt_sets
    from lgekit.zeroshot import heat_map

    alone = Cohort([study], "one study")
    located = detector.locate(alone).studies[0]
    view = make_view(located, detector.settings)
    prompts = prompt_sets(detector.settings.text)["presence"]
    fall = heat_map(*detector.networks[0], batch_of([view]), prompts["positive"], prompts["negative"])
    strongest = int(fall.reshape(len(fall), -1).max(1).argmax())
    stored = int(view.own_slices[strongest])
    steps = {"as stored": study.pixels[:, :, stored]}
    if detector.settings.orientation != "none":
        turned = StandardizeShortAxis(pixels=96, min_confidence=detector.settings.min_confidence)(located).pixels
        backwards = view.own_slices[0] > view.own_slices[-1]
        steps["in the standard frame"] = turned[:, :, turned.shape[2] - 1 - stored if backwards else stored]
    unrolled = "the wall unrolled: " if detector.settings.frame == "polar" else ""
    steps[f"{unrolled}what the network sees"] = view.images[strongest, 0].numpy().T
    found = detector.predict(alone).iloc[0]
    steps[f'what speaks for scar. Read as: "{found["caption"]}", p = {found["p_lge"]:.2f}'] = fall[strongest].T
    return steps
