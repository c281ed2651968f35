"""Where a scar may lie."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from lgekit.anatomy.labels import Ventricle, angle_map, lv_centre, slice_levels, wall_depth
from lgekit.anatomy.segments import (
    SECTORS,
    circumference_of,
    scars_in_words,
    segment_number,
    to_frame_deg,
    transmurality_of,
    wall_cell,
)
from lgekit.errors import InputError
from lgekit.findings import LEVELS, WALLS, Scar
from lgekit.study import WALL_CODES, Landmarks

BINS, HARMONICS, TRIES = (
    180,
    16,
    16,
)  # angular bins of 2 degrees; waves of a random field; regions drawn for one scar
_BIN_DEG = (np.arange(BINS) + 0.5) * 360 / BINS
_WAVE = np.arange(1, HARMONICS + 1)
_BASIS = np.concatenate(
    [f(np.radians(_BIN_DEG)[:, None] * _WAVE) for f in (np.cos, np.sin)], axis=1
).astype(np.float32)
_BASIS *= np.tile(1 / np.sqrt(1 + (_WAVE / 4) ** 2), 2)
_BASIS /= np.sqrt((_BASIS**2).sum(1).mean())  # a field of unit variance


@dataclass(frozen=True)
class Geometry:
    """The wall of a study as a list of voxels with their coordinates; arrays ``(voxels,)``, standard frame.

    Attributes:
        box: slices along the three axes that hold the wall and a margin.
        index: position in the flattened ``box``.
        plane, third, bin, cell: slice in the box, third (0 basal … 3 apex), angular bin (2°), and number of (slice, 6°
            sector, third of the thickness).
        depth: 0 endocardium … 1 epicardium.  thickness_mm, radius_mm: of the wall, and from the centre.
        thirds: third of each slice of the box, -1 where it has no wall.  levels: 0 … 1, ``(slices,)``.
        cell_size: voxels of the wall, ``(slices, 60, 3)``; see :func:`lgekit.anatomy.segments.wall_cell`.
    """

    box: tuple[slice, slice, slice]
    shape: tuple[int, int, int]
    index: np.ndarray
    plane: np.ndarray
    third: np.ndarray
    bin: np.ndarray
    cell: np.ndarray
    depth: np.ndarray
    thickness_mm: np.ndarray
    radius_mm: np.ndarray
    thirds: np.ndarray
    levels: np.ndarray
    cell_size: np.ndarray


def _geometry(labels: np.ndarray, spacing: Sequence[float], landmarks: Landmarks) -> Geometry:
    wall = np.asarray(np.isin(labels, WALL_CODES))
    filled = np.asarray(wall.any((0, 1)))
    margin = [int(np.ceil(6 / h)) for h in spacing[:2]] + [0]
    spans = [np.flatnonzero(wall.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    x, y, z = (
        slice(max(int(s[0]) - m, 0), min(int(s[-1]) + 1 + m, n))
        for s, m, n in zip(spans, margin, labels.shape, strict=True)
    )
    shape = (x.stop - x.start, y.stop - y.start, z.stop - z.start)
    thirds, levels, (_, centres) = (
        Ventricle.of(labels).thirds,
        slice_levels(labels),
        lv_centre(labels),
    )
    parts: list[tuple[np.ndarray, ...]] = []
    for k in np.flatnonzero(filled[z]):
        plane = labels[..., z.start + k]
        i, j = np.nonzero(wall[..., z.start + k])
        centre = centres[z.start + k]
        angle = to_frame_deg(angle_map(plane.shape, centre, spacing), landmarks)[i, j]
        radius = np.hypot((i - centre[0]) * spacing[0], (j - centre[1]) * spacing[1])
        depth = wall_depth(plane, spacing)[i, j]
        bins = np.minimum((angle * BINS / 360).astype(int), BINS - 1)
        # thickness: area of the wall in 24 sectors over the length of its middle line
        coarse = (angle // 15).astype(int) % 24
        area = np.bincount(coarse, minlength=24) * spacing[0] * spacing[1]
        middle = np.bincount(coarse, radius, minlength=24) / np.maximum(
            np.bincount(coarse, minlength=24), 1
        )
        thickness = (area / np.maximum(middle * np.radians(15), 1.0))[coarse]
        index = np.ravel_multi_index((i - x.start, j - y.start, np.full(len(i), k)), shape)
        third = np.full(len(i), max(thirds[z.start + k], 0))
        cell = wall_cell(np.full(len(i), k), angle, depth)
        parts.append((index, np.full(len(i), k), third, bins, cell, depth, thickness, radius))
    names = ("index", "plane", "third", "bin", "cell", "depth", "thickness_mm", "radius_mm")
    columns = {n: np.concatenate(c) for n, c in zip(names, zip(*parts, strict=True), strict=True)}
    columns = {
        n: c.astype(np.float32 if c.dtype.kind == "f" else np.intp) for n, c in columns.items()
    }
    columns |= {
        "thirds": np.where(filled, thirds, -1)[z],
        "levels": levels[z].astype(np.float32),
        "cell_size": np.bincount(columns["cell"], minlength=3 * SECTORS * shape[2]).reshape(
            -1, SECTORS, 3
        ),
    }
    return Geometry(box=(x, y, z), shape=shape, **columns)


_CACHE: dict[bytes, Geometry] = {}


def wall_geometry(labels: np.ndarray, spacing: Sequence[float], landmarks: Landmarks) -> Geometry:
    """The geometry, kept for the last 256 studies: solving the depth costs far more than painting."""
    digest = hashlib.blake2b(np.ascontiguousarray(labels).tobytes(), digest_size=16)
    digest.update(repr((labels.shape, tuple(spacing), landmarks)).encode())
    key = digest.digest()
    if key not in _CACHE:
        while len(_CACHE) >= 256:
            _CACHE.pop(next(iter(_CACHE)))
        _CACHE[key] = _geometry(labels, spacing, landmarks)
    return _CACHE[key]


@dataclass(frozen=True)
class Region:
    """Where one scar is; arrays over the wall's voxels in and near it.

    Attributes:
        voxels: their numbers in the geometry's arrays.
        depth_mm: how deep inside the scar's border, mm; negative outside.
        membership: share of scar in the voxel, 0 … 1, with the grey zone.
        core: how deep inside the no-reflow core, mm; negative outside.
    """

    voxels: np.ndarray
    depth_mm: np.ndarray
    membership: np.ndarray
    core: np.ndarray


@lru_cache(maxsize=512)
def _degrees_inside(
    walls: tuple[str, ...], levels: tuple[str, ...], segments: frozenset[int]
) -> np.ndarray:
    """Signed distance of each angular bin to the border of the chosen walls, ``(bins, 4 thirds)`` degrees.

    180 where the whole circle is chosen, -180 where nothing is. At the apical level, whose AHA segments are wider than
    the walls, a bin must lie in both.
    """
    wall = ((_BIN_DEG - 60) % 360 // 60).astype(int)
    in_walls = (
        np.isin(wall, [WALLS.index(name) for name in walls]) if walls else np.ones(BINS, bool)
    )
    apart = np.abs((_BIN_DEG[:, None] - _BIN_DEG[None] + 180) % 360 - 180)
    result = np.full((BINS, 4), -180.0, np.float32)
    for third in range(4):
        if LEVELS[third] not in levels:
            continue
        chosen = in_walls.copy()
        if third < 3:
            chosen &= np.isin(segment_number(_BIN_DEG, third), list(segments))
        for side, sign in ((chosen, 1), (~chosen, -1)):
            if side.any() and not side.all():
                result[side, third] = sign * (apart[side][:, ~side].min(1) - 180 / BINS)
        if chosen.all():
            result[:, third] = 180
    return result


def random_fields(rng: np.random.Generator, count: int, slices: int) -> np.ndarray:
    """Smooth random fields around the circle, continuous over slices: ``(count, bins, slices)``, unit variance."""
    waves = rng.standard_normal((count, 2 * HARMONICS, slices)).astype(np.float32)
    for s in range(1, slices):
        waves[..., s] = 0.7 * waves[..., s - 1] + 0.714 * waves[..., s]
    return _BASIS @ waves


def draw_region(
    geometry: Geometry, free: np.ndarray, scar: Scar, rng: np.random.Generator
) -> Region:
    """Draw where a scar lies, again until walls, levels, depth and transmurality measure as the scar says.

    Args:
        geometry: the wall.
        free: ``(voxels,)`` bool, healthy wall.
        scar: what to draw; what it leaves open is drawn.
        rng: the only source of chance.

    Raises:
        InputError: no such place in this study, or not drawn as described in 16 tries.
    """
    levels = scar.levels or tuple(
        level for t, level in enumerate(LEVELS[:3]) if (geometry.thirds == t).any()
    )
    if not scar.segments:
        raise InputError(
            "findings", f"{scar} names no wall and no level", "Give the scar walls, levels or both."
        )
    if (
        scar.transmurality
        and scar.depth
        and (scar.transmurality > 84 if scar.depth != "transmural" else scar.transmurality < 66)
    ):
        raise InputError(
            "findings",
            f"{scar.depth}, {scar.transmurality} %",
            "Transmural means 75 % of the wall or more.",
        )
    for level in levels:
        if not (geometry.thirds == LEVELS.index(level)).any():
            raise InputError(
                "findings",
                f"no slice shows the level {level!r}",
                "Leave it out (ScarCanvas.fit does).",
            )
    degrees = _degrees_inside(scar.walls, levels, scar.segments)
    own = degrees[geometry.bin, geometry.third]
    voxels = np.flatnonzero((own > -12) & free)
    if len(voxels) < 6:
        raise InputError(
            "findings",
            f"{len(voxels)} voxels of healthy wall in {scar}",
            "Choose other walls or levels.",
        )
    for _ in range(TRIES):
        region = _draw_once(geometry, voxels, own[voxels], degrees, scar, rng)
        if region is not None:
            return region
    raise InputError(
        "findings",
        f"{scar} does not fit this wall in {TRIES} tries",
        "Choose a larger scar, or finer pixels.",
    )


def _draw_once(
    g: Geometry, voxels, own, degrees, scar: Scar, rng: np.random.Generator
) -> Region | None:
    plane, bins, depth, third = g.plane[voxels], g.bin[voxels], g.depth[voxels], g.third[voxels]
    thickness, depth_name = g.thickness_mm[voxels], scar.depth or "subendocardial"
    lateral, surface, patch = random_fields(rng, 3, g.shape[2])[:, bins, plane]
    aim, centre = _aims(scar, depth_name, rng)
    half = np.clip(degrees.max(0), 0, 90)  # half the width of the chosen walls, per third
    # taper: 0 in the middle of the scar's slices, up to 1 at its basal and apical ends
    mine = np.unique(plane)
    low, high = g.levels[mine].min(), g.levels[mine].max()
    along = 2 * (g.levels - low) / max(high - low, 1e-6) - 1
    ends = rng.uniform(0, 1, 2) * (len(mine) > 1)
    taper = np.clip(np.where(along < 0, -along * ends[0], along * ends[1]), 0, 1)
    if scar.circumference:
        used = [t for t in range(4) if half[t] > 0]
        turns = np.mean([np.count_nonzero(degrees[:, t] > 0) * 360 / BINS for t in used])
        edge = np.full(
            g.shape[2], np.clip((turns - 3.6 * scar.circumference) / 2, 0, 0.8 * half.max())
        )
    else:
        edge = np.minimum(
            half[g.thirds] * (rng.uniform(0.05, 0.45) + 0.25 * taper) * min(1, 2 * aim), 45
        )
    whole = (own >= 180) & (third < 3)
    if (
        whole.any() and scar.pattern != "diffuse"
    ):  # a gap between two walls, as large infarcts leave
        gap = 1.8 * (100 - scar.circumference) if scar.circumference else rng.uniform(10, 45)
        middle = 60 * rng.integers(6) + rng.normal(0, 5)
        own = np.where(
            whole, np.abs((_BIN_DEG[bins] - middle + 180) % 360 - 180) - min(gap, 50), own
        )
        edge, half = np.where(half[g.thirds] >= 90, 0, edge), np.maximum(half, 30)
    inner = own - edge[plane] + 4 * lateral * np.minimum(half[third] / 60, 1)
    inner = np.where(
        own >= 180, 180, np.minimum(inner, own)
    )  # degrees inside the scar's lateral border
    sideways = np.radians(inner) * g.radius_mm[voxels]
    ramp = np.clip(inner / rng.uniform(8, 25), 0, 1)
    uneven = np.exp(rng.normal(0, 0.16, g.shape[2]))[plane]
    shape = (
        uneven
        * (1 - rng.uniform(0.2, 0.7) * (1 - ramp * ramp * (3 - 2 * ramp)))
        * (1 - 0.3 * taper[plane])
    )
    rough = np.minimum(1.2, 0.14 * thickness) * surface

    def across(extent: float) -> np.ndarray:
        """Distance inside the layer's border, mm."""
        if depth_name == "mid-wall":
            inside = (
                extent * shape / 2 - np.abs(depth - centre - 0.05 * patch)
            ) * thickness + rough / 2
            return np.minimum(inside, (0.4 - np.abs(depth - 0.5)) * thickness)
        return (
            extent * shape - (1 - depth if depth_name == "subepicardial" else depth)
        ) * thickness + rough

    if scar.pattern == "patchy":
        sideways = np.minimum(sideways, (patch + 0.4) * 5)
    low, high, extent, thickness_size = 0.05, 2.0, aim, g.cell_size.sum(2)
    for _ in range(
        7 if scar.transmurality or depth_name in ("subendocardial", "transmural") else 0
    ):
        extent = (low + high) / 2
        reached = transmurality_of(
            _count(g, voxels[np.minimum(sideways, across(extent)) > 0]).sum(2), thickness_size
        )
        low, high = (extent, high) if reached < aim else (low, extent)
    inside = np.minimum(sideways, across(extent))
    mask = inside > 0
    if mask.sum() < 3 or not _agrees(g, voxels[mask], scar, depth_name):
        return None
    core = np.full(len(voxels), -9.0, np.float32)
    if scar.no_reflow:
        core = (
            np.minimum(np.minimum(inside, depth * thickness - rng.uniform(0.2, 1)), 2.5)
            + 0.5 * patch
        )
        core = np.where(mask, core - np.quantile(core[mask], 1 - rng.uniform(0.08, 0.3)), -9.0)
    softness = rng.uniform(0.8, 2.2)  # mm of grey zone
    share = 1 / (1 + np.exp(-np.clip(inside / softness, -30, 30)))
    return Region(voxels, inside, np.clip((share - 0.05) / 0.9, 0, 1), core)


