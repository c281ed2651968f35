"""Scars of the digital heart, made in the wall's own coordinates: circumference, level, depth.

Ischaemic scar follows the wavefront of necrosis (Reimer and Jennings, Lab Invest 1979;40:633): it starts at the
endocardium all over the bed of an occluded coronary artery and moves outwards with time. Non-ischaemic scar is one of
the patterns that spare the endocardium (Mahrholdt et al., Eur Heart J 2005;26:1461): a septal mid-wall stripe,
subepicardial patches of the lateral wall, patches at the RV insertion points, scattered mid-wall patches.
Nothing is shared with ``scars.RandomScar``: training on its scars and testing on these is a fair test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lgekit.phantom_heart import ANGLES, THETA, TURN, Heart, angle_between

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
        field += (weight * np.cos(order * THETA[None] + along + rng.uniform(0, TURN))).astype(np.float32)
    return field / np.float32(np.sqrt(power))


def wavefront_scar(rng: np.random.Generator, level: np.ndarray, artery: str | None = None) -> ScarMap:
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
    last = 1.2 if artery == "LAD" else np.clip(first + rng.uniform(0.35, 0.5) + 0.6 * size, 0.3, 1.2)
    row = level[:, None].astype(np.float32)
    widening = 1 + (0.5 if artery == "LAD" else 0.1) * np.clip(row - 0.4, 0, 1)
    across = np.abs(angle_between(THETA[None], centre + np.deg2rad(rng.normal(0, 25)) * (row - 0.5)))
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
        core = np.where(bed > rng.uniform(0.3, 0.55), rng.uniform(0.35, 0.75) * np.minimum(reach, 1), 0)
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


def patch_scar(rng: np.random.Generator, level: np.ndarray, heart: Heart, pattern: str | None = None) -> ScarMap:
    """Non-ischaemic scar: one of ``PATTERNS``, as ellipsoids in (circumference, level, depth)."""
    pattern = pattern or list(PATTERNS)[rng.choice(len(PATTERNS), p=[share for share, _ in PATTERNS.values()])]
    septum = (np.deg2rad(120) + heart.inferior_rvip) / 2
    if pattern == "septal stripe":
        spots = [(septum + rng.normal(0, 0.2), rng.uniform(0.35, 0.85), rng.uniform(0.2, 0.5), 0.5, 0.17)]
    elif pattern == "lateral subepicardial":
        spots = [(np.deg2rad(rng.normal(335, 18)), rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.5), 0.88, 0.3)]
    elif pattern == "insertion points":
        spots = [(np.deg2rad(120) + 0.1, 0.2, 0.35, 0.6, 0.3), (heart.inferior_rvip - 0.1, 0.22, 0.35, 0.6, 0.3)]
    else:
        spots = [(rng.uniform(0, TURN), rng.uniform(0.15, 0.35), 0.2, 0.5, 0.25) for _ in range(rng.integers(2, 5))]
    row = level[:, None].astype(np.float32)
    inner = np.ones((len(level), ANGLES), dtype=np.float32)
    outer = np.zeros_like(inner)
    for angle, half_width, half_height, depth, thickness in spots:
        middle = rng.uniform(0.2, 0.65)
        rho = (angle_between(THETA[None], angle) / half_width) ** 2 + ((row - middle) / half_height) ** 2
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
