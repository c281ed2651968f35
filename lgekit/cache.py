"""Where results that are slow to make are kept: one joblib.Memory for the whole library."""

from __future__ import annotations

import os
from pathlib import Path

from joblib import Memory


def memory() -> Memory:
    """The library's cache: the folder ``LGEKIT_CACHE``, or ``~/.cache/lgekit`` where that is not set.

    Arrays come back memory-mapped, copy on write: a cached cohort costs no memory until it is looked at, and
    changing a study in place never changes the cache. ``LGEKIT_CACHE=`` (empty) switches caching off.
    """
    folder = os.environ.get("LGEKIT_CACHE")
    if folder is None:
        folder = str(Path("~/.cache/lgekit").expanduser())
    return Memory(folder or None, mmap_mode="c" if folder else None, verbose=0)
