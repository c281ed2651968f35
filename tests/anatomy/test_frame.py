"""The standard frame and the polar view: the same heart, however it was stored, gives the same picture."""

import doctest
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import torchio as tio
from contourpy import contour_generator
from hypothesis import given, settings
from hypothesis import strategies as st

import lgekit.anatomy.frame
from lgekit.anatomy.frame import (
    StandardizeShortAxis,
    frame_to_scanner,
    intensity_reference,
    normalise_intensity,
)
from lgekit.anatomy.labels import angle_map, lv_centre, slice_levels
from lgekit.anatomy.polar import INSIDE, OUTSIDE, polar_grid, polar_view, study_tensor
from lgekit.anatomy.segments import segment_map
from lgekit.errors import InputError
from lgekit.study import CAVITY, MYOCARDIUM, RV, SCAR, Landmarks, Study

DATA = Path(__file__).parents[3] / "shared" / "data"
SLICES = 6
ways_to_store = {
    "turned": st.floats(0, 359.9),
    "mirrored": st.booleans(),
    "shift": st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
    "spacing": st.tuples(st.floats(1.0, 1.5), st.floats(1.0, 1.5)),
    "scale": st.floats(0.9, 1.15),
    "backwards": st.booleans(),
}


def heart(
    turned=120.0,
    mirrored=False,
    shift=(0.0, 0.0),
    spacing=(1.2, 1.2),
    scale=1.0,
    backwards=False,
    pixels=128,
    scar=False,
):
    """A smooth heart drawn straight onto a grid: anterior insertion point at ``turned``, 26 mm epicardial radius.

    Everything is a function of the heart's own coordinates (the standard frame, mm), so there is no interpolation.
    """
    dx, dy = ((np.arange(pixels) - (pixels - 1) / 2) * h for h in spacing)
    z = (dx[:, None] - shift[0]) - 1j * (dy[None] - shift[1])
    z = z * np.exp(-1j * np.radians(turned)) / scale
    z = (z.conj() if mirrored else z) * np.exp(1j * np.radians(120))
    labels = np.zeros((pixels, pixels, SLICES), np.uint8)
    image = np.zeros(labels.shape)
    for s in range(SLICES):
        outer, inner = 26 - 2 * s, 16 - 2 * s
        labels[..., s][abs(z + 22) < 22] = RV
        labels[..., s][abs(z) < outer] = MYOCARDIUM
        labels[..., s][abs(z) < inner] = CAVITY
        if scar:
            angle = np.degrees(np.angle(z)) % 360
            labels[..., s][(labels[..., s] == MYOCARDIUM) & (angle > 240) & (angle < 300)] = SCAR
        for place, width, height in (
            (18 + 18j, 8, 100),
            (-20 + 9j, 6, 60),
            (-5 - 24j, 7, 80),
            (0, 12 - s, 50),
        ):
            image[..., s] += height * np.exp(-(abs(z - place) ** 2) / (2 * width**2))
        image[..., s] += 5 * s
    if backwards:
        labels, image = labels[..., ::-1], image[..., ::-1]
    landmarks = Landmarks(turned % 360, (turned + (-110 if mirrored else 110)) % 360, 0.9)
    return Study.from_arrays("heart", image, (*spacing, 10.0), labels, landmarks=landmarks)


def test_the_docstring_runs():
    assert doctest.testmod(lgekit.anatomy.frame).failed == 0


