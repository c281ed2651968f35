"""What the detector is set beside, on the same splits and in one table: above it, below it, and by chance.

Upper reference: the same encoder told of each study whether it holds scar. Lower reference: plain CLIP without any
domain knowledge. Control: texts dealt to the wrong studies. Threshold rules are given the true outline of the muscle.
Published numbers are of other cohorts: for orientation, never a ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lgekit import metrics
from lgekit.baselines import MINIMUM_WALL, rule_scores
from lgekit.detector import Detector, fit_detector
from lgekit.errors import InputError
from lgekit.evaluation import with_truth
from lgekit.settings import PLAIN_CLIP, FitSettings
from lgekit.studies import SPLITS, WALL_CODES, Cohort, Study
from lgekit.supervised import fit_supervised
from lgekit.zeroshot import platt, probability

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
        raise InputError("references", f"unknown value {which!r}", f"Use one of {', '.join(TRAINED)}.")
    if cross_fit and TRAINED[which]:
        remedy = "Set compare_with='none', or cross_fit=False."
        raise InputError("references", "they do not share a cross-fitted detector's studies", remedy)


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
    usable = [study for study in cohort.studies if study["findings"] is not None and _has_wall(study)]
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


def reference_table(predictions: Mapping[str, pd.DataFrame], cohort: Cohort, seed: int = 0) -> pd.DataFrame:
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
            f"{name}{end}": found[name][key] for name in ("auc", "balanced_accuracy") for key, end in ENDS.items()
        }
    for method, about, numbers in PUBLISHED:
        rows[method] = {"cohort": f"other: {about}"} | numbers
    columns = ["cohort", *(f"{name}{end}" for name in ("auc", "balanced_accuracy") for end in ENDS.values())]
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns).rename_axis("method")


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """A `reference_table` to read: ``AUC``, ``balanced accuracy``, ``cohort``, each value with its interval."""

    def words(row: pd.Series, name: str) -> str:
        value, low, high = (row[f"{name}{end}"] for end in ENDS.values())
        if np.isnan(value):
            return "–"
        return f"{value:g}" if np.isnan(low) else f"{value:.2f} ({low:.2f}–{high:.2f})"

    columns = {"AUC": "auc", "balanced accuracy": "balanced_accuracy"}
    named = {title: [words(row, name) for _, row in table.iterrows()] for title, name in columns.items()}
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
