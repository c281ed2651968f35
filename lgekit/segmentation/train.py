"""Train, measure and cache the heart network."""

import copy
from collections.abc import Callable, Iterable
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
from lgekit.anatomy.segments import ANTERIOR_RVIP_DEG, known_landmarks, to_frame_deg
from lgekit.cache import accelerator, code_version, compute_once
from lgekit.config import FitSettings
from lgekit.data.phantom import phantom_cohort
from lgekit.segmentation import model as networks
from lgekit.segmentation import slices as grids
from lgekit.segmentation.model import HEART_SIZES, HeartNetwork, HeartSettings, with_labels
from lgekit.segmentation.slices import CLASSES, SQUARE_PIXELS, UNKNOWN, Slices
from lgekit.study import BACKGROUND, CAVITY, RV, WALL_CODES, Cohort, Landmarks, Study

SMALLEST = 0.025  # LV radius that a slice needs to train the border network, square coordinates
SYNTHETIC_SHARE = 0.5  # of the pictures, if a network learns from other cohorts [O]
ROOMS = ("anatomy", "data", "segmentation")  # whose code decides what is cached
BASE_SETTINGS = ("heart_size", "heart_phantom", "heart_base_steps", "heart_seed", "encoder")


class Examples(NamedTuple):
    """A batch for one of the two networks, and what the network should draw."""

    pictures: Tensor  # (B, C, h, w) input of the network
    classes: Tensor  # (B, h, w) int64, the network's codes
    angles: Tensor  # (B, 4, h, w) angle field
    angle_weight: Tensor  # (B, h, w), adds up to the confidence of the landmarks
    rv_known: Tensor  # (B,) bool


def crop_points(batch: Slices, settings: HeartSettings, rng: torch.Generator) -> Tensor:
    """Positions ``(B, h, h, 2)`` of crops that are turned, mirrored, stretched, scaled, shifted."""
    count, shape = len(batch.centre), (settings.pixels, settings.pixels)
    wide = torch.arange(count, device=rng.device) < round(count * settings.wide_share)
    centre = torch.where(wide[:, None], 0.0, batch.centre)
    width = torch.where(wide, 1.0, batch.diameter * settings.heart_view / 2)
    width = width * torch.exp(grids.uniform(-0.22, 0.22, count, rng))
    turn = torch.polar(width, grids.uniform(0, 2 * torch.pi, count, rng))[:, None, None]
    screen = grids.as_complex(grids.screen_grid(shape, rng.device))
    mirror = grids.uniform(0, 1, (count, 1, 1), rng) < 0.5
    points = torch.view_as_real(turn * torch.where(mirror, screen.conj(), screen).resolve_conj())
    # stretch along the storage axes, as a wrong pixel spacing would
    stretch = grids.uniform(-0.12, 0.12, (count, 1), rng) * torch.tensor([1, -1], device=rng.device)
    shift = grids.uniform(-0.15, 0.15, (count, 2), rng) * width[:, None]
    return points * stretch.exp()[:, None, None] + (centre + shift)[:, None, None]


def polar_points(batch: Slices, settings: HeartSettings, rng: torch.Generator) -> Tensor:
    """Positions ``(B, depth, angle, 2)`` of polar pictures with a wrong centre and radius."""
    count = len(batch.centre)
    centre = batch.centre + grids.uniform(-0.18, 0.18, (count, 2), rng) * batch.radius[:, None]
    mirror = grids.uniform(0, 1, (count, 1), rng).lt(0.5).float() * 2 - 1
    radius = batch.radius * torch.exp(grids.uniform(-0.25, 0.25, count, rng))
    start = grids.uniform(0, 2 * torch.pi, (count, 1), rng)
    return networks.ring_points(centre, radius, start, mirror)


def draw_examples(
    slices: Slices, planes: Tensor, points: Tensor, invented: float, rng: torch.Generator
) -> Examples:
    """Training pictures of the slices ``planes (B, C)`` at ``points (B, h, w, 2)``.

    The middle channel shows the slice that the network should draw.
    """
    middle = planes.shape[1] // 2
    batch = Slices(*(one[planes[:, middle]] for one in slices))
    images, labels = slices.images[planes].float() / 255, slices.labels[planes].float()
    pictures = functional.grid_sample(images, points, align_corners=False)
    labels = functional.grid_sample(labels, points, mode="nearest", align_corners=False)
    pictures = grids.synthesize_from_labels(pictures, labels, invented, rng)
    pictures = grids.standardise(grids.random_contrast(pictures, rng))
    classes, offset = labels[:, middle].long(), points - batch.centre[:, None, None]
    angles = grids.angle_field(offset, batch.insertions, batch.mirrored)
    distance = offset.norm(dim=-1) / (batch.diameter / 2)[:, None, None]
    weight = distance.clamp(max=1.2) * ((classes == 1) | (classes == 2))
    weight = weight / weight.sum((1, 2), keepdim=True).clamp(min=20)
    weight = weight * batch.landmark_weight[:, None, None]
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    return Examples(pictures, classes, angles, weight, batch.rv_known)


