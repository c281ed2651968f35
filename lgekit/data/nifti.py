"""Read and check NIfTI volumes, and make studies of them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torchio as tio
from nibabel import orientations as orient
from nibabel.imageglobals import logger
from scipy.ndimage import binary_fill_holes

from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.study import WALL_CODES, Landmarks, Study

SMALLEST_MM, LARGEST_MM = 0.1, (10.0, 10.0, 40.0)  # plausible spacing; slice + gap is last
LARGEST_GREY = 1e12  # what is larger overflows in statistics of float32
MOST_VOXELS, MOST_SLICES, MOST_BYTES = 2**25, 256, 2**30  # of a stack; of a whole file as float64
TO_BASE = np.array([-0.65, -0.65, 0.4]) / np.linalg.norm([-0.65, -0.65, 0.4])  # typical long axis
IMAGE_NAME = r"\.(nii|hdr|mha|mhd|nrrd|nhdr)(\.gz)?$"
SYSTEM_FILES = r"\..*|__MACOSX|(eh)?thumbs\.db|desktop\.ini|@eaDir|\$RECYCLE\.BIN"


class Fault(InputError):
    """Something wrong with one study or, where ``study_id`` is empty, with the cohort.

    ``truth_only``: only labels, report, split or landmarks are wrong, which no prediction reads.
    """

    def __init__(
        self, where: object, problem: str, remedy: str, study_id: str = "", *, truth_only=False
    ) -> None:
        super().__init__(where, problem, remedy)
        self.study_id, self.truth_only = study_id, truth_only

    @classmethod
    def of(cls, error: InputError, study_id: str = "", *, truth_only=False) -> Fault:
        """Assign an error to its study."""
        return cls(error.where, error.problem, error.remedy, study_id, truth_only=truth_only)


class Doubt(Fault):
    """Something odd about a study that can be read: a warning, which ``lgekit check`` lists."""


@dataclass
class Volume:
    """A volume as stored."""

    where: str
    array: np.ndarray  # (A, B, C) in file order
    affine: np.ndarray  # mm, RAS+; 1 mm for a bad spacing
    header_spacing: np.ndarray  # mm, (3,), as in the header
    trusted: bool  # whether the header's directions are meaningful
    doubts: list[tuple[str, str]] = field(default_factory=list)  # problem and remedy of each
    slice_axis: int | None = None  # if the header says which it is

    @property
    def spacing(self) -> np.ndarray:
        """Millimetres along the three stored axes, ``(3,)``."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass(frozen=True)
class Entry:
    """A study that a reader has listed but not yet read."""

    study_id: str
    patient_id: str
    files: tuple[Path, ...]  # that it is read from
    image: Callable[[], Volume]
    labels: Callable[[], Volume] | None = None
    codes: Mapping[int, int] = field(default_factory=dict)  # data set's label → internal code
    scar_labelled: bool = True  # a label map without scar means no scar (not in cine)
    report: str = ""
    report_source: str = ""  # empty: a report is clinical, a missing one is written from the masks
    split: str = ""
    landmarks: Landmarks | None = None
    mirrored: bool | None = None  # storage if the header does not show it; None: unknown
    findings: Findings | None = None


@dataclass(frozen=True)
class Seen:
    """A file that is no study's image or mask: a table, or left out for a reason."""

    file: Path
    left_out: str = ""


Listing = Iterator[Entry | Fault | Seen]


def folder(path: str) -> Path:
    """The folder of a SPEC. Raises InputError if there is none."""
    root = Path(path).expanduser()
    if not path.strip() or not root.is_dir():
        problem = "is a file" if root.is_file() else "there is no such folder"
        remedy = "Give the folder that holds the studies, as in emidec:data/emidec"
        raise InputError(path or "SPEC", problem, remedy)
    return root


def check_size(path: Path, header: nib.Nifti1Header) -> None:
    """Raise InputError before reading a file whose header claims more than a heart can need."""
    shape, offset = header.get_data_shape(), float(header["vox_offset"])
    stored = np.prod(shape, dtype=float) * max(header.get_data_dtype().itemsize, 8) + offset
    if np.prod(shape[:3], dtype=float) > MOST_VOXELS or stored > MOST_BYTES:
        problem = f"claims {' × '.join(map(str, shape))} voxels after {offset:.0f} bytes"
        remedy = f"Cut it to the heart: at most {MOST_VOXELS / 1e6:.0f} million voxels"
        raise InputError(path, problem, remedy)


