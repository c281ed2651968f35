"""Ablation grids: read the YAML file, run it with Dask, collect the results."""

import csv
import functools
import glob
import hashlib
import itertools
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import joblib
import pandas as pd
import pydantic as pyd
import yaml

from lgekit import workbook
from lgekit.cache import FIT_ROOMS, code_version, is_locked
from lgekit.config import SIZES, FitSettings, size_settings
from lgekit.errors import InputError, RunError

MOST_ALIASES = 20  # in a grid file: lists of aliases of lists … grow without end
BYTES_PER_RUN = 3e9  # memory that a run needs: torch, a cohort and a small model
DASK = {"distributed.scheduler.worker-saturation": 1.0}  # no run waits behind a long one
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
CHANGES = "changes"  # parameter of a notebook for settings: "NAME=VALUE NAME=VALUE"
TABLE, PREDICTIONS, REFERENCES = "table.csv", "predictions.csv", "reference_predictions.csv"

Scalar = pyd.StrictBool | pyd.StrictInt | pyd.StrictFloat | pyd.StrictStr
Row = Annotated[dict[str, Scalar], pyd.BeforeValidator(lambda row: row or {})]
Values = Annotated[list[Scalar], pyd.Field(min_length=1)]


class GridFile(pyd.BaseModel):
    """The content of a grid's YAML file."""

    model_config = pyd.ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    notebook: str  # path from the project's folder
    parameters: Row = {}  # of all runs
    rows: dict[str, Row] = pyd.Field(min_length=1)  # row → the parameters it changes
    seeds: list[Annotated[int, pyd.Strict(), pyd.Field(ge=0)]] = pyd.Field([0], min_length=1)
    folds: int | None = pyd.Field(None, ge=2)  # of a cross-validation
    axes: dict[str, Values] = {}  # parameter → values, combined with all others
    timeout: float | None = pyd.Field(None, gt=0)  # seconds for a cell


@dataclass(frozen=True)
class Run:
    """One row of a grid at one seed (and fold, and point of further axes)."""

    id: str  # 16 hex digits of all that the run depends on; identical rows share a run
    place: dict[str, Any]  # row, seed, fold and further axes → the value
    params: dict[str, Any]  # of the notebook
    folder: Path

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return (self.folder / workbook.METRICS).exists()


@dataclass(frozen=True)
class Grid:
    """A grid file that was read and checked."""

    file: Path
    spec: GridFile
    root: Path  # the project's folder
    notebook: Path
    folder: Path  # of its runs
    runs: list[Run]


def load_grid(file: str | Path) -> Grid:
    """Read a grid file, check everything its runs could fail on, and list its runs row by row."""
    file = Path(file).absolute()
    try:
        text = file.read_text("utf-8")
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)) > MOST_ALIASES:
            raise ValueError(f"more than {MOST_ALIASES} aliases")
        spec = GridFile.model_validate(yaml.safe_load(text))
    except pyd.ValidationError as error:
        first = error.errors()[0]
        place = " → ".join(map(str, first["loc"][:3])) or "the file"
        remedy = f"The fields are {', '.join(GridFile.model_fields)}"
        raise InputError(f"{file}, {place}", first["msg"], remedy) from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        remedy = "See papermill_runs/grids/ for examples"
        raise InputError(file, f"cannot be read as YAML ({error})", remedy) from error
    for root in (*file.parents, Path.cwd()):
        if (root / spec.notebook).is_file():
            folder = root / "papermill_runs" / file.stem
            grid = Grid(file, spec, root, root / spec.notebook, folder, [])
            return replace(grid, runs=_expand(grid))
    remedy = "Give its path from the project's folder"
    raise InputError(file, f"notebook {spec.notebook!r} does not exist", remedy)


def _expand(grid: Grid) -> list[Run]:
    spec, file = grid.spec, grid.file
    axes: dict[str, Sequence[Any]] = {"seed": spec.seeds, **spec.axes}
    common: dict[str, Any] = {}
    if spec.folds:
        common["folds"], axes["fold"] = spec.folds, range(spec.folds)
    for place, part in {"parameters": spec.parameters, **spec.rows}.items():
        for name in {"out", CHANGES, *axes, *common} & part.keys():
            remedy = "Remove it here: `seeds`, `folds`, `axes` and the names of settings set it"
            raise InputError(f"{file}, {place}", f"{name!r} is set by the grid", remedy)
    defaults = workbook.read_parameters(grid.notebook)
    known = FitSettings().model_dump() | defaults if CHANGES in defaults else defaults
    version, runs = notebook_version(grid.notebook), []
    files_of = functools.cache(cohort_files)
    for row, changes in spec.rows.items():
        for point in itertools.product(*[dict.fromkeys(values) for values in axes.values()]):
            given = common | spec.parameters | changes | dict(zip(axes, point, strict=True))
            given = workbook.check_parameters(known, given, f"{file}, row {row}")
            params = _checked_run(given, defaults, f"{file}, row {row}")
            cohort = str(params.get("cohort", ""))
            known_by = [version, params, files_of(cohort, grid.root)]
            name, at = _digest(known_by)[:16], {axis: given[axis] for axis in axes}
            runs.append(Run(name, {"row": row, **at}, params, grid.folder / name))
    return runs


