"""Fit the whole method."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from joblib import Parallel, cpu_count, delayed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lgekit.anatomy.polar import INSIDE, OUTSIDE, PolarGrid
from lgekit.anatomy.segments import known_landmarks
from lgekit.cache import accelerator, code_version, compute_once, memory, trains_in_bfloat16
from lgekit.clip.data import REACH, Pairs, View, _along, batch_of, even_wall_grid, make_view
from lgekit.clip.detector import Detector
from lgekit.clip.model import CoCaModel, PolarEncoder, StudyBatch, in_parts, join
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.clip.train import FitResult, fit
from lgekit.clip.zeroshot import Calibration, Reading
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.findings import WALLS
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.reports.training_texts import report_texts
from lgekit.segmentation.model import (
    HeartNetwork,
)
from lgekit.segmentation.train import (
    base_network,
    heart_network,
    locate,
)
from lgekit.study import Cohort, Study, patient_folds

if TYPE_CHECKING:
    from lgekit.scars.transforms import ScarHost


@dataclass(frozen=True)
class Painted:
    """A study with a synthetic scar: its view, its report, and the study it was painted into."""

    view: View
    report: str
    source: str


def synthetic_views(cohort: Cohort, count: int, settings: FitSettings) -> list[Painted]:
    """Scars painted into the scar-free studies of a cohort (by their reports); made once.

    Args:
        cohort: located studies, or ones with their own labels and landmarks.
        count: how many; the studies take turns. Fewer come back where studies cannot take a scar.
        settings: view and seed.
    """
    if not count:
        return []
    version = code_version(
        "anatomy", "reports", "data", "segmentation", "scars", "clip"
    )  # scars, views, and how they meet here
    about = settings.model_dump_json(
        include={
            "orientation",
            "view",
            "depths",
            "angles",
            "pixels",
            "seed",
            "min_confidence",
            "masks",
        }
    )
    marks = [repr(known_landmarks(study)) for study in cohort.studies]
    made = memory().cache(_synthetic, ignore=["cohort", "settings"])
    kept = compute_once(made, cohort.fingerprint, marks, count, about, version, cohort, settings)
    return [
        Painted(
            View(torch.tensor(np.array(images)), torch.tensor(np.array(levels)), np.array(own)),
            report,
            source,
        )
        for images, levels, own, report, source in kept
    ]


def _synthetic(
    print_: str, marks, count: int, about: str, version: str, cohort: Cohort, settings: FitSettings
) -> list:
    return _painted(count, cohort, settings)


def _painted(count: int, cohort: Cohort, settings: FitSettings) -> list:
    made = paint_pool(cohort, count, settings)
    return [
        (
            *map(np.asarray, (one.view.images, one.view.levels, one.view.own_slices)),
            one.report,
            one.source,
        )
        for one in made
    ]


def paint_pool(cohort: Cohort, count: int, settings: FitSettings) -> list[Painted]:
    """:func:`synthetic_views`, made anew. Each study is measured once, and its scars' contours are its own."""
    free = without_scar(cohort)
    made: dict[int, Painted] = {}
    for first, study in enumerate(free[:count]):
        try:
            host = ViewHost.of(study, settings)
        except InputError:
            continue
        for number in range(first, count, len(free)):
            with suppress(InputError):
                made[number] = host.paint(
                    int(np.random.default_rng([settings.seed, number]).integers(2**31))
                )
    return [made[number] for number in sorted(made)]


def without_scar(cohort: Cohort) -> list[Study]:
    """The studies whose reports speak of no scar: those that synthetic scars are painted into."""
    from lgekit.scars.transforms import stated_findings

    return [study for study in cohort.studies if not stated_findings(study).present]


