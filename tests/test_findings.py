"""Findings: the AHA table, the canonical form, bad input, JSON and random draws."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar, draw_findings, draw_scar

# Coronary territories (Cerqueira 2002)
TERRITORIES = {"LAD": {1, 2, 7, 8, 13, 14, 17}, "RCA": {3, 4, 9, 10, 15}, "LCx": {5, 6, 11, 12, 16}}


@pytest.mark.parametrize(
    ("walls", "levels", "segments"),
    [
        ("anterior", "basal", {1}),
        (("inferoseptal", "inferior"), ("basal", "mid"), {3, 4, 9, 10}),
        ("lateral", ("basal", "mid", "apical"), {5, 6, 11, 12, 16}),
        ("posterior", "basal", {5}),
        ("anteroseptal", ("mid", "apical", "apex"), {8, 14, 17}),
        ((), "apex", {17}),
        ("inferior", (), {4, 10, 15}),
        (WALLS, ("basal", "mid", "apical"), set(range(1, 17))),
        ((), (), set()),
    ],
)
def test_segments_follow_the_aha_model(walls, levels, segments):
    assert Scar(walls, levels).segments == segments


def test_equal_regions_are_equal_objects():
    one = Scar(("inferior", "anterior", "inferior"), ("apical", "basal"), "transmural")
    assert one == Scar(["anterior", "inferior"], ["basal", "apical"], "transmural")
    assert one.walls == ("anterior", "inferior") and one.levels == ("basal", "apical")
    other = Scar("inferolateral", "mid", "subepicardial")
    assert Findings((one, other, one)) == Findings((other, one))
    assert Scar("anteroseptal", "apical") == Scar("inferoseptal", "apical")
    assert Scar("anteroseptal", ("mid", "apical")).walls == ("anteroseptal",)
    assert Scar("inferior", "apex").walls == ()
    assert Scar("inferior", transmurality=40).depth == "subendocardial"
    assert Scar("inferior", transmurality=90).depth == "transmural"


def test_findings_cover_exactly_the_given_segments():
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 12))
        wanted = set(rng.choice(np.arange(1, 18), size=count, replace=False).tolist())
        found = Findings.from_segments(wanted, depth="transmural")
        assert found.segments == wanted
        assert all(scar.depth == "transmural" for scar in found.scars)
    assert len(Findings.from_segments({4, 5, 10, 11}).scars) == 1
    assert len(Findings.from_segments({4, 11}).scars) == 2
    assert Findings.from_segments(()) == Findings() and not Findings().present


BAD_FIELDS = [("walls", ("interior",)), ("walls", 5), ("walls", [["anterior"]]), ("walls", None)]
BAD_FIELDS += [("levels", "septal"), ("depth", "deep"), ("aetiology", "virus")]
BAD_FIELDS += [("pattern", "striped"), ("no_reflow", "no"), ("circumference", 101)]
BAD_FIELDS += [("transmurality", value) for value in (0, 33.3, "50", float("nan"))]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_the_error_names_the_bad_field(field, value):
    with pytest.raises(InputError, match=f"Scar.{field}.*use"):
        Scar(**{field: value})


def test_bad_calls_are_refused():
    with pytest.raises(InputError, match="AHA segments"):
        Findings.from_segments({18})
    with pytest.raises(InputError, match="Scar objects"):
        Findings(("inferior",))
    with pytest.raises(InputError, match="prevalence"):
        draw_scar(np.random.default_rng(0), "rare")


def test_findings_survive_json():
    scar = Scar("inferior", ("basal", "mid"), "transmural", 90, "RCA", True, None, 25)
    findings = Findings((scar, Scar((), "apex")))
    assert json.loads(findings.to_json())[0] == {"levels": ["apex"]}
    assert Findings.from_json(findings.to_json()) == findings


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"wall": []}]', '[{"walls": null}]', None])
def test_bad_json_is_refused(text):
    with pytest.raises(InputError):
        Findings.from_json(text)


def test_clinical_draws_follow_the_published_patterns():
    rng, drawn = np.random.default_rng(0), defaultdict(list)
    for scar in (draw_scar(rng) for _ in range(2000)):
        drawn[scar.aetiology].append(scar)
    for artery, territory in TERRITORIES.items():
        for scar in drawn[artery]:
            assert scar.ischaemic and scar.depth in ("subendocardial", "transmural")
            assert len(scar.segments & territory) / len(scar.segments) >= 0.5
    for disease in ("myocarditis", "dilated", "hypertrophic"):
        for scar in drawn[disease]:
            assert scar.depth in ("subepicardial", "mid-wall")
            assert not scar.ischaemic and not scar.no_reflow
    assert {(scar.walls, scar.pattern) for scar in drawn["amyloid"]} == {(WALLS, "diffuse")}


@pytest.mark.parametrize("prevalence", ["clinical", "uniform"])
def test_draws_are_reproducible_consistent_and_varied(prevalence):
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    drawn = [draw_findings(rng, prevalence, positive=0.7) for _ in range(800)]
    assert drawn[:50] == [draw_findings(again, prevalence, positive=0.7) for _ in range(50)]
    counts = Counter(len(findings.scars) for findings in drawn)
    assert abs(counts[0] / 800 - 0.3) < 0.05 and counts[1] > counts[2] > counts[3] > 0
    scars = [scar for findings in drawn for scar in findings.scars]
    assert {scar.depth for scar in scars} == set(DEPTHS)
    assert {level for scar in scars for level in scar.levels} == set(LEVELS)
    walls = Counter(wall for scar in scars for wall in scar.walls)
    assert set(walls) == set(WALLS)
    assert prevalence == "clinical" or max(walls.values()) / min(walls.values()) < 1.4
    for scar in scars:
        if scar.transmurality:
            assert (scar.transmurality > 75) == (scar.depth == "transmural")
        assert not scar.no_reflow or scar.depth in ("subendocardial", "transmural")
    for findings in drawn:  # scars of a study do not overlap
        assert sum(len(scar.segments) for scar in findings.scars) == len(findings.segments)
