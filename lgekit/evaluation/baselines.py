"""Baselines to compare a detector with: threshold rules and a supervised reader."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgekit.anatomy.segments import voxel_angle
from lgekit.cache import accelerator
from lgekit.clip.data import augment, batch_of, make_view
from lgekit.clip.fit import encoder_start, synthetic_pool
from lgekit.clip.model import StudyBatch, StudyEncoder
from lgekit.clip.train import epoch_batches
from lgekit.clip.zeroshot import platt, probability
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.evaluation import metrics
from lgekit.evaluation.scores import with_truth
from lgekit.reports.reader import states_enhancement
from lgekit.segmentation.model import HeartNetwork
from lgekit.segmentation.train import locate, minimise
from lgekit.study import CAVITY, MYOCARDIUM, SPLITS, WALL_CODES, Cohort, Study

MINIMUM_WALL = 20  # voxels of myocardium that a slice needs
THRESHOLD_RULES = ("5 SD", "half maximum")


def measured_wall(study: Study) -> np.ndarray:
    """Mark the myocardium, scar included, of slices with enough of it: ``(X, Y, slices)``."""
    # Where a mask shows scar alone there is no remote myocardium, and no rule can be applied.
    if study.label_map is None or not (study.label_map == MYOCARDIUM).any():
        return np.zeros(study.spatial_shape, bool)
    wall = np.isin(study.label_map, WALL_CODES)
    return wall & (wall.sum((0, 1)) >= MINIMUM_WALL)


def remote_of(study: Study) -> tuple[float, float, float]:
    """Measure mean and SD of remote myocardium, the darkest 60° of the wall, and the mean of blood.

    Medians over slices; blood is NaN without a cavity. Raises InputError if no slice has 20 voxels
    of labelled myocardium.
    """
    wall, image, spacing = measured_wall(study), study.pixels, study.spacing_mm
    cavity = np.asarray(study.label_map) == CAVITY
    if not wall.any():
        problem = f"no slice with {MINIMUM_WALL} voxels of labelled myocardium"
        raise InputError(study["study_id"], problem, "Give a mask, or check its label codes.")
    rows = []
    for s in np.flatnonzero(wall.any((0, 1))):
        x, y = np.nonzero(wall[..., s])
        sector = voxel_angle(x, y, (x.mean(), y.mean()), spacing) // 60
        sectors = [image[x, y, s][sector == number].astype(float) for number in range(6)]
        remote = min((each for each in sectors if len(each) >= 4), key=np.mean)
        blood = image[..., s][cavity[..., s]].astype(np.float64)
        rows.append((remote.mean(), remote.std(), blood.mean() if len(blood) else np.nan))
    mean, sd, blood = pd.DataFrame(rows).median()
    return mean, max(sd, 1e-6), blood


def threshold_shares(study: Study) -> dict[str, float]:
    """Return the share of the myocardium, 0–1, that is brighter than each of two thresholds.

    ``5 SD``: remote mean + 5 SD (Bondarenko et al., J Cardiovasc Magn Reson 2005;7:481). ``half
    maximum``: half-way from remote to blood. This is the full width at half maximum (Amado et al.,
    J Am Coll Cardiol 2004;44:2383) with the blood pool as maximum, so that no scar must be found
    first; NaN without a cavity. Raises as `remote_of`.
    """
    (mean, sd, blood), wall = remote_of(study), study.pixels[measured_wall(study)]
    levels = mean + 5 * sd, (mean + blood) / 2
    shares = [np.mean(wall > level) if np.isfinite(level) else np.nan for level in levels]
    return dict(zip(THRESHOLD_RULES, map(float, shares), strict=True))


class PresenceNetwork(nn.Module):
    """Study encoder with a linear head: `StudyBatch` → logits of presence `(studies,)`."""

    def __init__(self, settings: FitSettings):
        super().__init__()
        self.visual = StudyEncoder(settings)
        self.head = nn.Linear(settings.embed_dim, 1)

    def forward(self, batch: StudyBatch) -> Tensor:
        features, _ = self.visual.slice_features(batch)
        embedded, *_ = self.visual.pool(features, batch.mask)
        return self.head(embedded)[:, 0]


def supervised_predictions(
    cohort: Cohort, settings: FitSettings, heart: HeartNetwork | None = None, progress: bool = True
) -> pd.DataFrame:
    """Train on true presence in ``train``, calibrate on ``validation``, predict ``test``.

    Studies with unknown truth, or whose report does not mention enhancement, are left out of
    training. Settings and heart network are the detector's, so that both use the same views.
    Returns columns ``study_id, p_lge``. Raises InputError if ``train`` lacks one class.
    """
    located = cohort if heart is None else locate(cohort, heart)
    test = located.split("test").studies
    known = [s for s in located.studies if s["findings"] is not None]
    known = [s for s in known if states_enhancement(s["report"])]
    train, valid = ([s for s in known if s["split"] == name] for name in SPLITS[:2])
    learned = Cohort(train, cohort.name)
    labels = learned.manifest["scar"].to_numpy(bool)
    if labels.all() or not labels.any():
        remedy = "Give training studies with and without scar whose findings are known."
        raise InputError(cohort.name, "the split 'train' does not contain both classes", remedy)
    pool = synthetic_pool(learned, settings)
    views = [make_view(study, settings) for study in train] + [scar.view for scar in pool]
    batch = batch_of(views)
    state = encoder_start(batch, settings, heart, progress)
    present = np.append(labels, np.ones(len(pool), bool))
    network = train_presence(batch, present, len(train), settings, state, progress)
    views = [make_view(study, settings) for study in (*valid, *test)]
    return _calibrated(network(batch_of(views)).numpy().astype(float), valid, test)


def train_presence(
    batch: StudyBatch,
    labels: np.ndarray,
    real: int,
    settings: FitSettings,
    encoder_state: Mapping[str, Tensor] | None = None,
    progress: bool = False,
) -> PresenceNetwork:
    """Train a presence network; return it in eval mode on the CPU, without gradients.

    The ``real`` studies come first, then the pool of synthetic ones. ``encoder_state`` holds the
    initial weights of the slice encoder.
    """
    device, options = accelerator(), [[int(label)] for label in labels]  # as texts of a study
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = PresenceNetwork(settings)
        if encoder_state is not None:
            network.visual.load_segmentation(encoder_state)
        network, store = network.to(device).train(), batch.to(device)
        generator = torch.Generator(device).manual_seed(settings.seed)
        epochs = range(settings.epochs)
        steps = [step for n in epochs for step in epoch_batches(n, real, options, settings)]

        def loss_of(step: int) -> Tensor:
            index, present = steps[step]
            drawn = store.rows(torch.from_numpy(index).to(device))
            logits = network(augment(drawn, settings, generator))
            return F.binary_cross_entropy_with_logits(logits, torch.from_numpy(present).to(logits))

        weights, rate = network.parameters(), settings.learning_rate
        minimise(weights, loss_of, len(steps), rate, "supervised", progress)
    return network.cpu().eval().requires_grad_(False)


def _calibrated(scores: np.ndarray, valid: Sequence[Study], test: Sequence[Study]) -> pd.DataFrame:
    """``study_id, p_lge`` of ``test``, from scores of both splits and the truth of ``valid``."""
    present = Cohort(valid).manifest["scar"].to_numpy(bool)
    values = probability(scores[len(valid) :], platt(scores[: len(valid)], present))
    return pd.DataFrame({"study_id": [study["study_id"] for study in test], "p_lge": values})


SUPERVISED = "supervised baseline, same encoder"


def rule_predictions(cohort: Cohort) -> dict[str, pd.DataFrame]:
    """Apply the threshold rules inside the true outline to ``test``, calibrated on ``validation``.

    Returns name → columns ``study_id, p_lge``; a rule that a split has no study for is left out.
    """
    usable = [s for s in cohort.studies if s["findings"] is not None and measured_wall(s).any()]
    predictions: dict[str, pd.DataFrame] = {}
    shares = {study["study_id"]: threshold_shares(study) for study in usable}
    for name in THRESHOLD_RULES:
        found = [study for study in usable if np.isfinite(shares[study["study_id"]][name])]
        valid, test = ([study for study in found if study["split"] == of] for of in SPLITS[1:])
        if valid and test:
            scores = np.array([shares[study["study_id"]][name] for study in (*valid, *test)])
            predictions[f"{name}, true outline"] = _calibrated(scores, valid, test)
    return predictions


def reference_table(
    predictions: Mapping[str, pd.DataFrame], cohort: Cohort, seed: int = 0
) -> pd.DataFrame:
    """Score methods (name → ``study_id, p_lge``) on the same test studies, with intervals.

    Returns index ``method``; columns ``auc, auc_low, auc_high, balanced_accuracy, …``.
    """
    rows = {}
    for method, table in long_table(predictions, cohort).groupby("method", sort=False):
        found = pd.DataFrame(metrics.presence_metrics(table, seed))
        rows[method] = found[["auc", "balanced_accuracy"]].unstack()
    result = pd.DataFrame(rows).T.rename_axis("method")
    return result.set_axis(["_".join(pair).removesuffix("_value") for pair in result], axis=1)


def long_table(predictions: Mapping[str, pd.DataFrame], cohort: Cohort) -> pd.DataFrame:
    """Stack the predictions of methods: ``method, study_id, patient_id, scar, p_lge``."""
    columns = ["method", "study_id", "patient_id", "scar", "p_lge"]
    parts = [
        with_truth(table, cohort.subset(table["study_id"])).assign(method=name)
        for name, table in predictions.items()
    ]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
