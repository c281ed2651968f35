"""Teach the text tower to read, on reports that the writer makes, before it sees an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgekit import cache
from lgekit.clip.model import UNKNOWN, CoCa, ReportTokenizer
from lgekit.config import FitSettings
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, draw_findings, draw_scar
from lgekit.reports.writer import one_line, prompt_sets, sentences, write_report

BATCH, REPORTS = 64, 12_000  # reports in a step, and most that are written
MASKED = 0.05  # share of the words that are hidden, so that no single one decides


def statements() -> list[str]:
    """The texts of `prompt_sets`, each once: no enhancement, then each wall, level and depth."""
    sets = prompt_sets()
    places = [text for kind in ("wall", "level", "depth") for (text,) in sets[kind].values()]
    return [*sets["presence"]["negative"], *places]


def true_statements(findings: Findings | None) -> list[bool]:
    """Whether findings say each of the `statements`; None says nothing."""
    if findings is None:
        return [False] * len(statements())
    levels = {level for scar in findings.scars for level in scar.levels}
    depths = {scar.depth for scar in findings.scars}
    places = [wall in findings.walls for wall in WALLS] + [level in levels for level in LEVELS]
    return [not findings.present, *places, *(depth in depths for depth in DEPTHS)]


def written_reports(count: int, seed: int) -> tuple[list[str], Tensor]:
    """Write reports, and parts of them; what they say, `(count, statements)`.

    A fifth does not say whether there is scar, and a quarter denies it. Half of the others have the
    scars of a disease, and half any walls and levels, so that the tower learns their words, and
    not which of them go together [O].
    """
    rng, texts, truth = np.random.default_rng([seed, 5]), [], []

    def some(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if rng.random() < 0.5)

    for kind, part in rng.random((count, 2)):
        found: Findings | None = draw_findings(rng, positive=float(kind > 0.45))
        if kind > 0.72:
            scar = replace(draw_scar(rng, "uniform"), walls=some(WALLS), levels=some(LEVELS))
            found = Findings((scar,))
        elif kind < 0.2:
            found = None
        text = write_report(found, rng, whole=found is None or part < 0.6)
        if found is None and part > 0.5:
            text = str(rng.choice(sentences(text) or [text]))
        texts.append(one_line(text))
        truth.append(true_statements(found))
    return texts, torch.tensor(truth, dtype=torch.float32)


@dataclass(frozen=True)
class Language:
    """A text tower that can read. It does not change when it meets images."""

    model: CoCa  # its text tower and temperature; the rest is not trained
    tokenizer: ReportTokenizer
    offset: float  # of the logit that a report says a statement

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, `(texts, embed_dim)`, of length 1."""
        parts = [texts[first : first + BATCH] for first in range(0, len(texts), BATCH)]
        return torch.cat([self.model.encode_text(self.tokenizer(part)) for part in parts])

    @cached_property
    def stated(self) -> Tensor:
        """Embeddings of the `statements`."""
        return self.embed(statements())

    def said(self, reports: Sequence[str]) -> Tensor:
        """Probability that each report says each of the `statements`."""
        similar = self.embed([one_line(one) for one in reports]) @ self.stated.T
        return (self.model.logit_scale.exp() * similar + self.offset).sigmoid().detach()

    def texts_of(self, report: str) -> tuple[str, ...]:
        """The training texts of a report: the sentence that says most of what it says, and all."""
        parts = sentences(report) or [report]
        *each, whole = self.said([*parts, report])
        most = int((torch.stack(each) @ whole).argmax())
        return tuple(dict.fromkeys([parts[most], one_line(report)]))


def taught_language(settings: FitSettings) -> Language:
    """Teach the text tower, or take it from the cache: it depends on no study."""
    names = {"text", "embed_dim", "text_width", "text_layers", "text_heads", "context_length"}
    about = settings.model_dump_json(include=names | {"vocabulary", "text_steps", "seed"})
    cached = cache.memory().cache(teach, ignore=["settings"])
    return cache.compute_once(cached, settings, (about, cache.code_version(*cache.FIT_ROOMS)))


def teach(settings: FitSettings, key: object = None) -> Language:
    """Train a new text tower on written reports to tell which `statements` are true of each.

    ``key`` is for the cache.
    """
    steps, device = settings.text_steps, cache.accelerator()
    texts, truth = written_reports(min(REPORTS, BATCH * steps), settings.seed)
    vocabulary = settings.vocabulary, settings.longest_text
    tokenizer = ReportTokenizer.train([*texts[:3000], *statements()], *vocabulary)
    tokens, fixed = tokenizer(texts), tokenizer(statements()).to(device)
    lengths = (tokens != tokenizer.pad_id).sum(1)
    by_length, unknown = lengths.argsort(), tokenizer.core.token_to_id(UNKNOWN)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = CoCa(settings, tokenizer).to(device)
        offset = nn.Parameter(torch.tensor(-2.0, device=device))
        weights = [*model.text.parameters(), model.logit_scale, offset]
        optimizer = torch.optim.AdamW(weights, lr=2e-3, betas=(0.9, 0.98), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
        for _ in range(steps):
            first = int(torch.randint(len(texts) - BATCH + 1, (), generator=generator))
            rows = by_length[first : first + BATCH]  # texts of one length need no padding
            text = tokens[rows, : lengths[rows].max()]
            hidden = torch.rand(text.shape, generator=generator) < MASKED
            hidden &= text > unknown  # padding, start and end come before it
            text = text.masked_fill(hidden, unknown).to(device)
            similar = model.encode_text(text) @ model.encode_text(fixed).T
            logits = model.logit_scale.exp() * similar + offset
            loss = F.binary_cross_entropy_with_logits(logits, truth[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
    return Language(model.cpu().eval(), tokenizer, offset.item())