@dataclass(frozen=True)
class ViewHost:
    """A study measured once, to paint many scars into copies of it and make their views. Make it with `ViewHost.of`.

    Attributes:
        host: the study, ready to be painted.
        grid: of its polar view along predicted contours, which a painted scar does not move; None: other views.
        settings: of the view.
    """

    host: ScarHost
    grid: PolarGrid | None
    settings: FitSettings

    @classmethod
    def of(cls, study: Study, settings: FitSettings) -> ViewHost:
        """Measure a study. Raises InputError where it cannot take a scar."""
        from lgekit.scars.transforms import ScarHost

        even = settings.frame == "polar" and settings.masks == "predicted"
        return cls(ScarHost(study), even_wall_grid(study, settings) if even else None, settings)

    def paint(self, seed: int) -> Painted:
        """The scar that this seed paints. Raises InputError where none drawn from it fits the study."""
        scarred = self.host.paint(seed)
        view = (
            make_view(scarred, self.settings) if self.grid is None else _along(self.grid, scarred)
        )
        return Painted(view, scarred["report"], self.host.study["study_id"])


def with_statement(cohort: Cohort) -> list[Study]:
    """The studies whose report says whether there is late enhancement: silence is not a report of none.

    Warns of reports that are there and do not say.
    """
    kept = [study for study in cohort.studies if states_enhancement(study["report"])]
    if silent := sum(bool(study["report"].strip()) for study in cohort.studies) - len(kept):
        warnings.warn(
            f"{silent} reports do not say whether there is late enhancement (they are read in English): their studies "
            "are left out",
            stacklevel=3,
        )
    return kept


def require_contrast(train: Cohort, settings: FitSettings) -> None:
    """Refuse reports that leave nothing to tell apart, or no study to paint a scar into.

    Warns where all speak of scar.

    Raises:
        InputError: none speaks of scar and none will be painted, or none is free of it and scars are to be painted.
    """
    free = len(without_scar(train))
    if not free and settings.synthetic_per_real:
        problem = "no training study can take a synthetic scar: none is without scar by its report"
        raise InputError(
            train.name, problem, "Give studies without scar, or set synthetic_per_real to 0."
        )
    if not free:
        warnings.warn(
            "all training reports say that there is scar: what none looks like is not learned",
            stacklevel=3,
        )
    if free == len(train) and not settings.synthetic_per_real:
        problem = f"none of {free} training reports says that there is scar: there is nothing to tell apart"
        raise InputError(
            train.name, problem, "Give studies with scar, or let synthetic_per_real be above 0."
        )


def warn_of_calibration(held: Sequence[Study]) -> None:
    """Warn that the decision ``p_lge > 0.5`` will mean nothing: the reports of ``held`` are not of both kinds."""
    scarred = sum(read_report(study["report"]).present for study in held)
    if not 0 < scarred < len(held):
        warnings.warn(
            f"of {len(held)} studies to calibrate on {scarred} have scar by their reports: without both kinds "
            "p_lge > 0.5 is no decision. Put more studies into the split validation, or fit with --all",
            stacklevel=3,
        )


STRIDE = 4  # of the polar encoder's body
LOOKS = 25_000  # slices seen in all: a large cohort teaches the wall in fewer rounds, and time stays bounded


