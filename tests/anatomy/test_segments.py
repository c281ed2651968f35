"""Anatomy against shapes whose answer is known: circles, crescents, sectors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgekit.anatomy.labels import (
    Ventricle,
    angle_map,
    base_first,
    lv_centre,
    lv_diameter_mm,
    lv_mask,
    slice_levels,
    slice_thirds,
    wall_depth,
)
from lgekit.anatomy.segments import (
    findings_from_labels,
    insertion_points,
    segment_map,
    segment_share,
    to_frame_deg,
)
from lgekit.data.readers import read_cohort
from lgekit.errors import InputError
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, RV, SCAR, Landmarks, Study

DATA = Path(__file__).parents[3] / "shared" / "data"
SPACING = (1.3, 1.3, 10.0)


def ring(inner, outer, pixels=64, spacing=(1.0, 1.0), shift=(0.0, 0.0)):
    """A slice with a circular wall (mm); the cavity's centre is moved by ``shift``."""
    x, y = ((np.arange(pixels) - (pixels - 1) / 2) * h for h in spacing[:2])
    labels = np.zeros((pixels, pixels), np.uint8)
    labels[np.hypot(x[:, None], y[None]) < outer] = MYOCARDIUM
    labels[np.hypot(x[:, None] - shift[0], y[None] - shift[1]) < inner] = CAVITY
    return labels


def stack(slices=9, pixels=80, spacing=SPACING, apex_closed=False):
    """Rings that narrow from base to apex."""
    rings = [ring(20 - s, 30 - s, pixels, spacing) for s in range(slices)]
    if apex_closed:
        rings[-1][rings[-1] > 0] = MYOCARDIUM
    return np.stack(rings, axis=2)


def turn(a, b):
    return abs((a - b + 180) % 360 - 180)


@pytest.mark.parametrize(
    ("inner", "outer", "spacing", "tolerance"),
    [
        (20, 25, (1, 1), 0.05),
        (20, 22, (1, 1), 0.12),
        (5, 17, (1, 1), 0.03),
        (15, 24, (1.5, 0.8), 0.04),
    ],
)
def test_depth_is_linear_across_thin_thick_and_anisotropic_walls(inner, outer, spacing, tolerance):
    labels = ring(inner, outer, 80, spacing)
    radius = np.hypot(*np.meshgrid(*((np.arange(80) - 39.5) * h for h in spacing), indexing="ij"))
    depth, wall = wall_depth(labels, spacing), labels == MYOCARDIUM
    assert np.isnan(depth[~wall]).all()
    error = depth[wall] - (radius[wall] - inner) / (outer - inner)
    assert np.sqrt((error**2).mean()) < tolerance
    assert abs(error.mean()) < 0.03


def test_depth_of_an_asymmetric_wall_runs_from_0_to_1_on_both_sides():
    labels = ring(14, 24, 64, shift=(6, 0))  # 4 mm on the right, 16 mm on the left
    row = wall_depth(labels, (1, 1))[:, 31]
    left, right = row[8:18], row[52:56]  # outside in, inside out
    assert (np.diff(row[np.isfinite(row)][:14]) < 0).all()
    np.testing.assert_allclose(left, 1 - (np.arange(8, 18) - 7.5) / 16, atol=0.06)
    np.testing.assert_allclose(right, (np.arange(52, 56) - 51.5) / 4, atol=0.08)


def test_depth_of_a_wall_one_pixel_thick_is_a_half():
    labels = np.zeros((9, 9), np.uint8)
    labels[2:7, 2:7], labels[3:6, 3:6] = MYOCARDIUM, CAVITY
    assert wall_depth(labels, (1, 1))[2, 4] == pytest.approx(0.5, abs=1e-6)


def test_depth_without_a_cavity_grows_from_the_centre_and_at_the_arrays_border():
    labels = ring(0, 10, 41)
    depth = wall_depth(labels, (1, 1))
    assert (
        depth[20, 20] < 0.01
        and depth[20, 29] > 0.9
        and depth[20, 25] == pytest.approx(0.5, abs=0.05)
    )
    assert np.isfinite(wall_depth(ring(5, 40, 32), (1, 1))[0]).any()  # cut by the border: no error
    assert np.isnan(wall_depth(np.zeros((5, 5)), (1, 1))).all()


