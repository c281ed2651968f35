"""The upper reference: the same slice encoder and attention pooling, told of each study whether it holds scar.

Views, synthetic scars, starting weights, augmentation, batches and schedule are those of the detector that learns from
text; what differs is a linear head on presence and its loss (binary cross-entropy) in place of the text tower, the
decoder and their losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import trange

from lgekit.augmentation import augment
from lgekit.detection import batch_of, chunks
from lgekit.detector import synthetic_pool
from lgekit.errors import InputError
from lgekit.heartnet import HeartNetwork
from lgekit.model import StudyBatch, StudyEncoder, join
from lgekit.pairs import epoch_batches
from lgekit.polar_pretraining import pretrain_polar
from lgekit.reports import states_enhancement
from lgekit.settings import FitSettings
from lgekit.stages import locate, make_view
from lgekit.studies import SPLITS, Cohort
from lgekit.training import adamw, learning_rate
from lgekit.zeroshot import platt, probability


class PresenceNetwork(nn.Module):
    """Study encoder and a linear head: a `StudyBatch` → logits of presence `(studies,)`."""

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
        settings: how it was trained.
        network: in eval mode.
        heart: finds the heart, as for the detector; None where the views need none.
        calibration: slope and offset of Platt scaling on the validation split; the decision is ``p_lge > 0.5``.
    """

    settings: FitSettings
    network: PresenceNetwork
    heart: HeartNetwork | None
    calibration: tuple[float, float] = (1.0, 0.0)

    def predict(self, cohort: Cohort) -> pd.DataFrame:
        """Columns ``study_id, p_lge``, from images alone."""
        scores = presence_scores(self.network, _views(cohort, self.heart, self.settings))
        ids = [study["study_id"] for study in cohort.studies]
        return pd.DataFrame({"study_id": ids, "p_lge": probability(scores, self.calibration)})


def fit_supervised(
    cohort: Cohort, settings: FitSettings, heart: HeartNetwork | None = None, progress: bool = True
) -> SupervisedReader:
    """Train on the split ``train`` with the truth of presence, calibrate on ``validation``; ``test`` is not looked at.

    Args:
        cohort: with splits; studies whose report does not speak of enhancement are left out, as for the detector, and
            those of unknown truth.
        settings: the detector's.
        heart: the detector's heart network, so that both see the same views.
        progress: show a bar.

    Raises:
        InputError: the training split does not hold both classes.
    """
    known = [study for study in cohort.studies if states_enhancement(study["report"]) and study["findings"] is not None]
    parts = [[study for study in known if study["split"] == name] for name in SPLITS[:2]]
    labels = [study["findings"].present for study in parts[0]]
    if len(set(labels)) < 2:
        remedy = "Give training studies with and without scar whose findings are known."
        raise InputError(cohort.name, "the split 'train' does not hold both classes", remedy)
    train = Cohort(parts[0], f"{cohort.name} [train]")
    located = locate(train, heart) if heart is not None else train
    batch = batch_of([make_view(study, settings) for study in located.studies])
    # this loop knows no scars painted anew: as many epochs' worth as the laptop's size keeps
    pool = synthetic_pool(located, settings.override(synthetic_pool=settings.synthetic_pool or 4))
    if pool:
        batch, labels = join(batch, batch_of([painted.view for painted in pool])), labels + [True] * len(pool)
    state = heart.encoder_state() if heart is not None else None
    if settings.frame == "polar" and settings.encoder_init == "segmentation":
        state = pretrain_polar(batch, settings, progress)
    network = train_presence(batch, np.array(labels), len(located), settings, state, progress)
    calibration = (1.0, 0.0)
    if parts[1]:
        scores = presence_scores(network, _views(Cohort(parts[1], "validation"), heart, settings))
        calibration = platt(scores, np.array([study["findings"].present for study in parts[1]]))
    return SupervisedReader(settings, network, heart, calibration)


def train_presence(
    batch: StudyBatch,
    labels: np.ndarray,
    real: int,
    settings: FitSettings,
    encoder_state: Mapping[str, Tensor] | None = None,
    progress: bool = False,
) -> PresenceNetwork:
    """Train a presence network.

    Args:
        batch: the real studies first, then the pool of synthetic ones.
        labels: `(studies,)` bool.
        real: how many are real; ``synthetic_per_real`` × as many synthetic ones are drawn in each epoch.
        settings: everything else that matters.
        encoder_state: weights to start the slice encoder from (``encoder_init="segmentation"``).
        progress: show a bar.

    Returns:
        the network in eval mode on the CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = PresenceNetwork(settings)
        if encoder_state is not None and settings.encoder_init == "segmentation":
            network.visual.load_segmentation(encoder_state)
        network.to(device).train()
        optimizer, store = adamw(network, settings), batch.to(device)
        options = [np.array([int(label)]) for label in labels]  # what the detector's batches hold as texts
        per_epoch = sum(1 for _ in epoch_batches(0, real, len(labels) - real, options, settings))
        for epoch in trange(settings.epochs, desc="supervised", unit="epoch", disable=not progress, leave=False):
            generator = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
            batches = epoch_batches(epoch, real, len(labels) - real, options, settings)
            for step, (index, truth) in enumerate(batches):
                some = augment(store.rows(torch.from_numpy(index).to(device)), settings, generator)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(epoch * per_epoch + step, per_epoch * settings.epochs, settings)
                wanted = torch.from_numpy(truth).to(device, torch.float32)
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(network(some), wanted).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
    return network.cpu().eval()


@torch.no_grad()
def presence_scores(network: PresenceNetwork, batch: StudyBatch) -> np.ndarray:
    """Logits of presence, not calibrated: `(studies,)` float64."""
    return np.concatenate([network(part).numpy().astype(float) for part in chunks(batch)])


def _views(cohort: Cohort, heart: HeartNetwork | None, settings: FitSettings) -> StudyBatch:
    located = locate(cohort, heart) if heart is not None else cohort
    return batch_of([make_view(study, settings) for study in located.studies])
