"""Read a cohort from its SPEC."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchio as tio

from lgekit.data import public as layouts
from lgekit.data.manifest import manifest
from lgekit.data.nifti import (
    Entry,
    Fault,
    GridWarning,
    SliceGapWarning,
    Volume,
    check_image,
    recode,
    slice_axis,
    storage_mirrored,
    to_study_axes,
)
from lgekit.data.public import Listing
from lgekit.errors import InputError
from lgekit.study import NO_REFLOW, RV, SCAR, SPLITS, Cohort, Study, hash_unit, split_of

KINDS = ("phantom", "emidec", "acdc", "myops", "mnms", "bids", "dicom", "manifest")


def parse_spec(spec: str) -> tuple[str, str]:
    """Split ``kind:rest``.

    Raises:
        InputError: no such kind.
    """
    kind, colon, rest = str(spec).partition(":")
    if not colon or kind not in KINDS:
        kinds = ", ".join(f"{name}:…" for name in KINDS)
        meant = f"manifest:{spec}, or else one" if str(spec).lower().endswith(".csv") else "one"
        raise InputError("SPEC", f"{spec!r} names no kind of cohort", f"Write {meant} of {kinds}")
    return kind, rest


def split_specs(text: str) -> list[str]:
    """SPECs separated by spaces; their paths may hold spaces: a SPEC ends where another kind begins."""
    return [part for part in re.split(rf"\s+(?=(?:{'|'.join(KINDS)}):)", text.strip()) if part]


REMEDY = (
    "Remove one of the two, or give both the same patient_id (reading counts them as one patient)"
)


class SeenImages:
    """The images met so far, by digest: study and patient."""

    def __init__(self) -> None:
        self.owners: dict[str, tuple[str, str]] = {}

    @staticmethod
    def digest(study: Study) -> str:
        """32 hex digits of an image's values and shape."""
        pixels = study.pixels
        return hashlib.blake2b(
            repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16
        ).hexdigest()

    def elsewhere(self, study: Study) -> tuple[str, str] | None:
        """Study and patient that brought this image, value by value, before; None if nobody or the same patient."""
        owner = self.owners.setdefault(self.digest(study), (study["study_id"], study["patient_id"]))
        return owner if owner[1] != study["patient_id"] else None

    def faults(self, study: Study) -> list[Fault]:
        """The fault of a study whose image another patient has too."""
        owner = self.elsewhere(study)
        if owner is None:
            return []
        problem = f"the same image as {owner[0]} of patient {owner[1]}"
        return [Fault(study["study_id"], study["study_id"], problem, REMEDY, truth_only=True)]


def join_copies(studies: list[Study]) -> list[UserWarning]:
    """Give patients with the same image one ``patient_id``, that of the first; a warning for each such image."""
    seen, notes = SeenImages(), []
    for study in studies:
        owner = seen.elsewhere(study)
        if owner is None:
            continue
        notes.append(
            UserWarning(
                f"{study['study_id']}: the same image as {owner[0]}; counted as patient {owner[1]}"
            )
        )
        ours = study["patient_id"]
        for one in studies:
            if one["patient_id"] == ours:
                one["patient_id"] = owner[1]
        names = seen.owners.items()
        seen.owners = {
            key: (name, owner[1] if patient == ours else patient) for key, (name, patient) in names
        }
    return notes


def refuse_shared(cohort: Cohort, further: Sequence[Cohort]) -> None:
    """Refuse cohorts for pretraining that hold an image of the cohort itself: its test masks would be learned.

    Raises:
        InputError: naming the first such study.
    """
    own = {SeenImages.digest(study): study["study_id"] for study in cohort.studies}
    for other in further:
        for study in other.studies:
            if (name := own.get(SeenImages.digest(study))) is not None:
                problem = f"its study {study['study_id']} has the image of {name} in {cohort.name}"
                raise InputError(other.name, problem, "Leave this cohort out of pretrain_on.")


def mask_of(entry: Entry) -> np.ndarray | None:
    """The label map of an entry in file order; None where there is none that could be used."""
    return recode(entry.labels(), entry.codes, Volume("")) if entry.labels is not None else None


def scar_is_drawn(entries: list[Entry], masks: Iterable[np.ndarray | None]) -> bool:
    """Whether a mask without scar means a heart without: not where some report speaks of scar and no mask has any, for
    then only the heart was outlined.

    Args:
        entries: of the whole cohort.
        masks: in the internal codes, None where there is none; looked at only as far as needed.
    """
    from lgekit.reports.reader import read_report, states_enhancement

    told = [entry.report for entry in entries if entry.report and entry.report_source != "masks"]
    outlined = any(entry.labels is not None and entry.scar_labelled for entry in entries)
    if not (
        outlined
        and any(states_enhancement(report) and read_report(report).present for report in told)
    ):
        return True
    return any(bool(np.isin(mask, (SCAR, NO_REFLOW)).any()) for mask in masks if mask is not None)


