"""Reports: what is written is read back exactly; hand-written sentences are read right; nothing private passes."""

import csv
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar, draw_findings
from lgekit.reports.reader import lge_statement, read_report, states_enhancement
from lgekit.reports.writer import (
    STYLES,
    canonical_text,
    check_privacy,
    corrupt_findings,
    prompts,
    write_report,
)

SENTENCES = Path(__file__).parent / "report_sentences.csv"


def round_trips(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(count):
        findings = draw_findings(rng, ("clinical", "uniform")[number % 2], positive=0.75)
        if number % 5 == 0:
            findings = corrupt_findings(findings, rng, 1.0)  # partly stated ones
        report = write_report(findings, rng, STYLES[number % len(STYLES)], whole=number % 3 > 0)
        assert read_report(report) == findings, report
        assert read_report(lge_statement(report)) == findings, report
        assert read_report(canonical_text(findings)) == findings, canonical_text(findings)


def test_what_is_written_is_read_back():
    round_trips(600, seed=0)


@pytest.mark.slow
def test_ten_thousand_reports_are_read_back():
    round_trips(10_000, seed=1)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_field_survives_in_every_style(style, depth):
    scars = (
        Scar(("inferior", "inferolateral"), ("basal", "mid"), depth, 38, "RCA", True, None, 25),
        Scar(("anterior",), (), depth, aetiology="LAD"),
        Scar((), ("apex",), depth, no_reflow=True, aetiology="ischaemic"),
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        for findings in (*(Findings((scar,)) for scar in scars), Findings(scars)):
            for whole in (True, False):
                report = write_report(findings, rng, style, whole)
                assert read_report(report) == findings, report


def score(rows):
    """F1 of presence and of walls over (sentence, present, walls)."""
    counts: Counter = Counter()
    for sentence, present, walls in rows:
        found = read_report(sentence)
        counts["hit"] += present and found.present
        counts["miss"] += present != found.present
        counts["wall hit"] += len(walls & found.walls)
        counts["wall miss"] += len(walls ^ found.walls)
    presence = 2 * counts["hit"] / (2 * counts["hit"] + counts["miss"])
    return presence, 2 * counts["wall hit"] / (2 * counts["wall hit"] + counts["wall miss"])


def test_hand_written_sentences_are_read():
    """460 sentences written apart from the grammar, the first 221 before the reader.

    The parts held out were each written after the reader stood and read once before it was mended with them. F1 of
    presence / walls at that first reading: held_out_1 0.927 / 0.919, held_out_2 (meant to be hard) 0.889 / 0.790,
    held_out_3 0.951 / 0.956. These, not the figures asserted here, are what to expect on sentences from elsewhere.
    """
    with open(SENTENCES, encoding="utf-8", newline="") as file:
        rows = [
            (row["sentence"], row["present"] == "1", set(row["walls"].split()))
            for row in csv.DictReader(file)
        ]
    assert len(rows) >= 300 and 0.4 < np.mean([present for _, present, _ in rows]) < 0.6
    assert all(walls <= set(WALLS) and (present or not walls) for _, present, walls in rows)
    presence, walls = score(rows)
    assert presence >= 0.97 and walls >= 0.93, (presence, walls)


@pytest.mark.parametrize(
    ("text", "scars"),
    [
        ("Transmural LGE of the inferior wall.", [Scar("inferior", (), "transmural")]),
        (
            "Subendocardial LGE, basal to mid inferior and inferolateral walls, 25-50% transmural, with MVO (RCA).",
            [
                Scar(
                    ("inferior", "inferolateral"),
                    ("basal", "mid"),
                    "subendocardial",
                    38,
                    "RCA",
                    True,
                )
            ],
        ),
        (
            "LGE basal inferior and mid inferolateral.",
            [Scar("inferior", "basal"), Scar("inferolateral", "mid")],
        ),
        (
            "Subendocardial scar in the basal inferior wall and mid-wall fibrosis in the septum.",
            [Scar("inferior", "basal", "subendocardial"), Scar("septal", (), "mid-wall")],
        ),
        (
            "Segments 7-8 and 13, 14: LGE >75%.",
            [Scar(("anterior", "anteroseptal"), ("mid", "apical"), "transmural", 88)],
        ),
        ("FINDINGS: LVEF 35%. No scar.\nIMPRESSION: Dilated cardiomyopathy.", []),
        (
            "Indication: previous inferior infarct, scar?\nLGE: mid-wall septal.",
            [Scar("septal", (), "mid-wall")],
        ),
        (
            "Findings: LGE in the septum.\nImpression: HCM.",
            [Scar("septal", (), aetiology="hypertrophic")],
        ),
        (
            "LGE: subepicardial lateral. Impression: myocarditis, EF 60%.",
            [Scar("lateral", (), "subepicardial", None, "myocarditis")],
        ),
        (
            "Hypokinesia of the lateral wall. No LV thrombus. T2: oedema in the septum. LGE: nil.",
            [],
        ),
    ],
)
def test_known_texts(text, scars):
    assert read_report(text) == Findings(tuple(scars))


WHOLE = """CARDIAC MRI
CLINICAL HISTORY: inferior STEMI in 2017, s/p PCI to RCA. Evaluate for septal scar.

TECHNIQUE: Cine and delayed enhancement images were obtained after 0.15 mmol/kg gadobutrol.

FINDINGS:
Left ventricle: Mildly dilated, LVEF 41%. Akinesis of the apical lateral wall.
Delayed enhancement: There is near-transmural (>75%) hyperenhancement of the basal and mid inferior wall and
subendocardial (<50%) hyperenhancement of the basal inferoseptum. No microvascular obstruction. No LV thrombus.
Valves: The posterior leaflet is restricted.

IMPRESSION:
1. Ischemic cardiomyopathy with LVEF 41%.
2. Prior RCA territory infarct."""


def test_a_whole_report_with_its_sections():
    assert read_report(WHOLE) == Findings(
        (
            Scar("inferior", ("basal", "mid"), "transmural", 88, "RCA"),
            Scar("inferoseptal", "basal", "subendocardial", 25, "RCA"),
        )
    )
    assert "LVEF 41%. Akinesis" not in lge_statement(WHOLE) and "hyperenhancement" in lge_statement(
        WHOLE
    )


@pytest.mark.parametrize(
    "text",
    [
        "HISTORY:\n\nscar in the septum\nscar in the lateral wall\n\nTransmural LGE in the inferior wall.",
        "History: scar in the septum\nTransmural LGE in the inferior wall.",
        "Indication\nscar in the septum\nConclusion\nTransmural LGE in the inferior wall.",
        "Late enhancement\ninferior wall, transmural\nConclusion\nLVEF 50%",
    ],
)
def test_sections_begin_and_end(text):
    assert read_report(text) == Findings((Scar("inferior", (), "transmural"),))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300))
