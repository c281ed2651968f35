"""The heart network: geometry of canvas, views and angle field with known answers; learning; files."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lgekit import cache as precision
from lgekit.clip.model import check_encoder
from lgekit.config import size_settings
from lgekit.errors import InputError
from lgekit.evaluation import realism as heart_quality
from lgekit.segmentation.model import (
    SIZES,
    HeartNetwork,
    build_encoder,
    build_unet,
    move_to_junctions,
)
from lgekit.segmentation.slices import (
    Views,
    angle_field,
    angle_votes,
    collect_slices,
    landmarks_from_votes,
    make_canvas,
    pixel_points,
    plain_views,
    random_views,
    vary_appearance,
)
from lgekit.segmentation.train import (
    evaluate_heart_network,
    fit_heart_network,
    heart_loss,
    turned_copy,
    with_drawn_rv,
)
from lgekit.study import CAVITY, MYOCARDIUM, RV, SCAR, Cohort, Landmarks, Study

DATA = Path(__file__).parents[3] / "shared" / "data"


def ring_study(
    index: int = 0, anterior=120.0, mirrored=False, spacing=(1.5, 1.5, 10.0), slices=3, rv=True
) -> Study:
    """A dark ring around a bright disc, a crescent on the septal side, on a plate of muscle; noise by index."""
    rng = np.random.default_rng(index)
    hand = -1 if mirrored else 1
    shape = (int(240 / spacing[0]), int(210 / spacing[1]))
    centre = np.array([120.0, 105.0]) + rng.uniform(-25, 25, 2)
    x = (np.arange(shape[0])[:, None] + 0.5) * spacing[0] - centre[0]
    y = (np.arange(shape[1])[None] + 0.5) * spacing[1] - centre[1]
    radius, angle = np.hypot(x, y), np.degrees(np.arctan2(-y, x))
    from_anterior = (hand * (angle - anterior)) % 360
    labels = np.zeros((*shape, slices), np.uint8)
    image = np.full(labels.shape, 60.0)
    for s in range(slices):
        outer = 34 - 3 * s
        # thicker towards the anterior end, so that anterior and inferior can be told apart
        crescent = (radius < outer + 6 + 22 * (1 - from_anterior / 110)) & (from_anterior < 110)
        for code, mask, value in (
            (RV, crescent, 200),
            (MYOCARDIUM, radius < outer, 20),
            (CAVITY, radius < outer - 10, 180),
        ):
            labels[mask, s] = code
            image[mask, s] = value
    image += rng.normal(0, 5, image.shape)
    if not rv:
        labels[labels == RV] = 0
    points = Landmarks(anterior % 360, (anterior + hand * 110) % 360, 1.0)
    return Study.from_arrays(
        f"ring{index}", np.abs(image) + 1, spacing, labels, landmarks=points, split="train"
    )


def ring_cohort(count: int, start: int = 0) -> Cohort:
    rng = np.random.default_rng(start)
    return Cohort(
        [ring_study(start + i, rng.uniform(0, 360), bool(rng.integers(2))) for i in range(count)],
        name="rings",
    )


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


@pytest.fixture(scope="module")
def smoke_network() -> HeartNetwork:
    return fit_heart_network([ring_cohort(3)], size="smoke", steps=2, progress=False)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 10.0), (2.0, 1.0, 8.0)])
def test_canvas_is_isotropic_and_goes_back(spacing):
    study = ring_study(1, spacing=spacing)
    image = np.zeros(
        (study.pixels.shape[0] + 40, study.pixels.shape[1], 3), np.float32
    )  # padding of exact zeros
    image[40:] = study.pixels
    labels = np.zeros(image.shape, np.uint8)
    labels[40:] = study.label_map
    padded = Study.from_arrays("padded", image, spacing, labels)
    canvas = make_canvas(padded)
    assert canvas.half_mm == pytest.approx(120, abs=2)  # half of 240 mm: the padding is not counted
    slices = collect_slices([[padded]])
    left = ((slices.labels[0] == 1) | (slices.labels[0] == 2)).numpy()
    across = [left.any(axis).sum() for axis in (0, 1)]
    assert across[0] == pytest.approx(across[1], abs=2)  # a circle is a circle
    assert float(slices.diameter[0]) == pytest.approx(68 / 120, rel=0.02)
    maps = torch.stack([slices.labels == code for code in range(4)], dim=1).float()
    whole = (slice(0, canvas.shape[0]), slice(0, canvas.shape[1]))
    on_study = canvas.to_study(maps, torch.zeros(2), 1.0, whole)
    back = on_study.argmax(1).permute(2, 1, 0).numpy()
    assert dice(back == 2, labels == MYOCARDIUM) > 0.95
    assert dice(back == 1, labels == CAVITY) > 0.97
    for centre, half_width in (
        (torch.tensor([0.1, -0.2]), 0.4),
        (torch.tensor([0.9, 0.0]), 0.3),
    ):  # one over the edge
        box = canvas.view_box(centre, half_width)
        assert box[0].stop - box[0].start < 0.5 * canvas.shape[0]
        part, everything = (canvas.to_study(maps, centre, half_width, b) for b in (box, whole))
        inside = torch.zeros(everything.shape[2:], dtype=torch.bool)
        inside[box[1], box[0]] = True
        assert torch.allclose(everything[..., inside], part.flatten(2), atol=1e-4)
        assert float(everything[:, 1:, ~inside].abs().max()) == 0


def test_pixels_lie_where_torch_puts_them():
    theta = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.affine_grid(theta, [3, 1, 20, 33], align_corners=False)
    assert torch.allclose(
        pixel_points(theta[:, :, :2], theta[:, :, 2], 20, 33), expected, atol=1e-5
    )


def test_views_are_where_they_say():
    """A dot on the canvas appears where ``to_view`` puts it, however the view is turned, mirrored and stretched."""
    rng = torch.Generator().manual_seed(3)
    points = torch.rand(20, 2, generator=rng) - 0.5
    canvases = torch.zeros(20, 1, 256, 256)
    for i, (x, y) in enumerate(((points + 1) * 128 - 0.5).round().long().tolist()):
        canvases[i, 0, y - 2 : y + 3, x - 2 : x + 3] = 1
    views = random_views(torch.zeros(20, 2), torch.ones(20), 0.15, 0.2, rng)
    seen = views.sample(canvases, 128)[:, 0]
    expected = views.to_view(points)
    axis = (torch.arange(128) + 0.5) / 64 - 1
    inside = (expected.abs() < 0.9).all(1)
    assert inside.sum() >= 10
    mass = seen.sum((1, 2))
    found = torch.stack([seen.sum(1) @ axis, seen.sum(2) @ axis], dim=1) / mass[:, None]
    assert (found - expected)[inside].abs().max() < 0.02
    assert 4 < (views.handedness < 0).sum() < 16


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("anterior", [5.0, 120.0, 250.0])
def test_votes_of_a_true_field_give_the_landmarks_back(anterior, mirrored):
    slices = collect_slices([[ring_study(2, anterior, mirrored)]])
    plain = plain_views(torch.zeros(len(slices), 2), torch.ones(len(slices)))
    field, _ = angle_field(slices, plain, 128)
    maps = torch.stack([slices.labels == code for code in range(4)], dim=1)[:, :, ::2, ::2].float()
    found = landmarks_from_votes(angle_votes(maps, field, slices.centre).sum(0))
    assert abs((found.anterior_rvip_deg - anterior + 180) % 360 - 180) < 1
    assert found.mirrored == mirrored
    assert found.confidence > 0.95
    turn = (found.inferior_rvip_deg - found.anterior_rvip_deg) * (-1 if mirrored else 1)
    assert turn % 360 == pytest.approx(110, abs=1)


def test_angle_field_in_random_views_points_at_the_insertion():
    """At the place where the view shows the anterior insertion point, the field says angle 0, mirrored or not."""
    slices = collect_slices([[ring_study(4, 40.0, True, slices=30)]])[
        torch.zeros(30, dtype=torch.long)
    ]
    rng = torch.Generator().manual_seed(0)
    views = random_views(slices.centre, slices.diameter * 1.25, 0.1, 0.1, rng)
    field, distance = angle_field(slices, views, 96)
    at = [
        views.to_view(slices.centre + 0.5 * slices.diameter[:, None] * slices.insertions[:, p])
        for p in range(2)
    ]
    for i in range(30):
        column, row = ((at[0][i] + 1) * 48 - 0.5).round().long().tolist()
        assert field[i, 0, row, column] > 0.98 and abs(field[i, 1, row, column]) < 0.15
        assert 0.85 < distance[i, 0, row, column] < 1.15
        column, row = (
            ((at[1][i] + 1) * 48 - 0.5).round().long().tolist()
        )  # the inferior one: 110 degrees further
        assert field[i, 1, row, column] > 0.7, (
            "anterior to inferior must run the same way in a mirrored view"
        )


def test_no_votes_no_landmarks():
    found = landmarks_from_votes(torch.zeros(5, dtype=torch.complex64))
    assert np.isnan(found.anterior_rvip_deg) and found.confidence == 0


def test_appearance_changes_values_and_nothing_else():
    images = torch.rand(6, 1, 32, 32)
    before = images.clone()
    out = vary_appearance(images, torch.Generator().manual_seed(0))
    assert torch.equal(images, before) and out.shape == images.shape and torch.isfinite(out).all()
    assert torch.equal(out, vary_appearance(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(out, vary_appearance(images, torch.Generator().manual_seed(1)))


class FixedLogits(nn.Module):
    """Gives the same logits everywhere, so that the loss has a known answer."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([*logits, 0.0, 0, 0, 0]))

    def forward(self, images):
        return self.logits[None, :, None, None].expand(len(images), 8, *images.shape[-2:])


