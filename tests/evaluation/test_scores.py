"""Predictions beside the truth, folds and the ablation's answers: known answers on hand-made studies."""

import json

import numpy as np
import pandas as pd
import pytest

from lgekit.errors import InputError
from lgekit.evaluation import compare as ablations
from lgekit.evaluation import metrics
from lgekit.evaluation import scores as evaluation
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar
from lgekit.reports.writer import canonical_text
from lgekit.study import Cohort, Landmarks, Study

INFERIOR = Findings((Scar(walls=("inferior",), levels=("mid",), depth="subendocardial"),))


def study(name: str, findings: Findings | None, patient: str = "") -> Study:
    labels = np.zeros((12, 12, 5), np.uint8)
    labels[3:9, 3:9, 1:4] = 2
    labels[5:7, 5:7, 1:4] = 1
    if findings is not None and findings.present:
        labels[3:5, 3:5, 2] = 3
    fields = {"findings": findings, "landmarks": Landmarks(120, 240), "patient_id": patient or name}
    return Study.from_arrays(name, np.ones((12, 12, 5)), (1, 1, 10), labels, **fields)


@pytest.fixture
def cohort() -> Cohort:
    return Cohort(
        [study("a", INFERIOR), study("b", Findings()), study("c", INFERIOR), study("d", Findings())]
    )


@pytest.fixture
def predictions() -> pd.DataFrame:
    walls = {f"p_{wall}": [0.9 if wall == "inferior" else 0.1, 0.1, 0.2, 0.3] for wall in WALLS}
    weights = [[0, 0.1, 0.9, 0.2, 0], [0] * 5, [0.9, 0.1, 0.8, 0.7, 0.9], [0] * 5]
    captions = [
        canonical_text(INFERIOR),
        canonical_text(Findings()),
        canonical_text(Findings()),
        "nonsense",
    ]
    columns = {"study_id": list("abcd"), "p_lge": [0.9, 0.1, 0.4, 0.6], **walls}
    return pd.DataFrame(
        columns | {"slice_weights": [json.dumps(w) for w in weights], "caption": captions}
    )


def test_scores_by_hand(cohort, predictions):
    scores = evaluation.score_table(predictions, cohort)
    assert scores.loc["balanced_accuracy", "value"] == 0.5  # one of two right in each class
    assert scores.loc["auc", "value"] == 0.75
    assert scores.loc["auc_slices", "value"] == 1  # slices without a heart do not count
    assert scores.loc["caption_presence_f1", "value"] == pytest.approx(2 / 3)
    assert (
        scores.loc[["caption_presence_f1", "caption_walls_f1"], ["low", "high"]]
        .notna()
        .all(axis=None)
    )
    assert np.isnan(scores.loc["auc_anterior", "value"])  # nobody has an anterior scar
    flat = evaluation.flat_scores(scores)
    assert (
        flat["auc"] == 0.75
        and "auc_low" in flat
        and "caption_walls_f1_low" in flat
        and "auc_anterior_low" not in flat
    )


def test_places_of_a_grid_are_those_of_each_row_and_seed_over_all_folds(cohort, predictions):
    read = beside(predictions, [[0.2] * 17] * 4).assign(attention=predictions["slice_weights"])
    silent = read.assign(caption=canonical_text(Findings()))
    runs = [
        read.iloc[:2],
        read.iloc[2:],
        silent.iloc[:3],
        silent.iloc[3:],
    ]  # two folds of a row each
    table = pd.concat(
        run.assign(row=name, seed=1)
        for run, name in zip(runs, ["full"] * 2 + ["less"] * 2, strict=True)
    )
    places = evaluation.grid_places(table, cohort).set_index(["row", "seed", "score"])
    assert list(places.loc[("full", 1)].index) == list(evaluation.PLACES)
    alone = evaluation.score_table(read, cohort).loc[list(evaluation.PLACES)]
    np.testing.assert_array_equal(places.loc[("full", 1)], alone)
    assert places.loc[("less", 1, "caption_presence_f1"), "value"] == 0


def beside(predictions, segments):
    return predictions.assign(segments=[json.dumps(values) for values in segments])