def test_no_text_makes_the_reader_fail(text):
    assert isinstance(read_report(text), Findings) and isinstance(lge_statement(text), str)


VOCABULARY = """LGE scar no not without segments 4 17 99 5-3 0% 150% 50% - to and , ; : . ? ( ) \n inferior septum
apex base transmural subendocardial MVO except only apart from limited to LAD infarct history of global all walls Scar 2
Location: Impression: LGE: artefact likely ² ½ ٣ İ""".split(" ")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY), max_size=40))
def test_no_jumble_of_its_own_words_makes_the_reader_fail(words):
    findings = read_report(" ".join(words))
    assert findings.segments <= set(range(1, 18))


def test_strange_input_is_read_as_nothing_and_long_input_in_time():
    for text in ("", " \n\t ", "\x00\udcff", "%%%% 1.2.3 ???", None, 7):
        assert read_report(text) == Findings()
    start = time.process_time()
    read_report("likely scar in the inferior wall artefact " * 5000)
    read_report("a" * 200_000)
    assert time.process_time() - start < 10


def test_every_negative_report_of_the_writer_says_so():
    for seed in range(1500):
        report = write_report(Findings(), np.random.default_rng(seed))
        assert states_enhancement(report), report


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("LVEF 60%. Normal valves.", False),
        ("History of inferior MI 2014. Assess for scar. LVEF 55%, normal wall motion.", False),
        ("Gadolinium was not given because of renal failure.", False),
        ("No contrast was administered. LVEF 50%.", False),
        ("LGE images non-diagnostic due to motion.", False),
        ("Late gadolinium images pending.", False),
        ("Rehaussement tardif sous-endocardique inférieur.", False),
        ("Kein LGE.", False),
        ("Kein Hinweis auf Late Gadolinium Enhancement. LVEF 60%.", False),
        ("Keinerlei Narbe. Late Enhancement: nicht nachweisbar.", False),
        ("LGE negativ.", False),
        ("Late Enhancement unauffällig.", False),
        ("Geen late enhancement.", False),
        ("Pas de LGE.", False),
        ("Sin realce tardío (LGE).", False),
        ("Nessun LGE.", False),
        ("Non evidenza di LGE.", False),
        ("Não há LGE.", False),
        ("Ausschluss eines LGE.", False),
        ("Nie stwierdzono LGE.", False),
        ("Inga tecken till LGE.", False),
        ("Late enhancement (SEM threshold) of the lateral wall.", True),
        ("Late enhancement of the inferior wall sans microvascular obstruction.", True),
        ("", False),
        ("LGE: none", True),
        ("Normal myocardial nulling.", True),
        ("Inversion recovery images are unremarkable.", True),
        ("Possible subendocardial LGE in the inferior wall.", True),  # which counts as none
        ("Subendocardial scar of the inferior wall.", True),
    ],
)
def test_silence_is_told_from_a_report_of_none(text, states):
    assert states_enhancement(text) is states


