"""Runs of single notebooks: parameters, results, failures."""

import json
import re
import socket
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from tiny_notebook import write_notebook

from lgekit.errors import InputError, RunError
from lgekit.workbook import check_parameters, read_parameters, run_notebook, save_run

FILES = {"run.ipynb", "params.json", "metrics.json", "environment.json", "predictions.csv"}


@pytest.fixture(autouse=True)
def this_checkout(monkeypatch):
    """Kernels in other folders import the library under test."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".locks"}


def test_parameters_are_read_without_running(tmp_path):
    lines = "# a comment", "epochs: int = 30  # passes", "rate: float = 1e-4", 'name: str = (\n"a")'
    cell = "\n".join([*lines, "fast: bool = False"])
    notebook = write_notebook(tmp_path / "a {x}.ipynb", parameters=cell)
    found = {"epochs": 30, "rate": 1e-4, "name": "a", "fast": False}
    assert read_parameters(notebook) == found
    assert read_parameters(write_notebook(tmp_path / "b.ipynb", parameters="")) == {}


@pytest.mark.parametrize(
    "line", ["x = 3", "x: list = [1]", "x: int = len([])", 'x: int = "many"', "x: int", "x: int ="]
)
def test_parameters_without_plain_type_and_literal_are_refused(tmp_path, line):
    notebook = write_notebook(tmp_path / "a.ipynb", parameters=f"seed: int = 0\n{line}")
    with pytest.raises(InputError, match="a.ipynb"):
        read_parameters(notebook)
    notebook.write_text("{}")
    for path in notebook, tmp_path / "absent.ipynb":
        with pytest.raises(InputError, match=f"{path.name}: cannot be read as a notebook"):
            read_parameters(path)


DEFAULTS = {"epochs": 3, "rate": 0.1, "name": "", "fast": False}


def test_values_are_converted_to_the_types_of_the_parameters():
    given = {"epochs": 5, "rate": "1e-4", "fast": True, "name": "x"}
    assert check_parameters(DEFAULTS, given, "here") == {**given, "rate": 1e-4}
    assert type(check_parameters(DEFAULTS, {"rate": 2}, "here")["rate"]) is float


@pytest.mark.parametrize(
    ("name", "value"),
    [("rate", "abc"), ("epochs", 1.5), ("epochs", "7"), ("epochs", True), ("name", 3)]
    + [("fast", value) for value in (3, 1, "yes")],
)
def test_wrong_types_are_refused(name, value):
    with pytest.raises(InputError, match=f"here: {name} is .*valid.*The default is"):
        check_parameters(DEFAULTS, {name: value}, "here")


def test_results_are_saved_as_plain_files(tmp_path):
    metrics = {"b": np.float32(0.1), "a": np.int64(3), "nan": np.nan, "list": np.arange(2)}
    table = pd.DataFrame({"study_id": ["P1"], "p": [1 / 3]}, index=[7])
    history = [{"epoch": 1, "loss": 0.5}]
    metrics["deep"] = {"x": 1 / 3}
    save_run(tmp_path, metrics, history=history, predictions=table)
    expected = {"a": 3, "b": 0.1, "deep": {"x": 0.333333}, "list": [0, 1], "nan": None}
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored == expected and list(stored) == sorted(expected)
    assert (tmp_path / "predictions.csv").read_text() == "study_id,p\nP1,0.333333\n"
    assert (tmp_path / "history.csv").read_text() == "epoch,loss\n1,0.5\n"


def test_a_run_is_complete_and_the_same_seed_gives_the_same_bytes(tmp_path):
    folder = tmp_path / "runs {x} ü"  # Papermill reads paths as format strings
    folder.mkdir()
    notebook = write_notebook(folder / "tiny.ipynb")
    params = {"seed": 3, "width": "1e-4"}
    for name in "ab":
        assert run_notebook(notebook, folder / name, params, progress=False)["seed_seen"] == 3
    assert files(folder) == {"a", "b", "tiny.ipynb"} and files(folder / "a") == FILES
    for name in "metrics.json", "predictions.csv", "params.json":
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()
    stored = json.loads((folder / "a" / "params.json").read_text())
    assert stored["width"] == 1e-4 and stored["folds"] == 5 and "out" not in stored
    record = (folder / "a" / "environment.json").read_text()
    assert {"python", "torch", "commit", "device"} <= json.loads(record).keys()
    assert json.loads(record)["wall_seconds"] > 0
    assert socket.gethostname() not in record and str(Path.home()) not in record


def test_the_kernel_is_this_interpreter_in_the_given_folder(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)  # as on clusters; paths of sockets may have 107 characters
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    work = "import os, sys\nseen = {'python': sys.executable, 'cwd': os.getcwd()}"
    save = "from lgekit.workbook import save_run\nsave_run(out, seen)"
    notebook = write_notebook(tmp_path / "a.ipynb", work, save)
    seen = run_notebook(notebook, tmp_path / "runs" / "a", progress=False, root=tmp_path)
    assert seen == {"python": sys.executable, "cwd": str(tmp_path)}


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("raise", r"ValueError: no luck with seed 0 in cell In \[\d\]"),
        ("exit", "wrote no metrics.json: the kernel died"),
        ("sleep", "longer than the 5 s allowed"),
        ("forget", "wrote no metrics.json"),
    ],
)
def test_a_failed_run_is_recorded_and_can_be_repeated(tmp_path, mode, message):
    notebook, folder = write_notebook(tmp_path / "tiny.ipynb"), tmp_path / "runs" / "a"
    options = {"progress": False, "root": tmp_path}
    timeout = 5 if mode == "sleep" else None
    with pytest.raises(RunError, match=message):
        run_notebook(notebook, folder, {"mode": mode}, timeout, **options)
    assert not (folder / "metrics.json").exists()
    assert re.search(message, json.loads((folder / "error.json").read_text())["error"])
    nbformat.validate(nbformat.read(folder / "run.ipynb", 4))
    if mode == "raise":
        assert run_notebook(notebook, folder, **options)["seed_seen"] == 0
        assert files(folder) == FILES


def test_bad_requests_are_refused_before_anything_runs(tmp_path):
    notebook = write_notebook(tmp_path / "tiny.ipynb", work='open("ran", "w")')
    options = {"progress": False, "root": tmp_path}
    with pytest.raises(InputError, match="no parameter 'sed'.*Did you mean seed"):
        run_notebook(notebook, tmp_path / "a", {"sed": 1}, **options)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="contains files that are not a run"):
        run_notebook(notebook, tmp_path / "thesis", **options)
    without = write_notebook(tmp_path / "b.ipynb", parameters="seed: int = 0")
    with pytest.raises(InputError, match="no parameter 'out'"):
        run_notebook(without, tmp_path / "b", **options)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "a").exists()