@given(**ways_to_store)
@settings(max_examples=25, deadline=None)
def test_the_frame_does_not_depend_on_storage(**stored):
    transform = StandardizeShortAxis(64)
    reference, standard = transform(heart()), transform(heart(**stored))
    middle = (slice(12, 52), slice(12, 52))  # inside both pictures
    difference = (standard.pixels - reference.pixels)[middle]
    assert (
        np.sqrt((difference**2).mean()) < 2.5
    )  # of a contrast of 100: the centroid of a pixelated mask wanders
    assert (standard.label_map == reference.label_map)[middle].mean() > 0.95
    assert standard["landmarks"].anterior_rvip_deg == 120
    assert standard["landmarks"].inferior_rvip_deg == pytest.approx(230)
    assert not standard["landmarks"].mirrored and standard["orientation_confident"]
    np.testing.assert_allclose(lv_centre(standard.label_map)[0], 31.5, atol=0.5)
    assert slice_levels(standard.label_map).tolist() == pytest.approx(np.linspace(0, 1, SLICES))
    assert standard.spacing_mm[0] == pytest.approx(standard.spacing_mm[1])


@given(**ways_to_store)
@settings(max_examples=25, deadline=None)
def test_the_polar_view_does_not_depend_on_storage(**stored):
    reference, view = polar_view(heart()), polar_view(heart(**stored))
    assert view.shape == (1, 16, 96, SLICES)
    assert (view - reference).square().mean().sqrt() < 3


def test_the_frame_is_drawn_as_the_textbook_says():
    study = heart(turned=37, mirrored=True, backwards=True, scar=True)
    standard = StandardizeShortAxis(96)(study)
    x, y = np.nonzero(standard.label_map[..., 2] == RV)
    assert x.mean() < 30 and abs(y.mean() - 47.5) < 4  # the right ventricle on the left
    x, y = np.nonzero(standard.label_map[..., 2] == SCAR)
    assert y.mean() > 60 and abs(x.mean() - 47.5) < 1.5  # the inferior wall below
    segments = segment_map(standard.label_map, standard.spacing_mm, standard["landmarks"])
    assert np.isin(segments[standard.label_map == SCAR], (4, 10, 15)).mean() > 0.95
    x, y = np.nonzero(segments[..., 0] == 1)
    assert y.mean() < 30 and abs(x.mean() - 47.5) < 2  # segment 1 at the top


def test_one_interpolation_without_a_turn_keeps_the_pixels():
    study = heart(spacing=(1.0, 1.0), pixels=129)  # the centre falls on a pixel
    transform = StandardizeShortAxis(65, field_of_view_mm=65)
    np.testing.assert_allclose(transform(study).pixels, study.pixels[32:97, 32:97], atol=1e-3)


def test_dtypes_are_kept_and_the_input_is_not_touched():
    study = heart(turned=200, mirrored=True)
    pixels, labels = study.pixels.copy(), study.label_map.copy()
    standard = StandardizeShortAxis()(study)
    assert (
        standard["labels"].data.dtype == torch.uint8
        and standard["image"].data.dtype == torch.float32
    )
    assert set(np.unique(standard.label_map)) <= set(np.unique(labels))
    assert (
        (study.pixels == pixels).all()
        and (study.label_map == labels).all()
        and "frame" not in study
    )
    assert isinstance(standard, Study) and standard["study_id"] == "heart"


def test_a_point_keeps_its_place_in_the_scanner():
    study = heart(turned=200, mirrored=True, shift=(9, -5), backwards=True)
    standard = StandardizeShortAxis()(study)

    def place(key_study):
        found = np.argwhere(key_study.label_map == CAVITY)
        return (key_study["labels"].affine @ np.r_[found.mean(0), 1])[:3]

    np.testing.assert_allclose(place(standard), place(study), atol=0.3)


def test_history_replays_and_inverts():
    study = heart(turned=200, mirrored=True, shift=(9, -5), backwards=True)
    standard = StandardizeShortAxis(80)(study)
    assert [type(step) for step in standard.history] == [StandardizeShortAxis]
    again = standard.get_composed_history()(study)
    assert torch.equal(again["image"].data, standard["image"].data)
    back = standard.apply_inverse_transform()
    np.testing.assert_allclose(back["image"].affine, study["image"].affine)
    assert back["landmarks"] == study["landmarks"] and "frame" not in back
    inside = (back.label_map != 0) & (study.label_map != 0)
    assert (back.label_map == study.label_map)[inside].mean() > 0.95
    assert np.abs(back.pixels - study.pixels)[inside].mean() < 1
    with pytest.raises(InputError, match=r"\(128, 128, 6\)"):  # a frame is one study's own
        standard.history[0](heart(pixels=100))


