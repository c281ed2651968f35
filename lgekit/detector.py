"""Fitting the whole method, behind `lgekit fit`: on a train split, or cross-fitted on every study."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, cpu_count, delayed
from torch import Tensor
from tqdm.auto import tqdm

from lgekit.detection import Detector, Embedded, batch_of
from lgekit.errors import InputError
from lgekit.findings import WALLS
from lgekit.fresh_scars import FreshScars
from lgekit.heartnet import HeartNetwork
from lgekit.learnable import require_contrast, warn_of_calibration, with_statement
from lgekit.model import CoCaModel, join
from lgekit.pairs import Pairs
from lgekit.polar_pretraining import pretrain_polar
from lgekit.precision import accelerator
from lgekit.reports import read_report
from lgekit.settings import FitSettings
from lgekit.stages import (
    Painted,
    View,
    base_network,
    heart_network,
    locate,
    make_view,
    synthetic_views,
)
from lgekit.studies import Cohort, Study, patient_folds
from lgekit.supervision import prompt_sets, report_texts
from lgekit.tokenizer import ReportTokenizer
from lgekit.training import FitResult, fit
from lgekit.zeroshot import Calibration, Reading

__all__ = ["Detector", "Embedded", "batch_of", "calibrate", "fit_detector", "make_view", "prompt_sets"]


def fit_detector(
    cohort: Cohort,
    settings: FitSettings,
    all_studies: bool = False,
    progress: bool = True,
    pretrain_on: Sequence[Cohort] = (),
    checkpoints: Path | None = None,
    fabric: Any = None,
) -> Detector:
    """Train the whole method: heart network, views, synthetic scars, CLIP + captioning, calibration.

    Args:
        cohort: studies with reports; those whose report does not say whether there is late enhancement are left out,
            with a warning, for silence is not a report of none. Masks are used for the heart network alone (and for
            the true-mask reference).
        settings: the method; an ablation row is an override.
        all_studies: False: trained on the split ``train``, calibrated on ``validation``; ``test`` is not looked at.
            True: cross-fitted by patient on every study: each fold's networks see the other folds only, their scores
            of the fold calibrate, and the mean of all folds' networks is the detector. Where all studies carry a
            ``fold`` (`lgekit.evaluation.with_fold`), these are the folds, of heart networks and of readers: so a heart
            network that has seen neither of two folds serves the cross-validation's runs of both.
        progress: show bars.
        pretrain_on: further cohorts with masks for the heart network.
        checkpoints: folder for resuming; None: a killed run starts again.
        fabric: of `lgekit.training.fit`, for several GPUs; not together with ``all_studies``, whose folds run apart.

    Raises:
        InputError: too few studies or reports, no masks anywhere, or nothing that the slice encoder could start from.
    """
    if fabric is not None and all_studies:
        raise InputError("fabric", "given for a fit on all studies", "Fit on the splits, or leave fabric out.")
    if settings.masks == "true":
        _starting_weights(None, settings)  # none will be trained: say so before a long run
    studies = with_statement(cohort)
    kept = {name: [s for s in studies if s["split"] == name] for name in ("train", "validation")}
    if len(studies if all_studies else kept["train"]) < 2:
        where = "in all" if all_studies else "in the split 'train'"
        problem = f"fewer than two studies with a report that speaks of late enhancement {where}"
        raise InputError(cohort.name, problem, "Give more studies or reports.")
    usable = Cohort(studies, cohort.name)
    require_contrast(usable if all_studies else Cohort(kept["train"], cohort.name), settings)
    warn_of_calibration(studies if all_studies else kept["validation"])
    if all_studies:
        return _cross_fit(usable, settings, progress, pretrain_on, checkpoints)
    train = Cohort(kept["train"], f"{cohort.name} [train]")
    heart = _heart(train, pretrain_on, settings, progress)
    here = _located(train, heart)
    held = _located(Cohort(kept["validation"], "validation"), heart) if kept["validation"] else None
    state = _starting_weights(heart, settings)
    networks, histories = _networks(
        here, held, synthetic_pool(here, settings), settings, state, progress, checkpoints, 0, fabric
    )
    detector = Detector(settings, networks, heart, Calibration(), histories)
    if held is not None:
        views = [make_view(study, settings) for study in held.studies]
        batch = batch_of(views)
        reading = Reading.mean([detector.read(batch, number) for number in range(len(networks))])
        told = as_told(held, settings)
        detector.calibration = calibrate(reading, told)
        patients = held.manifest["patient_id"].to_numpy()
        detector.held_out = held_out_table(detector, told, views, reading, patients)
    return detector


def as_told(cohort: Cohort, settings: FitSettings) -> Cohort:
    """The cohort with the reports that a fit is told are its studies': with ``shuffle_text`` each has another's.

    Calibrated on the right ones, the control would learn from text after all which way its scores point.
    """
    if not settings.shuffle_text:
        return cohort
    order = np.random.default_rng([settings.seed, 79]).permutation(len(cohort))
    next_one = dict(zip(order, np.roll(order, 1), strict=True))  # in a ring, so that nobody keeps the own report
    reports = [cohort.studies[next_one[number]]["report"] for number in range(len(cohort))]
    studies = [Study(**{**study, "report": report}) for study, report in zip(cohort.studies, reports, strict=True)]
    return Cohort(studies, cohort.name)


def calibrate(reading: Reading, cohort: Cohort) -> Calibration:
    """Platt scaling against what the cohort's reports say; a scar in no stated place says nothing of walls."""
    found = [read_report(study["report"]) for study in cohort.studies]
    walls = np.array([[wall in one.walls for wall in WALLS] for one in found])
    placed = np.array([bool(one.walls) or not one.present for one in found])
    return Calibration.fit(reading, [one.present for one in found], walls, placed)


