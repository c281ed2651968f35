"""Predictions against the truth: known answers on small studies, and tables edited by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from cohort_files import write_own, write_table
from command_line import lgekit, refused

from lgekit.clip.detector import read_predictions
from lgekit.data.readers import read_cohort
from lgekit.errors import InputError
from lgekit.evaluation import scores
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar
from lgekit.reports.writer import canonical_text
from lgekit.study import Cohort, Landmarks, Study

NO_SCAR = Findings()


def scar(*walls: str) -> Findings:
    return Findings((Scar(walls=walls, levels=("mid",), depth="subendocardial"),))


INFERIOR = scar("inferior")


def study(name: str, findings: Findings | None, patient: str = "", report: str = "") -> Study:
    labels = np.zeros((12, 12, 5), np.uint8)
    labels[3:9, 3:9, 1:4] = 2
    labels[5:7, 5:7, 1:4] = 1
    if findings is not None and findings.present:
        labels[3:5, 3:5, 2] = 3
    fields = {"findings": findings, "landmarks": Landmarks(120, 240), "report": report}
    fields["patient_id"] = patient or name
    return Study.from_arrays(name, np.ones((12, 12, 5)), (1, 1, 10), labels, **fields)


def cohort_of(*findings: Findings | None) -> Cohort:
    return Cohort([study(name, one) for name, one in zip("abcd", findings, strict=False)])


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return cohort_of(INFERIOR, NO_SCAR, INFERIOR, NO_SCAR)


@pytest.fixture
def predictions() -> pd.DataFrame:
    walls = {f"p_{wall}": [0.9 if wall == "inferior" else 0.1, 0.1, 0.2, 0.3] for wall in WALLS}
    weights = [[0, 0.1, 0.9, 0.2, 0], [0] * 5, [0.9, 0.1, 0.8, 0.7, 0.9], [0] * 5]
    attention = [[0, 0.5, 0.2, 0.3, 0], [0.2] * 5, [0, 0.2, 0.4, 0.4, 0], [0.2] * 5]
    captions = [canonical_text(INFERIOR), *[canonical_text(NO_SCAR)] * 2, "nonsense"]
    columns = {"study_id": list("abcd"), "p_lge": [0.9, 0.1, 0.4, 0.6], **walls}
    columns |= {"slice_weights": [*map(json.dumps, weights)], "caption": captions}
    return pd.DataFrame(columns | {"attention": [*map(json.dumps, attention)]})


def with_segments(predictions, segments):
    return predictions.assign(segments=[json.dumps(values) for values in segments])


def test_scores_by_hand(cohort, predictions):
    table = scores.score_table(predictions, cohort)
    value = table["value"]
    assert value["balanced_accuracy"] == 0.5  # one of two right in each class
    assert value["auc"] == 0.75
    assert value["auc_slices"] == 1  # slices without a heart do not count
    assert value["auc_attention"] == pytest.approx((0 + 0.75) / 2)  # scar: the middle slice
    slices = scores.slice_table(predictions, cohort).set_index("study_id")
    assert slices.loc["a", "attention"].tolist() == [0.5, 0.2, 0.3]
    assert value["caption_presence_f1"] == pytest.approx(2 / 3)
    assert table.loc["caption_walls_f1", ["low", "high"]].notna().all()
    assert np.isnan(value["auc_anterior"])  # nobody has an anterior scar
    flat = scores.flat_scores(table)
    assert flat["auc"] == 0.75 and {"auc_low", "caption_walls_f1_low"} <= set(flat)
    assert "auc_anterior_low" not in flat
    right = scores.caption_table(predictions, cohort)["right"]
    assert right.tolist() == [True, True, False, False]  # "nonsense" does not say "no scar"


def test_segment_auc_by_hand(cohort, predictions):
    """Inferior and mid is segment 10; the other 16 have scar in no study."""
    values = [[0.2] * 17 for _ in cohort.studies]
    for number in (0, 2):
        values[number][9] = 0.7
    read = with_segments(predictions, values)
    table = scores.segment_scores(read, cohort).set_index("segment")
    assert table.loc[10].tolist() == [1, 1, 1, 2, 2]
    others = table.drop(10)
    assert others["value"].isna().all() and (others["with"] == 0).all()
    assert scores.score_table(read, cohort).loc["auc_segments", "value"] == 1
    values[0][9], values[1][9] = 0.1, None  # a below d, c above; b shows no such segment
    mixed = scores.segment_scores(with_segments(predictions, values), cohort)
    assert mixed.loc[9, ["value", "with", "without"]].tolist() == [0.5, 2, 1]
    read.loc[2:, "segments"] = np.nan  # an old run's table below a new one's
    assert scores.segment_scores(read, cohort).loc[9, ["with", "without"]].tolist() == [1, 1]


def test_levels_and_depths_are_scored_among_studies_with_scar():
    basal = Findings((Scar(walls=("anterior",), levels=("basal",), depth="transmural"),))
    vague = Findings((Scar(walls=("anterior",)), *INFERIOR.scars))  # one has no level or depth
    cohort = cohort_of(INFERIOR, basal, NO_SCAR, vague)
    places = pd.DataFrame({f"level_{level}": [0.0] * 4 for level in LEVELS})
    places["study_id"] = list("abcd")
    places["level_mid"] = places["level_basal"] = [2.0, 1.0, 9.0, 9.0]
    for depth in DEPTHS:
        places[f"depth_{depth}"] = [0.9, 0.1, 0.9, 0.9] if depth == "subendocardial" else 0.2
    table = scores.place_scores(places, cohort)
    value = table["value"]
    assert value["level_mid"] == 1 and value["level_basal"] == 0 and np.isnan(value["level_apex"])
    assert value["depth_subendocardial"] == 1 and value["depth_transmural"] == 0.5
    assert table.loc["level_mid", ["with", "without"]].tolist() == [1, 1]


def test_folds_keep_patients_whole_and_test_every_study_once():
    names = [f"s{number}" for number in range(12)]
    groups = [(INFERIOR if number % 3 else NO_SCAR, f"p{number // 2}") for number in range(12)]
    cohort = Cohort([study(name, *one) for name, one in zip(names, groups, strict=True)])
    tested = []
    for fold in range(3):
        split = scores.with_fold(cohort, fold, 3)
        assert (split.manifest.groupby("patient_id")["split"].nunique() == 1).all()
        assert set(split.manifest["split"]) == {"train", "validation", "test"}
        tested += split.split("test").manifest["study_id"].tolist()
        learned = set(scores.without_test(split).manifest["study_id"])
        assert learned == set(names) - set(split.split("test").manifest["study_id"])
        few, more, every = (scores.with_fewer(split, count).manifest for count in (1, 2, 0))
        assert set(few["study_id"]) < set(more["study_id"]) and every.equals(split.manifest)
        assert (few["split"] == "train").sum() == 1
    assert sorted(tested) == sorted(names)
    assert scores.with_fold(cohort, -1, 3) is cohort and cohort.studies[0]["split"] == ""


def test_f1_by_hand():
    truth = pd.DataFrame([[True, False], [True, True], [False, False], [None, None]])
    read = pd.DataFrame([[True, True], [False, False], [False, False], [True, True]])
    found = scores.f1(truth, read, list("abcd"))  # the truth of "d" is not known
    assert found["value"] == pytest.approx(2 * 1 / (3 + 2))
    halves = scores.f1(truth.loc[[0, 0, 1, 1], [0]], read.loc[[0, 0, 1, 1], [0]], list("aabb"))
    assert halves == {"value": pytest.approx(2 / 3), "low": 0, "high": 1}
    for rows in ([], [2], [3]):  # nothing is true, or known
        assert np.isnan(scores.f1(truth.loc[rows], read.loc[rows], ["a"] * len(rows))["value"])


def test_bleu_by_hand():
    """Clipped counts 5/6, 3/5, 2/4, 1/3 of runs of one to four words; then Papineni's brevity."""
    reference, written = "the scar is in the wall", "the scar is in a wall"
    value = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert scores.bleu([written], [reference], ["a"])["value"] == pytest.approx(value)
    # Pooled: 9/10, 6/8, 4/6, 2/4; ten words for twelve.
    pooled = np.exp(1 - 12 / 10) * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25
    both = scores.bleu([written, "the scar is in"], [reference] * 2, ["a", "b"])
    assert both["value"] == pytest.approx(pooled)
    assert both["low"] == pytest.approx(value)  # one patient drawn twice
    assert both["high"] == pytest.approx(np.exp(1 - 6 / 4))
    assert scores.bleu([""], [reference], ["a"])["value"] == 0
    assert np.isnan(scores.bleu([], [], [])["value"])


