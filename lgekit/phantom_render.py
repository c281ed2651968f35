"""From a seed to the arrays and the truth of one study of the phantom. Numpy only: workers never load torch.

The heart is sampled at 2 × 2 points in every pixel and three depths of the 8 mm slice, weighted by a slice profile; the
four points of a pixel lie at four different heights (interleaved), so that twelve planes of the slice are seen.
Partial volume with blood, fat and lung follows from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lgekit import acquisition
from lgekit import phantom_heart as heart_module
from lgekit.phantom_heart import (
    ANGLES,
    BLOOD,
    FAT,
    MUSCLE,
    MYOCARDIUM,
    NO_REFLOW,
    PAPILLARY,
    RV_BLOOD,
    SCAR,
    TURN,
    Heart,
)
from lgekit.phantom_scar import ScarMap, draw_scars
from lgekit.phantom_truth import describe

SLICE_MM, GAP_MM = 8.0, 2.0  # thickness and gap of the stack
PLANES = np.array([-3.0, 0.0, 3.0], dtype=np.float32)  # mm from the middle of the slice
INTERLEAVE = np.array([-1.1, 0.4, -0.4, 1.1], dtype=np.float32)  # mm, of the four points of a pixel
PROFILE = np.array([0.28, 0.44, 0.28], dtype=np.float32)
LANDMARK_LEVEL = 0.45  # where the insertion points are measured: the mid-ventricular slice
RV_WALL = 3.0  # mm
PEDESTAL = 128  # of a magnitude image, so that no slice's level is cut off
ZERO = 1024  # value of no signal in a phase-sensitive image, as scanners store it with an offset


@dataclass(frozen=True)
class PhantomOptions:
    """What a phantom cohort is made of; the defaults are the realism table's.

    Attributes:
        pixels: width and height of the image.
        slices: number of slices; None draws as many as cover the heart, and up to two more.
        prevalence: share of studies with scar.
        ischaemic_share: share of infarcts among those.
        magnitude_share: share of magnitude reconstructions; the rest are phase-sensitive.
    """

    pixels: int = 128
    slices: int | None = None
    prevalence: float = 0.5
    ischaemic_share: float = 0.8
    magnitude_share: float = 0.2


@dataclass(frozen=True)
class Rendered:
    """One study as arrays and plain values, ready to be cached.

    Attributes:
        image: ``(X, Y, slices)`` float32, whole numbers as a scanner stores them.
        labels: ``(X, Y, slices)`` uint8, in the codes 0 background, 1 cavity, 2 myocardium, 3 scar, 4 no-reflow, 5 RV.
        spacing: mm.
        rvip_deg: anterior and inferior insertion point in the stored orientation.
        scars: findings as keyword arguments of ``findings.Scar``.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    rvip_deg: tuple[float, float]
    scars: tuple[dict, ...]


@dataclass(frozen=True)
class Sampled:
    """The heart in the ``P`` pixels around it, each ``(slices, P)``.

    Attributes:
        covered: share of the voxel that is heart or its fat (the rest is chest).
        signal: signal of that share.
        labels: label codes.
        angle, depth: place in the wall: radians in the heart frame; 0 endocardium … 1 epicardium.
    """

    covered: np.ndarray
    signal: np.ndarray
    labels: np.ndarray
    angle: np.ndarray
    depth: np.ndarray


