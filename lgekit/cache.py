"""The on-disk cache, and the device and number format that networks run in."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from joblib import Memory

from lgekit.errors import InputError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all.

    Args:
        path: the file to write; its folder is made if it is not there.

    Yields:
        A new empty file beside it, which takes its name when the block ends without an error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
    )
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def code_version(*rooms: str) -> str:
    """Hash the source of some rooms of the library and of its ground floor.

    Part of the key of everything that is cached and of a run's id: an edit to the code makes it again.

    Args:
        rooms: folders of ``lgekit/``, such as ``"clip"``.

    Returns:
        16 hex digits.
    """
    root = Path(__file__).parent
    files = [root / f"{name}.py" for name in ("study", "findings", "config")]
    for room in rooms:
        files += sorted((root / room).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Write a folder completely or not at all: yield a new path, renamed to ``path`` at the end.

    If the folder exists (empty), the new content is moved into it, as a shell may be inside.
    """
    from tempfile import TemporaryDirectory

    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        part = Path(temporary) / path.name
        yield part
        if path.exists():
            for entry in part.iterdir():
                entry.rename(path / entry.name)
        else:
            part.rename(path)


def memory() -> Memory:
    """The library's cache: the folder ``LGEKIT_CACHE``, or ``~/.cache/lgekit`` where that is not set.

    Arrays come back memory-mapped, copy on write: a cached cohort costs no memory until it is looked at, and
    changing a study in place never changes the cache. ``LGEKIT_CACHE=`` (empty) switches caching off.

    Raises:
        InputError: the folder cannot be made or written.
    """
    folder = os.environ.get("LGEKIT_CACHE")
    if folder is None:
        folder = str(Path("~/.cache/lgekit").expanduser())
    if folder:
        try:
            os.makedirs(folder, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            remedy = "Set the variable LGEKIT_CACHE to a folder that you may write to, or to nothing: LGEKIT_CACHE="
            raise InputError(
                f"cache {folder}", f"cannot be written ({error.strerror})", remedy
            ) from error
    return Memory(folder or None, mmap_mode="c" if folder else None, verbose=0)


def accelerator() -> torch.device:
    """The GPU that this process uses (the first one that it sees), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def has_fast_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 by itself (AVX512-BF16 or AMX); False where torch cannot say."""
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older versions of torch lack it
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def predicting(device: torch.device) -> torch.autocast:
    """Context in which convolutions on a CPU that has fast bfloat16 are computed in it; elsewhere nothing changes.

    The heart network then takes three quarters of the time (72 → 54 ms of one core a phantom study), and those of
    EMIDEC's five folds draw its 60 studies as well: medians of cavity, wall and anterior point 0.928, 0.839 and 7.7°,
    in float32 0.928, 0.838 and 7.5° [O]. So a prediction may differ a little between machines. Training is in
    float32, unless the setting ``bfloat16`` says otherwise.
    """
    return torch.autocast(
        "cpu", torch.bfloat16, enabled=device.type == "cpu" and has_fast_bfloat16()
    )


def trains_in_bfloat16(device: torch.device, asked: bool) -> bool:
    """Whether CLIP's training multiplies in bfloat16: on a GPU always, on a CPU where asked to and fast at it."""
    return device.type == "cuda" or (device.type == "cpu" and asked and has_fast_bfloat16())


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
        with (
            open(path) as file
        ):  # shared: two who ask at once see no lock of one another, and NFS asks no writing
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
    if getattr(cached, "store_backend", None) is None or cached.check_call_in_cache(
        *args, **kwargs
    ):
        return cached(*args, **kwargs)
    from joblib import hashing
    from joblib.func_inspect import filter_args

    what = filter_args(cached.func, cached.ignore, args, kwargs)  # as joblib tells calls apart
    key = hashing.hash((cached.func.__module__, cached.func.__qualname__, what))
    with locked(Path(cached.store_backend.location) / "locks" / key):
        return cached(*args, **kwargs)