def test_loss_leaves_out_an_rv_that_is_not_labelled():
    settings = SIZES["smoke"]
    known, unknown = (collect_slices([[ring_study(5, rv=rv)]]) for rv in (True, False))
    background, swapped = FixedLogits([3.0, 1, 1, -2]), FixedLogits([-2.0, 1, 1, 3])

    def loss(module, slices):
        return float(
            heart_loss(module, slices, settings, torch.Generator().manual_seed(0)).detach()
        )

    assert loss(background, unknown) == pytest.approx(loss(swapped, unknown), abs=1e-5)
    assert loss(background, known) < loss(swapped, known) - 0.5
    module = FixedLogits([0.0, 0, 0, 0])
    heart_loss(module, unknown, settings, torch.Generator().manual_seed(0)).backward()
    assert module.logits.grad[0] == pytest.approx(float(module.logits.grad[3]), abs=1e-6)


def test_an_rv_that_is_not_labelled_is_learned_from_the_network_that_goes_on(monkeypatch):
    """What it draws over the labelled ventricle counts nothing, and a study without landmarks gets none from it."""
    lacking, known = ring_study(1, rv=False), ring_study(2, anterior=30.0)
    bare = Study.from_arrays("bare", lacking.pixels, lacking.spacing_mm, lacking.label_map)
    everything = np.full(lacking.label_map.shape, RV, np.uint8)
    everything[:40] = 0

    class Draws:
        def predict_cohort(self, studies):
            assert len(studies), "an empty cohort is refused"
            drawn = [
                Study.from_arrays("drawn", s.pixels, s.spacing_mm, everything) for s in studies
            ]
            return Cohort(drawn, "predicted")

    completed = with_drawn_rv([lacking, known, bare], Draws())
    expected = np.where((lacking.label_map == 0) & (everything == RV), RV, lacking.label_map)
    assert np.array_equal(completed[0].label_map, expected) and (lacking.label_map != RV).all()
    assert completed[0]["landmarks"] == lacking["landmarks"] and completed[1] is known
    assert with_drawn_rv([known], Draws()) == [known]
    slices = collect_slices([completed])
    assert slices.rv_known.all()
    assert (slices.landmark_weight[slices.study == 2] == 0).all() and (
        slices.landmark_weight[:3] == 1
    ).all()
    shown: list[int] = []
    monkeypatch.setattr(
        "lgekit.segmentation.train.with_drawn_rv",
        lambda studies, _: shown.append(len(studies)) or studies,
    )
    start = HeartNetwork(SIZES["smoke"], [build_unet(SIZES["smoke"], 0)])
    fit_heart_network(
        [Cohort([lacking], "one")], "smoke", init=start, steps=1, border_steps=0, progress=False
    )
    assert shown == [1]


