"""Read DICOM series. Nothing that identifies a person leaves this module, not even in errors."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.misc import is_dicom
from pydicom.pixels import apply_modality_lut
from pydicom.uid import UID

from lgekit.data.manifest import misspelt_columns, optional_rows, parse_report
from lgekit.data.nifti import Entry, Fault, Listing, Volume, folder
from lgekit.errors import InputError

# A row of reports.csv names its images by one of these. They are dropped after grouping.
IDENTIFYING = ("SeriesInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID")
# All that is read of a file before its pixels.
HEADER = """SOPClassUID Modality ImageType BurnedInAnnotation NumberOfFrames SamplesPerPixel Rows
    Columns PixelSpacing SliceThickness ImagePositionPatient ImageOrientationPatient""".split()
GAP_TOLERANCE = 0.1  # share of the median gap by which gaps may differ
Series = list[tuple[Path, Dataset]]


def short_hash(text: str) -> str:
    """12 hex digits from which the text cannot be recovered."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def list_series(path: str) -> Listing:
    """A folder of single-frame DICOM files in any arrangement; each series is a study::

        **/*          any names and subfolders; other files are ignored
        reports.csv   optional, UTF-8: report, and one of SeriesInstanceUID, StudyInstanceUID,
                      AccessionNumber and PatientID

    A report is the text or the name of a ``.txt`` file; ``report_source`` may say ``none``.
    If a series has phase-sensitive (PSIR) and magnitude images, only PSIR ones are read.
    """
    root = folder(path)
    all_series: dict[str, Series] = defaultdict(list)
    for file in sorted(file for file in root.rglob("*") if file.is_file()):
        header = _read_header(file) if file.name.upper() != "DICOMDIR" else None
        if isinstance(header, Fault):
            yield header
        elif header is not None:
            all_series[str(header.SeriesInstanceUID)].append((file, header))
    reports, faults = _read_reports(root, all_series)
    yield from faults
    person_of: dict[str, str] = {}
    exams: dict[str, list[str]] = defaultdict(list)  # study UIDs of each person
    for uid, files in all_series.items():
        exam = str(files[0][1].get("StudyInstanceUID", "") or uid)
        person_of[uid] = str(files[0][1].get("PatientID", "") or exam)
        exams[person_of[uid]].append(exam)
    for uid in sorted(all_series, key=short_hash):
        files, name = all_series[uid], f"series_{short_hash(uid)}"
        patient = f"patient_{short_hash(min(exams[person_of[uid]]))}"
        for _, header in files:
            for tag in IDENTIFYING:
                header.pop(tag, None)
        text, source = reports.get(uid, ("", ""))
        paths, image = tuple(file for file, _ in files), partial(read_series, name, files)
        yield Entry(name, patient, paths, image, report=text, report_source=source)


def _read_header(file: Path) -> Dataset | Fault | None:
    """Return the `HEADER` elements of an image, or what is wrong; None for other files."""
    remedy = "Copy the file again, or remove it"
    try:
        with disable_value_validation():  # its warnings would show values, such as UIDs, in logs
            header = pydicom.dcmread(
                file, stop_before_pixels=True, specific_tags=[*HEADER, *IDENTIFYING]
            )
            for tag in list(header.keys()):
                with suppress(Exception):  # reported where the element is used
                    header[tag]  # noqa: B018 (elements are parsed at the first look)
    except Exception as error:  # a damaged file can raise anything
        named = file.suffix.lower() in (".dcm", ".ima")
        if not (named or isinstance(error, OSError) or is_dicom(file)):
            return None
        return Fault(file, f"not a readable DICOM file ({type(error).__name__})", remedy)
    if "Rows" not in header:
        # Reports, presentation states and vendors' own classes (unknown names) have no pixels.
        uid = header.get("SOPClassUID", "") or header.file_meta.get("MediaStorageSOPClassUID", "")
        if not uid or "Image Storage" in UID(str(uid)).name:
            return Fault(file, "ends within its header: an image was cut off", remedy)
        return None
    if not header.get("SeriesInstanceUID", ""):
        remedy = "Export the series again from the archive"
        return Fault(file, "has no SeriesInstanceUID", remedy)
    return header


def _read_reports(
    root: Path, all_series: dict[str, Series]
) -> tuple[dict[str, tuple[str, str]], list[Fault]]:
    """Report and ``report_source`` of each series, and the table's faults, which name no person."""
    table = next((file for file in root.iterdir() if file.name.lower() == "reports.csv"), None)
    if table is None:
        return {}, []
    rows, faults = optional_rows(table, ("report",))
    columns = list(rows[0]) if rows else []
    keys = [key for key in IDENTIFYING if key in columns]
    known = ["report", "report_source", *(() if keys else IDENTIFYING)]
    faults += misspelt_columns(table, [name for name in columns if name not in keys], known)
    if len(keys) != 1 and not faults:
        problem = f"{len(keys)} of its columns say which images a report belongs to"
        remedy = f"Give it one of {', '.join(IDENTIFYING)}"
        faults.append(Fault(table, problem, remedy, truth_only=True))
    if faults:
        return {}, faults
    key, series_of = keys[0], defaultdict(list)
    for uid, files in all_series.items():
        series_of[str(files[0][1].get(key, ""))].append(uid)
    series_of.pop("", None)
    reports: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(rows, 2):
        where, source = f"{table}, row {number}", row.get("report_source", "")
        own = series_of[row[key]]
        try:
            if not own or any(uid in reports for uid in own):
                problem = "they have a report already" if own else f"no image has this {key}"
                raise InputError(where, problem, "Correct it, or remove the row")
            text = parse_report(row["report"], root, source, True, where)
            reports |= dict.fromkeys(own, (text, source))
        except InputError as error:
            faults.append(Fault.of(error, truth_only=True))
    for uid in sorted(all_series.keys() - reports.keys(), key=short_hash):
        place, problem = all_series[uid][0][0].parent, "no row of reports.csv is of these images"
        remedy = "Add a row (report_source none: no report), or remove the series from the folder"
        faults.append(Fault(place, problem, remedy, f"series_{short_hash(uid)}", truth_only=True))
    return reports, faults


