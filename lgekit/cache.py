"""The on-disk cache, file locks, and the device of networks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgekit.errors import InputError

if TYPE_CHECKING:
    import torch
    from joblib import Memory

# Whose code decides a fit.
FIT_ROOMS = ("anatomy", "reports", "data", "segmentation", "scars", "clip")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file completely or not at all; its folder is made if needed.

    Yields a path in the same folder to write to. It becomes ``path`` when the block succeeds.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def code_version(*rooms: str) -> str:
    """Hash the source of the basic modules and of folders of the library, such as ``"clip"``.

    It is part of every cache key and run id, so that results of old code are not reused.
    """
    root = Path(__file__).parent
    basics = ("study.py", "findings.py", "config.py", "diseases.toml", "presets.toml")
    files = [root / name for name in basics]
    for room in rooms:
        files += sorted([*(root / room).rglob("*.py"), *(root / room).rglob("*.toml")])
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new path for a folder; if the block succeeds, its content is moved to ``path``."""
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        part = Path(temporary) / path.name
        yield part
        path.mkdir(exist_ok=True)  # not replaced if it exists: a shell may be open there
        for entry in part.iterdir():
            entry.rename(path / entry.name)


def memory() -> Memory:
    """Open the library's cache: the folder ``LGEKIT_CACHE``, or ``~/.cache/lgekit`` if it is unset.

    Arrays are memory-mapped, copy on write: changing them does not change the cache.
    ``LGEKIT_CACHE=`` (empty) switches caching off.
    """
    from joblib import Memory

    folder = os.environ.get("LGEKIT_CACHE", os.path.expanduser("~/.cache/lgekit"))
    if not folder:
        return Memory(None, verbose=0)
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = "Set the variable LGEKIT_CACHE to a folder that you may write to, or to nothing: "
        problem = f"cannot be written ({error.strerror})"
        raise InputError(f"cache {folder}", problem, remedy + "LGEKIT_CACHE=") from error
    return Memory(folder, mmap_mode="c", verbose=0)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Wait for a file lock and hold it. It is freed when its process ends, even by kill -9."""
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # safe: a waiting FileLock opens the path again


def is_locked(path: str | Path) -> bool:
    """Tell whether a living process holds ``locked(path)``."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=0) if os.path.exists(path) else contextlib.nullcontext():
            return False
    except Timeout:
        return True


def compute_once(key: object, compute: Callable[[], Any]) -> Any:
    """Return the result of ``compute``, or that of an earlier call with an equal key.

    Processes that start together compute the result only once.
    """
    import joblib

    if not (folder := memory().location):
        return compute()
    file = Path(folder) / "results" / joblib.hash(key)
    if not file.exists():
        with locked(file.with_suffix(".lock")):
            if not file.exists():  # no other process computed it meanwhile
                with replacing(file) as part:
                    joblib.dump(compute(), part)
    return joblib.load(file, mmap_mode="c")


def accelerator() -> torch.device:
    """Return the first visible GPU, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
