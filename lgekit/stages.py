"""The stages before the network, each computed once and kept (`lgekit.cache`), keyed by all that it depends on.

Heart network → contours and insertion points → views → synthetic scars; ablation rows that agree in a stage share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from lgekit.anatomy import slice_levels
from lgekit.cache import memory
from lgekit.errors import InputError
from lgekit.fingerprints import code_version
from lgekit.heartnet import SIZES, HeartNetwork, read_settings, with_prediction
from lgekit.polar import INSIDE, OUTSIDE, PolarGrid, polar_grid, study_tensor
from lgekit.precision import accelerator
from lgekit.runs import compute_once
from lgekit.settings import FitSettings
from lgekit.standardize import intensity_reference, known_landmarks, normalise
from lgekit.studies import Cohort, Landmarks, Study

if TYPE_CHECKING:
    from lgekit.scars import ScarHost

INVENTED = 0.5  # share of pictures with an invented appearance, of the base alone [O]
REACH = (0.6, 0.4)  # of the view along predicted contours, beyond the endocardium and the epicardium, in thicknesses


@dataclass(frozen=True)
class View:
    """One study as the network takes it.

    Attributes:
        images: `(slices, 1, height, width)` float32.
        levels: `(slices,)` float32, 0 base … 1 apex.
        own_slices: `(slices,)` int, the study's own slice that each is.
    """

    images: Tensor
    levels: Tensor
    own_slices: np.ndarray


def make_view(study: Study, settings: FitSettings) -> View:
    """The view of a study; its labels and landmarks (true or predicted) say where the heart is.

    With ``orientation="none"`` they are put aside: a square from the middle of the picture, slices as stored.
    """
    size: dict[str, Any] = {"depths": settings.depths, "angles": settings.angles, "pixels": settings.pixels}
    size |= {"min_confidence": settings.min_confidence}
    if settings.orientation == "none":
        bare = Study(**{key: value for key, value in study.items() if key != "labels"})
        images, levels = study_tensor(bare, "image", orientation="none", **size)
        return View(images, levels, np.arange(len(levels)))
    if settings.frame == "polar" and settings.masks == "predicted":
        return _along(even_wall_grid(study, settings), study)
    images, levels = study_tensor(study, settings.frame, orientation=settings.orientation, **size)
    own = np.full(study.spatial_shape[2], np.nan) if study.label_map is None else slice_levels(study.label_map)
    with_heart = np.flatnonzero(np.isfinite(own)) if np.isfinite(own).any() else np.arange(len(own))
    stored = own[with_heart]
    forwards = np.isnan(stored).any() or np.allclose(stored, levels.numpy(), atol=1e-4)
    return View(images, levels, with_heart if forwards else with_heart[::-1].copy())


def even_wall_grid(study: Study, settings: FitSettings) -> PolarGrid:
    """The polar grid along predicted contours, made more even: a scar is as bright as the blood, so that a network's
    endocardium tends to run around its outside. The epicardium is smoothed over 15°, half of the thickness is the
    slice's median, and the view reaches further to both sides (`REACH`) [O]."""
    grid = polar_grid(study, settings.depths, settings.angles, settings.orientation, settings.min_confidence)
    degree = settings.angles / 360
    epicardium = gaussian_filter1d(grid.endocardium + grid.thickness, 15 * degree, axis=1, mode="wrap")
    local = gaussian_filter1d(grid.thickness, 20 * degree, axis=1, mode="wrap")
    thickness = (np.median(grid.thickness, 1, keepdims=True) + local) / 2
    inside, outside = REACH
    stretched = thickness * (1 + inside + outside) / (1 + INSIDE + OUTSIDE)  # what `PolarGrid.view` takes for the wall
    return replace(grid, endocardium=epicardium - (1 + inside) * thickness + INSIDE * stretched, thickness=stretched)