def sample_heart(
    heart: Heart,
    scars: list[ScarMap],
    z: np.ndarray,
    shift: np.ndarray,
    right: np.ndarray,
    down: np.ndarray,
    mm: float,
    to_heart: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    signals: np.ndarray,
) -> Sampled:
    """Tissue of 2 × 2 points in every pixel and three planes in every slice, averaged into signal and labels.

    Args:
        heart, scars: the anatomy; tables of ``scars`` have the rows ``z``.
        z: heights, mm below the base, ``(slices × 3 × 4,)``.
        shift: displacement of each slice, mm in the heart frame, ``(slices, 2)``.
        right, down: pixel centres in the stored image, mm, ``(P,)``.
        mm: pixel size.
        to_heart: stored mm → heart frame.
        signals: signal of each tissue in each slice, ``(slices, 12)``.
    """
    slices, planes = len(shift), len(PLANES)
    quarter = np.float32(mm / 4) * np.array([[-1, -1, 1, 1], [-1, 1, -1, 1]], dtype=np.float32)
    x, v = to_heart((right + quarter[0][:, None]).ravel(), (down + quarter[1][:, None]).ravel())
    x = x[None] - shift[:, :1].astype(np.float32)
    v = v[None] - shift[:, 1:].astype(np.float32)
    radius, angle = np.hypot(x, v), np.arctan2(v, x)
    column = (angle * np.float32(ANGLES / TURN) + np.float32(ANGLES + 0.5)).astype(np.int32) % ANGLES
    thinning = np.clip(sum(scar.thinning for scar in scars), 0, 0.6) if scars else 0.0
    cavity, epicardium = heart.contours(z, thinning)
    right_ventricle = heart.right_ventricle(z, epicardium)
    outside = np.maximum(epicardium, np.where(right_ventricle > epicardium + 0.5, right_ventricle + RV_WALL, 0))
    fat = outside + heart.fat.astype(np.float32)
    row = np.arange(slices, dtype=np.int32)[:, None]
    quarter_row = np.repeat(np.arange(4, dtype=np.int32), len(right))  # height of each point
    trabeculae = heart.trabeculae.astype(np.float32)[column]
    shape = (slices, 4, -1)
    names = ("covered", "signal", "cavity", "wall", "rv", "scar", "core")
    total = {name: np.zeros((slices, len(right)), dtype=np.float32) for name in names}
    for plane in range(planes):
        at = ((row * planes + plane) * 4 + quarter_row) * ANGLES + column
        inner, outer = cavity.ravel()[at], epicardium.ravel()[at]
        in_cavity, in_lv = radius < inner, radius < outer
        in_wall = in_lv & ~in_cavity
        in_rv = (radius < right_ventricle.ravel()[at]) & ~in_lv
        kind = np.where(radius < outside.ravel()[at], MUSCLE, FAT).astype(np.int32)
        kind[in_rv], kind[in_wall], kind[in_cavity] = RV_BLOOD, MYOCARDIUM, BLOOD
        middle = slice(plane * 4, None, planes * 4)
        kind[in_cavity & _papillary(heart, z[middle], cavity[middle], x, v)] = PAPILLARY
        is_scar = np.zeros(in_wall.shape, dtype=bool)
        is_core = is_scar.copy()
        depth = (radius - inner) / np.maximum(outer - inner, np.float32(0.5))
        value = signals.ravel()[row * signals.shape[1] + kind]
        for scar in scars:
            here = in_wall & (depth >= scar.inner.ravel()[at]) & (depth < scar.outer.ravel()[at])
            core = here & (depth < scar.core.ravel()[at]) & (depth > 0.12)
            amount = scar.density.ravel()[at[here]]
            level = signals[np.nonzero(here)[0]]
            value[here] = level[:, MYOCARDIUM] + amount * (level[:, SCAR] - level[:, MYOCARDIUM])
            value[core] = signals[np.nonzero(core)[0], NO_REFLOW]
            is_scar |= here
            is_core |= core
        rim = in_wall & (radius < inner + trabeculae)
        value[rim] += heart.trabecular_blood * (signals[np.nonzero(rim)[0], BLOOD] - value[rim])
        ventricle = (z[middle] >= 0)[:, None]  # above the base: atrium, which carries no label
        covered = radius < fat.ravel()[at]
        parts = (covered, value * covered, in_cavity & ventricle, in_wall & ventricle, in_rv & ventricle)
        for name, part in zip(total, (*parts, is_scar & ventricle, is_core & ventricle), strict=True):
            total[name] += part.reshape(shape).sum(1, dtype=np.float32) * (PROFILE[plane] / 4)
        if plane == planes // 2:
            middle_depth = depth.reshape(shape).mean(1)
    labels = np.zeros(total["wall"].shape, dtype=np.uint8)
    rest = 1 - total["cavity"] - total["wall"] - total["rv"]
    stack = np.stack([rest, total["cavity"], total["wall"], total["rv"]])
    labels[...] = np.array([0, 1, 2, 5], dtype=np.uint8)[stack.argmax(0)]
    wall = labels == 2
    scarred = wall & (total["scar"] >= 0.5 * total["wall"])
    labels[scarred] = 3
    labels[scarred & (total["core"] > 0.5 * total["scar"])] = 4
    return Sampled(total["covered"], total["signal"], labels, angle.reshape(shape)[:, 0], middle_depth)


