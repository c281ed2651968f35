import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml
from dask.utils import key_split
from tiny_notebook import PARAMETERS, SAVE, WORK, write_notebook
from typer.testing import CliRunner

from lgekit.cache import is_locked, locked
from lgekit.cli import grid_app
from lgekit.errors import InputError, RunError
from lgekit.grid.file import (
    cohort_fingerprint,
    expand,
    load_grid,
    notebook_version,
)
from lgekit.grid.run import (
    clean,
    collect,
    collect_predictions,
    connect,
    grid_status,
    run_grid,
    run_one,
    submit_all,
)

GRID = """notebook: tiny.ipynb
parameters: {width: 1e-4}
rows:
  full: {}
  shifted: {shift: true}
seeds: [0, 1]
"""
FILES = {"run.ipynb", "params.json", "metrics.json", "environment.json", "predictions.csv"}
KEPT = sorted((Path(__file__).parents[2] / "papermill_runs" / "grids").glob("*.yaml"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    write_notebook(tmp_path / "tiny.ipynb")
    return tmp_path


def grid_file(folder: Path, text: str = GRID, name: str = "toy") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def value_of(seed, width=1e-4, shift=False, fold=-1):  # what the tiny notebook computes
    return float(f"{random.Random(f'{seed} {width} {shift} {fold}').random() + 10 * shift:.6g}")


def test_a_grid_expands_row_by_row(project):
    text = GRID + "folds: 3\naxes: {mode: [ok, raise]}\n"
    runs = expand(grid_file(project, text))
    assert len(runs) == len({run.id for run in runs}) == 2 * 2 * 2 * 3
    assert runs[0].row == "full" and runs[-1].row == "shifted"
    assert runs[-1].axes == {"seed": 1, "mode": "raise", "fold": 2}
    expected = {
        "seed": 1,
        "width": 1e-4,
        "mode": "raise",
        "shift": True,
        "fold": 2,
        "folds": 3,
        "cohort": "",
    }
    assert runs[-1].params == expected


def test_runs_side_by_side_are_of_different_folds(project, monkeypatch):
    submitted = []
    monkeypatch.setattr(
        "lgekit.grid.run._run_all", lambda grid, todo, *rest: submitted.extend(todo.values())
    )
    run_grid(grid_file(project, GRID + "folds: 3\n"))
    order = [(run.axes["seed"], run.row, run.axes["fold"]) for run in submitted]
    assert order == [(s, row, f) for s in (0, 1) for row in ("full", "shifted") for f in range(3)]


def test_a_run_is_known_by_what_it_depends_on(project):
    table = project / "cohort.csv"
    table.write_text("study_id,image\nP1,a.nii\n")
    (project / "a.nii").write_bytes(b"1")
    text = GRID.replace("width: 1e-4", 'width: 1.0, cohort: "manifest:cohort.csv"')
    ids = [run.id for run in expand(grid_file(project, text))]
    assert [
        run.id for run in expand(grid_file(project, text.replace("{width: 1.0, ", "{"), "b"))
    ] == ids  # a default
    assert [
        run.id for run in expand(grid_file(project, text.replace("full:", "whole:"), "c"))
    ] == ids
    changed = expand(grid_file(project, text.replace("true", "false"), "d"))
    assert [run.id for run in changed] == [
        *ids[:2],
        *ids[:2],
    ]  # two rows that are the same share their runs
    (project / "a.nii").write_bytes(b"12")
    after = [run.id for run in expand(grid_file(project, text))]
    assert not set(after) & set(ids)
    write_notebook(project / "tiny.ipynb", work=WORK + "\n1 + 1")
    assert not {run.id for run in expand(grid_file(project, text))} & {*ids, *after}


def test_a_folder_cohort_changes_with_its_files(tmp_path):
    (tmp_path / "data" / "case").mkdir(parents=True)
    (tmp_path / "data" / "case" / "a.nii").write_bytes(b"1")
    first = cohort_fingerprint("emidec:data", tmp_path)
    assert cohort_fingerprint("emidec:data", tmp_path) == first
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere" / "data")
    os.utime(tmp_path / "elsewhere" / "data" / "case" / "a.nii", ns=(1, 1))
    assert (
        cohort_fingerprint("emidec:data", tmp_path / "elsewhere") == first
    )  # a copy is the same cohort
    (tmp_path / "data" / "case" / "a.nii").write_bytes(b"2")
    os.utime(tmp_path / "data" / "case" / "a.nii", ns=(1, 1))
    second = cohort_fingerprint("emidec:data", tmp_path)
    (tmp_path / "data" / "case" / "a.nii").rename(tmp_path / "data" / "case" / "b.nii")
    assert len({first, second, cohort_fingerprint("emidec:data", tmp_path)}) == 3


def test_a_table_cohort_changes_with_its_images(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"1")
    (tmp_path / "manifest.csv").write_text("study_id,image\na,a.nii\n")
    first = cohort_fingerprint("manifest:manifest.csv", tmp_path)
    (tmp_path / "a.nii").write_bytes(b"23")
    second = cohort_fingerprint("manifest:manifest.csv", tmp_path)
    (tmp_path / "manifest.csv").write_text("study_id,image,split\na,a.nii,test\n")
    assert len({first, second, cohort_fingerprint("manifest:manifest.csv", tmp_path)}) == 3
    (tmp_path / "manifest.csv").write_text("study_id,image,report\na,a.nii, a.txt\n")
    (tmp_path / "a.txt").write_text("No late gadolinium enhancement.")
    before = cohort_fingerprint("manifest:manifest.csv", tmp_path)
    (tmp_path / "a.txt").write_text("Transmural scar of the inferior wall.")
    assert cohort_fingerprint("manifest:manifest.csv", tmp_path) != before
    assert cohort_fingerprint("manifest:none.csv", tmp_path) != cohort_fingerprint(
        "manifest:no.csv", tmp_path
    )
    assert (
        len({cohort_fingerprint(f"phantom:studies=2,seed={seed}", tmp_path) for seed in range(3)})
        == 3
    )


def test_what_the_heart_network_is_pretrained_on_counts(project):
    write_notebook(project / "tiny.ipynb", parameters=PARAMETERS + '\npretrain_on: str = "auto"')
    (project / "data" / "emidec").mkdir(parents=True)
    file = grid_file(project, GRID.replace("{width: 1e-4}", '{cohort: "emidec:data/emidec"}'))
    alone = expand(file)[0].id
    (project / "data" / "acdc").mkdir()
    beside = expand(file)[0].id
    (project / "data" / "acdc" / "x.nii.gz").write_bytes(b"1")
    assert len({alone, beside, expand(file)[0].id}) == 3


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("seeds:", "sedes:", "sedes"),
        ("width: 1e-4", "widht: 1", "no parameter 'widht'.*Did you mean width"),
        ("shift: true", "shift: 1", "row shifted.*1 is no bool"),
        ("width: 1e-4", "width: wide", "'wide' is no float"),
        ("  shifted:", "  full:", "'full' stands there twice"),
        ("shift: true", "seed: 3", "'seed' is set by the grid"),
        ("{width: 1e-4}", "{out: here}", "'out' is set by the grid"),
        ("seeds: [0, 1]", "axes: {seed: [7]}", "axes: 'seed' is set by the grid"),
        ("seeds: [0, 1]", "axes: {out: [a, b]}", "axes: 'out' is set by the grid"),
        ("seeds: [0, 1]", "axes: {fold: [0, 1]}", "axes: 'fold' is set by the grid"),
        ("seeds: [0, 1]", "axes: {shift: [true]}", "row shifted: 'shift' is set by the grid"),
        ("{width: 1e-4}", "{folds: 10}\nfolds: 3", "parameters: 'folds' is set by the grid"),
        ("shift: true}\n", "folds: 10}\nfolds: 3\n", "row shifted: 'folds' is set by the grid"),
        ("{width: 1e-4}", "{{spec}}", "is not YAML.*a name must be a word"),
        ("seeds: [0, 1]", "seeds: []", "seeds"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "names a value twice"),
        ("seeds: [0, 1]", "folds: 1", "folds"),
        ("tiny.ipynb", "tidy.ipynb", "'tidy.ipynb' is not there"),
        ("rows:", "rows: [", "is not YAML"),
        (GRID, "", "the file"),
        (GRID, "notebook: tiny.ipynb\nrows: {}\n", "rows"),
    ],
)
def test_a_faulty_grid_is_refused_before_anything_runs(project, old, new, message):
    file = grid_file(project, GRID.replace(old, new))
    with pytest.raises(InputError, match=f"(?s)toy.yaml.*{message}"):
        run_grid(file)
    assert not (project / "papermill_runs").exists()


