"""Read studies by their similarity to prompts, explain the score, and write captions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lgekit.clip.data import CHUNK, chunks
from lgekit.clip.model import CoCa, StudyBatch
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.findings import WALLS
from lgekit.reports.reader import read_report

PromptSets = Mapping[str, Mapping[str, Sequence[str]]]  # kind → label → sentences


@torch.no_grad()
def write_captions(
    model: CoCa,
    tokenizer: ReportTokenizer,
    batch: StudyBatch,
    beams: int = 1,
    encoded: tuple[Tensor, Tensor] | None = None,
) -> list[str]:
    """Write captions of studies by greedy (``beams=1``) or beam decoding.

    Beams keep the largest mean log-probability per token; the sum would favour short captions.
    ``encoded`` is the result of `StudyEncoder.slice_features`, if it is known. The model must be in
    eval mode.
    """
    encoded = encoded if encoded is not None else model.visual.slice_features(batch)
    _, image_tokens = model.visual.embed(*encoded, batch.mask)
    studies, device = len(image_tokens), image_tokens.device
    text = torch.full((studies, 1, 1), tokenizer.start_id, device=device)  # (…, beams, length)
    score = torch.zeros(studies, 1, device=device)
    for _ in range(tokenizer.context_length - 1):
        kept = text.shape[1]
        flat = text.flatten(0, 1)
        _, words = model.text_and_tokens(flat)
        logits = model.text_decoder(image_tokens.repeat_interleave(kept, 0), words)[:, -1]
        log_p = logits.log_softmax(-1)
        log_p[:, [tokenizer.pad_id, tokenizer.start_id]] = -math.inf
        ended = (flat == tokenizer.end_id).any(1)
        log_p[ended] = -math.inf
        log_p[ended, tokenizer.pad_id] = 0.0
        total = (score[..., None] + log_p.unflatten(0, (studies, kept))).flatten(1)
        lengths = (text != tokenizer.pad_id).sum(-1)  # the start token counts for the new one
        lengths = lengths - ended.unflatten(0, (studies, kept)).int()
        means = total / lengths.repeat_interleave(log_p.shape[1], 1)
        best = means.topk(min(beams, total.shape[1]), 1).indices
        score = total.gather(1, best)
        parent, token = best // log_p.shape[1], best % log_p.shape[1]
        before = text.gather(1, parent[..., None].expand(-1, -1, text.shape[2]))
        text = torch.cat([before, token[..., None]], -1)
        if ((text == tokenizer.end_id).any(-1)).all():
            break
    lengths = (text != tokenizer.pad_id).sum(-1) - 1
    best = (score / lengths).argmax(1)
    return [tokenizer.decode(text[study, best[study]]) for study in range(studies)]


@dataclass(frozen=True)
class Reading:
    """What prompts say about studies: log-odds against "no enhancement", not calibrated.

    Attributes:
        presence: `(studies,)`.
        walls, levels, depths: `(studies, labels)`, in the order of the prompts.
        slices: `(studies, slices)` presence in each slice, read on its own; NaN for padding.
        slice_walls: `(studies, slices, labels)` each wall in each slice, likewise.
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
        return Reading.merge(lambda parts: parts[0][index], [self])

    @staticmethod
    def mean(readings: Sequence[Reading]) -> Reading:
        """The mean of several networks' readings of the same studies."""
        return Reading.merge(lambda parts: np.mean(parts, axis=0), readings)

    @staticmethod
    def merge(function: Callable[[list], np.ndarray], readings: Sequence[Reading]) -> Reading:
        """Apply a function to the values of each attribute of some readings."""
        names = [field.name for field in fields(Reading)]
        return Reading(*(function([getattr(one, name) for one in readings]) for name in names))


def pooled(logits: Tensor) -> Tensor:
    """Log of the mean exponential over the last axis: the score of a prompt ensemble."""
    return logits.logsumexp(-1) - math.log(logits.shape[-1])


@torch.no_grad()
def read_studies(
    model: CoCa,
    tokenizer: ReportTokenizer,
    batch: StudyBatch,
    prompts: PromptSets,
    features: Tensor | None = None,
) -> Reading:
    """Read studies by their similarity to prompts, from images alone.

    Args:
        model, tokenizer: the model is in eval mode.
        batch: the studies.
        prompts: as `lgekit.reports.training_texts.prompt_sets` gives them.
        features: slice features of the batch (`StudyEncoder.slice_features`), if they are known.
    """
    scale, parts = model.logit_scale.exp(), []
    texts = {
        kind: {label: model.encode_text(tokenizer(list(own))) for label, own in labels.items()}
        for kind, labels in prompts.items()
    }
    presence = texts["presence"]

    def log_odds(embedded: Tensor, texts: Iterable[Tensor]) -> Tensor:
        absent = pooled(scale * embedded @ presence["negative"].T)
        return torch.stack([pooled(scale * embedded @ text.T) - absent for text in texts], -1)

    known = features.split(CHUNK) if features is not None else itertools.repeat(None)
    for part, own in zip(chunks(batch), known, strict=False):
        if own is None:
            own, _ = model.visual.slice_features(part)
        embedded, attention = model.visual.pool(own, part.mask)
        image, padding = F.normalize(embedded, dim=-1), ~part.mask[..., None]
        each = F.normalize(model.visual.each_slice(own), dim=-1)
        found = [log_odds(image, [presence["positive"]])[..., 0]]
        found += [log_odds(image, texts[kind].values()) for kind in ("wall", "level", "depth")]
        slices = log_odds(each, [presence["positive"]]).masked_fill(padding, math.nan)
        walls = log_odds(each, texts["wall"].values()).masked_fill(padding, math.nan)
        found += [slices[..., 0], walls, attention]
        parts.append(Reading(*(values.numpy().astype(float) for values in found)))
    return Reading.merge(np.concatenate, parts)


