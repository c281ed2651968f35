"""Ablation grids: a YAML file → runs of one notebook → Papermill on Dask → one tidy table.

A grid file::

    notebook: notebooks/05_clip_captioning.ipynb     # from the project's folder, as are the paths in SPECs
    parameters: {cohort: "phantom:studies=965,seed=0"}   # of every run
    rows:                                            # the rows of the ablation table
      full: {}
      no_caption: {caption_weight: 0}
    seeds: [0, 1, 2]                                 # the notebook's parameter `seed`
    folds: 5                                         # optional: parameters `folds` = 5 and `fold` = 0 … 4
    axes: {studies: [50, 100]}                       # optional: any further parameter, crossed with the rest
    timeout: 3600                                    # optional: seconds a run may take

A run is known by the hash of all it depends on: the notebook's code, its parameters, the library's code and the
cohort. What is done is never run again; what changed is. Runs lie in ``papermill_runs/<name of the file>/<run id>/``.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgekit.cluster import connect, cores
from lgekit.errors import InputError
from lgekit.fingerprints import missing_path
from lgekit.grid_file import Grid, Run, expand, load_grid, notebook_version
from lgekit.grid_tables import (
    clean,
    collect,
    collect_predictions,
    grid_status,
    names_in,
    older_runs,
    status_of,
    sweep,
)
from lgekit.runs import RunError, record_failure, run_notebook

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Grid", "Run", "clean", "collect", "collect_predictions", "expand", "grid_status", "load_grid", "older_runs"]
__all__ += ["run_grid"]

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
        raise InputError("timeout", f"{timeout:g} is no time for a run", "Give seconds, more than 0")
    grid = load_grid(file)
    runs = _choose(grid, only, seeds)
    for cohort in dict.fromkeys(str(run.params.get("cohort", "")) for run in runs):
        if missing := missing_path(cohort, grid.root):
            fault = InputError(f"{grid.file}, cohort {cohort!r}", f"{missing} is not there", "Mend the path")
            if not dry_run:
                raise fault
            warnings.warn(f"{fault}; nothing would run", stacklevel=2)  # a plan can be read where the data are not
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
    there: dict[str, set] = {"row": {run.row for run in grid.runs}, "seed": {run.axes["seed"] for run in grid.runs}}
    for kind, asked in ("row", only), ("seed", seeds):
        for name in set(asked or ()) - there[kind]:
            names = sorted(map(str, there[kind]))
            close = difflib.get_close_matches(str(name), names, n=3) or names
            raise InputError(grid.file, f"has no {kind} {name!r}", f"Choose from {', '.join(close)}")
    return [r for r in grid.runs if (not only or r.row in only) and (not seeds or r.axes["seed"] in seeds)]


def _seed_first(run: Run) -> int:
    """A grid that is stopped half-way has whole seeds rather than whole rows. Within a seed it goes row by row, so that
    runs side by side are of different folds: they share no stage that one would have to wait for."""
    return run.axes["seed"]


def _run_all(grid: Grid, todo: dict[str, Run], workers, scheduler, timeout, retries: int, progress: bool) -> None:
    from distributed import as_completed
    from tqdm.auto import tqdm

    with connect(scheduler, workers, len(todo)) as (client, share, resources):
        code = notebook_version(grid.notebook)
        jobs = [
            (str(grid.notebook), str(grid.folder / run.id), run.params, timeout, str(grid.root), share, code)
            for run in todo.values()
        ]
        options = {"retries": retries, "resources": resources}
        futures = dict(zip(submit_all(client, run_one, jobs, list(todo), **options), todo.values(), strict=True))
        import pandas  # noqa: F401  the table at the end needs it; now there is time

        lost = 0
        with tqdm(total=len(futures), desc=grid.file.stem, unit="run", disable=not progress) as bar:
            for future in as_completed(futures):
                run = futures[future]
                if future.status == "error":
                    error = future.exception()
                    if not isinstance(error, RunError) or run.id not in names_in(grid.folder / "failed"):
                        # its worker died, again and again, or could not write
                        record_failure(grid.folder / run.id, f"{type(error).__name__}: {error}")
                    bar.write(f"failed: {run.row} {run.axes}: {error}")
                lost += future.status in ("cancelled", "lost")
                bar.update()
    if lost:
        raise RunError(f"the scheduler was lost with {lost} runs to go; what is done is kept: run the grid again")


def submit_all(client, call: Callable, jobs: Sequence[tuple], names: Sequence[str], **options: Any) -> list:
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


def run_one(notebook: str, out_dir: str, params: dict, timeout: float | None, root: str, share: int, code: str) -> None:
    """One run, on a worker whose host runs ``share`` of them at a time: each gets its part of the cores."""
    if notebook_version(notebook) != code:
        message = "the library or the notebook was edited after the grid was started: start the grid again"
        record_failure(out_dir, message)
        raise RunError(message)
    threads = str(max(1, cores() // share))
    env = {name: threads for name in THREADS} | MALLOC
    run_notebook(notebook, out_dir, params, timeout, progress=False, root=root, env=env, skip_done=True)
