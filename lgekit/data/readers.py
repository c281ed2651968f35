"""Read a cohort from its SPEC ``kind:path``: layouts of public data sets, and shared steps."""

import contextlib
import re
import tomllib
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import joblib
import numpy as np
import torch
import torchio as tio

from lgekit.anatomy.segments import findings_from_labels, insertion_points
from lgekit.data import nifti
from lgekit.data.dicom import list_series
from lgekit.data.manifest import INTERNAL_CODES, manifest, optional_rows, study_of_row
from lgekit.data.nifti import Doubt, Entry, Fault, Listing, Seen, Volume, files_below, folder
from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.reports.writer import write_report
from lgekit.study import LABEL_NAMES, RV, SCARRED, SPLITS, Cohort, Study, hash_unit, split_of

TABLE_COLUMNS = "anterior_rvip_deg inferior_rvip_deg report report_source split".split()
LAYOUTS = tomllib.loads(Path(__file__).with_name("layouts.toml").read_text(encoding="utf-8"))


def scan(kind: str, path: str) -> Listing:
    """List the studies of a folder of NIfTI files, in a layout of ``layouts.toml``."""
    root, layout = folder(path), LAYOUTS[kind]
    codes, faults = _label_codes(root, layout["codes"])
    table, *columns = layout.get("table", [""])
    about, more = _table_rows(root / table, columns)
    yield from faults + more
    masks: dict[str, list[Path]] = defaultdict(list)
    images: list[tuple[dict[str, str], Path]] = []
    sessions: dict[str | None, set[str | None]] = defaultdict(set)
    for file in files_below(root):
        name = file.relative_to(root)
        text = normalize("NFC", name.as_posix())
        if nifti.of_system(file, root):
            yield Seen(file, "system files")
        elif found := re.search(layout["mask"] + nifti.IMAGE_NAME, text, re.I):
            masks[found["key"]].append(name)
        elif found := re.search(layout["image"] + nifti.IMAGE_NAME, text, re.I):
            images.append((found.groupdict(""), name))
            sessions[found.groupdict().get("patient")].add(found.groupdict().get("session"))
        elif file.name == "dseg.tsv" or file == root / table:
            yield Seen(file)
        else:
            yield Seen(file, "no images of this layout")
    facts = {key: layout[key] for key in ("scar_labelled", "mirrored") if key in layout}
    sharing = Counter(names["key"] for names, _ in images)
    for names, file in images:
        study = names.get("study", names["key"])
        patient = names.get("patient", study)
        own = masks.pop(names["key"], [])
        if own and sharing[names["key"]] > 1:
            where, problem = root / own[0], f"could be of {sharing[names['key']]} images"
            yield Fault(where, problem, "Name it like its image", study, truth_only=True)
        for other in own[1:]:
            remedy, where = "Keep one mask file for each image", root / other
            yield Fault(where, "a second mask for the same image", remedy, study, truth_only=True)
        known = dict(about.get(patient, {}))
        if known.get("report") and len(sessions[patient]) > 1:
            problem = f"one report for the {len(sessions[patient])} sessions of {patient}"
            remedy = "Give each session a row of its own, with its session_id"
            yield Fault(root / table, problem, remedy, study, truth_only=True)
        known |= about.get(f"{patient}_{names.get('session')}", {}) | about.get(study, {})
        row = {key: known[key] for key in TABLE_COLUMNS if key in known}
        row |= {"rvip_confidence": known.get("confidence", ""), "study_id": study}
        row |= {"patient_id": layout.get("same_patient", {}).get(patient, patient)}
        row |= {"image": str(file), "labels": str(own[0]) if own else ""}
        for item in study_of_row(row, root, f"{root / table}, {study}", codes=codes, **facts):
            if isinstance(item, Entry) and study.lower().endswith(layout.get("four_d", "/")):
                yield from _frames(item)
            else:
                yield item
    for key, (file, *_) in sorted(masks.items()):
        if layout.get("other_masks"):
            yield from (Seen(root / file, "masks of other images") for file in masks[key])
        else:
            remedy = "Copy the image of this study into the folder again, or remove the mask"
            yield Fault(root / file, "a mask without its image", remedy, key)


def _table_rows(table: Path, columns: list[str]) -> tuple[dict[str, dict[str, str]], list[Fault]]:
    """Rows of a layout's table by the id in its first column (of BIDS: and session), and faults."""
    about: dict[str, dict[str, str]] = {}
    rows, faults = optional_rows(table, columns)
    for row in rows:
        key = "_".join(filter(None, (row[columns[0]], row.get("session_id"))))
        if key in about:
            remedy = "Keep one of them; for sessions, give a column session_id"
            faults.append(Fault(table, f"two rows are of {key}", remedy, truth_only=True))
        about[key] = row
    return about, faults