def heart_loss(output: Tensor, examples: Examples) -> Tensor:
    """Cross-entropy + soft Dice of the classes + squared error of the angle field.

    Where a study's labels do not include the RV, background may be background or RV.
    """
    from segmentation_models_pytorch.losses import DiceLoss

    logs = output[:, :CLASSES].log_softmax(1)
    known, background, rv = examples.rv_known[:, None, None], logs[:, 0], logs[:, 3]
    background = torch.where(known, background, torch.logaddexp(background, rv))
    rv = torch.where(known, rv, -100.0)
    logs = torch.cat([background[:, None], logs[:, 1:3], rv[:, None]], dim=1)
    overlap = DiceLoss("multiclass", classes=[1, 2, 3])(logs, examples.classes)
    error = (output[:, CLASSES:] - examples.angles).square().sum(1)
    angle = (examples.angle_weight * error).sum() / len(error)
    return functional.nll_loss(logs, examples.classes) + 2 * overlap + 0.5 * angle


def minimise(
    weights: Iterable[Tensor],
    loss_of: Callable[[int], Tensor],
    steps: int,
    rate: float,
    title: str,
    progress: bool,
) -> None:
    """Take AdamW steps down ``loss_of(step)``; the learning rate rises to ``rate``, then falls."""
    weights = list(weights)
    optimiser = torch.optim.AdamW(weights, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, max(steps, 2), pct_start=0.15, cycle_momentum=False
    )
    for step in tqdm(range(steps), title, leave=False, disable=not progress):
        loss_of(step).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()


def fit_heart_network(
    cohort: Cohort, settings: HeartSettings, seed: int, init: HeartNetwork | None, progress: bool
) -> HeartNetwork:
    """Train a heart network on all studies of a cohort that have LV labels.

    With ``init``, of the same architecture, training starts from its weights, and studies without
    RV labels get the RV that it draws, so that it is not forgotten.
    """
    device = accelerator()
    studies = [with_drawn_rv(study, init) for study in cohort.studies]
    slices = Slices(*(tensor.to(device) for tensor in grids.collect_slices(studies)))
    kind = cohort.name.partition(":")[0]  # without its folder
    network = HeartNetwork(settings, seed, [kind]).to(device).train()
    if init is not None:
        network.load_state_dict(init.state_dict())

    def train(part, points_of, planes, usable, batch, steps, name):
        rng = torch.Generator(device).manual_seed(seed)

        def loss_of(_: int) -> Tensor:
            chosen = torch.multinomial(usable.float(), batch, replacement=True, generator=rng)
            points = points_of(Slices(*(one[chosen] for one in slices)), settings, rng)
            examples = draw_examples(slices, planes[chosen], points, settings.invented, rng)
            return heart_loss(part(examples.pictures), examples)

        weights, rate = part.parameters(), settings.learning_rate
        minimise(weights, loss_of, steps, rate, name, progress)

    (unet,), steps = network.networks, settings.border_steps
    own, every = slices.neighbours[:, 1:2], slices.radius >= 0
    train(unet, crop_points, own, every, settings.batch, settings.steps, "heart network")
    for border in network.borders:
        large = slices.radius > SMALLEST
        train(border, polar_points, slices.neighbours, large, 16, steps, "border network")
    return network.eval().to("cpu")


def with_drawn_rv(study: Study, network: HeartNetwork | None) -> Study:
    """Add the RV that a network draws to a study with LV labels only, where nothing is labelled."""
    labels = study.label_map
    if network is None or labels is None or np.any(labels == RV):
        return study
    drawn = network.predict(study).label_map
    with_rv = np.where((labels == BACKGROUND) & (drawn == RV), RV, labels)
    # without landmarks of its own: a drawn RV does not show whether a study is mirrored
    return with_labels(study, with_rv, study["landmarks"] or UNKNOWN)


def rotated_copy(study: Study, degrees: float, mirror: bool) -> Study:
    """Turn a study counter-clockwise about its middle and maybe mirror it, on a larger square."""
    first = (180 - ANTERIOR_RVIP_DEG if mirror else ANTERIOR_RVIP_DEG) - degrees
    pose = Landmarks(first, first - 120 if mirror else first + 120)  # brought to the frame's pose
    side = 1.2 * float(np.max(np.array(study.spatial_shape[:2]) * study.spacing_mm[:2]))
    standard = StandardizeShortAxis(round(SQUARE_PIXELS * 1.2), side)
    frame = standard.find_frame(Study(**{**study, "landmarks": pose}))
    frame = replace(frame, centre=(np.array(study.spatial_shape[:2]) - 1) / 2)
    turned, known = frame.apply(copy.deepcopy(study)), study["landmarks"] or UNKNOWN
    anterior, inferior = to_frame_deg(known.angles, pose).tolist()
    turned["landmarks"] = Landmarks(anterior, inferior, known.confidence)
    return turned


