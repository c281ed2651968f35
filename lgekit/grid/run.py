"""Run grids and collect their results."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib

from lgekit.cache import is_locked, replacing
from lgekit.errors import InputError, RunError
from lgekit.grid.file import Grid, Run, load_grid, notebook_version
from lgekit.workbook import (
    ENVIRONMENT,
    ERROR,
    NOTEBOOK,
    PARAMS,
    load_metrics,
    record_failure,
    run_notebook,
)

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

BYTES_PER_RUN = 3e9  # memory that a run needs: torch, a cohort and a small model
DASK = {
    "distributed.scheduler.worker-saturation": 1.0,  # no run waits behind a long one
    # Dask's own variables make each training step ask the system for its memory again.
    "distributed.nanny.pre-spawn-environ": {},
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
TABLE, PREDICTIONS, REFERENCES = "table.csv", "predictions.csv", "reference_predictions.csv"
ERROR_CELL = "papermill-error-cell"  # the link that Papermill puts before a cell that failed


def gpus() -> list[str]:
    """List the GPUs to use, as in ``CUDA_VISIBLE_DEVICES``."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        names = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        return [name for name in names if name not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def connect(
    scheduler: str | None, workers: int | None, runs: int
) -> Iterator[tuple[Client, int, dict[str, float]]]:
    """Connect to a Dask scheduler, or start processes for the runs on this machine.

    Yields:
        The client, the number of runs that share a host, and the resources that a run needs.
    """
    import dask
    import psutil
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, ValueError) as error:
            remedy = "Start it: `dask scheduler`"
            raise InputError("scheduler", f"{scheduler!r} does not answer", remedy) from error
        with client:
            client.wait_for_workers(1)
            info = client.scheduler_info(n_workers=-1)["workers"].values()
            hosts = Counter(worker["host"] for worker in info for _ in range(worker["nthreads"]))
            has_gpu = any("GPU" in worker["resources"] for worker in info)
            yield client, max(hosts.values()), {"GPU": 1.0} if has_gpu else {}
        return
    in_memory = max(1, int(psutil.virtual_memory().available / BYTES_PER_RUN))
    count = min(runs, workers or len(gpus()) or min(joblib.cpu_count(), in_memory))
    with (
        dask.config.set(DASK),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client, count, {}


def run_grid(
    file: str | Path,
    workers: int | None = None,
    scheduler: str | None = None,
    only: str | Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    timeout: float | None = None,
    dry_run: bool = False,
    retries: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Run what is not yet done. A failed run is recorded, and the next call tries it again.

    Args:
        file: the grid's YAML file.
        workers: local processes; None: one per GPU, or else one per core if memory allows.
        scheduler: address of a running Dask scheduler (``tcp://…``) whose workers see the files.
        only: the row or rows to run; None: all.
        seeds: the seeds to run; None: all.
        timeout: seconds that a run may take; None: as in the file.
        dry_run: run nothing. The table then has ``expected_seconds``, from earlier runs.
        retries: how often a failed run is tried again at once. If a worker is killed, its run is
            always tried again.
        progress: show a progress bar.

    Returns:
        `grid_status` of the chosen runs.

    Raises:
        InputError: as `load_grid`; an unknown row or seed; a bad timeout; a missing cohort (in a
            dry run only a warning); the scheduler does not answer.
        RunError: the scheduler was lost. Finished runs are kept.
    """
    from lgekit.data.readers import missing_path  # not in workers, which need no torch

    if timeout is not None and not timeout > 0:
        raise InputError("timeout", f"{timeout:g} is not a time", "Give seconds, more than 0")
    grid = load_grid(file)
    rows = [only] if isinstance(only, str) else only
    runs = _choose(grid, rows, seeds)
    for cohort in {str(run.params.get("cohort", "")) for run in runs}:
        if missing := missing_path(cohort, grid.root):
            where = f"{grid.file}, cohort {cohort!r}"
            fault = InputError(where, f"{missing} does not exist", "Correct the path")
            if not dry_run:
                raise fault
            warnings.warn(f"{fault}; nothing would run", stacklevel=2)
    if dry_run:
        return _status_of(grid, runs, expected=True)
    for part in grid.folder.glob(".*.part"):  # of runs whose process was killed
        if not is_locked(grid.folder / ".locks" / part.name.split(".")[1]):
            shutil.rmtree(part, ignore_errors=True)
    done = _names(grid.folder)
    # By seed first: a grid that is stopped early has complete seeds rather than complete rows.
    # Within a seed, runs side by side are of different folds, so none waits for a shared result.
    in_order = sorted(runs, key=lambda run: run.axes["seed"])
    if todo := {run.id: run for run in in_order if run.id not in done}:
        grid = replace(grid, runs=list(todo.values()), timeout=timeout or grid.timeout)
        _run_all(grid, workers, scheduler, retries, progress)
    return _status_of(grid, runs)


def _choose(grid: Grid, rows: Sequence[str] | None, seeds: Sequence[int] | None) -> list[Run]:
    known = {"row": {run.row for run in grid.runs}, "seed": {run.axes["seed"] for run in grid.runs}}
    for kind, asked in ("row", rows), ("seed", seeds):
        for name in set(asked or ()) - known[kind]:
            remedy = f"Choose from {', '.join(sorted(map(str, known[kind])))}"
            raise InputError(grid.file, f"has no {kind} {name!r}", remedy)
    of_rows = [run for run in grid.runs if not rows or run.row in rows]
    return [run for run in of_rows if not seeds or run.axes["seed"] in seeds]


def _run_all(
    grid: Grid, workers: int | None, scheduler: str | None, retries: int, progress: bool
) -> None:
    from distributed import as_completed
    from tqdm.auto import tqdm

    code, lost = notebook_version(grid.notebook), 0
    devices = [] if scheduler else gpus()
    with connect(scheduler, workers, len(grid.runs)) as (client, share, needs):
        futures = {}
        for number, run in enumerate(grid.runs):
            # All keys begin alike, so that Dask gives the next run to the first free worker. It
            # would otherwise assign all runs at the start.
            options = {"key": f"run-{run.id}-{os.urandom(4).hex()}", "priority": -number}
            options |= {"retries": retries, "resources": needs or None, "pure": False}
            alone = replace(grid, runs=[run])
            futures[client.submit(run_one, alone, code, share, devices, **options)] = run
        with tqdm(total=len(futures), desc=grid.file.stem, unit="run", disable=not progress) as bar:
            for future in as_completed(futures):
                run = futures[future]
                if future.status == "error":
                    error = future.exception()
                    if run.id not in _names(grid.folder / "failed"):  # its worker was killed
                        record_failure(grid.folder / run.id, f"{type(error).__name__}: {error}")
                    bar.write(f"failed: {run.row} {run.axes}: {error}")
                lost += future.status in ("cancelled", "lost")
                bar.update()
    if lost:
        problem = f"the scheduler was lost with {lost} runs to go"
        raise RunError(f"{problem}; finished runs are kept: run the grid again")


def run_one(grid: Grid, code: str, share: int, devices: list[str]) -> None:
    """Run a grid of one run on a worker, with its part of the host's cores and its own GPU.

    ``code`` is the `notebook_version` when the grid was started; ``share`` runs share the host.
    """
    from distributed import get_worker

    (run,) = grid.runs
    folder = grid.folder / run.id
    if notebook_version(grid.notebook) != code:
        message = "the library or the notebook was edited after the grid started: start it again"
        record_failure(folder, message)
        raise RunError(message)
    env = {name: str(max(1, joblib.cpu_count() // share)) for name in THREADS}
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = devices[int(get_worker().name) % len(devices)]
    what = (grid.notebook, folder, run.params, grid.timeout)
    run_notebook(*what, progress=False, root=grid.root, env=env, skip_done=True)


def grid_status(file: str | Path) -> pd.DataFrame:
    """Return the state of each run of a grid.

    Returns:
        One row per run: ``row``, ``seed`` and further axes, ``run_id``, ``state`` (done, failed,
        running, to do), ``seconds``, ``error``, and ``where``: the executed notebook, with a link
        to the cell that failed, or the heading that a running notebook has reached.
    """
    grid = load_grid(file)
    return _status_of(grid, grid.runs)


def _status_of(grid: Grid, runs: list[Run], expected: bool = False) -> pd.DataFrame:
    import pandas as pd

    done, failed = _names(grid.folder), _names(grid.folder / "failed")
    locks = _names(grid.folder / ".locks")
    lines = []
    for run in runs:
        line: dict[str, Any] = {"row": run.row, **run.axes, "run_id": run.id, "state": "to do"}
        line |= {"seconds": None, "error": "", "where": ""}
        folder = grid.folder / run.id
        if run.id in done:
            line |= {"state": "done", "seconds": _read(folder / ENVIRONMENT).get("wall_seconds")}
            line["where"] = (folder / NOTEBOOK).relative_to(grid.root).as_posix()
        elif run.id in locks and is_locked(grid.folder / ".locks" / run.id):
            line |= {"state": "running", **_position(grid.folder, run.id)}
        elif run.id in failed:
            folder = grid.folder / "failed" / run.id
            line |= {"state": "failed", "error": _read(folder / ERROR).get("error", "")}
            notebook = folder / NOTEBOOK
            place = notebook if notebook.exists() else folder
            line["where"] = place.relative_to(grid.root).as_posix()
            if notebook.exists() and ERROR_CELL in notebook.read_text("utf-8"):
                line["where"] += f"#{ERROR_CELL}"
        lines.append(line)
    table = pd.DataFrame(lines).astype({"seconds": float})
    if expected:
        took = table["seconds"].where(table["state"] == "done")
        by_row = took.groupby(table["row"]).transform("mean")
        everything = [_read(grid.folder / name / ENVIRONMENT).get("wall_seconds") for name in done]
        overall = pd.Series(everything, dtype=float).mean()
        table["expected_seconds"] = by_row.fillna(overall).round(1)
    return table


def _position(folder: Path, run_id: str) -> dict[str, Any]:
    """Find how long a run has been running, and the heading above its current cell."""
    heading = ""
    for part in folder.glob(f".{run_id}.*.part"):
        with suppress(FileNotFoundError):  # the run may just have ended
            seconds = round(time.time() - (part / PARAMS).stat().st_mtime)
            for cell in _read(part / NOTEBOOK).get("cells", []):
                if cell["cell_type"] == "markdown":
                    titles = re.findall(r"(?m)^#+ (.*)", "".join(cell["source"]))
                    heading = (titles or [heading])[-1]
                elif cell["metadata"].get("papermill", {}).get("status") == "running":
                    return {"seconds": seconds, "where": f"in “{heading}”"}
            return {"seconds": seconds}
    return {}


def collect(file: str | Path, out: str | Path | None = None) -> pd.DataFrame:
    """Put the metrics of all runs into one table, and save it (``table.csv`` in the grid's folder).

    Returns:
        One row per run: the axes, ``run_id``, ``state``, ``commit`` (with ``+`` for uncommitted
        changes), ``device`` and the metrics, names of nested ones joined by dots. Runs that are not
        done have missing metrics.

    Raises:
        InputError: as `load_grid`; no run is done.
    """
    import pandas as pd

    grid, table = _load_done(file)
    lines = []
    for run, state in zip(grid.runs, table["state"], strict=True):
        line: dict[str, Any] = {}
        if state == "done":
            record = _read(grid.folder / run.id / ENVIRONMENT)
            line["commit"] = record.get("commit", "")[:12] + "+" * bool(record.get("dirty"))
            line["device"] = record.get("device", "")
            metrics = pd.json_normalize(load_metrics(grid.folder / run.id) or {})
            for name, (value,) in sorted(metrics.items()):
                line[str(name)] = json.dumps(value) if isinstance(value, list) else value
        lines.append(line)
    table = table.drop(columns=["seconds", "error", "where"])
    table = table.join(pd.DataFrame(lines, index=table.index), rsuffix="_metric")
    with replacing(out or grid.folder / TABLE) as part:
        table.to_csv(part, index=False)
    return table


def collect_predictions(file: str | Path, of: str = PREDICTIONS) -> pd.DataFrame:
    """Join the predictions of all finished runs, or another table ``of`` those that have it.

    Columns for the axes come first. The result is saved under the same name in the grid's folder.
    """
    import pandas as pd

    grid, _ = _load_done(file)
    tables = []
    for run in grid.runs:
        path = grid.folder / run.id / of
        if path.is_file():
            table = pd.read_csv(path, dtype={"study_id": str, "patient_id": str})  # ids such as 001
            axes = {name: value for name, value in run.axes.items() if name not in table}
            for place, (name, value) in enumerate({"row": run.row, **axes}.items()):
                table.insert(place, name, value)
            tables.append(table)
    everything = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    with replacing(grid.folder / of) as part:
        everything.to_csv(part, index=False)
    return everything


def _load_done(file: str | Path) -> tuple[Grid, pd.DataFrame]:
    grid = load_grid(file)
    table = _status_of(grid, grid.runs)
    if not (table["state"] == "done").any():
        remedy = f"Start it: lgekit grid run {grid.file.name}"
        raise InputError(grid.file, "no run of it is done", remedy)
    return grid, table


def clean(file: str | Path, everything: bool = False) -> list[str]:
    """Remove runs of older code or parameters, failed runs and unfinished folders.

    With ``everything``, finished runs too. Returns the names of what was removed.

    Raises:
        InputError: as `load_grid`; runs of the grid are going on.
    """
    grid = load_grid(file)
    locks = grid.folder / ".locks"
    if busy := sorted(name for name in _names(locks) if is_locked(locks / name)):
        remedy = "Wait for them, or end them and try again"
        raise InputError(grid.folder, f"runs are going on: {', '.join(busy)}", remedy)
    kept = {TABLE, PREDICTIONS, REFERENCES, *(run.id for run in grid.runs)}
    removed = sorted(_names(grid.folder) - (set() if everything else kept))
    for name in removed:
        path = grid.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return removed


def older_runs(file: str | Path) -> list[str]:
    """List the runs of other code, parameters or data in a grid's folder."""
    grid = load_grid(file)
    others = _names(grid.folder) - {run.id for run in grid.runs} - {"failed"}
    return sorted(name for name in others if name[0] != "." and (grid.folder / name).is_dir())


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