def files_below(root: Path) -> list[Path]:
    """All files below a folder, sorted. Links to folders are followed, unless to one above."""
    found = []
    for place, folders, names in os.walk(root, followlinks=True):
        real = Path(place).resolve()
        folders[:] = [one for one in folders if not real.is_relative_to((real / one).resolve())]
        found += [Path(place, name) for name in names]
    return sorted(found)


def of_system(file: Path, root: Path) -> bool:
    """Whether a file below ``root`` is hidden or an operating system's own, such as ``._NAME``."""
    return any(re.fullmatch(SYSTEM_FILES, part, re.I) for part in file.relative_to(root).parts)


def load(path: Path) -> tuple[nib.Nifti1Header, Any, np.ndarray]:
    """Header as written, image and array of a file of `IMAGE_NAME`."""
    image: Any
    if path.suffix.lower() in (".mha", ".mhd", ".nrrd", ".nhdr"):
        other = tio.ScalarImage(path)
        array = np.moveaxis(other.numpy(), 0, -1)
        image = nib.Nifti1Image(array, other.affine, dtype=array.dtype)
        return image.header, image, array
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    if zipped != (path.suffix.lower() == ".gz"):
        problem = f"is {'' if zipped else 'not '}compressed, but its name says otherwise"
        raise InputError(path, problem, f"End its name in {'.nii.gz' if zipped else '.nii'}")
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):  # Analyze, or a pair of .hdr and .img
        problem = f"is not one NIfTI file but {type(image).__name__}"
        raise InputError(path, problem, "Convert it to .nii, with its true orientation")
    # nibabel's loader turns a spacing of 0 into 1
    with image.file_map["image"].get_prepare_fileobj("rb") as stream:
        header = image.header_class.from_fileobj(stream, check=False)
    check_size(path, header)
    return header, image, np.asanyarray(image.dataobj)


def read_nifti(path: Path, frame: int | None = None) -> Volume:
    """Read a file of `IMAGE_NAME`, or a ``frame`` (from 0) of it. Raises InputError if unusable."""
    if not path.is_file():
        raise InputError(path, "there is no such file", "Put the file there, or correct the path")
    try:
        logger.disabled = True  # nibabel logs its repairs; here they are faults
        header, image, array = load(path)
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise anything
        problem = f"cannot be read as NIfTI ({(str(error) or repr(error)).splitlines()[0]})"
        remedy = "Copy or export the file again: it is cut short or not a NIfTI file"
        raise InputError(path, problem, remedy) from error
    finally:
        logger.disabled = False
    if frame is not None and array.ndim == 4 and frame < array.shape[3]:
        array = array[..., frame]
    while array.ndim > 3 and array.shape[-1] == 1:  # a single frame
        array = array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "buif" or 0 in array.shape:
        problem = f"has {array.ndim} dimensions {array.shape} of {array.dtype}"
        raise InputError(path, problem, "Give one 3-D stack of grey values per file")
    spacing = header["pixdim"][1:4].astype(float)
    lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
    coded = bool(header["sform_code"] or header["qform_code"])
    volume = Volume(str(path), array, np.eye(4), spacing, trusted=False)
    volume.slice_axis = header.get_dim_info()[2]
    forms = [form for form, code in (image.get_sform(True), image.get_qform(True)) if code]
    if len(forms) == 2 and _turned(*forms):
        problem = "sform and qform of the header point in different directions; neither is used"
        volume.doubts += [(problem, "Export the file again, or delete the wrong one")]
    elif np.isfinite(image.affine).all() and (lengths > 0).all():
        directions = image.affine[:3, :3] / lengths
        if abs(np.linalg.det(directions)) > 0.9:  # orthogonal within a few degrees
            volume.affine[:3, :3], volume.trusted = directions, coded
            volume.affine[:3, 3] = image.affine[:3, 3] if coded else 0
    volume.affine[:3, :3] *= np.where(np.isfinite(spacing) & (spacing > 0), spacing, 1.0)
    if volume.trusted and (spacing > 0).all() and not np.allclose(lengths, spacing, rtol=0.01):
        volume.trusted = False  # one text for all files, so that Python shows it once
        warnings.warn("NIfTI headers: pixdim and affine differ; pixdim is used", stacklevel=2)
    return volume