def evaluate_heart_network(network: HeartNetwork, cohort: Cohort, seed: int = 0) -> pd.DataFrame:
    """Measure a heart network on labelled studies that it was not trained on.

    Dice is measured on the studies as stored, insertion points on copies that are turned and
    mirrored at random. Returns one row per study: ``study_id, patient_id, dice_cavity,
    dice_myocardium, dice_rv``, ``anterior_error_deg, inferior_error_deg`` (0 to 180),
    ``mirror_right`` (1.0 or 0.0), ``confidence`` (of the prediction), ``reference_confidence``; NaN
    where unknown.
    """
    labelled = [study for study in cohort.studies if study.label_map is not None]
    rng, copies = np.random.default_rng(seed), []
    for study in labelled:
        study = Study(**{**study, "landmarks": study["landmarks"] or UNKNOWN})
        copies.append(rotated_copy(study, rng.uniform(0, 360), bool(rng.integers(2))))
    predicted = network.predict_cohort(Cohort(labelled)).studies
    turned = network.predict_cohort(Cohort(copies)).studies
    rows = []
    for study, drawn, rotated, found in zip(labelled, predicted, copies, turned, strict=True):
        row: dict[str, Any] = {"study_id": study["study_id"], "patient_id": study["patient_id"]}
        for name, codes in (("cavity", (CAVITY,)), ("myocardium", WALL_CODES), ("rv", (RV,))):
            a, b = (np.isin(np.asarray(one.label_map), codes) for one in (study, drawn))
            row[f"dice_{name}"] = 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() else np.nan
        truth, landmarks = (one["landmarks"] or UNKNOWN for one in (rotated, found))
        errors = abs((landmarks.angles - truth.angles + 180) % 360 - 180)
        row["anterior_error_deg"], row["inferior_error_deg"] = errors
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


def base_network(settings: FitSettings, progress: bool = True) -> HeartNetwork:
    """The heart network of phantoms alone: by the default settings, the one in the package."""
    if all(getattr(settings, name) == getattr(FitSettings(), name) for name in BASE_SETTINGS):
        return HeartNetwork.load(networks.WEIGHTS / "heart")
    phantoms = phantom_cohort(settings.heart_phantom, seed=7919)
    return _fitted(phantoms, settings, settings.heart_base_steps, None, progress)


def heart_network(
    cohort: Cohort, settings: FitSettings, steps: int = 900, progress: bool = True
) -> HeartNetwork:
    """`base_network`, trained on with the masks of a cohort. Cached.

    It outlines the studies that it has seen better than others.
    """
    return _fitted(cohort, settings, steps, base_network(settings, progress), progress)


def _fitted(
    cohort: Cohort, settings: FitSettings, steps: int, init: HeartNetwork | None, progress: bool
) -> HeartNetwork:
    """Train on a cohort, or take the weights from the cache."""
    size = HEART_SIZES[settings.heart_size]
    # without a real study of its kind, learn shapes, not the look of phantoms
    invented = 0.0 if init else SYNTHETIC_SHARE
    changes: dict[str, Any] = {"steps": steps, "border_steps": min(steps, size.border_steps)}
    own = replace(size, encoder=settings.encoder, invented=invented, **changes)
    seed = settings.seed if settings.heart_seed < 0 else settings.heart_seed
    landmarks = [repr(study["landmarks"]) for study in cohort.studies]
    start = "" if init is None else weights_fingerprint(init)
    key = cohort.fingerprint, landmarks, start, own, seed, code_version(*ROOMS)
    return compute_once(key, fit_heart_network, cohort, own, seed, init, progress)


def locate(cohort: Cohort, network: HeartNetwork) -> Cohort:
    """The cohort with predicted labels and landmarks in place of its own. Cached."""
    key = cohort.fingerprint, weights_fingerprint(network), code_version(*ROOMS)
    found = compute_once(key, _located, cohort, network)
    pairs = zip(cohort.studies, found, strict=True)
    studies = [with_labels(study, labels, marks) for study, (labels, marks) in pairs]
    return Cohort(studies, cohort.name)


def _located(cohort: Cohort, network: HeartNetwork) -> list[tuple]:
    found = copy.deepcopy(network).to(accelerator()).predict_cohort(cohort)
    return [(np.asarray(study.label_map), study["landmarks"]) for study in found.studies]


def locate_hearts(cohort: Cohort, model: Path | None = None) -> Cohort:
    """Add labels and insertion points where studies lack them, from a heart network.

    ``model`` is a folder that ``lgekit fit`` wrote; None: the weights in the package.
    ``study["located_by"]`` says where the insertion points come from: ``given`` or ``network``.
    """
    predicted = cohort
    if any(one.label_map is None or known_landmarks(one) is None for one in cohort.studies):
        predicted = locate(cohort, HeartNetwork.load((model or networks.WEIGHTS) / "heart"))
    studies = []
    for study, found in zip(cohort.studies, predicted.studies, strict=True):
        own = known_landmarks(study)
        fields = {"labels": found["labels"], **study, "landmarks": own or found["landmarks"]}
        fields["located_by"] = "given" if own else "network"
        studies.append(Study(**fields))
    return Cohort(studies, cohort.name)
