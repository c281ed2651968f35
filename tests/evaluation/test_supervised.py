"""The upper reference: it learns what it is told, as the detector learns it from text, and never looks at the test."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from toys import settings, toy

from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.evaluation.baselines import fit_supervised, presence_scores, train_presence
from lgekit.findings import Findings
from lgekit.study import Cohort, Study

QUICK = {"masks": "true", "epochs": 1, "width": 16, "synthetic_per_real": 0.5}


@pytest.fixture(scope="module")
def cohort():
    return phantom_cohort(14, seed=1, pixels=72, workers=1)


def labels(studies: int) -> np.ndarray:
    return np.arange(studies) % 3 > 0  # what `toy` shows


def test_learns_presence():
    network = train_presence(toy(36).batch, labels(36), 36, settings(epochs=25, learning_rate=5e-3))
    scores = presence_scores(network, toy(30, seed=9).batch)
    assert roc_auc_score(labels(30), scores) > 0.85


def test_the_same_seed_gives_the_same_weights_and_the_global_state_is_left_alone():
    torch.manual_seed(12)
    expected = torch.rand(1)
    torch.manual_seed(12)
    runs = [
        train_presence(toy(9).batch, labels(9), 6, settings(epochs=2, seed=seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(torch.rand(1), expected)
    states = [run.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_test_studies_change_nothing(cohort):
    own = size_settings("smoke", **QUICK)
    without = Cohort([study for study in cohort.studies if study["split"] != "test"], cohort.name)
    one, other = (fit_supervised(some, own, progress=False) for some in (cohort, without))
    assert one.calibration == other.calibration
    table = one.predict(cohort)
    assert list(table.columns) == ["study_id", "p_lge"] and table["p_lge"].between(0, 1).all()
    pd.testing.assert_frame_equal(table, other.predict(cohort))


def test_one_class_is_refused(cohort):
    same = Cohort(
        [Study(**{**study, "findings": Findings()}) for study in cohort.studies], "scar-free"
    )
    with pytest.raises(InputError, match="both classes"):
        fit_supervised(same, size_settings("smoke", **QUICK), progress=False)
