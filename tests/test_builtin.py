"""The weights in the package: their size and origin, and that they read hearts without training."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import lgekit, refused
from safetensors.numpy import load_file
from scipy.special import logit
from sklearn.metrics import roc_auc_score

import lgekit as lk
from lgekit import builtin
from lgekit.data.phantom import phantom_cohort
from lgekit.segmentation import model as networks
from lgekit.segmentation.model import WEIGHTS
from lgekit.segmentation.train import base_network, evaluate_heart_network
from lgekit.study import Cohort, Study

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def phantoms():
    return phantom_cohort(12, seed=11, workers=1)


def test_the_heart_network_in_the_package_finds_the_heart_of_a_phantom(phantoms):
    assert len(list(WEIGHTS.glob("clip_*"))) == builtin.SETTINGS.models
    assert (WEIGHTS / "heart" / "heart.safetensors").stat().st_size < 8e6
    record = json.loads((WEIGHTS / "weights.json").read_text())
    assert record["command"] == "make weights" and record["licence"] == "Apache-2.0"
    assert {"seed", "commit", "torch"} <= set(record) and record["data"] == builtin.COHORT
    network = base_network(lk.size_settings("laptop", seed=3))
    assert network.trained_on == ("phantom",), "no real study"
    table = evaluate_heart_network(network, Cohort(phantoms.studies[:2], "two"))
    assert table[["dice_cavity", "dice_myocardium"]].min(axis=None) > 0.8
    assert (table["anterior_error_deg"] < 20).all()


def test_predict_builtin_needs_no_fit(phantoms, tmp_path):
    studies = [Study(study_id=one["study_id"], image=one["image"]) for one in phantoms.studies]
    lk.write_manifest(Cohort(studies, "images"), tmp_path / "some")
    spec, table = f"manifest:{tmp_path}/some/manifest.csv", tmp_path / "out.csv"
    done = lgekit("predict", "builtin", spec, table)
    assert done.returncode == 0 and "12 studies" in done.stdout, done.stderr
    found = pd.read_csv(table)
    assert roc_auc_score(phantoms.manifest["scar"].astype(bool), found["p_lge"]) > 0.85
    assert found["p_lge"].between(0, 1).all() and found["anterior_rvip_deg"].notna().all()
    done = lgekit("standardize", spec, tmp_path / "frame")
    marks = pd.read_csv(tmp_path / "frame" / "landmarks.csv")
    assert done.returncode == 0 and (marks["located_by"] == "network").all()
    refused("predict", "built-in", spec, tmp_path / "no.csv", mentions="or builtin")


def test_a_fit_starts_from_the_detector_in_the_package(phantoms, tmp_path):
    lk.write_manifest(phantoms.split("train"), tmp_path / "train")
    command = ["fit", f"manifest:{tmp_path}/train/manifest.csv", tmp_path / "model"]
    refused(*command, mentions="--all")  # there is no split validation
    for setting, mentioned in (("width=48", "width"), ("view=image", "--from scratch")):
        refused(*command, "--set", setting, mentions=mentioned)
    refused(*command, "--from", "nothing", mentions="nothing")
    valid = [Study(**{**one, "split": "validation"}) for one in phantoms.split("test").studies]
    both = Cohort(phantoms.split("train").studies + valid, "train and validation")
    still = {"epochs": 1, "learning_rate": 1e-9, "synthetic_per_real": 0, "models": 1}
    theirs = lk.Detector.load("builtin").networks[0][0].state_dict()
    for text, other in (("findings", set()), ("report", {"text.token_embedding.weight"})):
        own = lk.size_settings("laptop", **lk.FROM_BUILTIN | still, text=text, text_init="random")
        weights = lk.fit_detector(both, own, progress=False).networks[0][0].state_dict()
        kept = {n for n in weights if torch.equal(weights[n].half(), theirs[n].half())}
        assert {n for n in weights if n.startswith("visual.") or not other} <= kept
        assert not kept & other


@pytest.mark.slow
def test_weights_are_made_again_in_float16(monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path)
    quick = {"heart_phantom": 4, "heart_base_steps": 2, "epochs": 1, "synthetic_per_real": 0.5}
    cohort = phantom_cohort(14, seed=1, pixels=72, workers=1)
    builtin.train_weights(cohort, lk.size_settings("smoke", scored="slices", models=3, **quick))
    written = {path.name for path in tmp_path.iterdir()} | {"model_card.md"}
    assert {path.name for path in WEIGHTS.iterdir()} == written
    for file in tmp_path.rglob("*.safetensors"):
        assert {str(value.dtype) for value in load_file(file).values()} <= {"float16", "int64"}
    made = lk.Detector.load(tmp_path)
    assert made.heart.trained_on == ("phantom",) and made.settings.scored == "slices"
    table = made.predict(cohort)
    for row in table.itertuples():  # the mean log-odds of the slices
        parts = np.array([part for part in json.loads(row.slice_weights) if part])
        (slope, offset), known = made.calibration.presence, made.calibration.slices
        mean = ((logit(parts) - known[1]) / known[0]).mean()
        assert logit(row.p_lge) == pytest.approx(slope * mean + offset, abs=0.02)
