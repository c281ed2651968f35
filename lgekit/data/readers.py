"""Read a cohort from its SPEC ``kind:path``: layouts of public data sets, and shared steps."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tomllib
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from lgekit.data.manifest import INTERNAL_CODES, manifest, optional_rows, parse_landmarks
from lgekit.data.nifti import (
    Doubt,
    Entry,
    Fault,
    Listing,
    folder,
    nifti_entry,
    read_nifti,
    read_study,
    storage_mirrored,
)
from lgekit.errors import InputError
from lgekit.study import (
    LABEL_NAMES,
    RV,
    SCARRED,
    SPLITS,
    Cohort,
    Landmarks,
    Study,
    hash_unit,
    split_of,
)

# ---- layouts ----

LAYOUTS = tomllib.loads(Path(__file__).with_name("layouts.toml").read_text(encoding="utf-8"))


def scan(path: str, layout: dict[str, Any], codes: Mapping[int, int]) -> Listing:
    """List the studies of a folder of NIfTI files, in a layout of ``layouts.toml``.

    A table ``rvip.csv`` (case,anterior_rvip_deg,inferior_rvip_deg,confidence) may give landmarks.
    """
    root = folder(path)
    landmarks, faults = _read_landmarks(root / "rvip.csv")
    yield from faults
    masks: dict[str, list[Path]] = defaultdict(list)
    images: list[tuple[dict[str, str], Path]] = []
    for file in sorted(root.rglob("*.nii*")):
        name = file.relative_to(root).as_posix()
        if found := re.search(rf"{layout['mask']}\.nii", name, re.I):
            masks[found["key"]].append(file)
        elif found := re.search(rf"{layout['image']}\.nii", name, re.I):
            images.append((found.groupdict(), file))
    for names, file in images:
        study = names.get("study", names["key"])
        own = masks.pop(names["key"], [])
        for other in own[1:]:
            remedy = "Keep one mask file for each image"
            yield Fault(other, "a second mask for the same image", remedy, study, truth_only=True)
        patient = names.get("patient", study)
        entry = nifti_entry(
            file,
            own[0] if own else None,
            study_id=study,
            patient_id=layout.get("same_patient", {}).get(patient, patient),
            codes=codes,
            scar_labelled=layout.get("scar_labelled", True),
            mirrored=layout.get("mirrored"),
            landmarks=landmarks.get(study),
        )
        four_d = study.lower().endswith(layout.get("four_d", "/"))
        yield from _frames(entry) if four_d else [entry]
    for key, (file, *_) in sorted(masks.items()):
        remedy = "Copy the image of this study into the folder again, or remove the mask"
        yield Fault(file, "a mask without its image", remedy, key)


def _read_landmarks(table: Path) -> tuple[dict[str, Landmarks | None], list[Fault]]:
    """Read the landmarks of each study, and the faults of the table."""
    columns, landmarks = ("case", "anterior_rvip_deg", "inferior_rvip_deg"), {}
    rows, faults = optional_rows(table, columns)
    for row in rows:
        case, *angles = (row[column] for column in columns)
        try:
            where = f"{table}, {case}"
            landmarks[case] = parse_landmarks(angles, row.get("confidence", ""), where)
        except InputError as error:
            faults.append(Fault.of(error, case, truth_only=True))
    return landmarks, faults


def _frames(entry: Entry) -> Listing:
    """List the end-diastolic and end-systolic frame of a 4-D file: those with labels, in order."""
    frames: list[int] = []
    with contextlib.suppress(Exception):  # no label file, or a damaged one
        codes = np.asanyarray(nib.Nifti1Image.from_filename(entry.files[1]).dataobj)
        frames = np.flatnonzero(codes.any(axis=(0, 1, 2))).tolist()
    if not frames:
        problem = "which frames are end-diastole and end-systole is not known"
        remedy = "Put its label file (_gt) next to it, or remove the patient's folder"
        yield Fault(entry.files[0], problem, remedy, entry.study_id)
    for phase, frame in zip(("_ED", "_ES"), frames, strict=False):
        image, labels = (partial(read_nifti, file, frame) for file in entry.files)
        yield replace(entry, study_id=entry.study_id + phase, image=image, labels=labels)


def public(kind: str, path: str) -> Listing:
    """List the studies of a public data set."""
    codes = {int(code): LABEL_NAMES.index(name) for code, name in LAYOUTS[kind]["codes"].items()}
    return scan(path, LAYOUTS[kind], codes)


def bids(path: str) -> Listing:
    """List the studies of a BIDS folder.

    ``participants.tsv`` may have columns ``report`` and ``split``. ``derivatives/*/dseg.tsv`` may
    name the codes of the masks: columns ``index`` and ``name`` (of `lgekit.study.LABEL_NAMES`).
    """
    root, codes = folder(path), INTERNAL_CODES
    rows, faults = optional_rows(root / "participants.tsv", ("participant_id",), "\t")
    people = {row["participant_id"]: row for row in rows}
    for table in sorted(root.glob("derivatives/*/dseg.tsv")):
        rows, more = optional_rows(table, ("index", "name"), "\t")
        faults, codes = faults + more, {0: 0}
        for row in rows:
            if row["name"] in LABEL_NAMES and row["index"].isdigit():
                codes[int(row["index"])] = LABEL_NAMES.index(row["name"])
            else:
                problem = f"unknown label {row['index']} {row['name']!r}"
                remedy = f"Use these names: {', '.join(LABEL_NAMES)}"
                faults.append(Fault(table, problem, remedy, truth_only=True))
    yield from faults
    for item in scan(path, LAYOUTS["bids"], codes):
        if isinstance(item, Fault):
            yield item
        elif "lge" in item.study_id.lower():
            person = people.get(item.patient_id, {})
            yield replace(item, report=person.get("report", ""), split=person.get("split", ""))


