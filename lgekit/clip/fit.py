"""Fit the whole method: heart network, synthetic scars, image and text encoders, calibration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from joblib import Parallel, cpu_count, delayed
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgekit.anatomy.polar import INSIDE, OUTSIDE
from lgekit.anatomy.segments import known_landmarks
from lgekit.cache import accelerator, code_version, compute_once, memory, trains_in_bfloat16
from lgekit.clip.data import (
    REACH,
    ImageTextPairs,
    View,
    _along,
    batch_of,
    even_wall_grid,
    make_view,
)
from lgekit.clip.detector import Detector
from lgekit.clip.model import CoCa, PolarEncoder, StudyBatch, in_parts, join
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.clip.train import fit
from lgekit.clip.zeroshot import Calibration, Reading
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.findings import WALLS
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.reports.training_texts import report_texts
from lgekit.scars.transforms import ScarHost, stated_findings
from lgekit.segmentation.model import HeartNetwork
from lgekit.segmentation.train import base_network, heart_network, locate
from lgekit.study import Cohort, Study, patient_folds


@dataclass(frozen=True)
class SyntheticScar:
    """A study with a synthetic scar: its view, its report, and the id of the original study."""

    view: View
    report: str
    source: str


def synthetic_views(cohort: Cohort, count: int, settings: FitSettings) -> list[SyntheticScar]:
    """`paint_pool`, from the cache if it was made before."""
    if not count:
        return []
    names = {"orientation", "view", "depths", "angles", "pixels", "seed", "min_confidence", "masks"}
    rooms = ("anatomy", "reports", "data", "segmentation", "scars", "clip")
    marks = [repr(known_landmarks(study)) for study in cohort.studies]
    about = settings.model_dump_json(include=names)
    key = (cohort.fingerprint, marks, about, code_version(*rooms))
    cached = memory().cache(_paint_pool, ignore=["cohort", "settings"])
    return compute_once(cached, key, count, cohort, settings)


def _paint_pool(key: tuple, count: int, cohort: Cohort, settings: FitSettings) -> list:
    return paint_pool(cohort, count, settings)


def paint_pool(cohort: Cohort, count: int, settings: FitSettings) -> list[SyntheticScar]:
    """Paint scars into the studies of a cohort whose reports state no scar.

    Args:
        cohort: located studies, or studies with their own labels and landmarks.
        count: number of scars; the studies take turns. Fewer are returned if a study cannot take one.
        settings: view and seed.
    """
    free, made = without_scar(cohort), dict[int, SyntheticScar]()
    for first, study in enumerate(free[:count]):
        try:
            host = ScarHost(study)  # measured once for all its scars
            along = settings.frame == "polar" and settings.masks == "predicted"
            grid = even_wall_grid(study, settings) if along else None  # a scar does not move it
        except InputError:
            continue
        for number in range(first, count, len(free)):
            seed = int(np.random.default_rng([settings.seed, number]).integers(2**31))
            with suppress(InputError):
                scarred = host.paint(seed)
                view = _along(grid, scarred) if grid else make_view(scarred, settings)
                made[number] = SyntheticScar(view, scarred["report"], study["study_id"])
    return [made[number] for number in sorted(made)]


def synthetic_pool(located: Cohort, settings: FitSettings) -> list[SyntheticScar]:
    """Synthetic scars for a fit: ``synthetic_pool`` times as many as an epoch draws.

    Warns if most of them could not be painted.
    """
    count = round(settings.synthetic_per_real * len(located) * settings.synthetic_pool)
    painted = synthetic_views(located, count, settings)
    if len(painted) < count / 2:
        warnings.warn(
            f"{len(painted)} of {count} synthetic scars could be painted: no wall was found in the"
            " other hearts",
            stacklevel=2,
        )
    return painted


def without_scar(cohort: Cohort) -> list[Study]:
    """The studies whose reports state no scar, which can take a synthetic one."""
    return [study for study in cohort.studies if not stated_findings(study).present]


def with_statement(cohort: Cohort) -> list[Study]:
    """The studies whose report says whether there is late enhancement; warns about the others."""
    kept = [study for study in cohort.studies if states_enhancement(study["report"])]
    if silent := sum(bool(study["report"].strip()) for study in cohort.studies) - len(kept):
        warnings.warn(
            f"{silent} reports do not say whether there is late enhancement (only English is read);"
            " their studies are left out",
            stacklevel=3,
        )
    return kept


def require_contrast(train: Cohort, settings: FitSettings) -> None:
    """Raise InputError if reports leave nothing to learn, or no study can take a synthetic scar.

    Warns if all reports state scar.
    """
    free = len(without_scar(train))
    if not free and settings.synthetic_per_real:
        problem = "no training study can take a synthetic scar: by their reports all have scar"
        remedy = "Give studies without scar, or set synthetic_per_real to 0."
        raise InputError(train.name, problem, remedy)
    if not free:
        message = "all training reports state scar: the network cannot learn hearts without scar"
        warnings.warn(message, stacklevel=3)
    if free == len(train) and not settings.synthetic_per_real:
        problem = f"none of {free} training reports states scar: there is nothing to learn"
        remedy = "Give studies with scar, or set synthetic_per_real above 0."
        raise InputError(train.name, problem, remedy)


def warn_of_calibration(held: Sequence[Study]) -> None:
    """Warn if the reports of ``held`` are all of one kind, so that they cannot set a threshold."""
    scarred = sum(read_report(study["report"]).present for study in held)
    if not 0 < scarred < len(held):
        warnings.warn(
            f"{scarred} of {len(held)} studies for calibration have scar by their reports: without"
            " both kinds p_lge > 0.5 is no decision. Put more studies into the split validation,"
            " or fit with --all",
            stacklevel=3,
        )


STRIDE = 4  # of the polar encoder's body
MOST_SLICES = 25_000  # seen in pretraining: limits its time for large cohorts


def warp(
    images: Tensor, reach: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Shift, stretch and bend the depths of `(n, 1, depth, angle)`.

    Returns:
        The images, and their classes `(n, depth, angle)`: 0 cavity, 1 wall, 2 outside.
    """
    count, _, depths, angles = images.shape
    draws = torch.randn(count, 8, generator=generator, device=images.device)
    angle = torch.arange(angles, device=images.device) * (2 * math.pi / angles)
    waves = [draws[:, k, None] * (angle * k + 3 * draws[:, k + 3, None]).cos() for k in (1, 2)]
    bend = waves[0] + waves[1]
    rows = torch.linspace(-1, 1, depths, device=images.device)[:, None]
    rows = rows * (1 + 0.2 * draws[:, 6])[:, None, None]
    rows = rows + (0.2 * draws[:, 7, None] + 0.1 * bend)[:, None]
    columns = torch.linspace(-1, 1, angles, device=images.device).expand(count, depths, angles)
    grid = torch.stack([columns, rows], -1)
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=True)
    depth = -reach[0] + (1 + sum(reach)) * ((rows + 1) / 2 * (depths - 1) + 0.5) / depths
    return warped, (depth >= 0).long() + (depth >= 1).long()


