"""Findings: the AHA table, canonical form, bad input, JSON, and what the draws look like."""

import json
from collections import Counter
from itertools import combinations

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
    scar_from_segments,
    segment_of,
)


@pytest.mark.parametrize(
    ("walls", "levels", "segments"),
    [
        (("anterior",), ("basal",), {1}),
        (("anteroseptal",), ("mid",), {8}),
        (("inferoseptal", "inferior"), ("basal", "mid"), {3, 4, 9, 10}),
        (("inferolateral",), ("basal",), {5}),
        (("anterolateral",), ("mid",), {12}),
        (("septal",), ("apical",), {14}),
        (("lateral",), ("basal", "mid", "apical"), {5, 6, 11, 12, 16}),
        (("posterior",), ("basal",), {5}),
        (("anteroseptal",), ("mid", "apical", "apex"), {8, 14, 17}),
        ((), ("apex",), {17}),
        (("inferior",), (), {4, 10, 15}),
        ((), ("apical",), {13, 14, 15, 16}),
        (WALLS, ("basal", "mid", "apical"), set(range(1, 17))),
        ((), (), set()),
    ],
)
def test_segments_follow_the_aha_model(walls, levels, segments):
    assert Scar(walls, levels).segments == segments


def test_territories_part_the_17_segments():
    assert sorted(s for segments in TERRITORIES.values() for s in segments) == list(range(1, 18))
    assert segment_of("inferior", "apical") in TERRITORIES["RCA"]


def test_order_and_repeats_do_not_matter():
    one = Scar(("inferior", "anterior", "inferior"), ("apical", "basal"), "transmural")
    assert one == Scar(["anterior", "inferior"], ["basal", "apical"], "transmural")
    assert one.walls == ("anterior", "inferior") and one.levels == ("basal", "apical")
    other = Scar("inferolateral", "mid", "subepicardial")
    assert Findings((one, other, one)) == Findings((other, one))
    assert hash(Findings((one, other))) == hash(Findings((other, one)))


def test_apical_walls_are_as_coarse_as_their_segments():
    assert Scar(("anteroseptal",), ("apical",)) == Scar(("inferoseptal",), ("apical",))
    assert Scar(("anteroseptal",), ("mid", "apical")).walls == ("anteroseptal",)
    assert Scar(("inferior",), ("apex",)).walls == ()


def test_transmurality_without_depth_gives_the_depth():
    assert Scar(("inferior",), ("mid",), transmurality=40).depth == "subendocardial"
    assert Scar(("inferior",), ("mid",), transmurality=90).depth == "transmural"


def test_segment_sets_are_covered_exactly():
    rng = np.random.default_rng(0)
    for _ in range(300):
        wanted = set(
            rng.choice(np.arange(1, 18), size=int(rng.integers(1, 12)), replace=False).tolist()
        )
        found = Findings.from_segments(wanted, depth="transmural")
        assert found.segments == wanted
        assert all(scar.depth == "transmural" for scar in found.scars)
    assert len(Findings.from_segments({4, 5, 10, 11}).scars) == 1
    assert len(Findings.from_segments({4, 11}).scars) == 2
    assert scar_from_segments({4, 11}).segments == {4, 5, 10, 11}
    assert Findings.from_segments(()) == Findings()


def test_a_product_of_walls_and_levels_comes_back_from_its_segments():
    rings = [
        ("basal",),
        ("mid",),
        ("apical",),
        ("basal", "mid"),
        ("mid", "apical", "apex"),
        ("apical", "apex"),
    ]
    for count in range(1, 7):
        for walls in combinations(WALLS, count):
            for levels in rings:
                scar = Scar(walls, levels, "mid-wall")
                assert Scar.from_segments(scar.segments, depth="mid-wall") == scar


@pytest.mark.parametrize(
    "bad",
    [
        {"walls": ("interior",)},
        {"walls": 5},
        {"walls": [["anterior"]]},
        {"levels": ("middle",)},
        {"depth": "deep"},
        {"aetiology": "virus"},
        {"pattern": "striped"},
        {"transmurality": 0},
        {"transmurality": 101},
        {"transmurality": 33.3},
        {"transmurality": "50"},
        {"transmurality": float("nan")},
        {"transmurality": True},
        {"circumference": -5},
        {"no_reflow": "no"},
    ],
)
def test_bad_values_are_refused_by_name(bad):
    with pytest.raises(InputError, match=f"Scar.{next(iter(bad))}.*{'use|give'}"):
        Scar(**bad)


