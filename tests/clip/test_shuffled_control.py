"""The control: texts dealt to the wrong studies must leave nothing but chance, through the whole pipeline."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from lgekit.anatomy.segments import segment_map
from lgekit.clip.fit import fit_detector
from lgekit.config import size_settings
from lgekit.evaluation import scores as evaluation
from lgekit.findings import WALLS, Findings, Scar
from lgekit.reports.writer import write_report
from lgekit.study import CAVITY, MYOCARDIUM, SCAR, Cohort, Landmarks, Study

RUNS, FOLDS = 12, 5
QUICK = {
    "masks": "true",
    "synthetic_per_real": 0,
    "caption_weight": 0.0,
    "encoder_init": "random",
    "width": 16,
}
QUICK |= {
    "depths": 12,
    "angles": 24,
    "polar_channels": 8,
    "batch_size": 18,
    "epochs": 30,
    "learning_rate": 5e-3,
}
QUICK |= {"embed_dim": 16, "text_width": 16, "text_layers": 1, "context_length": 24, "dropout": 0.0}


@pytest.fixture(scope="module", autouse=True)
def no_cache():
    patch = pytest.MonkeyPatch()
    patch.setenv("LGEKIT_CACHE", "")
    yield
    patch.undo()


def ring(number: int) -> Study:
    """A ring of muscle in noise; every other one holds a bright scar in one of its walls, and a report that says so."""
    rng = np.random.default_rng(number)
    x, y = (np.arange(40) - 19.5)[:, None], (np.arange(40) - 19.5)[None]
    labels = np.zeros((40, 40, 3), np.uint8)
    labels[np.hypot(x, y) < 15] = MYOCARDIUM
    labels[np.hypot(x, y) < 9] = CAVITY
    findings, marks = Findings(), Landmarks(120.0, 240.0)
    if number % 2:
        wall = int(rng.integers(6))
        findings = Findings(
            (Scar(walls=(WALLS[wall],), levels=("basal", "mid"), depth="transmural"),)
        )
        labels[np.isin(segment_map(labels, (1.5, 1.5, 10), marks), (1 + wall, 7 + wall))] = SCAR
    image = np.select(
        [labels == CAVITY, labels == SCAR, labels == MYOCARDIUM], [100.0, 70.0, 20.0], 40.0
    )
    image = image * rng.uniform(0.8, 1.2) + rng.normal(0, 12, image.shape)
    report = write_report(findings, rng)
    fields = {"findings": findings, "landmarks": marks, "report": report}
    return Study.from_arrays(f"ring{number:02d}", image, (1.5, 1.5, 10), labels, **fields)


def areas_under_the_curve(runs: int, shuffled: bool) -> np.ndarray:
    """AUC of the test fold in each run: another seed, another fold, another deal of the texts."""
    cohort, areas = Cohort([ring(number) for number in range(60)], "rings"), []
    for number in range(runs):
        split = evaluation.with_fold(cohort, number % FOLDS, FOLDS, seed=number // FOLDS)
        own = size_settings("smoke", **QUICK, shuffle_text=shuffled, seed=number)
        test = split.split("test")
        read = fit_detector(split, own, progress=False).predict(test)
        areas.append(roc_auc_score(test.manifest["scar"].astype(bool), read["p_lge"]))
    return np.array(areas)


def test_shuffled_texts_fall_to_chance():
    """The mean over runs lies within its own 99.9 % interval around 0.5. One run may land on either side: a random
    direction of the joint space can happen to follow scar, so that the runs' spread is the yardstick. With the texts
    in their places the same pipeline is far outside."""
    shuffled, right = (
        areas_under_the_curve(RUNS, shuffled=True),
        areas_under_the_curve(3, shuffled=False),
    )
    reach = stats.t.ppf(0.9995, RUNS - 1) * shuffled.std(ddof=1) / np.sqrt(RUNS)
    assert abs(shuffled.mean() - 0.5) < reach < 0.35  # a wider interval would let anything pass
    assert right.mean() > 0.5 + reach
