"""Grids: the file, runs on Dask, faults, and the tables of results."""

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from tiny_notebook import WORK, write_notebook
from typer.testing import CliRunner

from lgekit.cache import is_locked, locked
from lgekit.cli import grid_app
from lgekit.errors import InputError
from lgekit.grid.run import collect, collect_predictions, grid_status, load_grid, run_grid

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "papermill_runs" / "grids").glob("*.yaml"))
FILES = {"run.ipynb", "params.json", "metrics.json", "environment.json", "predictions.csv"}
GRID = """notebook: tiny.ipynb
parameters: {width: 1e-4}
rows:
  full: {}
  shifted: {shift: true}
seeds: [0, 1]
"""
ONE_SEED = GRID.replace("[0, 1]", "[0]")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_notebook(tmp_path / "tiny.ipynb")
    return tmp_path


def grid_file(folder: Path, text: str = GRID, name: str = "toy") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def ids(file: Path) -> list[str]:
    return [run.id for run in load_grid(file).runs]


def value_of(seed: int, shift: bool = False) -> float:
    """What the tiny notebook computes."""
    return float(f"{random.Random(f'{seed} 0.0001 {shift} -1').random() + 10 * shift:.6g}")


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_grid_expands_row_by_row(project):
    runs = load_grid(grid_file(project, GRID + "folds: 3\naxes: {mode: [ok, raise]}\n")).runs
    assert len(runs) == len({run.id for run in runs}) == 2 * 2 * 2 * 3
    axes = {"seed": 1, "mode": "raise", "fold": 2}
    assert runs[0].place["row"] == "full" and runs[-1].place == {"row": "shifted", **axes}
    further = {"width": 1e-4, "shift": True, "folds": 3, "cohort": ""}
    assert runs[-1].params == axes | further


def test_a_run_id_depends_on_parameters_cohort_and_notebook(project):
    case = project / "data" / "case"
    case.mkdir(parents=True)
    (case / "a.nii").write_bytes(b"1")
    (project / "cohort.csv").write_text("study_id,image,report\nP1,data/case/a.nii, a.txt\n")
    text = GRID.replace("width: 1e-4", 'width: 1.0, cohort: "manifest:cohort.csv"')
    table = grid_file(project, text)
    folder = grid_file(project, text.replace("manifest:cohort.csv", "emidec:data"), "folder")
    before = ids(table)
    a_default_left_out = text.replace("{width: 1.0, ", "{")
    assert ids(grid_file(project, a_default_left_out, "b")) == before
    assert ids(grid_file(project, text.replace("full:", "10:"), "c")) == before
    rows_alike = ids(grid_file(project, text.replace("true", "false"), "d"))
    assert rows_alike == [*before[:2], *before[:2]]
    found = [before, ids(folder)]
    (case / "a.nii").write_bytes(b"22")
    found += [ids(table), ids(folder)]
    (case / "a.nii").rename(case / "b.nii")
    found += [ids(table), ids(folder)]
    (project / "a.txt").write_text("No scar.")
    found.append(ids(table))
    write_notebook(project / "tiny.ipynb", work=WORK + "\n1 + 1")
    found.append(ids(table))
    assert len({name for names in found for name in names}) == len(found) * len(before)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "sedes:", "sedes"),
        ("width: 1e-4", "widht: 1", "no parameter 'widht'.*Did you mean width"),
        ("shift: true", "shift: 7", "row shifted: shift is 7"),
        ("{width: 1e-4}", "{out: here}", "'out' is set by the grid"),
        ("seeds: [0, 1]", "axes: {shift: [true]}", "shifted: 'shift' is set by the grid"),
        ("{width: 1e-4}", "{folds: 10}\nfolds: 3", "parameters: 'folds' is set by the grid"),
        ("{width: 1e-4}", "{{spec}}", "cannot be read as YAML"),
        (GRID, "[" * 500, "cannot be read as YAML"),
        ("seeds: [0, 1]", "seeds: [-1]", "seeds"),
        ("seeds: [0, 1]", "axes: {mode: []}", "axes → mode"),
        ("tiny.ipynb", "tidy.ipynb", "'tidy.ipynb' does not exist"),
        (GRID, "notebook: tiny.ipynb\nrows: {}\n", "rows"),
    ],
)
def test_a_faulty_grid_is_refused_before_anything_runs(project, old, new, message):
    file = grid_file(project, GRID.replace(old, new))
    with pytest.raises(InputError, match=f"(?s)toy.yaml.*{message}"):
        run_grid(file)
    assert not (project / "papermill_runs").exists()


