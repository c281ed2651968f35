"""Read DICOM series. Nothing that identifies a person leaves this module, not even in errors."""

import filecmp
import hashlib
from collections import defaultdict
from collections.abc import Hashable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.misc import is_dicom
from pydicom.pixels import apply_modality_lut
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from lgekit.data import nifti
from lgekit.data.manifest import on_disk, optional_rows, parse_report
from lgekit.data.nifti import Entry, Fault, Listing, Seen, Volume, files_below, folder, of_system
from lgekit.errors import InputError

# A row of reports.csv names its images by one of these. They are dropped after grouping.
IDENTIFYING = ("SeriesInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID")
DROPPED = (*IDENTIFYING, "SOPInstanceUID")
# All that is read of a file before its pixels.
HEADER = """SOPClassUID Modality ImageType BurnedInAnnotation NumberOfFrames SamplesPerPixel Rows
    Columns PixelSpacing SliceThickness ImagePositionPatient ImageOrientationPatient FlipAngle
    EchoTime ScanningSequence MRAcquisitionType PhotometricInterpretation""".split()
# Syntax of a file without meta header, by what its elements look like (implicit, little endian).
SYNTAXES: dict[Any, UID] = {(True, True): ImplicitVRLittleEndian}
SYNTAXES |= {(False, True): ExplicitVRLittleEndian, (False, False): ExplicitVRBigEndian}
GAP_TOLERANCE = 0.1  # share of the median gap by which gaps may differ
Series = list[tuple[Path, Dataset]]
Key = tuple[str, str, str]  # PatientID, StudyInstanceUID and SeriesInstanceUID


