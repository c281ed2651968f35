"""Metrics against scikit-learn, and against answers known by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from lgekit.errors import InputError
from lgekit.evaluation import metrics


def table(studies: int = 80, seed: int = 0, signal: float = 1.0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    scar = generator.random(studies) < 0.5
    score = 1 / (1 + np.exp(-(signal * (2 * scar - 1) + generator.normal(size=studies))))
    names = [f"p{index:03d}" for index in range(studies)]
    ids = {"study_id": names, "patient_id": names}
    return pd.DataFrame({**ids, "scar": scar, "p_lge": score.round(2)})


def test_statistics_equal_scikit_learn():
    predictions = table()
    truth, called = predictions["scar"], predictions["p_lge"] > 0.5
    rows = metrics.presence_metrics(predictions)
    expected = {
        "balanced_accuracy": balanced_accuracy_score(truth, called),
        "sensitivity": called[truth].mean(),
        "specificity": (~called)[~truth].mean(),
        "auc": roc_auc_score(truth, predictions["p_lge"]),
        "brier": ((predictions["p_lge"] - truth) ** 2).mean(),
    }
    assert {name: row["value"] for name, row in rows.items()} == pytest.approx(expected)
    weights = metrics.bootstrap_weights(predictions["patient_id"], 5, seed=1)
    ours = metrics.presence_statistics(truth, predictions["p_lge"], weights)["auc"]
    theirs = [roc_auc_score(truth, predictions["p_lge"], sample_weight=row) for row in weights]
    np.testing.assert_allclose(ours, theirs)


def test_roc_table_is_the_curve_of_scikit_learn():
    predictions = table(60)
    rates, hits, _ = roc_curve(predictions["scar"], predictions["p_lge"], drop_intermediate=False)
    found = metrics.roc_table(predictions)
    wanted = np.interp(found["false_positive_rate"], rates, hits)
    np.testing.assert_allclose(found["sensitivity"], wanted)


def test_interval_covers_the_truth_in_95_percent():
    patients, hits = [f"p{i}" for i in range(50)], 0
    for seed in range(60):
        row = metrics.mean_interval(np.random.default_rng(seed).normal(size=50), patients, seed)
        hits += row["low"] <= 0 <= row["high"]
    assert 50 <= hits <= 60  # 57 expected


def test_patients_are_drawn_whole_and_in_any_order():
    weights = metrics.bootstrap_weights(["a", "b", "a", "c"], 50)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    shuffled = metrics.bootstrap_weights(["c", "a", "b"], 50)[:, [1, 2, 0]]
    np.testing.assert_array_equal(shuffled, weights[:, [0, 1, 3]])


def test_undefined_statistics_are_nan():
    assert np.isnan(metrics.presence_metrics(table().assign(scar=True))["auc"]["value"])
    assert metrics.roc_table(table().assign(scar=True))["sensitivity"].isna().all()
    assert np.isnan(list(metrics.mean_interval([], []).values())).all()
    alone = metrics.mean_interval([1, 2], ["a", "a"])
    assert alone["value"] == 1.5 and np.isnan(alone["low"])  # one patient has no interval


def test_mean_over_segments_draws_patients_whole():
    truth, values = (pd.DataFrame(np.full((12, 17), fill)) for fill in (False, 0.5))
    truth.loc[:5, 0] = truth.loc[::2, 1] = True
    values.loc[:5, 0] = 0.9
    patients = [str(number) for number in range(12)]
    table = metrics.auc_table(truth, values, patients)
    assert table["value"][[0, 1, "mean"]].tolist() == [1, 0.5, 0.75]
    assert np.isnan(table["value"][2]) and table.loc[0, ["with", "without"]].tolist() == [6, 6]
    assert table.loc["mean", ["low", "high"]].tolist() == [0.75, 0.75]
    values[1] = np.random.default_rng(0).random(12)
    once = metrics.auc_table(truth, values, patients).loc["mean"]
    doubled = (part.loc[part.index.repeat(2)] for part in (truth, values))
    twice = metrics.auc_table(*doubled, np.repeat(patients, 2).tolist()).loc["mean"]
    assert twice.to_dict() == pytest.approx(once.to_dict())
    assert once["low"] < once["value"] < once["high"]


def test_slices_are_ranked_within_a_study():
    ids = list("aaabbbcc")
    columns = {"study_id": ids, "patient_id": ids, "weight": [1, 2, 7, 9, 8, 7, 1, 2]}
    slices = pd.DataFrame(columns | {"scar": [False, False, True, True, True, False, False, False]})
    assert metrics.slice_metrics(slices, "weight")["value"] == 1


def test_comparison_finds_a_loss_among_60_rows():
    """2,000 resamples allow p = 0.001 at best, which Holm over 60 rows makes 0.06."""
    full = table(40).assign(row="full", seed=0)
    perfect = full["scar"].astype(float)
    same = [full.assign(row=f"same {number}") for number in range(59)]
    rows = [full.assign(p_lge=perfect), full.assign(row="worse", p_lge=1 - perfect), *same]
    compared = metrics.compare_rows(pd.concat(rows)).set_index(["row", "statistic"])
    worse, twin = compared.loc[("worse", "auc")], compared.loc[("same 0", "sensitivity")]
    assert worse["p_holm"] < 0.05 and worse["difference_high"] < 0
    assert twin["difference"] == compared.loc[("same 1", "sensitivity"), "difference"]
    equal = metrics.compare_rows(pd.concat([full, same[0]])).set_index(["row", "statistic"])
    assert (equal.loc["same 0", ["difference", "p"]].to_numpy() == [0, 1]).all()


def test_comparison_resamples_seeds_too_with_the_same_draws_for_all_rows():
    alike = [table(120, 0, 1.5).assign(row="full", seed=seed) for seed in range(4)]
    apart = [part.copy() for part in alike]
    for part in apart[:2]:
        part["p_lge"] = 1 - part["p_lge"]  # half of the seeds learn the opposite
    found = []
    for parts in (alike, apart):
        full = pd.concat(parts)
        compared = metrics.compare_rows(pd.concat([full, full.assign(row="twin")]))
        auc = compared[compared["statistic"] == "auc"].set_index("row")
        found.append(auc.loc["full", ["value", "low", "high"]].to_dict())
        assert (auc.loc["twin", ["difference_low", "difference_high"]] == 0).all()
    assert found[0] == pytest.approx(metrics.presence_metrics(alike[0])["auc"])
    assert found[1]["value"] == pytest.approx(0.5)
    assert found[1]["low"] < 0.2 < 0.8 < found[1]["high"]


SPOILT = {
    "twice under one row and seed": lambda row: row.assign(row="full"),
    "different seeds or studies": lambda row: row[row["seed"] == 0],
    "rows have different seeds or studies": lambda row: row[row["study_id"] != "p003"],
    "differ in a study's truth": lambda row: row.assign(scar=~row["scar"]),
}


@pytest.mark.parametrize("message", SPOILT)
def test_comparison_refuses_rows_that_do_not_match(message):
    full = pd.concat([table(20).assign(row="full", seed=seed) for seed in (0, 1)])
    other = SPOILT[message](full.assign(row="part"))
    with pytest.raises(InputError, match=message):
        metrics.compare_rows(pd.concat([full, other]))


def test_a_table_without_truth_is_refused():
    with pytest.raises(InputError, match="truth is known"):
        metrics.presence_metrics(table().assign(scar=None))


def test_claims_are_answered_by_rule():
    rows = {"full": [np.nan] * 3, "no_orientation": [-0.2, -0.3, -0.1]}
    rows |= {"no_caption": [-0.1, -0.3, 0.1]}
    names = ["difference", "difference_low", "difference_high"]
    comparison = pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("row")
    comparison = comparison.assign(statistic="balanced_accuracy", p_holm=0.01).reset_index()
    better = comparison.assign(difference=0.2, difference_low=0.1, difference_high=0.3)
    assert metrics.claims_table(better)["answer"][0] == "no"
    assert metrics.claims_table(better.assign(p_holm=0.09))["answer"][0] == "not shown"
    answers = metrics.claims_table(comparison).set_index("row")["answer"]
    assert answers["no_orientation"] == "yes" and answers["no_caption"] == "not shown"
    assert answers["no_synthetic"] == "not run"
    without_full = comparison[comparison["row"] != "full"]
    assert set(metrics.claims_table(without_full)["answer"]) == {"not run"}
