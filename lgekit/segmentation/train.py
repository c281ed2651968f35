"""Train, measure and cache the heart network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

from lgekit.anatomy.labels import base_first, lv_centre
from lgekit.anatomy.segments import insertion_points, known_landmarks
from lgekit.cache import accelerator, code_version, compute_once, memory
from lgekit.clip.model import ImageEncoder
from lgekit.config import FitSettings, size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.data.readers import pretraining_specs, read_cohort, refuse_shared
from lgekit.errors import InputError
from lgekit.segmentation.model import (
    SIZES,
    HeartNetwork,
    HeartSettings,
    build_unet,
    with_prediction,
)
from lgekit.segmentation.polar_unet import SAMPLE_AREAS, build_border_network, ring_points
from lgekit.segmentation.slices import (
    CANVAS,
    CLASSES,
    Slices,
    angle_field,
    collect_slices,
    crop,
    directions,
    invent_appearance,
    random_crops,
    square_slices,
    standardise,
    uniform,
    vary_appearance,
)
from lgekit.study import BACKGROUND, CAVITY, RV, WALL_CODES, Cohort, Landmarks, Study

SMALLEST = 30  # LV pixels that a slice needs to train the border network
LARGEST_AREA = 1.4  # that a polar sample counts for in the cross-entropy, so that the wall counts
INVENTED = 0.5  # share of generated pictures where a network learns from other cohorts [O]


def check_encoder(settings: FitSettings) -> None:
    """Build what the setting ``encoder`` shapes, and throw it away.

    Raises:
        InputError: timm knows no such network, or it gives no feature maps.
    """
    if settings.needs_heart:
        build_unet(replace(SIZES[settings.heart_size], encoder=settings.encoder), 0)
    if settings.frame == "image":
        try:
            ImageEncoder(settings.encoder)
        except InputError:
            raise
        except ValueError as error:  # of timm, for a name that looks like a path
            problem = f"{settings.encoder!r}: {' '.join(str(error).split())[:200]}"
            raise InputError(
                "setting encoder", problem, "Give a name from timm.list_models()"
            ) from error


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
    batch, pixels = Slices(*(tensor[chosen] for tensor in slices)), settings.pixels
    count, device = len(chosen), chosen.device
    wide = torch.arange(count, device=device) < round(count * settings.wide_share)
    half_width = torch.where(wide, 1.0, batch.diameter * settings.heart_view / 2)
    middle = torch.where(wide[:, None], 0.0, batch.centre)
    axes, centre = random_crops(middle, half_width, rng)
    pictures = crop(batch.images[:, None].float() / 255, axes, centre, pixels)
    labels = crop(batch.labels[:, None].float(), axes, centre, pixels, "nearest")
    pictures = invent_appearance(pictures, labels, settings.invented, rng)
    pictures = standardise(vary_appearance(pictures, rng))
    # LV centre and insertion points in the crop's coordinates
    lv_middle = torch.linalg.solve(axes, (batch.centre - centre)[:, :, None])[:, :, 0]
    turned = torch.linalg.solve(axes, batch.insertions.transpose(1, 2)).transpose(1, 2)
    insertions, size = functional.normalize(turned, dim=2), torch.linalg.det(axes)
    unit, distance = directions(pixels, lv_middle)
    radii = distance * (size.abs().sqrt() / (batch.diameter / 2))[:, None, None]
    return Examples(
        pictures.to(memory_format=torch.channels_last),
        labels[:, 0].long(),
        angle_field(unit[:, 0], unit[:, 1], insertions, batch.handedness * size.sign()),
        area=torch.ones(1, 1, device=device),
        angle_weight=radii.clamp(max=1.2),
        slices=batch,
        smoothing=5,
        averaged=2 + batch.rv_known.any(),
    )


def polar_examples(
    slices: Slices, chosen: Tensor, settings: HeartSettings, rng: torch.Generator
) -> Examples:
    """Random polar pictures of ``chosen (B,)`` slices and their neighbours: border network."""
    batch, count, device = Slices(*(one[chosen] for one in slices)), len(chosen), chosen.device
    triples = chosen[:, None] + torch.tensor([-1, 0, 1], device=device)
    triples = triples.clamp(0, len(slices.study) - 1)
    same_study = slices.study[triples] == batch.study[:, None]
    triples = torch.where(same_study, triples, chosen[:, None])  # (B, 3)
    lv_radius = torch.sqrt(_lv(batch.labels).sum((1, 2)) / torch.pi) * 2 / CANVAS
    centre = batch.centre + uniform(-0.18, 0.18, (count, 2), rng) * lv_radius[:, None]
    mirror = uniform(0, 1, (count, 1), rng).lt(0.5).float() * 2 - 1
    radius = lv_radius * torch.exp(uniform(-0.25, 0.25, count, rng))
    points = ring_points(centre, radius, uniform(0, 2 * torch.pi, (count, 1), rng), mirror)
    images, labels = slices.images[triples].float() / 255, slices.labels[triples].float()
    pictures = functional.grid_sample(images, points, align_corners=False)
    labels = functional.grid_sample(labels, points, mode="nearest", align_corners=False)
    pictures = invent_appearance(pictures, labels, settings.invented, rng, wrap=True)
    unit = functional.normalize(points - batch.centre[:, None, None], dim=-1)
    area = SAMPLE_AREAS.to(device)
    return Examples(
        vary_appearance(pictures, rng).contiguous(memory_format=torch.channels_last),
        labels[:, 1].long(),
        angle_field(unit[..., 0], unit[..., 1], batch.insertions, batch.handedness),
        area=area,
        angle_weight=area,
        slices=batch,
        smoothing=2,
        averaged=2,
    )


def _lv(classes: Tensor) -> Tensor:
    return (classes == 1) | (classes == 2)


def heart_loss(output: Tensor, examples: Examples) -> Tensor:
    """Cross-entropy + soft Dice of the classes + squared error of the angle field.

    Where a study's labels do not include the RV, background may be background or RV.

    Args:
        output: ``(B, 8, h, w)`` of either network.
        examples: what it should draw.
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