def test_scar_is_myocardium_and_the_input_is_left_alone(smoke_network):
    study = ring_study(6)
    labels = study["labels"].data
    labels[0, :, :, 0][labels[0, :, :, 0] == MYOCARDIUM] = SCAR
    slices = collect_slices([[study]])
    assert (slices.labels[0] == 2).sum() > 500
    before, image = labels.clone(), study["image"].data.clone()
    smoke_network.predict(study)
    assert torch.equal(labels, before) and torch.equal(study["image"].data, image)


def test_prediction_depends_on_the_image_alone(smoke_network):
    study = ring_study(7)
    bare = Study.from_arrays("bare", study.pixels, study.spacing_mm)
    first, second = smoke_network.predict(study), smoke_network.predict(bare)
    assert torch.equal(first["labels"].data, second["labels"].data)
    assert first["landmarks"] == second["landmarks"] or np.isnan(
        first["landmarks"].anterior_rvip_deg
    )
    assert (
        first["labels"].data.dtype == torch.uint8 and first["labels"].shape == study["image"].shape
    )
    assert set(np.unique(first.label_map)) <= {0, CAVITY, MYOCARDIUM, RV}
    assert 0 <= first["landmarks"].confidence <= 1


def test_threads_change_no_prediction(smoke_network):
    studies, before = [ring_study(index) for index in range(3)], torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(smoke_network.predict_cohort(studies, group=1).studies)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    for alone, together in zip(*found, strict=True):
        assert alone["study_id"] == together["study_id"]
        assert torch.equal(alone["labels"].data, together["labels"].data)
        assert np.array_equal(
            astuple(alone["landmarks"]), astuple(together["landmarks"]), equal_nan=True
        )


