"""Teach the text tower to read, train the network on image-text pairs, and resume a fit."""

import copy
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgekit import cache
from lgekit.clip.data import ImageTextPairs, augment
from lgekit.clip.model import UNKNOWN_WORD, CoCa, ReportTokenizer, StudyBatch
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, draw_findings, draw_scar
from lgekit.reports.writer import one_line, prompt_sets, split_sentences, write_report
from lgekit.segmentation.train import minimise

BATCH, REPORTS = 64, 12_000  # of teaching: reports in a step, and most that are written
MASKED = 0.05  # share of the words that are hidden, so that no single one decides
WARMUP, WEIGHT_DECAY = 0.1, 0.05  # of the fit: share of all steps; of AdamW
VALIDATION = "validation_contrastive"


def statements() -> list[str]:
    """The texts of `prompt_sets`, each once: no enhancement, then each wall, level and depth."""
    sets = prompt_sets()
    places = [text for kind in ("wall", "level", "depth") for (text,) in sets[kind].values()]
    return [*sets["presence"]["negative"], *places]


def true_statements(findings: Findings | None) -> list[bool]:
    """Whether findings say each of the `statements`; None says nothing."""
    scars = findings.scars if findings else ()
    said = {name for scar in scars for name in (*scar.walls, *scar.levels, scar.depth)}
    denied = findings is not None and not findings.present
    return [denied, *(name in said for name in (*WALLS, *LEVELS, *DEPTHS))]


def written_reports(count: int, seed: int) -> tuple[list[str], Tensor]:
    """Write reports, and parts of them; what they say, `(count, statements)`.

    A fifth does not say whether there is scar, and a quarter denies it. Half of the others have the
    scars of a disease, and half any walls and levels, so that the tower learns their words, and
    not which of them go together [O].
    """
    rng, texts, truth = np.random.default_rng([seed, 5]), [], []

    for kind, part in rng.random((count, 2)):
        found: Findings | None = draw_findings(rng, positive=float(kind > 0.45))
        if kind > 0.72:
            scar = draw_scar(rng, "uniform")
            walls, levels = (tuple(compress(n, rng.random(len(n)) < 0.5)) for n in (WALLS, LEVELS))
            found = Findings((replace(scar, walls=walls, levels=levels),))
        elif kind < 0.2:
            found = None
        text = write_report(found, rng, whole=found is None or part < 0.6)
        if found is None and part > 0.5:
            text = str(rng.choice(split_sentences(text) or [text]))
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
        parts = split_sentences(report) or [report]
        *each, whole = self.said([*parts, report])
        most = int((torch.stack(each) @ whole).argmax())
        return tuple(dict.fromkeys([parts[most], one_line(report)]))


def taught_language(settings: FitSettings) -> Language:
    """Teach the text tower, or take it from the cache: it depends on no study."""
    names = {"text", "embed_dim", "text_width", "text_layers", "context_length", "text_steps"}
    about = settings.model_dump_json(include=names | {"seed"})
    return cache.compute_once((about, cache.code_version(*cache.FIT_ROOMS)), teach, settings)


def teach(settings: FitSettings) -> Language:
    """Train a new text tower on written reports to tell which `statements` are true of each."""
    steps, device = settings.text_steps, cache.accelerator()
    texts, truth = written_reports(min(REPORTS, BATCH * steps), settings.seed)
    tokenizer = ReportTokenizer.train([*texts[:3000], *statements()], settings.longest_text)
    tokens, fixed = tokenizer(texts), tokenizer(statements()).to(device)
    lengths = (tokens != tokenizer.pad_id).sum(1)
    by_length, unknown = lengths.argsort(), tokenizer.core.token_to_id(UNKNOWN_WORD)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = CoCa(settings, tokenizer).to(device)
        offset = nn.Parameter(torch.tensor(-2.0, device=device))
        weights = [*model.text.parameters(), model.logit_scale, offset]

        def loss_of(_: int) -> Tensor:
            first = int(torch.randint(len(texts) - BATCH + 1, (), generator=generator))
            rows = by_length[first : first + BATCH]  # texts of one length need no padding
            text = tokens[rows, : lengths[rows].max()]
            hidden = torch.rand(text.shape, generator=generator) < MASKED
            hidden &= text > unknown  # padding, start and end come before it
            text = text.masked_fill(hidden, unknown).to(device)
            similar = model.encode_text(text) @ model.encode_text(fixed).T
            logits = model.logit_scale.exp() * similar + offset
            return F.binary_cross_entropy_with_logits(logits, truth[rows].to(device))

        minimise(weights, loss_of, steps, 2e-3, "language", progress=False)
    return Language(model.cpu().eval(), tokenizer, offset.item())


