"""Ablation grids: read the YAML file, run it with Dask, collect the results."""

from __future__ import annotations

import csv
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import joblib
import pandas as pd
import pydantic as pyd
import yaml

from lgekit import workbook
from lgekit.cache import FIT_ROOMS, code_version, is_locked, memory, replacing
from lgekit.config import SIZES, FitSettings, size_settings
from lgekit.errors import InputError, RunError

if TYPE_CHECKING:
    from distributed import Client

# The rooms whose code can change the numbers of a run.
RESERVED = ("grids", "workbook", "manual")  # other folders of papermill_runs/
BYTES_PER_RUN = 3e9  # memory that a run needs: torch, a cohort and a small model
DASK = {
    "distributed.scheduler.worker-saturation": 1.0,  # no run waits behind a long one
    # With Dask's own variables, every training step requests its memory from the system again.
    "distributed.nanny.pre-spawn-environ": {},
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
TABLE, PREDICTIONS, REFERENCES = "table.csv", "predictions.csv", "reference_predictions.csv"
ERROR_CELL = "papermill-error-cell"  # the link that Papermill puts before a cell that failed

Scalar = pyd.StrictBool | pyd.StrictInt | pyd.StrictFloat | pyd.StrictStr
Row = Annotated[dict[str, Scalar], pyd.BeforeValidator(lambda row: row or {})]


class GridFile(pyd.BaseModel):
    """The content of a grid's YAML file."""

    model_config = pyd.ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    notebook: str  # path from the project's folder
    parameters: Row = {}  # of all runs
    rows: dict[str, Row] = pyd.Field(min_length=1)  # row → the parameters it changes
    seeds: list[Annotated[int, pyd.Strict(), pyd.Field(ge=0)]] = pyd.Field([0], min_length=1)
    folds: int | None = pyd.Field(None, ge=2)  # of a cross-validation
    axes: dict[str, list[Scalar]] = {}  # parameter → values, combined with all others
    timeout: float | None = pyd.Field(None, gt=0)  # seconds for a run


@dataclass(frozen=True)
class Run:
    """One row of a grid at one seed (and fold, and point of further axes)."""

    id: str  # 16 hex digits of all that the run depends on; identical rows share a run
    row: str
    axes: dict[str, Any]  # seed, fold and further axes → the value
    params: dict[str, Any]  # of the notebook

    @property
    def place(self) -> dict[str, Any]:
        """Return the row and the axes, which name the run in tables."""
        return {"row": self.row, **self.axes}


@dataclass(frozen=True)
class Grid:
    """A grid file that was read and checked."""

    file: Path
    root: Path  # the project's folder
    notebook: Path
    folder: Path  # of its runs
    timeout: float | None
    runs: list[Run] = field(repr=False)


class _Loader(yaml.CSafeLoader):
    """Refuse a key that is given twice; YAML itself would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        for key, count in Counter(str(key.value) for key, _ in node.value).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(problem=f"{key!r} is given twice")
        return super().construct_mapping(node, deep)


def load_grid(file: str | Path) -> Grid:
    """Read a grid file, check everything its runs could fail on, and list its runs row by row."""
    file = Path(file).absolute()
    try:
        spec = GridFile.model_validate(yaml.load(file.read_text("utf-8"), _Loader))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        remedy = "See papermill_runs/grids/ for examples"
        raise InputError(file, f"cannot be read as YAML ({error})", remedy) from error
    except pyd.ValidationError as error:
        first = error.errors()[0]
        place = " → ".join(map(str, first["loc"][:3])) or "the file"
        remedy = f"The fields are {', '.join(GridFile.model_fields)}"
        raise InputError(f"{file}, {place}", first["msg"], remedy) from error
    if file.stem in RESERVED:
        remedy = "Rename the file: its runs need a folder"
        raise InputError(file, f"a grid cannot be called {file.stem!r}", remedy)
    for root in (*file.parents, Path.cwd()):
        if (root / spec.notebook).is_file():
            folder = root / "papermill_runs" / file.stem
            runs = _expand(file, spec, root)
            return Grid(file, root, root / spec.notebook, folder, spec.timeout, runs)
    remedy = "Give its path from the project's folder"
    raise InputError(file, f"notebook {spec.notebook!r} does not exist", remedy)


def _expand(file: Path, spec: GridFile, root: Path) -> list[Run]:
    from lgekit.data.readers import pretraining_specs

    own = {"seed", "out"} | ({"fold", "folds"} if spec.folds else set())
    parts: dict[str, Any] = {f"row {name}": row for name, row in spec.rows.items()}
    for place, part in {"axes": spec.axes, "parameters": spec.parameters, **parts}.items():
        taken = {"fold", "folds"} if place == "axes" else spec.axes.keys()
        for name in (own | taken) & part.keys():
            remedy = "Remove it here: `seeds`, `folds` and `axes` set what varies"
            raise InputError(f"{file}, {place}", f"{name!r} is set by the grid", remedy)
    defaults = workbook.read_parameters(root / spec.notebook)
    axes: dict[str, list[Any]] = {"seed": spec.seeds, **spec.axes}
    common = spec.parameters
    if spec.folds:
        common, axes["fold"] = common | {"folds": spec.folds}, list(range(spec.folds))
    base = defaults | workbook.check_parameters(defaults, common, f"{file}, parameters")
    for name, points in axes.items():
        if not points or len(set(points)) < len(points):
            problem = f"{points} is empty or names a value twice"
            raise InputError(f"{file}, {name}", problem, "Name each value once")
    version = notebook_version(root / spec.notebook)
    fingerprint = functools.cache(lambda cohort: cohort_fingerprint(cohort, root))
    runs = []
    for row, changes in spec.rows.items():
        where = f"{file}, row {row}"
        for point in itertools.product(*axes.values()):
            given = dict(zip(axes, point, strict=True))
            at = workbook.check_parameters(defaults, given, f"{file}, axes")
            params = base | workbook.check_parameters(defaults, changes, where) | at
            params.pop("out", None)
            _refuse_impossible(params, defaults, where)
            cohorts = [str(params.get("cohort", ""))]
            if "pretrain_on" in params:
                cohorts += pretraining_specs(cohorts[0], params["pretrain_on"], root)
            known_by = [version, params, [fingerprint(cohort) for cohort in cohorts]]
            digest = hashlib.sha256(json.dumps(known_by, sort_keys=True).encode()).hexdigest()
            runs.append(Run(digest[:16], row, at, params))
    return runs


def _refuse_impossible(params: dict[str, Any], defaults: dict[str, Any], where: str) -> None:
    """Refuse SPECs, sizes and settings that a run would fail on. Defaults always pass."""
    from lgekit.data.readers import parse_spec, split_specs

    given = {name: value for name, value in params.items() if value != defaults[name]}
    try:
        for spec in [given.get("cohort"), *split_specs(str(given.get("pretrain_on", "")))]:
            if spec and spec not in ("auto", "none"):
                parse_spec(spec)
        if defaults.get("size") in SIZES:  # as in the workbook's notebooks
            settings = FitSettings.model_fields.keys() & given.keys()
            size_settings(params["size"], **{name: given[name] for name in settings})
    except InputError as error:
        raise InputError(where, f"{error.where}: {error.problem}", error.remedy) from error


def notebook_version(notebook: str | Path) -> str:
    """Hash the code of a notebook and of the library's rooms that it can use."""
    code = [cell["source"] for cell in workbook.read_code(notebook)]
    known_by = [code, code_version(*FIT_ROOMS, "evaluation")]
    return hashlib.sha256(json.dumps(known_by).encode()).hexdigest()


def cohort_fingerprint(spec: str, root: Path) -> str:
    """Hash a SPEC with the names and contents of its files.

    All files of a folder count; of a table, the table and the files that its cells name. A copy in
    another place has the same fingerprint.
    """
    from lgekit.data.readers import _path

    path = _path(spec, root)
    if path is None or not path.exists():
        return hashlib.sha256(spec.encode()).hexdigest()
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        walk = os.walk(path, followlinks=True)
        files = [os.path.join(place, name) for place, _, names in walk for name in names]
    else:
        rows = csv.reader(path.read_text("utf-8", "replace").splitlines())
        named = {os.path.join(folder, cell.strip()) for row in rows for cell in row}
        files = [str(path), *filter(os.path.isfile, named)]
    stats = [(os.path.relpath(file, folder), os.stat(file)) for file in sorted(files)]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return memory().cache(_hash_files)(spec, folder.resolve(), stamps)


def _hash_files(spec: str, folder: Path, stamps: list[tuple[str, int, int]]) -> str:
    """Hash names and contents of files. The cache knows them by sizes and time stamps."""
    digest = hashlib.sha256(spec.encode())
    for name, *_ in stamps:
        with (folder / name).open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


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

    Yields the client, the number of runs that share a host, and the resources that a run needs.
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
    options = {"threads_per_worker": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    with (
        dask.config.set(DASK),
        LocalCluster(n_workers=count, dashboard_address="127.0.0.1:0", **options) as cluster,
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
        workers: local processes; None: one per GPU, or else one per core if memory allows.
        scheduler: address of a running Dask scheduler (``tcp://…``) whose workers see the files.
        only, seeds: the rows and seeds to run; None: all.
        timeout: seconds that a run may take; None: as in the file.
        dry_run: run nothing. The table then has ``expected_seconds``, from earlier runs.
        retries: how often a failed run is tried again at once. If a worker is killed, its run is
            always tried again.

    Returns:
        `grid_status` of the chosen runs.

    Raises:
        InputError: the file is faulty, the cohort is missing (only a warning in a dry run), or the
            scheduler does not answer.
        RunError: the scheduler was lost. Finished runs are kept.
    """
    from lgekit.data.readers import missing_path  # not in workers, which need no torch

    grid = load_grid(file)
    runs, rows = grid.runs, [only] if isinstance(only, str) else only
    for kind, chosen in {"row": rows, "seed": seeds}.items():
        known = {run.place[kind] for run in grid.runs}
        for name in set(chosen or ()) - known:
            remedy = f"Choose from {', '.join(sorted(map(str, known)))}"
            raise InputError(grid.file, f"has no {kind} {name!r}", remedy)
        runs = [run for run in runs if run.place[kind] in (chosen or known)]
    for cohort in {str(run.params.get("cohort", "")) for run in runs}:
        if missing := missing_path(cohort, grid.root):
            where = f"{grid.file}, cohort {cohort!r}"
            fault = InputError(where, f"{missing} does not exist", "Correct the path")
            if not dry_run:
                raise fault
            warnings.warn(f"{fault}; nothing would run", stacklevel=2)
    if dry_run:
        return grid_status(replace(grid, runs=runs), expected=True)
    # By seed first: a grid that is stopped early has complete seeds rather than complete rows.
    # Within a seed, runs side by side are of different folds, so none waits for a shared result.
    in_order = sorted(runs, key=lambda run: run.axes["seed"])
    if todo := {run.id: run for run in in_order if run.id not in _names(grid.folder)}:
        rest = replace(grid, runs=list(todo.values()), timeout=timeout or grid.timeout)
        _run_all(rest, workers, scheduler, retries, progress)
    return grid_status(replace(grid, runs=runs))


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
            # All keys begin with the same word, so that Dask gives the next run to the first free
            # worker. It would otherwise assign all runs at the start.
            options = {"key": f"run-{run.id}-{os.urandom(4).hex()}", "priority": -number}
            options |= {"retries": retries, "resources": needs or None, "pure": False}
            alone = replace(grid, runs=[run])
            futures[client.submit(run_one, alone, code, share, devices, **options)] = run
        with tqdm(total=len(futures), desc=grid.file.stem, unit="run", disable=not progress) as bar:
            for future in as_completed(futures):
                run = futures[future]
                if future.status == "error":
                    error = future.exception()
                    failed = grid.folder / "failed" / run.id
                    if not failed.exists():  # its worker was killed
                        workbook.record_failure(failed, f"{type(error).__name__}: {error}")
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
    if notebook_version(grid.notebook) != code:
        message = "the library or the notebook was edited after the grid started: start it again"
        workbook.record_failure(grid.folder / "failed" / run.id, message)
        raise RunError(message)
    env = {name: str(max(1, joblib.cpu_count() // share)) for name in THREADS}
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = devices[int(get_worker().name) % len(devices)]
    what = (grid.notebook, grid.folder / run.id, run.params, grid.timeout)
    workbook.run_notebook(*what, progress=False, root=grid.root, env=env, skip_done=True)


def grid_status(file: str | Path | Grid, expected: bool = False) -> pd.DataFrame:
    """Return the state of each run of a grid.

    Returns:
        One row per run: ``row``, ``seed`` and further axes, ``run_id``, ``state`` (done, failed,
        running, to do), ``seconds``, ``error``, and ``where``: the executed notebook, with a link
        to the cell that failed, or the heading that a running notebook has reached. With
        ``expected``, also ``expected_seconds``, from earlier runs.
    """
    grid = file if isinstance(file, Grid) else load_grid(file)
    done, failed = _names(grid.folder), _names(grid.folder / "failed")
    lines = []
    for run in grid.runs:
        line = run.place | {"run_id": run.id, "state": "to do", "seconds": None}
        line |= {"error": "", "where": ""}
        folder = grid.folder / run.id
        if run.id in done:
            line |= {"state": "done", "seconds": _environment(folder).get("wall_seconds")}
            line["where"] = (folder / workbook.NOTEBOOK).relative_to(grid.root).as_posix()
        elif is_locked(grid.folder / ".locks" / run.id):
            line["state"] = "running"
            for params in grid.folder.glob(f".{run.id}.*.part/{workbook.PARAMS}"):
                line["seconds"] = round(time.time() - os.path.getmtime(params))
                line["where"] = f"in “{_heading(params.with_name(workbook.NOTEBOOK))}”"
        elif run.id in failed:
            folder = grid.folder / "failed" / run.id
            line |= {"state": "failed", "error": _read(folder / workbook.ERROR).get("error", "")}
            notebook = folder / workbook.NOTEBOOK
            place = notebook if notebook.exists() else folder
            line["where"] = place.relative_to(grid.root).as_posix()
            if notebook.exists() and ERROR_CELL in notebook.read_text("utf-8"):
                line["where"] += f"#{ERROR_CELL}"
        lines.append(line)
    table = pd.DataFrame(lines).astype({"seconds": float})
    if expected:
        took = table["seconds"].where(table["state"] == "done")
        by_row = took.groupby(table["row"]).transform("mean")
        everything = [_environment(grid.folder / name).get("wall_seconds") for name in done]
        overall = pd.Series(everything, dtype=float).mean()
        table["expected_seconds"] = by_row.fillna(overall).round(1)
    return table


def _heading(notebook: Path) -> str:
    """Find the heading above the current cell of a running notebook."""
    heading = ""
    for cell in _read(notebook).get("cells", []):
        if cell["cell_type"] == "markdown":
            titles = re.findall(r"(?m)^#+ (.*)", "".join(cell["source"]))
            heading = (titles or [heading])[-1]
        elif cell["metadata"].get("papermill", {}).get("status") == "running":
            break
    return heading


def collect(file: str | Path, out: str | Path | None = None) -> pd.DataFrame:
    """Put the metrics of all runs into one table, and save it (``table.csv`` in the grid's folder).

    Returns:
        One row per run: the axes, ``run_id``, ``state``, ``commit`` (with ``+`` for uncommitted
        changes), ``device`` and the metrics, names of nested ones joined by dots. Runs that are not
        done have missing metrics.
    """
    grid, table = _load_done(file)
    lines = []
    for run in grid.runs:
        line: dict[str, Any] = {}
        metrics = workbook.load_metrics(grid.folder / run.id)
        if metrics is not None:
            record = _environment(grid.folder / run.id)
            line["commit"] = record.get("commit", "")[:12] + "+" * bool(record.get("dirty"))
            line["device"] = record.get("device", "")
            for name, (value,) in sorted(pd.json_normalize(metrics).items()):
                line[str(name)] = json.dumps(value) if isinstance(value, list) else value
        lines.append(line)
    table = table.drop(columns=["seconds", "error", "where"])
    table = table.join(pd.DataFrame(lines, index=table.index), rsuffix="_metric")
    with replacing(out or grid.folder / TABLE) as part:
        table.to_csv(part, index=False)
    return table


def collect_predictions(file: str | Path, of: str = PREDICTIONS) -> pd.DataFrame:
    """Join the predictions of all finished runs, or another of their tables (``of``).

    Columns for the axes come first. The result is saved under the same name in the grid's folder.
    """
    grid, _ = _load_done(file)
    tables = []
    for run in grid.runs:
        path = grid.folder / run.id / of
        if path.is_file():
            table = pd.read_csv(path, dtype={"study_id": str, "patient_id": str})  # ids such as 001
            first = {name: [value] for name, value in run.place.items() if name not in table}
            tables.append(pd.DataFrame(first).merge(table, how="cross"))
    everything = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    with replacing(grid.folder / of) as part:
        everything.to_csv(part, index=False)
    return everything


def _load_done(file: str | Path) -> tuple[Grid, pd.DataFrame]:
    grid = load_grid(file)
    table = grid_status(grid)
    if not (table["state"] == "done").any():
        remedy = f"Start it: lgekit grid run {grid.file.name}"
        raise InputError(grid.file, "no run of it is done", remedy)
    return grid, table


def clean(file: str | Path, everything: bool = False) -> list[str]:
    """Remove runs of older code or parameters, failed runs and unfinished folders.

    With ``everything``, finished runs too. Returns the names of what was removed. Raises InputError
    while the grid is running.
    """
    grid = load_grid(file)
    locks = grid.folder / ".locks"
    if busy := sorted(name for name in _names(locks) if is_locked(locks / name)):
        remedy = "Wait for them, or end them and try again"
        raise InputError(grid.folder, f"runs are in progress: {', '.join(busy)}", remedy)
    kept = {TABLE, PREDICTIONS, REFERENCES, *(run.id for run in grid.runs)}
    removed = sorted(_names(grid.folder) - (set() if everything else kept))
    for name in removed:
        path = grid.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return removed


def older_runs(file: str | Path) -> list[str]:
    """List a grid's runs whose code, parameters or data have changed."""
    grid = load_grid(file)
    runs = {path.name for path in grid.folder.glob("[0-9a-f]" * 16)}
    return sorted(runs - {run.id for run in grid.runs})


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _environment(folder: Path) -> dict[str, Any]:
    return _read(folder / workbook.ENVIRONMENT)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
