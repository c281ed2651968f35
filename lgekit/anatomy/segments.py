"""What a label map shows: depth in the wall, AHA segments, insertion points and findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

from lgekit.errors import InputError
from lgekit.findings import LEVELS, WALLS, Findings, Scar, neighbouring_walls
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, RV, SCARRED, WALL_CODES, Landmarks, Study

ANTERIOR_RVIP_DEG = 120.0  # in the standard frame, between AHA segments 1 and 2 (Cerqueira 2002)
SECTORS = 60  # of 6° each, around the wall
MINIMUM_SHARE = 0.1  # of a wall at one level; less is a rim that crosses the border of a wall [O]
FOUR_NEIGHBOURS = ndimage.generate_binary_structure(2, 1)[..., None]  # in the plane of the slice
Vector = Sequence[float] | np.ndarray


def slice_centres(mask: np.ndarray) -> np.ndarray:
    """Return the centroid of each slice of a mask: ``(slices, 2)`` voxels, NaN if empty."""
    x, y = (mask.sum(axis, dtype=np.int64).astype(float) for axis in (1, 0))
    sums = np.stack([np.arange(len(count)) @ count for count in (x, y)], axis=1)
    with np.errstate(invalid="ignore"):
        return sums / x.sum(0)[:, None]


def voxel_angle(x, y, centre: Vector, spacing: Vector) -> np.ndarray:
    """Return the angle of voxels around ``centre``: degrees in [0, 360), measured in mm."""
    return np.degrees(np.arctan2((centre[1] - y) * spacing[1], (x - centre[0]) * spacing[0])) % 360


def wall_depth(labels: np.ndarray, spacing: Vector) -> np.ndarray:
    """Measure the depth in the wall: 0 at the endocardium, 1 at the epicardium, NaN outside.

    ``labels`` are a slice ``(X, Y)`` or a stack ``(X, Y, slices)``, and so is the result. Depth is
    the distance to the nearest point of the cavity, as a share of those to the cavity and to the
    outside. Distances (mm) end at the faces between pixels, so a wall one pixel thick has depth
    0.5. In a slice without a cavity (the apex) the depth grows from the centre.
    """
    labels = np.asarray(labels)
    if labels.ndim == 3:
        return np.stack([wall_depth(plane, spacing) for plane in np.moveaxis(labels, 2, 0)], 2)
    wall, cavity = np.isin(labels, WALL_CODES), labels == CAVITY
    depth = np.full(wall.shape, np.nan)
    if not wall.any():
        return depth
    (box,) = ndimage.find_objects((wall | cavity).view(np.int8))
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
    area: np.ndarray  # (slices,) float, pixels of the mask in each slice
    centres: np.ndarray  # (slices, 2) voxels of the whole stack, NaN in slices without a heart
    base_first: bool  # whether the first half of the slices is the wider one
    levels: np.ndarray  # (slices,) 0 most basal, 1 most apical (0.5 if single), NaN without a heart

    @classmethod
    def of(cls, labels) -> Ventricle:
        """Measure a label map ``(X, Y, slices)``."""
        rows = labels.reshape(len(labels), -1).any(1)  # five times faster than labels.any(2)
        inside = np.outer(rows, labels.any(0).any(1)).view(np.int8)
        (box,) = ndimage.find_objects(inside) or [(slice(0, 1), slice(0, 1))]
        part = np.ascontiguousarray(labels[box])
        mask = ndimage.binary_fill_holes((part >= CAVITY) & (part < RV), FOUR_NEIGHBOURS)
        area = mask.sum((0, 1)).astype(float)
        found, half = np.flatnonzero(area), np.count_nonzero(area) // 2
        base_first = bool(area[found[:half]].sum() >= area[found[len(found) - half :]].sum())
        levels = np.where(area > 0, 0.5, np.nan)
        if half:
            first, last = found[[0, -1]] if base_first else found[[-1, 0]]
            levels[found] = abs(found - first) / abs(last - first)
        centres = slice_centres(mask) + [box[0].start, box[1].start]
        return cls(part, box, mask, area, centres, base_first, levels)

    @property
    def centre(self) -> np.ndarray:
        """Median of the slices' centres, ``(2,)`` voxels; NaN without a heart."""
        found = self.centres[self.area > 0]
        return np.median(found, axis=0) if len(found) else np.full(2, np.nan)

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


