"""Train the weights in the package, on phantoms alone: ``make weights`` (8 CPU minutes)."""

import json
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file, save

from lgekit.clip.data import augment, batch_of
from lgekit.clip.detector import Detector, seal
from lgekit.clip.fit import fit_detector
from lgekit.clip.zeroshot import Calibration, Reading
from lgekit.config import FitSettings, size_settings
from lgekit.data.readers import read_cohort
from lgekit.segmentation import model as networks
from lgekit.study import Cohort
from lgekit.workbook import environment_record

COHORT = "phantom:studies=300,seed=0"
# a given heart_seed trains the base network, which is otherwise taken from the package
SETTINGS = size_settings("laptop", seed=0, heart_seed=0, augment=2.0, scored="slices", models=3)
DISTORTION, DRAWS = 4.0, 4  # strength of the augmentation, and times each study is distorted [O]


def train_weights(cohort: Cohort, settings: FitSettings) -> None:
    """Write heart network and detector in float16 into `WEIGHTS`; ``weights.json`` says how."""
    detector = fit_detector(cohort, settings)
    calibrate_distorted(detector, cohort.split("validation"))
    replace(detector, histories=[], held_out=None).save(networks.WEIGHTS)
    (networks.WEIGHTS / "README.md").unlink()  # theirs is model_card.md
    for file in networks.WEIGHTS.rglob("*.safetensors"):
        weights = load_file(file)
        halved = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        file.write_bytes(save(halved))
    seal(networks.WEIGHTS)
    about = {"command": "make weights", "seed": settings.seed, "licence": "Apache-2.0"}
    about |= {"data": cohort.name, "heart_data": f"{settings.heart_phantom} other phantoms"}
    text = json.dumps(environment_record(**about), indent=1)
    (networks.WEIGHTS / "weights.json").write_text(text + "\n")


def calibrate_distorted(detector: Detector, cohort: Cohort) -> None:
    """Calibrate on strongly distorted views: contours and texture of real studies are worse than
    a phantom's, and the threshold of plain phantoms is too low for them."""
    strong = detector.settings.override(augment=DISTORTION)
    batch = batch_of(detector.views(detector.locate(cohort)))
    generator = torch.Generator().manual_seed(strong.seed)
    drawn = [detector.read(augment(batch, strong, generator)) for _ in range(DRAWS)]
    reports = cohort.manifest["report"].tolist() * DRAWS
    detector.calibration = Calibration.fit(Reading.merge(np.concatenate, drawn), reports)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the number of threads changes rounding
    train_weights(read_cohort(COHORT), SETTINGS)
