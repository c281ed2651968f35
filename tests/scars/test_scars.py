"""RandomScar: where the scar is, what stays unchanged, what the report says, and replay."""

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio
from scipy import ndimage
from toys import ring_study

import lgekit.scars.transforms
from lgekit.anatomy.segments import findings_from_labels, segment_map
from lgekit.data.phantom import phantom_cohort
from lgekit.data.readers import read_cohort
from lgekit.errors import InputError
from lgekit.findings import WALLS, Findings, Scar, draw_scar
from lgekit.reports.reader import read_report
from lgekit.scars.transforms import AddScar, RandomScar, ScarPainter
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, SCAR, Landmarks, Study

EMIDEC = Path(__file__).parents[3] / "shared" / "data" / "emidec"
SLOW = pytest.mark.slow
INFERIOR = Scar(walls=("inferior",), levels=("mid",), depth="subendocardial", transmurality=50)
LATERAL = Scar(("inferolateral", "inferior"), ("basal", "mid"), "transmural")


def scar_of(study: Study) -> np.ndarray:
    return np.isin(study.label_map, (SCAR, NO_REFLOW))


def same_arrays(one: Study, other: Study) -> bool:
    return all(torch.equal(one[key].data, other[key].data) for key in ("image", "labels"))


def test_the_image_changes_only_near_the_scar_and_only_wall_becomes_scar():
    study = ring_study(report="Normal.")
    pixels, labels = study.pixels.copy(), study.label_map.copy()
    for seed in range(3):
        torch.manual_seed(seed)
        painted = RandomScar(p=1)(study)
        mask, changed = scar_of(painted), painted.pixels != pixels
        assert mask.any() and (labels[mask] == MYOCARDIUM).all()
        assert np.array_equal(mask, painted.label_map != labels)
        for s in range(9):
            away = ndimage.distance_transform_edt(~mask[..., s], sampling=1.2)
            assert not changed[..., s].any() or away[changed[..., s]].max() < 8  # mm
            assert mask[..., s].any() or not changed[..., s].any()
        assert painted["image"].data.dtype == torch.float32
        assert painted["labels"].data.dtype == torch.uint8 and isinstance(painted, Study)
    assert np.array_equal(study.pixels, pixels) and np.array_equal(study.label_map, labels)
    assert study["report"] == "Normal." and study["findings"] is None and not study.history


def test_scar_is_as_bright_as_blood_with_a_dark_core_of_no_reflow():
    study = ring_study()  # wall 60, blood 200
    study["image"].set_data(study["image"].data.round())
    for seed in range(1, 9):
        painted = AddScar(replace(LATERAL, no_reflow=True), seed=seed)(study)
        core, scar = painted.label_map == NO_REFLOW, painted.label_map == SCAR
        assert 0.03 < core.sum() / scar.sum() < 0.8
        assert 120 < np.median(painted.pixels[scar]) < 330
        assert painted.pixels[core].mean() < painted.pixels[scar].mean() - 15
        beside = np.roll(core, 1, 0) | np.roll(core, -1, 0)
        assert (painted.label_map == CAVITY)[beside].mean() < 0.1  # a rim of scar to the cavity
        assert (painted.pixels == np.rint(painted.pixels)).all()  # an image of integers stays one


def test_the_new_report_builds_on_the_old_report_and_not_on_the_hidden_truth():
    """Text-supervised training must not see a scar that the report misses."""
    hidden = Findings(Scar(("anterior",), ("mid",)))
    study = ring_study(report="No late gadolinium enhancement.", findings=hidden)
    painted = AddScar(INFERIOR, seed=1)(study)
    assert read_report(painted["report"]).walls == findings_from_labels(painted).walls
    assert read_report(painted["report"]).walls == {"inferior"}
    assert painted["findings"].walls == {"inferior", "anterior"}
    assert painted["report_source"] == "synthetic"


def test_history_replays_and_random_numbers_are_torchs():
    def run(seed):
        torch.manual_seed(seed)
        return tio.Compose([RandomScar(p=1), tio.RandomNoise(std=1)])(ring_study())

    first = run(7)
    again = first.get_composed_history()(ring_study())
    assert same_arrays(first, again) and first["report"] == again["report"]
    assert first["findings"] == again["findings"]
    assert same_arrays(first, run(7)) and not same_arrays(first, run(8))


def test_p_is_the_probability_of_a_scar():
    torch.manual_seed(0)
    study, transform = ring_study(), RandomScar(p=0.3)
    assert 4 <= sum(scar_of(transform(study)).any() for _ in range(40)) <= 21
    assert RandomScar(p=0)(study) is study