def _along(grid: PolarGrid, study: Study) -> View:
    pictures = grid.view(normalise(study["image"].data, intensity_reference(study))).permute(3, 0, 1, 2)
    levels = np.linspace(0, 1, len(grid.levels)) if np.isnan(grid.levels).all() else grid.levels
    heart = np.flatnonzero(np.isfinite(levels))
    images = pictures[torch.as_tensor(heart)].contiguous()
    return View(images, torch.as_tensor(levels[heart], dtype=torch.float32), np.asarray(grid.order)[heart])


def weights_fingerprint(network: HeartNetwork) -> str:
    """16 hex digits of a heart network's weights."""
    digest = hashlib.sha256(repr(network.settings).encode())
    for name, value in sorted(network.weights.items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def heart_network(
    cohort: Cohort, pretrain_on: Sequence[Cohort], settings: FitSettings, progress: bool = True
) -> HeartNetwork:
    """The heart network of a cohort, in two steps, each fitted once: a base on other cohorts and phantoms, which all
    folds and ablation rows share, then the cohort alone.

    Alone, for that measured better: on a quarter of EMIDEC held out, mean Dice of the wall 0.74 against 0.72 with the
    other cohorts beside it, 95th percentile of the anterior angle's error 21° against 65° (700 steps each).

    Args:
        cohort: studies with masks or without; without any the base alone is used.
        pretrain_on: further cohorts with masks.
        settings: size, steps, number of phantoms, seed.
        progress: show bars.

    Raises:
        InputError: no study anywhere has a mask.
    """
    others = _others(pretrain_on, settings)
    own = [cohort] if _labelled(cohort) else []
    if not own and not others:
        remedy = "Give labelled studies, a cohort to pretrain on, or heart_phantom > 0."
        raise InputError(cohort.name, "no study has a label of the left ventricle", remedy)
    base = base_network(pretrain_on, settings, progress)
    if not own and base is not None:
        return base
    steps = settings.heart_steps + (0 if base else settings.heart_base_steps)
    return _fitted(own, settings, steps, base, progress)


def base_network(pretrain_on: Sequence[Cohort], settings: FitSettings, progress: bool = True) -> HeartNetwork | None:
    """The heart network of the other cohorts and phantoms alone; None where there are none."""
    others = _others(pretrain_on, settings)
    return _fitted(others, settings, settings.heart_base_steps, None, progress) if others else None


def _others(pretrain_on: Sequence[Cohort], settings: FitSettings) -> list[Cohort]:
    from lgekit.phantom import phantom_cohort

    others = [one for one in pretrain_on if _labelled(one)]
    if settings.heart_phantom:
        others.append(phantom_cohort(settings.heart_phantom, seed=_heart_seed(settings) + 7919))
    return others


def _heart_seed(settings: FitSettings) -> int:
    return settings.seed if settings.heart_seed < 0 else settings.heart_seed


def _labelled(cohort: Cohort) -> bool:
    return any(study.label_map is not None for study in cohort.studies)


def _fitted(cohorts: list[Cohort], settings: FitSettings, steps: int, init: HeartNetwork | None, progress: bool):
    start, version = weights_fingerprint(init) if init else "", code_version(["import lgekit.segmentation"])
    # a fingerprint leaves landmarks out, and the network learns them
    prints = [(one.fingerprint, [repr(study["landmarks"]) for study in one.studies]) for one in cohorts]
    key = (prints, settings.heart_size, steps, _heart_seed(settings), settings.encoder, start, version, INVENTED)
    trained = memory().cache(_weights, ignore=["cohorts", "init", "progress"])
    about, state = compute_once(trained, key, cohorts, init, progress)  # runs that start together wait for one
    weights = {name: torch.tensor(np.array(value)) for name, value in state.items()}
    return HeartNetwork.from_weights(read_settings(about), weights, [cohort.name for cohort in cohorts])


def _weights(key: tuple, cohorts, init: HeartNetwork | None, progress: bool) -> tuple[dict, dict]:
    return _trained(key, cohorts, init, progress)  # joblib reads what is cached: a comment there would train anew


def _trained(key: tuple, cohorts, init: HeartNetwork | None, progress: bool) -> tuple[dict, dict]:
    from lgekit.segmentation import fit_heart_network

    _, size, steps, seed, encoder, *_ = key
    # After a base without this cohort training goes on at the full rate; a start from `init` would take a third.
    rate = SIZES[size].learning_rate * (1 if init is None else 3)
    # Without a real study of its own kind a network shall learn shapes, not the look of phantoms.
    changes = {"steps": steps, "learning_rate": rate, "border_steps": min(steps, SIZES[size].border_steps)}
    changes |= {"encoder": encoder, "invented": INVENTED} if init is None else {}
    device = accelerator()
    start = init.to(device) if init is not None else None  # it draws the RV where the cohort's labels know none
    try:
        network = fit_heart_network(cohorts, size, seed, start, progress, device, **changes)
    finally:
        if init is not None:
            init.to("cpu")
    return asdict(network.settings), {name: value.cpu().numpy() for name, value in network.weights.items()}


def locate(cohort: Cohort, network: HeartNetwork) -> Cohort:
    """The cohort with predicted labels and landmarks in place of its own; predicted once."""
    version = code_version(["import lgekit.heartnet"])
    located = memory().cache(_located, ignore=["cohort", "network"])
    labels, points = compute_once(located, cohort.fingerprint, weights_fingerprint(network), version, cohort, network)
    studies = [
        with_prediction(study, torch.from_numpy(np.array(drawn)), Landmarks(*map(float, point)))
        for study, drawn, point in zip(cohort.studies, labels, points, strict=True)
    ]
    return Cohort(studies, cohort.name)


def _located(print_: str, weights: str, version: str, cohort: Cohort, network: HeartNetwork) -> tuple[list, list]:
    return _found(cohort, network)


def _found(cohort: Cohort, network: HeartNetwork) -> tuple[list, list]:
    labels, points = [], []
    before, found = network.device, network.to(accelerator()).predict_cohort(cohort.studies)
    network.to(before)
    for study in found.studies:
        marks = study["landmarks"]
        labels.append(study.label_map)
        points.append((marks.anterior_rvip_deg, marks.inferior_rvip_deg, marks.confidence))
    return labels, points


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
    version = code_version(["import lgekit.stages"])  # scars, views, and how they meet here
    about = settings.model_dump_json(
        include={"orientation", "view", "depths", "angles", "pixels", "seed", "min_confidence", "masks"}
    )
    marks = [repr(known_landmarks(study)) for study in cohort.studies]
    made = memory().cache(_synthetic, ignore=["cohort", "settings"])
    kept = compute_once(made, cohort.fingerprint, marks, count, about, version, cohort, settings)
    return [
        Painted(View(torch.tensor(np.array(images)), torch.tensor(np.array(levels)), np.array(own)), report, source)
        for images, levels, own, report, source in kept
    ]


def _synthetic(print_: str, marks, count: int, about: str, version: str, cohort: Cohort, settings: FitSettings) -> list:
    return _painted(count, cohort, settings)


def _painted(count: int, cohort: Cohort, settings: FitSettings) -> list:
    made = paint_pool(cohort, count, settings)
    return [
        (*map(np.asarray, (one.view.images, one.view.levels, one.view.own_slices)), one.report, one.source)
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
                made[number] = host.paint(int(np.random.default_rng([settings.seed, number]).integers(2**31)))
    return [made[number] for number in sorted(made)]


def without_scar(cohort: Cohort) -> list[Study]:
    """The studies whose reports speak of no scar: those that synthetic scars are painted into."""
    from lgekit.scars import stated_findings

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
        from lgekit.scars import ScarHost

        even = settings.frame == "polar" and settings.masks == "predicted"
        return cls(ScarHost(study), even_wall_grid(study, settings) if even else None, settings)

    def paint(self, seed: int) -> Painted:
        """The scar that this seed paints. Raises InputError where none drawn from it fits the study."""
        scarred = self.host.paint(seed)
        view = make_view(scarred, self.settings) if self.grid is None else _along(self.grid, scarred)
        return Painted(view, scarred["report"], self.host.study["study_id"])