def train_network(
    network: nn.Module,
    draw_examples: Callable[[], Examples],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    bar: str | None = None,
) -> None:
    """Train either network in place with AdamW and a one-cycle schedule.

    ``bar`` is the text of the progress bar; without it, there is no bar.
    """
    weights = list(network.parameters())
    optimiser = torch.optim.AdamW(weights, learning_rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, max(steps, 2), pct_start=0.15, cycle_momentum=False
    )
    for step in (progress := tqdm(range(steps), bar, disable=bar is None)):
        examples = draw_examples()
        output = network(examples.pictures)
        loss = heart_loss(output, examples)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


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
    not swamped by the phantom. Insertion points come from landmarks, else from RV labels. With
    ``init``, studies without RV labels get the RV that ``init`` draws, so that it is not forgotten.

    Args:
        cohorts: of any studies.
        size: ``smoke``, ``laptop`` or ``paper``; with ``init``, only the schedule is this size's.
        seed: of weights, sampling and augmentation.
        init: start from its first networks, at a third of the learning rate.
        progress: show bars.
        device: where to train.
        changes: fields of `HeartSettings`, e.g. ``steps=200``.

    Raises:
        InputError: unknown size or setting, or no study with a label of the left ventricle.
    """
    if size not in SIZES:
        raise InputError("size", f"{size!r} is unknown", f"Use one of {', '.join(SIZES)}")
    settings = SIZES[size]
    if init is not None:
        kept = ("encoder", "decoder", "pixels", "heart_view", "border_channels")
        changes = {name: getattr(init.settings, name) for name in kept} | changes
    try:
        settings = replace(settings, **changes)
    except TypeError as error:
        remedy = f"Known settings: {', '.join(asdict(settings))}"
        raise InputError("heart network settings", str(error), remedy) from error
    studies = [one.studies if init is None else with_drawn_rv(one.studies, init) for one in cohorts]
    slices = Slices(*(tensor.to(device) for tensor in collect_slices(studies)))

    def drawing(make_examples, usable: Tensor, batch: int) -> Callable[[], Examples]:
        counts = torch.bincount(slices.cohort[usable], minlength=len(cohorts)).clamp(min=1)
        chance = usable * counts[slices.cohort].float() ** -0.75
        rng = torch.Generator(device).manual_seed(seed)

        def draw_examples() -> Examples:
            chosen = torch.multinomial(chance, batch, replacement=True, generator=rng)
            return make_examples(slices, chosen, settings, rng)

        return draw_examples

    unet, borders = build_unet(settings, seed).to(device), []
    rate = settings.learning_rate
    if init is not None:
        unet.load_state_dict(init.networks[0].state_dict())
        rate = rate / 3
    draw = drawing(crop_examples, torch.ones_like(slices.rv_known), settings.batch)
    train_network(unet, draw, settings.steps, rate, 0.01, "heart network" if progress else None)
    if settings.border_steps:
        borders = [build_border_network(settings.border_channels, seed).to(device)]
        if init is not None and len(init.borders):
            borders[0].load_state_dict(init.borders[0].state_dict())
        draw = drawing(polar_examples, _lv(slices.labels).sum((1, 2)) > SMALLEST, 16)
        bar = "border network" if progress else None
        train_network(borders[0], draw, settings.border_steps, 3e-3, 0.02, bar)
    return HeartNetwork(settings, [unet], [cohort.name for cohort in cohorts], borders)


def with_drawn_rv(studies: Sequence[Study], network: HeartNetwork) -> list[Study]:
    """Add the RV that a network draws to studies with LV labels only, where nothing is labelled.

    Missing landmarks stay unknown: the side of the drawn RV does not show a mirrored study.
    """
    completed = list(studies)
    lacking = [
        number
        for number, study in enumerate(studies)
        if study.label_map is not None and not np.any(study.label_map == RV)
    ]
    if not lacking:
        return completed
    predicted = network.predict_cohort([studies[number] for number in lacking]).studies
    for number, drawn in zip(lacking, predicted, strict=True):
        study, labels = studies[number], np.asarray(studies[number].label_map)
        with_rv = np.where((labels == BACKGROUND) & (drawn.label_map == RV), RV, labels)
        landmarks = study["landmarks"] or Landmarks(float("nan"), float("nan"), 0.0)
        completed[number] = with_prediction(study, with_rv, landmarks)
    return completed


def turned_copy(study: Study, degrees: float, mirror: bool) -> Study:
    """Turn a study counter-clockwise about the middle of its field of view, then mirror it or not.

    Image, labels and landmarks move together, in one resampling to a larger isotropic square.
    """
    square, margin = square_slices(study), 1.2
    count, pixels = len(square.images), round(CANVAS * margin)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float32)
    axes = margin * turn @ torch.diag(torch.tensor([-1.0 if mirror else 1.0, 1.0]))
    crops = axes.expand(count, 2, 2), torch.zeros(count, 2)
    fields: dict = {key: value for key, value in study.items() if key not in ("image", "labels")}
    if study.label_map is not None:
        labels = study["labels"].data.permute(3, 0, 2, 1).float().contiguous()
        turned = crop(square.from_study(labels, "nearest"), *crops, pixels, "nearest")
        fields["labels"] = turned[:, 0].permute(2, 1, 0).to(torch.uint8)
    known = study["landmarks"]
    if known is not None:
        points = torch.tensor([known.anterior_rvip_deg, known.inferior_rvip_deg]).deg2rad()
        moved = torch.stack([points.cos(), -points.sin()], dim=1) @ torch.linalg.inv(axes).T
        angles = torch.atan2(-moved[:, 1], moved[:, 0]).rad2deg() % 360
        fields["landmarks"] = Landmarks(float(angles[0]), float(angles[1]), known.confidence)
    image = crop(square.images, *crops, pixels)[:, 0].permute(2, 1, 0)
    side = 2 * square.half_mm / CANVAS
    spacing = (side, side, study.spacing_mm[2])
    return Study.from_arrays(fields.pop("study_id"), image, spacing, **fields)


def evaluate_heart_network(
    network: HeartNetwork, studies: Cohort | Sequence[Study], seed: int = 0
) -> pd.DataFrame:
    """Measure a heart network on labelled studies that it was not trained on.

    Dice is measured on the studies as stored, insertion points on copies that are turned and
    mirrored at random. Their ground truth is the studies' landmarks, else the RV labels.

    Returns:
        One row per study: ``study_id, patient_id, dice_cavity, dice_myocardium, dice_rv``,
        ``anterior_error_deg, inferior_error_deg`` (0 to 180), ``mirror_right`` (1.0 or 0.0),
        ``confidence`` (of the prediction), ``reference_confidence``; NaN where unknown.
    """
    everyone = studies.studies if isinstance(studies, Cohort) else studies
    labelled = [study for study in everyone if study.label_map is not None]
    rng, copies = np.random.default_rng(seed), []
    for study in labelled:
        if study["landmarks"] is None and np.any(study.label_map == RV):
            points = insertion_points(study.label_map, study.spacing_mm, mirrored=False)
            study = Study(**{**study, "landmarks": points})
        copies.append(turned_copy(study, rng.uniform(0, 360), bool(rng.integers(2))))
    predicted, turned = (network.predict_cohort(group).studies for group in (labelled, copies))
    rows = []
    for study, drawn, copy, found in zip(labelled, predicted, copies, turned, strict=True):
        row: dict[str, Any] = {"study_id": study["study_id"], "patient_id": study["patient_id"]}
        for name, codes in (("cavity", (CAVITY,)), ("myocardium", WALL_CODES), ("rv", (RV,))):
            a, b = (np.isin(np.asarray(one.label_map), codes) for one in (study, drawn))
            row[f"dice_{name}"] = 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() else np.nan
        nowhere = Landmarks(np.nan, np.nan, np.nan)
        truth, landmarks = copy["landmarks"] or nowhere, found["landmarks"]
        for name in ("anterior_rvip_deg", "inferior_rvip_deg"):
            error = getattr(landmarks, name) - getattr(truth, name)
            row[name.replace("rvip", "error")] = abs((error + 180) % 360 - 180)
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

    A cohort without masks gets the base. The second step leaves the other cohorts out: on a quarter
    of EMIDEC held out, mean Dice of the wall was 0.74 instead of 0.72.

    Args:
        cohort: the training studies.
        pretrain_on: further cohorts with masks.
        settings: size, steps, number of phantoms, seed.
        progress: show bars.

    Raises:
        InputError: no study anywhere has a mask.
    """
    base = base_network(pretrain_on, settings, progress)
    if _labelled(cohort):
        steps = settings.heart_steps + (0 if base else settings.heart_base_steps)
        return _fitted([cohort], settings, steps, base, progress)
    if base is None:
        remedy = "Give labelled studies, a cohort to pretrain on, or heart_phantom > 0."
        raise InputError(cohort.name, "no study has a label of the left ventricle", remedy)
    return base