def to_frame_deg(angle, landmarks: Landmarks | None):
    """Convert angles of the stored array to angles of the standard frame (anterior point at 120°).

    InputError if an insertion point is unknown; the inferior one reveals mirrored storage.
    """
    if landmarks is None or not np.isfinite(landmarks.angles).all():
        remedy = "Give both, or run the heart network."
        raise InputError("landmarks", "RV insertion points unknown", remedy)
    turn = -1 if landmarks.mirrored else 1
    return (ANTERIOR_RVIP_DEG + turn * (angle - landmarks.anterior_rvip_deg)) % 360


def segment_number(frame_deg, third) -> np.ndarray:
    """Return the AHA segment at an angle; third: 0 basal, 1 mid, 2 apical, 3 apex. Broadcasts."""
    six = 1 + 6 * third + (np.asarray(frame_deg) - 60) % 360 // 60
    four = 13 + (np.asarray(frame_deg) - 45) % 360 // 90
    return np.select([third == 3, third == 2], [17, four], six).astype(np.uint8)


def wall_voxels(labels, spacing: Vector, landmarks: Landmarks | None):
    """Return the ventricle, and ``x``, ``y``, slice and frame angle of each voxel of the wall."""
    ventricle = Ventricle.of(labels)
    plane, x, y = np.nonzero(np.moveaxis(np.isin(labels, WALL_CODES), 2, 0))
    angle = voxel_angle(x, y, ventricle.centres[plane].T, spacing)
    return ventricle, x, y, plane, to_frame_deg(angle, landmarks)


def segment_map(labels, spacing: Vector, landmarks: Landmarks | None) -> np.ndarray:
    """Label each voxel of the wall with its AHA segment: ``(X, Y, slices)`` uint8, 1–17, else 0.

    Source: Cerqueira et al., Circulation 2002;105:539–542: six walls of 60° at the basal and the
    mid level, four of 90° at the apical level, and the apex, from the anterior insertion point.
    Raises InputError if an insertion point is unknown.
    """
    ventricle, x, y, plane, frame_deg = wall_voxels(labels, spacing, landmarks)
    segments = np.zeros(labels.shape, np.uint8)
    segments[x, y, plane] = segment_number(frame_deg, ventricle.thirds[plane])
    return segments


def insertion_points(labels, spacing: Vector, mirrored: bool) -> Landmarks:
    """Find the insertion points: both ends of the arc where the right ventricle touches the left.

    The epicardium is in contact where the RV cavity is within 5 % of the LV's diameter. Slices in
    the middle of the ventricle count, weighted by the width of their arc. The confidence falls with
    the spread over slices; without contact it is 0, and the angles are NaN.

    A mirrored heart (anterior → septum → inferior runs clockwise) swaps both ends, and a mask
    cannot tell them apart.
    """
    ventricle = Ventricle.of(labels)
    levels, right = ventricle.levels, ventricle.labels == RV
    with_rv = np.isfinite(levels) & right.any((0, 1))
    middle = with_rv & (levels >= 0.1) & (levels <= 0.75)
    arcs = []
    for s in np.flatnonzero(middle if middle.any() else with_rv):
        centre = ventricle.centres[s] - [side.start for side in ventricle.box]
        arc = _contact_arc(ventricle.mask[..., s], right[..., s], centre, spacing)
        if arc is not None:
            arcs.append(arc)
    if not arcs:
        return Landmarks(float("nan"), float("nan"), 0.0)
    starts, ends = np.transpose(arcs)
    wide = (ends - starts) % 360
    weight = np.clip(4 * wide / wide.max() - 2.8, 0, 1)
    start, start_spread = _circular_mean(starts, weight)
    end, end_spread = _circular_mean(ends, weight)
    confidence = float(np.clip(1 - (start_spread + end_spread) / 60, 0, 1))
    confidence *= min(1.0, 0.4 + 0.2 * weight.sum())
    anterior, inferior = (end, start) if mirrored else (start, end)
    return Landmarks(anterior, inferior, confidence)


