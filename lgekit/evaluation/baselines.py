"""Baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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

MINIMUM_WALL = 20  # voxels of wall below which a slice tells nothing


@dataclass(frozen=True)
class Remote:
    """Intensities that the rules compare with, one number a study, in the image's own units.

    Attributes:
        mean, sd: of the remote sector, medians over slices.
        blood: mean of the cavity, median over slices; NaN without a cavity.
    """

    mean: float
    sd: float
    blood: float


def darkest_sector(intensities: np.ndarray, degrees: np.ndarray, width: int = 60) -> np.ndarray:
    """The sector of the wall with the lowest mean: ``(voxels,)`` bool.

    Args:
        intensities: of the voxels of the wall in one slice, ``(voxels,)``.
        degrees: their angles seen from the LV's centre.
        width: degrees of a sector; sectors of fewer than 4 voxels are passed over.
    """
    sector = (np.asarray(degrees) % 360 // width).astype(int)
    count = np.bincount(sector, minlength=360 // width)
    mean = np.bincount(sector, weights=intensities, minlength=360 // width) / np.maximum(count, 1)
    if not (count >= 4).any():
        return np.ones(len(sector), dtype=bool)
    return sector == np.where(count >= 4, mean, np.inf).argmin()


def wall_mask(study: Study) -> np.ndarray:
    """The whole myocardium, scar included: ``(X, Y, slices)`` bool.

    Raises:
        InputError: the study has no label map, or no slice with enough wall.
    """
    if study.label_map is None:
        raise InputError(
            study["study_id"], "no label map", "The threshold rules need the myocardium's mask."
        )
    mask = np.isin(study.label_map, WALL_CODES)
    if not (mask.sum((0, 1)) >= MINIMUM_WALL).any():
        raise InputError(
            study["study_id"],
            f"no slice with {MINIMUM_WALL} voxels of myocardium",
            "Check the label codes.",
        )
    return mask


def remote_of(study: Study) -> Remote:
    """Remote myocardium and blood of a study, by the rule in the module's docstring.

    Raises:
        InputError: no label map, or no myocardium in it.
    """
    mask, image = wall_mask(study), study.pixels
    cavity = np.asarray(study.label_map) == CAVITY
    spacing = study.spacing_mm
    rows = []
    for s in np.flatnonzero(mask.sum((0, 1)) >= MINIMUM_WALL):
        x, y = np.nonzero(mask[..., s])
        degrees = (
            np.degrees(np.arctan2(-(y - y.mean()) * spacing[1], (x - x.mean()) * spacing[0])) % 360
        )
        values = image[x, y, s].astype(np.float64)
        remote = values[darkest_sector(values, degrees)]
        blood = image[..., s][cavity[..., s]].astype(np.float64)
        rows.append((remote.mean(), remote.std(), blood.mean() if len(blood) else np.nan))
    table = np.array(rows)
    blood = table[np.isfinite(table[:, 2]), 2]
    return Remote(
        float(np.median(table[:, 0])),
        float(max(np.median(table[:, 1]), 1e-6)),
        float(np.median(blood)) if len(blood) else float("nan"),
    )


def _share_above(study: Study, threshold: float) -> float:
    """Share of the wall, in slices with enough of it, that is brighter than a threshold."""
    mask = wall_mask(study)
    mask = mask & (mask.sum((0, 1)) >= MINIMUM_WALL)
    return float((study.pixels[mask] > threshold).mean())


def n_sd_rule(study: Study, n: float = 5.0) -> float:
    """Share of the myocardium brighter than the remote mean + ``n`` SD, 0–1: the patient's score.

    Source: n-SD thresholds for LGE, e.g. Bondarenko et al., J Cardiovasc Magn Reson 2005;7:481 (5 SD).

    Raises:
        InputError: no label map, or no myocardium in it.
    """
    remote = remote_of(study)
    return _share_above(study, remote.mean + n * remote.sd)


def half_maximum_rule(study: Study) -> float:
    """Share of the myocardium brighter than half-way from remote to blood, 0–1: the patient's score.

    A form of the full-width-half-maximum rule (Amado et al., J Am Coll Cardiol 2004;44:2383) with the blood pool as
    the maximum, so that it needs no scar to be found first. 0 without a cavity.

    Raises:
        InputError: no label map, or no myocardium in it.
    """
    remote = remote_of(study)
    return (
        _share_above(study, (remote.mean + remote.blood) / 2) if np.isfinite(remote.blood) else 0.0
    )


THRESHOLD_RULES: dict[str, Callable[[Study], float]] = {
    "5 SD": n_sd_rule,
    "half maximum": half_maximum_rule,
}


def rule_scores(cohort: Cohort) -> dict[str, np.ndarray]:
    """Score of every study by each rule: name → ``(studies,)`` float64."""
    return {
        name: np.array([rule(study) for study in cohort.studies])
        for name, rule in THRESHOLD_RULES.items()
    }


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
    known = [
        study
        for study in cohort.studies
        if states_enhancement(study["report"]) and study["findings"] is not None
    ]
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
        batch, labels = (
            join(batch, batch_of([painted.view for painted in pool])),
            labels + [True] * len(pool),
        )
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
        options = [
            np.array([int(label)]) for label in labels
        ]  # what the detector's batches hold as texts
        per_epoch = sum(1 for _ in epoch_batches(0, real, len(labels) - real, options, settings))
        for epoch in trange(
            settings.epochs, desc="supervised", unit="epoch", disable=not progress, leave=False
        ):
            generator = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
            batches = epoch_batches(epoch, real, len(labels) - real, options, settings)
            for step, (index, truth) in enumerate(batches):
                some = augment(store.rows(torch.from_numpy(index).to(device)), settings, generator)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(
                        epoch * per_epoch + step, per_epoch * settings.epochs, settings
                    )
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


OURS = "this detector"
SUPERVISED = "supervised, same encoder (upper reference)"
PLAIN = "plain CLIP (lower reference)"
SHUFFLED = "shuffled text (control: chance)"
TRAINED = {"none": (), "supervised": (SUPERVISED,), "all": (SUPERVISED, PLAIN, SHUFFLED)}

ENDS = {"value": "", "low": "_low", "high": "_high"}
# Published numbers. [S]: stated by a summary of the paper alone; the others by the named publication.
PUBLISHED = [
    ("the paper [S]", "reports, 965 patients of one centre", {"balanced_accuracy": 0.83}),
    ("CMR-CLIP, Nat Commun 2026, internal", "report impressions, 11,028 studies", {"auc": 0.705}),
    ("CMR-CLIP, Nat Commun 2026, external", "report impressions, 11,028 studies", {"auc": 0.621}),
    ("CARA-VL, arXiv 2609.39899", "masks as text; 50 patients", {"balanced_accuracy": 0.829}),
    ("LGESynthNet, arXiv 2603.18356", "pixel labels, 212 patients", {"balanced_accuracy": 0.93}),
]


def check(which: str, cross_fit: bool = False) -> None:
    """Refuse, before anything is trained, references that there are not, or that would not be comparable.

    Raises:
        InputError: an unknown ``which``; references beside a cross-fitted detector, which learns from the validation
            studies too and whose heart network has seen their masks, as the references must not.
    """
    if which not in TRAINED:
        raise InputError(
            "references", f"unknown value {which!r}", f"Use one of {', '.join(TRAINED)}."
        )
    if cross_fit and TRAINED[which]:
        remedy = "Set compare_with='none', or cross_fit=False."
        raise InputError(
            "references", "they do not share a cross-fitted detector's studies", remedy
        )


def train_references(
    which: str,
    cohort: Cohort,
    settings: FitSettings,
    detector: Detector,
    pretrain_on: Sequence[Cohort] = (),
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Train the references on the split ``train``, calibrate on ``validation``, read ``test``.

    Args:
        which: ``none``; ``supervised``; ``all``: plain CLIP and shuffled text too.
        cohort: with splits.
        settings: of the references; those of the detector but for ``epochs``, perhaps.
        detector: its heart network is shared.
        pretrain_on: further cohorts with masks for the heart network, as for the detector.
        progress: show bars.

    Returns:
        Name → columns ``study_id, p_lge`` of the test studies.

    Raises:
        InputError: an unknown ``which``.
    """
    check(which)
    test, read = cohort.split("test"), {}
    if SUPERVISED in TRAINED[which]:
        read[SUPERVISED] = fit_supervised(cohort, settings, detector.heart, progress).predict(test)
    changes = {PLAIN: PLAIN_CLIP | {"shuffle_text": False}, SHUFFLED: {"shuffle_text": True}}
    for name in TRAINED[which][1:]:
        own = settings.override(**changes[name])
        fitted = fit_detector(cohort, own, pretrain_on=pretrain_on, progress=progress)
        read[name] = fitted.predict(test)[["study_id", "p_lge"]]
    return read


