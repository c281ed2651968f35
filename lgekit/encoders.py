"""Whether the networks can be built on an encoder that a user names: seen before anything is read or trained."""

from __future__ import annotations

from dataclasses import replace

from lgekit.errors import InputError
from lgekit.heartnet import SIZES
from lgekit.model import ImageEncoder
from lgekit.settings import FitSettings
from lgekit.unet import build_unet


def check_encoder(settings: FitSettings) -> None:
    """Build what the setting ``encoder`` shapes, and throw it away.

    Raises:
        InputError: timm knows no such network, or it gives no feature maps.
    """
    if settings.needs_heart:
        build_unet(replace(SIZES[settings.heart_size], encoder=settings.encoder), 0)
    if settings.frame == "image":
        try:
            ImageEncoder(settings.encoder)
        except InputError:
            raise
        except ValueError as error:  # of timm, for a name that looks like a path
            problem = f"{settings.encoder!r}: {' '.join(str(error).split())[:200]}"
            raise InputError("setting encoder", problem, "Give a name from timm.list_models()") from error
