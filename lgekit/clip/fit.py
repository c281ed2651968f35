"""Fit the whole method: heart network, synthetic scars, image and text encoders, calibration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from joblib import Parallel, cpu_count, delayed
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgekit import cache
from lgekit.anatomy.polar import EVEN_INSIDE, EVEN_OUTSIDE, INSIDE, OUTSIDE
from lgekit.anatomy.segments import known_landmarks
from lgekit.clip.data import ImageTextPairs, View, batch_of, make_view, view_grid
from lgekit.clip.detector import Detector
from lgekit.clip.language import Language, taught_language
from lgekit.clip.model import CoCa, PolarEncoder, ReportTokenizer, StudyBatch, in_parts, join
from lgekit.clip.train import fit
from lgekit.clip.zeroshot import Calibration, Reading
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.reports.reader import states_enhancement
from lgekit.reports.writer import canonical_text, report_texts
from lgekit.scars.transforms import ScarPainter, stated_findings
from lgekit.segmentation.model import HeartNetwork
from lgekit.segmentation.train import base_network, heart_network, locate
from lgekit.study import Cohort, Study, patient_folds


@dataclass(frozen=True)
class SyntheticScar:
    """A study with a synthetic scar: its view, its report, and the id of the original study."""

    view: View
    report: str
    source: str


def paint_pool(
    free: Sequence[Study], count: int, settings: FitSettings, key: object = None
) -> list[SyntheticScar]:
    """Paint scars into located studies whose reports state no scar, in turn.

    Fewer than ``count`` are returned if some studies cannot take one. ``key`` is for the cache.
    """
    made: dict[int, SyntheticScar] = {}
    for first, study in enumerate(free[:count]):
        try:
            painter = ScarPainter(study)  # measured once for all its scars
            along = settings.frame == "polar" and settings.masks == "predicted"
            grid = view_grid(study, settings) if along else None  # a scar does not change it
        except InputError:
            continue
        for number in range(first, count, len(free)):
            seed = int(np.random.default_rng([settings.seed, number]).integers(2**31))
            with suppress(InputError):
                scarred = painter.random_copy(seed)
                view = grid.study_view(scarred) if grid else make_view(scarred, settings)
                made[number] = SyntheticScar(view, scarred["report"], study["study_id"])
    return [made[number] for number in sorted(made)]


def synthetic_pool(
    located: Cohort, settings: FitSettings, language: Language | None = None
) -> list[SyntheticScar]:
    """Paint (or take from the cache) ``synthetic_pool`` times as many scars as an epoch draws.

    ``language`` says whose reports deny scar; without it the report reader does.
    """
    count = round(settings.synthetic_per_real * len(located) * settings.synthetic_pool)
    if not count:
        return []
    names = {"orientation", "view", "depths", "angles", "pixels", "seed", "min_confidence", "masks"}
    marks = [repr(known_landmarks(study)) for study in located.studies]
    about = settings.model_dump_json(include=names)
    code = cache.code_version(*cache.FIT_ROOMS)
    cached = cache.memory().cache(paint_pool, ignore=["free", "settings"])
    free = without_scar(located.studies, language)
    key = located.fingerprint, [study["study_id"] for study in free], marks, about, code
    painted = cache.compute_once(cached, free, count, settings, key)
    if len(painted) < count / 2:
        message = f"{len(painted)} of {count} synthetic scars could be painted"
        warnings.warn(f"{message}: no wall was found in the other hearts", stacklevel=2)
    return painted


def usable_studies(
    cohort: Cohort, settings: FitSettings, all_studies: bool
) -> tuple[Cohort, Cohort]:
    """The studies to train on and those to calibrate on: the splits, or all studies for both.

    Reports that do not say whether there is late enhancement are left out. Warns or raises
    InputError if the others leave little or nothing to learn.
    """
    train = valid = [study for study in cohort.studies if states_enhancement(study["report"])]
    if silent := sum(bool(study["report"].strip()) for study in cohort.studies) - len(train):
        message = f"{silent} reports do not say whether there is late enhancement in English"
        warnings.warn(f"{message}; their studies are left out", stacklevel=3)
    if not all_studies:
        valid = [study for study in train if study["split"] == "validation"]
        train = [study for study in train if study["split"] == "train"]
    where = cohort.name if all_studies else f"{cohort.name} [train]"
    free, painted = len(without_scar(train)), settings.synthetic_per_real > 0
    problem = remedy = ""
    if len(train) < 2:
        problem = "fewer than two studies with a report that mentions late enhancement"
        remedy = "Give more studies or reports."
    elif not free and painted:
        problem = "no training study can take a synthetic scar: by their reports all have scar"
        remedy = "Give studies without scar, or set synthetic_per_real to 0."
    elif free == len(train) and not painted:
        problem = f"none of {free} training reports states scar: there is nothing to learn"
        remedy = "Give studies with scar, or set synthetic_per_real above 0."
    if problem:
        raise InputError(where, problem, remedy)
    if not free:
        message = "all training reports state scar: the network cannot learn hearts without scar"
        warnings.warn(message, stacklevel=3)
    scarred = len(valid) - len(without_scar(valid))
    if not 0 < scarred < len(valid):
        message = f"{scarred} of {len(valid)} studies for calibration have scar by their reports"
        remedy = "Put more studies into the split validation, or fit with --all"
        warnings.warn(f"{message}: p_lge > 0.5 is then unreliable. {remedy}", stacklevel=3)
    return Cohort(train, where), Cohort(valid, "validation")


def without_scar(studies: Sequence[Study], language: Language | None = None) -> list[Study]:
    """The studies whose reports state no scar, which can take a synthetic one."""
    if language is None or not studies:
        return [study for study in studies if not stated_findings(study).present]
    placed = language.said([study["report"] for study in studies])[:, 1:].amax(1)
    none = canonical_text(Findings())  # instead of the report, which is not read again
    return [Study(**{**study, "report": none}) for study in compress(studies, placed < 0.5)]


STRIDE = 4  # of the polar encoder's body
MOST_SLICES = 25_000  # seen in pretraining: limits its time for large cohorts


def warp(
    images: Tensor, reach: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Shift, stretch and bend the depths of `(n, 1, depth, angle)`.

    Returns the images, and their classes `(n, depth, angle)`: 0 cavity, 1 wall, 2 outside.
    """
    count, _, depths, angles = images.shape
    device = images.device
    draws = torch.randn(count, 8, generator=generator, device=device)
    angle = torch.arange(angles, device=device) * (2 * math.pi / angles)
    waves = [draws[:, k, None] * (angle * k + 3 * draws[:, k + 3, None]).cos() for k in (1, 2)]
    rows = torch.linspace(-1, 1, depths, device=device)[:, None]
    rows = rows * (1 + 0.2 * draws[:, 6])[:, None, None]
    rows = rows + (0.2 * draws[:, 7, None] + 0.1 * (waves[0] + waves[1]))[:, None]
    columns = torch.linspace(-1, 1, angles, device=device).expand(count, depths, angles)
    grid = torch.stack([columns, rows], -1)
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=True)
    depth = -reach[0] + (1 + sum(reach)) * ((rows + 1) / 2 * (depths - 1) + 0.5) / depths
    return warped, (depth >= 0).long() + (depth >= 1).long()