def warp(
    images: Tensor, reach: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Shift, stretch and bend the depths of `(n, 1, depth, angle)`; classes 0 cavity, 1 wall, 2 outside, as long."""
    count, _, depths, angles = images.shape
    draws = torch.randn(count, 8, generator=generator, device=images.device)
    angle = torch.arange(angles, device=images.device) * (2 * math.pi / angles)
    bend = sum(
        (draws[:, k, None] * (angle * k + 3 * draws[:, k + 3, None]).cos() for k in (1, 2)),
        draws.new_zeros(()),
    )
    rows = torch.linspace(-1, 1, depths, device=images.device)[:, None]
    rows = (
        rows * (1 + 0.2 * draws[:, 6])[:, None, None]
        + (0.2 * draws[:, 7, None] + 0.1 * bend)[:, None]
    )
    columns = torch.linspace(-1, 1, angles, device=images.device).expand(count, depths, angles)
    warped = F.grid_sample(
        images, torch.stack([columns, rows], -1), padding_mode="border", align_corners=True
    )
    depth = -reach[0] + (1 + sum(reach)) * ((rows + 1) / 2 * (depths - 1) + 0.5) / depths
    return warped, (depth >= 0).long() + (depth >= 1).long()


def pretrain_polar(
    batch: StudyBatch, settings: FitSettings, progress: bool = True
) -> dict[str, Tensor]:
    """Weights of a `PolarEncoder` that finds the wall, on the batch's device; names as in its state dict.

    Args:
        batch: training studies, whose contours the view was made by. No label but these contours is used.
        settings: view, channels, batch size, seed, and ``polar_pretraining``, the most rounds over all slices; fewer
            where there are many, so that no more than ``LOOKS`` are looked at.
        progress: show a bar.
    """
    from tqdm.auto import trange

    images, reach = (
        batch.images[batch.mask],
        REACH if settings.masks == "predicted" else (INSIDE, OUTSIDE),
    )
    halved = trains_in_bfloat16(images.device, settings.bfloat16)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = PolarEncoder(settings.polar_channels).to(images.device)
        head = nn.Sequential(
            nn.Conv2d(encoder.out_channels, 3 * STRIDE**2, 1), nn.PixelShuffle(STRIDE)
        ).to(images.device)
        weights = [*encoder.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=3e-3, fused=True)
        generator = torch.Generator(images.device).manual_seed(settings.seed)
        size, epochs = (
            8 * settings.batch_size,
            max(1, min(settings.polar_pretraining, LOOKS // len(images))),
        )
        steps = epochs * math.ceil(len(images) / size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, max(steps, 2))
        for _ in trange(
            epochs, desc="first weights", unit="round", disable=not progress, leave=False
        ):
            for index in torch.randperm(len(images)).split(size):
                pictures, classes = warp(images[index.to(images.device)], reach, generator)
                with torch.autocast(images.device.type, torch.bfloat16, enabled=halved):
                    logits = in_parts(lambda part: head(encoder.body(part)), pictures).float()
                logits = logits[..., : classes.shape[-2], : classes.shape[-1]]
                loss = F.cross_entropy(logits, classes[..., : logits.shape[-2], : logits.shape[-1]])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return encoder.state_dict()


# Processes [O]: an epoch of the paper's size takes 1,160 scars, 12 s of a core at 10 ms each (phantom, laptop size); 50
# epochs in 3 minutes leave 3.6 s to each.
MOST_PAINTERS = 8


class FreshScars(Dataset):
    """Synthetic pairs of every epoch: item ``epoch`` is that epoch's own `Pairs`, whoever paints them.

    Args:
        located: the training studies, with contours and landmarks; those without scar by their reports are painted.
        settings: view, texts, ``synthetic_per_real`` and the seed.
        painters: processes beside this one; None: as many as torch has threads here, less one. None at all (a run of a
            grid that has one core) paints between the epochs. Changes no result.

    Raises:
        InputError: no study can take a scar.
    """

    def __init__(self, located: Cohort, settings: FitSettings, painters: int | None = None):
        self.settings, self.count = settings, round(settings.synthetic_per_real * len(located))
        self.painters = (
            min(MOST_PAINTERS, torch.get_num_threads() - 1) if painters is None else painters
        )
        self.hosts: list[ViewHost] = []
        problem = "all have scar by their reports"
        for study in without_scar(located):
            try:
                self.hosts.append(ViewHost.of(study, settings))
            except InputError as error:
                problem = str(error)
        if self.count and not self.hosts:
            remedy = "Give studies without scar, or set synthetic_per_real to 0."
            raise InputError(located.name, f"no study can take a synthetic scar: {problem}", remedy)

    def of_seed(self, seed: int) -> FreshScars:
        """Other scars in the same studies, which are not measured again."""
        other = copy(self)
        other.settings = self.settings.override(seed=seed)
        return other

    def __getitem__(self, epoch: int) -> Pairs:
        """The pairs of an epoch: hosts take turns in its own order. Fewer where most scars drawn do not fit."""
        rng = np.random.default_rng([self.settings.seed, 4242, epoch])
        turns, made = rng.permutation(len(self.hosts)), list[Painted]()
        seeds = rng.integers(2**31, size=2 * self.count)  # twice as many: some do not fit
        for number, seed in enumerate(seeds.tolist()):
            if len(made) == self.count:
                break
            try:
                made.append(self.hosts[turns[number % len(turns)]].paint(seed))
            except InputError:
                continue
        if not made:
            raise InputError(
                f"synthetic scars of epoch {epoch + 1}",
                "none fits",
                "Set synthetic_pool higher than 0.",
            )
        texts = [report_texts(one.report, self.settings.text) for one in made]
        return Pairs(batch_of([one.view for one in made]), texts)

    def __call__(self, epochs: range) -> Iterable[Pairs]:
        """The pairs of these epochs in turn, painted ahead: one epoch a painter waits at most."""
        painted = DataLoader(
            self,
            batch_size=None,
            sampler=epochs,
            num_workers=self.painters,
            prefetch_factor=1 if self.painters else None,
            collate_fn=_as_arrays,
            generator=torch.Generator(),  # its own, so that the training's chance is not touched
        )
        return (
            Pairs(StudyBatch(*map(torch.from_numpy, arrays)), texts) for arrays, texts in painted
        )


def _as_arrays(pairs: Any) -> tuple[list[np.ndarray], Sequence[tuple[str, ...]]]:
    """Arrays go through a pipe; tensors would through shared memory, of which a container has 64 MB by default."""
    return [part.numpy() for part in pairs.batch], pairs.texts


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
            ``fold`` (`lgekit.evaluation.scores.with_fold`), these are the folds, of heart networks and of readers: so a heart
            network that has seen neither of two folds serves the cross-validation's runs of both.
        progress: show bars.
        pretrain_on: further cohorts with masks for the heart network.
        checkpoints: folder for resuming; None: a killed run starts again.
        fabric: of `lgekit.clip.train.fit`, for several GPUs; not together with ``all_studies``, whose folds run apart.

    Raises:
        InputError: too few studies or reports, no masks anywhere, or nothing that the slice encoder could start from.
    """
    if fabric is not None and all_studies:
        raise InputError(
            "fabric", "given for a fit on all studies", "Fit on the splits, or leave fabric out."
        )
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
    here = _detector_located(train, heart)
    held = (
        _detector_located(Cohort(kept["validation"], "validation"), heart)
        if kept["validation"]
        else None
    )
    state = _starting_weights(heart, settings)
    networks, histories = _networks(
        here,
        held,
        synthetic_pool(here, settings),
        settings,
        state,
        progress,
        checkpoints,
        0,
        fabric,
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
    next_one = dict(
        zip(order, np.roll(order, 1), strict=True)
    )  # in a ring, so that nobody keeps the own report
    reports = [cohort.studies[next_one[number]]["report"] for number in range(len(cohort))]
    studies = [
        Study(**{**study, "report": report})
        for study, report in zip(cohort.studies, reports, strict=True)
    ]
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
        fitted = (
            calibrate(reading.rows(others), cohort.subset(ids[others]))
            if len(others)
            else Calibration()
        )
        kept = [views[number] for number in own.tolist()]
        part = replace(detector, calibration=fitted).table(
            cohort.subset(ids[own]), kept, reading.rows(own), [""] * len(own)
        )
        parts.append(part.set_axis(own))
    return pd.concat(parts).sort_index()


def _cross_fit(
    cohort: Cohort,
    settings: FitSettings,
    progress: bool,
    pretrain_on: Sequence[Cohort],
    checkpoints: Path | None,
) -> Detector:
    patients = cohort.manifest["patient_id"].nunique()
    if patients < max(settings.folds, settings.heart_folds):
        remedy = "Give more studies, or lower the settings folds and heart_folds."
        raise InputError(
            cohort.name, f"{patients} patients for {settings.folds} inner folds", remedy
        )
    ids = cohort.manifest["study_id"].to_numpy()
    base = (
        base_network(pretrain_on, settings, progress) if settings.needs_heart else None
    )  # has seen no fold
    state = _starting_weights(base, settings)
    heart_fold = _inner_folds(cohort, settings.heart_folds, settings.seed)
    jobs = [
        delayed(_one_thread)(
            _fold_heart,
            cohort.subset(ids[heart_fold != k]),
            cohort.subset(ids[heart_fold == k]),
            *rest,
        )
        for k, rest in enumerate([(pretrain_on, settings)] * (1 + max(heart_fold)))
    ]
    parts = _parallel(jobs, settings, "heart networks", progress)
    hearts = [heart for heart, _ in parts if heart is not None]
    # every study with the contours of the heart network that has not seen it
    by_id: dict[str, Study] = {
        study["study_id"]: study for _, held in parts for study in held.studies
    }
    located = Cohort([by_id[name] for name in ids], cohort.name)
    views = [make_view(study, settings) for study in located.studies]
    pool = synthetic_pool(located, settings)
    fold = _inner_folds(cohort, settings.folds, settings.seed)
    jobs = [
        delayed(_one_thread)(
            _networks,
            located.subset(ids[fold != k]),
            None,
            pool,
            settings,
            state,
            False,
            checkpoints,
            k,
        )
        for k in range(1 + max(fold))
    ]
    networks: list[tuple[CoCaModel, ReportTokenizer]] = []
    histories: list[pd.DataFrame] = []
    readings: dict[int, Reading] = {}
    detector = Detector(settings, networks, None, Calibration())
    for k, (own, own_histories) in enumerate(
        _parallel(jobs, settings, "CLIP + captioning", progress)
    ):
        held = np.flatnonzero(fold == k)
        batch = batch_of([views[number] for number in held])
        first = len(networks)
        networks += own
        histories += own_histories
        readings[k] = Reading.mean(
            [detector.read(batch, number) for number in range(first, len(networks))]
        )
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
        parts[name] = np.full(
            (len(fold), slices, *shape[1:]) if of_slices else (len(fold), *shape), np.nan
        )
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


def _fold_heart(
    train: Cohort, held: Cohort, pretrain_on, settings: FitSettings
) -> tuple[HeartNetwork | None, Cohort]:
    heart = _heart(train, pretrain_on, settings, progress=False)
    return heart, _detector_located(held, heart)


def _starting_weights(
    heart: HeartNetwork | None, settings: FitSettings
) -> dict[str, Tensor] | None:
    """Of the image view's slice encoder; None where it starts at random, or in the polar view, which has its own."""
    if settings.encoder_init != "segmentation" or settings.frame == "polar":
        return None
    if heart is None:
        problem = "'segmentation' in the image view, and no heart network is trained that has seen no fold to be read"
        remedy = "Set masks='predicted' and heart_phantom > 0 (or give pretrain_on), or encoder_init='random'."
        raise InputError("setting encoder_init", problem, remedy)
    return heart.encoder_state()


def _heart(
    cohort: Cohort, pretrain_on: Sequence[Cohort], settings: FitSettings, progress: bool
) -> HeartNetwork | None:
    return heart_network(cohort, pretrain_on, settings, progress) if settings.needs_heart else None


def _detector_located(cohort: Cohort, heart: HeartNetwork | None) -> Cohort:
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
    return Pairs(
        batch_of(views), [report_texts(study["report"], settings.text) for study in cohort.studies]
    )


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
    held = (
        cohort_pairs(validation, settings)
        if validation is not None and len(validation) > 1
        else None
    )
    if settings.frame == "polar" and settings.encoder_init == "segmentation":
        every = join(pairs.batch, synthetic.batch) if synthetic else pairs.batch
        there = fabric.device if fabric is not None else accelerator()
        encoder_state = pretrain_polar(
            every.to(there), settings.override(seed=settings.seed + 100 * fold), progress
        )
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
                checkpoint=checkpoints / f"fold{fold}_{number}.safetensors"
                if checkpoints
                else None,
                progress=progress,
                fabric=fabric,
            )
        )
    return [(result.model, result.tokenizer) for result in results], [
        result.history for result in results
    ]
