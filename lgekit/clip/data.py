"""Image-text pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lgekit.anatomy.polar import (
    EVEN_INSIDE,
    EVEN_OUTSIDE,
    PolarGrid,
    View,
    image_view,
    polar_grid,
)
from lgekit.clip.model import (
    StudyBatch,
    join,
    pad_studies,
)
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.config import FitSettings
from lgekit.study import Study


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
        waves = [
            each[..., k, None] * (angle * k + each[..., 4 + k, None] * 3).cos() for k in (1, 2, 3)
        ]
        wobble = torch.stack(waves).sum(0)
        shift = 0.05 * study[..., 0] + 0.05 * each[..., 0]
        rows = vertical * (1 + 0.05 * each[..., 4] + 0.05 * study[..., 1])[..., None, None]
        rows = rows + shift[..., None, None] + 0.04 * wobble[..., None, :]
        turn = (
            8.0 / 360 * study[..., 2] + 2.0 / 360 * each[..., 5]
        ) * width  # in angle samples, circular
        columns = (torch.arange(width, device=device) + turn[..., None, None]) % width
        flat = torch.cat([flat, flat[..., :1]], -1)  # (…, width + 1): the circle closed
        columns = columns * (2 / width) - 1
        grid = torch.stack(torch.broadcast_tensors(columns, rows), -1)
    else:
        horizontal = torch.linspace(-1, 1, width, device=device)[None]
        turn = (math.radians(7) * study[..., 2])[..., None, None]
        scale = (1 + 0.06 * study[..., 3])[..., None, None]
        columns = (
            scale * (horizontal * turn.cos() - vertical * turn.sin())
            + 0.03 * each[..., 0, None, None]
        )
        rows = (
            scale * (horizontal * turn.sin() + vertical * turn.cos())
            + 0.03 * each[..., 1, None, None]
        )
        grid = torch.stack(torch.broadcast_tensors(columns, rows), -1).expand(
            studies, slices, height, width, 2
        )
    grid = grid.flatten(0, 1).to(flat.dtype)
    flat = F.grid_sample(flat, grid, padding_mode="border", align_corners=True)
    images = flat.unflatten(0, (studies, slices))
    gain = (0.15 * study[..., 4] + 0.03 * each[..., 2]).exp()[..., None, None, None]
    offset = (0.08 * study[..., 5] + 0.03 * each[..., 3])[..., None, None, None]
    images.mul_(gain).add_(offset)  # in place from here: a batch is larger than the caches
    noise = (
        torch.randn(images.shape, generator=generator).to(device)
        if device.type == "cpu"
        else torch.randn_like(images)
    )
    images.add_(noise.mul_((0.05 * study[..., 6].abs())[..., None, None, None]))
    kept = torch.rand(studies, slices, generator=generator).to(device) > 0.125 * min(strength, 1.0)
    kept = kept & mask
    return StudyBatch(images, batch.levels, torch.where(kept.any(1, keepdim=True), kept, mask))


@dataclass(frozen=True)
class Pairs:
    """Studies with their texts, ready to train on.

    Attributes:
        batch: all studies, padded to the longest.
        texts: for each study the texts that are true of it; the contrastive loss draws one of them anew in each epoch,
            the caption is the first.
    """

    batch: StudyBatch
    texts: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.texts)


def dealt(rng: np.random.Generator, *groups: Pairs) -> list[Pairs]:
    """The same studies with one another's texts, dealt over all groups: the control that must fall to chance."""
    texts = [options for group in groups for options in group.texts]
    order, given = rng.permutation(len(texts)), []
    for group in groups:
        own, order = order[: len(group)], order[len(group) :]
        given.append(Pairs(group.batch, [texts[number] for number in own]))
    return given


@dataclass(frozen=True)
class Store:
    """Studies on the device that trains, the real ones first, with each distinct text once. Make it with `Store.of`.

    Attributes:
        studies: real and synthetic ones.
        real: how many are real.
        texts: for each study the numbers of its texts, rows of ``tokens``.
        tokens: `(texts, length)`.
    """

    studies: StudyBatch
    real: int
    texts: list[np.ndarray]
    tokens: Tensor

    @classmethod
    def of(
        cls,
        tokenizer: ReportTokenizer,
        device: torch.device,
        pairs: Pairs,
        synthetic: Pairs | None = None,
    ) -> Store:
        """Studies and their texts on a device."""
        studies, everything = (
            pairs.batch.to(device),
            [*pairs.texts, *(synthetic.texts if synthetic else [])],
        )
        if synthetic:
            studies = join(studies, synthetic.batch.to(device))
        distinct = sorted({text for options in everything for text in options})
        number_of = {text: number for number, text in enumerate(distinct)}
        texts = [np.array([number_of[text] for text in options]) for options in everything]
        return cls(studies, len(pairs), texts, tokenizer(distinct).to(device))

    def batches(self, epoch: int, settings: FitSettings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`epoch_batches` of these studies."""
        yield from epoch_batches(
            epoch, self.real, len(self.texts) - self.real, self.texts, settings
        )

    def step_inputs(
        self, index: np.ndarray, chosen: np.ndarray, captions: bool
    ) -> tuple[StudyBatch, Tensor, Tensor, Tensor | None, Tensor]:
        """What a step needs: the studies, the distinct texts' tokens, which of them is each study's, which its caption
        (None without captions), and the number of each study's text in the whole store."""
        device = self.tokens.device
        unique, where = distinct_texts(index, chosen, self.texts, captions)
        which = torch.from_numpy(where).to(device)
        words = self.tokens[torch.from_numpy(unique).to(device)]
        studies = self.studies.rows(torch.from_numpy(index).to(device))
        own, rest = which[: len(index)], which[len(index) :] if captions else None
        return studies, words, own, rest, torch.from_numpy(chosen).to(device)


def epoch_batches(
    epoch: int, real: int, synthetic: int, texts: Sequence[np.ndarray], settings: FitSettings
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Study indices and text ids of each step of an epoch: all real studies, the synthetic drawn anew."""
    rng = np.random.default_rng([settings.seed, epoch])
    take = min(round(settings.synthetic_per_real * real), synthetic)
    index = np.concatenate([np.arange(real), real + rng.permutation(synthetic)[:take]])
    index = rng.permutation(index)
    chosen = np.array([texts[study][rng.integers(len(texts[study]))] for study in index])
    parts = max(1, math.ceil(len(index) / settings.batch_size))
    yield from zip(np.array_split(index, parts), np.array_split(chosen, parts), strict=True)


def distinct_texts(
    index: np.ndarray, chosen: np.ndarray, texts: Sequence[np.ndarray], captions: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct text ids of a step, and where in them the contrastive texts of the studies stand, then their captions
    (a study's first text)."""
    full = np.array([texts[study][0] for study in index] if captions else [], dtype=int)
    unique, where = np.unique(np.concatenate([chosen, full]), return_inverse=True)
    return unique, where


REACH = (EVEN_INSIDE, EVEN_OUTSIDE)


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


even_wall_grid, _along = view_grid, PolarGrid.study_view  # the old names, for lgekit.clip.fit


def batch_of(views: Sequence[View]) -> StudyBatch:
    """Views as one padded batch."""
    return pad_studies([(view.images, view.levels) for view in views])


def chunks(batch: StudyBatch, size: int = 64) -> list[StudyBatch]:
    """A batch in parts."""
    return [batch.rows(slice(start, start + size)) for start in range(0, len(batch.mask), size)]
