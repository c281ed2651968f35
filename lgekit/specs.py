"""SPECs, by which a user names cohorts, as ``kind:rest``: taken apart without a reader, and without heavy imports."""

from __future__ import annotations

import re

from lgekit.errors import InputError

KINDS = ("phantom", "emidec", "acdc", "myops", "mnms", "bids", "dicom", "manifest")


def parse_spec(spec: str) -> tuple[str, str]:
    """Split ``kind:rest``.

    Raises:
        InputError: no such kind.
    """
    kind, colon, rest = str(spec).partition(":")
    if not colon or kind not in KINDS:
        kinds = ", ".join(f"{name}:…" for name in KINDS)
        meant = f"manifest:{spec}, or else one" if str(spec).lower().endswith(".csv") else "one"
        raise InputError("SPEC", f"{spec!r} names no kind of cohort", f"Write {meant} of {kinds}")
    return kind, rest


def split_specs(text: str) -> list[str]:
    """SPECs separated by spaces; their paths may hold spaces: a SPEC ends where another kind begins."""
    return [part for part in re.split(rf"\s+(?=(?:{'|'.join(KINDS)}):)", text.strip()) if part]