def test_unknown_rows_seeds_and_cohorts_are_refused(project):
    file = grid_file(project)
    with pytest.raises(InputError, match="no row 'ful'.*Choose from full"):
        run_grid(file, only="ful")
    with pytest.raises(InputError, match="no seed 7.*Choose from 0, 1"):
        run_grid(file, seeds=[7])
    with pytest.raises(InputError, match="timeout: -1 is no time"):
        run_grid(file, timeout=-1)
    elsewhere = grid_file(project, GRID.replace("width: 1e-4", "cohort: 'emidec:nowhere'"))
    with pytest.raises(InputError, match="emidec.*is not there"):
        run_grid(elsewhere)
    with pytest.warns(
        UserWarning, match="emidec.*is not there.*nothing would run"
    ):  # a plan can be read all the same
        assert len(run_grid(elsewhere, dry_run=True)) == 4
    with pytest.raises(InputError, match="no run of it is done"):
        collect(file)
    with pytest.raises(InputError, match="workbook"):
        load_grid(grid_file(project, name="workbook"))


NOTEBOOK_05 = KEPT[0].parents[2] / "notebooks" / "05_clip_captioning.ipynb"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{orientation: rvpi}", "setting orientation: .*'rvip'"),
        ("{size: Smoke}", "size: unknown size 'Smoke'"),
        ("{cohort: 'mnifest:mine.csv'}", "SPEC: 'mnifest:mine.csv' names no kind"),
        ("{pretrain_on: 'acdk:data/acdc'}", "SPEC: 'acdk:data/acdc' names no kind"),
        ("{epochs: -3}", "setting epochs: .*greater than or equal to 1"),
        ("{pixels: 7}", "setting pixels"),
    ],
)
def test_what_a_run_would_fail_on_is_refused_before_any_runs(tmp_path, row, problem):
    shutil.copy(NOTEBOOK_05, tmp_path / "nb.ipynb")
    text = "notebook: nb.ipynb\nparameters: {size: smoke, cohort: 'phantom:studies=8'}\nrows:\n  full: {}\n  bad: ROW\n"
    with pytest.raises(InputError, match=problem):
        run_grid(grid_file(tmp_path, text.replace("ROW", row)), dry_run=True)
    with pytest.raises(InputError, match=f"row bad: {problem}"):
        load_grid(grid_file(tmp_path, text.replace("ROW", row)))


