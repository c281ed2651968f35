"""Baselines to compare a detector with: threshold rules, supervised reader, plain CLIP, control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import trange

from lgekit.clip.data import augment, batch_of, chunks, epoch_batches, make_view
from lgekit.clip.detector import Detector
from lgekit.clip.fit import fit_detector, pretrain_polar, synthetic_pool
from lgekit.clip.model import StudyBatch, StudyEncoder, join
from lgekit.clip.train import adamw, learning_rate
from lgekit.clip.zeroshot import platt, probability
from lgekit.config import PLAIN_CLIP, FitSettings
from lgekit.errors import InputError
from lgekit.evaluation import metrics
from lgekit.evaluation.scores import with_truth
from lgekit.reports.reader import states_enhancement
from lgekit.segmentation.model import HeartNetwork
from lgekit.segmentation.train import locate
from lgekit.study import CAVITY, SPLITS, WALL_CODES, Cohort, Study

MINIMUM_WALL = 20  # voxels of myocardium that a slice needs


class Remote(NamedTuple):
    """Intensities of remote myocardium and blood, in the image's units, medians over slices."""

    mean: float
    sd: float
    blood: float  # NaN without a cavity


def darkest_sector(intensities: np.ndarray, degrees: np.ndarray, width: int = 60) -> np.ndarray:
    """Mark the voxels ``(voxels,)`` of the sector (4 voxels or more) with the lowest mean."""
    sector = (np.asarray(degrees) % 360 // width).astype(int)
    count = np.bincount(sector, minlength=360 // width)
    mean = np.bincount(sector, weights=intensities, minlength=360 // width) / np.maximum(count, 1)
    if not (count >= 4).any():
        return np.ones(len(sector), dtype=bool)
    return sector == np.where(count >= 4, mean, np.inf).argmin()


def wall_mask(study: Study) -> np.ndarray:
    """Return the whole myocardium, scar included, ``(X, Y, slices)``; else raise InputError."""
    if study.label_map is None:
        remedy = "The threshold rules need a mask of the myocardium."
        raise InputError(study["study_id"], "no label map", remedy)
    if not _has_wall(study):
        problem = f"no slice with {MINIMUM_WALL} voxels of myocardium"
        raise InputError(study["study_id"], problem, "Check the label codes.")
    return np.isin(study.label_map, WALL_CODES)


def _has_wall(study: Study) -> bool:
    wall = (
        np.isin(study.label_map, WALL_CODES) if study.label_map is not None else np.zeros((1, 1, 1))
    )
    return bool((wall.sum((0, 1)) >= MINIMUM_WALL).any())


def remote_of(study: Study) -> Remote:
    """Measure remote myocardium, the darkest 60° of the wall, and blood; raises as `wall_mask`."""
    mask, image, spacing = wall_mask(study), study.pixels, study.spacing_mm
    cavity = np.asarray(study.label_map) == CAVITY
    rows = []
    for s in np.flatnonzero(mask.sum((0, 1)) >= MINIMUM_WALL):
        x, y = np.nonzero(mask[..., s])
        degrees = np.degrees(np.arctan2(-(y - y.mean()) * spacing[1], (x - x.mean()) * spacing[0]))
        values = image[x, y, s].astype(np.float64)
        remote = values[darkest_sector(values, degrees)]
        blood = image[..., s][cavity[..., s]].astype(np.float64)
        rows.append((remote.mean(), remote.std(), blood.mean() if len(blood) else np.nan))
    table = pd.DataFrame(rows, columns=Remote._fields).median()
    return Remote(table["mean"], max(table["sd"], 1e-6), table["blood"])


def _share_above(study: Study, threshold: float) -> float:
    """Return the share of the wall that is brighter than a threshold."""
    mask = wall_mask(study)
    mask = mask & (mask.sum((0, 1)) >= MINIMUM_WALL)
    return float((study.pixels[mask] > threshold).mean())


def n_sd_rule(study: Study, n: float = 5.0) -> float:
    """Return the share of the myocardium brighter than the remote mean + ``n`` SD, 0–1.

    Source: Bondarenko et al., J Cardiovasc Magn Reson 2005;7:481 (5 SD). Raises as `wall_mask`.
    """
    remote = remote_of(study)
    return _share_above(study, remote.mean + n * remote.sd)


def half_maximum_rule(study: Study) -> float:
    """Return the share of the myocardium brighter than half-way from remote to blood, 0–1.

    Full width at half maximum (Amado et al., J Am Coll Cardiol 2004;44:2383) with the blood pool as
    maximum, so that no scar must be found first. 0 without a cavity. Raises as `wall_mask`.
    """
    remote = remote_of(study)
    if np.isnan(remote.blood):
        return 0.0
    return _share_above(study, (remote.mean + remote.blood) / 2)


THRESHOLD_RULES: dict[str, Callable[[Study], float]] = {
    "5 SD": n_sd_rule,
    "half maximum": half_maximum_rule,
}


class PresenceNetwork(nn.Module):
    """Study encoder with a linear head: `StudyBatch` → logits of presence `(studies,)`."""

    def __init__(self, settings: FitSettings):
        super().__init__()
        self.visual = StudyEncoder(settings)
        self.head = nn.Linear(settings.embed_dim, 1)

    def forward(self, batch: StudyBatch) -> Tensor:
        features, _ = self.visual.slice_features(batch)
        embedded, _ = self.visual.pool(features, batch.mask)
        return self.head(embedded)[:, 0]


@dataclass(frozen=True)
class SupervisedReader:
    """A trained presence network with what it needs to read new studies.

    Attributes:
        heart: the detector's heart network; None if the views need none.
        calibration: slope and offset of Platt scaling on ``validation``.
    """

    settings: FitSettings
    network: PresenceNetwork
    heart: HeartNetwork | None
    calibration: tuple[float, float] = (1.0, 0.0)

    def logits(self, studies: Sequence[Study]) -> np.ndarray:
        """Return uncalibrated logits of presence, ``(studies,)`` float64."""
        cohort = Cohort(studies)
        located = locate(cohort, self.heart) if self.heart is not None else cohort
        batch = batch_of([make_view(study, self.settings) for study in located.studies])
        return presence_scores(self.network, batch)

    def predict(self, cohort: Cohort) -> pd.DataFrame:
        """Predict from images alone: columns ``study_id, p_lge`` (positive: > 0.5)."""
        ids = [study["study_id"] for study in cohort.studies]
        values = probability(self.logits(cohort.studies), self.calibration)
        return pd.DataFrame({"study_id": ids, "p_lge": values})


@torch.no_grad()
def presence_scores(network: PresenceNetwork, batch: StudyBatch) -> np.ndarray:
    """Return uncalibrated logits of presence, ``(studies,)`` float64."""
    return np.concatenate([network(part).numpy().astype(float) for part in chunks(batch)])


def fit_supervised(
    cohort: Cohort, settings: FitSettings, heart: HeartNetwork | None = None, progress: bool = True
) -> SupervisedReader:
    """Train on true presence in the split ``train``, calibrate on ``validation``.

    Args:
        cohort: with splits. Studies with unknown truth, or whose report does not mention
            enhancement, are left out, as for the detector.
        settings, heart: the detector's, so that both use the same views.

    Raises:
        InputError: the training split does not hold both classes.
    """
    known = [
        study
        for study in cohort.studies
        if states_enhancement(study["report"]) and study["findings"] is not None
    ]
    train, validation = ([s for s in known if s["split"] == name] for name in SPLITS[:2])
    labels = [study["findings"].present for study in train]
    if len(set(labels)) < 2:
        remedy = "Give training studies with and without scar whose findings are known."
        raise InputError(cohort.name, "the split 'train' does not hold both classes", remedy)
    located = Cohort(train, f"{cohort.name} [train]")
    if heart is not None:
        located = locate(located, heart)
    batch = batch_of([make_view(study, settings) for study in located.studies])
    # This loop needs a pool of synthetic scars: 4 epochs' worth where the detector has none.
    pool = synthetic_pool(located, settings.override(synthetic_pool=settings.synthetic_pool or 4))
    if pool:
        batch = join(batch, batch_of([painted.view for painted in pool]))
        labels += [True] * len(pool)
    state = heart.encoder_state() if heart is not None else None
    if settings.frame == "polar" and settings.encoder_init == "segmentation":
        state = pretrain_polar(batch, settings, progress)
    network = train_presence(batch, np.array(labels), len(located), settings, state, progress)
    reader = SupervisedReader(settings, network, heart)
    if not validation:
        return reader
    present = np.array([study["findings"].present for study in validation])
    return SupervisedReader(settings, network, heart, platt(reader.logits(validation), present))


def train_presence(
    batch: StudyBatch,
    labels: np.ndarray,
    real: int,
    settings: FitSettings,
    encoder_state: Mapping[str, Tensor] | None = None,
    progress: bool = False,
) -> PresenceNetwork:
    """Train a presence network; return it in eval mode on the CPU.

    Args:
        batch, labels: the real studies, then the pool of synthetic ones, and their presence.
        real: number of real studies; each epoch draws ``synthetic_per_real`` × as many synthetic.
        settings: everything else.
        encoder_state: initial weights of the slice encoder (``encoder_init="segmentation"``).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = [np.array([int(label)]) for label in labels]  # in place of a study's texts

    def batches(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(epoch_batches(epoch, real, len(labels) - real, options, settings))

    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = PresenceNetwork(settings)
        if encoder_state is not None and settings.encoder_init == "segmentation":
            network.visual.load_segmentation(encoder_state)
        network.to(device).train()
        optimizer, store = adamw(network, settings), batch.to(device)
        per_epoch = len(batches(0))
        bar = {"desc": "supervised", "unit": "epoch", "disable": not progress, "leave": False}
        for epoch in trange(settings.epochs, **bar):
            generator = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
            for step, (index, present) in enumerate(batches(epoch), epoch * per_epoch):
                studies = store.rows(torch.from_numpy(index).to(device))
                studies = augment(studies, settings, generator)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, per_epoch * settings.epochs, settings)
                target = torch.from_numpy(present).to(device, torch.float32)
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(network(studies), target).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
    return network.cpu().eval()


OURS = "this detector"
SUPERVISED = "supervised, same encoder (upper reference)"
PLAIN = "plain CLIP (lower reference)"
SHUFFLED = "shuffled text (control: chance)"
TRAINED = {"none": (), "supervised": (SUPERVISED,), "all": (SUPERVISED, PLAIN, SHUFFLED)}


def check(which: str, cross_fit: bool = False) -> None:
    """Refuse, before training, references that do not exist or cannot be compared.

    Raises:
        InputError: an unknown ``which``; or trained references of a cross-fitted detector, which
            learns from the validation studies too.
    """
    if which not in TRAINED:
        remedy = f"Use one of {', '.join(TRAINED)}."
        raise InputError("references", f"unknown value {which!r}", remedy)
    if cross_fit and TRAINED[which]:
        problem = "they do not share a cross-fitted detector's studies"
        raise InputError("references", problem, "Set compare_with='none', or cross_fit=False.")


def train_references(
    which: str,
    cohort: Cohort,
    settings: FitSettings,
    detector: Detector,
    pretrain_on: Sequence[Cohort] = (),
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Train the references on ``train``, calibrate on ``validation``, predict ``test``.

    Args:
        which: ``none``; ``supervised``; ``all``: plain CLIP and shuffled text too.
        cohort: with splits.
        settings: the detector's, perhaps with fewer epochs.
        detector: its heart network is shared with the supervised reader.
        pretrain_on: further cohorts with masks for the heart network, as for the detector.

    Returns:
        Name → columns ``study_id, p_lge`` of the test studies.
    """
    check(which)
    test, predictions = cohort.split("test"), {}
    changes = {PLAIN: PLAIN_CLIP | {"shuffle_text": False}, SHUFFLED: {"shuffle_text": True}}
    for name in TRAINED[which]:
        reader: SupervisedReader | Detector
        if name == SUPERVISED:
            reader = fit_supervised(cohort, settings, detector.heart, progress)
        else:
            own = settings.override(**changes[name])
            reader = fit_detector(cohort, own, pretrain_on=pretrain_on, progress=progress)
        predictions[name] = reader.predict(test)[["study_id", "p_lge"]]
    return predictions


def rule_predictions(cohort: Cohort) -> dict[str, pd.DataFrame]:
    """Apply the threshold rules inside the true outline to ``test``, calibrated on ``validation``.

    Returns:
        Name → columns ``study_id, p_lge``; empty if a split has no study with mask and findings.
    """
    usable = [s for s in cohort.studies if s["findings"] is not None and _has_wall(s)]
    validation, test = ([s for s in usable if s["split"] == name] for name in SPLITS[1:])
    predictions: dict[str, pd.DataFrame] = {}
    if not (validation and test):
        return predictions
    present = np.array([study["findings"].present for study in validation])
    ids = [study["study_id"] for study in test]
    for name, rule in THRESHOLD_RULES.items():
        calibration = platt(np.array([rule(study) for study in validation]), present)
        values = probability(np.array([rule(study) for study in test]), calibration)
        table = pd.DataFrame({"study_id": ids, "p_lge": values})
        predictions[f"{name}, true outline"] = table
    return predictions


def reference_table(
    predictions: Mapping[str, pd.DataFrame], cohort: Cohort, seed: int = 0
) -> pd.DataFrame:
    """Score methods (name → ``study_id, p_lge``) on the same test studies, with intervals.

    Returns:
        Index ``method``; columns ``cohort`` (``this test split``), then ``auc, auc_low, auc_high``
        and likewise ``balanced_accuracy``.
    """
    rows = {}
    for method, table in predictions.items():
        own = cohort.subset(table["study_id"])
        found = metrics.presence_metrics(with_truth(table, own), seed)
        row: dict[str, object] = {"cohort": "this test split"}
        for name in ("auc", "balanced_accuracy"):
            value, low, high = found[name].values()
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows[method] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """Round a `reference_table` for display."""
    return table.round(2)


def long_table(predictions: Mapping[str, pd.DataFrame], cohort: Cohort) -> pd.DataFrame:
    """Stack the predictions of methods: ``method, study_id, patient_id, scar, p_lge``."""
    columns = ["method", "study_id", "patient_id", "scar", "p_lge"]
    parts = [
        with_truth(table, cohort.subset(table["study_id"])).assign(method=name)[columns]
        for name, table in predictions.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
