"""Train, measure and cache the heart network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.anatomy.segments import ANTERIOR_RVIP_DEG, Ventricle, known_landmarks, to_frame_deg
from lgekit.cache import accelerator, code_version, compute_once, memory
from lgekit.config import FitSettings, size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.data.readers import pretraining_specs, read_cohort, refuse_shared
from lgekit.errors import InputError
from lgekit.segmentation import model as networks
from lgekit.segmentation import slices as grids
from lgekit.segmentation.model import HEART_SIZES, HeartNetwork, HeartSettings, with_labels
from lgekit.segmentation.slices import CLASSES, SQUARE_PIXELS, UNKNOWN, Slices
from lgekit.study import BACKGROUND, CAVITY, RV, WALL_CODES, Cohort, Landmarks, Study

SMALLEST = 30  # LV pixels that a slice needs to train the border network
LARGEST_AREA = 1.4  # limit on a polar sample's weight in the cross-entropy, so that the wall counts
SYNTHETIC_SHARE = 0.5  # of the pictures, if a network learns from other cohorts [O]
ROOMS = ("anatomy", "data", "segmentation")  # whose code decides what is cached


class Examples(NamedTuple):
    """A batch for one of the two networks, and what the network should draw."""

    pictures: Tensor  # (B, C, h, w) input of the network
    classes: Tensor  # (B, h, w) int64, the network's codes
    angles: Tensor  # (B, 4, h, w) angle field
    area: Tensor  # (h, 1) of each pixel
    angle_weight: Tensor  # (h, 1) or (B, h, w), of the angle field in the left ventricle
    slices: Slices  # that the pictures come from
    smoothing: float  # added to both sides of a Dice coefficient
    averaged: Tensor | int  # number of classes that the sum of the Dice losses is divided by


def crop_examples(
    slices: Slices, chosen: Tensor, settings: HeartSettings, rng: torch.Generator
) -> Examples:
    """Random crops of ``chosen (B,)`` slices for the U-Net."""
    batch, shape = Slices(*(one[chosen] for one in slices)), (settings.pixels, settings.pixels)
    number = torch.arange(len(chosen), device=chosen.device)
    wide = number < round(len(chosen) * settings.wide_share)
    half_width = torch.where(wide, 1.0, batch.diameter * settings.heart_view / 2)
    middle = torch.where(wide[:, None], 0.0, batch.centre)
    axes, centre = grids.random_crops(middle, half_width, rng)
    pictures = grids.crop(batch.images[:, None].float() / 255, axes, centre, shape)
    labels = grids.crop(batch.labels[:, None].float(), axes, centre, shape, "nearest")
    pictures = grids.synthesize_from_labels(pictures, labels, settings.invented, rng)
    pictures = grids.standardise(grids.random_contrast(pictures, rng))
    # LV centre and insertion points in the crop's coordinates
    lv_middle = torch.linalg.solve(axes, (batch.centre - centre)[:, :, None])[:, :, 0]
    turned = torch.linalg.solve(axes, batch.insertions.transpose(1, 2)).transpose(1, 2)
    insertions, size = functional.normalize(turned, dim=2), torch.linalg.det(axes)
    unit, distance = grids.directions(settings.pixels, lv_middle)
    hand = batch.handedness * size.sign()
    angles = grids.angle_field(unit[:, 0], unit[:, 1], insertions, hand)
    radii = distance * (size.abs().sqrt() / (batch.diameter / 2))[:, None, None]
    weight, area = radii.clamp(max=1.2), torch.ones(1, 1, device=chosen.device)
    pictures, classes = pictures.to(memory_format=torch.channels_last), labels[:, 0].long()
    known = 2 + batch.rv_known.any()
    return Examples(pictures, classes, angles, area, weight, batch, smoothing=5, averaged=known)


def polar_examples(
    slices: Slices, chosen: Tensor, settings: HeartSettings, rng: torch.Generator
) -> Examples:
    """Random polar pictures of ``chosen (B,)`` slices and their neighbours: border network."""
    batch, count, device = Slices(*(one[chosen] for one in slices)), len(chosen), chosen.device
    triples = chosen[:, None] + torch.tensor([-1, 0, 1], device=device)
    triples = triples.clamp(0, len(slices.study) - 1)
    same_study = slices.study[triples] == batch.study[:, None]
    triples = torch.where(same_study, triples, chosen[:, None])  # (B, 3)
    lv_radius = torch.sqrt(_lv(batch.labels).sum((1, 2)) / torch.pi) * 2 / SQUARE_PIXELS
    centre = batch.centre + grids.uniform(-0.18, 0.18, (count, 2), rng) * lv_radius[:, None]
    mirror = grids.uniform(0, 1, (count, 1), rng).lt(0.5).float() * 2 - 1
    radius = lv_radius * torch.exp(grids.uniform(-0.25, 0.25, count, rng))
    start = grids.uniform(0, 2 * torch.pi, (count, 1), rng)
    points = networks.ring_points(centre, radius, start, mirror)
    images, labels = slices.images[triples].float() / 255, slices.labels[triples].float()
    pictures = functional.grid_sample(images, points, align_corners=False)
    labels = functional.grid_sample(labels, points, mode="nearest", align_corners=False)
    pictures = grids.synthesize_from_labels(pictures, labels, settings.invented, rng, wrap=True)
    unit = functional.normalize(points - batch.centre[:, None, None], dim=-1)
    angles = grids.angle_field(unit[..., 0], unit[..., 1], batch.insertions, batch.handedness)
    pictures = grids.random_contrast(pictures, rng).contiguous(memory_format=torch.channels_last)
    area, classes = networks.SAMPLE_AREAS.to(device), labels[:, 1].long()
    return Examples(pictures, classes, angles, area, area, batch, smoothing=2, averaged=2)


def _lv(classes: Tensor) -> Tensor:
    return (classes == 1) | (classes == 2)


def heart_loss(output: Tensor, examples: Examples) -> Tensor:
    """Cross-entropy + soft Dice of the classes + squared error of the angle field.

    Where a study's labels do not include the RV, background may be background or RV.
    """
    target, area, rv_known = examples.classes, examples.area, examples.slices.rv_known
    logs = output[:, :CLASSES].log_softmax(1)
    either = torch.logaddexp(logs[:, 0], logs[:, 3])
    background = torch.where(rv_known[:, None, None], logs[:, 0], either)
    logs = torch.cat([background[:, None], logs[:, 1:]], dim=1)
    entropy = functional.nll_loss(logs, target, reduction="none")
    entropy = (entropy * area.clamp(max=LARGEST_AREA)).mean()
    overlap = torch.zeros((), device=output.device)
    for code in range(1, CLASSES):
        used = rv_known if code == 3 else torch.ones_like(rv_known)
        predicted, true = logs[:, code].exp() * area, (target == code) * area
        both = (predicted * (target == code)).sum((1, 2))
        total = predicted.sum((1, 2)) + true.sum((1, 2))
        dice_loss = 1 - (2 * both + examples.smoothing) / (total + examples.smoothing)
        overlap = overlap + (dice_loss * used).sum() / used.sum().clamp(min=1)
    weight = _lv(target) * examples.angle_weight
    weight = weight / weight.sum((1, 2), keepdim=True).clamp(min=20)
    weight = weight * examples.slices.landmark_weight[:, None, None]
    error = (output[:, CLASSES:] - examples.angles).square().sum(1)
    return entropy + overlap / examples.averaged + 0.5 * (weight * error).sum() / len(target)


def fit_heart_network(
    cohorts: Sequence[Cohort],
    size: str = "laptop",
    seed: int = 0,
    init: HeartNetwork | None = None,
    progress: bool = True,
    device: str | torch.device = "cpu",
    **changes,
) -> HeartNetwork:
    """Train a heart network on all studies of some cohorts that have LV labels.

    Each cohort is drawn in proportion to the fourth root of its slices, so that small cohorts are
    not swamped by the phantom. With ``init``, training starts from its first networks, and studies
    without RV labels get the RV that ``init`` draws, so that it is not forgotten. ``changes`` are
    fields of `HeartSettings`, e.g. ``steps=200``.
    """
    if init is not None:
        kept = ("encoder", "decoder", "pixels", "heart_view", "border_channels")
        changes = {name: getattr(init.settings, name) for name in kept} | changes
    settings = replace(HEART_SIZES[size], **changes)
    studies = [[with_drawn_rv(study, init) for study in one.studies] for one in cohorts]
    slices = Slices(*(tensor.to(device) for tensor in grids.collect_slices(studies)))

    def train(network, make_examples, usable, batch, steps, learning_rate, weight_decay, name):
        counts = torch.bincount(slices.cohort[usable], minlength=len(cohorts)).clamp(min=1)
        chance = usable * counts[slices.cohort].float() ** -0.75
        rng = torch.Generator(device).manual_seed(seed)
        weights = list(network.parameters())
        optimiser = torch.optim.AdamW(weights, learning_rate, weight_decay=weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, learning_rate, max(steps, 2), pct_start=0.15, cycle_momentum=False
        )
        for step in (bar := tqdm(range(steps), name, disable=not progress)):
            chosen = torch.multinomial(chance, batch, replacement=True, generator=rng)
            examples = make_examples(slices, chosen, settings, rng)
            loss = heart_loss(network(examples.pictures), examples)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")

    unet, borders = networks.build_unet(settings, seed).to(device), []
    if init is not None:
        unet.load_state_dict(init.networks[0].state_dict())
    every, rate = torch.ones_like(slices.rv_known), settings.learning_rate
    train(unet, crop_examples, every, settings.batch, settings.steps, rate, 0.01, "heart network")
    if settings.border_steps:
        border = networks.build_border_network(settings.border_channels, seed).to(device)
        if init is not None and len(init.borders):
            border.load_state_dict(init.borders[0].state_dict())
        large = _lv(slices.labels).sum((1, 2)) > SMALLEST
        steps = settings.border_steps
        train(border, polar_examples, large, 16, steps, 3e-3, 0.02, "border network")
        borders.append(border)
    return HeartNetwork(settings, [unet], [cohort.name for cohort in cohorts], borders)


def with_drawn_rv(study: Study, network: HeartNetwork | None) -> Study:
    """Add the RV that a network draws to a study with LV labels only, where nothing is labelled."""
    labels = study.label_map
    if network is None or labels is None or np.any(labels == RV):
        return study
    drawn = network.predict(study).label_map
    with_rv = np.where((labels == BACKGROUND) & (drawn == RV), RV, labels)
    landmarks = study["landmarks"] or UNKNOWN  # a drawn RV does not show a mirrored study
    return with_labels(study, with_rv, landmarks)


def rotated_copy(study: Study, degrees: float, mirror: bool) -> Study:
    """Turn a labelled study counter-clockwise about its middle, then mirror it or not.

    Image, labels and landmarks move together, to a larger isotropic square.
    """
    first = (180 - ANTERIOR_RVIP_DEG if mirror else ANTERIOR_RVIP_DEG) - degrees
    pose = Landmarks(first, first - 120 if mirror else first + 120)  # brought to the frame's pose
    side = 1.2 * float(np.max(np.array(study.spatial_shape[:2]) * study.spacing_mm[:2]))
    standard = StandardizeShortAxis(round(SQUARE_PIXELS * 1.2), side)
    frame = standard.find_frame(Study(**{**study, "landmarks": pose}))
    frame = replace(frame, centre=(np.array(study.spatial_shape[:2]) - 1) / 2)
    turned, known = frame.apply(copy.deepcopy(study)), study["landmarks"]
    if known is not None:
        points = np.array([known.anterior_rvip_deg, known.inferior_rvip_deg])
        anterior, inferior = to_frame_deg(points, pose).tolist()
        turned["landmarks"] = Landmarks(anterior, inferior, known.confidence)
    return turned


def evaluate_heart_network(network: HeartNetwork, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Measure a heart network on labelled studies that it was not trained on.

    Dice is measured on the studies as stored, insertion points on copies that are turned and
    mirrored at random. Their ground truth is the studies' landmarks, else the RV labels.

    Returns:
        One row per study: ``study_id, patient_id, dice_cavity, dice_myocardium, dice_rv``,
        ``anterior_error_deg, inferior_error_deg`` (0 to 180), ``mirror_right`` (1.0 or 0.0),
        ``confidence`` (of the prediction), ``reference_confidence``; NaN where unknown.
    """
    labelled = [study for study in cohort.studies if study.label_map is not None]
    rng, copies = np.random.default_rng(seed), []
    for study in labelled:
        study = Study(**{**study, "landmarks": grids.reference_landmarks(study)})
        copies.append(rotated_copy(study, rng.uniform(0, 360), bool(rng.integers(2))))
    predicted = network.predict_cohort(Cohort(labelled)).studies
    turned = network.predict_cohort(Cohort(copies)).studies
    rows = []
    for study, drawn, rotated, found in zip(labelled, predicted, copies, turned, strict=True):
        row: dict[str, Any] = {"study_id": study["study_id"], "patient_id": study["patient_id"]}
        for name, codes in (("cavity", (CAVITY,)), ("myocardium", WALL_CODES), ("rv", (RV,))):
            a, b = (np.isin(np.asarray(one.label_map), codes) for one in (study, drawn))
            row[f"dice_{name}"] = 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() else np.nan
        truth, landmarks = rotated["landmarks"], found["landmarks"]
        for name in ("anterior", "inferior"):
            true, voted = (getattr(one, f"{name}_rvip_deg") for one in (truth, landmarks))
            row[f"{name}_error_deg"] = abs((voted - true + 180) % 360 - 180)
        known = np.isfinite(truth.anterior_rvip_deg)
        row["mirror_right"] = float(landmarks.mirrored == truth.mirrored) if known else np.nan
        row["confidence"] = landmarks.confidence
        row["reference_confidence"] = truth.confidence if known else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def weights_fingerprint(network: HeartNetwork) -> str:
    """Hash a heart network's settings and weights."""
    weights = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    return joblib.hash((asdict(network.settings), weights))


