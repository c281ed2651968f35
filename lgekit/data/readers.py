"""Read a cohort from its SPEC ``kind:path``: layouts of public data sets, and shared steps."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from lgekit.data import nifti
from lgekit.data.manifest import INTERNAL_CODES, manifest, optional_rows, parse_landmarks
from lgekit.data.nifti import Entry, Fault, Listing, folder, nifti_entry
from lgekit.errors import InputError
from lgekit.study import (
    BACKGROUND,
    CAVITY,
    LABEL_NAMES,
    MYOCARDIUM,
    NO_REFLOW,
    RV,
    SCAR,
    SCARRED,
    SPLITS,
    Cohort,
    Landmarks,
    Study,
    hash_unit,
    split_of,
)

# ---- layouts of public data sets ----

# Each data set's label code → the internal code. M&Ms swaps left and right, compared with ACDC.
EMIDEC_CODES = {0: BACKGROUND, 1: CAVITY, 2: MYOCARDIUM, 3: SCAR, 4: NO_REFLOW}
ACDC_CODES = {0: BACKGROUND, 1: RV, 2: MYOCARDIUM, 3: CAVITY}
MNMS_CODES = {0: BACKGROUND, 1: CAVITY, 2: MYOCARDIUM, 3: RV}
# Oedema (1220) is seen on T2, not on LGE: there it is myocardium.
MYOPS_CODES = {0: BACKGROUND, 200: MYOCARDIUM, 500: CAVITY, 600: RV, 1220: MYOCARDIUM, 2221: SCAR}

EMIDEC_SAME_PATIENT = {"Case_P072": "Case_P059"}  # a resampled copy
RVIP_CONFIDENCE = {"high": 1.0, "medium": 0.66, "low": 0.33}


def emidec(path: str) -> Listing:
    """EMIDEC (Lalande et al., Data 2020, 5(4), 89), training or test set, original or restored::

        Case_P001/Images/Case_P001.nii.gz
        Case_P001/Contours/Case_P001.nii.gz   optional
        Case P001.txt      optional, here or in the case's folder; latin-1
        rvip.csv           optional: case,anterior_rvip_deg,inferior_rvip_deg,confidence

    The clinical text reveals who is ill. It is kept in ``study["clinical"]`` for display only.
    """
    root = folder(path)
    landmarks: dict[str, Landmarks] = {}
    table, columns = root / "rvip.csv", ("case", "anterior_rvip_deg", "inferior_rvip_deg")
    rows, faults = optional_rows(table, columns)
    yield from faults
    for row in rows:
        case, anterior, inferior = (row[column] for column in columns)
        confidence = RVIP_CONFIDENCE.get(row.get("confidence", "high"), float("nan"))
        try:
            where = f"{table}, {case}"
            landmarks[case] = parse_landmarks(anterior, inferior, confidence, where)
        except InputError as error:
            yield Fault.of(error, case, truth_only=True)
    for case_dir in sorted(root.glob("*/")):
        images, contours, name = case_dir / "Images", case_dir / "Contours", case_dir.name
        if not (name.startswith("Case") or images.is_dir()):
            continue
        image = _one_nifti(images, name)
        if image is None:
            remedy = f"Put {name}.nii.gz into the Images folder"
            yield Fault(images, "contains no image of this case", remedy, name)
            continue
        mask = _one_nifti(contours, name)
        if mask is None and contours.is_dir():
            mask = contours / image.name  # reported as missing
        facts: dict[str, Any] = {"study_id": name, "codes": EMIDEC_CODES}
        facts |= {"patient_id": EMIDEC_SAME_PATIENT.get(name, name)}
        for place in (case_dir, root):
            if (text := place / f"{name.replace('_', ' ')}.txt").is_file():
                pairs = (line.partition(":") for line in text.read_text("latin-1").splitlines())
                clinical = {key.strip(): value.strip() for key, colon, value in pairs if colon}
                facts["fields"] = {"clinical": clinical}
        yield nifti_entry(image, mask, landmarks=landmarks.get(name), **facts)


def _one_nifti(where: Path, name: str) -> Path | None:
    """The NIfTI file of this name in a folder, or the only one there."""
    files = sorted(where.glob("*.nii*"))
    named = [file for file in files if file.name.split(".nii")[0] == name]
    return (named or files)[0] if named or len(files) == 1 else None


def acdc(path: str) -> Listing:
    """ACDC (Bernard et al., IEEE TMI 2018): cine with RV; both labelled frames are studies::

        [training/|testing/]patient001/patient001_frame01.nii.gz
        [training/|testing/]patient001/patient001_frame01_gt.nii.gz   optional

    The header is nominal, but no stack is mirrored, so the RV label gives both insertion
    points.
    """
    for patient in sorted(folder(path).glob("**/patient[0-9]*/")):
        frames = [one for one in patient.glob("*_frame*.nii*") if "_gt.nii" not in one.name]
        if not frames:
            remedy = "Copy the patient's folder again: patient001_frame01.nii.gz and its _gt file"
            yield Fault(patient, "contains no frame", remedy, patient.name)
        for frame in sorted(frames):
            yield _cine(frame, codes=ACDC_CODES, mirrored=False)


def _cine(image: Path, frame: int | None = None, phase: str = "", **facts: Any) -> Entry:
    """A frame of a cine data set in its patient's folder."""
    mask, name = _cine_mask(image), image.name.split(".nii")[0] + phase
    facts |= {"study_id": name, "patient_id": image.parent.name, "scar_labelled": False}
    return nifti_entry(image, mask if mask.is_file() else None, frame, **facts)


