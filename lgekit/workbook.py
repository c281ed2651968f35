"""Start, run and save notebooks."""

from __future__ import annotations

import ast
import difflib
import glob
import importlib.metadata
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
import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lgekit
from lgekit.cache import locked, replacing
from lgekit.errors import InputError, RunError

if TYPE_CHECKING:
    import pandas as pd

    from lgekit.study import Cohort

NOTEBOOKS = tuple(
    """00_start_here 01_data_exploration 02_orientation_standardization 03_synthetic_scar_generation
    04_pretraining 05_clip_captioning 06_ablations 07_paper_figures""".split()
)
STUDIES = {"smoke": 40, "laptop": 300, "paper": 965}  # of the phantom; 965 as in the paper [P]
BASELINES = {"smoke": "all", "laptop": "supervised", "paper": "all"}  # trained in notebook 05

METRICS, PARAMS, NOTEBOOK = "metrics.json", "params.json", "run.ipynb"
ENVIRONMENT, ERROR = "environment.json", "error.json"
PACKAGES = """lgekit numpy scipy pandas scikit-learn torch torchvision torchio timm open_clip_torch
    transformers segmentation_models_pytorch tokenizers papermill distributed""".split()
DIGITS = ".6g"  # stored floats: later digits depend on the order of a sum
TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def read_code(notebook: str | Path) -> list[str]:
    """Read the source of each code cell. Raises InputError if the file is not a notebook."""
    try:
        cells = json.loads(Path(notebook).read_text("utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read as a notebook ({error})"
        raise InputError(notebook, problem, "Give the path of an .ipynb file") from error


def read_parameters(notebook: str | Path) -> dict[str, Any]:
    """Read the parameters of a notebook and their defaults without running it.

    The type of a parameter is the type of its default: int, float, str or bool.

    Raises:
        InputError: the file is not a notebook, or Papermill cannot read a parameter.
    """
    import papermill

    read_code(notebook)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # our errors say the same
    try:
        found = papermill.inspect_notebook(_escape(notebook))
    except ValueError as error:  # the notebook names no kernel
        raise InputError(notebook, str(error), "Save it once in JupyterLab") from error
    defaults = {}
    for name, parameter in found.items():
        kind = TYPES.get(parameter["inferred_type_name"], type(None))
        try:
            defaults[name] = _convert(ast.literal_eval(parameter["default"]), kind)
        except (ValueError, SyntaxError) as error:
            remedy = "Declare it as `name: int|float|str|bool = literal  # comment`"
            problem = f"{name!r} has no plain type or no literal as default"
            raise InputError(f"{notebook}, parameters cell", problem, remedy) from error
    return defaults


def check_parameters(defaults: dict, params: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Check names and types of parameters, and convert them to the types of the defaults.

    Raises:
        InputError: an unknown name (Papermill would only warn), or a wrong type, at ``where``.
    """
    checked = {}
    for name, value in params.items():
        if name not in defaults:
            close = difflib.get_close_matches(str(name), defaults, cutoff=0.5) or sorted(defaults)
            remedy = f"Did you mean {' or '.join(close)}?"
            raise InputError(where, f"the notebook has no parameter {name!r}", remedy)
        kind = type(defaults[name])
        try:
            checked[name] = _convert(value, kind)
        except ValueError as error:
            problem = f"{name} is {value!r}, which is not of type {kind.__name__}"
            raise InputError(where, problem, f"The default is {defaults[name]!r}") from error
    return checked


def _convert(value: Any, kind: type) -> Any:
    if hasattr(value, "item"):  # Papermill cannot save NumPy scalars
        value = value.item()
    if isinstance(value, str) and kind in (int, float):  # YAML reads 1e-4 as text
        return kind(value)
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError
    return value


def save_run(
    out: str | Path,
    metrics: Mapping[str, Any],
    predictions: pd.DataFrame | list[dict] | None = None,
    history: pd.DataFrame | list[dict] | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Save the results of a notebook, in its last cell, and return the folder.

    The same numbers give the same bytes: floats have 6 significant digits, keys are sorted, NaN
    and infinity become null. A run is complete when its ``metrics.json`` exists.

    Args:
        out: the notebook's parameter ``out``; empty: ``papermill_runs/manual/<notebook>``.
        metrics: names → numbers (NumPy and torch too), strings, bools, None, or lists and dicts.
        predictions, history: saved as ``predictions.csv`` and ``history.csv``, without the index.
        tables: name → further table, saved as ``<name>.csv``.
    """
    import pandas as pd

    by_hand = Path(os.environ.get("JPY_SESSION_NAME", "notebook")).stem  # set by JupyterLab
    folder = Path(out or project_root() / "papermill_runs" / "manual" / by_hand)
    plain = {str(name): _plain(value, f"metric {name}") for name, value in metrics.items()}
    for name, table in {"predictions": predictions, "history": history, **(tables or {})}.items():
        if table is not None:
            with replacing(folder / f"{name}.csv") as part:
                pd.DataFrame(table).to_csv(part, index=False, float_format=f"%{DIGITS}")
    _write_json(folder / ENVIRONMENT, environment_record())
    _write_json(folder / METRICS, plain)
    return folder


def _plain(value: Any, where: str) -> Any:
    try:
        text = json.dumps(value, default=lambda array: array.tolist())
    except (TypeError, AttributeError) as error:
        remedy = "Give numbers, strings, lists or dicts of them"
        raise InputError(where, f"cannot be stored ({error})", remedy) from error
    return json.loads(
        text,
        parse_float=lambda digits: float(f"{float(digits):{DIGITS}}"),
        parse_constant=lambda nan_or_infinity: None,
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with replacing(path) as part:
        part.write_text(text + "\n", "utf-8")


def load_metrics(folder: str | Path) -> dict[str, Any] | None:
    """Read the metrics of a complete run, with NaN for null; None if the run is not complete."""
    path = Path(folder) / METRICS
    if not path.is_file():
        return None
    metrics = json.loads(path.read_text("utf-8"))
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def environment_record(**run: Any) -> dict[str, Any]:
    """Record versions, commit and device after the given entries; no host and no user."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        folder = Path(__file__).parent
        commit = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    torch = sys.modules.get("torch")  # a notebook that did not import it ran on the CPU
    device = f"CPU ({os.cpu_count()} cores)"
    if torch is not None and torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return run | {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "commit": commit.rstrip("+"),
        "dirty": commit.endswith("+"),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


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
    """Run one notebook with Papermill into a folder that appears complete or not at all.

    Args:
        notebook: it has a parameter ``out: str = ""``, and its last cell calls `save_run`.
        out_dir: the run's folder. An earlier run there is replaced when the new one is complete.
        params: the notebook's parameters, without ``out``.
        timeout: seconds for the whole run; None: no limit.
        progress: show a progress bar.
        root: the kernel's working folder; None: the current one.
        env: further environment variables of the kernel.
        skip_done: if the run is already complete, do not run it again.

    Returns:
        The metrics.

    Raises:
        InputError: unknown or mistyped parameters, or a folder with other files. Nothing was run.
        RunError: the notebook raised an error, its kernel died, or the time ran out. The folder
            ``failed/<name>`` next to ``out_dir`` keeps the notebook, and ``error.json``.
    """
    notebook, out_dir = Path(notebook), Path(out_dir).absolute()
    defaults = read_parameters(notebook)
    if defaults.pop("out", None) is None:
        remedy = 'Add `out: str = ""` to its parameters'
        raise InputError(notebook, "has no parameter `out`", remedy)
    params = check_parameters(defaults, params or {}, notebook.name)
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / PARAMS).exists():
        raise InputError(out_dir, "holds files that are not a run", "Choose another folder")
    with locked(out_dir.parent / ".locks" / out_dir.name):
        if skip_done and (done := load_metrics(out_dir)) is not None:
            return done
        for stale in out_dir.parent.glob(f".{glob.escape(out_dir.name)}.*.part"):
            shutil.rmtree(stale, ignore_errors=True)  # its process was killed
        work = out_dir.with_name(f".{out_dir.name}.{uuid.uuid4().hex[:8]}.part")
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        try:
            _write_json(work / PARAMS, defaults | params)
            given = params | {"out": str(work)}
            _execute(notebook, work / NOTEBOOK, given, timeout, progress, root or Path.cwd(), env)
            if cell := _unfinished_cell(work / NOTEBOOK):
                # Papermill reports no error when the kernel is killed.
                raise RunError(f"the kernel died in {cell} (out of memory?)")
            if not (work / METRICS).is_file():
                remedy = "let its last cell call save_run(out, metrics)"
                raise RunError(f"the notebook wrote no {METRICS}: {remedy}")
            record = json.loads((work / ENVIRONMENT).read_text("utf-8"))
            took = {"started": started, "wall_seconds": round(time.monotonic() - clock, 2)}
            _write_json(work / ENVIRONMENT, record | took)
            _put_in_place(work, out_dir)
        except Exception as error:
            message = _explain(error, work / NOTEBOOK, timeout)
            with suppress(OSError):  # the disk may be full
                (work / METRICS).unlink(missing_ok=True)
                _put_in_place(work, out_dir.parent / "failed" / out_dir.name)
            record_failure(out_dir, message, traceback.format_exc())
            raise RunError(f"{notebook.name} in {out_dir.name}: {message}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(out_dir.parent / "failed" / out_dir.name, ignore_errors=True)
    return load_metrics(out_dir) or {}


def _execute(notebook, output, params, timeout, progress, root, env) -> None:
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets.config import Config

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    quiet = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # no warning of frozen modules
    spec = KernelSpec(argv=command, language="python", env=quiet | dict(env or {}))
    deadline = time.monotonic() + (timeout or 1e8)

    class ThisInterpreter(AsyncKernelManager):
        kernel_spec = spec  # whichever kernels are installed

    # Kernels that start together can choose the same network port, so they use files instead.
    with tempfile.TemporaryDirectory(prefix="lgekit-") as sockets:
        channels = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        papermill.execute_notebook(
            _escape(notebook),
            _escape(output),
            parameters=params,
            kernel_name="python3",
            language="python",
            progress_bar={"desc": notebook.stem} if progress else False,
            start_timeout=180,
            kernel_manager_class=ThisInterpreter,
            config=Config(ConnectionFileMixin=channels),
            resources={"metadata": {"path": str(root)}},
            timeout_func=lambda cell: max(0.1, deadline - time.monotonic()),
        )


def _escape(path: str | Path) -> str:
    """Double the braces of a path, which Papermill reads as a format string."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _unfinished_cell(notebook: Path) -> str:
    """Name the first code cell that did not run to its end, such as ``cell In [3]``."""
    number = 0
    for cell in json.loads(notebook.read_text("utf-8"))["cells"] if notebook.exists() else []:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "code" and source:
            number = cell["execution_count"] or number + 1  # None if the kernel died
            raised = any(output["output_type"] == "error" for output in cell["outputs"])
            if raised or "shell.execute_reply" not in cell["metadata"].get("execution", {}):
                return f"cell In [{number}] (`{source.splitlines()[0]}`)"
    return ""


def _explain(error: Exception, notebook: Path, timeout: float | None) -> str:
    kind, cell = type(error).__name__, _unfinished_cell(notebook)
    if kind == "CellTimeoutError":
        return f"longer than the {timeout:g} s allowed, in {cell}"
    if kind == "DeadKernelError":
        return f"the kernel died in {cell} (out of memory?)"
    if kind == "PapermillExecutionError":
        return f"{error.ename}: {error.evalue} in {cell}"  # type: ignore[attr-defined]
    return str(error) if isinstance(error, RunError) else f"{kind}: {error}"


def _put_in_place(work: Path, target: Path) -> None:
    """Rename a run's folder, and replace the old name in its notebook."""
    notebook = work / NOTEBOOK
    if notebook.exists():
        text, name = notebook.read_text("utf-8"), target.relative_to(work.parent).as_posix()
        with replacing(notebook) as part:
            part.write_text(text.replace(work.name, name), "utf-8")
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        os.replace(target, work.with_suffix(".old.part"))
    os.replace(work, target)
    shutil.rmtree(work.with_suffix(".old.part"), ignore_errors=True)


def record_failure(out_dir: str | Path, message: str, trace: str = "") -> None:
    """Write ``failed/<name>/error.json`` for a run that did not end well."""
    failed = Path(out_dir).parent / "failed" / Path(out_dir).name
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"error": message, "traceback": trace, "recorded": now}
    with suppress(OSError):
        _write_json(failed / ERROR, record)


def project_root() -> Path:
    """Return the checkout that lgekit was installed from, or else the current folder."""
    checkout = Path(lgekit.__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


@dataclass
class Session:
    """What a notebook works on and where it saves its results; see `start`."""

    name: str  # of the notebook
    spec: str  # of the cohort
    size: str  # smoke, laptop or paper
    seed: int  # of everything random
    out: Path  # folder of the results

    def versions(self) -> pd.DataFrame:
        """Show the cohort, versions and device of this run as a table."""
        import pandas as pd

        record = environment_record(cohort=self.spec, size=self.size, seed=self.seed)
        return pd.Series(record).to_frame("")

    def cohort(self, show_identifiers: bool = False) -> Cohort:
        """Read the cohort.

        Raises:
            InputError: a report seems to hold a name, date, number or address, unless
                ``show_identifiers``.
        """
        from lgekit.data.readers import read_cohort
        from lgekit.reports.writer import require_privacy

        cohort = read_cohort(self.spec)
        if not show_identifiers:
            require_privacy({study["study_id"]: study["report"] for study in cohort.studies})
        return cohort

    def scratch(self, name: str) -> Path:
        """Return the path of a folder for trials. What an earlier run left there is removed."""
        folder = self.out / "scratch" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def of(self, notebook: str) -> Path:
        """Return the results folder of another notebook of the same run."""
        return self.out.parent / notebook

    def table(self, notebook: str, name: str) -> pd.DataFrame:
        """Read a table that another notebook of the same run saved."""
        import pandas as pd

        path = self.of(notebook) / f"{name}.csv"
        if not path.exists():
            remedy = f"Run notebook {notebook} first, or `make workbook` for all."
            raise InputError(path, "does not exist", remedy)
        return pd.read_csv(path)

    def save(self, metrics: Mapping[str, Any], **tables: Any) -> None:
        """Save metrics and tables as `save_run` does, with its arguments."""
        save_run(self.out, metrics, **tables)


def start(name: str, cohort: str, size: str, seed: int, out: str) -> Session:
    """Start a notebook: check its parameters, enter the project's folder, seed torch, style plots.

    Relative paths in SPECs start from the project's folder.

    Raises:
        InputError: an unknown size, or a negative seed.
    """
    import torch

    from lgekit.viz.plots import use_style

    _check_choices(size, seed)
    os.chdir(project_root())
    # Threads add gradients in any order, so the same seed could give other last digits.
    torch.use_deterministic_algorithms(True, warn_only=True)
    if size == "smoke":
        torch.set_num_threads(1)
    torch.manual_seed(seed)  # TorchIO's transforms use torch's global generator
    use_style()
    folder = Path(out or project_root() / "papermill_runs" / "manual" / name)
    folder.mkdir(parents=True, exist_ok=True)
    cohort = cohort or f"phantom:studies={STUDIES[size]},seed={seed}"
    return Session(name, cohort, size, seed, folder)


def _check_choices(size: str, seed: int) -> None:
    if size not in STUDIES:
        raise InputError("size", f"unknown value {size!r}", f"Use one of {', '.join(STUDIES)}.")
    if seed < 0:
        raise InputError("seed", f"{seed} is negative", "Use 0 or more.")


def run_workbook(
    size: str = "laptop",
    cohort: str = "",
    seed: int = 0,
    only: Sequence[str] | None = None,
    folder: Path | None = None,
    figures: Path | None = None,
) -> Path:
    """Run the notebooks in order with Papermill, and return the folder of their results.

    Args:
        size: ``smoke``, ``laptop`` or ``paper``.
        cohort: a SPEC; empty: the phantom of that size.
        seed: of everything random.
        only: names or numbers of notebooks, such as ``["05"]``; None: all.
        folder: for ``NN_name.ipynb`` and ``NN_name/``; None: ``papermill_runs/workbook/``.
        figures: for notebook 07; None: ``figures/``, or ``figures/<kind>/`` for a real cohort.

    Raises:
        InputError: an unknown notebook, size or SPEC, before anything runs.
    """
    from lgekit.data.readers import parse_spec

    if unknown := set(only or ()) - set(NOTEBOOKS) - {name[:2] for name in NOTEBOOKS}:
        remedy = f"Notebooks: {', '.join(NOTEBOOKS)}."
        raise InputError("notebook", f"{sorted(unknown)} not known", remedy)
    _check_choices(size, seed)
    kind = parse_spec(cohort)[0] if cohort else "phantom"
    root = project_root()
    folder = folder or root / "papermill_runs" / "workbook"
    figures = figures or (root / "figures" if kind == "phantom" else root / "figures" / kind)
    common = {"size": size, "cohort": cohort, "seed": seed}
    own = {NOTEBOOKS[5]: {"compare_with": BASELINES[size]}, NOTEBOOKS[7]: {"figures": str(figures)}}
    chosen = [name for name in NOTEBOOKS if not only or name in only or name[:2] in only]
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        source, params = root / "notebooks" / f"{name}.ipynb", common | own.get(name, {})
        run_notebook(source, folder / name, params, root=root)
        shutil.copyfile(folder / name / NOTEBOOK, folder / f"{name}.ipynb")
    return folder