def held_out_table(
    detector: Detector, cohort: Cohort, views: Sequence[View], reading: Reading, group: np.ndarray
) -> pd.DataFrame:
    """Predictions of studies that served to calibrate the detector, as if they had not: each group of studies
    (patients, or folds) is calibrated on what the reports of the others say. Captions are empty."""
    ids, parts = cohort.manifest["study_id"].to_numpy(), []
    for one in np.unique(group):
        own, others = np.flatnonzero(group == one), np.flatnonzero(group != one)
        fitted = calibrate(reading.rows(others), cohort.subset(ids[others])) if len(others) else Calibration()
        kept = [views[number] for number in own.tolist()]
        part = replace(detector, calibration=fitted).table(
            cohort.subset(ids[own]), kept, reading.rows(own), [""] * len(own)
        )
        parts.append(part.set_axis(own))
    return pd.concat(parts).sort_index()


def _cross_fit(
    cohort: Cohort, settings: FitSettings, progress: bool, pretrain_on: Sequence[Cohort], checkpoints: Path | None
) -> Detector:
    patients = cohort.manifest["patient_id"].nunique()
    if patients < max(settings.folds, settings.heart_folds):
        remedy = "Give more studies, or lower the settings folds and heart_folds."
        raise InputError(cohort.name, f"{patients} patients for {settings.folds} inner folds", remedy)
    ids = cohort.manifest["study_id"].to_numpy()
    base = base_network(pretrain_on, settings, progress) if settings.needs_heart else None  # has seen no fold
    state = _starting_weights(base, settings)
    heart_fold = _inner_folds(cohort, settings.heart_folds, settings.seed)
    jobs = [
        delayed(_one_thread)(
            _fold_heart, cohort.subset(ids[heart_fold != k]), cohort.subset(ids[heart_fold == k]), *rest
        )
        for k, rest in enumerate([(pretrain_on, settings)] * (1 + max(heart_fold)))
    ]
    parts = _parallel(jobs, settings, "heart networks", progress)
    hearts = [heart for heart, _ in parts if heart is not None]
    # every study with the contours of the heart network that has not seen it
    by_id: dict[str, Study] = {study["study_id"]: study for _, held in parts for study in held.studies}
    located = Cohort([by_id[name] for name in ids], cohort.name)
    views = [make_view(study, settings) for study in located.studies]
    pool = synthetic_pool(located, settings)
    fold = _inner_folds(cohort, settings.folds, settings.seed)
    jobs = [
        delayed(_one_thread)(
            _networks, located.subset(ids[fold != k]), None, pool, settings, state, False, checkpoints, k
        )
        for k in range(1 + max(fold))
    ]
    networks: list[tuple[CoCaModel, ReportTokenizer]] = []
    histories: list[pd.DataFrame] = []
    readings: dict[int, Reading] = {}
    detector = Detector(settings, networks, None, Calibration())
    for k, (own, own_histories) in enumerate(_parallel(jobs, settings, "CLIP + captioning", progress)):
        held = np.flatnonzero(fold == k)
        batch = batch_of([views[number] for number in held])
        first = len(networks)
        networks += own
        histories += own_histories
        readings[k] = Reading.mean([detector.read(batch, number) for number in range(first, len(networks))])
    reading = in_order(readings, fold, max(len(view.levels) for view in views))
    told = as_told(located, settings)
    detector.calibration = calibrate(reading, told)
    detector.heart = HeartNetwork.mean(hearts) if hearts else None
    detector.histories = histories
    detector.held_out = held_out_table(detector, told, views, reading, fold)
    return detector


def _inner_folds(cohort: Cohort, folds: int, seed: int) -> np.ndarray:
    """Fold of each study, 0 …: by patient, or those that the studies carry."""
    carried = [study.get("fold") for study in cohort.studies]
    if None in carried or len(set(carried)) < 2:
        return patient_folds(cohort, folds, seed)
    return np.unique(np.array(carried), return_inverse=True)[1]


def in_order(readings: dict[int, Reading], fold: np.ndarray, slices: int) -> Reading:
    """The folds' readings as one, in the cohort's order; slices padded with NaN."""
    parts = {}
    for name in Reading.__dataclass_fields__:
        shape = getattr(readings[0], name).shape[1:]
        of_slices = name in ("slices", "slice_walls", "attention")
        parts[name] = np.full((len(fold), slices, *shape[1:]) if of_slices else (len(fold), *shape), np.nan)
        for k, reading in readings.items():
            values = getattr(reading, name)
            own = (fold == k, slice(values.shape[1])) if of_slices else fold == k
            parts[name][own] = values
    return Reading(**parts)