def contrastive_loss(logits: Tensor, text_ids: Tensor, targets: str = "same_text") -> Tensor:
    """Symmetric image–text cross-entropy, in nats, of a similarity matrix ``logits`` `(n, n)`,
    study × text, scaled by the temperature; ``text_ids`` `(n,)` are equal for equal texts.

    ``targets="identity"``: study i belongs to text i alone (CLIP, Radford 2021, arXiv 2103.00020).
    ``same_text``: it belongs equally to all copies of its text, whose entropy is subtracted: a
    perfect encoder reaches 0 (gradient: Khosla 2020, arXiv 2004.11362).
    """
    same = torch.eye(len(text_ids), dtype=torch.bool, device=logits.device)
    if targets == "same_text":
        same = text_ids[:, None] == text_ids[None]
    target = same / same.sum(1, keepdim=True)
    losses = [-(target * side.log_softmax(1)).sum(1).mean() for side in (logits, logits.T)]
    return torch.stack(losses).mean() - same.sum(1).log().mean()


def learning_rate(step: int, steps: int, settings: FitSettings) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(module: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov 2019, arXiv 1711.05101), without decay for biases, norms and scalars."""
    decayed = [weight for weight in module.parameters() if weight.ndim > 1]
    others = [weight for weight in module.parameters() if weight.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    options: dict[str, Any] = {"weight_decay": WEIGHT_DECAY, "betas": (0.9, 0.98), "fused": True}
    return torch.optim.AdamW(groups, settings.learning_rate, **options)


class TrainingData(NamedTuple):
    """Studies on the training device, and each distinct text once."""

    studies: StudyBatch
    real: int  # number of real studies; they come first
    texts: list[list[int]]  # of each study, as rows of `tokens`; the first is the caption
    tokens: Tensor  # (texts, length)
    embedded: Tensor | None  # (texts, embed_dim) by a taught text tower, which stays as it is


def epoch_batches(
    epoch: int, real: int, texts: list[list[int]], settings: FitSettings
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Study indices and text rows of each step: all real studies, and new synthetic ones."""
    rng, synthetic = np.random.default_rng([settings.seed, epoch]), len(texts) - real
    take = round(settings.synthetic_per_real * real)
    index = np.concatenate([np.arange(real), real + rng.permutation(synthetic)[:take]])
    index = rng.permutation(index)
    chosen = np.array([texts[study][rng.integers(len(texts[study]))] for study in index])
    parts = math.ceil(len(index) / settings.batch_size)
    return list(zip(np.array_split(index, parts), np.array_split(chosen, parts), strict=True))