def _aims(scar: Scar, depth_name: str, rng: np.random.Generator) -> tuple[float, float]:
    """The layer's thickness as a share of the wall, and the depth of a mid-wall layer's middle."""
    ranges = {
        "subendocardial": (0.25, 0.68),
        "transmural": (0.8, 0.98),
        "mid-wall": (0.28, 0.45),
        "subepicardial": (0.28, 0.5),
    }
    aim = rng.uniform(*ranges[depth_name])
    if scar.transmurality is not None:
        aim = scar.transmurality / 100
        if depth_name == "subendocardial":
            aim = float(
                np.clip(aim, 0.2, 0.67)
            )  # beyond, 10 points off, a mask reads as another layer or as none
    elif scar.pattern == "linear":
        aim = 0.28
    return aim, rng.uniform(0.46, 0.54)


def _count(g: Geometry, voxels: np.ndarray) -> np.ndarray:
    """Voxels in each slice, sector and third of the thickness, ``(slices, 60, 3)``."""
    return np.bincount(g.cell[voxels], minlength=g.cell_size.size).reshape(g.cell_size.shape)


def _agrees(g: Geometry, scarred: np.ndarray, scar: Scar, depth_name: str) -> bool:
    """Whether `anatomy` describes the mask as the scar: walls, levels, depth; percentages within 10 points."""
    counts = _count(g, scarred)
    measured = scars_in_words(g.cell_size, counts, np.zeros_like(counts), g.thirds)
    walls = {wall for one in measured for wall in one.walls}
    levels = {level for one in measured for level in one.levels}
    said = replace(scar, walls=scar.walls or WALLS, levels=scar.levels or tuple(levels))
    percent, around = scar.transmurality, scar.circumference
    return (
        levels == set(said.levels)
        and walls == set(said.walls)
        and all(one.depth == depth_name for one in measured)
        and (
            percent is None
            or all(abs((one.transmurality or 0) - percent) <= 10 for one in measured)
        )
        and (
            around is None
            or abs(circumference_of(counts.sum(2), g.cell_size.sum(2)) - around) <= 10
        )
    )
