"""Metrics against scikit-learn, and against answers known by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from lgekit.errors import InputError
from lgekit.evaluation import metrics
from lgekit.evaluation import metrics as comparison
from lgekit.findings import WALLS


def table(studies: int = 80, seed: int = 0, signal: float = 1.0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    scar = generator.random(studies) < 0.5
    score = 1 / (1 + np.exp(-(signal * (2 * scar - 1) + generator.normal(size=studies))))
    names = [f"p{index:03d}" for index in range(studies)]
    return pd.DataFrame(
        {"study_id": names, "patient_id": names, "scar": scar, "p_lge": score.round(2)}
    )


def test_statistics_equal_scikit_learn():
    predictions = table()
    rows = metrics.presence_metrics(predictions)
    called = predictions["p_lge"] > 0.5
    assert rows["balanced_accuracy"]["value"] == pytest.approx(
        balanced_accuracy_score(predictions["scar"], called)
    )
    assert rows["auc"]["value"] == pytest.approx(
        roc_auc_score(predictions["scar"], predictions["p_lge"])
    )
    assert rows["sensitivity"]["value"] == pytest.approx(called[predictions["scar"]].mean())
    assert rows["specificity"]["value"] == pytest.approx((~called)[~predictions["scar"]].mean())


def test_weighted_auc_equals_scikit_learn_on_a_resample():
    predictions = table(seed=3)
    weights = metrics.patient_resamples(predictions["patient_id"], 5, seed=1)
    ours = metrics.presence_statistic(
        "auc", predictions["scar"], predictions["p_lge"].to_numpy(), weights
    )
    theirs = [
        roc_auc_score(predictions["scar"], predictions["p_lge"], sample_weight=row)
        for row in weights
    ]
    np.testing.assert_allclose(ours, theirs)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(60):
        sample = np.random.default_rng(seed).normal(size=50)
        row = metrics.interval(
            lambda w, s=sample: w @ s / w.sum(1), [f"p{i}" for i in range(50)], seed
        )
        hits += row["low"] <= 0 <= row["high"]
    assert 50 <= hits <= 60  # 57 expected


def test_studies_of_one_patient_are_drawn_together_and_order_changes_nothing():
    weights = metrics.patient_resamples(["a", "b", "a", "c"], 50)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    np.testing.assert_array_equal(
        metrics.patient_resamples(["c", "a", "b"], 50)[:, [1, 2, 0]], weights[:, [0, 1, 3]]
    )


def test_one_class_gives_nan_not_a_number_out_of_nothing():
    predictions = table().assign(scar=True)
    assert np.isnan(metrics.presence_metrics(predictions)["auc"]["value"])


def test_wall_metrics():
    generator = np.random.default_rng(0)
    predictions = table()
    for wall in WALLS:
        predictions[f"scar_{wall}"] = generator.random(len(predictions)) < 0.3
        predictions[f"p_{wall}"] = predictions[f"scar_{wall}"] * 1.0
    predictions["p_inferior"] = 0.5
    rows = metrics.wall_metrics(predictions)
    assert rows["anterior"]["value"] == 1 and rows["inferior"]["value"] == 0.5
    assert rows["macro"]["value"] == pytest.approx((5 + 0.5) / 6)


def test_slice_metrics_rank_only_inside_a_study():
    slices = pd.DataFrame(
        {
            "study_id": ["a"] * 3 + ["b"] * 3 + ["c"] * 2,
            "patient_id": ["a"] * 3 + ["b"] * 3 + ["c"] * 2,
            "weight": [0.1, 0.2, 0.7, 0.9, 0.8, 0.7, 0.1, 0.2],
            "scar": [False, False, True, True, True, False, False, False],
        }
    )
    assert metrics.slice_metrics(slices)["value"] == 1


def test_among_many_rows_a_clear_loss_is_still_found():
    """With 2,000 resamples the least p is 0.001: after Holm over 60 rows 0.06, whatever the data."""
    full = table().assign(row="full", seed=0)
    same = [full.assign(row=f"same {number}") for number in range(59)]
    worse = full.assign(row="worse", p_lge=1 - full["scar"].astype(float))
    compared = comparison.compare_rows(
        pd.concat([full.assign(p_lge=full["scar"].astype(float)), worse, *same])
    )
    found = compared[(compared["row"] == "worse") & (compared["statistic"] == "auc")]
    assert found["p_holm"].iloc[0] < 0.05


def test_compare_rows_refuses_what_would_be_counted_as_losses():
    full = table().assign(row="full", seed=0)
    for wall in WALLS:
        full[f"scar_{wall}"], full[f"p_{wall}"] = full["scar"], full["p_lge"]
    lacking = full.assign(row="other")
    lacking.loc[lacking.index[0], f"p_{WALLS[0]}"] = np.nan
    with pytest.raises(InputError, match=f"p_{WALLS[0]} is missing"):
        comparison.compare_rows(pd.concat([full, lacking]))
    with pytest.raises(InputError, match="differ in a study's truth"):
        comparison.compare_rows(
            pd.concat([full, full.assign(row="other", scar=~full["scar"].astype(bool))])
        )


def test_compare_rows_sees_a_worse_row_and_not_an_equal_one():
    good, bad = table(200, 0, 2.0), table(200, 0, 0.0)
    rows = [
        good.assign(row="full", seed=0),
        good.assign(row="same", seed=0),
        bad.assign(row="blind", seed=0),
    ]
    result = comparison.compare_rows(pd.concat(rows)).set_index(["row", "statistic"])
    blind, same = result.loc[("blind", "auc")], result.loc[("same", "auc")]
    assert blind["p_holm"] < 0.01 and blind["difference_high"] < 0
    assert same["difference"] == 0 and same["p"] == 1
    columns = ["difference", "difference_low", "difference_high", "p_holm"]
    assert (
        comparison.claim_answer(*blind[columns]) == "yes"
        and comparison.claim_answer(*same[columns]) == "not shown"
    )
    assert comparison.claim_answer(0.1, 0.05, 0.2, 0.01) == "no"
    assert (
        comparison.claim_answer(0.1, 0.05, 0.2, 0.09) == "not shown"
    )  # one of many rows may differ by chance


def test_rows_of_other_seeds_or_studies_are_not_compared():
    full = pd.concat([table(seed=seed).assign(row="full", seed=seed) for seed in (0, 1)])
    for other in (full[full["seed"] == 0], full[full["study_id"] != "p003"]):
        with pytest.raises(
            InputError,
            match=r"\['part'\] are of other seeds or studies than 'full'.*of_whole_seeds",
        ):
            comparison.compare_rows(pd.concat([full, other.assign(row="part")]))
    without_truth = full.assign(
        row="part", scar=full["scar"].where(full["study_id"] != "p003", None)
    )
    with pytest.raises(InputError, match="of other seeds or studies"):
        comparison.compare_rows(pd.concat([full, without_truth]))


def test_intervals_are_over_seeds_too_and_paired_over_them():
    alike = [table(300, 0, 1.5).assign(row="full", seed=seed) for seed in range(4)]
    apart = [table(300, 0, 1.5).assign(row="full", seed=seed) for seed in range(4)]
    for part in apart[:2]:
        part["p_lge"] = 1 - part["p_lge"]  # half of the seeds learn the opposite
    found = {}
    for name, parts in ("alike", alike), ("apart", apart), ("one", alike[:1]):
        full = pd.concat(parts)
        compared = comparison.compare_rows(pd.concat([full, full.assign(row="twin")]))
        auc = compared[compared["statistic"] == "auc"].set_index("row")
        found[name] = auc.loc["full", ["value", "low", "high"]].astype(float)
        assert (
            auc.loc["twin", ["difference_low", "difference_high"]] == 0
        ).all()  # the same seeds for both rows
    pd.testing.assert_series_equal(found["alike"], found["one"])
    by_patient = metrics.presence_metrics(alike[0])["auc"]
    assert found["one"].to_dict() == pytest.approx(by_patient)  # one seed: patients alone
    assert (
        found["apart"]["value"] == pytest.approx(0.5)
        and found["apart"]["low"] < 0.2 < 0.8 < found["apart"]["high"]
    )


def test_no_patients_have_no_interval():
    assert np.isnan(list(metrics.interval(lambda weights: weights.sum(1), []).values())).all()


def test_bad_tables_say_what_is_missing():
    blank = table()
    blank.loc[3, "p_lge"] = np.nan
    with pytest.raises(InputError, match=f"p_lge is missing in {blank.loc[3, 'study_id']}"):
        metrics.presence_metrics(blank)
    twice = pd.concat(
        [table().assign(row="full", seed=0)] * 2
    )  # two values of a grid's further axis
    with pytest.raises(InputError, match="twice under one row and seed"):
        comparison.compare_rows(twice)
    with pytest.raises(InputError, match="p_lge"):
        metrics.presence_metrics(table().drop(columns="p_lge"))
    with pytest.raises(InputError, match="truth"):
        metrics.presence_metrics(table().assign(scar=None))
    with pytest.raises(InputError, match="full"):
        comparison.compare_rows(table().assign(row="other", seed=0))
