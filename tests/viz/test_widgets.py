"""Widgets answer: moving a control changes picture and words; the still is there where widgets are not."""

import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from tiny_notebook import write_notebook

from lgekit.clip.detector import Detector
from lgekit.clip.model import build_coca
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.clip.zeroshot import Calibration
from lgekit.config import PLAIN_CLIP, size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.findings import WALLS
from lgekit.grid.file import load_grid
from lgekit.scars.transforms import RandomScar
from lgekit.study import Cohort
from lgekit.viz import widgets
from lgekit.workbook import save_run


@pytest.fixture(scope="module")
def cohort():
    return phantom_cohort(studies=10, seed=5, slices=8)


@pytest.fixture
def grid(tmp_path):
    """A grid of two rows and two seeds; all runs but the last are done. Study 0 is the worst: called scar, has none."""
    write_notebook(tmp_path / "tiny.ipynb")
    file = tmp_path / "toy.yaml"
    file.write_text(
        "notebook: tiny.ipynb\nrows: {full: {}, shifted: {shift: true}}\nseeds: [0, 1]\n"
    )
    for number, run in enumerate(load_grid(file).runs[:3]):
        names = [f"S{number}_{study}" for study in range(8)]
        scar = [study % 2 == 1 for study in range(8)]
        p_lge = [0.9, 0.6, 0.05, 0.7, 0.1, 0.95, 0.2, 0.99]
        predictions = pd.DataFrame({"study_id": names, "scar": scar, "p_lge": p_lge})
        history = pd.DataFrame(
            {"epoch": [1, 2], "contrastive": [2.0, 1.0 / (number + 1)], "caption": [3.0, 2.0]}
        )
        captions = pd.DataFrame(
            {"study_id": names, "caption": "a <b> scar", "truth": "No enhancement.", "right": False}
        )
        scores = {"auc": 0.8, "auc_low": 0.6, "auc_high": 0.9 + number / 100}
        folder = load_grid(file).folder / run.id
        save_run(
            folder, scores, predictions=predictions, history=history, tables={"captions": captions}
        )
    return file


def move(explorable: widgets.Explorable, control: str, value) -> tuple[bytes, str]:
    started = time.perf_counter()
    explorable.controls[control].value = value
    print(f"{control} = {value}: {1000 * (time.perf_counter() - started):.0f} ms")
    return explorable.picture.value, explorable.text.value


def test_orientation_explorer_turns_picture_and_words(cohort):
    positive = next(study for study in cohort.studies if study["findings"].present)
    explorer = widgets.orientation_explorer(positive)
    before = explorer.picture.value, explorer.text.value
    turned = move(explorer, "error", 90)
    assert turned[0] != before[0] and turned[1] != before[1]
    assert move(explorer, "error", 0) == before  # nothing is left behind
    assert move(explorer, "mirrored", True)[0] != before[0]


def test_the_explorer_numbers_its_segments(cohort, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        widgets.plots, "draw_segments", lambda axis, segments: drawn.append(set(segments.flat))
    )
    widgets.orientation_explorer(cohort.studies[0])
    assert drawn and drawn[0] <= set(range(18)) and len(drawn[0]) > 4


def test_the_playground_draws_what_speaks_for_a_sentence_against_none(cohort, monkeypatch):
    """A raw cosine ranked hearts without scar highest for a sentence about scar."""
    settings = size_settings("smoke", **PLAIN_CLIP | {"text": "findings", "pixels": 48})
    tokenizer = ReportTokenizer.train([study["report"] for study in cohort.studies], 100)
    detector = Detector(
        settings, [(build_coca(settings, tokenizer).eval(), tokenizer)], None, Calibration()
    )
    drawn, bars = [], Axes.barh
    monkeypatch.setattr(
        Axes,
        "barh",
        lambda axis, y, width, **rest: drawn.append(width) or bars(axis, y, width, **rest),
    )
    playground = widgets.prompt_playground(detector, Cohort(cohort.studies[:3], "few"))
    assert np.abs(drawn[0]).min() > 1e-4
    move(playground, "sentence", "No late gadolinium enhancement.")  # against itself
    assert np.abs(drawn[1]).max() < 1e-6


def test_scar_painter_paints_what_is_asked_for_and_says_so(cohort):
    painter = widgets.scar_painter(
        next(study for study in cohort.studies if not study["findings"].present)
    )
    before = painter.picture.value
    picture, words = move(painter, "walls", ("anterior",))
    assert picture != before and "anterior" in words.lower()
    painter.controls["walls"].children[-1].value = True  # the reader presses a button
    assert painter.controls["walls"].value == ("anterior", WALLS[-1])
    assert "Choose at least one wall" in move(painter, "walls", ())[1]


def test_quiz_hides_the_answer_until_asked(cohort):
    torch.manual_seed(0)
    quiz = widgets.which_is_real(cohort, RandomScar(p=1), pairs=2)
    assert "Which are painted" in quiz.text.value
    assert move(quiz, "answer", True)[1] == ""


def test_a_still_picture_is_in_the_cell_for_front_ends_without_widgets(cohort):
    bundle = widgets.orientation_explorer(cohort.studies[0])._repr_mimebundle_()
    assert bundle["image/png"].startswith("iVBOR")
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_the_run_browser_shows_each_run_with_its_worst_cases(grid):
    browser = widgets.run_browser(grid)
    cells = re.findall("<td>(.*?)</td>", browser.text.value)
    assert cells[1::5] == ["S0_0", "S0_1", "S0_3", "S0_6", "S0_4"]
    assert cells[2::5] == ["0.90", "0.60", "0.70", "0.20", "0.10"]
    assert set(cells[3::5]) == {"a &lt;b&gt; scar"} and set(cells[4::5]) == {"No enhancement."}
    before = browser.picture.value
    picture, words = move(browser, "row", "shifted")
    assert picture != before and "S2_0" in words and "S0_0" not in words
    assert "is not done" in move(browser, "seed", 1)[1]
    assert "S1_0" in move(browser, "row", "full")[1]


def test_the_run_browser_opens_on_a_run_that_is_done(grid):
    first, *_ = load_grid(grid).runs
    shutil.rmtree(load_grid(grid).folder / first.id)
    browser = widgets.run_browser(grid)
    assert browser.controls["seed"].value == 1 and "S1_0" in browser.text.value
