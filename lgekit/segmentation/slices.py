"""Slices as the heart network sees them: square grids, crops, angle fields, random appearance."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from lgekit.anatomy.frame import ShortAxisFrame
from lgekit.errors import InputError
from lgekit.study import CAVITY, MYOCARDIUM, RV, WALL_CODES, Landmarks, Study

SQUARE_PIXELS = 256  # side of the square grid on which every slice is resampled
CLASSES = 4  # the network's codes: background, cavity, myocardium (with scar, no-reflow), RV
CLASS_CODES = (0, CAVITY, MYOCARDIUM, RV)
NETWORK_CODES = (0, 1, 2, 2, 2, 3)  # of a study's codes
LV_CLASSES = slice(1, 3)
ANGLE_CHANNELS = 4  # cosine and sine of the angle from the anterior and the inferior point
UNKNOWN = Landmarks(float("nan"), float("nan"), 0.0)


def largest_part(mask: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Select the connected part of a mask with the most pixels, or the largest sum of weights."""
    parts, _ = ndimage.label(mask)
    sums = np.bincount(parts.ravel(), None if weight is None else weight.ravel(), minlength=2)
    return mask & (parts == 1 + np.argmax(sums[1:]))


def screen_grid(shape: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Centres of pixels ``(h, w, 2)``, x right and y down, both from -1 to 1."""
    y, x = (pixel_axis(pixels, device) for pixels in shape)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def square_slices(study: Study) -> tuple[ShortAxisFrame, Tensor]:
    """Resample a study's slices, without a border of exact zeros, to a square isotropic grid.

    Returns the grid and ``(S, 1, 256, 256)`` float32 images, in which 0 and 1 are the study's
    percentiles 0.5 and 99.5. Coordinates on the square run from -1 to 1, y down.
    """
    pixels = study["image"].data.float()  # (1, X, Y, S)
    shape, spacing = np.array(pixels.shape[1:3]), np.array(study.spacing_mm[:2])
    start, stop = np.zeros(2, int), shape
    filled = np.argwhere((pixels[0] != 0).any(dim=2).numpy())
    if len(filled):
        start, stop = filled.min(0), filled.max(0) + 1
    inside = pixels[0, start[0] : stop[0] : 2, start[1] : stop[1] : 2].numpy()
    low, high = (float(value) for value in np.percentile(inside, (0.5, 99.5)))
    mm = float(((stop - start) * spacing).max()) / SQUARE_PIXELS
    place = np.diag(mm / spacing), (start + stop - 1) / 2, False, study.spatial_shape
    frame = ShortAxisFrame(SQUARE_PIXELS, mm, *place, landmarks=None, oriented=False)
    scaled = ((pixels - low) / max(high - low, 1e-6)).clamp(0, 1)
    return frame, frame.to_frame(scaled).permute(3, 0, 2, 1).contiguous()


def draw_labels(
    frame: ShortAxisFrame, maps: Tensor, centre: Tensor, half_width: Tensor
) -> np.ndarray:
    """Label map ``(X, Y, S)`` uint8 of the study: each ventricle's largest part in a crop."""
    pixels, half = maps.shape[-1], frame.pixels / 2
    middle = frame.centre + frame.matrix @ (half * centre.numpy())
    matrix = frame.matrix * (frame.pixels / pixels * float(half_width))
    crop = replace(frame, pixels=pixels, matrix=matrix, centre=middle)
    heart = crop.to_scanner(maps[:, 1:CLASSES].permute(1, 3, 2, 0), nearest=False)
    classes = torch.cat([1 - heart.sum(0, keepdim=True), heart]).max(0).indices.numpy()
    for mask in ((classes == 1) | (classes == 2), classes == 3):
        classes[mask & ~largest_part(mask)] = 0
    return np.array(CLASS_CODES, np.uint8)[classes]


class Slices(NamedTuple):
    """``N`` training slices, in square coordinates."""

    images: Tensor  # (N, 256, 256) uint8
    labels: Tensor  # (N, 256, 256) uint8, the network's codes
    neighbours: Tensor  # (N, 3) int64, numbers of the study's previous slice, this one and the next
    centre: Tensor  # (N, 2) LV centre of the slice, or of the study where the slice shows no LV
    radius: Tensor  # (N,) of a circle with the slice's epicardial area
    diameter: Tensor  # (N,) of the study's largest such circle
    insertions: Tensor  # (N, 2) complex64, directions of the anterior and inferior point, y up
    mirrored: Tensor  # (N,) bool, of the study
    landmark_weight: Tensor  # (N,) confidence of the landmarks, 0 where unknown
    rv_known: Tensor  # (N,) bool, whether the study's labels include the RV


def collect_slices(studies: Iterable[Study]) -> Slices:
    """Collect the slices of all studies that have LV labels; InputError if there are none."""
    parts: list[Slices] = []
    count = 0
    for study in studies:
        labels = study.label_map
        if labels is not None and np.isin(labels, (CAVITY, *WALL_CODES)).any():
            parts.append(_study_slices(study, labels, count))
            count += labels.shape[2]
    if not parts:
        remedy = "Give a cohort with masks (phantom:, acdc:, emidec:) to train the heart network on"
        raise InputError("cohort", "no study has a label of the left ventricle", remedy)
    return Slices(*map(torch.cat, zip(*parts, strict=True)))


def _study_slices(study: Study, labels: np.ndarray, first: int) -> Slices:
    frame, images = square_slices(study)
    classes = torch.tensor(NETWORK_CODES, dtype=torch.uint8)[None, labels.astype(int)]
    drawn = frame.to_frame(classes, nearest=True)[0].permute(2, 1, 0).contiguous()
    lv = ((drawn == 1) | (drawn == 2)).float()
    centre, area = lv_centres(lv, smallest=1)
    middle, _ = lv_centres(lv.sum(0, keepdim=True), smallest=1)
    radius, count = torch.sqrt(area / torch.pi) * 2 / SQUARE_PIXELS, len(drawn)
    landmarks = study["landmarks"] or UNKNOWN
    angles = torch.tensor([landmarks.anterior_rvip_deg, landmarks.inferior_rvip_deg])
    per_study = {
        "diameter": 2 * radius.max(),
        "insertions": torch.polar(torch.ones(2), torch.deg2rad(angles.nan_to_num())),
        "mirrored": landmarks.mirrored,
        "landmark_weight": float(landmarks.confidence) * bool(angles.isfinite().all()),
        "rv_known": bool((labels == RV).any()),
    }
    tensors = {name: torch.as_tensor(value) for name, value in per_study.items()}
    around = torch.arange(count)[:, None] + torch.tensor([-1, 0, 1])
    return Slices(
        images=(images[:, 0] * 255).round().to(torch.uint8),
        labels=drawn,
        neighbours=first + around.clamp(0, count - 1),
        centre=torch.where(area[:, None] > 0, centre, middle),
        radius=radius,
        **{name: one.expand(count, *one.shape) for name, one in tensors.items()},
    )


def pixel_axis(pixels: int, device: torch.device | None = None) -> Tensor:
    """Centres of the pixels of a row, from -1 to 1."""
    return (torch.arange(pixels, device=device) + 0.5) / pixels * 2 - 1


def lv_centres(left: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Centres ``(S, 2)`` and areas ``(S,)`` in pixels of LV probabilities ``(S, h, h)``."""
    axis, area = pixel_axis(left.shape[-1], left.device), left.sum((1, 2))
    weighted = torch.stack([left.sum(1) @ axis, left.sum(2) @ axis], dim=1)
    return weighted / area.clamp(min=smallest)[:, None], area  # an empty slice gets a centre, too


def as_complex(offset: Tensor) -> Tensor:
    """Complex numbers of ``(..., 2)``, x right and y down; their angles run counter-clockwise."""
    return torch.complex(offset[..., 0], -offset[..., 1])


def angle_field(offset: Tensor, insertions: Tensor, mirrored: Tensor) -> Tensor:
    """Angle field ``(B, 4, h, w)`` at positions ``(B, h, w, 2)`` relative to the LV centre.

    Cosine and sine of the angle from the anterior and from the inferior insertion point.
    """
    angle = as_complex(offset).sgn()[:, None] * insertions.conj()[..., None, None]
    angle = torch.where(mirrored[:, None, None, None], angle.conj(), angle)
    return torch.stack([angle.real, angle.imag], dim=2).flatten(1, 2)


def angle_votes(field: Tensor, weight: Tensor, direction: Tensor) -> Tensor:
    """Weighted mean of an angle field ``(B, 4, h, w)``, with weights ``(B, h, w)``.

    ``direction`` is the complex unit vector from the LV centre. Returns ``(5,)`` complex64, which
    can be added: anterior and inferior point of a plain heart, then of a mirrored one, and 1 (0
    without any weight).
    """
    votes = [
        (weight * torch.complex(field[:, 2 * point], field[:, 2 * point + 1]) * turned).sum()
        for turned in (direction.conj(), direction)
        for point in range(2)
    ]
    total = weight.sum()
    return torch.stack([*votes, total.to(torch.complex64)]) / total.clamp(min=1e-6)


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


def uniform(low: float, high: float, shape: int | tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw uniform float32 numbers on the generator's device."""
    return torch.rand(shape, generator=rng, device=rng.device) * (high - low) + low


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

    tone = images.clamp(0, 1) ** torch.exp(strength(-1, 1))  # gamma
    tone = tone + strength(1, 1, 0.2) * (1 - 2 * tone)  # inversion
    # coil bias: a smooth field through 3 x 3 random values
    bias = uniform(-0.5, 0.5, (count, 1, 3, 3), rng)
    tone = tone * functional.interpolate(bias, shape, mode="bilinear", align_corners=True).exp()
    soft = functional.avg_pool2d(tone, 3, stride=1, padding=1, count_include_pad=False)
    tone = tone + strength(-0.5, 1, 0.4) * (soft - tone)
    tone = tone + strength(0, 0.08) * torch.randn(images.shape, generator=rng, device=rng.device)
    return images + strength(1, 1, share) * (tone - images)


def synthesize_from_labels(
    images: Tensor, labels: Tensor, share: float, rng: torch.Generator
) -> Tensor:
    """Replace a share of the images by synthetic ones, generated from their labels as in SynthSeg.

    ``(B, C, H, W)`` images in [0, 1] and labels in the network's codes; channels are slices of one
    heart.
    """
    if not share:
        return images
    count, channels, height, width = images.shape

    def field(cells: int, kinds: int = 1) -> Tensor:
        """Smooth random fields ``(B, C, kinds, H, W)``."""
        shape = (count * channels, kinds, cells, cells)
        coarse = torch.randn(shape, generator=rng, device=rng.device)
        fine = functional.interpolate(coarse, images.shape[2:], mode="bilinear", align_corners=True)
        return fine.view(count, channels, kinds, height, width)

    def each(low: float, high: float) -> Tensor:
        return uniform(low, high, count, rng)[:, None, None, None]

    # surroundings: patches of six tissues, coarse and fine, one of them air
    tissue = uniform(0, 1, (count, 6), rng)
    tissue[:, 0] *= 0.15
    patches = torch.cat([field(5, 3), 0.9 * field(9, 3)], dim=2).argmax(2)  # (B, C, H, W)
    drawn = tissue.gather(1, patches.flatten(1)).view_as(images)
    # blood is brighter than myocardium in four hearts of five
    blood = each(0.25, 1)
    muscle = torch.where(each(0, 1) < 0.7, blood * each(0.05, 0.65), each(0, 1))
    wall = torch.where(field(7)[:, :, 0] > each(0.3, 2), blood * each(0.75, 1.2), muscle)
    for code, signal in ((1, blood), (2, wall), (3, blood * each(0.8, 1.15))):
        drawn = torch.where(labels == code, signal, drawn)
    noise = torch.randn(images.shape, generator=rng, device=rng.device)
    drawn = drawn * (1 + 0.15 * field(16)[:, :, 0]) + each(0, 0.08) * noise
    drawn = functional.avg_pool2d(drawn, 3, stride=1, padding=1, count_include_pad=False)
    drawn = (images + each(0.6, 1) * (drawn - images)).clamp(0, 1)
    return torch.where(each(0, 1) < share, drawn, images)
