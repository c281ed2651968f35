"""Folder layouts of public data sets."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from lgekit.data.nifti import READ_FAULTS, Entry, Fault, read_nifti
from lgekit.errors import InputError
from lgekit.study import (
    BACKGROUND,
    CAVITY,
    LABEL_NAMES,
    MYOCARDIUM,
    NO_REFLOW,
    RV,
    SCAR,
    Landmarks,
)

Listing = Iterator[Entry | Fault]

# Each data set's label codes → the internal code.
INTERNAL_CODES = {code: code for code in range(len(LABEL_NAMES))}
EMIDEC_CODES = {0: BACKGROUND, 1: CAVITY, 2: MYOCARDIUM, 3: SCAR, 4: NO_REFLOW}
ACDC_CODES = {0: BACKGROUND, 1: RV, 2: MYOCARDIUM, 3: CAVITY}
MNMS_CODES = {
    0: BACKGROUND,
    1: CAVITY,
    2: MYOCARDIUM,
    3: RV,
}  # left and right the other way round than ACDC
# Oedema (1220) is seen on T2, not on LGE: there it is myocardium.
MYOPS_CODES = {0: BACKGROUND, 200: MYOCARDIUM, 500: CAVITY, 600: RV, 1220: MYOCARDIUM, 2221: SCAR}

EMIDEC_SAME_PATIENT = {"Case_P072": "Case_P059"}  # a resampled copy: one patient
RVIP_CONFIDENCE = {"high": 1.0, "medium": 0.66, "low": 0.33}


def folder(path: str) -> Path:
    """The folder of a SPEC, or an :class:`InputError`."""
    if not path.strip():
        raise InputError(
            "SPEC", "the path is empty", "Write it after the colon, as in emidec:data/emidec"
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        problem = "is a file" if root.exists() else "there is no such folder"
        raise InputError(root, problem, "Give the folder that holds the studies")
    return root


def read_table(path: Path, required: tuple[str, ...], delimiter: str = ",") -> list[dict[str, str]]:
    """Rows of a UTF-8 table with a header, as text, stripped.

    Raises:
        InputError: missing or unreadable file, missing column, row of another length, no rows.
    """
    if not path.is_file():
        raise InputError(path, "there is no such file", "Give the path of the table")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter, restval="", strict=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise InputError(
            path, f"not UTF-8 (byte {error.start})", "Save the table as UTF-8"
        ) from error
    except (csv.Error, OSError) as error:
        raise InputError(
            path, f"not a readable table ({error})", "Save the table again as CSV in UTF-8"
        ) from error
    missing = [name for name in required if name not in columns]
    if missing:
        problem = f"column {missing[0]!r} is missing (found: {', '.join(columns) or 'nothing'})"
        raise InputError(
            path,
            problem,
            f"Name the columns {', '.join(required)} and separate them by {delimiter!r}",
        )
    if len(set(columns)) < len(columns):
        raise InputError(path, "two columns have the same name", "Rename or remove one")
    if not rows:
        raise InputError(path, "has no rows", "Add one row a study")
    for number, row in enumerate(rows, 2):
        if None in row:
            raise InputError(
                f"{path}, row {number}",
                "has more fields than columns",
                "Quote fields that hold commas",
            )
    return [{str(key).strip(): (value or "").strip() for key, value in row.items()} for row in rows]


def emidec(path: str) -> Listing:
    """EMIDEC (Lalande et al., Data 2020, 5(4), 89), training or test set, official or restored files::

        Case_P001/Images/Case_P001.nii.gz
        Case_P001/Contours/Case_P001.nii.gz   optional
        Case P001.txt                         optional, beside the cases or in the case's folder; latin-1
        rvip.csv                              optional: case,anterior_rvip_deg,inferior_rvip_deg,…,confidence

    The clinical text tells who is ill: it is kept in ``study["clinical"]`` for display and never used for prediction.
    """
    root = folder(path)
    landmarks, faults = _rvip(root / "rvip.csv")
    yield from faults
    for case in sorted(root.iterdir()):
        if not case.is_dir() or not (case.name.startswith("Case") or (case / "Images").is_dir()):
            continue
        image = _one_nifti(case / "Images", case.name)
        if image is None:
            remedy = f"Put {case.name}.nii.gz into the Images folder"
            yield Fault(case.name, str(case / "Images"), "holds no image of this case", remedy)
            continue
        contours = case / "Contours"
        mask = _one_nifti(contours, case.name) or (
            contours / image.name if contours.is_dir() else None
        )
        facts = _clinical_facts(root, case)
        yield Entry(
            study_id=case.name,
            patient_id=EMIDEC_SAME_PATIENT.get(case.name, case.name),
            image=partial(read_nifti, image),
            labels=partial(read_nifti, mask) if mask else None,
            codes=EMIDEC_CODES,
            landmarks=landmarks.get(case.name),
            fields={"clinical": facts} if facts else {},
        )


def _one_nifti(where: Path, name: str) -> Path | None:
    """``name.nii.gz`` in a folder, or the only NIfTI file there."""
    files = sorted(where.glob("*.nii*")) if where.is_dir() else []
    named = [file for file in files if file.name in (f"{name}.nii.gz", f"{name}.nii")]
    return named[0] if named else files[0] if len(files) == 1 else None


def _clinical_facts(root: Path, case: Path) -> dict[str, str]:
    """``key : value`` lines of ``Case P001.txt``."""
    name = case.name.replace("_", " ") + ".txt"
    for file in (root / name, case / name):
        if file.is_file():
            lines = file.read_text(encoding="latin-1").splitlines()
            pairs = [line.split(":", 1) for line in lines if ":" in line]
            return {key.strip(): value.strip() for key, value in pairs}
    return {}


def _rvip(path: Path) -> tuple[dict[str, Landmarks], list[Fault]]:
    """Insertion points by case, and the faults of their table."""
    if not path.is_file():
        return {}, []
    try:
        rows = read_table(path, ("case", "anterior_rvip_deg", "inferior_rvip_deg"))
    except InputError as error:
        return {}, [Fault.of("", error, truth_only=True)]
    landmarks, faults = {}, []
    for row in rows:
        confidence = RVIP_CONFIDENCE.get(row.get("confidence", "high"), float("nan"))
        try:
            landmarks[row["case"]] = parse_landmarks(
                row["anterior_rvip_deg"],
                row["inferior_rvip_deg"],
                confidence,
                f"{path}, {row['case']}",
            )
        except InputError as error:
            faults.append(Fault.of(row["case"], error, truth_only=True))
    return landmarks, faults


def parse_landmarks(anterior: str, inferior: str, confidence: object, where: str) -> Landmarks:
    """Landmarks from the text of two angles (degrees; empty = unknown) and a confidence in [0, 1]."""
    try:
        angles = [float(text) % 360 if text else float("nan") for text in (anterior, inferior)]
        sure = float(str(confidence))
        if np.isinf(angles).any() or not 0 <= sure <= 1:
            raise ValueError(confidence)
    except ValueError as error:
        problem = (
            f"angles {anterior!r}, {inferior!r} with confidence {confidence!r} are not landmarks"
        )
        remedy = (
            "Give angles in degrees, and high, medium or low (in a manifest: a number from 0 to 1)"
        )
        raise InputError(where, problem, remedy) from error
    return Landmarks(angles[0], angles[1], sure)


def acdc(path: str) -> Listing:
    """ACDC (Bernard et al., IEEE TMI 2018): cine, with RV; both labelled frames of a patient are studies.

    Layout::

        [training/|testing/]patient001/patient001_frame01.nii.gz
        [training/|testing/]patient001/patient001_frame01_gt.nii.gz   optional

    The header is nominal, but the stacks lie as the standard display shows them, not mirrored; so the RV label gives
    both insertion points.
    """
    root = folder(path)
    for patient in sorted(p for p in root.glob("**/patient[0-9]*") if p.is_dir()):
        frames = [f for f in sorted(patient.glob("*_frame*.nii*")) if "_gt.nii" not in f.name]
        if not frames:
            remedy = "Copy the patient's folder again: patient001_frame01.nii.gz and its _gt file"
            yield Fault(patient.name, str(patient), "holds no frame", remedy)
        for frame in frames:
            yield _cine_entry(
                frame, frame.name.split(".nii")[0], patient.name, ACDC_CODES, mirrored=False
            )


def _cine_entry(
    image: Path, study_id: str, patient: str, codes: Mapping[int, int], mirrored: bool | None = None
) -> Entry:
    mask = image.with_name(image.name.replace(".nii", "_gt.nii"))
    labels = partial(read_nifti, mask) if mask.is_file() else None
    return Entry(
        study_id,
        patient,
        partial(read_nifti, image),
        labels,
        codes,
        scar_labelled=False,
        mirrored=mirrored,
    )


def mnms(path: str) -> Listing:
    """M&Ms (Campello et al., IEEE TMI 2021) and M&Ms-2: cine, end-diastole and end-systole as two studies::

        **/A0S9V9/A0S9V9_sa.nii.gz    **/A0S9V9/A0S9V9_sa_gt.nii.gz    *.csv with External code, ED, ES (from 0)
        **/001/001_SA_ED.nii.gz       **/001/001_SA_ED_gt.nii.gz       (and ES: M&Ms-2)

    Frames of a 4-D file come from the table or, without one, from the frames that the label file marks.
    """
    root = folder(path)
    frames = {}
    for table in sorted(root.glob("**/*.csv")):
        with table.open(encoding="utf-8", errors="replace") as stream:
            if "External code" not in stream.readline():
                continue
        for row in read_table(table, ("External code", "ED", "ES")):
            if row["ED"].isdigit() and row["ES"].isdigit():
                frames[row["External code"]] = (int(row["ED"]), int(row["ES"]))
    for image in sorted(
        f for f in root.glob("**/*.nii*") if re.search(r"_SA(_E[DS])?\.nii", f.name, re.I)
    ):
        name, patient = image.name.split(".nii")[0], image.parent.name
        entry = _cine_entry(image, name, patient, MNMS_CODES)
        if not name.lower().endswith("_sa"):
            yield entry
            continue
        mask = image.with_name(image.name.replace(".nii", "_gt.nii"))
        numbers = frames.get(patient) or _labelled_frames(mask)
        if not numbers:
            remedy = (
                "Put the data set's information table (External code, ED, ES) beside the patients"
            )
            yield Fault(
                name,
                str(image),
                "which frames are end-diastole and end-systole is not known",
                remedy,
            )
        for phase, number in zip(("ED", "ES"), numbers, strict=False):
            labels = partial(read_nifti, mask, number) if entry.labels else None
            reader = partial(read_nifti, image, number)
            yield Entry(f"{name}_{phase}", patient, reader, labels, MNMS_CODES, scar_labelled=False)


def _labelled_frames(mask: Path) -> tuple[int, ...]:
    """The first two frames of a 4-D label file that hold labels, in the order of the heart's cycle: ED first."""
    try:
        array = np.asanyarray(nib.Nifti1Image.from_filename(mask).dataobj)
    except READ_FAULTS:
        return ()
    return tuple(np.flatnonzero(array.any(axis=(0, 1, 2)))[:2].tolist()) if array.ndim == 4 else ()


