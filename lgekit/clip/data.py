"""Image-text pairs: the views of studies, their texts, augmentation and batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lgekit.anatomy.frame import PolarGrid, View, image_view, polar_grid
from lgekit.clip.model import StudyBatch
from lgekit.config import FitSettings
from lgekit.study import Study


def augment(batch: StudyBatch, settings: FitSettings, generator: torch.Generator) -> StudyBatch:
    """Draw new images for one step. Nothing is mirrored: it would make the text wrong.

    Polar view: a small turn (error of the insertion point), and for each slice a shift and stretch
    in depth and a smooth wobble of the contour (error of the segmentation). Image view: small
    turns, shifts and scales. Both: gain, offset and noise; one slice in eight is left out.
    """
    strength = settings.augment
    if not strength:
        return batch
    images, mask = batch.images, batch.mask
    studies, slices, _, height, width = images.shape
    device = images.device

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device) * strength

    study, each = draw(studies, 1, 8), draw(studies, slices, 8)
    vertical = torch.linspace(-1, 1, height, device=device)[:, None]
    flat = images.flatten(0, 1)
    if settings.frame == "polar":
        angle = torch.arange(width, device=device) * (2 * math.pi / width)
        waves = [
            each[..., k, None] * (angle * k + each[..., 4 + k, None] * 3).cos() for k in (1, 2, 3)
        ]
        wobble = torch.stack(waves).sum(0)
        shift = 0.05 * study[..., 0] + 0.05 * each[..., 0]
        rows = vertical * (1 + 0.05 * each[..., 4] + 0.05 * study[..., 1])[..., None, None]
        rows = rows + shift[..., None, None] + 0.04 * wobble[..., None, :]
        turn = (8.0 / 360 * study[..., 2] + 2.0 / 360 * each[..., 5]) * width  # in angle samples
        columns = (torch.arange(width, device=device) + turn[..., None, None]) % width
        columns = columns * (2 / width) - 1
        flat = torch.cat([flat, flat[..., :1]], -1)  # (…, width + 1): closes the circle
    else:
        horizontal = torch.linspace(-1, 1, width, device=device)[None]
        turn = (math.radians(7) * study[..., 2])[..., None, None]
        scale = (1 + 0.06 * study[..., 3])[..., None, None]
        across, down = (0.03 * each[..., k, None, None] for k in (0, 1))
        columns = scale * (horizontal * turn.cos() - vertical * turn.sin()) + across
        rows = scale * (horizontal * turn.sin() + vertical * turn.cos()) + down
    grid = torch.stack(torch.broadcast_tensors(columns, rows), -1).flatten(0, 1).to(flat.dtype)
    flat = F.grid_sample(flat, grid, padding_mode="border", align_corners=True)
    images = flat.unflatten(0, (studies, slices))
    gain = (0.15 * study[..., 4] + 0.03 * each[..., 2]).exp()[..., None, None, None]
    offset = (0.08 * study[..., 5] + 0.03 * each[..., 3])[..., None, None, None]
    images.mul_(gain).add_(offset)  # in place: a batch is larger than the caches
    noise = torch.randn(images.shape, generator=generator, device=device)
    images.add_(noise.mul_((0.05 * study[..., 6].abs())[..., None, None, None]))
    drawn = torch.rand(studies, slices, generator=generator, device=device)
    kept = mask & (drawn > 0.125 * min(strength, 1.0))
    return StudyBatch(images, batch.levels, torch.where(kept.any(1, keepdim=True), kept, mask))


@dataclass(frozen=True)
class ImageTextPairs:
    """Studies with their texts. The first text is the caption; each epoch draws one to contrast.

    Of the studies after the first ``real`` ones (None: all) an epoch draws a part.
    """

    batch: StudyBatch
    texts: Sequence[tuple[str, ...]]
    real: int | None = None


def make_view(study: Study, settings: FitSettings) -> View:
    """Return the view of a study; its labels and landmarks (true or predicted) locate the heart.

    With ``orientation="none"`` they are ignored: the view is a square around the centre of the
    image, with the slices as stored.
    """
    if settings.orientation == "none":
        study = Study(**{key: value for key, value in study.items() if key != "labels"})
    elif settings.frame == "polar":
        return view_grid(study, settings).study_view(study)
    return image_view(study, settings.pixels, settings.orientation, settings.min_confidence)


def view_grid(study: Study, settings: FitSettings) -> PolarGrid:
    """Return the grid of the polar view, with a more even wall if the masks are predicted."""
    size = settings.depths, settings.angles
    grid = polar_grid(study, *size, settings.orientation, settings.min_confidence)
    return grid.evened() if settings.masks == "predicted" else grid


def batch_of(views: Sequence[View]) -> StudyBatch:
    """Stack views into one padded batch."""
    images, levels = [one.images for one in views], [one.levels for one in views]
    mask = [torch.ones(len(own), dtype=torch.bool) for own in levels]
    return StudyBatch(*(pad_sequence(part, batch_first=True) for part in (images, levels, mask)))
