"""Train image and text encoders with a contrastive and a captioning loss."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgekit import cache
from lgekit.clip.data import ImageTextPairs, TrainingData, augment, epoch_batches, shuffle_texts
from lgekit.clip.language import Language
from lgekit.clip.model import CoCa, ReportTokenizer
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.study import Cohort

KEPT_DAYS = 30  # days an interrupted fit can be resumed from the cache
VALIDATION = "validation_contrastive"


def contrastive_loss(logits: Tensor, text_ids: Tensor, targets: str = "same_text") -> Tensor:
    """Symmetric image–text cross-entropy of a similarity matrix, in nats.

    Args:
        logits: `(n, n)`, study × text, scaled by the temperature.
        text_ids: `(n,)`, equal where two studies have the same text.
        targets: ``identity``: study i belongs to text i alone (CLIP, Radford 2021, arXiv
            2103.00020). ``same_text``: it belongs equally to all copies of its text, whose entropy
            is subtracted: a perfect encoder reaches 0 (gradient: Khosla 2020, arXiv 2004.11362).
    """
    same = torch.eye(len(text_ids), dtype=torch.bool, device=logits.device)
    if targets == "same_text":
        same = text_ids[:, None] == text_ids[None]
    target = same / same.sum(1, keepdim=True)
    losses = [-(target * side.log_softmax(1)).sum(1).mean() for side in (logits, logits.T)]
    return torch.stack(losses).mean() - same.sum(1).log().mean()


def learning_rate(step: int, steps: int, settings: FitSettings) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(settings.warmup * steps))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(module: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov 2019, arXiv 1711.05101), without decay for biases, norms and scalars."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, weight in module.named_parameters():
        share = settings.text_encoder_rate if name.startswith("text.net.") else 1.0
        groups.setdefault((weight.ndim < 2, share), []).append(weight)
    parts = [
        {"params": own, "weight_decay": 0.0 if single else settings.weight_decay, "share": share}
        for (single, share), own in sorted(groups.items(), key=lambda group: group[0])
    ]
    return torch.optim.AdamW(parts, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


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
    generator = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)  # augmentation
    half = cache.trains_in_bfloat16(device, settings.bfloat16)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    counts = data.real, len(data.texts) - data.real
    batches = list(epoch_batches(epoch, *counts, data.texts, settings))
    total = torch.zeros(2, device=device)
    model.train()
    for step, (index, chosen) in enumerate(batches):
        rate = learning_rate(epoch * len(batches) + step, settings.epochs * len(batches), settings)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        inputs = data.select(index, chosen, captions=settings.caption_weight > 0)
        studies, text, text_of, caption_of = inputs
        studies = augment(studies, settings, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            out = model(studies, text, text_of, caption_of)
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


@dataclass
class TrainingState:
    """State that a resumed run needs besides its weights, and the weights to keep."""

    fingerprint: str = ""  # identifies settings, texts and images
    history: list[dict[str, float]] = field(default_factory=list)  # one row for each epoch
    best: dict[str, Tensor] = field(default_factory=dict)  # weights with the best validation loss

    def add(self, row: dict[str, float], model: nn.Module) -> None:
        """Add an epoch, and keep its weights if they are best."""
        self.history.append(row)
        if self.epochs_since_best() == 0:
            now = model.state_dict().items()
            self.best = {name: value.detach().clone() for name, value in now}

    def epochs_since_best(self) -> int | None:
        """Epochs since the lowest validation loss; None without validation."""
        losses = [row[VALIDATION] for row in self.history if VALIDATION in row]
        return len(losses) - 1 - int(np.argmin(losses)) if losses else None

    def save(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint, whole or not at all."""
        content = vars(self) | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with cache.replacing(path) as part:
            torch.save(content, part)

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Continue from a checkpoint of the same run."""
        try:
            device = next(model.parameters()).device
            content = torch.load(path, map_location=device, weights_only=True)
            if content["fingerprint"] != self.fingerprint:
                raise ValueError("other settings, texts or images")
        except (OSError, EOFError, RuntimeError, UnpicklingError, LookupError, ValueError) as error:
            reason = str(error).partition(".")[0] or type(error).__name__
            problem = f"is not a checkpoint of this training ({reason})"
            raise InputError(path, problem, "Remove it to start again.") from error
        model.load_state_dict(content.pop("model"))
        optimizer.load_state_dict(content.pop("optimizer"))
        vars(self).update(content)


@dataclass(frozen=True)
class FitResult:
    """A trained network. ``history`` has one row per epoch: losses, learning rate, seconds."""

    model: CoCa
    tokenizer: ReportTokenizer
    history: pd.DataFrame


def fit(
    pairs: ImageTextPairs,
    settings: FitSettings,
    *,
    synthetic: ImageTextPairs | None = None,
    validation: ImageTextPairs | None = None,
    encoder_state: Mapping[str, Tensor] | None = None,
    language: Language | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a `CoCa` on studies and texts. It returns in eval mode on the CPU.

    ``synthetic`` is a pool of which each epoch draws a part. The contrastive loss of ``validation``
    selects the epoch to keep and stops early. ``encoder_state`` are weights of a segmentation
    encoder, and ``language`` is the text tower to use as it is. Training resumes from the file
    ``checkpoint`` if it exists.
    """
    if len(pairs) < 2:
        problem = f"{len(pairs)} found"
        raise InputError("training studies", problem, "Contrastive training needs two or more.")
    groups = [pairs, synthetic] if synthetic else [pairs]
    first = [options[0] for group in groups for options in group.texts]
    if len(set(first)) < 2:
        remedy = "Give studies with and without scar, or set synthetic_per_real above 0"
        raise InputError("training texts", f"all {len(first)} say the same: {first[0]!r}", remedy)
    if validation is not None and len({options[0] for options in validation.texts}) < 2:
        message = "the validation texts are all the same, so they cannot select an epoch"
        warnings.warn(message, stacklevel=2)
        validation = None
    if settings.shuffle_text:
        groups = shuffle_texts(np.random.default_rng([settings.seed, 77]), *groups)
        if validation is not None:  # its texts select the epoch
            (validation,) = shuffle_texts(np.random.default_rng([settings.seed, 78]), validation)
    texts = [options for group in groups for options in group.texts]
    distinct = sorted({text for options in texts for text in options})
    if language is not None:
        tokenizer = language.tokenizer
    elif settings.text_encoder == "scratch":
        tokenizer = ReportTokenizer.train(distinct, settings.vocabulary, settings.longest_text)
    else:
        tokenizer = ReportTokenizer.from_hugging_face(settings.text_encoder, settings.longest_text)
    if cut := tokenizer.share_cut(distinct):
        message = f"{cut:.0%} of the texts are longer than {tokenizer.context_length} tokens"
        warnings.warn(f"{message}, and are cut. Set context_length higher.", stacklevel=2)
    device = cache.accelerator()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model = CoCa(settings, tokenizer)
        if encoder_state is not None:
            model.visual.load_segmentation(encoder_state)
        if language is not None:
            model.text.load_state_dict(language.model.text.state_dict())
            model.text.requires_grad_(False)
        model.to(device)
        optimizer, state = adamw(model, settings), TrainingState()
        data = TrainingData.of(tokenizer, device, groups, language)
        if checkpoint:
            about = settings.model_dump(exclude={"workers"}), texts, validation and validation.texts
            images = [part.cpu().numpy() for part in data.studies]
            state.fingerprint = joblib.hash([repr(about), images])
            if checkpoint.exists():
                state.load(checkpoint, model, optimizer)
        todo = range(len(state.history), settings.epochs)
        options = {"initial": todo.start, "total": settings.epochs, "disable": not progress}
        bar = tqdm(todo, "training", leave=False, unit="epoch", **options)
        for epoch in bar:
            if settings.patience and (state.epochs_since_best() or 0) >= settings.patience:
                break
            started = time.perf_counter()
            row = train_epoch(model, optimizer, data, epoch, settings)
            if validation is not None:
                row[VALIDATION] = validation_loss(model, tokenizer, validation, settings)
            row["seconds"] = time.perf_counter() - started
            state.add(row, model)
            bar.set_postfix({name: f"{row[name]:.3f}" for name in ("contrastive", "caption")})
            if checkpoint:
                state.save(checkpoint, model, optimizer)
        model.load_state_dict(state.best or model.state_dict())
    return FitResult(model.cpu().eval(), tokenizer, pd.DataFrame(state.history))


