"""Fit the whole method: heart network, synthetic scars, image and text encoders, calibration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from joblib import Parallel, cpu_count, delayed
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgekit import cache
from lgekit.anatomy.frame import EVEN_INSIDE, EVEN_OUTSIDE, INSIDE, OUTSIDE
from lgekit.clip.data import ImageTextPairs, View, batch_of, make_view, view_grid
from lgekit.clip.detector import Detector
from lgekit.clip.model import PolarEncoder, StudyBatch, in_parts
from lgekit.clip.train import FitResult, Language, fit, taught_language
from lgekit.clip.zeroshot import Calibration, Reading
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.reports.reader import states_enhancement
from lgekit.reports.writer import canonical_text, report_texts
from lgekit.scars.transforms import ScarPainter, stated_findings
from lgekit.segmentation.model import HeartNetwork
from lgekit.segmentation.train import base_network, heart_network, locate, minimise
from lgekit.study import Cohort, Study

POOL = 4  # synthetic scars are painted for so many epochs; an epoch draws its share of them [O]


class SyntheticScar(NamedTuple):
    """A study with a synthetic scar: its view, its report, and the id of the original study."""

    view: View
    report: str
    source: str


def synthetic_pool(
    located: Cohort, settings: FitSettings, language: Language | None = None
) -> list[SyntheticScar]:
    """Paint scars into located studies whose reports state no scar, in turn.

    Fewer are returned if some studies cannot take one. ``language`` says whose reports deny scar;
    without it the report reader does.
    """
    count = round(settings.synthetic_per_real * len(located) * POOL)
    free = without_scar(located.studies, language) if count else []
    made: dict[int, SyntheticScar] = {}
    bar = tqdm(free[:count], "painting scars", leave=False, delay=2)
    for first, study in enumerate(bar):
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
    if len(made) < count / 2:
        message = f"{len(made)} of {count} synthetic scars could be painted"
        warnings.warn(f"{message}: no wall was found in the other hearts", stacklevel=2)
    return [made[number] for number in sorted(made)]


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
    where = cohort.name
    if not all_studies:
        where = f"{cohort.name} [train]"
        valid = [study for study in train if study["split"] == "validation"]
        train = [study for study in train if study["split"] == "train"]
    free = len(without_scar(train))
    alike = free == len(train) and not settings.synthetic_per_real
    faults = {
        "fewer than two studies with a report that mentions late enhancement": len(train) < 2,
        "all training reports state scar": not free,
        "no training report states scar, and synthetic_per_real is 0": alike,
    }
    for problem in compress(faults, faults.values()):
        raise InputError(where, problem, "Give more studies, with scar and without.")
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
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = PolarEncoder(settings.polar_channels)
        head = nn.Sequential(
            nn.Conv2d(encoder.out_channels, 3 * STRIDE**2, 1), nn.PixelShuffle(STRIDE)
        )
        network = nn.ModuleList([encoder, head]).to(device)
        generator = torch.Generator(device).manual_seed(settings.seed)
        size = min(8 * settings.batch_size, len(images))
        shown = min(settings.polar_pretraining * len(images), MOST_SLICES)

        def loss_of(_: int) -> Tensor:
            index = torch.randint(len(images), (size,), generator=generator, device=device)
            pictures, classes = warp(images[index], reach, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = in_parts(lambda part: head(encoder.body(part)), pictures).float()
            return F.cross_entropy(logits, classes)

        steps = math.ceil(shown / size)
        minimise(network.parameters(), loss_of, steps, 3e-3, "polar pretraining", progress)
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

    Studies whose report does not say whether there is late enhancement are left out. Masks train
    the heart network, together with those of ``pretrain_on``. The split ``train`` is learned from,
    and ``validation`` calibrates. With ``all_studies`` the fit is crossed by patient, or by the
    ``fold`` that all studies carry: the networks of each fold see the other folds only, their
    scores of it set the calibration, and the mean of all networks is the detector. ``checkpoints``
    is a folder from `lgekit.clip.train.resumable`.
    """
    if settings.masks == "true":
        _starting_weights(None, settings)  # refuse before a long run: no heart network is trained
    train, valid = usable_studies(cohort, settings, all_studies)
    language = taught_language(settings) if settings.taught else None
    options: dict[str, Any] = {"checkpoints": checkpoints, "language": language}
    if all_studies:
        return _cross_fit(train, settings, progress, pretrain_on, options)
    heart = heart_network(train, pretrain_on, settings, progress) if settings.needs_heart else None
    if heart:
        train, valid = locate(train, heart), locate(valid, heart)
    pool, start = synthetic_pool(train, settings, language), _starting_weights(heart, settings)
    options |= {"validation": valid, "progress": progress}
    trained = train_networks(train, settings, pool, start, **options)
    detector = Detector.of(settings, trained, heart)
    if valid:
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
    if cohort.manifest["patient_id"].nunique() < settings.folds:
        problem = f"fewer patients than the {settings.folds} inner folds"
        raise InputError(cohort.name, problem, "Give more studies, or lower the setting folds.")
    ids, fold = cohort.manifest["study_id"].to_numpy(), _inner_folds(cohort, settings)
    folds = range(1 + max(fold))
    base = base_network(pretrain_on, settings, progress) if settings.needs_heart else None
    start, located, heart = _starting_weights(base, settings), cohort, None
    if settings.needs_heart:  # every study is located by a heart network that has not seen it
        parts = [(cohort.subset(ids[fold != k]), cohort.subset(ids[fold == k])) for k in folds]
        jobs = [delayed(_fold_heart)(*part, pretrain_on, settings) for part in parts]
        found = _parallel(jobs, settings, "heart networks", progress)
        heart = HeartNetwork.mean([own for own, _ in found])
        by_id = {study["study_id"]: study for _, own in found for study in own.studies}
        located = Cohort([by_id[name] for name in ids], cohort.name)
    pool = synthetic_pool(located, settings, options["language"])
    jobs = [
        delayed(train_networks)(located.subset(ids[fold != k]), settings, pool, start, k, **options)
        for k in folds
    ]
    trained = _parallel(jobs, settings, "CLIP + captioning", progress)
    detector = Detector.of(settings, [one for own in trained for one in own], heart)
    views, readings = detector.views(located), []
    batch = batch_of(views)
    for k in folds:  # by the networks that have not seen them
        reader = Detector.of(settings, trained[k], heart)
        readings.append(reader.read(batch.rows(torch.from_numpy(fold == k))))
    order = np.argsort(fold, kind="stable")
    in_order = Reading.merge(np.concatenate, readings).rows(np.argsort(order))
    calibrate(detector, located, views, in_order, fold)
    return detector


