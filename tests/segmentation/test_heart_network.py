"""The heart network: geometry with known answers, training, prediction, files."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lgekit.config import size_settings
from lgekit.data.readers import read_cohort
from lgekit.errors import InputError
from lgekit.segmentation import model as networks
from lgekit.segmentation import slices as grids
from lgekit.segmentation import train
from lgekit.segmentation.model import HeartNetwork, HeartSettings, build_unet, move_to_junctions
from lgekit.segmentation.slices import collect_slices
from lgekit.segmentation.train import evaluate_heart_network, fit_heart_network
from lgekit.study import CAVITY, MYOCARDIUM, RV, SCAR, Cohort, Landmarks, Study

SMOKE = HeartSettings(steps=30, learning_rate=3e-3, border_steps=8)
DATA = Path(__file__).parents[3] / "shared" / "data"
ANGLES = ("anterior_rvip_deg", "inferior_rvip_deg")


def ring_study(index=0, anterior=120.0, mirrored=False, spacing=(1.5, 1.5, 10.0), rv=True) -> Study:
    """A dark ring around a bright disc, with a crescent on the septal side; three slices."""
    rng, hand = np.random.default_rng(index), -1 if mirrored else 1
    shape = (int(240 / spacing[0]), int(210 / spacing[1]), 3)
    x, y, level = np.indices(shape)
    offset = rng.uniform(-25, 25, 2)
    x, y = (x + 0.5) * spacing[0] - 120 - offset[0], (y + 0.5) * spacing[1] - 105 - offset[1]
    radius, angle = np.hypot(x, y), np.degrees(np.arctan2(-y, x))
    outer, from_anterior = 34 - 3 * level, (hand * (angle - anterior)) % 360
    # thicker at the anterior end, which tells it from the inferior end
    crescent = (radius < outer + 6 + 22 * (1 - from_anterior / 110)) & (from_anterior < 110)
    masks = [radius < outer - 10, radius < outer, crescent]
    labels = np.select(masks, [CAVITY, MYOCARDIUM, RV]).astype(np.uint8)
    image = np.select(masks, [180, 20, 200], 60) + rng.normal(0, 5, shape)
    if not rv:
        labels[labels == RV] = 0
    points = Landmarks(anterior % 360, (anterior + hand * 110) % 360)
    fields = {"landmarks": points, "split": "train"}
    return Study.from_arrays(f"ring{index}", np.abs(image) + 1, spacing, labels, **fields)


def ring_cohort(count: int, start: int = 0) -> Cohort:
    rng = np.random.default_rng(start)
    poses = [(rng.uniform(0, 360), bool(rng.integers(2))) for _ in range(count)]
    return Cohort([ring_study(start + i, *pose) for i, pose in enumerate(poses)], name="rings")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


def fit(cohort: Cohort, seed=0, **changes) -> HeartNetwork:
    return fit_heart_network(cohort, replace(SMOKE, **changes), seed, None, progress=False)


def drawn(studies) -> list[tuple]:
    return [(study.label_map.tobytes(), repr(study["landmarks"])) for study in studies]


@pytest.fixture(scope="module")
def network() -> HeartNetwork:
    return fit(ring_cohort(3), steps=2, border_steps=2)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 10.0), (2.0, 1.0, 8.0)])
def test_square_slices_are_isotropic_and_labels_return_to_the_study(spacing):
    study = ring_study(1, spacing=spacing)
    padding = ((40, 0), (0, 0), (0, 0))  # of exact zeros
    image, labels = np.pad(study.pixels, padding), np.pad(study.label_map, padding)
    padded = Study.from_arrays("padded", image, spacing, labels)
    frame, _ = grids.square_slices(padded)
    assert 128 * frame.mm_per_pixel == pytest.approx(120, abs=2), "the padding does not count"
    slices = collect_slices([padded])
    across = [(slices.labels[0] == 1).any(axis).sum() for axis in (0, 1)]
    assert abs(across[0] - across[1]) <= 2, "the circle stays a circle"
    assert float(slices.diameter[0]) == pytest.approx(68 / 120, rel=0.02)
    maps = torch.stack([slices.labels == code for code in range(4)], dim=1).float()
    back = grids.draw_labels(frame, maps, torch.zeros(2), torch.tensor(1.0))
    for label in (CAVITY, MYOCARDIUM, RV):
        assert dice(back == label, labels == label) > 0.95
    edge = grids.draw_labels(frame, maps, torch.tensor([0.9, 0.0]), torch.tensor(0.3))
    assert edge.shape == labels.shape and not edge[: labels.shape[0] // 2].any()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("anterior", [5.0, 250.0])
def test_votes_of_the_true_angle_field_give_the_landmarks(anterior, mirrored):
    slices = collect_slices([ring_study(2, anterior, mirrored)])
    offset = grids.screen_grid((256, 256)) - slices.centre[:, None, None]
    field = grids.angle_field(offset, slices.insertions, slices.mirrored)
    weight = 1.0 * ((slices.labels == 1) | (slices.labels == 2))
    votes = grids.angle_votes(field, weight, grids.as_complex(offset).sgn())
    found = grids.landmarks_from_votes(votes)
    assert abs((found.anterior_rvip_deg - anterior + 180) % 360 - 180) < 1
    assert found.mirrored == mirrored and found.confidence > 0.95


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("points_of", [train.crop_points, train.polar_points])
def test_training_examples_have_the_rv_between_the_insertion_points(points_of, mirrored):
    slices = collect_slices([ring_study(4, 40.0, mirrored)])
    chosen, rng = torch.zeros(16, dtype=torch.long), torch.Generator().manual_seed(0)
    points = points_of(grids.Slices(*(one[chosen] for one in slices)), SMOKE, rng)
    examples = train.draw_examples(slices, slices.neighbours[chosen], points, 0.0, rng)
    rv = examples.classes == 3
    assert rv.any((1, 2)).all()
    assert (examples.angles[:, 1][rv] > 0).float().mean() > 0.9
    assert (examples.angles[:, 3][rv] < 0).float().mean() > 0.9


@pytest.mark.parametrize("mirror", [False, True])
def test_turned_copy_moves_image_labels_and_landmarks_together(mirror):
    copy = train.rotated_copy(ring_study(9, 30.0, spacing=(2.0, 1.2, 10.0)), 100.0, mirror)
    assert copy["landmarks"].mirrored == mirror
    assert copy.pixels[copy.label_map == CAVITY].mean() > 0.75
    moved = move_to_junctions(copy["landmarks"], copy.label_map, copy.spacing_mm)
    for name in ANGLES:
        error = getattr(moved, name) - getattr(copy["landmarks"], name)
        assert error != 0 and abs((error + 180) % 360 - 180) < 8


def test_the_loss_ignores_an_rv_that_is_not_labelled():
    known, unknown = (collect_slices([ring_study(5, rv=rv)]) for rv in (True, False))

    def loss(slices, *logits):
        rng = torch.Generator().manual_seed(0)
        points = train.crop_points(slices, SMOKE, rng)
        examples = train.draw_examples(slices, slices.neighbours, points, 0.0, rng)
        output = torch.tensor([*logits, 0.0, 0, 0, 0])[None, :, None, None]
        return train.heart_loss(output.expand(3, 8, *examples.classes.shape[1:]), examples)

    background, swapped = (3.0, 1, 1, -2), (-2.0, 1, 1, 3)
    assert abs(loss(unknown, *background) - loss(unknown, *swapped)) < 1e-5
    assert loss(known, *background) < loss(known, *swapped) - 0.5


def test_a_missing_rv_is_taken_from_the_first_network():
    lacking, known = ring_study(1, rv=False), ring_study(2, anterior=30.0)
    bare = Study.from_arrays("bare", lacking.pixels, lacking.spacing_mm, lacking.label_map)
    everywhere = np.full(lacking.label_map.shape, RV, np.uint8)
    everywhere[:40] = 0
    prediction = Study.from_arrays("drawn", bare.pixels, bare.spacing_mm, everywhere)
    first = SimpleNamespace(predict=lambda study: prediction)
    completed = [train.with_drawn_rv(study, first) for study in (lacking, known, bare)]
    expected = np.where((lacking.label_map == 0) & (everywhere == RV), RV, lacking.label_map)
    assert np.array_equal(completed[0].label_map, expected) and (lacking.label_map != RV).all()
    assert completed[0]["landmarks"] == lacking["landmarks"] and completed[1] is known
    slices = collect_slices(completed)
    assert slices.rv_known.all()
    assert slices.landmark_weight[[0, 3, 6]].tolist() == [1, 1, 0]


def test_prediction_depends_on_the_image_alone_and_leaves_the_study_alone(network):
    study = ring_study(7)
    study["labels"].data[0, :, :, 0][study["labels"].data[0, :, :, 0] == MYOCARDIUM] = SCAR
    assert (collect_slices([study]).labels[0] == 2).sum() > 500, "scar is myocardium"
    labels, image = study.label_map.copy(), study.pixels.copy()
    first = network.predict(study)
    second = network.predict(Study.from_arrays("bare", study.pixels, study.spacing_mm))
    assert np.array_equal(labels, study.label_map) and np.array_equal(image, study.pixels)
    assert drawn([first]) == drawn([second])
    assert first["labels"].shape == study["image"].shape
    assert set(np.unique(first.label_map)) <= {0, CAVITY, MYOCARDIUM, RV}
    assert 0 <= first["landmarks"].confidence <= 1


def test_threads_do_not_change_predictions(network):
    cohort, before = ring_cohort(3), torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(network.predict_cohort(cohort).studies)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert drawn(found[0]) == drawn(found[1])
    assert [study["study_id"] for study in found[1]] == ["ring0", "ring1", "ring2"]


def test_the_seed_decides_the_weights():
    rings = ring_cohort(2)
    first, again, other = (fit(rings, seed=seed, steps=3, border_steps=1) for seed in (1, 1, 2))
    states = [list(one.state_dict().values()) for one in (first, again, other)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))


def test_one_cached_network_serves_all_reports_and_another_label_needs_its_own(
    own_cache, monkeypatch
):
    rings, trainings = ring_cohort(2), []
    fitted = train.fit_heart_network

    @wraps(fitted)
    def counted(*args, **named):
        trainings.append(1)
        return fitted(*args, **named)

    monkeypatch.setattr(train, "fit_heart_network", counted)
    reworded = Cohort([Study(**{**one, "report": "No enhancement."}) for one in rings], "rings")
    for cohort in (rings, reworded, ring_cohort(2, start=9)):
        train.heart_network(cohort, size_settings("smoke"), steps=1, progress=False)
    assert len(trainings) == 2
    bare = Cohort([Study(study_id="bare", image=ring_study(8)["image"])], "bare")
    with pytest.raises(InputError, match="no study has a label"):
        train.heart_network(bare, size_settings("smoke"))


def test_files_restore_the_network(network, tmp_path):
    study, folder = ring_study(8), network.save(tmp_path / "heart")
    again = HeartNetwork.load(folder)
    assert again.settings == network.settings and again.trained_on == ("rings",)
    assert drawn([again.predict(study)]) == drawn([network.predict(study)])
    (folder / "heart.safetensors").write_bytes(b"short")
    for bad in (folder, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="not a heart network"):
            HeartNetwork.load(bad)


def test_bad_encoders_are_named():
    with pytest.raises(InputError, match="setting encoder"):
        size_settings("smoke", encoder="a/b")
    for name in ("resnet999", "vit_tiny_patch16_224"):
        with pytest.raises(InputError, match=f"setting encoder: '{name}'") as caught:
            build_unet(replace(SMOKE, encoder=name), 0)
        assert "\n" not in str(caught.value)


def test_a_short_training_draws_rings():
    network = fit(ring_cohort(8), steps=60, border_steps=0, pixels=48)
    table = evaluate_heart_network(network, ring_cohort(4, start=100), seed=0)
    assert table["dice_cavity"].median() > 0.8
    assert table["dice_myocardium"].median() > 0.6


@pytest.mark.slow
def test_a_longer_training_finds_the_insertion_points_of_rings():
    network = fit(ring_cohort(24), steps=250, border_steps=240)
    table = evaluate_heart_network(network, ring_cohort(8, start=100), seed=0)
    assert table["dice_rv"].median() > 0.85
    assert table["mirror_right"].mean() > 0.8
    assert table["anterior_error_deg"].median() < 10


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "emidec").is_dir(), reason="needs ../shared/data/emidec")
def test_a_short_training_draws_real_hearts():
    cohort = read_cohort(f"emidec:{DATA / 'emidec'}")
    studies = [study for study in cohort.studies if study["patient_id"] != "Case_P059"]
    own = HeartSettings(steps=300, border_steps=120)
    network = fit_heart_network(Cohort(studies[::2]), own, 0, None, progress=False)
    table = evaluate_heart_network(network, Cohort(studies[1::4]), seed=0)
    assert table["dice_cavity"].median() > 0.7


def test_an_uncertain_heart_is_also_looked_for_in_the_middle(monkeypatch):
    """A large dim object outweighs the heart in the whole picture, but is drawn uncertainly."""
    x, y = np.mgrid[-1:1:128j, -1:1:128j]
    heart = np.hypot(x - 0.1, y) < 0.25
    image = np.where(heart, 1000.0, np.where((x > 0.5) | (y > 0.6), 600.0, 1.0))
    network = HeartNetwork(replace(SMOKE, border_steps=0))

    def brightness_as_cavity(crops):
        return torch.cat([1 - crops, crops, torch.zeros(len(crops), 6, *crops.shape[2:])], dim=1)

    monkeypatch.setattr(network, "maps", brightness_as_cavity)
    stack = np.repeat(image[..., None], 3, 2)
    found = network.predict(Study.from_arrays("dim", stack, (1.5, 1.5, 8)))
    assert dice(stack == 1000, found.label_map == CAVITY) > 0.95


@pytest.mark.parametrize("hand", [1, -1])
def test_a_vote_moves_to_a_junction_that_is_near(hand):
    study = ring_study(anterior=120.0, mirrored=hand < 0)
    true, labels = study["landmarks"], study.label_map
    voted = Landmarks(true.anterior_rvip_deg + 15 * hand, true.inferior_rvip_deg - 70 * hand, 0.6)
    moved = move_to_junctions(voted, labels, study.spacing_mm)
    assert moved.anterior_rvip_deg == pytest.approx(true.anterior_rvip_deg, abs=6)
    assert moved.inferior_rvip_deg == voted.inferior_rvip_deg and moved.confidence == 0.6
    assert move_to_junctions(voted, np.where(labels == RV, 0, labels), study.spacing_mm) == voted


def test_a_picture_without_a_heart_has_no_landmarks(monkeypatch, network):
    empty = Study.from_arrays("empty", np.zeros((40, 50, 2)), (1.5, 1.5, 8))
    assert network.predict(empty)["labels"].shape == (1, 40, 50, 2)
    alone = HeartNetwork(replace(SMOKE, border_steps=0))
    monkeypatch.setattr(alone, "maps", lambda crops: torch.eye(8)[:1, :, None, None] * crops)
    found = alone.predict(empty)
    assert not found.label_map.any() and found["landmarks"].confidence == 0
    assert np.isnan([getattr(found["landmarks"], name) for name in ANGLES]).all()


RADIUS, INNER = 0.4, 0.25  # of the ring that the border network draws, in crop coordinates
DEPTHS, COLUMNS = networks.POLAR_DEPTHS, networks.POLAR_ANGLES
X, Y = torch.meshgrid(*[grids.pixel_axis(networks.DRAWN)] * 2, indexing="xy")
X, Y = X - 0.15, Y - 0.1  # from its centre
DISTANCE = torch.hypot(X, Y)


def ring_maps(slices=3, inner=INNER, outer=RADIUS):
    """Maps ``(slices, 8, h, h)`` of a U-Net that is certain of a ring."""
    wall = (DISTANCE >= inner) & (DISTANCE < outer)
    maps = torch.stack([DISTANCE >= outer, DISTANCE < inner, wall, *[wall * False] * 5])
    return maps.float().repeat(slices, 1, 1, 1)


def refine(network, maps):
    squares = torch.zeros(len(maps), 1, 256, 256)
    centre, half_width = torch.tensor([0.1, -0.2]), torch.tensor(0.5)
    return networks.refine_borders(network, squares, maps, centre, half_width)


class AlwaysTheSame(torch.nn.Module):
    """Draws a cavity up to `inner` radii, a wall up to 1, and an RV up to 2 at the lower left."""

    def __init__(self, inner, anterior, mirrored):
        super().__init__()
        depth = networks.SAMPLE_DEPTHS[:, 0]
        rv = (3 * (depth - 1)).clamp(max=1)  # equals the wall at 1 and the surroundings at 2 radii
        logits = 30 * torch.stack([depth - 1, inner - depth, torch.zeros(DEPTHS), rv])
        logits = logits[:, :, None].repeat(1, 1, COLUMNS)
        logits[3, :, : COLUMNS // 4], logits[3, :, COLUMNS // 2 :] = -90, -90
        hand = -1 if mirrored else 1
        points = [np.radians(anterior), np.radians(anterior + 110 * hand)]
        angles = [hand * (-networks.COLUMN_ANGLES - point) for point in points]
        field = torch.stack([f(angle) for angle in angles for f in (torch.cos, torch.sin)])
        self.output = torch.cat([logits, field[:, None].expand(4, DEPTHS, COLUMNS)])[None]

    def forward(self, pictures):
        return self.output.expand(len(pictures), -1, -1, -1)


@pytest.mark.parametrize("mirrored", [False, True])
def test_polar_drawings_and_votes_return_to_the_right_place(mirrored):
    network = AlwaysTheSame(INNER / RADIUS, 70.0, mirrored)
    maps, votes = refine(network, ring_maps(inner=0.33))  # the U-Net's cavity is too large
    for code in (1, 2):
        assert dice(maps.argmax(1) == code, ring_maps()[:, code] > 0) > 0.97
    rv = (DISTANCE > RADIUS) & (DISTANCE < 2 * RADIUS) & (X < 0) & (Y > 0)
    assert dice(maps[0].argmax(0) == 3, rv) > 0.95
    points = grids.landmarks_from_votes(votes)
    assert points.anterior_rvip_deg == pytest.approx(70, abs=0.5) and points.mirrored == mirrored


def test_a_slice_with_almost_no_heart_is_left_alone():
    rough = ring_maps()
    rough[2] = ring_maps(1, 0, 0.05)[0]
    maps, _ = refine(AlwaysTheSame(0.2, 0, False), rough)
    assert torch.equal(maps[2], rough[2, :4]) and not torch.equal(maps[1], rough[1, :4])


def test_random_pictures_repeat_themselves_and_keep_the_shape():
    rng = torch.Generator().manual_seed(3)
    labels = torch.zeros(40, 3, DEPTHS, COLUMNS)
    labels[:, :, :12], labels[:, :, 12:20] = 1, 2
    images = torch.full_like(labels, 0.5)
    varied = [grids.random_contrast(images, torch.Generator().manual_seed(n)) for n in (0, 0, 1)]
    assert (images == 0.5).all() and all(torch.isfinite(one).all() for one in varied)
    assert torch.equal(varied[0], varied[1]) and not torch.equal(varied[0], varied[2])
    assert torch.equal(grids.synthesize_from_labels(images, labels, 0.0, rng), images)
    invented = grids.synthesize_from_labels(images, labels, 1.0, rng)
    assert invented.shape == images.shape and 0 <= invented.min() and invented.max() <= 1
    middle = invented.median(3).values
    blood, muscle = middle[:, :, 2:9].mean((1, 2)), middle[:, :, 14:18].mean((1, 2))
    assert (blood - muscle).abs().median() > 0.1 and 0.5 < (blood > muscle).float().mean() < 1
    some = grids.synthesize_from_labels(images, labels, 0.3, rng)
    assert 0.05 < (some != images).flatten(1).any(1).float().mean() < 0.6
