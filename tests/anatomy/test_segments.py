"""Anatomy of shapes with known answers: circles, crescents, sectors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgekit.anatomy.segments import (
    Ventricle,
    findings_from_labels,
    insertion_points,
    segment_map,
    to_frame_deg,
    voxel_angle,
    wall_depth,
)
from lgekit.data.readers import read_cohort
from lgekit.errors import InputError
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, RV, SCAR, Landmarks, Study

DATA = Path(__file__).parents[3] / "shared" / "data"
SPACING = (1.3, 1.3, 10.0)
UPRIGHT = Landmarks(120, 240)
spacings = st.floats(0.8, 1.6)


def ring(inner, outer, pixels=64, spacing=(1.0, 1.0)):
    """A slice with a circular wall (mm)."""
    x, y = ((np.arange(pixels) - (pixels - 1) / 2) * h for h in spacing[:2])
    labels = np.zeros((pixels, pixels), np.uint8)
    labels[np.hypot(x[:, None], y[None]) < outer] = MYOCARDIUM
    labels[np.hypot(x[:, None], y[None]) < inner] = CAVITY
    return labels


def stack(slices=9, pixels=80, spacing=SPACING, apex_closed=False):
    """Rings that narrow from base to apex."""
    rings = [ring(20 - s, 30 - s, pixels, spacing) for s in range(slices)]
    if apex_closed:
        rings[-1][rings[-1] > 0] = MYOCARDIUM
    return np.stack(rings, axis=2)


def apart(a, b):
    return abs((a - b + 180) % 360 - 180)


@pytest.mark.parametrize(
    ("inner", "outer", "spacing", "tolerance"),
    [(20, 22, (1, 1), 0.12), (5, 17, (1, 1), 0.03), (15, 24, (1.5, 0.8), 0.04)],
)
def test_depth_is_linear_across_thin_thick_and_anisotropic_walls(inner, outer, spacing, tolerance):
    labels = ring(inner, outer, 80, spacing)
    before = labels.copy()
    radius = np.hypot(*np.meshgrid(*((np.arange(80) - 39.5) * h for h in spacing), indexing="ij"))
    depth, wall = wall_depth(labels, spacing), labels == MYOCARDIUM
    assert np.isnan(depth[~wall]).all() and (labels == before).all()
    error = depth[wall] - (radius[wall] - inner) / (outer - inner)
    assert np.sqrt((error**2).mean()) < tolerance and abs(error.mean()) < 0.03


def test_depth_of_a_thin_wall_of_the_apex_and_of_broken_walls():
    thin = np.zeros((9, 9), np.uint8)
    thin[2:7, 2:7], thin[3:6, 3:6] = MYOCARDIUM, CAVITY
    assert wall_depth(thin, (1, 1))[2, 4] == pytest.approx(0.5, abs=1e-6)
    apex = wall_depth(ring(0, 10, 41), (1, 1))
    assert apex[20, 20] < 0.01 and apex[20, 25] == pytest.approx(0.5, abs=0.05)
    opened = ring(14, 22)
    opened[:, 40:][opened[:, 40:] == MYOCARDIUM] = 0
    for labels in (opened, ring(5, 40, 32)):  # an open ring, and one cut by the image's border
        depth = wall_depth(labels, (1, 1))[labels == MYOCARDIUM]
        assert (depth >= 0).all() and (depth <= 1).all()
    assert np.isnan(wall_depth(np.zeros((5, 5)), (1, 1))).all()


def test_levels_and_thirds_run_from_base_to_apex_in_either_order():
    nothing = np.zeros((80, 80, 1))
    labels = np.concatenate([nothing, nothing, stack(6, apex_closed=True), nothing], axis=2)
    ventricle, backwards = Ventricle.of(labels), Ventricle.of(labels[..., ::-1])
    np.testing.assert_allclose(ventricle.levels[2:8], np.linspace(0, 1, 6))
    assert np.isnan(ventricle.levels[[0, 1, 8]]).all()
    assert ventricle.thirds.tolist() == [-1, -1, 0, 0, 1, 1, 2, 3, -1]
    assert backwards.thirds.tolist() == [-1, 3, 2, 1, 1, 0, 0, -1, -1]
    assert Ventricle.of(labels[..., 3:4]).levels.tolist() == [0.5]
    assert Ventricle.of(stack(7)).thirds.tolist() == [0, 0, 1, 1, 1, 2, 2]


@given(anterior=st.floats(0, 359.9), mirrored=st.booleans(), dx=spacings, backwards=st.booleans())
@settings(max_examples=15, deadline=None)
def test_segments_of_a_ring_have_the_exact_angles(anterior, mirrored, dx, backwards):
    spacing = (dx, 1.2, 10.0)
    labels = stack(6, 80, spacing, apex_closed=True)
    order = slice(None, None, -1 if backwards else 1)
    landmarks = Landmarks(anterior, (anterior + (-120 if mirrored else 120)) % 360)
    segments = segment_map(labels[..., order], spacing, landmarks)[..., order]
    # independently: turn each pixel as a complex number until the insertion point is at 120°
    z = (np.arange(80)[:, None] - 39.5) * dx - 1j * (np.arange(80)[None] - 39.5) * 1.2
    z = z * np.exp(-1j * np.radians(anterior))
    frame = np.degrees(np.angle((z.conj() if mirrored else z) * np.exp(1j * np.radians(120)))) % 360
    wall = labels == MYOCARDIUM
    for s, count, first, start in ((0, 6, 1, 60), (3, 6, 7, 60), (4, 4, 13, 45)):
        sector, rest = np.divmod((frame - start) % 360, 360 / count)
        clear = wall[..., s] & (rest > 1e-6) & (rest < 360 / count - 1e-6)
        assert (segments[..., s][clear] == (first + sector)[clear]).all()
    assert (segments[..., 5][wall[..., 5]] == 17).all()
    assert not segments[~wall].any() and segments.dtype == np.uint8


def test_unknown_landmarks_and_missing_labels_are_refused():
    for landmarks in (None, Landmarks(float("nan"), 200.0), Landmarks(90.0, float("nan"))):
        with pytest.raises(InputError, match="landmarks"):
            segment_map(stack(), SPACING, landmarks)
    with pytest.raises(InputError, match="labels"):
        findings_from_labels(Study.from_arrays("bare", np.zeros((4, 4, 2)), SPACING))


def crescent(turned=0.0, mirrored=False, pixels=110, spacing=(1.0, 1.0), slices=5):
    """An LV of 30 mm radius and an RV disc that it cuts: the circles meet at known angles."""
    x, y = ((np.arange(pixels) - (pixels - 1) / 2) * h for h in spacing)
    sign = -1 if mirrored else 1
    z = (x[:, None] - 1j * sign * y[None]) * np.exp(-1j * np.radians(sign * turned))
    labels = np.zeros((pixels, pixels), np.uint8)
    labels[abs(z + 27) < 27] = RV
    labels[abs(z) < 30], labels[abs(z) < 20] = MYOCARDIUM, CAVITY
    half = np.degrees(np.arccos((30**2 + 27**2 - 27**2) / (2 * 30 * 27)))
    anterior, inferior = ((turned + sign * (180 + way * half)) % 360 for way in (-1, 1))
    return np.repeat(labels[..., None], slices, axis=2), anterior, inferior


@given(turned=st.floats(0, 359), mirrored=st.booleans(), dx=spacings, dy=spacings)
@settings(max_examples=15, deadline=None)
def test_insertion_points_are_where_two_circles_meet(turned, mirrored, dx, dy):
    labels, anterior, inferior = crescent(turned, mirrored, spacing=(dx, dy))
    found = insertion_points(labels, (dx, dy, 10), mirrored=mirrored)
    assert apart(found.anterior_rvip_deg, anterior) < 7
    assert apart(found.inferior_rvip_deg, inferior) < 7
    assert found.mirrored == mirrored and found.confidence > 0.9


def test_confidence_is_low_if_slices_disagree_and_0_without_an_rv():
    planes = [crescent(turn, slices=1)[0] for turn in (0, 50, 100, 150, 200, 250)]
    assert insertion_points(np.concatenate(planes, 2), (1, 1, 10), mirrored=False).confidence < 0.3
    assert insertion_points(stack(), SPACING, mirrored=False).confidence == 0


def scarred(low, high, shallow, deep, slices, code=SCAR, landmarks=UPRIGHT):
    """A study of rings with scar between two angles of the frame and two depths."""
    labels = stack(9)
    angle = to_frame_deg(
        voxel_angle(*np.indices(labels.shape[:2]), (39.5, 39.5), SPACING), landmarks
    )
    for s in slices:
        depth = wall_depth(labels[..., s], SPACING)
        inside = ((angle - low) % 360 < (high - low) % 360) & (depth >= shallow) & (depth <= deep)
        labels[..., s][inside] = code
    return Study.from_arrays("ring", np.zeros(labels.shape), SPACING, labels, landmarks=landmarks)


@pytest.mark.parametrize("landmarks", [UPRIGHT, Landmarks(310, 190), Landmarks(10, 280)])
def test_findings_of_a_drawn_scar(landmarks):
    study = scarred(245, 295, 0, 0.45, (3, 4, 5), landmarks=landmarks)
    before = study.label_map.copy()
    (scar,) = findings_from_labels(study).scars
    assert (scar.walls, scar.levels) == (("inferior",), ("mid",))
    assert scar.depth == "subendocardial" and 38 <= scar.transmurality <= 52 and not scar.no_reflow
    segments = segment_map(study.label_map, study.spacing_mm, study["landmarks"])
    assert set(segments[study.label_map == SCAR]) == {10}
    assert (study.label_map == before).all()


@pytest.mark.parametrize(
    ("shallow", "deep", "word"),
    [
        (0.0, 1.0, "transmural"),
        (0.7, 1.0, "subepicardial"),
        (0.34, 0.66, "mid-wall"),
        (0.12, 0.8, "subendocardial"),  # in the middle of the wall, but the endocardium has scar
    ],
)
def test_depth_words(shallow, deep, word):
    (scar,) = findings_from_labels(scarred(65, 175, shallow, deep, (0, 1, 2), NO_REFLOW)).scars
    assert scar.depth == word and scar.no_reflow
    assert (scar.walls, scar.levels) == (("anterior", "anteroseptal"), ("basal",))


def test_separate_scars_are_two_and_no_scar_is_none():
    study, other = scarred(65, 115, 0, 1, (0, 1)), scarred(245, 295, 0, 0.4, (3, 4))
    study["labels"].set_data(study["labels"].data.maximum(other["labels"].data))
    walls = [scar.walls for scar in findings_from_labels(study).scars]
    assert walls == [("anterior",), ("inferior",)]
    assert not findings_from_labels(scarred(0, 0, 0, 0, ())).present


def test_a_scar_of_unknown_orientation_has_levels_and_depth_but_no_walls():
    study = scarred(65, 115, 0, 1, (0, 1))
    study["landmarks"] = None
    (scar,) = findings_from_labels(study).scars
    assert (scar.walls, scar.levels, scar.depth) == ((), ("basal",), "transmural")


@pytest.mark.skipif(not (DATA / "emidec").exists(), reason="needs ../shared/data/emidec")
def test_real_infarcts_include_the_subendocardium():
    """EMIDEC has only infarcts: none is mid-wall or subepicardial (Mahrholdt et al. 2005)."""
    studies = read_cohort(f"emidec:{DATA / 'emidec'}").studies
    scars = [scar for study in studies for scar in study["findings"].scars]
    assert len(scars) >= 40 and {scar.depth for scar in scars} == {"subendocardial", "transmural"}
