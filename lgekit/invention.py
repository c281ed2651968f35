"""Invented appearance: what a heart would look like in another sequence, coil or body, drawn from its labels alone.

A network that has seen phantoms only knows the phantom's look. Here blood, muscle, scar and surroundings get random
intensities and textures, so that only shape is left to learn from (SynthSeg: Billot 2023,
doi:10.1016/j.media.2023.102789).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lgekit.views import uniform


def invent_appearance(images: Tensor, labels: Tensor, share: float, rng: torch.Generator, wrap: bool = False) -> Tensor:
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
    chosen = torch.nonzero(uniform(0, 1, len(images), rng) < share)[:, 0] if share else torch.zeros(0)
    if not len(chosen):
        return images
    everything, images, labels = images, images[chosen], labels[chosen]
    count, channels, *shape = images.shape

    def field(cells: int, kinds: int = 1) -> Tensor:
        coarse = torch.randn(count * channels, kinds, cells, cells, generator=rng, device=rng.device)
        if wrap:
            coarse = torch.cat([coarse, coarse[..., :1]], dim=3)
        fine = functional.interpolate(coarse, (shape[0], shape[1] + wrap), mode="bilinear", align_corners=True)
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
    drawn = functional.avg_pool2d(functional.pad(drawn, (0, 0, 1, 1), mode="replicate"), 3, stride=1)
    return everything.index_copy(0, chosen, (images + each(0.6, 1) * (drawn - images)).clamp(0, 1))
