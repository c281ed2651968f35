"""Geometry of label maps: contours, wall depth and slice levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

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


def wall_depth(labels_slice: np.ndarray, spacing: Vector) -> np.ndarray:
    """Measure the depth in the wall: 0 at the endocardium, 1 at the epicardium, NaN outside.

    Laplace's equation between the two contours gives streamlines that never cross. The depth of a
    pixel is the length of its streamline to the endocardium, as a share of the whole streamline
    (Yezzi and Prince, IEEE TMI 2003;22:1332–1339). Contours run along the faces between pixels, so
    a wall one pixel thick has depth 0.5. In a slice without a cavity (the apex) the depth grows
    from the centre. Specks of wall that touch neither contour get 0.5. Spacing is in mm.
    """
    labels_slice = np.pad(np.asarray(labels_slice), 2)  # the wall must not touch the border
    wall = np.isin(labels_slice, WALL_CODES)
    depth = np.full(wall.shape, np.nan)
    if wall.any():
        box = tuple(slice(side.start - 2, side.stop + 2) for side in box_of(wall))
        # 1 wall, 2 cavity; as bytes, because painting many scars needs the same wall again
        codes = (wall[box] + 2 * (labels_slice[box] == CAVITY)).astype(np.uint8)
        depth[wall] = _depth_of_pixels(codes.tobytes(), codes.shape, *map(float, spacing[:2]))
    return depth[2:-2, 2:-2]


@lru_cache(maxsize=2048)
def _depth_of_pixels(codes: bytes, shape: tuple[int, int], *spacing: float) -> np.ndarray:
    values = np.frombuffer(codes, np.uint8).reshape(shape)
    wall, cavity = values == 1, values == 2
    if not cavity.any():
        (centre,) = slice_centres(wall[..., None])
        x, y = ((np.arange(n) - c) * h for n, c, h in zip(shape, centre, spacing, strict=True))
        from_centre = np.hypot(x[:, None], y[None])
        to_border = ndimage.distance_transform_edt(wall, sampling=spacing) - min(spacing) / 2
        return (from_centre / (from_centre + np.maximum(to_border, 0) + 1e-9))[wall]

    count = int(wall.sum())
    number = np.full(wall.shape, -1)
    number[wall] = np.arange(count)
    # One row for each neighbour: left, right, above, below. Its number is -1 outside the wall.
    shifts = [(1, 0), (-1, 0), (1, 1), (-1, 1)]
    neighbour = np.array([np.roll(number, shift, axis)[wall] for shift, axis in shifts])
    in_cavity = np.array([np.roll(cavity, shift, axis)[wall] for shift, axis in shifts])
    in_wall = neighbour >= 0
    pixel_mm = np.repeat(spacing, 2)[:, None]
    distance = np.where(in_wall, pixel_mm, pixel_mm / 2)  # a contour is half a pixel away
    rows = np.broadcast_to(np.arange(count), neighbour.shape)

    def solve(weights: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Solve: sum over neighbours of weight · (value − neighbour's value) = known."""
        values = np.r_[weights.sum(0) + 1e-9, -weights[in_wall]]
        place = np.r_[rows[0], rows[in_wall]], np.r_[rows[0], neighbour[in_wall]]
        return np.atleast_1d(spsolve(sparse.csc_array((values, place), (count, count)), known))

    weights = np.where(in_wall, 1.0, 2.0) / pixel_mm**2
    potential = solve(weights, (weights * (~in_wall & ~in_cavity)).sum(0) + 0.5e-9)
    beyond = np.where(in_wall, potential[neighbour], np.where(in_cavity, 0.0, 1.0))
    slope = (beyond - potential) / distance
    gradient = np.stack([slope[1] - slope[0], slope[3] - slope[2]]) / 2
    uphill = np.repeat(gradient / (np.hypot(*gradient) + 1e-12), 2, axis=0)
    uphill[[0, 2]] *= -1  # the part of the unit vector that points to each neighbour
    inner, outer = (  # length of the streamline to each contour, by upwind differences
        solve(np.maximum(sign * uphill, 0) / distance, np.ones(count)) for sign in (-1, 1)
    )
    total = inner + outer
    usable = np.isfinite(total) & (total > 0) & (total < 1e6)
    return np.where(usable, np.clip(inner / np.where(usable, total, 1), 0, 1), 0.5)


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
