"""Cohorts as a manifest.csv."""

from __future__ import annotations

import csv
import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from lgekit.data.nifti import Entry, Fault, misspelt_columns, read_nifti
from lgekit.data.public import INTERNAL_CODES, Listing, parse_landmarks, read_table
from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.study import Cohort, Landmarks, Study

COLUMNS = (
    "study_id",
    "image",
    "labels",
    "report",
    "split",
    "patient_id",
    "report_source",
    "findings",
)
LANDMARK_COLUMNS = ("anterior_rvip_deg", "inferior_rvip_deg", "rvip_confidence")
REPORT_SOURCES = ("clinical", "masks", "phantom", "none")


def manifest(path: str) -> Listing:
    """List the studies of a ``manifest.csv``; see the module's table of columns."""
    table = Path(path).expanduser()
    if table.is_dir():
        raise InputError(table, "is a folder", f"Give the file: manifest:{table / 'manifest.csv'}")
    rows = read_table(table, ("study_id", "image"))
    yield from misspelt_columns(table, rows[0], COLUMNS + LANDMARK_COLUMNS)
    any_report = any(row.get("report") for row in rows)
    for number, row in enumerate(rows, 2):
        yield from _study(row, table, f"{table}, row {number}", any_report)


def _study(row: dict[str, str], table: Path, where: str, any_report: bool) -> Listing:
    """The study of a row, and the faults of the row."""
    name, image = row["study_id"], row["image"]
    if (
        not name
        or any(character in '/\\:*?"<>|' or ord(character) < 32 for character in name)
        or name[0] == "."
    ):
        yield Fault(
            name, where, f"study_id {name!r} cannot name a file", "Use letters, digits, - and _"
        )
        return
    if not image:
        remedy = "Write the path of the study's NIfTI file, relative to the table"
        yield Fault(name, f"{where}, image", "image is empty", remedy)
        return
    faults: list[Fault] = []

    def attempt(parse: Callable[..., Any], *cells: object) -> Any:
        try:
            return parse(*cells, where)
        except InputError as error:
            faults.append(Fault.of(name, error, truth_only=True))

    source = row.get("report_source", "")
    report = attempt(report_text, row.get("report", ""), table, source, any_report)
    angles = [row.get(column, "") for column in LANDMARK_COLUMNS]
    landmarks = attempt(parse_landmarks, *angles[:2], angles[2] or 1.0) if any(angles[:2]) else None
    findings = attempt(_findings, row["findings"]) if row.get("findings") else None
    labels = row.get("labels", "")
    yield from faults
    yield Entry(
        study_id=name,
        patient_id=row.get("patient_id") or name,
        image=partial(read_nifti, table.parent / image),
        labels=partial(read_nifti, table.parent / labels) if labels else None,
        codes=INTERNAL_CODES,
        report=report or "",
        report_source=source,
        split=row.get("split", ""),
        landmarks=landmarks,
        findings=findings,
    )


def report_text(cell: str, table: Path, source: str, any_report: bool, where: str) -> str:
    """The report that a cell of a table holds or names.

    Args:
        cell: the text itself or, where it ends in ``.txt``, a UTF-8 file beside the table.
        table: the table's file.
        source: the row's ``report_source``; may be empty.
        any_report: whether other studies have a report, so that an empty cell needs a reason.
        where: file and row, for messages.

    Raises:
        InputError: no such source, no report and no reason, or a file that cannot be read.
    """
    if source and source not in REPORT_SOURCES:
        raise InputError(
            where, f"unknown report_source {source!r}", f"Use one of {', '.join(REPORT_SOURCES)}"
        )
    if any_report and not cell and source not in ("none", "masks"):
        remedy = "Write the report, or state in report_source: none (no report) or masks (written from the mask)"
        raise InputError(
            f"{where}, report", "report is empty, while other studies have one", remedy
        )
    if not cell.lower().endswith(".txt") or "\n" in cell:
        return cell
    file = table.parent / cell
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(
            file, f"report is not UTF-8 (byte {error.start})", "Save the report as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(
            file, f"report cannot be read ({where})", "Put the file there, or correct the path"
        ) from error
    if not text:
        raise InputError(
            file,
            "report is empty",
            "Write the report, or clear the cell and set report_source to none",
        )
    return text


def _findings(cell: str, where: str) -> Findings:
    try:
        return Findings.from_json(cell)
    except (InputError, TypeError) as error:
        problem = getattr(error, "problem", str(error))
        raise InputError(
            f"{where}, findings", problem, 'Write [] for none, or [{"walls": ["inferior"]}]'
        ) from error


def write_manifest(cohort: Cohort, out_dir: str | os.PathLike[str]) -> Path:
    """Write a cohort as ``images/*.nii.gz``, ``labels/*.nii.gz`` and ``manifest.csv``: whole or not at all.

    ``read_cohort("manifest:OUT_DIR/manifest.csv")`` gives the same studies back, with splits, landmarks and findings.

    Args:
        cohort: any cohort, its labels in the internal codes.
        out_dir: a folder that does not exist yet or is empty.

    Returns:
        The path of ``manifest.csv``.

    Raises:
        InputError: the folder is not empty or cannot be made, or two studies have the same id.
    """
    target = Path(out_dir).expanduser()
    ids = [study["study_id"] for study in cohort.studies]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(twice, "two studies have this id", "Give every study its own id")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            target, "is not an empty folder", "Give a new folder, or empty this one first"
        )
    partial_dir = target.absolute().parent / f".{target.name}.partial-{os.getpid()}"
    try:
        for name in ("images", "labels"):
            (partial_dir / name).mkdir(parents=True)
        rows = [_write_study(study, partial_dir) for study in cohort.studies]
        columns = [*COLUMNS, *LANDMARK_COLUMNS]
        with (partial_dir / "manifest.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(rows)
        if not any((partial_dir / "labels").iterdir()):
            (partial_dir / "labels").rmdir()
        os.replace(partial_dir, target)
    except OSError as error:
        raise InputError(
            target, f"cannot be written ({error.strerror})", "Give a folder you may write to"
        ) from error
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)
    return target / "manifest.csv"


def _write_study(study: Study, root: Path) -> dict[str, str]:
    """Write the files of one study and return its row."""
    row = {
        key: str(study[key])
        for key in ("study_id", "patient_id", "split", "report", "report_source")
    }
    row["image"] = f"images/{study['study_id']}.nii.gz"
    _write_nifti(study.pixels.astype(np.float32), study["image"].affine, root / row["image"])
    if study.label_map is not None:
        row["labels"] = f"labels/{study['study_id']}.nii.gz"
        _write_nifti(study.label_map.astype(np.uint8), study["image"].affine, root / row["labels"])
    if study["findings"] is not None:
        row["findings"] = study["findings"].to_json()
    if study["landmarks"] is not None:
        row |= dict(zip(LANDMARK_COLUMNS, _landmark_cells(study["landmarks"]), strict=True))
    return row


def _landmark_cells(landmarks: Landmarks) -> Iterator[str]:
    for value in (landmarks.anterior_rvip_deg, landmarks.inferior_rvip_deg, landmarks.confidence):
        yield "" if math.isnan(value) else repr(float(value))


def _write_nifti(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
