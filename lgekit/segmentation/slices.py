"""Slices as the heart network takes them, and their augmentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import ceil, floor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lgekit.anatomy.segments import insertion_points
from lgekit.errors import InputError
from lgekit.study import CAVITY, MYOCARDIUM, RV, WALL_CODES, Landmarks, Study

CANVAS = 256
CLASSES = (
    4  # background, cavity, myocardium (with scar and no-reflow), RV: the network's own codes 0..3
)
CLASS_CODES = (0, CAVITY, MYOCARDIUM, RV)
LV_CLASSES = slice(1, 3)


@dataclass(frozen=True)
class Canvas:
    """A study's slices on canvases.

    Attributes:
        images: ``(S, 1, 256, 256)`` float32 in [0, 1] (0.5th to 99.5th percentile of the study), rows are y.
        centre_mm: millimetres from the array's corner to the canvas's centre, ``(x, y)``.
        half_mm: millimetres from the canvas's centre to its edge.
        spacing: millimetres per pixel, ``(x, y)``.
        shape: ``(X, Y)`` of the study.
    """

    images: Tensor
    centre_mm: tuple[float, float]
    half_mm: float
    spacing: tuple[float, float]
    shape: tuple[int, int]

    def resample(self, arrays: Tensor, mode: str) -> Tensor:
        """``(S, C, Y, X)`` on the study's grid → ``(S, C, 256, 256)``."""
        theta = torch.zeros(2, 3)
        for axis in range(2):
            extent = self.shape[axis] * self.spacing[axis]
            theta[axis, axis] = 2 * self.half_mm / extent
            theta[axis, 2] = 2 * self.centre_mm[axis] / extent - 1
        return _sample_alike(arrays, theta, (CANVAS, CANVAS), mode)

    def view_box(self, centre: Tensor, half_width: float) -> tuple[slice, slice]:
        """The study's pixels ``(x, y)`` that a plain view covers, one at least."""
        box = []
        for count, step, middle, own in zip(
            self.shape, self.spacing, self.centre_mm, centre.tolist(), strict=True
        ):
            edges = [(middle + (own + side * half_width) * self.half_mm) / step for side in (-1, 1)]
            start = min(max(floor(edges[0]), 0), count - 1)
            box.append(slice(start, max(min(ceil(edges[1]), count), start + 1)))
        return box[0], box[1]

    def to_study(
        self, maps: Tensor, centre: Tensor, half_width: float, box: tuple[slice, slice]
    ) -> Tensor:
        """``(S, C, h, h)`` maps of a plain view → ``(S, C, y, x)`` on a box of the study's pixels, zero outside the
        view."""
        theta = torch.zeros(2, 3)
        for axis in range(2):
            start, stop = (
                box[axis].start * self.spacing[axis],
                box[axis].stop * self.spacing[axis],
            )  # mm
            theta[axis, axis] = (stop - start) / 2 / self.half_mm / half_width
            offset = ((start + stop) / 2 - self.centre_mm[axis]) / self.half_mm - float(
                centre[axis]
            )
            theta[axis, 2] = offset / half_width
        return _sample_alike(
            maps, theta, (box[1].stop - box[1].start, box[0].stop - box[0].start), "bilinear"
        )


def _sample_alike(arrays: Tensor, theta: Tensor, shape: tuple[int, int], mode: str) -> Tensor:
    """``(S, C, H, W)`` through one affine map ``(2, 3)``: all slices as channels of one picture, on one grid."""
    grid = pixel_points(theta[None, :, :2], theta[None, :, 2], *shape)
    sampled = functional.grid_sample(
        arrays.flatten(0, 1)[None], grid, mode=mode, align_corners=False
    )
    return sampled[0].unflatten(0, arrays.shape[:2])