def test_depth_of_an_open_ring_stays_between_0_and_1():
    labels = ring(14, 22)
    labels[:, 40:] = np.where(labels[:, 40:] == MYOCARDIUM, 0, labels[:, 40:])
    depth = wall_depth(labels, (1, 1))
    assert np.isfinite(depth[labels == MYOCARDIUM]).all()
    assert 0 <= np.nanmin(depth) and np.nanmax(depth) <= 1


def test_angle_is_counter_clockwise_with_y_down_and_in_millimetres():
    angles = angle_map((5, 5), (2, 2), (1, 1))
    assert [angles[4, 2], angles[2, 0], angles[0, 2], angles[2, 4]] == [0, 90, 180, 270]
    assert angle_map((5, 5), (2, 2), (1, 2))[3, 1] == pytest.approx(np.degrees(np.arctan(2)))


def test_centre_diameter_and_filled_papillary_holes():
    labels = stack()
    labels[40, 40, 3] = 0  # a hole in the cavity
    labels[0, 0, :] = RV  # not part of the LV
    study_centre, centres = lv_centre(labels)
    np.testing.assert_allclose(study_centre, [39.5, 39.5], atol=1e-9)
    np.testing.assert_allclose(centres, 39.5, atol=1e-9)
    assert lv_mask(labels)[40, 40, 3] and not lv_mask(labels)[0, 0, 3]
    assert lv_diameter_mm(labels, SPACING) == pytest.approx(60, rel=0.01)
    empty = np.zeros((8, 8, 3))
    assert np.isnan(lv_centre(empty)[0]).all() and np.isnan(lv_diameter_mm(empty, SPACING))


def test_levels_and_thirds_from_base_to_apex_in_either_order():
    labels = np.concatenate(
        [np.zeros((80, 80, 2)), stack(6, apex_closed=True), np.zeros((80, 80, 1))], axis=2
    )
    assert base_first(labels) and not base_first(labels[..., ::-1])
    levels = slice_levels(labels)
    np.testing.assert_allclose(levels[2:8], np.linspace(0, 1, 6))
    assert np.isnan(levels[[0, 1, 8]]).all()
    assert slice_thirds(labels).tolist() == [-1, -1, 0, 0, 1, 1, 2, 3, -1]
    assert slice_thirds(labels[..., ::-1]).tolist() == [-1, 3, 2, 1, 1, 0, 0, -1, -1]
    assert slice_levels(labels[..., 3:4]).tolist() == [0.5]
    assert [slice_thirds(stack(n)).tolist() for n in (3, 7)] == [[0, 1, 2], [0, 0, 1, 1, 1, 2, 2]]


