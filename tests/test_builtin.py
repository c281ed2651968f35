"""The weights in the package: their size and origin, and that they read hearts without training."""

import json

import numpy as np
import pandas as pd
import pytest
from command_line import lgekit, refused
from safetensors.torch import load_file

import lgekit as lk
from lgekit import builtin
from lgekit.data.phantom import phantom_cohort
from lgekit.segmentation.model import WEIGHTS
from lgekit.segmentation.train import base_network, evaluate_heart_network
from lgekit.study import Cohort, Study

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def phantoms():
    return phantom_cohort(2, seed=11, workers=1)


def test_the_heart_network_in_the_package_finds_the_heart_of_a_phantom(phantoms):
    files = list(WEIGHTS.rglob("*.safetensors"))
    assert len(files) == 2 and sum(file.stat().st_size for file in files) < 8e6
    record = json.loads((WEIGHTS / "weights.json").read_text())
    assert record["command"] == "make weights" and record["licence"] == "Apache-2.0"
    assert {"seed", "commit", "torch"} <= set(record) and record["data"] == builtin.COHORT
    network = base_network((), lk.size_settings("laptop", seed=3))
    assert network.trained_on == ("phantom",), "no real study"
    table = evaluate_heart_network(network, phantoms)
    assert table[["dice_cavity", "dice_myocardium"]].min(axis=None) > 0.8
    assert (table["anterior_error_deg"] < 20).all()


def test_predict_builtin_needs_no_fit(phantoms, tmp_path):
    studies = [Study(study_id=one["study_id"], image=one["image"]) for one in phantoms.studies]
    lk.write_manifest(Cohort(studies, "images"), tmp_path / "two")
    spec, table = f"manifest:{tmp_path}/two/manifest.csv", tmp_path / "out.csv"
    done = lgekit("predict", "builtin", spec, table)
    assert done.returncode == 0 and "2 studies" in done.stdout, done.stderr
    found = pd.read_csv(table)
    truth = [study["findings"].present for study in phantoms.studies]
    assert ((found["p_lge"] > 0.5) == truth).all() and found["anterior_rvip_deg"].notna().all()
    done = lgekit("standardize", spec, tmp_path / "frame")
    marks = pd.read_csv(tmp_path / "frame" / "landmarks.csv")
    assert done.returncode == 0 and (marks["located_by"] == "network").all()
    refused("predict", "built-in", spec, tmp_path / "no.csv", mentions="or builtin")


def test_weights_are_made_again_in_float16_without_masks(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin, "fit_detector", lambda cohort, own: seen.append(cohort) or made)
    made, seen = lk.Detector.load("builtin"), []
    builtin.train_weights(tmp_path, phantom_cohort(2, seed=1, pixels=72, workers=1))
    assert all(study.label_map is None for study in seen[0].studies)
    for file in WEIGHTS.rglob("*.safetensors"):
        again = load_file(tmp_path / file.relative_to(WEIGHTS))
        for name, value in load_file(file).items():
            assert np.array_equal(value, again[name]) and value.dtype == again[name].dtype