def _cine_mask(image: Path) -> Path:
    return image.with_name(image.name.replace(".nii", "_gt.nii"))


def mnms(path: str) -> Listing:
    """M&Ms (Campello et al., IEEE TMI 2021) and M&Ms-2: cine, end-diastole and end-systole::

        **/A0S9V9/A0S9V9_sa.nii.gz     **/A0S9V9/A0S9V9_sa_gt.nii.gz
        **/001/001_SA_ED.nii.gz        **/001/001_SA_ED_gt.nii.gz     (and ES: M&Ms-2)
        *.csv                          optional: External code, ED, ES (frames from 0)

    Without a table the frames of a 4-D file are those that its label file marks.
    """
    root = folder(path)
    frames: dict[str, tuple[int, ...]] = {}
    for table in sorted(root.glob("**/*.csv")):
        with table.open(encoding="utf-8", errors="replace") as stream:
            if "External code" not in stream.readline():
                continue
        rows, faults = optional_rows(table, ("External code", "ED", "ES"))
        yield from faults
        for row in rows:
            if row["ED"].isdigit() and row["ES"].isdigit():
                frames[row["External code"]] = (int(row["ED"]), int(row["ES"]))
    for image in sorted(root.glob("**/*.nii*")):
        if not re.search(r"_SA(_E[DS])?\.nii", image.name, re.I):
            continue
        name = image.name.split(".nii")[0]
        if not name.lower().endswith("_sa"):
            yield _cine(image, codes=MNMS_CODES)
            continue
        numbers = frames.get(image.parent.name) or _labelled_frames(image)
        if not numbers:
            problem = "which frames are end-diastole and end-systole is not known"
            remedy = "Put the data set's table (External code, ED, ES) next to the patients"
            yield Fault(image, problem, remedy, name)
        for phase, number in zip(("_ED", "_ES"), numbers, strict=False):
            yield _cine(image, number, phase, codes=MNMS_CODES)


def _labelled_frames(image: Path) -> tuple[int, ...]:
    """The first two frames with labels of an image's 4-D label file; end-diastole is the first."""
    try:
        array = np.asanyarray(nib.Nifti1Image.from_filename(_cine_mask(image)).dataobj)
    except Exception:  # missing or damaged: reported as unknown frames
        return ()
    return tuple(np.flatnonzero(array.any(axis=(0, 1, 2)))[:2].tolist()) if array.ndim == 4 else ()