def short_hash(text: str) -> str:
    """12 hex digits from which the text cannot be recovered."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def list_series(path: str) -> Listing:
    """A folder of single-frame DICOM files in any arrangement; each series is a study::

        **/*          any names and subfolders; other files are left out
        reports.csv   optional, UTF-8: report, and one of SeriesInstanceUID, StudyInstanceUID,
                      AccessionNumber and PatientID

    A report is the text or the name of a ``.txt`` file; ``report_source`` may say ``none``.
    If a series has phase-sensitive (PSIR) and magnitude images, only PSIR ones are read. Series of
    one slice with the same exam, geometry and acquisition are one stack. If the table names
    series by SeriesInstanceUID, other series of their exams are left out.
    """
    root = folder(path)
    by_uid: dict[tuple[str, str], Series] = defaultdict(list)
    for file in files_below(root):
        header = _read_header(file, root)
        if isinstance(header, Dataset):
            ids = str(header.get("PatientID", "")), str(header.SeriesInstanceUID)
            by_uid[ids].append((file, header))
        else:
            yield header
    stacks: dict[Hashable, tuple[Key, Series]] = {}
    for patient, uid in sorted(by_uid):
        files = by_uid[patient, uid]
        key = patient, str(files[0][1].get("StudyInstanceUID", "")), uid
        stacks.setdefault(_stack_of(key, files), (key, []))[1].extend(files)
    all_series: dict[Key, Series] = {}
    for key, files in stacks.values():
        all_series[key], seen = _without_copies(files)
        yield from seen
    reports, found = _read_reports(root, all_series)
    yield from found
    exams: dict[str, list[str]] = defaultdict(list)  # study UIDs of each person
    for patient, exam, uid in all_series:
        exams[patient or exam or uid].append(exam or uid)
    for key in sorted(all_series, key=lambda key: short_hash(key[2])):
        patient, exam, uid = key
        files, name = all_series[key], f"series_{short_hash(uid)}"
        person = f"patient_{short_hash(min(exams[patient or exam or uid]))}"
        for _, header in files:
            for tag in DROPPED:
                header.pop(tag, None)
        text, source = reports.get(key, ("", ""))
        paths, image = tuple(file for file, _ in files), partial(read_series, name, files)
        yield Entry(name, person, paths, image, report=text, report_source=source)


def _read_header(file: Path, root: Path) -> Dataset | Fault | Seen:
    """Return the `HEADER` elements of an image, or what is wrong, or why it is left out."""
    remedy = "Export the file again, or remove it"
    if of_system(file, root) or file.name.upper() == "DICOMDIR":
        return Seen(file, "system files and DICOMDIR")
    try:
        named = file.suffix.lower() in (".dcm", ".ima") or is_dicom(file)
        about: Any = pydicom.filereader.read_file_meta_info(file) if is_dicom(file) else {}
        if about.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
            remedy = "Decompress it (dcmconv +te): what it unpacks to cannot be known before"
            return Fault(file, "is a deflated file", remedy)
        with disable_value_validation():  # its warnings would show values, such as UIDs, in logs
            header = pydicom.dcmread(
                file, stop_before_pixels=True, force=True, specific_tags=[*HEADER, *DROPPED]
            )
            for tag in list(header.keys()):
                with suppress(Exception):  # reported where the element is used
                    header[tag]  # noqa: B018 (elements are parsed at the first look)
    except Exception as error:  # a damaged file can raise anything
        if not (isinstance(error, OSError) or named):
            return Seen(file, "not DICOM")
        return Fault(file, f"not a readable DICOM file ({type(error).__name__})", remedy)
    # Old files have neither preamble nor meta header: what holds elements of an image is DICOM.
    if not (is_dicom(file) or {"SOPClassUID", "Modality", "Rows"} & set(header.dir())):
        problem = "not a readable DICOM file (no element of an image)"
        return Fault(file, problem, remedy) if named else Seen(file, "not DICOM")
    if "Rows" not in header:
        # Reports, presentation states and vendors' own classes (unknown names) have no pixels.
        uid = header.get("SOPClassUID", "") or header.file_meta.get("MediaStorageSOPClassUID", "")
        if not uid or "Image Storage" in UID(str(uid)).name:
            return Fault(file, "ends within its header: an image was cut off", remedy)
        return Seen(file, "DICOM without pixels")
    if not header.get("SeriesInstanceUID", ""):
        return Fault(file, "has no SeriesInstanceUID", remedy)
    return header


def _place(header: Dataset) -> tuple[float, ...] | None:
    """Position of a slice, rounded; None if it is malformed."""
    with suppress(TypeError, ValueError, AttributeError):
        return tuple(round(float(value), 2) for value in header.ImagePositionPatient)
    return None


def _stack_of(key: Key, files: Series) -> Hashable:
    """What series of one slice share if they are one stack; for other series, their own key."""
    first = files[0][1]
    with suppress(TypeError, ValueError, AttributeError):
        numbers = [*first.ImageOrientationPatient, *first.PixelSpacing, first.Rows, first.Columns]
        numbers += [first.get("FlipAngle") or 0, first.get("EchoTime") or 0]
        places = {_place(header) for _, header in files}
        if key[1] and len(places) == 1 and places != {None}:
            rounded = (round(float(number), 2) for number in numbers)
            return (*key[:2], str(first.get("ScanningSequence")), *rounded)
    return key


def _without_copies(files: Series) -> tuple[Series, list[Seen]]:
    """Leave out identical copies, and magnitude images if all slices have phase-sensitive ones."""
    kept: dict[Hashable, Series] = defaultdict(list)
    seen = []
    for file, header in files:
        same = kept[header.get("SOPInstanceUID"), _place(header)]
        if any(filecmp.cmp(file, other, shallow=False) for other, _ in same):
            seen.append(Seen(file, "identical copies"))
        else:
            same.append((file, header))
    files = [one for same in kept.values() for one in same]
    signed = [one for one in files if _is_phase_sensitive(one[1])]
    if {_place(header) for _, header in files} != {_place(header) for _, header in signed}:
        return files, seen
    others = {file for file, _ in files} - {file for file, _ in signed}
    return signed, seen + [Seen(one, "magnitude next to phase-sensitive images") for one in others]


def _read_reports(
    root: Path, all_series: dict[Key, Series]
) -> tuple[dict[Key, tuple[str, str]], list[Fault | Seen]]:
    """Report and ``report_source`` of each series; the table's faults, which name no person, and
    files. A table of SeriesInstanceUID removes the other series of the exams that it names."""
    table = next((file for file in root.iterdir() if file.name.lower() == "reports.csv"), root)
    rows, faults = optional_rows(table, ("report",))
    if not rows:
        return {}, [*faults]
    texts = {row["report"] for row in rows if row["report"].lower().endswith(".txt")}
    found: list[Fault | Seen] = [Seen(table), *(Seen(on_disk(root, text)) for text in texts)]
    keys = [key for key in IDENTIFYING if key in rows[0]]
    if len(keys) != 1:
        problem = f"{len(keys)} of its columns say which images a report belongs to"
        remedy = f"Give it one of {', '.join(IDENTIFYING)}"
        return {}, [*found, Fault(table, problem, remedy, truth_only=True)]
    tag, series_of = keys[0], defaultdict(list)
    for key, files in all_series.items():
        for value in {str(header.get(tag, "")) for _, header in files} - {""}:
            series_of[value].append(key)
    reports: dict[Key, tuple[str, str]] = {}
    for number, row in enumerate(rows, 2):
        where, source = f"{table}, row {number}", row.get("report_source", "")
        own = series_of[row[tag]]
        try:
            if len(own) != 1 or own[0] in reports:
                problem = f"{len(set(own) - set(reports))} series without report have this {tag}"
                remedy = "Give each row one LGE stack, with SeriesInstanceUID if an exam has more"
                raise InputError(where, problem, remedy)
            reports[own[0]] = parse_report(row["report"], root, source, True, where), source
        except InputError as error:
            found.append(Fault.of(error, truth_only=True))
    named = {key for row in rows for key in series_of[row[tag]]}
    exams = {key[:2] for key in named if key[1] and tag == "SeriesInstanceUID"}
    for key in sorted(all_series.keys() - named, key=lambda key: short_hash(key[2])):
        files = all_series[key]
        if key[:2] in exams:
            del all_series[key]
            found += [Seen(file, "other series of an exam with LGE") for file, _ in files]
            continue
        place, problem = files[0][0].parent, "no row of reports.csv is of these images"
        remedy = "Add a row (report_source none: no report), or remove the series from the folder"
        name = f"series_{short_hash(key[2])}"
        found.append(Fault(place, problem, remedy, name, truth_only=True))
    return reports, found


def read_series(name: str, files: Series) -> Volume:
    """Read one series as ``(columns, rows, slices)``: the axes run right, down, along the normal.

    No library does this: highdicom refuses series without a FrameOfReferenceUID or with a gap that
    differs by 0.3 mm, and SimpleITK averages unequal gaps. ``name`` is for messages.
    """
    where = f"{name} ({files[0][0].parent})"
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
    inverted = {header.get("PhotometricInterpretation") == "MONOCHROME1" for header in headers}
    claimed = sum(one.Rows * (one.get("Columns") or 0) for one in headers)
    problems = {
        f"claims {claimed / 1e6:.0f} million voxels: too many": claimed > nifti.MOST_VOXELS,
        "some slices show high values dark (MONOCHROME1), others bright": len(inverted) > 1,
        "slices are not parallel: a localizer?": not np.allclose(axes, axes[0], atol=1e-3),
        "slices have different sizes": len({(one.Rows, one.get("Columns")) for one in headers}) > 1,
        "a slice position is not a number": not np.isfinite(heights).all(),
    }
    for problem in (problem for problem, found in problems.items() if found):
        raise InputError(where, problem, "Remove this series from the folder, or export it again")
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    if same := int((gaps < 0.01).sum()):
        problem = f"{same} slices are at the position of another: a cine, a mapping series, copies?"
        raise InputError(where, problem, "Keep only the LGE image of each slice in the series")
    gap = float(np.median(gaps)) if len(gaps) else thickness
    doubts = []
    if (np.abs(gaps - gap) > GAP_TOLERANCE * gap).any():
        shown = np.round(gaps, 2).tolist()
        if gaps.min() < (thickness / 2 or gaps.max() / 4):
            problem = f"slices overlap (gaps {shown} mm): a stack acquired twice?"
            raise InputError(where, problem, "Keep the slices of one acquisition in the series")
        problem = f"gaps between slices are unequal {shown} mm; {gap:.2f} mm is used"
        doubts.append((problem, "Export the series again with all its slices"))
    elif gap < 0.99 * thickness and first.get("MRAcquisitionType") == "2D":  # usual in 3-D stacks
        problem = f"{thickness:g} mm slices overlap (gap {gap:.2f} mm): a stack acquired twice?"
        doubts.append((problem, "Keep the slices of one acquisition in the series"))
    slices = []
    for file in (files[index][0] for index in order):
        try:
            with disable_value_validation():
                slices.append(_grey_values(pydicom.dcmread(file, force=True)).T)
        except Exception as error:  # a damaged file can raise anything
            problem = f"pixels cannot be read ({type(error).__name__})"
            remedy = "Copy the file again; decompress it if need be (gdcmconv --raw, dcmdjpeg)"
            raise InputError(file, problem, remedy) from None
    array = np.stack(slices, axis=-1).astype(np.float32)
    if inverted == {True}:
        array = array.max() + array.min() - array
    spacing, affine = np.array([column_mm, row_mm, gap]), np.eye(4)
    affine[:3, :3] = np.stack([right, down, normal], axis=1) * np.where(spacing > 0, spacing, 1)
    affine[:3, 3] = positions[order[0]]
    affine[:2] *= -1  # DICOM's axes point left and back, NIfTI's right and front
    return Volume(where, array, affine, spacing, True, doubts, slice_axis=2)


def _grey_values(data: Dataset) -> np.ndarray:
    """Pixels on the scale that holds for the whole series, ``(rows, columns)``. PSIR is signed."""
    if "TransferSyntaxUID" not in data.file_meta:
        data.file_meta.TransferSyntaxUID = SYNTAXES[data.original_encoding]
    stored = data.pixel_array
    for tag, neutral in {"RescaleSlope": 1, "RescaleIntercept": 0}.items():
        if data.get(tag) is None:  # absent, or empty
            setattr(data, tag, neutral)
    values = np.asarray(apply_modality_lut(stored, data), float)
    if maps := data.get("RealWorldValueMappingSequence"):
        line = [maps[0].RealWorldValueSlope, maps[0].RealWorldValueIntercept]
        values = np.polyval(np.array(line, float), stored)
    with suppress(KeyError):  # Philips: rescaled values are for display, slice by slice
        scale = data.private_block(0x2005, "Philips MR Imaging DD 001")[0x0E].value
        values = apply_modality_lut(stored, data) / (data.RescaleSlope * float(scale))
    return values


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
        return "is multi-frame", "Convert it to single frames, or to NIfTI with dcm2niix"
    grey = (header.get("PhotometricInterpretation") or "MONOCHROME2").startswith("MONOCHROME")
    if int(header.get("SamplesPerPixel", 1)) != 1 or not grey:
        return "is a colour image", "Leave this series out: colour images are screen captures"
    lengths = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    for tag, length in lengths.items():
        if len(header.get(tag) or ()) != length:
            return f"has no usable {tag}", "Export the series again as MR images with geometry"
    return None