def _inner_folds(cohort: Cohort, settings: FitSettings) -> np.ndarray:
    """Fold of each study, 0 …: by patient, or the folds that all studies carry."""
    carried = [study.get("fold") for study in cohort.studies]
    if None in carried or len(set(carried)) < 2:
        return cohort.patient_folds(settings.folds, settings.seed)
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
    results = Parallel(workers, return_as="generator", initializer=cache.end_with_parent)(jobs)
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
    fold: int = 0,
    *,
    language: Language | None = None,
    validation: Cohort | None = None,
    checkpoints: Path | None = None,
    progress: bool = False,
) -> list[FitResult]:
    """Train ``settings.models`` networks on located studies, and on the scars painted into them.

    The number of the inner ``fold`` sets the seeds.
    """

    def pairs_of(cohort: Cohort, scars: Sequence[SyntheticScar] = ()) -> ImageTextPairs:
        views = [make_view(study, settings) for study in cohort.studies]
        reports = [study["report"] for study in cohort.studies] + [scar.report for scar in scars]
        texts = [report_texts(report, settings.text) for report in reports]
        if language is not None:
            texts = [language.texts_of(whole) for whole, *_ in texts]
        return ImageTextPairs(batch_of([*views, *(scar.view for scar in scars)]), texts, len(views))

    ids = set(train.manifest["study_id"])
    pairs = pairs_of(train, [scar for scar in pool if scar.source in ids])
    valid = pairs_of(validation) if validation else None
    if settings.frame == "polar" and settings.encoder_init == "segmentation":
        seeded = settings.override(seed=settings.seed + 100 * fold)
        encoder_state = pretrain_polar(pairs.batch.to(cache.accelerator()), seeded, progress)
    options: dict[str, Any] = {"validation": valid, "encoder_state": encoder_state}
    trained = []
    for number in range(settings.models):
        own = settings.override(seed=settings.seed + 1000 * number + 100 * fold)
        file = checkpoints / f"fold{fold}_{number}.pt" if checkpoints else None
        options |= {"language": language, "checkpoint": file, "progress": progress}
        trained.append(fit(pairs, own, **options))
    return trained


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
        fitted = Calibration.fit(reading.rows(others), reports[others])
        studies = [cohort.studies[number] for number in own.tolist()]
        own_views = [views[number] for number in own.tolist()]
        reader = replace(detector, calibration=fitted)
        table = reader.table(studies, own_views, reading.rows(own), [""] * len(own))
        parts.append(table.set_axis(own))
    detector.held_out = pd.concat(parts).sort_index()


def calibration_reports(cohort: Cohort, settings: FitSettings) -> np.ndarray:
    """The reports of the studies. In the control each study has another's: its own would reveal
    the direction of its scores."""
    reports = np.array([study["report"] for study in cohort.studies], dtype=object)
    if settings.shuffle_text:
        order = np.random.default_rng([settings.seed, 79]).permutation(len(cohort))
        reports[order] = reports[np.roll(order, 1)]  # a ring: no study keeps its own report
    return reports
