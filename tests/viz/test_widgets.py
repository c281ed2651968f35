"""Widgets: a changed control changes picture and text; there is a still picture."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from cohort_files import write_own
from matplotlib.axes import Axes
from tiny_notebook import write_notebook

from lgekit.clip.detector import Detector
from lgekit.clip.model import ReportTokenizer, build_coca
from lgekit.clip.zeroshot import Calibration
from lgekit.config import PLAIN_CLIP, size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.grid.run import load_grid
from lgekit.reports.reader import read_report
from lgekit.study import Cohort
from lgekit.viz import widgets
from lgekit.workbook import save_run


@pytest.fixture(scope="module")
def cohort():
    return phantom_cohort(studies=10, seed=5)


@pytest.fixture
def grid(tmp_path):
    """A grid of two rows and two seeds with three finished runs."""
    write_notebook(tmp_path / "tiny.ipynb")
    file = tmp_path / "toy.yaml"
    rows = "{full: {}, shifted: {shift: true}}"
    file.write_text(f"notebook: tiny.ipynb\nrows: {rows}\nseeds: [0, 1]\n")
    grid = load_grid(file)
    for number, run in enumerate(grid.runs[:3]):
        names = [f"S{number}_{study}" for study in range(8)]
        predictions = pd.DataFrame({"study_id": names, "scar": [False, True] * 4})
        predictions["p_lge"] = [0.9, 0.6, 0.05, 0.7, 0.1, 0.95, 0.2, 0.99]
        history = pd.DataFrame({"epoch": [1, 2], "contrastive": [2.0, number]})
        captions = predictions[["study_id"]].assign(caption="a <b> scar", truth="No scar.")
        tables = {"predictions": predictions, "history": history, "tables": {"captions": captions}}
        save_run(grid.folder / run.id, {"auc": 0.8, "auc_low": 0.6, "auc_high": 0.9}, **tables)
    return grid


def move(explorer: widgets.Explorer, control: str, value) -> tuple[bytes, str]:
    explorer.controls[control].value = value
    return explorer.picture.value, explorer.text.value


def test_the_playground_compares_a_sentence_with_no_enhancement(cohort, monkeypatch):
    settings = size_settings("smoke", **PLAIN_CLIP | {"text": "findings", "pixels": 48})
    tokenizer = ReportTokenizer.train([study["report"] for study in cohort.studies], 100)
    network = build_coca(settings, tokenizer).eval()
    detector = Detector(settings, [(network, tokenizer)], None, Calibration())
    drawn, barh = [], Axes.barh
    monkeypatch.setattr(Axes, "barh", lambda *a, **k: drawn.append(a[2]) or barh(*a, **k))
    playground = widgets.prompt_playground(detector, Cohort(cohort.studies[:3], "few"))
    assert np.abs(drawn[0]).min() > 1e-4
    move(playground, "sentence", "No late gadolinium enhancement.")
    assert np.abs(drawn[1]).max() < 1e-6


def test_the_scar_painter_paints_and_reports_what_is_chosen(cohort):
    healthy = next(study for study in cohort.studies if not study["findings"].present)
    painter = widgets.scar_painter(healthy)
    before = painter.picture.value
    shown = painter._repr_mimebundle_()  # the picture is for front ends without widgets
    assert shown["image/png"] and "application/vnd.jupyter.widget-view+json" in shown
    picture, words = move(painter, "inferoseptal", True)  # as if the button were pressed
    assert picture != before
    assert "inferoseptal" in read_report(re.sub("<.*?>", "", words)).walls
    move(painter, "inferoseptal", False)
    assert "Choose at least one wall" in move(painter, "inferior", False)[1]


def test_the_run_browser_shows_each_run_with_its_worst_cases(grid):
    browser = widgets.run_browser(grid)
    rows = re.findall("<tr>\\s*<th>(S.*?)</th>((?:\\s*<td>.*?</td>)+)", browser.text.value)
    assert [name for name, _ in rows] == ["S0_0", "S0_1", "S0_3", "S0_6", "S0_4"]
    cells = [re.findall("<td>(.*?)</td>", cells) for _, cells in rows]
    assert [probability for probability, *_ in cells] == ["0.90", "0.60", "0.70", "0.20", "0.10"]
    assert all(words == ["a &lt;b&gt; scar", "No scar."] for _, *words in cells)
    before = browser.picture.value
    picture, words = move(browser, "row", "shifted")
    assert picture != before and "S2_0" in words and "S0_0" not in words
    assert "is not done" in move(browser, "seed", 1)[1]
    shutil.rmtree(grid.folder / grid.runs[0].id)  # opens on the next run that is done
    assert "S1_0" in widgets.run_browser(grid).text.value


def test_the_playground_shows_only_images_of_a_cohort(tmp_path, monkeypatch):
    monkeypatch.setattr(widgets, "SHOWN_STUDIES", 2)
    assert len(widgets.playground_cohort()) == 2  # phantoms
    write_own(tmp_path / "mine")
    shown = widgets.playground_cohort(f"manifest:{tmp_path}/mine/manifest.csv")
    assert shown.manifest["study_id"].tolist() == ["s0", "s1"]
    assert all(study.label_map is None and not study["report"] for study in shown.studies)