def myops(path: str) -> Listing:
    """MyoPS 2020 (Li et al., Medical Image Analysis 2023) and MyoPS++ (CARE): the LGE images::

        train25/myops_training_101_DE.nii.gz   train25_myops_gd/myops_training_101_gd.nii.gz
        test20/myops_test_201_DE.nii.gz
        Case3001/Case3001_LGE.nii.gz           Case3001/Case3001_gd.nii.gz

    Other sequences are ignored.
    """
    root = folder(path)
    masks = {file.name.split("_gd.nii")[0]: file for file in sorted(root.glob("**/*_gd.nii*"))}
    for image in sorted(root.glob("**/*.nii*")):
        name, *rest = re.split(r"_(?:DE|LGE)\.nii", image.name)
        if rest:
            mask = masks.pop(name, None)
            yield nifti_entry(image, mask, study_id=name, patient_id=name, codes=MYOPS_CODES)
    for name, mask in sorted(masks.items()):
        remedy = "Put the LGE image (…_DE.nii.gz or …_LGE.nii.gz) into the folder"
        yield Fault(mask, "a mask without its LGE image", remedy, name, truth_only=True)


def bids(path: str) -> Listing:
    """A BIDS folder: each LGE image (a file whose name says LGE, as in ``acq-LGE``) is a study::

        participants.tsv                               optional columns: report, split
        sub-01/[ses-1/]anat/sub-01_acq-LGE_….nii.gz
        derivatives/*/sub-01/**/sub-01_acq-LGE_…_dseg.nii.gz   optional
        derivatives/*/dseg.tsv                         optional: index,name (names of lgekit.study)

    Without ``dseg.tsv`` the masks are in the internal codes.
    """
    root, codes = folder(path), INTERNAL_CODES
    rows, faults = optional_rows(root / "participants.tsv", ("participant_id",), "\t")
    people = {row["participant_id"]: row for row in rows}
    for table in sorted(root.glob("derivatives/*/dseg.tsv")):
        rows, more = optional_rows(table, ("index", "name"), "\t")
        faults, codes = faults + more, {0: BACKGROUND}
        for row in rows:
            if row["name"] in LABEL_NAMES and row["index"].isdigit():
                codes[int(row["index"])] = LABEL_NAMES.index(row["name"])
            else:
                problem = f"unknown label {row['index']} {row['name']!r}"
                remedy = f"Use these names: {', '.join(LABEL_NAMES)}"
                faults.append(Fault(table, problem, remedy, truth_only=True))
    yield from faults
    masks = sorted(root.glob("derivatives/**/*_dseg.nii*"))
    for image in sorted(root.glob("sub-*/**/*.nii*")):
        if "lge" not in image.name.lower():
            continue
        name = image.name.split(".nii")[0]
        patient, stem = name.split("_")[0], name.rpartition("_")[0]  # dseg replaces the suffix
        own = [mask for mask in masks if mask.name.startswith(f"{stem}_")]
        if len(own) > 1:
            remedy = "Keep one *_dseg file for each image"
            yield Fault(own[1], "a second mask for the same image", remedy, name, truth_only=True)
        person = people.get(patient, {})
        cells: dict[str, Any] = {key: person.get(key, "") for key in ("report", "split")}
        mask = own[0] if own else None
        yield nifti_entry(image, mask, study_id=name, patient_id=patient, codes=codes, **cells)


def _dicom(path: str) -> Listing:
    from lgekit.data.dicom import dicom  # loads pydicom

    return dicom(path)


