"""The anatomy of a phantom: its heart and its scars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ANGLES = 360  # one degree a step in every table over the circumference
# The RV is widest towards its acute margin, nearer to the inferior insertion point. Measured on the 60 ACDC patients of
# the development set: its outermost tenth lies 10–18° (medians, apex to base) to that side of the septum's middle.
RV_LEAN = 0.3
TURN = 2 * np.pi
THETA = (np.arange(ANGLES, dtype=np.float32) * np.float32(TURN / ANGLES)).astype(np.float32)
ANTERIOR_RVIP = np.deg2rad(
    120.0
)  # between AHA segments 1 and 2 (Cerqueira et al., Circulation 2002;105:539)


def angle_between(angle: np.ndarray | float, reference: np.ndarray | float) -> np.ndarray:
    """Signed difference of two angles in radians, in [-π, π)."""
    return (np.asarray(angle) - reference + np.pi) % TURN - np.pi


def ripple(rng: np.random.Generator, amplitude: float, orders=range(2, 7)) -> np.ndarray:
    """A smooth random function of the angle, ``(ANGLES,)``, standard deviation about ``amplitude``, mean 0."""
    wave = np.zeros(ANGLES)
    for order in orders:
        wave += rng.normal() / order * np.cos(order * THETA + rng.uniform(0, TURN))
    return amplitude * wave / np.sqrt(sum(0.5 / order**2 for order in orders))


@dataclass(frozen=True)
class Heart:
    """One heart, before any scar.

    Attributes:
        length: base to epicardial apex along the axis. LV end-diastolic long axis about 80–100 mm in adults
            (Kawel-Boehm et al., J Cardiovasc Magn Reson 2020;22:87, reference ranges).
        radius: epicardial radius at the base.
        wall: wall thickness at the base (7–10 mm normal, more with hypertrophy).
        inferior_rvip: angle of the inferior insertion point at mid level, radians.
        twist: rotation of both insertion points from mid level towards the apex, radians a unit of level.
        outline, endocardium: relative ripple of the two contours, ``(ANGLES,)``.
        rv_width, rv_level: width of the RV cavity at the base, and the level at which it ends.
        fat: thickness of the epicardial fat, ``(ANGLES,)``.
        trabeculae, trabecular_blood: thickness (mm, ``(ANGLES,)``) of the inmost layer, of which a share is blood. The
            wall's mask holds it, for contours are drawn smoothly through it.
        papillary: one row a papillary muscle: angle, first and last level, radius in mm, distance from the
            endocardium as a share of the cavity's radius.
    """

    length: float
    radius: float
    wall: float
    inferior_rvip: float
    twist: float
    outline: np.ndarray
    endocardium: np.ndarray
    septal_bulge: float
    rv_width: float
    rv_level: float
    fat: np.ndarray
    trabeculae: np.ndarray
    trabecular_blood: np.float32
    papillary: np.ndarray

    def insertion_points(self, level: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Angles of the anterior and inferior insertion points at a level, radians in the heart frame."""
        turn = self.twist * (np.asarray(level) - 0.5)
        return ANTERIOR_RVIP + turn, self.inferior_rvip + turn

    def contours(
        self, z: np.ndarray, thinning: np.ndarray | float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Endocardial and epicardial radius over the circumference, each ``(len(z), ANGLES)`` float32.

        A truncated ellipsoid for each surface; the wall thins towards the apex. Above the base (z < 0) the wall
        is the thin one of the atrium; past the apex both radii are 0.

        Args:
            z: mm below the base.
            thinning: share of the wall lost to an old infarct, 0–1, ``(len(z), ANGLES)``.
        """
        z = np.asarray(z, dtype=np.float32)[:, None]
        level = np.clip(z / self.length, 0, 1)
        apical_wall = 0.7 * self.wall
        inner_level = np.clip(z / (self.length - apical_wall), 0, 1)
        epicardium = self.radius * np.sqrt(1 - level**2.3) * (1 + self.outline)
        cavity = (
            (self.radius - self.wall)
            * np.sqrt(1 - inner_level**2.1)
            * (1 + self.outline + self.endocardium)
        )
        wall = np.maximum(epicardium - cavity, 0) * (1 + self.septal_bulge * np.cos(THETA - np.pi))
        wall = np.where(z < 0, np.maximum(2.0, wall * (1 + z / 8)), wall) * (1 - thinning)
        cavity = np.maximum(epicardium - wall, 0) * (inner_level < 1)
        return cavity.astype(np.float32), epicardium.astype(np.float32)

    def right_ventricle(self, z: np.ndarray, epicardium: np.ndarray) -> np.ndarray:
        """Outer radius of the RV cavity, ``(len(z), ANGLES)`` float32: the LV epicardium where there is no RV."""
        level = np.asarray(z, dtype=np.float32)[:, None] / self.length
        anterior, inferior = self.insertion_points(level)
        share = (
            (THETA - anterior) % TURN / (inferior - anterior)
        )  # 0 anterior … 1 inferior insertion point
        crescent = np.sin(np.pi * np.clip(share, 0, 1)) ** 0.55 * (
            1 - RV_LEAN * np.cos(np.pi * share)
        )
        taper = np.sqrt(np.clip(1 - np.clip(level / self.rv_level, 0, 1) ** 2.5, 0, 1))
        return (epicardium + self.rv_width * crescent * taper).astype(np.float32)


def draw_heart(rng: np.random.Generator, dilated: float = 0.0) -> Heart:
    """A heart at random; ``dilated`` (mm) widens it, as remodelling after an infarct does."""
    length = float(np.clip(rng.normal(80, 7), 64, 98))
    wall = float(np.clip(rng.normal(9.0, 1.2), 6.5, 13.0)) + (
        rng.uniform(2, 5) if rng.random() < 0.12 else 0.0
    )
    radius = float(np.clip(rng.normal(33, 2.5), 27, 40)) + dilated
    fat = np.clip(rng.gamma(2.0, 1.2) * (1 + ripple(rng, 0.6, range(1, 6))), 0.2, 12)
    inferior_rvip = float(np.deg2rad(np.clip(rng.normal(238, 10), 210, 262)))
    for groove in (ANTERIOR_RVIP, inferior_rvip):  # fat fills the grooves between the ventricles
        fat = fat + rng.uniform(2, 9) * np.exp(-((angle_between(THETA, groove) / 0.22) ** 2))
    oval = 0.04 * abs(rng.normal()) * np.cos(2 * (THETA - rng.uniform(0, np.pi)))
    papillary = [
        (np.deg2rad(rng.normal(centre, 10)), rng.uniform(0.25, 0.4), rng.uniform(0.6, 0.8), rng.uniform(3.5, 6.5),
         rng.uniform(0.1, 0.35))
        for centre in (35, 285)
    ]  # fmt: skip
    return Heart(
        length=length,
        radius=radius,
        wall=wall,
        inferior_rvip=inferior_rvip,
        twist=float(np.deg2rad(rng.normal(0, 12))),
        outline=oval + ripple(rng, 0.015),
        endocardium=ripple(rng, 0.03, range(2, 12)),
        septal_bulge=float(rng.normal(0.05, 0.06)),
        rv_width=float(rng.uniform(22, 38)),
        rv_level=float(rng.uniform(0.78, 0.98)),
        fat=fat,
        trabeculae=np.clip(rng.uniform(1.0, 2.4) * (1 + ripple(rng, 0.5, range(1, 10))), 0, 4),
        trabecular_blood=np.float32(rng.uniform(0.4, 0.9)),
        papillary=np.array(papillary),
    )


# Tissues of the chest; the last part of a `tissue` array that `acquisition.signal` turns into intensities.
(
    AIR,
    LUNG,
    FAT,
    MUSCLE,
    LIVER,
    BLOOD,
    STOMACH,
    HEART_MUSCLE,
    PAPILLARY,
    RV_BLOOD,
    SCAR_TISSUE,
    NO_REFLOW_TISSUE,
) = range(12)


def draw_chest(
    rng: np.random.Generator, heart: Heart, x: np.ndarray, v: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """The tissues around the heart at pixel resolution, ``(slices, X, Y)`` uint8.

    Chest wall in front (upper left), lung on the side, liver under the diaphragm that the heart rests on, stomach and
    descending aorta: where a short-axis view has them. Vessels are dots in the lung.

    Args:
        heart: which the chest must hold.
        x, v: coordinates in the heart frame, ``(X, Y)`` float32.
        levels: level of each slice.
    """
    front = np.deg2rad(rng.normal(128, 12))  # direction of the chest wall, seen from the LV
    half_depth, half_width = rng.uniform(95, 115), rng.uniform(125, 160)
    fat_layer, muscle_layer = 4 + rng.gamma(3, 3.5), rng.uniform(7, 13)
    gap = (
        heart.radius + 0.55 * heart.rv_width + rng.uniform(2, 12) + fat_layer + muscle_layer
    )  # LV axis to skin
    deep = np.cos(front) * x + np.sin(front) * v + (half_depth - gap)
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
    rest = (
        -heart.radius - float(np.median(heart.fat)) - rng.uniform(-2, 6)
    )  # the diaphragm, where the heart rests
    slope, tilt = rng.uniform(0, 18), rng.uniform(-0.35, 0.1)
    stomach_x, stomach_r = rng.uniform(15, 60), rng.uniform(24, 45)
    aorta_x, aorta_v, aorta_r = rng.uniform(48, 70), rng.uniform(-42, -10), rng.uniform(8, 12)
    tissue = np.empty((len(levels), *x.shape), dtype=np.uint8)
    for s, level in enumerate(levels):
        here = thorax.copy()
        here[soft & (mediastinum < -25 * max(level - 0.45, 0))] = FAT
        top = rest + slope * (level - 0.5) + tilt * x
        below = np.hypot(x - dome_x, v - top + dome_r) - dome_r
        here[soft & (below < 3)] = MUSCLE
        here[soft & (below < 1)] = LIVER
        gut = np.hypot((x - stomach_x) * 0.8, v - top + stomach_r + 8) - stomach_r
        here[soft & (gut < 3)] = MUSCLE
        here[soft & (gut < 0)] = STOMACH
        if level < 0.8:
            here[soft & (np.hypot(x - aorta_x, v - aorta_v) < aorta_r)] = BLOOD
        tissue[s] = here
    lung = np.flatnonzero(tissue == LUNG)
    if len(lung):
        tissue.reshape(-1)[rng.choice(lung, size=len(lung) // 70)] = BLOOD
    return tissue


# Bed of each coronary artery in the heart frame: centre and half-width in degrees, share among infarcts.
# Segments by artery: Cerqueira 2002; shares roughly those of infarct series (LAD most often, then RCA, then LCx).
TERRITORIES = {"LAD": (125.0, 62.0, 0.47), "RCA": (255.0, 50.0, 0.33), "LCx": (345.0, 45.0, 0.20)}
# Non-ischaemic patterns: share, and what a report calls the disease.
PATTERNS = {
    "septal stripe": (0.35, "dilated"),
    "lateral subepicardial": (0.35, "myocarditis"),
    "insertion points": (0.15, "hypertrophic"),
    "patchy": (0.15, "non-ischaemic"),
}


@dataclass(frozen=True)
class ScarMap:
    """Scar over the wall, each ``(z, ANGLES)`` float32.

    Attributes:
        inner, outer: depth where scar begins and ends, 0 endocardium … 1 epicardium; none where outer <= inner.
        core: depth to which a no-reflow core reaches, from 0.12 in; none where <= 0.12.
        density: share of the scar's extra extracellular volume, 0–1 (heterogeneity, grey zone).
        thinning: share of the wall that is lost.
        aetiology: one of ``findings.AETIOLOGIES``: the artery, or the disease.
    """

    inner: np.ndarray
    outer: np.ndarray
    core: np.ndarray
    density: np.ndarray
    thinning: np.ndarray
    aetiology: str

    def thickness(self) -> np.ndarray:
        """Share of the wall that is scar, ``(z, ANGLES)``."""
        return np.clip(np.minimum(self.outer, 1) - np.maximum(self.inner, 0), 0, 1)


def wall_noise(rng: np.random.Generator, level: np.ndarray, orders: int = 9) -> np.ndarray:
    """Smooth random field over the wall, ``(len(level), ANGLES)``, periodic in angle, about unit variance."""
    field = np.zeros((len(level), ANGLES), dtype=np.float32)
    power = 0.0
    for order in range(1, orders):
        weight = 1 / np.sqrt(order)
        power += weight**2 / 2
        along = rng.normal(0, order * 1.2) * TURN * level[:, None] / 2
        field += (weight * np.cos(order * THETA[None] + along + rng.uniform(0, TURN))).astype(
            np.float32
        )
    return field / np.float32(np.sqrt(power))


def wavefront_scar(
    rng: np.random.Generator, level: np.ndarray, artery: str | None = None
) -> ScarMap:
    """An infarct: the wavefront in the bed of one artery.

    Args:
        rng: source of randomness.
        level: level of each table row, 0 base … 1 apex.
        artery: ``LAD``, ``RCA`` or ``LCx``; drawn when None.
    """
    names = list(TERRITORIES)
    artery = artery or names[rng.choice(3, p=[TERRITORIES[name][2] for name in names])]
    centre, half_width, _ = TERRITORIES[artery]
    size = rng.beta(2.2, 2.2)  # proximal, large beds towards 1
    centre = np.deg2rad(rng.normal(centre, 14))
    half_width = np.deg2rad(half_width * (1.3 + 1.3 * size))
    first = np.clip(rng.normal(0.42, 0.18) - 0.35 * size, -0.2, 0.75)
    last = (
        1.2 if artery == "LAD" else np.clip(first + rng.uniform(0.35, 0.5) + 0.6 * size, 0.3, 1.2)
    )
    row = level[:, None].astype(np.float32)
    widening = 1 + (0.5 if artery == "LAD" else 0.1) * np.clip(row - 0.4, 0, 1)
    across = np.abs(
        angle_between(THETA[None], centre + np.deg2rad(rng.normal(0, 25)) * (row - 0.5))
    )
    bed = 1 - across / (half_width * widening)
    bed = np.minimum(bed, np.minimum((row - first) / 0.15, (last - row) / 0.15))
    bed = bed + rng.uniform(0.1, 0.25) * wall_noise(rng, level)
    front = rng.uniform(0.52, 1.2)  # how far outwards the front went before flow came back
    reach = np.clip(front * np.clip(2.5 * bed, 0, 1) ** 0.7, 0, 1.0).astype(np.float32)
    reach[bed <= 0] = 0
    reach = np.where(reach > 0.92, 1.05, reach)
    acute = rng.random() < 0.65
    core = np.zeros_like(reach)
    if acute and front > 0.6:
        core = np.where(
            bed > rng.uniform(0.3, 0.55), rng.uniform(0.35, 0.75) * np.minimum(reach, 1), 0
        )
    thinning = (0 if acute else rng.uniform(0.05, 0.4)) * np.minimum(reach, 1) ** 1.5
    density = np.clip(rng.uniform(0.9, 1.05) + 0.1 * wall_noise(rng, level), 0.3, 1.0)
    return ScarMap(
        np.full_like(reach, -0.05) + 1.05 * (reach <= 0),
        reach,
        core.astype(np.float32),
        density.astype(np.float32),
        thinning.astype(np.float32),
        artery,
    )


def patch_scar(
    rng: np.random.Generator, level: np.ndarray, heart: Heart, pattern: str | None = None
) -> ScarMap:
    """Non-ischaemic scar: one of ``PATTERNS``, as ellipsoids in (circumference, level, depth)."""
    pattern = (
        pattern
        or list(PATTERNS)[rng.choice(len(PATTERNS), p=[share for share, _ in PATTERNS.values()])]
    )
    septum = (np.deg2rad(120) + heart.inferior_rvip) / 2
    if pattern == "septal stripe":
        spots = [
            (septum + rng.normal(0, 0.2), rng.uniform(0.35, 0.85), rng.uniform(0.2, 0.5), 0.5, 0.17)
        ]
    elif pattern == "lateral subepicardial":
        spots = [
            (
                np.deg2rad(rng.normal(335, 18)),
                rng.uniform(0.3, 0.7),
                rng.uniform(0.2, 0.5),
                0.88,
                0.3,
            )
        ]
    elif pattern == "insertion points":
        spots = [
            (np.deg2rad(120) + 0.1, 0.2, 0.35, 0.6, 0.3),
            (heart.inferior_rvip - 0.1, 0.22, 0.35, 0.6, 0.3),
        ]
    else:
        spots = [
            (rng.uniform(0, TURN), rng.uniform(0.15, 0.35), 0.2, 0.5, 0.25)
            for _ in range(rng.integers(2, 5))
        ]
    row = level[:, None].astype(np.float32)
    inner = np.ones((len(level), ANGLES), dtype=np.float32)
    outer = np.zeros_like(inner)
    for angle, half_width, half_height, depth, thickness in spots:
        middle = rng.uniform(0.2, 0.65)
        rho = (angle_between(THETA[None], angle) / half_width) ** 2 + (
            (row - middle) / half_height
        ) ** 2
        rho = rho * (1 + 0.35 * wall_noise(rng, level))
        half = np.float32(thickness * rng.uniform(0.8, 1.3)) * np.sqrt(np.clip(1 - rho, 0, 1))
        inner = np.where(half > 0.05, np.minimum(inner, depth - half), inner)
        outer = np.where(half > 0.05, np.maximum(outer, depth + half), outer)
    density = np.clip(rng.uniform(0.5, 0.9) + 0.12 * wall_noise(rng, level), 0.2, 1.0)
    nothing = np.zeros_like(inner)
    return ScarMap(
        inner.astype(np.float32), outer.astype(np.float32), nothing, density.astype(np.float32), nothing,
        PATTERNS[pattern][1],
    )  # fmt: skip


def draw_scars(
    rng: np.random.Generator, level: np.ndarray, heart: Heart, ischaemic_share: float = 0.8
) -> list[ScarMap]:
    """The scars of one diseased heart: mostly one, a second infarct in about one of eight.

    Scars too small for anyone to draw (under 1 % of the wall) are drawn again.
    """
    inside = (level > 0.05) & (level < 0.95)
    while True:
        if rng.random() >= ischaemic_share:
            scars = [patch_scar(rng, level, heart)]
        else:
            scars = [wavefront_scar(rng, level) for _ in range(1 + (rng.random() < 0.12))]
        if max(float(scar.thickness()[inside].mean()) for scar in scars) > 0.01:
            return scars
