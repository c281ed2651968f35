"""The digital LGE phantom: random hearts and scars, a simulated acquisition, exact ground truth.

The heart frame has its origin on the long axis, x right and v up (mm), the septum left, and angles
counter-clockwise from x (radians). Levels run from 0 (base) to 1 (epicardial apex). The phantom
draws scars with other code than RandomScar, so that it can test it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import fft, ndimage

from lgekit.anatomy.labels import Ventricle
from lgekit.anatomy.segments import ANTERIOR_RVIP_DEG, scars_of_voxels
from lgekit.cache import code_version, memory
from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.study import (
    BACKGROUND,
    CAVITY,
    MYOCARDIUM,
    NO_REFLOW,
    RV,
    SCAR,
    WALL_CODES,
    Cohort,
    Landmarks,
    Study,
    split_of,
)

Array = np.ndarray
Rng = np.random.Generator

# ---- the heart ----

ANGLES = 360  # one-degree steps in every table over the circumference
TURN = 2 * np.pi
THETA = np.arange(ANGLES, dtype=np.float32) * np.float32(TURN / ANGLES)
ANTERIOR_RVIP = np.deg2rad(ANTERIOR_RVIP_DEG)
# The RV is widest inferior of the septum's middle, by 10–18° in 60 ACDC patients.
RV_LEAN = 0.3


def angle_between(angle: Array | float, reference: Array | float) -> Array:
    """Signed difference of two angles in radians, in [-π, π)."""
    return (np.asarray(angle) - reference + np.pi) % TURN - np.pi


def ripple(rng: Rng, amplitude: float, orders=range(2, 7)) -> Array:
    """A smooth random function of the angle, ``(ANGLES,)``, mean 0, SD about ``amplitude``."""
    wave = np.zeros(ANGLES)
    for order in orders:
        wave += rng.normal() / order * np.cos(order * THETA + rng.uniform(0, TURN))
    return amplitude * wave / np.sqrt(sum(0.5 / order**2 for order in orders))


class Heart:
    """A random heart without scar; lengths in mm, tables over the angle ``(ANGLES,)``.

    ``dilated`` is how much wider it is, as after an infarct.
    """

    def __init__(self, rng: Rng, dilated: float = 0.0) -> None:
        # Base to apex: 80–100 in adults (Kawel-Boehm et al., J Cardiovasc Magn Reson 2020;22:87).
        self.length = float(np.clip(rng.normal(80, 7), 64, 98))
        self.wall = float(np.clip(rng.normal(9.0, 1.2), 6.5, 13.0))  # thickness at the base
        self.wall += rng.uniform(2, 5) if rng.random() < 0.12 else 0.0  # hypertrophy
        # Epicardial radius at the base.
        self.radius = float(np.clip(rng.normal(33, 2.5), 27, 40)) + dilated
        fat = np.clip(rng.gamma(2.0, 1.2) * (1 + ripple(rng, 0.6, range(1, 6))), 0.2, 12)
        self.inferior_rvip = float(np.deg2rad(np.clip(rng.normal(238, 10), 210, 262)))
        for groove in (ANTERIOR_RVIP, self.inferior_rvip):  # fat fills the grooves at the RV
            fat = fat + rng.uniform(2, 9) * np.exp(-((angle_between(THETA, groove) / 0.22) ** 2))
        self.fat = fat
        oval = 0.04 * abs(rng.normal()) * np.cos(2 * (THETA - rng.uniform(0, np.pi)))
        # Papillary muscles: angle, first and last level, radius, and distance from the endocardium
        # as a share of the cavity's radius.
        low, high = (0.25, 0.6, 3.5, 0.1), (0.4, 0.8, 6.5, 0.35)
        self.papillary = [
            (np.deg2rad(rng.normal(centre, 10)), *rng.uniform(low, high)) for centre in (35, 285)
        ]
        self.twist = float(np.deg2rad(rng.normal(0, 12)))  # of the insertion points per level
        self.outline = oval + ripple(rng, 0.015)  # relative ripple of both contours
        self.endocardium = ripple(rng, 0.03, range(2, 12))  # of the inner contour alone
        self.septal_bulge = float(rng.normal(0.05, 0.06))
        self.rv_width = float(rng.uniform(22, 38))  # of the RV cavity at the base
        self.rv_level = float(rng.uniform(0.78, 0.98))  # where the RV ends
        # The innermost layer, of which a share is blood. The wall's label includes it, because
        # contours are drawn smoothly through it.
        trabeculae = rng.uniform(1.0, 2.4) * (1 + ripple(rng, 0.5, range(1, 10)))
        self.trabeculae = np.clip(trabeculae, 0, 4)
        self.trabecular_blood = np.float32(rng.uniform(0.4, 0.9))

    def insertion_points(self, level) -> tuple[Array, Array]:
        """Angles of the anterior and the inferior insertion point at a level."""
        turn = self.twist * (np.asarray(level) - 0.5)
        return ANTERIOR_RVIP + turn, self.inferior_rvip + turn

    def contours(self, z, thinning: Array | float = 0.0) -> tuple[Array, Array]:
        """Radii of endocardium and epicardium at ``z`` mm below the base, ``(len(z), ANGLES)``.

        They are truncated ellipsoids with a thin wall above the base (the atrium), and 0 past the
        apex. ``thinning`` is the share of the wall that an old infarct lost.
        """
        z = np.asarray(z, dtype=np.float32)[:, None]
        level = np.clip(z / self.length, 0, 1)
        inner_level = np.clip(z / (self.length - 0.7 * self.wall), 0, 1)  # the apex is thinner
        epicardium = self.radius * np.sqrt(1 - level**2.3) * (1 + self.outline)
        cavity = (self.radius - self.wall) * np.sqrt(1 - inner_level**2.1)
        wall = np.maximum(epicardium - cavity * (1 + self.outline + self.endocardium), 0)
        wall = wall * (1 + self.septal_bulge * np.cos(THETA - np.pi))
        wall = np.where(z < 0, np.maximum(2.0, wall * (1 + z / 8)), wall) * (1 - thinning)
        cavity = np.maximum(epicardium - wall, 0) * (inner_level < 1)
        return cavity.astype(np.float32), epicardium.astype(np.float32)

    def in_papillary(self, z: Array, cavity: Array, x: Array, v: Array) -> Array:
        """Whether points are inside a papillary muscle; all arrays broadcast to the points."""
        inside = np.zeros(np.broadcast_shapes(z.shape, x.shape), dtype=bool)
        for angle, first, last, size, inset in self.papillary:
            radius = cavity[..., [int(np.rad2deg(angle)) % ANGLES]] * np.float32(1 - inset)
            centre_x, centre_v = (radius * np.float32(part(angle)) for part in (np.cos, np.sin))
            away = (x - centre_x) ** 2 + (v - centre_v) ** 2
            inside |= (away < size**2) & (z > first * self.length) & (z < last * self.length)
        return inside

    def right_ventricle(self, z: Array, epicardium: Array) -> Array:
        """Outer radius of the RV, ``(len(z), ANGLES)`` float32: the epicardium elsewhere."""
        level = np.asarray(z, dtype=np.float32)[:, None] / self.length
        anterior, inferior = self.insertion_points(level)
        share = (THETA - anterior) % TURN / (inferior - anterior)  # 0 anterior … 1 inferior
        lean = 1 - RV_LEAN * np.cos(np.pi * share)
        crescent = np.sin(np.pi * np.clip(share, 0, 1)) ** 0.55 * lean
        taper = np.sqrt(np.clip(1 - np.clip(level / self.rv_level, 0, 1) ** 2.5, 0, 1))
        return (epicardium + self.rv_width * crescent * taper).astype(np.float32)


# ---- the chest ----

# Tissue codes: indices into the table of signals.
AIR, LUNG, FAT, MUSCLE, LIVER, BLOOD = range(6)
STOMACH, HEART_MUSCLE, PAPILLARY, RV_BLOOD, SCAR_TISSUE, NO_REFLOW_TISSUE = range(6, 12)


def draw_chest(rng: Rng, heart: Heart, x: Array, v: Array, levels: Array) -> Array:
    """Draw the tissues around the heart as in a short-axis view, ``(slices, X, Y)`` uint8.

    ``x`` and ``v`` are pixel centres, ``(X, Y)`` float32; ``levels`` are those of the slices.
    """
    front = np.deg2rad(rng.normal(128, 12))  # direction of the chest wall, seen from the LV
    half_depth, half_width = rng.uniform(95, 115), rng.uniform(125, 160)
    fat_layer, muscle_layer = 4 + rng.gamma(3, 3.5), rng.uniform(7, 13)
    to_skin = heart.radius + 0.55 * heart.rv_width + rng.uniform(2, 12) + fat_layer + muscle_layer
    deep = np.cos(front) * x + np.sin(front) * v + (half_depth - to_skin)
    wide = -np.sin(front) * x + np.cos(front) * v - rng.normal(-20, 20)
    turn = np.arctan2(deep / half_depth, wide / half_width)
    radius = np.hypot(deep / half_depth, wide / half_width)
    wobble, phases = rng.normal(0, 0.02, size=4), rng.uniform(0, TURN, size=6)
    for order in range(4):
        radius = radius * (1 + wobble[order] * np.sin((order + 2) * turn + phases[order]))
    inside = (1 - radius) * half_depth  # mm below the skin, roughly
    under_fat = inside - fat_layer * (1 + 0.4 * np.sin(2 * turn + phases[4]))
    ribs = (np.sin(turn * rng.uniform(9, 14) + phases[5]) > 0.5) & (under_fat > 0.35 * muscle_layer)
    ribs &= under_fat < 0.8 * muscle_layer
    layers = [inside < 0, (under_fat < 0) | ribs, under_fat < muscle_layer]
    thorax = np.select(layers, [AIR, FAT, MUSCLE], LUNG)
    bag = rng.uniform(0, 9)  # fat of the mediastinum between the RV and the chest wall
    mediastinum = np.hypot((x + 0.6 * heart.rv_width) / 1.25, v - 8) - heart.radius - bag
    dome_x, dome_r = rng.normal(-50, 15), rng.uniform(90, 150)
    diaphragm = -heart.radius - float(np.median(heart.fat)) - rng.uniform(-2, 6)
    slope, tilt = rng.uniform(0, 18), rng.uniform(-0.35, 0.1)
    stomach_x, stomach_r = rng.uniform(15, 60), rng.uniform(24, 45)
    aorta_x, aorta_v, aorta_r = rng.uniform(48, 70), rng.uniform(-42, -10), rng.uniform(8, 12)
    level = levels[:, None, None]
    top = diaphragm + slope * (level - 0.5) + tilt * x
    liver = np.hypot(x - dome_x, v - top + dome_r) - dome_r
    stomach = np.hypot((x - stomach_x) * 0.8, v - top + stomach_r + 8) - stomach_r
    aorta = (np.hypot(x - aorta_x, v - aorta_v) < aorta_r) & (level < 0.8)
    pericardial = mediastinum < -25 * np.maximum(level - 0.45, 0)
    parts = [aorta, stomach < 0, stomach < 3, liver < 1, liver < 3, pericardial]
    organs = np.select(parts, [BLOOD, STOMACH, MUSCLE, LIVER, MUSCLE, FAT], thorax)
    tissue = np.where(under_fat > muscle_layer, organs, thorax).astype(np.uint8)
    lung = np.flatnonzero(tissue == LUNG)
    if len(lung):  # vessels are dots
        tissue.reshape(-1)[rng.choice(lung, size=len(lung) // 70)] = BLOOD
    return tissue


# ---- the scars ----

# Bed of each coronary artery in the heart frame: centre and half-width in degrees, share among
# infarcts. Segments by artery: Cerqueira 2002; shares roughly those of infarct series (LAD most
# often, then RCA, then LCx).
TERRITORIES = {"LAD": (125.0, 62.0, 0.47), "RCA": (255.0, 50.0, 0.33), "LCx": (345.0, 45.0, 0.20)}
# Non-ischaemic scars by what a report calls the disease: share, and ellipsoids in the wall with
# angle (degrees) and its SD, half-width (radians), half-height (levels), depth, and thickness.
PATTERNS = {
    "dilated": (0.35, [(179, 11, (0.35, 0.85), (0.2, 0.5), 0.5, 0.17)]),  # a septal stripe
    "myocarditis": (0.35, [(335, 18, (0.3, 0.7), (0.2, 0.5), 0.88, 0.3)]),  # lateral subepicardial
    # Both insertion points:
    "hypertrophic": (0.15, [(at, 5, (0.2, 0.22), (0.3, 0.4), 0.6, 0.3) for at in (126, 232)]),
    "non-ischaemic": (0.15, 3 * [(0, 180, (0.15, 0.35), (0.2, 0.2), 0.5, 0.25)]),  # patches
}


@dataclass
class ScarMap:
    """Scar over the wall, tables ``(z, ANGLES)``; depth is 0 endocardium … 1 epicardium."""

    aetiology: str  # the artery or the disease
    inner: Array  # depth where scar begins
    outer: Array  # depth where it ends
    core: Array  # depth to which no-reflow reaches, from 0.12
    density: Array  # share of the scar's extra ECV
    thinning: Array  # share of the wall that is lost

    def thickness(self) -> Array:
        """Share of the wall that is scar, ``(z, ANGLES)``."""
        return np.clip(np.minimum(self.outer, 1) - np.maximum(self.inner, 0), 0, 1)


def wall_noise(rng: Rng, level: Array) -> Array:
    """A smooth random field over the wall, ``(len(level), ANGLES)``, about unit variance."""
    field = np.zeros((len(level), ANGLES), dtype=np.float32)
    orders = range(1, 9)
    for order in orders:
        along = rng.normal(0, order * 1.2) * TURN * level[:, None] / 2
        wave = np.cos(order * THETA[None] + along + rng.uniform(0, TURN))
        field += (1 / np.sqrt(order) * wave).astype(np.float32)
    return field / np.float32(np.sqrt(sum(0.5 / order for order in orders)))


def wavefront_scar(rng: Rng, level: Array, artery: str) -> ScarMap:
    """Draw an infarct: a wavefront from the endocardium in the bed of an artery."""
    centre, half_width, _ = TERRITORIES[artery]
    size = rng.beta(2.2, 2.2)  # near 1: a proximal occlusion, a large bed
    centre = np.deg2rad(rng.normal(centre, 14))
    half_width = np.deg2rad(half_width * (1.3 + 1.3 * size))
    first, last = np.clip(rng.normal(0.42, 0.18) - 0.35 * size, -0.2, 0.75), 1.2
    if artery != "LAD":
        last = np.clip(first + rng.uniform(0.35, 0.5) + 0.6 * size, 0.3, 1.2)
    row = level[:, None].astype(np.float32)
    widening = 1 + (0.5 if artery == "LAD" else 0.1) * np.clip(row - 0.4, 0, 1)
    middle = centre + np.deg2rad(rng.normal(0, 25)) * (row - 0.5)
    bed = 1 - np.abs(angle_between(THETA[None], middle)) / (half_width * widening)
    bed = np.minimum(bed, np.minimum((row - first) / 0.15, (last - row) / 0.15))
    bed = bed + rng.uniform(0.1, 0.25) * wall_noise(rng, level)
    front = rng.uniform(0.52, 1.2)  # how far the front went outwards before flow came back
    reach = np.clip(front * np.clip(2.5 * bed, 0, 1) ** 0.7, 0, 1.0).astype(np.float32)
    reach = np.where(reach > 0.92, 1.05, reach)
    acute = rng.random() < 0.65
    core = np.zeros_like(reach)
    if acute and front > 0.6:
        inner_bed = bed > rng.uniform(0.3, 0.55)
        core = np.where(inner_bed, rng.uniform(0.35, 0.75) * np.minimum(reach, 1), 0)
    thinning = (0 if acute else rng.uniform(0.05, 0.4)) * np.minimum(reach, 1) ** 1.5
    density = np.clip(rng.uniform(0.9, 1.05) + 0.1 * wall_noise(rng, level), 0.3, 1.0)
    inner = np.full_like(reach, -0.05) + 1.05 * (reach <= 0)
    return ScarMap(artery, inner, reach, core, density, thinning)


def patch_scar(rng: Rng, level: Array, disease: str) -> ScarMap:
    """Draw the non-ischaemic scar of a disease, one of ``PATTERNS``."""
    row = level[:, None].astype(np.float32)
    inner = np.ones((len(level), ANGLES), dtype=np.float32)
    outer = np.zeros_like(inner)
    for angle, spread, width, height, depth, thickness in PATTERNS[disease][1]:
        centre = np.deg2rad(rng.normal(angle, spread))
        across = (angle_between(THETA[None], centre) / rng.uniform(*width)) ** 2
        distance = across + ((row - rng.uniform(0.2, 0.65)) / rng.uniform(*height)) ** 2
        distance = distance * (1 + 0.35 * wall_noise(rng, level))
        half = np.float32(thickness * rng.uniform(0.8, 1.3))
        half = half * np.sqrt(np.clip(1 - distance, 0, 1))
        inner = np.where(half > 0.05, np.minimum(inner, depth - half), inner)
        outer = np.where(half > 0.05, np.maximum(outer, depth + half), outer)
    density = np.clip(rng.uniform(0.5, 0.9) + 0.12 * wall_noise(rng, level), 0.2, 1.0)
    nothing = np.zeros_like(inner)
    return ScarMap(disease, inner, outer, nothing, density, nothing)


def draw_scars(rng: Rng, level: Array) -> list[ScarMap]:
    """Draw the scars of one diseased heart: four in five are infarcts, one in eight of them two."""
    inside = (level > 0.05) & (level < 0.95)
    arteries, diseases = list(TERRITORIES), list(PATTERNS)
    while True:
        if rng.random() >= 0.8:
            disease = rng.choice(diseases, p=[PATTERNS[name][0] for name in diseases])
            scars = [patch_scar(rng, level, str(disease))]
        else:
            shares, count = [TERRITORIES[name][2] for name in arteries], 1 + (rng.random() < 0.12)
            drawn = rng.choice(arteries, count, p=shares)
            scars = [wavefront_scar(rng, level, str(artery)) for artery in drawn]
        if max(scar.thickness()[inside].mean() for scar in scars) > 0.01:  # large enough to outline
            return scars


# ---- the acquisition ----

HAEMATOCRIT = 0.42
T1_NATIVE_MYOCARDIUM, T1_NATIVE_BLOOD = 1070.0, 1580.0  # ms
ECV_REMOTE, ECV_SCAR = 0.254, 0.685  # extracellular volume fractions


def t1_after_contrast(ecv, t1_blood) -> Array:
    """T1 (ms) of myocardium with this extracellular volume when blood has ``t1_blood`` (ms)."""
    delta_blood = 1 / np.asarray(t1_blood) - 1 / T1_NATIVE_BLOOD
    return 1 / (1 / T1_NATIVE_MYOCARDIUM + np.asarray(ecv) / (1 - HAEMATOCRIT) * delta_blood)


def inversion_recovery(t1, inversion_time) -> Array:
    """Longitudinal magnetisation ``1 − 2·exp(−TI/T1)``, both times in ms (long repetition time)."""
    return 1 - 2 * np.exp(-np.asarray(inversion_time) / np.asarray(t1))


def tissue_signals(rng: Rng, levels: Array) -> Array:
    """Draw the signed signal of every tissue in each slice, ``(slices, 12)`` float32."""
    count = len(levels)
    ecv_scar = np.clip(rng.normal(ECV_SCAR, 0.07), 0.50, 0.85)
    remote = np.clip(rng.normal(ECV_REMOTE, 0.025), 0.2, 0.33)
    # T1 of blood (ms): contrast washes out while the slices are acquired in order.
    blood = np.clip(rng.normal(400, 65), 280, 560) * (1 + 0.01 * rng.normal(size=count))
    blood = blood * (1 + 0.07 * (0.5 - levels) * rng.choice([-1, 1]))
    null = np.median(t1_after_contrast(remote, blood)) * np.log(2)
    time = null * rng.normal(1.0, 0.06) * (1 + 0.04 * rng.normal(size=count))
    ecv = {HEART_MUSCLE: remote, PAPILLARY: remote + 0.02, SCAR_TISSUE: ecv_scar}
    ecv |= {NO_REFLOW_TISSUE: 0.13, MUSCLE: 0.16, LIVER: 0.36, STOMACH: 0.22, LUNG: 0.40}
    signals = np.zeros((count, 12), dtype=np.float32)
    for code, volume in ecv.items():
        signals[:, code] = inversion_recovery(t1_after_contrast(volume, blood), time)
    signals[:, [BLOOD, RV_BLOOD]] = inversion_recovery(blood, time)[:, None]
    signals[:, FAT] = inversion_recovery(np.clip(rng.normal(300, 30), 220, 380), time)
    density = rng.normal(1, 0.1, size=12)  # of protons
    density[[BLOOD, *range(HEART_MUSCLE, NO_REFLOW_TISSUE + 1)]] = 1
    density[LUNG] *= 0.15
    return signals * density.astype(np.float32)


def smooth_field(rng: Rng, shape: tuple[int, ...], knots: int) -> Array:
    """A random field of unit variance in each slice, float32, bilinear between knots."""
    coarse = rng.standard_normal((shape[0], knots, knots), dtype=np.float32)
    return ndimage.zoom(coarse, (1, shape[1] / knots, shape[2] / knots), order=1) * np.float32(1.5)


def k_space_window(pixels: int, edge: float) -> Array:
    """Weight of each line of k-space, ``(pixels,)``: 0 beyond ``edge``, a share of the lines."""
    line = np.abs(fft.fftfreq(pixels)) * 2  # 0 centre … 1 edge of k-space
    roll_off = 0.5 + 0.5 * np.cos(np.pi * np.clip((line / edge - 0.6) / 0.4, 0, 1))
    return np.where(line < edge, roll_off, 0).astype(np.float32)


def acquire(rng: Rng, signal: Array, body: Array, x: Array, v: Array) -> Array:
    """Simulate the stored image of a signal, ``(slices, pixels, pixels)`` whole numbers.

    Coil bias, truncated k-space, ghosts, noise, reconstruction. ``signal`` is signed and ``body``
    is proton density (0 air … 1 tissue), both ``(slices, pixels, pixels)`` float32. ``x`` and ``v``
    are pixel centres in the heart frame, ``(pixels, pixels)``.
    """
    slices, pixels, _ = signal.shape
    each = slices, 1, 1
    # Share of spins that are not inverted: 10 % lifts nulled myocardium by 5 % of M0.
    loss = np.clip(rng.normal(0.08, 0.04) + 0.06 * rng.normal(size=each), 0, 0.3)
    loss = loss + rng.uniform(0.03, 0.10) * smooth_field(rng, signal.shape, 5)
    signal = signal + loss * (body - signal) / 2  # 1 − (2 − loss)·exp(−TI/T1)
    # Bias field (natural log): linear towards the anterior coil and across, and quadratic.
    front, side = (-0.57 * x + 0.82 * v) / 100, (0.82 * x + 0.57 * v) / 100
    linear, across, quadratic = rng.normal([0.35, 0, 0], [0.30, 0.15, 0.12])
    bias = np.exp(linear * front + across * side + quadratic * (front**2 + side**2))
    gain = 1 + 0.08 * rng.normal(size=each)  # exported slices are windowed individually
    texture = 1 + rng.uniform(0.03, 0.08) * smooth_field(rng, signal.shape, 24)
    loaded = (signal * bias * gain * texture).astype(np.float32)
    axis = int(rng.integers(1, 3))  # of phase encoding; the other one is sampled almost fully
    space = np.moveaxis(fft.fft2(loaded), axis, 2)
    phase = TURN * np.arange(pixels) / rng.uniform(2.5, 9) + rng.uniform(0, TURN, size=each)
    breathing = 1 + rng.gamma(1.2, 0.03) * np.cos(phase)  # makes ghosts
    # Noise: SD in each of the two channels, relative to M0 at the middle of the field.
    noise = rng.standard_normal((slices, pixels, 2 * pixels), dtype=np.float32).view(np.complex64)
    noise *= np.float32(pixels * np.exp(rng.normal(np.log(0.024), 0.35)))
    space = space * breathing.astype(np.float32) + noise
    space *= k_space_window(pixels, 0.95)[:, None] * k_space_window(pixels, rng.uniform(0.6, 0.9))
    image = fft.ifft2(np.moveaxis(space, 2, axis))
    magnitude = rng.random() < 0.2  # else phase-sensitive
    image = np.abs(image) if magnitude else image.real
    image = image + rng.gamma(2.0, 0.028) * rng.normal(size=each)  # level of zero signal
    image = np.rint(image * rng.uniform(300, 800)) + (PEDESTAL if magnitude else ZERO)
    return np.clip(image, 0, 4095).astype(np.float32)


# ---- one study ----

SLICE_MM, GAP_MM = 8.0, 2.0  # thickness and gap of the stack
PLANES = np.array([-3.0, 0.0, 3.0], dtype=np.float32)  # mm from the middle of the slice
PROFILE = np.array([0.28, 0.44, 0.28], dtype=np.float32)  # weights of the planes
INTERLEAVE = np.array([-1.1, 0.4, -0.4, 1.1], dtype=np.float32)  # mm, of the four points of a pixel
LANDMARK_LEVEL = 0.45  # where the insertion points are measured: the mid-ventricular slice
RV_WALL = 3.0  # mm
PEDESTAL = 128  # added to a magnitude image, so that no slice's level is cut off
ZERO = 1024  # value of zero signal in a phase-sensitive image, as scanners store it with an offset


def sample_heart(
    heart: Heart, scars: list[ScarMap], z: Array, x: Array, v: Array, signals: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Average signal and tissue over 2 × 2 points of every pixel and three planes of every slice.

    Args:
        z: heights of the points, mm below the base, ``(slices, 3, 4)``; those of ``scars``.
        x, v: the points in the heart frame, mm, ``(slices, 4, P)`` float32.
        signals: of each tissue in each slice, ``(slices, 12)``.

    Returns:
        Each ``(slices, P)``: the share of the voxel that is heart or its fat, the signal of that
        share, label, angle (radians), and depth in the wall (0 endocardium … 1 epicardium).
    """
    x, v, height = x[:, None], v[:, None], z[..., None]  # for (slices, planes, points, P)
    radius, angle = np.hypot(x, v), np.arctan2(v, x)
    column = (angle * np.float32(ANGLES / TURN) + np.float32(ANGLES + 0.5)).astype(int) % ANGLES

    def at(table: Array) -> Array:
        """Look up a table over height and angle, ``(z, ANGLES)``, at every point."""
        table = table.reshape(*z.shape, ANGLES).astype(np.float32)
        return np.take_along_axis(table, column, axis=3)

    thinning = np.clip(sum(scar.thinning for scar in scars), 0, 0.6) if scars else 0.0
    cavity, epicardium = heart.contours(z.ravel(), thinning)
    right_ventricle = heart.right_ventricle(z.ravel(), epicardium)
    has_rv = right_ventricle > epicardium + 0.5
    outside = np.maximum(epicardium, np.where(has_rv, right_ventricle + RV_WALL, 0))
    inner, outer = at(cavity), at(epicardium)
    depth = (radius - inner) / np.maximum(outer - inner, np.float32(0.5))
    in_cavity, in_wall = radius < inner, (radius < outer) & (radius >= inner)
    in_rv = (radius < at(right_ventricle)) & (radius >= outer)
    papillary = heart.in_papillary(height, cavity.reshape(*z.shape, ANGLES), x, v)
    places = [in_cavity & papillary, in_cavity, in_wall, in_rv, radius < at(outside)]
    kind = np.select(places, [PAPILLARY, BLOOD, HEART_MUSCLE, RV_BLOOD, MUSCLE], FAT)
    value = np.take_along_axis(signals[:, None, None], kind, axis=3)
    of_tissue = signals.T[..., None, None, None]
    is_scar, is_core = np.zeros((2, *depth.shape), dtype=bool)
    for scar in scars:
        here = in_wall & (depth >= at(scar.inner)) & (depth < at(scar.outer))
        core = here & (depth < at(scar.core)) & (depth > 0.12)
        contrast = of_tissue[SCAR_TISSUE] - of_tissue[HEART_MUSCLE]
        value = np.where(here, of_tissue[HEART_MUSCLE] + at(scar.density) * contrast, value)
        value = np.where(core, of_tissue[NO_REFLOW_TISSUE], value)
        is_scar, is_core = is_scar | here, is_core | core
    rim = in_wall & (radius < inner + heart.trabeculae.astype(np.float32)[column])
    value = value + rim * heart.trabecular_blood * (of_tissue[BLOOD] - value)
    covered = radius < at(outside + heart.fat)
    ventricle = height[:, :, :1] >= 0  # the atrium, above the base, carries no label
    labelled = (part & ventricle for part in (in_cavity, in_wall, in_rv, is_scar, is_core))
    weight = PROFILE[:, None, None] / 4
    shares = [(part * weight).sum((1, 2)) for part in (covered, value * covered, *labelled)]
    covered, signal, blood, wall, rv, scarred, no_reflow = shares
    stack = np.stack([1 - blood - wall - rv, blood, wall, rv])
    labels = np.array([BACKGROUND, CAVITY, MYOCARDIUM, RV], dtype=np.uint8)[stack.argmax(0)]
    is_scar = (labels == MYOCARDIUM) & (scarred >= 0.5 * wall)
    labels[is_scar] = SCAR
    labels[is_scar & (no_reflow > 0.5 * scarred)] = NO_REFLOW
    return covered, signal, labels, angle[:, 0, 0], depth[:, len(PLANES) // 2].mean(1)


class PhantomOptions(BaseModel):
    """What a phantom cohort is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    studies: int = Field(ge=1)
    seed: int = Field(ge=0)
    pixels: int = Field(128, ge=48, le=512)  # width and height of the image
    # Number of slices; None draws enough for the heart, and up to two more.
    slices: int | None = Field(None, ge=3, le=40)
    prevalence: float = Field(0.5, ge=0, le=1)  # share of studies with scar
    report_noise: float = Field(0.1, ge=0, le=1)  # share of reports with an omission or an error
    workers: int | None = None  # processes; None: one for each core, one for a small cohort


def render_study(
    index: int, seed: int, pixels: int, slices: int | None, prevalence: float
) -> tuple[Array, Array, dict[str, Any]]:
    """Render a study: image and labels ``(X, Y, slices)``, and spacing, landmarks and findings."""
    rng = np.random.default_rng((seed, index, 0))  # independent of the other studies
    present = rng.random() < prevalence
    heart = Heart(rng, dilated=float(rng.gamma(1.5, 1.0)) if present else 0.0)
    extra = int(rng.integers(0, 3))
    step = SLICE_MM + GAP_MM
    if slices:
        count, above = slices, 0.0
        step = (heart.length + 4) / count
    else:
        count = int(np.ceil((heart.length - 2) / step)) + extra
        above = step * int(rng.integers(0, extra + 1))
    middles = (np.arange(count) * step - above + rng.uniform(1, step - 2)).astype(np.float32)
    z = middles[:, None, None] + PLANES[:, None] + INTERLEAVE
    level = np.clip(z.ravel() / heart.length, -0.2, 1.2)
    scars = draw_scars(rng, level) if present else []
    mirrored, turn = rng.random() < 0.5, rng.uniform(0, TURN)
    mm = float(rng.uniform(1.5, 2.0)) * 128 / pixels
    offset = rng.normal(0, 8, size=2)
    drift = rng.normal(0, 3, size=2) * ((middles[:, None] - heart.length / 2) / heart.length)
    shift = (rng.normal(0, 1.3, size=(count, 2)) + drift).astype(np.float32)  # of each slice
    slice_levels = middles / heart.length
    signals = tissue_signals(rng, np.clip(slice_levels, 0, 1))
    grid = (np.arange(pixels, dtype=np.float32) - (pixels - 1) / 2) * mm

    def to_heart(right: Array, down: Array) -> tuple[Array, Array]:
        """Stored mm (right, down) → heart frame (x, v up)."""
        right, up = (-right if mirrored else right), -down
        point = (right + 1j * up) * np.exp(1j * turn)
        return point.real.astype(np.float32), point.imag.astype(np.float32)

    x, v = to_heart(grid[:, None] - offset[0], grid - offset[1])
    chest = draw_chest(rng, heart, x, v, slice_levels)
    reach = heart.radius + 12
    near = (x > -reach - heart.rv_width) & (x < reach) & (np.abs(v) < reach)
    quarter = mm / 4 * np.array([[-1, -1, 1, 1], [-1, 1, -1, 1]])[..., None]
    moved = to_heart(*quarter)  # of the four points from the centre of their pixel
    near_x, near_v = x[near] + moved[0], v[near] + moved[1]  # (4, P)
    near_x, near_v = near_x - shift[:, :1, None], near_v - shift[:, 1:, None]  # (slices, 4, P)
    sampled = sample_heart(heart, scars, z, near_x, near_v, signals)
    covered, heart_signal, heart_labels, angle, depth = sampled
    signal = signals[np.arange(count)[:, None, None], chest]
    signal[:, near] = signal[:, near] * (1 - covered) + heart_signal
    body = np.array([0, 0.15] + [1] * 10, dtype=np.float32)[chest]
    body[:, near] = np.maximum(body[:, near], covered)
    labels = np.zeros_like(chest)
    labels[:, near] = heart_labels
    image = acquire(rng, signal, body, x, v)
    order = -1 if rng.random() < 0.5 else 1
    image, labels = np.moveaxis(image, 0, 2), np.moveaxis(labels, 0, 2)
    points = np.rad2deg(heart.insertion_points(LANDMARK_LEVEL))
    stored = (points - np.rad2deg(turn)) % 360
    landmarks = Landmarks(*map(float, (180 - stored) % 360 if mirrored else stored))
    wall = np.isin(heart_labels, WALL_CODES)
    degrees = (np.rad2deg(angle[wall]) - points[0] + ANTERIOR_RVIP_DEG) % 360
    voxels = heart_labels[wall], np.nonzero(wall)[0], degrees, depth[wall]
    causes = {scar.aetiology for scar in scars}
    cause = causes.pop() if len(causes) == 1 else "ischaemic"
    found = scars_of_voxels(*voxels, Ventricle.of(labels).thirds)
    findings = Findings(tuple(replace(scar, aetiology=cause) for scar in found))
    facts = {"spacing": (mm, mm, step), "landmarks": landmarks, "findings": findings}
    image, labels = (np.ascontiguousarray(stack[..., ::order]) for stack in (image, labels))
    return image, labels, facts


# ---- cohorts ----

CHUNK = 48  # studies in a cache entry


def render_chunk(start: int, stop: int, look: dict[str, Any], version: str) -> tuple:
    """Render studies ``start`` to ``stop - 1``; their arrays are joined, for memory-mapping.

    ``version`` is only part of the cache's key.
    """
    studies = [render_study(index, **look) for index in range(start, stop)]
    images, labels, facts = zip(*studies, strict=True)
    joined = (np.concatenate([array.ravel() for array in arrays]) for arrays in (images, labels))
    return *joined, [image.shape for image in images], facts


def phantom_cohort(studies: int = 200, seed: int = 0, **options) -> Cohort:
    """Make a phantom cohort. It is rendered once, then memory-mapped from the cache.

    A study has an image ``(1, X, Y, slices)`` float32 (phase-sensitive ones have an offset, as from
    a scanner), labels with RV, a report, and exact landmarks and findings. Study ``i`` of a seed is
    the same in a cohort of any size, made by any number of workers.

    ``options`` are ``prevalence``, ``pixels``, ``slices``, … (:class:`PhantomOptions`). Raises
    InputError for an unknown option, or a value out of range.
    """
    try:
        asked = PhantomOptions(studies=studies, seed=seed, **options)
    except ValidationError as error:
        first = error.errors()[0]
        remedy = f"{first['msg']}. The options are {', '.join(PhantomOptions.model_fields)}."
        where = f"phantom option {first['loc'][0]}"
        raise InputError(where, f"found {first['input']!r}", remedy) from None
    look = asked.model_dump(include={"seed", "pixels", "slices", "prevalence"})
    starts, version = range(0, asked.studies, CHUNK), code_version("anatomy", "data")
    render = memory().cache(render_chunk).call_and_shelve
    workers = asked.workers or (1 if len(starts) == 1 else -1)
    chunks = Parallel(n_jobs=workers, inner_max_num_threads=1 if workers != 1 else None)(
        delayed(render)(start, min(start + CHUNK, asked.studies), look, version) for start in starts
    )
    made: list[Study] = []
    for images, labels, shapes, facts in (chunk.get() for chunk in chunks):
        ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
        parts = zip(np.split(images, ends), np.split(labels, ends), shapes, facts, strict=True)
        for image, codes, shape, own in parts:
            own |= {"image": image.reshape(shape), "labels": codes.reshape(shape)}
            made.append(_study(len(made), asked.seed, asked.report_noise, own))
    return Cohort(made, f"phantom:studies={asked.studies},seed={asked.seed}")


def _study(index: int, seed: int, report_noise: float, rendered: dict[str, Any]) -> Study:
    """Make a study and write its report, so that new wording needs no new images."""
    from lgekit.reports.writer import corrupt_findings, write_report

    rng, findings = np.random.default_rng((seed, index, 1)), rendered["findings"]
    reported = corrupt_findings(findings, rng, report_noise) if report_noise else findings
    study_id = f"Phantom_{seed}_{index:05d}"
    return Study.from_arrays(
        study_id,
        report=write_report(reported, rng, whole=True),
        report_source="phantom",
        split=split_of(study_id, findings.present),
        **rendered,
    )
