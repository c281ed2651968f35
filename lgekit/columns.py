"""Columns of a user's table that are ours but for their spelling: read as foreign, they would be lost in silence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from lgekit.volumes import Fault

SYNONYMS = {
    **dict.fromkeys(("mask", "masks", "segmentation", "segmentations", "label"), "labels"),
    **dict.fromkeys(("patient", "subjectid"), "patient_id"),
}


def misspelt_columns(table: Path, columns: Iterable[str], known: Sequence[str]) -> list[Fault]:
    """One fault a column that was meant as one of ours; truly foreign columns are the user's own.

    Args:
        table: the file, for the message.
        columns: its header.
        known: the names that are read.
    """
    columns = list(columns)
    plain = {_plain(name): name for name in known} | {word: name for word, name in SYNONYMS.items() if name in known}
    faults = []
    for column in (name for name in columns if name not in known):
        meant = plain.get(_plain(column))
        close = [meant] if meant else difflib.get_close_matches(column.lower(), known, 1, 0.8)
        if close and close[0] not in columns:  # else ours is there beside it
            remedy = f"Did you mean {close[0]!r}? Rename the column, or give it another name"
            faults.append(Fault("", str(table), f"unknown column {column!r}", remedy, truth_only=True))
    return faults


def _plain(name: str) -> str:
    """A name without what differs between spellings."""
    return name.lower().translate(str.maketrans("", "", "_- "))
