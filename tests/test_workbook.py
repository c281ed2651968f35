import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import joblib
import nbformat
import numpy as np
import pandas as pd
import pytest
from tiny_notebook import SAVE, write_notebook

from lgekit.cache import compute_once, is_locked, locked
from lgekit.errors import InputError, RunError
from lgekit.workbook import check_parameters, load_metrics, read_parameters, run_notebook, save_run

FILES = {"run.ipynb", "params.json", "metrics.json", "environment.json", "predictions.csv"}


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".locks"}


def test_parameters_are_read_without_running(tmp_path):
    cell = "# a comment\nepochs: int = 30  # passes over the data\nrate: float = 1e-4\n"
    cell += 'name: str = "a # b"  # text\nfast: bool = False'
    found = read_parameters(write_notebook(tmp_path / "a.ipynb", parameters=cell))
    assert [(p.name, p.type, p.default, p.comment) for p in found.values()] == [
        ("epochs", int, 30, "passes over the data"),
        ("rate", float, 1e-4, ""),
        ("name", str, "a # b", "text"),
        ("fast", bool, False, ""),
    ]
    assert read_parameters(write_notebook(tmp_path / "b.ipynb", parameters="")) == {}


@pytest.mark.parametrize(
    "line",
    [
        "x: str | None = None",
        "x = 3",
        "x: dict = dict(a=1)",
        "x: int = len([])",
        'x: int = "many"',
        "x: int",
        "x: =",
    ],
)
def test_parameters_that_papermill_would_miss_are_refused(tmp_path, line):
    notebook = write_notebook(tmp_path / "a.ipynb", parameters=f"seed: int = 0\n{line}")
    with pytest.raises(InputError, match="a.ipynb"):
        read_parameters(notebook)


def test_an_edited_notebook_is_read_again(tmp_path):
    notebook = write_notebook(tmp_path / "a.ipynb", parameters="seed: int = 0")
    assert read_parameters(notebook)["seed"].default == 0
    os.utime(write_notebook(notebook, parameters="seed: int = 1"), ns=(1, 1))
    assert read_parameters(notebook)["seed"].default == 1


