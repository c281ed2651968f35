"""Where networks train and predict, and in which number format: a GPU where there is one; bfloat16 where the processor
multiplies it faster than float32."""

from __future__ import annotations

import functools
from typing import Any

import torch


def accelerator() -> torch.device:
    """The GPU that this process uses (the first one that it sees), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def has_fast_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 by itself (AVX512-BF16 or AMX); False where torch cannot say."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def predicting(device: torch.device) -> torch.autocast:
    """Context in which convolutions on a CPU that has fast bfloat16 are computed in it; elsewhere nothing changes.

    The heart network then takes three quarters of the time (72 → 54 ms of one core a phantom study), and those of
    EMIDEC's five folds draw its 60 studies as well: medians of cavity, wall and anterior point 0.928, 0.839 and 7.7°,
    in float32 0.928, 0.838 and 7.5° [O]. So a prediction may differ a little between machines. Training is in
    float32, unless the setting ``bfloat16`` says otherwise.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=device.type == "cpu" and has_fast_bfloat16())


def trains_in_bfloat16(device: torch.device, asked: bool) -> bool:
    """Whether CLIP's training multiplies in bfloat16: on a GPU always, on a CPU where asked to and fast at it."""
    return device.type == "cuda" or (device.type == "cpu" and asked and has_fast_bfloat16())
