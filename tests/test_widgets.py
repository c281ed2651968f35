"""Widgets answer: moving a control changes picture and words; the still is there where widgets are not."""

import pytest
import torch

from lgekit import widgets
from lgekit.phantom import phantom_cohort
from lgekit.scars import RandomScar


@pytest.fixture(scope="module")
def cohort():
    return phantom_cohort(studies=10, seed=5, slices=8)


def move(explorable: widgets.Explorable, control: str, value) -> tuple[bytes, str]:
    explorable.controls[control].value = value
    return explorable.picture.value, explorable.text.value


def test_orientation_explorer_turns_picture_and_words(cohort):
    positive = next(study for study in cohort.studies if study["findings"].present)
    explorer = widgets.orientation_explorer(positive)
    before = explorer.picture.value, explorer.text.value
    turned = move(explorer, "error", 90)
    assert turned[0] != before[0] and turned[1] != before[1]
    assert move(explorer, "error", 0) == before  # nothing is left behind
    assert move(explorer, "mirrored", True)[0] != before[0]


def test_scar_painter_paints_what_is_asked_for_and_says_so(cohort):
    painter = widgets.scar_painter(next(study for study in cohort.studies if not study["findings"].present))
    before = painter.picture.value
    picture, words = move(painter, "walls", ("anterior",))
    assert picture != before and "anterior" in words.lower()
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