def test_check_parameters_converts_and_refuses(tmp_path):
    cell = 'epochs: int = 3\nrate: float = 0.1\nname: str = ""\nfast: bool = False'
    notebook = write_notebook(tmp_path / "a.ipynb", parameters=cell)
    given = {"epochs": "5", "rate": "1e-4", "fast": "True", "name": "x"}
    assert check_parameters(notebook, given) == {
        "epochs": 5,
        "rate": 1e-4,
        "fast": True,
        "name": "x",
    }
    checked = check_parameters(notebook, {"rate": 2, "epochs": np.int64(7)})
    assert checked == {"rate": 2.0, "epochs": 7} and [type(v) for v in checked.values()] == [
        float,
        int,
    ]
    for wrong in (
        {"rate": "abc"},
        {"epochs": True},
        {"epochs": 1.0},
        {"fast": 1},
        {"fast": "yes"},
        {"name": 3},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            check_parameters(notebook, wrong)
    with pytest.raises(InputError, match="no parameter 'epoch'.*Did you mean epochs"):
        check_parameters(notebook, {"epoch": 3})


def test_what_is_no_notebook_is_refused(tmp_path):
    (tmp_path / "a.ipynb").write_text("{}")
    for path in tmp_path / "a.ipynb", tmp_path / "absent.ipynb":
        with pytest.raises(InputError, match=path.name):
            read_parameters(path)


def test_save_run_gives_plain_files(tmp_path):
    metrics = {
        "b": np.float32(0.1),
        "a": np.int64(3),
        "nan": float("nan"),
        "list": np.arange(2),
        "deep": {"x": 1 / 3},
    }
    table = pd.DataFrame({"study_id": ["P1"], "p": [1 / 3]}, index=[7])
    save_run(
        tmp_path,
        metrics,
        predictions=table,
        history=[{"epoch": 1, "loss": 0.5}],
        tables={"walls": table},
    )
    expected = {"a": 3, "b": 0.1, "deep": {"x": 0.333333}, "list": [0, 1], "nan": None}
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == sorted(expected)
    assert (tmp_path / "predictions.csv").read_text() == "study_id,p\nP1,0.333333\n"
    assert (tmp_path / "history.csv").read_text() == "epoch,loss\n1,0.5\n"
    assert (tmp_path / "walls.csv").exists() and np.isnan(load_metrics(tmp_path)["nan"])
    assert load_metrics(tmp_path / "absent") is None


def test_save_run_refuses_what_it_cannot_store(tmp_path):
    with pytest.raises(InputError, match="metric deep.x"):
        save_run(tmp_path / "a", {"deep": {"x": object()}})
    with pytest.raises(InputError, match="no table name"):
        save_run(tmp_path / "b", {}, tables={"../up": pd.DataFrame()})
    assert not (tmp_path / "a").exists() and not (tmp_path / "up.csv").exists()


def test_save_run_by_hand_goes_to_the_manual_folder(tmp_path, monkeypatch):
    (tmp_path / "papermill_runs").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/03_scars.ipynb")
    assert save_run("", {"a": 1}) == tmp_path / "papermill_runs" / "manual" / "03_scars"


def test_a_run_is_whole_and_the_same_seed_gives_the_same_bytes(tmp_path):
    folder = tmp_path / "runs {x} ü"  # Papermill takes paths for format strings
    folder.mkdir()
    notebook = write_notebook(folder / "tiny.ipynb")
    metrics = [
        run_notebook(notebook, folder / name, {"seed": 3, "width": "1e-4"}, progress=False)
        for name in "ab"
    ]
    assert metrics[0]["seed_seen"] == 3
    assert {path.name for path in (folder / "a").iterdir()} == FILES
    for name in "metrics.json", "predictions.csv", "params.json":
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()
    params = json.loads((folder / "a" / "params.json").read_text())
    assert params["width"] == 1e-4 and params["folds"] == 5 and "out" not in params
    record = json.loads((folder / "a" / "environment.json").read_text())
    assert (
        record["python"]
        and record["torch"]
        and record["wall_seconds"] > 0
        and "CPU" in record["device"]
    )
    assert socket.gethostname() not in json.dumps(record) and str(Path.home()) not in json.dumps(
        record
    )
    assert ".part" not in (folder / "a" / "run.ipynb").read_text()
    assert left_in(folder) == {"a", "b", "tiny.ipynb"}


def test_the_kernel_is_this_interpreter_and_its_environment_ours(tmp_path, monkeypatch):
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(
        '{"argv": ["false"], "display_name": "Wrong", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    work = "import os, sys\nvalue = seed\nseen = {'python': sys.executable, 'cwd': os.getcwd(), 'x': os.environ['X_Y']}"
    save = "from lgekit.workbook import save_run\nsave_run(out, seen)"
    notebook = write_notebook(tmp_path / "a.ipynb", work, save)
    seen = run_notebook(
        notebook, tmp_path / "runs" / "a", progress=False, root=tmp_path, env={"X_Y": "7"}
    )
    assert seen == {"python": sys.executable, "cwd": str(tmp_path), "x": "7"}


def test_an_earlier_run_survives_a_kill_between_the_two_renames(tmp_path):
    notebook = write_notebook(tmp_path / "tiny.ipynb")
    old = tmp_path / "runs" / ".a.01234567.old.part"
    old.mkdir(parents=True)
    for name in "params.json", "metrics.json":
        (old / name).write_text('{"auc": 1}')
    (tmp_path / "runs" / ".a.89abcdef.part").mkdir()
    with pytest.raises(RunError):
        run_notebook(
            notebook, tmp_path / "runs" / "a", {"mode": "raise"}, progress=False, root=tmp_path
        )
    assert load_metrics(tmp_path / "runs" / "a") == {"auc": 1}
    assert left_in(tmp_path / "runs") == {"a", "failed"}


@pytest.mark.parametrize(
    "mode,message",
    [
        ("raise", r"ValueError: no luck with seed 0 in cell In \[3\]"),
        ("exit", r"the kernel died in cell In \[3\]"),
        ("sleep", r"longer than the 3 s allowed, in cell In \[3\]"),
        ("forget", r"wrote no metrics.json"),
    ],
)
def test_a_failing_run_leaves_its_record_and_the_earlier_result(tmp_path, mode, message):
    notebook = write_notebook(tmp_path / "tiny.ipynb")
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    for name in "params.json", "metrics.json":
        (folder / name).write_text('{"auc": 1}')
    with pytest.raises(RunError, match=message):
        run_notebook(
            notebook,
            folder,
            {"mode": mode},
            timeout=3 if mode == "sleep" else None,
            progress=False,
            root=tmp_path,
        )
    assert load_metrics(folder) == {"auc": 1}
    assert left_in(tmp_path / "runs") == {"a", "failed"}
    failed = tmp_path / "runs" / "failed" / "a"
    assert {"run.ipynb", "error.json"} <= left_in(failed) and "metrics.json" not in left_in(failed)
    assert re.search(message, json.loads((failed / "error.json").read_text())["error"])
    nbformat.validate(nbformat.read(failed / "run.ipynb", 4))
    assert (
        run_notebook(notebook, folder, progress=False, root=tmp_path)["seed_seen"] == 0
    )  # and then it is replaced
    assert left_in(folder) == FILES and left_in(tmp_path / "runs" / "failed") == set()


def test_bad_requests_are_refused_before_anything_runs(tmp_path):
    notebook = write_notebook(tmp_path / "tiny.ipynb", work='open("ran", "w")')
    with pytest.raises(InputError, match="no parameter 'sed'"):
        run_notebook(notebook, tmp_path / "a", {"sed": 1}, progress=False, root=tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="no run"):
        run_notebook(notebook, tmp_path / "thesis", progress=False, root=tmp_path)
    without = write_notebook(tmp_path / "b.ipynb", parameters="seed: int = 0")
    with pytest.raises(InputError, match="no parameter `out`"):
        run_notebook(without, tmp_path / "b", progress=False, root=tmp_path)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "a").exists()


def test_a_full_disk_fails_the_run_and_no_other(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mount.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        notebook = write_notebook(tmp_path / "tiny.ipynb")
        with pytest.raises(RunError, match="No space left"):
            run_notebook(notebook, disk / "a", {"mode": "fill"}, progress=False)
        assert load_metrics(disk / "a") is None and left_in(disk) == {"failed"}
        assert "No space" in (disk / "failed" / "a" / "error.json").read_text()
        filler = disk / "filler"
        with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with pytest.raises(RunError):
            run_notebook(notebook, disk / "b", progress=False)
        assert not (disk / "b").exists()
        filler.unlink()
        assert run_notebook(notebook, disk / "b", progress=False)["seed_seen"] == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "locks" / "a"
    code = "import sys, time\nfrom lgekit.workbook import locked\n"
    code += "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n" and is_locked(path)
    holder.kill()
    holder.wait()
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
    assert not path.exists()


def test_two_who_ask_for_a_lock_at_once_see_none(tmp_path):
    path = tmp_path / "a"
    path.touch()
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # what another `is_locked` holds for a moment
        assert not is_locked(path)
        fcntl.flock(other, fcntl.LOCK_EX)
        assert is_locked(path)


def test_a_shared_stage_is_computed_once_by_processes_that_start_together(tmp_path):
    (tmp_path / "stage.py").write_text(
        "import sys, time, joblib\nfrom lgekit.workbook import compute_once\n"
        "def slow(x, who):\n    print('computed', flush=True); time.sleep(1); return x + 1\n"
        "if __name__ == '__main__':\n"
        "    import stage\n"
        "    cached = joblib.Memory(sys.argv[1], verbose=0).cache(stage.slow, ignore=['who'])\n"
        "    assert compute_once(cached, 41, who=object()) == 42\n"
    )
    command = [sys.executable, "stage.py", str(tmp_path / "cache")]
    started = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0] and "".join(
        printed
    ) == "computed\n"


def test_without_a_cache_a_stage_is_just_called():
    assert compute_once(joblib.Memory(None).cache(lambda x: x + 1), 41) == 42
    assert compute_once(lambda x: x + 1, 41) == 42


def test_importing_runs_is_cheap():
    heavy = ("torch", "papermill", "distributed", "pandas")
    code = f"import sys, lgekit.workbook; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )


def test_a_killed_kernel_in_the_last_cell_is_no_finished_run(tmp_path):
    save = (
        SAVE + "\nimport os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )  # after metrics.json was written
    notebook = write_notebook(tmp_path / "tiny.ipynb", save=save)
    with pytest.raises(RunError, match=r"the kernel died in cell In \[4\]"):
        run_notebook(notebook, tmp_path / "runs" / "a", progress=False, root=tmp_path)
    assert load_metrics(tmp_path / "runs" / "a") is None
    assert load_metrics(tmp_path / "runs" / "failed" / "a") is None
