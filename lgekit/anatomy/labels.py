"""Geometry of label maps: contours, wall thickness and slice levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from lgekit.errors import InputError
from lgekit.study import CAVITY, RV, WALL_CODES

Vector = Sequence[float] | np.ndarray
_IN_PLANE = ndimage.generate_binary_structure(2, 1)[
    ..., None
]  # a pixel's four neighbours in its slice


def label_stack(labels, name: str = "labels") -> np.ndarray:
    """Labels as an array ``(X, Y, slices)``; a leading channel axis of one is dropped.

    Raises:
        InputError: naming the shape, where it is anything else.
    """
    array = np.asarray(labels)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3:
        raise InputError(
            name, f"shape {array.shape}", "Give one label map of shape (X, Y, slices)."
        )
    return array


def bounding_box(mask: np.ndarray, margin: int = 1) -> tuple[slice, slice]:
    """The smallest rectangle that holds a 2-D mask, with a margin (cut at the array's border)."""
    edges = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    return tuple(slice(max(int(e[0]) - margin, 0), int(e[-1]) + 1 + margin) for e in edges)  # type: ignore[return-value]


def heart_box(labels: np.ndarray) -> tuple[slice, slice]:
    """The rectangle in the plane that holds every label of a stack; one pixel in the corner where there is none."""
    rows = np.flatnonzero(
        labels.reshape(labels.shape[0], -1).any(1)
    )  # long contiguous runs: much faster than axis 2
    if len(rows) == 0:
        return slice(0, 1), slice(0, 1)
    part = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(np.any(labels[part], axis=0).any(axis=-1))
    return part, slice(int(columns[0]), int(columns[-1]) + 1)


def lv_mask(labels) -> np.ndarray:
    """The left ventricle (cavity and wall), holes filled slice by slice: ``(X, Y, slices)`` bool."""
    array = label_stack(labels)
    mask = (array >= CAVITY) & (array < RV)
    box = heart_box(mask)
    mask[box] = ndimage.binary_fill_holes(mask[box], _IN_PLANE)
    return mask


def slice_centres(mask: np.ndarray) -> np.ndarray:
    """Centroid of a ``(X, Y, slices)`` mask in each slice, ``(slices, 2)`` in voxels; NaN where the mask is empty.

    A centroid in voxels is the centroid in millimetres too, whatever the pixels' shape.
    """
    counts = [
        mask.sum(axis, dtype=np.int64).astype(float) for axis in (1, 0)
    ]  # per (X, S) and (Y, S)
    area = counts[0].sum(0)
    sums = np.stack([np.arange(len(count)) @ count for count in counts], axis=1)
    return np.where(area[:, None] > 0, sums / np.maximum(area, 1)[:, None], np.nan)


def voxel_angle(x, y, centre: Vector, spacing: Vector) -> np.ndarray:
    """Angle of voxels ``x, y`` seen from ``centre`` (voxels), degrees in [0, 360), measured in mm."""
    return np.degrees(np.arctan2((centre[1] - y) * spacing[1], (x - centre[0]) * spacing[0])) % 360


def angle_map(shape: Sequence[int], centre: Vector, spacing: Vector) -> np.ndarray:
    """Angle of each pixel seen from ``centre`` (voxels), ``(X, Y)`` float64 degrees in [0, 360), measured in mm."""
    return voxel_angle(np.arange(shape[0])[:, None], np.arange(shape[1])[None], centre, spacing)


def wall_depth(labels_slice: np.ndarray, spacing: Vector) -> np.ndarray:
    """Depth in the wall: 0 at the endocardium, 1 at the epicardium, NaN outside; ``(X, Y)`` float64.

    Laplace's equation between the two borders gives streamlines that never cross; the depth of a pixel is the length
    of its streamline to the endocardium over the whole streamline's (Yezzi and Prince, IEEE TMI 2003;22:1332–1339).
    So it is linear across a wall of any thickness, where the potential itself would lean to the outside in a thick
    one. Borders lie on the faces between pixels: a wall one pixel thick has depth 0.5. A slice without a cavity (the
    apex) has its endocardium in its centre.

    Args:
        labels_slice: one slice of a label map.
        spacing: mm along the two axes (further values are not read).
    """
    labels_slice = np.asarray(labels_slice)
    wall = np.isin(labels_slice, WALL_CODES)
    depth = np.full(wall.shape, np.nan)
    if not wall.any():
        return depth
    box = bounding_box(wall, margin=2)
    pad = [(int(b.start == 0), int(b.stop >= n)) for b, n in zip(box, wall.shape, strict=True)]
    inner = np.pad(labels_slice[box] == CAVITY, pad)
    crop = np.pad(wall[box], pad)
    if not inner.any():
        centre = slice_centres(crop[..., None])[0]
        offsets = [
            (np.arange(n) - c) * h for n, c, h in zip(crop.shape, centre, spacing, strict=False)
        ]
        distance = np.hypot(offsets[0][:, None], offsets[1][None])
        outside = ndimage.distance_transform_edt(crop, sampling=spacing[:2]) - min(spacing[:2]) / 2
        depth[wall] = (distance / (distance + np.maximum(outside, 0) + 1e-9))[crop]
        return depth
    # pixels that neither border reaches (specks of wall without a cavity beside them) keep the depth 0.5
    depth[wall] = _relative_depth(crop, inner, spacing)
    return depth


def _relative_depth(wall: np.ndarray, inner: np.ndarray, spacing: Vector) -> np.ndarray:
    """The depth of the wall's pixels, ``(pixels,)``; ``wall`` must not touch the array's border."""
    count = int(wall.sum())
    index = np.full(wall.shape, -1)
    index[wall] = np.arange(count)
    rows = np.arange(count)
    neighbours = []  # (index of the neighbour or -1, whether it is cavity, mm between the pixels' centres)
    for axis in (0, 1):
        for step in (-1, 1):
            neighbours.append(
                (
                    np.roll(index, -step, axis)[wall],
                    np.roll(inner, -step, axis)[wall],
                    spacing[axis],
                )
            )

    def solve(weights: list[np.ndarray], known: np.ndarray) -> np.ndarray:
        """Solve sum over neighbours of weight · (value − neighbour's value) = known."""
        diagonal = np.sum(weights, axis=0) + 1e-9
        entries = [
            (w[n >= 0], rows[n >= 0], n[n >= 0])
            for w, (n, _, _) in zip(weights, neighbours, strict=True)
        ]
        off = [np.concatenate(part) for part in zip(*entries, strict=True)]
        matrix = sparse.csc_array(
            (np.r_[diagonal, -off[0]], (np.r_[rows, off[1]], np.r_[rows, off[2]])),
            shape=(count, count),
        )
        return np.atleast_1d(spsolve(matrix, known))

    weights = [
        np.where(n >= 0, 1.0, 2.0) / h**2 for n, _, h in neighbours
    ]  # a border is half a pixel away
    outer = sum(
        w * ((n < 0) & ~cavity) for w, (n, cavity, _) in zip(weights, neighbours, strict=True)
    )
    potential = solve(weights, outer + 0.5e-9)
    slopes = []  # of the potential towards each neighbour, per mm
    for n, cavity, h in neighbours:
        there = np.where(n >= 0, potential[n], np.where(cavity, 0.0, 1.0))
        slopes.append((there - potential) / np.where(n >= 0, h, h / 2))
    gradient = [(slopes[1] - slopes[0]) / 2, (slopes[3] - slopes[2]) / 2]
    length = np.hypot(*gradient) + 1e-12
    lengths = []
    for sign in (
        -1,
        1,
    ):  # towards the endocardium (down the potential), then the epicardium: upwind differences
        upwind = []
        for k, (n, _, h) in enumerate(neighbours):
            pull = np.maximum(sign * (1 if k % 2 else -1) * gradient[k // 2] / length, 0)
            upwind.append(pull / np.where(n >= 0, h, h / 2))
        lengths.append(solve(upwind, np.ones(count)))
    total = lengths[0] + lengths[1]
    usable = np.isfinite(total) & (total > 0) & (total < 1e6)
    return np.where(usable, np.clip(lengths[0] / np.where(usable, total, 1), 0, 1), 0.5)


@dataclass(frozen=True, eq=False)
class Ventricle:
    """The left ventricle of one label map, measured once.

    Attributes:
        labels: the part of the stack that holds it, ``(x, y, slices)``.
        box: where this part lies in the plane.
        mask: cavity and wall, holes filled; shape of ``labels``.
        centres: ``(slices, 2)`` voxels of the whole stack, NaN in slices without a heart.
    """

    labels: np.ndarray
    box: tuple[slice, slice]
    mask: np.ndarray
    centres: np.ndarray

    @classmethod
    def of(cls, labels) -> Ventricle:
        """Measure a label map ``(X, Y, slices)``."""
        array = label_stack(labels)
        box = heart_box(array)
        part = np.ascontiguousarray(array[box])
        mask = lv_mask(part)
        return cls(part, box, mask, slice_centres(mask) + [box[0].start, box[1].start])

    @cached_property
    def area(self) -> np.ndarray:
        """Pixels of each slice, ``(slices,)`` float."""
        return self.mask.reshape(-1, self.mask.shape[2]).sum(0).astype(float)

    @property
    def centre(self) -> np.ndarray:
        """Median of the slices' centres, ``(2,)`` voxels; NaN where there is no heart."""
        found = self.centres[self.area > 0]
        return np.median(found, axis=0) if len(found) else np.full(2, np.nan)

    @cached_property
    def base_first(self) -> bool:
        """Whether the first slice is the basal end; the ventricle is wider in the first half of its slices."""
        area = self.area[self.area > 0]
        half = len(area) // 2
        return bool(half == 0 or area[:half].mean() >= area[-half:].mean())

    @property
    def levels(self) -> np.ndarray:
        """Level of each slice, ``(slices,)``; see :func:`slice_levels`."""
        levels = np.full(len(self.area), np.nan)
        found = np.flatnonzero(self.area)
        if len(found):
            ends = (found[0], found[-1]) if self.base_first else (found[-1], found[0])
            levels[found] = abs(found - ends[0]) / abs(ends[1] - ends[0]) if len(found) > 1 else 0.5
        return levels

    @property
    def thirds(self) -> np.ndarray:
        """Third of each slice, ``(slices,)``; see :func:`slice_thirds`."""
        levels, inside = self.levels, self.area > 0
        count = inside.sum()
        thirds = np.full(len(levels), -1)
        thirds[inside] = np.floor(3 * (levels[inside] * (count - 1) + 0.5) / max(count, 1)).astype(
            int
        )
        closed = ~(self.labels == CAVITY).any((0, 1))
        thirds[closed & (thirds == 2)] = 3
        return thirds

    def diameter_mm(self, spacing: Vector) -> float:
        """Largest epicardial diameter over slices, of the circle of equal area, mm; NaN where there is no heart."""
        area = self.area.max(initial=0) * spacing[0] * spacing[1]
        return float(2 * np.sqrt(area / np.pi)) if area else float("nan")


def lv_centre(labels) -> tuple[np.ndarray, np.ndarray]:
    """Centre of the left ventricle: the centroid of cavity and wall together.

    Returns:
        The study's centre, ``(2,)`` voxels (median over slices; NaN where there is no heart), and the centre in each
        slice, ``(slices, 2)`` voxels, NaN in slices without a heart.
    """
    ventricle = Ventricle.of(labels)
    return ventricle.centre, ventricle.centres


def lv_diameter_mm(labels, spacing: Vector) -> float:
    """Largest epicardial diameter over slices, of the circle of equal area, in mm; NaN where there is no heart."""
    return Ventricle.of(labels).diameter_mm(spacing)


def base_first(labels) -> bool:
    """Whether the first slice is the basal end: the left ventricle is wider in the first half of its slices."""
    return Ventricle.of(labels).base_first


def slice_levels(labels) -> np.ndarray:
    """Level of each slice: 0 at the most basal slice with a heart, 1 at the most apical; NaN outside, ``(slices,)``.

    A single slice has level 0.5.
    """
    return Ventricle.of(labels).levels


def slice_thirds(labels) -> np.ndarray:
    """Third of the left ventricle of each slice: 0 basal, 1 mid, 2 apical, 3 apex, -1 outside; ``(slices,)`` int.

    Thirds are equal along the ventricle, each slice counted at its middle (Cerqueira 2002); the apex (segment 17) is
    an apical slice with a wall and no cavity.
    """
    return Ventricle.of(labels).thirds