def pretrain_polar(
    batch: StudyBatch, settings: FitSettings, progress: bool = True
) -> dict[str, Tensor]:
    """Train a `PolarEncoder` to find the wall; the contours that made the views are the labels.

    Returns its state dict, on the batch's device.
    """
    images, device = batch.images[batch.mask], batch.images.device
    reach = (EVEN_INSIDE, EVEN_OUTSIDE) if settings.masks == "predicted" else (INSIDE, OUTSIDE)
    half = cache.trains_in_bfloat16(device, settings.bfloat16)
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
            enhancement are left out. Masks train the heart network (and the true-mask reference).
        settings: the method; an ablation row is an override.
        all_studies: False: train on the split ``train``, calibrate on ``validation``. True:
            cross-fit by patient, or by the ``fold`` that all studies carry: the networks of each
            fold see the other folds only, their scores of it set the calibration, and the mean of
            all networks is the detector.
        progress: show bars.
        pretrain_on: further cohorts with masks for the heart network.
        checkpoints: a folder from `lgekit.clip.train.resumable`; None: no resuming.
    """
    if settings.masks == "true":
        _starting_weights(None, settings)  # refuse before a long run: no heart network is trained
    train, valid = usable_studies(cohort, settings, all_studies)
    language = taught_language(settings) if settings.taught else None
    options: dict[str, Any] = {"checkpoints": checkpoints, "language": language}
    if all_studies:
        return _cross_fit(train, settings, progress, pretrain_on, options)
    heart = heart_network(train, pretrain_on, settings, progress) if settings.needs_heart else None
    train, valid = (locate(part, heart) if heart and len(part) else part for part in (train, valid))
    pool, start = synthetic_pool(train, settings, language), _starting_weights(heart, settings)
    options |= {"validation": valid, "progress": progress}
    networks, histories = train_networks(train, settings, pool, start, **options)
    detector = Detector(settings, networks, heart, Calibration(), histories)
    if len(valid):
        views, patients = detector.views(valid), valid.manifest["patient_id"].to_numpy()
        calibrate(detector, valid, views, detector.read(batch_of(views)), patients)
    return detector


def _cross_fit(
    cohort: Cohort,
    settings: FitSettings,
    progress: bool,
    pretrain_on: Sequence[Cohort],
    options: dict[str, Any],
) -> Detector:
    patients = cohort.manifest["patient_id"].nunique()
    if patients < max(settings.folds, settings.heart_folds):
        problem = f"{patients} patients for {settings.folds} inner folds"
        remedy = "Give more studies, or lower the settings folds and heart_folds."
        raise InputError(cohort.name, problem, remedy)
    ids, located, hearts = cohort.manifest["study_id"].to_numpy(), cohort, []
    base = base_network(pretrain_on, settings, progress) if settings.needs_heart else None
    start = _starting_weights(base, settings)
    if settings.needs_heart:  # every study is located by a heart network that has not seen it
        fold, jobs = _inner_folds(cohort, settings.heart_folds, settings.seed), []
        for k in range(1 + max(fold)):
            parts = cohort.subset(ids[fold != k]), cohort.subset(ids[fold == k])
            jobs.append(delayed(_fold_heart)(*parts, pretrain_on, settings))
        found = _parallel(jobs, settings, "heart networks", progress)
        hearts = [heart for heart, _ in found]
        by_id = {study["study_id"]: study for _, own in found for study in own.studies}
        located = Cohort([by_id[name] for name in ids], cohort.name)
    pool = synthetic_pool(located, settings, options["language"])
    fold, jobs = _inner_folds(cohort, settings.folds, settings.seed), []
    for k in range(1 + max(fold)):
        train = located.subset(ids[fold != k])
        jobs.append(delayed(train_networks)(train, settings, pool, start, fold=k, **options))
    heart = HeartNetwork.mean(hearts) if hearts else None
    detector, readings = Detector(settings, [], heart, Calibration()), []
    views = detector.views(located)
    batch = batch_of(views)
    trained = _parallel(jobs, settings, "CLIP + captioning", progress)
    for k, (networks, histories) in enumerate(trained):
        own = batch.rows(torch.from_numpy(fold == k))
        readings.append(replace(detector, networks=networks).read(own))
        detector.networks += networks
        detector.histories += histories
    in_folds = Reading.merge(np.concatenate, readings)
    in_order = in_folds.rows(np.argsort(np.argsort(fold, kind="stable")))
    calibrate(detector, located, views, in_order, fold)
    return detector


def _inner_folds(cohort: Cohort, folds: int, seed: int) -> np.ndarray:
    """Fold of each study, 0 …: by patient, or the folds that all studies carry."""
    carried = [study.get("fold") for study in cohort.studies]
    if None in carried or len(set(carried)) < 2:
        return patient_folds(cohort, folds, seed)
    return np.unique(np.array(carried), return_inverse=True)[1]


def _fold_heart(
    train: Cohort, own: Cohort, pretrain_on: Sequence[Cohort], settings: FitSettings
) -> tuple[HeartNetwork, Cohort]:
    """The heart network of a fold, and the fold's own studies located by it."""
    heart = heart_network(train, pretrain_on, settings, progress=False)
    return heart, locate(own, heart)