def test_captions_are_scored_against_the_reports(cohort, predictions):
    spoken = [Study(**{**one, "report": canonical_text(one["findings"])}) for one in cohort.studies]
    perfect = predictions.assign(caption=[one["report"] for one in spoken])
    value = scores.score_table(perfect, Cohort(spoken))["value"]
    assert value["caption_bleu"] == pytest.approx(1) and value["caption_walls_f1"] == 1


FOUR = json.dumps([0.1, 0.2, 0.3, 0.4])


@pytest.fixture
def files(tmp_path):
    """A cohort of four studies, one of them called NA, its SPEC, and a table of predictions."""
    rows = write_own(tmp_path, 4)
    rows[1] |= {"study_id": "NA", "patient_id": "NA"}
    spec = f"manifest:{write_table(tmp_path, rows)}"
    table = pd.DataFrame({"study_id": ["s0", "NA", "s2", "s3"], "p_lge": [0.9, 0.1, 0.8, 0.2]})
    table = table.assign(**{f"p_{wall}": 0.5 for wall in WALLS}, slice_weights=FOUR, attention=FOUR)
    return spec, table.assign(segments=json.dumps([None, *[0.5] * 16]), caption="")


def written(table, folder):
    table.to_csv(folder / "out.csv", index=False)
    return folder / "out.csv"