READERS: dict[str, Callable[[str], Listing]]
READERS = {"emidec": emidec, "acdc": acdc, "myops": myops, "mnms": mnms, "bids": bids}
READERS |= {"dicom": _dicom, "manifest": manifest}
# A file that each reader looks for, named in the message if there is none.
EXPECTED = {
    "emidec": "Case_P001/Images/Case_P001.nii.gz",
    "acdc": "patient001/patient001_frame01.nii.gz",
    "myops": "train25/myops_training_101_DE.nii.gz or Case3001/Case3001_LGE.nii.gz",
    "mnms": "A0S9V9/A0S9V9_sa.nii.gz or 001/001_SA_ED.nii.gz",
    "bids": "sub-01/anat/sub-01_acq-LGE_T1w.nii.gz",
    "dicom": "DICOM files of MR images",
}

# ---- SPECs ----

KINDS = ("phantom", *READERS)


def parse_spec(spec: str) -> tuple[str, str]:
    """Split ``kind:rest``. Raises InputError for an unknown kind."""
    kind, colon, rest = str(spec).partition(":")
    if not colon or kind not in KINDS:
        kinds = ", ".join(f"{name}:…" for name in KINDS)
        table = f"manifest:{spec}, or " if str(spec).lower().endswith(".csv") else ""
        remedy = f"Write {table}one of {kinds}"
        raise InputError("SPEC", f"{spec!r} names no kind of cohort", remedy)
    return kind, rest


def split_specs(text: str) -> list[str]:
    """Split SPECs at spaces. A path may hold spaces: a SPEC ends where another kind begins."""
    return [part for part in re.split(rf"\s+(?=(?:{'|'.join(KINDS)}):)", text.strip()) if part]


def _path(spec: str, root: Path) -> Path | None:
    """The file or folder that a SPEC names; None if it names none (such as ``phantom:…``)."""
    kind, _, rest = spec.partition(":")
    return None if kind == "phantom" or not rest else root / Path(rest).expanduser()


def missing_path(spec: str, root: Path) -> Path | None:
    """The path of a SPEC if it does not exist."""
    path = _path(spec, root)
    return path if path is not None and not path.exists() else None


def pretraining_specs(spec: str, asked: str = "auto", root: Path = Path()) -> list[str]:
    """Further cohorts with masks for the heart network of a cohort.

    Args:
        asked: SPECs separated by spaces; ``none``; or ``auto``: the public cine set ACDC, where a
            folder ``acdc`` is next to the cohort's own folder.
        root: the folder that paths in SPECs start from.
    """
    if asked != "auto":
        return [] if asked == "none" else split_specs(asked)
    kind, _, path = spec.partition(":")
    sibling = Path(path).parent / "acdc"
    found = path and kind not in ("phantom", "acdc") and (root / sibling.expanduser()).is_dir()
    return [f"acdc:{sibling}"] if found else []


def phantom_options(rest: str) -> dict[str, Any]:
    """Parse the options of ``phantom:studies=200,seed=1``."""
    parsers = {"studies": int, "seed": int, "report_noise": float, "workers": int}
    options: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        name, _, text = part.partition("=")
        remedy = f"Options: {', '.join(parsers)}; write name=value, separated by commas"
        if name not in parsers or name in options:
            problem = f"{part!r} is not an option of the phantom, or is given twice"
            raise InputError(f"phantom:{rest}", problem, remedy)
        try:
            options[name] = parsers[name](text)
        except ValueError:
            problem = f"{part} is not of type {parsers[name].__name__}"
            raise InputError(f"phantom:{rest}", problem, remedy) from None
    return options


