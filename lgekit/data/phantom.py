"""The digital LGE phantom: random hearts and scars, a simulated acquisition, exact ground truth.

What varies, and within which ranges, is in ``phantom.toml``. The heart frame has its origin on the
long axis, and the septum left. Places in it are complex, ``x + iy`` in mm, x right and y up; angles
are counter-clockwise from x (radians). Levels run from 0 (base) to 1 (epicardial apex). The phantom
draws scars with other code than RandomScar, so that it can test it.
"""

import tomllib
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import fft, ndimage
from scipy.stats import qmc
from tqdm.auto import tqdm

from lgekit.anatomy.segments import ANTERIOR_RVIP_DEG, Ventricle, scars_of_voxels
from lgekit.cache import code_version, compute_once, end_with_parent
from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, RV, SCAR, Cohort, Landmarks, Study, split_of

Array = np.ndarray
Rng = np.random.Generator
RANGES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def draw(rng: Rng, part: str) -> dict[str, float]:
    """Draw the quantities of a part of ``phantom.toml``."""
    drawn = {}
    for name, (first, second, *limits) in RANGES[part].items():
        random = rng.normal if limits else rng.uniform
        drawn[name] = float(np.clip(random(first, second), *(limits or (first, second))))
    return drawn


ANGLES = 360  # one-degree steps in every table over the circumference
TURN = 2 * np.pi
THETA = np.arange(ANGLES, dtype=np.float32) * np.float32(TURN / ANGLES)
# The RV is widest inferior of the septum's middle, by 10–18° in 60 ACDC patients.
RV_LEAN = 0.3
RV_WALL = 3.0  # mm


def angle_between(angle: Array | float, reference: Array | float) -> Array:
    """Signed difference of two angles in radians, in [-π, π)."""
    return (np.asarray(angle) - reference + np.pi) % TURN - np.pi


def ripple(rng: Rng, amplitude: float, orders: range = range(2, 8)) -> Array:
    """A smooth random function of the angle, ``(ANGLES,)`` float32, mean 0, SD ``amplitude``."""
    order = np.array(orders)[:, None]
    phase = rng.uniform(0, TURN, size=order.shape)
    waves = rng.normal(size=order.shape) / order * np.cos(order * THETA + phase)
    return (amplitude * waves.sum(0) / np.sqrt((0.5 / order**2).sum())).astype(np.float32)


def degree(angle: Array) -> Array:
    """Index of each angle in a table over the circumference."""
    return (angle * (ANGLES / TURN) + (ANGLES + 0.5)).astype(np.int32) % ANGLES


