"""Start, run and save notebooks."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import glob
import importlib
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tokenize
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

import lgekit
from lgekit.cache import locked
from lgekit.errors import InputError, RunError
from lgekit.study import Cohort

TYPES = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's ``parameters`` cell: ``name: type = default  # comment``."""

    name: str
    type: type
    default: Any
    comment: str = ""

    def convert(self, value: Any, where: object) -> Any:
        """The value in this parameter's type.

        Text is read as a number or ``true``/``false`` (YAML hands ``1e-4`` over as text), an int serves as a float;
        bool and int are not mixed.

        Raises:
            InputError: the value is of another type.
        """
        value = (
            value.item() if hasattr(value, "item") else value
        )  # numpy scalars fail when Papermill saves them
        if type(value) is self.type:
            return value
        if self.type is float and type(value) is int:
            return float(value)
        if isinstance(value, str):
            with contextlib.suppress(ValueError, KeyError):
                return (
                    {"true": True, "false": False}[value.lower()]
                    if self.type is bool
                    else self.type(value)
                )
        raise InputError(
            f"{where}, parameter {self.name}",
            f"{value!r} is no {self.type.__name__}",
            f"Give a {self.type.__name__}, as the default {self.default!r}",
        )


def read_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, from its code cell tagged ``parameters``, without running anything.

    Raises:
        InputError: no such file, no notebook, or a line that is not ``name: int|float|str|bool = literal``.
    """
    return dict(_read_parameters(*_state(notebook)))


def read_code(notebook: str | Path) -> list[str]:
    """The sources of the notebook's code cells, without the one tagged ``parameters``."""
    return [cell["source"] for cell in _cells(*_state(notebook)) if "parameters" not in _tags(cell)]


def check_parameters(
    notebook: str | Path, params: Mapping[str, Any], where: object = ""
) -> dict[str, Any]:
    """Hold parameters against the notebook's own, names and types; return them converted.

    Args:
        notebook: the notebook.
        params: names → values.
        where: what an error names as the place of the fault; the notebook by default.

    Raises:
        InputError: an unknown name (Papermill itself would only warn, and run with the default) or a wrong type.
    """
    known = _read_parameters(*_state(notebook))
    where = where or Path(notebook).name
    for name in params:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5) or sorted(known)
            remedy = f"Did you mean {' or '.join(close) or 'none'}?"
            raise InputError(where, f"{Path(notebook).name} has no parameter {name!r}", remedy)
    return {name: known[name].convert(value, where) for name, value in params.items()}


def _state(notebook: str | Path) -> tuple[str, int]:
    try:
        return str(notebook), os.stat(notebook).st_mtime_ns
    except OSError as error:
        raise InputError(
            notebook, f"cannot be read ({error.strerror})", "Give the path of a notebook"
        ) from error


@functools.lru_cache(
    maxsize=32
)  # keyed by the file's time stamp too: an edited notebook is read again
def _cells(notebook: str, modified: int) -> list[dict]:
    try:
        cells = json.loads(Path(notebook).read_text("utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            notebook, "is not a Jupyter notebook", "Give a file in format .ipynb, version 4"
        ) from error
    for cell in cells:
        cell["source"] = "".join(cell["source"])  # a string or a list of lines
    return [cell for cell in cells if cell["cell_type"] == "code"]


def _tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


@functools.lru_cache(maxsize=32)
def _read_parameters(notebook: str, modified: int) -> dict[str, Parameter]:
    source = next(
        (cell["source"] for cell in _cells(notebook, modified) if "parameters" in _tags(cell)), ""
    )
    remedy = "Write each parameter as `name: int|float|str|bool = literal  # comment`"
    found = {}
    try:
        statements = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError) as error:
        raise InputError(
            notebook, f"its parameters cell is not Python ({error})", remedy
        ) from error
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    for statement in statements:
        where = f"{notebook}, parameters cell, line {statement.lineno}"
        match statement:
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=ast.Name(id=kind), value=ast.expr() as value
            ) if kind in TYPES:
                try:
                    default = ast.literal_eval(value)
                except ValueError as error:
                    raise InputError(where, f"{name} has no literal default", remedy) from error
                bare = Parameter(name, TYPES[kind], default)
                comment = comments.get(statement.end_lineno or 0, "")
                found[name] = Parameter(name, TYPES[kind], bare.convert(default, where), comment)
            case _:
                raise InputError(where, f"{ast.unparse(statement)!r} declares no parameter", remedy)
    return found


