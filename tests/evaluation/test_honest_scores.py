"""Scores of cohorts with partly unknown truth: what cannot be known is left out, and why."""

import json

import numpy as np
import pandas as pd
import pytest
from cohort_files import SPACING, picture, ring, write_own, write_table
from command_line import lgekit

from lgekit.anatomy.segments import findings_from_labels
from lgekit.evaluation import scores
from lgekit.findings import WALLS, Findings, Scar
from lgekit.reports.reader import read_report
from lgekit.study import MYOCARDIUM, SCAR, Cohort, Landmarks, Study

GROUPS = {
    "presence": {"balanced_accuracy", "sensitivity", "specificity", "auc", "brier"},
    "walls": {"auc_walls", "auc_segments", "caption_walls_f1"},
    "slices": {"auc_slices", "auc_attention"},
    "words": {"caption_presence_f1", "caption_bleu"},
}
SAID = "Subendocardial enhancement of the basal inferior wall.", "No late enhancement."
POINTS = Landmarks(130, 230)


def cohort_of(count=8, codes=(1, 2, 3), masks=True, reports=True, points=POINTS, ill=None):
    """Make studies that have scar in turn (``ill``: all or none), in all slices but the first."""
    studies = []
    for number in range(count):
        scarred = number % 2 == 0 if ill is None else ill
        labels = ring(scar=scarred)
        labels[..., 0][labels[..., 0] == SCAR] = MYOCARDIUM
        image, labels = picture(labels), np.where(np.isin(labels, codes), labels, 0)
        study = Study.from_arrays(f"s{number}", image, SPACING, labels if masks else None)
        study["landmarks"] = points
        study["report"] = SAID[not scarred] if reports else ""
        drawn = masks and SCAR in codes
        study["findings"] = findings_from_labels(study) if drawn else read_report(study["report"])
        study["split"] = ("validation", "test")[number // 2 % 2]
        studies.append(study)
    return Cohort(studies, "generated")


def predictions_of(cohort, caption=True):
    rng, count = np.random.default_rng(0), len(cohort)

    def lists(length):
        return [json.dumps(values) for values in rng.random((count, length)).round(2).tolist()]

    table = pd.DataFrame({"study_id": cohort.manifest["study_id"], "p_lge": rng.random(count)})
    table = table.assign(**{f"p_{wall}": rng.random(count) for wall in WALLS})
    table = table.assign(slice_weights=lists(4), attention=lists(4), segments=lists(17))
    return table.assign(caption=[SAID[0]] * count if caption else np.nan)


ALL, UNPLACED = "presence walls slices words", "presence slices words"
UNMASKED, UNREPORTED = "presence walls words", "presence walls slices caption_presence_f1"
ONE_CLASS = "sensitivity caption_walls_f1 caption_bleu slices"
REPORTED = "the truth of 8 studies is what their reports say"
# Kind of cohort: how it is made, the scores (or groups of them) that are known, a reason for others
KINDS = {
    "insertion points": ({}, ALL, ""),
    "no insertion points": ({"points": None}, UNPLACED, "caption_walls_f1: no study has scar in"),
    "one insertion point": ({"points": Landmarks(130, np.nan)}, UNPLACED, "insertion points be"),
    "scar without blood pool": ({"codes": (2, 3)}, UNPLACED, "a mask must show cavity"),
    "scar without myocardium": ({"codes": (1, 3)}, UNPLACED, "a mask must show cavity"),
    "scar alone": ({"codes": (3,)}, "presence words", "no mask shows slices with scar and slices"),
    "reports only": ({"masks": False, "points": None}, UNMASKED, REPORTED),
    "masks of the heart": ({"codes": (1, 2)}, UNMASKED, REPORTED),
    "no reports": ({"reports": False}, UNREPORTED, "no report says whether"),
    "only scar": ({"ill": True}, ONE_CLASS, "needs studies"),
    "no scar": ({"ill": False}, "specificity caption_bleu", "sensitivity: no study has scar"),
    "one study": ({"count": 1}, ONE_CLASS, "every study"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_known_is_left_out_with_its_reason(kind):
    options, words, reason = KINDS[kind]
    known = set().union(*(GROUPS.get(word, {word}) for word in words.split()))
    cohort = cohort_of(**options)
    table = scores.score_table(predictions_of(cohort), cohort)
    found, notes = table["value"].dropna(), "\n".join(table.attrs["notes"])
    assert set(found.index) - {f"auc_{wall}" for wall in WALLS} == known
    left_out = notes.replace(":", ",").split(", ")
    assert reason in notes and all((name in found) != (name in left_out) for name in table.index)
    assert table["low"].notna().any() == (len(cohort) > 1)  # one patient has no interval


def test_predictions_may_lack_captions_or_all_but_presence():
    cohort = cohort_of()
    silent = scores.score_table(predictions_of(cohort, caption=False), cohort)
    bare = scores.score_table(predictions_of(cohort)[["study_id", "p_lge"]], cohort)
    assert silent["value"].filter(like="caption").isna().all()
    assert silent["value"].notna()[["auc_walls", "auc_segments", "auc_slices"]].all()
    assert set(bare["value"].dropna().index) == GROUPS["presence"]
    half = predictions_of(cohort).assign(caption=[SAID[0], SAID[1], *[np.nan] * 6])
    told = scores.score_table(half, cohort)  # a missing caption does not say "no scar"
    assert told.loc["caption_presence_f1", "value"] == 1
    for table, note in ((silent, "lack the"), (bare, "lack the"), (told, "out 6 of 8")):
        assert note in table.attrs["notes"][-1]


def test_walls_and_segments_need_the_place_of_every_scar():
    """A study with one scar of unknown place says nothing about the other walls."""
    vague = Findings((Scar(), Scar(("inferior",), ("mid",), "transmural")))
    no_level = Findings(Scar(("anterior",), depth="mid-wall"))
    apex = Findings((Scar(("inferior",), ("mid",)), Scar((), ("apex",))))
    truths = [vague, no_level, apex, Findings(), Findings()]
    cohort = cohort_of(5)
    for study, truth in zip(cohort.studies, truths, strict=True):
        study["findings"] = truth
    predictions = predictions_of(cohort)
    truth = scores.with_truth(predictions, cohort)
    assert np.isnan(truth["scar_anterior"][0])
    assert truth["scar_anterior"][1:].tolist() == [True, False, False, False]
    notes = scores.score_table(predictions, cohort).attrs["notes"]
    assert "scores of walls and segments leave out 1 of 3 studies" in "\n".join(notes)
    segments = scores.segment_scores(predictions, cohort).set_index("segment")
    assert segments.loc[[10, 17], "with"].tolist() == [1, 1]
    assert segments.loc[1, ["with", "without"]].tolist() == [0, 3]  # anterior, of unknown level


def test_score_prints_reasons_and_check_compares_reports_with_masks(tmp_path):
    rows = write_own(tmp_path, 6)
    rows[0]["report"], rows[1]["report"] = "No late enhancement.", "Normal biventricular size."
    spec = f"manifest:{write_table(tmp_path, rows)}"
    done = lgekit("check", spec)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:3] == ["late enhancement, by the reports: 2 yes, 3 no, 1 unsaid", "unsaid: s1"]
    assert [line.split() for line in lines[5:8]] == [
        ["yes", "2", "0"],
        ["no", "1", "2", "s0"],
        ["unsaid", "0", "1"],
    ]
    cohort = cohort_of(6)
    predictions_of(cohort).to_csv(tmp_path / "out.csv", index=False)
    done = lgekit("score", tmp_path / "out.csv", spec)
    assert "caption_walls_f1" not in done.stdout and "auc_segments" not in done.stdout
    assert "auc_segments, caption_walls_f1: no study has scar in known walls" in done.stderr
