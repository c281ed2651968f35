"""The command line as its user sees it: files, exit codes, and one line per error."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torchio as tio
from command_line import SMALL, lgekit, refused
from PIL import Image

import lgekit as lk
from lgekit import cli
from lgekit.cache import replacing
from lgekit.clip import train as training
from lgekit.clip.detector import Detector
from lgekit.errors import InputError


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "phantom"
    done = lgekit("cohort", SMALL, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def spec(written) -> str:
    return f"manifest:{written}/manifest.csv"


@pytest.fixture(scope="module")
def model(tmp_path_factory, spec) -> Path:
    folder = tmp_path_factory.mktemp("model") / "smoke"
    done = lgekit("fit", spec, folder, "--size", "smoke", "--all")
    assert done.returncode == 0, done.stderr
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def long_work(*_, **__):
    pytest.fail("the long work began")


def stop(*_, **__):
    raise InputError("disk", "full", "Make room")


def test_bad_input_ends_the_installed_program_with_one_line(tmp_path):
    program = Path(sys.executable).with_name("lgekit")
    command = [program, "cohort", "nothing:here", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["grid", "run", "--help"]])
def test_help_does_not_wait_for_torch(arguments):
    code = "import sys; from lgekit.cli import app; app(sys.argv[1:], standalone_mode=False)"
    code += "\nassert not {'torch', 'pandas', 'papermill'} & set(sys.modules), 'slow imports'"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_check_passes_a_good_cohort_and_lists_every_fault_of_a_bad_one(written, spec):
    assert len(lk.read_cohort(spec)) == 12
    done = lgekit("check", spec)
    assert done.returncode == 0 and done.stdout.startswith("no faults; 12 studies of 12 patients")
    assert "reports: 12 phantom" in done.stdout and "masks of 12" in done.stdout
    table = pd.read_csv(written / "manifest.csv")
    table.loc[0, "image"] = "nowhere.nii.gz"
    table.loc[1, "split"] = "testing"
    table.to_csv(written / "broken.csv", index=False)
    done = lgekit("check", f"manifest:{written}/broken.csv")
    assert done.returncode == 1 and "nowhere.nii.gz" in done.stdout and "testing" in done.stdout


def test_a_terminal_without_utf8_shows_every_message(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(cli, "app", lambda: print("failed: σ"))  # as tqdm.write does
    cli.main()
    terminal.flush()
    assert b"failed: \\u03c3" in terminal.buffer.getvalue()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"  # before torch is loaded


def test_standardize_writes_the_frame_and_the_landmarks(spec, tmp_path):
    frame = tmp_path / "frame"
    done = lgekit("standardize", spec, frame)
    assert done.returncode == 0, done.stderr
    marks = pd.read_csv(frame / "landmarks.csv")
    columns = ["study_id", "anterior_rvip_deg", "inferior_rvip_deg", "confidence", "mirrored"]
    assert list(marks)[:5] == columns and len(marks) == 12
    assert marks["anterior_rvip_deg"].between(0, 360).all()
    image = tio.ScalarImage(frame / pd.read_csv(frame / "manifest.csv")["image"][0])
    assert image.shape[1:3] == (96, 96)
    assert image.spacing[0] == pytest.approx(image.spacing[1], rel=1e-4)


def test_predict_reads_only_images_and_writes_the_promised_columns(written, spec, model, tmp_path):
    table = pd.read_csv(written / "manifest.csv")
    table[["study_id", "image"]].to_csv(written / "images.csv", index=False)
    for name, cohort in (("full", spec), ("images", f"manifest:{written}/images.csv")):
        done = lgekit("predict", model, cohort, tmp_path / f"{name}.csv")
        assert done.returncode == 0, done.stderr
    full, images = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("full", "images"))
    pd.testing.assert_frame_equal(full, images)
    walls = [f"p_{wall}" for wall in lk.WALLS]
    wanted = ["study_id", "p_lge", *walls, "slice_weights", "attention", "segments", "caption"]
    assert {*wanted, "anterior_rvip_deg", "inferior_rvip_deg"} <= set(full) and len(full) == 12
    assert full[["p_lge", *walls]].stack().between(0, 1).all()
    slices = tio.ScalarImage(written / table["image"][0]).shape[3]
    lists = [json.loads(full[name][0]) for name in ("slice_weights", "attention", "segments")]
    assert list(map(len, lists)) == [slices, slices, 17]


def test_a_stopped_predict_goes_on_and_faulty_studies_are_left_out(
    written, model, tmp_path, monkeypatch
):
    table = pd.read_csv(written / "manifest.csv")[["study_id", "image"]]
    table.loc[2, "image"] = "nowhere.nii.gz"
    table.to_csv(written / "faulty.csv", index=False)
    command = ("predict", model, f"manifest:{written}/faulty.csv", "--pictures")
    out = tmp_path / "out.csv"
    monkeypatch.setattr("lgekit.clip.detector.STUDIES_AT_ONCE", 4)
    done = lgekit(*command, tmp_path / "whole.csv")
    assert done.returncode == 0 and "11 studies" in done.stdout and "1 left out" in done.stdout
    assert "left out" in done.stderr and "nowhere.nii.gz" in done.stderr
    refused(*command, out, "--strict", mentions="nowhere.nii.gz")
    original, calls = Detector.locate, []

    def stopping(self, cohort):
        calls.append(len(cohort))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # ends like Ctrl-C
        return original(self, cohort)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "locate", stopping)
        assert lgekit(*command, out).returncode not in (0, 2) and calls == [4, 4, 3]
    (part,) = tmp_path.glob("out.csv.*.part")
    drawn = {path.name: path.stat().st_ino for path in tmp_path.glob("out_pictures.*.part/*")}
    part.write_bytes(part.read_bytes()[:-9])  # the last row is cut
    assert lgekit(*command, out).returncode == 0 and not part.exists()
    whole, again = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("whole", "out"))
    assert again["study_id"].tolist() == whole["study_id"].tolist() and len(whole) == 11
    assert again["p_lge"].to_numpy() == pytest.approx(whole["p_lge"].to_numpy(), rel=1e-3)
    pictures = {path.name: path.stat().st_ino for path in tmp_path.glob("out_pictures/*")}
    assert set(pictures) == {f"{name}.png" for name in whole["study_id"]}
    assert len(drawn) == 8 and drawn.items() <= pictures.items(), "none was drawn twice"
    assert set(Image.open(tmp_path / "out_pictures" / min(pictures)).info) == {"dpi"}


def test_an_error_of_the_disk_is_one_line(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device", "weights")

    monkeypatch.setattr(Detector, "load", full)
    refused("predict", "model", SMALL, tmp_path / "out.csv", mentions="No space left on device")


def test_score_compares_with_masks_or_with_reports(written, spec, model, tmp_path):
    done = lgekit("score", model / "held_out.csv", spec)
    assert done.returncode == 0 and "12 predictions" in done.stdout
    assert "caption" not in done.stdout and "--split" not in done.stderr
    shown = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()[3:]}
    held_out = pd.read_csv(model / "held_out.csv", dtype={"study_id": str})
    scores = lk.score_table(held_out, lk.read_cohort(spec))["value"]
    assert {"balanced_accuracy", "auc", "auc_walls", "auc_slices"} <= shown.keys()
    assert all(value == pytest.approx(scores[name], abs=0.006) for name, value in shown.items())
    table = pd.read_csv(written / "manifest.csv")
    table[["study_id", "image", "report"]].to_csv(written / "reports.csv", index=False)
    held_out.head(4).to_csv(tmp_path / "four.csv", index=False)
    done = lgekit("score", tmp_path / "four.csv", f"manifest:{written}/reports.csv")
    assert "4 predictions; 4 studies" in done.stdout and "masks of 0" in done.stdout
    assert "auc_slices" not in done.stdout


def test_score_of_a_split_and_of_tables_that_do_not_fit(written, spec, model, tmp_path):
    held_out = pd.read_csv(model / "held_out.csv", dtype={"study_id": str})
    table = tmp_path / "table.csv"
    refused("score", table, spec, mentions="not a readable table")
    refused("score", written / "manifest.csv", spec, mentions="'p_lge' is missing")
    held_out.to_csv(table, index=False)
    assert "give --split test" in lgekit("score", table, spec).stderr
    done = lgekit("score", table, spec, "--split", "test")
    assert "4 predictions" in done.stdout and "--split" not in done.stderr
    tested = lk.read_cohort(spec).split("test").manifest["study_id"]
    held_out[~held_out["study_id"].isin(tested)].to_csv(table, index=False)
    refused("score", table, spec, "--split", "test", mentions="the split 'test' has no studies")
    pd.concat([held_out, held_out]).to_csv(table, index=False)
    refused("score", table, spec, mentions="two rows")


def test_an_interrupted_fit_is_resumed_by_the_same_command(spec, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    command = ("fit", spec, mine, "--size", "smoke")
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "save", stop)
        refused(*command, mentions="disk: full")
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(training, "augment", lambda *_: pytest.fail("an epoch was trained again"))
        done = lgekit(*command)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_bad_input_gives_one_line_and_leaves_nothing_behind(written, model, tmp_path):
    out = tmp_path / "out"
    refused("cohort", "nothing:here", out, mentions="nothing:here")
    refused("check", "mine/manifest.csv", mentions="manifest:mine/manifest.csv")
    refused("cohort", "phantom:stduies=3", out, mentions="stduies")
    refused("cohort", f"manifest:{tmp_path}/no.csv", out, mentions="no.csv")
    refused("cohort", SMALL, written, mentions="exists already")
    refused("fit", SMALL, written, mentions="exists already")
    refused("fit", SMALL, out, "--size", "huge", mentions="huge")
    for setting in ("epochs", "epoch=3", "epochs=-3", "encoder=resnet999"):
        refused("fit", SMALL, out, "--set", setting, mentions=setting.split("=")[0])
    refused("predict", tmp_path, SMALL, tmp_path / "out.csv", mentions=str(tmp_path))
    nowhere = out / "out.csv"
    refused("predict", model, SMALL, nowhere, mentions="out.csv: cannot be written (No such file")
    refused("workbook", "--size", "huge", mentions="huge")
    assert not list(tmp_path.iterdir())


def test_commands_that_need_the_notebook_packages_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)  # not installed
    grid = Path(__file__).parents[1] / "papermill_runs" / "grids" / "smoke.yaml"
    for command in ["workbook"], ["grid", "run", grid]:
        refused(*command, mentions="lgekit[workbook]: papermill is not installed. Run make setup")


@pytest.mark.skipif(sys.platform != "linux", reason="not even root can write in /proc")
def test_a_taken_or_unwritable_place_is_refused_before_the_long_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Detector, "load", long_work)
    (taken := tmp_path / "taken.csv").write_text("study_id,image\n")
    (pictures := tmp_path / "new_pictures").mkdir()
    (pictures / "a.png").touch()
    for command in ("predict", tmp_path, SMALL), ("reports", taken):
        refused(*command, taken, mentions="taken.csv: exists already")
    command = ("predict", tmp_path, SMALL, tmp_path / "new.csv", "--pictures")
    refused(*command, mentions="new_pictures: exists already")
    monkeypatch.setattr("lgekit.data.readers.read_cohort", long_work)
    refused("predict", "model", SMALL, "/proc/out.csv", mentions="/proc/out.csv: cannot be written")
    for command in ("fit", SMALL), ("standardize", SMALL), ("cohort", SMALL), ("pull", "me/model"):
        refused(*command, "/proc/out", mentions="/proc/out: cannot be written")
    (tmp_path / "private").mkdir()
    (tmp_path / "private").chmod(0o777)
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path))
    for command in (["fit"], ["standardize"], ["predict", "model"]):
        refused(*command, SMALL, tmp_path / "out", mentions="set the variable LGEKIT_CACHE")
    assert names(tmp_path) == ["new_pictures", "new_pictures/a.png", "private", "taken.csv"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch, exists):
    target = tmp_path / "out"
    if exists:
        target.mkdir()
        monkeypatch.chdir(target)  # as a shell may be
    with pytest.raises(KeyError), replacing(target) as part:
        part.mkdir()
        raise KeyError
    assert names(tmp_path) == ["out"] * exists
    with replacing("." if exists else target) as part:
        (part / "heart").mkdir(parents=True)
        (part / "heart" / "weights").write_text("w")
    assert names(tmp_path) == ["out", "out/heart", "out/heart/weights"]