def test_a_painter_paints_what_random_scar_paints(monkeypatch):
    study = ring_study()
    monkeypatch.setattr(RandomScar, "_get_random_seed", lambda self: 5)
    slow, quick = RandomScar(p=1)(study), ScarPainter(study).random_copy(5)
    assert same_arrays(quick, slow) and not same_arrays(quick, study)
    for key in ("findings", "report", "report_source", "scar_note"):
        assert quick[key] == slow[key], key
    assert np.array_equal(quick["image"].affine, study["image"].affine)


def test_studies_with_scar_stay_unchanged_unless_asked():
    scarred = AddScar(INFERIOR, seed=1)(ring_study())
    again = RandomScar(p=1)(scarred)
    assert same_arrays(again, scarred)
    assert "has a scar" in again["scar_note"]
    by_report = ring_study(report="Subendocardial late enhancement of the basal inferior wall.")
    assert not scar_of(RandomScar(p=1)(by_report)).any()
    for words in ({}, {"report": "", "findings": None}):  # with words, and with labels alone
        scarred.update(words)
        more = AddScar(Scar(("anterolateral",), ("mid",)))(scarred)
        assert more["findings"].walls == {"inferior", "anterolateral"}
        assert read_report(more["report"]).walls == {"inferior", "anterolateral"}
        assert scar_of(more)[scar_of(scarred)].all()


def with_wall(voxels: int) -> Study:
    study = ring_study()
    study.label_map.flat[np.flatnonzero(study.label_map == MYOCARDIUM)[voxels:]] = 0
    return study


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (with_wall(2), "2 voxels of healthy myocardium"),
        (ring_study(landmarks=None), "insertion points unknown"),
        (ring_study(landmarks=Landmarks(float("nan"), 240)), "insertion points unknown"),
    ],
)
def test_a_study_that_cannot_take_a_scar_stays_unchanged_with_the_reason(study, words):
    with pytest.raises(InputError, match=words):
        AddScar(INFERIOR)(study)
    left = RandomScar(p=1)(study)
    assert same_arrays(left, study) and words in left["scar_note"]


def test_errors_name_impossible_scars_and_missing_labels():
    study = ring_study()
    for scar in (
        Scar(("inferior",), ("apex",)),
        Scar(depth="transmural"),
        Scar(("inferior",), ("mid",), "mid-wall", 95),
        Scar(WALLS, ("mid",), "subendocardial", 20, circumference=20),
    ):
        with pytest.raises(InputError, match="does not fit"):
            AddScar(scar)(study)
    study.remove_image("labels")
    with pytest.raises(InputError, match="labels"):
        AddScar(INFERIOR)(study)


def rings() -> list[Study]:
    mirrored = ring_study(240, 120, flip_slices=True)
    return [ring_study(), ring_study(30, 280, (0.9, 1.7, 10), slices=6), mirrored]


def normal_emidec() -> list[Study]:
    if not EMIDEC.exists():
        pytest.skip("needs ../shared/data/emidec")
    studies = read_cohort(f"emidec:{EMIDEC}").studies
    return [study for study in studies if study["study_id"].startswith("Case_N")]


@pytest.mark.parametrize(
    ("hosts", "draws"),
    [
        (rings, 45),
        pytest.param(lambda: phantom_cohort(9, 0, prevalence=0.0).studies, 900, marks=SLOW),
        pytest.param(normal_emidec, 900, marks=SLOW),
    ],
)
def test_masks_agree_with_their_words(hosts, draws):
    studies, rng = hosts(), np.random.default_rng(1)
    painters = [ScarPainter(study) for study in studies]
    agreed = painted = refused = 0
    for number in range(draws):
        painter, study = painters[number % len(studies)], studies[number % len(studies)]
        prevalence = "clinical" if number % 2 else "uniform"
        asked = painter.within_stack(Findings(draw_scar(rng, prevalence)))
        try:
            image, labels = painter.paint(asked, rng)
        except InputError:
            refused += 1
            continue
        landmarks = study["landmarks"]
        segments = segment_map(labels, study.spacing_mm, landmarks)
        inside = np.isin(segments, [number for scar in asked.scars for number in scar.segments])
        scar = np.isin(labels, (SCAR, NO_REFLOW))
        assert (scar & ~inside).sum() <= 0.02 * scar.sum()
        scarred = Study.from_arrays("x", image, study.spacing_mm, labels, landmarks=landmarks)
        measured = findings_from_labels(scarred).scars
        for said in asked.scars:
            painted += 1
            percent = said.transmurality
            agreed += (
                Findings(measured).walls == set(said.walls)
                and {level for found in measured for level in found.levels} == set(said.levels)
                and {found.depth for found in measured} == {said.depth}
                and any(found.no_reflow for found in measured) == said.no_reflow
                and all(abs(f.transmurality - (percent or f.transmurality)) <= 10 for f in measured)
            )
    assert refused <= 0.05 * draws and agreed >= 0.99 * painted


def test_the_examples_of_the_docstrings_run():
    result = doctest.testmod(lgekit.scars.transforms)
    assert result.failed == 0 and result.attempted > 5
