"""Fit the heart network, and measure it: see :mod:`lgekit.heartnet` for what it is and how it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from lgekit.anatomy import insertion_points
from lgekit.borders import fit_border_network, hide_unknown_rv
from lgekit.canvas import CANVAS, CLASSES, Slices, angle_field, collect_slices, make_canvas
from lgekit.errors import InputError
from lgekit.heartnet import SIZES, HeartNetwork, HeartSettings, build_encoder, build_unet, with_prediction
from lgekit.invention import invent_appearance
from lgekit.studies import BACKGROUND, CAVITY, RV, WALL_CODES, Cohort, Landmarks, Study
from lgekit.views import Views, random_views, standardise, vary_appearance

__all__ = ["SIZES", "HeartNetwork", "HeartSettings", "build_encoder", "build_unet", "fit_heart_network"]
__all__ += ["evaluate_heart_network", "heart_loss", "turned_copy", "with_drawn_rv"]


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
    from tqdm.auto import tqdm

    settings = heart_settings(size, init, changes)
    device = torch.device(device)
    studies = [with_drawn_rv(cohort.studies, init) if init is not None else cohort.studies for cohort in cohorts]
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
        borders = [fit_border_network(slices, settings.border_channels, settings.border_steps, seed, **about)]
    return HeartNetwork(settings, [unet], [cohort.name for cohort in cohorts], borders)


def with_drawn_rv(studies: Sequence[Study], network: HeartNetwork) -> list[Study]:
    """Studies whose labels know the left ventricle and no RV get the RV that a network draws where they know nothing.

    Landmarks stay the studies' own; where these have none, they are unknown as before and not taken from the drawn RV,
    whose side cannot tell a mirrored study. Other studies are given back as they are.
    """
    lacking = [study for study in studies if study.label_map is not None and not np.any(study.label_map == RV)]
    if not lacking:
        return list(studies)
    drawn = dict(zip(map(id, lacking), network.predict_cohort(lacking).studies, strict=True))
    completed = []
    for study in studies:
        if id(study) in drawn:
            labels = np.asarray(study.label_map)
            found = (labels == BACKGROUND) & (np.asarray(drawn[id(study)].label_map) == RV)
            landmarks = study["landmarks"] or Landmarks(float("nan"), float("nan"), 0.0)
            study = with_prediction(study, torch.from_numpy(np.where(found, RV, labels).astype(np.uint8)), landmarks)
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
        raise InputError("heart network settings", str(error), f"Known settings: {known}") from error


def heart_loss(unet: nn.Module, batch: Slices, settings: HeartSettings, rng: torch.Generator) -> Tensor:
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
            overlaps.append(1 - ((2 * both + 5) / (predicted.sum((1, 2)) + true.sum((1, 2)) + 5)).mean())
    field, distance = angle_field(batch, views, settings.pixels)
    left = ((target == 1) | (target == 2))[:, None] * distance.clamp(max=1.2)
    weight = left / left.sum((1, 2, 3), keepdim=True).clamp(min=20) * batch.landmark_weight[:, None, None, None]
    angles = (weight * (output[:, CLASSES:] - field).square()).sum() / count
    return entropy + torch.stack(overlaps).mean() + 0.5 * angles


def turned_copy(study: Study, degrees: float, mirror: bool) -> Study:
    """A study stored otherwise: turned counter-clockwise about the middle of its field of view, then mirrored or not.

    Image, labels and landmarks move together, in one resampling onto a larger square grid with isotropic pixels.
    """
    canvas, margin = make_canvas(study), 1.2
    count, pixels = len(canvas.images), round(CANVAS * margin)
    radians = np.radians(degrees)
    turn = torch.tensor([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]], dtype=torch.float32)
    axes = margin * turn @ torch.diag(torch.tensor([-1.0 if mirror else 1.0, 1.0]))
    views = Views(axes.expand(count, 2, 2), torch.zeros(count, 2))
    fields: dict = {key: value for key, value in study.items() if key not in ("image", "labels")}
    if study.label_map is not None:
        labels = canvas.resample(study["labels"].data.permute(3, 0, 2, 1).float().contiguous(), "nearest")
        fields["labels"] = views.sample(labels, pixels, "nearest")[:, 0].permute(2, 1, 0).to(torch.uint8)
    known = study["landmarks"]
    if known is not None:
        points = torch.tensor([known.anterior_rvip_deg, known.inferior_rvip_deg], dtype=torch.float32).deg2rad()
        moved = torch.stack([points.cos(), -points.sin()], dim=1) @ torch.linalg.inv(axes).T
        angles = torch.atan2(-moved[:, 1], moved[:, 0]).rad2deg() % 360
        fields["landmarks"] = Landmarks(float(angles[0]), float(angles[1]), known.confidence)
    image = views.sample(canvas.images, pixels)[:, 0].permute(2, 1, 0)
    side = 2 * canvas.half_mm / CANVAS
    return Study.from_arrays(fields.pop("study_id"), image, (side, side, study.spacing_mm[2]), **fields)


def evaluate_heart_network(network: HeartNetwork, studies: Cohort | Sequence[Study], seed: int = 0) -> pd.DataFrame:
    """Measure a heart network on labelled studies, which it should not have been trained on.

    Dice on the files as they lie; insertion points and mirroring on copies turned by a random angle and mirrored at
    random. The truth of the points are the studies' landmarks, else their RV labels.

    Returns:
        One row a study: ``study_id, patient_id, dice_cavity, dice_myocardium, dice_rv`` (NaN without RV labels),
        ``anterior_error_deg, inferior_error_deg`` (0 to 180; NaN where unknown or no heart found), ``mirror_right``
        (1.0 or 0.0; NaN where unknown), ``confidence`` (of the prediction), ``reference_confidence``.
    """
    everyone, rng = studies.studies if isinstance(studies, Cohort) else studies, np.random.default_rng(seed)
    studies = [study for study in everyone if study.label_map is not None]
    copies = []
    for study in studies:
        if study["landmarks"] is None and np.any(study.label_map == RV):
            points = insertion_points(study.label_map, study.spacing_mm, mirrored=False)
            study = Study(**{**study, "landmarks": points})
        copies.append(turned_copy(study, rng.uniform(0, 360), bool(rng.integers(2))))
    rows = []
    drawn_all, turned_all = network.predict_cohort(studies).studies, network.predict_cohort(copies).studies
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
            error = (getattr(landmarks, key) - getattr(reference, key) + 180) % 360 - 180 if known else np.nan
            row[f"{name}_error_deg"] = abs(error)
        row["mirror_right"] = float(landmarks.mirrored == reference.mirrored) if known else np.nan
        row["confidence"] = landmarks.confidence
        row["reference_confidence"] = reference.confidence if known else np.nan
        rows.append(row)
    return pd.DataFrame(rows)