def _papillary(heart: Heart, z: np.ndarray, cavity: np.ndarray, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Points inside a papillary muscle, ``(slices, points)`` bool."""
    inside = np.zeros(x.shape, dtype=bool)
    for angle, first, last, size, inset in heart.papillary:
        rows = np.flatnonzero((z > first * heart.length) & (z < last * heart.length))
        distance = cavity[rows, int(np.rad2deg(angle)) % ANGLES] * (1 - inset)
        away_x = x[rows] - (distance * np.cos(angle)).astype(np.float32)[:, None]
        away_v = v[rows] - (distance * np.sin(angle)).astype(np.float32)[:, None]
        inside[rows] |= away_x**2 + away_v**2 < size**2
    return inside


def study_rng(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """The generator of one study: the same whatever else is rendered, and by whom."""
    return np.random.default_rng(np.random.SeedSequence((seed, index, stream)))


def render_study(index: int, seed: int, options: PhantomOptions) -> Rendered:
    """Render one study of the cohort ``seed``."""
    rng = study_rng(seed, index)
    present = rng.random() < options.prevalence
    heart = heart_module.draw_heart(rng, dilated=float(rng.gamma(1.5, 1.0)) if present else 0.0)
    extra = int(rng.integers(0, 3))
    step = SLICE_MM + GAP_MM
    count = options.slices or int(np.ceil((heart.length - 2) / step)) + extra
    if options.slices:
        step = (heart.length + 4) / options.slices
    above = step * (int(rng.integers(0, extra + 1)) if not options.slices else 0)
    middles = (np.arange(count) * step - above + rng.uniform(1, step - 2)).astype(np.float32)
    z = (middles[:, None, None] + PLANES[:, None] + INTERLEAVE).ravel()
    level = np.clip(z / heart.length, -0.2, 1.2)
    scars = draw_scars(rng, level, heart, options.ischaemic_share) if present else []
    mirrored, turn = rng.random() < 0.5, rng.uniform(0, TURN)
    mm = float(rng.uniform(1.5, 2.0)) * 128 / options.pixels
    offset = rng.normal(0, 8, size=2)
    drift = rng.normal(0, 3, size=2) * ((middles[:, None] - heart.length / 2) / heart.length)
    shift = rng.normal(0, 1.3, size=(count, 2)) + drift
    scanner = acquisition.draw_scanner(
        rng,
        np.clip(middles / heart.length, 0, 1),
        float(np.clip(rng.normal(acquisition.ECV_SCAR, 0.07), 0.50, 0.85)),
        options.magnitude_share,
    )
    grid = (np.arange(options.pixels, dtype=np.float32) - (options.pixels - 1) / 2) * mm
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    flip = np.float32(-1 if mirrored else 1)

    def to_heart(right: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored mm (right, down) → heart frame (x, v up)."""
        right, up = flip * (right - np.float32(offset[0])), -(down - np.float32(offset[1]))
        return cos * right - sin * up, sin * right + cos * up

    x, v = to_heart(grid[:, None], grid[None, :])
    slice_levels = middles / heart.length
    chest = heart_module.draw_chest(rng, heart, x, v, slice_levels)
    signals = acquisition.tissue_signal(scanner)
    signal = np.take_along_axis(signals, chest.reshape(count, -1).astype(np.intp), axis=1).reshape(chest.shape)
    reach = heart.radius + 12
    near = np.flatnonzero((x > -reach - heart.rv_width) & (x < reach) & (np.abs(v) < reach))  # pixels of the heart
    right, down = grid[near // options.pixels], grid[near % options.pixels]
    sampled = sample_heart(heart, scars, z, shift, right, down, mm, to_heart, signals)
    flat = signal.reshape(count, -1)
    flat[:, near] = flat[:, near] * (1 - sampled.covered) + sampled.signal
    body = np.array([0, 0.15] + [1] * 10, dtype=np.float32)[chest]
    body.reshape(count, -1)[:, near] = np.maximum(body.reshape(count, -1)[:, near], sampled.covered)
    labels = np.zeros(chest.shape, dtype=np.uint8)
    labels.reshape(count, -1)[:, near] = sampled.labels
    image = acquisition.acquire(rng, signal, body, x, v, scanner)
    image = np.rint(image * np.float32(rng.uniform(300, 800)))
    image = np.clip(image + (PEDESTAL if scanner.magnitude else ZERO), 0, 4095)
    order = slice(None, None, -1) if rng.random() < 0.5 else slice(None)
    image, labels = (np.ascontiguousarray(np.moveaxis(a[order], 0, 2)) for a in (image, labels))
    points = [np.rad2deg(angle) for angle in heart.insertion_points(LANDMARK_LEVEL)]
    stored = [float((a - np.rad2deg(turn)) % 360) for a in points]
    if mirrored:
        stored = [(180 - a) % 360 for a in stored]
    truth = describe(sampled, scars, np.rad2deg(heart.insertion_points(LANDMARK_LEVEL)[0]))
    return Rendered(image.astype(np.float32), labels, (mm, mm, step), (stored[0], stored[1]), truth)


def render_chunk(start: int, stop: int, seed: int, options: PhantomOptions, version: str) -> tuple:
    """Studies ``start`` to ``stop - 1`` as two flat arrays and a list, a form that a cache can memory-map.

    ``version`` is part of the cache's key only. :func:`unpack` is the inverse.
    """
    studies = [render_study(index, seed, options) for index in range(start, stop)]
    images = np.concatenate([study.image.ravel() for study in studies])
    labels = np.concatenate([study.labels.ravel() for study in studies])
    return images, labels, [(study.image.shape, study.spacing, study.rvip_deg, study.scars) for study in studies]


def unpack(chunk: tuple) -> Iterator[Rendered]:
    """The studies of a chunk, as views on its arrays."""
    images, labels, rows = chunk
    first = 0
    for shape, spacing, rvip_deg, scars in rows:
        last = first + int(np.prod(shape))
        yield Rendered(images[first:last].reshape(shape), labels[first:last].reshape(shape), spacing, rvip_deg, scars)
        first = last