def heart_network(
    cohort: Cohort, pretrain_on: Sequence[Cohort], settings: FitSettings, progress: bool = True
) -> HeartNetwork:
    """The heart network of a cohort: `base_network`, then trained on the cohort alone. Cached.

    ``pretrain_on`` holds further cohorts with masks. A cohort without masks gets the base.
    """
    base = base_network(pretrain_on, settings, progress)
    if any(study.label_map is not None for study in cohort.studies):
        steps = settings.heart_steps + (0 if base else settings.heart_base_steps)
        return _fitted([cohort], settings, steps, base, progress)
    if base is None:
        remedy = "Give labelled studies, a cohort to pretrain on, or heart_phantom > 0."
        raise InputError(cohort.name, "no study has a label of the left ventricle", remedy)
    return base


def base_network(
    pretrain_on: Sequence[Cohort], settings: FitSettings, progress: bool = True
) -> HeartNetwork | None:
    """The heart network of other cohorts and phantoms alone; None where there are none. Cached."""
    others = [one for one in pretrain_on if any(s.label_map is not None for s in one.studies)]
    if settings.heart_phantom:
        others.append(phantom_cohort(settings.heart_phantom, seed=_heart_seed(settings) + 7919))
    return _fitted(others, settings, settings.heart_base_steps, None, progress) if others else None