class Heart(SimpleNamespace):
    """A random heart without scar; its tables are ``(ANGLES,)``, its levels of any shape."""

    def __init__(self, rng: Rng, present: bool = False) -> None:
        super().__init__(**(drawn := draw(rng, "heart")))
        self.radius += self.dilatation * present
        self.inferior = np.deg2rad(self.inferior_deg)
        self.outline = ripple(rng, 0.025)  # relative ripple of both contours
        self.endocardium = ripple(rng, 0.03, range(2, 12))  # of the inner contour alone
        self.trabeculae = np.clip(drawn["trabeculae"] * (1 + ripple(rng, 0.5, range(1, 10))), 0, 4)
        self.fat = np.clip(drawn["fat"] * (1 + ripple(rng, 0.6, range(1, 6))), 0.2, 12)
        for groove in self.insertion_points(0.5):
            self.fat += self.groove_fat * np.exp(-((angle_between(THETA, groove) / 0.22) ** 2))

    def insertion_points(self, level: Array | float) -> tuple[Array, Array]:
        """Angles of the anterior and the inferior insertion point at a level."""
        turn = np.deg2rad(self.twist_deg) * (np.asarray(level) - 0.5)
        return np.deg2rad(ANTERIOR_RVIP_DEG) + turn, self.inferior + turn

    def contours(self, level: Array, thinning: Array | float = 0.0) -> tuple[Array, Array]:
        """Radii of endocardium and epicardium, ``(*level, ANGLES)`` float32.

        They are truncated ellipsoids with a thin wall above the base (the atrium), and 0 past the
        apex. ``thinning`` is the share of the wall that an old infarct lost.
        """
        level = level[..., None]
        outer_level = np.clip(level, 0, 1)
        inner_level = np.clip(level / (1 - 0.7 * self.wall / self.length), 0, 1)  # a thinner apex
        epicardium = self.radius * np.sqrt(1 - outer_level**2.3) * (1 + self.outline)
        cavity = (self.radius - self.wall) * np.sqrt(1 - inner_level**2.1)
        wall = epicardium - cavity * (1 + self.outline + self.endocardium)
        wall = np.where(level < 0, 2.0, np.maximum(wall, 0) * (1 - thinning))
        cavity = np.maximum(epicardium - wall, 0) * (inner_level < 1)
        return cavity.astype(np.float32), epicardium.astype(np.float32)

    def right_ventricle(self, level: Array, epicardium: Array) -> Array:
        """Outer radius of the RV, ``(*level, ANGLES)`` float32: the epicardium elsewhere."""
        level = level[..., None]
        anterior, inferior = self.insertion_points(level)
        share = (THETA - anterior) % TURN / (inferior - anterior)  # 0 anterior … 1 inferior
        lean = 1 - RV_LEAN * np.cos(np.pi * share)
        crescent = np.sin(np.pi * np.clip(share, 0, 1)) ** 0.55 * lean
        taper = np.sqrt(1 - np.clip(level / self.rv_level, 0, 1) ** 2.5)
        return (epicardium + self.rv_width * crescent * taper).astype(np.float32)

    def in_papillary(self, level: Array, cavity: Array, place: Array) -> Array:
        """Whether places ``(*level, points)`` are inside a papillary muscle."""
        inside = np.zeros(place.shape, dtype=bool)
        for direction in np.deg2rad([self.anterolateral_deg, self.posteromedial_deg]):
            distance = cavity[..., degree(direction), None] * (1 - self.papillary_inset)
            middle = (distance * np.exp(1j * direction)).astype(np.complex64)
            inside |= np.abs(place - middle) < self.papillary_radius
        free = (level > self.papillary_start) & (level < self.papillary_end)
        return inside & free[..., None]


# Tissues: columns of the table of signals. From HEART on they are those of the table `ecv`.
AIR, BLOOD, FAT, HEART, FIBROSIS, CORE, MUSCLE, LIVER, STOMACH, LUNG = range(10)
DENSITY = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 0.15], dtype=np.float32)  # of protons


def draw_chest(rng: Rng, heart: Heart, place: Array, levels: Array) -> Array:
    """Draw the tissues around the heart as in a short-axis view, ``(slices, X, Y)`` int.

    ``place`` are pixel centres, ``(X, Y)`` complex; ``levels`` are those of the slices.
    """
    chest = SimpleNamespace(**draw(rng, "chest"))
    level, x, y = levels[:, None, None], place.real, place.imag
    to_skin = heart.radius + 0.55 * heart.rv_width + chest.gap + chest.fat + chest.muscle
    turned = place * np.exp(-1j * np.deg2rad(chest.front_deg))
    deep = (turned.real - to_skin) / chest.half_depth + 1
    wide = (turned.imag - chest.aside) / chest.half_width
    turn = np.arctan2(deep, wide)
    radius = np.hypot(deep, wide) * (1 + ripple(rng, 0.03)[degree(turn)])
    under_skin = (1 - radius) * chest.half_depth  # mm, roughly
    under_fat = under_skin - chest.fat * (1 + ripple(rng, 0.3, range(1, 4))[degree(turn)])
    between_ribs = np.sin(turn * chest.ribs) > 0.5
    top = -heart.radius - float(np.median(heart.fat)) - chest.diaphragm
    top = top + chest.diaphragm_slope * (level - 0.5) + chest.diaphragm_tilt * x
    liver = np.hypot(x - chest.liver_x, y - top + chest.liver_radius) - chest.liver_radius
    stomach = np.hypot(x - chest.stomach_x, y - top + chest.stomach_radius + 8)
    stomach = stomach - chest.stomach_radius
    mediastinum = np.hypot((x + 0.6 * heart.rv_width) / 1.25, y - 8) - heart.radius
    aorta = np.hypot(x - chest.aorta_x, y - chest.aorta_y) < chest.aorta_radius
    conditions = [
        (under_skin < 0, AIR),
        (under_fat < 0, FAT),
        (between_ribs & (np.abs(under_fat / chest.muscle - 0.6) < 0.25), FAT),
        (under_fat < chest.muscle, MUSCLE),
        (aorta & (level < 0.8), BLOOD),
        (stomach < 0, STOMACH),
        (stomach < 3, MUSCLE),
        (liver < 1, LIVER),
        (liver < 3, MUSCLE),
        (mediastinum < chest.pericardial_fat - 25 * np.maximum(level - 0.45, 0), FAT),
        (rng.random((len(levels), *place.shape)) < 1 / 70, BLOOD),  # vessels of the lung
    ]
    where, tissues = zip(*conditions, strict=True)
    return np.select(where, tissues, LUNG)