def test_a_value_of_an_axis_is_looked_at_too(tmp_path):
    shutil.copy(NOTEBOOK_05, tmp_path / "nb.ipynb")
    file = grid_file(
        tmp_path, "notebook: nb.ipynb\nrows:\n  full: {}\naxes: {text: [findings, repport]}\n"
    )
    with pytest.raises(InputError, match="row full: setting text"):
        load_grid(file)


def test_defaults_that_mean_the_sizes_own_pass(tmp_path):
    shutil.copy(NOTEBOOK_05, tmp_path / "nb.ipynb")
    own = "{epochs: 0, pixels: 0, synthetic_per_real: -1, synthetic_pool: -1, pretrain_on: none, folds: 5}"
    file = grid_file(tmp_path, f"notebook: nb.ipynb\nrows:\n  full: {own}\n")
    assert len(load_grid(file).runs) == 1


def test_parameters_of_another_notebook_are_its_own(project):
    """`width`, `folds` and `text` are settings of the method; a notebook that makes none may call anything so."""
    parameters = PARAMETERS + '\ntext: str = "long"  # words'
    for save, fine in ((SAVE, True), (SAVE + "\nsize_settings('smoke', text=text)", False)):
        write_notebook(project / "tiny.ipynb", WORK, save, parameters)
        file = grid_file(
            project, GRID.replace("{shift: true}", "{width: 2.5, folds: 1, text: short}")
        )
        if fine:
            assert len(load_grid(file).runs) == 4
        else:
            with pytest.raises(InputError, match="row shifted: setting text"):
                load_grid(file)