@given(
    anterior=st.floats(0, 359.9),
    mirrored=st.booleans(),
    dx=st.floats(0.8, 2.0),
    dy=st.floats(0.8, 2.0),
    backwards=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_segments_of_an_analytic_ring_have_the_exact_angles(anterior, mirrored, dx, dy, backwards):
    spacing = (dx, dy, 10.0)
    labels = stack(6, 80, spacing, apex_closed=True)
    labels = labels[..., ::-1] if backwards else labels
    landmarks = Landmarks(anterior, (anterior + (-120 if mirrored else 120)) % 360)
    segments = segment_map(labels, spacing, landmarks)
    segments = segments[..., ::-1] if backwards else segments
    # independently: turn each pixel as a complex number so that the anterior insertion point comes to 120°
    centre = (79) / 2
    z = (np.arange(80)[:, None] - centre) * dx - 1j * (np.arange(80)[None] - centre) * dy
    z = z * np.exp(-1j * np.radians(anterior))
    frame = np.degrees(np.angle((z.conj() if mirrored else z) * np.exp(1j * np.radians(120))))
    six = {1: (60, 120), 2: (120, 180), 3: (-180, -120), 4: (-120, -60), 5: (-60, 0), 6: (0, 60)}
    four = {13: (45, 135), 15: (-135, -45), 16: (-45, 45)}
    wall = stack(6, 80, spacing, apex_closed=True) == MYOCARDIUM
    for number, (low, high) in six.items():
        inside = (frame > low + 1e-6) & (frame < high - 1e-6)
        assert (segments[..., 0][wall[..., 0] & inside] == number).all()
        assert (segments[..., 3][wall[..., 3] & inside] == number + 6).all()
    for number, (low, high) in four.items():
        assert (
            segments[..., 4][wall[..., 4] & (frame > low + 1e-6) & (frame < high - 1e-6)] == number
        ).all()
    assert (segments[..., 4][wall[..., 4] & (abs(frame) > 135 + 1e-6)] == 14).all()
    assert (segments[..., 5][wall[..., 5]] == 17).all()
    assert not segments[~wall].any() and segments.dtype == np.uint8


def test_unknown_landmarks_are_refused_where_segments_are_asked_for():
    for landmarks in (None, Landmarks(float("nan"), 200.0), Landmarks(90.0, float("nan"))):
        with pytest.raises(InputError, match="landmarks"):
            segment_map(stack(), SPACING, landmarks)
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        slice_levels(np.zeros((4, 4)))


def crescent(turned=0.0, mirrored=False, pixels=110, spacing=(1.0, 1.0), lean=0.0):
    """LV of 30 mm radius and an RV disc cut off by it: the circles meet at known angles."""
    x, y = ((np.arange(pixels) - (pixels - 1) / 2) * h for h in spacing)
    up = -y[None] * (-1 if mirrored else 1)
    z = (x[:, None] + 1j * up) * np.exp(-1j * np.radians(-turned if mirrored else turned))
    labels = np.zeros((pixels, pixels), np.uint8)
    labels[(abs(z + 27) < 27) | (abs(z + 30 + 18j) < 20) * bool(lean)] = RV
    labels[abs(z) < 30], labels[abs(z) < 20] = MYOCARDIUM, CAVITY
    half = np.degrees(np.arccos((30**2 + 27**2 - 27**2) / (2 * 30 * 27)))
    sign = -1 if mirrored else 1
    return labels, (turned + sign * (180 - half)) % 360, (turned + sign * (180 + half)) % 360


@given(
    turned=st.floats(0, 359), mirrored=st.booleans(), dx=st.floats(0.9, 1.6), dy=st.floats(0.9, 1.6)
)
@settings(max_examples=25, deadline=None)
def test_insertion_points_where_two_circles_meet(turned, mirrored, dx, dy):
    plane, anterior, inferior = crescent(turned, mirrored, spacing=(dx, dy))
    labels = np.repeat(plane[..., None], 5, axis=2)
    for options in ({"mirrored": mirrored}, {"anterior_hint_deg": anterior + 30}):
        found = insertion_points(labels, (dx, dy, 10), **options)
        assert turn(found.anterior_rvip_deg, anterior) < 7
        assert turn(found.inferior_rvip_deg, inferior) < 7
        assert found.mirrored == mirrored
        assert found.confidence > 0.9


def test_without_a_hint_the_shape_of_the_rv_decides_and_confidence_is_halved():
    for mirrored in (False, True):
        plane, anterior, _ = crescent(40, mirrored, lean=1.0)
        found = insertion_points(np.repeat(plane[..., None], 5, axis=2), (1, 1, 10))
        assert found.mirrored == mirrored and found.confidence <= 0.5
        assert turn(found.anterior_rvip_deg, anterior) < 7


def test_insertion_points_are_unknown_without_an_rv():
    found = insertion_points(stack(), SPACING)
    assert np.isnan(found.anterior_rvip_deg) and found.confidence == 0


def test_confidence_falls_where_slices_disagree():
    planes = [crescent(t)[0] for t in (0, 50, 100, 150, 200, 250)]
    assert insertion_points(np.stack(planes, 2), (1, 1, 10), mirrored=False).confidence < 0.3


UPRIGHT = Landmarks(120, 240)


def scarred(low, high, shallow, deep, slices, code=SCAR, landmarks=UPRIGHT):
    """A study of rings with scar between two angles of the frame and two depths."""
    labels = stack(9)
    angle = to_frame_deg(angle_map(labels.shape[:2], (39.5, 39.5), SPACING), landmarks)
    for s in slices:
        depth = wall_depth(labels[..., s], SPACING)
        inside = ((angle - low) % 360 < (high - low) % 360) & (depth >= shallow) & (depth <= deep)
        labels[..., s][inside] = code
    return Study.from_arrays("ring", np.zeros(labels.shape), SPACING, labels, landmarks=landmarks)


@pytest.mark.parametrize("landmarks", [UPRIGHT, Landmarks(310, 190), Landmarks(10, 280)])
def test_findings_of_a_drawn_scar(landmarks):
    study = scarred(245, 295, 0, 0.45, (3, 4, 5), landmarks=landmarks)
    (scar,) = findings_from_labels(study).scars
    assert (
        scar.walls == ("inferior",) and scar.levels == ("mid",) and scar.depth == "subendocardial"
    )
    assert 38 <= scar.transmurality <= 52 and not scar.no_reflow
    share = segment_share(study)
    assert (
        share["scar"].idxmax() == 10
        and share["scar"].drop(10).max() == 0
        and share.shape == (17, 3)
    )


@pytest.mark.parametrize(
    ("shallow", "deep", "word"),
    [
        (0.0, 1.0, "transmural"),
        (0.7, 1.0, "subepicardial"),
        (0.34, 0.66, "mid-wall"),
        (0.0, 0.3, "subendocardial"),
    ],
)
def test_depth_words(shallow, deep, word):
    study = scarred(65, 175, shallow, deep, (0, 1, 2, 3), code=NO_REFLOW)
    (scar,) = findings_from_labels(study).scars
    assert scar.depth == word and scar.no_reflow
    assert scar.walls == ("anterior", "anteroseptal") and scar.levels == ("basal", "mid")


def test_an_infarct_that_reaches_far_still_begins_at_the_endocardium():
    """Drawn a pixel off the endocardium, and far outwards: mid-wall by mean depth, but it does not spare the border."""
    study = scarred(65, 175, 0.12, 0.8, (0, 1, 2))
    depth = np.stack([wall_depth(study.label_map[..., s], SPACING) for s in range(3)], 2)
    assert 0.42 < depth[study.label_map[..., :3] == SCAR].mean() < 0.58
    (scar,) = findings_from_labels(study).scars
    assert scar.depth == "subendocardial" and 55 < scar.transmurality < 75


@pytest.mark.skipif(not (DATA / "emidec").exists(), reason="../shared/data/emidec is not here")
def test_real_infarcts_include_the_subendocardium():
    """All scars of EMIDEC are infarcts: none is mid-wall or subepicardial (Mahrholdt et al. 2005)."""
    scars = [
        scar
        for study in read_cohort(f"emidec:{DATA / 'emidec'}").studies
        for scar in study["findings"].scars
    ]
    assert len(scars) >= 40 and {scar.depth for scar in scars} == {"subendocardial", "transmural"}


def test_two_scars_apart_are_two_and_none_is_none():
    study = scarred(65, 115, 0, 1, (0, 1))
    other = scarred(245, 295, 0, 0.4, (3, 4))
    study["labels"].set_data(
        study["labels"].data.maximum(other["labels"].data * (other["labels"].data == SCAR))
    )
    assert [scar.walls for scar in findings_from_labels(study).scars] == [
        ("anterior",),
        ("inferior",),
    ]
    assert not findings_from_labels(scarred(0, 0, 0, 0, ())).present


def test_scar_of_unknown_orientation_has_levels_and_depth_but_no_walls():
    study = scarred(65, 115, 0, 1, (0, 1))
    study["landmarks"] = None
    (scar,) = findings_from_labels(study).scars
    assert scar.walls == () and scar.levels == ("basal",) and scar.depth == "transmural"


def test_the_measures_leave_the_labels_alone():
    study = scarred(65, 115, 0, 1, (0, 1))
    before = study.label_map.copy()
    (
        findings_from_labels(study),
        segment_share(study),
        Ventricle.of(study.label_map),
        insertion_points(before, SPACING),
    )
    assert (study.label_map == before).all()


@pytest.mark.skipif(not (DATA / "acdc").exists(), reason="../shared/data/acdc is not here")
def test_insertion_points_of_real_hearts_turn_with_the_stack():
    import nibabel as nib

    for path in sorted((DATA / "acdc").glob("*/*_frame01_gt.nii.gz"))[::12]:
        labels = np.choose(
            np.asarray(nib.load(path).dataobj).astype(np.uint8), [0, RV, MYOCARDIUM, CAVITY]
        )
        found = insertion_points(labels, SPACING, mirrored=False)
        assert 60 < (found.inferior_rvip_deg - found.anterior_rvip_deg) % 360 < 190
        turned = insertion_points(
            np.rot90(labels, 1), SPACING, mirrored=False
        )  # by 90° clockwise on the screen
        assert turn(turned.anterior_rvip_deg, found.anterior_rvip_deg - 90) < 6
        flipped = insertion_points(labels[:, ::-1], SPACING, mirrored=True)
        assert turn(flipped.anterior_rvip_deg, -found.anterior_rvip_deg) < 6
