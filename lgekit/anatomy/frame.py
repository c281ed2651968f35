"""The standard short-axis frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
import torchio as tio

from lgekit.anatomy.labels import Ventricle
from lgekit.anatomy.segments import ANTERIOR_RVIP_DEG, known_landmarks, to_frame_deg
from lgekit.errors import InputError
from lgekit.study import CAVITY, RV, Landmarks, Study

ORIENTATIONS = ("rvip", "centre", "none")
MIN_CONFIDENCE = 0.25
CUT_MM = (
    200.0  # side of the square cut from the middle of a picture where nothing is known of the heart
)


@dataclass(frozen=True, eq=False)
class ShortAxisFrame:
    """The map between a scanner's grid and the standard frame of one study: an exact similarity, hence invertible.

    Attributes:
        pixels: side of the square frame.
        mm_per_pixel: of the frame, isotropic.
        matrix: ``(2, 2)`` scanner voxels per frame pixel (rotation, mirror and scale in one).
        centre: ``(2,)`` scanner voxel that lies in the middle of the frame.
        reversed_slices: whether the scanner's stack runs from apex to base.
        shape: ``(X, Y, slices)`` of the scanner's grid.
        affine: ``(4, 4)`` of the scanner's grid, mm.
        landmarks: insertion points on the scanner's grid, or None.
        oriented: whether the frame was turned by them.
    """

    pixels: int
    mm_per_pixel: float
    matrix: np.ndarray
    centre: np.ndarray
    reversed_slices: bool
    shape: tuple[int, int, int]
    affine: np.ndarray
    landmarks: Landmarks | None
    oriented: bool

    @property
    def offset(self) -> np.ndarray:
        """Scanner voxel of the frame's first pixel, ``(2,)``."""
        return self.centre - self.matrix @ np.full(2, (self.pixels - 1) / 2)

    @property
    def frame_affine(self) -> np.ndarray:
        """Affine of the frame, ``(4, 4)`` mm; a point keeps its place in the scanner."""
        step = np.eye(4)
        step[:2, :2], step[:2, 3] = self.matrix, self.offset
        if self.reversed_slices:
            step[2, 2:] = -1, self.shape[2] - 1
        return self.affine @ step

    @property
    def frame_landmarks(self) -> Landmarks | None:
        """Insertion points in the frame."""
        if not self.oriented or self.landmarks is None:
            return self.landmarks
        inferior = float(to_frame_deg(self.landmarks.inferior_rvip_deg, self.landmarks))
        return Landmarks(ANTERIOR_RVIP_DEG, inferior, self.landmarks.confidence)

    def to_frame(self, data: torch.Tensor, nearest: bool = False) -> torch.Tensor:
        """Resample ``(channels, X, Y, slices)`` into ``(channels, pixels, pixels, slices)``; 0 outside.

        One interpolation in all, on the tensor's device: linear, or nearest with the dtype kept.

        Raises:
            InputError: naming both shapes, where the data do not lie on this frame's scanner grid.
        """
        if tuple(data.shape[1:]) != self.shape:
            raise InputError(
                "image",
                f"shape {tuple(data.shape[1:])}",
                f"This frame belongs to shape {self.shape}.",
            )
        out = resample_plane(data, self.matrix, self.offset, (self.pixels, self.pixels), nearest)
        return out.flip(3) if self.reversed_slices else out

    def to_scanner(self, data: torch.Tensor, nearest: bool = True) -> torch.Tensor:
        """Resample ``(channels, pixels, pixels, slices)`` back onto the scanner's grid; 0 outside the frame.

        Raises:
            InputError: naming both shapes, where the data do not lie on the frame.
        """
        expected = (self.pixels, self.pixels, self.shape[2])
        if data.ndim != 4 or tuple(data.shape[1:]) != expected:
            raise InputError(
                "array",
                f"shape {tuple(data.shape)}",
                f"Give (channels, *{expected}), as in the frame.",
            )
        data = data.flip(3) if self.reversed_slices else data
        inverse = np.linalg.inv(self.matrix)
        return resample_plane(data, inverse, -inverse @ self.offset, self.shape[:2], nearest)


