"""AHA segments, wall depth and what a mask shows."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial.distance import cdist

from lgekit.anatomy.labels import (
    Vector,
    Ventricle,
    label_stack,
    voxel_angle,
    wall_depth,
)
from lgekit.errors import InputError
from lgekit.findings import LEVELS, WALLS, Findings, Scar
from lgekit.study import NO_REFLOW, RV, SCAR, WALL_CODES, Landmarks, Study

ANTERIOR_RVIP_DEG = (
    120.0  # in the standard frame: the border between AHA segments 1 and 2 (Cerqueira 2002)
)


def to_frame_deg(angle, landmarks: Landmarks):
    """An angle of the stored array as an angle of the standard frame (anterior insertion point at 120°).

    Raises:
        InputError: where an insertion point is unknown (the inferior one tells mirrored storage).
    """
    if (
        landmarks is None
        or not np.isfinite([landmarks.anterior_rvip_deg, landmarks.inferior_rvip_deg]).all()
    ):
        raise InputError(
            "landmarks",
            f"unknown ({landmarks})",
            "Give both insertion points, or run the heart network.",
        )
    turn = -1 if landmarks.mirrored else 1
    return (ANTERIOR_RVIP_DEG + turn * (angle - landmarks.anterior_rvip_deg)) % 360


def segment_map(labels, spacing: Vector, landmarks: Landmarks) -> np.ndarray:
    """AHA segment of each voxel of the wall: ``(X, Y, slices)`` uint8, 1–17, 0 outside the wall.

    Source: Cerqueira et al., Circulation 2002;105:539–542 (six walls of 60° at the basal and mid level, four of 90° at
    the apical level, and the apex), started at the anterior insertion point as there.

    Args:
        labels: ``(X, Y, slices)``.
        spacing: mm.
        landmarks: both insertion points, seen from the centre of the left ventricle.

    Raises:
        InputError: where the insertion points are unknown.
    """
    array = label_stack(labels)
    to_frame_deg(0.0, landmarks)  # refuse unknown landmarks even where there is no heart
    ventricle = Ventricle.of(array)
    segments = np.zeros(array.shape, np.uint8)
    for s, third in enumerate(ventricle.thirds):
        x, y = np.nonzero(np.isin(ventricle.labels[..., s], WALL_CODES))
        x, y = x + ventricle.box[0].start, y + ventricle.box[1].start
        if third == 3:
            segments[x, y, s] = 17
        elif third >= 0:
            angle = voxel_angle(x, y, ventricle.centres[s], spacing)
            segments[x, y, s] = segment_number(to_frame_deg(angle, landmarks), third)
    return segments


def segment_number(frame_deg: np.ndarray, third: int) -> np.ndarray:
    """AHA segment of an angle of the standard frame, in the basal (0), mid (1) or apical (2) third."""
    if third == 2:
        return (13 + (np.asarray(frame_deg) - 45) % 360 // 90).astype(np.uint8)
    return (1 + 6 * third + (np.asarray(frame_deg) - 60) % 360 // 60).astype(np.uint8)


def insertion_points(
    labels,
    spacing: Vector,
    *,
    mirrored: bool | None = None,
    anterior_hint_deg: float | None = None,
) -> Landmarks:
    """Where the right ventricle's wall joins the left ventricle: the two ends of the arc in contact with it.

    In each slice of the middle of the ventricle the epicardium is followed around; it is in contact where the RV
    cavity (code 5) lies within 5 % of the LV's diameter. The ends of the arcs are averaged over the
    slices that cut the RV in full (full weight from 95 % of the widest arc, none below 70 %).

    Which end is the anterior one is not certain from masks, for the mirror image of a heart swaps them: say it by one
    of the two options. Else it is guessed from the RV's shape, whose outermost part leans towards the inferior end (the
    acute margin): right in 90 % of 120 ACDC stacks; the confidence is then halved.

    Args:
        labels: ``(X, Y, slices)`` with the RV labelled.
        spacing: mm.
        mirrored: whether anterior → septum → inferior runs clockwise in the stored array.
        anterior_hint_deg: an angle nearer to the anterior insertion point than to the inferior one.

    Returns:
        Both angles, NaN with confidence 0 where no slice shows contact. Confidence falls with the spread over slices.
    """
    ventricle = Ventricle.of(labels)
    levels, right = ventricle.levels, ventricle.labels == RV
    seen = np.isfinite(levels) & right.any((0, 1))
    middle = seen & (levels >= 0.1) & (levels <= 0.75)
    arcs = []
    for s in np.flatnonzero(middle if middle.any() else seen):
        centre = ventricle.centres[s] - [ventricle.box[0].start, ventricle.box[1].start]
        arc = _contact_arc(ventricle.mask[..., s], right[..., s], centre, spacing)
        arcs += [] if arc is None else [arc]
    if not arcs:
        return Landmarks(float("nan"), float("nan"), 0.0)
    start, end, lean = np.transpose(arcs)
    wide = (end - start) % 360
    weight = np.clip(
        4 * wide / wide.max() - 2.8, 0, 1
    )  # towards the apex the RV shrinks into its inferior corner
    (start, spread_start), (end, spread_end) = (
        _circular_mean(start, weight),
        _circular_mean(end, weight),
    )
    confidence = float(np.clip(1 - (spread_start + spread_end) / 60, 0, 1)) * min(
        1.0, 0.4 + 0.2 * weight.sum()
    )
    if mirrored is None and anterior_hint_deg is not None and np.isfinite(anterior_hint_deg):
        mirrored = bool(_turn(end - anterior_hint_deg) < _turn(start - anterior_hint_deg))
    elif mirrored is None:
        mirrored, confidence = bool(lean @ weight < 0), confidence / 2
    anterior, inferior = (end, start) if mirrored else (start, end)
    return Landmarks(anterior, inferior, confidence)


def _turn(angle):
    """The size of an angle's shortest way round, 0–180°."""
    return np.abs((np.asarray(angle) + 180) % 360 - 180)


