"""Zero-shot reading: prompt pooling, calibration, slice scores, occlusion maps, training texts."""

import numpy as np
import pytest
from toys import TEXTS, settings, toy
from toys import WALLS as TOY_WALLS

from lgekit.clip.model import StudyBatch
from lgekit.clip.train import fit
from lgekit.clip.zeroshot import (
    Calibration,
    Reading,
    occlusion_map,
    platt,
    probability,
    read_studies,
)
from lgekit.findings import LEVELS, WALLS, Findings, Scar
from lgekit.reports.reader import lge_statement, read_report
from lgekit.reports.writer import canonical_text, prompt_sets, report_texts, write_report

pytestmark = pytest.mark.usefixtures("own_cache")
NEGATIVE, POSITIVE = TEXTS[:1], TEXTS[1:]
PROMPTS = {
    "presence": {"positive": POSITIVE, "negative": NEGATIVE},
    "wall": {wall: [text] for wall, text in zip(TOY_WALLS, POSITIVE, strict=True)},
    "level": {"basal": POSITIVE},
    "depth": {"transmural": POSITIVE},
}


@pytest.fixture(scope="module")
def trained():
    result = fit(toy(24), settings(epochs=40, learning_rate=5e-3), progress=False)
    return result.model, result.tokenizer


def test_reads_presence_walls_and_slices(trained):
    unseen = toy(15, seed=9)
    reading = read_studies(*trained, unseen.batch, PROMPTS)
    kind = np.arange(15) % 3
    scarred = kind > 0
    assert (kind[reading.presence.argsort()[:5]] == 0).mean() >= 0.8
    assert (reading.walls.argmax(1)[scarred] == kind[scarred] - 1).mean() >= 0.9
    padding = ~unseen.batch.mask.numpy()
    assert (np.isnan(reading.slices) == padding).all()
    assert (np.isnan(reading.slice_walls) == padding[..., None]).all()
    assert (np.nanargmax(reading.slices, 1)[scarred] == 0).mean() >= 0.8  # toy scars: slice 0
    of_first = reading.slice_walls[:, 0].argmax(1)
    assert (of_first[scarred] == kind[scarred] - 1).mean() >= 0.8
    np.testing.assert_allclose(reading.attention.sum(1), 1, atol=1e-5)


def test_a_slice_read_alone_is_a_study_of_one_slice(trained):
    batch = toy(5, seed=6).batch
    whole = read_studies(*trained, batch, PROMPTS)
    for number in range(2):
        alone = StudyBatch(*(part[:, number : number + 1] for part in batch))
        one, there = read_studies(*trained, alone, PROMPTS), batch.mask[:, number].numpy()
        np.testing.assert_allclose(whole.slice_walls[there, number], one.walls[there], atol=1e-4)
        np.testing.assert_allclose(whole.slices[there, number], one.presence[there], atol=1e-4)


@pytest.mark.parametrize(("number", "columns"), [(1, slice(2, 8)), (2, slice(14, 20))])
def test_occlusion_map_points_at_the_scar(trained, number, columns):
    studies = toy(3, seed=4)
    count = int(studies.batch.mask[number].sum())
    alone = StudyBatch(*(part[number : number + 1, :count] for part in studies.batch))
    heat = occlusion_map(*trained, alone, POSITIVE, NEGATIVE, patch=(4, 6))
    assert heat.shape == (count, 12, 24)
    inside = heat[0, 3:8, columns].mean()
    assert inside > 0 and inside > 3 * np.abs(heat[1:]).mean()


def test_platt_scaling_puts_one_half_between_the_classes():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(5, 1, 400), rng.normal(9, 1, 40)])
    truth = np.arange(440) >= 400
    pair = platt(scores, truth)
    low, middle, high = probability(np.array([5.0, 7.0, 9.0]), pair)
    assert low < 0.2 and middle == pytest.approx(0.5, abs=0.08) and high > 0.8
    assert platt(scores, np.ones(440, bool)) == (1.0, 0.0)
    assert platt(-scores, truth)[0] > 0  # calibration never reverses a score


def test_a_report_of_scar_without_a_place_does_not_calibrate_the_walls():
    scores = np.array([-1.0, -0.5, 3.0, 4.0])
    blank, walls = np.zeros((4, 1)), np.stack([scores] * 6, 1)
    each = np.stack([scores, scores - 9, 0 * scores + np.nan], 1)  # the last is padding
    reading = Reading(scores, walls, blank, blank, each, each[..., None] * np.ones(6), blank)
    none, scar = "No late enhancement.", "Transmural scar of the inferior wall."
    placed = Calibration.fit(reading, [none, none, scar, scar])
    vague = Calibration.fit(reading, [none, none, scar, "There is scar."])
    for fitted in (placed, vague):
        inferior = WALLS.index("inferior")
        pairs = fitted.presence, fitted.walls[inferior], fitted.slices, fitted.slice_walls[inferior]
        found = [probability(scores, pair) > 0.5 for pair in pairs]
        assert all(one.tolist() == [False, False, True, True] for one in found)
        assert fitted.walls[WALLS.index("anterior")] == (1.0, 0.0)
    assert placed.presence == vague.presence and placed.walls != vague.walls


@pytest.mark.parametrize("walls", [("inferior",), ("anterior", "anteroseptal"), WALLS])
def test_training_texts_say_what_the_report_says(walls):
    details = {"depth": "subendocardial", "transmurality": 40, "no_reflow": True}
    scar = Scar(walls=walls, levels=("basal", "mid"), **details)
    report = write_report(Findings(scar), np.random.default_rng(2))
    texts = report_texts(report)
    first = read_report(texts[0])
    assert first.walls == set(walls) and first.scars[0].depth == "subendocardial"
    for text in texts:
        assert read_report(text).present and read_report(text).walls <= set(walls)
    assert report_texts(report, "report") == (report.strip(),)
    assert report_texts(report, "lge_statement") == (lge_statement(report).strip(),)
    negative = [write_report(Findings(), np.random.default_rng(n)) for n in range(50)]
    assert set(map(report_texts, negative)) == {("No late gadolinium enhancement.",)}


def test_every_prompt_is_a_text_that_the_network_learns():
    depths, learned = list(prompt_sets()["depth"]), {*report_texts(canonical_text(Findings()))}
    for number, (wall, level) in enumerate([(wall, level) for wall in WALLS for level in LEVELS]):
        walls = () if level == "apex" else (wall,)
        scar = Scar(walls=walls, levels=(level,), depth=depths[number % len(depths)])
        learned |= {*report_texts(canonical_text(Findings(scar)))}
    labels = [texts for of_kind in prompt_sets().values() for texts in of_kind.values()]
    assert {text for texts in labels for text in texts} <= learned