def resample_plane(
    data: torch.Tensor,
    matrix: np.ndarray,
    offset: np.ndarray,
    shape: tuple[int, int],
    nearest: bool,
) -> torch.Tensor:
    """Sample every slice of ``(channels, X, Y, slices)`` at ``matrix @ pixel + offset``; zeros outside.

    All slices share one grid, so they go through ``grid_sample`` as channels of one picture.
    """
    channels, width, height, slices = data.shape
    if nearest:
        rows, columns = (torch.arange(n, device=data.device, dtype=torch.float32) for n in shape)
        m = matrix.tolist()
        x = (rows[:, None] * m[0][0] + columns[None] * m[0][1] + float(offset[0])).round().long()
        y = (rows[:, None] * m[1][0] + columns[None] * m[1][1] + float(offset[1])).round().long()
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        flat = (x.clamp(0, width - 1) * height + y.clamp(0, height - 1)).flatten()
        out = data.reshape(channels, width * height, slices)[:, flat].reshape(
            channels, *shape, slices
        )
        return out * inside[None, :, :, None].to(out.dtype)
    scale = 2 / np.maximum(np.array([width, height]) - 1, 1)
    half = (
        np.array(shape) - 1
    ) / 2  # affine_grid runs from -1 to 1 on the output, second axis first
    theta = np.empty((2, 3))
    theta[:, :2] = (matrix * half * scale[:, None])[::-1, ::-1]
    theta[:, 2] = ((matrix @ half + offset) * scale - 1)[::-1]
    step = torch.as_tensor(theta[None], dtype=torch.float32, device=data.device)
    grid = F.affine_grid(step, [1, 1, *shape], align_corners=True)
    picture = data.float().permute(0, 3, 1, 2).reshape(1, channels * slices, width, height)
    out = F.grid_sample(picture, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return out.reshape(channels, slices, *shape).permute(0, 2, 3, 1)


class StandardizeShortAxis(tio.SpatialTransform):
    """Bring a study into the standard short-axis frame.

    Rotation, mirror, anisotropic scale and crop are one resampling. Heart and insertion points are those that the study
    carries: its own masks and landmarks, or the ones that ``HeartNetwork.predict`` put there. A study whose landmarks
    are missing or less sure than ``min_confidence`` is centred and scaled without a turn, and marked by
    ``study["orientation_confident"] = False``; one without a heart label is cut out of the middle of its picture.

    The result carries ``frame`` (a :class:`ShortAxisFrame`), its landmarks in the frame, and an affine that keeps every
    point at its place in the scanner. The transform stands in ``history``, resolved, so it replays exactly and inverts.

    Args:
        pixels: side of the square frame.
        field_of_view_mm: side of the frame in mm; None scales it to the heart (200 mm where none is looked for).
        heart_scale: side of the frame in epicardial diameters of the left ventricle, where it is scaled to the heart.
        orientation: ``"rvip"`` turns by the insertion points; ``"centre"`` only centres and scales the heart and orders
            the slices; ``"none"`` cuts a square of fixed size from the middle of the picture, as stored.
        min_confidence: least confidence of landmarks to turn by.
        frame: a frame to use instead of finding one (this is how ``history`` replays).
        **kwargs: see :class:`torchio.transforms.Transform`.

    Examples:
        >>> import numpy as np
        >>> from lgekit.study import Landmarks, Study
        >>> x, y = np.ogrid[:120, :100]
        >>> radius = np.hypot(x - 70, y - 40)
        >>> labels = np.repeat(((radius < 20) + 1 * (radius < 12))[..., None], 6, axis=2)
        >>> labels = np.choose(labels, [0, 2, 1])  # background, wall, cavity
        >>> study = Study.from_arrays("ring", 100.0 * (labels == 1), (1.4, 1.4, 10), labels,
        ...                           landmarks=Landmarks(30, 270, 1.0))
        >>> standard = StandardizeShortAxis(pixels=64)(study)
        >>> standard.shape, standard["landmarks"].anterior_rvip_deg, standard["orientation_confident"]
        ((1, 64, 64, 6), 120.0, True)
        >>> standard.apply_inverse_transform().shape
        (1, 120, 100, 6)
    """

    def __init__(
        self,
        pixels: int = 96,
        field_of_view_mm: float | None = None,
        heart_scale: float = 2.0,
        orientation: str = "rvip",
        min_confidence: float = MIN_CONFIDENCE,
        frame: ShortAxisFrame | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if orientation not in ORIENTATIONS:
            raise InputError(
                "orientation", f"{orientation!r}", f"Use one of {', '.join(ORIENTATIONS)}."
            )
        for name, value in (
            ("pixels", pixels),
            ("field_of_view_mm", field_of_view_mm),
            ("heart_scale", heart_scale),
        ):
            if value is not None and not value > 0:
                raise InputError(name, f"{value!r}", "Give a number above 0.")
        self.pixels = int(pixels)
        self.field_of_view_mm = field_of_view_mm
        self.heart_scale = heart_scale
        self.orientation = orientation
        self.min_confidence = min_confidence
        self.frame = frame
        self.invert_transform = False
        self.args_names = [
            "pixels",
            "field_of_view_mm",
            "heart_scale",
            "orientation",
            "min_confidence",
            "frame",
        ]

    if TYPE_CHECKING:  # TorchIO's own annotation says Subject in, Subject out

        def __call__(self, data: Study) -> Study: ...  # type: ignore[override]

    def find_frame(self, study: Study) -> ShortAxisFrame:
        """The frame of a study; the study is not changed."""
        shape, spacing = tuple(study.spatial_shape), np.array(study.spacing_mm)
        centre, backwards, turn = (np.array(shape[:2]) - 1) / 2, False, np.eye(2)
        side_mm = self.field_of_view_mm or float(min(*np.array(shape[:2]) * spacing[:2], CUT_MM))
        landmarks = known_landmarks(study)
        ventricle = None if study.label_map is None else Ventricle.of(study.label_map)
        if self.orientation != "none" and ventricle is not None and ventricle.area.any():
            centre, backwards = ventricle.centre, not ventricle.base_first
            side_mm = self.field_of_view_mm or self.heart_scale * ventricle.diameter_mm(
                study.spacing_mm
            )
        else:
            ventricle = None
        oriented = False
        if self.orientation == "rvip" and ventricle is not None and landmarks is not None:
            oriented = landmarks.confidence >= self.min_confidence
        if oriented and landmarks is not None:
            mirror = -1 if landmarks.mirrored else 1
            angle = np.radians(landmarks.anterior_rvip_deg - mirror * ANTERIOR_RVIP_DEG)
            cosine, sine = np.cos(angle), np.sin(angle)
            turn = np.array([[cosine, mirror * sine], [-sine, mirror * cosine]])
        mm = side_mm / self.pixels
        matrix, affine = turn * mm / spacing[:2, None], study.get_image("image").affine
        return ShortAxisFrame(
            self.pixels, mm, matrix, centre, backwards, shape, affine, landmarks, oriented
        )

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        subject.check_consistent_spatial_shape()
        frame = self.frame
        if frame is None and self.invert_transform:
            frame = frame_of(cast(Study, subject))
        elif frame is None:
            frame = self.find_frame(cast(Study, subject))
        for image in self.get_images(subject):
            nearest = isinstance(image, tio.LabelMap)
            if self.invert_transform:
                image.set_data(frame.to_scanner(image.data, nearest))
                image.affine = frame.affine
            else:
                image.set_data(frame.to_frame(image.data, nearest))
                image.affine = frame.frame_affine
        if self.invert_transform:
            subject["landmarks"] = frame.landmarks
            for key in ("frame", "orientation_confident"):
                subject.pop(key, None)
        else:
            subject["landmarks"] = frame.frame_landmarks
            subject["frame"] = frame
            subject["orientation_confident"] = frame.oriented
        return subject

    def _add_transform_to_subject_history(self, subject: tio.Subject) -> None:
        arguments = (
            self._get_reproducing_arguments()
        )  # with the frame that was found, so that it replays and inverts
        if not self.invert_transform:
            subject.add_transform(self, arguments | {"frame": subject["frame"]})


def frame_of(study: Study) -> ShortAxisFrame:
    """The frame that a standardised study carries.

    Raises:
        InputError: where the study is not standardised.
    """
    frame = study.get("frame")
    if not isinstance(frame, ShortAxisFrame):
        raise InputError(
            study.get("study_id", "study"),
            "not in the frame",
            "Apply StandardizeShortAxis to it first.",
        )
    return frame


def frame_to_scanner(array, study: Study) -> torch.Tensor:
    """Bring something drawn in the standard frame back onto the scanner's grid.

    Args:
        array: ``(pixels, pixels, slices)`` or with a leading channel axis: a mask or label map (integers or bool,
            nearest neighbour, dtype kept) or a map of real numbers (linear).
        study: the standardised study.

    Returns:
        The array on the grid of the stored image, with as many axes as it came with.

    Raises:
        InputError: where the study is not standardised, or the shape is not the frame's.
    """
    tensor = torch.as_tensor(array)
    data = tensor[None] if tensor.ndim == 3 else tensor
    out = frame_of(study).to_scanner(data, nearest=not data.is_floating_point())
    return out[0] if tensor.ndim == 3 else out


def intensity_reference(study: Study) -> tuple[np.ndarray, float]:
    """Signal of remote myocardium in each slice, ``(slices,)``, and half of the range of signals above and below it.

    Remote is the 30th percentile of the slice's wall: scar is bright, and moves it by no more than the noise while it
    fills less than half of the wall. The range runs from the 5th to the 95th percentile of wall and cavity, remote
    taken off, over all slices. Both are our choice [O], by how well one number, the smoothed wall's 97th percentile,
    tells scar from none in the polar views of the 60 EMIDEC studies: AUC 0.93; 0.78 with one remote for all slices,
    which are not equally bright as stored; 0.68 with blood − remote as the unit, which poor nulling shrinks. Without a
    heart label the middle ninth of the picture stands in, its 25th percentile for remote.
    """
    pixels, labels = study.pixels, study.label_map
    remote, codes = (
        np.full(pixels.shape[2], np.nan),
        np.zeros(pixels.shape, np.uint8) if labels is None else labels,
    )
    heart = np.flatnonzero(
        (codes >= CAVITY) & (codes < RV)
    )  # of the flattened stack, several times as fast
    values, plane, wall = (
        pixels.ravel()[heart],
        heart % pixels.shape[2],
        codes.ravel()[heart] > CAVITY,
    )
    for s in np.flatnonzero(np.bincount(plane[wall])):
        remote[s] = np.percentile(values[wall & (plane == s)], 30)
    known = np.flatnonzero(np.isfinite(remote))
    if len(known):
        remote = np.interp(np.arange(len(remote)), known, remote[known])
        inside = values - remote[plane]
    else:
        third = [slice(n // 3, max(n - n // 3, n // 3 + 1)) for n in pixels.shape[:2]]
        remote = np.percentile(pixels[third[0], third[1]], 25, axis=(0, 1))
        inside = pixels[third[0], third[1]] - remote
    low, high = np.percentile(inside, [5, 95])
    return remote, float(high - low) / 2


def normalise(
    data: torch.Tensor, reference: tuple[np.ndarray, float], limit: float = 4.0
) -> torch.Tensor:
    """``(I − remote) / half_range`` of ``(…, slices)``, cut at ± ``limit``; 0 in a picture without contrast."""
    remote, half_range = reference
    offset = torch.as_tensor(remote, dtype=torch.float32, device=data.device)
    return (
        (data.float() - offset) / max(half_range, 1e-6 * float(np.abs(remote).max()), 1e-12)
    ).clamp_(-limit, limit)


def normalise_intensity(study: Study, limit: float = 4.0) -> Study:
    """A copy of the study whose image has remote myocardium at 0 and, mostly, blood between 1 and 2.

    See :func:`intensity_reference`.
    """
    image = study.get_image("image")
    data = normalise(image.data, intensity_reference(study), limit)
    fields = dict(study) | {"image": tio.ScalarImage(tensor=data, affine=image.affine)}
    result = type(study)(fields)
    result.applied_transforms = list(study.applied_transforms)
    return result
