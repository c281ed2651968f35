"""Synthetic scars of every epoch: who paints them changes nothing, and no two epochs see the same."""

import numpy as np
import pytest
import torch
from toys import ring_study

from lgekit.clip import fit as detector
from lgekit.clip.data import Pairs, make_view
from lgekit.clip.fit import FreshScars, without_scar
from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.study import Cohort, Study


@pytest.fixture(scope="module")
def cohort():
    return phantom_cohort(9, seed=4, pixels=72, workers=1)


def settings(**changes):
    return size_settings("smoke", synthetic_pool=0, masks="true", **changes)


def same(one: Pairs, other: Pairs) -> bool:
    if list(one.texts) != list(other.texts) or one.batch.images.shape != other.batch.images.shape:
        return False
    return all(torch.equal(a, b) for a, b in zip(one.batch, other.batch, strict=True))


def test_the_number_of_painters_changes_nothing(cohort):
    here, others = (FreshScars(cohort, settings(seed=2), painters) for painters in (0, 2))
    alone, together = list(here(range(3))), list(others(range(3)))
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))
    assert same(list(here(range(2, 3)))[0], alone[2]), (
        "a run that goes on sees what an unbroken one sees"
    )


def test_no_painter_needs_shared_memory(cohort):
    """Docker gives 64 MB of it; a worker that hands over tensors dies there with a bus error."""
    scars = FreshScars(cohort, settings(seed=2), painters=2)
    assert not any(part.is_shared() for one in scars(range(2)) for part in one.batch)


def test_every_epoch_and_every_seed_has_its_own(cohort):
    scars = FreshScars(cohort, settings(seed=2), painters=0)
    first, second, other = scars[0], scars[1], FreshScars(cohort, settings(seed=3), painters=0)[0]
    assert len(first) == len(second) == scars.count == 9
    pictures = [
        {picture.numpy().tobytes() for picture in one.batch.images[one.batch.mask]}
        for one in (first, second)
    ]
    untouched = {make_view(study, settings()).images for study in without_scar(cohort)}
    clean = {picture.numpy().tobytes() for images in untouched for picture in images}
    assert pictures[0] - clean and not (pictures[0] - clean) & (pictures[1] - clean)
    assert not same(first, other)
    reseeded = scars.of_seed(3)
    assert same(reseeded[0], other) and reseeded.hosts is scars.hosts and same(scars[0], first)


def test_scars_go_into_all_studies_without_and_into_no_other(cohort):
    free = {study["study_id"] for study in without_scar(cohort)}
    scars = FreshScars(cohort, settings(synthetic_per_real=0.2), painters=0)
    assert {host.host.study["study_id"] for host in scars.hosts} == free and 0 < len(free) < 9
    assert scars.count == 2 and len(scars[5]) == 2
    assert not any(texts[0].startswith("No ") for texts in scars[5].texts), scars[5].texts


def test_global_chance_is_left_alone(cohort):
    scars = FreshScars(cohort, settings(), painters=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    next(iter(scars(range(1))))
    assert torch.equal(torch.rand(1), expected)


def test_a_cohort_that_takes_no_scar_is_refused():
    scarred = ring_study(report="Subendocardial late enhancement of the basal inferior wall.")
    with pytest.raises(
        InputError, match=r"no study can take a synthetic scar: all have scar.*synthetic_per_real"
    ):
        FreshScars(Cohort([scarred], "scarred"), settings(), painters=0)
    bare = ring_study()
    bare = Study(**{**bare, "landmarks": None, "report": "No late enhancement."})
    bare["labels"].data[bare["labels"].data == 5] = (
        0  # nothing left to find the insertion points by
    )
    with pytest.raises(InputError, match="insertion points unknown"):
        FreshScars(Cohort([bare], "bare"), settings(), painters=0)


def test_as_many_painters_as_threads_less_one(cohort):
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert FreshScars(cohort, settings()).painters == threads - 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("own_cache")
def test_a_detector_is_fitted_with_fresh_scars(cohort, monkeypatch):
    """`synthetic_pool=0`: the pool is one epoch's worth, and each network gets scars of its own, of its own studies."""
    given, original = [], detector.fit

    def fit(pairs, own, **options):
        given.append((own.seed, len(pairs), len(options["synthetic"]), options["fresh"]))
        return original(pairs, own, **options)

    monkeypatch.setattr(detector, "fit", fit)
    split = [Study(**{**study, "split": "train"}) for study in cohort.studies]
    fitted = detector.fit_detector(
        Cohort(split, "all train"), settings(epochs=2, models=2), progress=False
    )
    assert [(studies, pool) for _, studies, pool, _ in given] == [(9, 9)] * 2
    one, other = (fresh[0] for *_, fresh in given)
    assert not same(one, other)
    assert np.isfinite(fitted.histories[0]["contrastive"]).all()
    pooled = settings(epochs=1).override(synthetic_pool=2)
    detector.fit_detector(Cohort(split, "all train"), pooled, progress=False)
    assert given[-1][2:] == (18, None)