@dataclass
class ScarMap:
    """Scar over the wall, tables ``(*level, ANGLES)`` float32; depth is 0–1."""

    cause: str  # the artery or the disease
    inner: Array  # depth where scar begins
    outer: Array  # depth where it ends
    core: Array  # depth to which no-reflow reaches, from 0.12
    density: Array  # share of the scar's extra ECV
    thinning: Array  # share of the wall that is lost


def wall_noise(rng: Rng, level: Array) -> Array:
    """A smooth random field over the wall, ``(*level, ANGLES)``, about unit variance."""
    field, orders = np.zeros((*level.shape, ANGLES)), np.arange(1, 9)
    for order in orders:
        along = rng.normal(0, order * 1.2) * TURN * level[..., None] / 2 + rng.uniform(0, TURN)
        field += np.cos(order * THETA + along) / np.sqrt(order)
    return field / np.sqrt((0.5 / orders).sum())


def draw_scar_map(rng: Rng, level: Array, heart: Heart, own: dict[str, Any]) -> ScarMap:
    """Draw a scar of a kind of ``phantom.toml`` as ellipsoids in angle, level and depth.

    An infarct's ellipsoid is half within the cavity: a wavefront from the endocardium.
    """
    size, thickness = rng.uniform(*own["size"]), rng.uniform(*own["thickness"])
    height = (level[..., None] - rng.uniform(*own["level"])) / (own["half_height"] * size)
    inner, outer = np.ones((*level.shape, ANGLES)), np.zeros((*level.shape, ANGLES))
    from_anterior = (rng.normal(own["angles_deg"], own["turn_deg"]) - ANTERIOR_RVIP_DEG) % 360
    mean, own_septum = (
        [0, inferior - ANTERIOR_RVIP_DEG, 360] for inferior in (238, heart.inferior_deg)
    )
    for centre in ANTERIOR_RVIP_DEG + np.interp(from_anterior, mean, own_septum):
        across = angle_between(THETA, np.deg2rad(centre)) / np.deg2rad(own["half_width_deg"] * size)
        distance = (across**2 + height**2) * (1 + 0.35 * wall_noise(rng, level))
        half = thickness * np.clip(1 - distance, 0, 1) ** 0.3
        there = half > 0.05
        inner = np.where(there, np.minimum(inner, own["depth"] - half), inner)
        outer = np.where(there, np.maximum(outer, own["depth"] + half), outer)
    reach, infarct, acute = np.clip(outer, 0, 1), own["depth"] == 0, rng.random() < 0.65
    core = reach * rng.uniform(0.35, 0.75) * (distance < rng.uniform(0.2, 0.5))
    core *= infarct and acute and thickness > 0.6
    thinning = reach**1.5 * rng.uniform(0.05, 0.4) * (infarct and not acute)
    density = np.clip(rng.uniform(*own["density"]) + 0.1 * wall_noise(rng, level), 0.2, 1)
    tables = (table.astype(np.float32) for table in (inner, outer, core, density, thinning))
    return ScarMap(own["cause"], *tables)