def base_network(
    pretrain_on: Sequence[Cohort], settings: FitSettings, progress: bool = True
) -> HeartNetwork | None:
    """The heart network of other cohorts and phantoms alone; None where there are none. Cached.

    All folds and ablation rows share it.
    """
    others = [one for one in pretrain_on if _labelled(one)]
    if settings.heart_phantom:
        others.append(phantom_cohort(settings.heart_phantom, seed=_heart_seed(settings) + 7919))
    return _fitted(others, settings, settings.heart_base_steps, None, progress) if others else None


def _labelled(cohort: Cohort) -> bool:
    return any(study.label_map is not None for study in cohort.studies)


def _heart_seed(settings: FitSettings) -> int:
    return settings.seed if settings.heart_seed < 0 else settings.heart_seed


def _fitted(
    cohorts: list[Cohort],
    settings: FitSettings,
    steps: int,
    init: HeartNetwork | None,
    progress: bool,
) -> HeartNetwork:
    """Train on some cohorts, or take the weights from the cache."""
    landmarks = [repr(study["landmarks"]) for one in cohorts for study in one.studies]
    data = [one.fingerprint for one in cohorts], landmarks
    start = "" if init is None else weights_fingerprint(init)
    key = data, start, code_version("anatomy", "data", "segmentation")
    size = SIZES[settings.heart_size]
    changes: dict[str, Any] = {"steps": steps, "border_steps": min(steps, size.border_steps)}
    if init is None:  # without a real study of its kind, learn shapes, not the look of phantoms
        changes |= {"encoder": settings.encoder, "invented": INVENTED}
    else:  # the base does not know this cohort: undo the third of the rate that `init` would get
        changes |= {"learning_rate": size.learning_rate * 3}
    trained = memory().cache(_trained, ignore=["cohorts", "init", "progress"])
    about = key, settings.heart_size, _heart_seed(settings), changes
    network = compute_once(trained, *about, cohorts, init, progress)
    network.trained_on = tuple(cohort.name for cohort in cohorts)
    return network


