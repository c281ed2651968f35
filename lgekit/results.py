"""What a notebook leaves behind: metrics, predictions and tables as plain files, and the environment they came from."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgekit.errors import InputError

METRICS, PARAMS, NOTEBOOK = "metrics.json", "params.json", "run.ipynb"
ENVIRONMENT, ERROR = "environment.json", "error.json"
PACKAGES = """lgekit numpy scipy pandas scikit-learn torch torchvision torchio timm open_clip_torch transformers
    segmentation_models_pytorch tokenizers papermill distributed""".split()
SIGNIFICANT_DIGITS = 6  # what is stored of a float: enough for any table, too few to show the order of a sum


def save_run(out: str | Path, metrics: Mapping[str, Any], predictions=None, history=None, tables=None) -> Path:
    """Write what a notebook found; called in its last cell.

    Floats are stored with 6 significant digits, keys sorted, NaN and infinity as null, so that the same numbers give
    the same bytes. ``metrics.json`` is written last: where it is, the rest is.

    Args:
        out: the run's folder, the notebook's parameter ``out``; "" (run by hand): ``papermill_runs/manual/<notebook>``.
        metrics: names → numbers, strings, bools, None, or lists and dicts of them; NumPy and torch scalars too.
        predictions: a DataFrame (its index is dropped) or a list of dicts → ``predictions.csv``.
        history: the same → ``history.csv``.
        tables: further ones, name → DataFrame → ``<name>.csv``.

    Returns:
        The folder.

    Raises:
        InputError: a metric that is no plain value, or a table's name that is no file name.
    """
    folder = Path(out) if str(out) else _manual_folder()
    plain = {str(name): _plain(value, f"metric {name}") for name, value in metrics.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in {"predictions": predictions, "history": history, **(tables or {})}.items():
        if not str(name).replace("_", "").replace("-", "").isalnum():
            raise InputError("save_run", f"{name!r} is no table name", "Use letters, digits, _ and -")
        if table is not None:
            if not hasattr(table, "to_csv"):
                import pandas as pd

                table = pd.DataFrame(table)
            write(folder / f"{name}.csv", table.to_csv(index=False, float_format=f"%.{SIGNIFICANT_DIGITS}g"))
    write_json(folder / ENVIRONMENT, environment_record())
    write_json(folder / METRICS, plain)
    return folder


def load_metrics(folder: str | Path) -> dict[str, Any] | None:
    """The metrics of a finished run with NaN for null, or None where there is no finished run."""
    try:
        text = (Path(folder) / METRICS).read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return {name: math.nan if value is None else value for name, value in json.loads(text).items()}


def environment_record(cohort: str = "", size: str = "", seed: int | None = None) -> dict[str, Any]:
    """What results depend on beside the code: versions, commit, device. No host and no user names.

    Args:
        cohort, size, seed: of the run; left out where not given.

    Returns:
        Flat: ``python``, ``platform``, ``device``, ``threads``, ``commit``, ``dirty``, and each package's version.
    """
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    code = str(Path(__file__).parent)
    given = {"cohort": cohort, "size": size, "seed": seed}
    return {
        **{name: value for name, value in given.items() if value not in ("", None)},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": _device(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "commit": _git("-C", code, "rev-parse", "HEAD"),
        "dirty": bool(_git("-C", code, "status", "--porcelain", "--untracked-files=no")),
        **versions,
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _device() -> str:
    torch = sys.modules.get("torch")  # a notebook without torch ran on the CPU; importing it would take seconds
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch is not None and torch.backends.mps.is_available():
        return "Apple GPU"
    return f"CPU ({os.cpu_count()} cores)"


def _manual_folder() -> Path:
    session = os.environ.get("JPY_SESSION_NAME", "")  # JupyterLab puts the notebook's path here
    root = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "papermill_runs").is_dir()), None)
    return (root or Path.cwd()) / "papermill_runs" / "manual" / (Path(session).stem or "notebook")


def _plain(value: Any, where: str) -> Any:
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise InputError(where, f"{type(value).__name__} cannot be stored", "Give numbers, strings, lists or dicts of them")


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
