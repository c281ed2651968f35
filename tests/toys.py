"""Small studies, pairs and settings that several tests share."""

import numpy as np
import torch

from lgekit.anatomy.frame import View
from lgekit.clip.data import ImageTextPairs, batch_of
from lgekit.config import FitSettings
from lgekit.study import CAVITY, MYOCARDIUM, Landmarks, Study

TINY = {"width": 16, "polar_channels": 8, "embed_dim": 16, "text_width": 16, "text_layers": 1}
TINY |= {"depths": 12, "angles": 24, "context_length": 24, "dropout": 0.0, "batch_size": 8}
TINY |= {"synthetic_per_real": 0, "augment": 0.3}
WALLS = ("anterior", "inferior")
TEXTS = ["no scar", *(f"scar in the {wall} wall" for wall in WALLS)]


def toy(studies=16, seed=0, height=12, width=24, real=None):
    """Studies with a bright sector in slice 0 at one of two places, or none, and texts about it."""
    rng = np.random.default_rng(seed)
    views, texts = [], []
    for number in range(studies):
        slices = int(rng.integers(2, 5))
        image = torch.from_numpy(rng.normal(0, 0.1, (slices, 1, height, width)).astype(np.float32))
        kind = number % 3
        if kind:
            image[0, 0, 3:8, 12 * (kind - 1) + 2 : 12 * (kind - 1) + 8] += 1.5
        views.append(View(image, torch.linspace(0, 1, slices), np.arange(slices)))
        texts.append((TEXTS[kind],))
    return ImageTextPairs(batch_of(views), texts, real)


def settings(**changes):
    return FitSettings(**(TINY | changes))


def ring_study(
    anterior=120.0,
    inferior=240.0,
    spacing=(1.2, 1.2, 8.0),
    slices=9,
    flip_slices=False,
    size=112,
    **fields,
) -> Study:
    """A ring of known size: blood 200, wall 60, the rest 100, noise 4; with these landmarks."""
    rng = np.random.default_rng(4)
    x, y = np.indices((size, size)) - size / 2 + 0.5
    radius = np.hypot(x * spacing[0], y * spacing[1])
    outer = np.linspace(38, 26, slices)[:: -1 if flip_slices else 1]
    labels = np.where(radius[..., None] < outer, MYOCARDIUM, 0)
    labels = np.where(radius[..., None] < outer - 11, CAVITY, labels).astype(np.uint8)
    image = np.choose(labels, [100.0, 200.0, 60.0]) + rng.normal(0, 4, labels.shape)
    fields.setdefault("landmarks", Landmarks(anterior, inferior))
    return Study.from_arrays("ring", image.astype(np.float32), spacing, labels, **fields)
