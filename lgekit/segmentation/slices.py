"""Slices as the heart network sees them: square grids, crops, angle fields, random appearance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from lgekit.anatomy.segments import insertion_points
from lgekit.errors import InputError
from lgekit.study import CAVITY, MYOCARDIUM, RV, WALL_CODES, Landmarks, Study

SQUARE_PIXELS = 256  # side of the square grid on which every slice is resampled
CLASSES = 4  # the network's codes: background, cavity, myocardium (with scar, no-reflow), RV
CLASS_CODES = (0, CAVITY, MYOCARDIUM, RV)
LV_CLASSES = slice(1, 3)
ANGLE_CHANNELS = 4  # cosine and sine of the angle from the anterior and the inferior point
UNKNOWN = Landmarks(float("nan"), float("nan"), 0.0)


@dataclass(frozen=True)
class SquareSlices:
    """A study's slices on a square isotropic grid; coordinates run from -1 to 1 (y down)."""

    images: Tensor  # (S, 1, 256, 256) float32; 0 and 1 are the study's percentiles 0.5 and 99.5
    centre_mm: np.ndarray  # (2,) from the corner of the study's array to the square's centre
    half_mm: float  # from the square's centre to its edge
    spacing: np.ndarray  # (2,) mm per pixel of the study, x and y
    shape: np.ndarray  # (2,) pixels of the study, x and y

    def from_study(self, arrays: Tensor, mode: str) -> Tensor:
        """Resample ``(S, C, Y, X)`` from the study's grid to ``(S, C, 256, 256)``."""
        square = self.centre_mm - self.half_mm, self.centre_mm + self.half_mm
        study = np.zeros(2), self.shape * self.spacing
        return _resample(arrays, study, square, (SQUARE_PIXELS, SQUARE_PIXELS), mode)

    def draw_labels(self, maps: Tensor, centre: Tensor, half_width: Tensor) -> Tensor:
        """Label map ``(X, Y, S)`` uint8 of the study: each ventricle's largest part in a crop."""
        middle, half = np.array(centre.tolist()), float(half_width)
        low = self.centre_mm + (middle - half) * self.half_mm
        high = self.centre_mm + (middle + half) * self.half_mm
        start = np.clip(np.floor(low / self.spacing), 0, self.shape - 1).astype(int)
        stop = np.clip(np.ceil(high / self.spacing), start + 1, self.shape).astype(int)
        covered, (width, height) = (start * self.spacing, stop * self.spacing), stop - start
        heart = maps[:, 1:CLASSES]
        heart = _resample(heart, (low, high), covered, (height, width), "bilinear")
        background = 1 - heart[:, 0] - heart[:, 1] - heart[:, 2]
        classes = torch.cat([background[:, None], heart], dim=1).max(1).indices.numpy()
        for ventricle in ((1, 2), (3,)):
            mask = np.isin(classes, ventricle)
            classes[mask & ~largest_part(mask)] = 0
        labels = torch.zeros(*self.shape, len(maps), dtype=torch.uint8)
        drawn = torch.tensor(CLASS_CODES, dtype=torch.uint8)[classes].permute(2, 1, 0)
        labels[start[0] : stop[0], start[1] : stop[1]] = drawn
        return labels


