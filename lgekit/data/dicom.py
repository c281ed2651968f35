"""Read DICOM series."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from lgekit.data.manifest import report_text
from lgekit.data.nifti import Entry, Fault, SliceGapWarning, Volume, misspelt_columns
from lgekit.data.public import Listing, folder, read_table
from lgekit.errors import InputError

# What is read from a file before its pixels: to group, to order, to refuse. Nothing else is ever looked at.
HEADER = (
    *("SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality", "ImageType"),
    *(
        "BurnedInAnnotation",
        "NumberOfFrames",
        "SamplesPerPixel",
        "Rows",
        "Columns",
        "PixelSpacing",
        "SliceThickness",
    ),
    *(
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PhotometricInterpretation",
        "AccessionNumber",
    ),
)
# By one of these a row of reports.csv says which images it is of; all are dropped once files and reports are grouped.
IDENTIFYING = ("SeriesInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID")
SUFFIXES = (".dcm", ".ima")
RESCALE = (("RescaleSlope", 1), ("RescaleIntercept", 0))
GAP_TOLERANCE = 0.1  # share of the median gap by which gaps may differ
UNREADABLE = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    NotImplementedError,
)
Series = list[tuple[Path, Dataset]]


def short_hash(text: str) -> str:
    """12 hex digits that do not give the text back."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def dicom(path: str) -> Listing:
    """A folder of DICOM files in any arrangement, single-frame, one study a series::

        **/*          names and subfolders do not matter; files that are not DICOM are passed over
        reports.csv   optional, UTF-8: report and one of SeriesInstanceUID, StudyInstanceUID, AccessionNumber, PatientID

    A report is the text itself or the name of a ``.txt`` file; a column ``report_source`` may say ``none``.
    A series that holds phase-sensitive (PSIR) and magnitude images gives the PSIR ones.
    """
    series: dict[str, Series] = {}
    for file in sorted(
        p for p in folder(path).rglob("*") if p.is_file() and p.name.upper() != "DICOMDIR"
    ):
        try:
            header = _header(file)
        except UNREADABLE as error:
            if (
                file.suffix.lower() in SUFFIXES
                or isinstance(error, PermissionError)
                or _begins_as_dicom(file)
            ):
                problem = f"not a readable DICOM file ({type(error).__name__})"
                yield Fault("", str(file), problem, "Copy the file again, or remove it")
            continue
        if "Rows" not in header:
            if _should_have_pixels(header):
                problem = "ends within its header: an image was cut off"
                yield Fault("", str(file), problem, "Copy the file again, or remove it")
            continue
        uid = str(header.get("SeriesInstanceUID", ""))
        if not uid:
            yield Fault(
                "",
                str(file),
                "has no SeriesInstanceUID",
                "Export the series again from the archive",
            )
            continue
        series.setdefault(uid, []).append((file, header))
    reports, faults = _reports(folder(path), series)
    yield from faults
    people: dict[
        str, str
    ] = {}  # person → smallest study UID, which stands for the person from here on
    for files in series.values():
        study = _study_uid(files)
        people[_person(files)] = min(people.get(_person(files), study), study)
    for uid, files in sorted(series.items(), key=lambda item: short_hash(item[0])):
        name, patient = f"series_{short_hash(uid)}", f"patient_{short_hash(people[_person(files)])}"
        for _, header in files:
            for tag in IDENTIFYING:
                header.pop(tag, None)
        text, source = reports.get(uid, ("", ""))
        yield Entry(
            name, patient, partial(read_series, name, files), report=text, report_source=source
        )


def _header(file: Path) -> Dataset:
    """The elements `HEADER` of a file."""
    with disable_value_validation():  # its warnings show values, as UIDs, in people's logs
        header: Dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER))
        for tag in list(header.keys()):
            with suppress(*UNREADABLE, TypeError):  # told of where it is used
                header[tag]  # noqa: B018 (elements are read at the first look)
    return header


def _begins_as_dicom(file: Path) -> bool:
    with suppress(OSError), file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
    return False


