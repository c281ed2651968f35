"""Start, run and save notebooks."""

import ast
import difflib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

import lgekit
from lgekit.cache import locked, replacing
from lgekit.config import size_settings
from lgekit.errors import InputError, RunError

if TYPE_CHECKING:
    from lgekit.study import Cohort

NOTEBOOKS = tuple(
    """00_start_here 01_data_exploration 02_orientation_standardization 03_synthetic_scar_generation
    04_pretraining 05_clip_captioning 06_ablations 07_paper_figures 08_your_own_data""".split()
)
STUDIES = {"smoke": 40, "laptop": 300, "paper": 965}  # of the phantom; 965 as in the paper [P]

METRICS, PARAMS, NOTEBOOK = "metrics.json", "params.json", "run.ipynb"
ENVIRONMENT, ERROR = "environment.json", "error.json"
PACKAGES = """lgekit numpy scipy pandas scikit-learn torch torchio timm open_clip_torch
    tokenizers segmentation_models_pytorch papermill distributed""".split()
TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def read_code(notebook: str | Path) -> list[dict[str, Any]]:
    """Read the code cells that are not empty. Raises InputError if the file is not a notebook."""
    try:
        cells = json.loads(Path(notebook).read_text("utf-8"))["cells"]
        cells = [cell | {"source": "".join(cell["source"]).strip()} for cell in cells]
        return [cell for cell in cells if cell["cell_type"] == "code" and cell["source"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read as a notebook ({error})"
        raise InputError(notebook, problem, "Give the path of an .ipynb file") from error


def read_parameters(notebook: str | Path) -> dict[str, Any]:
    """Read the parameters of a notebook: name → default; InputError if a default is no literal."""
    code = read_code(notebook)
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    defaults: dict[str, Any] = {}
    try:
        lines: list[Any] = ast.parse(tagged[0]["source"] if tagged else "").body
        for line in lines:
            defaults[line.target.id] = ast.literal_eval(line.value)
            if type(defaults[line.target.id]) is not TYPES[line.annotation.id]:
                raise ValueError
    except (AttributeError, KeyError, ValueError, SyntaxError) as error:
        problem = "a line of its parameters cell declares no parameter with type and default"
        remedy = "Declare each as `name: int|float|str|bool = literal  # comment`"
        raise InputError(notebook, problem, remedy) from error
    return defaults


def check_parameters(defaults: dict, params: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Convert parameters to the types of the defaults. Raises InputError if that is impossible."""
    checked = {}
    for name, value in params.items():
        if name not in defaults:  # Papermill would only warn
            close = difflib.get_close_matches(name, defaults, cutoff=0.5) or sorted(defaults)
            problem, remedy = f"the notebook has no parameter {name!r}", " or ".join(close)
            raise InputError(where, problem, f"Did you mean {remedy}?")
        kind = type(defaults[name])
        try:  # a float may be a string: YAML reads 1e-4 as one
            checked[name] = TypeAdapter(kind).validate_python(value, strict=kind is not float)
        except ValidationError as error:
            problem = f"{name} is {value!r}: {error.errors()[0]['msg']}"
            raise InputError(where, problem, f"The default is {defaults[name]!r}") from error
    return checked


def save_run(out: str | Path, metrics: Mapping[str, Any], **tables: Any) -> None:
    """Save the results of a notebook, in its last cell.

    The same numbers give the same bytes: floats have 6 significant digits, keys are sorted, NaN
    and infinity become null; NumPy and torch are understood. Tables, or lists of dicts, are saved
    as ``<name>.csv``, without the index. A run is complete when its ``metrics.json`` exists.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pd.DataFrame(table).to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    _write_json(folder / ENVIRONMENT, environment_record())
    text = json.dumps(dict(metrics), default=lambda array: array.tolist())
    rounded = partial(json.loads, parse_float=lambda digits: float(f"{float(digits):.6g}"))
    _write_json(folder / METRICS, rounded(text, parse_constant=lambda nan_or_infinity: None))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with replacing(path) as part:
        part.write_text(text + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run; empty if there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def environment_record(**run: Any) -> dict[str, Any]:
    """Record versions, commit and device after the given entries; without host or user."""
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True)
    commit = git(["git", "describe", "--always", "--abbrev=12", "--exclude=*"]).stdout.strip()
    changed = git(["git", "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)figures"])
    torch = sys.modules.get("torch")  # a notebook that did not import it ran on the CPU
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else ""
    return run | {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": gpu or f"CPU ({os.cpu_count()} cores)",
        "commit": commit + "+" * (changed.returncode == 1),  # for uncommitted changes
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def run_notebook(
    notebook: str | Path,
    folder: str | Path,
    params: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    progress: bool = True,
    *,
    root: str | Path = ".",
    skip_done: bool = False,
) -> dict[str, Any]:
    """Run a notebook with Papermill, and return its metrics.

    The notebook has a parameter ``out: str = ""``, and its last cell calls `save_run`. ``folder``
    is emptied first; processes that run into the same folder wait for each other. Each cell may
    take ``timeout`` seconds. ``root`` is the kernel's folder. Raises InputError for unknown or
    mistyped parameters, or a folder with other files; RunError if the notebook raised an error, its
    kernel died, or a cell took too long: the folder then keeps the notebook and ``error.json``.
    """
    notebook, folder = Path(notebook), Path(folder).absolute()
    defaults = read_parameters(notebook)
    params = check_parameters(defaults, {**(params or {}), "out": str(folder)}, notebook.name)
    files = set(os.listdir(folder)) if folder.exists() else set()
    if files and not files & {PARAMS, ERROR}:
        raise InputError(folder, "contains files that are not a run", "Choose another folder")
    with locked(folder.parent / ".locks" / folder.name):
        if skip_done and (folder / METRICS).exists():
            return read_json(folder / METRICS)
        shutil.rmtree(folder, ignore_errors=True)
        _write_json(folder / PARAMS, {k: v for k, v in (defaults | params).items() if k != "out"})
        started = time.monotonic()
        try:
            _execute(notebook, folder, params, timeout, progress, root)
        except Exception as error:
            kind = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
            record_failure(folder, f"{kind}{error}", traceback.format_exc())
            raise RunError(f"{notebook.name} in {folder.name}: {kind}{error}") from error
        seconds = {"wall_seconds": round(time.monotonic() - started, 2)}
        _write_json(folder / ENVIRONMENT, read_json(folder / ENVIRONMENT) | seconds)
    return read_json(folder / METRICS)


def record_failure(folder: Path, message: str, trace: str = "") -> None:
    """Write ``error.json`` of a failed run, and remove its metrics: it is not complete."""
    (folder / METRICS).unlink(missing_ok=True)
    _write_json(folder / ERROR, {"error": message, "traceback": trace})


def _execute(notebook, folder, params, timeout, progress, root) -> None:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # our errors repeat its messages
    # Kernels that start together can choose the same network port, so they use files instead,
    # whose paths may have 107 characters.
    place = None if len(tempfile.gettempdir()) < 70 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="lgekit-", dir=place) as sockets:
        channels = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        paths = (str(path) for path in (notebook, folder / NOTEBOOK))
        try:
            papermill.execute_notebook(
                *[path.replace("{", "{{").replace("}", "}}") for path in paths],
                parameters=params,
                kernel_name="python3",
                language="python",
                progress_bar={"desc": notebook.stem} if progress else False,
                start_timeout=180,
                execution_timeout=timeout,
                config=Config(ConnectionFileMixin=channels),
                resources={"metadata": {"path": str(root)}},
            )
        except papermill.PapermillExecutionError as error:
            message = f"{error.ename}: {error.evalue} in cell In [{error.exec_count}]"
            raise RunError(message) from error
        except CellTimeoutError as error:
            raise RunError(f"a cell took longer than the {timeout:g} s allowed") from error
        except DeadKernelError:
            pass  # Papermill does not notice every dead kernel
    if not (folder / METRICS).is_file():
        reasons = "the kernel died (out of memory?), or the last cell does not call save_run"
        raise RunError(f"the notebook wrote no {METRICS}: {reasons}")


def project_root() -> Path:
    """Return the checkout that lgekit was installed from, or else the current folder."""
    checkout = Path(lgekit.__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


@dataclass
class Session:
    """What a notebook works on and where it saves its results; see `start`."""

    spec: str  # of the cohort
    size: str  # smoke, laptop or paper
    seed: int  # of everything random
    out: Path  # folder of the results

    def versions(self) -> pd.DataFrame:
        """Show the cohort, versions and device of this run as a table."""
        record = environment_record(cohort=self.spec, size=self.size, seed=self.seed)
        return pd.Series(record).to_frame("")

    def cohort(self, show_identifiers: bool = False) -> "Cohort":
        """Read the cohort. Raises InputError if reports seem to hold names, dates or addresses."""
        from lgekit.data.readers import read_cohort
        from lgekit.reports.text import require_privacy

        cohort = read_cohort(self.spec)
        if not show_identifiers:
            require_privacy({study["study_id"]: study["report"] for study in cohort.studies})
        return cohort

    def scratch(self, name: str) -> Path:
        """Return the path of a folder for trials. Files of an earlier run are removed."""
        folder = self.out / "scratch" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def table(self, notebook: str, name: str) -> pd.DataFrame:
        """Read a table that another notebook of the same run saved."""
        return pd.read_csv(self.out.parent / notebook / f"{name}.csv")

    def save(self, metrics: Mapping[str, Any], **tables: Any) -> None:
        """Save metrics and tables as `save_run` does."""
        save_run(self.out, metrics, **tables)


def start(name: str, cohort: str, size: str, seed: int, out: str) -> Session:
    """Start a notebook: check size and seed, enter the project's folder, seed torch, style plots.

    Relative paths in SPECs start from the project's folder.
    """
    import torch

    from lgekit.viz.plots import use_style

    size_settings(size, seed=seed)  # refuses unknown sizes and negative seeds
    root = project_root()
    os.chdir(root)
    # Threads add gradients in any order, so the same seed could give different last digits.
    torch.use_deterministic_algorithms(True, warn_only=True)
    if size == "smoke":
        torch.set_num_threads(1)
    torch.manual_seed(seed)  # TorchIO's transforms use torch's global generator
    use_style()
    folder = Path(out or root / "papermill_runs" / "manual" / name)
    folder.mkdir(parents=True, exist_ok=True)
    cohort = cohort or f"phantom:studies={STUDIES[size]},seed={seed}"
    return Session(cohort, size, seed, folder)


def require_extra() -> None:
    """Raise InputError if the packages that notebooks and grids need are not installed."""
    if missing := [name for name in ("papermill", "distributed") if not find_spec(name)]:
        remedy = "Run make setup in a checkout, or install the wheel as FILE.whl[workbook]"
        raise InputError("lgekit[workbook]", f"{missing[0]} is not installed", remedy)


def run_workbook(
    size: str = "laptop",
    cohort: str = "",
    seed: int = 0,
    only: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Path:
    """Run the notebooks, or ``only`` some (``["05"]``), in order; return the folder of the results.

    It has ``NN_name.ipynb``, ``NN_name/`` and ``figures/``; None: papermill_runs/workbook/.
    """
    from lgekit.data.readers import parse_spec

    require_extra()
    chosen = [name for name in NOTEBOOKS if not only or name in only or name[:2] in only]
    if not chosen:
        raise InputError("notebook", f"{only} not known", f"Notebooks: {', '.join(NOTEBOOKS)}.")
    size_settings(size, seed=seed)
    if cohort:
        parse_spec(cohort)
    root = project_root()
    folder = (folder or root / "papermill_runs" / "workbook").absolute()
    common = {"size": size, "cohort": cohort, "seed": seed}
    own = {NOTEBOOKS[5]: {"compare_with": "supervised"}}
    own[NOTEBOOKS[7]] = {"figures": str(folder / "figures")}
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        params = common | own.get(name, {})
        run_notebook(root / "notebooks" / f"{name}.ipynb", folder / name, params, root=root)
        shutil.copyfile(folder / name / NOTEBOOK, folder / f"{name}.ipynb")
    return folder