def test_fast_bfloat16_predicts_nearly_the_same_and_only_where_the_processor_has_it(
    smoke_network, monkeypatch
):
    capabilities: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    views = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = []
    for fast in (False, True):
        capabilities["avx512_bf16"] = fast
        precision.has_fast_bfloat16.cache_clear()
        maps.append(smoke_network.maps(views))
    precision.has_fast_bfloat16.cache_clear()
    assert maps[1].dtype == torch.float32
    assert not torch.equal(*maps) and (maps[0] - maps[1]).abs().max() < 0.05


def test_same_seed_same_weights():
    fits = [
        fit_heart_network([ring_cohort(2)], "smoke", seed=s, steps=3, progress=False)
        for s in (1, 1, 2)
    ]
    states = [torch.cat([p.flatten() for p in fit.networks.parameters()]) for fit in fits]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_files_bring_the_network_back(smoke_network, tmp_path):
    study = ring_study(8)
    again = HeartNetwork.load(smoke_network.save(tmp_path / "heart"))
    assert again.settings == smoke_network.settings and again.trained_on == ("rings",)
    assert torch.equal(
        again.predict(study)["labels"].data, smoke_network.predict(study)["labels"].data
    )
    (tmp_path / "heart" / "heart.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="not a heart network"):
        HeartNetwork.load(tmp_path / "heart")
    with pytest.raises(InputError, match="no such file"):
        HeartNetwork.load(tmp_path / "nowhere")


def test_mean_of_networks(smoke_network):
    other = fit_heart_network([ring_cohort(3)], size="smoke", steps=2, seed=5, progress=False)
    views = torch.rand(3, 1, 64, 64)
    both = HeartNetwork.mean([smoke_network, other])
    expected = (smoke_network.maps(views) + other.maps(views)) / 2
    assert torch.allclose(both.maps(views), expected, atol=1e-6)
    assert torch.allclose(both.maps(views)[:, :4].sum(1), torch.ones(3, 64, 64), atol=1e-5)


@pytest.mark.parametrize("name", ["regnetx_002", "resnet34"])
def test_vision_tower_starts_from_equal_features(name):
    settings = SIZES["smoke"]
    settings = type(settings)(encoder=name, pixels=64)
    network = HeartNetwork(settings, [build_unet(settings, 0)])
    tower = build_encoder(name).eval()
    tower.load_state_dict(network.encoder_state())
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(
            tower.forward_features(images), network.networks[0].encoder(images)[-1], atol=1e-5
        )


def test_bad_input_is_named():
    with pytest.raises(InputError, match="unknown"):
        fit_heart_network([ring_cohort(1)], size="huge")
    with pytest.raises(InputError, match="stepz"):
        fit_heart_network([ring_cohort(1)], size="smoke", stepz=3)
    bare = Study.from_arrays("bare", np.ones((20, 20, 2)), (1, 1, 8))
    with pytest.raises(InputError, match="no study has a label"):
        fit_heart_network([Cohort([bare])], size="smoke")
    with pytest.raises(InputError, match="no_such_net"):
        build_encoder("no_such_net")


@pytest.mark.parametrize("name", ["resnet999", "vit_tiny_patch16_224", "a/b"])
def test_an_encoder_that_no_network_can_be_built_on_is_named(name):
    with pytest.raises(InputError, match=f"setting encoder: '{name}'") as caught:
        build_unet(replace(SIZES["smoke"], encoder=name), 0)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="setting encoder"):
        check_encoder(size_settings("smoke", encoder=name))
    with pytest.raises(InputError, match="setting encoder"):
        check_encoder(size_settings("smoke", encoder=name, masks="true", view="image"))
    check_encoder(
        size_settings("smoke", encoder=name, masks="true")
    )  # the polar view has an encoder of its own


