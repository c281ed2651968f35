"""The text tower that is taught language from written reports, and its use in a fit."""

from dataclasses import replace

import pytest
import torch
from toys import toy

from lgekit.clip import train as module
from lgekit.clip.data import ImageTextPairs
from lgekit.clip.train import fit
from lgekit.config import FitSettings
from lgekit.findings import Findings
from lgekit.reports.writer import one_line, split_sentences
from lgekit.study import Cohort, Study

pytestmark = pytest.mark.usefixtures("own_cache")
TINY = {"text": "report", "text_steps": 8, "text_width": 16, "text_layers": 1}
TINY |= {"epochs": 2, "width": 16, "embed_dim": 8, "depths": 8, "angles": 24, "batch_size": 4}
REPORT = "Indication: scar?\nLVEF 40%. Subendocardial late enhancement in the\nanterior wall.\n"


@pytest.fixture(scope="module")
def settings():
    return FitSettings(**TINY, polar_channels=8)


@pytest.fixture(scope="module")
def language(settings):
    return module.teach(settings)


def test_written_reports_say_what_is_noted_of_them():
    texts, truth = module.written_reports(150, seed=3)
    assert texts == module.written_reports(150, seed=3)[0] and truth.shape == (150, 15)
    silent = truth.sum(1) == 0
    assert 0.1 < silent.float().mean() < 0.35 and not (truth[:, 0] * truth[:, 1:].sum(1)).any()
    assert not any("\n" in text for text in texts)
    assert module.true_statements(Findings()) == [True] + [False] * 14
    assert len(module.statements()) == 15 and "anterior wall" in module.statements()[1]


@pytest.mark.parametrize("end", ["\n", "\\.br\\", "\\X0D\\\\X0A\\", "<br/>"])
def test_a_report_is_divided_at_full_stops_and_line_ends(end):
    lines = ["LVEF: 40%", "Late enhancement: yes. No oedema", "- MVO: none"]
    divided = ["LVEF: 40%", "Late enhancement: yes.", "No oedema", "- MVO: none"]
    assert split_sentences(end.join(lines)) == divided
    assert split_sentences(REPORT)[-1] == "Subendocardial late enhancement in the anterior wall."


def test_teaching_depends_on_the_seed_alone(settings, language):
    again = module.teach(settings)
    assert torch.equal(again.embed([REPORT]), language.embed([REPORT]))
    assert language.said([REPORT, ""]).shape == (2, 15)


@pytest.mark.slow
def test_a_taught_tower_reads_reports(settings):
    taught = module.teach(settings.override(text_steps=600, embed_dim=32, text_width=32))
    texts, truth = module.written_reports(200, seed=9)
    right = (taught.said(texts) > 0.5) == truth.bool()
    assert right[:, 0].float().mean() > 0.9 and right.float().mean() > 0.85


def test_texts_are_a_sentence_of_the_report_and_the_whole(language):
    caption, whole = language.texts_of(REPORT)
    assert caption in split_sentences(REPORT) and whole == one_line(REPORT)
    assert language.texts_of("No LGE.") == ("No LGE.",)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_fit_keeps_the_tower_and_embeds_texts_once(settings, language, weight):
    texts = [(f"Scar {number}.", f"LVEF 50%. Scar {number}.") for number in range(8)]
    given = ImageTextPairs(toy(8, height=8).batch, texts)
    own = settings.override(caption_weight=weight)
    result = fit(given, own, language=language, progress=False)
    before = language.model.text.state_dict()
    for name, value in result.model.text.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_synthetic_scars_go_into_studies_whose_reports_deny_scar_by_the_tower(language):
    from lgekit.clip.fit import without_scar

    image = torch.zeros(4, 4, 2).numpy()
    studies = [Study.from_arrays(f"s{n}", image, (1, 1, 8), report=REPORT) for n in range(3)]
    says_nothing, says_all = (replace(language, offset=offset) for offset in (-1e4, 1e4))
    free = without_scar(Cohort(studies).studies, says_nothing)
    assert [study["study_id"] for study in free] == ["s0", "s1", "s2"]
    assert {study["report"] for study in free} == {"No late gadolinium enhancement."}
    assert without_scar(Cohort(studies).studies, says_all) == []