def _should_have_pixels(header: Dataset) -> bool:
    """Whether a file without pixels is an image cut off: reports, presentation states and the like have none, nor have
    vendors' own classes (raw data, exam cards), whose names nobody knows."""
    kind = UID(
        str(header.get("SOPClassUID", "") or header.file_meta.get("MediaStorageSOPClassUID", ""))
    )
    return not kind or "Image Storage" in kind.name  # all DICOM files say what they are


def _reports(
    root: Path, series: dict[str, Series]
) -> tuple[dict[str, tuple[str, str]], list[Fault]]:
    """Series → report and ``report_source``; and the faults of the table, which name rows and never a person."""
    tables = sorted(
        file for file in root.iterdir() if file.name.lower() == "reports.csv" and file.is_file()
    )
    if not tables:
        return {}, []
    table = tables[0]
    if len(tables) > 1:
        problem = f"a second table of reports beside {table.name}"
        return {}, [Fault("", str(tables[1]), problem, "Keep one of the two", truth_only=True)]
    try:
        rows = read_table(table, ("report",))
    except InputError as error:
        return {}, [Fault.of("", error, truth_only=True)]
    given = [key for key in IDENTIFYING if key in rows[0]]
    ours = (
        "report",
        "report_source",
        *(() if given else IDENTIFYING),
    )  # beside one of them another is foreign
    if misspelt := misspelt_columns(table, (name for name in rows[0] if name not in given), ours):
        return {}, misspelt
    if len(given) != 1:
        problem = f"{len(given)} of its columns say which images a report is of"
        return {}, [
            Fault(
                "", str(table), problem, f"Give it one of {', '.join(IDENTIFYING)}", truth_only=True
            )
        ]
    (key,) = given
    reports: dict[str, tuple[str, str]] = {}
    faults = []
    for number, row in enumerate(rows, 2):
        where, source = f"{table}, row {number}", row.get("report_source", "")
        own = [
            uid
            for uid, files in series.items()
            if row[key] and str(files[0][1].get(key, "")) == row[key]
        ]
        try:
            if not own:
                raise InputError(where, f"no image has this {key}", "Correct it, or remove the row")
            if any(uid in reports for uid in own):
                raise InputError(
                    where, "these images have a report already", "Keep one row for each of them"
                )
            reports |= dict.fromkeys(
                own, (report_text(row["report"], table, source, True, where), source)
            )
        except InputError as error:
            faults.append(Fault.of("", error, truth_only=True))
    for uid in sorted(series.keys() - reports.keys(), key=short_hash):
        place = str(series[uid][0][0].parent)
        remedy = "Add a row for it (report_source none: no report), or leave the series out of the folder"
        fault = Fault(
            f"series_{short_hash(uid)}",
            place,
            "no row of reports.csv is of these images",
            remedy,
            True,
        )
        faults.append(fault)
    return reports, faults


def _study_uid(files: Series) -> str:
    return str(files[0][1].get("StudyInstanceUID", "") or files[0][1].SeriesInstanceUID)


def _person(files: Series) -> str:
    return str(files[0][1].get("PatientID", "")) or _study_uid(files)


def image_kind(header: Dataset) -> str:
    """``psir`` or ``magnitude``, from ``ImageType``."""
    kinds = {str(value).upper() for value in header.get("ImageType", [])}
    return "psir" if any("PSIR" in kind or kind in ("R", "REAL") for kind in kinds) else "magnitude"


def read_series(name: str, files: Series) -> Volume:
    """Read one series: ``(columns, rows, slices)``, so that the first axis runs to the right and the second down.

    Args:
        name: neutral name of the study, used in messages.
        files: its files with their headers, in any order.
    """
    volume = Volume(f"{name} ({files[0][0].parent})")
    psir = [item for item in files if image_kind(item[1]) == "psir"]
    files = psir or files
    volume.fields["contrast"] = "psir" if psir else "magnitude"
    try:
        return _fill(volume, files)
    except (ValueError, TypeError, AttributeError) as error:
        return volume.fault(
            f"a geometry field is malformed ({type(error).__name__})", "Export the series again"
        )