def make_canvas(study: Study) -> Canvas:
    """Put a study's slices on canvases. Only the ratio of its in-plane spacings is used, not their size."""
    pixels = study["image"].data[0].float()  # (X, Y, S)
    spacing = study.spacing_mm
    filled = (pixels != 0).any(dim=2)
    start, stop = [0, 0], list(pixels.shape[:2])
    for axis in range(2):
        used = filled.any(dim=1 - axis).nonzero().flatten()
        if len(used):
            start[axis], stop[axis] = int(used[0]), int(used[-1]) + 1
    inside = pixels[start[0] : stop[0], start[1] : stop[1]].numpy()
    low, high = np.percentile(inside[::2, ::2], (0.5, 99.5))
    centre = tuple((start[axis] + stop[axis]) / 2 * spacing[axis] for axis in range(2))
    half = max((stop[axis] - start[axis]) / 2 * spacing[axis] for axis in range(2))
    canvas = Canvas(torch.empty(0), centre, half, spacing[:2], tuple(pixels.shape[:2]))
    scaled = ((pixels - float(low)) / max(float(high - low), 1e-6)).clamp(0, 1)
    images = canvas.resample(scaled.permute(2, 1, 0)[:, None].contiguous(), "bilinear")
    return Canvas(images, centre, half, spacing[:2], tuple(pixels.shape[:2]))


@dataclass
class Slices:
    """Training slices as tensors of one length ``N``; all coordinates are canvas coordinates.

    Attributes:
        images: ``(N, 256, 256)`` uint8.
        labels: ``(N, 256, 256)`` uint8, the network's codes.
        centre: ``(N, 2)`` LV centre of the slice (of the study where the slice has no LV).
        diameter: ``(N,)`` the study's LV diameter: that of a circle as large as its largest epicardial area.
        insertions: ``(N, 2, 2)`` unit vectors from the LV centre to the anterior and the inferior insertion point.
        handedness: ``(N,)`` -1 in mirrored studies, 1 elsewhere.
        landmark_weight: ``(N,)`` confidence of the landmarks, 0 where unknown.
        rv_known: ``(N,)`` bool, whether the study's labels tell the RV from the background.
        cohort: ``(N,)`` int64, the number of the cohort.
        study: ``(N,)`` int64, the number of the study; its slices follow one another.
    """

    images: Tensor
    labels: Tensor
    centre: Tensor
    diameter: Tensor
    insertions: Tensor
    handedness: Tensor
    landmark_weight: Tensor
    rv_known: Tensor
    cohort: Tensor
    study: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Slices:
        return Slices(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device) -> Slices:
        """The same slices on another device."""
        return Slices(*(getattr(self, field.name).to(device) for field in fields(self)))


def heart_classes(labels: np.ndarray | Tensor) -> Tensor:
    """Label map in the internal codes → the network's four classes, uint8; scar and no-reflow are myocardium."""
    table = torch.zeros(256, dtype=torch.uint8)
    table[CAVITY], table[RV] = 1, 3
    table[list(WALL_CODES)] = 2
    return table[torch.as_tensor(labels).long()]


def direction(degrees: float) -> Tensor:
    """Unit vector ``(2,)`` at an angle (counter-clockwise, y down)."""
    radians = np.radians(degrees)
    return torch.tensor([np.cos(radians), -np.sin(radians)], dtype=torch.float32)


