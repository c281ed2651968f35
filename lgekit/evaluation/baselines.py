"""Baselines to compare a detector with: threshold rules, supervised reader, plain CLIP, control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import trange

from lgekit.anatomy.labels import voxel_angle
from lgekit.cache import accelerator
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
from lgekit.study import CAVITY, MYOCARDIUM, SPLITS, WALL_CODES, Cohort, Study

MINIMUM_WALL = 20  # voxels of myocardium that a slice needs


def measured_wall(study: Study) -> np.ndarray:
    """Mark the myocardium, scar included, of slices with enough of it: ``(X, Y, slices)``.

    Nothing is marked if a mask shows scar alone: without remote myocardium no rule can be applied.
    """
    if study.label_map is None or not (study.label_map == MYOCARDIUM).any():
        return np.zeros(study.spatial_shape, bool)
    wall = np.isin(study.label_map, WALL_CODES)
    return wall & (wall.sum((0, 1)) >= MINIMUM_WALL)


class Remote(NamedTuple):
    """Intensities of remote myocardium and blood, medians over slices."""

    mean: float
    sd: float
    blood: float  # NaN without a cavity


def remote_of(study: Study) -> Remote:
    """Measure remote myocardium, the darkest 60° of the wall, and blood.

    Raises InputError if no slice has 20 voxels of labelled myocardium.
    """
    wall, image, spacing = measured_wall(study), study.pixels, study.spacing_mm
    cavity = np.asarray(study.label_map) == CAVITY
    if not wall.any():
        problem = f"no slice with {MINIMUM_WALL} voxels of labelled myocardium"
        raise InputError(study["study_id"], problem, "Give a mask, or check its label codes.")
    rows = []
    for s in np.flatnonzero(wall.any((0, 1))):
        x, y = np.nonzero(wall[..., s])
        degrees = voxel_angle(x, y, (x.mean(), y.mean()), spacing)
        sector, values = (degrees // 60).astype(int), image[x, y, s].astype(np.float64)
        count = np.bincount(sector, minlength=6)
        mean = np.bincount(sector, weights=values, minlength=6) / np.maximum(count, 1)
        remote = values[sector == np.where(count >= 4, mean, np.inf).argmin()]
        blood = image[..., s][cavity[..., s]].astype(np.float64)
        rows.append((remote.mean(), remote.std(), blood.mean() if len(blood) else np.nan))
    mean, sd, blood = pd.DataFrame(rows).median()
    return Remote(mean, max(sd, 1e-6), blood)


def five_sd_rule(study: Study) -> float:
    """Return the share of the myocardium brighter than the remote mean + 5 SD, 0–1.

    Source: Bondarenko et al., J Cardiovasc Magn Reson 2005;7:481. Raises as `remote_of`.
    """
    remote = remote_of(study)
    return float((study.pixels[measured_wall(study)] > remote.mean + 5 * remote.sd).mean())


def half_maximum_rule(study: Study) -> float:
    """Return the share of the myocardium brighter than half-way from remote to blood, 0–1.

    Full width at half maximum (Amado et al., J Am Coll Cardiol 2004;44:2383) with the blood pool as
    maximum, so that no scar must be found first. NaN without a cavity. Raises as `remote_of`.
    """
    remote = remote_of(study)
    if np.isnan(remote.blood):
        return float("nan")
    return float((study.pixels[measured_wall(study)] > (remote.mean + remote.blood) / 2).mean())


THRESHOLD_RULES = {"5 SD": five_sd_rule, "half maximum": half_maximum_rule}


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


def supervised_predictions(
    cohort: Cohort, settings: FitSettings, heart: HeartNetwork | None = None, progress: bool = True
) -> pd.DataFrame:
    """Train on true presence in ``train``, calibrate on ``validation``, predict ``test``.

    Studies with unknown truth, or whose report does not mention enhancement, are left out of
    training. Settings and heart network are the detector's, so that both use the same views.
    Returns columns ``study_id, p_lge``. Raises InputError if ``train`` lacks one class.
    """

    def views(studies: Sequence[Study]) -> tuple[Cohort, StudyBatch]:
        located = Cohort(studies) if heart is None else locate(Cohort(studies), heart)
        return located, batch_of([make_view(study, settings) for study in located.studies])

    known = [
        study
        for study in cohort.studies
        if states_enhancement(study["report"]) and study["findings"] is not None
    ]
    train, validation = ([s for s in known if s["split"] == name] for name in SPLITS[:2])
    labels = [study["findings"].present for study in train]
    if len(set(labels)) < 2:
        remedy = "Give training studies with and without scar whose findings are known."
        raise InputError(cohort.name, "the split 'train' does not contain both classes", remedy)
    located, batch = views(train)
    # This loop needs a pool of synthetic scars: 4 epochs' worth where the detector has none.
    pool = synthetic_pool(located, settings.override(synthetic_pool=settings.synthetic_pool or 4))
    if pool:
        batch = join(batch, batch_of([painted.view for painted in pool]))
    state = heart.encoder_state() if heart is not None else None
    if settings.frame == "polar" and settings.encoder_init == "segmentation":
        state = pretrain_polar(batch, settings, progress)
    present = np.array(labels + [True] * len(pool))
    network = train_presence(batch, present, len(train), settings, state, progress)
    calibration = (1.0, 0.0)
    if validation:
        present = np.array([study["findings"].present for study in validation])
        calibration = platt(presence_logits(network, views(validation)[1]), present)
    test = cohort.split("test")
    logits = presence_logits(network, views(test.studies)[1])
    ids = [study["study_id"] for study in test.studies]
    return pd.DataFrame({"study_id": ids, "p_lge": probability(logits, calibration)})


@torch.no_grad()
def presence_logits(network: PresenceNetwork, batch: StudyBatch) -> np.ndarray:
    """Return uncalibrated logits of presence, ``(studies,)`` float64."""
    return np.concatenate([network(part).numpy().astype(float) for part in chunks(batch)])


def train_presence(
    batch: StudyBatch,
    labels: np.ndarray,
    real: int,
    settings: FitSettings,
    encoder_state: Mapping[str, Tensor] | None = None,
    progress: bool = False,
) -> PresenceNetwork:
    """Train a presence network; return it in eval mode on the CPU.

    The ``real`` studies come first, then the pool of synthetic ones. ``encoder_state`` holds the
    initial weights of the slice encoder (``encoder_init="segmentation"``).
    """
    device = accelerator()
    options = [np.array([int(label)]) for label in labels]  # in place of a study's texts
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = PresenceNetwork(settings)
        if encoder_state is not None and settings.encoder_init == "segmentation":
            network.visual.load_segmentation(encoder_state)
        network.to(device).train()
        optimizer, store = adamw(network, settings), batch.to(device)
        for epoch in trange(settings.epochs, desc="supervised", disable=not progress, leave=False):
            generator = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
            steps = [*epoch_batches(epoch, real, len(labels) - real, options, settings)]
            for step, (index, present) in enumerate(steps, epoch * len(steps)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, len(steps) * settings.epochs, settings)
                studies = augment(
                    store.rows(torch.from_numpy(index).to(device)), settings, generator
                )
                target = torch.from_numpy(present).to(device, torch.float32)
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(network(studies), target).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
    return network.cpu().eval()


SUPERVISED = "supervised, same encoder (upper reference)"
PLAIN = "plain CLIP (lower reference)"
SHUFFLED = "shuffled text (control: chance)"
TRAINED = {"none": (), "supervised": (SUPERVISED,), "all": (SUPERVISED, PLAIN, SHUFFLED)}
CHANGES = {PLAIN: PLAIN_CLIP | {"shuffle_text": False}, SHUFFLED: {"shuffle_text": True}}


def check_references(which: str, cross_fit: bool = False) -> None:
    """Refuse, before training, references that do not exist or cannot be compared.

    Raises InputError for an unknown ``which``, or trained references of a cross-fitted detector,
    which learns from the validation studies too.
    """
    if which not in TRAINED:
        remedy = f"Use one of {', '.join(TRAINED)}."
        raise InputError("references", f"unknown value {which!r}", remedy)
    if cross_fit and TRAINED[which]:
        problem = "they do not use the same studies as a cross-fitted detector"
        raise InputError("references", problem, "Set compare_with='none', or cross_fit=False.")


def train_references(
    which: str,
    cohort: Cohort,
    settings: FitSettings,
    detector: Detector,
    pretrain_on: Sequence[Cohort] = (),
) -> dict[str, pd.DataFrame]:
    """Train the references on ``train``, calibrate on ``validation``, predict ``test``.

    ``which``: ``none``, ``supervised``, or ``all`` (plain CLIP and shuffled text too). Settings are
    the detector's, perhaps with fewer epochs; its heart network is shared with the supervised
    reader. Returns name → columns ``study_id, p_lge`` of the test studies.
    """
    check_references(which)
    predictions = {}
    for name in TRAINED[which]:
        if name == SUPERVISED:
            table = supervised_predictions(cohort, settings, detector.heart)
        else:
            own = settings.override(**CHANGES[name])
            reader = fit_detector(cohort, own, pretrain_on=pretrain_on)
            table = reader.predict(cohort.split("test"))[["study_id", "p_lge"]]
        predictions[name] = table
    return predictions


def rule_predictions(cohort: Cohort) -> dict[str, pd.DataFrame]:
    """Apply the threshold rules inside the true outline to ``test``, calibrated on ``validation``.

    Returns name → columns ``study_id, p_lge``; a rule that a split has no study for is left out.
    """
    usable = [s for s in cohort.studies if s["findings"] is not None and measured_wall(s).any()]
    predictions: dict[str, pd.DataFrame] = {}
    for name, rule in THRESHOLD_RULES.items():
        found = [(study, value) for study in usable if np.isfinite(value := rule(study))]
        valid, test = ([one for one in found if one[0]["split"] == of] for of in SPLITS[1:])
        if valid and test:
            present = np.array([study["findings"].present for study, _ in valid])
            calibration = platt(np.array([value for _, value in valid]), present)
            ids = [study["study_id"] for study, _ in test]
            values = probability(np.array([value for _, value in test]), calibration)
            predictions[f"{name}, true outline"] = pd.DataFrame({"study_id": ids, "p_lge": values})
    return predictions


def reference_table(
    predictions: Mapping[str, pd.DataFrame], cohort: Cohort, seed: int = 0
) -> pd.DataFrame:
    """Score methods (name → ``study_id, p_lge``) on the same test studies, with intervals.

    Returns index ``method``; columns ``cohort`` (``this test split``), then ``auc, auc_low,
    auc_high`` and likewise ``balanced_accuracy``.
    """
    names = ("auc", "balanced_accuracy")
    columns = [f"{name}{limit}" for name in names for limit in ("", "_low", "_high")]
    rows = {}
    for method, table in long_table(predictions, cohort).groupby("method", sort=False):
        found = metrics.presence_metrics(table, seed)
        rows[method] = [limit for name in names for limit in found[name].values()]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("method")
    table.insert(0, "cohort", "this test split")
    return table


def long_table(predictions: Mapping[str, pd.DataFrame], cohort: Cohort) -> pd.DataFrame:
    """Stack the predictions of methods: ``method, study_id, patient_id, scar, p_lge``."""
    columns = ["method", "study_id", "patient_id", "scar", "p_lge"]
    parts = [
        with_truth(table, cohort.subset(table["study_id"])).assign(method=name)[columns]
        for name, table in predictions.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