def read_series(name: str, files: Series) -> Volume:
    """Read one series as ``(columns, rows, slices)``: the axes run right, down, along the normal.

    No library does this: highdicom refuses series without a FrameOfReferenceUID or with a gap that
    differs by 0.3 mm, and SimpleITK averages unequal gaps. ``name`` is for messages.
    """
    where = f"{name} ({files[0][0].parent})"
    files = [one for one in files if _is_phase_sensitive(one[1])] or files
    headers, first = [header for _, header in files], files[0][1]
    try:
        for file, header in files:
            if unusable := _why_unusable(header):
                raise InputError(file, *unusable)
        axes = np.array([header.ImageOrientationPatient for header in headers], float)
        positions = np.array([header.ImagePositionPatient for header in headers], float)
        thickness = float(first.get("SliceThickness") or 0)
        row_mm, column_mm = map(float, first.PixelSpacing)  # between rows, between columns
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        problem = f"a geometry field is malformed ({type(error).__name__})"
        raise InputError(where, problem, "Export the series again") from None
    right, down = axes[0].reshape(2, 3)
    normal = np.cross(right, down)
    heights = positions @ normal
    problems = {
        "slices are not parallel: a localizer?": not np.allclose(axes, axes[0], atol=1e-3),
        "slices have different sizes": len({(one.Rows, one.get("Columns")) for one in headers}) > 1,
        "a slice position is not a number": not np.isfinite(heights).all(),
    }
    for problem in (problem for problem, found in problems.items() if found):
        raise InputError(where, problem, "Remove this series from the folder, or export it again")
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    if same := int((gaps < 0.01).sum()):
        problem = f"{same} slices are at the position of another: a cine or mapping series?"
        raise InputError(where, problem, "Keep only the LGE image of each slice in the series")
    gap = float(np.median(gaps)) if len(gaps) else thickness
    doubts = []
    if (np.abs(gaps - gap) > GAP_TOLERANCE * gap).any():
        shown = np.round(gaps, 2).tolist()
        problem = f"gaps between slices are unequal {shown} mm; {gap:.2f} mm is used"
        doubts.append((problem, "Export the series again with all its slices"))
    slices = []
    for file in (files[index][0] for index in order):
        try:
            with disable_value_validation():
                data = pydicom.dcmread(file)
                slices.append(apply_modality_lut(data.pixel_array, data).T)  # PSIR is signed
        except Exception as error:  # a damaged file can raise anything
            problem = f"pixels cannot be read ({type(error).__name__})"
            remedy = "Copy the file again; decompress it if need be (gdcmconv --raw, dcmdjpeg)"
            raise InputError(file, problem, remedy) from None
    array = np.stack(slices, axis=-1).astype(np.float32)
    spacing, affine = np.array([column_mm, row_mm, gap]), np.eye(4)
    affine[:3, :3] = np.stack([right, down, normal], axis=1) * np.where(spacing > 0, spacing, 1)
    affine[:3, 3] = positions[order[0]]
    affine[:2] *= -1  # DICOM's axes point left and back, NIfTI's right and front
    return Volume(where, array, affine, spacing, True, doubts)


def _is_phase_sensitive(header: Dataset) -> bool:
    kinds = [str(value).upper() for value in header.get("ImageType", [])]
    return any("PSIR" in kind or kind in ("R", "REAL") for kind in kinds)


def _why_unusable(header: Dataset) -> tuple[str, str] | None:
    """Problem and remedy of a slice that cannot be used."""
    if str(header.get("BurnedInAnnotation", "NO")).upper() == "YES":
        problem = "is flagged as having text burned into its pixels, which may name a person"
        return problem, "Remove the text and set BurnedInAnnotation to NO, or leave the series out"
    if (modality := str(header.get("Modality", ""))) != "MR":
        return f"modality {modality!r} is not MR", "Remove this series from the folder"
    if int(header.get("NumberOfFrames") or 1) > 1:
        remedy = "Convert it to single frames, or to NIfTI with dcm2niix"
        return "is an enhanced (multi-frame) image", remedy
    if int(header.get("SamplesPerPixel", 1)) != 1:
        return "is a colour image", "Leave this series out: colour images are screen captures"
    lengths = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    for tag, length in lengths.items():
        if len(header.get(tag) or ()) != length:
            remedy = "Export the series again as MR images with their geometry"
            return f"has no usable {tag}", remedy
    return None
