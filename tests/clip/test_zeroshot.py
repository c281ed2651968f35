"""Zero-shot reading: prompt pooling, calibration, slice scores, heat maps, the texts and prompts themselves."""

import math

import numpy as np
import pytest
import torch
from toys import WALLS as TOY_WALLS
from toys import settings, toy

from lgekit.clip.model import StudyBatch
from lgekit.clip.train import fit
from lgekit.clip.zeroshot import (
    Calibration,
    Reading,
    heat_map,
    platt,
    pooled,
    probability,
    read_studies,
)
from lgekit.findings import LEVELS, WALLS, Findings, Scar
from lgekit.reports.reader import lge_statement, read_report
from lgekit.reports.training_texts import KINDS, prompt_sets, report_texts
from lgekit.reports.writer import canonical_text, write_report

NEGATIVE = ["no scar"]
POSITIVE = [f"scar in the {wall} wall" for wall in TOY_WALLS]
PROMPTS = {
    "presence": {"positive": POSITIVE, "negative": NEGATIVE},
    "wall": {wall: [text] for wall, text in zip(TOY_WALLS, POSITIVE, strict=True)},
    "level": {"basal": POSITIVE},
    "depth": {"transmural": POSITIVE},
}


@pytest.fixture(scope="module")
def trained():
    return fit(toy(24), settings(epochs=60, learning_rate=5e-3), progress=False)


def test_an_ensemble_of_copies_scores_as_one_prompt():
    assert float(pooled(torch.tensor([2.0, 2.0, 2.0]))) == pytest.approx(2.0)
    assert float(pooled(torch.tensor([0.0, 100.0]))) == pytest.approx(100 - math.log(2))


def test_reads_presence_walls_and_slices(trained):
    unseen = toy(15, seed=9)
    reading = read_studies(trained.model, trained.tokenizer, unseen.batch, PROMPTS, chunk=4)
    kind = np.arange(15) % 3
    order = reading.presence.argsort()
    assert (
        kind[order[:5]] == 0
    ).mean() >= 0.8  # the five least suspicious studies are the five without scar
    best = reading.walls.argmax(1)
    assert (best[kind > 0] == kind[kind > 0] - 1).mean() >= 0.9
    assert np.isnan(reading.slices[~unseen.batch.mask.numpy()]).all()
    first = np.nanargmax(reading.slices, 1)[kind > 0]
    assert (first == 0).mean() >= 0.8  # the toy scars lie in slice 0
    assert (np.isnan(reading.slice_walls) == np.isnan(reading.slices)[..., None]).all()
    of_first = reading.slice_walls[:, 0].argmax(1)
    assert (of_first[kind > 0] == kind[kind > 0] - 1).mean() >= 0.8
    np.testing.assert_allclose(reading.attention.sum(1), 1, atol=1e-5)


def test_a_slice_asked_alone_is_a_study_of_one_slice(trained):
    batch = toy(5, seed=6).batch
    whole = read_studies(trained.model, trained.tokenizer, batch, PROMPTS)
    for number in range(2):
        alone = StudyBatch(*(part[:, number : number + 1] for part in batch))
        one = read_studies(trained.model, trained.tokenizer, alone, PROMPTS)
        there = batch.mask[:, number].numpy()
        np.testing.assert_allclose(whole.slice_walls[there, number], one.walls[there], atol=1e-4)
        np.testing.assert_allclose(whole.slices[there, number], one.presence[there], atol=1e-4)


def test_chunks_change_nothing_and_means_are_means(trained):
    batch = toy(7, seed=3).batch
    one = read_studies(trained.model, trained.tokenizer, batch, PROMPTS)
    other = read_studies(trained.model, trained.tokenizer, batch, PROMPTS, chunk=2)
    np.testing.assert_allclose(one.presence, other.presence, atol=1e-4)
    mean = Reading.mean([one, one])
    np.testing.assert_allclose(mean.walls, one.walls)
    np.testing.assert_allclose(one.slice_walls, other.slice_walls, atol=1e-4)
    np.testing.assert_allclose(mean.slice_walls, one.slice_walls)