@contextmanager
def resumable(cohort: Cohort, settings: FitSettings, *about: Any) -> Iterator[Path | None]:
    """Give a cached folder for the checkpoints of one fit; it is removed when the fit is done.

    After a kill, the same arguments give the same folder; ``about`` is what else the fit depends
    on. Yields None if caching is off (`lgekit.cache`), or another process runs the same fit.
    """
    root = cache.memory().location
    parts = [settings.model_dump_json(exclude={"workers"})]
    parts.append(cache.code_version(*cache.FIT_ROOMS))
    for one in (cohort, *about):
        parts.append(repr(getattr(one, "fingerprint", one)))
        if isinstance(one, Cohort):  # its fingerprint omits these
            names = ("landmarks", "patient_id", "fold")
            parts += [repr([study.get(name) for name in names]) for study in one.studies]
    lock = Path(root or "") / "training" / f"{joblib.hash(parts)[:16]}.lock"
    if not root or cache.is_locked(lock):
        yield None
        return
    with cache.locked(lock):
        folder = lock.with_suffix("")
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        for other in folder.parent.iterdir():  # interrupted fits that nobody resumed
            with suppress(FileNotFoundError):  # another process has just finished it
                if time.time() - other.stat().st_mtime > KEPT_DAYS * 86_400:
                    shutil.rmtree(other, ignore_errors=True)