def _turned(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether an axis of two affines differs by more than about 18°."""
    units = [form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (one, other)]
    return not (units[0] * units[1]).sum(axis=0).min() > 0.95


def axis_order(volume: Volume, labels: np.ndarray | None = None) -> list[int]:
    """The stored axes with the slice axis last, by the first sign that singles one out.

    They are: the header's own word, a length of 1, a spacing 1.5 times the others', an axis near
    the typical long axis, closed rings of myocardium in ``labels`` (internal codes), and a third
    axis next to square pixels. Raises InputError if none does.
    """
    for sign in _slice_signs(volume, labels):
        if sign.sum() == 1:
            return [*np.flatnonzero(~sign), *np.flatnonzero(sign)]
    spacing = volume.spacing.round(2).tolist()
    problem = f"which axis runs through the slices is unclear (spacing {spacing} mm)"
    remedy = "Write it into the header, for the third axis header.set_dim_info(slice=2) in nibabel"
    raise InputError(volume.where, problem, remedy)


def _slice_signs(volume: Volume, labels: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield for each sign of `axis_order` which of the three axes it supports."""
    axes, spacing = np.arange(3), volume.spacing
    yield axes == volume.slice_axis
    yield np.array(volume.array.shape) == 1
    yield spacing >= 1.5 * np.sort(spacing)[1]
    if volume.trusted:
        yield np.abs(TO_BASE @ (volume.affine[:3, :3] / spacing)) > np.cos(np.pi / 4)
    if labels is not None:
        yield np.array([_closed_rings(labels, axis) for axis in range(3)]) > 0.5
    same = np.isclose(spacing[:2], spacing[1:], rtol=0.01)
    yield (axes == 2) & bool(same[0] and not same[1])


def _closed_rings(labels: np.ndarray, axis: int) -> float:
    """Share of the planes with myocardium, across an axis, in which it encloses a cavity."""
    planes = [plane for plane in np.moveaxis(np.isin(labels, WALL_CODES), axis, 0) if plane.any()]
    return float(np.mean([(binary_fill_holes(plane) > plane).any() for plane in planes] or [0]))


def storage_mirrored(affine: np.ndarray) -> bool | None:
    """Whether a short-axis stack with this affine (RAS+) is stored mirrored.

    The standard display looks from the apex to the base, which is to the patient's right, behind
    and above. An affine more than 45° away from that, such as an axial one, gives None.
    """
    into_screen = np.cross(affine[:3, 0], affine[:3, 1])
    cosine = into_screen @ TO_BASE / np.linalg.norm(into_screen)
    return None if abs(cosine) < np.cos(np.pi / 4) else bool(cosine < 0)


def check_image(volume: Volume) -> None:
    """Raise InputError if an image has an implausible spacing, no contrast or no finite values."""
    spacing = np.sort(volume.header_spacing)
    if not ((spacing >= SMALLEST_MM) & (spacing <= LARGEST_MM)).all():  # nor if one is NaN
        problem = f"spacing {np.round(volume.header_spacing, 4).tolist()} mm is absurd"
        remedy = "Write the true spacing into pixdim: 0.1–10 mm in plane, 0.1–40 mm between slices"
        raise InputError(volume.where, problem, remedy)
    low, high = float(volume.array.min()), float(volume.array.max())  # NaN if any voxel is
    if not (-LARGEST_GREY <= low and high <= LARGEST_GREY):
        problem = f"has voxels that are NaN, infinite or beyond ±{LARGEST_GREY:.0e}"
        raise InputError(volume.where, problem, "Replace them, or export the file again")
    if np.float32(low) == np.float32(high):  # as it will be stored
        problem = f"every voxel is {volume.array.flat[0]}"
        raise InputError(volume.where, problem, "Export the image again: it is empty")


def recode(mask: Volume, codes: Mapping[int, int], image: Volume) -> np.ndarray:
    """Label map of an image in the internal codes, uint8, in file order.

    A mask stored with other axes on the same grid is turned. Raises InputError if it does not fit
    the image, is empty, or has an unknown code.
    """
    array, problem, remedy = mask.array, "", "Resample the mask onto the image's grid"
    if mask.trusted and image.trusted:
        turn = orient.ornt_transform(*(orient.io_orientation(one.affine) for one in (mask, image)))
        turned = orient.apply_orientation(array, turn)
        affine = mask.affine @ orient.inv_ornt_aff(turn, array.shape)
        if turned.shape == image.array.shape and _voxels_off(affine, image) <= 1:
            array = turned
        elif array.shape == image.array.shape and _voxels_off(mask.affine, image) > 1:
            away = np.linalg.norm((mask.affine - image.affine) @ [*np.divide(array.shape, 2), 1])
            problem = f"mask orientation or place differs from its image's, by {away:.0f} mm"
            remedy = "Copy the image's affine to it if it was drawn on this image; else resample it"
    if array.dtype.kind == "f":  # codes that were scaled, such as 0.99994
        array = np.where(np.abs(array - np.rint(array)) < 0.01, np.rint(array), array)
    found = np.unique(array).tolist()
    unknown = [code for code in found if code not in codes]
    if array.shape != image.array.shape:
        problem = f"mask of shape {array.shape} on an image of shape {image.array.shape}"
    elif unknown:
        problem = f"unknown label code {unknown[0]}"
        remedy = f"Codes of this data set: {', '.join(map(str, codes))}. Recode the mask"
    elif found == [0]:
        problem = "the mask is empty"
        remedy = "Draw the mask, or remove the file to read the study without labels"
    if problem:
        raise InputError(mask.where, problem, remedy)
    internal = np.zeros(array.shape, np.uint8)
    for code in found:
        internal[array == code] = codes[code]
    return internal


def _voxels_off(affine: np.ndarray, image: Volume) -> float:
    """Largest distance in voxels, along an axis, of a corner of the image under another affine."""
    corners = np.array([*np.ndindex(2, 2, 2)]).T * (np.array(image.array.shape)[:, None] - 1)
    corners = np.vstack([corners, np.ones(8)])
    return float(np.abs(np.linalg.solve(image.affine, affine) @ corners - corners).max())


def read_study(entry: Entry, images_only: bool = False) -> Iterator[Study | Fault]:
    """Read a study as stored: yield its first fault, or its doubts and the study."""
    labels = None
    try:
        image = entry.image()
        check_image(image)
        if entry.labels is not None and not images_only:
            try:
                labels = recode(entry.labels(), entry.codes, image)
            except InputError as error:
                raise Fault.of(error, entry.study_id, truth_only=True) from error
        order = axis_order(image, labels)
        if (slices := image.array.shape[order[2]]) > MOST_SLICES:
            remedy = f"Keep the heart's: at most {MOST_SLICES}"
            raise InputError(image.where, f"has {slices} slices", remedy)
    except InputError as error:
        yield error if isinstance(error, Fault) else Fault.of(error, entry.study_id)
        return
    for problem, remedy in image.doubts:
        yield Doubt(image.where, problem, remedy, entry.study_id)
    names = ["study_id", "patient_id", "split"]
    names += [] if images_only else ["report", "landmarks", "findings"]
    fields = {name: getattr(entry, name) for name in names}
    if not images_only:
        fields["report_source"] = entry.report_source or ("clinical" if entry.report else "none")

    def stored(array: np.ndarray, kind: type[tio.Image], dtype: type) -> tio.Image:
        tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(order), dtype=dtype))
        return kind(tensor=tensor[None], affine=image.affine[:, [*order, 3]])

    fields["image"] = stored(image.array, tio.ScalarImage, np.float32)
    if labels is not None:
        fields["labels"] = stored(labels, tio.LabelMap, np.uint8)
    yield Study(**fields)
