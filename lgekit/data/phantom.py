"""The digital LGE phantom: simulated acquisition, truth and cohorts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from scipy import fft

from lgekit.cache import code_version, memory
from lgekit.data import phantom_heart as heart_module
from lgekit.data import phantom_heart as tissue
from lgekit.data.phantom_heart import (
    ANGLES,
    BLOOD,
    FAT,
    HEART_MUSCLE,
    MUSCLE,
    NO_REFLOW_TISSUE,
    PAPILLARY,
    RV_BLOOD,
    SCAR_TISSUE,
    TURN,
    Heart,
    ScarMap,
    draw_scars,
)
from lgekit.errors import InputError
from lgekit.findings import Findings, Scar
from lgekit.study import Cohort, Landmarks, Study, split_of

HAEMATOCRIT = 0.42
T1_NATIVE_MYOCARDIUM, T1_NATIVE_BLOOD = 1070.0, 1580.0  # ms
ECV_REMOTE, ECV_SCAR, ECV_ACUTE = 0.254, 0.685, 0.52


def t1_after_contrast(ecv, t1_blood) -> np.ndarray:
    """T1 (ms) of myocardium with this extracellular volume when blood has ``t1_blood`` (ms)."""
    delta_blood = 1 / np.asarray(t1_blood) - 1 / T1_NATIVE_BLOOD
    return 1 / (1 / T1_NATIVE_MYOCARDIUM + np.asarray(ecv) / (1 - HAEMATOCRIT) * delta_blood)


def inversion_recovery(t1, inversion_time) -> np.ndarray:
    """Longitudinal magnetisation ``1 − 2·exp(−TI/T1)`` at the inversion time, both in ms (long repetition time)."""
    return 1 - 2 * np.exp(-np.asarray(inversion_time) / np.asarray(t1))


@dataclass(frozen=True)
class Scanner:
    """One examination's settings and faults.

    Attributes:
        t1_blood: ms, in each slice (contrast washes out while the stack is acquired), ``(slices,)``.
        inversion_time: ms, ``(slices,)``.
        noise: SD in each of the two channels, relative to M0 at the middle of the field.
        resolution: share of k-space acquired in the phase-encoding direction.
        ghost, ghost_period: amplitude and period (lines) of the respiratory modulation of k-space.
        phase_axis: image axis of phase encoding.
        coil: amplitudes of the bias field: linear in two directions, quadratic; natural log.
        gain, offset: receiver gain, and level of zero signal (pictures are windowed slice by slice when they are
            exported), ``(slices,)``.
        inversion_loss: mean and spatial SD of the share of spins that is not inverted, ``(slices,)`` and a number;
            at the null point a loss of 10 % lifts myocardium by 5 % of M0.
        magnitude: magnitude reconstruction (else phase-sensitive).
        texture: relative SD of tissue texture.
    """

    t1_blood: np.ndarray
    inversion_time: np.ndarray
    noise: float
    resolution: float
    ghost: float
    ghost_period: float
    phase_axis: int
    coil: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    inversion_loss: np.ndarray
    loss_spread: float
    magnitude: bool
    texture: float
    ecv_remote: float
    ecv_scar: float
    fat_t1: float
    tissue_gain: np.ndarray


def draw_scanner(
    rng: np.random.Generator, levels: np.ndarray, ecv_scar: float, magnitude_share: float
) -> Scanner:
    """An examination at random. ``levels`` of the slices: washout follows the order in which they are acquired."""
    t1_blood = float(np.clip(rng.normal(400, 65), 280, 560)) * (
        1 + 0.07 * (0.5 - levels) * rng.choice([-1, 1])
    )
    t1_blood = t1_blood * (1 + 0.01 * rng.normal(size=len(levels)))
    ecv_remote = float(np.clip(rng.normal(ECV_REMOTE, 0.025), 0.2, 0.33))
    null = float(np.median(t1_after_contrast(ecv_remote, t1_blood))) * np.log(2)
    inversion_time = null * rng.normal(1.0, 0.06) * (1 + 0.04 * rng.normal(size=len(levels)))
    return Scanner(
        t1_blood=t1_blood,
        inversion_time=inversion_time,
        noise=float(np.exp(rng.normal(np.log(0.024), 0.35))),
        resolution=float(rng.uniform(0.6, 0.9)),
        ghost=float(rng.gamma(1.2, 0.03)),
        ghost_period=float(rng.uniform(2.5, 9)),
        phase_axis=int(rng.integers(2)),
        coil=rng.normal(0, [0.30, 0.15, 0.12]) + [0.35, 0, 0],
        gain=1 + 0.08 * rng.normal(size=len(levels)),
        offset=rng.gamma(2.0, 0.028) * rng.normal(size=len(levels)),
        inversion_loss=np.clip(
            rng.normal(0.08, 0.04) + 0.06 * rng.normal(size=len(levels)), 0, 0.3
        ),
        loss_spread=float(rng.uniform(0.03, 0.10)),
        magnitude=bool(rng.random() < magnitude_share),
        texture=float(rng.uniform(0.03, 0.08)),
        ecv_remote=ecv_remote,
        ecv_scar=ecv_scar,
        fat_t1=float(np.clip(rng.normal(300, 30), 220, 380)),
        tissue_gain=rng.normal(1, 0.1, size=12),
    )


def tissue_signal(scanner: Scanner) -> np.ndarray:
    """Signed signal of every tissue in every slice, ``(slices, 12)`` float32, by the codes of ``phantom_heart``."""
    t1, ti = scanner.t1_blood, scanner.inversion_time
    ecv = {
        tissue.HEART_MUSCLE: scanner.ecv_remote,
        tissue.PAPILLARY: scanner.ecv_remote + 0.02,
        tissue.MUSCLE: 0.16,
        tissue.LIVER: 0.36,
        tissue.STOMACH: 0.22,
        tissue.SCAR_TISSUE: scanner.ecv_scar,
        tissue.NO_REFLOW_TISSUE: 0.13,
        tissue.LUNG: 0.40,
    }
    signal = np.zeros((len(t1), 12), dtype=np.float32)
    for code, volume in ecv.items():
        signal[:, code] = inversion_recovery(t1_after_contrast(volume, t1), ti)
    signal[:, [tissue.BLOOD, tissue.RV_BLOOD]] = inversion_recovery(t1, ti)[:, None]
    signal[:, tissue.FAT] = inversion_recovery(scanner.fat_t1, ti)
    signal[:, tissue.LUNG] *= 0.15  # proton density of lung
    heart = [
        tissue.HEART_MUSCLE,
        tissue.SCAR_TISSUE,
        tissue.NO_REFLOW_TISSUE,
        tissue.PAPILLARY,
        tissue.BLOOD,
        tissue.RV_BLOOD,
    ]
    gain = scanner.tissue_gain.copy()
    gain[heart] = 1
    return signal * gain.astype(np.float32)


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], knots: int) -> np.ndarray:
    """A smooth random field of unit variance in each slice, ``(slices, X, Y)`` float32, bilinear between knots."""
    coarse = rng.standard_normal((shape[0], knots, knots), dtype=np.float32)
    weights = []
    for size in shape[1:]:
        position = np.linspace(0, knots - 1, size, dtype=np.float32)
        low = np.minimum(position.astype(int), knots - 2)
        weight = np.zeros((size, knots), dtype=np.float32)
        weight[np.arange(size), low] = 1 - (position - low)
        weight[np.arange(size), low + 1] = position - low
        weights.append(weight)
    return np.matmul(np.matmul(weights[0], coarse), weights[1].T) * np.float32(1.5)


def acquire(
    rng: np.random.Generator,
    signal: np.ndarray,
    body: np.ndarray,
    x: np.ndarray,
    v: np.ndarray,
    scanner: Scanner,
) -> np.ndarray:
    """Image of a signal: coil bias, point spread of a truncated k-space, ghosts, noise, reconstruction.

    Args:
        rng: source of the noise.
        signal: signed signal, ``(slices, X, Y)`` float32.
        body: proton density, 0 air … 1 tissue, ``(slices, X, Y)`` float32.
        x, v: mm in the heart frame, ``(X, Y)``.
        scanner: the examination.

    Returns:
        ``(slices, X, Y)`` float32; phase-sensitive images are signed.
    """
    slices, size_x, size_y = signal.shape
    front = (-0.57 * x + 0.82 * v) / 100  # towards the anterior coil
    side = (0.82 * x + 0.57 * v) / 100
    bias = np.exp(
        scanner.coil[0] * front + scanner.coil[1] * side + scanner.coil[2] * (front**2 + side**2)
    )
    loss = np.float32(scanner.loss_spread) * smooth_field(rng, signal.shape, 5)
    loss += scanner.inversion_loss.astype(np.float32)[:, None, None]
    signal = signal + loss * (body - signal) * np.float32(0.5)  # 1 − (2 − loss)·exp(−TI/T1)
    loaded = signal * (bias[None] * scanner.gain[:, None, None]).astype(np.float32)
    loaded *= 1 + np.float32(scanner.texture) * smooth_field(rng, signal.shape, 24)
    space = fft.fft2(loaded, axes=(1, 2))
    lines = [np.abs(fft.fftfreq(n)) * 2 for n in (size_x, size_y)]  # 0 centre … 1 edge of k-space
    reach = [0.95, 0.95]
    reach[scanner.phase_axis] = scanner.resolution
    window = [
        np.where(
            line < edge, 0.5 + 0.5 * np.cos(np.pi * np.clip((line / edge - 0.6) / 0.4, 0, 1)), 0
        )
        for line, edge in zip(lines, reach, strict=True)
    ]
    order = np.arange((size_x, size_y)[scanner.phase_axis])
    start = rng.uniform(0, 2 * np.pi, size=(slices, 1))
    swing = 1 + scanner.ghost * np.cos(2 * np.pi * order / scanner.ghost_period + start)
    swing = swing[:, :, None] if scanner.phase_axis == 0 else swing[:, None, :]
    window_2d = (window[0][:, None] * window[1]).astype(np.float32)
    noise = rng.standard_normal((slices, size_x, 2 * size_y), dtype=np.float32).view(np.complex64)
    noise *= np.float32(scanner.noise * np.sqrt(size_x * size_y))
    space = (space * swing.astype(np.float32) + noise) * window_2d
    image = fft.ifft2(space, axes=(1, 2), overwrite_x=True)
    image = np.abs(image) if scanner.magnitude else np.ascontiguousarray(image.real)
    return image + scanner.offset.astype(np.float32)[:, None, None]


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
    column = (angle * np.float32(ANGLES / TURN) + np.float32(ANGLES + 0.5)).astype(
        np.int32
    ) % ANGLES
    thinning = np.clip(sum(scar.thinning for scar in scars), 0, 0.6) if scars else 0.0
    cavity, epicardium = heart.contours(z, thinning)
    right_ventricle = heart.right_ventricle(z, epicardium)
    outside = np.maximum(
        epicardium, np.where(right_ventricle > epicardium + 0.5, right_ventricle + RV_WALL, 0)
    )
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
        kind[in_rv], kind[in_wall], kind[in_cavity] = RV_BLOOD, HEART_MUSCLE, BLOOD
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
            value[here] = level[:, HEART_MUSCLE] + amount * (
                level[:, SCAR_TISSUE] - level[:, HEART_MUSCLE]
            )
            value[core] = signals[np.nonzero(core)[0], NO_REFLOW_TISSUE]
            is_scar |= here
            is_core |= core
        rim = in_wall & (radius < inner + trabeculae)
        value[rim] += heart.trabecular_blood * (signals[np.nonzero(rim)[0], BLOOD] - value[rim])
        ventricle = (z[middle] >= 0)[:, None]  # above the base: atrium, which carries no label
        covered = radius < fat.ravel()[at]
        parts = (
            covered,
            value * covered,
            in_cavity & ventricle,
            in_wall & ventricle,
            in_rv & ventricle,
        )
        for name, part in zip(
            total, (*parts, is_scar & ventricle, is_core & ventricle), strict=True
        ):
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
    return Sampled(
        total["covered"], total["signal"], labels, angle.reshape(shape)[:, 0], middle_depth
    )


def _papillary(
    heart: Heart, z: np.ndarray, cavity: np.ndarray, x: np.ndarray, v: np.ndarray
) -> np.ndarray:
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
    scanner = draw_scanner(
        rng,
        np.clip(middles / heart.length, 0, 1),
        float(np.clip(rng.normal(ECV_SCAR, 0.07), 0.50, 0.85)),
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
    signals = tissue_signal(scanner)
    signal = np.take_along_axis(signals, chest.reshape(count, -1).astype(np.intp), axis=1).reshape(
        chest.shape
    )
    reach = heart.radius + 12
    near = np.flatnonzero(
        (x > -reach - heart.rv_width) & (x < reach) & (np.abs(v) < reach)
    )  # pixels of the heart
    right, down = grid[near // options.pixels], grid[near % options.pixels]
    sampled = sample_heart(heart, scars, z, shift, right, down, mm, to_heart, signals)
    flat = signal.reshape(count, -1)
    flat[:, near] = flat[:, near] * (1 - sampled.covered) + sampled.signal
    body = np.array([0, 0.15] + [1] * 10, dtype=np.float32)[chest]
    body.reshape(count, -1)[:, near] = np.maximum(body.reshape(count, -1)[:, near], sampled.covered)
    labels = np.zeros(chest.shape, dtype=np.uint8)
    labels.reshape(count, -1)[:, near] = sampled.labels
    image = acquire(rng, signal, body, x, v, scanner)
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
    return (
        images,
        labels,
        [(study.image.shape, study.spacing, study.rvip_deg, study.scars) for study in studies],
    )


def unpack(chunk: tuple) -> Iterator[Rendered]:
    """The studies of a chunk, as views on its arrays."""
    images, labels, rows = chunk
    first = 0
    for shape, spacing, rvip_deg, scars in rows:
        last = first + int(np.prod(shape))
        yield Rendered(
            images[first:last].reshape(shape),
            labels[first:last].reshape(shape),
            spacing,
            rvip_deg,
            scars,
        )
        first = last


WALL_NAMES = (
    "anterior",
    "anteroseptal",
    "inferoseptal",
    "inferior",
    "inferolateral",
    "anterolateral",
)
LEVEL_NAMES = ("basal", "mid", "apical", "apex")


def thirds(labels: np.ndarray) -> np.ndarray:
    """Third of the LV of each slice, base first: 0 basal, 1 mid, 2 apical, 3 closed apex, -1 outside; ``(slices,)``."""
    lv = (labels > 0) & (labels < 5)
    inside = np.flatnonzero(lv.any(1))
    third = np.full(len(labels), -1)
    third[inside] = 3 * (np.arange(len(inside)) + 0.5) // max(len(inside), 1)
    third[~(labels == 1).any(1) & (third == 2)] = 3
    return third


def describe(
    sampled: Any, scars: list, anterior_deg: float, minimum_share: float = 0.1
) -> tuple[dict, ...]:
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
        count = [
            np.bincount(sector[where], minlength=180 * len(labels))
            for where in (chosen, chosen & scar)
        ]
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
    causes = {
        scar.aetiology
        for scar, amount in zip(scars, amounts, strict=True)
        if amount >= 0.25 * max(amounts)
    }
    return causes.pop() if len(causes) == 1 else "ischaemic"


CHUNK = 48  # studies a cache entry


def phantom_study(index: int, seed: int, *, report_noise: float = 0.0, **options) -> Study:
    """One study of a phantom cohort.

    Args:
        index: number of the study in its cohort, from 0.
        seed: seed of the cohort.
        report_noise: share of reports with an omission or an error.
        options: see :class:`lgekit.data.phantom.PhantomOptions`.

    Returns:
        Image ``(1, X, Y, slices)`` float32 (phase-sensitive images have an offset, as scanners store them), labels in
        the internal codes (RV too), true ``landmarks`` in the stored orientation, ``findings`` (the truth, by the
        conventions of ``anatomy.findings_from_labels``), ``report``, ``split``.

    Raises:
        InputError: an unknown option, or a value out of range.
    """
    checked = check_options(options)
    return _study(render_study(index, seed, checked), index, seed, report_noise)


def check_options(options: dict) -> PhantomOptions:
    """Options of the phantom, checked.

    Raises:
        InputError: naming the option, its value and what it may be.
    """
    unknown = set(options) - set(PhantomOptions.__dataclass_fields__)
    if unknown:
        known = ", ".join(PhantomOptions.__dataclass_fields__)
        raise InputError(
            "phantom", f"unknown option {sorted(unknown)[0]!r}", f"Use one of {known}."
        )
    checked = replace(PhantomOptions(), **options)
    for name in ("prevalence", "ischaemic_share", "magnitude_share"):
        value = getattr(checked, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(
                f"phantom option {name}", f"{value!r} is not a share", "Give a number from 0 to 1."
            )
    for name, low, high in (("pixels", 48, 512), ("slices", 3, 40)):
        value = getattr(checked, name)
        if name == "slices" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(
                f"phantom option {name}", f"{value!r}", f"Give a whole number from {low} to {high}."
            )
    return checked


def phantom_cohort(
    studies: int = 200,
    seed: int = 0,
    *,
    report_noise: float = 0.1,
    workers: int | None = None,
    **options,
) -> Cohort:
    """The phantom as a cohort; rendered once, then read from the cache (:func:`lgekit.cache.memory`).

    Study ``i`` of a seed is the same in a cohort of any size, made by any number of workers. Images are memory-mapped
    from the cache, so a cohort takes memory only for what is looked at.

    Args:
        studies: number of studies.
        seed: another seed, other hearts.
        report_noise: share of reports with an omission or an error.
        workers: processes; None is one for each core, and none for small cohorts.
        options: ``prevalence``, ``pixels``, ``slices``, … (:class:`lgekit.data.phantom.PhantomOptions`).

    Raises:
        InputError: an unknown option, or a value out of range.
    """
    checked = check_options(options)
    if isinstance(studies, bool) or not isinstance(studies, int) or studies < 1:
        raise InputError(
            "phantom option studies", f"{studies!r}", "Give a whole number of at least 1."
        )
    if not 0 <= report_noise <= 1:
        raise InputError(
            "phantom option report_noise", f"{report_noise!r}", "Give a share from 0 to 1."
        )
    version = code_version("data", "anatomy", "reports")
    jobs = [
        (start, min(start + CHUNK, studies), seed, checked, version)
        for start in range(0, studies, CHUNK)
    ]
    cached = memory().cache(render_chunk)
    workers = workers or (1 if len(jobs) == 1 else -1)
    kept = Parallel(n_jobs=workers, inner_max_num_threads=1 if workers != 1 else None)(
        delayed(cached.call_and_shelve)(*job) for job in jobs
    )
    made: list[Study] = []
    for result in kept:
        made += [
            _study(one, len(made) + n, seed, report_noise)
            for n, one in enumerate(unpack(result.get()))
        ]
    return Cohort(made, f"phantom:studies={studies},seed={seed}")


def _study(rendered: Rendered, index: int, seed: int, report_noise: float) -> Study:
    """A study from its arrays; its report is written here, so that new wording needs no new images."""
    from lgekit.reports.writer import corrupt_findings, write_report

    rng = study_rng(seed, index, stream=1)
    findings = Findings(tuple(Scar(**scar) for scar in rendered.scars))
    study_id = f"Phantom_{seed}_{index:05d}"
    told = corrupt_findings(findings, rng, report_noise) if report_noise else findings
    return Study.from_arrays(
        study_id,
        rendered.image,
        rendered.spacing,
        rendered.labels,
        report=write_report(told, rng, whole=True),
        report_source="phantom",
        findings=findings,
        landmarks=Landmarks(*rendered.rvip_deg),
        split=split_of(study_id, findings.present),
    )
