"""The polar view: the wall unrolled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from lgekit.anatomy.frame import (
    MIN_CONFIDENCE,
    StandardizeShortAxis,
    intensity_reference,
    normalise,
)
from lgekit.anatomy.labels import Ventricle, angle_map, heart_box, slice_levels
from lgekit.anatomy.segments import ANTERIOR_RVIP_DEG, known_landmarks
from lgekit.errors import InputError
from lgekit.study import WALL_CODES, Study

INSIDE, OUTSIDE = (
    0.4,
    0.2,
)  # how far the view reaches into the cavity and out of the epicardium, in wall thicknesses
SMOOTHING_DEG = 5.0  # of the contours, the sigma of a Gaussian around the circle

GAP_MARGIN_DEG = 10.0  # beside a gap in the wall, where its thickness is not believed either


@dataclass(frozen=True, eq=False)
class PolarGrid:
    """Where the samples of a polar view lie on the scanner's grid.

    Slices are in the view's order, from base to apex.

    Attributes:
        depths: rows of the view, from the cavity outwards; row ``i`` lies ``−0.4 + 1.6 (i + 0.5) / depths`` of the
            wall's thickness from the endocardium.
        angles_deg: ``(angles,)`` on the stored array; the first is the anterior insertion point, then the septum.
        centres: ``(slices, 2)`` scanner voxels.
        endocardium, thickness: ``(slices, angles)`` mm.
        order: ``(slices,)`` the scanner's slice of each.
        levels: ``(slices,)`` 0 base … 1 apex, NaN where there is no heart.
        spacing: mm of the scanner's grid.
        shape: of the scanner's grid.
        oriented: whether the angles start at a known insertion point; else at 120° on the stored array.
    """

    depths: int
    angles_deg: np.ndarray
    centres: np.ndarray
    endocardium: np.ndarray
    thickness: np.ndarray
    order: np.ndarray
    levels: np.ndarray
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    oriented: bool

    def view(self, data: torch.Tensor) -> torch.Tensor:
        """Sample ``(1, X, Y, slices)`` linearly: ``(1, depths, angles, slices)`` float32, 0 where there is no heart.

        Raises:
            InputError: naming both shapes, where the data do not lie on this grid.
        """
        if tuple(data.shape) != (1, *self.shape):
            raise InputError(
                "image", f"shape {tuple(data.shape)}", f"This grid belongs to {(1, *self.shape)}."
            )
        part = -INSIDE + (1 + INSIDE + OUTSIDE) * (np.arange(self.depths) + 0.5) / self.depths
        radius = np.maximum(
            self.endocardium[:, None] + part[None, :, None] * self.thickness[:, None], 0
        )
        angle = np.radians(self.angles_deg)
        x = self.centres[:, 0, None, None] + radius * np.cos(angle) / self.spacing[0]
        y = self.centres[:, 1, None, None] - radius * np.sin(angle) / self.spacing[1]
        out = _sample(data.float()[0].permute(2, 0, 1)[torch.as_tensor(self.order), None], x, y)
        out[torch.as_tensor(np.isnan(self.levels))] = 0
        return out.permute(1, 2, 3, 0)

    def paint(self, array) -> np.ndarray:
        """Bring something drawn in the polar view back onto the scanner's grid (nearest sample, dtype kept).

        Args:
            array: ``(depths, angles, slices)`` or with a leading channel axis of one.

        Returns:
            ``(X, Y, slices)``, 0 outside the view.
        """
        array = np.asarray(array)
        array = array[0] if array.ndim == 4 else array
        expected = (self.depths, len(self.angles_deg), len(self.order))
        if array.shape != expected:
            raise InputError(
                "array", f"shape {array.shape}", f"Give {expected}, as in the polar view."
            )
        out = np.zeros(self.shape, array.dtype)
        count = len(self.angles_deg)
        turn = np.sign((self.angles_deg[1] - self.angles_deg[0] + 180) % 360 - 180)
        axes = [np.arange(n) for n in self.shape[:2]]
        for k, s in enumerate(self.order):
            if np.isnan(self.levels[k]):
                continue
            angle = angle_map(self.shape[:2], self.centres[k], self.spacing)
            place = turn * (angle - self.angles_deg[0]) % 360 * count / 360
            inner, thick = (
                np.interp(place, np.arange(count), v[k], period=count)
                for v in (self.endocardium, self.thickness)
            )
            dx, dy = (
                (a - c) * h for a, c, h in zip(axes, self.centres[k], self.spacing, strict=False)
            )
            depth = (np.hypot(dx[:, None], dy[None]) - inner) / thick
            row = np.floor((depth + INSIDE) / (1 + INSIDE + OUTSIDE) * self.depths).astype(int)
            inside = (row >= 0) & (row < self.depths)
            out[inside, s] = array[row[inside], np.round(place[inside]).astype(int) % count, k]
        return out


def _sample(pictures: torch.Tensor, x: np.ndarray, y: np.ndarray) -> torch.Tensor:
    """Linear samples of ``(slices, channels, X, Y)`` at voxels ``(slices, rows, columns)``."""
    width, height = pictures.shape[2:]
    grid = np.stack([2 * y / max(height - 1, 1) - 1, 2 * x / max(width - 1, 1) - 1], axis=-1)
    samples = torch.as_tensor(grid, dtype=torch.float32, device=pictures.device)
    return F.grid_sample(
        pictures, samples, mode="bilinear", padding_mode="zeros", align_corners=True
    )


def polar_grid(
    study: Study,
    depths: int = 16,
    angles: int = 96,
    orientation: str = "rvip",
    min_confidence: float = MIN_CONFIDENCE,
) -> PolarGrid:
    """Find the wall of a study in every slice.

    Both contours are radii from the slice's centre, measured along rays through the masks (holes filled),
    smoothed around the circle; where a ray meets no wall (an open ring at the base, a broken prediction) the thickness
    is taken over from its neighbours. Without any heart label a nominal ring in the middle of the picture stands in.

    Args:
        study: with labels; landmarks, or an RV label, for the orientation. On the scanner's grid or in the frame.
        depths, angles: size of the view.
        orientation: ``"rvip"``, or ``"centre"`` / ``"none"`` to start at 120° of the stored array whatever lies there.
        min_confidence: least confidence of landmarks to start from.
    """
    shape, spacing = tuple(study.spatial_shape), study.spacing_mm
    landmarks = known_landmarks(study) if orientation == "rvip" else None
    oriented = landmarks is not None and landmarks.confidence >= min_confidence
    start, turn = ANTERIOR_RVIP_DEG, 1
    if oriented and landmarks is not None:
        start, turn = landmarks.anterior_rvip_deg, -1 if landmarks.mirrored else 1
    angles_deg = (start + turn * 360 * np.arange(angles) / angles) % 360
    ventricle = None if study.label_map is None else Ventricle.of(study.label_map)
    order = np.arange(shape[2])
    if ventricle is None or not ventricle.area.any():
        side = min(shape[0] * spacing[0], shape[1] * spacing[1])
        centres = np.tile((np.array(shape[:2]) - 1) / 2, (shape[2], 1))
        levels = np.linspace(0, 1, shape[2]) if shape[2] > 1 else np.array([0.5])
        radii = (np.full((shape[2], angles), 0.08 * side), np.full((shape[2], angles), 0.04 * side))
    else:
        order = order if ventricle.base_first or orientation == "none" else order[::-1].copy()
        levels = ventricle.levels
        centres = np.where(np.isfinite(ventricle.centres), ventricle.centres, ventricle.centre)
        radii = _contours(ventricle, centres, spacing, angles_deg)
    endocardium, thickness = (values[order] for values in radii)
    return PolarGrid(
        depths,
        angles_deg,
        centres[order],
        endocardium,
        thickness,
        order,
        levels[order],
        spacing,
        shape,
        oriented,
    )


def _contours(
    ventricle: Ventricle,
    centres: np.ndarray,
    spacing: tuple[float, float, float],
    angles_deg: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Endocardial radius and wall thickness along rays, mm, each ``(slices, angles)``."""
    wall = np.isin(ventricle.labels, WALL_CODES)
    masks = np.stack([ventricle.mask & ~wall, wall]).astype(
        np.float32
    )  # cavity with all that it encloses; wall
    masks = np.pad(
        masks, ((0, 0), (1, 1), (1, 1), (0, 0))
    )  # so that rays fade out across the border's half pixel
    centres = centres - [ventricle.box[0].start - 1, ventricle.box[1].start - 1]
    step = min(spacing[:2]) / 2
    far = []  # mm along x and y from any slice's centre to the ends of the left ventricle, beside which an RV may lie
    for axis, part in enumerate(heart_box(ventricle.mask)):
        middles = centres[:, axis] - 1  # in the unpadded part
        far.append(max(middles.max() - part.start, part.stop - middles.min()) * spacing[axis])
    radius = (np.arange(int(np.ceil(np.hypot(*far) / step)) + 1) + 0.5) * step
    angle = np.radians(angles_deg)
    x = centres[:, 0, None, None] + radius[:, None] * np.cos(angle) / spacing[0]
    y = centres[:, 1, None, None] - radius[:, None] * np.sin(angle) / spacing[1]
    rays = (
        _sample(torch.from_numpy(masks).permute(3, 0, 1, 2), x, y).numpy().sum(2) * step
    )  # (slices, 2, angles)
    inner, thickness = rays[:, 0].astype(float), rays[:, 1].astype(float)
    usual = np.median(thickness[thickness > 0]) if (thickness > 0).any() else 10.0
    for s in np.flatnonzero(ventricle.area):
        own = np.median(thickness[s][thickness[s] > 0]) if (thickness[s] > 0).any() else usual
        gap = thickness[s] <= 0.25 * own
        reach_out = int(
            np.ceil(GAP_MARGIN_DEG * len(angle) / 360)
        )  # rays beside a gap cross a wall that is cut
        known = np.flatnonzero(ndimage.maximum_filter1d(gap, 2 * reach_out + 1, mode="wrap") == 0)
        if len(known) == 0:
            thickness[s] = usual
        else:
            thickness[s] = np.interp(
                np.arange(len(angle)), known, thickness[s, known], period=len(angle)
            )
    sigma = SMOOTHING_DEG * len(angle) / 360
    smooth = [ndimage.gaussian_filter1d(v, sigma, axis=1, mode="wrap") for v in (inner, thickness)]
    return smooth[0], np.maximum(smooth[1], step)


