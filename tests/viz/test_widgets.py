"""Widgets: a changed control changes picture and text; there is a still picture."""

import re

import numpy as np
import pytest
from matplotlib.axes import Axes

from lgekit.clip.detector import Detector
from lgekit.clip.model import CoCa, ReportTokenizer
from lgekit.clip.zeroshot import Calibration
from lgekit.config import PLAIN_CLIP, size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.reports.reader import read_report
from lgekit.study import Cohort
from lgekit.viz import widgets


@pytest.fixture(scope="module")
def cohort():
    return phantom_cohort(studies=10, seed=5)


def move(explorer: widgets.Explorer, control: str, value) -> tuple[bytes, str]:
    explorer.controls[control].value = value
    return explorer.picture, explorer.shown.value.partition(">")[2]


def test_the_playground_compares_a_sentence_with_no_enhancement(cohort, monkeypatch):
    settings = size_settings("smoke", **PLAIN_CLIP | {"text": "findings", "pixels": 48})
    tokenizer = ReportTokenizer.train([study["report"] for study in cohort.studies])
    network = CoCa(settings, tokenizer).eval()
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
    before = painter.picture
    shown = painter._repr_mimebundle_()  # the picture is for front ends without widgets
    assert shown["image/png"] and "application/vnd.jupyter.widget-view+json" in shown
    picture, words = move(painter, "inferoseptal", True)  # as if the button were pressed
    assert picture != before
    assert "inferoseptal" in read_report(re.sub("<.*?>", "", words)).walls
    move(painter, "inferoseptal", False)
    assert "Choose at least one wall" in move(painter, "inferior", False)[1]