def _label_codes(root: Path, names: dict[str, str]) -> tuple[dict[int, int], list[Fault]]:
    """Return the internal code of each label: from ``dseg.tsv`` of BIDS, or else from ``names``."""
    faults: list[Fault] = []
    for table in sorted(root.glob("derivatives/*/dseg.tsv")):
        rows, more = optional_rows(table, ("index", "name"))
        names, faults = {"0": "background"}, faults + more
        for row in rows:
            if row["name"] in LABEL_NAMES and row["index"].isdigit():
                names[row["index"]] = row["name"]
            else:
                problem = f"unknown label {row['index']} {row['name']!r}"
                remedy = f"Use these names: {', '.join(LABEL_NAMES)}"
                faults.append(Fault(table, problem, remedy, truth_only=True))
    return {int(index): LABEL_NAMES.index(name) for index, name in names.items()}, faults


def _frames(entry: Entry) -> Listing:
    """List the end-diastolic and end-systolic frame of a 4-D file: those with labels, in order."""
    frames: list[int] = []
    with contextlib.suppress(Exception):  # no label file, or a damaged one
        frames = np.flatnonzero(nifti.load(entry.files[1])[2].any(axis=(0, 1, 2))).tolist()
    if not frames:
        problem = "which frames are end-diastole and end-systole is not known"
        remedy = "Put its label file (_gt) next to it, or remove the patient's folder"
        yield Fault(entry.files[0], problem, remedy, entry.study_id)
    for phase, frame in zip(("_ED", "_ES"), frames, strict=False):
        image, labels = (partial(nifti.read_nifti, file, frame) for file in entry.files)
        yield replace(entry, study_id=entry.study_id + phase, image=image, labels=labels)


def _phantom(options: str) -> Listing:
    """List the studies of a phantom cohort, such as ``studies=200,seed=1``."""
    parts = [part.strip() for part in options.split(",") if part.strip()]
    named: dict[str, Any] = dict(part.partition("=")[::2] for part in parts)
    if len(named) < len(parts) or not all(named.values()):
        problem = "its options are not NAME=VALUE, or one is given twice"
        raise InputError(f"phantom:{options}", problem, "Write e.g. phantom:studies=200,seed=1")
    for study in phantom_cohort(**named).studies:
        grid = (study["image"].affine, np.array(study.spacing_mm))
        image, labels = (
            partial(Volume, study["study_id"], array, *grid, trusted=True, slice_axis=2)
            for array in (study["image"].data[0].numpy(), study["labels"].data[0].numpy())
        )
        names = "study_id patient_id report report_source split landmarks findings".split()
        fields = {name: study[name] for name in names}
        yield Entry(files=(), image=image, labels=labels, codes=INTERNAL_CODES, **fields)


READERS: dict[str, Callable[[str], Listing]] = {"phantom": _phantom}
READERS |= {kind: partial(scan, kind) for kind in LAYOUTS}
READERS |= {"dicom": list_series, "manifest": manifest}


def parse_spec(spec: str) -> tuple[str, str]:
    """Split ``kind:rest``. Raises InputError for an unknown kind."""
    kind, colon, rest = str(spec).partition(":")
    if not colon or kind not in READERS:
        kinds = ", ".join(f"{name}:…" for name in READERS)
        table = f"manifest:{spec}, or " if str(spec).lower().endswith(".csv") else ""
        remedy = f"Write {table}one of {kinds}"
        raise InputError("SPEC", f"{spec!r} names no kind of cohort", remedy)
    return kind, rest


def path_of(spec: str, root: Path) -> Path | None:
    """The file or folder that a SPEC names; None if it names none (such as ``phantom:…``)."""
    kind, _, rest = spec.partition(":")
    return None if kind == "phantom" or not rest else root / Path(rest).expanduser()


def list_studies(spec: str) -> tuple[list[Entry], list[Fault]]:
    """List the studies of a SPEC before they are read, and the faults of layout, ids and splits."""
    kind, rest = parse_spec(spec)
    try:
        items = list(READERS[kind](rest))
        if all(isinstance(item, Seen) for item in items):
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
    for patient, count in Counter(entry.patient_id for entry in entries).most_common(1):
        if count > 2 and count > len(entries) / 2:
            problem = f"{count} of {len(entries)} studies are of this patient: all in one split"
            remedy = "If they are of several, give each a patient id (ANONYMOUS is none)"
            faults.append(Doubt(f"patient {patient}", problem, remedy))
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


def _load(
    spec: str, images_only: bool = False, skipped: Container[str] = ()
) -> Iterator[Fault | tuple[Entry, Study]]:
    """Yield all faults of a cohort that opening no image shows, then each study or its faults."""
    entries, faults = list_studies(spec)
    yield from faults
    for entry in (entry for entry in entries if entry.study_id not in skipped):
        for item in nifti.read_study(entry, images_only):
            yield item if isinstance(item, Fault) else (entry, item)


def stream_images(
    spec: str, skipped: Iterable[str] = (), faults: dict[str, InputError] | None = None
) -> Iterator[Study]:
    """Read the images of a cohort one at a time, as for a prediction.

    Studies in ``skipped`` are left out. So are those with a fault, which ``faults`` collects; if it
    is None, or a fault is of no single study, it is raised.
    """
    left_out = set(skipped)
    for item in _load(spec, True, left_out):
        if not isinstance(item, Fault):
            yield item[1]
        elif isinstance(item, Doubt):
            warnings.warn(f"{item.study_id or item.where}: {item.problem}", stacklevel=2)
        elif not item.truth_only:
            if faults is None or not item.study_id:
                raise item
            faults[item.study_id] = item
            left_out.add(item.study_id)


