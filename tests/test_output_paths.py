"""What a command writes: seen to be possible before the long work, whole or not at all, never over another's file."""

import os
import sys
from pathlib import Path

import pytest
from command_line import SMALL, lgekit, refused

from lgekit import cache
from lgekit.cli import WholeFolder, prediction_table, refuse_full
from lgekit.clip.detector import Detector
from lgekit.errors import InputError


def fill(part: Path) -> None:
    (part / "heart").mkdir(parents=True)
    (part / "heart" / "weights").write_text("w")
    (part / "about.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


WHOLE = ["about.json", "heart", "heart/weights"]


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is the first long work of `lgekit predict`."""
    monkeypatch.setattr(Detector, "load", lambda *_: pytest.fail("the long work began"))


def test_predictions_never_take_the_place_of_their_manifest_or_of_another_table(tmp_path, no_model):
    from cohort_files import write_own

    write_own(tmp_path)
    table = tmp_path / "manifest.csv"
    before = table.read_bytes()
    refused(
        "predict",
        tmp_path / "model",
        f"manifest:{table}",
        table,
        mentions=f"{table}: is what the command reads",
    )
    (tmp_path / "link.csv").symlink_to(table)
    refused(
        "predict",
        tmp_path / "model",
        f"manifest:{table}",
        tmp_path / "link.csv",
        mentions="the command reads",
    )
    (tmp_path / "notes.csv").write_text("study_id,remark\na,b\n")
    for name in ("notes.csv", "s0.nii"):
        refused(
            "predict",
            "model",
            SMALL,
            tmp_path / name,
            mentions="is there already and no table of predictions",
        )
    refused("predict", "model", SMALL, tmp_path, mentions="is a folder. Name a file in it")
    (tmp_path / "held_out.csv").write_text("study_id,p_lge\na,0.5\n")
    refused(
        "predict", tmp_path, SMALL, tmp_path / "held_out.csv", mentions="is what the command reads"
    )
    assert table.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_a_former_table_of_predictions_is_replaced_and_a_failure_leaves_it(tmp_path):
    table = tmp_path / "out.csv"
    table.write_text("\ufeffstudy_id,p_lge\na,0.5\n", "utf-8")
    with pytest.raises(KeyError), prediction_table(table, []) as part:
        part.write_text("half")
        raise KeyError
    assert table.read_text("utf-8-sig") == "study_id,p_lge\na,0.5\n" and names(tmp_path) == [
        "out.csv"
    ]
    with prediction_table(table, []) as part:
        part.write_text("new")
    assert table.read_text() == "new" and names(tmp_path) == ["out.csv"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is where even root cannot write")
def test_a_place_that_cannot_be_written_is_refused_before_the_long_work(
    tmp_path, no_model, monkeypatch
):
    refused("predict", "model", SMALL, "/proc/out.csv", mentions="/proc/out.csv: cannot be written")
    monkeypatch.setattr(
        "lgekit.data.readers.read_cohort", lambda *_: pytest.fail("the long work began")
    )
    for command in (
        ("fit", SMALL),
        ("standardize", SMALL),
        ("cohort", SMALL),
        ("pull", "me/model"),
    ):
        refused(*command, "/proc/out", mentions="/proc/out: cannot be written")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path / "file" / "cache"))
    for command in (("fit", SMALL), ("standardize", SMALL)):
        refused(*command, tmp_path / "out", mentions="Set the variable LGEKIT_CACHE")
    refused(
        "predict", "model", SMALL, tmp_path / "out.csv", mentions="Set the variable LGEKIT_CACHE"
    )
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_without_permission(tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        refuse_full(tmp_path / "out")
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="LGEKIT_CACHE"):
        cache.memory()


def test_a_cache_without_permission_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(
        InputError, match=r"cannot be written \(Permission denied\)\. Set the variable LGEKIT_CACHE"
    ):
        cache.memory()
    monkeypatch.setenv("LGEKIT_CACHE", "")
    assert cache.memory().store_backend is None


def test_checkpoints_of_somebody_else_are_one_line(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lgekit.clip.train.begin_fit", denied)
    monkeypatch.setattr(
        "lgekit.clip.fit.fit_detector", lambda *_, **__: pytest.fail("the long work began")
    )
    command = ("fit", SMALL, tmp_path / "out", "--size", "smoke")
    refused(
        *command,
        mentions=f"{tmp_path}/.out.training: cannot be read or written (Permission denied)",
    )


@pytest.mark.parametrize("made", [True, False])
def test_a_whole_folder_comes_by_one_rename_or_not_at_all(tmp_path, made):
    target = tmp_path / "out"
    if made:
        target.mkdir()
    with pytest.raises(KeyError), WholeFolder(target) as part:
        fill(part)
        raise KeyError
    assert names(tmp_path) == ["out"] * made
    with WholeFolder(target) as part:
        fill(part)
    assert names(target) == WHOLE and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_folder_that_one_stands_in_and_one_behind_a_link_are_filled(tmp_path, monkeypatch):
    here, link = tmp_path / "here", tmp_path / "link"
    here.mkdir()
    monkeypatch.chdir(here)
    refuse_full(Path("."))
    with WholeFolder(Path(".")) as part:
        fill(part)
    assert (
        names(Path(".")) == names(here) == WHOLE
    )  # not a folder that was taken from under the user's feet
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real")
    refuse_full(link)
    with WholeFolder(link) as part:
        fill(part)
    assert link.is_symlink() and names(link) == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link", "real"]


@pytest.mark.parametrize("method", ["rmdir", "rename"])
def test_a_mount_point_is_filled(tmp_path, monkeypatch, method):
    def busy(path, *_):
        raise OSError(16, "Device or resource busy")

    target = tmp_path / "out"
    target.mkdir()
    with WholeFolder(target) as part:
        fill(part)
        monkeypatch.setattr(Path, method, busy)
    assert names(target) == WHOLE and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_made_is_kept_and_named_where_it_cannot_be_put_there(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(
        InputError, match="no longer empty.*What was made is not lost: move it from"
    ) as caught:
        with WholeFolder(target) as part:
            fill(part)
            target.mkdir()
            (target / "mine.txt").write_text("mine")
    assert names(part) == WHOLE and str(part) in str(caught.value) and names(target) == ["mine.txt"]


def test_the_commands_write_into_the_folder_they_are_called_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("cohort", "standardize"):
        (tmp_path / command).mkdir()
        monkeypatch.chdir(tmp_path / command)
        done = lgekit(command, "phantom:studies=2,seed=1", ".")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / command / "manifest.csv").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "standardize"]