def _heart_seed(settings: FitSettings) -> int:
    return settings.seed if settings.heart_seed < 0 else settings.heart_seed


def _fitted(
    cohorts: list[Cohort], settings: FitSettings, steps: int, init: HeartNetwork | None, bar: bool
) -> HeartNetwork:
    """Train on some cohorts, or take the weights from the cache."""
    landmarks = [repr(study["landmarks"]) for one in cohorts for study in one.studies]
    start = "" if init is None else weights_fingerprint(init)
    key = [one.fingerprint for one in cohorts], landmarks, start, code_version(*ROOMS)
    size = HEART_SIZES[settings.heart_size]
    changes: dict[str, Any] = {"steps": steps, "border_steps": min(steps, size.border_steps)}
    if init is None:  # without a real study of its kind, learn shapes, not the look of phantoms
        changes |= {"encoder": settings.encoder, "invented": SYNTHETIC_SHARE}
    trained = memory().cache(_trained, ignore=["cohorts", "init", "progress"])
    about = key, settings.heart_size, _heart_seed(settings), changes
    network = compute_once(trained, *about, cohorts, init, bar)
    network.trained_on = tuple(cohort.name for cohort in cohorts)
    return network


def _trained(key, size: str, seed: int, changes: dict, cohorts, init, progress) -> HeartNetwork:
    device = accelerator()
    start = copy.deepcopy(init).to(device) if init else None
    return fit_heart_network(cohorts, size, seed, start, progress, device, **changes).to("cpu")


