"""Read studies by their similarity to prompts, explain the score, and write captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lgekit.clip.model import CoCa, ReportTokenizer, StudyBatch
from lgekit.findings import WALLS
from lgekit.reports.reader import read_report

PromptSets = Mapping[str, Mapping[str, Sequence[str]]]  # kind → label → sentences


@torch.no_grad()
def write_captions(
    model: CoCa,
    tokenizer: ReportTokenizer,
    batch: StudyBatch,
    encoded: tuple[Tensor, Tensor] | None = None,  # `StudyEncoder.slice_features`, if known
) -> list[str]:
    """Write captions of studies, always the likeliest next token, with a model in eval mode."""
    features, cells = encoded or model.visual.slice_features(batch)
    _, image_tokens = model.visual.embed(features, cells, batch.mask)
    text = torch.full((len(image_tokens), 1), tokenizer.start_id, device=image_tokens.device)
    ended = torch.zeros_like(text[:, 0], dtype=torch.bool)
    while text.shape[1] < tokenizer.context_length and not ended.all():
        _, words = model.text_and_tokens(text)
        logits = model.text_decoder(image_tokens, words)[:, -1]
        logits[:, [tokenizer.pad_id, tokenizer.start_id]] = -math.inf
        token = logits.argmax(-1).masked_fill(ended, tokenizer.pad_id)
        text, ended = torch.cat([text, token[:, None]], -1), ended | (token == tokenizer.end_id)
    return [tokenizer.decode(own) for own in text]


class Reading(NamedTuple):
    """What prompts say about studies: log-odds against "no enhancement", not calibrated."""

    presence: np.ndarray  # (studies,)
    walls: np.ndarray  # (studies, labels), as levels and depths, in the order of the prompts
    levels: np.ndarray
    depths: np.ndarray
    slices: np.ndarray  # (studies, slices) presence in each slice, read alone; NaN for padding
    slice_walls: np.ndarray  # (studies, slices, labels) likewise
    attention: np.ndarray  # (studies, slices) share in the study embedding; sums to 1

    def rows(self, index: np.ndarray) -> Reading:
        """The reading of some of the studies."""
        return Reading(*(values[index] for values in self))

    def by_slices(self) -> Reading:
        """The same, with presence and walls as the mean over the slices that were read alone."""
        own = {"presence": np.nanmean(self.slices, 1), "walls": np.nanmean(self.slice_walls, 1)}
        return self._replace(**own)

    @staticmethod
    def merge(function: Callable[[list], np.ndarray], readings: Sequence[Reading]) -> Reading:
        """Apply a function to the values of each attribute of some readings."""
        return Reading(*(function(list(values)) for values in zip(*readings, strict=True)))


def pooled(logits: Tensor) -> Tensor:
    """Log of the mean exponential over the last axis: the score of a prompt ensemble."""
    return logits.logsumexp(-1) - math.log(logits.shape[-1])


@torch.no_grad()
def read_studies(
    model: CoCa,
    tokenizer: ReportTokenizer,
    batch: StudyBatch,
    prompts: PromptSets,
    features: Tensor | None = None,  # of `StudyEncoder.slice_features`, if known
) -> Reading:
    """Read studies by their similarity to prompts, from images alone, with a model in eval mode."""
    scale = model.logit_scale.exp()
    texts = {
        kind: {label: model.encode_text(tokenizer(own)) for label, own in labels.items()}
        for kind, labels in prompts.items()
    }
    positive, negative = (texts["presence"][name] for name in ("positive", "negative"))

    def log_odds(embedded: Tensor, texts: Iterable[Tensor]) -> Tensor:
        absent = pooled(scale * embedded @ negative.T)
        return torch.stack([pooled(scale * embedded @ text.T) - absent for text in texts], -1)

    if features is None:
        features, _ = model.visual.slice_features(batch)
    embedded, attention, _ = model.visual.pool(features, batch.mask)
    image, padding = F.normalize(embedded, dim=-1), ~batch.mask[..., None]
    each = F.normalize(model.visual.each_slice(features), dim=-1)
    found = [log_odds(image, [positive])[..., 0]]
    found += [log_odds(image, texts[kind].values()) for kind in ("wall", "level", "depth")]
    slices = log_odds(each, [positive]).masked_fill(padding, math.nan)
    walls = log_odds(each, texts["wall"].values()).masked_fill(padding, math.nan)
    found += [slices[..., 0], walls, attention]
    return Reading(*(values.numpy().astype(float) for values in found))


Platt = tuple[float, float]  # slope and offset
SixPlatts = Annotated[Sequence[Platt], Field(min_length=6, max_length=6)]  # of the walls


@dataclass(frozen=True)
class Calibration:
    """Platt scaling (Platt 1999): probability = sigmoid(slope · score + offset).

    No report says which slices have scar: the largest score among the slices of a study is
    calibrated on what its report says, as in multiple-instance learning.
    """

    presence: Platt = (1.0, 0.0)  # of a study
    walls: SixPlatts = ((1.0, 0.0),) * 6
    slices: Platt = (1.0, 0.0)  # of each slice, read alone
    slice_walls: SixPlatts = ((1.0, 0.0),) * 6

    @classmethod
    def fit(cls, reading: Reading, reports: Iterable[str]) -> Calibration:
        """Fit on the *reports* of studies that the networks were not trained on.

        A report of scar without a place does not calibrate the walls.
        """
        read = [read_report(report) for report in reports]
        present = np.array([one.present for one in read], bool)
        said = np.array([[wall in one.walls for one in read] for wall in WALLS], bool)
        placed = said.any(0) | ~present
        largest, found = np.nanmax(reading.slices, 1), []
        for scores in (reading.walls, np.nanmax(reading.slice_walls, 1)):
            own = zip(scores[placed].T, said[:, placed], strict=True)
            found.append([platt(*pair) for pair in own])
        return cls(platt(reading.presence, present), found[0], platt(largest, present), found[1])


def platt(scores: np.ndarray, truth: np.ndarray) -> Platt:
    """Slope and offset of a logistic regression on one score with balanced classes, so that 0.5 is
    the best threshold for balanced accuracy. With one class only they are 1 and 0."""
    from sklearn.linear_model import LogisticRegression

    if len(set(truth.tolist())) < 2:
        return 1.0, 0.0
    centre, spread = float(np.mean(scores)), float(np.std(scores)) or 1.0
    scaled = ((scores - centre) / spread)[:, None]
    model = LogisticRegression(C=3.0, class_weight="balanced").fit(scaled, truth)
    slope = max(float(model.coef_[0, 0]), 1e-3) / spread  # calibration never reverses a score
    return slope, float(model.intercept_[0]) - slope * centre


def probability(scores: np.ndarray, pair: Platt | np.ndarray) -> np.ndarray:
    """Platt's sigmoid of scores; an array of slopes and one of offsets fit the last axis."""
    return 1 / (1 + np.exp(-np.clip(pair[0] * scores + pair[1], -60, 60)))