@given(
    place=st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
    radius=st.floats(5, 14),
    **ways_to_store,
)
@settings(max_examples=30, deadline=None)
def test_a_mask_drawn_in_the_frame_comes_back_within_a_pixel(place, radius, **stored):
    study = heart(**stored)
    standard = StandardizeShortAxis(96)(study)
    i, j = np.ogrid[:96, :96]
    drawn = np.hypot(i - 47.5 - place[0], j - 47.5 - place[1]) < radius
    mask = np.zeros((96, 96, SLICES), bool)
    mask[..., 1] = drawn
    back = frame_to_scanner(mask, standard).numpy()
    assert back.shape == study.spatial_shape and back.dtype == bool
    (s,) = np.unique(np.nonzero(back)[2])
    assert s == (SLICES - 2 if stored["backwards"] else 1)
    # the border as drawn, taken by the affines alone into the scanner's voxels, against the border that came back
    border = contour_generator(z=drawn.T.astype(float)).lines(0.5)[
        0
    ]  # the first array axis is its x
    border = np.c_[border, np.ones((len(border), 2))]
    place_mm = border @ standard["image"].affine.T
    border = (place_mm @ np.linalg.inv(study["image"].affine).T)[:, :2]
    found = contour_generator(z=back[..., s].T.astype(float)).lines(0.5)[0]
    apart = np.linalg.norm((border[:, None] - found[None]) * study.spacing_mm[:2], axis=-1)
    pixel = max(*study.spacing_mm[:2], standard.spacing_mm[0])
    assert max(apart.min(0).max(), apart.min(1).max()) <= pixel


def test_unsure_or_missing_landmarks_mean_no_turn_and_a_mark():
    for landmarks in (Landmarks(10, 280, 0.1), None, Landmarks(float("nan"), 200.0)):
        study = heart(turned=10, shift=(9, -5), backwards=True)
        study["landmarks"] = landmarks
        study["labels"].set_data(study["labels"].data * (study["labels"].data != RV))
        standard = StandardizeShortAxis()(study)
        assert standard["orientation_confident"] is False
        same = StandardizeShortAxis(orientation="centre")(study)
        assert torch.equal(standard["image"].data, same["image"].data)
        np.testing.assert_allclose(lv_centre(standard.label_map)[0], 47.5, atol=0.6)
        assert slice_levels(standard.label_map)[0] == 0
        assert not polar_grid(study).oriented
    assert StandardizeShortAxis(min_confidence=0.05)(heart())["orientation_confident"]


def test_an_rv_label_stands_in_for_landmarks():
    study = heart(turned=30)
    study["landmarks"] = None
    standard = StandardizeShortAxis()(study)
    x, _ = np.nonzero(standard.label_map[..., 2] == RV)
    assert x.mean() < 30


def test_no_orientation_cuts_the_middle_as_stored():
    study = heart(turned=10, shift=(9, -5), backwards=True)
    standard = StandardizeShortAxis(64, field_of_view_mm=64 * 1.2, orientation="none")(study)
    np.testing.assert_allclose(standard.pixels, study.pixels[32:96, 32:96], atol=1e-3)
    assert standard["orientation_confident"] is False


def test_without_a_heart_the_middle_of_the_picture_is_taken():
    study = heart()
    study["labels"].set_data(torch.zeros_like(study["labels"].data))
    assert StandardizeShortAxis(64)(study)["orientation_confident"] is False
    for view, shape in (("polar", (SLICES, 1, 16, 96)), ("image", (SLICES, 1, 96, 96))):
        tensor, levels = study_tensor(study, view)
        assert tensor.shape == shape and tensor.isfinite().all()
        np.testing.assert_allclose(levels, np.linspace(0, 1, SLICES), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"pixels": 0}, {"heart_scale": -1}, {"field_of_view_mm": 0}, {"orientation": "upside down"}],
)
def test_bad_options_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        StandardizeShortAxis(**options)