def _fill(volume: Volume, files: Series) -> Volume:
    """Order the slices of a series and read them into the volume."""
    series = volume.where
    for file, header in files:
        if not _check_header(volume, file, header):
            return volume
    volume.where = series
    first = files[0][1]
    right, down = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    normal = np.cross(right, down)
    if any(
        not np.allclose(h.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-3)
        for _, h in files
    ):
        return volume.fault(
            "slices are not parallel: a localizer?", "Leave this series out of the folder"
        )
    if any((h.Rows, h.Columns) != (first.Rows, first.Columns) for _, h in files):
        return volume.fault(
            "slices have different sizes", "Leave this series out, or export it again"
        )
    heights = np.array(
        [np.dot(np.array(header.ImagePositionPatient, float), normal) for _, header in files]
    )
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    if not np.isfinite(heights).all():
        return volume.fault("a position is not a number", "Export the series again")
    if (gaps < 0.01).any():
        problem = f"{int((gaps < 0.01).sum())} slices lie at the position of another: a cine or mapping series?"
        return volume.fault(problem, "Keep the one LGE image of each slice in the series")
    gap = float(np.median(gaps)) if len(gaps) else float(first.get("SliceThickness") or 0)
    if len(gaps) and (np.abs(gaps - gap) > GAP_TOLERANCE * gap).any():
        shown = np.round(gaps, 2).tolist()
        name = volume.where.partition(" (")[
            0
        ]  # a folder may be called by a person's name: only `check` tells it
        message = f"{name}: gaps between slices are unequal {shown} mm; {gap:.2f} mm is used"
        volume.notes.append(SliceGapWarning(message, volume.where))
    slices = []
    for index in order:
        pixels = _pixels(volume, files[index][0])
        if pixels is None:
            return volume
        slices.append(pixels.T)
    volume.array = np.stack(slices, axis=-1)
    rows_mm, columns_mm = (
        float(value) for value in first.PixelSpacing
    )  # distance between rows, between columns
    spacing = volume.header_spacing = np.array([columns_mm, rows_mm, gap])
    volume.affine[:3, :3] = np.stack([right, down, normal], axis=1) * np.where(
        spacing > 0, spacing, 1
    )
    volume.affine[:3, 3] = np.array(files[order[0]][1].ImagePositionPatient, float)
    volume.affine[
        :2
    ] *= -1  # DICOM's patient axes point to the left and back, NIfTI's to the right and front
    volume.trusted = True
    return volume


def _check_header(volume: Volume, file: Path, header: Dataset) -> bool:
    """Whether a slice can be used; notes the fault where not."""
    volume.where = str(file)
    if str(header.get("BurnedInAnnotation", "NO")).upper() == "YES":
        volume.fault(
            "is flagged as having text burned into its pixels, which may name a person",
            "Remove the text and set BurnedInAnnotation to NO, or leave the series out",
        )
    elif str(header.get("Modality", "")) != "MR":
        volume.fault(
            f"modality {header.get('Modality', '')!r} is not MR",
            "Leave this series out of the folder",
        )
    elif int(header.get("NumberOfFrames") or 1) > 1:
        volume.fault(
            "is an enhanced (multi-frame) image",
            "Convert it to single frames, or to NIfTI with dcm2niix",
        )
    elif int(header.get("SamplesPerPixel", 1)) != 1:
        volume.fault(
            "is a colour image", "Leave this series out: colour images are screen captures"
        )
    else:
        lengths = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
        for tag, length in lengths.items():
            if len(header.get(tag) or ()) != length:
                volume.fault(
                    f"has no usable {tag}",
                    "Export the series again as MR images with their geometry",
                )
                break
    return not volume.faults


def _pixels(volume: Volume, file: Path) -> np.ndarray | None:
    """Grey values of a slice, ``(rows, columns)`` float32, rescaled (PSIR images are signed); None with a fault."""
    try:
        with disable_value_validation():
            data = pydicom.dcmread(file)
            pixels = data.pixel_array.astype(np.float32)
            slope, intercept = (float(data.get(tag, usual)) for tag, usual in RESCALE)
    except (*UNREADABLE, RuntimeError, TypeError) as error:
        volume.where = str(file)
        volume.fault(
            f"pixels cannot be read ({type(error).__name__})",
            "Copy the file again; if it is compressed, decompress it (gdcmconv --raw, dcmdjpeg)",
        )
        return None
    return pixels * slope + intercept
