"""What became of a grid: the state of its runs, one tidy table of metrics, one of predictions, and tidying up."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgekit.errors import InputError
from lgekit.grid_file import Grid, Run, load_grid
from lgekit.results import ENVIRONMENT, ERROR, NOTEBOOK, PARAMS, load_metrics
from lgekit.runs import is_locked

if TYPE_CHECKING:
    import pandas as pd

TABLE, PREDICTIONS, REFERENCES = "table.csv", "predictions.csv", "reference_predictions.csv"
ERROR_CELL = "papermill-error-cell"  # the anchor that Papermill sets before a cell that raised


def grid_status(file: str | Path) -> pd.DataFrame:
    """One row a run: the axes (``row``, ``seed``, …), ``run_id``, ``state`` (done, failed, running, to do),
    ``seconds`` it took or has been running, ``error``, and ``where`` its executed notebook lies, from the project's
    folder, with the anchor of the cell that raised; of one that is running, the heading it has come to.

    Raises:
        InputError: as `lgekit.grid_file.load_grid`.
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
            line["where"] = _relative(grid, place / NOTEBOOK if (place / NOTEBOOK).exists() else place)
            if (place / NOTEBOOK).exists() and ERROR_CELL in (place / NOTEBOOK).read_text("utf-8"):
                line["where"] += f"#{ERROR_CELL}"  # a link to the failing cell itself
        lines.append(line)
    table = pd.DataFrame(lines).astype({"seconds": float})
    if expected:
        everything = [_read(grid.folder / name / ENVIRONMENT).get("wall_seconds") for name in done]
        overall = pd.Series(everything, dtype=float).mean()
        took = table["seconds"].where(table["state"] == "done")
        table["expected_seconds"] = took.groupby(table["row"]).transform("mean").fillna(overall).round(1)
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
            line["commit"] = environment.get("commit", "")[:12] + "+" * bool(environment.get("dirty"))
            line["device"] = environment.get("device", "")
            line |= dict(sorted(_flat(load_metrics(grid.folder / run.id) or {})))
        metrics.append(line)
    import pandas as pd

    table = table.join(pd.DataFrame(metrics, index=table.index), rsuffix="_metric")
    _save(table, Path(out) if out else grid.folder / TABLE)
    return table


def collect_predictions(file: str | Path, out: str | Path | None = None, of: str | Path = PREDICTIONS) -> pd.DataFrame:
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
            axes = {"row": run.row, **{name: value for name, value in run.axes.items() if name not in table}}
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
    busy = [name for name in names_in(grid.folder / ".locks") if is_locked(grid.folder / ".locks" / name)]
    if busy:
        which = ", ".join(sorted(busy)[:3]) + (f" and {len(busy) - 3} more" if len(busy) > 3 else "")
        raise InputError(grid.folder, f"runs are going on: {which}", "Wait for them, or end them and try again")
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
                titles = [line for line in "".join(cell["source"]).splitlines() if line.startswith("#")]
                heading = titles[-1].lstrip("# ") if titles else heading
            elif cell["metadata"].get("papermill", {}).get("status") == "running":
                return {"seconds": seconds, "where": f"in “{heading}”"}
        return {"seconds": seconds}
    return {}


def _require_done(grid: Grid, table: pd.DataFrame) -> None:
    if not (table["state"] == "done").any():
        raise InputError(grid.file, "no run of it is done", f"Start it: lgekit grid run {grid.file.name}")


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
