"""Train the heart network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from lgekit.anatomy.labels import base_first, lv_centre
from lgekit.anatomy.segments import insertion_points, known_landmarks
from lgekit.cache import accelerator, code_version, compute_once, memory
from lgekit.config import FitSettings
from lgekit.data.readers import pretraining_specs, refuse_shared
from lgekit.errors import InputError
from lgekit.segmentation.model import (
    SIZES,
    HeartNetwork,
    HeartSettings,
    build_unet,
    read_settings,
    with_prediction,
)
from lgekit.segmentation.polar_unet import fit_border_network, hide_unknown_rv
from lgekit.segmentation.slices import (
    CANVAS,
    CLASSES,
    Slices,
    Views,
    angle_field,
    collect_slices,
    invent_appearance,
    make_canvas,
    random_views,
    standardise,
    vary_appearance,
)
from lgekit.study import BACKGROUND, CAVITY, RV, WALL_CODES, Cohort, Landmarks, Study


def fit_heart_network(
    cohorts: Sequence[Cohort],
    size: str = "laptop",
    seed: int = 0,
    init: HeartNetwork | None = None,
    progress: bool = True,
    device: str | torch.device = "cpu",
    **changes,
) -> HeartNetwork:
    """Train the heart network on all labelled studies of some cohorts.

    Each cohort is drawn in proportion to the fourth root of its slices, so that a small real cohort is heard beside a
    large phantom. Where a study has no RV label, the loss leaves the RV out: its pixels may be background or RV; with
    ``init`` the RV that ``init`` draws is learned (:func:`with_drawn_rv`), so that it is not forgotten.

    Args:
        cohorts: studies without LV labels are skipped; insertion points come from the studies' landmarks, else from
            their RV labels.
        size: ``smoke``, ``laptop`` or ``paper``; with ``init`` its settings are the start's and only the schedule is
            this size's.
        seed: of weights, sampling and augmentation.
        init: start from these weights (an ensemble's first), at a third of the learning rate.
        progress: show a bar.
        device: where to train.
        changes: fields of :class:`HeartSettings`, e.g. ``steps=200``.

    Raises:
        InputError: unknown size or setting, or no study with a label of the left ventricle.
    """

    settings = heart_settings(size, init, changes)
    device = torch.device(device)
    studies = [
        with_drawn_rv(cohort.studies, init) if init is not None else cohort.studies
        for cohort in cohorts
    ]
    slices = collect_slices(studies).to(device)
    unet = build_unet(settings, seed).to(device)
    if init is not None:
        unet.load_state_dict(init.networks[0].state_dict())
    unet.train()
    rng = torch.Generator(device).manual_seed(seed)
    rate = settings.learning_rate / (1 if init is None else 3)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, settings.steps, pct_start=0.15, cycle_momentum=False
    )
    counts = torch.bincount(slices.cohort).clamp(min=1)
    chance = counts[slices.cohort].float() ** -0.75
    bar = tqdm(range(settings.steps), "heart network", disable=not progress)
    for step in bar:
        batch = slices[torch.multinomial(chance, settings.batch, replacement=True, generator=rng)]
        loss = heart_loss(unet, batch, settings, rng)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    borders = []
    if settings.border_steps:
        start = init.borders[0] if init is not None and len(init.borders) else None
        about: dict[str, Any] = {"init": start, "invented": settings.invented, "progress": progress}
        borders = [
            fit_border_network(
                slices, settings.border_channels, settings.border_steps, seed, **about
            )
        ]
    return HeartNetwork(settings, [unet], [cohort.name for cohort in cohorts], borders)


def with_drawn_rv(studies: Sequence[Study], network: HeartNetwork) -> list[Study]:
    """Studies whose labels know the left ventricle and no RV get the RV that a network draws where they know nothing.

    Landmarks stay the studies' own; where these have none, they are unknown as before and not taken from the drawn RV,
    whose side cannot tell a mirrored study. Other studies are given back as they are.
    """
    lacking = [
        study
        for study in studies
        if study.label_map is not None and not np.any(study.label_map == RV)
    ]
    if not lacking:
        return list(studies)
    drawn = dict(zip(map(id, lacking), network.predict_cohort(lacking).studies, strict=True))
    completed = []
    for study in studies:
        if id(study) in drawn:
            labels = np.asarray(study.label_map)
            found = (labels == BACKGROUND) & (np.asarray(drawn[id(study)].label_map) == RV)
            landmarks = study["landmarks"] or Landmarks(float("nan"), float("nan"), 0.0)
            study = with_prediction(
                study, torch.from_numpy(np.where(found, RV, labels).astype(np.uint8)), landmarks
            )
        completed.append(study)
    return completed


def heart_settings(size: str, init: HeartNetwork | None, changes: dict) -> HeartSettings:
    """The settings of a size, with changes, or with the shape of the network to start from."""
    if size not in SIZES:
        raise InputError("size", f"{size!r} is unknown", f"Use one of {', '.join(SIZES)}")
    settings = SIZES[size]
    if init is not None:
        names = ("encoder", "decoder", "pixels", "heart_view", "border_channels")
        shape = {key: getattr(init.settings, key) for key in names}
        settings = replace(settings, **shape)
    try:
        return replace(settings, **changes)
    except TypeError as error:
        known = ", ".join(asdict(settings))
        raise InputError(
            "heart network settings", str(error), f"Known settings: {known}"
        ) from error


def heart_loss(
    unet: nn.Module, batch: Slices, settings: HeartSettings, rng: torch.Generator
) -> Tensor:
    """Cross-entropy + soft Dice of the classes + squared error of the angle field, on random views of a batch."""
    count = len(batch)
    wide = torch.arange(count, device=batch.images.device) < round(count * settings.wide_share)
    half_width = torch.where(wide, 1.0, batch.diameter * settings.heart_view / 2)
    centre = torch.where(wide[:, None], 0.0, batch.centre)
    views = random_views(centre, half_width, shift=0.15, zoom=0.22, rng=rng)
    images = views.sample(batch.images[:, None].float() / 255, settings.pixels)
    target = views.sample(batch.labels[:, None].float(), settings.pixels, "nearest")[:, 0].long()
    images = invent_appearance(images, target[:, None], settings.invented, rng)
    images = standardise(vary_appearance(images, rng)).to(memory_format=torch.channels_last)
    output = unet(images)
    logs = hide_unknown_rv(output[:, :CLASSES].log_softmax(1), batch.rv_known)
    entropy = functional.nll_loss(logs, target)
    overlaps = []
    for code in range(1, CLASSES):
        used = batch.rv_known if code == 3 else torch.ones_like(batch.rv_known)
        if used.any():
            predicted, true = logs[used, code].exp(), (target[used] == code).float()
            both = (predicted * true).sum((1, 2))
            overlaps.append(
                1 - ((2 * both + 5) / (predicted.sum((1, 2)) + true.sum((1, 2)) + 5)).mean()
            )
    field, distance = angle_field(batch, views, settings.pixels)
    left = ((target == 1) | (target == 2))[:, None] * distance.clamp(max=1.2)
    weight = (
        left
        / left.sum((1, 2, 3), keepdim=True).clamp(min=20)
        * batch.landmark_weight[:, None, None, None]
    )
    angles = (weight * (output[:, CLASSES:] - field).square()).sum() / count
    return entropy + torch.stack(overlaps).mean() + 0.5 * angles


def turned_copy(study: Study, degrees: float, mirror: bool) -> Study:
    """A study stored otherwise: turned counter-clockwise about the middle of its field of view, then mirrored or not.

    Image, labels and landmarks move together, in one resampling onto a larger square grid with isotropic pixels.
    """
    canvas, margin = make_canvas(study), 1.2
    count, pixels = len(canvas.images), round(CANVAS * margin)
    radians = np.radians(degrees)
    turn = torch.tensor(
        [[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]],
        dtype=torch.float32,
    )
    axes = margin * turn @ torch.diag(torch.tensor([-1.0 if mirror else 1.0, 1.0]))
    views = Views(axes.expand(count, 2, 2), torch.zeros(count, 2))
    fields: dict = {key: value for key, value in study.items() if key not in ("image", "labels")}
    if study.label_map is not None:
        labels = canvas.resample(
            study["labels"].data.permute(3, 0, 2, 1).float().contiguous(), "nearest"
        )
        fields["labels"] = (
            views.sample(labels, pixels, "nearest")[:, 0].permute(2, 1, 0).to(torch.uint8)
        )
    known = study["landmarks"]
    if known is not None:
        points = torch.tensor(
            [known.anterior_rvip_deg, known.inferior_rvip_deg], dtype=torch.float32
        ).deg2rad()
        moved = torch.stack([points.cos(), -points.sin()], dim=1) @ torch.linalg.inv(axes).T
        angles = torch.atan2(-moved[:, 1], moved[:, 0]).rad2deg() % 360
        fields["landmarks"] = Landmarks(float(angles[0]), float(angles[1]), known.confidence)
    image = views.sample(canvas.images, pixels)[:, 0].permute(2, 1, 0)
    side = 2 * canvas.half_mm / CANVAS
    return Study.from_arrays(
        fields.pop("study_id"), image, (side, side, study.spacing_mm[2]), **fields
    )


def evaluate_heart_network(
    network: HeartNetwork, studies: Cohort | Sequence[Study], seed: int = 0
) -> pd.DataFrame:
    """Measure a heart network on labelled studies, which it should not have been trained on.

    Dice on the files as they lie; insertion points and mirroring on copies turned by a random angle and mirrored at
    random. The truth of the points are the studies' landmarks, else their RV labels.

    Returns:
        One row a study: ``study_id, patient_id, dice_cavity, dice_myocardium, dice_rv`` (NaN without RV labels),
        ``anterior_error_deg, inferior_error_deg`` (0 to 180; NaN where unknown or no heart found), ``mirror_right``
        (1.0 or 0.0; NaN where unknown), ``confidence`` (of the prediction), ``reference_confidence``.
    """
    everyone, rng = (
        studies.studies if isinstance(studies, Cohort) else studies,
        np.random.default_rng(seed),
    )
    studies = [study for study in everyone if study.label_map is not None]
    copies = []
    for study in studies:
        if study["landmarks"] is None and np.any(study.label_map == RV):
            points = insertion_points(study.label_map, study.spacing_mm, mirrored=False)
            study = Study(**{**study, "landmarks": points})
        copies.append(turned_copy(study, rng.uniform(0, 360), bool(rng.integers(2))))
    rows = []
    drawn_all, turned_all = (
        network.predict_cohort(studies).studies,
        network.predict_cohort(copies).studies,
    )
    found = zip(studies, drawn_all, copies, turned_all, strict=True)
    for study, drawn, copy, turned in found:
        true, labels = np.asarray(study.label_map), np.asarray(drawn.label_map)
        row = {"study_id": study["study_id"], "patient_id": study["patient_id"]}
        for name, codes in (("cavity", (CAVITY,)), ("myocardium", WALL_CODES), ("rv", (RV,))):
            a, b = np.isin(true, codes), np.isin(labels, codes)
            row[f"dice_{name}"] = 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() else np.nan
        reference, landmarks = copy["landmarks"], turned["landmarks"]
        known = reference is not None and np.isfinite(reference.anterior_rvip_deg)
        for name in ("anterior", "inferior"):
            key = f"{name}_rvip_deg"
            error = (
                (getattr(landmarks, key) - getattr(reference, key) + 180) % 360 - 180
                if known
                else np.nan
            )
            row[f"{name}_error_deg"] = abs(error)
        row["mirror_right"] = float(landmarks.mirrored == reference.mirrored) if known else np.nan
        row["confidence"] = landmarks.confidence
        row["reference_confidence"] = reference.confidence if known else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


INVENTED = 0.5  # share of pictures with an invented appearance, of the base alone [O]


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


def base_network(
    pretrain_on: Sequence[Cohort], settings: FitSettings, progress: bool = True
) -> HeartNetwork | None:
    """The heart network of the other cohorts and phantoms alone; None where there are none."""
    others = _others(pretrain_on, settings)
    return _fitted(others, settings, settings.heart_base_steps, None, progress) if others else None


def _others(pretrain_on: Sequence[Cohort], settings: FitSettings) -> list[Cohort]:
    from lgekit.data.phantom import phantom_cohort

    others = [one for one in pretrain_on if _labelled(one)]
    if settings.heart_phantom:
        others.append(phantom_cohort(settings.heart_phantom, seed=_heart_seed(settings) + 7919))
    return others


def _heart_seed(settings: FitSettings) -> int:
    return settings.seed if settings.heart_seed < 0 else settings.heart_seed


def _labelled(cohort: Cohort) -> bool:
    return any(study.label_map is not None for study in cohort.studies)


def _fitted(
    cohorts: list[Cohort],
    settings: FitSettings,
    steps: int,
    init: HeartNetwork | None,
    progress: bool,
):
    start, version = (
        weights_fingerprint(init) if init else "",
        code_version("anatomy", "data", "segmentation"),
    )
    # a fingerprint leaves landmarks out, and the network learns them
    prints = [
        (one.fingerprint, [repr(study["landmarks"]) for study in one.studies]) for one in cohorts
    ]
    key = (
        prints,
        settings.heart_size,
        steps,
        _heart_seed(settings),
        settings.encoder,
        start,
        version,
        INVENTED,
    )
    trained = memory().cache(_weights, ignore=["cohorts", "init", "progress"])
    about, state = compute_once(
        trained, key, cohorts, init, progress
    )  # runs that start together wait for one
    weights = {name: torch.tensor(np.array(value)) for name, value in state.items()}
    return HeartNetwork.from_weights(
        read_settings(about), weights, [cohort.name for cohort in cohorts]
    )


def _weights(key: tuple, cohorts, init: HeartNetwork | None, progress: bool) -> tuple[dict, dict]:
    return _trained(
        key, cohorts, init, progress
    )  # joblib reads what is cached: a comment there would train anew


def _trained(key: tuple, cohorts, init: HeartNetwork | None, progress: bool) -> tuple[dict, dict]:
    from lgekit.segmentation.train import fit_heart_network

    _, size, steps, seed, encoder, *_ = key
    # After a base without this cohort training goes on at the full rate; a start from `init` would take a third.
    rate = SIZES[size].learning_rate * (1 if init is None else 3)
    # Without a real study of its own kind a network shall learn shapes, not the look of phantoms.
    changes = {
        "steps": steps,
        "learning_rate": rate,
        "border_steps": min(steps, SIZES[size].border_steps),
    }
    changes |= {"encoder": encoder, "invented": INVENTED} if init is None else {}
    device = accelerator()
    start = (
        init.to(device) if init is not None else None
    )  # it draws the RV where the cohort's labels know none
    try:
        network = fit_heart_network(cohorts, size, seed, start, progress, device, **changes)
    finally:
        if init is not None:
            init.to("cpu")
    return asdict(network.settings), {
        name: value.cpu().numpy() for name, value in network.weights.items()
    }


def locate(cohort: Cohort, network: HeartNetwork) -> Cohort:
    """The cohort with predicted labels and landmarks in place of its own; predicted once."""
    version = code_version("anatomy", "data", "segmentation")
    located = memory().cache(_located, ignore=["cohort", "network"])
    labels, points = compute_once(
        located, cohort.fingerprint, weights_fingerprint(network), version, cohort, network
    )
    studies = [
        with_prediction(study, torch.from_numpy(np.array(drawn)), Landmarks(*map(float, point)))
        for study, drawn, point in zip(cohort.studies, labels, points, strict=True)
    ]
    return Cohort(studies, cohort.name)


def _located(
    print_: str, weights: str, version: str, cohort: Cohort, network: HeartNetwork
) -> tuple[list, list]:
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


def pretraining_cohorts(cohort: Cohort, spec: str, pretrain_on: str) -> list[Cohort]:
    """The cohorts that `lgekit.grid.file.pretraining_specs` names, read.

    Args:
        cohort: all studies, those of the test split too.
        spec: where the cohort came from.
        pretrain_on: SPECs separated by spaces, ``none`` or ``auto``.

    Raises:
        InputError: one cannot be read, or holds a picture of the cohort.
    """
    from lgekit.data.readers import read_cohort

    further = [read_cohort(other) for other in pretraining_specs(spec, pretrain_on)]
    refuse_shared(cohort, further)
    return further


def locate_hearts(
    cohort: Cohort, model: Path | None = None, size: str = "laptop", seed: int = 0
) -> Cohort:
    """The cohort with labels and insertion points in every study.

    What a study brings is kept; what it lacks a heart network predicts: that of a fitted model, else one fitted now
    on the cohort's own masks and phantoms (kept in the cache). ``study["located_by"]`` says which: ``given`` or
    ``network`` for the insertion points.

    Args:
        cohort: any cohort.
        model: folder that ``lgekit fit`` wrote.
        size, seed: of a network fitted now.

    Raises:
        InputError: the model's folder holds no heart network.
    """
    if all(ready(study) for study in cohort.studies):
        return Cohort([_complete(study, study) for study in cohort.studies], cohort.name)
    from lgekit.config import size_settings
    from lgekit.segmentation.model import HeartNetwork

    if model is None:
        network = heart_network(cohort, (), size_settings(size, seed=seed))
    elif (model / "heart").is_dir():
        network = HeartNetwork.load(model / "heart")
    else:
        raise InputError(model, "holds no heart network", "Give a folder that `lgekit fit` wrote.")
    predicted = locate(cohort, network)
    return Cohort(
        [_complete(*pair) for pair in zip(cohort.studies, predicted.studies, strict=True)],
        cohort.name,
    )


def landmark_row(stored: Study, framed: Study) -> dict[str, Any]:
    """One line of landmarks.csv: how a study lies in storage, and how it was turned.

    Args:
        stored: as stored, located.
        framed: the same study in the standard frame.
    """
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


def ready(study: Study) -> bool:
    """Whether a study brings labels and insertion points of its own."""
    return study.label_map is not None and known_landmarks(study) is not None


def _complete(study: Study, predicted: Study) -> Study:
    own = known_landmarks(study)
    fields = {
        **study,
        "landmarks": own or predicted["landmarks"],
        "located_by": "given" if own else "network",
    }
    if "labels" not in study:
        fields["labels"] = predicted["labels"]
    return Study(**fields)
