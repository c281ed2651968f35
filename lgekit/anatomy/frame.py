"""The standard short-axis frame, the polar view, and intensities relative to remote myocardium."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
import torchio as tio
from scipy import ndimage

from lgekit.anatomy.segments import ANTERIOR_RVIP_DEG, Ventricle, known_landmarks, to_frame_deg
from lgekit.errors import InputError
from lgekit.study import CAVITY, RV, WALL_CODES, Landmarks, Study

ORIENTATIONS = ("rvip", "centre", "none")
MIN_CONFIDENCE = 0.25  # least confidence of landmarks that orient a study
LV_DIAMETERS = 2.0  # side of the frame, if it is scaled to the heart
UNKNOWN_HEART_MM = 200.0  # side of the square around the image's centre if no heart is labelled
INTENSITY_LIMIT = 4.0  # normalized intensities are clipped at ± this
# How far the view extends beyond the endocardium and the epicardium, in wall thicknesses.
INSIDE, OUTSIDE = 0.4, 0.2
EVEN_INSIDE, EVEN_OUTSIDE = 0.6, 0.4  # along predicted contours, see PolarGrid.evened
SMOOTHING_DEG = 5.0  # sigma of the Gaussian along the contours
GAP_MARGIN_DEG = 10.0  # this close to a gap in the wall, its thickness is not used


@dataclass(frozen=True, eq=False)
class ShortAxisFrame:
    """The invertible map (a similarity) between one study's scanner grid and the standard frame."""

    pixels: int  # side of the square frame
    mm_per_pixel: float
    matrix: np.ndarray  # (2, 2) scanner voxels per frame pixel: rotation, mirror and scale
    centre: np.ndarray  # (2,) scanner voxel at the centre of the frame
    reversed_slices: bool  # whether the scanner's stack runs from apex to base
    shape: tuple[int, int, int]  # of the scanner's grid
    landmarks: Landmarks | None  # in the frame
    oriented: bool  # whether the landmarks turned the frame

    @property
    def offset(self) -> np.ndarray:
        """Scanner voxel of the frame's first pixel, ``(2,)``."""
        return self.centre - self.matrix @ np.full(2, (self.pixels - 1) / 2)

    def to_frame(self, data: torch.Tensor, nearest: bool = False) -> torch.Tensor:
        """Resample ``(channels, X, Y, slices)`` to ``(channels, pixels, pixels, slices)``.

        Linear, or nearest with the dtype kept; 0 outside the image.
        """
        out = _resample_slices(data, self.matrix, self.offset, (self.pixels, self.pixels), nearest)
        return out.flip(3) if self.reversed_slices else out

    def to_scanner(self, data: torch.Tensor, nearest: bool = True) -> torch.Tensor:
        """Resample ``(channels, pixels, pixels, slices)`` to the scanner's grid; see `to_frame`."""
        data = data.flip(3) if self.reversed_slices else data
        inverse = np.linalg.inv(self.matrix)
        return _resample_slices(data, inverse, -inverse @ self.offset, self.shape[:2], nearest)

    def apply(self, study: Study) -> Study:
        """Bring a study into the frame, in place; every point keeps its scanner coordinates."""
        step = np.eye(4)
        step[:2, :2], step[:2, 3] = self.matrix, self.offset
        if self.reversed_slices:
            step[2, 2:] = -1, self.shape[2] - 1
        for image in study.get_images(intensity_only=False):
            image.set_data(self.to_frame(image.data, isinstance(image, tio.LabelMap)))
            image.affine = image.affine @ step
        study["landmarks"] = self.landmarks
        study.update({"frame": self, "orientation_confident": self.oriented})
        return study


