"""No image, mask or report of a test fold touches what reads it: every step is watched, by the ids that go into it."""

from collections import defaultdict

import pytest

from lgekit.clip import fit as module
from lgekit.clip import fit as stages
from lgekit.clip.data import make_view
from lgekit.clip.fit import fit_detector, synthetic_views
from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.data.readers import refuse_shared
from lgekit.errors import InputError
from lgekit.evaluation import scores as evaluation
from lgekit.segmentation.model import HeartNetwork
from lgekit.segmentation.train import pretraining_cohorts, weights_fingerprint
from lgekit.study import Cohort, Study

QUICK = {"epochs": 1, "heart_phantom": 4, "heart_base_steps": 1, "heart_steps": 2, "width": 16}
SIGNED = "Report number "  # each report ends with the id of its study


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def cohort():
    studies = phantom_cohort(12, seed=1, pixels=72, workers=1).studies
    signed = [
        Study(**{**study, "report": f"{study['report']}\n{SIGNED}{study['study_id']}"})
        for study in studies
    ]
    return evaluation.with_fold(Cohort(signed, "signed"), 0, 3)


def ids(*cohorts) -> set[str]:
    return {study["study_id"] for one in cohorts if one is not None for study in one.studies}


def slices_of(batch) -> set[bytes]:
    return {picture.numpy().tobytes() for picture in batch.images[batch.mask]}


@pytest.fixture
def seen(monkeypatch):
    """What goes into each step: step → ids of studies (for the polar pretraining: its pictures)."""
    seen: dict[str, set] = defaultdict(set)

    def watch(place, name, note):
        original = getattr(place, name)

        def watched(*arguments, **named):
            result = original(*arguments, **named)
            note(result, *arguments)
            return result

        monkeypatch.setattr(place, name, watched)

    def heart(_, cohorts, own, steps, init, progress):
        seen["base network" if init is None else "heart network"].update(*map(ids, [*cohorts]))

    def hosts(painted, located, *_):
        seen["synthetic hosts"] |= {one.source for one in painted}
        seen["offered as hosts"] |= ids(located)

    def report(_, text, *__):
        seen["reports"].add(text.rsplit(SIGNED, 1)[-1])

    watch(stages, "_fitted", heart)
    watch(module, "locate", lambda _, cohort, network: seen["located"].update(ids(cohort)))
    watch(module, "synthetic_views", hosts)
    watch(module, "make_view", lambda _, study, settings: seen["views"].add(study["study_id"]))
    watch(
        module, "_networks", lambda _, train, validation, *rest: seen["networks"].update(ids(train))
    )
    watch(
        module,
        "pretrain_polar",
        lambda _, batch, *rest: seen["polar pretraining"].update(slices_of(batch)),
    )
    watch(module, "calibrate", lambda _, reading, cohort: seen["calibration"].update(ids(cohort)))
    watch(module, "report_texts", report)
    watch(module, "read_report", report)
    return seen


def test_a_test_fold_touches_nothing(cohort, seen):
    other = phantom_cohort(4, seed=9, pixels=72, workers=1)  # a cohort to pretrain on
    other = Cohort(
        [Study(**{**study, "study_id": f"other {study['study_id']}"}) for study in other.studies],
        "other",
    )
    own = size_settings("smoke", **QUICK)
    fitted = fit_detector(cohort, own, progress=False, pretrain_on=[other])
    train, validation, test = (ids(cohort.split(name)) for name in ("train", "validation", "test"))
    assert len(test) == 4 and train and validation
    assert seen["heart network"] == train and ids(other) < seen["base network"]
    assert (
        seen["networks"] == train
        and seen["offered as hosts"] == train
        and seen["synthetic hosts"] <= train
    )
    assert seen["calibration"] == validation and set(fitted.held_out["study_id"]) == validation
    assert seen["views"] == seen["located"] == train | validation
    written = {
        text for text in seen["reports"] if text in ids(cohort)
    }  # painted scars have reports of their own
    assert written == train | validation
    assert not test & set().union(
        *(found for step, found in seen.items() if step != "polar pretraining")
    )
    views = {
        name: slices_of(
            module.batch_of(
                [make_view(study, own) for study in fitted.locate(cohort.split(name)).studies]
            )
        )
        for name in ("train", "validation", "test")
    }
    assert views["train"] <= seen["polar pretraining"]
    assert not (views["validation"] | views["test"]) & seen["polar pretraining"]


def test_scars_painted_into_held_out_studies_are_left_out(cohort, monkeypatch):
    """Cross-fitting paints once into all studies; a fold's networks get those of their own training studies alone."""
    given = {}

    def fit(pairs, settings, synthetic, **_):
        given["pictures"] = slices_of(synthetic.batch)
        raise StopIteration

    own = size_settings("smoke", **QUICK, masks="true")
    pool = synthetic_views(cohort, 24, own)
    train = cohort.split("train")
    assert {painted.source for painted in pool} & ids(train) < {painted.source for painted in pool}
    monkeypatch.setattr(module, "fit", fit)
    with pytest.raises(StopIteration):
        module._networks(train, None, pool, own, None, False, None, 0)
    inside = [painted.view for painted in pool if painted.source in ids(train)]
    outside = [painted.view for painted in pool if painted.source not in ids(train)]
    assert given["pictures"] == slices_of(module.batch_of(inside))
    assert not given["pictures"] & slices_of(module.batch_of(outside))


def test_a_cross_fitted_fold_touches_nothing_and_shares_heart_networks(cohort, seen):
    own, hearts = size_settings("smoke", **QUICK), []
    for fold in (0, 1):
        split = evaluation.with_fold(cohort, fold, 3)
        learned_from, test = evaluation.development(split), ids(split.split("test"))
        assert ids(learned_from) == ids(split) - test and len(test) == 4
        seen.clear()
        fitted = fit_detector(learned_from, own, all_studies=True, progress=False)
        assert len(fitted.networks) == 2, "the two other folds"
        assert seen["calibration"] == ids(learned_from)
        for step in (
            "heart network",
            "located",
            "views",
            "networks",
            "offered as hosts",
            "reports",
        ):
            assert seen[step] and not seen[step] & test, step
        hearts += [
            weights_fingerprint(HeartNetwork(fitted.heart.settings, [one]))
            for one in fitted.heart.networks
        ]
    assert len(hearts) == 4 and len(set(hearts)) == 3, (
        "the network without folds 0 and 1 serves both"
    )


def test_pretraining_on_the_cohort_itself_is_refused(cohort):
    """Under another name: its test studies' masks would be learned, and no split says so."""
    copy = cohort.studies[-1]
    other = Cohort(
        [Study(**{**copy, "study_id": "a new name", "patient_id": "a new name"})], "another folder"
    )
    with pytest.raises(
        InputError, match=rf"another folder.*a new name has the image of {copy['study_id']}"
    ):
        refuse_shared(cohort, [phantom_cohort(2, seed=2, pixels=72, workers=1), other])
    refuse_shared(cohort, [phantom_cohort(2, seed=2, pixels=72, workers=1)])
    with pytest.raises(InputError, match="has the image of"):
        pretraining_cohorts(
            phantom_cohort(3, seed=0), "phantom:studies=3,seed=0", "phantom:studies=2,seed=0"
        )
