"""The table of references: the same studies for all, each method under its own settings, other cohorts marked."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lgekit.config import PLAIN_CLIP, size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.evaluation import baselines as references


@pytest.fixture(scope="module")
def cohort():
    return phantom_cohort(24, seed=1, pixels=72, workers=1)


def test_each_reference_is_trained_under_its_own_settings(cohort, monkeypatch):
    seen = {}

    def reader(*arguments, **_):
        own = next(one for one in arguments if hasattr(one, "shuffle_text"))
        ids = [study["study_id"] for study in cohort.split("test").studies]
        table = pd.DataFrame({"study_id": ids, "p_lge": 0.5, "caption": ""})
        return SimpleNamespace(
            predict=lambda studies: seen.setdefault(len(seen), (own, len(studies))) and table
        )

    monkeypatch.setattr(references, "fit_supervised", reader)
    monkeypatch.setattr(references, "fit_detector", reader)
    own = size_settings("smoke", epochs=3)
    detector = SimpleNamespace(heart=None)
    assert references.train_references("none", cohort, own, detector) == {}
    tables = references.train_references("all", cohort, own, detector)
    assert len(tables) == 3 and all(
        list(table.columns)[:2] == ["study_id", "p_lge"] for table in tables.values()
    )
    (supervised, _), (plain, _), (shuffled, tested) = seen.values()
    assert supervised == own and tested == len(cohort.split("test"))
    assert plain == own.override(**PLAIN_CLIP) and shuffled == own.override(shuffle_text=True)
    assert len(references.train_references("supervised", cohort, own, detector)) == 1
    with pytest.raises(InputError, match="everything"):
        references.train_references("everything", cohort, own, detector)


def test_references_that_are_not_comparable_are_refused_before_training():
    references.check("none", cross_fit=True)
    references.check("all")
    with pytest.raises(InputError, match="cross_fit=False"):
        references.check("supervised", cross_fit=True)


def test_the_table_by_hand(cohort):
    truth = cohort.manifest["scar"].to_numpy(float)
    right = pd.DataFrame({"study_id": cohort.manifest["study_id"], "p_lge": 0.1 + 0.8 * truth})
    table = references.reference_table(
        {"right": right, "wrong": right.assign(p_lge=1 - right["p_lge"])}, cohort
    )
    assert table.loc["right", ["auc", "balanced_accuracy"]].tolist() == [1, 1]
    assert table.loc["wrong", ["auc", "balanced_accuracy"]].tolist() == [0, 0]
    long = references.long_table({"right": right, "wrong": right.iloc[:2]}, cohort)
    assert long.groupby("method").size().to_dict() == {"right": len(right), "wrong": 2}
    assert (
        long["scar"].astype(float).tolist() == [*truth, *truth[:2]]
        and references.long_table({}, cohort).empty
    )
    published = table.iloc[2:]
    assert published["cohort"].str.startswith("other: ").all() and published["auc_low"].isna().all()
    assert published.loc["the paper [S]", "balanced_accuracy"] == 0.83
    read = references.printed(table)
    assert (
        read.loc["right", "AUC"] == "1.00 (1.00–1.00)" and read.loc["the paper [S]", "AUC"] == "–"
    )
    assert read["AUC"].iloc[3] == "0.705" and read.loc["the paper [S]", "cohort"].startswith(
        "other"
    )


def test_threshold_rules_are_calibrated_on_validation_and_read_the_test_split(cohort):
    tables = references.rule_predictions(cohort)
    ids = cohort.split("test").manifest["study_id"].tolist()
    assert len(tables) == 2
    for table in tables.values():
        assert table["study_id"].tolist() == ids and np.ptp(table["p_lge"]) > 0
        assert table["p_lge"].between(0, 1).all()
    assert references.rule_predictions(cohort.split("test")) == {}
