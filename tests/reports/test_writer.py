"""Reports in the styles of hospitals: complete, true, varied, laid out as announced, anonymous."""

import re

import numpy as np
import pytest

from lgekit.findings import Findings, Scar, draw_findings
from lgekit.reports.text import find_identifiers
from lgekit.reports.writer import PHRASES, write_report

HOSPITAL = ("narrative_sections", "bullets", "fields", "dictated", "encoded")
SCAR = Scar(("inferior", "inferoseptal"), ("basal", "mid"), "subendocardial", 45, "RCA", True)
FACTS = {  # each fact of this scar in any of its words
    "inferior": r"(?i)\binf(erior)?\b",
    "inferoseptal": r"(?i)infero-?septal|\bIS\b",
    "basal": r"(?i)\bbasal|\bbase\b",
    "mid": r"(?i)\bmid\b",
    "depth": "(?i)" + "|".join(PHRASES["choices"]["layer"]["subendocardial"]),
    "transmurality": r"\b45( ?%| percent)",
    "no_reflow": r"(?i)\bMVO|microvascular obstruction|no-reflow",
    "aetiology": r"(?i)\bRCA\b|right coronary",
}


def plain(report: str) -> str:
    """Return the report in one line, its encoded line ends and wrapped words joined."""
    for end in sorted(PHRASES["styles"]["encoded"]["line_ends"], key=len, reverse=True):
        report = report.replace(end, "\n")
    return re.sub(r"\s+", " ", re.sub(r"(?<=\w-)\n +|(?<=\w-)\n", "", report))


@pytest.mark.parametrize("style", HOSPITAL)
def test_every_fact_of_a_scar_is_stated(style):
    rng = np.random.default_rng(0)
    for number in range(60):
        report = plain(write_report(Findings(SCAR), rng, style, whole=number % 2 == 0))
        missing = [fact for fact, words in FACTS.items() if not re.search(words, report)]
        assert not missing, f"{missing} in {report}"


@pytest.mark.parametrize("style", HOSPITAL)
def test_a_negative_statement_denies(style):
    denial = r"(?i)\b(no|not|none|nil|n|neither|negative|absent|absence|unremarkable|normal(ly)?|"
    denial += r"nulls|dark|black|clean|clear|0|neg)\b|nulling|-ve|\(-\)|\(X\) no"
    rng = np.random.default_rng(0)
    for _ in range(100):
        report = plain(write_report(Findings(), rng, style, whole=False))
        assert re.search(denial, report), report


@pytest.mark.parametrize("style", HOSPITAL)
def test_reports_are_clean_varied_and_anonymous(style):
    rng = np.random.default_rng(0)
    drawn = [draw_findings(rng, positive=0.5) for _ in range(300)]
    reports = [write_report(findings, rng, style) for findings in drawn]
    assert len(set(reports)) >= 0.98 * len(reports)
    for report in reports:
        assert report.isascii() and not find_identifiers(report), report
        assert not re.search(r"[][{}|]| [.,;]|,,|\.\.|;;|: ?[,.;]", plain(report)), report
    again = np.random.default_rng(0)
    assert [draw_findings(again, positive=0.5) for _ in range(300)] == drawn
    assert write_report(drawn[0], again, style) == reports[0]


def test_lines_are_wrapped_or_encoded():
    rng = np.random.default_rng(0)
    for _ in range(100):
        findings = draw_findings(rng, positive=0.5)
        lines = write_report(findings, rng, "narrative_sections").split("\n")
        assert len(lines) > 3 and max(map(len, lines)) <= 100
        assert "\n" not in write_report(findings, rng, "encoded")
        assert "\n" not in write_report(findings, rng, "dictated")
        assert write_report(findings, rng, "bullets").count("\n") >= 2


def test_walls_near_an_infarct_move_less_and_others_may():
    rng, scar = np.random.default_rng(0), Scar("anterior", "basal", "transmural", aetiology="LAD")
    moves = r"(?i)(kinesia|kinesis|thickening|contraction) (of|in) the basal anterior"
    reports = [plain(write_report(Findings(scar), rng, "dictated")) for _ in range(200)]
    assert np.mean([bool(re.search(moves, report)) for report in reports]) > 0.2
    remote = r"(?i)hypokinesia of the (inferior|inferolateral|anterolateral)"
    assert np.mean([bool(re.search(remote, report)) for report in reports]) > 0.05