METRICS, PARAMS, NOTEBOOK = "metrics.json", "params.json", "run.ipynb"
ENVIRONMENT, ERROR = "environment.json", "error.json"
PACKAGES = """lgekit numpy scipy pandas scikit-learn torch torchvision torchio timm open_clip_torch transformers
    segmentation_models_pytorch tokenizers papermill distributed""".split()
SIGNIFICANT_DIGITS = (
    6  # what is stored of a float: enough for any table, too few to show the order of a sum
)


def save_run(
    out: str | Path, metrics: Mapping[str, Any], predictions=None, history=None, tables=None
) -> Path:
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
            raise InputError(
                "save_run", f"{name!r} is no table name", "Use letters, digits, _ and -"
            )
        if table is not None:
            if not hasattr(table, "to_csv"):
                import pandas as pd

                table = pd.DataFrame(table)
            write(
                folder / f"{name}.csv",
                table.to_csv(index=False, float_format=f"%.{SIGNIFICANT_DIGITS}g"),
            )
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
    torch = sys.modules.get(
        "torch"
    )  # a notebook without torch ran on the CPU; importing it would take seconds
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch is not None and torch.backends.mps.is_available():
        return "Apple GPU"
    return f"CPU ({os.cpu_count()} cores)"


def _manual_folder() -> Path:
    session = os.environ.get("JPY_SESSION_NAME", "")  # JupyterLab puts the notebook's path here
    root = next(
        (
            folder
            for folder in (Path.cwd(), *Path.cwd().parents)
            if (folder / "papermill_runs").is_dir()
        ),
        None,
    )
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
    raise InputError(
        where,
        f"{type(value).__name__} cannot be stored",
        "Give numbers, strings, lists or dicts of them",
    )


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write(
        path,
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
    )


KERNEL_LOG = "kernel.log"  # what the kernel itself printed; kept where the run failed


def run_notebook(
    notebook: str | Path,
    out_dir: str | Path,
    params: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    progress: bool = True,
    *,
    root: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    skip_done: bool = False,
) -> dict[str, Any]:
    """Run one notebook through Papermill into a folder that appears whole or not at all.

    The kernel is this very interpreter, whatever kernels are installed; its working folder is ``root``.

    Args:
        notebook: the notebook; its parameters cell has ``out: str = ""`` and its last cell calls `save_run`.
        out_dir: the run's folder; an earlier run there is replaced once the new one is whole.
        params: its parameters, but for ``out``.
        timeout: seconds for the whole run; None: no limit.
        progress: show a bar over the cells.
        root: the kernel's working folder; None: the current one.
        env: further environment variables of the kernel.
        skip_done: return what is there, if it is finished, without running again.

    Returns:
        The metrics.

    Raises:
        InputError: unknown or mistyped parameters, or a folder that holds something else; nothing was run.
        RunError: the notebook raised, its kernel died, the time ran out, the disk is full. What there is lies in
            ``failed/<name>`` beside ``out_dir``: ``run.ipynb`` up to the failing cell, ``error.json``.
    """
    out_dir, root = Path(out_dir).absolute(), Path(root or Path.cwd()).absolute()
    known = read_parameters(notebook)
    if "out" not in known:
        raise InputError(
            notebook, "has no parameter `out`", 'Add `out: str = ""` to its parameters'
        )
    params = check_parameters(notebook, params or {})
    full = {name: parameter.default for name, parameter in known.items()} | params
    full.pop("out")
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / PARAMS).exists():
        raise InputError(out_dir, "holds something that is no run", "Choose another folder")
    try:
        with locked(out_dir.parent / ".locks" / out_dir.name):
            metrics = load_metrics(out_dir) if skip_done else None
            if metrics is not None:
                return metrics
            for stale in out_dir.parent.glob(
                f".{glob.escape(out_dir.name)}.*.part"
            ):  # of a process that was killed
                if (
                    stale.suffixes[-2:] == [".old", ".part"] and not out_dir.exists()
                ):  # between its two renames
                    os.replace(stale, out_dir)
                shutil.rmtree(stale, ignore_errors=True)
            work = out_dir.with_name(f".{out_dir.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                _run_in(
                    work,
                    out_dir,
                    Path(notebook),
                    params,
                    full,
                    timeout,
                    progress,
                    root,
                    dict(env or {}),
                )
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        record_failure(out_dir, str(error))
        raise RunError(f"{out_dir.name}: {error}") from error
    shutil.rmtree(out_dir.parent / "failed" / out_dir.name, ignore_errors=True)
    return load_metrics(out_dir) or {}