@pytest.mark.parametrize("mirror", [False, True])
def test_turned_copy_turns_image_labels_and_landmarks_alike(mirror):
    study = ring_study(9, 30.0, spacing=(2.0, 1.2, 10.0))
    copy = turned_copy(study, 100.0, mirror)
    assert copy["landmarks"].mirrored == mirror
    slices = collect_slices([[copy]])
    plain = plain_views(torch.zeros(3, 2), torch.ones(3))
    field, _ = angle_field(slices, plain, 256)
    right = (
        slices.labels[0] == 3
    )  # the crescent lies between the two insertion points, so there both sines tell sides
    assert (field[0, 1][right] > 0).float().mean() > 0.95 and (
        field[0, 3][right] < 0
    ).float().mean() > 0.95


def test_learns_to_draw_rings():
    """From random weights: the parts pull in one direction."""
    network = fit_heart_network(
        [ring_cohort(16)], "smoke", steps=70, border_steps=60, progress=False
    )
    table = evaluate_heart_network(network, ring_cohort(4, start=100), seed=0)
    assert table["dice_cavity"].median() > 0.8
    assert table["dice_myocardium"].median() > 0.6


@pytest.mark.slow
def test_learns_the_insertion_points_of_rings():
    network = fit_heart_network(
        [ring_cohort(24)], "smoke", steps=250, border_steps=240, progress=False
    )
    table = evaluate_heart_network(network, ring_cohort(8, start=100), seed=0)
    assert table["dice_rv"].median() > 0.85
    assert table["mirror_right"].mean() > 0.8
    assert table["anterior_error_deg"].median() < 10


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "emidec").is_dir(), reason="needs ../shared/data/emidec")
def test_draws_real_hearts_after_a_short_training():
    """A tenth of the laptop training on half of the EMIDEC studies already finds the heart in the others."""
    from lgekit.data.readers import read_cohort

    cohort = read_cohort(f"emidec:{DATA / 'emidec'}")
    studies = [study for study in cohort.studies if study["patient_id"] != "Case_P059"]
    network = fit_heart_network(
        [Cohort(studies[::2], "half")], steps=300, border_steps=120, progress=False
    )
    table = evaluate_heart_network(network, studies[1::4], seed=0)
    assert table["dice_cavity"].median() > 0.7