def _parallel(jobs: list, settings: FitSettings, what: str, progress: bool) -> list:
    """Results of the folds' jobs, in order: one process per core, or in turn on a GPU.

    Each job has one thread of torch, so that the number of processes does not change results.
    """
    gpu = torch.cuda.is_available()
    workers = 1 if gpu else min(settings.workers or cpu_count(), len(jobs))
    jobs = jobs if gpu else [delayed(_one_thread)(job) for job in jobs]
    results = Parallel(n_jobs=workers, return_as="generator")(jobs)
    return list(tqdm(results, desc=what, total=len(jobs), unit="fold", disable=not progress))


def _one_thread(job: tuple[Callable[..., Any], tuple, dict[str, Any]]) -> Any:
    call, arguments, named = job
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
        remedy = "Set heart_phantom > 0 and masks='predicted', or encoder_init='random'."
        raise InputError("setting encoder_init", problem, remedy)
    return heart.encoder_state()


def train_networks(
    train: Cohort,
    settings: FitSettings,
    pool: Sequence[SyntheticScar],
    encoder_state: dict[str, Tensor] | None = None,
    *,
    language: Language | None = None,
    validation: Cohort | None = None,
    checkpoints: Path | None = None,
    fold: int = 0,
    progress: bool = False,
) -> tuple[list[tuple[CoCa, ReportTokenizer]], list[pd.DataFrame]]:
    """Train ``settings.models`` networks on located studies, and on the scars painted into them.

    The number of the inner ``fold`` sets the seeds. Returns the networks and their histories.
    """

    def pairs_of(views: Sequence[View], reports: Sequence[str]) -> ImageTextPairs:
        texts = [report_texts(report, settings.text) for report in reports]
        if language is not None:
            texts = [language.texts_of(whole) for whole, *_ in texts]
        return ImageTextPairs(batch_of(views), texts)

    def of_cohort(cohort: Cohort) -> ImageTextPairs:
        views = [make_view(study, settings) for study in cohort.studies]
        return pairs_of(views, [study["report"] for study in cohort.studies])

    pairs, ids, synthetic = of_cohort(train), set(train.manifest["study_id"]), None
    if scars := [scar for scar in pool if scar.source in ids]:
        synthetic = pairs_of([one.view for one in scars], [one.report for one in scars])
    valid = of_cohort(validation) if validation and len(validation) > 1 else None
    if settings.frame == "polar" and settings.encoder_init == "segmentation":
        every = join(pairs.batch, synthetic.batch) if synthetic else pairs.batch
        seeded = settings.override(seed=settings.seed + 100 * fold)
        encoder_state = pretrain_polar(every.to(cache.accelerator()), seeded, progress)
    networks, histories = [], []
    options: dict[str, Any] = {"synthetic": synthetic, "validation": valid, "progress": progress}
    options["language"] = language
    for number in range(settings.models):
        own = settings.override(seed=settings.seed + 1000 * number + 100 * fold)
        file = checkpoints / f"fold{fold}_{number}.pt" if checkpoints else None
        result = fit(pairs, own, encoder_state=encoder_state, checkpoint=file, **options)
        networks.append((result.model, result.tokenizer))
        histories.append(result.history)
    return networks, histories


