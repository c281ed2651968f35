"""Train the weights in the package, on phantoms alone: ``make weights`` (15 CPU minutes)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from lgekit.clip.data import augment, batch_of
from lgekit.clip.detector import Detector
from lgekit.clip.fit import fit_detector
from lgekit.clip.zeroshot import Calibration, Reading
from lgekit.config import FitSettings, size_settings
from lgekit.data.readers import read_cohort
from lgekit.segmentation.model import WEIGHTS
from lgekit.segmentation.train import base_network
from lgekit.study import Cohort, Study
from lgekit.workbook import environment_record

COHORT = "phantom:studies=300,seed=0"
SETTINGS = size_settings("laptop", seed=0, augment=2.0, scored="slices")
DISTORTION, DRAWS = 4.0, 4  # strength of the augmentation, and times each study is distorted [O]


def train_weights(folder: Path, cohort: Cohort, settings: FitSettings = SETTINGS) -> None:
    """Write a heart network, a detector, both in float16, and ``weights.json``: their origin.

    The heart network is `base_network`. The detector reads the cohort's images and reports alone:
    without masks, its heart network is the one in the package, just written.
    """
    base = base_network((), settings.override(heart_seed=settings.seed))
    assert base is not None
    base.save(folder / "heart")
    halve(folder)
    fields = [{key: one[key] for key in one if key != "labels"} for one in cohort.studies]
    bare = Cohort([Study(**one) for one in fields], cohort.name)
    detector = fit_detector(bare, settings)
    calibrate_distorted(detector, bare.split("validation"))
    replace(detector, histories=[], held_out=None).save(folder)
    halve(folder)
    record = environment_record(
        command="make weights",
        seed=settings.seed,
        licence="Apache-2.0",
        data=cohort.name,
        heart_data=f"{settings.heart_phantom} phantoms, half of the pictures invented",
    )
    (folder / "weights.json").write_text(json.dumps(record, indent=1) + "\n")


def calibrate_distorted(detector: Detector, cohort: Cohort) -> None:
    """Calibrate on views that are distorted more strongly than in training.

    Contours, noise and texture of a real study are worse than those of a phantom, so the threshold
    of plain phantoms is too low for it.
    """
    strong = detector.settings.override(augment=DISTORTION)
    batch = batch_of(detector.views(detector.locate(cohort)))
    generator = torch.Generator().manual_seed(strong.seed)
    drawn = [detector.read(augment(batch, strong, generator)) for _ in range(DRAWS)]
    reports = cohort.manifest["report"].tolist() * DRAWS
    detector.calibration = Calibration.fit(Reading.merge(np.concatenate, drawn), reports)


def halve(folder: Path) -> None:
    """Store all weights in a folder in float16."""
    for file in folder.rglob("*.safetensors"):
        weights = load_file(file)
        halved = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        file.write_bytes(save(halved))


if __name__ == "__main__":
    torch.set_num_threads(1)  # the number of threads changes rounding
    train_weights(WEIGHTS, read_cohort(COHORT), SETTINGS)