def _parallel(jobs: list, settings: FitSettings, what: str, progress: bool) -> list:
    """Results of the folds' jobs, in their order: one process a core, one thread a job, so that the number of processes
    changes no result. On a GPU one after the other."""
    workers = 1 if torch.cuda.is_available() else min(settings.workers or cpu_count(), len(jobs))
    results = Parallel(n_jobs=workers, return_as="generator")(jobs)
    return list(tqdm(results, desc=what, total=len(jobs), unit="fold", disable=not progress))


def _one_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call on one thread of torch; on a GPU, where calls follow one another, on all."""
    if torch.cuda.is_available():
        return call(*arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call(*arguments)
    finally:
        torch.set_num_threads(before)


def _fold_heart(train: Cohort, held: Cohort, pretrain_on, settings: FitSettings) -> tuple[HeartNetwork | None, Cohort]:
    heart = _heart(train, pretrain_on, settings, progress=False)
    return heart, _located(held, heart)


def _starting_weights(heart: HeartNetwork | None, settings: FitSettings) -> dict[str, Tensor] | None:
    """Of the image view's slice encoder; None where it starts at random, or in the polar view, which has its own."""
    if settings.encoder_init != "segmentation" or settings.frame == "polar":
        return None
    if heart is None:
        problem = "'segmentation' in the image view, and no heart network is trained that has seen no fold to be read"
        remedy = "Set masks='predicted' and heart_phantom > 0 (or give pretrain_on), or encoder_init='random'."
        raise InputError("setting encoder_init", problem, remedy)
    return heart.encoder_state()


def _heart(cohort: Cohort, pretrain_on: Sequence[Cohort], settings: FitSettings, progress: bool) -> HeartNetwork | None:
    return heart_network(cohort, pretrain_on, settings, progress) if settings.needs_heart else None


def _located(cohort: Cohort, heart: HeartNetwork | None) -> Cohort:
    return cohort if heart is None or not len(cohort) else locate(cohort, heart)


def synthetic_pool(located: Cohort, settings: FitSettings) -> list[Painted]:
    """Scars painted into located studies: ``synthetic_pool`` times as many as an epoch draws, or just as many where
    each epoch has its own.

    Warns where most could not be painted, for want of a heart that was found.
    """
    count = round(settings.synthetic_per_real * len(located) * max(1, settings.synthetic_pool))
    painted = synthetic_views(located, count, settings)
    if len(painted) < count / 2:  # a few that do not fit are no matter
        warnings.warn(
            f"{len(painted)} of {count} synthetic scars could be painted: no wall was found in the others' hearts",
            stacklevel=2,
        )
    return painted


def cohort_pairs(cohort: Cohort, settings: FitSettings) -> Pairs:
    """Views of located studies, with the texts that are true of them."""
    views = [make_view(study, settings) for study in cohort.studies]
    return Pairs(batch_of(views), [report_texts(study["report"], settings.text) for study in cohort.studies])


def _networks(
    train: Cohort,
    validation: Cohort | None,
    pool: Sequence[Painted],
    settings: FitSettings,
    encoder_state: dict[str, Tensor] | None,
    progress: bool,
    checkpoints: Path | None,
    fold: int,
    fabric: Any = None,
) -> tuple[list[tuple[CoCaModel, ReportTokenizer]], list[pd.DataFrame]]:
    """Train ``settings.models`` networks on located studies, and on scars painted into them."""
    pairs, synthetic = cohort_pairs(train, settings), None
    ids = set(train.manifest["study_id"])
    if own_pool := [painted for painted in pool if painted.source in ids]:
        texts = [report_texts(painted.report, settings.text) for painted in own_pool]
        synthetic = Pairs(batch_of([painted.view for painted in own_pool]), texts)
    held = cohort_pairs(validation, settings) if validation is not None and len(validation) > 1 else None
    if settings.frame == "polar" and settings.encoder_init == "segmentation":
        every = join(pairs.batch, synthetic.batch) if synthetic else pairs.batch
        there = fabric.device if fabric is not None else accelerator()
        encoder_state = pretrain_polar(every.to(there), settings.override(seed=settings.seed + 100 * fold), progress)
    scars = FreshScars(train, settings) if synthetic and not settings.synthetic_pool else None
    results: list[FitResult] = []
    for number in range(settings.models):
        own = settings.override(seed=settings.seed + 1000 * number + 100 * fold)
        results.append(
            fit(
                pairs,
                own,
                synthetic=synthetic,
                fresh=scars.of_seed(own.seed) if scars else None,
                validation=held,
                encoder_state=encoder_state,
                checkpoint=checkpoints / f"fold{fold}_{number}.safetensors" if checkpoints else None,
                progress=progress,
                fabric=fabric,
            )
        )
    return [(result.model, result.tokenizer) for result in results], [result.history for result in results]
