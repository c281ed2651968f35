"""What a scar is called: walls, levels, depth, transmurality and circumference, from counted voxels.

The one place where a mask becomes words: :func:`lgekit.anatomy.findings_from_labels` describes masks with it, and the
scar painter checks with it that a painted scar is what its sentence says.
"""

from __future__ import annotations

import numpy as np

from lgekit.findings import LEVELS, WALLS, Scar

SECTORS = 60  # of 6° each, around the wall
_FROM_60_DEG = np.roll(np.arange(SECTORS), -SECTORS // 6)  # the order of WALLS: the anterior wall begins at 60°


def wall_cell(frame_deg: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Number of the 6° sector and third of the thickness that a voxel of the wall lies in: 3 · sector + third."""
    return 3 * ((frame_deg * SECTORS / 360).astype(int) % SECTORS) + np.clip((3 * depth).astype(int), 0, 2)


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
        thirds: third of the ventricle of each slice, ``(slices,)``; see :func:`lgekit.ventricle.slice_thirds`.
        minimum_share: see above.
        oriented: False where the insertion points are unknown: one scar without walls.
    """
    by_wall = np.stack((wall, scar, core))[:, :, _FROM_60_DEG].reshape(3, -1, 6, SECTORS // 6, 3)
    size, scarred = by_wall[:2].sum((3, 4))  # (slices, 6)
    own = thirds == np.arange(4)[:, None]  # (thirds, slices)
    share = (own @ scarred) / np.maximum(own @ size, 1)
    peak = (own[..., None] * scarred / np.maximum(size, 1)).max(1)
    affected = (share >= min(minimum_share, share.max())) & (share > 0) | (peak >= 2 * minimum_share)
    rings = affected[:3] if affected[:3].any() else affected  # the apex has no walls: it tells of them only alone
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
    share = scar.sum(1) / np.maximum(wall.sum(1), 1)  # sectors that the scar's edge cuts count little here too
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
