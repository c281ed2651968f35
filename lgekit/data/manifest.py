"""Read and write a cohort as a manifest.csv, and parse its cells.

Columns: ``study_id`` and ``image`` (a path from the table's folder), and optionally ``labels`` (a
path), ``report`` (the text, or the path of a ``.txt`` file), ``split``, ``patient_id``,
``report_source``, ``findings`` (JSON), ``anterior_rvip_deg``, ``inferior_rvip_deg`` and
``rvip_confidence``. Other columns are ignored.
"""

import difflib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import nibabel as nib
import numpy as np
import pandas as pd
from pandas.errors import ParserError

from lgekit.cache import replacing
from lgekit.data.nifti import Entry, Fault, Listing, read_nifti
from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.study import LABEL_NAMES, Cohort, Landmarks, Study

COLUMNS = "study_id image labels report split patient_id report_source findings".split()
LANDMARK_COLUMNS = ["anterior_rvip_deg", "inferior_rvip_deg", "rvip_confidence"]
REPORT_SOURCES = ("clinical", "masks", "phantom", "none")
# Other names of columns: they, and close spellings of them or of a column, are mistakes.
SYNONYMS = dict.fromkeys(("mask", "segmentation"), "labels")
SYNONYMS |= dict.fromkeys(("patient", "subjectid"), "patient_id")
INTERNAL_CODES = {code: code for code in range(len(LABEL_NAMES))}
CONFIDENCE = {"high": 1.0, "medium": 0.66, "low": 0.33}
NO_VALUE = r"n\.?/?a\.?|nan|null|none|nil|[-–—?]+"  # reports that say only this are missing


def on_disk(root: Path, path: str) -> Path:
    """A path below a folder, in the Unicode form of the disk: macOS writes NFD, tables are NFC."""
    forms = (root / normalize(form, path) for form in ("NFC", "NFD"))
    return next(filter(os.path.exists, forms), root / path)


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 file, which messages call ``what``."""
    try:
        return normalize("NFC", path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problem = f"{what} is not UTF-8 (byte {error.start})"
        raise InputError(path, problem, f"Save {what} as UTF-8") from error
    except OSError as error:
        problem = f"{what} cannot be read ({error.strerror})"
        raise InputError(path, problem, "Put the file there, or correct the path") from error


def read_table(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a UTF-8 table with a header, as stripped text: an id like 001 survives."""
    delimiter = "\t" if path.suffix == ".tsv" else ","
    text = read_text(path, "the table")
    options = {"header": None, "dtype": str, "keep_default_na": False, "na_filter": False}
    try:
        cells = pd.read_csv(io.StringIO(text if text.strip() else '""'), sep=delimiter, **options)
    except ParserError as error:
        remedy = "Save the table again as CSV in UTF-8; quote fields that hold commas or quotes"
        problem = f"not a readable table ({str(error).rpartition('C error: ')[2].strip()})"
        raise InputError(path, problem, remedy) from error
    cells = cells.fillna("").map(str.strip)
    if delimiter == "\t":
        cells = cells.replace("n/a", "")  # BIDS
    columns = cells.iloc[0].tolist()
    if missing := [name for name in required if name not in columns]:
        problem = f"column {missing[0]!r} is missing (found: {', '.join(columns) or 'nothing'})"
        remedy = f"Name the columns {', '.join(required)} and separate them by {delimiter!r}"
        raise InputError(path, problem, remedy)
    if len(set(columns)) < len(columns):
        raise InputError(path, "two columns have the same name", "Rename or remove one")
    if len(cells) == 1:
        raise InputError(path, "has no rows", "Add one row for each study")
    return cells[1:].set_axis(columns, axis=1).to_dict("records")


def optional_rows(table: Path, required: Sequence[str]) -> tuple[list[dict[str, str]], list[Fault]]:
    """Return the rows of an optional table, and the fault of the table if it has one."""
    try:
        return read_table(table, required) if table.is_file() else [], []
    except InputError as error:
        return [], [Fault.of(error, truth_only=True)]


def misspelt_columns(table: Path, columns: Sequence[str]) -> Iterator[Fault]:
    """Return a fault for each column that seems misspelt; other unknown columns are ignored."""
    spellings = {name.replace("_", ""): name for name in COLUMNS + LANDMARK_COLUMNS}
    spellings |= SYNONYMS
    for column in (name for name in columns if name not in spellings.values()):
        plain = re.sub("[-_ ]", "", column.lower())
        for close in difflib.get_close_matches(plain, spellings, 1, 0.86):
            if (meant := spellings[close]) not in columns:
                remedy = f"Did you mean {meant!r}? Rename the column, or give it another name"
                yield Fault(table, f"unknown column {column!r}", remedy, truth_only=True)


def parse_landmarks(angles: Sequence[str], confidence: str, where: str) -> Landmarks | None:
    """Make landmarks from two angles (degrees; empty: unknown) and a confidence, 0–1 or a word."""
    if not any(angles):
        return None
    try:
        anterior, inferior = (float(text) % 360 if text else float("nan") for text in angles)
        sure = CONFIDENCE.get(confidence) or float(confidence or 1)
        if not 0 <= sure <= 1:
            raise ValueError
    except ValueError as error:
        problem = f"{', '.join(map(repr, angles))} with confidence {confidence!r} are no landmarks"
        remedy = "Give degrees, and as confidence high, medium, low or a number from 0 to 1"
        raise InputError(where, problem, remedy) from error
    return Landmarks(anterior, inferior, sure)