def _run_in(work, out_dir, notebook, params, full, timeout, progress, root, env) -> None:
    started, clock = datetime.now(UTC), time.monotonic()
    work.mkdir(parents=True)
    try:
        write_json(work / PARAMS, full)
        _execute(
            notebook, work / NOTEBOOK, params | {"out": str(work)}, timeout, progress, root, env
        )
        unfinished = _first_unfinished(work / NOTEBOOK)
        if unfinished is not None:  # Papermill calls a notebook completed whose kernel was killed
            raise RuntimeError(f"the kernel died in {unfinished} (out of memory?)")
        if not (work / METRICS).is_file():
            raise RuntimeError(
                f"it wrote no {METRICS}: let its last cell call save_run(out, metrics)"
            )
        if not (
            work / ENVIRONMENT
        ).exists():  # save_run wrote it, in the kernel, where the device is known
            write_json(work / ENVIRONMENT, environment_record())
        record = json.loads((work / ENVIRONMENT).read_text("utf-8"))
        took = {
            "started": started.isoformat(timespec="seconds"),
            "wall_seconds": round(time.monotonic() - clock, 2),
        }
        write_json(work / ENVIRONMENT, record | took)
        _forget_folder(work, work, out_dir)
        (work / KERNEL_LOG).unlink()
    except Exception as error:  # whatever stopped it, the record says so and the grid goes on
        message = _explain(error, work, timeout)
        _keep_failed(work, out_dir, message, traceback.format_exc(), started)
        raise RunError(f"{notebook.name} in {out_dir.name}: {message}") from error
    with contextlib.suppress(FileNotFoundError):
        os.replace(out_dir, work.with_suffix(".old.part"))  # an earlier run, or an empty folder
    os.replace(work, out_dir)
    shutil.rmtree(work.with_suffix(".old.part"), ignore_errors=True)


def _execute(notebook, output, params, timeout, progress, root, env) -> None:
    papermill = _import_papermill()
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets.config import Config

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    variables = {
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **env,
    }  # else the debugger warns of frozen modules

    class ThisInterpreter(AsyncKernelManager):
        """Starts the interpreter we run in, not whichever `python3` kernel is installed for the user."""

        kernel_spec = KernelSpec(
            argv=command, display_name="Python 3", language="python", env=variables
        )

        async def start_kernel(self, **options) -> None:  # type: ignore[override]
            with open(output.with_name(KERNEL_LOG), "wb") as log:
                await super().start_kernel(stdout=log, stderr=log, **options)

    deadline = None if timeout is None else time.monotonic() + timeout
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it logs, our error says
    with tempfile.TemporaryDirectory(
        prefix="lgekit-"
    ) as sockets:  # files, not ports: two kernels cannot collide
        channels = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        papermill.execute_notebook(
            str(notebook)
            .replace("{", "{{")
            .replace("}", "}}"),  # Papermill takes paths for format strings
            str(output).replace("{", "{{").replace("}", "}}"),
            parameters=params,
            kernel_name="python3",
            language="python",
            progress_bar={"desc": notebook.stem} if progress else False,
            start_timeout=180,
            kernel_manager_class=ThisInterpreter,
            config=Config(ConnectionFileMixin=channels),
            resources={"metadata": {"path": str(root)}},
            timeout_func=None
            if deadline is None
            else lambda cell: max(0.1, deadline - time.monotonic()),
        )


def _import_papermill() -> Any:
    """Papermill, three times as fast: the JSON validator it imports would first compile a grammar of internationalised
    addresses, for more than a second; a notebook's schema has none."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault(
        "rfc3987_syntax", None
    )  # None: importing it fails, which the validator allows for
    try:
        return importlib.import_module("papermill")
    finally:
        if modules["rfc3987_syntax"] is None:
            del modules["rfc3987_syntax"]


def _first_unfinished(notebook: Path) -> str | None:
    """The first code cell of an executed notebook that did not run to its end, under the number that stands beside it
    (``cell In [3]``), or None."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
    except (OSError, ValueError):
        return None
    number = 0
    for cell in cells:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] != "code" or not source:
            continue
        number = cell.get("execution_count") or number + 1  # a cell whose kernel died has none
        raised = any(output["output_type"] == "error" for output in cell["outputs"])
        if raised or "shell.execute_reply" not in cell["metadata"].get("execution", {}):
            return f"cell In [{number}] (`{source.splitlines()[0]}`)"
    return None