def _trained(
    key: tuple, size: str, seed: int, changes: dict, cohorts, init, progress
) -> HeartNetwork:
    device = accelerator()
    start = None if init is None else init.to(device)
    try:
        network = fit_heart_network(cohorts, size, seed, start, progress, device, **changes)
    finally:
        if init is not None:
            init.to("cpu")
    return network.to("cpu")


def locate(cohort: Cohort, network: HeartNetwork) -> Cohort:
    """The cohort with predicted labels and landmarks in place of its own. Cached."""
    version = code_version("anatomy", "data", "segmentation")
    key = cohort.fingerprint, weights_fingerprint(network), version
    located = memory().cache(_located, ignore=["cohort", "network"])
    found = compute_once(located, key, cohort, network)
    studies = [
        with_prediction(study, np.array(labels), landmarks)
        for study, (labels, landmarks) in zip(cohort.studies, found, strict=True)
    ]
    return Cohort(studies, cohort.name)


def _located(
    key: tuple, cohort: Cohort, network: HeartNetwork
) -> list[tuple[np.ndarray, Landmarks]]:
    before = network.device
    found = network.to(accelerator()).predict_cohort(cohort.studies)
    network.to(before)
    return [(np.asarray(study.label_map), study["landmarks"]) for study in found.studies]


