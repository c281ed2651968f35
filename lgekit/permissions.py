"""Files that are there and may not be read, which libraries report as missing."""

from __future__ import annotations

import os
from pathlib import Path

from lgekit.errors import InputError


def refuse_unreadable(folder: Path, known_by: str) -> None:
    """Look at a model's folder and all that is in it; one without the file that makes it a model passes.

    Args:
        folder: of the model.
        known_by: name of that file.

    Raises:
        InputError: the user may not read something of it.
    """
    paths = [folder]
    if os.access(folder, os.R_OK | os.X_OK):
        if not (folder / known_by).exists():
            return
        paths = sorted(path for path in folder.rglob("*") if path.exists())  # a link to nothing is another matter
    elif not folder.exists():
        return
    for path in paths:
        if not os.access(path, os.R_OK | os.X_OK * path.is_dir()):
            remedy = f"Ask its owner to let you read it: chmod a+r{'x' * path.is_dir()} {path}"
            raise InputError(path, "cannot be read (permission)", remedy)
