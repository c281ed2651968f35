"""Where a command puts its results: looked at before long work, written whole, never over what others made."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from lgekit.errors import InputError

PREDICTIONS = ("study_id", "p_lge")  # columns by which a table is known as one of `lgekit predict`
WRITABLE = "Give a place that you may write to"


def refuse_full(folder: Path) -> None:
    """See, before long work, that a folder can take its results.

    Raises:
        InputError: it holds something, its parent is not there, or nothing can be written beside it (or into it).
    """
    target = folder.resolve()
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(folder, "is there already and not an empty folder", "Name a new folder, or empty this one")
        if not target.parent.exists():
            raise InputError(folder, "its parent folder does not exist", f"Make it first: mkdir -p {folder.parent}")
        for place in [target.parent, *([target] if target.exists() else [])]:
            Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=place)).rmdir()
    except OSError as error:
        raise InputError(folder, f"cannot be written ({error.strerror})", WRITABLE) from error


class WholeFolder:
    """A temporary sibling that becomes the folder when all is written, or vanishes when writing fails.

    By one rename where the folder can be replaced. A mount point, or the folder that the user stands in, is filled
    instead.

    Args:
        target: a folder that `refuse_full` lets pass; links are followed.

    Raises:
        InputError: on leaving, where nothing can be put there; what was written stays beside it, and is named.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.resolve()

    def __enter__(self) -> Path:
        """The place to write to; not made yet."""
        self.part = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent)) / self.target.name
        return self.part

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                self._hand_over()
            except OSError as error:
                remedy = f"What was made is not lost: move it from {self.part}"
                raise InputError(self.target, f"cannot be written ({error.strerror or error})", remedy) from error
        shutil.rmtree(self.part.parent, ignore_errors=True)

    def _hand_over(self) -> None:
        with suppress(OSError):  # what cannot be replaced can be filled
            if self.target.exists() and self.target != Path.cwd():
                self.target.rmdir()  # it is empty, or the rename would lose something
            if not self.target.exists():
                self.part.rename(self.target)
                return
        self.target.mkdir(exist_ok=True)
        if any(self.target.iterdir()):
            raise OSError("it is no longer empty")
        for entry in sorted(self.part.iterdir()):
            shutil.move(entry, self.target / entry.name)


@contextmanager
def prediction_table(target: Path, inputs: Sequence[Path]) -> Iterator[Path]:
    """The file to write predictions to; it takes the target's place when the block ends well, and vanishes otherwise.

    Args:
        target: a new file, or a table of predictions to replace.
        inputs: files that the command reads; never written over.

    Raises:
        InputError: before the block, where the target is something else or cannot be written.
    """
    if not target.parent.is_dir():
        raise InputError(target, "its folder does not exist", f"Make it first: mkdir -p {target.parent}")
    if target.is_dir():
        raise InputError(target, "is a folder", f"Name a file in it: {target / 'predictions.csv'}")
    remedy = "Name another file: nothing is written over that may be somebody's work"
    part = target.with_name(f".{target.name}.part")
    try:
        if target.exists() and any(file.exists() and target.samefile(file) for file in inputs):
            raise InputError(target, "is what the command reads", remedy)
        if target.exists() and not _is_predictions(target):
            raise InputError(target, "is there already and no table of predictions", remedy)
        part.write_bytes(b"")
    except OSError as error:
        raise InputError(target, f"cannot be written ({error.strerror})", WRITABLE) from error
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _is_predictions(file: Path) -> bool:
    """Whether a file may be replaced by predictions: it has their columns, or nothing at all."""
    if not file.is_file():  # a device, a pipe
        return False
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        first = stream.readline(100_000)
    return not first or set(PREDICTIONS) <= {name.strip() for name in next(csv.reader([first]), [])}