def pretraining_cohorts(cohort: Cohort, spec: str, pretrain_on: str) -> list[Cohort]:
    """Read the cohorts that `lgekit.data.readers.pretraining_specs` names.

    Raises:
        InputError: one cannot be read, or holds an image of the cohort (all splits).
    """
    further = [read_cohort(other) for other in pretraining_specs(spec, pretrain_on)]
    refuse_shared(cohort, further)
    return further


def locate_hearts(cohort: Cohort, model: Path | None = None) -> Cohort:
    """Add labels and insertion points where studies lack them, from a heart network.

    ``study["located_by"]`` says where the insertion points come from: ``given`` or ``network``.

    Args:
        cohort: any cohort.
        model: folder that ``lgekit fit`` wrote; None: train on the cohort's masks and phantoms.

    Raises:
        InputError: the model's folder holds no heart network.
    """
    predicted = cohort
    if not all(ready(study) for study in cohort.studies):
        if model is None:
            network = heart_network(cohort, (), size_settings("laptop", seed=0))
        elif (model / "heart").is_dir():
            network = HeartNetwork.load(model / "heart")
        else:
            remedy = "Give a folder that `lgekit fit` wrote."
            raise InputError(model, "holds no heart network", remedy)
        predicted = locate(cohort, network)
    studies = []
    for study, found in zip(cohort.studies, predicted.studies, strict=True):
        own = known_landmarks(study)
        fields = {**study, "landmarks": own or found["landmarks"]}
        fields["located_by"] = "given" if own else "network"
        fields.setdefault("labels", found["labels"])
        studies.append(Study(**fields))
    return Cohort(studies, cohort.name)


def ready(study: Study) -> bool:
    """Whether a study has labels and insertion points of its own."""
    return study.label_map is not None and known_landmarks(study) is not None


def landmark_row(stored: Study, framed: Study) -> dict[str, Any]:
    """One row of landmarks.csv, from a located study as stored and in the standard frame."""
    marks, labels = stored["landmarks"], stored.label_map
    centre = lv_centre(labels)[0] if labels is not None else (np.nan, np.nan)
    return {
        "study_id": stored["study_id"],
        "anterior_rvip_deg": marks.anterior_rvip_deg if marks else np.nan,
        "inferior_rvip_deg": marks.inferior_rvip_deg if marks else np.nan,
        "mirrored": marks.mirrored if marks else None,
        "confidence": marks.confidence if marks else 0.0,
        "turned": framed["orientation_confident"],
        "base_first": base_first(labels) if labels is not None else None,
        "centre_x_voxel": centre[0],
        "centre_y_voxel": centre[1],
        "mm_per_pixel": framed["frame"].mm_per_pixel,
        "located_by": stored["located_by"],
    }
