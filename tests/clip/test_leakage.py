"""No image, mask or report of a test fold influences training, and shuffled texts teach nothing."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from lgekit.anatomy.segments import segment_map
from lgekit.clip import fit as module
from lgekit.clip.data import batch_of, make_view
from lgekit.clip.detector import Detector
from lgekit.clip.fit import fit_detector, synthetic_pool, train_networks
from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.evaluation.scores import with_fold, without_test
from lgekit.findings import WALLS, Findings, Scar
from lgekit.reports.writer import write_report
from lgekit.study import CAVITY, MYOCARDIUM, SCAR, Cohort, Landmarks, Study

QUICK = {"epochs": 1, "heart_phantom": 4, "heart_base_steps": 1, "width": 16}
SIGNED = "Report number "  # each report ends with the id of its study
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def cohort():
    studies = [
        Study(**{**study, "report": f"{study['report']}\n{SIGNED}{study['study_id']}"})
        for study in phantom_cohort(12, seed=1, pixels=72, workers=1).studies
    ]
    return with_fold(Cohort(studies, "signed"), 0, 3)


def ids(cohort) -> set[str]:
    return {study["study_id"] for study in cohort.studies}


def slices_of(batch) -> set[bytes]:
    return {picture.numpy().tobytes() for picture in batch.images[batch.mask]}


@pytest.fixture
def used(monkeypatch):
    """What goes into each step: step → ids of studies, or slices of the polar pretraining."""
    used: dict[str, set] = defaultdict(set)

    def watch(name, note):
        original = getattr(module, name)

        def watched(*arguments, **named):
            result = original(*arguments, **named)
            used[name] |= note(result, *arguments)
            return result

        monkeypatch.setattr(module, name, watched)

    watch("locate", lambda _, located, *rest: ids(located))
    watch("synthetic_pool", lambda pool, located, *_: ids(located) | {one.source for one in pool})
    watch("make_view", lambda _, study, settings: {study["study_id"]})
    watch("train_networks", lambda _, train, *rest: ids(train))
    watch("pretrain_polar", lambda _, batch, *rest: slices_of(batch))
    watch("calibrate", lambda _, detector, held, *rest: ids(held))
    watch("report_texts", lambda _, text, mode: {text.rsplit(SIGNED, 1)[-1]})
    return used


def test_a_fit_on_the_splits_does_not_use_the_test_split(cohort, used):
    own = size_settings("smoke", **QUICK)
    fitted = fit_detector(cohort, own, progress=False)
    splits = {name: cohort.split(name) for name in ("train", "validation", "test")}
    train, validation, test = map(ids, splits.values())
    assert len(test) == 4
    assert used["train_networks"] == used["synthetic_pool"] == train
    assert used["calibrate"] == set(fitted.held_out["study_id"]) == validation
    assert used["make_view"] == used["locate"] == train | validation
    assert used["report_texts"] & ids(cohort) == train | validation
    slices = {
        name: slices_of(batch_of([make_view(s, own) for s in fitted.locate(part).studies]))
        for name, part in splits.items()
    }
    assert slices["train"] <= used["pretrain_polar"]
    assert not (slices["validation"] | slices["test"]) & used["pretrain_polar"]


def test_cross_fits_do_not_use_the_test_fold(cohort, used):
    for fold in (0, 1):
        split = with_fold(cohort, fold, 3)
        learned_from, test = without_test(split), ids(split.split("test"))
        used.clear()
        own = size_settings("smoke", **QUICK)
        fitted = fit_detector(learned_from, own, all_studies=True, progress=False)
        assert len(fitted.networks) == 2 and used["calibrate"] == ids(learned_from)
        for step in set(used) - {"pretrain_polar"}:
            assert used[step] and not used[step] & test, step


def test_cross_fitting_reads_each_study_with_networks_that_never_saw_it(cohort, monkeypatch):
    trained, read = [], []
    fit, reading = module.fit, Detector.read

    def spy_fit(pairs, *rest, **named):
        trained.append(slices_of(pairs.batch))
        return fit(pairs, *rest, **named)

    def spy_read(self, batch, *rest):
        read.append(slices_of(batch))
        return reading(self, batch, *rest)

    monkeypatch.setattr(module, "fit", spy_fit)
    monkeypatch.setattr(Detector, "read", spy_read)
    fitted = fit_detector(cohort, size_settings("smoke", **QUICK, masks="true"), True, False)
    assert len(trained) == len(read) == 3
    assert fitted.held_out["study_id"].tolist() == cohort.manifest["study_id"].tolist()
    for seen, unseen in zip(trained, read, strict=True):
        assert unseen and not seen & unseen


def test_networks_are_trained_only_with_scars_painted_into_their_own_studies(cohort, monkeypatch):
    given = []

    def fit(pairs, *_):
        given.append(slices_of(pairs.batch.rows(slice(pairs.real, None))))
        raise StopIteration

    own = size_settings("smoke", **QUICK, masks="true")
    pool, train = synthetic_pool(cohort, own), cohort.split("train")
    monkeypatch.setattr(module, "fit", fit)
    with pytest.raises(StopIteration):
        train_networks(train, own, pool)
    inside = [scar.view for scar in pool if scar.source in ids(train)]
    outside = [scar.view for scar in pool if scar.source not in ids(train)]
    assert given == [slices_of(batch_of(inside))] and not given[0] & slices_of(batch_of(outside))


def test_a_fit_does_not_use_the_masks(cohort):
    """Nor the insertion points: a fit on images and reports alone is the same."""
    own = size_settings("smoke", **QUICK)
    fields = [
        {k: one[k] for k in one if k not in ("labels", "landmarks")} for one in cohort.studies
    ]
    bare = Cohort([Study(**one) for one in fields], "bare")
    with_masks, without = (fit_detector(one, own, progress=False) for one in (cohort, bare))
    states = [one.networks[0][0].state_dict().values() for one in (with_masks, without)]
    assert all(map(torch.equal, *states)) and with_masks.calibration == without.calibration


def ring(number: int) -> Study:
    """A noisy ring of myocardium; every other one has, and reports, a bright scar in one wall."""
    rng = np.random.default_rng(number)
    x, y = (np.arange(40) - 19.5)[:, None], (np.arange(40) - 19.5)[None]
    labels = np.zeros((40, 40, 3), np.uint8)
    labels[np.hypot(x, y) < 15] = MYOCARDIUM
    labels[np.hypot(x, y) < 9] = CAVITY
    findings, marks = Findings(), Landmarks(120.0, 240.0)
    if number % 2:
        wall = int(rng.integers(6))
        scar = Scar(walls=(WALLS[wall],), levels=("basal", "mid"), depth="transmural")
        findings = Findings((scar,))
        labels[np.isin(segment_map(labels, (1.5, 1.5, 10), marks), (1 + wall, 7 + wall))] = SCAR
    tissues = [labels == CAVITY, labels == SCAR, labels == MYOCARDIUM]
    image = np.select(tissues, [100.0, 70.0, 20.0], 40.0) * rng.uniform(0.8, 1.2)
    image = image + rng.normal(0, 12, image.shape)
    fields = {"findings": findings, "landmarks": marks, "report": write_report(findings, rng)}
    return Study.from_arrays(f"ring{number:02d}", image, (1.5, 1.5, 10), labels, **fields)


def test_shuffled_texts_fall_to_chance(monkeypatch):
    """The mean AUC of the control is within its 99.9 % interval around 0.5; that of the method is
    far outside. A single control may be on either side, as a random direction can follow scar."""
    monkeypatch.setenv("LGEKIT_CACHE", "")
    cohort = Cohort([ring(number) for number in range(60)], "rings")
    tiny = {"masks": "true", "synthetic_per_real": 0, "caption_weight": 0.0, "depths": 12}
    tiny |= {"encoder_init": "random", "width": 16, "angles": 24, "polar_channels": 8}
    tiny |= {"batch_size": 18, "epochs": 30, "learning_rate": 5e-3, "embed_dim": 16}
    tiny |= {"text_width": 16, "text_layers": 1, "context_length": 24, "dropout": 0.0}

    def areas(runs: int, shuffled: bool) -> np.ndarray:
        found = []
        for number in range(runs):
            split = with_fold(cohort, number % 5, 5, seed=number // 5)
            own, test = size_settings("smoke", **tiny, shuffle_text=shuffled, seed=number), "test"
            read = fit_detector(split, own, progress=False).predict(split.split(test))
            truth = split.split(test).manifest["scar"].astype(bool)
            found.append(roc_auc_score(truth, read["p_lge"]))
        return np.array(found)

    control, method = areas(12, shuffled=True), areas(3, shuffled=False)
    half_width = stats.t.ppf(0.9995, 11) * control.std(ddof=1) / np.sqrt(12)
    assert abs(control.mean() - 0.5) < half_width < 0.35 < method.mean()
    assert method.mean() > 0.5 + half_width
