"""Run grids."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import shutil
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgekit.cache import is_locked
from lgekit.data.readers import missing_path
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


LOCAL = {
    "distributed.scheduler.worker-saturation": 1.0,  # no run waits behind a long one
    "distributed.worker.profile.enabled": False,  # it would sample each process a hundred times a second
}
BYTES_A_RUN = 3e9  # memory left free for each run: torch, a cohort and a small model


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Names of the GPUs to use, as ``CUDA_VISIBLE_DEVICES`` takes them; found without importing torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [
            name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name and name != "-1"
        ]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [
        str(number)
        for number, line in enumerate(listed.stdout.splitlines())
        if line.startswith("GPU ")
    ]


@contextlib.contextmanager
def connect(
    scheduler: str | None, workers: int | None, runs: int
) -> Iterator[tuple[Client, int, dict[str, float]]]:
    """A Dask client for so many runs, closed at the end with the processes it started.

    Args:
        scheduler: address of a running scheduler, or None: processes of this machine.
        workers: how many of them; None: one a GPU, or one a core as far as the memory goes.
        runs: no more workers than runs.

    Yields:
        The client; how many runs a host carries at a time; the resources that each run needs.

    Raises:
        InputError: no scheduler answers there.
    """
    import dask
    import psutil
    from distributed import Client, Nanny, Scheduler, SpecCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, ValueError) as error:
            raise InputError(
                "scheduler", f"{scheduler!r} does not answer", "Start it: `dask scheduler`"
            ) from error
        with client:
            client.wait_for_workers(1)  # for what runs need is read from the workers that are there
            there = client.scheduler_info(n_workers=-1)["workers"].values()
            hosts = Counter()  # type: Counter[str]
            for worker in there:
                hosts[worker["host"]] += worker["nthreads"]
            needs = {"GPU": 1.0} if any("GPU" in worker["resources"] for worker in there) else {}
            yield client, max(hosts.values(), default=1), needs
        return
    devices = gpus()
    fitting = min(cores(), max(1, int(psutil.virtual_memory().available / BYTES_A_RUN)))
    count = max(1, min(workers or len(devices) or fitting, runs))
    specs: dict[int, dict[str, Any]] = {}
    for number in range(count):
        options: dict[str, Any] = {
            "nthreads": 1,
            "memory_limit": 0,
            "silence_logs": logging.CRITICAL,
        }
        if devices:
            options["env"] = {
                "CUDA_VISIBLE_DEVICES": devices[number % len(devices)]
            }  # one thread, one GPU
        specs[number] = {
            "cls": Nanny,
            "options": {**options, "host": "127.0.0.1", "dashboard": False},
        }
    watch = {"dashboard": find_spec("bokeh") is not None, "dashboard_address": "127.0.0.1:0"}
    here = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **watch}}
    with (
        dask.config.set(LOCAL),
        SpecCluster(workers=specs, scheduler=here, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        # A worker has one thread and one GPU: none need be asked for, and Dask would deal runs with needs out at once
        # instead of giving a worker the next one when it is free.
        yield client, count, {}


# Whoever starts threads or processes in a run reads one of these.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
# Dask bids glibc give freed memory back at once (MALLOC_TRIM_THRESHOLD_=65536), for workers that hold data. A training
# step then gets each of its tensors page by page anew: 5.4 s of system time beside 5.9 s of work, with these 0.4 s [O].
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}  # bytes


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
    """Run what is not yet done. A failing run is recorded and the rest goes on; the next call tries it again.

    Args:
        file: the grid's YAML file.
        workers: processes, each one run at a time; None: one a GPU, or where there is none one a core, as far as the
            memory goes.
        scheduler: address of a running Dask scheduler (``tcp://…``) to use instead; its workers must see the files.
        only: row or rows to run; None: all.
        seeds: seeds to run, of the file's; None: all.
        timeout: seconds a run may take, more than 0; None: the file's.
        dry_run: run nothing; the table then has ``expected_seconds`` too, from earlier runs. A cohort's folder that is
            not there is a warning then.
        retries: times a failed run is tried again at once (a run whose worker was killed is moved in any case).
        progress: show a bar with the time left.

    Returns:
        `grid_status` of the runs chosen.

    Raises:
        InputError: as `load_grid`; an unknown row or seed; no time; a cohort's folder that is not there.
        RunError: the scheduler was lost; what is done is kept.
    """
    if timeout is not None and not timeout > 0:
        raise InputError(
            "timeout", f"{timeout:g} is no time for a run", "Give seconds, more than 0"
        )
    grid = load_grid(file)
    runs = _choose(grid, only, seeds)
    for cohort in dict.fromkeys(str(run.params.get("cohort", "")) for run in runs):
        if missing := missing_path(cohort, grid.root):
            fault = InputError(
                f"{grid.file}, cohort {cohort!r}", f"{missing} is not there", "Mend the path"
            )
            if not dry_run:
                raise fault
            warnings.warn(
                f"{fault}; nothing would run", stacklevel=2
            )  # a plan can be read where the data are not
    if dry_run:
        return status_of(grid, runs, expected=True)
    sweep(grid.folder)
    present = names_in(grid.folder)
    todo = {run.id: run for run in sorted(runs, key=_seed_first) if run.id not in present}
    if todo:
        grid.folder.mkdir(parents=True, exist_ok=True)
        _run_all(grid, todo, workers, scheduler, timeout or grid.timeout, retries, progress)
    return status_of(grid, runs)


def _choose(grid: Grid, only: str | Sequence[str] | None, seeds: Sequence[int] | None) -> list[Run]:
    only = [only] if isinstance(only, str) else only
    there: dict[str, set] = {
        "row": {run.row for run in grid.runs},
        "seed": {run.axes["seed"] for run in grid.runs},
    }
    for kind, asked in ("row", only), ("seed", seeds):
        for name in set(asked or ()) - there[kind]:
            names = sorted(map(str, there[kind]))
            close = difflib.get_close_matches(str(name), names, n=3) or names
            raise InputError(
                grid.file, f"has no {kind} {name!r}", f"Choose from {', '.join(close)}"
            )
    return [
        r
        for r in grid.runs
        if (not only or r.row in only) and (not seeds or r.axes["seed"] in seeds)
    ]


def _seed_first(run: Run) -> int:
    """A grid that is stopped half-way has whole seeds rather than whole rows. Within a seed it goes row by row, so that
    runs side by side are of different folds: they share no stage that one would have to wait for."""
    return run.axes["seed"]


def _run_all(
    grid: Grid, todo: dict[str, Run], workers, scheduler, timeout, retries: int, progress: bool
) -> None:
    from distributed import as_completed
    from tqdm.auto import tqdm

    with connect(scheduler, workers, len(todo)) as (client, share, resources):
        code = notebook_version(grid.notebook)
        jobs = [
            (
                str(grid.notebook),
                str(grid.folder / run.id),
                run.params,
                timeout,
                str(grid.root),
                share,
                code,
            )
            for run in todo.values()
        ]
        options = {"retries": retries, "resources": resources}
        futures = dict(
            zip(
                submit_all(client, run_one, jobs, list(todo), **options), todo.values(), strict=True
            )
        )
        import pandas  # noqa: F401  the table at the end needs it; now there is time

        lost = 0
        with tqdm(total=len(futures), desc=grid.file.stem, unit="run", disable=not progress) as bar:
            for future in as_completed(futures):
                run = futures[future]
                if future.status == "error":
                    error = future.exception()
                    if not isinstance(error, RunError) or run.id not in names_in(
                        grid.folder / "failed"
                    ):
                        # its worker died, again and again, or could not write
                        record_failure(grid.folder / run.id, f"{type(error).__name__}: {error}")
                    bar.write(f"failed: {run.row} {run.axes}: {error}")
                lost += future.status in ("cancelled", "lost")
                bar.update()
    if lost:
        raise RunError(
            f"the scheduler was lost with {lost} runs to go; what is done is kept: run the grid again"
        )


def submit_all(
    client, call: Callable, jobs: Sequence[tuple], names: Sequence[str], **options: Any
) -> list:
    """Futures of the jobs, in their order.

    All keys have one prefix: so Dask takes the jobs for one group, keeps them at the scheduler and gives each worker
    the next when it is free. With a prefix each it dealt them all out at the start, long and short, and a worker that
    had drawn the short ones stood idle.
    """
    keys = [f"run-{name}-{os.urandom(4).hex()}" for name in names]
    options = {name: value for name, value in options.items() if value}
    return [
        client.submit(call, *job, key=key, priority=-number, pure=False, **options)
        for number, (job, key) in enumerate(zip(jobs, keys, strict=True))
    ]


def run_one(
    notebook: str,
    out_dir: str,
    params: dict,
    timeout: float | None,
    root: str,
    share: int,
    code: str,
) -> None:
    """One run, on a worker whose host runs ``share`` of them at a time: each gets its part of the cores."""
    if notebook_version(notebook) != code:
        message = "the library or the notebook was edited after the grid was started: start the grid again"
        record_failure(out_dir, message)
        raise RunError(message)
    threads = str(max(1, cores() // share))
    env = {name: threads for name in THREADS} | MALLOC
    run_notebook(
        notebook, out_dir, params, timeout, progress=False, root=root, env=env, skip_done=True
    )


TABLE, PREDICTIONS, REFERENCES = "table.csv", "predictions.csv", "reference_predictions.csv"
ERROR_CELL = "papermill-error-cell"  # the anchor that Papermill sets before a cell that raised


def grid_status(file: str | Path) -> pd.DataFrame:
    """One row a run: the axes (``row``, ``seed``, …), ``run_id``, ``state`` (done, failed, running, to do),
    ``seconds`` it took or has been running, ``error``, and ``where`` its executed notebook lies, from the project's
    folder, with the anchor of the cell that raised; of one that is running, the heading it has come to.

    Raises:
        InputError: as `lgekit.grid.file.load_grid`.
    """
    grid = load_grid(file)
    return status_of(grid, grid.runs)


def status_of(grid: Grid, runs: Iterable[Run], expected: bool = False) -> pd.DataFrame:
    """`grid_status` of some of a grid's runs; ``expected`` adds the mean time of the row's runs so far, else of all."""
    import pandas as pd

    done, failed, locks = (names_in(grid.folder / name) for name in ("", "failed", ".locks"))
    lines = []
    for run in runs:
        line: dict[str, Any] = {"row": run.row, **run.axes, "run_id": run.id, "state": "to do"}
        line |= {"seconds": None, "error": "", "where": ""}
        if run.id in done:
            environment = _read(grid.folder / run.id / ENVIRONMENT)
            line |= {"state": "done", "seconds": environment.get("wall_seconds")}
            line["where"] = _relative(grid, grid.folder / run.id / NOTEBOOK)
        elif run.id in locks and is_locked(grid.folder / ".locks" / run.id):
            line |= {"state": "running", **_progress(grid.folder, run.id)}
        elif run.id in failed:
            place = grid.folder / "failed" / run.id
            line |= {"state": "failed", "error": _read(place / ERROR).get("error", "")}
            line["where"] = _relative(
                grid, place / NOTEBOOK if (place / NOTEBOOK).exists() else place
            )
            if (place / NOTEBOOK).exists() and ERROR_CELL in (place / NOTEBOOK).read_text("utf-8"):
                line["where"] += f"#{ERROR_CELL}"  # a link to the failing cell itself
        lines.append(line)
    table = pd.DataFrame(lines).astype({"seconds": float})
    if expected:
        everything = [_read(grid.folder / name / ENVIRONMENT).get("wall_seconds") for name in done]
        overall = pd.Series(everything, dtype=float).mean()
        took = table["seconds"].where(table["state"] == "done")
        table["expected_seconds"] = (
            took.groupby(table["row"]).transform("mean").fillna(overall).round(1)
        )
    return table


def collect(file: str | Path, out: str | Path | None = None) -> pd.DataFrame:
    """All metrics of a grid as one tidy table, also written as CSV.

    Args:
        file: the grid's YAML file.
        out: the CSV; None: ``table.csv`` in the grid's folder.

    Returns:
        One row a run, in the file's order: the axes, ``run_id``, ``state``, ``commit`` (with ``+`` where the checkout
        was changed), ``device``, then the metrics by name (nested ones joined by dots). Runs that are not done are
        there, with missing metrics: no row is hidden.

    Raises:
        InputError: as `load_grid`; no run is done.
    """
    grid = load_grid(file)
    table = status_of(grid, grid.runs).drop(columns=["seconds", "error", "where"])
    _require_done(grid, table)
    metrics = []
    for run, state in zip(grid.runs, table["state"], strict=True):
        line: dict[str, Any] = {}
        if state == "done":
            environment = _read(grid.folder / run.id / ENVIRONMENT)
            line["commit"] = environment.get("commit", "")[:12] + "+" * bool(
                environment.get("dirty")
            )
            line["device"] = environment.get("device", "")
            line |= dict(sorted(_flat(load_metrics(grid.folder / run.id) or {})))
        metrics.append(line)
    import pandas as pd

    table = table.join(pd.DataFrame(metrics, index=table.index), rsuffix="_metric")
    _save(table, Path(out) if out else grid.folder / TABLE)
    return table


def collect_predictions(
    file: str | Path, out: str | Path | None = None, of: str | Path = PREDICTIONS
) -> pd.DataFrame:
    """The predictions of all finished runs below one another: the axes, then the columns of ``predictions.csv``.

    Args:
        file: the grid's YAML file.
        out: the CSV; None: a file of the same name in the grid's folder.
        of: another table of the runs, ``reference_predictions.csv``; runs without it are passed over.

    Raises:
        InputError: as `load_grid`; no run is done.
    """
    import pandas as pd

    grid = load_grid(file)
    _require_done(grid, status_of(grid, grid.runs))
    tables = []
    for run in grid.runs:
        path = grid.folder / run.id / of
        if path.is_file():
            table = pd.read_csv(path, dtype={"study_id": str, "patient_id": str})  # ids such as 001
            axes = {
                "row": run.row,
                **{name: value for name, value in run.axes.items() if name not in table},
            }
            for place, (name, value) in enumerate(axes.items()):
                table.insert(place, name, value)
            tables.append(table)
    everything = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    _save(everything, Path(out) if out else grid.folder / of)
    return everything


def clean(file: str | Path, everything: bool = False) -> list[str]:
    """Remove what no longer belongs to a grid: runs of older code or parameters, failures, left-over parts.

    Args:
        file: the grid's YAML file.
        everything: remove the finished runs too.

    Returns:
        The names of what was removed.

    Raises:
        InputError: as `load_grid`; runs of the grid are going on.
    """
    grid = load_grid(file)
    busy = [
        name
        for name in names_in(grid.folder / ".locks")
        if is_locked(grid.folder / ".locks" / name)
    ]
    if busy:
        which = ", ".join(sorted(busy)[:3]) + (
            f" and {len(busy) - 3} more" if len(busy) > 3 else ""
        )
        raise InputError(
            grid.folder, f"runs are going on: {which}", "Wait for them, or end them and try again"
        )
    keep = set() if everything else {run.id for run in grid.runs} | {TABLE, PREDICTIONS, REFERENCES}
    gone = sorted(names_in(grid.folder) - keep)
    for name in gone:
        path = grid.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return gone


def older_runs(file: str | Path) -> list[str]:
    """Finished runs in a grid's folder that are none of its runs: of other code, parameters, data, or another file."""
    grid = load_grid(file)
    kept = {run.id for run in grid.runs} | {"failed"}
    names = sorted(names_in(grid.folder) - kept)
    return [name for name in names if not name.startswith(".") and (grid.folder / name).is_dir()]