def test_study_ids_stay_text_and_optional_cells_may_be_empty(files, tmp_path):
    spec, table = files
    table.loc[0, ["attention", "segments", "caption", "p_inferior"]] = None
    read, studies = scores.in_both(written(table, tmp_path), read_cohort(spec))
    assert read["study_id"].tolist() == ["s0", "NA", "s2", "s3"] and len(studies) == 4
    assert read["p_lge"].dtype == read["p_inferior"].dtype == float
    ids = ["007", "NA", "nan", "1e5"]
    path = written(table.assign(study_id=ids), tmp_path)
    assert read_predictions(path)["study_id"].tolist() == ids


UNUSABLE = {
    "p_lge": ["0,5", "", "50"],
    "p_inferior": ["high"],
    "slice_weights": ["[0.1, 0.2, 0.3]", "[0.1, 0.2, 0.3", "[0.1, null, 0.3, 0.4]", ""],
    "segments": ["[0.5]"],
}


@pytest.mark.parametrize(("column", "cell"), [(a, b) for a in UNUSABLE for b in UNUSABLE[a]])
def test_unusable_cells_are_named_by_study_and_column(files, tmp_path, column, cell):
    spec, table = files
    table[column] = table[column].astype(object)
    table.loc[2, column] = cell
    path = written(table, tmp_path)
    with pytest.raises(InputError, match=cell.replace("[", ".") or "is empty") as caught:
        scores.in_both(path, read_cohort(spec))
    assert caught.value.where == f"{path}, s2, {column}"
    if cell == "0,5":
        refused("score", path, spec, mentions=f"s2, {column}: ")


def test_rows_of_other_studies_are_named(files, tmp_path):
    (spec, table), cohort = files, read_cohort(files[0])
    path = written(pd.concat([table, table.tail(1).assign(study_id="s9")]), tmp_path)
    with pytest.warns(UserWarning, match="1 rows match no study of .*: 's9'"):
        assert len(scores.in_both(path, cohort)[0]) == 4
    with pytest.raises(InputError, match="contains no study"):
        scores.in_both(written(table.assign(study_id=list("abcd")), tmp_path), cohort)
    done = lgekit("score", written(table, tmp_path), spec, "--split", "test")
    assert done.returncode == 0, done.stderr
    assert "no study of" not in done.stderr  # those of the other splits are left out on purpose
