"""The digital LGE cohort: known physics, truth that agrees with measuring, reproducibility, its own scar generator."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lgekit.anatomy.segments import findings_from_labels, insertion_points
from lgekit.data import phantom as acquisition
from lgekit.data import phantom_heart
from lgekit.data import phantom_heart as phantom_scar
from lgekit.data.phantom import (
    CHUNK,
    INTERLEAVE,
    PLANES,
    PROFILE,
    phantom_cohort,
    phantom_study,
    sample_heart,
)
from lgekit.errors import InputError
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, RV, SCAR

LIBRARY = Path(acquisition.__file__).parent
SMALL = {"slices": 6, "pixels": 64}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def studies():
    return [phantom_study(index, 7, prevalence=0.7) for index in range(16)]


def imported_modules(name: str) -> set[str]:
    """All of lgekit that a module imports, directly or not."""
    found, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module in found or not (LIBRARY / f"{module}.py").exists():
            continue
        found.add(module)
        for node in ast.walk(ast.parse((LIBRARY / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lgekit"):
                waiting += node.module.split(".")[1:] or [alias.name for alias in node.names]
            elif isinstance(node, ast.Import):
                waiting += [
                    a.name.split(".")[1] for a in node.names if a.name.startswith("lgekit.")
                ]
    return found


def test_scars_share_no_code_with_random_scar():
    rendering = imported_modules("phantom_render")
    assert "phantom_scar" in rendering
    own = {"phantom_render", "phantom_scar", "phantom_heart", "phantom_truth", "acquisition"}
    assert rendering == own
    for module in imported_modules("scars") - {"studies", "findings", "errors"}:
        assert module not in own


def test_inversion_recovery_is_null_at_ln2():
    assert acquisition.inversion_recovery(450.0, 450.0 * np.log(2)) == pytest.approx(0, abs=1e-12)
    assert acquisition.inversion_recovery(450.0, 0.0) == -1


def test_t1_after_contrast_matches_published_values():
    # JCMR 2013;15:11: blood about 450 ms, remote 540 ± 88, acute infarct 425 ± 68
    assert acquisition.t1_after_contrast(acquisition.ECV_REMOTE, 450) == pytest.approx(540, abs=88)
    assert acquisition.t1_after_contrast(acquisition.ECV_ACUTE, 450) == pytest.approx(425, abs=40)
    assert acquisition.t1_after_contrast(0.0, 450) == pytest.approx(
        acquisition.T1_NATIVE_MYOCARDIUM
    )


def test_acquisition_keeps_a_constant_and_adds_noise():
    rng = np.random.default_rng(0)
    scanner = acquisition.draw_scanner(rng, np.linspace(0, 1, 3), 0.6, 0.0)
    quiet = {"noise": 0.0, "ghost": 0.0, "texture": 0.0, "loss_spread": 0.0}
    quiet |= {
        "coil": np.zeros(3),
        "gain": np.ones(3),
        "offset": np.zeros(3),
        "inversion_loss": np.zeros(3),
    }
    for name, value in quiet.items():
        object.__setattr__(scanner, name, value)
    flat = np.full((3, 48, 40), 0.25, np.float32)
    x = np.zeros((48, 40), np.float32)
    image = acquisition.acquire(rng, flat, np.ones_like(flat), x, x, scanner)
    assert image == pytest.approx(flat, abs=1e-5)
    object.__setattr__(scanner, "noise", 0.05)
    noisy = acquisition.acquire(rng, flat, np.ones_like(flat), x, x, scanner) - flat
    assert (
        0.02 < noisy.std() < 0.05
    )  # white noise of that SD, less what lies outside the acquired k-space
    assert abs(noisy.mean()) < 0.005


def test_heart_is_a_closed_ellipsoid():
    heart = phantom_heart.draw_heart(np.random.default_rng(3))
    z = np.linspace(0, heart.length, 50)
    cavity, epicardium = heart.contours(z)
    assert (cavity <= epicardium).all()
    assert np.allclose(epicardium[-1], 0, atol=1e-3)
    assert (cavity[z > heart.length - 0.6 * heart.wall] == 0).all()  # the apex is closed
    assert np.mean(epicardium[0] - cavity[0]) == pytest.approx(heart.wall, rel=0.1)
    anterior, inferior = heart.insertion_points(0.5)
    rv = (
        heart.right_ventricle(np.array([0.5 * heart.length]), epicardium[25:26])[0] - epicardium[25]
    )
    inside = np.flatnonzero(rv > 0.5)
    assert inside.min() >= np.rad2deg(anterior) - 2 and inside.max() <= np.rad2deg(inferior) + 2


@pytest.mark.parametrize(("artery", "wall"), [("LAD", 125), ("RCA", 255), ("LCx", 345)])
def test_wavefront_starts_at_the_endocardium_of_its_territory(artery, wall):
    level = np.linspace(0, 1, 40)
    total = np.zeros(phantom_heart.ANGLES)
    for seed in range(12):
        scar = phantom_scar.wavefront_scar(np.random.default_rng(seed), level, artery)
        there = scar.thickness() > 0
        assert (scar.inner[there] <= 0).all()
        assert (scar.core <= np.maximum(scar.outer, 0)).all()  # no-reflow lies within the infarct
        total += scar.thickness().mean(0)
    centre = np.rad2deg(np.angle(np.sum(total * np.exp(1j * phantom_heart.THETA)))) % 360
    assert abs((centre - wall + 180) % 360 - 180) < 20


@pytest.mark.parametrize("pattern", list(phantom_scar.PATTERNS))
def test_non_ischaemic_scar_spares_the_endocardium(pattern):
    heart = phantom_heart.draw_heart(np.random.default_rng(0))
    scar = phantom_scar.patch_scar(np.random.default_rng(1), np.linspace(0, 1, 40), heart, pattern)
    there = scar.thickness() > 0
    assert there.any() and (scar.inner[there] > 0.1).all()


def test_study_has_full_truth(studies):
    for study in studies:
        labels = study.label_map
        assert study.pixels.dtype == np.float32 and labels.dtype == np.uint8
        assert study.pixels.shape == labels.shape and np.isfinite(study.pixels).all()
        assert {CAVITY, MYOCARDIUM, RV} <= set(np.unique(labels))
        assert study["findings"].present == bool(np.isin(labels, (SCAR, NO_REFLOW)).any())
        assert study["report"] and study["report_source"] == "phantom" and study["split"]
        assert study.spacing_mm[2] == pytest.approx(10) and 1.5 <= study.spacing_mm[0] <= 2
    assert {study["findings"].present for study in studies} == {True, False}


def test_landmarks_agree_with_measuring_them(studies):
    for study in studies:
        truth = study["landmarks"]
        measured = insertion_points(study.label_map, study.spacing_mm, mirrored=truth.mirrored)
        for name in ("anterior_rvip_deg", "inferior_rvip_deg"):
            assert abs((getattr(measured, name) - getattr(truth, name) + 180) % 360 - 180) < 15


def test_findings_agree_with_measuring_them(studies):
    same, walls = 0, 0
    positive = [study for study in studies if study["findings"].present]
    for study in positive:
        truth, measured = study["findings"], findings_from_labels(study)
        assert truth.walls & measured.walls
        same += len(truth.walls & measured.walls)
        walls += len(truth.walls | measured.walls)
        assert any(s.no_reflow for s in truth.scars) == any(s.no_reflow for s in measured.scars)
    assert same / walls > 0.85


def test_depth_is_named_as_by_measuring_it():
    """An infarct holds the subendocardium, however deep it reaches: what is mid-wall is no infarct."""
    same, scars = 0, 0
    for study in phantom_cohort(100, seed=0, workers=1).studies:
        told, measured = study["findings"].scars, findings_from_labels(study).scars
        assert not any(
            scar.depth in ("mid-wall", "subepicardial") and scar.ischaemic for scar in told
        ), told
        if len(told) == len(measured):
            pairs = list(zip(told, measured, strict=True))
            scars += len(pairs)
            same += sum(one.depth == other.depth for one, other in pairs)
            assert all(abs(one.transmurality - other.transmurality) < 10 for one, other in pairs)
    assert scars > 40 and same / scars > 0.95


def test_storage_varies(studies):
    mirrored = {study["landmarks"].mirrored for study in studies}
    quarter = {int(study["landmarks"].anterior_rvip_deg // 90) for study in studies}
    areas = [np.isin(study.label_map, (1, 2, 3, 4)).sum((0, 1)) for study in studies]
    base_first = {bool(a[: len(a) // 2].sum() > a[-(len(a) // 2) :].sum()) for a in areas}
    assert mirrored == base_first == {True, False} and len(quarter) == 4


def test_scar_is_brighter_than_remote_and_core_is_darker(studies):
    contrast = []
    for study in studies:
        image, labels = study.pixels, study.label_map
        if (labels == SCAR).sum() > 50:
            contrast.append(image[labels == SCAR].mean() - image[labels == MYOCARDIUM].mean())
    assert contrast and np.mean(np.array(contrast) > 0) > 0.9


def test_same_seed_same_bytes_with_any_number_of_workers(monkeypatch):
    monkeypatch.setenv("LGEKIT_CACHE", "")  # no cache: both are rendered
    count = CHUNK + 4
    one = phantom_cohort(count, 3, workers=1, pixels=48, slices=3)
    two = phantom_cohort(count, 3, workers=2, pixels=48, slices=3)
    assert one.fingerprint == two.fingerprint
    single = phantom_study(CHUNK + 1, 3, report_noise=0.1, pixels=48, slices=3)
    assert np.array_equal(single.pixels, one.studies[CHUNK + 1].pixels)
    assert single["report"] == one.studies[CHUNK + 1]["report"]
    assert phantom_cohort(2, 4, **SMALL).fingerprint != phantom_cohort(2, 3, **SMALL).fingerprint


def test_second_call_reads_the_cache_and_changes_stay_out_of_it(tmp_path):
    first = phantom_cohort(3, 1, **SMALL)
    before = first.fingerprint
    first.studies[0]["image"].data[:] = -1
    assert phantom_cohort(3, 1, **SMALL).fingerprint == before
    assert list((tmp_path / "cache").rglob("*.pkl"))


def test_prevalence():
    none, every = (phantom_cohort(8, 0, prevalence=share, **SMALL) for share in (0.0, 1.0))
    assert not none.manifest["scar"].any() and every.manifest["scar"].all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prevalance": 0.5}, "prevalance"),
        ({"prevalence": 1.5}, "1.5"),
        ({"pixels": "128"}, "'128'"),
        ({"pixels": 8}, "8"),
        ({"slices": 0}, "slices"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        phantom_cohort(2, 0, **options)


@pytest.mark.parametrize(
    "arguments", [{"studies": 0}, {"studies": 2.5}, {"studies": 2, "report_noise": 2}]
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(InputError):
        phantom_cohort(**arguments)


def test_partial_volume_keeps_the_volume_of_blood():
    """A signal of blood alone, summed over a slice, is the cavity's area, however coarse the pixels."""
    heart = phantom_heart.draw_heart(np.random.default_rng(5))
    heart = replace(heart, papillary=np.empty((0, 5)), trabecular_blood=np.float32(0))
    signals = np.zeros((1, 12), np.float32)
    signals[:, phantom_heart.BLOOD] = 1
    z = (40 + PLANES[:, None] + INTERLEAVE).ravel()
    areas = 0.5 * (heart.contours(z)[0].astype(float) ** 2).sum(1) * np.deg2rad(1)
    for mm in (1.0, 2.5):
        grid = np.arange(-60, 60, mm, dtype=np.float32)
        right, down = (a.ravel() for a in np.meshgrid(grid, grid))
        sampled = sample_heart(
            heart,
            [],
            z,
            np.zeros((1, 2)),
            right,
            down,
            mm,
            lambda right, down: (right, -down),
            signals,
        )
        edge = (sampled.signal > 0.05) & (sampled.signal < 0.95)
        assert sampled.signal.sum() * mm**2 == pytest.approx(
            np.average(areas, weights=np.repeat(PROFILE, 4)), rel=0.02
        )
        assert edge.any() and set(np.unique(sampled.labels[sampled.signal > 0.95])) == {CAVITY}