def draw_scar_maps(rng: Rng, level: Array, heart: Heart) -> list[ScarMap]:
    """Draw the scars of one diseased heart: four in five are infarcts, one in eight of them two."""
    inside = (level > 0.05) & (level < 0.95)
    while True:
        infarct = rng.random() < 0.8
        kinds = list(RANGES["infarcts" if infarct else "patterns"].values())
        number = 1 + (infarct and rng.random() < 0.12)
        drawn = rng.choice(len(kinds), number, p=[kind["weight"] for kind in kinds])
        scars = [draw_scar_map(rng, level, heart, kinds[index]) for index in drawn]
        # Large enough to outline:
        if max((scar.outer > scar.inner)[inside].mean() for scar in scars) > 0.04:
            return scars


HAEMATOCRIT = 0.42
T1_NATIVE_MYOCARDIUM, T1_NATIVE_BLOOD = 1070.0, 1580.0  # ms
PEDESTAL = 128  # added to a magnitude image, so that no slice's level is cut off
ZERO = 1024  # value of zero signal in a phase-sensitive image, as scanners store it with an offset


def t1_after_contrast(ecv, t1_blood) -> Array:
    """T1 (ms) of myocardium with this extracellular volume when blood has ``t1_blood`` (ms)."""
    delta_blood = 1 / np.asarray(t1_blood) - 1 / T1_NATIVE_BLOOD
    return 1 / (1 / T1_NATIVE_MYOCARDIUM + np.asarray(ecv) / (1 - HAEMATOCRIT) * delta_blood)


def inversion_recovery(t1, inversion_time) -> Array:
    """Longitudinal magnetisation ``1 − 2·exp(−TI/T1)``, both times in ms (long repetition time)."""
    return 1 - 2 * np.exp(-np.asarray(inversion_time) / np.asarray(t1))


def tissue_signals(rng: Rng, scanner: SimpleNamespace, levels: Array) -> Array:
    """Signed signal of every tissue in each slice, ``(slices, tissues)`` float32."""
    ecv = np.array(list(draw(rng, "ecv").values()))
    t1_blood = scanner.t1_blood * (1 + scanner.wash_out * (np.clip(levels[:, None], 0, 1) - 0.5))
    t1_blood *= 1 + 0.01 * rng.normal(size=t1_blood.shape)
    null = np.median(t1_after_contrast(ecv[0], t1_blood)) * np.log(2)
    time = null * scanner.inversion_time * (1 + 0.04 * rng.normal(size=t1_blood.shape))
    others = np.full((len(levels), HEART), scanner.t1_fat)
    others[:, [BLOOD]] = t1_blood
    t1 = np.hstack([others, t1_after_contrast(ecv, t1_blood)])
    density = DENSITY * np.where(np.arange(10) < MUSCLE, 1, rng.normal(1, 0.1, size=10))
    return (inversion_recovery(t1, time) * density).astype(np.float32)


def smooth_field(rng: Rng, shape: tuple[int, ...], knots: int) -> Array:
    """A random field of about unit variance in each slice, bilinear between knots."""
    coarse = 1.5 * rng.normal(size=(shape[0], knots, knots))
    return ndimage.zoom(coarse, (1, shape[1] / knots, shape[2] / knots), order=1)


