"""Read and write volumes."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from scipy import ndimage

from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.study import Landmarks

SYNONYMS = {
    **dict.fromkeys(("mask", "masks", "segmentation", "segmentations", "label"), "labels"),
    **dict.fromkeys(("patient", "subjectid"), "patient_id"),
}


def misspelt_columns(table: Path, columns: Iterable[str], known: Sequence[str]) -> list[Fault]:
    """One fault a column that was meant as one of ours; truly foreign columns are the user's own.

    Args:
        table: the file, for the message.
        columns: its header.
        known: the names that are read.
    """
    columns = list(columns)
    plain = {_plain(name): name for name in known} | {
        word: name for word, name in SYNONYMS.items() if name in known
    }
    faults = []
    for column in (name for name in columns if name not in known):
        meant = plain.get(_plain(column))
        close = [meant] if meant else difflib.get_close_matches(column.lower(), known, 1, 0.8)
        if close and close[0] not in columns:  # else ours is there beside it
            remedy = f"Did you mean {close[0]!r}? Rename the column, or give it another name"
            faults.append(
                Fault("", str(table), f"unknown column {column!r}", remedy, truth_only=True)
            )
    return faults


def _plain(name: str) -> str:
    """A name without what differs between spellings."""
    return name.lower().translate(str.maketrans("", "", "_- "))


IN_PLANE_MM = (0.1, 10.0)  # limits of sense for a pixel, and for slice thickness + gap
SLICE_MM = (0.1, 40.0)
READ_FAULTS = (
    *(OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError),
    *(ImageFileError, HeaderDataError, WrapStructError),
)
_UNIT_MM = {
    0: 1.0,
    1: 1000.0,
    2: 1.0,
    3: 0.001,
}  # NIfTI-1 spatial units: unknown (taken as mm), m, mm, µm


class GridWarning(UserWarning):
    """The header of a file contradicts itself; the reader says which part it believed."""


class SliceGapWarning(UserWarning):
    """The slices of a series do not lie at equal distances: one may be missing. ``lgekit check`` lists it.

    Attributes:
        where: the series with its folder, which the message leaves out.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where


@dataclass(frozen=True)
class Fault:
    """Something wrong with one study (or, with an empty ``study_id``, with the cohort).

    ``truth_only`` says that the image is sound and only labels, report, split or landmarks are not: a prediction, which
    sees none of these, can go on.
    """

    study_id: str
    where: str
    problem: str
    remedy: str
    truth_only: bool = False

    @classmethod
    def of(cls, study_id: str, error: InputError, truth_only: bool = False) -> Fault:
        """The same fault as an :class:`InputError`, filed under its study."""
        return cls(study_id, error.where, error.problem, error.remedy, truth_only)

    def error(self) -> InputError:
        """The error to raise for it."""
        return InputError(self.where, self.problem, self.remedy)