def test_a_grid_runs_reports_and_is_not_run_twice(project):
    text = GRID.replace("  shifted:", "  broken: {mode: raise}\n  dead: {mode: exit}\n  shifted:")
    file = grid_file(project, text.replace("seeds: [0, 1]", "seeds: [0]"))
    plan = run_grid(file, dry_run=True)
    told = CliRunner().invoke(grid_app, ["run", str(file), "--dry-run"]).stdout.splitlines()[-1]
    assert told == "4 of 4 runs to go; how long they take is not known: none is done"
    assert list(plan["state"]) == ["to do"] * 4 and not (project / "papermill_runs").exists()
    status = run_grid(file, workers=2, progress=False).set_index("row")
    assert dict(status["state"]) == {
        "full": "done",
        "broken": "failed",
        "dead": "failed",
        "shifted": "done",
    }
    assert "ValueError: no luck with seed 0 in cell In [3]" in status["error"]["broken"]
    assert "the kernel died in cell In [3]" in status["error"]["dead"]
    for row, where in status["where"].items():
        path, _, anchor = where.partition("#")
        assert (project / path).name == "run.ipynb" and (project / path).is_file()
        assert anchor == ("papermill-error-cell" if row == "broken" else "")
    executed = nbformat.read(project / status["where"]["broken"].partition("#")[0], 4)
    raised = [cell for cell in executed.cells if "no luck" in str(cell.get("outputs"))]
    assert [cell["execution_count"] for cell in raised] == [3]  # as the message says
    made = {path: path.stat().st_mtime_ns for path in project.rglob("metrics.json")}
    (project / "mended").touch()  # now `raise` does not
    status = run_grid(file, only=["full", "broken"], progress=False)
    assert list(status["state"]) == ["done", "done"]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())
    plan = run_grid(file, dry_run=True)
    assert plan["expected_seconds"].gt(0).all()
    told = CliRunner().invoke(grid_app, ["run", str(file), "--dry-run"])
    left = plan.loc[plan["state"] != "done", "expected_seconds"].sum()
    assert told.exit_code == 0 and told.stdout.splitlines()[-1].startswith(
        f"1 of 4 runs to go: {left:.0f} s if each"
    )

    table = collect(file)
    assert list(table["row"]) == ["full", "broken", "dead", "shifted"]
    assert list(table["state"]) == ["done", "done", "failed", "done"]
    expected = [value_of(0), value_of(0), None, value_of(0, shift=True)]
    pd.testing.assert_series_equal(
        table["auc"], pd.Series(expected, dtype=float), check_names=False
    )
    assert table["device"].dropna().str.contains("CPU").all()
    stored = pd.read_csv(project / "papermill_runs" / "toy" / "table.csv")
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)
    numbered = project / "papermill_runs" / "toy" / expand(file)[0].id / "predictions.csv"
    numbered.write_text(
        numbered.read_text().replace("P0,", "000,").replace("P1,", "001,").replace("P2,", "002,")
    )
    assert collect_predictions(file)["study_id"].head(3).tolist() == ["000", "001", "002"]
    predictions = collect_predictions(file)
    assert (
        list(predictions.columns) == ["row", "seed", "study_id", "scar", "p_lge"]
        and len(predictions) == 3 * 3
    )

    folder = project / "papermill_runs" / "toy"
    (folder / "0123456789abcdef").mkdir()
    (folder / "reference_predictions.csv").touch()
    asked = CliRunner().invoke(grid_app, ["clean", str(file)], input="n\n")
    assert asked.exit_code == 1 and "other code, parameters or data: 1." in asked.output
    assert (folder / "0123456789abcdef").is_dir()
    assert clean(file) == [".locks", "0123456789abcdef", "failed"]
    assert (collect(file)["state"] == "done").sum() == 3
    with (
        locked(folder / ".locks" / expand(file)[0].id),
        pytest.raises(InputError, match=f"runs are going on: {expand(file)[0].id}"),
    ):
        clean(file, everything=True)
    assert len(clean(file, everything=True)) == 7 and not any(folder.iterdir())


