"""The phantom: known physics, ground truth that agrees with measurements, reproducibility."""

import re
from pathlib import Path

import numpy as np
import pytest

import lgekit
from lgekit.anatomy.segments import findings_from_labels, insertion_points
from lgekit.data import phantom
from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, RV, SCAR, Cohort

SMALL = {"pixels": 48}
LEVEL = np.linspace(0, 1, 40)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def studies():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGEKIT_CACHE", "")
        return phantom_cohort(16, 7, report_noise=0, prevalence=0.7).studies


@pytest.mark.parametrize(("room", "other"), [("data", "scars"), ("scars", "data")])
def test_the_phantom_and_random_scar_share_no_code(room, other):
    """RandomScar is tested on the phantom."""
    code = [file.read_text() for file in (Path(lgekit.__file__).parent / room).glob("*.py")]
    assert code and not re.search(rf"^\s*(from|import) lgekit\.{other}", "\n".join(code), re.M)


def test_contrast_physics_matches_published_values():
    assert phantom.inversion_recovery(450.0, 450.0 * np.log(2)) == pytest.approx(0, abs=1e-12)
    assert phantom.inversion_recovery(450.0, 0.0) == -1
    # JCMR 2013;15:11: blood about 450 ms, remote 540 ± 88, acute infarct (ECV 0.52) 425 ± 68
    remote = phantom.RANGES["ecv"]["heart_muscle"][0]
    assert phantom.t1_after_contrast(remote, 450) == pytest.approx(540, abs=88)
    assert phantom.t1_after_contrast(0.52, 450) == pytest.approx(425, abs=40)
    assert phantom.t1_after_contrast(0.0, 450) == pytest.approx(phantom.T1_NATIVE_MYOCARDIUM)


def scar_of(kind: dict, seed: int) -> phantom.ScarMap:
    rng = np.random.default_rng(seed)
    return phantom.draw_scar_map(rng, LEVEL, phantom.Heart(rng), kind)


@pytest.mark.parametrize(
    "kind", phantom.RANGES["infarcts"].values(), ids=lambda kind: kind["cause"]
)
def test_infarcts_start_at_the_endocardium_of_their_territory(kind):
    total = np.zeros(phantom.ANGLES)
    for seed in range(12):
        scar = scar_of(kind, seed)
        assert (scar.inner[scar.outer > scar.inner] <= 0).all()
        assert (scar.core <= np.maximum(scar.outer, 0)).all()  # no-reflow is within the infarct
        total += np.clip(scar.outer, 0, 1).mean(0)
    centre = np.rad2deg(np.angle(np.sum(total * np.exp(1j * phantom.THETA)))) % 360
    assert abs((centre - kind["angles_deg"][0] + 180) % 360 - 180) < 20


@pytest.mark.parametrize(
    "kind", phantom.RANGES["patterns"].values(), ids=lambda kind: kind["cause"]
)
def test_non_ischaemic_scar_spares_the_endocardium(kind):
    scar = scar_of(kind, 1)
    there = scar.outer > scar.inner
    assert there.any() and (scar.inner[there] > 0.1).all() and not scar.core.any()


def test_studies_are_complete_and_stored_in_many_orientations(studies):
    brighter, base_first = [], set()
    for study in studies:
        labels = study.label_map
        assert study.pixels.dtype == np.float32 and labels.dtype == np.uint8
        assert study.pixels.shape == labels.shape and np.isfinite(study.pixels).all()
        assert {CAVITY, MYOCARDIUM, RV} <= set(np.unique(labels))
        assert study["findings"].present == bool(np.isin(labels, (SCAR, NO_REFLOW)).any())
        assert study["report"] and study["report_source"] == "phantom" and study["split"]
        assert study.spacing_mm[2] == pytest.approx(10) and 1.5 <= study.spacing_mm[0] <= 2
        if (labels == SCAR).sum() > 50:
            scar, wall = (study.pixels[labels == code].mean() for code in (SCAR, MYOCARDIUM))
            brighter.append(scar > wall)
        area = (labels == CAVITY).sum((0, 1))
        base_first.add(bool(area[: len(area) // 2].sum() > area.sum() / 2))
    assert np.mean(brighter) > 0.9
    assert {study["findings"].present for study in studies} == {True, False}
    assert {study["landmarks"].mirrored for study in studies} == base_first == {True, False}
    assert len({study["landmarks"].anterior_rvip_deg // 90 for study in studies}) == 4


def test_landmarks_and_findings_agree_with_measurements(studies):
    common = union = scars = same_depth = 0
    for study in studies:
        truth = study["landmarks"]
        measured = insertion_points(study.label_map, study.spacing_mm, mirrored=truth.mirrored)
        for name in ("anterior_rvip_deg", "inferior_rvip_deg"):
            assert abs((getattr(measured, name) - getattr(truth, name) + 180) % 360 - 180) < 15
        truth, measured = study["findings"], findings_from_labels(study)
        assert truth.present == measured.present
        assert any(s.no_reflow for s in truth.scars) == any(s.no_reflow for s in measured.scars)
        common += len(truth.walls & measured.walls)
        union += len(truth.walls | measured.walls)
        infarcts = [scar for scar in truth.scars if scar.ischaemic]
        assert all(scar.depth in ("subendocardial", "transmural") for scar in infarcts)
        if len(truth.scars) == len(measured.scars):
            for one, other in zip(truth.scars, measured.scars, strict=True):
                scars, same_depth = scars + 1, same_depth + (one.depth == other.depth)
                assert abs(one.transmurality - other.transmurality) < 10
    assert common / union > 0.85 and scars > 6 and same_depth / scars > 0.8


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(monkeypatch):
    monkeypatch.setenv("LGEKIT_CACHE", "")  # no cache: both are rendered
    monkeypatch.setattr(phantom, "STUDIES_PER_ENTRY", 4)
    one = phantom_cohort(6, 3, workers=1, **SMALL)
    two = phantom_cohort(6, 3, workers=2, **SMALL)
    assert one.fingerprint == two.fingerprint and one.manifest.equals(two.manifest)
    fewer = phantom_cohort(5, 3, **SMALL)
    assert fewer.fingerprint == Cohort(one.studies[:5]).fingerprint
    assert phantom_cohort(2, 4, **SMALL).fingerprint != phantom_cohort(2, 3, **SMALL).fingerprint


def test_second_call_reads_the_cache_and_changes_do_not_reach_it(tmp_path):
    first = phantom_cohort(3, 1, **SMALL)
    before = first.fingerprint
    first.studies[0]["image"].data[:] = -1
    assert phantom_cohort(3, 1, **SMALL).fingerprint == before
    assert list((tmp_path / "cache").glob("private/*"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prevalance": 0.5}, "prevalance.*prevalence"),
        ({"prevalence": 1.5}, "1.5"),
        ({"pixels": 8}, "8.*48"),
        ({"studies": 2.5}, "2.5.*integer"),
        ({"report_noise": 2}, "less than or equal to 1"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        phantom_cohort(**({"studies": 2} | options))