def parse_report(cell: str, root: Path, source: str, any_report: bool, where: str) -> str:
    """The report in a cell, or in the ``.txt`` file that it names; an empty one needs a reason."""
    if source and source not in REPORT_SOURCES:
        remedy = f"Use one of {', '.join(REPORT_SOURCES)}"
        raise InputError(where, f"unknown report_source {source!r}", remedy)
    if cell.lower().endswith(".txt") and "\n" not in cell:
        cell = read_text(on_disk(root, cell), "the report").replace("\r\n", "\n").strip()
    cell = "" if re.fullmatch(NO_VALUE, cell, re.I) else cell
    if any_report and not cell and source not in ("none", "masks"):
        problem = "report is empty, while other studies have one"
        remedy = "Write the report, or set report_source: none (no report) or masks (from the mask)"
        raise InputError(f"{where}, report", problem, remedy)
    return cell


def manifest(path: str) -> Listing:
    """List the studies of a ``manifest.csv``, and the faults of its rows."""
    table = Path(path).expanduser()
    rows = read_table(table, ("study_id", "image"))
    yield from misspelt_columns(table, list(rows[0]))
    any_report = any(row.get("report") for row in rows)
    for number, row in enumerate(rows, 2):
        where = f"{table}, row {number}"
        yield from study_of_row(row, table.parent, where, any_report, codes=INTERNAL_CODES)


def study_of_row(
    row: dict[str, str], root: Path, where: str, any_report: bool = False, **facts: Any
) -> Listing:
    """List the study of a row and its faults; ``facts`` are further fields of the `Entry`."""
    row = dict.fromkeys(COLUMNS + LANDMARK_COLUMNS, "") | row
    name, source, findings = row["study_id"], row["report_source"], row["findings"]
    if not name or name[0] == "." or re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
        remedy = "Use letters, digits, - and _"
        yield Fault(where, f"study_id {name!r} cannot name a file", remedy, name)
        return
    if not row["image"]:
        remedy = "Write the path of the study's NIfTI file, relative to the table"
        yield Fault(f"{where}, image", "image is empty", remedy, name)
        return
    *angles, confidence = (row[column] for column in LANDMARK_COLUMNS)
    parsers: dict[str, Callable[[], object]] = {
        "report": lambda: parse_report(row["report"], root, source, any_report, where),
        "landmarks": lambda: parse_landmarks(angles, confidence, where),
        "findings": lambda: Findings.from_json(findings) if findings else None,
    }
    for key, parse in parsers.items():
        try:
            facts[key] = parse()
        except InputError as error:
            place = f"{where}, findings" if key == "findings" else error.where
            yield Fault(place, error.problem, error.remedy, name, truth_only=True)
    files = tuple(on_disk(root, row[key]) for key in ("image", "labels") if row[key])
    image, *labels = (partial(read_nifti, file) for file in files)
    facts |= {"report_source": source, "split": row["split"]}
    facts["labels"] = labels[0] if labels else None
    yield Entry(name, row["patient_id"] or name, files, image, **facts)


def write_manifest(cohort: Cohort, out_dir: str | os.PathLike[str]) -> Path:
    """Write a cohort as ``images/*.nii.gz``, ``labels/*.nii.gz`` and ``manifest.csv``.

    The new or empty folder is written whole or not at all. Returns the path of ``manifest.csv``,
    which ``read_cohort`` reads back with splits, landmarks and findings. Raises InputError if the
    folder is not empty, or two studies have the same id.
    """
    target = Path(out_dir).expanduser()
    ids = pd.Series([study["study_id"] for study in cohort.studies])
    for twice in ids[ids.duplicated()]:
        raise InputError(twice, "two studies have this id", "Give every study its own id")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        remedy = "Give a new folder, or empty this one first"
        raise InputError(target, "is not an empty folder", remedy)
    with replacing(target) as part:
        part.mkdir()
        rows = [_write_study(study, part) for study in cohort.studies]
        table = pd.DataFrame(rows, columns=COLUMNS + LANDMARK_COLUMNS)
        table.to_csv(part / "manifest.csv", index=False, lineterminator="\r\n")
    return target / "manifest.csv"


def _write_study(study: Study, root: Path) -> dict[str, str]:
    """Write the files of one study and return its row."""
    keys = ("study_id", "patient_id", "split", "report", "report_source")
    row = {key: str(study[key]) for key in keys}
    arrays = {"image": (study.pixels, np.float32), "labels": (study.label_map, np.uint8)}
    for key, (array, dtype) in arrays.items():
        if array is not None:
            row[key] = f"{key.rstrip('s')}s/{study['study_id']}.nii.gz"
            (root / row[key]).parent.mkdir(exist_ok=True)
            image = nib.Nifti1Image(array.astype(dtype), study["image"].affine)
            image.header.set_xyzt_units("mm")
            image.header.set_dim_info(slice=2)
            image.to_filename(root / row[key])
    if study["findings"] is not None:
        row["findings"] = study["findings"].to_json()
    if (landmarks := study["landmarks"]) is not None:
        angles = (landmarks.anterior_rvip_deg, landmarks.inferior_rvip_deg, landmarks.confidence)
        cells = ("" if np.isnan(value) else repr(float(value)) for value in angles)
        row |= dict(zip(LANDMARK_COLUMNS, cells, strict=True))
    return row