def test_a_notebook_edited_meanwhile_is_not_run_under_the_old_name(project):
    file = grid_file(project)
    run, version = expand(file)[0], notebook_version(project / "tiny.ipynb")
    write_notebook(project / "tiny.ipynb", work=WORK + "\n1 + 1")
    with pytest.raises(RunError, match="the notebook was edited"):
        run_one(
            str(project / "tiny.ipynb"),
            str(project / "out" / run.id),
            run.params,
            None,
            str(project),
            1,
            version,
        )
    assert not (project / "out" / run.id).exists()


def test_a_run_that_cannot_begin_is_recorded_and_the_command_fails(project, monkeypatch):
    file = grid_file(project, GRID.replace("[0, 1]", "[0]"))
    run_grid(file, only="full", progress=False)
    folder = project / "papermill_runs" / "toy"
    shutil.rmtree(folder / ".locks")
    (folder / ".locks").touch()  # no folder: no lock can be taken
    done = CliRunner().invoke(grid_app, ["run", str(file)])
    assert done.exit_code == 1
    status = grid_status(file).set_index("row")
    assert (
        dict(status["state"]) == {"full": "done", "shifted": "failed"}
        and "File exists" in status["error"]["shifted"]
    )
    (folder / ".locks").unlink()
    assert CliRunner().invoke(grid_app, ["run", str(file), "--only", "full"]).exit_code == 0
    monkeypatch.setattr("lgekit.grid.run._run_all", lambda *given: shutil.rmtree(folder / "failed"))
    assert (
        CliRunner().invoke(grid_app, ["run", str(file)]).exit_code == 1
    )  # neither failed nor done


def test_a_run_past_its_time_fails_and_the_rest_goes_on(project):
    text = GRID.replace("  shifted:", "  slow: {mode: sleep}\n  shifted:").replace("[0, 1]", "[0]")
    status = run_grid(grid_file(project, text + "timeout: 4\n"), workers=1, progress=False)
    assert list(status["state"]) == ["done", "failed", "done"]
    assert "longer than the 4 s allowed" in status["error"][1]


def test_a_full_disk_fails_its_run_and_the_next_call_completes_the_grid(project):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(project)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        write_notebook(project / "tiny.ipynb")
        file = grid_file(
            project,
            GRID.replace("  shifted:", "  filling: {mode: fill}\n  shifted:").replace(
                "[0, 1]", "[0]"
            ),
        )
        status = run_grid(file, workers=1, progress=False).set_index("row")
        assert dict(status["state"]) == {"full": "done", "filling": "failed", "shifted": "done"}
        assert "No space" in status["error"]["filling"]
        folder = project / "papermill_runs" / "toy"
        assert_whole(folder)
        made = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
        assert len(made) == 2 and not list(folder.glob(".*.part"))
        subprocess.run(["mount", "-o", "remount,size=30m", str(project)], check=True)
        assert (run_grid(file, workers=1, progress=False)["state"] == "done").all()
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())
    finally:
        subprocess.run(["umount", "-l", str(project)], check=True)