def train_epoch(
    model: CoCa,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    epoch: int,
    settings: FitSettings,
) -> dict[str, float]:
    """Train for one epoch. Returns the mean losses, the epoch and the last learning rate."""
    device = data.tokens.device
    torch.manual_seed(settings.seed * 100_003 + epoch * 101)  # dropout
    generator = torch.Generator(device).manual_seed(settings.seed * 100_003 + epoch)  # augmentation
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    batches = epoch_batches(epoch, data.real, data.texts, settings)
    total = torch.zeros(2, device=device)
    model.train()
    for step, (index, chosen) in enumerate(batches):
        rate = learning_rate(epoch * len(batches) + step, settings.epochs * len(batches), settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        captions = np.array([data.texts[study][0] for study in index])
        read = [captions if data.embedded is not None else chosen]
        read += [captions] if settings.caption_weight > 0 else []
        used, place = np.unique(read, return_inverse=True)  # each text is encoded once
        text_of, *caption_of = torch.from_numpy(place).reshape(len(read), -1).to(device)
        text = data.tokens[torch.from_numpy(used).to(device)]
        if data.embedded is not None:  # captions are far shorter than reports
            text = text[:, : int(text.any(0).sum())]
        studies = data.studies.rows(torch.from_numpy(index).to(device))
        studies = augment(studies, settings, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            out = model(studies, text, text_of, *caption_of)
        if data.embedded is not None:
            text_of = torch.from_numpy(chosen).to(device)
            out["text_features"] = data.embedded[text_of]
        losses = both_losses(out, text_of, settings, model.text.pad_id)
        (losses[0] + settings.caption_weight * losses[1]).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            total += losses.detach()
    means = dict(zip(("contrastive", "caption"), (total / len(batches)).tolist(), strict=True))
    if not np.isfinite(list(means.values())).all():
        problem = f"the loss of epoch {epoch + 1} is not a number"
        remedy = "Lower learning_rate, and look for images that are empty or not finite."
        raise InputError("training", problem, remedy)
    return means | {"epoch": epoch + 1, "learning_rate": rate}


def both_losses(
    out: Mapping[str, Tensor], text_of: Tensor, settings: FitSettings, pad_id: int
) -> Tensor:
    """Contrastive and caption loss, `(2,)` float32; without captions the second is 0."""
    image, text = out["image_features"].float(), out["text_features"].float()
    contrast = contrastive_loss(out["logit_scale"] * image @ text.T, text_of, settings.targets)
    caption = contrast.new_zeros(())
    if "logits" in out:  # mean per token, without padding
        logits, labels = out["logits"].float().flatten(0, 1), out["labels"].flatten()
        caption = F.cross_entropy(logits, labels, ignore_index=pad_id)
    return torch.stack([contrast, caption])


@torch.no_grad()
def validation_loss(
    model: CoCa, tokenizer: ReportTokenizer, pairs: ImageTextPairs, settings: FitSettings
) -> float:
    """Contrastive loss of all validation studies as one batch, with the first text of each."""
    model.eval()
    device = model.logit_scale.device
    texts, rows = np.unique([options[0] for options in pairs.texts], return_inverse=True)
    text_of = torch.from_numpy(rows).to(device)
    out = model(pairs.batch.to(device), tokenizer(texts.tolist()).to(device), text_of)
    return float(both_losses(out, text_of, settings, tokenizer.pad_id)[0])


class FitResult(NamedTuple):
    """A trained network. ``history`` has one row per epoch: losses, learning rate, seconds."""

    model: CoCa
    tokenizer: ReportTokenizer
    history: pd.DataFrame


def fit(
    pairs: ImageTextPairs,
    settings: FitSettings,
    validation: ImageTextPairs | None = None,
    encoder_state: Mapping[str, Tensor] | None = None,
    language: Language | None = None,
    progress: bool = True,
    start: tuple[CoCa, ReportTokenizer] | None = None,
) -> FitResult:
    """Train a `CoCa` on studies and texts. It returns in eval mode on the CPU. Cached.

    The contrastive loss of ``validation`` selects the epoch to keep. ``encoder_state`` are weights
    of a segmentation encoder, and ``language`` is the text tower to use as it is. ``start`` is a
    trained network to continue from: with other texts than its own, from its image tower. Training
    that was interrupted, even by kill -9, resumes after its last whole epoch.
    """
    if settings.shuffle_text:  # also those that select the epoch
        pairs = shuffle_texts(pairs, settings.seed, 77)
        validation = validation and shuffle_texts(validation, settings.seed, 78)
    if validation and len({options[0] for options in validation.texts}) < 2:
        validation = None  # the loss of a single text is 0 in every epoch
    distinct = sorted({text for options in pairs.texts for text in options})
    row_of = {text: row for row, text in enumerate(distinct)}
    tokenizer = language.tokenizer if language else None
    part = "" if settings.text == "findings" else "visual"  # of `start`
    if start is not None and not part:
        tokenizer = start[1]
    tokenizer = tokenizer or ReportTokenizer.train(distinct, settings.longest_text)
    tokens = token_ids(distinct, tokenizer)
    device = cache.accelerator()
    data = TrainingData(
        pairs.batch.to(device),
        len(pairs.texts) if pairs.real is None else pairs.real,
        [[row_of[text] for text in options] for options in pairs.texts],
        tokens.to(device),
        language.embed(distinct).to(device) if language else None,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model = CoCa(settings, tokenizer)
        if encoder_state is not None:
            model.visual.load_segmentation(encoder_state)
        if start is not None:
            model.get_submodule(part).load_state_dict(start[0].get_submodule(part).state_dict())
        if language is not None:
            model.text.load_state_dict(language.model.text.state_dict())
            model.text.requires_grad_(False)
        # training depends on these alone
        about: list[Any] = [settings.model_dump_json(exclude={"workers"}), data.texts, data.real]
        about += [validation and validation.texts, cache.code_version(*cache.FIT_ROOMS)]
        tensors = [*model.state_dict().values(), *pairs.batch, tokens]
        tensors += validation.batch if validation else []
        name = joblib.hash([about, [one.cpu().numpy() for one in tensors]])
        root = cache.cache_folder()
        checkpoint = root / "training" / name if root else None
        inputs = model.to(device), tokenizer, data, validation, settings, checkpoint, progress
        weights, history = cache.compute_once(name, train, *inputs)
    model.cpu().load_state_dict(weights)
    return FitResult(model.eval(), tokenizer, pd.DataFrame(history))


def token_ids(texts: list[str], tokenizer: ReportTokenizer) -> Tensor:
    """Token ids `(texts, longest)` int64. Warns if texts are cut."""
    tokens = tokenizer(texts)
    if tokens.shape[1] == tokenizer.context_length:
        share = float((tokens[:, -1] == tokenizer.end_id).float().mean())
        message = f"{share:.0%} of the texts do not fit into {tokenizer.context_length} tokens"
        warnings.warn(f"{message}, and are cut. Set context_length higher.", stacklevel=3)
    return tokens


def shuffle_texts(pairs: ImageTextPairs, *seed: int) -> ImageTextPairs:
    """Permute the texts over all studies: the control, whose accuracy must fall to chance."""
    order = np.random.default_rng(seed).permutation(len(pairs.texts))
    return replace(pairs, texts=[pairs.texts[number] for number in order])


def train(
    model: CoCa,
    tokenizer: ReportTokenizer,
    data: TrainingData,
    validation: ImageTextPairs | None,
    settings: FitSettings,
    checkpoint: Path | None,
    progress: bool,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train the epochs that the file ``checkpoint`` does not hold yet.

    Returns the best weights, and the losses and seconds of each epoch.
    """
    optimizer = adamw(model, settings)
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    if checkpoint and (kept := cache.load(checkpoint)):
        history, best = kept["history"], kept["best"]
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
    todo = range(len(history), settings.epochs)
    options = {"initial": todo.start, "total": settings.epochs, "disable": not progress}
    for epoch in (bar := tqdm(todo, "training", leave=False, unit="epoch", **options)):
        started = time.perf_counter()
        row = train_epoch(model, optimizer, data, epoch, settings)
        if validation:
            row[VALIDATION] = validation_loss(model, tokenizer, validation, settings)
        history.append(row | {"seconds": time.perf_counter() - started})
        # without validation the last epoch is best
        if np.argmin([one.get(VALIDATION, -one["epoch"]) for one in history]) == epoch:
            best = copy.deepcopy(model.state_dict())
        bar.set_postfix({name: f"{row[name]:.3f}" for name in ("contrastive", "caption")})
        if checkpoint:
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            cache.store(checkpoint, kept | {"history": history, "best": best})
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    model.load_state_dict(best)
    return model.cpu().state_dict(), history