def dicom(path: str) -> Listing:
    from lgekit.data.dicom import list_series  # loads pydicom

    return list_series(path)


READERS: dict[str, Callable[[str], Listing]] = {kind: partial(public, kind) for kind in LAYOUTS}
READERS |= {"bids": bids, "dicom": dicom, "manifest": manifest}

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


def _phantom(rest: str) -> Cohort:
    """Make the phantom cohort of ``phantom:studies=200,seed=1``."""
    from lgekit.data.phantom import phantom_cohort

    options: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name in options:
            problem = f"{part!r} is not NAME=VALUE, or is given twice"
            raise InputError(f"phantom:{rest}", problem, "Write e.g. phantom:studies=200,seed=1")
        options[name] = value
    return phantom_cohort(**options)


# ---- reading ----


def list_studies(spec: str) -> tuple[list[Entry], list[Fault]]:
    """List the studies of a SPEC before they are read, and the faults of layout, ids and splits."""
    kind, rest = parse_spec(spec)
    try:
        items = list(READERS[kind](rest))
        if not items:
            expected = LAYOUTS.get(kind, {}).get("expected", "DICOM files of MR images")
            remedy = f"Expected in that folder: {expected}"
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


def _load(spec: str, images_only: bool = False) -> Iterator[Fault | tuple[Entry, Study]]:
    """Yield all faults of a cohort that opening no image shows, then each study or its faults."""
    entries, faults = list_studies(spec)
    yield from faults
    for entry in entries:
        for item in read_study(entry, images_only):
            yield item if isinstance(item, Fault) else (entry, item)


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
        cohort = _phantom(rest)
        if not images_only:
            return cohort
        keys = ("image", "study_id", "patient_id", "split")
        return Cohort([Study(**{key: one[key] for key in keys}) for one in cohort.studies], spec)
    loaded: list[tuple[Entry, Study]] = []
    for item in _load(spec, images_only):
        if not isinstance(item, Fault):
            loaded.append(item)
        elif isinstance(item, Doubt):  # without its folder, whose name may be a person's
            warnings.warn(f"{item.study_id}: {item.problem}", stacklevel=2)
        elif not (images_only and item.truth_only):
            raise item
    studies = [study for _, study in loaded]
    if not images_only:
        drawn = _scar_is_drawn(loaded)
        for entry, study in loaded:
            _complete(entry, study, drawn)
    for study, owner in copies(studies):
        patient, kept = study["patient_id"], owner["patient_id"]
        copy = f"{study['study_id']}: the same image as {owner['study_id']}; counted as patient"
        warnings.warn(f"{copy} {kept}", stacklevel=2)
        for other in studies:
            if other["patient_id"] == patient:
                other["patient_id"] = kept
    _assign_splits(studies)
    return Cohort(studies, spec)


def check_cohort(spec: str) -> list[Fault]:
    """Read a whole cohort and list its faults: of each study, those of image and mask.

    Raises:
        InputError: only if the SPEC itself is wrong (unknown kind, wrong option of the phantom).
    """
    kind, rest = parse_spec(spec)
    if kind == "phantom":
        _phantom(rest)
        return []
    items = list(_load(spec))
    faults = [item for item in items if isinstance(item, Fault)]
    for study, owner in copies([item[1] for item in items if not isinstance(item, Fault)]):
        name, patient = study["study_id"], owner["patient_id"]
        problem = f"the same image as {owner['study_id']} of patient {patient}"
        remedy = "Remove one of the two, or give both the same patient_id, as reading does"
        faults.append(Fault(name, problem, remedy, name, truth_only=True))
    return faults


def _scar_is_drawn(loaded: list[tuple[Entry, Study]]) -> bool:
    """Whether a mask without scar means a heart without scar.

    It does not if some report describes scar and no mask has any: only the heart was outlined.
    """
    from lgekit.reports.reader import read_report, states_enhancement

    if not any(entry.labels is not None and entry.scar_labelled for entry, _ in loaded):
        return True
    masks = (study.label_map for _, study in loaded)
    if any(mask is not None and np.isin(mask, SCARRED).any() for mask in masks):
        return True
    reports = (one.report for one, _ in loaded if one.report and one.report_source != "masks")
    return not any(states_enhancement(text) and read_report(text).present for text in reports)


def _complete(entry: Entry, study: Study, drawn: bool) -> None:
    """Derive, in place, landmarks from an RV label, findings, and a report from the masks.

    ``drawn`` is whether the cohort's masks show scar (:func:`_scar_is_drawn`), else reports do.
    """
    from lgekit.anatomy.segments import findings_from_labels, insertion_points
    from lgekit.reports.reader import read_report, states_enhancement
    from lgekit.reports.writer import write_report

    labels = study.label_map
    if labels is not None and study["landmarks"] is None and (labels == RV).any():
        mirrored = storage_mirrored(study["image"].affine)
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