def test_the_status_tells_what_a_running_run_is_at(project):
    file = grid_file(project)
    grid = load_grid(file)
    part = grid.folder / f".{grid.runs[1].id}.abc.part"
    part.mkdir(parents=True)
    (part / "params.json").write_text("{}")
    os.utime(part / "params.json", (time.time() - 60,) * 2)
    cells = [
        nbformat.v4.new_markdown_cell(text)
        for text in ("# Tiny", "Words.\n\n## Train\n\nMore.", "## Read")
    ]
    cells.insert(
        2, nbformat.v4.new_code_cell("fit()", metadata={"papermill": {"status": "running"}})
    )
    nbformat.write(nbformat.v4.new_notebook(cells=cells), part / "run.ipynb")
    with locked(grid.folder / ".locks" / grid.runs[1].id):
        row = grid_status(file).iloc[1]
        assert (row["state"], row["where"]) == ("running", "in “Train”") and 60 <= row[
            "seconds"
        ] < 90
        expected = run_grid(file, dry_run=True)["expected_seconds"]
    assert expected.isna().all()  # what a run has taken so far says nothing of what it will take
    assert grid_status(file)["state"].eq("to do").all()


@pytest.mark.slow
def test_a_failed_run_is_tried_again_where_asked(project):
    work = "import os\nif not os.path.exists('tried'): open('tried', 'w'); raise OSError('busy')\nvalue = 1"
    write_notebook(project / "tiny.ipynb", work=work)
    file = grid_file(project, "notebook: tiny.ipynb\nrows: {full: {}}\n")
    assert (
        list(run_grid(file, retries=1, progress=False)["state"]) == ["done"]
        and (project / "tried").exists()
    )


def test_workers_share_the_cores_and_get_a_gpu_each(project, monkeypatch):
    work = "import os, time\ntime.sleep(1.5)\nvalue, e = seed, os.environ"
    save = "from lgekit.workbook import save_run\n"
    save += "save_run(out, {'gpu': e['CUDA_VISIBLE_DEVICES'], 'threads': e['OMP_NUM_THREADS']})"
    write_notebook(project / "tiny.ipynb", work, save)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-6")
    file = grid_file(project, GRID.replace("[0, 1]", "[0]"))
    run_grid(file, progress=False)
    table = collect(file)
    assert set(table["gpu"]) == {"5", "GPU-6"}
    assert set(table["threads"]) == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_a_run_keeps_its_memory_between_steps(project):
    """Dask's workers are told to give it back at once; a kernel that inherits this faults in each tensor anew."""
    work = "import resource, torch\nfor _ in range(5): torch.ones(1_000_000).add_(1)\n"  # what torch loads late, first
    work += "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
    work += "for _ in range(50): torch.ones(1_000_000).add_(1)\n"
    work += "value = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before"
    write_notebook(project / "tiny.ipynb", work)
    file = grid_file(project, "notebook: tiny.ipynb\nrows: {full: {}}\n")
    run_grid(file, progress=False)
    assert (
        collect(file)["auc"].item() < 5_000
    )  # 50 tensors of 977 pages, each faulted in anew, are 48,850