def myops(path: str) -> Listing:
    """MyoPS 2020 (Li et al., Medical Image Analysis 2023) and MyoPS++ (CARE): the LGE image and the gold mask.

    Layout::

        train25/myops_training_101_DE.nii.gz   train25_myops_gd/myops_training_101_gd.nii.gz
        test20/myops_test_201_DE.nii.gz
        Case3001/Case3001_LGE.nii.gz           Case3001/Case3001_gd.nii.gz
    """
    root = folder(path)
    masks = {file.name.split("_gd.nii")[0]: file for file in root.glob("**/*_gd.nii*")}
    names = set()
    for image in sorted(f for f in root.glob("**/*.nii*") if re.search(r"_(DE|LGE)\.nii", f.name)):
        name = re.split(r"_(?:DE|LGE)\.nii", image.name)[0]
        names.add(name)
        labels = partial(read_nifti, masks[name]) if name in masks else None
        yield Entry(name, name, partial(read_nifti, image), labels, MYOPS_CODES)
    for name in sorted(set(masks) - names):
        remedy = "Put the LGE image (…_DE.nii.gz or …_LGE.nii.gz) into the folder"
        yield Fault(name, str(masks[name]), "a mask without its LGE image", remedy, truth_only=True)


def bids(path: str) -> Listing:
    """A BIDS folder: one study for each LGE image (a file whose name says LGE, as in ``acq-LGE``)::

        participants.tsv                               optional columns: report, split
        sub-01/[ses-1/]anat/sub-01_acq-LGE_….nii.gz
        derivatives/*/sub-01/**/sub-01_acq-LGE_…_dseg.nii.gz   optional
        derivatives/*/dseg.tsv                         optional: index,name with this package's label names

    Without ``dseg.tsv`` the masks are in the internal codes.
    """
    root = folder(path)
    people = {}
    if (root / "participants.tsv").is_file():
        try:
            rows = read_table(root / "participants.tsv", ("participant_id",), "\t")
            people = {row["participant_id"]: row for row in rows}
        except InputError as error:
            yield Fault.of("", error, truth_only=True)
    codes = dict(INTERNAL_CODES)
    for table in sorted(root.glob("derivatives/*/dseg.tsv")):
        try:
            codes = _dseg_codes(table)
        except InputError as error:
            yield Fault.of("", error, truth_only=True)
    masks = sorted(root.glob("derivatives/**/*_dseg.nii*"))
    for image in sorted(f for f in root.glob("sub-*/**/*.nii*") if "lge" in f.name.lower()):
        name = image.name.split(".nii")[0]
        patient = name.split("_")[0]
        stem = name.rsplit("_", 1)[
            0
        ]  # without the suffix (T1w, LGE, …), which a segmentation replaces
        own = [mask for mask in masks if mask.name.startswith(f"{stem}_")]
        row = people.get(patient, {})
        if len(own) > 1:
            yield Fault(
                name,
                str(own[1]),
                "a second mask for the same image",
                "Keep one *_dseg file an image",
                True,
            )
        yield Entry(
            name,
            patient,
            partial(read_nifti, image),
            partial(read_nifti, own[0]) if own else None,
            codes,
            report=row.get("report", ""),
            split=row.get("split", ""),
        )


def _dseg_codes(table: Path) -> dict[int, int]:
    """Codes from a BIDS lookup table."""
    codes = {0: BACKGROUND}
    for row in read_table(table, ("index", "name"), "\t"):
        if row["name"] not in LABEL_NAMES or not row["index"].isdigit():
            known = ", ".join(LABEL_NAMES)
            raise InputError(
                table, f"unknown label {row['index']} {row['name']!r}", f"Use these names: {known}"
            )
        codes[int(row["index"])] = LABEL_NAMES.index(row["name"])
    return codes
