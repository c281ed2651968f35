"""One run of one notebook: parameters checked before, results written whole or not at all, the environment recorded.

A finished run is a folder with ``run.ipynb``, ``params.json``, ``metrics.json``, ``environment.json`` and, where the
notebook makes them, ``predictions.csv``, ``history.csv`` and further tables. The folder appears under its name by one
rename, so it is there whole or not there; a run that failed is kept in the neighbouring folder ``failed/``.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lgekit.errors import InputError, RunError
from lgekit.parameters import check_parameters, read_parameters
from lgekit.results import (
    ENVIRONMENT,
    ERROR,
    METRICS,
    NOTEBOOK,
    PARAMS,
    environment_record,
    load_metrics,
    save_run,
    write,
    write_json,
)

__all__ = ["RunError", "check_parameters", "compute_once", "environment_record", "is_locked", "load_metrics", "locked"]
__all__ += ["read_parameters", "record_failure", "run_notebook", "save_run"]
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
        raise InputError(notebook, "has no parameter `out`", 'Add `out: str = ""` to its parameters')
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
            for stale in out_dir.parent.glob(f".{glob.escape(out_dir.name)}.*.part"):  # of a process that was killed
                if stale.suffixes[-2:] == [".old", ".part"] and not out_dir.exists():  # between its two renames
                    os.replace(stale, out_dir)
                shutil.rmtree(stale, ignore_errors=True)
            work = out_dir.with_name(f".{out_dir.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                _run_in(work, out_dir, Path(notebook), params, full, timeout, progress, root, dict(env or {}))
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
        _execute(notebook, work / NOTEBOOK, params | {"out": str(work)}, timeout, progress, root, env)
        unfinished = _first_unfinished(work / NOTEBOOK)
        if unfinished is not None:  # Papermill calls a notebook completed whose kernel was killed
            raise RuntimeError(f"the kernel died in {unfinished} (out of memory?)")
        if not (work / METRICS).is_file():
            raise RuntimeError(f"it wrote no {METRICS}: let its last cell call save_run(out, metrics)")
        if not (work / ENVIRONMENT).exists():  # save_run wrote it, in the kernel, where the device is known
            write_json(work / ENVIRONMENT, environment_record())
        record = json.loads((work / ENVIRONMENT).read_text("utf-8"))
        took = {"started": started.isoformat(timespec="seconds"), "wall_seconds": round(time.monotonic() - clock, 2)}
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
    variables = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", **env}  # else the debugger warns of frozen modules

    class ThisInterpreter(AsyncKernelManager):
        """Starts the interpreter we run in, not whichever `python3` kernel is installed for the user."""

        kernel_spec = KernelSpec(argv=command, display_name="Python 3", language="python", env=variables)

        async def start_kernel(self, **options) -> None:  # type: ignore[override]
            with open(output.with_name(KERNEL_LOG), "wb") as log:
                await super().start_kernel(stdout=log, stderr=log, **options)

    deadline = None if timeout is None else time.monotonic() + timeout
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it logs, our error says
    with tempfile.TemporaryDirectory(prefix="lgekit-") as sockets:  # files, not ports: two kernels cannot collide
        channels = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        papermill.execute_notebook(
            str(notebook).replace("{", "{{").replace("}", "}}"),  # Papermill takes paths for format strings
            str(output).replace("{", "{{").replace("}", "}}"),
            parameters=params,
            kernel_name="python3",
            language="python",
            progress_bar={"desc": notebook.stem} if progress else False,
            start_timeout=180,
            kernel_manager_class=ThisInterpreter,
            config=Config(ConnectionFileMixin=channels),
            resources={"metadata": {"path": str(root)}},
            timeout_func=None if deadline is None else lambda cell: max(0.1, deadline - time.monotonic()),
        )


def _import_papermill() -> Any:
    """Papermill, three times as fast: the JSON validator it imports would first compile a grammar of internationalised
    addresses, for more than a second; a notebook's schema has none."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("rfc3987_syntax", None)  # None: importing it fails, which the validator allows for
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
    record = {"error": message, "traceback": trace, "started": started.isoformat(timespec="seconds")}
    with contextlib.suppress(OSError):  # on a full disk as much as there is room for; the run fails in any case
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


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold a file lock, waiting for it if need be. The system frees it when its process dies, by whatever cause.

    For stages that several runs share: take the lock, look whether the result is there, else compute it.
    """
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the holder before us removed the file: lock the new one
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(path: str | Path) -> bool:
    """Whether a living process holds ``locked(path)``."""
    import fcntl

    try:
        with open(path) as file:  # shared: two who ask at once see no lock of one another, and NFS asks no writing
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def compute_once(cached: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function cached by joblib.Memory so that runs which start together compute it once, not each for itself.

    Args:
        cached: what ``memory.cache(function)`` returned (its ``ignore`` counts); a plain function is just called.
        args, kwargs: its arguments.
    """
    if getattr(cached, "store_backend", None) is None or cached.check_call_in_cache(*args, **kwargs):
        return cached(*args, **kwargs)
    from joblib import hashing
    from joblib.func_inspect import filter_args

    what = filter_args(cached.func, cached.ignore, args, kwargs)  # as joblib tells calls apart
    key = hashing.hash((cached.func.__module__, cached.func.__qualname__, what))
    with locked(Path(cached.store_backend.location) / "locks" / key):
        return cached(*args, **kwargs)