def test_ten_thousand_rows_expand_and_report_in_under_five_seconds(project):
    rows = "\n".join(f"  r{number}: {{width: {number}.5, shift: true}}" for number in range(10_000))
    file = grid_file(project, f"notebook: tiny.ipynb\nrows:\n{rows}\n")
    folder = project / "papermill_runs" / "toy"
    for run in expand(file)[::10]:
        (folder / run.id).mkdir(parents=True)
        (folder / run.id / "environment.json").write_text('{"wall_seconds": 2}')
    started = time.process_time()
    status = grid_status(file)
    assert time.process_time() - started < 5
    assert len(status) == 10_000 and (status["state"] == "done").sum() == 1000


@pytest.mark.parametrize("file", KEPT, ids=lambda path: path.stem)
def test_the_grids_kept_in_the_repository_expand(file):
    from lgekit.evaluation.compare import ROWS

    content = yaml.safe_load(file.read_text())
    lower = {"orientation": "no_orientation"}.get(
        file.stem, "plain_clip"
    )  # each has a row that leaves much out
    assert {"full", lower} <= {run.row for run in expand(file)}
    rows = {name: content["rows"].get(name, changes) for name, changes in ROWS.items()}
    assert rows.pop("full") in (
        {},
        {"compare_with": "supervised"},
    )  # a reference beside the whole method, nothing less
    assert rows == {name: changes for name, changes in ROWS.items() if name != "full"}


# ---- faults -------------------------------------------------------------------------------------------------------

RUN = "import sys; from lgekit.grid.run import run_grid; run_grid(sys.argv[1], progress=False, **eval(sys.argv[2]))"


def start_grid(file: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, str(file), "{'workers': 2}"]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def processes_of(project: Path) -> list[psutil.Process]:
    """Kernels of the project's runs: their working folder is the project."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(project):
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_over(grid: subprocess.Popen, project: Path, folder: Path) -> bool:
    """Nothing is left of a killed grid: a worker's lock outlives its kernel and its own main thread by a moment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):  # it has just ended
            if os.getsid(process.pid) == grid.pid and process.status() != psutil.STATUS_ZOMBIE:
                return False
    return not processes_of(project) and not any(
        is_locked(path) for path in folder.glob(".locks/*")
    )


def assert_whole(folder: Path) -> int:
    """Every folder that carries a run's name is a whole run; returns their number."""
    done = [path for path in folder.glob("*") if path.is_dir() and len(path.name) == 16]
    for path in done:
        assert {file.name for file in path.iterdir()} == FILES
        assert json.loads((path / "metrics.json").read_text())["auc"] is not None
    return len(done)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.timeout(600)
def test_a_grid_killed_at_ten_random_moments_ends_with_the_same_table(project):
    write_notebook(project / "tiny.ipynb", work=WORK + "\ntime.sleep(0.5)")
    text = GRID.replace("[0, 1]", "[0, 1, 2, 3, 4, 5]")
    unbroken = grid_file(project, text, "unbroken")
    assert (run_grid(unbroken, workers=2, progress=False)["state"] == "done").all()
    file = grid_file(project, text, "broken")
    folder = project / "papermill_runs" / "broken"
    chosen, before = time.time_ns(), 0
    print(f"random seed: {chosen}")  # shown where the test fails
    rng = random.Random(chosen)
    for _ in range(10):
        grid = start_grid(file)
        time.sleep(rng.uniform(0.2, 6))
        family = [psutil.Process(grid.pid), *psutil.Process(grid.pid).children(recursive=True)]
        victims = rng.choice(
            [family[:1], family, [rng.choice(family)]]
        )  # the grid, all at once, or any one process
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        if grid.poll() is None and family[0] not in victims:
            time.sleep(rng.uniform(0, 2))  # it goes on without the one that was killed, for a while
            grid.kill()
        grid.wait()
        after = assert_whole(folder) if folder.exists() else 0
        assert after >= before, "a finished run was lost"
        before = after
        if before > 9:  # begin anew: else there would soon be nothing left to kill
            wait_for(partial(is_over, grid, project, folder), 15)
            clean(file, everything=True)
            before = 0
    assert (run_grid(file, workers=2, progress=False)["state"] == "done").all()
    assert_whole(folder)
    assert not list(folder.glob(".*.part"))
    tables = [
        collect(path).drop(columns=["commit"]) for path in (unbroken, file)
    ]  # the test takes a minute
    pd.testing.assert_frame_equal(*tables)
    assert list(tables[0]["auc"]) == [
        value_of(seed, shift=shift) for shift in (False, True) for seed in range(6)
    ]
    wait_for(lambda: not processes_of(project), 15)


