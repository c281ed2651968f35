"""Reports: written findings are read back, hand-written sentences are read correctly, privacy."""

import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from lgekit.data.manifest import write_manifest
from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar, draw_findings
from lgekit.reports import writer
from lgekit.reports.reader import lge_statement, read_report, states_enhancement
from lgekit.reports.text import find_identifiers, require_privacy, without_identifiers
from lgekit.reports.writer import STYLES, canonical_text, prompt_sets, write_report

EXACT = STYLES[:6]  # read back exactly; see `test_hospital_styles_are_read_back`
HERE = Path(__file__).parent
TEXTS = tomllib.loads((HERE / "texts.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written():
    """(findings, style, whole, report) of 300 studies; every fifth is partly stated."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(300):
        findings = draw_findings(rng, ("clinical", "uniform")[number % 2], positive=0.75)
        if number % 5 == 0:
            findings = writer.corrupt_findings(findings, rng, 1.0)
        style, whole = EXACT[number % len(EXACT)], number % 3 > 0
        rows.append((findings, style, whole, write_report(findings, rng, style, whole)))
    return rows


def test_what_is_written_is_read_back(written):
    for findings, _, whole, report in written:
        assert read_report(report) == findings, report
        assert read_report(lge_statement(report)) == findings, report
        assert read_report(canonical_text(findings)) == findings, canonical_text(findings)
        if whole:
            assert states_enhancement(report) and len(lge_statement(report)) < len(report), report


@pytest.mark.parametrize("style", STYLES[6:])
def test_hospital_styles_are_read_back(style):
    rng = np.random.default_rng(1)
    found = [draw_findings(rng, positive=0.6) for _ in range(300)]
    read = [read_report(write_report(findings, rng, style)) for findings in found]
    pairs = list(zip(found, read, strict=True))
    assert np.mean([a.present == b.present for a, b in pairs]) >= 0.99
    assert np.mean([a.walls == b.walls for a, b in pairs]) >= 0.99


@pytest.mark.parametrize("style", EXACT)
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_field_survives_in_every_style(style, depth):
    scars = (
        Scar(("inferior", "inferolateral"), ("basal", "mid"), depth, 38, "RCA", True, None, 25),
        Scar("anterior", (), depth, aetiology="LAD"),
        Scar((), "apex", depth, no_reflow=True, aetiology="ischaemic"),
    )
    rng = np.random.default_rng(0)
    for findings in (*(Findings(scar) for scar in scars), Findings(scars)):
        for number in range(6):
            report = write_report(findings, rng, style, whole=number % 2 == 0)
            assert read_report(report) == findings, report


def test_written_reports_are_clean_text(written):
    traces = "[ ] { } | < >".split() + ["  ", " .", " ,", ",,", ";;", ",;", ";,", ".."]
    for _, _, _, report in written:
        assert not [trace for trace in traces if trace in report], report
        assert report.isascii() and (report[0].isupper() or report[0] in "+-"), report


def test_reports_vary_but_depend_only_on_their_seed():
    findings = Findings(Scar(("inferior", "inferolateral"), "basal", "subendocardial", 50, "RCA"))
    rng = np.random.default_rng(0)
    assert len({write_report(findings, rng) for _ in range(200)}) == 200
    negative = Counter(write_report(Findings(), rng, whole=False) for _ in range(300))
    assert len(negative) >= 90 and max(negative.values()) <= 25
    assert len({write_report(findings, np.random.default_rng(1)) for _ in range(2)}) == 1
    older = [write_report(findings, rng, "older", whole=False) for _ in range(30)]
    assert sum("poster" in text for text in older) > 20
    with pytest.raises(InputError, match="haiku"):
        write_report(findings, rng, "haiku")


@pytest.mark.parametrize(("text", "plain"), TEXTS["same"])
def test_reports_that_state_the_same_are_read_alike(text, plain):
    assert read_report(text) == read_report(plain)
    assert read_report(plain).present == (plain != "No LGE.")


def test_a_whole_report_with_its_sections():
    text = TEXTS["whole_report"]
    inferior = Scar("inferior", ("basal", "mid"), "transmural", 88, "RCA")
    septal = Scar("inferoseptal", "basal", "subendocardial", 25, "RCA")
    assert read_report(text) == Findings((inferior, septal))
    assert "Akinesis" not in lge_statement(text) and "hyperenhancement" in lge_statement(text)


VOCABULARY = """LGE scar no not without segments 4 17 99 5-3 0% 150% 50% - to and , ; : . ? ( ) \n
inferior septum apex base transmural subendocardial MVO except only apart from limited LAD infarct
history of global all walls Scar 2 Location: Impression: LGE: artefact likely ² ½ ٣ İ""".split(" ")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY) | st.text(max_size=20), max_size=40))
def test_no_text_makes_the_reader_fail(words):
    assert read_report(" ".join(words)).segments <= set(range(1, 18))


def test_strange_input_is_read_as_nothing():
    for text in ("", " \n\t ", "\x00\udcff", "%%%% 1.2.3 ???", None, 7):
        assert read_report(text) == Findings()


def test_a_report_that_does_not_mention_enhancement_is_not_negative():
    assert not [text for text in TEXTS["silent"] if states_enhancement(text)]
    assert not [text for text in TEXTS["stated"] if not states_enhancement(text)]


def test_canonical_text_has_one_wording():
    assert canonical_text(Findings()) == "No late gadolinium enhancement."
    scar = Scar("inferior", ("basal", "mid"), "transmural", 90, "RCA", True)
    text = "Transmural late gadolinium enhancement in the basal and mid inferior wall, "
    text += "90% transmurality, with microvascular obstruction, "
    text += "consistent with infarction in the RCA territory."
    assert canonical_text(Findings(scar)) == text


@pytest.mark.parametrize("mode", ["findings", "report"])
def test_prompts_state_their_label(mode):
    sets = prompt_sets(mode)
    for label, texts in sets.pop("presence").items():
        assert {read_report(text).present for text in texts} == {label == "positive"}
    labels_of = {kind: tuple(texts) for kind, texts in sets.items()}
    assert labels_of == {"wall": WALLS, "level": LEVELS, "depth": DEPTHS}
    for kind, labels in sets.items():
        for label, texts in labels.items():
            for scar in (read_report(text).scars[0] for text in texts):
                found = {"wall": scar.walls, "level": scar.levels, "depth": (scar.depth,)}
                assert found[kind] == (label,), texts


def test_noise_corrupts_the_stated_share():
    rng = np.random.default_rng(0)
    drawn = [draw_findings(rng) for _ in range(1000)]
    noisy = [writer.corrupt_findings(findings, rng, 0.2) for findings in drawn]
    changed = [new for old, new in zip(drawn, noisy, strict=True) if old != new]
    assert abs(len(changed) / len(drawn) - 0.2) < 0.04
    assert 0.06 < np.mean([not new.present for new in changed]) < 0.2  # one in eight
    assert all(writer.corrupt_findings(findings, rng, 0.0) == findings for findings in drawn[:100])
    invented = np.mean([writer.corrupt_findings(Findings(), rng, 1.0).present for _ in range(1000)])
    assert 0.09 < invented < 0.16
    with pytest.raises(InputError):
        writer.corrupt_findings(Findings(), rng, 1.5)


@pytest.mark.parametrize(("kind", "text"), TEXTS["identifiers"])
def test_identifiers_are_found_and_masked(kind, text):
    assert kind in [name for *_, name in find_identifiers(text)]
    masked = without_identifiers(text).split()
    assert not {"Smith", "Doe,", "2019.", "00123456", "5919", "0018"} & set(masked)


def test_no_identifiers_are_found_in_ordinary_reports(written):
    sentences = (HERE / "report_sentences.csv").read_text("utf-8").splitlines()
    for text in [report for *_, report in written] + sentences:
        assert not find_identifiers(text), text


def test_a_fit_on_words_that_identify_a_person_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"b, report: .*name.*\(and 1 more studies\)"):
        require_privacy({"a": "No LGE.", "b": "Seen by Dr Smith.", "c": "MRN 00123456"})
    cohort = phantom_cohort(1, seed=0, workers=1)
    cohort.studies[0]["report"] = "No LGE. Seen by Dr Smith."
    command = "fit", f"manifest:{write_manifest(cohort, tmp_path / 'a')}", tmp_path / "model"
    refused(*command, "--set", "text=report", mentions="may identify a person: name")
    refused(*command, "--set", "text=report", "--identifiable", mentions="reports mention late")