def acquire(rng: Rng, scanner: SimpleNamespace, signal: Array, body: Array, place: Array) -> Array:
    """Simulate the image of a signal: coil bias, truncated k-space, ghosts, noise, reconstruction.

    ``signal`` is signed and ``body`` is proton density (0 air … 1 tissue), both ``(slices, X, Y)``.
    ``place`` are pixel centres in the heart frame, ``(X, Y)`` complex.
    """
    shape = signal.shape

    def varied(mean: float, sd: float) -> Array:
        return rng.normal(mean, sd, size=(shape[0], 1, 1))  # from slice to slice

    loss = np.clip(varied(scanner.inversion_loss, 0.06), 0, 0.3)
    loss = loss + scanner.loss_spread * smooth_field(rng, shape, 5)
    signal = signal + loss * (body - signal) / 2  # 1 − (2 − loss)·exp(−TI/T1)
    coil = place * np.exp(-1j * np.deg2rad(125)) / 100  # real: towards the anterior coil
    bias = scanner.coil_front * coil.real + scanner.coil_side * coil.imag
    bias = np.exp(bias + scanner.coil_curve * np.abs(coil) ** 2) * varied(1, 0.08)
    signal = signal * bias * (1 + scanner.texture * smooth_field(rng, shape, 24))
    edges = zip(shape[1:], (scanner.resolution, 0.95), strict=True)
    lines = [np.abs(fft.fftfreq(size)) * 2 / edge for size, edge in edges]  # 1: edge of k-space
    windows = [np.cos(np.pi / 2 * np.clip((line - 0.6) / 0.4, 0, 1)) ** 2 for line in lines]
    breath = TURN * (np.arange(shape[1]) / scanner.ghost_period + rng.random((shape[0], 1)))
    swing = 1 + scanner.ghost * np.cos(breath[:, :, None])
    real, imaginary = rng.normal(0, np.exp(scanner.log_noise) * np.sqrt(place.size), (2, *shape))
    space = (fft.fft2(signal) * swing + real + 1j * imaginary) * windows[0][:, None] * windows[1]
    image, magnitude = fft.ifft2(space, overwrite_x=True), rng.random() < 0.2
    image = np.abs(image) if magnitude else image.real  # else phase-sensitive
    image = image + varied(0, scanner.slice_offset)
    image = np.rint(image * scanner.grey_values) + (PEDESTAL if magnitude else ZERO)
    return image.clip(0, 4095).astype(np.float32)


SLICE_MM, GAP_MM = 8.0, 2.0  # thickness and gap of the stack
# Points at which a voxel is sampled, as shares of its sides from its centre, (8, 3).
POINTS = (qmc.Sobol(3, scramble=False).random(8) - 7 / 16).astype(np.float32)
LANDMARK_LEVEL = 0.45  # where the insertion points are measured: the mid-ventricular slice


def sample_heart(
    heart: Heart, scars: list[ScarMap], level: Array, place: Array, signals: Array
) -> tuple[Array, Array, Array, Array]:
    """Average signal and tissue over the points of every voxel near the heart.

    Points have a ``level (slices, points)``, that of the tables of ``scars``, and a ``place
    (slices, points, pixels)`` complex64; ``signals`` are ``(slices, tissues, 1, 1)``. Returns, each
    ``(slices, pixels)``, the share of the voxel that is heart or its fat, the signal of that share,
    label, and mean depth in the wall (0 endocardium … 1 epicardium).
    """
    radius, column = np.abs(place), degree(np.angle(place))

    def at_points(table: Array) -> Array:
        return np.take_along_axis(np.broadcast_to(table, (*level.shape, ANGLES)), column, -1)

    thinning = np.clip(sum(scar.thinning for scar in scars), 0, 0.6)
    cavity, epicardium = heart.contours(level, thinning)
    right = heart.right_ventricle(level, epicardium)
    outside = np.where(right > epicardium + 0.5, right + RV_WALL, epicardium)
    inner, outer = at_points(cavity), at_points(epicardium)
    in_cavity = radius < inner
    in_wall = (radius < outer) & ~in_cavity
    in_rv = (radius < at_points(right)) & (radius >= outer)
    is_blood = in_rv | in_cavity & ~heart.in_papillary(level, cavity, place)
    muscle = signals[:, HEART]
    signal = np.where(radius < at_points(outside), muscle, signals[:, FAT])
    depth = (radius - inner) / np.maximum(outer - inner, 0.5)
    is_scar, is_core = np.zeros((2, *place.shape), dtype=bool)
    for scar in scars:
        here = in_wall & (depth >= at_points(scar.inner)) & (depth < at_points(scar.outer))
        core = here & (depth > 0.12) & (depth < at_points(scar.core))
        contrast = np.where(core, signals[:, CORE], signals[:, FIBROSIS]) - muscle
        signal = np.where(here, muscle + at_points(scar.density) * contrast, signal)
        is_scar |= here
        is_core = core | is_core & ~here
    rim = in_wall & (radius < inner + at_points(heart.trabeculae))
    signal += (is_blood + rim * heart.trabecular_blood) * (signals[:, BLOOD] - signal)
    covered = radius < at_points(outside + heart.fat)
    ventricle = (level >= 0)[..., None]  # the atrium, above the base, carries no label
    parts = [covered, signal * covered, depth * (ventricle & in_wall)]
    parts += [ventricle & one for one in (in_cavity, in_wall, in_rv, is_scar, is_core)]
    covered, signal, depth, cavity, wall, right, scarred, core = (one.mean(1) for one in parts)
    stack = np.stack([1 - cavity - wall - right, cavity, wall, right])
    labels = np.array([0, CAVITY, MYOCARDIUM, RV], dtype=np.uint8)[stack.argmax(0)]
    scar_voxels = (labels == MYOCARDIUM) & (scarred >= 0.5 * wall)
    labels[scar_voxels] = SCAR
    labels[scar_voxels & (core > 0.5 * scarred)] = NO_REFLOW
    return covered, signal, labels, depth / np.maximum(wall, 1e-6)


