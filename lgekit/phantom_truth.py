"""What a reader would report of a phantom's labels: the conventions of ``anatomy.findings_from_labels``.

The same words from the same labels, but angle and depth come from the model that made them, not from measuring.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WALL_NAMES = ("anterior", "anteroseptal", "inferoseptal", "inferior", "inferolateral", "anterolateral")
LEVEL_NAMES = ("basal", "mid", "apical", "apex")


def thirds(labels: np.ndarray) -> np.ndarray:
    """Third of the LV of each slice, base first: 0 basal, 1 mid, 2 apical, 3 closed apex, -1 outside; ``(slices,)``."""
    lv = (labels > 0) & (labels < 5)
    inside = np.flatnonzero(lv.any(1))
    third = np.full(len(labels), -1)
    third[inside] = 3 * (np.arange(len(inside)) + 0.5) // max(len(inside), 1)
    third[~(labels == 1).any(1) & (third == 2)] = 3
    return third


def describe(sampled: Any, scars: list, anterior_deg: float, minimum_share: float = 0.1) -> tuple[dict, ...]:
    """Scars of a study as keyword arguments of ``findings.Scar``, in words; empty where no voxel is scar.

    Args:
        sampled: labels, angle (radians, heart frame) and depth, each ``(slices, P)``.
        scars: the maps they came from, for the aetiology.
        anterior_deg: the anterior insertion point, degrees in the heart frame.
        minimum_share: share of a segment's wall from which it counts as affected.
    """
    labels = sampled.labels
    is_wall = (labels >= 2) & (labels <= 4)
    rows = np.nonzero(is_wall)[0]
    scar = labels[is_wall] >= 3
    if not scar.any():
        return ()
    degrees = (np.rad2deg(sampled.angle[is_wall]) - anterior_deg + 120) % 360
    wall = ((degrees - 60) % 360 // 60).astype(int)
    third = thirds(labels)[rows]
    cell = third * 6 + wall
    voxels, scarred = np.bincount(cell, minlength=24), np.bincount(cell, weights=scar, minlength=24)
    share = (scarred / np.maximum(voxels, 1)).reshape(4, 6)
    affected = share >= min(minimum_share, share.max())
    rings = affected[:3] if affected[:3].any() else affected
    within = np.minimum((3 * sampled.depth[is_wall]).astype(int), 2)  # third of the thickness
    sector = 3 * (rows * 60 + (degrees // 6).astype(int)) + within
    found = []
    for region in _runs(rings.any(0)):
        chosen = np.isin(wall, region)
        count = [np.bincount(sector[where], minlength=180 * len(labels)) for where in (chosen, chosen & scar)]
        layer, transmurality = _across(*np.reshape(count, (2, -1, 3)))
        found.append(
            {
                "walls": tuple(WALL_NAMES[w] for w in region),
                "levels": tuple(LEVEL_NAMES[t] for t in range(4) if affected[t, region].any()),
                "depth": layer,
                "transmurality": max(1, round(100 * transmurality)),
                "aetiology": _cause(scars, region, anterior_deg),
                "no_reflow": bool((labels[is_wall][chosen] == 4).any()),
            }
        )
    return tuple(found)


def _across(wall: np.ndarray, scar: np.ndarray) -> tuple[str, float]:
    """The word for a scar's place across the wall, and its transmurality, from voxels in thirds, ``(sectors, 3)``.

    Mid-wall spares both borders; an infarct, however deep, holds the subendocardium (doi 10.1093/eurheartj/ehi258).
    """
    share = scar.sum(1) / np.maximum(wall.sum(1), 1)
    transmurality = float((share**2).sum() / share.sum())
    inner, middle, outer = (share @ scar) / np.maximum(share @ wall, 1e-9)
    if transmurality >= 0.75:
        return "transmural", transmurality
    if max(inner, outer) < middle / 2:
        return "mid-wall", transmurality
    return ("subendocardial" if inner >= outer else "subepicardial"), transmurality


def _runs(walls: np.ndarray) -> list[list[int]]:
    """Runs of neighbouring walls around the circle."""
    if walls.all():
        return [list(range(6))]
    first = int(np.flatnonzero(~walls)[0])
    runs: list[list[int]] = [[]]
    for step in range(1, 7):
        w = (first + step) % 6
        if walls[w]:
            runs[-1].append(w)
        elif runs[-1]:
            runs.append([])
    return [sorted(run) for run in runs if run]


def _cause(scars: list, region: list[int], anterior_deg: float) -> str:
    """Aetiology of the map with most scar in these walls; where two arteries share it, just ``ischaemic``."""
    angles = np.arange(scars[0].inner.shape[1]) * 360 / scars[0].inner.shape[1]
    inside = np.isin(((angles - anterior_deg + 60) % 360) // 60, region)
    amounts = [float(scar.thickness()[:, inside].mean()) for scar in scars]
    causes = {scar.aetiology for scar, amount in zip(scars, amounts, strict=True) if amount >= 0.25 * max(amounts)}
    return causes.pop() if len(causes) == 1 else "ischaemic"