@torch.no_grad()
def occlusion_map(
    model: CoCa,
    tokenizer: ReportTokenizer,
    study: StudyBatch,
    positive: Sequence[str],
    negative: Sequence[str],
    patch: tuple[int, int] = (6, 9),
) -> np.ndarray:
    """Drop in the score of sentences for one study when a patch (height, width) is set to 0, the
    signal of remote myocardium (Zeiler 2014, arXiv 1311.2901), with a model in eval mode.

    The score of the sentences ``negative`` is subtracted. Returns `(slices, height, width)`
    float32, in logits; positive where a patch supports the sentences ``positive``.
    """
    images, levels, mask = study
    slices, _, height, width = images.shape[1:]
    sought, other = (model.encode_text(tokenizer(own)) for own in (positive, negative))
    features, _ = model.visual.slice_features(study)

    def score(features: Tensor) -> Tensor:  # (n, slices, width)
        embedded, *_ = model.visual.pool(features, mask.expand(len(features), -1))
        logits = model.logit_scale.exp() * F.normalize(embedded, dim=-1)
        return pooled(logits @ sought.T) - pooled(logits @ other.T)

    tops, lefts = range(0, height, patch[0]), range(0, width, patch[1])
    areas = [np.s_[y : y + patch[0], x : x + patch[1]] for y in tops for x in lefts]
    drops, whole = torch.zeros(slices, height, width), score(features)
    for number in range(slices):
        occluded = images[0, number].repeat(len(areas), 1, 1, 1)  # (patches, 1, height, width)
        for image, area in zip(occluded, areas, strict=True):
            image[0][area] = 0
        level = levels[:, number].expand(len(areas))[:, None]
        alone = StudyBatch(occluded[:, None], level, mask.new_ones(len(areas), 1))
        changed = features.repeat(len(areas), 1, 1)
        changed[:, number] = model.visual.slice_features(alone)[0][:, 0]
        for drop, area in zip(whole - score(changed), areas, strict=True):
            drops[number][area] = drop
    return drops.numpy()