def test_a_doubtful_find_makes_it_look_in_the_middle_too(monkeypatch):
    """A large, dim thing outweighs the heart in the whole picture; drawn closely it is doubtful, the heart is not."""
    x, y = np.mgrid[-1:1:128j, -1:1:128j]
    heart = np.hypot(x - 0.1, y) < 0.25
    image = np.where(heart, 1000.0, np.where((x > 0.5) | (y > 0.6), 600.0, 1.0))
    network = HeartNetwork(SIZES["smoke"], [build_unet(SIZES["smoke"], 0)])

    def as_bright_as_likely(views, poses=1):  # in place of a network: what is bright is cavity
        return torch.cat([1 - views, views, torch.zeros(len(views), 6, *views.shape[2:])], dim=1)

    monkeypatch.setattr(network, "maps", as_bright_as_likely)
    drawn = network.predict(
        Study.from_arrays("dim", np.repeat(image[..., None], 3, 2), (1.5, 1.5, 8))
    )
    assert dice(np.repeat(heart[..., None], 3, 2), drawn.label_map == CAVITY) > 0.95


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_voted_point_moves_to_the_junction_if_that_is_near(mirrored):
    study = ring_study(anterior=120.0, mirrored=mirrored)
    true, labels = study["landmarks"], study.label_map
    voted = Landmarks(true.anterior_rvip_deg + 15, true.inferior_rvip_deg - 70, 0.6)
    if mirrored:
        voted = Landmarks(true.anterior_rvip_deg - 15, true.inferior_rvip_deg + 70, 0.6)
    moved = move_to_junctions(voted, labels, study.spacing_mm)
    assert moved.anterior_rvip_deg == pytest.approx(true.anterior_rvip_deg, abs=6)
    assert moved.inferior_rvip_deg == voted.inferior_rvip_deg and moved.confidence == 0.6
    without = np.where(labels == RV, 0, labels)
    assert move_to_junctions(voted, without, study.spacing_mm) == voted
    nowhere = Landmarks(float("nan"), float("nan"), 0.0)
    assert move_to_junctions(nowhere, labels, study.spacing_mm) is nowhere


def test_an_empty_picture_has_no_heart(smoke_network):
    found = smoke_network.predict(Study.from_arrays("empty", np.zeros((40, 50, 2)), (1.5, 1.5, 8)))
    assert found["labels"].shape == (1, 40, 50, 2)
    if not np.isin(found.label_map, (CAVITY, MYOCARDIUM)).any():
        assert np.isnan(found["landmarks"].anterior_rvip_deg) and found["landmarks"].confidence == 0


def test_views_dataclass_is_plain():
    views = plain_views(torch.tensor([[0.2, -0.1]]), torch.tensor([0.5]))
    assert isinstance(views, Views) and views.handedness.tolist() == [1.0]
    assert torch.allclose(views.to_view(torch.tensor([[0.7, -0.1]])), torch.tensor([[1.0, 0.0]]))


def test_every_study_is_measured_once_by_a_network_that_saw_another_fold(monkeypatch):
    cohort, seen = ring_cohort(12), []

    def trained(train, others, settings, progress):
        seen.append(set(train.manifest["study_id"]))
        return train

    def measured(network, test, seed):
        assert not set(test.manifest["study_id"]) & set(network.manifest["study_id"])
        return test.manifest[["study_id", "patient_id"]]

    monkeypatch.setattr(heart_quality, "heart_network", trained)
    monkeypatch.setattr(heart_quality, "evaluate_heart_network", measured)
    table = heart_quality.measure_folds(cohort, [], size_settings("smoke"), folds=4)
    assert sorted(table["study_id"]) == sorted(cohort.manifest["study_id"]) and len(seen) == 4
    for fold, studies in table.groupby("fold"):
        assert not set(studies["study_id"]) & seen[fold]


def test_quality_leaves_out_what_the_reference_is_unsure_of():
    measured = pd.DataFrame(
        {"study_id": list("abcd"), "patient_id": list("abcd"), "dice_cavity": [0.8, 0.9, 1.0, 0.9]}
    )
    measured = measured.assign(
        dice_myocardium=0.5, dice_rv=np.nan, anterior_error_deg=[4.0, 6.0, 8.0, 170.0]
    )
    measured = measured.assign(inferior_error_deg=5.0, mirror_right=[1.0, 1.0, 0.0, 0.0])
    table = heart_quality.quality_table(measured.assign(reference_confidence=[1, 1, 0.5, 0.2]))
    assert table.loc["dice_cavity, median", "value"] == pytest.approx(0.9)
    assert table.loc["anterior_error_deg, median", ["value", "studies"]].tolist() == [6, 3]
    assert table.loc["mirror_right, share", "value"] == pytest.approx(2 / 3)
    assert "dice_rv, median" not in table.index
