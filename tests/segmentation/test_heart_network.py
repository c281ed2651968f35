"""The heart network: geometry with known answers, training, prediction, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lgekit import cache
from lgekit.config import size_settings
from lgekit.errors import InputError
from lgekit.evaluation import realism
from lgekit.segmentation import train
from lgekit.segmentation.model import (
    SIZES,
    HeartNetwork,
    build_encoder,
    build_unet,
    move_to_junctions,
)
from lgekit.segmentation.slices import (
    angle_field,
    angle_votes,
    collect_slices,
    crop,
    directions,
    landmarks_from_votes,
    random_crops,
    square_slices,
    vary_appearance,
)
from lgekit.segmentation.train import (
    crop_examples,
    evaluate_heart_network,
    fit_heart_network,
    heart_loss,
    polar_examples,
    turned_copy,
    with_drawn_rv,
)
from lgekit.study import CAVITY, MYOCARDIUM, RV, SCAR, Cohort, Landmarks, Study

DATA = Path(__file__).parents[3] / "shared" / "data"
SMOKE = SIZES["smoke"]


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


def fit(cohort: Cohort, **changes) -> HeartNetwork:
    return fit_heart_network([cohort], "smoke", progress=False, **changes)


@pytest.fixture(scope="module")
def network() -> HeartNetwork:
    return fit(ring_cohort(3), steps=2, border_steps=2)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 10.0), (2.0, 1.0, 8.0)])
def test_square_slices_are_isotropic_and_labels_return_to_the_study(spacing):
    study = ring_study(1, spacing=spacing)
    padding = ((40, 0), (0, 0), (0, 0))  # of exact zeros
    image, labels = np.pad(study.pixels, padding), np.pad(study.label_map, padding)
    padded = Study.from_arrays("padded", image, spacing, labels)
    square = square_slices(padded)
    assert square.half_mm == pytest.approx(120, abs=2), "the padding does not count"
    slices = collect_slices([[padded]])
    left = np.isin(slices.labels[0].numpy(), (1, 2))
    across = [left.any(axis).sum() for axis in (0, 1)]
    assert across[0] == pytest.approx(across[1], abs=2), "the circle stays a circle"
    assert float(slices.diameter[0]) == pytest.approx(68 / 120, rel=0.02)
    maps = torch.stack([slices.labels == code for code in range(4)], dim=1).float()
    whole, everything = square.to_study(maps, torch.zeros(2), 1.0)
    back = everything.argmax(1).permute(2, 1, 0).numpy()
    for code, label in ((1, CAVITY), (2, MYOCARDIUM)):
        assert dice(back == code, labels[whole] == label) > 0.95
    box, part = square.to_study(maps, torch.tensor([0.9, 0.0]), 0.3)  # beyond the edge
    assert part.shape[2:] == (box[1].stop - box[1].start, box[0].stop - box[0].start)
    assert box[0].stop == labels.shape[0] and box[0].stop - box[0].start < 0.5 * labels.shape[0]


def test_random_crops_show_a_dot_where_their_axes_say():
    rng = torch.Generator().manual_seed(3)
    points = torch.rand(20, 2, generator=rng) - 0.5
    squares = torch.zeros(20, 1, 256, 256)
    for i, (x, y) in enumerate(((points + 1) * 128 - 0.5).round().long().tolist()):
        squares[i, 0, y - 2 : y + 3, x - 2 : x + 3] = 1
    axes, centre = random_crops(torch.zeros(20, 2), torch.ones(20), rng)
    shown = crop(squares, axes, centre, 128)[:, 0]
    expected = torch.linalg.solve(axes, (points - centre)[:, :, None])[:, :, 0]
    axis, mass = (torch.arange(128) + 0.5) / 64 - 1, shown.sum((1, 2))
    found = torch.stack([shown.sum(1) @ axis, shown.sum(2) @ axis], dim=1) / mass[:, None]
    inside = (expected.abs() < 0.9).all(1)
    assert inside.sum() >= 10 and (found - expected)[inside].abs().max() < 0.02
    assert 4 < (torch.linalg.det(axes) < 0).sum() < 16, "half are mirrored"


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("anterior", [5.0, 250.0])
def test_votes_of_the_true_angle_field_give_the_landmarks(anterior, mirrored):
    slices = collect_slices([[ring_study(2, anterior, mirrored)]])
    unit, distance = directions(256, slices.centre)
    x, y = unit[:, 0], unit[:, 1]
    field = angle_field(x, y, slices.insertions, slices.handedness)
    weight = distance * ((slices.labels == 1) | (slices.labels == 2))
    found = landmarks_from_votes(angle_votes(field, weight, x, y).sum(0))
    assert abs((found.anterior_rvip_deg - anterior + 180) % 360 - 180) < 1
    assert found.mirrored == mirrored and found.confidence > 0.95
    turn = (found.inferior_rvip_deg - found.anterior_rvip_deg) * (-1 if mirrored else 1)
    assert turn % 360 == pytest.approx(110, abs=1)
    nothing = landmarks_from_votes(torch.zeros(5, dtype=torch.complex64))
    assert np.isnan(nothing.anterior_rvip_deg) and nothing.confidence == 0


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("make_examples", [crop_examples, polar_examples])
def test_training_examples_have_the_rv_between_the_insertion_points(make_examples, mirrored):
    """However a picture is turned and mirrored, the angle field tells the septal side."""
    slices = collect_slices([[ring_study(4, 40.0, mirrored)]])
    chosen, rng = torch.zeros(16, dtype=torch.long), torch.Generator().manual_seed(0)
    examples = make_examples(slices, chosen, SMOKE, rng)
    rv = examples.classes == 3
    assert rv.any((1, 2)).all()
    assert (examples.angles[:, 1][rv] > 0).float().mean() > 0.9
    assert (examples.angles[:, 3][rv] < 0).float().mean() > 0.9


@pytest.mark.parametrize("mirror", [False, True])
def test_turned_copy_moves_image_labels_and_landmarks_together(mirror):
    copy = turned_copy(ring_study(9, 30.0, spacing=(2.0, 1.2, 10.0)), 100.0, mirror)
    assert copy["landmarks"].mirrored == mirror
    moved = move_to_junctions(copy["landmarks"], copy.label_map, copy.spacing_mm)
    for name in ("anterior_rvip_deg", "inferior_rvip_deg"):
        error = getattr(moved, name) - getattr(copy["landmarks"], name)
        assert error != 0 and abs((error + 180) % 360 - 180) < 8


def test_random_appearance_repeats_itself_and_leaves_its_input_alone():
    images = torch.rand(6, 1, 32, 32)
    before = images.clone()
    first, again, other = (
        vary_appearance(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(images, before) and torch.isfinite(first).all()
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_loss_ignores_an_rv_that_is_not_labelled():
    known, unknown = (collect_slices([[ring_study(5, rv=rv)]]) for rv in (True, False))

    def loss(slices, *logits):
        rng = torch.Generator().manual_seed(0)
        examples = crop_examples(slices, torch.arange(3), SMOKE, rng)
        output = torch.tensor([*logits, 0.0, 0, 0, 0], requires_grad=True)
        pictures = output[None, :, None, None].expand(3, 8, *examples.classes.shape[1:])
        return output, heart_loss(pictures, examples)

    background, swapped = (3.0, 1, 1, -2), (-2.0, 1, 1, 3)
    difference = loss(unknown, *background)[1] - loss(unknown, *swapped)[1]
    assert abs(float(difference.detach())) < 1e-5
    assert loss(known, *background)[1] < loss(known, *swapped)[1] - 0.5
    output, value = loss(unknown, 0.0, 0, 0, 0)
    value.backward()
    assert output.grad[0] == pytest.approx(float(output.grad[3]), abs=1e-6)


def test_continued_training_learns_a_missing_rv_from_the_first_network(monkeypatch):
    """Labels are kept, and unknown landmarks stay unknown."""
    lacking, known = ring_study(1, rv=False), ring_study(2, anterior=30.0)
    bare = Study.from_arrays("bare", lacking.pixels, lacking.spacing_mm, lacking.label_map)
    everywhere = np.full(lacking.label_map.shape, RV, np.uint8)
    everywhere[:40] = 0

    def predict(network, studies, group=8):
        drawn = [Study.from_arrays("", s.pixels, s.spacing_mm, everywhere) for s in studies]
        return Cohort(drawn)

    monkeypatch.setattr(HeartNetwork, "predict_cohort", predict)
    start = HeartNetwork(SMOKE, [build_unet(SMOKE, 0)])
    completed = with_drawn_rv([lacking, known, bare], start)
    expected = np.where((lacking.label_map == 0) & (everywhere == RV), RV, lacking.label_map)
    assert np.array_equal(completed[0].label_map, expected) and (lacking.label_map != RV).all()
    assert completed[0]["landmarks"] == lacking["landmarks"] and completed[1] is known
    slices = collect_slices([completed])
    assert slices.rv_known.all()
    assert slices.landmark_weight[[0, 3, 6]].tolist() == [1, 1, 0]
    collected = []
    collect = train.collect_slices
    monkeypatch.setattr(
        train, "collect_slices", lambda x: collected.append(collect(x)) or collect(x)
    )
    fit(Cohort([lacking]), init=start, steps=1, border_steps=0)
    assert collected[0].rv_known.all()


def test_prediction_depends_on_the_image_alone_and_leaves_the_study_alone(network):
    study = ring_study(7)
    study["labels"].data[0, :, :, 0][study["labels"].data[0, :, :, 0] == MYOCARDIUM] = SCAR
    assert (collect_slices([[study]]).labels[0] == 2).sum() > 500, "scar is myocardium"
    labels, image = study.label_map.copy(), study.pixels.copy()
    first = network.predict(study)
    second = network.predict(Study.from_arrays("bare", study.pixels, study.spacing_mm))
    assert np.array_equal(labels, study.label_map) and np.array_equal(image, study.pixels)
    assert torch.equal(first["labels"].data, second["labels"].data)
    assert repr(first["landmarks"]) == repr(second["landmarks"])
    assert first["labels"].data.dtype == torch.uint8
    assert first["labels"].shape == study["image"].shape
    assert set(np.unique(first.label_map)) <= {0, CAVITY, MYOCARDIUM, RV}
    assert 0 <= first["landmarks"].confidence <= 1


def test_threads_do_not_change_predictions(network):
    studies, before = [ring_study(index) for index in range(3)], torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(network.predict_cohort(studies, group=1).studies)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    for alone, together in zip(*found, strict=True):
        assert alone["study_id"] == together["study_id"]
        assert torch.equal(alone["labels"].data, together["labels"].data)
        assert repr(alone["landmarks"]) == repr(together["landmarks"])


def test_bfloat16_is_used_only_where_it_is_fast_and_changes_little(network, monkeypatch):
    capabilities: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    crops, maps = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for fast in (False, True):
        capabilities["avx512_bf16"] = fast
        cache.has_fast_bfloat16.cache_clear()
        maps.append(network.maps(crops))
    cache.has_fast_bfloat16.cache_clear()
    assert maps[1].dtype == torch.float32
    assert not torch.equal(*maps) and (maps[0] - maps[1]).abs().max() < 0.05


def test_the_seed_decides_the_weights_and_the_mean_network_averages():
    first, again, other = (
        fit(ring_cohort(2), seed=seed, steps=3, border_steps=1) for seed in (1, 1, 2)
    )
    states = [list(one.state_dict().values()) for one in (first, again, other)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))
    crops = torch.rand(3, 1, 64, 64)
    mean = HeartNetwork.mean([first, other])
    assert torch.allclose(mean.maps(crops), (first.maps(crops) + other.maps(crops)) / 2, atol=1e-6)
    assert len(mean.borders) == 2 and mean.trained_on == ("rings",)
    narrow = HeartNetwork(replace(SMOKE, heart_view=2.0), first.networks)
    with pytest.raises(InputError, match="same pixels and heart_view"):
        HeartNetwork.mean([first, narrow])


def test_files_restore_the_network(network, tmp_path):
    study, folder = ring_study(8), network.save(tmp_path / "heart")
    about = (folder / "heart.json").read_text()
    (folder / "heart.json").write_text(about.replace('"steps"', '"poses": 1, "steps"', 1))  # older
    again = HeartNetwork.load(folder)
    assert again.settings == network.settings and again.trained_on == ("rings",)
    assert torch.equal(again.predict(study)["labels"].data, network.predict(study)["labels"].data)
    (folder / "heart.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="not a heart network"):
        HeartNetwork.load(folder)
    with pytest.raises(InputError, match="no such file"):
        HeartNetwork.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["regnetx_002", "resnet34"])
def test_the_timm_encoder_gives_the_features_of_the_unet(name):
    settings = replace(SMOKE, encoder=name)
    network = HeartNetwork(settings, [build_unet(settings, 0)])
    encoder = build_encoder(name).eval()
    encoder.load_state_dict(network.encoder_state())
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        features = network.networks[0].encoder(images)[-1]
        assert torch.allclose(encoder.forward_features(images), features, atol=1e-5)


def test_bad_settings_and_cohorts_are_named():
    bare = Cohort([Study.from_arrays("bare", np.ones((20, 20, 2)), (1, 1, 8))])
    with pytest.raises(InputError, match="unknown"):
        fit_heart_network([bare], size="huge")
    with pytest.raises(InputError, match="stepz"):
        fit(bare, stepz=3)
    with pytest.raises(InputError, match="no study has a label"):
        fit(bare)
    with pytest.raises(InputError, match="no_such_net"):
        build_encoder("no_such_net")


@pytest.mark.parametrize("name", ["resnet999", "vit_tiny_patch16_224", "a/b"])
def test_an_encoder_that_fits_no_network_is_named(name):
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
    """A tenth of the laptop training on half of EMIDEC finds the heart in the other half."""
    from lgekit.data.readers import read_cohort

    cohort = read_cohort(f"emidec:{DATA / 'emidec'}")
    studies = [study for study in cohort.studies if study["patient_id"] != "Case_P059"]
    half = Cohort(studies[::2], "half")
    network = fit_heart_network([half], steps=300, border_steps=120, progress=False)
    table = evaluate_heart_network(network, studies[1::4], seed=0)
    assert table["dice_cavity"].median() > 0.7


def test_an_uncertain_heart_is_also_looked_for_in_the_middle(monkeypatch):
    """A large dim object outweighs the heart in the whole picture, but is drawn uncertainly."""
    x, y = np.mgrid[-1:1:128j, -1:1:128j]
    heart = np.hypot(x - 0.1, y) < 0.25
    image = np.where(heart, 1000.0, np.where((x > 0.5) | (y > 0.6), 600.0, 1.0))
    network = HeartNetwork(SMOKE, [build_unet(SMOKE, 0)])

    def brightness_as_cavity(crops):
        return torch.cat([1 - crops, crops, torch.zeros(len(crops), 6, *crops.shape[2:])], dim=1)

    monkeypatch.setattr(network, "maps", brightness_as_cavity)
    stack = np.repeat(image[..., None], 3, 2)
    drawn = network.predict(Study.from_arrays("dim", stack, (1.5, 1.5, 8)))
    assert dice(stack == 1000, drawn.label_map == CAVITY) > 0.95


@pytest.mark.parametrize("hand", [1, -1])
def test_a_vote_moves_to_a_junction_that_is_near(hand):
    study = ring_study(anterior=120.0, mirrored=hand < 0)
    true, labels = study["landmarks"], study.label_map
    voted = Landmarks(true.anterior_rvip_deg + 15 * hand, true.inferior_rvip_deg - 70 * hand, 0.6)
    moved = move_to_junctions(voted, labels, study.spacing_mm)
    assert moved.anterior_rvip_deg == pytest.approx(true.anterior_rvip_deg, abs=6)
    assert moved.inferior_rvip_deg == voted.inferior_rvip_deg and moved.confidence == 0.6
    assert move_to_junctions(voted, np.where(labels == RV, 0, labels), study.spacing_mm) == voted
    nowhere = Landmarks(float("nan"), float("nan"), 0.0)
    assert move_to_junctions(nowhere, labels, study.spacing_mm) is nowhere


def test_an_empty_picture_has_no_landmarks(network):
    found = network.predict(Study.from_arrays("empty", np.zeros((40, 50, 2)), (1.5, 1.5, 8)))
    assert found["labels"].shape == (1, 40, 50, 2)
    if not np.isin(found.label_map, (CAVITY, MYOCARDIUM)).any():
        assert np.isnan(found["landmarks"].anterior_rvip_deg) and found["landmarks"].confidence == 0


def test_every_study_is_measured_by_a_network_of_the_other_folds(monkeypatch):
    cohort = Cohort([ring_study(i, spacing=(8, 8, 10)) for i in range(12)])
    monkeypatch.setattr(realism, "heart_network", lambda train, *rest: train)

    def measured(network, test, seed):
        assert not set(test.manifest["study_id"]) & set(network.manifest["study_id"])
        return test.manifest[["study_id", "patient_id"]]

    monkeypatch.setattr(realism, "evaluate_heart_network", measured)
    table = realism.measure_folds(cohort, [], size_settings("smoke"), folds=4)
    assert sorted(table["study_id"]) == sorted(cohort.manifest["study_id"])
    assert table["fold"].nunique() == 4


def test_the_quality_table_leaves_out_uncertain_ground_truth():
    columns = {"study_id": list("abcd"), "patient_id": list("abcd"), "dice_rv": np.nan}
    columns |= {"dice_cavity": [0.8, 0.9, 1.0, 0.9], "dice_myocardium": 0.5}
    columns |= {"anterior_error_deg": [4.0, 6.0, 8.0, 170.0], "inferior_error_deg": 5.0}
    columns |= {"mirror_right": [1.0, 1.0, 0.0, 0.0], "reference_confidence": [1, 1, 0.5, 0.2]}
    table = realism.quality_table(pd.DataFrame(columns))
    assert table.loc["dice_cavity, median", "value"] == pytest.approx(0.9)
    assert table.loc["anterior_error_deg, median", ["value", "studies"]].tolist() == [6, 3]
    assert table.loc["mirror_right, share", "value"] == pytest.approx(2 / 3)
    assert "dice_rv, median" not in table.index
