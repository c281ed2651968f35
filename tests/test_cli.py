"""The command line as its user meets it: its files, its exit code, its one line of error."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torchio as tio
from command_line import SMALL, lgekit, refused

from lgekit.clip import train as training
from lgekit.clip.detector import Detector
from lgekit.errors import InputError
from lgekit.findings import WALLS


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "phantom"
    done = lgekit("cohort", SMALL, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory, written) -> Path:
    folder = tmp_path_factory.mktemp("model") / "smoke"
    done = lgekit("fit", f"manifest:{written}/manifest.csv", folder, "--size", "smoke", "--all")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_installed_program_answers_bad_input_with_one_line_and_no_traceback(tmp_path):
    program = Path(sys.executable).with_name("lgekit")
    done = subprocess.run(
        [program, "cohort", "nothing:here", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [
        "cohort",
        "check",
        "standardize",
        "fit",
        "predict",
        "score",
        "push",
        "pull",
        "workbook",
        "grid",
    ],
)
def test_help_of_each_command(command):
    done = lgekit(command, "--help")
    assert done.returncode == 0 and ("Example" in done.stdout or command == "grid")


def test_a_written_cohort_reads_back_the_same(written):
    from lgekit.data.readers import read_cohort

    table = pd.read_csv(written / "manifest.csv")
    assert (
        list(table.columns[:5]) == ["study_id", "image", "labels", "report", "split"]
        and len(table) == 12
    )
    first, again = read_cohort(SMALL), read_cohort(f"manifest:{written}/manifest.csv")
    for one, other in zip(first.studies, again.studies, strict=True):
        np.testing.assert_array_equal(one.label_map, other.label_map)
        np.testing.assert_allclose(one.pixels, other.pixels, rtol=1e-5)
        for key in ("study_id", "split", "report", "findings"):
            assert one[key] == other[key]


def test_check_passes_a_good_cohort_and_lists_every_fault_of_a_bad_one(written, tmp_path):
    done = lgekit("check", f"manifest:{written}/manifest.csv")
    assert done.returncode == 0 and done.stdout.startswith(
        "no faults; 12 studies of 12 patients (each study counts"
    )
    assert "; reports: 12 phantom; scar in" in done.stdout
    assert "masks of 12" in done.stdout
    table = pd.read_csv(written / "manifest.csv")
    table.loc[0, "image"] = "nowhere.nii.gz"
    table.loc[1, "split"] = "testing"
    table.to_csv(written / "broken.csv", index=False)
    done = lgekit("check", f"manifest:{written}/broken.csv")
    assert done.returncode == 1 and "nowhere.nii.gz" in done.stdout and "testing" in done.stdout


def test_standardize_writes_the_frame_and_the_landmarks(written, tmp_path):
    done = lgekit("standardize", f"manifest:{written}/manifest.csv", tmp_path / "frame")
    assert done.returncode == 0, done.stderr
    marks = pd.read_csv(tmp_path / "frame" / "landmarks.csv")
    assert list(marks.columns[:4]) == [
        "study_id",
        "anterior_rvip_deg",
        "inferior_rvip_deg",
        "mirrored",
    ]
    assert len(marks) == 12 and marks["anterior_rvip_deg"].between(0, 360).all()
    image = tio.ScalarImage(
        tmp_path / "frame" / pd.read_csv(tmp_path / "frame" / "manifest.csv")["image"][0]
    )
    assert image.shape[1:3] == (96, 96) and image.spacing[0] == pytest.approx(
        image.spacing[1], rel=1e-4
    )


def test_predict_reads_images_only_and_writes_the_promised_columns(written, model, tmp_path):
    done = lgekit("predict", model, f"manifest:{written}/manifest.csv", tmp_path / "full.csv")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(written / "manifest.csv")
    table[["study_id", "image"]].to_csv(written / "images.csv", index=False)
    assert (
        lgekit(
            "predict", model, f"manifest:{written}/images.csv", tmp_path / "images.csv"
        ).returncode
        == 0
    )
    full, images = pd.read_csv(tmp_path / "full.csv"), pd.read_csv(tmp_path / "images.csv")
    pd.testing.assert_frame_equal(full, images)
    walls = [f"p_{wall}" for wall in WALLS]
    wanted = ["study_id", "p_lge", *walls, "slice_weights", "attention", "segments", "caption"]
    wanted += ["anterior_rvip_deg", "inferior_rvip_deg"]
    assert set(wanted) <= set(full.columns) and len(full) == 12
    assert full[["p_lge", *walls]].stack().between(0, 1).all()
    slices = tio.ScalarImage(written / table["image"][0]).shape[3]
    assert (
        len(json.loads(full["slice_weights"][0])) == len(json.loads(full["attention"][0])) == slices
    )
    assert {len(json.loads(segments)) for segments in full["segments"]} == {17}


def test_score_holds_predictions_against_what_masks_or_reports_say(written, model, tmp_path):
    from lgekit.data import readers
    from lgekit.evaluation import scores as evaluation

    spec = f"manifest:{written}/manifest.csv"
    done = lgekit("score", model / "held_out.csv", spec)
    assert done.returncode == 0 and "12 predictions" in done.stdout and "caption" not in done.stdout
    shown = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()[3:]}
    held_out = pd.read_csv(model / "held_out.csv", dtype={"study_id": str})
    scores = evaluation.score_table(held_out, readers.read_cohort(spec))["value"]
    assert {"balanced_accuracy", "auc", "auc_walls", "auc_slices"} <= shown.keys()
    assert all(value == pytest.approx(scores[name], abs=0.006) for name, value in shown.items())
    # images and reports alone: the truth is what the reports say, of the four studies that were predicted
    table = pd.read_csv(written / "manifest.csv")
    table[["study_id", "image", "report"]].to_csv(written / "reports.csv", index=False)
    held_out.head(4).assign(p_lge=0.9).to_csv(tmp_path / "four.csv", index=False)
    done = lgekit("score", tmp_path / "four.csv", f"manifest:{written}/reports.csv")
    assert (
        done.returncode == 0
        and "4 predictions; 4 studies" in done.stdout
        and "masks of 0" in done.stdout
    )
    assert "auc_slices" not in done.stdout
    held_out.to_csv(tmp_path / "all.csv", index=False)
    done = lgekit("score", tmp_path / "all.csv", spec)
    assert "give --split test" in done.stderr
    assert "--split" not in lgekit("score", model / "held_out.csv", spec).stderr
    done = lgekit("score", tmp_path / "all.csv", spec, "--split", "test")
    assert "4 predictions" in done.stdout and "--split" not in done.stderr
    refused(
        "score", tmp_path / "all.csv", spec, "--split", "tset", mentions="'tset' holds no study"
    )
    tested = readers.read_cohort(spec).split("test").manifest["study_id"]
    held_out[~held_out["study_id"].isin(tested)].to_csv(tmp_path / "train.csv", index=False)
    missed = "train.csv: holds no study of the split 'test'"
    refused("score", tmp_path / "train.csv", spec, "--split", "test", mentions=missed)
    held_out.assign(study_id="other").head(1).to_csv(tmp_path / "other.csv", index=False)
    refused("score", tmp_path / "other.csv", spec, mentions="holds no study of")
    refused("score", tmp_path / "none.csv", spec, mentions="no such file")
    refused("score", written / "manifest.csv", spec, mentions="'p_lge' is missing")
    held_out.replace({"study_id": {held_out["study_id"][0]: "elsewhere"}}).to_csv(
        tmp_path / "other.csv", index=False
    )
    done = lgekit("score", tmp_path / "other.csv", spec)
    assert (
        "11 predictions" in done.stdout
        and "1 rows are of no study of" in done.stderr
        and "elsewhere" in done.stderr
    )
    pd.concat([held_out, held_out]).to_csv(tmp_path / "twice.csv", index=False)
    refused("score", tmp_path / "twice.csv", spec, mentions="two rows")


def test_a_fit_that_trained_nothing_bars_no_other(written, tmp_path, monkeypatch):
    command = (
        "fit",
        f"manifest:{written}/manifest.csv",
        tmp_path / "mine",
        "--size",
        "smoke",
        "--pretrain-on",
        "none",
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            "lgekit.clip.fit.fit_detector",
            lambda *_, **__: (_ for _ in ()).throw(InputError("a", "b", "c")),
        )
        refused(*command, mentions="a: b")
        refused(*command, "--set", "epochs=3", mentions="a: b")


def test_a_killed_fit_goes_on_where_it_was(written, tmp_path, monkeypatch):
    command = (
        "fit",
        f"manifest:{written}/manifest.csv",
        tmp_path / "mine",
        "--size",
        "smoke",
        "--pretrain-on",
        "none",
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            Detector,
            "save",
            lambda *_: (_ for _ in ()).throw(InputError("disk", "full", "Make room")),
        )
        refused(*command, mentions="disk: full")
    assert [path.name for path in tmp_path.iterdir()] == [".mine.training"]
    with monkeypatch.context() as patch:  # found before anything is computed
        patch.setattr(
            "lgekit.clip.fit.fit_detector", lambda *_, **__: pytest.fail("something was trained")
        )
        refused(
            *command,
            "--set",
            "epochs=3",
            mentions="was cut off: epochs was 8 and is now 3. Give the former value",
        )
        refused(*command, "--all", mentions="--all was False and is now True")
    with monkeypatch.context() as patch:
        patch.setattr(training, "augment", lambda *_: pytest.fail("an epoch was trained again"))
        done = lgekit(*command)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_bad_input_gives_one_line_and_leaves_nothing_behind(written, model, tmp_path):
    refused("cohort", "nothing:here", tmp_path / "out", mentions="nothing:here")
    refused("check", "mine/manifest.csv", mentions="manifest:mine/manifest.csv")
    refused("cohort", "phantom:stduies=3", tmp_path / "out", mentions="stduies")
    refused("cohort", f"manifest:{tmp_path}/no.csv", tmp_path / "out", mentions="no.csv")
    refused("cohort", SMALL, written, mentions="not an empty folder")
    refused("fit", SMALL, tmp_path / "out", "--size", "huge", mentions="huge")
    refused("fit", SMALL, written, mentions="not an empty folder")
    refused("fit", SMALL, tmp_path / "out", "--set", "patience", mentions="NAME=VALUE")
    refused("fit", SMALL, tmp_path / "out", "--set", "patiense=3", mentions="patiense")
    refused("fit", SMALL, tmp_path / "out", "--set", "patience=-3", mentions="patience")
    refused(
        "fit",
        SMALL,
        tmp_path / "out",
        "--set",
        "encoder=resnet999",
        mentions="setting encoder: 'resnet999'",
    )
    refused("predict", tmp_path, SMALL, tmp_path / "out.csv", mentions=str(tmp_path))
    refused("predict", model, SMALL, tmp_path / "no" / "out.csv", mentions="folder does not exist")
    refused("workbook", "--size", "huge", mentions="huge")
    assert not list(tmp_path.iterdir())