def test_bad_shapes_are_named():
    standard = StandardizeShortAxis(32)(heart())
    with pytest.raises(InputError, match=r"32, 32, 5\)"):
        frame_to_scanner(np.zeros((32, 32, 5), bool), standard)
    with pytest.raises(InputError, match="StandardizeShortAxis"):
        frame_to_scanner(np.zeros((32, 32, SLICES), bool), heart())
    with pytest.raises(InputError, match="view"):
        study_tensor(heart(), "cartesian")
    with pytest.raises(InputError, match=r"\(16, 96, 2\)"):
        polar_grid(heart()).paint(np.zeros((16, 96, 2)))


def test_works_in_a_compose_and_a_loader():
    transform = tio.Compose([StandardizeShortAxis(32), tio.RandomNoise()])
    dataset = tio.SubjectsDataset([heart(), heart(turned=20, pixels=100)], transform=transform)
    assert {study.spatial_shape for study in dataset} == {(32, 32, SLICES)}


# --- the polar view


def test_columns_are_angles_from_the_anterior_insertion_point_and_rows_are_depths():
    study = heart(turned=77, mirrored=True, scar=True)
    grid = polar_grid(study, depths=16, angles=96)
    labels = study["labels"].data
    scar = grid.view((labels == SCAR).float())[0, ..., 1]
    columns = np.flatnonzero(scar[8] > 0.5)  # frame 240–300°: 120–180° past the insertion point
    assert (
        columns[0] in (32, 33) and columns[-1] in (47, 48) and len(columns) == np.ptp(columns) + 1
    )
    wall = grid.view(((labels == MYOCARDIUM) | (labels == SCAR)).float())[0, ..., 1].mean(1) > 0.5
    np.testing.assert_allclose(
        np.flatnonzero(wall)[[0, -1]], [4, 13]
    )  # 0.4 of 1.6 inside, 0.2 outside
    assert (INSIDE, OUTSIDE) == (0.4, 0.2)
    np.testing.assert_allclose(grid.endocardium[1], 14, atol=0.6)
    np.testing.assert_allclose(grid.thickness[1], 10, atol=0.7)


def test_what_is_painted_in_the_polar_view_lies_at_its_place():
    study = heart(turned=77, mirrored=True, backwards=True, scar=True)
    grid = polar_grid(study, depths=32, angles=192)
    scar = (study["labels"].data == SCAR).float()
    back = grid.paint((grid.view(scar) > 0.5).numpy())
    truth = study.label_map == SCAR
    assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > 0.93


def test_gaps_in_the_wall_are_bridged_and_slices_without_a_heart_marked():
    whole, broken = heart(), heart()
    labels = broken["labels"].data.clone()
    cut = torch.as_tensor((angle_map((128, 128), (63.5, 63.5), (1, 1)) - 300) % 360 < 50)
    labels[0, :, :, 1][cut & (labels[0, :, :, 1] == MYOCARDIUM)] = 0  # an open ring
    labels[..., 0] = 0
    labels[0, 60, 60, 2] = MYOCARDIUM  # a speck in the cavity
    broken["labels"].set_data(labels)
    grid, true = polar_grid(broken), polar_grid(whole)
    assert np.isnan(grid.levels[0]) and grid.levels[1] == 0
    assert (grid.view(broken["image"].data)[..., 0] == 0).all()
    angle = np.radians(grid.angles_deg)
    epicardium = (grid.centres[1] - 63.5) * 1.2 @ [1, -1j] + (grid.endocardium + grid.thickness)[
        1
    ] * np.exp(1j * angle)
    np.testing.assert_allclose(abs(epicardium), 24, atol=1.5)  # a circle of 24 mm, open ring or not
    np.testing.assert_allclose(grid.endocardium[2], true.endocardium[2], atol=1.5)


