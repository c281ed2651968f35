"""The left ventricle of a label map: where it lies, how wide it is, which slices are base, mid and apex."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lgekit.masks import Vector, heart_box, label_stack, lv_mask, slice_centres
from lgekit.studies import CAVITY


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
        thirds[inside] = np.floor(3 * (levels[inside] * (count - 1) + 0.5) / max(count, 1)).astype(int)
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