@pytest.mark.parametrize("level", ["{{<<: [{}]}}", "[{}]"])
def test_a_grid_file_whose_aliases_would_grow_without_end_is_refused(project, level):
    """Nine levels, each nine times the one below it."""
    lines = ["a0: &a0 {x: 1}"]
    for number in range(9):
        parts = ", ".join([f"*a{number}"] * 9)
        lines.append(f"a{number + 1}: &a{number + 1} {level.format(parts)}")
    with pytest.raises(InputError, match="cannot be read as YAML .more than 20 aliases"):
        load_grid(grid_file(project, "\n".join(lines)))


def test_unknown_rows_seeds_and_cohorts_are_refused(project):
    file = grid_file(project)
    with pytest.raises(InputError, match="no row 'ful'.*Choose from full"):
        run_grid(file, only=["ful"])
    with pytest.raises(InputError, match="no seed 7.*Choose from 0, 1"):
        run_grid(file, seeds=[7])
    elsewhere = grid_file(project, GRID.replace("width: 1e-4", "cohort: 'emidec:nowhere'"))
    for dry_run in (True, False):
        with pytest.raises(InputError, match="emidec.*does not exist"):
            run_grid(elsewhere, dry_run=dry_run)
    with pytest.raises(InputError, match="no run of it is done"):
        collect(file)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ("{orientation: rvpi}", "setting orientation: .*'rvip'"),
        ("{size: Smoke}", "size: unknown size 'Smoke'"),
        ("{cohort: 'mnifest:mine.csv'}", "SPEC: 'mnifest:mine.csv' names no kind"),
        ("{epochs: -3}", "setting epochs: .*greater than or equal to 1"),
        ("{}\naxes: {text: [findings, repport]}", "setting text"),
        ("{epochs: 60}", None),  # defaults
    ],
)
def test_specs_sizes_and_settings_are_checked_before_anything_runs(tmp_path, changes, problem):
    shutil.copy(ROOT / "notebooks" / "05_clip_captioning.ipynb", tmp_path / "nb.ipynb")
    file = grid_file(tmp_path, f"notebook: nb.ipynb\nrows:\n  one: {changes}\n")
    if problem is None:
        assert len(load_grid(file).runs) == 1
    else:
        with pytest.raises(InputError, match=f"row one: {problem}"):
            run_grid(file, dry_run=True)


def test_settings_of_a_row_become_changes_of_the_notebook(tmp_path):
    shutil.copy(ROOT / "notebooks" / "05_clip_captioning.ipynb", tmp_path / "nb.ipynb")
    rows = "{full: {}, same: {epochs: 60}, less: {text: report, synthetic_per_real: 0}}"
    full, same, less = load_grid(grid_file(tmp_path, f"notebook: nb.ipynb\nrows: {rows}\n")).runs
    assert full.id == same.id and full.params["changes"] == ""
    assert less.params["changes"] == "synthetic_per_real=0.0 text=report"
    rows = "{full: {size: paper}, default: {size: paper, synthetic_per_real: 1}}"
    _, default = load_grid(grid_file(tmp_path, f"notebook: nb.ipynb\nrows: {rows}\n")).runs
    assert default.params["changes"] == "synthetic_per_real=1.0"  # the preset's is 2
    given = grid_file(tmp_path, "notebook: nb.ipynb\nrows: {full: {changes: text=report}}\n")
    with pytest.raises(InputError, match="'changes' is set by the grid"):
        load_grid(given)


@pytest.mark.parametrize("file", KEPT, ids=lambda path: path.stem)
def test_the_grids_of_the_repository_expand_to_the_ablation_rows(file):
    from lgekit.evaluation.metrics import ROWS

    assert "full" in {run.place["row"] for run in load_grid(file).runs}
    rows = yaml.safe_load(file.read_text())["rows"]
    texts = {"whole_report": "report", "lge_statement": "lge_statement"}
    known = ROWS | {row: {"text": text} for row, text in texts.items()}
    known["plain_clip_findings"] = ROWS["plain_clip"] | {"text": "findings"}
    assert file.stem not in ("emidec", "laptop", "paper") or known.keys() <= rows.keys()
    for name in (rows.keys() & known.keys()) - {"full"}:
        assert rows[name] == known[name]


