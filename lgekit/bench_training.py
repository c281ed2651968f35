"""How fast studies are learned from and read: the training loop against its network and against open_clip's; `predict`.

The machine's speed drifts, so each ratio comes from parts that take turns in one run; medians.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from joblib import cpu_count
from torch import Tensor, nn

from lgekit.augmentation import augment
from lgekit.detection import Detector
from lgekit.detector import cohort_pairs
from lgekit.fresh_scars import MOST_PAINTERS, FreshScars
from lgekit.model import CoCaModel, StudyBatch, build_coca
from lgekit.pairs import Pairs, Store
from lgekit.polar_pretraining import pretrain_polar
from lgekit.precision import accelerator, trains_in_bfloat16
from lgekit.settings import FitSettings, size_settings
from lgekit.studies import Cohort
from lgekit.supervision import report_texts
from lgekit.tokenizer import ReportTokenizer
from lgekit.training import ContrastiveCaptioner, adamw, all_losses, fit
from lgekit.zeroshot import Calibration

ROUNDS = 5


def benchmark_fit(studies: int = 96) -> list[dict[str, Any]]:
    """A step of `fit` against the bare step on a ready batch, and studies/s against open_clip's own loop and loader;
    all on the GPU and in bfloat16 where there is one.

    A fit's first epoch builds and fills what later ones reuse (the optimiser's moments, the allocator's blocks), as the
    bare step's warm-up does: it is left out.

    Returns:
        Rows of the table: ``name``, ``value``, ``unit``, ``target``.
    """
    settings = size_settings("laptop", synthetic_per_real=0.0, epochs=3, masks="true")
    pairs = phantom_pairs(studies, settings)
    ours, bare, theirs = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        step, epoch = bare_step(pairs, settings), open_clip_epoch(pairs, settings, Path(folder))
        count = -(-studies // settings.batch_size)
        for number in range(ROUNDS + 1):
            result = fit(pairs, settings.override(seed=number), progress=False)
            ours.append(float(result.history["seconds"].iloc[1:].mean()) / count)
            bare.append(_seconds(lambda: [step() for _ in range(2 * count)]) / (2 * count))
            theirs.append(_seconds(epoch) / studies)
    mine, least, other = (float(np.median(part[1:])) for part in (ours, bare, theirs))  # the first round warms up
    rows = [
        ("training step of fit", 1e3 * mine, "ms", ""),
        ("forward + backward + optimiser on a ready batch", 1e3 * least, "ms", ""),
        ("fit / bare step", mine / least, "×", "≤ 1.1"),
        ("fit", studies / (mine * count), "studies/s", ""),
        ("open_clip's loop and default loader, studies as PNG files", 1 / other, "studies/s", ""),
        ("fit / open_clip", other * studies / (mine * count), "×", "≥ 3"),
    ]
    return [dict(zip(("name", "value", "unit", "target"), row, strict=True)) for row in rows]


def benchmark_paper(studies: int = 965, settings: FitSettings | None = None) -> list[dict[str, Any]]:
    """Training of one network at the paper's size on a GPU, from views to the last epoch: all studies learned from, two
    synthetic scars for each, painted anew in every epoch. Along the true contours, so that no heart network is timed.

    Args:
        studies: of the phantom.
        settings: others than the paper's, which are also timed where there is no GPU.

    Returns:
        Rows of the table: ``name``, ``value``, ``unit``, ``target``; none without a GPU, where it takes an hour.
    """
    if settings is None and not torch.cuda.is_available():
        return []
    settings = settings or size_settings("paper", masks="true", models=1)
    from lgekit.phantom import phantom_cohort

    cohort = phantom_cohort(studies, seed=0)
    pairs, scars = cohort_pairs(cohort, settings), FreshScars(cohort, settings, min(MOST_PAINTERS, cpu_count() - 1))
    first = scars[settings.epochs]  # no epoch's own: for the tokenizer alone

    def train() -> None:
        state = pretrain_polar(pairs.batch.to(accelerator()), settings, progress=False)
        fit(pairs, settings, synthetic=first, fresh=scars, encoder_state=state, progress=False)

    about = f"{studies} studies, {settings.synthetic_per_real:g} synthetic for each, {settings.epochs} epochs"
    row = (f"training, paper size: {about}", _seconds(train), "s", "≤ 180")
    return [dict(zip(("name", "value", "unit", "target"), row, strict=True))]


def phantom_pairs(studies: int, settings: FitSettings) -> Pairs:
    """Views and texts of phantom studies, along their true contours."""
    from lgekit.phantom import phantom_cohort

    return cohort_pairs(phantom_cohort(studies, seed=0), settings)


def bare_step(pairs: Pairs, settings: FitSettings) -> Callable[[], Tensor]:
    """Forward, backward and optimiser of the network that `fit` trains, on the batches of an epoch of it, made ready
    before: their pictures already varied, their texts already drawn and gathered."""
    device = accelerator()
    tokenizer = ReportTokenizer.train(_words(pairs), settings.vocabulary, settings.longest_text)  # as `fit` does
    module = ContrastiveCaptioner(build_coca(settings, tokenizer)).to(device).train()
    optimizer, generator = adamw(module, settings), torch.Generator().manual_seed(0)
    store = Store.of(tokenizer, device, pairs)
    halved = trains_in_bfloat16(device, settings.bfloat16)
    ready: list[tuple[Any, ...]] = []
    for index, chosen in store.batches(0, settings):
        studies, *words = store.step_inputs(index, chosen, captions=True)
        ready.append((augment(studies, settings, generator), *words))
    batches = itertools.cycle(ready)

    def step() -> Tensor:
        *inputs, ids = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=halved):
            out = module(*inputs)
        out = {name: value.float() if value.is_floating_point() else value for name, value in out.items()}
        contrast, caption = all_losses(out, ids, settings, tokenizer.pad_id)
        optimizer.zero_grad()
        (loss := contrast + settings.caption_weight * caption).backward()
        optimizer.step()
        return loss.detach()

    return step


class _Files(torch.utils.data.Dataset):
    """open_clip's ``CsvDataset`` (open_clip_train/data.py, whose module needs packages that we do not)."""

    def __init__(self, table: pd.DataFrame, transforms: Callable, tokenize: Callable):
        self.images, self.captions = table["filepath"].tolist(), table["title"].tolist()
        self.transforms, self.tokenize = transforms, tokenize

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        return self.transforms(Image.open(self.images[index])), self.tokenize([self.captions[index]])[0]