@pytest.mark.timeout(300)
def test_a_killed_worker_costs_no_run(project):
    write_notebook(project / "tiny.ipynb", work=WORK + "\ntime.sleep(2)")
    file = grid_file(project)
    grid = start_grid(file)
    wait_for(lambda: len(processes_of(project)) == 2)
    kernel = processes_of(project)[0]
    kernel.parent().kill()  # the worker; its kernel follows
    assert grid.wait(120) == 0
    assert list(grid_status(file)["state"]) == ["done"] * 4
    assert not list((project / "papermill_runs" / "toy").glob("failed/*"))


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(project):
    with pytest.raises(InputError, match="'tcp://127.0.0.1:1' does not answer"):
        run_grid(grid_file(project), scheduler="tcp://127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_running_scheduler_is_used_and_its_death_reported(project):
    write_notebook(project / "tiny.ipynb", work=WORK + "\ntime.sleep(2 * seed)")
    file = grid_file(project)
    port = random.Random(os.getpid()).randint(20_000, 40_000)
    dask = Path(sys.executable).with_name("dask")
    address = f"tcp://127.0.0.1:{port}"
    options = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    command = [dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    scheduler = subprocess.Popen(command, **options)
    workers = subprocess.Popen(
        [dask, "worker", address, "--nthreads", "1", "--nworkers", "2"], **options
    )
    try:
        status = run_grid(file, scheduler=address, seeds=[0], progress=False)
        assert list(status["state"]) == ["done", "done"]
        (project / "papermill_runs" / "toy" / ".locks").rmdir()
        grid = subprocess.Popen(
            [sys.executable, "-c", RUN, str(file), repr({"scheduler": address})],
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: len(processes_of(project)) == 2)
        scheduler.kill()
        _, printed = grid.communicate(timeout=120)
        assert grid.returncode == 1 and "the scheduler was lost with 2 runs to go" in printed
    finally:
        for process in scheduler, workers:
            process.kill()
            process.wait()
    wait_for(lambda: not processes_of(project))
    assert list(run_grid(file, progress=False)["state"]) == ["done"] * 4


def short_or_long(folder: str, name: str) -> bool:
    """A short run takes half a second and leaves a file; a long one waits for ten of these, half a minute at most."""
    if name != "long":
        time.sleep(0.5)
        Path(folder, name).touch()
        return True
    give_up = time.monotonic() + 30
    while len(os.listdir(folder)) < 10 and time.monotonic() < give_up:
        time.sleep(0.1)
    return len(os.listdir(folder)) == 10


@pytest.mark.parametrize("devices", ["", "0,1"])
def test_short_runs_behind_a_long_one_go_to_the_free_worker(tmp_path, monkeypatch, devices):
    """The long run ends when all short ones have: it would wait in vain for any that its worker was to do."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    with connect(None, 2, 11) as (client, _, needs):
        names = [
            f"{letter}93c5cb0a5fc26ac" for letter in "abcdefghijk"
        ]  # ids begin with a letter or a digit
        jobs = [
            (str(tmp_path), "long"),
            *[(str(tmp_path), f"short{number}") for number in range(10)],
        ]
        futures = submit_all(client, short_or_long, jobs, names, resources=needs)
        # one group to Dask, which therefore keeps them at the scheduler: it deals groups of their own out at the start
        assert len({key_split(future.key) for future in futures}) == 1
        assert all(client.gather(futures))