def _circular_mean(angles: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted mean of angles, and weighted mean deviation from it."""
    mean = np.degrees(np.angle(weight @ np.exp(1j * np.radians(angles))))
    apart = np.abs((angles - mean + 180) % 360 - 180)
    return float(mean % 360), float(weight @ apart / weight.sum())


def _contact_arc(left: np.ndarray, right: np.ndarray, centre: np.ndarray, spacing: Vector):
    """Angles, counter-clockwise, between which a slice's epicardium touches the RV, or None."""
    diameter = 2 * np.sqrt(left.sum() * spacing[0] * spacing[1] / np.pi)
    x, y = np.nonzero(left & ~ndimage.binary_erosion(left))
    edge = np.transpose(np.nonzero(right & ~ndimage.binary_erosion(right)))
    distance = cdist(np.stack([x, y], 1) * spacing[:2], edge * spacing[:2]).min(1)
    bins = 120  # of 3°, about one pixel of the epicardium
    nearest = np.full(bins, np.inf)
    place = (voxel_angle(x, y, centre, spacing) * bins / 360).astype(int) % bins
    np.minimum.at(nearest, place, distance)
    filled = np.flatnonzero(np.isfinite(nearest))
    nearest = np.interp(np.arange(bins), filled, nearest[filled], period=bins)
    reach = 0.05 * diameter
    contact = ndimage.binary_closing(np.tile(nearest < reach, 3), iterations=3)[bins : 2 * bins]
    if not contact.any() or contact.all():
        return None
    first = int(np.flatnonzero(~contact)[0])
    runs, _ = ndimage.label(np.roll(contact, -first))
    longest = np.flatnonzero(runs == 1 + np.bincount(runs)[1:].argmax())
    arc = len(longest) * 360 / bins
    if not 25 <= arc <= 220:
        return None
    # Both ends count as contact a little too early, because `reach` exceeds the usual distance.
    early = np.degrees(max(reach - np.median(nearest[contact]), 0) / (diameter / 2))
    start = ((longest[0] + first) * 360 / bins % 360 + early) % 360
    return start, (start + arc - 2 * early) % 360


def known_landmarks(study: Study) -> Landmarks | None:
    """Return the study's landmarks; None if one is unknown."""
    landmarks = study["landmarks"]
    return landmarks if landmarks and np.isfinite(landmarks.angles).all() else None


def findings_from_labels(study: Study) -> Findings:
    """Describe the scar mask as a reader would: walls, levels, depth, transmurality, no-reflow.

    :func:`scars_in_words` has the definitions. Without insertion points the scar has no walls.
    Without cavity and healthy myocardium only the presence of scar is known.
    """
    labels = study.label_map
    if labels is None:
        raise InputError(study["study_id"], "no labels", "Give a label map of the scar.")
    if not np.isin(labels, SCARRED).any():
        return Findings(())
    if not np.isin((CAVITY, MYOCARDIUM), labels).all():
        return Findings((Scar(),))
    known = known_landmarks(study)
    landmarks = known or Landmarks(ANTERIOR_RVIP_DEG, 360 - ANTERIOR_RVIP_DEG)
    ventricle, x, y, plane, angle = wall_voxels(labels, study.spacing_mm, landmarks)
    codes = labels[x, y, plane]
    depth = wall_depth(labels, study.spacing_mm)[x, y, plane]
    thirds, oriented = ventricle.thirds, known is not None
    return Findings(scars_of_voxels(codes, plane, angle, depth, thirds, oriented))


def scars_of_voxels(codes, plane, frame_deg, depth, thirds, oriented=True) -> tuple[Scar, ...]:
    """Describe the wall as scars, from the label, slice, angle and depth of each of its voxels."""
    cell = wall_cell(plane, frame_deg, depth)
    masks = codes > 0, np.isin(codes, SCARRED), codes == NO_REFLOW
    wall, scar, core = (count_cells(cell[mask], len(thirds)) for mask in masks)
    return scars_in_words(wall, scar, core, thirds, oriented)


def wall_cell(plane: np.ndarray, frame_deg: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Number the cell of each voxel: its slice, 6° sector and third of the wall's thickness."""
    sector = (frame_deg * SECTORS / 360).astype(int) % SECTORS
    return 3 * (SECTORS * plane + sector) + np.clip((3 * depth).astype(int), 0, 2)


def count_cells(cell: np.ndarray, slices: int) -> np.ndarray:
    """Count voxels in each cell (see :func:`wall_cell`), ``(slices, 60, 3)`` int."""
    return np.bincount(cell, minlength=3 * SECTORS * slices).reshape(-1, SECTORS, 3)


def scars_in_words(
    wall: np.ndarray, scar: np.ndarray, core: np.ndarray, thirds: np.ndarray, oriented: bool = True
) -> tuple[Scar, ...]:
    """Describe counts of wall, scar (with no-reflow) and no-reflow in each cell as scars.

    The limits are our choice [O]. Without orientation there is one scar, without walls.

    - Walls: a wall of 60° is affected at a level if scar fills at least 10 % of it, or 20 % in one
      slice (else the fullest wall is affected). Neighbouring affected walls are one scar.
    - Transmurality: share of the wall's thickness that is scar, the mean over sectors weighted by
      their scar.
    - Depth: transmural from 75 %. Below, mid-wall if the inner and the outer third are less than
      half as full as the middle third, else named after the fuller border. An infarct includes the
      subendocardium, however far it reaches (Mahrholdt et al., Eur Heart J 2005;26:1461–1474).
    """
    counts = np.roll(np.stack((wall, scar, core)), -SECTORS // 6, axis=2)  # WALLS begin at 60°
    by_wall = counts.reshape(3, -1, 6, SECTORS // 6, 3)
    size, scarred = by_wall[:2].sum((3, 4))  # (slices, walls)
    in_third = thirds == np.arange(4)[:, None]  # (thirds, slices)
    share = (in_third @ scarred) / np.maximum(in_third @ size, 1)
    peak = (in_third[..., None] * scarred / np.maximum(size, 1)).max(1)
    affected = (share >= min(MINIMUM_SHARE, share.max())) & (share > 0)
    affected |= peak >= 2 * MINIMUM_SHARE
    # the apex has no walls: its angles count only if there is no scar elsewhere
    walls_hit = (affected[:3] if affected[:3].any() else affected).any(0)
    scars = []
    for walls in neighbouring_walls(walls_hit) if oriented else [np.flatnonzero(walls_hit)]:
        inside = by_wall[:, :, walls].reshape(3, -1, 3)
        depth, transmurality = _across(inside[1], inside[0])
        names = tuple(WALLS[w] for w in walls) if oriented else ()
        levels = tuple(LEVELS[t] for t in range(4) if affected[t, walls].any())
        scars.append(Scar(names, levels, depth, transmurality, no_reflow=bool(inside[2].any())))
    return tuple(scars)


def _across(scar: np.ndarray, wall: np.ndarray) -> tuple[str, int]:
    """Name the scar's place across the wall, and its transmurality in %, from ``(sectors, 3)``."""
    percent = max(1, round(100 * transmurality_of(scar.sum(1), wall.sum(1))))
    if percent >= 75:
        return "transmural", percent
    share = scar.sum(1) / np.maximum(wall.sum(1), 1)
    inner, middle, outer = (share @ scar) / np.maximum(share @ wall, 1e-9)
    if max(inner, outer) < middle / 2:
        return "mid-wall", percent
    return ("subendocardial" if inner >= outer else "subepicardial"), percent


def transmurality_of(scar: np.ndarray, wall: np.ndarray) -> float:
    """Return the share of the wall's thickness that is scar, from voxels of both in each sector."""
    share = scar / np.maximum(wall, 1)
    return float((share**2).sum() / max(share.sum(), 1e-9))
