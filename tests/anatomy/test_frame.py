"""The standard frame and the polar view: a heart gives the same picture however it was stored."""

import doctest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st

import lgekit.anatomy.frame
from lgekit.anatomy.frame import StandardizeShortAxis, normalised, polar_grid
from lgekit.anatomy.segments import Ventricle, segment_map, voxel_angle
from lgekit.clip.data import make_view
from lgekit.config import size_settings
from lgekit.data.readers import read_cohort
from lgekit.errors import InputError
from lgekit.study import CAVITY, MYOCARDIUM, RV, SCAR, WALL_CODES, Landmarks, Study

EMIDEC = Path(__file__).parents[3] / "shared" / "data" / "emidec"
SLICES = 6


def heart(
    turned=120.0, mirrored=False, x=0.0, y=0.0, spacing=1.2, scale=1.0, backwards=False, pixels=128
):
    """A smooth heart with an inferior scar, anterior insertion at ``turned``."""
    dx, dy = ((np.arange(pixels) - (pixels - 1) / 2) * h for h in (spacing, 1.2))
    z = ((dx[:, None] - x) - 1j * (dy[None] - y)) * np.exp(-1j * np.radians(turned)) / scale
    z = (z.conj() if mirrored else z) * np.exp(1j * np.radians(120))  # mm in the standard frame
    labels = np.zeros((pixels, pixels, SLICES), np.uint8)
    image = np.zeros(labels.shape)
    angle = np.degrees(np.angle(z)) % 360
    blobs = [(18 + 18j, 8, 100), (-20 + 9j, 6, 60), (-5 - 24j, 7, 80)]
    for s in range(SLICES):
        plane = labels[..., s]
        plane[abs(z + 22) < 22] = RV
        plane[abs(z) < 26 - 2 * s] = MYOCARDIUM
        plane[abs(z) < 16 - 2 * s] = CAVITY
        plane[(plane == MYOCARDIUM) & (angle > 240) & (angle < 300)] = SCAR
        image[..., s] = 5 * s
        for place, width, height in [*blobs, (0, 12 - s, 50)]:
            image[..., s] += height * np.exp(-(abs(z - place) ** 2) / (2 * width**2))
    if backwards:
        labels, image = labels[..., ::-1], image[..., ::-1]
    landmarks = Landmarks(turned % 360, (turned + (-110 if mirrored else 110)) % 360, 0.9)
    return Study.from_arrays("heart", image, (spacing, 1.2, 10.0), labels, landmarks=landmarks)


stored_hearts = st.builds(
    heart,
    turned=st.floats(0, 359.9),
    mirrored=st.booleans(),
    x=st.floats(-12, 12),
    y=st.floats(-12, 12),
    spacing=st.floats(1.0, 1.5),
    scale=st.floats(0.9, 1.15),
    backwards=st.booleans(),
)


@given(study=stored_hearts)
@settings(max_examples=15, deadline=None)
def test_frame_and_polar_view_do_not_depend_on_storage(study):
    transform = StandardizeShortAxis(64)
    reference, standard = transform(heart()), transform(study)
    middle = (slice(12, 52), slice(12, 52))  # inside both pictures
    difference = (standard.pixels - reference.pixels)[middle]
    assert np.sqrt((difference**2).mean()) < 2.5  # of a contrast of 100
    assert (standard.label_map == reference.label_map)[middle].mean() > 0.95
    segments = segment_map(standard.label_map, standard.spacing_mm, standard["landmarks"])
    assert np.isin(segments[standard.label_map == SCAR], (4, 10, 15)).mean() > 0.9  # inferior
    assert np.argwhere(standard.label_map == RV)[:, 0].mean() < 20  # left of the middle
    assert standard["landmarks"].anterior_rvip_deg == 120
    assert standard["landmarks"].inferior_rvip_deg == pytest.approx(230)
    assert standard["orientation_confident"]
    ventricle = Ventricle.of(standard.label_map)
    np.testing.assert_allclose(ventricle.centre, 31.5, atol=0.5)
    np.testing.assert_allclose(ventricle.levels, np.linspace(0, 1, SLICES))
    assert standard.spacing_mm[0] == pytest.approx(standard.spacing_mm[1])
    polar, same = (polar_grid(s).view(s["image"].data) for s in (heart(), study))
    assert polar.shape == (1, 16, 96, SLICES)
    assert (polar - same).square().mean().sqrt() < 3
    # a mask that is drawn in the frame keeps its place in the scanner
    mask = (standard.label_map == SCAR) & (np.arange(SLICES) == 1)
    back = standard["frame"].to_scanner(torch.from_numpy(mask)[None])[0].numpy()
    assert back.shape == study.spatial_shape and back.dtype == bool
    there, here = (
        (owner["image"].affine @ np.r_[np.argwhere(drawn).mean(0), 1])[:3]
        for owner, drawn in ((standard, mask), (study, back))
    )
    pixel = max(*study.spacing_mm[:2], standard.spacing_mm[0])
    np.testing.assert_allclose(there, here, atol=pixel / 2)
    assert (study.label_map[back] == SCAR).mean() > 0.8


