"""Threshold rules, realism and the supervised reader, on images and tables with known answers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchio as tio
from sklearn.metrics import roc_auc_score
from toys import settings, toy

from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.data.readers import read_cohort
from lgekit.errors import InputError
from lgekit.evaluation import baselines, realism
from lgekit.findings import Findings
from lgekit.study import CAVITY, MYOCARDIUM, SCAR, Cohort, Study

EMIDEC = Path(__file__).parents[3] / "shared" / "data" / "emidec"
QUICK = {"masks": "true", "epochs": 1, "width": 16}
QUICK |= {"synthetic_per_real": 0.5, "polar_pretraining": 1}


@pytest.fixture(scope="module")
def cohort():
    return phantom_cohort(24, seed=1, pixels=72, workers=1)


def ring(name, scar_degrees, blood=100.0, squeeze=1.0) -> Study:
    """Myocardium 0 ± 4 with a sector of scar at 100; ``squeeze`` makes pixels anisotropic."""
    x = (np.arange(64) - 31.5)[:, None]
    y = (np.arange(64) - 31.5)[None, :] * squeeze
    radius, degrees = np.hypot(x, y), np.degrees(np.arctan2(-y, x)) % 360
    labels = np.zeros((64, 64), np.uint8)
    labels[radius < 22] = MYOCARDIUM
    labels[(radius < 22) & (degrees < scar_degrees)] = SCAR
    labels[radius < 12] = CAVITY
    labels = np.repeat(labels[..., None], 3, 2)
    noise = np.random.default_rng(0).normal(0, 4, labels.shape)
    image = np.select([labels == CAVITY, labels == SCAR], [blood, 100.0], 0.0) + noise
    return Study.from_arrays(name, image, (1.0, squeeze, 10.0), labels)


def test_remote_myocardium_is_found_without_the_scar():
    mean, sd, blood = baselines.remote_of(ring("a", 200))
    assert [mean, blood] == pytest.approx([0, 100], abs=1) and sd == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("squeeze", [1.0, 1.6])
@pytest.mark.parametrize("degrees", [0, 60, 180])
def test_rules_measure_the_share_of_scar(degrees, squeeze):
    study = ring("a", degrees, squeeze=squeeze)
    for share in baselines.threshold_shares(study).values():
        assert share == pytest.approx(degrees / 360, abs=0.02)
    bright = ring("a", 90, blood=400.0)  # half-way is now above the scar
    assert baselines.threshold_shares(bright)["half maximum"] == 0


@pytest.mark.parametrize("labels", [None, np.zeros((8, 8, 2))])
def test_rules_refuse_a_study_without_myocardium(labels):
    study = Study.from_arrays("bare", np.zeros((8, 8, 2)), (1, 1, 10), labels)
    with pytest.raises(InputError, match="20 voxels of labelled myocardium"):
        baselines.threshold_shares(study)


def test_rules_are_calibrated_on_validation_and_read_the_test_split(cohort):
    tables = baselines.rule_predictions(cohort)
    ids = cohort.split("test").manifest["study_id"].tolist()
    assert len(tables) == 2
    for table in tables.values():
        assert table["study_id"].tolist() == ids and np.ptp(table["p_lge"]) > 0
        assert table["p_lge"].between(0, 1).all()
    assert baselines.rule_predictions(cohort.split("test")) == {}
    for study in (bare := Cohort([Study(**study) for study in cohort.studies])).studies:
        labels = study["labels"].data
        study["labels"] = tio.LabelMap(tensor=labels * (labels != CAVITY))
    assert list(baselines.rule_predictions(bare)) == ["5 SD, true outline"]  # blood is not known


def test_figures_of_known_cohorts():
    figures = realism.cohort_figures(Cohort([ring("n", 0), ring("p", 90)]))
    assert list(figures.index) == ["n", "p"] and figures["present"].tolist() == [0, 1]
    assert (figures.loc["n", [*baselines.THRESHOLD_RULES]] < 0.02).all()
    healthy, scarred = figures.loc["n"], figures.loc["p"]
    assert scarred["scar_share"] == pytest.approx(0.25, abs=0.01)
    assert scarred["scar_slices"] == 3 and np.isnan(healthy["scar_share"])
    assert scarred["wall_over_radius"] == pytest.approx(10 / 22, abs=0.02)
    assert healthy["blood_contrast"] == pytest.approx(25, rel=0.25)


def test_scar_features_of_a_known_ring():
    features = realism.scar_features(ring("p", 90)).mean(numeric_only=True)
    assert features["contrast_to_noise"] == pytest.approx(25, rel=0.1)
    assert features["size_percent"] == pytest.approx(25, abs=1)
    assert features["mean_depth"] == pytest.approx(0.5, abs=0.1) and features["reach_percent"] > 90
    assert features["grey_zone"] == pytest.approx(0, abs=0.1) and features["edge_width_mm"] < 2


def test_painted_scars_are_told_from_real_ones_by_texture():
    cohort = phantom_cohort(30, seed=0, pixels=72, workers=1)
    real, healthy = (
        Cohort([study for study in cohort.studies if study["findings"].present == present][:8])
        for present in (True, False)
    )
    blobs = realism.synthetic_twins(real, healthy, seed=0, constant=True)
    table, auc = realism.scar_realism(real, blobs)
    assert auc["value"] > 0.95 and table["auc_alone"].between(0.5, 1).all()
    medians = table.loc["heterogeneity"]
    assert medians["synthetic_median"] < 0.8 * medians["real_median"]


@pytest.mark.skipif(not EMIDEC.exists(), reason="real EMIDEC studies are not on this machine")
@pytest.mark.slow
def test_phantom_is_as_hard_as_real_studies():
    real = realism.cohort_figures(read_cohort(f"emidec:{EMIDEC}"))
    phantom = realism.cohort_figures(phantom_cohort(400, 0))
    for rule in baselines.THRESHOLD_RULES:
        first, second = (roc_auc_score(each["present"], each[rule]) for each in (real, phantom))
        assert abs(second - first) <= 0.05
    medians = [each.loc[:, "scar_share":].median() for each in (real, phantom)]
    assert ((medians[1] / medians[0] - 1).abs() <= 0.15).all()


def test_presence_network_learns_and_repeats_without_touching_global_state():
    labels, expected = np.arange(36) % 3 > 0, torch.get_rng_state()  # what `toy` shows
    own = settings(epochs=12, learning_rate=5e-3)
    network = baselines.train_presence(toy(36).batch, labels, 36, own)
    scores = network(toy(30, seed=9).batch)
    assert roc_auc_score(labels[:30], scores) > 0.8
    first, same, other = (
        baselines.train_presence(toy(9).batch, labels[:9], 6, settings(epochs=1, seed=seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.equal(first.head.weight, same.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_supervised_reader_learns_nothing_from_test_studies(cohort):
    own = size_settings("smoke", **QUICK)
    hidden = [
        Study(**{**study, "findings": None, "report": ""}) if study["split"] == "test" else study
        for study in cohort.studies
    ]
    table = baselines.supervised_predictions(cohort, own, progress=False)
    assert table["study_id"].tolist() == cohort.split("test").manifest["study_id"].tolist()
    assert table["p_lge"].between(0, 1).all()
    other = baselines.supervised_predictions(Cohort(hidden), own, progress=False)
    pd.testing.assert_frame_equal(table, other)
    healthy = [Study(**{**study, "findings": Findings()}) for study in cohort.studies]
    with pytest.raises(InputError, match="both classes"):
        baselines.supervised_predictions(Cohort(healthy), own, progress=False)


def test_reference_tables_by_hand(cohort):
    truth = cohort.manifest["scar"].to_numpy(float)
    right = pd.DataFrame({"study_id": cohort.manifest["study_id"], "p_lge": 0.1 + 0.8 * truth})
    methods = {"right": right, "wrong": right.assign(p_lge=1 - right["p_lge"])}
    table = baselines.reference_table(methods, cohort)
    assert table.loc["right", ["auc", "balanced_accuracy"]].tolist() == [1, 1]
    assert table.loc["wrong", ["auc", "balanced_accuracy"]].tolist() == [0, 0]
    long = baselines.long_table({"right": right, "wrong": right[:2]}, cohort)
    assert long.groupby("method").size().to_dict() == {"right": len(right), "wrong": 2}
    assert long["scar"].astype(float).tolist() == [*truth, *truth[:2]]
    assert baselines.long_table({}, cohort).empty


def test_the_quality_table_leaves_out_uncertain_ground_truth():
    columns = {"study_id": list("abcd"), "patient_id": list("abcd"), "dice_rv": np.nan}
    columns |= {"dice_cavity": [0.8, 0.9, 1.0, 0.9], "dice_myocardium": 0.5}
    columns |= {"anterior_error_deg": [4.0, 6.0, 8.0, 170.0], "inferior_error_deg": 5.0}
    columns |= {"mirror_right": [1.0, 1.0, 0.0, 0.0], "reference_confidence": [1, 1, 0.5, 0.2]}
    table = realism.quality_table(pd.DataFrame(columns))
    value, low, high, _ = table.loc["dice_cavity, median"]
    assert value == pytest.approx(0.9) and 0.8 <= low < value < high <= 1
    assert table.loc["anterior_error_deg, median", ["value", "studies"]].tolist() == [6, 3]
    assert table.loc["mirror_right, share", "value"] == pytest.approx(2 / 3)
    assert "dice_rv, median" not in table.index
