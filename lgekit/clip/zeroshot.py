"""Read studies by prompts, and write captions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lgekit.clip.model import CoCaModel, StudyBatch
from lgekit.clip.tokenizer import ReportTokenizer


@torch.no_grad()
def write_captions(
    model: CoCaModel,
    tokenizer: ReportTokenizer,
    batch: StudyBatch,
    beams: int = 1,
    longest: int | None = None,
    encoded: tuple[Tensor, Tensor] | None = None,
) -> list[str]:
    """Captions by greedy (``beams=1``) or beam decoding.

    Args:
        model: a CoCa in eval mode.
        batch: the studies.
        beams: kept hypotheses, those with the largest mean log-probability of their tokens: by the sum, short ones
            would win.
        longest: most tokens; the context length if None.
        encoded: what `StudyEncoder.slice_features` gave of the batch, where that is known.
    """
    encoded = encoded if encoded is not None else model.visual.slice_features(batch)
    _, image_tokens = model.visual.embed(*encoded, batch.mask)
    studies, device = len(image_tokens), image_tokens.device
    longest = min(longest or tokenizer.context_length, tokenizer.context_length)
    text = torch.full(
        (studies, 1, 1), tokenizer.start_id, device=device
    )  # (studies, beams, length)
    score = torch.zeros(studies, 1, device=device)
    for _ in range(longest - 1):
        kept = text.shape[1]
        flat = text.flatten(0, 1)
        _, embedded = model._encode_text(flat)
        logits = model.text_decoder(image_tokens.repeat_interleave(kept, 0), embedded)[:, -1]
        log_p = logits.log_softmax(-1)
        log_p[:, [tokenizer.pad_id, tokenizer.start_id]] = float("-inf")
        ended = (flat == tokenizer.end_id).any(1)
        log_p[ended] = float("-inf")
        log_p[ended, tokenizer.pad_id] = 0.0
        total = (score[..., None] + log_p.unflatten(0, (studies, kept))).flatten(1)
        lengths = (text != tokenizer.pad_id).sum(-1) - ended.unflatten(
            0, (studies, kept)
        ).int()  # start not counted
        means = total / lengths.repeat_interleave(log_p.shape[1], 1)
        best = means.topk(min(beams, total.shape[1]), 1).indices
        score = total.gather(1, best)
        parent, token = best // log_p.shape[1], best % log_p.shape[1]
        text = torch.cat(
            [text.gather(1, parent[..., None].expand(-1, -1, text.shape[2])), token[..., None]], -1
        )
        if ((text == tokenizer.end_id).any(-1)).all():
            break
    lengths = (text != tokenizer.pad_id).sum(-1) - 1
    best = (score / lengths).argmax(1)
    return [tokenizer.decode(text[study, best[study]]) for study in range(studies)]


PromptSets = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class Reading:
    """What prompts say about studies; log-odds against "no enhancement", not calibrated.

    Attributes:
        presence: `(studies,)`.
        walls: `(studies, labels)`, in the order of the prompts.
        levels: likewise.
        depths: likewise.
        slices: `(studies, slices)` presence of each slice as if it were the whole study; NaN where padding.
        slice_walls: `(studies, slices, labels)` each wall in each slice, likewise; NaN where padding.
        attention: `(studies, slices)` share of each slice in the study embedding; sums to 1.
    """

    presence: np.ndarray
    walls: np.ndarray
    levels: np.ndarray
    depths: np.ndarray
    slices: np.ndarray
    slice_walls: np.ndarray
    attention: np.ndarray

    def rows(self, index: np.ndarray) -> Reading:
        """The reading of some of the studies."""
        return Reading(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @classmethod
    def mean(cls, readings: Sequence[Reading]) -> Reading:
        """The mean of several networks' readings of the same studies."""
        return cls(
            *(
                np.mean([getattr(one, name) for one in readings], axis=0)
                for name in cls.__dataclass_fields__
            )
        )


def pooled(logits: Tensor) -> Tensor:
    """Log of the mean exponential over the last axis: the score of a prompt ensemble, whatever its size."""
    return logits.logsumexp(-1) - math.log(logits.shape[-1])


@torch.no_grad()
def read_studies(
    model: CoCaModel,
    tokenizer: ReportTokenizer,
    batch: StudyBatch,
    prompts: PromptSets,
    chunk: int = 64,
    features: Tensor | None = None,
) -> Reading:
    """Read studies by their similarity to prompts; nothing but images goes in.

    Args:
        model: a CoCa in eval mode.
        tokenizer: its tokenizer.
        batch: the studies.
        prompts: kind → label → sentences (`lgekit.reports.training_texts.prompt_sets`).
        chunk: studies at a time.
        features: of the batch's slices, as `StudyEncoder.slice_features` gives them, where they are known.
    """
    scale = model.logit_scale.exp()
    words = {
        kind: [
            model.encode_text(tokenizer(list(texts)).to(scale.device)) for texts in labels.values()
        ]
        for kind, labels in prompts.items()
    }
    positive, negative = (
        words["presence"][list(prompts["presence"]).index(name)]
        for name in ("positive", "negative")
    )
    parts: list[Reading] = []
    for start in range(0, len(batch.mask), chunk):
        rows = slice(start, start + chunk)
        some = batch.rows(rows).to(scale.device)
        own = features[rows] if features is not None else model.visual.slice_features(some)[0]
        embedded, attention = model.visual.pool(own, some.mask)
        image, each = (
            F.normalize(embedded, dim=-1),
            F.normalize(model.visual.each_slice(own), dim=-1),
        )

        def score(features: Tensor, text: Tensor) -> Tensor:
            return pooled(scale * features @ text.T)

        absent = score(image, negative)
        kinds = [
            torch.stack([score(image, text) - absent for text in words[kind]], -1)
            for kind in ("wall", "level", "depth")
        ]
        absent_each = score(each, negative).masked_fill(~some.mask, math.nan)
        slice_walls = torch.stack([score(each, text) - absent_each for text in words["wall"]], -1)
        slices = score(each, positive) - absent_each
        found = [score(image, positive) - absent, *kinds, slices, slice_walls, attention]
        parts.append(Reading(*(part.float().cpu().numpy().astype(float) for part in found)))
    return Reading(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in Reading.__dataclass_fields__
        )
    )