def calibrate(
    detector: Detector, cohort: Cohort, views: Sequence[View], reading: Reading, group: np.ndarray
) -> None:
    """Calibrate a detector on studies that its networks were not trained on.

    In ``held_out``, each group of studies (patient or fold) is calibrated on the reports of the
    others only; captions are empty.
    """
    reports = calibration_reports(cohort, detector.settings)
    detector.calibration = Calibration.fit(reading, reports)
    parts = []
    for one in np.unique(group):
        own, others = np.flatnonzero(group == one), np.flatnonzero(group != one)
        fitted = Calibration()
        if len(others):
            fitted = Calibration.fit(reading.rows(others), reports[others])
        studies = Cohort([cohort.studies[number] for number in own], cohort.name)
        own_views, captions = [views[number] for number in own.tolist()], [""] * len(own)
        reader = replace(detector, calibration=fitted)
        parts.append(reader.table(studies, own_views, reading.rows(own), captions).set_axis(own))
    detector.held_out = pd.concat(parts).sort_index()


def calibration_reports(cohort: Cohort, settings: FitSettings) -> np.ndarray:
    """The reports of the studies. In the control each study has another's: its own would reveal
    the direction of its scores."""
    reports = np.array([study["report"] for study in cohort.studies], dtype=object)
    if settings.shuffle_text:
        order = np.random.default_rng([settings.seed, 79]).permutation(len(cohort))
        reports[order] = reports[np.roll(order, 1)]  # a ring: no study keeps its own report
    return reports