def _resample_slices(data: torch.Tensor, matrix, offset, shape, nearest: bool) -> torch.Tensor:
    """Sample each slice of ``(channels, X, Y, slices)`` at ``matrix @ pixel + offset``, else 0."""
    channels, width, height, slices = data.shape
    # affine_grid runs from -1 to 1 on the output, with the second axis first
    scale = 2 / np.maximum(np.array([width, height]) - 1, 1)
    half = (np.array(shape) - 1) / 2
    theta = np.empty((2, 3))
    theta[:, :2] = (matrix * half * scale[:, None])[::-1, ::-1]
    theta[:, 2] = ((matrix @ half + offset) * scale - 1)[::-1]
    step = torch.as_tensor(theta[None], dtype=torch.float32, device=data.device)
    grid = F.affine_grid(step, [1, 1, *shape], align_corners=True)
    # all slices share one grid, so they are the channels of one picture
    picture = data.float().permute(0, 3, 1, 2).reshape(1, channels * slices, width, height)
    out = F.grid_sample(picture, grid, "nearest" if nearest else "bilinear", align_corners=True)
    out = out.reshape(channels, slices, *shape).permute(0, 2, 3, 1)
    return out.to(data.dtype) if nearest else out


class StandardizeShortAxis(tio.SpatialTransform):
    """Bring a study into the standard short-axis frame: LV centred, septum left, base first.

    The study's labels and landmarks (its own, or those that ``HeartNetwork.predict`` added) show
    where the heart is. If the landmarks are missing or not confident, the study is not turned, and
    ``study["orientation_confident"]`` is False. Without a heart label the frame is a square around
    the centre of the image. The result carries ``frame`` (a :class:`ShortAxisFrame`, whose
    ``to_scanner`` is the way back) and its landmarks in the frame; points keep their scanner
    coordinates.

    Args:
        pixels: side of the square frame.
        field_of_view_mm: side of the frame in mm; None: two epicardial LV diameters.
        orientation: ``"rvip"`` turns by the insertion points, ``"centre"`` does not turn, and
            ``"none"`` crops a square of fixed size around the centre of the image, as stored.
        min_confidence: least confidence of landmarks that turn the frame.

    Examples:
        >>> import lgekit as lk
        >>> (study,) = lk.phantom_cohort(1, seed=0).studies
        >>> standard = lk.StandardizeShortAxis(pixels=64)(study)
        >>> standard.shape[:3], standard["landmarks"].anterior_rvip_deg
        ((1, 64, 64), 120.0)
    """

    def __init__(
        self,
        pixels: int = 96,
        field_of_view_mm: float | None = None,
        orientation: str = "rvip",
        min_confidence: float = MIN_CONFIDENCE,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if orientation not in ORIENTATIONS:
            raise InputError("orientation", repr(orientation), f"Use one of {ORIENTATIONS}.")
        self.pixels, self.field_of_view_mm = int(pixels), field_of_view_mm
        self.orientation, self.min_confidence = orientation, min_confidence
        self.args_names = ["pixels", "field_of_view_mm", "orientation", "min_confidence"]

    def find_frame(self, study: Study) -> ShortAxisFrame:
        """Find the frame of a study; the study is not changed."""
        shape, spacing = tuple(study.spatial_shape), np.array(study.spacing_mm[:2])
        centre, backwards, turn = (np.array(shape[:2]) - 1) / 2, False, np.eye(2)
        landmarks, oriented = known_landmarks(study), False
        side_mm = self.field_of_view_mm
        ventricle = None if study.label_map is None else Ventricle.of(study.label_map)
        if self.orientation != "none" and ventricle is not None and ventricle.area.any():
            centre, backwards = ventricle.centre, not ventricle.base_first
            side_mm = side_mm or LV_DIAMETERS * ventricle.diameter_mm(spacing)
            if self.orientation == "rvip" and landmarks is not None:
                oriented = landmarks.confidence >= self.min_confidence
        side_mm = side_mm or float(min(*np.array(shape[:2]) * spacing, UNKNOWN_HEART_MM))
        if oriented and landmarks is not None:
            mirror = -1 if landmarks.mirrored else 1
            angle = np.radians(landmarks.anterior_rvip_deg - mirror * ANTERIOR_RVIP_DEG)
            cosine, sine = np.cos(angle), np.sin(angle)
            turn = np.array([[cosine, mirror * sine], [-sine, mirror * cosine]])
            inferior = float(to_frame_deg(landmarks.inferior_rvip_deg, landmarks))
            landmarks = Landmarks(ANTERIOR_RVIP_DEG, inferior, landmarks.confidence)
        mm = side_mm / self.pixels
        matrix = turn * mm / spacing[:, None]
        return ShortAxisFrame(
            self.pixels, mm, matrix, centre, backwards, shape, landmarks, oriented
        )

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        subject.check_consistent_spatial_shape()
        return self.find_frame(cast(Study, subject)).apply(cast(Study, subject))


def normalised(study: Study) -> torch.Tensor:
    """Return ``(image − remote) / half_range``, ``(1, X, Y, slices)``, clipped at ± 4.

    Remote myocardium is 0 and blood, mostly, between 1 and 2. Remote is the 30th percentile of the
    slice's wall: scar does not change it while it fills less than half of the wall. The range is
    from the 5th to the 95th percentile of wall and cavity over all slices, relative to remote. Both
    are our choice [O]. Without a heart label, remote is the 25th percentile of the image's middle
    ninth.
    """
    pixels, labels = study.pixels, study.label_map
    slices, remote = pixels.shape[2], np.full(pixels.shape[2], np.nan)
    codes = np.zeros(pixels.size, np.uint8) if labels is None else labels.ravel()
    heart = np.flatnonzero((codes >= CAVITY) & (codes < RV))
    values, plane, wall = pixels.ravel()[heart], heart % slices, codes[heart] > CAVITY
    for s in np.unique(plane[wall]):
        remote[s] = np.percentile(values[wall & (plane == s)], 30)
    known = np.flatnonzero(np.isfinite(remote))
    if len(known):
        remote = np.interp(np.arange(slices), known, remote[known])
        above = values - remote[plane]
    else:
        middle = [slice(n // 3, max(n - n // 3, n // 3 + 1)) for n in pixels.shape[:2]]
        remote = np.percentile(pixels[tuple(middle)], 25, axis=(0, 1))
        above = pixels[tuple(middle)] - remote
    half_range = float(np.ptp(np.percentile(above, [5, 95]))) / 2
    unit = max(half_range, 1e-6 * float(np.abs(remote).max()), 1e-12)  # a constant image gives 0
    relative = study.get_image("image").data.float() - torch.as_tensor(remote, dtype=torch.float32)
    return (relative / unit).clamp_(-INTENSITY_LIMIT, INTENSITY_LIMIT)


@dataclass(frozen=True)
class View:
    """One study as network input."""

    images: torch.Tensor  # (slices, 1, height, width) float32
    levels: torch.Tensor  # (slices,) float32, 0 base … 1 apex
    own_slices: np.ndarray  # (slices,) int, the index of each in the study's own stack

    @classmethod
    def of_slices(cls, data: torch.Tensor, levels: np.ndarray, order: np.ndarray) -> View:
        """Keep the slices of ``(1, height, width, slices)`` that have a level; all if none has."""
        if np.isnan(levels).all():
            levels = np.linspace(0, 1, len(levels)) if len(levels) > 1 else np.array([0.5])
        heart = np.flatnonzero(np.isfinite(levels))
        images = data.permute(3, 0, 1, 2)[torch.as_tensor(heart)].contiguous()
        return cls(images, torch.as_tensor(levels[heart], dtype=torch.float32), order[heart])


@dataclass(frozen=True, eq=False)
class PolarGrid:
    """Positions of a polar view's samples on the scanner's grid, from base to apex.

    The first column is the anterior insertion point (120° if it is unknown), followed by septum,
    inferior and lateral wall. The rows are evenly spaced, from ``inside`` wall thicknesses before
    the endocardium to ``outside`` thicknesses beyond the epicardium.
    """

    depths: int
    inside: float
    outside: float
    angles_deg: np.ndarray  # (angles,) on the stored array
    centres: np.ndarray  # (slices, 2) scanner voxels
    endocardium: np.ndarray  # (slices, angles) radius, mm
    thickness: np.ndarray  # (slices, angles) mm
    order: np.ndarray  # (slices,) the scanner's slice of each
    levels: np.ndarray  # (slices,) 0 base … 1 apex, NaN without a heart
    spacing: tuple[float, float, float]

    @property
    def row_depths(self) -> np.ndarray:
        """Depth of each row in the wall, ``(depths,)``: 0 endocardium, 1 epicardium."""
        row = (np.arange(self.depths) + 0.5) / self.depths
        return -self.inside + (1 + self.inside + self.outside) * row

    def view(self, data: torch.Tensor) -> torch.Tensor:
        """Sample ``(1, X, Y, slices)`` as ``(1, depths, angles, slices)``."""
        depth = self.row_depths[None, :, None]
        radius = self.endocardium[:, None] + depth * self.thickness[:, None]
        slices = data.float()[0].permute(2, 0, 1)[torch.as_tensor(self.order), None]
        radius = np.maximum(radius, 0)
        out = _sample_rays(slices, self.centres, radius, self.angles_deg, self.spacing)
        return out.permute(1, 2, 3, 0)

    def study_view(self, study: Study) -> View:
        """Return the view of a study on this grid, with normalized intensities."""
        return View.of_slices(self.view(normalised(study)), self.levels, self.order)

    def evened(self) -> PolarGrid:
        """Return the grid with a more even wall, for contours that a network predicted.

        Scar is as bright as blood, so a predicted endocardium tends to follow the outside of the
        scar. Here the epicardium is smoothed over 15°, the thickness is averaged with its median,
        and the view extends further on both sides [O].
        """
        epicardium = _smooth(self.endocardium + self.thickness, 15)
        median = np.median(self.thickness, 1, keepdims=True)
        thickness = (median + _smooth(self.thickness, 20)) / 2
        further = replace(self, inside=EVEN_INSIDE, outside=EVEN_OUTSIDE)
        return replace(further, endocardium=epicardium - thickness, thickness=thickness)


def _smooth(contours: np.ndarray, sigma_deg: float) -> np.ndarray:
    sigma = sigma_deg * contours.shape[1] / 360
    return ndimage.gaussian_filter1d(contours, sigma, axis=1, mode="wrap")


def _sample_rays(slices: torch.Tensor, centres, radius, angles_deg, spacing) -> torch.Tensor:
    """Sample ``(slices, channels, X, Y)`` at radii ``(slices, rows, angles)`` in mm and angles."""
    angle = np.radians(angles_deg)
    x = centres[:, 0, None, None] + radius * np.cos(angle) / spacing[0]
    y = centres[:, 1, None, None] - radius * np.sin(angle) / spacing[1]
    width, height = slices.shape[2:]
    grid = np.stack([2 * y / max(height - 1, 1) - 1, 2 * x / max(width - 1, 1) - 1], axis=-1)
    samples = torch.as_tensor(grid, dtype=torch.float32, device=slices.device)
    return F.grid_sample(slices, samples, mode="bilinear", padding_mode="zeros", align_corners=True)


def polar_grid(
    study: Study, depths=16, angles=96, orientation="rvip", min_confidence=MIN_CONFIDENCE
) -> PolarGrid:
    """Find the wall of a study in every slice, on the scanner's grid or in the standard frame.

    Both contours are radii from the slice's centre, measured along rays through the masks and
    smoothed around the circle. Where a ray meets no wall (an open ring at the base, a broken
    prediction) the thickness is interpolated. Without a heart label, the wall is a ring of fixed
    size around the centre of the image. The first angle is the anterior insertion point if
    ``orientation`` is ``"rvip"``, else 120° of the stored array.
    """
    shape, spacing = tuple(study.spatial_shape), study.spacing_mm
    start, turn = ANTERIOR_RVIP_DEG, 1
    landmarks = known_landmarks(study) if orientation == "rvip" else None
    if landmarks is not None and landmarks.confidence >= min_confidence:
        start, turn = landmarks.anterior_rvip_deg, -1 if landmarks.mirrored else 1
    angles_deg = (start + turn * 360 * np.arange(angles) / angles) % 360
    order = np.arange(shape[2])
    ventricle = None if study.label_map is None else Ventricle.of(study.label_map)
    if ventricle is None or not ventricle.area.any():
        side = min(shape[0] * spacing[0], shape[1] * spacing[1])
        centres = np.tile((np.array(shape[:2]) - 1) / 2, (shape[2], 1))
        levels = np.full(shape[2], np.nan)
        endocardium, thickness = (np.full((shape[2], angles), k * side) for k in (0.08, 0.04))
    else:
        levels = ventricle.levels
        centres = np.where(np.isfinite(ventricle.centres), ventricle.centres, ventricle.centre)
        endocardium, thickness = _contours(ventricle, centres, spacing, angles_deg)
        if not ventricle.base_first:
            order = order[::-1].copy()
    centres, endocardium, thickness = centres[order], endocardium[order], thickness[order]
    measured = (angles_deg, centres, endocardium, thickness, order, levels[order])
    return PolarGrid(depths, INSIDE, OUTSIDE, *measured, spacing)


def _contours(ventricle: Ventricle, centres, spacing, angles_deg) -> tuple[np.ndarray, np.ndarray]:
    """Endocardial radius and wall thickness along rays, mm, each ``(slices, angles)``."""
    count = len(angles_deg)
    wall = np.isin(ventricle.labels, WALL_CODES)
    masks = np.stack([ventricle.mask & ~wall, wall]).astype(np.float32)
    masks = np.pad(masks, ((0, 0), (1, 1), (1, 1), (0, 0)))  # rays fade out across half a pixel
    centres = centres - [side.start - 1 for side in ventricle.box]
    step = min(spacing[:2]) / 2
    reach = ventricle.diameter_mm(spacing)  # a slice's wall is nearer to the slice's centre
    radius = (np.arange(int(np.ceil(reach / step)) + 1) + 0.5) * step
    slices = torch.from_numpy(masks).permute(3, 0, 1, 2)
    along = _sample_rays(slices, centres, radius[:, None], angles_deg, spacing).numpy()
    lengths = along.sum(2) * step  # (slices, 2, angles)
    inner, thickness = lengths[:, 0].astype(float), lengths[:, 1].astype(float)
    usual = np.median(thickness[thickness > 0]) if (thickness > 0).any() else 10.0
    margin = int(np.ceil(GAP_MARGIN_DEG * count / 360))
    for s in np.flatnonzero(ventricle.area):
        row = thickness[s]
        own = np.median(row[row > 0]) if (row > 0).any() else usual
        near_gap = ndimage.maximum_filter1d(row <= 0.25 * own, 2 * margin + 1, mode="wrap")
        known = np.flatnonzero(near_gap == 0)
        if len(known) == 0:
            thickness[s] = usual
        else:
            thickness[s] = np.interp(np.arange(count), known, row[known], period=count)
    inner, thickness = _smooth(inner, SMOOTHING_DEG), _smooth(thickness, SMOOTHING_DEG)
    return inner, np.maximum(thickness, step)


def image_view(study: Study, pixels: int, orientation: str, min_confidence=MIN_CONFIDENCE) -> View:
    """Return the view of a study in the standard frame, resampled only if it is not there yet."""
    data, order = normalised(study), np.arange(study.spatial_shape[2])
    levels = np.full(len(order), np.nan)
    if study.label_map is not None:
        levels = Ventricle.of(study.label_map).levels
    if "frame" not in study:
        frame = StandardizeShortAxis(pixels, None, orientation, min_confidence).find_frame(study)
        data, order = frame.to_frame(data), order[::-1] if frame.reversed_slices else order
    return View.of_slices(data, levels[order], order)