def test_segments_that_say_the_truth_have_an_auc_of_one(cohort, predictions):
    """Inferior and mid is segment 10; the other 16 hold scar in no study."""
    values = [[0.2] * 17 for _ in cohort.studies]
    for number in (0, 2):
        values[number][9] = 0.7
    table = evaluation.segment_scores(beside(predictions, values), cohort)
    assert table["segment"].tolist() == list(range(1, 18))
    assert table.loc[9, ["value", "low", "high", "with", "without"]].tolist() == [1, 1, 1, 2, 2]
    others = table[table["segment"] != 10]
    assert others[["value", "low", "high"]].isna().all(axis=None) and (others["with"] == 0).all()
    scores = evaluation.score_table(beside(predictions, values), cohort)
    assert scores.loc["auc_segments", "value"] == 1
    same = evaluation.segment_scores(beside(predictions, [[0.2] * 17] * 4), cohort)
    assert same.loc[9, "value"] == 0.5
    values[0][9], values[1][9] = (
        0.1,
        None,
    )  # "a" ranks below "d", "c" above; "b" shows no such segment
    mixed = evaluation.segment_scores(beside(predictions, values), cohort)
    assert mixed.loc[9, ["value", "with", "without"]].tolist() == [0.5, 2, 1]


def test_segments_are_scored_where_the_truth_says_where(predictions):
    vague = Findings((Scar(), Scar(walls=("inferior",), levels=("mid",))))
    basal = Findings((Scar(walls=("anterior",), levels=("basal",)),))
    told = Cohort([study("a", INFERIOR), study("b", vague), study("c", None), study("d", basal)])
    values = [[0.1] * 17 for _ in told.studies]
    values[0][9] = values[3][0] = 0.9
    table = evaluation.segment_scores(beside(predictions, values), told).set_index("segment")
    assert (table["with"] + table["without"] == 2).all()
    assert table.loc[[1, 10], "value"].tolist() == [1, 1] and table["value"].notna().sum() == 2
    assert (
        evaluation.score_table(beside(predictions, values), told).loc["auc_segments", "value"] == 1
    )
    unplaced = Cohort([study("a", Findings((Scar(),))), study("c", None)])
    assert evaluation.segment_scores(beside(predictions, values), unplaced)["value"].isna().all()


def test_the_mean_of_the_segments_counts_patients_whole():
    """Two segments, one told and one not: the mean is between, and one patient's many studies count together."""
    truth, values = np.zeros((12, 17), bool), np.full((12, 17), 0.5)
    truth[:6, 0] = truth[::2, 1] = True
    values[:6, 0] = 0.9
    patients = [str(number) for number in range(12)]
    *each, mean = metrics.segment_metrics(truth, values, patients)
    assert each[0]["value"] == 1 and each[1]["value"] == 0.5 and np.isnan(each[2]["value"])
    assert mean == {"value": 0.75, "low": 0.75, "high": 0.75}
    values[:, 1] = np.random.default_rng(0).random(12)
    whole = metrics.segment_metrics(truth, values, patients)[-1]
    twice = metrics.segment_metrics(
        *(np.repeat(array, 2, 0) for array in (truth, values)), np.repeat(patients, 2).tolist()
    )
    assert twice[-1] == pytest.approx(whole) and whole["low"] < whole["value"] < whole["high"]


def test_attention_is_scored_like_the_slices_own_answers(cohort, predictions):
    attention = [[0, 0.5, 0.2, 0.3, 0], [0.2] * 5, [0, 0.2, 0.4, 0.4, 0], [0.2] * 5]
    attended = predictions.assign(attention=[json.dumps(values) for values in attention])
    slices = evaluation.slice_table(attended, cohort)
    assert slices.loc[slices["study_id"] == "a", "attention"].tolist() == [0.5, 0.2, 0.3]
    scores = evaluation.score_table(attended, cohort)
    assert scores.loc["auc_attention", "value"] == pytest.approx(
        (0 + 0.75) / 2
    )  # scar is in the middle slice
    assert scores.loc["auc_slices", "value"] == 1


def test_predictions_from_before_are_scored_without_what_they_lack(cohort, predictions):
    assert evaluation.slice_table(predictions, cohort)["attention"].isna().all()
    scores = evaluation.score_table(predictions, cohort)
    assert (
        not {"auc_segments", "auc_attention"} & set(scores.index) and "auc_slices" in scores.index
    )
    with pytest.raises(InputError, match="'segments' is missing.*Predict"):
        evaluation.segment_scores(predictions, cohort)
    half = beside(predictions, [[0.7 if number == 10 else 0.2 for number in range(1, 18)]] * 4)
    half.loc[half["study_id"].isin(["c", "d"]), "segments"] = (
        np.nan
    )  # below one another: an old run's and a new one's
    assert evaluation.segment_scores(half, cohort).loc[9, ["with", "without"]].tolist() == [1, 1]