def pretrain_polar(
    batch: StudyBatch, settings: FitSettings, progress: bool = True
) -> dict[str, Tensor]:
    """Train a `PolarEncoder` to find the wall. Returns its state dict, on the batch's device.

    Args:
        batch: training studies; the contours that made their views are the only labels.
        settings: view, channels, batch size, seed, and ``polar_pretraining``, the most rounds over
            all slices; there are fewer rounds if they would see more than `MOST_SLICES`.
        progress: show a bar.
    """
    images, device = batch.images[batch.mask], batch.images.device
    reach = REACH if settings.masks == "predicted" else (INSIDE, OUTSIDE)
    half = trains_in_bfloat16(device, settings.bfloat16)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = PolarEncoder(settings.polar_channels)
        head = nn.Sequential(
            nn.Conv2d(encoder.out_channels, 3 * STRIDE**2, 1), nn.PixelShuffle(STRIDE)
        )
        network = nn.ModuleList([encoder, head]).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, fused=True)
        generator = torch.Generator(device).manual_seed(settings.seed)
        size = 8 * settings.batch_size
        rounds = max(1, min(settings.polar_pretraining, MOST_SLICES // len(images)))
        steps = max(rounds * math.ceil(len(images) / size), 2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
        for _ in tqdm(range(rounds), "polar pretraining", leave=False, disable=not progress):
            for index in torch.randperm(len(images)).split(size):
                pictures, classes = warp(images[index.to(device)], reach, generator)
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    logits = in_parts(lambda part: head(encoder.body(part)), pictures).float()
                logits = logits[..., : classes.shape[-2], : classes.shape[-1]]
                loss = F.cross_entropy(logits, classes[..., : logits.shape[-2], : logits.shape[-1]])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return encoder.state_dict()


Networks = list[tuple[CoCa, ReportTokenizer]]


def fit_detector(
    cohort: Cohort,
    settings: FitSettings,
    all_studies: bool = False,
    progress: bool = True,
    pretrain_on: Sequence[Cohort] = (),
    checkpoints: Path | None = None,
) -> Detector:
    """Train the whole method: heart network, views, synthetic scars, CLIP + captions, calibration.

    Args:
        cohort: studies with reports. Those whose report does not say whether there is late
            enhancement are left out, with a warning. Only the heart network (and the true-mask
            reference) uses masks.
        settings: the method; an ablation row is an override.
        all_studies: False: train on the split ``train``, calibrate on ``validation``; ``test`` is
            not used. True: cross-fit by patient on every study. The networks of each fold see the
            other folds only, their scores of the fold calibrate, and the mean of all networks is
            the detector. If all studies carry a ``fold`` (`lgekit.evaluation.scores.with_fold`),
            these folds are used, so that runs of a cross-validation can share heart networks.
        progress: show bars.
        pretrain_on: further cohorts with masks for the heart network.
        checkpoints: folder for resuming; None: a killed run starts again.

    Raises:
        InputError: too few studies or reports, no masks anywhere, or no pretrained weights for the
            slice encoder.
    """
    if settings.masks == "true":
        _starting_weights(None, settings)  # refuse before a long run: no heart network is trained
    studies = with_statement(cohort)
    train, held = ([s for s in studies if s["split"] == name] for name in ("train", "validation"))
    if len(studies if all_studies else train) < 2:
        where = "in all" if all_studies else "in the split 'train'"
        problem = f"fewer than two studies with a report that mentions late enhancement {where}"
        raise InputError(cohort.name, problem, "Give more studies or reports.")
    require_contrast(Cohort(studies if all_studies else train, cohort.name), settings)
    warn_of_calibration(studies if all_studies else held)
    if all_studies:
        return _cross_fit(
            Cohort(studies, cohort.name), settings, progress, pretrain_on, checkpoints
        )
    splits = Cohort(train, f"{cohort.name} [train]"), Cohort(held, "validation")
    heart = (
        heart_network(splits[0], pretrain_on, settings, progress) if settings.needs_heart else None
    )
    located, validation = (locate(part, heart) if heart and len(part) else part for part in splits)
    networks, histories = train_networks(
        located,
        settings,
        pool=synthetic_pool(located, settings),
        validation=validation,
        encoder_state=_starting_weights(heart, settings),
        checkpoints=checkpoints,
        progress=progress,
    )
    detector = Detector(settings, networks, heart, Calibration(), histories)
    if held:
        views = [make_view(study, settings) for study in validation.studies]
        patients = validation.manifest["patient_id"].to_numpy()
        _calibrate(detector, validation, views, detector.read(batch_of(views)), patients)
    return detector


def _cross_fit(
    cohort: Cohort,
    settings: FitSettings,
    progress: bool,
    pretrain_on: Sequence[Cohort],
    checkpoints: Path | None,
) -> Detector:
    patients = cohort.manifest["patient_id"].nunique()
    if patients < max(settings.folds, settings.heart_folds):
        problem = f"{patients} patients for {settings.folds} inner folds"
        remedy = "Give more studies, or lower the settings folds and heart_folds."
        raise InputError(cohort.name, problem, remedy)
    ids = cohort.manifest["study_id"].to_numpy()
    # the base network has seen no fold
    base = base_network(pretrain_on, settings, progress) if settings.needs_heart else None
    encoder_state = _starting_weights(base, settings)
    heart_fold = _inner_folds(cohort, settings.heart_folds, settings.seed)
    jobs = []
    for k in range(1 + max(heart_fold)):
        rest, own = cohort.subset(ids[heart_fold != k]), cohort.subset(ids[heart_fold == k])
        jobs.append(delayed(_one_thread)(_fold_heart, rest, own, pretrain_on, settings))
    parts = _parallel(jobs, settings, "heart networks", progress)
    hearts = [heart for heart, _ in parts if heart is not None]
    # every study is located by the heart network that has not seen it
    by_id = {study["study_id"]: study for _, own in parts for study in own.studies}
    located = Cohort([by_id[name] for name in ids], cohort.name)
    views = [make_view(study, settings) for study in located.studies]
    pool = synthetic_pool(located, settings)
    fold = _inner_folds(cohort, settings.folds, settings.seed)
    options = {"pool": pool, "encoder_state": encoder_state, "checkpoints": checkpoints}
    jobs = [
        delayed(_one_thread)(
            train_networks, located.subset(ids[fold != k]), settings, fold=k, **options
        )
        for k in range(1 + max(fold))
    ]
    heart = HeartNetwork.mean(hearts) if hearts else None
    detector = Detector(settings, [], heart, Calibration())
    readings = []
    for k, (networks, histories) in enumerate(
        _parallel(jobs, settings, "CLIP + captioning", progress)
    ):
        own = [views[number] for number in np.flatnonzero(fold == k)]
        readings.append(replace(detector, networks=networks).read(batch_of(own)))
        detector.networks += networks
        detector.histories += histories
    _calibrate(detector, located, views, in_order(readings, fold), fold)
    return detector


def _inner_folds(cohort: Cohort, folds: int, seed: int) -> np.ndarray:
    """Fold of each study, 0 …: by patient, or the folds that all studies carry."""
    carried = [study.get("fold") for study in cohort.studies]
    if None in carried or len(set(carried)) < 2:
        return patient_folds(cohort, folds, seed)
    return np.unique(np.array(carried), return_inverse=True)[1]


def _fold_heart(
    train: Cohort, own: Cohort, pretrain_on: Sequence[Cohort], settings: FitSettings
) -> tuple[HeartNetwork | None, Cohort]:
    """The heart network of a fold, and the fold's own studies located by it."""
    if not settings.needs_heart:
        return None, own
    heart = heart_network(train, pretrain_on, settings, progress=False)
    return heart, locate(own, heart)


def _parallel(jobs: list, settings: FitSettings, what: str, progress: bool) -> list:
    """Results of the folds' jobs, in order: one process per core, or in turn on a GPU."""
    workers = 1 if torch.cuda.is_available() else min(settings.workers or cpu_count(), len(jobs))
    results = Parallel(n_jobs=workers, return_as="generator")(jobs)
    return list(tqdm(results, desc=what, total=len(jobs), unit="fold", disable=not progress))


def _one_thread(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call on one thread of torch, so that the number of processes changes no result."""
    if torch.cuda.is_available():
        return call(*arguments, **named)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call(*arguments, **named)
    finally:
        torch.set_num_threads(before)


def _starting_weights(
    heart: HeartNetwork | None, settings: FitSettings
) -> dict[str, Tensor] | None:
    """First weights of the image view's slice encoder; None if random, or in the polar view."""
    if settings.encoder_init != "segmentation" or settings.frame == "polar":
        return None
    if heart is None:
        problem = "'segmentation' in the image view needs a heart network, and none is trained"
        remedy = (
            "Set masks='predicted' and heart_phantom > 0 (or give pretrain_on), or"
            " encoder_init='random'."
        )
        raise InputError("setting encoder_init", problem, remedy)
    return heart.encoder_state()


def cohort_pairs(cohort: Cohort, settings: FitSettings) -> ImageTextPairs:
    """Views of located studies, with their training texts."""
    views = [make_view(study, settings) for study in cohort.studies]
    texts = [report_texts(study["report"], settings.text) for study in cohort.studies]
    return ImageTextPairs(batch_of(views), texts)


def train_networks(
    train: Cohort,
    settings: FitSettings,
    *,
    pool: Sequence[SyntheticScar] = (),
    validation: Cohort | None = None,
    encoder_state: dict[str, Tensor] | None = None,
    checkpoints: Path | None = None,
    fold: int = 0,
    progress: bool = False,
) -> tuple[Networks, list[pd.DataFrame]]:
    """Train ``settings.models`` networks. Returns them and their histories.

    Args:
        train: located studies.
        settings: of the fit.
        pool: synthetic scars; only those painted into studies of ``train`` are used.
        validation: located studies that select the epoch.
        encoder_state: first weights of the image view's slice encoder.
        checkpoints: folder for resuming.
        fold: number of the inner fold; sets the seeds.
        progress: show bars.
    """
    pairs, ids = cohort_pairs(train, settings), set(train.manifest["study_id"])
    own = [scar for scar in pool if scar.source in ids]
    texts = [report_texts(scar.report, settings.text) for scar in own]
    synthetic = ImageTextPairs(batch_of([scar.view for scar in own]), texts) if own else None
    held = cohort_pairs(validation, settings) if validation and len(validation) > 1 else None
    if settings.frame == "polar" and settings.encoder_init == "segmentation":
        every = join(pairs.batch, synthetic.batch) if synthetic else pairs.batch
        first = settings.override(seed=settings.seed + 100 * fold)
        encoder_state = pretrain_polar(every.to(accelerator()), first, progress)
    networks, histories = [], []
    for number in range(settings.models):
        result = fit(
            pairs,
            settings.override(seed=settings.seed + 1000 * number + 100 * fold),
            synthetic=synthetic,
            validation=held,
            encoder_state=encoder_state,
            checkpoint=checkpoints / f"fold{fold}_{number}.pt" if checkpoints else None,
            progress=progress,
        )
        networks.append((result.model, result.tokenizer))
        histories.append(result.history)
    return networks, histories


def in_order(readings: Sequence[Reading], fold: np.ndarray) -> Reading:
    """The folds' readings as one, in the order of the studies; slices are padded with NaN."""
    order = np.argsort(np.argsort(fold, kind="stable"))

    def merge(parts: list[np.ndarray]) -> np.ndarray:
        shape = np.max([part.shape[1:] for part in parts], axis=0)
        whole = np.full((len(fold), *map(int, shape)), np.nan)
        first = 0
        for part in parts:
            whole[first : first + len(part)][tuple(map(slice, (len(part), *part.shape[1:])))] = part
            first += len(part)
        return whole[order]

    return Reading.merge(merge, readings)


def _calibrate(
    detector: Detector, cohort: Cohort, views: Sequence[View], reading: Reading, group: np.ndarray
) -> None:
    """Calibrate a detector on studies that its networks were not trained on."""
    cohort = calibration_reports(cohort, detector.settings)
    detector.calibration = calibrate(reading, cohort)
    detector.held_out = held_out_table(detector, cohort, views, reading, group)


def calibration_reports(cohort: Cohort, settings: FitSettings) -> Cohort:
    """The cohort with the reports that calibrate: with ``shuffle_text`` each study has another's.

    With its own reports, the control would learn the direction of its scores from text.
    """
    if not settings.shuffle_text:
        return cohort
    order = np.random.default_rng([settings.seed, 79]).permutation(len(cohort))
    giver = dict(zip(order, np.roll(order, 1), strict=True))  # a ring: nobody keeps the own report
    studies = [
        Study(**{**study, "report": cohort.studies[giver[number]]["report"]})
        for number, study in enumerate(cohort.studies)
    ]
    return Cohort(studies, cohort.name)


def calibrate(reading: Reading, cohort: Cohort) -> Calibration:
    """Platt scaling to the reports. A report of scar without a place does not calibrate walls."""
    found = [read_report(study["report"]) for study in cohort.studies]
    walls = np.array([[wall in one.walls for wall in WALLS] for one in found])
    placed = np.array([bool(one.walls) or not one.present for one in found])
    return Calibration.fit(reading, [one.present for one in found], walls, placed)


def held_out_table(
    detector: Detector, cohort: Cohort, views: Sequence[View], reading: Reading, group: np.ndarray
) -> pd.DataFrame:
    """Predictions of the studies that calibrate the detector, as if they had not: each group
    (patient or fold) is calibrated on the reports of the others. Captions are empty."""
    ids, parts = cohort.manifest["study_id"].to_numpy(), []
    for one in np.unique(group):
        own, others = np.flatnonzero(group == one), np.flatnonzero(group != one)
        fitted = Calibration()
        if len(others):
            fitted = calibrate(reading.rows(others), cohort.subset(ids[others]))
        part = replace(detector, calibration=fitted).table(
            cohort.subset(ids[own]),
            [views[number] for number in own],
            reading.rows(own),
            [""] * len(own),
        )
        parts.append(part.set_axis(own))
    return pd.concat(parts).sort_index()