def test_the_statement_leaves_out_the_rest():
    text = "LVEF 45%. Akinesia of the inferior wall.\nLGE: transmural scar of the inferior wall. No MVO.\nValves: mild MR."
    assert lge_statement(text) == "LGE: transmural scar of the inferior wall.\nNo MVO."
    assert lge_statement("LVEF 60%. Normal valves.") == ""
    rng = np.random.default_rng(0)
    for _ in range(200):
        report = write_report(draw_findings(rng, positive=0.5), rng)
        statement = lge_statement(report)
        assert 0 < len(statement) < len(report) and "ml" not in statement.split()


def test_reports_of_the_same_findings_differ():
    rng = np.random.default_rng(0)
    scar = Scar(("inferior", "inferolateral"), ("basal", "mid"), "subendocardial", 50, "RCA")
    findings = Findings((scar,))
    assert len({write_report(findings, rng) for _ in range(1000)}) == 1000
    alone = Counter(write_report(findings, rng, whole=False) for _ in range(1000))
    assert len(alone) >= 950 and max(alone.values()) <= 5
    negative = Counter(write_report(Findings(), rng, whole=False) for _ in range(1000))
    assert len(negative) >= 150 and max(negative.values()) <= 60


def test_reports_depend_on_their_seed_alone():
    findings = draw_findings(np.random.default_rng(5))
    for style in STYLES:
        assert write_report(findings, np.random.default_rng(1), style) == write_report(
            findings, np.random.default_rng(1), style
        )
    with pytest.raises(InputError, match="haiku"):
        write_report(findings, np.random.default_rng(1), "haiku")


def test_reports_are_clean_text():
    rng = np.random.default_rng(2)
    for number in range(600):
        report = write_report(draw_findings(rng, positive=0.7), rng, whole=number % 2 == 0)
        for trace in (
            "[",
            "]",
            "{",
            "}",
            "|",
            "<",
            ">",
            "  ",
            " .",
            " ,",
            ",,",
            ";;",
            ",;",
            ";,",
            "..",
        ):
            assert trace not in report, (trace, report)
        assert report.isascii() and report[0].isupper() or report[0] in "+-", report


def test_the_older_style_says_posterior():
    findings = Findings((Scar("inferolateral", "basal", "transmural"),))
    rng = np.random.default_rng(0)
    texts = [write_report(findings, rng, "older", whole=False) for _ in range(30)]
    assert sum("poster" in text for text in texts) > 20
    assert all(
        "segment" in write_report(findings, rng, "segments", whole=False).lower() for _ in range(10)
    )