class _Strip(nn.Module):
    """A vision tower that takes what open_clip's loader gives: the slices of a study one below the other."""

    def __init__(self, visual: nn.Module, slices: int):
        super().__init__()
        self.visual, self.slices = visual, slices

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        images = pictures[:, 0].unflatten(1, (self.slices, -1))[:, :, None]
        levels = torch.linspace(0, 1, self.slices, device=images.device).expand(len(images), -1)
        return self.visual(StudyBatch(images, levels, torch.ones_like(levels, dtype=torch.bool)))


def open_clip_epoch(pairs: Pairs, settings: FitSettings, folder: Path) -> Callable[[], None]:
    """An epoch of open_clip's ``train_one_epoch`` with its default loader and transforms on the same pictures.

    Each study is a PNG file, its slices one below the other; the network is the one that `fit` trains.
    """
    from open_clip.loss import CoCaLoss
    from open_clip.transform import image_transform
    from open_clip_train.train import train_one_epoch
    from PIL import Image

    tokenizer, device = ReportTokenizer.train(_words(pairs), settings.vocabulary), accelerator()
    coca: CoCaModel = build_coca(settings, tokenizer)
    slices, height, width = (pairs.batch.images.shape[i] for i in (1, 3, 4))
    coca.visual = _Strip(coca.visual, slices)
    coca.to(device)
    rows = []
    for number, (images, texts) in enumerate(zip(pairs.batch.images, pairs.texts, strict=True)):
        picture = ((images.flatten(0, 2).numpy() + 4) * 31.875).round().astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
        rows.append({"filepath": str(folder / f"{number}.png"), "title": texts[0]})

    def tokenize(texts: list[str]) -> Tensor:  # as open_clip's own tokenizers: padded to the context
        ids = tokenizer(texts)
        return nn.functional.pad(ids, (0, tokenizer.context_length - ids.shape[1]), value=tokenizer.pad_id)

    transforms = image_transform((slices * height, width), is_train=True)
    data = _Files(pd.DataFrame(rows), transforms, tokenize)
    loader: Any = torch.utils.data.DataLoader(
        data, batch_size=settings.batch_size, shuffle=True, num_workers=4, drop_last=True
    )
    loader.num_samples, loader.num_batches = len(data), len(loader)
    info = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    loss = CoCaLoss(caption_loss_weight=settings.caption_weight, clip_loss_weight=1.0, pad_id=tokenizer.pad_id)
    precision = "amp_bf16" if device.type == "cuda" else "fp32"
    about = {"device": str(device), "precision": precision, "distill": False, "accum_freq": 1, "skip_scheduler": True}
    about |= {"horovod": False, "grad_clip_norm": 1.0, "rank": 0, "local_rank": 0, "world_size": 1, "wandb": False}
    args = SimpleNamespace(**about, log_every_n_steps=100, batch_size=settings.batch_size, log_local=False)
    optimizer = adamw(coca, settings)
    return lambda: train_one_epoch(coca, info, loss, 0, optimizer, None, None, None, args)