def test_captions_are_scored_against_the_words_of_the_reports(cohort, predictions):
    reports = [canonical_text(INFERIOR), canonical_text(Findings()), canonical_text(INFERIOR), ""]
    spoken = Cohort(
        [
            Study(**{**one, "report": text})
            for one, text in zip(cohort.studies, reports, strict=True)
        ]
    )
    perfect = predictions.assign(
        caption=[canonical_text(INFERIOR), canonical_text(Findings()), reports[2], "x"]
    )
    assert evaluation.score_table(perfect, spoken).loc["caption_bleu", "value"] == pytest.approx(1)
    assert evaluation.score_table(predictions, spoken).loc["caption_bleu", "value"] < 0.9
    assert np.isnan(
        evaluation.score_table(predictions, cohort).loc["caption_bleu", "value"]
    )  # nobody reported


def test_levels_and_depths_are_scored_among_studies_with_scar(predictions):
    basal = Findings((Scar(walls=("anterior",), levels=("basal",), depth="transmural"),))
    vague = Findings((Scar(walls=("anterior",)),))
    cohort = Cohort(
        [study("a", INFERIOR), study("b", basal), study("c", Findings()), study("d", vague)]
    )
    places = pd.DataFrame({f"level_{level}": [0.0] * 4 for level in LEVELS})
    places = places.assign(
        study_id=list("abcd"), level_mid=[2.0, 1.0, 9.0, 9.0], level_basal=[2.0, 1.0, 9.0, 9.0]
    )
    for depth in DEPTHS:
        places[f"depth_{depth}"] = [0.9, 0.1, 0.9, 0.9] if depth == "subendocardial" else 0.2
    scores = evaluation.place_scores(places, cohort)
    assert scores.loc["level_mid", "value"] == 1 and scores.loc["level_basal", "value"] == 0
    assert (
        scores.loc["depth_subendocardial", "value"] == 1
        and scores.loc["depth_transmural", "value"] == 0.5
    )
    assert np.isnan(scores.loc["level_apex", "value"])
    assert scores.loc["level_mid", ["with", "without"]].tolist() == [
        1,
        1,
    ]  # neither scar-free nor vague studies count


def test_unknown_truth_stays_unknown(predictions):
    cohort = Cohort(
        [study("a", INFERIOR), study("b", Findings()), study("c", None), study("d", None)]
    )
    table = evaluation.with_truth(predictions, cohort)
    assert table["scar"].isna().sum() == 2 and table["scar_inferior"].isna().sum() == 2


def test_captions_beside_the_truth(cohort, predictions):
    assert evaluation.caption_table(predictions, cohort)["right"].tolist() == [
        True,
        True,
        False,
        False,
    ]  # "nonsense"


def test_folds_keep_patients_whole_and_every_study_is_tested_once():
    names = [f"s{number}" for number in range(12)]
    studies = [
        study(name, INFERIOR if number % 3 else Findings(), f"p{number // 2}")
        for number, name in enumerate(names)
    ]
    cohort = Cohort(studies)
    tested = []
    for fold in range(3):
        split = evaluation.with_fold(cohort, fold, 3)
        by_patient = split.manifest.groupby("patient_id")["split"].nunique()
        assert (by_patient == 1).all() and set(split.manifest["split"]) == {
            "train",
            "validation",
            "test",
        }
        tested += split.split("test").manifest["study_id"].tolist()
    assert sorted(tested) == sorted(names)
    assert evaluation.with_fold(cohort, -1, 3) is cohort and cohort.studies[0]["split"] == ""


def test_claims_are_answered_by_rule():
    row = {"statistic": "balanced_accuracy", "p_holm": 0.01}
    comparison = pd.DataFrame(
        [
            {"row": "full", **row, "difference": np.nan},
            {
                "row": "no_orientation",
                **row,
                "difference": -0.2,
                "difference_low": -0.3,
                "difference_high": -0.1,
            },
            {
                "row": "no_caption",
                **row,
                "difference": -0.1,
                "difference_low": -0.3,
                "difference_high": 0.1,
            },
        ]
    )
    answers = ablations.claims_table(comparison).set_index("row")["answer"]
    assert answers["no_orientation"] == "yes" and answers["no_caption"] == "not shown"
    assert answers["no_synthetic"] == "not run"