def test_bad_calls_are_refused():
    rng = np.random.default_rng(0)
    for call in (
        lambda: Scar.from_segments(()),
        lambda: Scar.from_segments({0}),
        lambda: Findings.from_segments({18}),
        lambda: Findings(("inferior",)),
        lambda: draw_scar(rng, "rare"),
        lambda: draw_scar(rng, aetiology="flu"),
    ):
        with pytest.raises(InputError):
            call()


def test_json_round_trip_and_its_errors():
    findings = Findings(
        (
            Scar(("inferior",), ("basal", "mid"), "transmural", 90, "RCA", True, None, 25),
            Scar((), ("apex",)),
        )
    )
    assert json.loads(findings.to_json()) == [
        {"levels": ["apex"]},
        {
            **{
                "walls": ["inferior"],
                "levels": ["basal", "mid"],
                "depth": "transmural",
                "transmurality": 90,
            },
            **{"aetiology": "RCA", "no_reflow": True, "circumference": 25},
        },
    ]
    assert Findings.from_json(findings.to_json()) == findings
    assert Findings.from_json("[]") == Findings()
    for text in (
        "",
        "nan",
        "{}",
        "[1]",
        '[{"wall": ["inferior"]}]',
        '[{"walls": null}]',
        '[{"transmurality": NaN}]',
        None,
    ):
        with pytest.raises(InputError):
            Findings.from_json(text)


def test_presence_walls_and_segments_of_findings():
    assert (
        not Findings().present
        and Findings().walls == frozenset()
        and Findings().segments == frozenset()
    )
    both = Findings((Scar("septal", "apical"), Scar("inferior", "basal")))
    assert (
        both.present
        and both.walls == {"anteroseptal", "inferoseptal", "inferior"}
        and both.segments == {14, 4}
    )


def test_the_same_seed_draws_the_same():
    for prevalence in ("clinical", "uniform"):
        one, two = (np.random.default_rng(3) for _ in range(2))
        assert [draw_findings(one, prevalence, 0.6) for _ in range(50)] == [
            draw_findings(two, prevalence, 0.6) for _ in range(50)
        ]


def test_clinical_draws_follow_the_published_patterns():
    rng = np.random.default_rng(0)
    for artery, territory in TERRITORIES.items():
        for _ in range(100):
            scar = draw_scar(rng, aetiology=artery)
            assert scar.ischaemic and scar.depth in (
                "subendocardial",
                "transmural",
            )  # infarcts start at the endocardium
            assert len(scar.segments & territory) / len(scar.segments) >= 0.5
    layers = {
        "myocarditis": {"subepicardial", "mid-wall"},
        "dilated": {"mid-wall"},
        "hypertrophic": {"mid-wall"},
    }
    for disease, depths in layers.items():
        for _ in range(50):
            scar = draw_scar(rng, aetiology=disease)
            assert scar.depth in depths and not scar.ischaemic and not scar.no_reflow
    for _ in range(20):
        scar = draw_scar(rng, aetiology="amyloid")
        assert scar.walls == WALLS and scar.pattern == "diffuse"


def test_draws_are_consistent_and_varied():
    rng = np.random.default_rng(1)
    for prevalence in ("clinical", "uniform"):
        drawn = [draw_findings(rng, prevalence) for _ in range(1500)]
        counts = Counter(len(findings.scars) for findings in drawn)
        assert set(counts) == {1, 2, 3} and counts[1] > counts[2] > counts[3]
        scars = [scar for findings in drawn for scar in findings.scars]
        assert {scar.depth for scar in scars} == set(DEPTHS)
        assert {level for scar in scars for level in scar.levels} == set(LEVELS)
        assert {wall for scar in scars for wall in scar.walls} == set(WALLS)
        for scar in scars:
            assert scar.segments
            if scar.transmurality:
                assert (scar.transmurality > 75) == (scar.depth == "transmural")
            if scar.no_reflow:
                assert scar.depth in ("subendocardial", "transmural")
        for findings in drawn:
            assert sum(len(scar.segments) for scar in findings.scars) == len(
                findings.segments
            )  # no overlap
    share = np.mean([draw_findings(rng, positive=0.3).present for _ in range(2000)])
    assert abs(share - 0.3) < 0.04


def test_uniform_walls_are_uniform():
    rng = np.random.default_rng(2)
    counts = Counter(wall for _ in range(3000) for wall in draw_scar(rng, "uniform").walls)
    assert max(counts.values()) / min(counts.values()) < 1.15
