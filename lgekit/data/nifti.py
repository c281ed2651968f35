"""Read and check NIfTI volumes, and make studies of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torchio as tio
from nibabel.imageglobals import logger
from nibabel.openers import ImageOpener

from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.study import Landmarks, Study

SMALLEST_MM, LARGEST_MM = 0.1, (10.0, 10.0, 40.0)  # plausible spacing; slice + gap is last
LARGEST_GREY = 1e12  # what is larger overflows in statistics of float32
MOST_VOXELS, MOST_SLICES, MOST_BYTES = 2**25, 256, 2**30  # of a stack; of a whole file as float64
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI-1: unknown (taken as mm), m, mm, µm


class Fault(InputError):
    """Something wrong with one study or, where ``study_id`` is empty, with the cohort.

    Attributes:
        truth_only: only labels, report, split or landmarks are wrong, which no prediction reads.
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


Listing = Iterator[Entry | Fault]


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


def read_nifti(path: Path, frame: int | None = None) -> Volume:
    """Read a NIfTI file, or a ``frame`` (from 0) of a 4-D one. Raises InputError if unusable."""
    if not path.is_file():
        raise InputError(path, "there is no such file", "Put the file there, or correct the path")
    try:
        with ImageOpener(str(path)) as stream:  # nibabel's loader turns a spacing of 0 into 1
            header = nib.Nifti1Header(stream.read(348), check=False)
        check_size(path, header)
        logger.disabled = True  # nibabel logs its repairs; here they are faults
        image = nib.Nifti1Image.from_filename(path)
        array = np.asanyarray(image.dataobj)
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
    if array.ndim != 3 or array.dtype.kind not in "buif" or 0 in array.shape:
        problem = f"has {array.ndim} dimensions {array.shape} of {array.dtype}"
        raise InputError(path, problem, "Give one 3-D stack of grey values per file")
    pixdim = header["pixdim"][1:4]
    spacing = pixdim.astype(float) * UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
    coded = bool(header["sform_code"] or header["qform_code"])
    volume = Volume(str(path), array, np.eye(4), spacing, trusted=False)
    if np.isfinite(image.affine).all() and (lengths > 0).all():
        directions = image.affine[:3, :3] / lengths
        if abs(np.linalg.det(directions)) > 0.9:  # orthogonal within a few degrees
            volume.affine[:3, :3], volume.trusted = directions, coded
            volume.affine[:3, 3] = image.affine[:3, 3] if coded else 0
    volume.affine[:3, :3] *= np.where(np.isfinite(spacing) & (spacing > 0), spacing, 1.0)
    if volume.trusted and (spacing > 0).all() and not np.allclose(lengths, pixdim, rtol=0.01):
        volume.trusted = False  # one text for all files, so that Python shows it once
        warnings.warn("NIfTI headers: pixdim and affine differ; pixdim is used", stacklevel=2)
    return volume


def axis_order(volume: Volume) -> list[int]:
    """The stored axes with the slice axis last: the only one of length 1, or the largest spacing.

    The third axis wins a tie, as most writers put the slices last.
    """
    shape, spacing = volume.array.shape, volume.spacing * [1, 1, 1.001]
    last = shape.index(1) if shape.count(1) == 1 else int(np.argmax(spacing))
    return [axis for axis in range(3) if axis != last] + [last]


def storage_mirrored(affine: np.ndarray) -> bool | None:
    """Whether a short-axis stack with this affine (RAS+) is stored mirrored.

    The standard display looks from the apex to the base, which is to the patient's right, behind
    and above. An affine more than 45° away from that, such as an axial one, gives None.
    """
    into_screen = np.cross(affine[:3, 0], affine[:3, 1])
    to_base = np.array([-0.65, -0.65, 0.4])  # a typical long axis: 45° to the left, 25° down
    cosine = into_screen @ to_base / (np.linalg.norm(into_screen) * np.linalg.norm(to_base))
    return None if abs(cosine) < np.cos(np.pi / 4) else bool(cosine < 0)