def test_history_replays_and_the_input_is_not_modified():
    study = heart(turned=200, mirrored=True, x=9, y=-5, backwards=True)
    pixels, labels = study.pixels.copy(), study.label_map.copy()
    standard = StandardizeShortAxis(80)(study)
    assert (study.pixels == pixels).all() and (study.label_map == labels).all()
    assert "frame" not in study and isinstance(standard, Study)
    assert standard["labels"].data.dtype == torch.uint8
    again = standard.get_composed_history()(study)
    assert torch.equal(again["image"].data, standard["image"].data)
    back = standard["frame"].to_scanner(standard["labels"].data)
    inside = (back != 0) & (study["labels"].data != 0)
    assert (back == study["labels"].data)[inside].float().mean() > 0.94
    real = standard["frame"].to_scanner(standard["image"].data, nearest=False)
    assert (real - study["image"].data)[inside].abs().mean() < 1


@pytest.mark.parametrize("landmarks", [Landmarks(10, 280, 0.1), None, Landmarks(np.nan, 200.0)])
def test_uncertain_or_missing_landmarks_give_no_turn(landmarks):
    study = heart(turned=10, x=9, y=-5, backwards=True)
    study["landmarks"] = landmarks
    study["labels"].set_data(study["labels"].data * (study["labels"].data != RV))
    standard = StandardizeShortAxis()(study)
    assert standard["orientation_confident"] is False
    same = StandardizeShortAxis(orientation="centre")(study)
    assert torch.equal(standard["image"].data, same["image"].data)
    assert Ventricle.of(standard.label_map).levels[0] == 0
    assert polar_grid(study).angles_deg[0] == 120


def test_orientation_none_crops_the_stored_image_and_ignores_the_labels():
    study = heart(turned=10, x=9, y=-5, backwards=True)
    standard = StandardizeShortAxis(64, field_of_view_mm=64 * 1.2, orientation="none")(study)
    np.testing.assert_allclose(standard.pixels, study.pixels[32:96, 32:96], atol=1e-3)
    settings = size_settings("smoke").override(orientation="none")
    view = make_view(study, settings)
    study["labels"].data[:] = 0
    assert torch.equal(make_view(study, settings).images, view.images)
    assert view.own_slices.tolist() == list(range(SLICES))


def test_a_study_without_a_heart_or_contrast_gives_finite_tensors():
    empty, constant = heart(), heart()
    empty["labels"].set_data(torch.zeros_like(empty["labels"].data))
    constant["image"].set_data(torch.full_like(constant["image"].data, 7.0))
    assert StandardizeShortAxis(64)(empty)["orientation_confident"] is False
    for study in (empty, constant):
        for name, shape in (("polar", (16, 48)), ("image", (64, 64))):
            view = make_view(study, size_settings("smoke", view=name))
            assert view.images.shape == (SLICES, 1, *shape) and view.images.isfinite().all()
            np.testing.assert_allclose(view.levels, np.linspace(0, 1, SLICES), atol=1e-6)


def test_the_transform_works_in_a_pipeline_and_its_example_runs():
    with pytest.raises(InputError, match="orientation"):
        StandardizeShortAxis(orientation="upside down")
    transform = tio.Compose([StandardizeShortAxis(32), tio.RandomNoise()])
    assert transform(heart(turned=20, pixels=100)).spatial_shape == (32, 32, SLICES)
    assert doctest.testmod(lgekit.anatomy.frame).failed == 0


def test_polar_columns_are_angles_and_rows_are_depths():
    study = heart(turned=77, mirrored=True)
    labels = study["labels"].data
    grid = polar_grid(study)
    columns = np.flatnonzero(grid.view((labels == SCAR).float())[0, 8, :, 1] > 0.5)
    # the scar is 120–180° after the insertion point
    assert columns[0] in (32, 33) and columns[-1] in (47, 48) and len(columns) in (15, 16, 17)
    wall = ((labels == MYOCARDIUM) | (labels == SCAR)).float()
    # the wall fills 1 of 1.6 thicknesses, after 0.4; along evened contours 1 of 2, after 0.6
    for one, rows in ((grid, [4, 13]), (grid.evened(), [5, 12])):
        filled = np.flatnonzero(one.view(wall)[0, ..., 1].mean(1) > 0.5)
        assert filled[[0, -1]].tolist() == rows
        np.testing.assert_allclose(one.endocardium[1], 14, atol=0.6)
        np.testing.assert_allclose(one.thickness[1], 10, atol=0.7)


