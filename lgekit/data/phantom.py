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
from scipy import fft

from lgekit.anatomy.segments import ANTERIOR_RVIP_DEG, Ventricle, scars_of_voxels
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
        """Whether points are inside a papillary muscle, ``(slices, points)`` bool."""
        inside = np.zeros(x.shape, dtype=bool)
        for angle, first, last, size, inset in self.papillary:
            rows = np.flatnonzero((z > first * self.length) & (z < last * self.length))
            distance = cavity[rows, int(np.rad2deg(angle)) % ANGLES] * (1 - inset)
            away_x = x[rows] - (distance * np.cos(angle)).astype(np.float32)[:, None]
            away_v = v[rows] - (distance * np.sin(angle)).astype(np.float32)[:, None]
            inside[rows] |= away_x**2 + away_v**2 < size**2
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
    thorax = np.full(x.shape, LUNG, dtype=np.uint8)
    ribs = (np.sin(turn * rng.uniform(9, 14) + phases[5]) > 0.5) & (under_fat > 0.35 * muscle_layer)
    thorax[under_fat < muscle_layer] = MUSCLE
    thorax[ribs & (under_fat < 0.8 * muscle_layer)] = FAT
    thorax[under_fat < 0] = FAT
    thorax[inside < 0] = AIR
    soft = under_fat > muscle_layer
    bag = rng.uniform(0, 9)  # fat of the mediastinum between the RV and the chest wall
    mediastinum = np.hypot((x + 0.6 * heart.rv_width) / 1.25, v - 8) - heart.radius - bag
    dome_x, dome_r = rng.normal(-50, 15), rng.uniform(90, 150)
    diaphragm = -heart.radius - float(np.median(heart.fat)) - rng.uniform(-2, 6)
    slope, tilt = rng.uniform(0, 18), rng.uniform(-0.35, 0.1)
    stomach_x, stomach_r = rng.uniform(15, 60), rng.uniform(24, 45)
    aorta_x, aorta_v, aorta_r = rng.uniform(48, 70), rng.uniform(-42, -10), rng.uniform(8, 12)
    tissue = np.empty((len(levels), *x.shape), dtype=np.uint8)
    for plane, level in zip(tissue, levels, strict=True):
        plane[:] = thorax
        plane[soft & (mediastinum < -25 * max(level - 0.45, 0))] = FAT
        top = diaphragm + slope * (level - 0.5) + tilt * x
        liver = np.hypot(x - dome_x, v - top + dome_r) - dome_r
        plane[soft & (liver < 3)] = MUSCLE
        plane[soft & (liver < 1)] = LIVER
        stomach = np.hypot((x - stomach_x) * 0.8, v - top + stomach_r + 8) - stomach_r
        plane[soft & (stomach < 3)] = MUSCLE
        plane[soft & (stomach < 0)] = STOMACH
        if level < 0.8:
            plane[soft & (np.hypot(x - aorta_x, v - aorta_v) < aorta_r)] = BLOOD
    lung = np.flatnonzero(tissue == LUNG)
    if len(lung):  # vessels are dots
        tissue.reshape(-1)[rng.choice(lung, size=len(lung) // 70)] = BLOOD
    return tissue


# ---- the scars ----

# Bed of each coronary artery in the heart frame: centre and half-width in degrees, share among
# infarcts. Segments by artery: Cerqueira 2002; shares roughly those of infarct series (LAD most
# often, then RCA, then LCx).
TERRITORIES = {"LAD": (125.0, 62.0, 0.47), "RCA": (255.0, 50.0, 0.33), "LCx": (345.0, 45.0, 0.20)}
# Non-ischaemic patterns: share, and what a report calls the disease.
PATTERNS = {
    "septal stripe": (0.35, "dilated"),
    "lateral subepicardial": (0.35, "myocarditis"),
    "insertion points": (0.15, "hypertrophic"),
    "patchy": (0.15, "non-ischaemic"),
}


@dataclass
class ScarMap:
    """Scar over the wall, tables ``(z, ANGLES)`` float32; depth is 0 endocardium … 1 epicardium."""

    aetiology: str  # the artery or the disease
    inner: Array  # depth where scar begins
    outer: Array  # depth where it ends
    core: Array  # depth to which no-reflow reaches, from 0.12
    density: Array  # share of the scar's extra ECV
    thinning: Array  # share of the wall that is lost

    def thickness(self) -> Array:
        """Share of the wall that is scar, ``(z, ANGLES)``."""
        return np.clip(np.minimum(self.outer, 1) - np.maximum(self.inner, 0), 0, 1)


def float32(*tables: Array) -> list[Array]:
    return [table.astype(np.float32) for table in tables]


def wall_noise(rng: Rng, level: Array) -> Array:
    """A smooth random field over the wall, ``(len(level), ANGLES)``, about unit variance."""
    field = np.zeros((len(level), ANGLES), dtype=np.float32)
    orders = range(1, 9)
    for order in orders:
        along = rng.normal(0, order * 1.2) * TURN * level[:, None] / 2
        wave = np.cos(order * THETA[None] + along + rng.uniform(0, TURN))
        field += (1 / np.sqrt(order) * wave).astype(np.float32)
    return field / np.float32(np.sqrt(sum(0.5 / order for order in orders)))


def wavefront_scar(rng: Rng, level: Array, artery: str | None = None) -> ScarMap:
    """Draw an infarct: a wavefront from the endocardium in the bed of an artery (None: any)."""
    names = list(TERRITORIES)
    artery = artery or names[rng.choice(3, p=[TERRITORIES[name][2] for name in names])]
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
    return ScarMap(artery, *float32(inner, reach, core, density, thinning))


def patch_scar(rng: Rng, level: Array, heart: Heart, pattern: str | None = None) -> ScarMap:
    """Draw a non-ischaemic scar, one of ``PATTERNS``, as ellipsoids in angle, level and depth."""
    names = list(PATTERNS)
    pattern = pattern or names[rng.choice(4, p=[PATTERNS[name][0] for name in names])]
    anterior, inferior = np.deg2rad(120), heart.inferior_rvip
    # Ellipsoids: angle, half-width, half-height (in levels), depth and thickness (0–1).
    if pattern == "septal stripe":
        angle = (anterior + inferior) / 2 + rng.normal(0, 0.2)
        spots = [(angle, rng.uniform(0.35, 0.85), rng.uniform(0.2, 0.5), 0.5, 0.17)]
    elif pattern == "lateral subepicardial":
        angle = np.deg2rad(rng.normal(335, 18))
        spots = [(angle, rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.5), 0.88, 0.3)]
    elif pattern == "insertion points":
        spots = [(anterior + 0.1, 0.2, 0.35, 0.6, 0.3), (inferior - 0.1, 0.22, 0.35, 0.6, 0.3)]
    else:
        spots = [
            (rng.uniform(0, TURN), rng.uniform(0.15, 0.35), 0.2, 0.5, 0.25)
            for _ in range(rng.integers(2, 5))
        ]
    row = level[:, None].astype(np.float32)
    inner = np.ones((len(level), ANGLES), dtype=np.float32)
    outer = np.zeros_like(inner)
    for angle, half_width, half_height, depth, thickness in spots:
        across = (angle_between(THETA[None], angle) / half_width) ** 2
        distance = across + ((row - rng.uniform(0.2, 0.65)) / half_height) ** 2
        distance = distance * (1 + 0.35 * wall_noise(rng, level))
        half = np.float32(thickness * rng.uniform(0.8, 1.3))
        half = half * np.sqrt(np.clip(1 - distance, 0, 1))
        inner = np.where(half > 0.05, np.minimum(inner, depth - half), inner)
        outer = np.where(half > 0.05, np.maximum(outer, depth + half), outer)
    density = np.clip(rng.uniform(0.5, 0.9) + 0.12 * wall_noise(rng, level), 0.2, 1.0)
    nothing = np.zeros_like(inner)
    return ScarMap(PATTERNS[pattern][1], *float32(inner, outer, nothing, density, nothing))


def draw_scars(rng: Rng, level: Array, heart: Heart) -> list[ScarMap]:
    """Draw the scars of one diseased heart: four in five are infarcts, one in eight of them two."""
    inside = (level > 0.05) & (level < 0.95)
    while True:
        if rng.random() >= 0.8:
            scars = [patch_scar(rng, level, heart)]
        else:
            scars = [wavefront_scar(rng, level) for _ in range(1 + (rng.random() < 0.12))]
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


class Scanner:
    """Random settings and imperfections of one examination; arrays are ``(slices,)``."""

    def __init__(self, rng: Rng, levels: Array) -> None:
        count = len(levels)
        ecv_scar = float(np.clip(rng.normal(ECV_SCAR, 0.07), 0.50, 0.85))
        # T1 of blood (ms): contrast washes out while the slices are acquired in order.
        t1_blood = float(np.clip(rng.normal(400, 65), 280, 560))
        t1_blood = t1_blood * (1 + 0.07 * (0.5 - levels) * rng.choice([-1, 1]))
        self.t1_blood = t1_blood * (1 + 0.01 * rng.normal(size=count))
        ecv_remote = float(np.clip(rng.normal(ECV_REMOTE, 0.025), 0.2, 0.33))
        null = float(np.median(t1_after_contrast(ecv_remote, self.t1_blood))) * np.log(2)
        self.inversion_time = null * rng.normal(1.0, 0.06) * (1 + 0.04 * rng.normal(size=count))
        # SD in each of the two channels, relative to M0 at the middle of the field.
        self.noise = float(np.exp(rng.normal(np.log(0.024), 0.35)))
        self.resolution = float(rng.uniform(0.6, 0.9))  # share of k-space in phase encoding
        self.ghost = float(rng.gamma(1.2, 0.03))  # respiratory modulation of k-space
        self.ghost_period = float(rng.uniform(2.5, 9))  # in lines
        self.phase_axis = int(rng.integers(2))
        # Bias field (natural log): linear in two directions, and quadratic.
        self.coil = rng.normal(0, [0.30, 0.15, 0.12]) + [0.35, 0, 0]
        # Receiver gain and level of zero signal: exported slices are windowed individually.
        self.gain = 1 + 0.08 * rng.normal(size=count)
        self.offset = rng.gamma(2.0, 0.028) * rng.normal(size=count)
        # Share of spins that are not inverted: 10 % lifts nulled myocardium by 5 % of M0.
        loss = rng.normal(0.08, 0.04) + 0.06 * rng.normal(size=count)
        self.inversion_loss = np.clip(loss, 0, 0.3)
        self.loss_spread = float(rng.uniform(0.03, 0.10))  # its SD over the slice
        self.magnitude = bool(rng.random() < 0.2)  # else phase-sensitive
        self.texture = float(rng.uniform(0.03, 0.08))  # relative SD
        # Signed signal of every tissue, (slices, 12).
        t1, time, remote = self.t1_blood, self.inversion_time, ecv_remote
        ecv = {HEART_MUSCLE: remote, PAPILLARY: remote + 0.02, SCAR_TISSUE: ecv_scar}
        ecv |= {NO_REFLOW_TISSUE: 0.13, MUSCLE: 0.16, LIVER: 0.36, STOMACH: 0.22, LUNG: 0.40}
        signals = np.zeros((count, 12), dtype=np.float32)
        for code, volume in ecv.items():
            signals[:, code] = inversion_recovery(t1_after_contrast(volume, t1), time)
        signals[:, [BLOOD, RV_BLOOD]] = inversion_recovery(t1, time)[:, None]
        signals[:, FAT] = inversion_recovery(np.clip(rng.normal(300, 30), 220, 380), time)
        density = rng.normal(1, 0.1, size=12)  # of protons
        density[[BLOOD, *range(HEART_MUSCLE, NO_REFLOW_TISSUE + 1)]] = 1
        signals[:, LUNG] *= 0.15
        self.signals = signals * density.astype(np.float32)


def smooth_field(rng: Rng, shape: tuple[int, ...], knots: int) -> Array:
    """A random field of unit variance in each slice, float32, bilinear between knots."""
    coarse = rng.standard_normal((shape[0], knots, knots), dtype=np.float32)
    weights = []
    for size in shape[1:]:
        position = np.linspace(0, knots - 1, size, dtype=np.float32)
        distance = np.abs(position[:, None] - np.arange(knots))
        weights.append(np.maximum(1 - distance, 0).astype(np.float32))
    return weights[0] @ coarse @ weights[1].T * np.float32(1.5)


def acquire(rng: Rng, signal: Array, body: Array, x: Array, v: Array, scanner: Scanner) -> Array:
    """Simulate the image of a signal: coil bias, truncated k-space, ghosts, noise, reconstruction.

    ``signal`` is signed and ``body`` is proton density (0 air … 1 tissue), both ``(slices, X, Y)``
    float32. ``x`` and ``v`` are pixel centres in the heart frame, ``(X, Y)``.
    """
    slices, size_x, size_y = signal.shape
    front = (-0.57 * x + 0.82 * v) / 100  # towards the anterior coil
    side = (0.82 * x + 0.57 * v) / 100
    linear = scanner.coil[0] * front + scanner.coil[1] * side
    bias = np.exp(linear + scanner.coil[2] * (front**2 + side**2))
    loss = np.float32(scanner.loss_spread) * smooth_field(rng, signal.shape, 5)
    loss += scanner.inversion_loss.astype(np.float32)[:, None, None]
    signal = signal + loss * (body - signal) * np.float32(0.5)  # 1 − (2 − loss)·exp(−TI/T1)
    loaded = signal * (bias[None] * scanner.gain[:, None, None]).astype(np.float32)
    loaded *= 1 + np.float32(scanner.texture) * smooth_field(rng, signal.shape, 24)
    space = fft.fft2(loaded, axes=(1, 2))
    windows = []
    for axis, size in enumerate((size_x, size_y)):
        line = np.abs(fft.fftfreq(size)) * 2  # 0 centre … 1 edge of k-space
        edge = scanner.resolution if axis == scanner.phase_axis else 0.95
        roll_off = 0.5 + 0.5 * np.cos(np.pi * np.clip((line / edge - 0.6) / 0.4, 0, 1))
        windows.append(np.where(line < edge, roll_off, 0))
    window = (windows[0][:, None] * windows[1]).astype(np.float32)
    order = np.arange((size_x, size_y)[scanner.phase_axis])
    start = rng.uniform(0, TURN, size=(slices, 1))
    swing = 1 + scanner.ghost * np.cos(TURN * order / scanner.ghost_period + start)
    swing = swing[:, :, None] if scanner.phase_axis == 0 else swing[:, None, :]
    noise = rng.standard_normal((slices, size_x, 2 * size_y), dtype=np.float32).view(np.complex64)
    noise *= np.float32(scanner.noise * np.sqrt(size_x * size_y))
    space = (space * swing.astype(np.float32) + noise) * window
    image = fft.ifft2(space, axes=(1, 2), overwrite_x=True)
    image = np.abs(image) if scanner.magnitude else np.ascontiguousarray(image.real)
    return image + scanner.offset.astype(np.float32)[:, None, None]


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
        z: heights, mm below the base, ``(slices × 3 × 4,)``; those of the tables of ``scars``.
        x, v: the points in the heart frame, mm, ``(slices, 4 × P)`` float32.
        signals: of each tissue in each slice, ``(slices, 12)``.

    Returns:
        Each ``(slices, P)``: the share of the voxel that is heart or its fat, the signal of that
        share, label, angle (radians), and depth in the wall (0 endocardium … 1 epicardium).
    """
    slices, planes, pixels = len(x), len(PLANES), x.shape[1] // 4
    radius, angle = np.hypot(x, v), np.arctan2(v, x)
    column = angle * np.float32(ANGLES / TURN) + np.float32(ANGLES + 0.5)
    column = column.astype(np.int32) % ANGLES
    thinning = np.clip(sum(scar.thinning for scar in scars), 0, 0.6) if scars else 0.0
    cavity, epicardium = heart.contours(z, thinning)
    right_ventricle = heart.right_ventricle(z, epicardium)
    has_rv = right_ventricle > epicardium + 0.5
    outside = np.maximum(epicardium, np.where(has_rv, right_ventricle + RV_WALL, 0))
    fat = outside + heart.fat.astype(np.float32)
    row = np.arange(slices, dtype=np.int32)[:, None]
    quarter = np.repeat(np.arange(4, dtype=np.int32), pixels)  # each point has its own height
    trabeculae = heart.trabeculae.astype(np.float32)[column]
    total = np.zeros((7, slices, pixels), dtype=np.float32)
    for plane in range(planes):
        at = ((row * planes + plane) * 4 + quarter) * ANGLES + column
        inner, outer = cavity.ravel()[at], epicardium.ravel()[at]
        in_cavity, in_lv = radius < inner, radius < outer
        in_wall = in_lv & ~in_cavity
        in_rv = (radius < right_ventricle.ravel()[at]) & ~in_lv
        kind = np.where(radius < outside.ravel()[at], MUSCLE, FAT).astype(np.int32)
        kind[in_rv], kind[in_wall], kind[in_cavity] = RV_BLOOD, HEART_MUSCLE, BLOOD
        middle = slice(plane * 4, None, planes * 4)
        kind[in_cavity & heart.in_papillary(z[middle], cavity[middle], x, v)] = PAPILLARY
        is_scar, is_core = np.zeros((2, *x.shape), dtype=bool)
        depth = (radius - inner) / np.maximum(outer - inner, np.float32(0.5))
        value = signals.ravel()[row * signals.shape[1] + kind]
        for scar in scars:
            here = in_wall & (depth >= scar.inner.ravel()[at]) & (depth < scar.outer.ravel()[at])
            core = here & (depth < scar.core.ravel()[at]) & (depth > 0.12)
            level = signals[np.nonzero(here)[0]]
            contrast = level[:, SCAR_TISSUE] - level[:, HEART_MUSCLE]
            value[here] = level[:, HEART_MUSCLE] + scar.density.ravel()[at[here]] * contrast
            value[core] = signals[np.nonzero(core)[0], NO_REFLOW_TISSUE]
            is_scar |= here
            is_core |= core
        rim = in_wall & (radius < inner + trabeculae)
        value[rim] += heart.trabecular_blood * (signals[np.nonzero(rim)[0], BLOOD] - value[rim])
        covered = radius < fat.ravel()[at]
        ventricle = (z[middle] >= 0)[:, None]  # the atrium, above the base, carries no label
        labelled = [part & ventricle for part in (in_cavity, in_wall, in_rv, is_scar, is_core)]
        parts = np.stack([covered, value * covered, *labelled]).reshape(7, slices, 4, pixels)
        total += parts.sum(2) * (PROFILE[plane] / 4)
        if plane == planes // 2:
            middle_depth = depth.reshape(slices, 4, pixels).mean(1)
    covered, signal, blood, wall, rv, scarred, no_reflow = total
    stack = np.stack([1 - blood - wall - rv, blood, wall, rv])
    labels = np.array([BACKGROUND, CAVITY, MYOCARDIUM, RV], dtype=np.uint8)[stack.argmax(0)]
    is_scar = (labels == MYOCARDIUM) & (scarred >= 0.5 * wall)
    labels[is_scar] = SCAR
    labels[is_scar & (no_reflow > 0.5 * scarred)] = NO_REFLOW
    return covered, signal, labels, angle[:, :pixels], middle_depth


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
    z = (middles[:, None, None] + PLANES[:, None] + INTERLEAVE).ravel()
    level = np.clip(z / heart.length, -0.2, 1.2)
    scars = draw_scars(rng, level, heart) if present else []
    mirrored, turn = rng.random() < 0.5, rng.uniform(0, TURN)
    mm = float(rng.uniform(1.5, 2.0)) * 128 / pixels
    offset = rng.normal(0, 8, size=2)
    drift = rng.normal(0, 3, size=2) * ((middles[:, None] - heart.length / 2) / heart.length)
    shift = (rng.normal(0, 1.3, size=(count, 2)) + drift).astype(np.float32)  # of each slice
    slice_levels = middles / heart.length
    scanner = Scanner(rng, np.clip(slice_levels, 0, 1))
    grid = (np.arange(pixels, dtype=np.float32) - (pixels - 1) / 2) * mm
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    flip = np.float32(-1 if mirrored else 1)

    def to_heart(right: Array, down: Array) -> tuple[Array, Array]:
        """Stored mm (right, down) → heart frame (x, v up)."""
        right, up = flip * (right - np.float32(offset[0])), -(down - np.float32(offset[1]))
        return cos * right - sin * up, sin * right + cos * up

    x, v = to_heart(grid[:, None], grid[None, :])
    chest = draw_chest(rng, heart, x, v, slice_levels)
    signals = scanner.signals
    reach = heart.radius + 12
    near = np.flatnonzero((x > -reach - heart.rv_width) & (x < reach) & (np.abs(v) < reach))
    quarter = np.float32(mm / 4) * np.array([[-1, -1, 1, 1], [-1, 1, -1, 1]], dtype=np.float32)
    right = grid[near // pixels] + quarter[0][:, None]  # (4 points, pixels)
    down = grid[near % pixels] + quarter[1][:, None]
    near_x, near_v = to_heart(right.ravel(), down.ravel())
    near_x, near_v = near_x - shift[:, :1], near_v - shift[:, 1:]  # (slices, 4 × pixels)
    sampled = sample_heart(heart, scars, z, near_x, near_v, signals)
    covered, heart_signal, heart_labels, angle, depth = sampled
    flat_chest = chest.reshape(count, -1)  # (slices, pixels²)
    signal = np.take_along_axis(signals, flat_chest.astype(np.intp), axis=1)
    signal[:, near] = signal[:, near] * (1 - covered) + heart_signal
    body = np.array([0, 0.15] + [1] * 10, dtype=np.float32)[flat_chest]
    body[:, near] = np.maximum(body[:, near], covered)
    labels = np.zeros_like(flat_chest)
    labels[:, near] = heart_labels
    image = acquire(rng, signal.reshape(chest.shape), body.reshape(chest.shape), x, v, scanner)
    image = np.rint(image * np.float32(rng.uniform(300, 800)))
    image = np.clip(image + (PEDESTAL if scanner.magnitude else ZERO), 0, 4095)
    order = -1 if rng.random() < 0.5 else 1
    image, labels = (np.moveaxis(one.reshape(chest.shape), 0, 2) for one in (image, labels))
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
    image = np.ascontiguousarray(image[..., ::order], dtype=np.float32)
    return image, np.ascontiguousarray(labels[..., ::order]), facts


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
