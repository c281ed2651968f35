"""Geometry of label maps: contours, wall depth and slice levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from lgekit.errors import InputError
from lgekit.study import CAVITY, RV, WALL_CODES

Vector = Sequence[float] | np.ndarray
FOUR_NEIGHBOURS = ndimage.generate_binary_structure(2, 1)[..., None]  # in the plane of the slice


def box_of(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rectangle around a mask ``(X, Y)``; one corner pixel if it is empty."""
    (box,) = ndimage.find_objects(mask.view(np.int8)) or [(slice(0, 1), slice(0, 1))]
    return box


def slice_centres(mask: np.ndarray) -> np.ndarray:
    """Return the centroid of each slice of a mask: ``(slices, 2)`` voxels, NaN if empty."""
    x, y = (mask.sum(axis, dtype=np.int64).astype(float) for axis in (1, 0))
    sums = np.stack([np.arange(len(count)) @ count for count in (x, y)], axis=1)
    with np.errstate(invalid="ignore"):
        return sums / x.sum(0)[:, None]


def voxel_angle(x, y, centre: Vector, spacing: Vector) -> np.ndarray:
    """Return the angle of voxels around ``centre``: degrees in [0, 360), measured in mm."""
    return np.degrees(np.arctan2((centre[1] - y) * spacing[1], (x - centre[0]) * spacing[0])) % 360


def angle_map(shape: Sequence[int], centre: Vector, spacing: Vector) -> np.ndarray:
    """Return :func:`voxel_angle` of every pixel of a slice, ``(X, Y)`` float64."""
    return voxel_angle(np.arange(shape[0])[:, None], np.arange(shape[1])[None], centre, spacing)


def wall_depth(labels: np.ndarray, spacing: Vector) -> np.ndarray:
    """Measure the depth in the wall: 0 at the endocardium, 1 at the epicardium, NaN outside.

    ``labels`` are a slice ``(X, Y)`` or a stack ``(X, Y, slices)``, and so is the result.

    The depth is the distance to the nearest point of the cavity, as a share of the distances to the
    cavity and to the outside. Distances (mm) end at the faces between pixels, so a wall one pixel
    thick has depth 0.5. In a slice without a cavity (the apex) the depth grows from the centre.
    """
    labels = np.asarray(labels)
    if labels.ndim == 3:
        return np.stack([wall_depth(plane, spacing) for plane in np.moveaxis(labels, 2, 0)], 2)
    wall, cavity = np.isin(labels, WALL_CODES), labels == CAVITY
    depth = np.full(wall.shape, np.nan)
    if not wall.any():
        return depth
    box = box_of(wall | cavity)
    wall, cavity = np.pad(wall[box], 1), np.pad(cavity[box], 1)  # the outside is all around
    if cavity.any():
        inner = _to_border(~cavity, spacing)
    else:
        centre = slice_centres(wall[..., None])[0]
        inner = np.hypot(*((np.indices(wall.shape).T - centre) * spacing[:2]).T)
    outer = _to_border(wall | cavity, spacing)
    share = inner / (inner + outer + 1e-9)
    depth[box] = np.where(wall, share, np.nan)[1:-1, 1:-1]
    return depth


def _to_border(mask: np.ndarray, spacing: Vector) -> np.ndarray:
    """Return the distance (mm) of each pixel of a mask to the nearest pixel outside of it."""
    nearest = ndimage.distance_transform_edt(
        mask, spacing[:2], return_distances=False, return_indices=True
    )
    steps = np.abs(nearest - np.indices(mask.shape))
    to_face = 1 - 0.5 / np.maximum(steps.max(0), 1)  # not to the centre of that pixel
    return np.hypot(*(steps.T * spacing[:2]).T) * to_face


@dataclass(frozen=True, eq=False)
class Ventricle:
    """The left ventricle of one label map. Make it with :meth:`of`."""

    labels: np.ndarray  # (x, y, slices), the part of the stack that contains all labels
    box: tuple[slice, slice]  # the position of this part in the plane
    mask: np.ndarray  # cavity and wall with holes filled, in the shape of `labels`
    centres: np.ndarray  # (slices, 2) voxels of the whole stack, NaN in slices without a heart

    @classmethod
    def of(cls, labels) -> Ventricle:
        """Measure a label map ``(X, Y, slices)``."""
        if labels.ndim != 3:
            remedy = "Give a label map of shape (X, Y, slices), or run the heart network."
            raise InputError("labels", f"shape {labels.shape}", remedy)
        rows = labels.reshape(len(labels), -1).any(1)  # five times faster than labels.any(2)
        box = box_of(np.outer(rows, labels.any(0).any(1)))
        part = np.ascontiguousarray(labels[box])
        mask = ndimage.binary_fill_holes((part >= CAVITY) & (part < RV), FOUR_NEIGHBOURS)
        return cls(part, box, mask, slice_centres(mask) + [box[0].start, box[1].start])

    @cached_property
    def area(self) -> np.ndarray:
        """Pixels in each slice, ``(slices,)`` float."""
        return self.mask.sum((0, 1)).astype(float)

    @property
    def centre(self) -> np.ndarray:
        """Median of the slices' centres, ``(2,)`` voxels; NaN without a heart."""
        found = self.centres[self.area > 0]
        return np.median(found, axis=0) if len(found) else np.full(2, np.nan)

    @cached_property
    def base_first(self) -> bool:
        """Whether the first slice is basal: the first half of the slices is the wider one."""
        area = self.area[self.area > 0]
        half = len(area) // 2
        return bool(half == 0 or area[:half].mean() >= area[-half:].mean())

    @property
    def levels(self) -> np.ndarray:
        """Level of each slice: 0 most basal, 1 most apical (0.5 if single), NaN without a heart."""
        levels = np.full(len(self.area), np.nan)
        found = np.flatnonzero(self.area)
        if len(found):
            first, last = found[[0, -1]] if self.base_first else found[[-1, 0]]
            levels[found] = abs(found - first) / abs(last - first) if len(found) > 1 else 0.5
        return levels

    @property
    def thirds(self) -> np.ndarray:
        """Third of each slice, int: 0 basal, 1 mid, 2 apical, 3 apex, -1 outside.

        Thirds are equal along the ventricle, and each slice counts at its middle. The apex is an
        apical slice with a wall and no cavity (Cerqueira 2002).
        """
        inside = self.area > 0
        thirds = np.full(len(inside), -1)
        position = (self.levels[inside] * (inside.sum() - 1) + 0.5) / max(inside.sum(), 1)
        thirds[inside] = np.floor(3 * position).astype(int)
        thirds[~(self.labels == CAVITY).any((0, 1)) & (thirds == 2)] = 3
        return thirds

    def diameter_mm(self, spacing: Vector) -> float:
        """Return the largest diameter (of the circle of equal area), mm; NaN without a heart."""
        area = self.area.max(initial=0) * spacing[0] * spacing[1]
        return float(2 * np.sqrt(area / np.pi)) if area else float("nan")
