"""A table of predictions as `lgekit predict` wrote it and people may have edited it: read, and each cell looked at."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from lgekit.errors import InputError
from lgekit.findings import WALLS
from lgekit.studies import Cohort, Study

REMEDY = "Give the table that `lgekit predict` wrote, and the cohort that it read"
CELL = "Write the cell as `lgekit predict` does, with a point for decimals, or predict again"
NAMED = 5  # studies that a message lists


def read_predictions(path: Path) -> pd.DataFrame:
    """A table with its study ids as text: a study may be called ``NA`` or ``007``.

    Raises:
        OSError, ValueError: no readable table.
    """
    table = pd.read_csv(path)
    if "study_id" in table:
        ids = pd.read_csv(path, usecols=["study_id"], dtype=str, keep_default_na=False)
        table["study_id"] = ids["study_id"]
    return table


def in_both(path: Path, cohort: Cohort) -> tuple[pd.DataFrame, Cohort]:
    """The predictions of a file and the studies of a cohort, those that are in both; others are named in a warning.

    Raises:
        InputError: the file is not what `lgekit predict` writes, holds none of the studies, or a cell (which the
            message names by study and column) that cannot be used.
    """
    try:
        table = read_predictions(path)
    except (OSError, ValueError) as error:
        raise InputError(path, f"not a readable table ({error})", REMEDY) from error
    if lacking := [name for name in ("study_id", "p_lge", "slice_weights", "caption") if name not in table]:
        raise InputError(path, f"column {lacking[0]!r} is missing", REMEDY)
    if (twice := table["study_id"].duplicated()).any():
        problem = f"a study stands in two rows: {table['study_id'][twice].iloc[0]!r}"
        raise InputError(path, problem, REMEDY)
    predicted = set(table["study_id"])
    common = [study["study_id"] for study in cohort.studies if study["study_id"] in predicted]
    if not common:
        raise InputError(path, f"holds no study of {cohort.name}", REMEDY)
    if other := [name for name in table["study_id"] if name not in set(common)]:
        shown = ", ".join(map(repr, other[:NAMED])) + ", …" * (len(other) > NAMED)
        warnings.warn(f"{path}: {len(other)} rows are of no study of {cohort.name}: {shown}", stacklevel=2)
    table, studies = table[table["study_id"].isin(common)], cohort.subset(common)
    return _checked(table, studies, path), studies


def _checked(table: pd.DataFrame, studies: Cohort, path: Path) -> pd.DataFrame:
    """The table with numbers in its columns of probabilities.

    Raises:
        InputError: the first cell that cannot be used.
    """
    by_id = {study["study_id"]: study for study in studies.studies}
    checks: dict[str, Callable[[Any, Study], str]] = {f"p_{wall}": _number for wall in WALLS}
    checks |= {"p_lge": _present_number, "slice_weights": _slices, "attention": _further_slices, "segments": _segments}
    for column in (name for name in checks if name in table):
        for name, cell in zip(table["study_id"], table[column], strict=True):
            if problem := checks[column](cell, by_id[name]):
                raise InputError(f"{path}, {name}, {column}", problem, CELL)
    return table.astype({name: float for name in checks if name.startswith("p_") and name in table})


def _number(cell: Any, study: Study) -> str:
    if pd.isna(cell):
        return ""
    try:
        inside = 0 <= float(cell) <= 1
    except ValueError:
        return f"{cell!r} is not a number"
    return "" if inside else f"{cell} is not between 0 and 1"


def _present_number(cell: Any, study: Study) -> str:
    return "is empty" if pd.isna(cell) else _number(cell, study)


def _slices(cell: Any, study: Study) -> str:
    if pd.isna(cell) and study.label_map is None:  # then nobody asks for it
        return ""
    return _listed(cell, study.spatial_shape[2], "one number a slice", (int, float))


def _further_slices(cell: Any, study: Study) -> str:
    return "" if pd.isna(cell) else _slices(cell, study)


def _segments(cell: Any, study: Study) -> str:
    return "" if pd.isna(cell) else _listed(cell, 17, "one number or null a segment", (int, float, type(None)))


def _listed(cell: Any, count: int, what: str, kinds: tuple[type, ...]) -> str:
    """What is wrong with a cell that holds a JSON list."""
    try:
        values = json.loads(cell)
    except (TypeError, ValueError):
        return f"{str(cell)[:60]!r} is not a JSON list"
    if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
        return f"{str(cell)[:60]!r} is not a list of {what}"
    return "" if len(values) == count else f"holds {len(values)} numbers, not {count}: {what}"
