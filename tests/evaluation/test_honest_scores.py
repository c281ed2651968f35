"""Scores of cohorts with partly unknown truth: what cannot be known is left out, and why."""

import json

import numpy as np
import pandas as pd
import pytest
from cohort_files import SPACING, picture, ring, write_own, write_table
from command_line import lgekit

from lgekit.anatomy.segments import findings_from_labels
from lgekit.evaluation import scores
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar
from lgekit.reports.reader import read_report
from lgekit.study import MYOCARDIUM, SCAR, Cohort, Landmarks, Study

PRESENCE = {"balanced_accuracy", "sensitivity", "specificity", "auc", "brier"}
BY_WALL = {"auc_walls", "caption_walls_f1", "auc_segments"}
SLICES = {"auc_slices", "auc_attention"}
WORDS = {"caption_presence_f1", "caption_bleu"}
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


KINDS = {
    "masks with insertion points": ({}, PRESENCE | BY_WALL | SLICES | WORDS, ""),
    "masks without insertion points": (
        {"points": None},
        PRESENCE | SLICES | WORDS,
        "auc_segments, caption_walls_f1: no study has scar in known walls",
    ),
    "one insertion point": ({"points": Landmarks(130, np.nan)}, PRESENCE | SLICES | WORDS, "walls"),
    "scar without blood pool": ({"codes": (2, 3)}, PRESENCE | SLICES | WORDS, "cavity"),
    "scar without myocardium": ({"codes": (1, 3)}, PRESENCE | SLICES | WORDS, "myocardium"),
    "scar alone": ({"codes": (3,)}, PRESENCE | WORDS, "no mask shows slices with scar and"),
    "reports only": (
        {"masks": False, "points": None},
        PRESENCE | BY_WALL | WORDS,
        "the truth of 8 studies is what their reports say",
    ),
    "masks of the heart only": (
        {"codes": (1, 2)},
        PRESENCE | BY_WALL | WORDS,
        "the truth of 8 studies is what their reports say",
    ),
    "masks without reports": (
        {"reports": False},
        PRESENCE | BY_WALL | {"caption_presence_f1"} | SLICES,
        "caption_bleu: no report says whether",
    ),
    "only scar": (
        {"ill": True},
        {"sensitivity", "caption_walls_f1", "caption_bleu"} | SLICES,
        "brier, caption_presence_f1: the cohort needs studies with scar and studies without",
    ),
    "no scar": ({"ill": False}, {"specificity", "caption_bleu"}, "sensitivity: no study has scar"),
    "one study": (
        {"count": 1},
        {"sensitivity", "caption_walls_f1", "caption_bleu"} | SLICES,
        "specificity: every study has scar",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_known_is_left_out_with_its_reason(kind):
    options, known, reason = KINDS[kind]
    cohort = cohort_of(**options)
    table = scores.score_table(predictions_of(cohort), cohort)
    found = table["value"].dropna()
    assert set(found.index) - {f"auc_{wall}" for wall in WALLS} == known
    notes = "\n".join(table.attrs["notes"])
    assert reason in notes
    left_out = notes.replace(":", ",").split(", ")
    assert all((name in found) != (name in left_out) for name in table.index)
    assert table["low"].notna().any() == (len(cohort) > 1)  # one patient has no interval


def test_predictions_may_lack_captions_or_all_but_presence():
    cohort = cohort_of()
    silent = scores.score_table(predictions_of(cohort, caption=False), cohort)
    bare = scores.score_table(predictions_of(cohort)[["study_id", "p_lge"]], cohort)
    assert silent["value"].filter(like="caption").isna().all()
    assert silent["value"].notna()[["auc_walls", "auc_segments", "auc_slices"]].all()
    assert set(bare["value"].dropna().index) == PRESENCE
    for table in (silent, bare):
        assert "the predictions lack the column" in table.attrs["notes"][-1]


def test_walls_levels_and_depths_need_all_scars_of_a_study():
    """A study with one scar of unknown place says nothing about the other walls and levels."""
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
    places = pd.DataFrame({"study_id": cohort.manifest["study_id"]})
    names = [f"level_{name}" for name in LEVELS] + [f"depth_{name}" for name in DEPTHS]
    table = scores.place_scores(places.assign(**dict.fromkeys(names, 0.5)), cohort)
    assert table.loc["level_mid", ["with", "without"]].tolist() == [1, 0]
    assert table.loc["depth_mid-wall", ["with", "without"]].tolist() == [1, 0]


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
        ["no", "1", "2"],
        ["unsaid", "0", "1"],
    ]
    assert lines[8] == "report says no, mask shows the opposite: s0"
    cohort = cohort_of(6)
    predictions_of(cohort).to_csv(tmp_path / "out.csv", index=False)
    done = lgekit("score", tmp_path / "out.csv", spec)
    assert "caption_walls_f1" not in done.stdout and "auc_segments" not in done.stdout
    assert "auc_segments, caption_walls_f1: no study has scar in known walls" in done.stderr