def rule_predictions(cohort: Cohort) -> dict[str, pd.DataFrame]:
    """The threshold rules with the true outline: scores of the test studies, calibrated on the validation studies.

    Returns:
        Name → columns ``study_id, p_lge``; nothing where a split holds no study whose mask and findings are known.
    """
    usable = [
        study for study in cohort.studies if study["findings"] is not None and _has_wall(study)
    ]
    parts = [[study for study in usable if study["split"] == name] for name in SPLITS[1:]]
    if not all(parts):
        return {}
    held, test = (Cohort(part, cohort.name) for part in parts)
    present = np.array([study["findings"].present for study in held.studies])
    ids, on_test = [study["study_id"] for study in test.studies], rule_scores(test)
    return {
        f"{name}, true outline": pd.DataFrame(
            {"study_id": ids, "p_lge": probability(on_test[name], platt(scores, present))}
        )
        for name, scores in rule_scores(held).items()
    }


def reference_table(
    predictions: Mapping[str, pd.DataFrame], cohort: Cohort, seed: int = 0
) -> pd.DataFrame:
    """All methods on the same test studies, with patient-level 95 % intervals, and the published numbers below them.

    Args:
        predictions: method → columns ``study_id, p_lge``.
        cohort: the test studies.
        seed: of the bootstrap.

    Returns:
        Index ``method``; columns ``cohort`` (``this test split``, or ``other: …``), then ``value, low, high`` of
        ``auc`` and of ``balanced_accuracy``; missing where not known.
    """
    rows = {}
    for method, table in predictions.items():
        own = cohort.subset(table["study_id"])
        found = metrics.presence_metrics(with_truth(table, own), seed)
        rows[method] = {"cohort": "this test split"} | {
            f"{name}{end}": found[name][key]
            for name in ("auc", "balanced_accuracy")
            for key, end in ENDS.items()
        }
    for method, about, numbers in PUBLISHED:
        rows[method] = {"cohort": f"other: {about}"} | numbers
    columns = [
        "cohort",
        *(f"{name}{end}" for name in ("auc", "balanced_accuracy") for end in ENDS.values()),
    ]
    return (
        pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns).rename_axis("method")
    )


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """A `reference_table` to read: ``AUC``, ``balanced accuracy``, ``cohort``, each value with its interval."""

    def words(row: pd.Series, name: str) -> str:
        value, low, high = (row[f"{name}{end}"] for end in ENDS.values())
        if np.isnan(value):
            return "–"
        return f"{value:g}" if np.isnan(low) else f"{value:.2f} ({low:.2f}–{high:.2f})"

    columns = {"AUC": "auc", "balanced accuracy": "balanced_accuracy"}
    named = {
        title: [words(row, name) for _, row in table.iterrows()] for title, name in columns.items()
    }
    return pd.DataFrame(named, index=table.index).assign(cohort=table["cohort"])


def long_table(predictions: Mapping[str, pd.DataFrame], cohort: Cohort) -> pd.DataFrame:
    """Predictions of several methods below one another: ``method, study_id, patient_id, scar, p_lge``.

    Args:
        predictions: method → columns ``study_id, p_lge``; may be empty.
        cohort: the studies.
    """
    columns = ["method", "study_id", "patient_id", "scar", "p_lge"]
    parts = [
        with_truth(table, cohort.subset(table["study_id"])).assign(method=name)[columns]
        for name, table in predictions.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _has_wall(study: Study) -> bool:
    if study.label_map is None:
        return False
    return bool((np.isin(study.label_map, WALL_CODES).sum((0, 1)) >= MINIMUM_WALL).any())