def test_a_grid_is_run_once_and_collected(project):
    failing = "  broken: {mode: raise}\n  dead: {mode: exit}\n"
    file = grid_file(project, ONE_SEED.replace("  shifted:", f"{failing}  shifted:"))
    folder = project / "papermill_runs" / "toy"
    plan = CliRunner().invoke(grid_app, ["run", str(file), "--dry-run"])
    assert plan.exit_code == 0 and "4 of 4 runs to go; none is finished" in plan.stdout
    assert not folder.exists()
    done = CliRunner().invoke(grid_app, ["run", str(file), "--workers", "2"])
    assert done.exit_code == 1
    status = grid_status(file).set_index("row")
    assert list(status["state"]) == ["done", "failed", "failed", "done"]
    assert "ValueError: no luck with seed 0 in cell In [" in status["error"]["broken"]
    assert "the kernel died" in status["error"]["dead"]
    assert all((folder / name / "run.ipynb").is_file() for name in status["run_id"])
    made = {path: path.stat().st_mtime_ns for path in project.rglob("metrics.json")}
    (project / "mended").touch()  # now the mode `raise` works
    assert list(run_grid(file, only=["full", "broken"], progress=False)["state"]) == ["done"] * 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())
    plan = CliRunner().invoke(grid_app, ["run", str(file), "--dry-run"])
    assert re.search(r"1 of 4 runs to go; finished runs took \d+ s each", plan.stdout)

    table = collect(file)
    assert list(table["state"]) == ["done", "done", "failed", "done"]
    expected = pd.Series([value_of(0), value_of(0), None, value_of(0, True)])
    pd.testing.assert_series_equal(table["auc"], expected, check_names=False)
    assert table["device"].notna().sum() == table["commit"].notna().sum() == 3
    pd.testing.assert_frame_equal(pd.read_csv(folder / "table.csv"), table, check_dtype=False)
    predictions = collect_predictions(file)
    assert list(predictions) == ["row", "seed", "study_id", "scar", "p_lge"]
    assert predictions["study_id"].tolist() == ["000", "001", "002"] * 3
    with locked(folder / ".locks" / ids(file)[0]):
        assert list(grid_status(file)["state"]) == ["running", "done", "failed", "done"]


def test_an_edited_notebook_is_not_run_under_the_old_id(project):
    """The first run edits the notebook; the second then has another id."""
    edit = "\nwith open('tiny.ipynb') as f: text = f.read()"
    edit += "\nwith open('tiny.ipynb', 'w') as f: f.write(text.replace('random()', 'random ()'))"
    write_notebook(project / "tiny.ipynb", work=WORK + edit)
    file = grid_file(project, ONE_SEED)
    old = ids(file)
    run_grid(file, workers=1, progress=False)
    error = project / "papermill_runs" / "toy" / old[1] / "error.json"
    assert "the notebook was edited" in json.loads(error.read_text())["error"]
    assert list(grid_status(file)["state"]) == ["to do", "to do"]


def test_each_worker_gets_a_gpu_and_short_runs_overtake_a_long_one(project, monkeypatch):
    """The long run ends after all others: it would wait forever for a run queued behind it."""
    work = """import glob, os, time
end = time.monotonic() + 60
while mode == "long" and len(glob.glob("papermill_runs/toy/*/metrics.json")) < 4:
    assert time.monotonic() < end
    time.sleep(0.1)
e = os.environ"""
    save = "from lgekit.workbook import save_run\n"
    save += "found = {'gpu': e['CUDA_VISIBLE_DEVICES'], 'threads': e['OMP_NUM_THREADS']}\n"
    save += "save_run(out, found | {'slow': 'MALLOC_TRIM_THRESHOLD_' in e})"
    write_notebook(project / "tiny.ipynb", work, save)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-6")
    rows = "\n".join(f"  short{number}: {{width: {number}.5}}" for number in range(4))
    file = grid_file(project, f"notebook: tiny.ipynb\nrows:\n  long: {{mode: long}}\n{rows}\n")
    assert (run_grid(file, progress=False)["state"] == "done").all()
    table = collect(file).set_index("row")
    assert set(table["gpu"]) == {"5", "GPU-6"}
    assert not table["slow"].any()  # Dask's variable makes training slow
    assert set(table["threads"]) == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