def _circular_mean(angles: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted mean of angles, and the weighted mean turn from it, degrees."""
    mean = np.degrees(np.angle(weight @ np.exp(1j * np.radians(angles))))
    return float(mean % 360), float(weight @ _turn(angles - mean) / weight.sum())


def _contact_arc(
    left: np.ndarray, right: np.ndarray, centre: np.ndarray, spacing: Vector
) -> tuple[float, float, float] | None:
    """The arc of the epicardium of one slice that touches the RV, or None.

    Returns:
        Its first and last angle counter-clockwise, and by how much the RV's outermost tenth leans from the arc's
        middle towards the last, degrees.
    """
    diameter = 2 * np.sqrt(left.sum() * spacing[0] * spacing[1] / np.pi)
    x, y = np.nonzero(left & ~ndimage.binary_erosion(left))
    edge = np.transpose(
        np.nonzero(right & ~ndimage.binary_erosion(right))
    )  # the nearest pixel lies on it
    distance = cdist(np.stack([x, y], 1) * spacing[:2], edge * spacing[:2]).min(1)
    bins = 120  # of 3°, about one pixel of the epicardium
    angle = voxel_angle(x, y, centre, spacing)
    nearest = np.full(bins, np.inf)
    np.minimum.at(nearest, (angle * bins / 360).astype(int) % bins, distance)
    filled = np.isfinite(nearest)
    nearest = np.interp(np.arange(bins), np.flatnonzero(filled), nearest[filled], period=bins)
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
    start = (longest[0] + first) * 360 / bins % 360
    beyond = np.degrees(
        max(reach - np.median(nearest[contact]), 0) / (diameter / 2)
    )  # contact is seen from afar
    start, arc = (start + beyond) % 360, arc - 2 * beyond
    x, y = np.nonzero(right)
    radius = np.hypot((x - centre[0]) * spacing[0], (y - centre[1]) * spacing[1])
    outer = radius >= np.percentile(radius, 90)
    lean = (voxel_angle(x[outer], y[outer], centre, spacing) - start - arc / 2 + 180) % 360 - 180
    return start, (start + arc) % 360, float(lean.mean())


def known_landmarks(study: Study) -> Landmarks | None:
    """The study's landmarks, or those that its RV label shows, or None where either angle is unknown."""
    landmarks = cast("Landmarks | None", study.get("landmarks"))
    labels = study.label_map
    if landmarks is None and labels is not None and (labels == RV).any():
        landmarks = insertion_points(labels, study.spacing_mm)
    if (
        landmarks is None
        or not np.isfinite([landmarks.anterior_rvip_deg, landmarks.inferior_rvip_deg]).all()
    ):
        return None
    return landmarks


def segment_share(study: Study) -> pd.DataFrame:
    """What each AHA segment holds: a table of 17 rows, for the bull's-eye and for truth per segment.

    Args:
        study: with labels and both insertion points.

    Returns:
        Index ``segment`` 1–17; columns ``voxels`` (of its wall), ``scar`` (share of it that is scar or no-reflow, 0–1)
        and ``no_reflow`` (share); NaN in a segment without voxels.
    """
    labels = study.label_map
    if labels is None:
        raise InputError(
            study["study_id"], "no labels", "Give a label map, or run the heart network."
        )
    segments = segment_map(labels, study.spacing_mm, cast(Landmarks, known_landmarks(study)))
    counts = [
        np.bincount(segments[m], minlength=18)[1:]
        for m in (segments > 0, labels == SCAR, labels == NO_REFLOW)
    ]
    wall = np.where(counts[0] > 0, counts[0], np.nan)
    columns = {
        "voxels": counts[0],
        "scar": (counts[1] + counts[2]) / wall,
        "no_reflow": counts[2] / wall,
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(1, 18, name="segment"))


def findings_from_labels(study: Study, minimum_share: float = 0.1) -> Findings:
    """What a reader would report of the scar mask: walls, levels, depth, transmurality, no-reflow.

    Scar is present where codes 3 or 4 are; :func:`lgekit.anatomy.segments.scars_in_words` puts it into words.

    Args:
        study: labels, and landmarks; where these are unknown the scar has no walls and all else is still measured.
        minimum_share: share of a wall at a level; 10 % leaves out a rim that spills over its border.
    """
    labels = study.label_map
    if labels is None:
        raise InputError(
            study["study_id"], "no labels", "Give a label map, or run the heart network."
        )
    if not np.isin(labels, (SCAR, NO_REFLOW)).any():
        return Findings(())
    known = known_landmarks(study)
    landmarks = known or Landmarks(ANTERIOR_RVIP_DEG, 360 - ANTERIOR_RVIP_DEG, 0.0)
    ventricle, spacing = Ventricle.of(labels), study.spacing_mm
    wall, scar, core = (np.zeros((len(ventricle.thirds), SECTORS, 3), int) for _ in range(3))
    for s in range(len(wall)):
        codes = ventricle.labels[..., s]
        x, y = np.nonzero(np.isin(codes, WALL_CODES))
        centre = ventricle.centres[s] - [ventricle.box[0].start, ventricle.box[1].start]
        angle = to_frame_deg(voxel_angle(x, y, centre, spacing), landmarks)
        here = codes[x, y]
        scarred = np.isin(here, (SCAR, NO_REFLOW))
        depth = (
            wall_depth(codes, spacing)[x, y] if scarred.any() else np.zeros(len(x))
        )  # slow, and of no use elsewhere
        cell = wall_cell(angle, depth)
        for counts, chosen in ((wall, here > 0), (scar, scarred), (core, here == NO_REFLOW)):
            counts[s] = np.bincount(cell[chosen], minlength=3 * SECTORS).reshape(SECTORS, 3)
    return Findings(
        scars_in_words(
            wall, scar, core, ventricle.thirds, minimum_share, oriented=known is not None
        )
    )


SECTORS = 60  # of 6° each, around the wall
_FROM_60_DEG = np.roll(
    np.arange(SECTORS), -SECTORS // 6
)  # the order of WALLS: the anterior wall begins at 60°


def wall_cell(frame_deg: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Number of the 6° sector and third of the thickness that a voxel of the wall lies in: 3 · sector + third."""
    return 3 * ((frame_deg * SECTORS / 360).astype(int) % SECTORS) + np.clip(
        (3 * depth).astype(int), 0, 2
    )


def scars_in_words(
    wall: np.ndarray,
    scar: np.ndarray,
    core: np.ndarray,
    thirds: np.ndarray,
    minimum_share: float = 0.1,
    oriented: bool = True,
) -> tuple[Scar, ...]:
    """Walls, levels, depth, transmurality and no-reflow of counted voxels.

    A wall of 60° is affected at a level where scar fills at least ``minimum_share`` of it, or twice that in one of its
    slices (the fullest one where none does). Scars that share no wall are told apart. The **transmurality** is the
    share of the wall's thickness that is scar: the mean over sectors, weighted by their scar (so that sectors that the
    scar's edge cuts count little). The **depth** is transmural from 75 %; below, it is mid-wall where the scar spares
    both borders of the wall (the inner and the outer third of its sectors are less than half as full as the middle
    third), else named after the fuller border. For what sets an infarct apart is that it includes the subendocardium,
    however far it reaches (Mahrholdt et al., European Heart Journal 2005;26:1461–1474). Both numbers are ours [O].

    Args:
        wall, scar, core: voxels of the wall, of its scar (no-reflow included) and of no-reflow in each slice, 6° sector
            of the standard frame and third of the thickness (:func:`wall_cell`), ``(slices, 60, 3)``.
        thirds: third of the ventricle of each slice, ``(slices,)``; see :func:`lgekit.anatomy.labels.slice_thirds`.
        minimum_share: see above.
        oriented: False where the insertion points are unknown: one scar without walls.
    """
    by_wall = np.stack((wall, scar, core))[:, :, _FROM_60_DEG].reshape(3, -1, 6, SECTORS // 6, 3)
    size, scarred = by_wall[:2].sum((3, 4))  # (slices, 6)
    own = thirds == np.arange(4)[:, None]  # (thirds, slices)
    share = (own @ scarred) / np.maximum(own @ size, 1)
    peak = (own[..., None] * scarred / np.maximum(size, 1)).max(1)
    affected = (share >= min(minimum_share, share.max())) & (share > 0) | (
        peak >= 2 * minimum_share
    )
    rings = (
        affected[:3] if affected[:3].any() else affected
    )  # the apex has no walls: it tells of them only alone
    scars = []
    for walls in _regions(rings.any(0)) if oriented else [list(np.flatnonzero(rings.any(0)))]:
        inside = by_wall[:, :, walls].reshape(3, -1, 3)
        depth, transmurality = _across(inside[1], inside[0])
        scars.append(
            Scar(
                walls=tuple(WALLS[w] for w in walls) if oriented else (),
                levels=tuple(LEVELS[t] for t in range(4) if affected[t, walls].any()),
                depth=depth,
                transmurality=transmurality,
                no_reflow=bool(inside[2].any()),
            )
        )
    return tuple(scars)


def transmurality_of(scar: np.ndarray, wall: np.ndarray) -> float:
    """Share of the wall's thickness that is scar, from voxels of both in each sector, two arrays of one shape."""
    share = scar / np.maximum(wall, 1)
    return float((share**2).sum() / max(share.sum(), 1e-9))


def circumference_of(scar: np.ndarray, wall: np.ndarray) -> float:
    """Percent of the circumference that scar covers, from voxels of both in each slice and sector, ``(slices, 60)``.

    Sectors of which scar fills more than a tenth; the mean over the slices with scar.
    """
    touched = (scar > 0.1 * wall)[scar.any(1)]
    return 100 * float(touched.mean()) if len(touched) else 0.0


def _across(scar: np.ndarray, wall: np.ndarray) -> tuple[str, int]:
    """The word for a scar's place across the wall, and its transmurality in %, from counts ``(sectors, 3)``."""
    percent = max(1, round(100 * transmurality_of(scar.sum(1), wall.sum(1))))
    if percent >= 75:
        return "transmural", percent
    share = scar.sum(1) / np.maximum(
        wall.sum(1), 1
    )  # sectors that the scar's edge cuts count little here too
    inner, middle, outer = (share @ scar) / np.maximum(share @ wall, 1e-9)
    if max(inner, outer) < middle / 2:
        return "mid-wall", percent
    return ("subendocardial" if inner >= outer else "subepicardial"), percent


def _regions(walls: np.ndarray) -> list[list[int]]:
    """Runs of neighbouring walls (around the circle) that are affected, from ``(6,)`` bool."""
    if walls.all():
        return [list(range(6))]
    first = int(np.flatnonzero(~walls)[0])
    runs: list[list[int]] = [[]]
    for wall in np.roll(np.arange(6), -first):
        if walls[wall]:
            runs[-1].append(int(wall))
        else:
            runs.append([])
    return [sorted(run) for run in runs if run]
