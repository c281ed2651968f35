"""Studies with their texts as training takes them: drawn for each epoch, dealt into steps, each distinct text once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lgekit.model import StudyBatch, join
from lgekit.settings import FitSettings
from lgekit.tokenizer import ReportTokenizer


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
        cls, tokenizer: ReportTokenizer, device: torch.device, pairs: Pairs, synthetic: Pairs | None = None
    ) -> Store:
        """Studies and their texts on a device."""
        studies, everything = pairs.batch.to(device), [*pairs.texts, *(synthetic.texts if synthetic else [])]
        if synthetic:
            studies = join(studies, synthetic.batch.to(device))
        distinct = sorted({text for options in everything for text in options})
        number_of = {text: number for number, text in enumerate(distinct)}
        texts = [np.array([number_of[text] for text in options]) for options in everything]
        return cls(studies, len(pairs), texts, tokenizer(distinct).to(device))

    def batches(self, epoch: int, settings: FitSettings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`epoch_batches` of these studies."""
        yield from epoch_batches(epoch, self.real, len(self.texts) - self.real, self.texts, settings)

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
