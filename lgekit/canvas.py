"""Slices of any grid on one square canvas, and the angle field: how a network says where the septum is.

**Canvas.** A slice's field of view, without padding of exact zeros, on 256 x 256 isotropic pixels; its longer side
fills the canvas. Coordinates run from -1 to 1, x (the array's first axis) to the right and y (its second) down.

**Angle field.** At a point that lies at angle ``t`` as seen from the LV centre, its anatomical angle is
``p = s (t - a)`` where ``a`` is the angle of an insertion point and ``s`` is +1 where anterior → septum → inferior
runs counter-clockwise, -1 in a mirrored image. The network learns ``(cos p, sin p)`` at each pixel of the left
ventricle, for both insertion points. Then for N pixels ``sum exp(i p) exp(-i t) = N exp(-i a)`` if ``s = +1``, and
``sum exp(i p) exp(i t) = N exp(i a)`` if ``s = -1``, and the other of the two sums is near zero over a full ring. So
all pixels of all slices vote, the larger sum gives the handedness, its phase gives the angle, and the difference of the
two is the confidence [O].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import ceil, floor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lgekit.anatomy import insertion_points
from lgekit.errors import InputError
from lgekit.studies import CAVITY, MYOCARDIUM, RV, WALL_CODES, Landmarks, Study
from lgekit.views import Views, pixel_points

CANVAS = 256
CLASSES = 4  # background, cavity, myocardium (with scar and no-reflow), RV: the network's own codes 0..3
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
        for count, step, middle, own in zip(self.shape, self.spacing, self.centre_mm, centre.tolist(), strict=True):
            edges = [(middle + (own + side * half_width) * self.half_mm) / step for side in (-1, 1)]
            start = min(max(floor(edges[0]), 0), count - 1)
            box.append(slice(start, max(min(ceil(edges[1]), count), start + 1)))
        return box[0], box[1]

    def to_study(self, maps: Tensor, centre: Tensor, half_width: float, box: tuple[slice, slice]) -> Tensor:
        """``(S, C, h, h)`` maps of a plain view → ``(S, C, y, x)`` on a box of the study's pixels, zero outside the
        view."""
        theta = torch.zeros(2, 3)
        for axis in range(2):
            start, stop = box[axis].start * self.spacing[axis], box[axis].stop * self.spacing[axis]  # mm
            theta[axis, axis] = (stop - start) / 2 / self.half_mm / half_width
            offset = ((start + stop) / 2 - self.centre_mm[axis]) / self.half_mm - float(centre[axis])
            theta[axis, 2] = offset / half_width
        return _sample_alike(maps, theta, (box[1].stop - box[1].start, box[0].stop - box[0].start), "bilinear")


def _sample_alike(arrays: Tensor, theta: Tensor, shape: tuple[int, int], mode: str) -> Tensor:
    """``(S, C, H, W)`` through one affine map ``(2, 3)``: all slices as channels of one picture, on one grid."""
    grid = pixel_points(theta[None, :, :2], theta[None, :, 2], *shape)
    sampled = functional.grid_sample(arrays.flatten(0, 1)[None], grid, mode=mode, align_corners=False)
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
    centre = torch.stack([lv.sum(1).float() @ axis, lv.sum(2).float() @ axis], dim=1)  # (S, 2), x and y
    mean = centre.sum(0) / area.sum()
    centre = torch.where(area[:, None] > 0, centre / area[:, None].clamp(min=1), mean)
    diameter = 2 * torch.sqrt(area.max() / torch.pi) * 2 / CANVAS
    rv_known = bool((labels == RV).any())
    landmarks = study["landmarks"]
    if landmarks is None and rv_known:
        landmarks = insertion_points(labels, study.spacing_mm, mirrored=False)
    known = landmarks is not None and np.isfinite([landmarks.anterior_rvip_deg, landmarks.inferior_rvip_deg]).all()
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
    parts = [study_slices(study, number) for number, cohort in enumerate(cohorts) for study in cohort]
    kept = [part for part in parts if part is not None]
    if not kept:
        remedy = "Give a cohort with masks (phantom:, acdc:, emidec:) to train the heart network on"
        raise InputError("cohorts", "no study has a label of the left ventricle", remedy)
    for number, part in enumerate(kept):
        part.study = torch.full_like(part.study, number)
    return Slices(*(torch.cat([getattr(part, field.name) for part in kept]) for field in fields(Slices)))


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
        towards = functional.normalize(views.to_view(batch.insertions[:, point], direction=True), dim=1)[
            :, :, None, None
        ]
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
        votes += [(weight * torch.complex(field[:, 2 * p], field[:, 2 * p + 1]) * turned).sum((1, 2)) for p in range(2)]
    return torch.stack([*votes, weight.sum((1, 2)).to(torch.complex64)], dim=1)


def landmarks_from_votes(votes: Tensor) -> Landmarks:
    """Landmarks from ``(5,)`` summed votes; NaN and confidence 0 where nothing voted."""
    anterior, inferior, mirrored_anterior, mirrored_inferior, weight = votes.tolist()
    if weight.real < 1e-6:
        return Landmarks(float("nan"), float("nan"), 0.0)
    plain, mirrored = abs(anterior) + abs(inferior), abs(mirrored_anterior) + abs(mirrored_inferior)
    points = (
        np.array([anterior, inferior]).conj() if plain >= mirrored else np.array([mirrored_anterior, mirrored_inferior])
    )
    angles = np.degrees(np.angle(points)) % 360
    confidence = min(abs(plain - mirrored) / (2 * weight.real), 1.0)
    return Landmarks(float(angles[0]), float(angles[1]), float(confidence))