def test_canonical_text():
    assert canonical_text(Findings()) == "No late gadolinium enhancement."
    scar = Scar(("inferior",), ("basal", "mid"), "transmural", 90, "RCA", True)
    assert canonical_text(Findings((scar,))) == (
        "Transmural late gadolinium enhancement in the basal and mid inferior wall, 90% transmurality, "
        "with microvascular obstruction, consistent with infarction in the RCA territory."
    )


def test_prompts_say_what_their_label_says():
    for text in prompts("presence")["positive"]:
        assert read_report(text).present, text
    for text in prompts("presence")["negative"]:
        assert not read_report(text).present, text
    for wall, texts in prompts("wall").items():
        assert [read_report(text).walls for text in texts] == [{wall}] * len(texts)
    for level, texts in prompts("level").items():
        assert all(read_report(text).scars[0].levels == (level,) for text in texts), texts
    for depth, texts in prompts("depth").items():
        assert all(read_report(text).scars[0].depth == depth for text in texts), texts
    assert (
        tuple(prompts("wall")) == WALLS
        and tuple(prompts("level")) == LEVELS
        and tuple(prompts("depth")) == DEPTHS
    )
    prompts("presence")["positive"].clear()
    assert prompts("presence")["positive"]  # a caller's change stays with the caller
    with pytest.raises(InputError, match="colour"):
        prompts("colour")


def test_noise_corrupts_the_stated_share():
    rng = np.random.default_rng(0)
    drawn = [draw_findings(rng) for _ in range(2000)]
    noisy = [corrupt_findings(findings, rng, 0.2) for findings in drawn]
    changed = [(old, new) for old, new in zip(drawn, noisy, strict=True) if old != new]
    assert abs(len(changed) / len(drawn) - 0.2) < 0.03
    missed = np.mean([not new.present for _, new in changed])
    assert 0.07 < missed < 0.19  # one in eight
    assert all(corrupt_findings(findings, rng, 0.0) == findings for findings in drawn[:100])
    negative = np.mean([corrupt_findings(Findings(), rng, 1.0).present for _ in range(2000)])
    assert 0.09 < negative < 0.16
    with pytest.raises(InputError):
        corrupt_findings(Findings(), rng, 1.5)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Referred by Dr Smith for viability.", "name"),
        ("Mrs. Anna Jones has chest pain.", "name"),
        ("Patient: Doe, John", "name"),
        ("DOE^JANE", "name"),
        ("Seen on 12/03/2019.", "date"),
        ("Compared with 2018-11-02.", "date"),
        ("Scan of 3rd March 2020.", "date"),
        ("On March 3, 2020 MI.", "date"),
        ("DOB: 1.1.50", "date"),
        ("MRN 00123456", "id"),
        ("Accession number: AB-99881", "id"),
        ("NHS no 943 476 5919", "id"),
        ("Call tel: 020 7946 0018", "phone"),
        ("Write to a.b@clinic.org", "email"),
        ("Lives at 12 Park Road.", "address"),
        ("Infarct on 4/10/15.", "date"),
    ],
)
def test_private_facts_are_suspected_and_masked(text, kind):
    found = check_privacy(text)
    assert kind in [name for name, _ in found]
    for _, excerpt in found:
        assert not any(
            word in excerpt
            for word in ("Smith", "Jones", "Doe", "2019", "00123456", "5919", "0018", "clinic")
        )


def test_ordinary_reports_hold_nothing_private():
    rng = np.random.default_rng(0)
    for _ in range(500):
        report = write_report(draw_findings(rng, positive=0.6), rng)
        assert check_privacy(report) == [], report
    with open(SENTENCES, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert check_privacy(row["sentence"]) == [], row["sentence"]


def test_writing_takes_under_a_millisecond():
    rng = np.random.default_rng(0)
    drawn = [draw_findings(rng, positive=0.6) for _ in range(300)]
    best = min(_seconds(drawn, rng) for _ in range(5))
    assert best / len(drawn) < 1e-3


def _seconds(drawn, rng) -> float:
    start = time.process_time()
    for findings in drawn:
        write_report(findings, rng)
    return time.process_time() - start
