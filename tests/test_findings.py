"""Findings: the AHA table, the canonical form, bad input, JSON and random draws."""

import json
from collections import Counter

import numpy as np
import pytest

from lgekit.errors import InputError
from lgekit.findings import (
    DEPTHS,
    LEVELS,
    TERRITORIES,
    WALLS,
    Findings,
    Scar,
    draw_findings,
    draw_scar,
    segment_of,
)


@pytest.mark.parametrize(
    ("walls", "levels", "segments"),
    [
        ("anterior", "basal", {1}),
        (("inferoseptal", "inferior"), ("basal", "mid"), {3, 4, 9, 10}),
        ("septal", "apical", {14}),
        ("lateral", ("basal", "mid", "apical"), {5, 6, 11, 12, 16}),
        ("posterior", "basal", {5}),
        ("anteroseptal", ("mid", "apical", "apex"), {8, 14, 17}),
        ((), "apex", {17}),
        ("inferior", (), {4, 10, 15}),
        ((), "apical", {13, 14, 15, 16}),
        (WALLS, ("basal", "mid", "apical"), set(range(1, 17))),
        ((), (), set()),
    ],
)
def test_segments_follow_the_aha_model(walls, levels, segments):
    assert Scar(walls, levels).segments == segments


def test_territories_divide_the_17_segments():
    assert sorted(s for segments in TERRITORIES.values() for s in segments) == list(range(1, 18))
    assert segment_of("inferior", "apical") in TERRITORIES["RCA"]


def test_equal_regions_are_equal_objects():
    one = Scar(("inferior", "anterior", "inferior"), ("apical", "basal"), "transmural")
    assert one == Scar(["anterior", "inferior"], ["basal", "apical"], "transmural")
    assert one.walls == ("anterior", "inferior") and one.levels == ("basal", "apical")
    other = Scar("inferolateral", "mid", "subepicardial")
    assert Findings((one, other, one)) == Findings((other, one))
    assert hash(Findings((one, other))) == hash(Findings((other, one)))
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
    assert Scar.from_segments({4, 11}).segments == {4, 5, 10, 11}
    assert Findings.from_segments(()) == Findings() and not Findings().present


@pytest.mark.parametrize(
    "bad",
    [
        {"walls": ("interior",)},
        {"walls": 5},
        {"walls": [["anterior"]]},
        {"levels": ("middle",)},
        {"levels": "septal"},
        {"depth": "deep"},
        {"aetiology": "virus"},
        {"pattern": "striped"},
        {"transmurality": 0},
        {"transmurality": 33.3},
        {"transmurality": "50"},
        {"transmurality": float("nan")},
        {"transmurality": True},
        {"circumference": 101},
        {"no_reflow": "no"},
    ],
)
def test_the_error_names_the_bad_field(bad):
    with pytest.raises(InputError, match=f"Scar.{next(iter(bad))}.*use"):
        Scar(**bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Scar.from_segments(()),
        lambda: Findings.from_segments({18}),
        lambda: Findings(("inferior",)),
        lambda: draw_scar(np.random.default_rng(0), "rare"),
        lambda: draw_scar(np.random.default_rng(0), aetiology="flu"),
    ],
)
def test_bad_calls_are_refused(call):
    with pytest.raises(InputError):
        call()


def test_findings_survive_json():
    scar = Scar("inferior", ("basal", "mid"), "transmural", 90, "RCA", True, None, 25)
    findings = Findings((scar, Scar((), "apex")))
    assert json.loads(findings.to_json())[0] == {"levels": ["apex"]}
    assert Findings.from_json(findings.to_json()) == findings
    assert Findings.from_json("[]") == Findings()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"wall": []}]', '[{"walls": null}]', None])
def test_bad_json_is_refused(text):
    with pytest.raises(InputError):
        Findings.from_json(text)


def test_clinical_draws_follow_the_published_patterns():
    rng = np.random.default_rng(0)
    for artery, territory in TERRITORIES.items():
        for scar in (draw_scar(rng, aetiology=artery) for _ in range(50)):
            assert scar.ischaemic and scar.depth in ("subendocardial", "transmural")
            assert len(scar.segments & territory) / len(scar.segments) >= 0.5
    for disease in ("myocarditis", "dilated", "hypertrophic"):
        for scar in (draw_scar(rng, aetiology=disease) for _ in range(50)):
            assert scar.depth in ("subepicardial", "mid-wall")
            assert not scar.ischaemic and not scar.no_reflow
    amyloid = draw_scar(rng, aetiology="amyloid")
    assert amyloid.walls == WALLS and amyloid.pattern == "diffuse"


@pytest.mark.parametrize("prevalence", ["clinical", "uniform"])
def test_draws_are_reproducible_consistent_and_varied(prevalence):
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    drawn = [draw_findings(rng, prevalence) for _ in range(600)]
    assert drawn[:50] == [draw_findings(again, prevalence) for _ in range(50)]
    counts = Counter(len(findings.scars) for findings in drawn)
    assert set(counts) == {1, 2, 3} and counts[1] > counts[2] > counts[3]
    scars = [scar for findings in drawn for scar in findings.scars]
    assert {scar.depth for scar in scars} == set(DEPTHS)
    assert {level for scar in scars for level in scar.levels} == set(LEVELS)
    walls = Counter(wall for scar in scars for wall in scar.walls)
    assert set(walls) == set(WALLS)
    assert prevalence == "clinical" or max(walls.values()) / min(walls.values()) < 1.4
    for scar in scars:
        assert scar.segments
        if scar.transmurality:
            assert (scar.transmurality > 75) == (scar.depth == "transmural")
        assert not scar.no_reflow or scar.depth in ("subendocardial", "transmural")
    for findings in drawn:  # scars of a study do not overlap
        assert sum(len(scar.segments) for scar in findings.scars) == len(findings.segments)


def test_the_share_of_positive_studies_is_respected():
    rng = np.random.default_rng(0)
    share = np.mean([draw_findings(rng, positive=0.3).present for _ in range(1000)])
    assert abs(share - 0.3) < 0.05