class PhantomOptions(BaseModel):
    """What a phantom cohort is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    studies: int = Field(ge=1)
    seed: int = Field(ge=0)
    pixels: int = Field(128, ge=48, le=512)  # width and height of the image
    prevalence: float = Field(0.5, ge=0, le=1)  # share of studies with scar
    report_noise: float = Field(0.1, ge=0, le=1)  # share of reports with an omission or an error
    workers: int | None = None  # processes; None: one for each core, one for a small cohort


def render_study(index: int, seed: int, pixels: int, prevalence: float) -> dict[str, Any]:
    """Render the images, spacing, landmarks and findings of a study (:meth:`Study.from_arrays`)."""
    rng = np.random.default_rng((seed, index, 0))  # independent of the other studies
    present = rng.random() < prevalence
    heart, scanner = Heart(rng, present), SimpleNamespace(**draw(rng, "scanner"))
    step, extra = SLICE_MM + GAP_MM, int(rng.integers(0, 3))  # slices beyond the ventricle
    count = int(np.ceil((heart.length - 2) / step)) + extra
    first = rng.uniform(1, step - 2) - step * int(rng.integers(0, extra + 1))
    levels = (first + step * np.arange(count)) / heart.length
    level = levels[:, None] + POINTS[:, 2] * SLICE_MM / heart.length
    scars = draw_scar_maps(rng, level, heart) if present else []

    mirrored, turn = rng.random() < 0.5, rng.uniform(0, TURN)
    mm = float(rng.uniform(1.5, 2.0)) * 128 / pixels
    offset, tilt = rng.normal(0, (8, 3), size=(2, 2)).T @ (1, 1j)
    # Of each slice, from one breath-hold to the next, and along a tilted long axis.
    shift = rng.normal(0, 1.3, size=(count, 2)) @ (1, 1j) + tilt * (levels - 0.5)

    def to_heart(right: Array, down: Array) -> Array:
        return ((-right if mirrored else right) - 1j * down) * mm * np.exp(1j * turn)

    axis = np.arange(pixels) - (pixels - 1) / 2
    place = to_heart(axis[:, None], axis) + offset
    reach = heart.radius + 12
    near = (np.abs(place.imag) < reach) & (place.real < reach)
    near &= place.real > -reach - heart.rv_width
    points = place[near] + to_heart(POINTS[:, :1], POINTS[:, 1:2]) - shift[:, None, None]
    points = points.astype(np.complex64)
    signals = tissue_signals(rng, scanner, levels)
    sampled = sample_heart(heart, scars, level, points, signals[..., None, None])
    covered, heart_signal, heart_labels, depth = sampled
    chest = draw_chest(rng, heart, place, levels)
    signal, body = signals[np.arange(count)[:, None, None], chest], DENSITY[chest]
    signal[:, near] = signal[:, near] * (1 - covered) + heart_signal
    body[:, near] = np.maximum(body[:, near], covered)
    labels = np.zeros(chest.shape, dtype=np.uint8)
    labels[:, near] = heart_labels
    image = acquire(rng, scanner, signal, body, place)

    insertion = np.rad2deg(heart.insertion_points(LANDMARK_LEVEL))
    stored = (insertion - np.rad2deg(turn)) % 360
    landmarks = Landmarks(*map(float, (180 - stored) % 360 if mirrored else stored))
    image, labels = np.moveaxis(image, 0, 2), np.moveaxis(labels, 0, 2)
    plane, pixel = np.nonzero(np.isin(heart_labels, (MYOCARDIUM, SCAR, NO_REFLOW)))
    angle = np.angle(points.mean(1)[plane, pixel], deg=True)
    frame_deg = (angle - insertion[0] + ANTERIOR_RVIP_DEG) % 360
    voxels = heart_labels[plane, pixel], plane, frame_deg, depth[plane, pixel]
    found = scars_of_voxels(*voxels, Ventricle.of(labels).thirds)
    causes = {scar.cause for scar in scars}
    cause = causes.pop() if len(causes) == 1 else "ischaemic"
    order = -1 if rng.random() < 0.5 else 1
    return {
        "image": np.ascontiguousarray(image[..., ::order]),
        "labels": np.ascontiguousarray(labels[..., ::order]),
        "spacing": (mm, mm, step),
        "landmarks": landmarks,
        "findings": Findings(tuple(replace(scar, aetiology=cause) for scar in found)),
    }


STUDIES_PER_ENTRY = 48  # studies in a cache entry


def render_chunk(start: int, stop: int, look: dict[str, Any]) -> list[dict[str, Any]]:
    """Render studies ``start`` to ``stop - 1``."""
    return [render_study(index, **look) for index in range(start, stop)]


def phantom_cohort(studies: int = 200, seed: int = 0, **options) -> Cohort:
    """Make a phantom cohort. It is rendered once, then read from the cache.

    A study has an image ``(1, X, Y, slices)`` float32 (phase-sensitive ones have an offset, as from
    a scanner), labels with RV, a report, and exact landmarks and findings. Study ``i`` of a seed is
    the same in a cohort of any size, made by any number of workers.

    Raises InputError for an unknown option (:class:`PhantomOptions`), or a value out of range.
    """
    try:
        asked = PhantomOptions(studies=studies, seed=seed, **options)
    except ValidationError as error:
        first = error.errors()[0]
        remedy = f"{first['msg']}. The options are {', '.join(PhantomOptions.model_fields)}."
        where = f"phantom option {first['loc'][0]}"
        raise InputError(where, f"found {first['input']!r}", remedy) from None
    look = asked.model_dump(include={"seed", "pixels", "prevalence"})
    starts, version = range(0, asked.studies, STUDIES_PER_ENTRY), code_version("anatomy", "data")
    workers = asked.workers or (1 if len(starts) == 1 else -1)
    parts = [(start, min(start + STUDIES_PER_ENTRY, asked.studies), look) for start in starts]
    chunks = Parallel(workers, return_as="generator", initializer=end_with_parent)(
        delayed(compute_once)((version, *part), render_chunk, *part) for part in parts
    )
    bar = tqdm(chunks, "phantoms", len(starts), leave=False, delay=2)
    made = [_study(index, asked, one) for index, one in enumerate(chain.from_iterable(bar))]
    return Cohort(made, f"phantom:studies={asked.studies},seed={asked.seed}")


def _study(index: int, asked: PhantomOptions, rendered: dict[str, Any]) -> Study:
    """Make a study and write its report, so that new wording needs no new images."""
    from lgekit.reports.writer import corrupt_findings, write_report

    rng, findings = np.random.default_rng((asked.seed, index, 1)), rendered["findings"]
    reported = corrupt_findings(findings, rng, asked.report_noise)
    study_id = f"Phantom_{asked.seed}_{index:05d}"
    return Study.from_arrays(
        study_id,
        report=write_report(reported, rng, whole=True),
        report_source="phantom",
        split=split_of(study_id, findings.present),
        **rendered,
    )