def polar_view(study: Study, depths: int = 16, angles: int = 96, **options) -> torch.Tensor:
    """The wall of a study unrolled: ``(1, depths, angles, slices)`` float32; see :func:`polar_grid` for the options.

    Depth runs from inside the cavity to outside the epicardium; angle 0 is the anterior insertion point (120° of the
    standard frame), then on through septum, inferior and lateral wall; slices run from base to apex.
    :meth:`PolarGrid.paint` is the inverse.
    """
    return polar_grid(study, depths, angles, **options).view(study.get_image("image").data)


def study_tensor(
    study: Study,
    view: str = "polar",
    *,
    depths: int = 16,
    angles: int = 96,
    pixels: int = 96,
    field_of_view_mm: float | None = None,
    heart_scale: float = 2.0,
    orientation: str = "rvip",
    min_confidence: float = MIN_CONFIDENCE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A study as a network takes it: the slices with a heart, intensities normalised, in the polar or the image view.

    Args:
        study: on the scanner's grid, or in the frame already.
        view: ``"polar"`` or ``"image"``.
        depths, angles: size of the polar view.
        pixels, field_of_view_mm, heart_scale: of the image view, see :class:`StandardizeShortAxis`.
        orientation, min_confidence: see there; they hold for both views.

    Returns:
        ``(slices, 1, depths, angles)`` or ``(slices, 1, pixels, pixels)`` float32, remote myocardium at 0 (see
        :func:`lgekit.anatomy.frame.intensity_reference`); and ``(slices,)`` float32 levels, 0 base … 1 apex. All slices
        are returned where no heart is labelled.
    """
    if view == "polar":
        grid = polar_grid(study, depths, angles, orientation, min_confidence)
        data, levels = (
            grid.view(normalise(study.get_image("image").data, intensity_reference(study))),
            grid.levels,
        )
    elif view == "image":
        data = normalise(study.get_image("image").data, intensity_reference(study))
        labels = study.label_map
        levels = np.full(study.spatial_shape[2], np.nan) if labels is None else slice_levels(labels)
        if "frame" not in study:
            transform = StandardizeShortAxis(
                pixels, field_of_view_mm, heart_scale, orientation, min_confidence
            )
            frame = transform.find_frame(study)
            data, levels = frame.to_frame(data), levels[::-1] if frame.reversed_slices else levels
    else:
        raise InputError("view", f"{view!r}", "Use 'polar' or 'image'.")
    if np.isnan(levels).all():
        levels = np.linspace(0, 1, len(levels)) if len(levels) > 1 else np.array([0.5])
    heart = torch.as_tensor(np.flatnonzero(np.isfinite(levels)))
    pictures = data.permute(3, 0, 1, 2)[heart].contiguous()
    return pictures, torch.as_tensor(np.ascontiguousarray(levels), dtype=torch.float32)[heart]