def complete(study: Study, entry: Entry, drawn: bool) -> None:
    """Derive what the files do not say: landmarks from an RV label, findings, and a report from the masks.

    Args:
        study: as read; changed in place.
        entry: that it was read from.
        drawn: whether the cohort's masks tell scar (`scar_is_drawn`); else the reports do.
    """
    labels = study.label_map
    if labels is not None and study["landmarks"] is None and (labels == RV).any():
        mirrored = storage_mirrored(study["image"].affine)
        mirrored = entry.mirrored if mirrored is None else mirrored
        if (
            mirrored is not None
        ):  # else nothing tells the anterior insertion point from the inferior one
            from lgekit.anatomy.segments import insertion_points

            landmarks = insertion_points(labels, study.spacing_mm, mirrored=mirrored)
            study["landmarks"] = landmarks if landmarks.confidence > 0 else None
    masks_tell = labels is not None and entry.scar_labelled and drawn
    if masks_tell and study["findings"] is None and entry.report_source != "none":
        from lgekit.anatomy.segments import findings_from_labels

        study["findings"] = findings_from_labels(study)
    elif (labels is None or not drawn) and study["findings"] is None and entry.report:
        from lgekit.reports.reader import read_report, states_enhancement

        if states_enhancement(entry.report):  # else it stays unknown
            study["findings"] = read_report(entry.report)
    wanted = entry.report_source == "masks" or not entry.report_source
    if wanted and not entry.report and study["findings"] is not None:
        from lgekit.reports.writer import write_report

        rng = np.random.default_rng(int(hash_unit(study["study_id"]) * 2**53))
        study["report"], study["report_source"] = write_report(study["findings"], rng), "masks"


def _dicom(path: str) -> Listing:
    from lgekit.data.dicom import dicom

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
    from lgekit.data.phantom import phantom_cohort

    known = {
        name: p
        for name, p in inspect.signature(phantom_cohort).parameters.items()
        if p.kind != p.VAR_KEYWORD
    }
    options: dict[str, object] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        name, equals, text = part.partition("=")
        if name not in known or not equals or name in options:
            problem = f"{part!r} is not an option of the phantom, or is given twice"
            raise InputError(
                f"phantom:{rest}",
                problem,
                f"Options: {', '.join(known)}; write name=value, by commas",
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        default = known[name].default
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if (
            default is not None
            and default is not inspect.Parameter.empty
            and type(value) is not type(default)
        ):
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
        raise InputError(
            spec, "no study found there", f"Expected in that folder: {EXPECTED.get(kind, 'rows')}"
        )


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
        from lgekit.data.phantom import phantom_cohort

        cohort = phantom_cohort(**phantom_options(rest))  # type: ignore[arg-type]
        return (
            Cohort([_image_alone(study) for study in cohort.studies], spec)
            if images_only
            else cohort
        )
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
            faults += [
                Fault(item.study_id, gap.where or item.study_id, str(gap), remedy) for gap in gaps
            ]
            faults += seen.faults(study) if study is not None else []
    except InputError as error:
        faults.append(Fault.of("", error))
    return faults + _cohort_faults(entries)


def _cohort_faults(entries: list[Entry]) -> list[Fault]:
    """Faults that only show between studies, or in what the table says of them."""
    faults = []
    for name, count in Counter(entry.study_id for entry in entries).items():
        if count > 1:
            faults.append(
                Fault(
                    name, name, f"{count} studies have this id", "Give every study its own study_id"
                )
            )
    splits: dict[str, set[str]] = {}
    for entry in entries:
        if entry.split and entry.split not in SPLITS:
            remedy = f"Use {', '.join(SPLITS)}, or leave it empty"
            problem = f"unknown split {entry.split!r}"
            faults.append(
                Fault(entry.study_id, f"{entry.study_id}, split", problem, remedy, truth_only=True)
            )
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


def _read(
    entry: Entry, images_only: bool = False
) -> tuple[Study | None, list[InputError], list[UserWarning]]:
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
    fields = {
        "study_id": entry.study_id,
        "patient_id": entry.patient_id,
        "split": entry.split,
        **image.fields,
    }
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


def _path(spec: str, root: Path) -> Path | None:
    """The file or folder that a SPEC names, None where it names none (as ``phantom:…``)."""
    kind, _, rest = spec.partition(":")
    return None if kind == "phantom" or not rest else root / Path(rest).expanduser()


def missing_path(spec: str, root: Path) -> Path | None:
    """The path of a SPEC if it is not there."""
    path = _path(spec, root)
    return path if path is not None and not path.exists() else None


def pretraining_specs(spec: str, asked: str = "auto", root: Path = Path()) -> list[str]:
    """Further cohorts with masks for the heart network of a cohort.

    Args:
        spec: of the cohort.
        asked: SPECs separated by spaces (paths may hold spaces too); ``none``; or ``auto``: the public cine set ACDC,
            where a folder ``acdc`` lies beside the cohort's own folder.
        root: the folder that paths in SPECs start from.
    """
    if asked != "auto":
        return [] if asked == "none" else split_specs(asked)
    kind, _, path = spec.partition(":")
    beside = Path(path).parent / "acdc"
    there = path and kind not in ("phantom", "acdc") and (root / beside.expanduser()).is_dir()
    return [f"acdc:{beside}"] if there else []
