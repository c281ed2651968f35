"""The polar view (the wall unrolled), and a study as network input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from lgekit.anatomy.frame import MIN_CONFIDENCE, StandardizeShortAxis, normalised
from lgekit.anatomy.labels import Ventricle
from lgekit.anatomy.segments import ANTERIOR_RVIP_DEG, known_landmarks
from lgekit.errors import InputError
from lgekit.study import WALL_CODES, Study

# How far the view extends beyond the endocardium and the epicardium, in wall thicknesses.
INSIDE, OUTSIDE = 0.4, 0.2
EVEN_INSIDE, EVEN_OUTSIDE = 0.6, 0.4  # along predicted contours, see PolarGrid.evened
SMOOTHING_DEG = 5.0  # sigma of the Gaussian along the contours
GAP_MARGIN_DEG = 10.0  # this close to a gap in the wall, its thickness is not used


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
    shape: tuple[int, int, int]  # of the scanner's grid

    def view(self, data: torch.Tensor) -> torch.Tensor:
        """Sample ``(1, X, Y, slices)`` as ``(1, depths, angles, slices)``; 0 without a heart."""
        if tuple(data.shape) != (1, *self.shape):
            remedy = f"This grid belongs to {(1, *self.shape)}."
            raise InputError("image", f"shape {tuple(data.shape)}", remedy)
        row = (np.arange(self.depths) + 0.5) / self.depths
        depth = -self.inside + (1 + self.inside + self.outside) * row
        radius = self.endocardium[:, None] + depth[None, :, None] * self.thickness[:, None]
        slices = data.float()[0].permute(2, 0, 1)[torch.as_tensor(self.order), None]
        radius = np.maximum(radius, 0)
        out = _sample_rays(slices, self.centres, radius, self.angles_deg, self.spacing)
        out[torch.as_tensor(np.isnan(self.levels))] = 0
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
    """Sample ``(slices, channels, X, Y)`` linearly at a radius (mm) and angle around each centre.

    ``radius`` broadcasts to ``(slices, rows, angles)``, the result is ``(slices, channels, rows,
    angles)``.
    """
    angle = np.radians(angles_deg)
    x = centres[:, 0, None, None] + radius * np.cos(angle) / spacing[0]
    y = centres[:, 1, None, None] - radius * np.sin(angle) / spacing[1]
    width, height = slices.shape[2:]
    grid = np.stack([2 * y / max(height - 1, 1) - 1, 2 * x / max(width - 1, 1) - 1], axis=-1)
    samples = torch.as_tensor(grid, dtype=torch.float32, device=slices.device)
    return F.grid_sample(slices, samples, mode="bilinear", padding_mode="zeros", align_corners=True)


def polar_grid(
    study: Study,
    depths: int = 16,
    angles: int = 96,
    orientation: str = "rvip",
    min_confidence: float = MIN_CONFIDENCE,
) -> PolarGrid:
    """Find the wall of a study in every slice, on the scanner's grid or in the standard frame.

    Both contours are radii from the slice's centre, measured along rays through the masks and
    smoothed around the circle. Where a ray meets no wall (an open ring at the base, a broken
    prediction) the thickness is interpolated. Without a heart label, the wall is a ring of fixed
    size around the centre of the image. ``orientation`` is of :class:`StandardizeShortAxis`; the
    first angle is the anterior insertion point if it is ``"rvip"``, else 120° of the stored array.
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
        levels = np.linspace(0, 1, shape[2]) if shape[2] > 1 else np.array([0.5])
        endocardium, thickness = (np.full((shape[2], angles), k * side) for k in (0.08, 0.04))
    else:
        levels = ventricle.levels
        centres = np.where(np.isfinite(ventricle.centres), ventricle.centres, ventricle.centre)
        endocardium, thickness = _contours(ventricle, centres, spacing, angles_deg)
        if not ventricle.base_first and orientation != "none":
            order = order[::-1].copy()
    centres, endocardium, thickness = centres[order], endocardium[order], thickness[order]
    measured = (angles_deg, centres, endocardium, thickness, order, levels[order])
    return PolarGrid(depths, INSIDE, OUTSIDE, *measured, spacing, shape)


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
        transform = StandardizeShortAxis(pixels, None, orientation, min_confidence)
        frame = transform.find_frame(study)
        data, order = frame.to_frame(data), order[::-1] if frame.reversed_slices else order
    return View.of_slices(data, levels[order], order)
