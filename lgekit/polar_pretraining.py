"""Myocardium segmentation in the polar view: how the polar slice encoder gets its first weights (encoder_init).

The paper's encoder starts from a network that was trained to segment the myocardium [S]; in the polar view the same
task is to find the wall's two borders again after the view has been shifted and stretched [O].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgekit.model import PolarEncoder, StudyBatch, in_parts
from lgekit.polar import INSIDE, OUTSIDE
from lgekit.precision import trains_in_bfloat16
from lgekit.settings import FitSettings
from lgekit.stages import REACH

STRIDE = 4  # of the polar encoder's body
LOOKS = 25_000  # slices seen in all: a large cohort teaches the wall in fewer rounds, and time stays bounded


def warp(images: Tensor, reach: tuple[float, float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift, stretch and bend the depths of `(n, 1, depth, angle)`; classes 0 cavity, 1 wall, 2 outside, as long."""
    count, _, depths, angles = images.shape
    draws = torch.randn(count, 8, generator=generator, device=images.device)
    angle = torch.arange(angles, device=images.device) * (2 * math.pi / angles)
    bend = sum((draws[:, k, None] * (angle * k + 3 * draws[:, k + 3, None]).cos() for k in (1, 2)), draws.new_zeros(()))
    rows = torch.linspace(-1, 1, depths, device=images.device)[:, None]
    rows = rows * (1 + 0.2 * draws[:, 6])[:, None, None] + (0.2 * draws[:, 7, None] + 0.1 * bend)[:, None]
    columns = torch.linspace(-1, 1, angles, device=images.device).expand(count, depths, angles)
    warped = F.grid_sample(images, torch.stack([columns, rows], -1), padding_mode="border", align_corners=True)
    depth = -reach[0] + (1 + sum(reach)) * ((rows + 1) / 2 * (depths - 1) + 0.5) / depths
    return warped, (depth >= 0).long() + (depth >= 1).long()


def pretrain_polar(batch: StudyBatch, settings: FitSettings, progress: bool = True) -> dict[str, Tensor]:
    """Weights of a `PolarEncoder` that finds the wall, on the batch's device; names as in its state dict.

    Args:
        batch: training studies, whose contours the view was made by. No label but these contours is used.
        settings: view, channels, batch size, seed, and ``polar_pretraining``, the most rounds over all slices; fewer
            where there are many, so that no more than ``LOOKS`` are looked at.
        progress: show a bar.
    """
    from tqdm.auto import trange

    images, reach = batch.images[batch.mask], REACH if settings.masks == "predicted" else (INSIDE, OUTSIDE)
    halved = trains_in_bfloat16(images.device, settings.bfloat16)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = PolarEncoder(settings.polar_channels).to(images.device)
        head = nn.Sequential(nn.Conv2d(encoder.out_channels, 3 * STRIDE**2, 1), nn.PixelShuffle(STRIDE)).to(
            images.device
        )
        weights = [*encoder.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=3e-3, fused=True)
        generator = torch.Generator(images.device).manual_seed(settings.seed)
        size, epochs = 8 * settings.batch_size, max(1, min(settings.polar_pretraining, LOOKS // len(images)))
        steps = epochs * math.ceil(len(images) / size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, max(steps, 2))
        for _ in trange(epochs, desc="first weights", unit="round", disable=not progress, leave=False):
            for index in torch.randperm(len(images)).split(size):
                pictures, classes = warp(images[index.to(images.device)], reach, generator)
                with torch.autocast(images.device.type, torch.bfloat16, enabled=halved):
                    logits = in_parts(lambda part: head(encoder.body(part)), pictures).float()
                logits = logits[..., : classes.shape[-2], : classes.shape[-1]]
                loss = F.cross_entropy(logits, classes[..., : logits.shape[-2], : logits.shape[-1]])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return encoder.state_dict()