RUN = """import sys; from lgekit.grid.run import run_grid
run_grid(sys.argv[1], progress=False, **eval(sys.argv[2]))"""


def start_grid(file: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, str(file), repr(options)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def kernels_of(project: Path) -> list[psutil.Process]:
    """Their working folder is the project."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(project):
                found.append(process)
    return found


def assert_complete(folder: Path) -> int:
    """Every run that has metrics is complete. Returns their number."""
    done = [path.parent for path in folder.glob("*/metrics.json")]
    for path in done:
        assert {file.name for file in path.iterdir()} == FILES
        assert json.loads((path / "metrics.json").read_text())["auc"] is not None
    return len(done)


@pytest.mark.timeout(600)
def test_a_grid_killed_at_random_moments_ends_with_the_same_table(project):
    write_notebook(project / "tiny.ipynb", work=WORK + "\ntime.sleep(0.5)")
    text = GRID.replace("[0, 1]", "[0, 1, 2]")
    file, folder = grid_file(project, text), project / "papermill_runs" / "toy"
    chosen = time.time_ns()
    print(f"random seed: {chosen}")  # shown if the test fails
    rng, before = random.Random(chosen), 0
    for _ in range(4):
        grid = start_grid(file, workers=2)
        time.sleep(rng.uniform(2, 10))
        if grid.poll() is not None:
            break
        family = [psutil.Process(grid.pid), *psutil.Process(grid.pid).children(recursive=True)]
        for victim in rng.choice([family[:1], family, [rng.choice(family)]]):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        grid.kill()
        grid.wait()
        after = assert_complete(folder)
        assert after >= before, "a finished run was lost"
        before = after
    assert (run_grid(file, workers=2, progress=False)["state"] == "done").all()
    assert assert_complete(folder) == 6
    expected = [value_of(seed, shift) for shift in (False, True) for seed in range(3)]
    assert list(collect(file)["auc"]) == expected
    wait_for(lambda: not kernels_of(project), 15)
    assert not any(is_locked(path) for path in folder.glob(".locks/*"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_running_scheduler_is_used_and_its_death_is_reported(project):
    with pytest.raises(InputError, match="'tcp://127.0.0.1:1' does not answer"):
        run_grid(grid_file(project), scheduler="tcp://127.0.0.1:1")
    write_notebook(project / "tiny.ipynb", work=WORK + "\ntime.sleep(5 * seed)")
    file = grid_file(project)
    address = f"tcp://127.0.0.1:{random.Random(os.getpid()).randint(20_000, 40_000)}"
    dask, silent = Path(sys.executable).with_name("dask"), {"stderr": subprocess.DEVNULL}
    port = ["--host", "127.0.0.1", "--port", address.split(":")[2], "--no-dashboard"]
    scheduler = subprocess.Popen([dask, "scheduler", *port], **silent)
    two = [dask, "worker", address, "--nthreads", "1", "--nworkers", "2"]
    workers = subprocess.Popen(two, **silent)
    try:
        status = run_grid(file, scheduler=address, seeds=[0], progress=False)
        assert list(status["state"]) == ["done", "done"]
        grid = start_grid(file, scheduler=address)
        wait_for(lambda: len(kernels_of(project)) == 2)
        scheduler.kill()
        _, printed = grid.communicate(timeout=120)
        assert grid.returncode == 1 and "the scheduler was lost with 2 runs to go" in printed
    finally:
        for process in scheduler, workers:
            process.kill()
            process.wait()
    wait_for(lambda: not kernels_of(project))
    assert list(run_grid(file, progress=False)["state"]) == ["done"] * 4


def test_the_slurm_recipe_asks_for_one_gpu_and_one_run_per_job():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    (recipe,) = [block for block in blocks if "SLURMCluster(" in block]
    names: dict = {}
    exec(recipe[: recipe.index("cluster.adapt")], names)  # nothing is sent to SLURM
    with names["cluster"] as cluster:
        script = cluster.job_script()
    assert "#SBATCH --gres=gpu:1" in script and "export OMP_NUM_THREADS=8" in script
    worker = script.splitlines()[-1]
    assert "--nworkers" not in worker
    assert re.findall(r"--nthreads (\d+)", worker)[-1] == "1"
    assert "run_grid(" in recipe and "scheduler=cluster.scheduler_address" in recipe