def study_slices(study: Study, cohort: int) -> Slices | None:
    """Training slices of one study, or None where it has no LV label."""
    labels = study.label_map
    if labels is None or not np.isin(labels, (CAVITY, *WALL_CODES)).any():
        return None
    canvas = make_canvas(study)
    classes = heart_classes(labels).permute(2, 1, 0)[:, None].float().contiguous()
    drawn = canvas.resample(classes, "nearest")[:, 0].to(torch.uint8)
    count, lv = len(drawn), (drawn == 1) | (drawn == 2)
    area = lv.sum((1, 2)).float()
    axis = (torch.arange(CANVAS) + 0.5) / CANVAS * 2 - 1
    centre = torch.stack(
        [lv.sum(1).float() @ axis, lv.sum(2).float() @ axis], dim=1
    )  # (S, 2), x and y
    mean = centre.sum(0) / area.sum()
    centre = torch.where(area[:, None] > 0, centre / area[:, None].clamp(min=1), mean)
    diameter = 2 * torch.sqrt(area.max() / torch.pi) * 2 / CANVAS
    rv_known = bool((labels == RV).any())
    landmarks = study["landmarks"]
    if landmarks is None and rv_known:
        landmarks = insertion_points(labels, study.spacing_mm, mirrored=False)
    known = (
        landmarks is not None
        and np.isfinite([landmarks.anterior_rvip_deg, landmarks.inferior_rvip_deg]).all()
    )
    weight = landmarks.confidence if known else 0.0
    points = [landmarks.anterior_rvip_deg, landmarks.inferior_rvip_deg] if known else [0.0, 120.0]
    return Slices(
        images=(canvas.images[:, 0] * 255).round().to(torch.uint8),
        labels=drawn,
        centre=centre,
        diameter=diameter.expand(count),
        insertions=torch.stack([direction(point) for point in points]).expand(count, 2, 2),
        handedness=torch.tensor(-1.0 if known and landmarks.mirrored else 1.0).expand(count),
        landmark_weight=torch.tensor(weight, dtype=torch.float32).expand(count),
        rv_known=torch.tensor(rv_known).expand(count),
        cohort=torch.tensor(cohort).expand(count),
        study=torch.zeros(count, dtype=torch.int64),
    )


def collect_slices(cohorts: Iterable[Sequence[Study]]) -> Slices:
    """All labelled slices of some cohorts.

    Raises:
        InputError: none of the studies has a label of the left ventricle.
    """
    parts = [
        study_slices(study, number) for number, cohort in enumerate(cohorts) for study in cohort
    ]
    kept = [part for part in parts if part is not None]
    if not kept:
        remedy = "Give a cohort with masks (phantom:, acdc:, emidec:) to train the heart network on"
        raise InputError("cohorts", "no study has a label of the left ventricle", remedy)
    for number, part in enumerate(kept):
        part.study = torch.full_like(part.study, number)
    return Slices(
        *(torch.cat([getattr(part, field.name) for part in kept]) for field in fields(Slices))
    )


