"""Files that are there and may not be read, which libraries report as missing."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

from lgekit.errors import InputError


def refuse_unreadable(folder: Path) -> None:
    """Look at a folder and all that is in it; one that is not there passes.

    Raises:
        InputError: the user may not read something of it.
    """
    try:
        paths = chain([folder], folder.rglob("*")) if folder.exists() else []
        shut = next((path for path in paths if not os.access(path, os.R_OK | os.X_OK * path.is_dir())), None)
    except PermissionError:
        shut = folder
    if shut is not None:
        remedy = f"Ask its owner to let you read it: chmod -R a+rX {folder}"
        raise InputError(shut, "cannot be read (permission)", remedy)
