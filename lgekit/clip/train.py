"""Train CLIP with a captioning loss."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgekit.cache import accelerator, code_version, is_locked, locked, memory, trains_in_bfloat16
from lgekit.clip.data import Pairs, Store, augment, dealt
from lgekit.clip.model import CoCaModel, StudyBatch, build_coca
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.study import Cohort

KEPT_DAYS = 30  # that a fit which was cut off can be gone on with from the cache


def begin_fit(folder: Path, **about: Any) -> None:
    """Note what a fit is of, whose checkpoints a folder keeps; or see, before the long work, that it is the same one.

    Args:
        folder: of the checkpoints; made where it is not there.
        about: name → value, as JSON writes it.

    Raises:
        InputError: the folder keeps checkpoints of a fit that was of another value.
    """
    file, now = Path(folder) / "fit.json", json.loads(json.dumps(about))
    if file.exists() and any(
        file.parent.glob("*.safetensors")
    ):  # else nothing has been trained yet
        before = json.loads(file.read_text("utf-8"))
        for name in (name for name in now if before.get(name) != now[name]):
            was = f"{name} was {before.get(name)!r} and is now {now[name]!r}"
            remedy = "Give the former value to go on with it, or remove that folder to begin anew"
            raise InputError(folder, f"keeps a fit that was cut off: {was}", remedy)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(".fit.json.part")
    part.write_text(json.dumps(now, indent=1), "utf-8")
    part.replace(file)


@contextmanager
def resumable(cohort: Cohort, settings: FitSettings, *about: Any) -> Iterator[Path | None]:
    """A folder in the cache for the checkpoints of one fit: there again after a kill, removed once the fit is done.

    Args:
        cohort, settings: of the fit.
        about: what else it depends on: further cohorts, words and numbers; the code that trains counts by itself.

    Yields:
        The folder; None where caching is switched off (`lgekit.cache`), or another run of the same fit goes on.
    """
    root = memory().location
    parts = [_known_by(one) for one in (cohort, *about)] + [
        settings.model_dump_json(exclude={"workers"})
    ]
    parts.append(code_version("anatomy", "reports", "data", "segmentation", "scars", "clip"))
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    lock = Path(root or "") / "training" / f"{name}.lock"
    if not root or is_locked(lock):
        yield None
        return
    with locked(lock):
        folder = lock.with_suffix("")
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        _forget_old(folder.parent)


def _known_by(part: Any) -> str:
    """What a fit depends on in a cohort (its fingerprint leaves out landmarks, patients and folds), or in a word."""
    if not isinstance(part, Cohort):
        return repr(part)
    marks = [
        (repr(study["landmarks"]), study["patient_id"], study.get("fold")) for study in part.studies
    ]
    return repr((part.fingerprint, marks))


def _forget_old(root: Path) -> None:
    """Remove what cut-off fits left behind that nobody went on with, as after a change of the code."""
    for folder in root.iterdir():
        with suppress(FileNotFoundError):  # another run's, which has just ended
            if time.time() - folder.stat().st_mtime > KEPT_DAYS * 86_400:
                shutil.rmtree(folder, ignore_errors=True)


class TrainingState:
    """What a resumed run needs beside the weights: of which run it is, history, best and averaged weights."""

    def __init__(self, fingerprint: str = "") -> None:
        self.fingerprint = fingerprint
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}

    def average_in(self, model: nn.Module, decay: float) -> None:
        """Running mean of the weights (Polyak averaging), once an epoch."""
        if decay:
            now = {name: value.detach().clone() for name, value in model.state_dict().items()}
            old = self.average or now
            self.average = {
                name: torch.lerp(value, old[name], decay) if value.is_floating_point() else value
                for name, value in now.items()
            }

    def add(self, row: dict[str, float], model: nn.Module) -> None:
        """Note an epoch, and keep its weights where its validation loss is the best so far."""
        losses = [
            old["validation_contrastive"] for old in self.history if "validation_contrastive" in old
        ]
        self.history.append(row)
        if "validation_contrastive" in row and row["validation_contrastive"] < min(
            losses, default=math.inf
        ):
            self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def stale(self, patience: int) -> bool:
        """Whether the validation loss has not become better for ``patience`` epochs (0: never)."""
        losses = [
            row["validation_contrastive"] for row in self.history if "validation_contrastive" in row
        ]
        return bool(patience and losses and len(losses) - 1 - int(np.argmin(losses)) >= patience)

    def final(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights to keep: the average, if one was asked for, else the best on validation, else the last."""
        return self.average or self.best or model.state_dict()

    def save(self, path: Path, module: nn.Module, optimizer: Any) -> None:
        """One safetensors file, its JSON metadata the history; replaced whole or not at all."""
        from safetensors.torch import save_file

        tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer/{number}/{name}": torch.as_tensor(value)
                for name, value in moments.items()
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        tensors = {
            name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()
        }
        save_file(tensors, partial, {"history": json.dumps(self.history), "run": self.fingerprint})
        os.replace(partial, path)

    @classmethod
    def load(
        cls, path: Path, module: nn.Module, optimizer: Any, fingerprint: str = ""
    ) -> TrainingState:
        """Read what `save` wrote into module and optimizer; a fresh state where there is no file.

        Raises:
            InputError: the file is of another run, or no checkpoint.
        """
        from safetensors import SafetensorError, safe_open

        state = cls(fingerprint)
        if not path.exists():
            return state
        try:
            opened = safe_open(str(path), "pt")
        except (SafetensorError, OSError) as error:
            raise InputError(
                path, f"is no checkpoint: {error}", "Remove it: training begins anew."
            ) from error
        with opened as file:
            if file.metadata().get("run") != fingerprint:
                remedy = "Remove it, or give another file: one for each training"
                raise InputError(
                    path, "is the checkpoint of other settings, texts or images", remedy
                )
            state.history = json.loads(file.metadata()["history"])
            parts: dict[str, dict[str, Tensor]] = {
                "module": {},
                "best": {},
                "average": {},
                "optimizer": {},
            }
            for key in file.keys():  # noqa: SIM118 (not a dict)
                part, name = key.split("/", 1)
                parts[part][name] = file.get_tensor(key)
        module.load_state_dict(parts["module"])
        device = next(module.parameters()).device
        state.best, state.average = (
            {n: v.to(device) for n, v in parts[part].items()} for part in ("best", "average")
        )
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            number, name = key.split("/")
            moments.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict(
            {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
        )
        for group in (
            optimizer.param_groups
        ):  # a file knows no memory format, and a fused step reads memory as it lies
            for weight in group["params"]:
                kept = optimizer.state.get(weight, {})
                for name in {"exp_avg", "exp_avg_sq"} & kept.keys():
                    kept[name] = torch.empty_like(weight, requires_grad=False).copy_(kept[name])
        return state


@dataclass(frozen=True)
class FitResult:
    """A trained network. ``history`` has a row an epoch: losses, learning rate, seconds."""

    model: CoCaModel
    tokenizer: ReportTokenizer
    history: pd.DataFrame


class ContrastiveCaptioner(nn.Module):
    """The forward pass of training: open_clip's CoCa forward, each distinct text of a batch encoded once."""

    def __init__(self, coca: CoCaModel):
        super().__init__()
        self.coca = coca

    def forward(
        self, batch: StudyBatch, tokens: Tensor, which: Tensor, captions: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As open_clip's ``CoCa.forward`` on the studies and the texts ``tokens[which]``.

        Args:
            batch: the studies.
            tokens: distinct texts `(texts, length)`.
            which: contrastive text of each study `(studies,)`.
            captions: text that the decoder is to write `(studies,)`; None leaves the decoder out.
        """
        image, image_tokens = self.coca._encode_image(batch)
        text, embedded = self.coca._encode_text(tokens)
        out = {
            "image_features": image,
            "text_features": text[which],
            "logit_scale": self.coca.logit_scale.exp(),
        }
        if captions is not None:
            out["logits"] = self.coca.text_decoder(image_tokens, embedded[captions][:, :-1])
            out["labels"] = tokens[captions][:, 1:]
        return out


def contrastive_loss(logits: Tensor, text_ids: Tensor, targets: str = "same_text") -> Tensor:
    """Symmetric image–text cross-entropy of a similarity matrix, in nats.

    Args:
        logits: `(n, n)`, study × text, scaled by the temperature.
        text_ids: `(n,)`, equal where two studies have the same text.
        targets: ``identity``: study i belongs to text i alone (CLIP, Radford 2021, arXiv 2103.00020). ``same_text``:
            it belongs equally to all copies of its text; the targets' own entropy is taken off, so that a perfect
            encoder reaches 0 (Khosla 2020, arXiv 2004.11362, has the same gradient per direction).
    """
    same = torch.eye(len(text_ids), dtype=torch.bool, device=logits.device)
    if targets == "same_text":
        same = text_ids[:, None] == text_ids[None]
    target = same / same.sum(1, keepdim=True)
    loss = torch.stack(
        [-(target * side.log_softmax(1)).sum(1).mean() for side in (logits, logits.T)]
    ).mean()
    return loss - same.sum(1).log().mean()


def caption_loss(logits: Tensor, labels: Tensor, pad_id: int, world_size: int = 1) -> Tensor:
    """Mean cross-entropy per token that is not padding (open_clip's ``CoCaLoss``); over all processes' tokens."""
    tokens = (labels != pad_id).sum()
    if world_size > 1:
        torch.distributed.all_reduce(tokens)
    total = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=pad_id, reduction="sum"
    )
    return total * world_size / tokens


def all_losses(
    out: Mapping[str, Tensor],
    text_ids: Tensor,
    settings: FitSettings,
    pad_id: int,
    world_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """Contrastive loss over the global batch, and caption loss (0 where there are no captions)."""
    image, text = out["image_features"], out["text_features"]
    if world_size > 1:
        from open_clip.loss import gather_features

        image, text = gather_features(image, text, gather_with_grad=True, world_size=world_size)
        everyone = [torch.zeros_like(text_ids) for _ in range(world_size)]
        torch.distributed.all_gather(everyone, text_ids)
        text_ids = torch.cat(everyone)
    contrast = contrastive_loss(out["logit_scale"] * image @ text.T, text_ids, settings.targets)
    if "logits" not in out:
        return contrast, contrast.new_zeros(())
    return contrast, caption_loss(out["logits"], out["labels"], pad_id, world_size)


def learning_rate(step: int, steps: int, settings: FitSettings) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(settings.warmup * steps))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    return (
        settings.learning_rate
        * 0.5
        * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    )


def adamw(module: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov 2019, arXiv 1711.05101); biases, norms and single numbers are not decayed, and a Hugging Face
    encoder's weights, which have learned their language, move at ``text_encoder_rate`` of the rate."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, weight in module.named_parameters():
        known = settings.text_encoder_rate if name.startswith("coca.text.net.") else 1.0
        groups.setdefault((weight.ndim < 2, known), []).append(weight)
    parts = [
        {
            "params": weights,
            "weight_decay": 0.0 if single else settings.weight_decay,
            "share": known,
        }
        for (single, known), weights in sorted(groups.items(), key=lambda part: part[0])
    ]
    return torch.optim.AdamW(parts, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def synchronised_norms(model: nn.Module) -> nn.Module:
    """The model with batch norms whose statistics are of all processes' batches together.

    By timm's converter: torch's own replaces timm's norms by bare ones, without the activation that they hold.
    """
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


def require_two_texts(texts: Sequence[str]) -> None:
    """Refuse, with an InputError, texts of which all are the same: nothing can be told apart by them."""
    if len(set(texts)) < 2:
        problem = f"all {len(texts)} say the same: {texts[0]!r}" if texts else "there are none"
        remedy = "Give studies with and without scar, or let synthetic_per_real be above 0"
        raise InputError("training texts", problem, remedy)


def run_fingerprint(
    settings: FitSettings,
    texts: Sequence[Sequence[str]],
    weights: Mapping[str, Tensor],
    *batches: StudyBatch,
) -> str:
    """16 hex digits of what a training run is made of: first weights, studies and texts of training and validation."""
    about = settings.model_dump(exclude={"workers"})
    digest = hashlib.sha256(
        json.dumps([about, [list(options) for options in texts]], sort_keys=True).encode()
    )
    for part in itertools.chain(weights.values(), *batches):
        digest.update(np.ascontiguousarray(part.cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


def fit(
    pairs: Pairs,
    settings: FitSettings,
    *,
    synthetic: Pairs | None = None,
    fresh: Callable[[range], Iterable[Pairs]] | None = None,
    validation: Pairs | None = None,
    tokenizer: ReportTokenizer | None = None,
    encoder_state: Mapping[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
    fabric: Any = None,
    stop_after: int | None = None,
) -> FitResult:
    """Train a CoCa on studies and texts.

    Args:
        pairs: the real studies.
        settings: everything else that matters.
        synthetic: a pool of synthetic pairs; ``synthetic_per_real`` × studies of it are drawn in each epoch.
        fresh: gives each epoch of a range synthetic pairs of its own (`lgekit.clip.fit`). Where it is given, the
            pool, one epoch's worth, serves the tokenizer alone.
        validation: studies whose contrastive loss chooses the epoch whose weights are kept (unless weights are
            averaged) and decides on early stopping; no label is used.
        tokenizer: one to use; trained on the texts if None.
        encoder_state: weights of the segmentation network's encoder (``encoder_init="segmentation"``).
        checkpoint: a file that holds the last whole epoch; where it exists, training goes on from it. It must be of
            the same settings, texts and images.
        progress: show a bar with the loss and the time left.
        fabric: a launched ``lightning_fabric.Fabric``; one CPU or GPU process if None (a GPU in bfloat16). Of
            several processes each takes its share of every step, all that is equal in number; where the network leaves
            weights without a gradient (``caption_weight=0``, Hugging Face encoders) give it
            ``strategy="ddp_find_unused_parameters_true"``.
        stop_after: end after this epoch, as a kill would (for tests).

    Returns:
        the network in eval mode on the CPU, its tokenizer and the history.

    Raises:
        InputError: fewer than two studies, a batch too small for the processes, a checkpoint of another run, or losses
            that are no numbers any more.
    """
    from lightning_fabric import Fabric
    from tqdm.auto import trange

    if len(pairs) < 2:
        raise InputError(
            "training studies", f"{len(pairs)} found", "Contrastive training needs two or more."
        )
    if fabric is None:
        halved = trains_in_bfloat16(accelerator(), settings.bfloat16)
        fabric = Fabric(
            accelerator=accelerator().type,
            devices=1,
            precision="bf16-mixed" if halved else "32-true",
        )
    if settings.batch_size < 2 * fabric.world_size:
        remedy = f"Give {2 * fabric.world_size} or more, or fewer processes."
        raise InputError(
            "setting batch_size", f"{settings.batch_size} for {fabric.world_size} processes", remedy
        )
    told = [pairs, synthetic] if synthetic else [pairs]
    require_two_texts([options[0] for group in told for options in group.texts])
    if validation is not None and len({options[0] for options in validation.texts}) < 2:
        if fabric.global_rank == 0:
            warnings.warn(
                "the validation texts are all the same: they choose no epoch", stacklevel=2
            )
        validation = None
    if settings.shuffle_text:
        told = dealt(np.random.default_rng([settings.seed, 77]), *told)
        if validation is not None:  # whose texts choose the epoch
            (validation,) = dealt(np.random.default_rng([settings.seed, 78]), validation)
    all_texts = [options for group in told for options in group.texts]
    if tokenizer is None and settings.text_encoder == "scratch":
        corpus = [text for texts in all_texts for text in texts]
        tokenizer = ReportTokenizer.train(corpus, settings.vocabulary, settings.longest_text)
    elif tokenizer is None:
        tokenizer = ReportTokenizer.from_hugging_face(settings.text_encoder, settings.longest_text)
    if cut := tokenizer.share_cut(sorted({text for texts in all_texts for text in texts})):
        warnings.warn(
            f"{cut:.0%} of the texts are longer than {tokenizer.context_length} tokens; their ends are not read. "
            "Set context_length higher.",
            stacklevel=2,
        )

    device = fabric.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model = build_coca(settings, tokenizer)
        if encoder_state is not None and settings.encoder_init == "segmentation":
            model.visual.load_segmentation(encoder_state)
        if (
            device.type == "cuda" and fabric.world_size > 1
        ):  # statistics of the whole batch, as in a single process
            model = synchronised_norms(model)
        module = ContrastiveCaptioner(model)
        wrapped, optimizer = fabric.setup(module, adamw(module, settings))
        pairs = Pairs(pairs.batch.to(device), pairs.texts)
        store = Store.of(tokenizer, device, *told)

        state = TrainingState()
        if checkpoint:
            held = validation or Pairs(store.studies.rows(slice(0)), [])
            # the polar view's first weights follow from its pictures, but not to the last bit on every machine
            first = (
                encoder_state
                if settings.encoder_init == "segmentation" and settings.frame == "image"
                else None
            )
            fingerprint = run_fingerprint(
                settings, [*all_texts, *held.texts], first or {}, store.studies, held.batch
            )
            state = TrainingState.load(checkpoint, module, optimizer, fingerprint)
            if len(state.history) != fabric.broadcast(len(state.history)):
                raise InputError(
                    checkpoint,
                    "is not the same for all processes",
                    "Put it on a disk that all share.",
                )
        per_epoch = sum(1 for _ in store.batches(0, settings))
        steps, captions = per_epoch * settings.epochs, settings.caption_weight > 0
        bar = trange(
            len(state.history), settings.epochs, initial=len(state.history), total=settings.epochs, unit="epoch",
            desc="training", disable=not (progress and fabric.global_rank == 0), leave=False,
        )  # fmt: skip
        anew = iter(fresh(range(len(state.history), settings.epochs))) if fresh else None
        for epoch in bar:
            if state.stale(settings.patience):
                break
            started, sums = time.perf_counter(), torch.zeros(2, device=device)
            if anew is not None:
                told = [pairs, next(anew)]
                if settings.shuffle_text:
                    told = dealt(np.random.default_rng([settings.seed, 77, epoch]), *told)
                store = Store.of(tokenizer, device, *told)
            torch.manual_seed(settings.seed * 100_003 + epoch * 101 + fabric.global_rank)  # dropout
            generator = torch.Generator().manual_seed(
                settings.seed * 100_003 + epoch + 7919 * fabric.global_rank
            )
            wrapped.train()
            for step, (index, chosen) in enumerate(store.batches(epoch, settings)):
                mine = slice(
                    fabric.global_rank,
                    len(index) // fabric.world_size * fabric.world_size,
                    fabric.world_size,
                )
                studies, *words, ids = store.step_inputs(index[mine], chosen[mine], captions)
                batch = augment(studies, settings, generator)
                rate = learning_rate(epoch * per_epoch + step, steps, settings)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["share"]
                out = wrapped(batch, *words)
                contrast, caption = all_losses(
                    out, ids, settings, tokenizer.pad_id, fabric.world_size
                )
                optimizer.zero_grad()
                fabric.backward(contrast + settings.caption_weight * caption)
                fabric.clip_gradients(wrapped, optimizer, max_norm=1.0, error_if_nonfinite=False)
                optimizer.step()
                with torch.no_grad():
                    model.logit_scale.clamp_(0, math.log(100))
                    sums += torch.stack([contrast.detach(), caption.detach()])
            means = fabric.all_reduce(sums / (step + 1), reduce_op="mean").tolist()
            if not np.isfinite(means).all():
                remedy = "Lower learning_rate, and look for pictures that are empty or not finite."
                raise InputError(
                    "training", f"the loss of epoch {epoch + 1} is not a number", remedy
                )
            row = dict(zip(("contrastive", "caption"), means, strict=True))
            row |= {"epoch": epoch + 1, "learning_rate": rate}
            state.average_in(model, settings.average)
            if validation is not None:
                # one process decides for all: their running statistics (BatchNorm) may differ
                own = validation_loss(model, tokenizer, validation, settings, device)
                row["validation_contrastive"] = fabric.broadcast(own)
            row["seconds"] = time.perf_counter() - started
            state.add(row, model)
            bar.set_postfix(
                contrastive=f"{row['contrastive']:.3f}", caption=f"{row['caption']:.3f}"
            )
            if checkpoint and fabric.global_rank == 0:
                state.save(checkpoint, module, optimizer)
            if stop_after is not None and epoch + 1 >= stop_after:
                break
        model.load_state_dict(state.final(model))
    return FitResult(model.cpu().eval(), tokenizer, pd.DataFrame(state.history))


@torch.no_grad()
def validation_loss(
    model: CoCaModel,
    tokenizer: ReportTokenizer,
    pairs: Pairs,
    settings: FitSettings,
    device: torch.device,
) -> float:
    """Contrastive loss of all validation studies as one batch, first text of each, without augmentation."""
    model.eval()
    texts = [options[0] for options in pairs.texts]
    distinct = sorted(set(texts))
    ids = torch.tensor([distinct.index(text) for text in texts], device=device)
    image = model.encode_image(pairs.batch.to(device)).float()
    text = model.encode_text(tokenizer(distinct).to(device)).float()[ids]
    loss = contrastive_loss(model.logit_scale.exp().float() * image @ text.T, ids, settings.targets)
    model.train()
    return float(loss)