def sweep(folder: Path) -> None:
    """Remove the half-made folders of runs whose process was killed."""
    for path in folder.glob(".*.part"):
        if not is_locked(folder / ".locks" / path.name.split(".")[1]):
            shutil.rmtree(path, ignore_errors=True)


def names_in(folder: Path) -> set[str]:
    """Names in a folder, none where there is no folder. A finished run's name appears by one rename."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _progress(folder: Path, run_id: str) -> dict[str, Any]:
    """How long a run has been running, and the last heading above the cell that its notebook is in."""
    for part in folder.glob(f".{run_id}.*.part"):
        try:
            seconds = round(time.time() - (part / PARAMS).stat().st_mtime)
        except FileNotFoundError:  # it has just come to its end
            break
        heading = ""
        for cell in _read(part / NOTEBOOK).get("cells", []):
            if cell["cell_type"] == "markdown":
                titles = [
                    line for line in "".join(cell["source"]).splitlines() if line.startswith("#")
                ]
                heading = titles[-1].lstrip("# ") if titles else heading
            elif cell["metadata"].get("papermill", {}).get("status") == "running":
                return {"seconds": seconds, "where": f"in “{heading}”"}
        return {"seconds": seconds}
    return {}


def _require_done(grid: Grid, table: pd.DataFrame) -> None:
    if not (table["state"] == "done").any():
        raise InputError(
            grid.file, "no run of it is done", f"Start it: lgekit grid run {grid.file.name}"
        )


def _relative(grid: Grid, path: Path) -> str:
    return path.relative_to(grid.root).as_posix()


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _flat(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((prefix + name, json.dumps(value) if isinstance(value, list) else value))
    return flat


def _save(table: pd.DataFrame, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(part, index=False)
    os.replace(part, path)
