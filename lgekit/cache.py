"""Where results that are slow to make are kept: one joblib.Memory for the whole library."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from joblib import Memory

from lgekit.errors import InputError


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
            raise InputError(f"cache {folder}", f"cannot be written ({error.strerror})", remedy) from error
    return Memory(folder or None, mmap_mode="c" if folder else None, verbose=0)