def test_heat_map_points_at_the_scar(trained):
    studies = toy(3, seed=4)
    for number, place in ((1, slice(2, 8)), (2, slice(14, 20))):
        count = int(studies.batch.mask[number].sum())
        alone = StudyBatch(*(part[number : number + 1, :count] for part in studies.batch))
        heat = heat_map(trained.model, trained.tokenizer, alone, POSITIVE, NEGATIVE, patch=(4, 6))
        assert heat.shape == (count, 12, 24)
        inside = heat[0, 3:8, place].mean()
        assert inside > 0 and inside > 3 * np.abs(heat[1:]).mean()
        alone_painted = heat_map(
            trained.model, trained.tokenizer, alone, POSITIVE, NEGATIVE, patch=(4, 6), only=0
        )
        np.testing.assert_allclose(alone_painted[0], heat[0], atol=1e-5)
        assert not alone_painted[1:].any()


def test_platt_puts_one_half_where_the_classes_part():
    rng = np.random.default_rng(0)
    scores = np.concatenate(
        [rng.normal(5, 1, 400), rng.normal(9, 1, 40)]
    )  # unbalanced, and nowhere near zero
    truth = np.arange(440) >= 400
    pair = platt(scores, truth)
    assert float(probability(np.array(7.0), pair)) == pytest.approx(0.5, abs=0.08)
    assert probability(np.array(9.0), pair) > 0.8 and probability(np.array(5.0), pair) < 0.2
    assert platt(scores, np.ones(440, bool)) == (1.0, 0.0)
    assert platt(-scores, truth)[0] > 0  # calibration never turns a score round


def test_calibration_decides_at_one_half():
    scores = np.array([-1.0, -0.5, 3.0, 4.0])
    blank = np.zeros((4, 1))
    reading = Reading(
        scores, np.stack([scores] * 6, 1), blank, blank, blank, blank[..., None], blank
    )
    truth = np.array([False, False, True, True])
    fitted = Calibration.fit(reading, truth, np.stack([truth] * 6, 1))
    assert ((probability(scores, fitted.presence) > 0.5) == truth).all()
    assert len(fitted.walls) == 6
    unplaced = np.stack(
        [truth & np.array([True, True, True, False])] * 6, 1
    )  # the last scar is in no stated place
    known = Calibration.fit(reading, truth, unplaced, np.array([True, True, True, False]))
    assert (
        probability(np.array([3.5]), known.walls[0])
        > 0.5
        > probability(np.array([-1.0]), known.walls[0])
    )
    assert (
        known.walls != Calibration.fit(reading, truth, unplaced).walls
        and known.presence == fitted.presence
    )


@pytest.mark.parametrize("walls", [("inferior",), ("anterior", "anteroseptal"), WALLS])
def test_texts_say_what_the_report_says(walls):
    scar = Scar(
        walls=walls,
        levels=("basal", "mid"),
        depth="subendocardial",
        transmurality=40,
        no_reflow=True,
    )
    report = write_report(Findings(scar), np.random.default_rng(2))
    texts = report_texts(report)
    assert (
        read_report(texts[0]).walls == set(walls)
        and read_report(texts[0]).scars[0].depth == "subendocardial"
    )
    for text in texts:
        assert read_report(text).present and read_report(text).walls <= set(walls)
    assert report_texts(report, "report") == (report.strip(),)
    assert report_texts(report, "lge_statement") == (lge_statement(report).strip(),)


def test_every_prompt_is_a_text_that_is_learned():
    depths, learned = list(prompt_sets()["depth"]), set()
    for number, (wall, level) in enumerate([(wall, level) for wall in WALLS for level in LEVELS]):
        scar = Scar(
            walls=() if level == "apex" else (wall,),
            levels=(level,),
            depth=depths[number % len(depths)],
        )
        learned |= {*report_texts(canonical_text(Findings(scar)))}
    learned |= {*report_texts(canonical_text(Findings()))}
    prompts = {
        text for of_kind in prompt_sets().values() for texts in of_kind.values() for text in texts
    }
    assert prompts <= learned, prompts - learned


def test_negative_reports_share_one_text():
    texts = {
        report_texts(write_report(Findings(), np.random.default_rng(seed))) for seed in range(12)
    }
    assert texts == {("No late gadolinium enhancement.",)}


@pytest.mark.parametrize("mode", ["findings", "report"])
def test_prompts_mean_what_their_labels_say(mode):
    sets = prompt_sets(mode)
    assert tuple(sets) == KINDS and tuple(sets["wall"]) == WALLS
    assert all(read_report(text).present for text in sets["presence"]["positive"])
    assert not any(read_report(text).present for text in sets["presence"]["negative"])
    for wall, texts in sets["wall"].items():
        assert all(read_report(text).walls == {wall} for text in texts)