def locate(cohort: Cohort, network: HeartNetwork) -> Cohort:
    """The cohort with predicted labels and landmarks in place of its own. Cached."""
    key = cohort.fingerprint, weights_fingerprint(network), code_version(*ROOMS)
    located = memory().cache(_located, ignore=["cohort", "network"])
    found = compute_once(located, key, cohort, network)
    pairs = zip(cohort.studies, found, strict=True)
    studies = [with_labels(study, np.array(labels), marks) for study, (labels, marks) in pairs]
    return Cohort(studies, cohort.name)


def _located(key: tuple, cohort: Cohort, network: HeartNetwork) -> list[tuple]:
    found = copy.deepcopy(network).to(accelerator()).predict_cohort(cohort)
    return [(np.asarray(study.label_map), study["landmarks"]) for study in found.studies]


def pretraining_cohorts(cohort: Cohort, spec: str, pretrain_on: str) -> list[Cohort]:
    """Read the cohorts of `pretraining_specs`; InputError if one holds an image of the cohort."""
    further = [read_cohort(other) for other in pretraining_specs(spec, pretrain_on)]
    refuse_shared(cohort, further)
    return further


def locate_hearts(cohort: Cohort, model: Path | None = None) -> Cohort:
    """Add labels and insertion points where studies lack them, from a heart network.

    ``model`` is a folder that ``lgekit fit`` wrote; None: train on the cohort's masks and phantoms.
    ``study["located_by"]`` says where the insertion points come from: ``given`` or ``network``.
    """
    predicted = cohort
    if not all(map(ready, cohort.studies)):
        if model is None:
            network = heart_network(cohort, (), size_settings("laptop", seed=0))
        else:
            network = HeartNetwork.load(model / "heart")
        predicted = locate(cohort, network)
    studies = []
    for study, found in zip(cohort.studies, predicted.studies, strict=True):
        own = known_landmarks(study)
        fields = {"labels": found["labels"], **study, "landmarks": own or found["landmarks"]}
        fields["located_by"] = "given" if own else "network"
        studies.append(Study(**fields))
    return Cohort(studies, cohort.name)


def ready(study: Study) -> bool:
    """Whether a study has labels and insertion points of its own."""
    return study.label_map is not None and known_landmarks(study) is not None


def landmark_row(stored: Study, framed: Study) -> dict[str, Any]:
    """One row of landmarks.csv, from a located study as stored and in the standard frame."""
    marks, labels = stored["landmarks"], stored.label_map
    centre = Ventricle.of(labels).centre
    return {
        "study_id": stored["study_id"],
        "anterior_rvip_deg": marks.anterior_rvip_deg,
        "inferior_rvip_deg": marks.inferior_rvip_deg,
        "mirrored": marks.mirrored,
        "confidence": marks.confidence,
        "turned": framed["orientation_confident"],
        "base_first": Ventricle.of(labels).base_first,
        "centre_x_voxel": centre[0],
        "centre_y_voxel": centre[1],
        "mm_per_pixel": framed["frame"].mm_per_pixel,
        "located_by": stored["located_by"],
    }