def _checked_run(given: dict, defaults: dict, where: str) -> dict[str, Any]:
    """Return the parameters of a run, settings as words of `CHANGES`; refuse what would fail."""
    from lgekit.data.readers import parse_spec

    params = {name: given.get(name, default) for name, default in defaults.items() if name != "out"}
    changed = {name: given[name] for name in given.keys() - defaults.keys()}
    try:
        if params.get("cohort"):
            parse_spec(params["cohort"])
        if defaults.get("size") in SIZES:  # as in the workbook's notebooks
            preset = size_settings(params["size"])
            preset.override(**changed)
            # Without words that change nothing, rows that say the same share a run.
            real = {name for name, value in changed.items() if value != getattr(preset, name)}
            params[CHANGES] = " ".join(f"{name}={changed[name]}" for name in sorted(real))
    except InputError as error:
        raise InputError(where, f"{error.where}: {error.problem}", error.remedy) from error
    return params


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def notebook_version(notebook: str | Path) -> str:
    """Hash the code of a notebook and of the library's rooms that it can use."""
    code = [cell["source"] for cell in workbook.read_code(notebook)]
    return _digest([code, code_version(*FIT_ROOMS, "evaluation")])


def cohort_files(spec: str, root: Path) -> list[tuple[str, int, int]]:
    """List name, size and time of change of a SPEC's files, by which a run knows its data.

    All files of a folder count; of a table, the table and the files that its cells name.
    """
    from lgekit.data.readers import path_of

    path = path_of(spec, root)
    if path is None or not path.exists():
        return []
    if path.is_dir():
        folder, names = path, glob.glob("**", root_dir=path, recursive=True, include_hidden=True)
    else:
        rows = csv.reader(path.read_text("utf-8", "replace").splitlines())
        folder, names = path.parent, [path.name, *(cell.strip() for row in rows for cell in row)]
    files = [name for name in sorted(set(names)) if os.path.isfile(folder / name)]
    stats = [(name, (folder / name).stat()) for name in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def run_grid(
    file: str | Path,
    workers: int | None = None,
    scheduler: str | None = None,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Run what is not yet done. A failed run is recorded, and the next call tries it again.

    ``only`` and ``seeds`` choose rows and seeds. Returns `grid_status` of the chosen runs.
    ``workers`` is the number of local processes; None: one per GPU, or else one per core if memory
    allows. ``scheduler`` is the address of a running Dask scheduler (``tcp://…``) whose workers see
    the files; a run has as many threads as ``OMP_NUM_THREADS`` of its worker says. Raises
    InputError if the file is faulty, the cohort is missing, or the scheduler does not answer;
    RunError if the scheduler was lost (finished runs are kept).
    """
    from lgekit.data.readers import path_of  # not in workers, which need no torch

    grid = load_grid(file)
    for kind, chosen in {"row": only, "seed": seeds}.items():
        known = {run.place[kind] for run in grid.runs}
        for name in set(chosen or ()) - known:
            remedy = f"Choose from {', '.join(sorted(map(str, known)))}"
            raise InputError(grid.file, f"has no {kind} {name!r}", remedy)
        runs = [run for run in grid.runs if run.place[kind] in (chosen or known)]
        grid = replace(grid, runs=runs)
    for cohort in {str(run.params.get("cohort", "")) for run in grid.runs}:
        if (path := path_of(cohort, grid.root)) and not path.exists():
            where = f"{grid.file}, cohort {cohort!r}"
            raise InputError(where, f"{path} does not exist", "Correct the path")
    # By seed first: a grid that is stopped early has complete seeds rather than complete rows.
    # Within a seed, runs side by side are of different folds, so none waits for a shared result.
    todo = {run.id: run for run in grid.runs if not run.done}
    in_order = sorted(todo.values(), key=lambda run: run.place["seed"])
    if in_order and not dry_run:
        workbook.require_extra()
        _run_all(replace(grid, runs=in_order), workers, scheduler, progress)
    return grid_status(grid)


def _run_all(grid: Grid, workers: int | None, scheduler: str | None, progress: bool) -> None:
    import dask
    import psutil
    import torch
    from distributed import Client, as_completed
    from tqdm.auto import tqdm

    version, threads = notebook_version(grid.notebook), 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [*map(str, range(torch.cuda.device_count()))]
    options: dict[str, Any] = {"address": scheduler, "timeout": 10}
    if scheduler is None:
        in_memory = max(1, int(psutil.virtual_memory().available / BYTES_PER_RUN))
        most = workers or len(devices) or min(joblib.cpu_count(), in_memory)
        count = min(len(grid.runs), most)
        threads = max(1, joblib.cpu_count() // count)
        options = {"n_workers": count, "threads_per_worker": 1, "memory_limit": 0}
        options |= {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    try:
        with dask.config.set(DASK):
            client = Client(**options)
    except (OSError, ValueError) as error:
        remedy = "Start it: `dask scheduler`"
        raise InputError("scheduler", f"{scheduler!r} does not answer", remedy) from error
    lost = 0
    with client:
        futures = {}
        for number, run in enumerate(grid.runs):
            what = replace(grid, runs=[run]), version, threads, [] if scheduler else devices
            futures[client.submit(run_one, *what, pure=False, priority=-number)] = run
        bar = {"total": len(futures), "desc": grid.file.stem, "disable": not progress}
        for future in tqdm(as_completed(futures), **bar):
            run = futures[future]
            if future.status == "error":
                problem = future.exception()
                if not (run.folder / workbook.ERROR).exists():  # its worker was killed
                    workbook.record_failure(run.folder, f"{type(problem).__name__}: {problem}")
                tqdm.write(f"failed: {run.place}: {problem}")
            lost += future.status in ("cancelled", "lost")
    if lost:
        remedy = "finished runs are kept: run the grid again"
        raise RunError(f"the scheduler was lost with {lost} runs to go; {remedy}")


def run_one(grid: Grid, version: str, threads: int, devices: list[str]) -> None:
    """Run a grid of one run on a worker, with its part of the machine's cores and its own GPU.

    ``version`` is the `notebook_version` when the grid was started. Workers of the user's own
    scheduler keep their number of threads (0 here) and their GPU.
    """
    from distributed import get_worker

    if notebook_version(grid.notebook) != version:
        message = "the library or the notebook was edited after the grid started: start it again"
        raise RunError(message)
    # With this variable of Dask, every training step requests its memory from the system again.
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    if threads:
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(get_worker().name) % len(devices)]
    (run,) = grid.runs
    what = (grid.notebook, run.folder, run.params, grid.spec.timeout)
    workbook.run_notebook(*what, progress=False, root=grid.root, skip_done=True)


def grid_status(file: str | Path | Grid) -> pd.DataFrame:
    """Return the state of each run of a grid.

    One row per run: ``row``, ``seed`` and further axes, ``run_id``, ``state`` (done, failed,
    running, to do), ``seconds`` and ``error``. Its folder has ``run.ipynb``, as far as it ran.
    """
    grid = file if isinstance(file, Grid) else load_grid(file)
    lines = []
    for run in grid.runs:
        line = {"run_id": run.id, "state": "to do", "seconds": None, "error": ""}
        if is_locked(grid.folder / ".locks" / run.id):
            line["state"] = "running"
        elif run.done:
            record = workbook.read_json(run.folder / workbook.ENVIRONMENT)
            line |= {"state": "done", "seconds": record.get("wall_seconds")}
        elif failure := workbook.read_json(run.folder / workbook.ERROR):
            line |= {"state": "failed", "error": failure["error"]}
        lines.append({**run.place, **line})
    return pd.DataFrame(lines).astype({"seconds": float})


def collect(file: str | Path) -> pd.DataFrame:
    """Put the metrics of all runs into one table, and save it (``table.csv`` in the grid's folder).

    One row per run: the axes, ``run_id``, ``state``, ``commit`` (with ``+`` for uncommitted
    changes), ``device`` and the metrics, which are missing for runs that are not done.
    """
    grid, lines = load_grid(file), []
    if not any(run.done for run in grid.runs):
        remedy = f"Start it: lgekit grid run {grid.file.name}"
        raise InputError(grid.file, "no run of it is done", remedy)
    for run in grid.runs:
        record = workbook.read_json(run.folder / workbook.ENVIRONMENT) if run.done else {}
        known = {name: record[name] for name in ("commit", "device") if record}
        lines.append(known | workbook.read_json(run.folder / workbook.METRICS))
    table = grid_status(grid).drop(columns=["seconds", "error"])
    table = table.join(pd.json_normalize(lines).fillna(math.nan), rsuffix="_metric")
    table.to_csv(grid.folder / TABLE, index=False)
    return table


def collect_predictions(file: str | Path, of: str = PREDICTIONS) -> pd.DataFrame:
    """Join the predictions of all finished runs, or another of their tables (``of``).

    Columns for the axes come first. The result is saved under the same name in the grid's folder.
    """
    grid, tables = load_grid(file), []
    for run in grid.runs:
        if run.done and (run.folder / of).exists():
            ids = {"study_id": str, "patient_id": str}  # such as 001
            part = pd.read_csv(run.folder / of, dtype=ids)
            first = {name: [value] for name, value in run.place.items() if name not in part}
            tables.append(pd.DataFrame(first).merge(part, how="cross"))
    everything = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    everything.to_csv(grid.folder / of, index=False)
    return everything
