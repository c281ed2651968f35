"""Fit the whole method: synthetic scars, image and text encoders, calibration."""

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import compress
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgekit import cache
from lgekit.anatomy.frame import EVEN_INSIDE, EVEN_OUTSIDE, INSIDE, OUTSIDE
from lgekit.clip.data import ImageTextPairs, View, batch_of, make_view, view_grid
from lgekit.clip.detector import Detector
from lgekit.clip.model import CoCa, PolarEncoder, ReportTokenizer, StudyBatch, in_parts
from lgekit.clip.train import FitResult, Language, fit, taught_language
from lgekit.clip.zeroshot import Calibration, Reading
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.findings import Findings
from lgekit.reports.reader import states_enhancement
from lgekit.reports.writer import canonical_text, report_texts
from lgekit.scars.transforms import ScarPainter, stated_findings
from lgekit.segmentation.model import HeartNetwork
from lgekit.segmentation.train import base_network, locate, minimise
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
        with suppress(InputError):
            painter = ScarPainter(study)  # measured once for all its scars
            # a scar does not change it
            grid = view_grid(study, settings) if settings.frame == "polar" else None
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
) -> tuple[Cohort, np.ndarray]:
    """The studies to learn from, and the fold of each: 0 for the split ``validation``, -1 for
    ``train``, which no network leaves out. With ``all_studies``, each has a fold of `_inner_folds`.

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
    if len(train) < 2 or not free or alike:
        problem = f"{len(train)} training reports mention late enhancement, {free} of them deny it"
        remedy = "Give reports with scar (or set synthetic_per_real above 0) and without."
        raise InputError(where, problem, remedy)
    if not valid:
        problem = "no study of the split validation has a report on late enhancement"
        raise InputError(where, problem, "Put studies into it, or fit with --all")
    scarred = len(valid) - len(without_scar(valid))
    if not 0 < scarred < len(valid):
        message = f"{scarred} of {len(valid)} studies for calibration have scar by their reports"
        remedy = "Put more studies into the split validation, or fit with --all"
        warnings.warn(f"{message}: p_lge > 0.5 is then unreliable. {remedy}", stacklevel=3)
    if all_studies:
        usable = Cohort(train, where)
        return usable, _inner_folds(usable, settings)
    return Cohort(train + valid, where), np.repeat([-1, 0], [len(train), len(valid)])


def without_scar(studies: Sequence[Study], language: Language | None = None) -> list[Study]:
    """The studies whose reports state no scar, which can take a synthetic one."""
    if language is None or not studies:
        return [study for study in studies if not stated_findings(study).present]
    placed = language.said([study["report"] for study in studies])[:, 1:].amax(1)
    none = canonical_text(Findings())  # instead of the report, which is not read again
    return [Study(**{**study, "report": none}) for study in compress(studies, placed < 0.5)]


STRIDE = 4  # of the polar encoder's body
SLICES_IN_PRETRAINING = 25_000  # seen in pretraining: limits its time for large cohorts


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
        shown = min(settings.polar_pretraining * len(images), SLICES_IN_PRETRAINING)

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
    cohort: Cohort, settings: FitSettings, all_studies: bool = False, progress: bool = True
) -> Detector:
    """Train the whole method: views, synthetic scars, CLIP + captions, calibration.

    Studies whose report does not say whether there is late enhancement are left out. `base_network`
    locates the hearts: it has seen no study of the cohort, while a network trained on the cohort's
    masks would outline the training studies better than new ones. The split ``train`` trains, and
    ``validation`` calibrates. With ``all_studies`` the fit is cross-fitted by patient, or by the
    ``fold`` of each study: networks of the other folds score a fold, these scores set the
    calibration, and the detector averages all networks. The same call resumes an interrupted fit.
    """
    studies, fold = usable_studies(cohort, settings, all_studies)
    folds, ids = range(1 + max(fold.max(), 0)), studies.manifest["study_id"].to_numpy()
    language = taught_language(settings) if settings.taught else None
    alone = progress and not all_studies  # else one bar counts the folds
    heart = base_network(settings, progress) if settings.needs_heart else None
    located = studies if heart is None else locate(studies, heart)
    train = [located.subset(ids[fold != k]) for k in folds]
    tested = [located.subset(ids[fold == k]).studies for k in folds]
    held_out = Cohort(sum(tested, []), "held out")
    pool = synthetic_pool(located if all_studies else train[0], settings, language)
    valid = None if all_studies else held_out
    jobs = [(train[k], settings, pool, heart, k, language, valid, alone) for k in folds]
    trained = sum(_train_folds(jobs, settings, progress), [])
    networks = [(one.model, one.tokenizer) for one in trained]
    detector = Detector(settings, networks, heart, Calibration(), [one.history for one in trained])
    group, views = np.sort(fold[fold >= 0]), detector.views(held_out)
    batch, readings = batch_of(views), []
    for k in folds:  # by the networks that have not seen them
        own = networks[k * settings.models : (k + 1) * settings.models]
        reader = replace(detector, networks=own)
        readings.append(reader.read(batch.rows(torch.from_numpy(group == k))))
    reading = Reading.merge(np.concatenate, readings)
    patients = held_out.manifest["patient_id"].to_numpy()
    calibrate(detector, held_out, views, reading, group if all_studies else patients)
    rows: Any = detector.held_out  # by fold; in the result as in the cohort
    detector.held_out = rows.set_index("study_id").loc[ids[fold >= 0]].reset_index()
    return detector


def _inner_folds(cohort: Cohort, settings: FitSettings) -> np.ndarray:
    """Fold of each study, 0 …: by patient, or the folds that all studies carry."""
    carried = [study.get("fold") for study in cohort.studies]
    if None not in carried and len(set(carried)) > 1:
        return np.unique(np.array(carried), return_inverse=True)[1]
    return cohort.patient_folds(settings.folds, settings.seed)


def _train_folds(jobs: list[tuple], settings: FitSettings, progress: bool) -> list[list[FitResult]]:
    """`train_networks` of each fold, with one process per core, or in turn on a GPU.

    Each fold has one thread of torch, so that the number of processes does not change results.
    """
    if len(jobs) == 1:
        return [train_networks(*jobs[0])]
    workers = settings.workers or joblib.cpu_count()
    workers = 1 if torch.cuda.is_available() else min(workers, len(jobs))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        options: dict[str, Any] = {"return_as": "generator", "inner_max_num_threads": 1}
        pool = joblib.Parallel(workers, initializer=cache.end_with_parent, **options)
        found = pool(joblib.delayed(train_networks)(*job) for job in jobs)
        return list(tqdm(found, "CLIP + captioning", len(jobs), unit="fold", disable=not progress))
    finally:
        torch.set_num_threads(threads)


def train_networks(
    train: Cohort,
    settings: FitSettings,
    pool: Sequence[SyntheticScar],
    heart: HeartNetwork | None = None,
    fold: int = 0,
    language: Language | None = None,
    validation: Cohort | None = None,
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
    seeded = settings.override(seed=settings.seed + 100 * fold)
    encoder_state = encoder_start(pairs.batch, seeded, heart, progress)
    ready = packaged_networks(settings) if settings.encoder_init == "builtin" else [None]
    trained: list[FitResult] = []
    for number in range(settings.models):
        own = settings.override(seed=settings.seed + 1000 * number + 100 * fold)
        start = ready[number % len(ready)]
        trained.append(fit(pairs, own, valid, encoder_state, language, progress, start))
    return trained


def encoder_start(
    batch: StudyBatch, settings: FitSettings, heart: HeartNetwork | None, progress: bool
) -> dict[str, Tensor] | None:
    """Return the weights that the slice encoder starts from; None for random ones. Cached.

    ``batch`` holds the views that the polar pretraining learns from. Raises InputError if the image
    view has no heart network to start from.
    """
    if settings.encoder_init != "segmentation":
        return None
    if settings.frame == "polar":
        about = settings.model_dump_json(exclude={"workers"}), cache.code_version(*cache.FIT_ROOMS)
        key = *about, joblib.hash([batch.images.numpy(), batch.mask.numpy()])
        seen = batch.to(cache.accelerator())
        return cache.compute_once(key, pretrain_polar, seen, settings, progress)
    if heart is None:
        problem = "'segmentation' in the image view needs a heart network"
        remedy = "Set masks='predicted', or encoder_init='random'."
        raise InputError("setting encoder_init", problem, remedy)
    return heart.networks[0].get_submodule("encoder").state_dict()


def packaged_networks(settings: FitSettings) -> list[tuple[CoCa, ReportTokenizer]]:
    """The networks of the detector in the package, to start from.

    Raises InputError if a setting gives a network another shape than theirs.
    """
    packaged, names = Detector.load("builtin"), ["orientation", "view", "depths", "angles"]
    names += ["polar_channels", "width", "embed_dim", "text_width"]
    if settings.text == "findings":  # else its text tower is not used
        names += ["text_layers", "decoder_layers", "context_length"]
    for name in names:
        packaged_value, asked = getattr(packaged.settings, name), getattr(settings, name)
        if packaged_value != asked:
            problem = f"the detector in the package has {packaged_value}, not {asked}"
            raise InputError(f"setting {name}", problem, "Fit with --from scratch.")
    return packaged.networks


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