def benchmark_predict(studies: int = 48) -> list[dict[str, Any]]:
    """`Detector.predict` on all cores with one heart network and one CLIP network, nothing taken from the cache.

    The heart network is trained for a few steps only and would be unsure of every heart and search it twice; a trained
    one does so for one of 30 EMIDEC pictures, and here none is searched. The CLIP network is not trained at all: its
    captions never end by themselves, and are cut at the length of long ones.

    Returns:
        Rows of the table: ``name``, ``value``, ``unit``, ``target``.
    """
    from lgekit.phantom import phantom_cohort
    from lgekit.segmentation import fit_heart_network

    settings = size_settings("laptop", context_length=24)
    cohort = phantom_cohort(studies, seed=0)
    words = [text for study in cohort.studies for text in report_texts(study["report"], settings.text)]
    tokenizer = ReportTokenizer.train(words, settings.vocabulary, settings.longest_text)
    heart = fit_heart_network([cohort], steps=60, progress=False)
    detector = Detector(settings, [(build_coca(settings, tokenizer).eval(), tokenizer)], heart, Calibration())
    located = Cohort(heart.predict_cohort(cohort).studies)
    without = Detector(settings, detector.networks, None, Calibration())
    with mock.patch("lgekit.heartnet.SURE", 0.0):
        whole = [_seconds(lambda: _fresh(detector, cohort)) for _ in range(3)]
    rest = [_seconds(lambda: without.predict(located)) for _ in range(3)]
    rows = [
        ("predict, polar view", studies / float(np.median(whole)), "studies/s", "≥ 50"),
        ("predict without the heart network", studies / float(np.median(rest)), "studies/s", ""),
    ]
    return [dict(zip(("name", "value", "unit", "target"), row, strict=True)) for row in rows]


def _fresh(detector: Detector, cohort: Cohort) -> None:
    """Predict with contours found anew: the cache would give them back."""
    located = Cohort(detector.heart.predict_cohort(cohort).studies) if detector.heart else cohort
    Detector(detector.settings, detector.networks, None, detector.calibration).predict(located)


def _words(pairs: Pairs) -> list[str]:
    return [text for texts in pairs.texts for text in texts]


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
