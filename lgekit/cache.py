"""The on-disk cache, file locks, and the device of networks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgekit.errors import InputError

if TYPE_CHECKING:
    import torch

# Whose code decides a fit.
FIT_ROOMS = ("anatomy", "reports", "data", "segmentation", "scars", "clip")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file or folder completely or not at all; the folder it lies in is made if needed.

    Yields a path in a private folder next to it, where nobody can plant a link. What is written
    there becomes ``path`` when the block succeeds.
    """
    path = Path(path).resolve() if Path(path).is_dir() else Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as private:
        yield (part := Path(private) / f"new.{path.name}")
        if path.is_dir():  # not replaced: a shell may be open there
            for entry in part.iterdir():
                entry.rename(path / entry.name)
        else:
            os.replace(part, path)


def code_version(*rooms: str) -> str:
    """Hash the source of basic modules and of folders, so that results of old code do not count."""
    root = Path(__file__).parent
    basics = ("study.py", "findings.py", "config.py", "diseases.toml", "presets.toml")
    files = [root / name for name in basics]
    for room in rooms:
        files += sorted([*(root / room).rglob("*.py"), *(root / room).rglob("*.toml")])
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path | None:
    """The cache: ``private/`` in the folder ``LGEKIT_CACHE``, by default ``~/.cache/lgekit``.

    ``LGEKIT_CACHE=`` (empty) switches caching off: None, as where no folder can be made. Raises
    InputError if others could have written there, because entries are pickles.
    """
    named = os.environ.get("LGEKIT_CACHE", "~/.cache/lgekit")
    folder = Path(named).expanduser() / "private"
    try:
        if not named:
            return None
        folder.mkdir(0o700, parents=True, exist_ok=True)  # it holds images
        found = folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o002:
            remedy = "Remove it, or set the variable LGEKIT_CACHE to another folder, or to nothing"
            raise InputError(f"cache {folder}", "other users can write into it", remedy)
    except OSError as error:
        warnings.warn(f"no cache: {error}", stacklevel=2)
        return None
    return folder


def store(path: Path, value: object) -> None:
    """Write a value as a pickle after its checksum. A full disk is only a warning."""
    with tolerated(path), replacing(path) as part:
        content = pickle.dumps(value)
        part.write_bytes(hashlib.sha256(content).digest() + content)


def load(path: Path) -> Any:
    """Read what `store` wrote; None if it is missing or damaged, which warns and removes it."""
    with tolerated(path):
        if path.exists():
            stored = path.read_bytes()
            if hashlib.sha256(stored[32:]).digest() != stored[:32]:
                raise ValueError("damaged entry")
            return pickle.loads(stored[32:])
    return None


@contextlib.contextmanager
def tolerated(path: Path) -> Iterator[None]:
    """Turn any failure of the cache into a warning, and remove the entry."""
    try:
        yield
    except Exception as error:
        problem = f"cache not used ({getattr(error, 'strerror', None) or error})"
        warnings.warn(f"{problem}; `lgekit cache clear` empties it", stacklevel=3)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


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


def compute_once(key: object, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the stored result of a function (never None), or call it and store the result.

    The ``repr`` of ``key`` stands for everything that the result depends on. Processes that start
    together compute it only once. Whatever is wrong with the cache, the function is called.
    """
    folder = cache_folder()
    if folder is None:
        return compute(*args, **kwargs)
    named = f"{compute.__module__}.{compute.__qualname__} {key!r}"
    path = folder / hashlib.sha256(named.encode()).hexdigest()[:32]
    with contextlib.ExitStack() as held:
        with tolerated(path):
            held.enter_context(locked(path.with_suffix(".lock")))
        if (result := load(path)) is None:
            result = compute(*args, **kwargs)
            store(path, result)
    return result


def end_with_parent() -> None:
    """Let a worker process end when its parent has ended, even by kill -9."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def accelerator() -> torch.device:
    """Return the first visible GPU, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
