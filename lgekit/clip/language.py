"""Teach the text tower to read, on reports that the writer makes, before it sees an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgekit import cache
from lgekit.clip.model import UNKNOWN, CoCa, ReportTokenizer
from lgekit.config import FitSettings
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, draw_findings, draw_scar
from lgekit.reports.training_texts import one_line, prompt_sets, sentences
from lgekit.reports.writer import write_report

REPORTS, BATCH, MASKED = 12_000, 64, 0.05  # written; in a step; share of words that are hidden


def statements() -> list[str]:
    """The texts of `prompt_sets`, each once: no enhancement, then each wall, level and depth."""
    sets = prompt_sets()
    places = [text for kind in ("wall", "level", "depth") for (text,) in sets[kind].values()]
    return [*sets["presence"]["negative"], *places]


def true_statements(findings: Findings) -> list[bool]:
    """Whether findings say each of the `statements`."""
    levels = {level for scar in findings.scars for level in scar.levels}
    depths = {scar.depth for scar in findings.scars}
    said = [wall in findings.walls for wall in WALLS] + [level in levels for level in LEVELS]
    return [not findings.present, *said, *(depth in depths for depth in DEPTHS)]


def written_reports(count: int, seed: int) -> tuple[list[str], Tensor]:
    """Write reports, and what they say, `(count, statements)` float32.

    Three in ten deny scar. Half of the others have the scars of a disease, and half any walls and
    levels, so that the tower learns their words and not which go together [O].
    """
    rng, texts, truth = np.random.default_rng([seed, 5]), [], []

    def some(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if rng.random() < 0.5)

    for kind in rng.random(count):
        found = Findings() if kind < 0.3 else draw_findings(rng)
        if kind > 0.65:
            anywhere = {"walls": some(WALLS), "levels": some(LEVELS)}
            found = Findings((replace(draw_scar(rng, "uniform"), **anywhere),))
        texts.append(one_line(write_report(found, rng, whole=bool(rng.random() < 0.6))))
        truth.append(true_statements(found))
    return texts, torch.tensor(truth, dtype=torch.float32)


@dataclass(frozen=True)
class Language:
    """A taught text tower. It is not trained any more when it meets images."""

    model: CoCa  # only its text tower is used
    tokenizer: ReportTokenizer
    said: tuple[Tensor, Tensor]  # slope and offset: logit that a report says a statement

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, `(texts, embed_dim)`, of length 1."""
        parts = [texts[first : first + BATCH] for first in range(0, len(texts), BATCH)]
        return torch.cat([self.model.encode_text(self.tokenizer(part)) for part in parts])

    def texts_of(self, report: str) -> tuple[str, ...]:
        """The training texts of a report: its own sentence nearest to the whole, and the whole."""
        whole, parts = one_line(report), sentences(report)
        nearest = (self.embed(parts) @ self.embed([whole])[0]).argmax()
        return tuple(dict.fromkeys([parts[nearest], whole]))

    def deny(self, reports: Sequence[str]) -> list[bool]:
        """Whether each report says that there is no enhancement."""
        slope, offset = self.said
        none = self.embed(statements()[:1])[0]
        return (slope * self.embed(list(map(one_line, reports))) @ none + offset > 0).tolist()


def of_similar_length(lengths: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of row numbers without end; rows of a batch have about the same length."""
    while True:
        order = (lengths + torch.randint(24, lengths.shape, generator=generator)).argsort()
        batches = order.split(BATCH)
        for number in torch.randperm(len(batches), generator=generator):
            yield batches[number]


def taught_language(settings: FitSettings) -> Language:
    """Teach the text tower, or take it from the cache: it depends on the settings alone."""
    names = {"text", "embed_dim", "text_width", "text_layers", "text_heads", "context_length"}
    names |= {"vocabulary", "text_steps", "seed"}
    about = settings.model_dump_json(include=names)
    cached = cache.memory().cache(teach, ignore=["settings"])
    return cache.compute_once(cached, settings, (about, cache.code_version(*cache.FIT_ROOMS)))


def teach(settings: FitSettings, key: object = None) -> Language:
    """Train a new text tower on written reports to tell which `statements` are true of each.

    ``key`` is for the cache.
    """
    texts, truth = written_reports(REPORTS, settings.seed)
    tokenizer = ReportTokenizer.train(
        [*texts[:3000], *statements()], settings.vocabulary, settings.longest_text
    )
    tokens, device = tokenizer(texts), cache.accelerator()
    unknown = tokenizer.core.token_to_id(UNKNOWN)
    lengths = (tokens != tokenizer.pad_id).sum(1)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = CoCa(settings, tokenizer).to(device)
        slope, offset = (nn.Parameter(torch.tensor(x, device=device)) for x in (10.0, -2.0))
        weights = [*model.text.parameters(), slope, offset]
        optimizer = torch.optim.AdamW(weights, lr=2e-3, betas=(0.9, 0.98), fused=True)
        steps = settings.text_steps
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
        fixed = tokenizer(statements()).to(device)
        for _, rows in zip(range(steps), of_similar_length(lengths, generator), strict=False):
            text = tokens[rows, : lengths[rows].max()]
            hidden = torch.rand(text.shape, generator=generator) < MASKED
            hidden &= text > unknown  # it is the last of the special tokens
            text = text.masked_fill(hidden, unknown).to(device)
            logits = slope * model.encode_text(text) @ model.encode_text(fixed).T + offset
            loss = F.binary_cross_entropy_with_logits(logits, truth[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
    return Language(model.cpu().eval(), tokenizer, (slope.detach().cpu(), offset.detach().cpu()))