def largest_part(mask: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Select the connected part of a mask with the most pixels, or the largest sum of weights."""
    parts, _ = ndimage.label(mask)
    sums = np.bincount(parts.ravel(), None if weight is None else weight.ravel(), minlength=2)
    return mask & (parts == 1 + np.argmax(sums[1:]))


def _resample(
    arrays: Tensor, source: Sequence, target: Sequence, shape: tuple[int, int], mode: str
) -> Tensor:
    """Resample ``(S, C, H, W)`` from one rectangle to another (two corners each, mm)."""
    size = source[1] - source[0]
    axes = torch.tensor(np.diag((target[1] - target[0]) / size), dtype=torch.float32)
    shift = torch.tensor((sum(target) - sum(source)) / size, dtype=torch.float32)
    channels = arrays.flatten(0, 1)[None]  # all slices share one grid
    sampled = crop(channels, axes[None], shift[None], shape, mode)
    return sampled[0].unflatten(0, arrays.shape[:2])


def square_slices(study: Study) -> SquareSlices:
    """Resample a study's slices, without a border of exact zeros, to a square grid."""
    pixels = study["image"].data[0].float()  # (X, Y, S)
    shape, spacing = np.array(pixels.shape[:2]), np.array(study.spacing_mm[:2])
    start, stop = np.zeros(2, int), shape
    filled = np.argwhere((pixels != 0).any(dim=2).numpy())
    if len(filled):
        start, stop = filled.min(0), filled.max(0) + 1
    inside = pixels[start[0] : stop[0] : 2, start[1] : stop[1] : 2].numpy()
    low, high = (float(value) for value in np.percentile(inside, (0.5, 99.5)))
    half_mm = float(((stop - start) / 2 * spacing).max())
    square = SquareSlices(torch.empty(0), (start + stop) / 2 * spacing, half_mm, spacing, shape)
    scaled = ((pixels - low) / max(high - low, 1e-6)).clamp(0, 1)
    images = square.from_study(scaled.permute(2, 1, 0)[:, None].contiguous(), "bilinear")
    return replace(square, images=images)


class Slices(NamedTuple):
    """``N`` training slices, in square coordinates. Slices of a study follow each other."""

    images: Tensor  # (N, 256, 256) uint8
    labels: Tensor  # (N, 256, 256) uint8, the network's codes
    centre: Tensor  # (N, 2) LV centre of the slice, or of the study where the slice shows no LV
    diameter: Tensor  # (N,) of a circle with the study's largest epicardial area
    insertions: Tensor  # (N, 2, 2) unit vectors from LV centre to anterior and inferior point
    handedness: Tensor  # (N,) -1 in mirrored studies, else 1
    landmark_weight: Tensor  # (N,) confidence of the landmarks, 0 where unknown
    rv_known: Tensor  # (N,) bool, whether the study's labels include the RV
    cohort: Tensor  # (N,) int64, number of the cohort
    study: Tensor  # (N,) int64, number of the study


def collect_slices(cohorts: Iterable[Sequence[Study]]) -> Slices:
    """Collect the slices of all studies that have LV labels; InputError if there are none."""
    parts: list[Slices] = []
    for number, cohort in enumerate(cohorts):
        for study in cohort:
            labels = study.label_map
            if labels is not None and np.isin(labels, (CAVITY, *WALL_CODES)).any():
                parts.append(_study_slices(study, labels, number, len(parts)))
    if not parts:
        remedy = "Give a cohort with masks (phantom:, acdc:, emidec:) to train the heart network on"
        raise InputError("cohorts", "no study has a label of the left ventricle", remedy)
    return Slices(*map(torch.cat, zip(*parts, strict=True)))


def reference_landmarks(study: Study) -> Landmarks:
    """A study's landmarks, else those that its RV label shows in plain storage, else NaN."""
    if study["landmarks"] is None and np.any(study.label_map == RV):
        return insertion_points(study.label_map, study.spacing_mm, mirrored=False)
    return study["landmarks"] or UNKNOWN


def _study_slices(study: Study, labels: np.ndarray, cohort: int, number: int) -> Slices:
    square = square_slices(study)
    wall = 2.0 * np.isin(labels, WALL_CODES)
    codes = (labels == CAVITY) + wall + 3.0 * (labels == RV)
    classes = torch.from_numpy(codes).float().permute(2, 1, 0)[:, None].contiguous()
    drawn = square.from_study(classes, "nearest")[:, 0].to(torch.uint8)
    lv = ((drawn == 1) | (drawn == 2)).float()
    centre, area = lv_centres(lv, smallest=1)
    middle, _ = lv_centres(lv.sum(0, keepdim=True), smallest=1)
    landmarks = reference_landmarks(study)
    if not np.isfinite(landmarks.anterior_rvip_deg + landmarks.inferior_rvip_deg):
        landmarks = Landmarks(0.0, 120.0, 0.0)
    angles = np.radians([landmarks.anterior_rvip_deg, landmarks.inferior_rvip_deg])
    per_study = {
        "diameter": 2 * torch.sqrt(area.max() / torch.pi) * 2 / SQUARE_PIXELS,
        "insertions": np.stack([np.cos(angles), -np.sin(angles)], axis=1).astype(np.float32),
        "handedness": -1.0 if landmarks.mirrored else 1.0,
        "landmark_weight": float(landmarks.confidence),
        "rv_known": bool((labels == RV).any()),
        "cohort": cohort,
        "study": number,
    }
    tensors = {name: torch.as_tensor(value) for name, value in per_study.items()}
    return Slices(
        images=(square.images[:, 0] * 255).round().to(torch.uint8),
        labels=drawn,
        centre=torch.where(area[:, None] > 0, centre, middle),
        **{name: one.expand(len(drawn), *one.shape) for name, one in tensors.items()},
    )


def pixel_axis(pixels: int, device: torch.device | None = None) -> Tensor:
    """Centres of the pixels of a row, from -1 to 1."""
    return (torch.arange(pixels, device=device) + 0.5) / pixels * 2 - 1


def directions(pixels: int, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors ``(B, 2, h, w)`` and distances ``(B, h, w)`` from ``centre (B, 2)`` in crops."""
    axis = pixel_axis(pixels, centre.device)
    grid = torch.stack([axis.expand(pixels, pixels), axis[:, None].expand(pixels, pixels)])
    offset = grid - centre[:, :, None, None]
    distance = torch.hypot(offset[:, 0], offset[:, 1])
    return offset / distance.clamp(min=1e-6)[:, None], distance


def lv_centres(left: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Centres ``(S, 2)`` and areas ``(S,)`` in pixels of LV probabilities ``(S, h, h)``."""
    axis, area = pixel_axis(left.shape[-1], left.device), left.sum((1, 2))
    weighted = torch.stack([left.sum(1) @ axis, left.sum(2) @ axis], dim=1)
    return weighted / area.clamp(min=smallest)[:, None], area  # an empty slice gets a centre, too


def angle_field(x: Tensor, y: Tensor, insertions: Tensor, handedness: Tensor) -> Tensor:
    """Angle field ``(B, 4, h, w)`` of unit vectors ``x, y (B, h, w)`` from the LV centre."""
    hand, channels = handedness[:, None, None], []
    for point in range(2):
        towards_x, towards_y = insertions[:, point, :, None, None].unbind(1)
        # y points down, so the sine of the counter-clockwise angle is minus the cross product
        channels += [x * towards_x + y * towards_y, hand * (x * towards_y - y * towards_x)]
    return torch.stack(channels, dim=1)


def angle_votes(
    field: Tensor, weight: Tensor, x: Tensor, y: Tensor, over: tuple[int, ...] = (1, 2)
) -> Tensor:
    """Add up an angle field with weights ``(B, h, w)``.

    Returns ``(..., 5)`` complex64, which can be added: anterior and inferior point of a plain
    heart, then of a mirrored one, and the sum of the weights.
    """
    place = torch.complex(x, -y)  # exp(i t)
    votes = [
        (weight * torch.complex(field[:, 2 * point], field[:, 2 * point + 1]) * turned).sum(over)
        for turned in (place.conj(), place)
        for point in range(2)
    ]
    return torch.stack([*votes, weight.sum(over).to(torch.complex64)], dim=-1)


def landmarks_from_votes(votes: Tensor) -> Landmarks:
    """Landmarks from ``(5,)`` summed votes; NaN and confidence 0 where the weight is zero."""
    *points, total = votes.tolist()
    if total.real < 1e-6:
        return UNKNOWN
    plain, mirrored = abs(points[0]) + abs(points[1]), abs(points[2]) + abs(points[3])
    best = np.array(points[:2]).conj() if plain >= mirrored else np.array(points[2:])
    anterior, inferior = (np.degrees(np.angle(best)) % 360).tolist()
    confidence = min(abs(plain - mirrored) / (2 * total.real), 1.0)
    return Landmarks(anterior, inferior, float(confidence))


def crop(
    images: Tensor, axes: Tensor, centre: Tensor, shape: tuple[int, int], mode: str = "bilinear"
) -> Tensor:
    """Crop ``(B, C, H, W)`` to ``(B, C, *shape)``, zero outside of the images.

    Point ``v`` of a crop is at ``axes (2, 2) @ v + centre (2,)`` of its image, both from -1 to 1.
    """
    y, x = (pixel_axis(pixels, axes.device) for pixels in shape)
    down = axes[:, :, 1, None] * y + centre[:, :, None]  # (B, 2, height)
    across = axes[:, :, 0, None] * x  # (B, 2, width)
    # a fraction of the time of torch.nn.functional.affine_grid
    grid = torch.stack([across[:, i, None] + down[:, i, :, None] for i in range(2)], dim=-1)
    return functional.grid_sample(images, grid, mode=mode, align_corners=False)


def uniform(low: float, high: float, shape: int | tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw uniform float32 numbers on the generator's device."""
    return torch.rand(shape, generator=rng, device=rng.device) * (high - low) + low


def random_crops(centre: Tensor, half_width: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn, mirror, stretch, scale and shift crops at random; returns axes, centres for `crop`."""
    count = len(centre)
    turn, stretch = uniform(0, 2 * torch.pi, count, rng), uniform(-0.12, 0.12, count, rng)
    mirror = uniform(0, 1, count, rng).lt(0.5).float() * 2 - 1
    width = half_width * torch.exp(uniform(-0.22, 0.22, count, rng))
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=1).view(-1, 2, 2)
    # stretch along the storage axes, as a wrong pixel spacing would
    axes = torch.stack([stretch.exp(), (-stretch).exp()], dim=1)[:, :, None] * rotation
    axes = axes * torch.stack([mirror, torch.ones_like(mirror)], dim=1)[:, None, :]
    shift = uniform(-0.15, 0.15, (count, 2), rng) * width[:, None]
    return axes * width[:, None, None], centre + shift


def standardise(images: Tensor) -> Tensor:
    """Give each image of ``(B, C, H, W)`` mean 0 and standard deviation 1."""
    mean, deviation = images.mean((1, 2, 3), keepdim=True), images.std((1, 2, 3), keepdim=True)
    return (images - mean) / (deviation + 1e-3)


def random_contrast(images: Tensor, rng: torch.Generator, share: float = 0.5) -> Tensor:
    """Change the contrast of a share of ``(B, C, H, W)`` images in [0, 1], not their geometry.

    A tenth is inverted: cine and late enhancement rank blood, wall and scar differently.
    """
    count, shape = len(images), images.shape[-2:]

    def strength(low: float, high: float, share: float = 1.0) -> Tensor:
        """One number per image ``(B, 1, 1, 1)``, zero for all but a share of the images."""
        value = uniform(low, high, count, rng) * uniform(0, 1, count, rng).lt(share)
        return value[:, None, None, None]

    # tone: x ** gamma, then a curve through six knots whose steps vary up to fourfold
    tone = images.clamp(0, 1) ** torch.exp(strength(-0.7, 0.7))
    steps = torch.exp(uniform(-0.7, 0.7, (count, 5), rng))
    knots = functional.pad(torch.cumsum(steps / steps.sum(1, keepdim=True), dim=1), (1, 0))
    position = tone.flatten(1) * 5
    low = position.long().clamp(max=4)
    left, right = knots.gather(1, low), knots.gather(1, low + 1)
    tone = (left + (right - left) * (position - low)).view_as(images)
    tone = tone + strength(1, 1, 0.2) * (1 - 2 * tone)  # inversion
    # coil bias: a smooth field through 3 x 3 random values
    bias = uniform(-0.5, 0.5, (count, 1, 3, 3), rng)
    tone = tone * functional.interpolate(bias, shape, mode="bilinear", align_corners=True).exp()
    # ghosts and motion: copies shifted along one axis (one shift per batch, one strength per image)
    axis, parts = (
        int(torch.randint(2, end, (1,), generator=rng, device=rng.device)) for end in (4, 6)
    )
    tone = tone + strength(0, 0.25, 0.25) * (tone.roll(shape[0] // parts, axis) - tone)
    tone = tone + strength(0, 0.4, 0.25) * (tone.roll(2, axis) + tone.roll(-2, axis) - 2 * tone)
    soft = functional.avg_pool2d(tone, 3, stride=1, padding=1, count_include_pad=False)
    tone = tone + strength(-0.5, 1, 0.4) * (soft - tone)
    tone = tone + strength(0, 0.08) * torch.randn(images.shape, generator=rng, device=rng.device)
    return images + strength(1, 1, share) * (tone - images)


def synthesize_from_labels(
    images: Tensor, labels: Tensor, share: float, rng: torch.Generator, wrap: bool = False
) -> Tensor:
    """Replace a share of the images by synthetic ones, generated from their labels as in SynthSeg.

    ``(B, C, H, W)`` images in [0, 1] and labels in the network's codes; channels are slices of one
    heart. With ``wrap``, the last axis is a closed angle.
    """
    if not share:
        return images
    chosen = torch.nonzero(uniform(0, 1, len(images), rng) < share)[:, 0]
    if not len(chosen):
        return images
    originals, images, labels = images, images[chosen], labels[chosen]
    count, channels, height, width = images.shape

    def field(cells: int, kinds: int = 1) -> Tensor:
        """Smooth random fields ``(B, C, kinds, H, W)``."""
        shape = (count * channels, kinds, cells, cells)
        coarse = torch.randn(shape, generator=rng, device=rng.device)
        if wrap:
            coarse = torch.cat([coarse, coarse[..., :1]], dim=3)
        size = (height, width + wrap)
        fine = functional.interpolate(coarse, size, mode="bilinear", align_corners=True)
        return fine[..., :width].view(count, channels, kinds, height, width)

    def each(low: float, high: float) -> Tensor:
        return uniform(low, high, count, rng)[:, None, None, None]

    # surroundings: patches of six tissues, coarse and fine, one of them air
    tissue = uniform(0, 1, (count, 6), rng)
    tissue[:, 0] *= 0.15
    patches = torch.cat([field(5, 3), 0.9 * field(9, 3)], dim=2).argmax(2)  # (B, C, H, W)
    drawn = tissue.gather(1, patches.flatten(1)).view_as(images)
    # blood and myocardium differ; blood is brighter in three hearts of four
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
    drawn = functional.pad(drawn, (0, 0, 1, 1), mode="replicate")
    drawn = functional.avg_pool2d(drawn, 3, stride=1)
    return originals.index_copy(0, chosen, (images + each(0.6, 1) * (drawn - images)).clamp(0, 1))