def slim(study: Study) -> Study:
    """Drop the pixels, for tables: keep a voxel of each label, and the image's hash (``same``)."""
    fields = {**study, "same": joblib.hash(study.pixels)}
    fields["image"] = tio.ScalarImage(tensor=torch.zeros(1, 1, 1, 1))
    if study.label_map is not None:
        codes = torch.from_numpy(np.unique(study.label_map))
        fields["labels"] = tio.LabelMap(tensor=codes[None, :, None, None])
    return Study(**fields)


def read_cohort(spec: str, images_only: bool = False, pixels: bool = True) -> Cohort:
    """Read a cohort from its SPEC ``kind:path`` (`READERS`). Raises InputError at the first fault.

    With ``images_only``, as for a prediction, labels, reports, landmarks and findings are not read.
    Without ``pixels`` each study is read and made `slim`: a large cohort needs no more memory.
    """
    loaded: list[tuple[Entry, Study]] = []
    for item in _load(spec, images_only):
        if not isinstance(item, Fault):
            entry, study = item
            if not images_only:
                _measure(entry, study)
            loaded.append((entry, study if pixels else slim(study)))
        elif isinstance(item, Doubt):  # without its folder, whose name may be a person's
            warnings.warn(f"{item.study_id or item.where}: {item.problem}", stacklevel=2)
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
    """Read a whole cohort and list its faults. Raises InputError if the SPEC itself is wrong."""
    items = [item if isinstance(item, Fault) else slim(item[1]) for item in _load(spec)]
    faults = [item for item in items if isinstance(item, Fault)]
    for study, owner in copies([item for item in items if isinstance(item, Study)]):
        name, patient = study["study_id"], owner["patient_id"]
        problem = f"the same image as {owner['study_id']} of patient {patient}"
        remedy = "Remove one of the two, or give both the same patient_id, as reading does"
        faults.append(Fault(name, problem, remedy, name, truth_only=True))
    return faults


def count_files(spec: str) -> str:
    """Say how many files of a SPEC's folder are read and how many are left out, and why."""
    kind, rest = parse_spec(spec)
    if kind in ("phantom", "manifest") or not Path(rest).expanduser().is_dir():
        return ""
    files = dict.fromkeys(files_below(folder(rest)), "fault")
    for item in READERS[kind](rest):
        if isinstance(item, Entry):
            files |= dict.fromkeys(item.files, "read")
        elif isinstance(item, Seen):
            files[item.file] = item.left_out or "read"
    counts = Counter(files.values())
    read, faulty = counts.pop("read", 0), counts.pop("fault", 0)
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    left = f"{counts.total()} left out" + f" ({why})" * bool(why)
    return f"{len(files)} files seen = {read} read + {left} + {faulty} with a fault"


def _scar_is_drawn(loaded: list[tuple[Entry, Study]]) -> bool:
    """Whether a mask without scar means no scar: not if only reports of the cohort have any."""
    drawn = [one for entry, one in loaded if entry.labels is not None and entry.scar_labelled]
    if not drawn or any(np.isin(np.asarray(one.label_map), SCARRED).any() for one in drawn):
        return True
    reports = (one.report for one, _ in loaded if one.report and one.report_source != "masks")
    return not any(states_enhancement(text) and read_report(text).present for text in reports)


def _measure(entry: Entry, study: Study) -> None:
    """Derive, in place, landmarks from an RV label, and the findings that the mask shows."""
    labels = study.label_map
    if labels is not None and study["landmarks"] is None and (labels == RV).any():
        mirrored = nifti.storage_mirrored(study["image"].affine)
        mirrored = entry.mirrored if mirrored is None else mirrored
        if mirrored is not None:  # else anterior and inferior cannot be told apart
            landmarks = insertion_points(labels, study.spacing_mm, mirrored=mirrored)
            study["landmarks"] = landmarks if landmarks.confidence > 0 else None
    shown = labels is not None and entry.scar_labelled and entry.report_source != "none"
    if shown and study["findings"] is None:
        study["findings"] = findings_from_labels(study)


def _complete(entry: Entry, study: Study, drawn: bool) -> None:
    """Derive, in place, a report from the masks, or findings from it if scar is not ``drawn``."""
    if entry.findings is None and not (drawn and study.label_map is not None):
        said = bool(entry.report) and states_enhancement(entry.report)
        study["findings"] = read_report(entry.report) if said else None  # silence: unknown
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


def copies(studies: list[Study]) -> list[tuple[Study, Study]]:
    """Return pairs of studies of different patients with the same image, the later first."""
    owners: dict[str, Study] = {}
    images = [str(study.get("same") or joblib.hash(study.pixels)) for study in studies]
    first = [owners.setdefault(image, one) for image, one in zip(images, studies, strict=True)]
    pairs = zip(studies, first, strict=True)
    return [(one, other) for one, other in pairs if one["patient_id"] != other["patient_id"]]
