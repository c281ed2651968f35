"""Batched image augmentation on the device, one draw for a whole batch of studies."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lgekit.model import StudyBatch
from lgekit.settings import FitSettings


def augment(batch: StudyBatch, settings: FitSettings, generator: torch.Generator) -> StudyBatch:
    """New images for one step, drawn for the whole batch at once; no left–right flip: it would make the text wrong.

    Polar view: a small turn (the insertion point's error), per slice a shift and stretch of the depths and a smooth
    wobble of the contour (the segmentation's error). Image view: small turns, shifts, scale. Both: gain, offset and
    noise of the intensities; one slice in eight left out.
    """
    strength = settings.augment
    if not strength:
        return batch
    images, mask = batch.images, batch.mask
    studies, slices, _, height, width = images.shape
    device = images.device

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * strength).to(device)

    study, each = draw(studies, 1, 8), draw(studies, slices, 8)
    vertical = torch.linspace(-1, 1, height, device=device)[:, None]
    flat = images.flatten(0, 1)
    if settings.frame == "polar":
        angle = torch.arange(width, device=device) * (2 * math.pi / width)
        waves = [each[..., k, None] * (angle * k + each[..., 4 + k, None] * 3).cos() for k in (1, 2, 3)]
        wobble = torch.stack(waves).sum(0)
        shift = 0.05 * study[..., 0] + 0.05 * each[..., 0]
        rows = vertical * (1 + 0.05 * each[..., 4] + 0.05 * study[..., 1])[..., None, None]
        rows = rows + shift[..., None, None] + 0.04 * wobble[..., None, :]
        turn = (8.0 / 360 * study[..., 2] + 2.0 / 360 * each[..., 5]) * width  # in angle samples, circular
        columns = (torch.arange(width, device=device) + turn[..., None, None]) % width
        flat = torch.cat([flat, flat[..., :1]], -1)  # (…, width + 1): the circle closed
        columns = columns * (2 / width) - 1
        grid = torch.stack(torch.broadcast_tensors(columns, rows), -1)
    else:
        horizontal = torch.linspace(-1, 1, width, device=device)[None]
        turn = (math.radians(7) * study[..., 2])[..., None, None]
        scale = (1 + 0.06 * study[..., 3])[..., None, None]
        columns = scale * (horizontal * turn.cos() - vertical * turn.sin()) + 0.03 * each[..., 0, None, None]
        rows = scale * (horizontal * turn.sin() + vertical * turn.cos()) + 0.03 * each[..., 1, None, None]
        grid = torch.stack(torch.broadcast_tensors(columns, rows), -1).expand(studies, slices, height, width, 2)
    grid = grid.flatten(0, 1).to(flat.dtype)
    flat = F.grid_sample(flat, grid, padding_mode="border", align_corners=True)
    images = flat.unflatten(0, (studies, slices))
    gain = (0.15 * study[..., 4] + 0.03 * each[..., 2]).exp()[..., None, None, None]
    offset = (0.08 * study[..., 5] + 0.03 * each[..., 3])[..., None, None, None]
    images.mul_(gain).add_(offset)  # in place from here: a batch is larger than the caches
    noise = (
        torch.randn(images.shape, generator=generator).to(device) if device.type == "cpu" else torch.randn_like(images)
    )
    images.add_(noise.mul_((0.05 * study[..., 6].abs())[..., None, None, None]))
    kept = torch.rand(studies, slices, generator=generator).to(device) > 0.125 * min(strength, 1.0)
    kept = kept & mask
    return StudyBatch(images, batch.levels, torch.where(kept.any(1, keepdim=True), kept, mask))