def view_coordinates(pixels: int, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors ``(B, 2, h, w)`` and distances ``(B, 1, h, w)`` from ``centre (B, 2)``, in view coordinates."""
    axis = (torch.arange(pixels, device=centre.device) + 0.5) / pixels * 2 - 1
    grid = torch.stack([axis.expand(pixels, pixels), axis[:, None].expand(pixels, pixels)])
    offset = grid - centre[:, :, None, None]
    distance = torch.hypot(offset[:, :1], offset[:, 1:])
    return offset / distance.clamp(min=1e-6), distance


def angle_field(batch: Slices, views: Views, pixels: int) -> tuple[Tensor, Tensor]:
    """What the network should say about angles in these views.

    Returns:
        ``(B, 4, h, w)`` field: cosine and sine of the anatomical angle from the anterior insertion point, then from the
        inferior one; ``(B, 1, h, w)`` distance from the LV centre in LV radii.
    """
    unit, distance = view_coordinates(pixels, views.to_view(batch.centre))
    hand = (batch.handedness * views.handedness)[:, None, None]
    channels = []
    for point in range(2):
        towards = functional.normalize(
            views.to_view(batch.insertions[:, point], direction=True), dim=1
        )[:, :, None, None]
        cosine = (unit * towards).sum(1)
        # y points down, so counter-clockwise from ``towards`` to ``unit`` is minus the cross product
        sine = hand * (unit[:, 0] * towards[:, 1] - unit[:, 1] * towards[:, 0])
        channels += [cosine, sine]
    scale = torch.linalg.det(views.axes).abs().sqrt() / (batch.diameter / 2)
    return torch.stack(channels, dim=1), distance * scale[:, None, None, None]


def angle_votes(probabilities: Tensor, field: Tensor, centre: Tensor) -> Tensor:
    """Sums of the angle field over the left ventricle, both handednesses; votes of several slices just add.

    Args:
        probabilities: ``(B, 4, h, w)``, of the classes, in plain views.
        field: ``(B, 4, h, w)``, of the network.
        centre: ``(B, 2)`` LV centre in view coordinates.

    Returns:
        ``(B, 5)`` complex64: right-handed anterior and inferior, mirrored anterior and inferior, and the weight N.
    """
    unit, distance = view_coordinates(field.shape[-1], centre)
    place = torch.complex(unit[:, 0], -unit[:, 1])  # exp(i t)
    weight = probabilities[:, LV_CLASSES].sum(1) * distance[:, 0]
    votes = []
    for turned in (place.conj(), place):
        votes += [
            (weight * torch.complex(field[:, 2 * p], field[:, 2 * p + 1]) * turned).sum((1, 2))
            for p in range(2)
        ]
    return torch.stack([*votes, weight.sum((1, 2)).to(torch.complex64)], dim=1)


def landmarks_from_votes(votes: Tensor) -> Landmarks:
    """Landmarks from ``(5,)`` summed votes; NaN and confidence 0 where nothing voted."""
    anterior, inferior, mirrored_anterior, mirrored_inferior, weight = votes.tolist()
    if weight.real < 1e-6:
        return Landmarks(float("nan"), float("nan"), 0.0)
    plain, mirrored = abs(anterior) + abs(inferior), abs(mirrored_anterior) + abs(mirrored_inferior)
    points = (
        np.array([anterior, inferior]).conj()
        if plain >= mirrored
        else np.array([mirrored_anterior, mirrored_inferior])
    )
    angles = np.degrees(np.angle(points)) % 360
    confidence = min(abs(plain - mirrored) / (2 * weight.real), 1.0)
    return Landmarks(float(angles[0]), float(angles[1]), float(confidence))


@dataclass(frozen=True)
class Views:
    """Where square views lie on their square canvases, both in coordinates from -1 to 1 (x right, y down).

    A point ``v`` of view ``i`` lies at ``axes[i] @ v + centre[i]`` on its canvas.

    Attributes:
        axes: ``(B, 2, 2)`` float32; rotation, mirror, stretch and half the view's width, in one matrix.
        centre: ``(B, 2)`` float32.
    """

    axes: Tensor
    centre: Tensor

    def sample(self, canvases: Tensor, pixels: int, mode: str = "bilinear") -> Tensor:
        """The views of ``(B, C, H, H)`` canvases as ``(B, C, pixels, pixels)``; zero outside the canvas."""
        grid = pixel_points(self.axes, self.centre, pixels, pixels)
        return functional.grid_sample(canvases, grid, mode=mode, align_corners=False)

    def to_view(self, vectors: Tensor, direction: bool = False) -> Tensor:
        """Canvas points (or directions, which no shift moves) ``(B, 2)`` in the coordinates of the views."""
        moved = vectors if direction else vectors - self.centre
        return torch.linalg.solve(self.axes, moved[:, :, None])[:, :, 0]

    @property
    def handedness(self) -> Tensor:
        """``(B,)``, -1 where the view mirrors its canvas, 1 elsewhere."""
        return torch.linalg.det(self.axes).sign()


def pixel_points(axes: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Where the pixels of pictures lie: ``axes (B, 2, 2) @ (x, y) + centre (B, 2)``, as ``(B, height, width, 2)``.

    ``x`` and ``y`` are the pixels' centres on the picture, from -1 to 1. This is `torch.nn.functional.affine_grid`,
    which multiplies matrices of three columns and takes as long as the sampling itself.
    """
    x, y = (((torch.arange(n, device=axes.device) * 2 + 1) / n - 1) for n in (width, height))
    down = axes[:, :, 1, None] * y + centre[:, :, None]  # (B, 2, height)
    across = axes[:, :, 0, None] * x  # (B, 2, width)
    return torch.stack([across[:, i, None] + down[:, i, :, None] for i in range(2)], dim=-1)


def plain_views(centre: Tensor, half_width: Tensor) -> Views:
    """Views neither turned nor mirrored: ``centre (B, 2)`` and ``half_width (B,)`` in canvas coordinates."""
    return Views(half_width[:, None, None] * torch.eye(2, device=centre.device), centre)


def uniform(low: float, high: float, shape: int | tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform float32 numbers from ``rng``, on its device."""
    return torch.rand(shape, generator=rng, device=rng.device) * (high - low) + low


def random_views(
    centre: Tensor, half_width: Tensor, shift: float, zoom: float, rng: torch.Generator
) -> Views:
    """Views turned by any angle, mirrored half the time, stretched by up to 12 %, zoomed and shifted.

    Args:
        centre: ``(B, 2)``, canvas coordinates.
        half_width: ``(B,)``, canvas coordinates.
        shift: the largest shift, as a share of the view's half width.
        zoom: the largest change of scale, as a natural logarithm.
        rng: on the device of ``centre``.
    """
    count = len(centre)
    turn, stretch = uniform(0, 2 * torch.pi, count, rng), uniform(-0.12, 0.12, count, rng)
    mirror = uniform(0, 1, count, rng).lt(0.5).float() * 2 - 1
    width = half_width * torch.exp(uniform(-zoom, zoom, count, rng))
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=1).view(-1, 2, 2)
    # the stretch is along the canvas's axes, which are the storage axes: pixels of unknown shape stretch these
    axes = torch.stack([stretch.exp(), (-stretch).exp()], dim=1)[:, :, None] * rotation
    axes = (
        axes
        * torch.stack([mirror, torch.ones_like(mirror)], dim=1)[:, None, :]
        * width[:, None, None]
    )
    return Views(axes, centre + uniform(-shift, shift, (count, 2), rng) * width[:, None])


def standardise(images: Tensor) -> Tensor:
    """Each image of ``(B, 1, H, W)`` with mean 0 and standard deviation 1."""
    mean, deviation = images.mean((1, 2, 3), keepdim=True), images.std((1, 2, 3), keepdim=True)
    return (images - mean) / (deviation + 1e-3)


def vary_appearance(images: Tensor, rng: torch.Generator, share: float = 0.5) -> Tensor:
    """Change how a share of ``(B, 1, H, W)`` images in [0, 1] look, never where things lie.

    A random tone curve (a gamma on a piecewise linear curve, inverted for a tenth of the images: so that bright-blood
    cine teaches a network that sees late enhancement, where blood, muscle and scar rank otherwise), a smooth bias
    field, ghosts (faint copies shifted along one axis), motion (blur along one axis), softness and noise. All images
    at once is too much for a short training: the angle field was then not learned at all in 240 steps (measured).
    """
    count, shape = len(images), images.shape[-2:]

    def strength(low: float, high: float, share: float = 1.0) -> Tensor:
        """One number an image, zero for all but a share of the images, as ``(B, 1, 1, 1)``."""
        value = uniform(low, high, count, rng) * uniform(0, 1, count, rng).lt(share)
        return value[:, None, None, None]

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=rng, device=rng.device))

    # tone: x ** gamma, then a curve through six knots whose steps vary up to fourfold
    tone = images.clamp(0, 1) ** torch.exp(strength(-0.7, 0.7))
    steps = torch.exp(uniform(-0.7, 0.7, (count, 5), rng))
    knots = functional.pad(
        torch.cumsum(steps / steps.sum(1, keepdim=True), dim=1), (1, 0)
    )  # (B, 6)
    position = tone.flatten(1) * 5
    low = position.long().clamp(max=4)
    left, right = knots.gather(1, low), knots.gather(1, low + 1)
    tone = (left + (right - left) * (position - low)).view_as(images)
    tone = tone + strength(1, 1, 0.2) * (1 - 2 * tone)  # inversion
    # coil bias: a smooth field through 3 x 3 random values
    field = uniform(-0.5, 0.5, (count, 1, 3, 3), rng)
    tone = tone * torch.exp(
        functional.interpolate(field, shape, mode="bilinear", align_corners=True)
    )
    # ghosts and motion: shifted copies along one axis (one shift a batch, a strength an image)
    axis, period = whole(2, 4), shape[0] // whole(2, 6)
    tone = tone + strength(0, 0.25, 0.25) * (tone.roll(period, axis) - tone)
    tone = tone + strength(0, 0.4, 0.25) * (tone.roll(2, axis) + tone.roll(-2, axis) - 2 * tone)
    soft = functional.avg_pool2d(tone, 3, stride=1, padding=1, count_include_pad=False)
    tone = tone + strength(-0.5, 1, 0.4) * (soft - tone)
    tone = tone + strength(0, 0.08) * torch.randn(images.shape, generator=rng, device=rng.device)
    return images + strength(1, 1, share) * (tone - images)


def invent_appearance(
    images: Tensor, labels: Tensor, share: float, rng: torch.Generator, wrap: bool = False
) -> Tensor:
    """Draw a share of some images anew from their labels.

    Args:
        images: ``(B, C, H, W)`` float32 in [0, 1]; channels are slices of one heart.
        labels: ``(B, C, H, W)``, 0 background, 1 cavity, 2 myocardium, 3 RV.
        share: of the images, 0 to 1; the others stay as they are.
        rng: on the images' device.
        wrap: whether the last axis is an angle, whose two ends meet.

    Returns:
        ``(B, C, H, W)`` float32 in [0, 1].
    """
    chosen = (
        torch.nonzero(uniform(0, 1, len(images), rng) < share)[:, 0] if share else torch.zeros(0)
    )
    if not len(chosen):
        return images
    everything, images, labels = images, images[chosen], labels[chosen]
    count, channels, *shape = images.shape

    def field(cells: int, kinds: int = 1) -> Tensor:
        coarse = torch.randn(
            count * channels, kinds, cells, cells, generator=rng, device=rng.device
        )
        if wrap:
            coarse = torch.cat([coarse, coarse[..., :1]], dim=3)
        fine = functional.interpolate(
            coarse, (shape[0], shape[1] + wrap), mode="bilinear", align_corners=True
        )
        return fine[..., : shape[1]].view(count, channels, kinds, *shape)

    def each(low: float, high: float) -> Tensor:
        return uniform(low, high, count, rng)[:, None, None, None]

    # surroundings: patches of six tissues, coarse and fine, one of them air
    tissue = uniform(0, 1, (count, 6), rng)
    tissue[:, 0] *= 0.15
    patches = torch.cat([field(5, 3), 0.9 * field(9, 3)], dim=2).argmax(2)  # (B, C, H, W)
    drawn = tissue.gather(1, patches.flatten(1)).view_as(images)
    # blood and muscle differ; in three of four hearts blood is the brighter, as in late enhancement and in cine
    blood, other = each(0.25, 1), each(0, 1)
    darker = blood * each(0.05, 0.65)
    unlike = torch.where((blood - other).abs() < 0.2, darker, other)
    muscle = torch.where(each(0, 1) < 0.75, darker, unlike)
    scar = field(7)[:, :, 0] > each(0.3, 2)
    papillary = field(12)[:, :, 0] > 1.3
    wall = torch.where(scar, blood * each(0.75, 1.2), muscle)
    drawn = torch.where(labels == 1, torch.where(papillary, (blood + muscle) / 2, blood), drawn)
    drawn = torch.where(labels == 2, wall, drawn)
    drawn = torch.where(labels == 3, blood * each(0.8, 1.15), drawn)
    noise = torch.randn(images.shape, generator=rng, device=rng.device)
    drawn = drawn * (1 + 0.15 * field(16)[:, :, 0]) + each(0, 0.08) * noise
    drawn = functional.pad(drawn, (1, 1, 0, 0), mode="circular" if wrap else "replicate")
    drawn = functional.avg_pool2d(
        functional.pad(drawn, (0, 0, 1, 1), mode="replicate"), 3, stride=1
    )
    return everything.index_copy(0, chosen, (images + each(0.6, 1) * (drawn - images)).clamp(0, 1))