# --- intensities and tensors


@pytest.mark.parametrize("share", [0.0, 0.2, 0.45])
def test_scar_does_not_move_the_reference(share):
    rng = np.random.default_rng(0)
    study = heart()
    wall = np.flatnonzero(study.label_map == MYOCARDIUM)
    pixels = rng.normal(200, 10, study.label_map.shape)
    pixels[study.label_map == MYOCARDIUM] = rng.normal(50, 10, len(wall))
    scar = rng.permutation(wall)[: int(share * len(wall))]
    pixels.flat[scar] = rng.normal(300, 40, len(scar))
    pixels[..., 2] += 100  # slices are not equally bright
    study["image"].set_data(torch.as_tensor(pixels, dtype=torch.float32)[None])
    remote, half_range = intensity_reference(study)
    np.testing.assert_allclose(remote, [50, 50, 150, 50, 50, 50], atol=8)
    assert 75 < half_range < 160
    normal = normalise_intensity(study)
    assert 0.9 < np.median(normal.pixels[study.label_map == CAVITY]) < 2
    assert normal["image"].data.abs().max() <= 4 and study.pixels.max() > 200
    scaled = heart()
    scaled["image"].set_data(study["image"].data * 3 + 70)
    np.testing.assert_allclose(normalise_intensity(scaled).pixels, normal.pixels, atol=1e-3)


def test_constant_images_give_no_nan():
    study = heart()
    study["image"].set_data(torch.full_like(study["image"].data, 7.0))
    for view in ("polar", "image"):
        assert study_tensor(study, view)[0].isfinite().all()


def test_tensors_hold_the_slices_with_a_heart_from_base_to_apex():
    study = heart(backwards=True)
    study["labels"].data[..., -1] = 0  # the basal slice, stored last
    for view, size in (("polar", (12, 48)), ("image", (40, 40))):
        tensor, levels = study_tensor(study, view, depths=12, angles=48, pixels=40)
        assert tensor.shape == (SLICES - 1, 1, *size) and tensor.dtype == torch.float32
        np.testing.assert_allclose(levels, np.linspace(0, 1, SLICES - 1), atol=1e-6)
        again, same_levels = study_tensor(
            StandardizeShortAxis(40)(study), view, depths=12, angles=48
        )
        assert again.shape == tensor.shape and torch.equal(same_levels, levels)


@pytest.mark.skipif(not (DATA / "emidec").exists(), reason="../shared/data/emidec is not here")
def test_real_hearts_come_to_lie_with_the_right_ventricle_on_the_left():
    table = pd.read_csv(DATA / "emidec" / "rvip.csv", index_col="case").query(
        "confidence == 'high'"
    )
    blood = []
    for case, row in table[::4].iterrows():
        image, labels = (
            nib.load(DATA / "emidec" / case / part / f"{case}.nii.gz")
            for part in ("Images", "Contours")
        )
        landmarks = Landmarks(float(row["anterior_rvip_deg"]), float(row["inferior_rvip_deg"]))
        spacing = image.header.get_zooms()
        study = Study.from_arrays(
            case, image.get_fdata(), spacing, np.asarray(labels.dataobj), landmarks=landmarks
        )
        assert landmarks.mirrored
        standard = StandardizeShortAxis(96)(normalise_intensity(study))
        middle = np.flatnonzero(np.isfinite(slice_levels(standard.label_map)))
        picture = standard.pixels[..., middle[len(middle) // 2]]
        blood.append([picture[9:17, 42:53].mean(), picture[79:87, 42:53].mean()])
        for view in ("polar", "image"):
            assert study_tensor(study, view)[0].isfinite().all()
    left, right = np.mean(
        blood, axis=0
    )  # blood of the right ventricle on one side, dark lung on the other
    assert left > right + 0.5
