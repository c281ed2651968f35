"""From a SPEC to a cohort: ``emidec:PATH``, ``acdc:PATH``, ``myops:PATH``, ``mnms:PATH``, ``bids:DIR``, ``dicom:DIR``,
``manifest:FILE.csv`` and ``phantom:studies=200,seed=1``.

Every reader lists entries (:mod:`lgekit.layouts`, :mod:`lgekit.manifests`, :mod:`lgekit.dicom`); this module turns
entries into studies in one frame of code: float32 images with the slices last, labels in the internal codes, reports,
splits by patient. :func:`read_cohort` raises the first fault, :func:`check_cohort` lists them all.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torchio as tio

from lgekit import layouts
from lgekit.copies import SeenImages, join_copies
from lgekit.errors import InputError
from lgekit.layouts import Listing
from lgekit.manifests import manifest, write_manifest
from lgekit.specs import parse_spec
from lgekit.studies import SPLITS, Cohort, Study, split_of
from lgekit.truth import complete, mask_of, scar_is_drawn
from lgekit.volumes import (
    Entry,
    Fault,
    GridWarning,
    SliceGapWarning,
    check_image,
    recode,
    slice_axis,
    to_study_axes,
    valid_region,
)

__all__ = [
    "READERS",
    "Fault",
    "check_cohort",
    "iterate_studies",
    "list_entries",
    "parse_spec",
    "read_cohort",
    "valid_region",
    "write_manifest",
]


def _dicom(path: str) -> Listing:
    from lgekit.dicom import dicom  # pydicom is only needed here

    return dicom(path)


READERS: dict[str, Callable[[str], Listing]] = {
    "emidec": layouts.emidec,
    "acdc": layouts.acdc,
    "myops": layouts.myops,
    "mnms": layouts.mnms,
    "bids": layouts.bids,
    "dicom": _dicom,
    "manifest": manifest,
}

# One file that each reader looks for, said where it finds none; the whole trees stand in the readers' docstrings.
EXPECTED = {
    "emidec": "Case_P001/Images/Case_P001.nii.gz",
    "acdc": "patient001/patient001_frame01.nii.gz",
    "myops": "train25/myops_training_101_DE.nii.gz or Case3001/Case3001_LGE.nii.gz",
    "mnms": "A0S9V9/A0S9V9_sa.nii.gz or 001/001_SA_ED.nii.gz",
    "bids": "sub-01/anat/sub-01_acq-LGE_T1w.nii.gz",
    "dicom": "DICOM files of MR images",
}


def phantom_options(rest: str) -> dict[str, object]:
    """Options of ``phantom:studies=200,seed=1``, checked by name and type against ``phantom_cohort``."""
    from lgekit.phantom import phantom_cohort

    known = {name: p for name, p in inspect.signature(phantom_cohort).parameters.items() if p.kind != p.VAR_KEYWORD}
    options: dict[str, object] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        name, equals, text = part.partition("=")
        if name not in known or not equals or name in options:
            problem = f"{part!r} is not an option of the phantom, or is given twice"
            raise InputError(f"phantom:{rest}", problem, f"Options: {', '.join(known)}; write name=value, by commas")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        default = known[name].default
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if default is not None and default is not inspect.Parameter.empty and type(value) is not type(default):
            problem = f"{name}={text} is not of type {type(default).__name__}"
            raise InputError(f"phantom:{rest}", problem, f"Write it as in {name}={default}")
        options[name] = value
    studies = options.get("studies", 1)
    if isinstance(studies, int) and studies < 1:
        raise InputError(f"phantom:{rest}", f"studies={studies}", "Ask for at least one study")
    return options


def list_entries(spec: str) -> Listing:
    """Studies of a SPEC before they are read, and the faults of the layout, in a stable order."""
    kind, rest = parse_spec(spec)
    count = 0
    for item in READERS[kind](rest):
        count += 1
        yield item
    if not count:
        raise InputError(spec, "no study found there", f"Expected in that folder: {EXPECTED.get(kind, 'rows')}")


def iterate_studies(spec: str, images_only: bool = False) -> Iterator[Study]:
    """Read one study after the other; for a cohort too large for memory. Splits that the data lack stay empty.

    Raises:
        InputError: at the first fault.
    """
    if parse_spec(spec)[0] == "phantom":
        yield from read_cohort(spec, images_only).studies
        return
    items = list(list_entries(spec))
    entries = [item for item in items if isinstance(item, Entry)]
    drawn = images_only or scar_is_drawn(entries, (mask_of(entry) for entry in entries))
    for item in items:
        if isinstance(item, Fault):
            if images_only and item.truth_only:
                continue
            raise item.error()
        study, faults, notes = _read(item, images_only)
        if study is None:
            raise faults[0]
        _warn(notes)
        if not images_only:
            complete(study, item, drawn)
        yield study


def read_cohort(spec: str, images_only: bool = False) -> Cohort:
    """Read a cohort.

    Args:
        spec: see the module's first line.
        images_only: leave out labels, reports, landmarks and findings, and do not even open their files: what a
            prediction may see.

    Raises:
        InputError: at the first fault, naming the file or field and the remedy.
    """
    kind, rest = parse_spec(spec)
    if kind == "phantom":
        from lgekit.phantom import phantom_cohort

        cohort = phantom_cohort(**phantom_options(rest))  # type: ignore[arg-type]
        return Cohort([_image_alone(study) for study in cohort.studies], spec) if images_only else cohort
    items = list(list_entries(spec))
    entries = [item for item in items if isinstance(item, Entry)]
    faults = [item for item in items if isinstance(item, Fault)] + _cohort_faults(entries)
    faults = [fault for fault in faults if not (images_only and fault.truth_only)]
    if faults:
        raise faults[0].error()
    studies: list[Study] = []
    notes: list[UserWarning] = []
    for entry in entries:
        study, errors, own_notes = _read(entry, images_only)
        if study is None:
            raise errors[0]
        studies.append(study)
        notes += own_notes
    if not images_only:
        drawn = scar_is_drawn(entries, (study.label_map for study in studies))
        for study, entry in zip(studies, entries, strict=True):
            complete(study, entry, drawn)
    notes += join_copies(studies)
    _warn(notes)
    _assign_splits(studies)
    return Cohort(studies, spec)


def check_cohort(spec: str) -> list[Fault]:
    """Read a whole cohort and list every fault; an empty list means that it can be used.

    Raises:
        InputError: only where the SPEC itself is wrong (no such kind, wrong option of the phantom).
    """
    if parse_spec(spec)[0] == "phantom":
        read_cohort(spec)
        return []
    faults: list[Fault] = []
    entries: list[Entry] = []
    seen = SeenImages()
    try:
        for item in list_entries(spec):
            if isinstance(item, Fault):
                faults.append(item)
                continue
            entries.append(item)
            study, errors, notes = _read(item)
            faults += [Fault.of(item.study_id, error) for error in errors]
            remedy = "Export the series again with all its slices"
            gaps = [note for note in notes if isinstance(note, SliceGapWarning)]
            faults += [Fault(item.study_id, gap.where or item.study_id, str(gap), remedy) for gap in gaps]
            faults += seen.faults(study) if study is not None else []
    except InputError as error:
        faults.append(Fault.of("", error))
    return faults + _cohort_faults(entries)


def _cohort_faults(entries: list[Entry]) -> list[Fault]:
    """Faults that only show between studies, or in what the table says of them."""
    faults = []
    for name, count in Counter(entry.study_id for entry in entries).items():
        if count > 1:
            faults.append(Fault(name, name, f"{count} studies have this id", "Give every study its own study_id"))
    splits: dict[str, set[str]] = {}
    for entry in entries:
        if entry.split and entry.split not in SPLITS:
            remedy = f"Use {', '.join(SPLITS)}, or leave it empty"
            problem = f"unknown split {entry.split!r}"
            faults.append(Fault(entry.study_id, f"{entry.study_id}, split", problem, remedy, truth_only=True))
        elif entry.split:
            splits.setdefault(entry.patient_id, set()).add(entry.split)
    for patient, names in splits.items():
        if len(names) > 1:
            problem = f"is in {len(names)} splits: {', '.join(sorted(names))}"
            remedy = "Put all studies of a patient into one split"
            faults.append(Fault("", f"patient {patient}", problem, remedy, truth_only=True))
    return faults


def _warn(notes: list[UserWarning]) -> None:
    """Each note once; of the contradictory headers, which come by the hundred, only the first."""
    grids = [note for note in notes if isinstance(note, GridWarning)]
    for note in notes:
        if not isinstance(note, GridWarning):
            warnings.warn(note, stacklevel=3)
    if grids:
        more = f" (and the same in {len(grids) - 1} more studies)" if len(grids) > 1 else ""
        warnings.warn(f"{grids[0]}{more}", GridWarning, stacklevel=3)


def _read(entry: Entry, images_only: bool = False) -> tuple[Study | None, list[InputError], list[UserWarning]]:
    """A study as its files have it, or None with everything that is wrong with them; and the notes on its image."""
    image = entry.image()
    check_image(image)
    faults = list(image.faults)
    internal = None
    if entry.labels is not None and not images_only:
        mask = entry.labels()
        internal = recode(mask, entry.codes, image)
        faults += mask.faults
    if faults or image.array is None:
        return None, faults, image.notes
    axis = slice_axis(image)
    array, affine = to_study_axes(image, axis)
    fields = {"study_id": entry.study_id, "patient_id": entry.patient_id, "split": entry.split, **image.fields}
    if not images_only:
        source = entry.report_source or ("clinical" if entry.report else "none")
        fields |= {"report": entry.report, "report_source": source, "landmarks": entry.landmarks}
        fields |= {"findings": entry.findings, **entry.fields}
    fields["image"] = tio.ScalarImage(tensor=_tensor(array, np.float32), affine=affine)
    if internal is not None:
        array, _ = to_study_axes(replace(image, array=internal), axis)
        fields["labels"] = tio.LabelMap(tensor=_tensor(array, np.uint8), affine=affine)
    return Study(**fields), [], image.notes


def _tensor(array: np.ndarray, dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))[None]


def _assign_splits(studies: list[Study]) -> None:
    """Give studies without a split that of their patient, or one from the hash of the patient's id."""
    given = {study["patient_id"]: study["split"] for study in studies if study["split"]}
    present: dict[str, bool | None] = {}
    for study in studies:
        found = study["findings"].present if study["findings"] is not None else None
        before = present.get(study["patient_id"])
        present[study["patient_id"]] = found if before is None else before or bool(found)
    for study in studies:
        patient = study["patient_id"]
        study["split"] = given.get(patient) or split_of(patient, present[patient])


def _image_alone(study: Study) -> Study:
    keys = ("image", "study_id", "patient_id", "split")
    return Study(**{key: study[key] for key in keys})