def list_studies(spec: str) -> tuple[list[Entry], list[Fault]]:
    """List the studies of a SPEC before they are read, and the faults of layout, ids and splits."""
    kind, rest = parse_spec(spec)
    try:
        items = list(READERS[kind](rest))
        if not items:
            remedy = f"Expected in that folder: {EXPECTED.get(kind, 'rows')}"
            raise InputError(spec, "no study found there", remedy)
    except InputError as error:
        items = [Fault.of(error)]
    entries = [item for item in items if isinstance(item, Entry)]
    faults = [item for item in items if isinstance(item, Fault)]
    for name, count in Counter(entry.study_id for entry in entries).items():
        if count > 1:
            remedy = "Give every study its own study_id"
            faults.append(Fault(name, f"{count} studies have this id", remedy, name))
    splits: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.split in SPLITS:
            splits[entry.patient_id].add(entry.split)
        elif entry.split:
            name, problem = entry.study_id, f"unknown split {entry.split!r}"
            remedy = f"Use {', '.join(SPLITS)}, or leave it empty"
            faults.append(Fault(f"{name}, split", problem, remedy, name, truth_only=True))
    for patient, names in splits.items():
        if len(names) > 1:
            problem = f"is in {len(names)} splits: {', '.join(sorted(names))}"
            remedy = "Put all studies of a patient into one split"
            faults.append(Fault(f"patient {patient}", problem, remedy, truth_only=True))
    return entries, faults


def read_cohort(spec: str, images_only: bool = False) -> Cohort:
    """Read a cohort.

    Args:
        spec: ``kind:path``; see ``KINDS``.
        images_only: do not open labels, reports, landmarks or findings, as for a prediction.

    Raises:
        InputError: at the first fault, naming the file or field and the remedy.
    """
    kind, rest = parse_spec(spec)
    if kind == "phantom":
        from lgekit.data.phantom import phantom_cohort

        cohort = phantom_cohort(**phantom_options(rest))
        if not images_only:
            return cohort
        keys = ("image", "study_id", "patient_id", "split")
        return Cohort([Study(**{key: one[key] for key in keys}) for one in cohort.studies], spec)
    entries, faults = list_studies(spec)
    for fault in faults:
        if not (images_only and fault.truth_only):
            raise fault
    studies: list[Study] = []
    notes: list[UserWarning] = []
    for entry in entries:
        study, image = nifti.read_study(entry, images_only)
        studies.append(study)
        notes += image.notes
    if not images_only:
        drawn = scar_is_drawn(entries, studies)
        for study, entry in zip(studies, entries, strict=True):
            complete(study, entry, drawn)
    for study, owner in copies(studies):
        name, patient, kept = study["study_id"], study["patient_id"], owner["patient_id"]
        copy = f"{name}: the same image as {owner['study_id']}; counted as patient {kept}"
        notes.append(UserWarning(copy))
        for other in studies:
            if other["patient_id"] == patient:
                other["patient_id"] = kept
    _warn(notes)
    _assign_splits(studies)
    return Cohort(studies, spec)


def check_cohort(spec: str) -> list[Fault]:
    """Read a whole cohort and list its faults: of each study, those of image and mask.

    Raises:
        InputError: only if the SPEC itself is wrong (unknown kind, wrong option of the phantom).
    """
    if parse_spec(spec)[0] == "phantom":
        read_cohort(spec)
        return []
    entries, faults = list_studies(spec)
    studies: list[Study] = []
    for entry in entries:
        try:
            study, image = nifti.read_study(entry)
        except InputError:
            faults += [Fault.of(error, entry.study_id) for error in nifti.study_faults(entry)]
            continue
        studies.append(study)
        for gap in (note for note in image.notes if isinstance(note, nifti.SliceGapWarning)):
            remedy = "Export the series again with all its slices"
            faults.append(Fault(image.where, str(gap), remedy, entry.study_id))
    for study, owner in copies(studies):
        name, patient = study["study_id"], owner["patient_id"]
        problem = f"the same image as {owner['study_id']} of patient {patient}"
        remedy = "Remove one of the two, or give both the same patient_id, as reading does"
        faults.append(Fault(name, problem, remedy, name, truth_only=True))
    return faults