@dataclass
class Volume:
    """A volume as stored.

    Attributes:
        array: ``(A, B, C)`` in file order, or None where it could not be read.
        affine: ``(4, 4)``, mm, RAS+; column lengths are the spacing, or 1 where that is no length.
        header_spacing: millimetres along the three stored axes as the header has them, sensible or not.
        trusted: whether the header's directions mean something.
        faults: everything wrong with it; empty when it can be used.
        notes: what was odd and could be settled; the caller decides how often to warn.
        fields: further facts for the study.
    """

    where: str
    array: np.ndarray | None = None
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    header_spacing: np.ndarray = field(default_factory=lambda: np.ones(3))
    trusted: bool = False
    faults: list[InputError] = field(default_factory=list)
    notes: list[UserWarning] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def spacing(self) -> np.ndarray:
        """Millimetres along the three stored axes, ``(3,)``."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def fault(self, problem: str, remedy: str) -> Volume:
        """Note a fault of this volume."""
        self.faults.append(InputError(self.where, problem, remedy))
        return self


@dataclass(frozen=True)
class Entry:
    """A study that a reader has listed and not yet read.

    Attributes:
        image: called without arguments, reads the image.
        labels: the same for the label map; None where there is none.
        codes: data set's label code → internal code.
        scar_labelled: whether a label map without scar means a study without scar (false for cine sets).
        report: the report; empty where there is none.
        mirrored: how the data set stores its stacks where the header does not tell; None: not known.
        report_source: ``clinical``, ``masks``, ``phantom`` or ``none``; empty leaves it to the reader: a report is
            clinical, and where there is none it is written from the masks.
    """

    study_id: str
    patient_id: str
    image: Callable[[], Volume]
    labels: Callable[[], Volume] | None = None
    codes: Mapping[int, int] = field(default_factory=dict)
    scar_labelled: bool = True
    report: str = ""
    report_source: str = ""
    split: str = ""
    landmarks: Landmarks | None = None
    mirrored: bool | None = None
    findings: Findings | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_nifti(path: Path, frame: int | None = None) -> Volume:
    """Read a NIfTI file and list its faults; it never raises for what is in the file.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        frame: for a cine file ``(A, B, C, frames)``, which frame (from 0); None asks for a 3-D file.
    """
    volume = Volume(str(path))
    if not path.is_file():
        return volume.fault("there is no such file", "Put the file there, or correct the path")
    try:
        with ImageOpener(
            str(path)
        ) as stream:  # unchecked: nibabel's loader silently turns a spacing of 0 into 1
            header = nib.Nifti1Header.from_fileobj(stream, check=False)
        logger.disabled = True  # nibabel logs its repairs; here they are faults
        image = nib.Nifti1Image.from_filename(path)
        array = np.asanyarray(image.dataobj)
    except READ_FAULTS as error:
        return volume.fault(
            f"cannot be read as NIfTI ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            "Copy or export the file again: it is cut short or not a NIfTI file",
        )
    finally:
        logger.disabled = False
    if frame is not None and array.ndim == 4:
        if frame >= array.shape[3]:
            return volume.fault(
                f"has {array.shape[3]} frames, no frame {frame}", "Correct the frame (from 0)"
            )
        array = array[..., frame]
    if array.ndim != 3:
        return volume.fault(
            f"has {array.ndim} dimensions {array.shape}", "Give one 3-D stack of slices a file"
        )
    if array.dtype.kind not in "buif" or 0 in array.shape:
        return volume.fault(
            f"holds {array.dtype} of shape {array.shape}", "Give a stack of real grey values"
        )
    volume.array = array
    spacing = header["pixdim"][1:4].astype(float) * _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    volume.affine, volume.trusted = _grid(
        image.affine, spacing, bool(header["sform_code"] or header["qform_code"])
    )
    volume.header_spacing = spacing
    affine_spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    if (
        volume.trusted
        and (spacing > 0).all()
        and not np.allclose(affine_spacing, header["pixdim"][1:4], rtol=0.01)
    ):
        volume.trusted = False
        shown = [np.round(values, 3).tolist() for values in (spacing, affine_spacing)]
        message = f"{path}: pixdim says {shown[0]} mm, the affine {shown[1]} mm; pixdim is used"
        volume.notes.append(GridWarning(message))
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        volume.fault(
            f"has {bad} voxels that are NaN or infinite", "Replace them, or export the file again"
        )
    return volume


def _grid(affine: np.ndarray, spacing: np.ndarray, coded: bool) -> tuple[np.ndarray, bool]:
    """Directions of an affine with another spacing, and whether the directions can be believed."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    grid = np.eye(4)
    usable = bool(np.isfinite(affine).all() and (lengths > 0).all())
    if usable:
        grid[:3, :3] = affine[:3, :3] / lengths
        usable = abs(np.linalg.det(grid[:3, :3])) > 0.9  # orthogonal within a few degrees
    if not usable:
        grid = np.eye(4)
    elif coded:
        grid[:3, 3] = affine[:3, 3]
    grid[:3, :3] *= np.where(np.isfinite(spacing) & (spacing > 0), spacing, 1.0)
    return grid, usable and coded


def slice_axis(volume: Volume) -> int:
    """The axis along which slices are stacked: the only one of length 1, else the one with the largest spacing.

    Axis 2 wins a tie, as most writers put the slices last.
    """
    shape = () if volume.array is None else volume.array.shape
    single = [axis for axis, length in enumerate(shape) if length == 1]
    if len(single) == 1:
        return single[0]
    spacing = volume.spacing
    return 2 if spacing[2] >= 0.999 * spacing.max() else int(np.argmax(spacing))