@dataclass(frozen=True)
class Calibration:
    """Platt scaling (Platt 1999): probability = sigmoid(slope · score + offset), for presence and each wall.

    Attributes:
        presence: ``(slope, offset)``.
        walls: one pair a wall.
        slices: one pair.
    """

    presence: tuple[float, float] = (1.0, 0.0)
    walls: tuple[tuple[float, float], ...] = ((1.0, 0.0),) * 6
    slices: tuple[float, float] = (1.0, 0.0)

    @classmethod
    def fit(
        cls,
        reading: Reading,
        present: Sequence[bool],
        walls: np.ndarray,
        placed: np.ndarray | None = None,
    ) -> Calibration:
        """Fit on studies that the networks were not trained on, against what their *reports* say.

        Both classes weigh the same, so that 0.5 is the threshold of the best balanced accuracy: the probability is
        that of a population with as many positive studies as negative ones. With one class only, the prompts'
        own zero stays the threshold.

        Args:
            reading: scores.
            present: `(studies,)`, presence as read in the reports.
            walls: `(studies, 6)` bool, likewise.
            placed: `(studies,)` bool, whether the report tells the walls; the others do not fit these. None: all do.
        """
        presence = platt(reading.presence, np.asarray(present, bool))
        known = np.ones(len(walls), bool) if placed is None else placed
        columns = range(walls.shape[1])
        per_wall = tuple(
            platt(reading.walls[known, number], walls[known, number]) for number in columns
        )
        return cls(presence, per_wall, presence)


def platt(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Slope and offset of a logistic regression on one score, classes balanced; the identity with one class only."""
    from sklearn.linear_model import LogisticRegression

    if len(set(truth.tolist())) < 2:
        return 1.0, 0.0
    centre, spread = float(np.mean(scores)), float(np.std(scores)) or 1.0
    model = LogisticRegression(C=3.0, class_weight="balanced").fit(
        ((scores - centre) / spread)[:, None], truth
    )
    slope = max(float(model.coef_[0, 0]), 1e-3) / spread
    return slope, float(model.intercept_[0]) - slope * centre


def probability(scores: np.ndarray, pair: tuple[float, float]) -> np.ndarray:
    """Platt's sigmoid."""
    return 1 / (1 + np.exp(-np.clip(pair[0] * scores + pair[1], -60, 60)))


@torch.no_grad()
def heat_map(
    model: CoCaModel,
    tokenizer: ReportTokenizer,
    study: StudyBatch,
    positive: Sequence[str],
    negative: Sequence[str] = (),
    patch: tuple[int, int] = (6, 9),
    only: int | None = None,
) -> np.ndarray:
    """Where a sentence is seen, without gradients: how much its score falls when a patch is painted over.

    A patch is set to 0, the signal of remote myocardium (occlusion, Zeiler 2014, arXiv 1311.2901).

    Args:
        model, tokenizer: a CoCa in eval mode.
        study: one study, `(1, slices, 1, height, width)`.
        positive: sentences looked for.
        negative: sentences to set against them; none: similarity alone.
        patch: height and width in pixels of the view.
        only: paint over this slice alone; 0 in the others.

    Returns:
        `(slices, height, width)` float32: fall of the score in logits; positive where the patch speaks for it.
    """
    study = study.to(model.logit_scale.device)
    images, levels, mask = study
    slices, _, height, width = images.shape[1:]
    sought = model.encode_text(tokenizer(list(positive)).to(mask.device))
    other = model.encode_text(tokenizer(list(negative)).to(mask.device)) if negative else None
    features, _ = model.visual.slice_features(study)

    def score(some: Tensor) -> Tensor:  # (n, slices, width) slice features
        embedded, _ = model.visual.pool(some, mask.expand(len(some), -1))
        logits = model.logit_scale.exp() * F.normalize(embedded, dim=-1)
        against = pooled(logits @ other.T) if other is not None else 0.0
        return pooled(logits @ sought.T) - against

    whole = score(features)
    tops, lefts = range(0, height, patch[0]), range(0, width, patch[1])
    fall = torch.zeros(slices, height, width)
    for number in range(slices) if only is None else (only,):
        hidden = images[0, number].repeat(
            len(tops) * len(lefts), 1, 1, 1
        )  # (patches, 1, height, width)
        places = [(top, left) for top in tops for left in lefts]
        for place, (top, left) in enumerate(places):
            hidden[place, :, top : top + patch[0], left : left + patch[1]] = 0
        alone = StudyBatch(
            hidden[:, None],
            levels[:, number].expand(len(places))[:, None],
            mask.new_ones(len(places), 1),
        )
        changed, _ = model.visual.slice_features(alone)
        every = features.repeat(len(places), 1, 1)
        every[:, number] = changed[:, 0]
        drop = whole - score(every)
        for place, (top, left) in enumerate(places):
            fall[number, top : top + patch[0], left : left + patch[1]] = drop[place]
    return fall.numpy()