def test_gaps_in_the_wall_are_bridged_and_slices_without_a_heart_have_no_level():
    study = heart()
    labels = study["labels"].data
    angle = torch.as_tensor(voxel_angle(*np.indices((128, 128)), (63.5, 63.5), (1, 1)))
    labels[0, :, :, 1][((angle - 300) % 360 < 50) & (labels[0, :, :, 1] == MYOCARDIUM)] = 0
    labels[..., 0] = 0
    labels[0, 60, 60, 2] = MYOCARDIUM  # a speck in the cavity
    grid = polar_grid(study)
    assert np.isnan(grid.levels[0]) and grid.levels[1] == 0
    ray = np.exp(1j * np.radians(grid.angles_deg)) * (grid.endocardium + grid.thickness)[1]
    epicardium = (grid.centres[1] - 63.5) * 1.2 @ [1, -1j] + ray
    np.testing.assert_allclose(abs(epicardium), 24, atol=1.5)
    np.testing.assert_allclose(grid.endocardium[2], polar_grid(heart()).endocardium[2], atol=1.5)


@pytest.mark.parametrize("change", [{"masks": "predicted"}, {"masks": "true"}, {"view": "image"}])
def test_views_have_the_slices_with_a_heart_from_base_to_apex(change):
    settings = size_settings("smoke").override(**change)
    study, reversed_study = heart(), heart(backwards=True)
    study["labels"].data[..., 0] = 0  # the basal slice has no heart
    reversed_study["labels"].data[..., -1] = 0
    view, same = make_view(study, settings), make_view(reversed_study, settings)
    assert view.own_slices.tolist() == [1, 2, 3, 4, 5]
    assert same.own_slices.tolist() == [4, 3, 2, 1, 0]
    assert torch.equal(view.levels, same.levels) and view.levels.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert view.images.dtype == torch.float32
    torch.testing.assert_close(view.images, same.images, atol=1e-3, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.45])
def test_scar_does_not_move_the_intensity_reference(share):
    rng, study = np.random.default_rng(0), heart()
    wall = np.flatnonzero(np.isin(study.label_map, WALL_CODES))
    pixels = rng.normal(200, 10, study.label_map.shape)
    pixels.flat[wall] = rng.normal(50, 10, len(wall))
    scar = rng.permutation(wall)[: int(share * len(wall))]
    pixels.flat[scar] = rng.normal(300, 40, len(scar))
    pixels[..., 2] += 100  # one slice is brighter
    study["image"].set_data(torch.as_tensor(pixels, dtype=torch.float32)[None])
    normal = normalised(study)
    healthy = np.isin(study.label_map, WALL_CODES)
    healthy.flat[scar] = False
    for s in range(SLICES):
        assert abs(np.median(normal[0, ..., s].numpy()[healthy[..., s]])) < 0.12
    assert 0.9 < np.median(normal[0].numpy()[study.label_map == CAVITY]) < 2
    assert normal.abs().max() <= 4 and study.pixels.max() > 200
    study["image"].set_data(study["image"].data * 3 + 70)
    torch.testing.assert_close(normalised(study), normal, atol=1e-3, rtol=0)


@pytest.mark.skipif(not EMIDEC.exists(), reason="needs ../shared/data/emidec")
def test_real_hearts_have_the_right_ventricle_on_the_left():
    table = pd.read_csv(EMIDEC / "rvip.csv", index_col="case").query("confidence == 'high'")
    studies = {study["study_id"]: study for study in read_cohort(f"emidec:{EMIDEC}").studies}
    blood = []
    for case, row in table[::4].iterrows():
        study = studies[case]
        angles = row["anterior_rvip_deg"], row["inferior_rvip_deg"]
        study["landmarks"] = Landmarks(*map(float, angles))
        study["image"].set_data(normalised(study))
        standard = StandardizeShortAxis(96)(study)
        middle = np.flatnonzero(np.isfinite(Ventricle.of(standard.label_map).levels))
        picture = standard.pixels[..., middle[len(middle) // 2]]
        blood.append([picture[9:17, 42:53].mean(), picture[79:87, 42:53].mean()])
    left, right = np.mean(blood, axis=0)  # blood of the right ventricle, and dark lung
    assert left > right + 0.5