def _explain(error: Exception, work: Path, timeout: float | None) -> str:
    cell = _first_unfinished(work / NOTEBOOK)
    kind = type(error).__name__
    if kind == "CellTimeoutError":
        return f"longer than the {timeout:g} s allowed, in {cell}"
    if kind == "DeadKernelError":
        return f"the kernel died in {cell} (out of memory?)"
    if kind == "PapermillExecutionError":
        return f"{error.ename}: {error.evalue} in {cell}"  # type: ignore[attr-defined]
    return str(error) if isinstance(error, RuntimeError) else f"{kind}: {error}"


def _keep_failed(work: Path, out_dir: Path, message: str, trace: str, started: datetime) -> None:
    """Move what a failed run left to ``failed/``, without its metrics: nobody shall take it for a result."""
    (work / METRICS).unlink(missing_ok=True)
    record = {
        "error": message,
        "traceback": trace,
        "started": started.isoformat(timespec="seconds"),
    }
    with contextlib.suppress(
        OSError
    ):  # on a full disk as much as there is room for; the run fails in any case
        try:
            write_json(work / ERROR, record)
        except OSError:
            for path in work.iterdir():
                if path.name not in (NOTEBOOK, PARAMS):
                    path.unlink()
            write_json(work / ERROR, record)
    with contextlib.suppress(OSError):
        failed = out_dir.parent / "failed" / out_dir.name
        shutil.rmtree(failed, ignore_errors=True)
        failed.parent.mkdir(exist_ok=True)
        os.replace(work, failed)
        _forget_folder(failed, work, failed)


def record_failure(out_dir: str | Path, message: str) -> None:
    """Note in ``failed/<name>`` that a run did not come to an end of its own, as where its process was killed."""
    failed = Path(out_dir).parent / "failed" / Path(out_dir).name
    with contextlib.suppress(OSError):
        failed.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(failed / ERROR, {"error": message, "traceback": "", "started": now})


def _forget_folder(folder: Path, work: Path, out_dir: Path) -> None:
    """Name the final folder in the executed notebook, where the temporary one stood."""
    text = (folder / NOTEBOOK).read_text("utf-8")
    write(folder / NOTEBOOK, text.replace(work.name, out_dir.relative_to(work.parent).as_posix()))


NOTEBOOKS = (
    "00_start_here",
    "01_data_exploration",
    "02_orientation_standardization",
    "03_synthetic_scar_generation",
    "04_pretraining",
    "05_clip_captioning",
    "06_ablations",
    "07_paper_figures",
)
# What a notebook reads when no cohort is named. 965 is the paper's number of patients [P].
DEFAULT_COHORTS = {
    "smoke": "phantom:studies=40,seed={seed}",
    "laptop": "phantom:studies=300,seed={seed}",
    "paper": "phantom:studies=965,seed={seed}",
}
# The references that notebook 05 trains in a run of the workbook; at laptop size those that its time allows.
COMPARED = {"smoke": "all", "laptop": "supervised", "paper": "all"}


