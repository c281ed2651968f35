"""Where the heart lies in each study: by the study's own masks and landmarks, else by a heart network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lgekit import anatomy
from lgekit.copies import refuse_shared
from lgekit.errors import InputError
from lgekit.fingerprints import pretraining_specs
from lgekit.standardize import known_landmarks
from lgekit.studies import Cohort, Study

__all__ = ["landmark_row", "locate_hearts", "pretraining_cohorts", "pretraining_specs", "ready"]


def pretraining_cohorts(cohort: Cohort, spec: str, pretrain_on: str) -> list[Cohort]:
    """The cohorts that `lgekit.fingerprints.pretraining_specs` names, read.

    Args:
        cohort: all studies, those of the test split too.
        spec: where the cohort came from.
        pretrain_on: SPECs separated by spaces, ``none`` or ``auto``.

    Raises:
        InputError: one cannot be read, or holds a picture of the cohort.
    """
    from lgekit.readers import read_cohort

    further = [read_cohort(other) for other in pretraining_specs(spec, pretrain_on)]
    refuse_shared(cohort, further)
    return further


def locate_hearts(cohort: Cohort, model: Path | None = None, size: str = "laptop", seed: int = 0) -> Cohort:
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
    from lgekit.heartnet import HeartNetwork
    from lgekit.settings import size_settings
    from lgekit.stages import heart_network, locate

    if model is None:
        network = heart_network(cohort, (), size_settings(size, seed=seed))
    elif (model / "heart").is_dir():
        network = HeartNetwork.load(model / "heart")
    else:
        raise InputError(model, "holds no heart network", "Give a folder that `lgekit fit` wrote.")
    predicted = locate(cohort, network)
    return Cohort([_complete(*pair) for pair in zip(cohort.studies, predicted.studies, strict=True)], cohort.name)


def landmark_row(stored: Study, framed: Study) -> dict[str, Any]:
    """One line of landmarks.csv: how a study lies in storage, and how it was turned.

    Args:
        stored: as stored, located.
        framed: the same study in the standard frame.
    """
    marks, labels = stored["landmarks"], stored.label_map
    centre = anatomy.lv_centre(labels)[0] if labels is not None else (np.nan, np.nan)
    return {
        "study_id": stored["study_id"],
        "anterior_rvip_deg": marks.anterior_rvip_deg if marks else np.nan,
        "inferior_rvip_deg": marks.inferior_rvip_deg if marks else np.nan,
        "mirrored": marks.mirrored if marks else None,
        "confidence": marks.confidence if marks else 0.0,
        "turned": framed["orientation_confident"],
        "base_first": anatomy.base_first(labels) if labels is not None else None,
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
    fields = {**study, "landmarks": own or predicted["landmarks"], "located_by": "given" if own else "network"}
    if "labels" not in study:
        fields["labels"] = predicted["labels"]
    return Study(**fields)