def check_image(volume: Volume) -> None:
    """Raise InputError if an image has an implausible spacing, no contrast or no finite values."""
    spacing = volume.header_spacing[axis_order(volume)]
    problem = f"spacing {np.round(volume.header_spacing, 4).tolist()} mm is"
    remedy = "Write the true spacing into pixdim: 0.1–10 mm in plane, 0.1–40 mm between slices"
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise InputError(volume.where, f"{problem} not positive", remedy)
    if (spacing < SMALLEST_MM).any() or (spacing > LARGEST_MM).any():
        raise InputError(volume.where, f"{problem} absurd", remedy)
    low, high = float(volume.array.min()), float(volume.array.max())  # NaN if any voxel is
    if not (-LARGEST_GREY <= low and high <= LARGEST_GREY):
        problem = f"has voxels that are NaN, infinite or beyond ±{LARGEST_GREY:.0e}"
        raise InputError(volume.where, problem, "Replace them, or export the file again")
    if np.float32(low) == np.float32(high):  # as it will be stored
        problem = f"every voxel is {volume.array.flat[0]}"
        raise InputError(volume.where, problem, "Export the image again: it is empty")


def recode(mask: Volume, codes: Mapping[int, int], image: Volume) -> np.ndarray:
    """Label map of an image in the internal codes, uint8, in file order.

    Raises InputError if it does not fit the image, is empty, or has an unknown code.
    """
    remedy = "Resample the mask onto the image's grid"
    found = np.unique(mask.array).tolist()
    unknown = [code for code in found if code not in codes]
    directions = [volume.affine[:3, :3] / volume.spacing for volume in (mask, image)]
    turned = (directions[0] * directions[1]).sum(axis=0).min() < 0.95  # more than about 18°
    problem = ""
    if mask.array.shape != image.array.shape:
        problem = f"mask of shape {mask.array.shape} on an image of shape {image.array.shape}"
    elif unknown:
        problem = f"unknown label code {unknown[0]}"
        remedy = f"Codes of this data set: {', '.join(map(str, codes))}. Recode the mask"
    elif found == [0]:
        problem = "the mask is empty"
        remedy = "Draw the mask, or remove the file to read the study without labels"
    elif turned and mask.trusted and image.trusted:
        problem = f"mask orientation differs from that of its image ({image.where})"
    if problem:
        raise InputError(mask.where, problem, remedy)
    internal = np.zeros(mask.array.shape, np.uint8)
    for code in found:
        internal[mask.array == code] = codes[code]
    return internal


def read_study(entry: Entry, images_only: bool = False) -> Iterator[Study | Fault]:
    """Read a study as stored: yield the faults of its image and mask, and the study if usable."""
    faults: list[Fault] = []
    image = labels = None
    try:
        image = entry.image()
        check_image(image)
    except InputError as error:
        faults.append(Fault.of(error, entry.study_id))
    try:
        mask = entry.labels() if entry.labels is not None and not images_only else None
        labels = recode(mask, entry.codes, image) if mask and image else None
    except InputError as error:
        faults.append(Fault.of(error, entry.study_id, truth_only=True))
    yield from faults
    if faults or image is None:
        return
    for problem, remedy in image.doubts:
        yield Doubt(image.where, problem, remedy, entry.study_id)
    names = ["study_id", "patient_id", "split"]
    names += [] if images_only else ["report", "landmarks", "findings"]
    fields = {name: getattr(entry, name) for name in names}
    if not images_only:
        source = "clinical" if entry.report else "none"
        fields["report_source"] = entry.report_source or source
    order = axis_order(image)
    if (slices := image.array.shape[order[2]]) > MOST_SLICES:
        problem, remedy = f"has {slices} slices", f"Keep the heart's: at most {MOST_SLICES}"
        yield Fault(image.where, problem, remedy, entry.study_id)
        return

    def stored(array: np.ndarray, kind: type[tio.Image], dtype: type) -> tio.Image:
        tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(order), dtype=dtype))
        return kind(tensor=tensor[None], affine=image.affine[:, [*order, 3]])

    fields["image"] = stored(image.array, tio.ScalarImage, np.float32)
    if labels is not None:
        fields["labels"] = stored(labels, tio.LabelMap, np.uint8)
    yield Study(**fields)