def project_root() -> Path:
    """The checkout that lgekit was installed from, with notebooks/ and papermill_runs/; else the present folder."""
    checkout = Path(lgekit.__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


@dataclass
class Session:
    """One notebook's run: what it reads, and where its results go.

    Attributes:
        name: the notebook.
        spec: the cohort's SPEC.
        size: ``smoke``, ``laptop`` or ``paper``.
        seed: of everything random.
        out: the folder of its results.
    """

    name: str
    spec: str
    size: str
    seed: int
    out: Path

    def versions(self) -> pd.DataFrame:
        """What this run was made with, for the record: a table to show at the top."""

        record = environment_record(self.spec, self.size, self.seed)
        return pd.Series(record).to_frame("")

    def cohort(self, show_identifiers: bool = False) -> Cohort:
        """The cohort that the notebook works on. Its reports may be shown: they have passed the privacy check.

        Args:
            show_identifiers: True leaves the check out.

        Raises:
            InputError: a report seems to hold a name, date, number or address.
        """
        from lgekit.data.readers import read_cohort
        from lgekit.reports.writer import require_privacy

        cohort = read_cohort(self.spec)
        if not show_identifiers:
            require_privacy({study["study_id"]: study["report"] for study in cohort.studies})
        return cohort

    def scratch(self, name: str) -> Path:
        """An empty folder for the notebook's own trials, beside its results."""
        folder = self.out / "scratch" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def of(self, notebook: str) -> Path:
        """The results of another notebook of the same run."""
        return self.out.parent / notebook

    def table(self, notebook: str, name: str) -> pd.DataFrame:
        """A table that another notebook of the same run saved.

        Raises:
            InputError: that notebook has not run.
        """
        path = self.of(notebook) / f"{name}.csv"
        if not path.exists():
            raise InputError(
                path, "is not there", f"Run notebook {notebook} first, or `make workbook` for all."
            )
        return pd.read_csv(path)

    def save(
        self, metrics: Mapping[str, Any], tables: Mapping[str, pd.DataFrame] | None = None, **named
    ) -> None:
        """Write ``metrics.json`` and each table as ``<name>.csv`` into the run's folder.

        Args:
            metrics: name → plain value.
            tables: name → table.
            named: ``predictions`` and ``history``, see :func:`lgekit.workbook.save_run`.
        """

        save_run(self.out, metrics, tables=dict(tables or {}), **named)


def check_choices(size: str, seed: int) -> None:
    """Refuse an unknown size or a negative seed with an InputError."""
    if size not in DEFAULT_COHORTS:
        raise InputError(
            "size", f"unknown value {size!r}", f"Use one of {', '.join(DEFAULT_COHORTS)}."
        )
    if seed < 0:
        raise InputError("seed", f"{seed} is negative", "Use 0 or more.")


def start(name: str, cohort: str, size: str, seed: int, out: str) -> Session:
    """Begin a notebook: check its parameters, go to the project's folder, seed torch, set the figures' style.

    Relative paths in SPECs are meant from the project's folder, in JupyterLab as under Papermill.

    Raises:
        InputError: an unknown size, or a negative seed.
    """
    import torch

    from lgekit.viz.plots import use_style

    check_choices(size, seed)
    os.chdir(project_root())
    # Sums of gradients that several threads add up come out in any order: the same seed would give other last digits.
    torch.use_deterministic_algorithms(True, warn_only=True)
    if size == "smoke":
        torch.set_num_threads(1)
    torch.manual_seed(seed)  # TorchIO's own transforms draw from torch's global generator
    use_style()
    folder = Path(out) if out else project_root() / "papermill_runs" / "manual" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Session(name, cohort or DEFAULT_COHORTS[size].format(seed=seed), size, seed, folder)


def run_workbook(
    size: str = "laptop",
    cohort: str = "",
    seed: int = 0,
    only: Sequence[str] | None = None,
    folder: Path | None = None,
    figures: Path | None = None,
) -> Path:
    """Run the notebooks in order through Papermill; executed copies and results under ``papermill_runs/workbook/``.

    Args:
        size: ``smoke``, ``laptop`` or ``paper``.
        cohort: a SPEC; empty for the phantom of that size.
        seed: of everything random.
        only: names or numbers of notebooks, such as ``["05"]``; all by default.
        folder: where the copies go.
        figures: where notebook 07 puts its pictures; ``figures/``, and a folder of its own in there for each kind of
            cohort that is not the phantom.

    Returns:
        The folder, with ``NN_name.ipynb`` beside a folder ``NN_name/`` of its results.

    Raises:
        InputError: an unknown notebook, size or SPEC, before anything runs.
    """
    from lgekit.data.readers import parse_spec

    if unknown := set(only or ()) - set(NOTEBOOKS) - {name[:2] for name in NOTEBOOKS}:
        raise InputError(
            "notebook", f"{sorted(unknown)} not known", f"Notebooks: {', '.join(NOTEBOOKS)}."
        )
    check_choices(size, seed)
    kind = parse_spec(cohort)[0] if cohort else "phantom"
    root = project_root()
    folder = folder or root / "papermill_runs" / "workbook"
    figures = figures or (root / "figures" if kind == "phantom" else root / "figures" / kind)
    folder.mkdir(parents=True, exist_ok=True)
    choices = {"size": size, "cohort": cohort, "seed": seed}
    own = {NOTEBOOKS[5]: {"compare_with": COMPARED[size]}, NOTEBOOKS[7]: {"figures": str(figures)}}
    chosen = [name for name in NOTEBOOKS if not only or name in only or name[:2] in only]
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        run_notebook(
            root / "notebooks" / f"{name}.ipynb",
            folder / name,
            choices | own.get(name, {}),
            root=root,
        )
        shutil.copyfile(folder / name / "run.ipynb", folder / f"{name}.ipynb")
    return folder
