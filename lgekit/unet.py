"""The heart network's U-Net and its encoder, by timm's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lgekit.canvas import CLASSES
from lgekit.errors import InputError

if TYPE_CHECKING:
    from lgekit.heartnet import HeartSettings

FIELD = 4  # channels of the angle field


def build_encoder(name: str) -> nn.Module:
    """A timm encoder with one input channel and random weights: the U-Net's, and the CLIP vision tower's.

    Its ``forward_features`` of ``(B, 1, H, W)`` are the deepest features that the U-Net's decoder gets.

    Raises:
        InputError: timm knows no such network.
    """
    import timm

    try:
        return timm.create_model(name, pretrained=False, in_chans=1, num_classes=0, global_pool="")
    except (RuntimeError, ValueError) as error:
        raise InputError("encoder", f"{name!r}: {error}", "Give a name from timm.list_models()") from error


def build_unet(settings: HeartSettings, seed: int) -> nn.Module:
    """U-Net ``(B, 1, h, h)`` → ``(B, 8, h, h)``: class logits, angle field. Random weights from the seed.

    Raises:
        InputError: timm knows no such encoder, or a U-Net cannot be built on it.
    """
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.base import SegmentationHead

    channels = CLASSES + FIELD
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            unet = smp.Unet(
                encoder_name=f"tu-{settings.encoder}",
                encoder_weights=None,  # the default would download
                in_channels=1,
                decoder_channels=(*settings.decoder, 8),
            )
        except (RuntimeError, ValueError) as error:
            problem = f"{settings.encoder!r}: {' '.join(str(error).split())[:200]}"
            remedy = "Give a convolutional network of timm.list_models(), e.g. regnetx_002 or resnet34"
            raise InputError("setting encoder", problem, remedy) from error
        # the last block, at full resolution and without a skip connection, costs as much as all others together
        unet.decoder.blocks = unet.decoder.blocks[:-1]
        unet.segmentation_head = SegmentationHead(settings.decoder[-1], channels, kernel_size=3, upsampling=2)
    return unet.to(memory_format=torch.channels_last)