def scar_is_drawn(entries: list[Entry], studies: list[Study]) -> bool:
    """Whether a mask without scar means a heart without scar.

    It does not if some report describes scar and no mask has any: only the heart was outlined.
    """
    from lgekit.reports.reader import read_report, states_enhancement

    if not any(entry.labels is not None and entry.scar_labelled for entry in entries):
        return True
    masks = (study.label_map for study in studies)
    if any(mask is not None and np.isin(mask, SCARRED).any() for mask in masks):
        return True
    reports = (one.report for one in entries if one.report and one.report_source != "masks")
    return not any(states_enhancement(text) and read_report(text).present for text in reports)


def complete(study: Study, entry: Entry, drawn: bool) -> None:
    """Derive, in place, landmarks from an RV label, findings, and a report from the masks.

    ``drawn`` is whether the cohort's masks show scar (:func:`scar_is_drawn`), else reports do.
    """
    from lgekit.anatomy.segments import findings_from_labels, insertion_points
    from lgekit.reports.reader import read_report, states_enhancement
    from lgekit.reports.writer import write_report

    labels = study.label_map
    if labels is not None and study["landmarks"] is None and (labels == RV).any():
        mirrored = nifti.storage_mirrored(study["image"].affine)
        mirrored = entry.mirrored if mirrored is None else mirrored
        if mirrored is not None:  # else anterior and inferior cannot be told apart
            landmarks = insertion_points(labels, study.spacing_mm, mirrored=mirrored)
            study["landmarks"] = landmarks if landmarks.confidence > 0 else None
    if study["findings"] is None and labels is not None and drawn:
        if entry.scar_labelled and entry.report_source != "none":
            study["findings"] = findings_from_labels(study)
    elif study["findings"] is None and entry.report and states_enhancement(entry.report):
        study["findings"] = read_report(entry.report)  # if it says nothing: unknown
    wanted = entry.report_source in ("masks", "") and not entry.report
    if wanted and study["findings"] is not None:
        rng = np.random.default_rng(int(hash_unit(study["study_id"]) * 2**53))
        study["report"], study["report_source"] = write_report(study["findings"], rng), "masks"


def _warn(notes: list[UserWarning]) -> None:
    """Show each note, but only the first about contradictory headers, which are often many."""
    grids = [note for note in notes if isinstance(note, nifti.GridWarning)]
    if len(grids) > 1:
        text = f"{grids[0]} (and the same in {len(grids) - 1} more studies)"
        grids = [nifti.GridWarning(text)]
    for note in [note for note in notes if not isinstance(note, nifti.GridWarning)] + grids[:1]:
        warnings.warn(note, stacklevel=3)


def _assign_splits(studies: list[Study]) -> None:
    """Give studies without a split that of their patient, or one from the patient id's hash."""
    given = {study["patient_id"]: study["split"] for study in studies if study["split"]}
    known: dict[str, list[bool]] = defaultdict(list)
    for study in studies:
        if study["findings"] is not None:
            known[study["patient_id"]].append(study["findings"].present)
    for study in studies:
        patient = study["patient_id"]
        present = any(known[patient]) if known[patient] else None
        study["split"] = given.get(patient) or split_of(patient, present)


# ---- copies of an image ----


def image_digest(study: Study) -> str:
    """32 hex digits of an image's values and shape."""
    content = repr(study.pixels.shape).encode() + study.pixels.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def copies(studies: list[Study]) -> list[tuple[Study, Study]]:
    """Return pairs of studies of different patients with the same image, the later first."""
    owners: dict[str, Study] = {}
    pairs = [(study, owners.setdefault(image_digest(study), study)) for study in studies]
    return [(one, other) for one, other in pairs if one["patient_id"] != other["patient_id"]]


def refuse_shared(cohort: Cohort, further: Sequence[Cohort]) -> None:
    """Raise InputError if a cohort for pretraining has an image of the cohort: masks would leak."""
    own = {image_digest(study): study["study_id"] for study in cohort.studies}
    for other in further:
        for study in other.studies:
            if (name := own.get(image_digest(study))) is not None:
                problem = f"its study {study['study_id']} has the image of {name} in {cohort.name}"
                raise InputError(other.name, problem, "Leave this cohort out of pretrain_on.")