def to_study_axes(volume: Volume, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Move the slice axis last: ``(X, Y, slices)`` array and its ``(4, 4)`` affine; the other axes keep their order."""
    assert volume.array is not None
    order = [index for index in range(3) if index != axis] + [axis]
    affine = volume.affine.copy()
    affine[:, :3] = volume.affine[:, order]
    return np.transpose(volume.array, order), affine


def storage_mirrored(affine: np.ndarray) -> bool | None:
    """Whether a short-axis stack is stored as the mirror image of the standard display; None: cannot tell.

    The standard display looks from the apex towards the base, which lies to the patient's right, behind and above. Only
    an oblique stack within 45° of that axis is believed: an axial one is a nominal header.

    Args:
        affine: of a study, ``(4, 4)``, RAS+, first axis to the right and second axis down on the screen.
    """
    into_screen = np.cross(affine[:3, 0], affine[:3, 1])
    to_base = np.array(
        [-0.65, -0.65, 0.4]
    )  # [O] a typical long axis: 45° to the left, about 25° down
    cosine = into_screen @ to_base / (np.linalg.norm(into_screen) * np.linalg.norm(to_base))
    return None if abs(cosine) < np.cos(np.pi / 4) else bool(cosine < 0)


def check_image(volume: Volume) -> None:
    """Add the faults that only an image can have: in its spacing (a mask's grid is not used), or without contrast."""
    if volume.array is None:
        return
    spacing, axis = volume.header_spacing, slice_axis(volume)
    limits = [SLICE_MM if index == axis else IN_PLANE_MM for index in range(3)]
    shown = np.round(spacing, 4).tolist()
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        volume.fault(f"spacing {shown} mm is not positive", "Write the true spacing into pixdim")
    elif any(not low <= value <= high for value, (low, high) in zip(spacing, limits, strict=True)):
        volume.fault(
            f"spacing {shown} mm is absurd",
            f"Write the true spacing into pixdim: {IN_PLANE_MM} mm in plane, {SLICE_MM} mm between slices",
        )
    if volume.array.min() == volume.array.max():
        volume.fault(
            f"every voxel is {volume.array.flat[0]}", "Export the image again: it is empty"
        )


def recode(volume: Volume, codes: Mapping[int, int], image: Volume) -> np.ndarray | None:
    """Label map in the internal codes, uint8, in file order; None (with a fault noted) where it cannot be used.

    Args:
        volume: label map as stored.
        codes: data set's code → internal code.
        image: the image that it belongs to.
    """
    if volume.array is None or not np.isfinite(volume.array).all():
        return None
    if image.array is not None and volume.array.shape != image.array.shape:
        problem = f"mask of shape {volume.array.shape} on an image of shape {image.array.shape} ({image.where})"
        volume.fault(problem, "Resample the mask onto the image's grid")
        return None
    found = np.unique(volume.array)
    unknown = [value.item() for value in found if value.item() not in codes]
    if unknown:
        known = ", ".join(map(str, codes))
        volume.fault(
            f"unknown label code {unknown[0]}", f"Codes of this data set: {known}. Recode the mask"
        )
        return None
    if found.tolist() == [0]:
        volume.fault(
            "the mask is empty",
            "Draw the mask, or remove the file to read the study without labels",
        )
        return None
    if volume.trusted and image.trusted:
        cosines = (
            volume.affine[:3, :3] / volume.spacing * (image.affine[:3, :3] / image.spacing)
        ).sum(axis=0)
        if cosines.min() < 0.95:  # about 18°
            problem = f"mask stored in another orientation than its image ({image.where})"
            volume.fault(problem, "Resample the mask onto the image's grid")
            return None
    internal = np.zeros(volume.array.shape, np.uint8)
    for code in found:
        internal[volume.array == code] = codes[int(code)]
    return internal


def valid_region(image: np.ndarray) -> np.ndarray:
    """Where the scanner measured something: exact zeros that touch the border of a slice are padding.

    Args:
        image: ``(X, Y, slices)``.

    Returns:
        bool, the same shape; True where there is data.
    """
    structure = np.zeros((3, 3, 3), bool)
    structure[:, :, 1] = ndimage.generate_binary_structure(2, 1)  # connected in the slice only
    pieces, _ = ndimage.label(image == 0, structure)
    edges = (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1])
    outside = np.setdiff1d(np.concatenate([edge.ravel() for edge in edges]), [0])
    return ~np.isin(pieces, outside)