@dataclass(frozen=True)
class Calibration:
    """Platt scaling (Platt 1999): probability = sigmoid(slope · score + offset).

    Attributes:
        presence: ``(slope, offset)``.
        walls: one pair for each wall.
        slices: one pair.
    """

    presence: tuple[float, float] = (1.0, 0.0)
    walls: tuple[tuple[float, float], ...] = ((1.0, 0.0),) * 6
    slices: tuple[float, float] = (1.0, 0.0)

    @classmethod
    def fit(cls, reading: Reading, reports: Iterable[str]) -> Calibration:
        """Fit on the *reports* of studies that the networks were not trained on.

        Classes are balanced, so that 0.5 is the threshold of the best balanced accuracy. A report
        of scar without a place does not calibrate the walls.
        """
        found = [read_report(report) for report in reports]
        present = np.array([one.present for one in found])
        placed = np.array([bool(one.walls) or not one.present for one in found])
        walls = []
        for number, wall in enumerate(WALLS):
            truth = np.array([wall in one.walls for one in found])
            walls.append(platt(reading.walls[placed, number], truth[placed]))
        presence = platt(reading.presence, present)
        return cls(presence, tuple(walls), presence)


def platt(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Slope and offset of a logistic regression on one score, with balanced classes.

    With one class only they are 1 and 0: the threshold stays the prompts' own zero.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(truth.tolist())) < 2:
        return 1.0, 0.0
    centre, spread = float(np.mean(scores)), float(np.std(scores)) or 1.0
    scaled = ((scores - centre) / spread)[:, None]
    model = LogisticRegression(C=3.0, class_weight="balanced").fit(scaled, truth)
    slope = max(float(model.coef_[0, 0]), 1e-3) / spread  # calibration never reverses a score
    return slope, float(model.intercept_[0]) - slope * centre


def probability(scores: np.ndarray, pair: tuple[float, float]) -> np.ndarray:
    """Platt's sigmoid of scores."""
    return 1 / (1 + np.exp(-np.clip(pair[0] * scores + pair[1], -60, 60)))


@torch.no_grad()
def heat_map(
    model: CoCa,
    tokenizer: ReportTokenizer,
    study: StudyBatch,
    positive: Sequence[str],
    negative: Sequence[str] = (),
    patch: tuple[int, int] = (6, 9),
    only: int | None = None,
) -> np.ndarray:
    """Occlusion map: the drop in the score of a sentence when a patch is occluded.

    An occluded patch is 0, the signal of remote myocardium (Zeiler 2014, arXiv 1311.2901).

    Args:
        model, tokenizer: the model is in eval mode.
        study: one study, `(1, slices, 1, height, width)`.
        positive: sentences to look for.
        negative: sentences whose score is subtracted, if any.
        patch: height and width in pixels of the view.
        only: occlude this slice alone; the others are 0.

    Returns:
        `(slices, height, width)` float32, in logits; positive where a patch supports the sentence.
    """
    images, levels, mask = study
    slices, _, height, width = images.shape[1:]
    sought = model.encode_text(tokenizer(list(positive)))
    other = model.encode_text(tokenizer(list(negative))) if negative else None
    features, _ = model.visual.slice_features(study)

    def score(features: Tensor) -> Tensor:  # (n, slices, width)
        embedded, _ = model.visual.pool(features, mask.expand(len(features), -1))
        logits = model.logit_scale.exp() * F.normalize(embedded, dim=-1)
        against = pooled(logits @ other.T) if other is not None else 0.0
        return pooled(logits @ sought.T) - against

    tops, lefts = range(0, height, patch[0]), range(0, width, patch[1])
    areas = [
        (slice(top, top + patch[0]), slice(left, left + patch[1])) for top in tops for left in lefts
    ]
    heat, whole = torch.zeros(slices, height, width), score(features)
    for number in range(slices) if only is None else (only,):
        occluded = images[0, number].repeat(len(areas), 1, 1, 1)  # (patches, 1, height, width)
        for image, (rows, columns) in zip(occluded, areas, strict=True):
            image[:, rows, columns] = 0
        level = levels[:, number].expand(len(areas))[:, None]
        alone = StudyBatch(occluded[:, None], level, mask.new_ones(len(areas), 1))
        changed = features.repeat(len(areas), 1, 1)
        changed[:, number] = model.visual.slice_features(alone)[0][:, 0]
        for drop, (rows, columns) in zip(whole - score(changed), areas, strict=True):
            heat[number, rows, columns] = drop
    return heat.numpy()
