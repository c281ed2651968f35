"""The border network: closed rings, correct places and votes, and better borders after training."""

import numpy as np
import pytest
import torch
from torch import nn

from lgekit.data.phantom import phantom_cohort
from lgekit.segmentation.model import SIZES
from lgekit.segmentation.polar_unet import (
    ANGLES,
    DEPTHS,
    DRAWN,
    OUTER,
    SAMPLE_AREAS,
    SAMPLE_DEPTHS,
    STRETCH,
    build_border_network,
    refine_borders,
    ring_points,
    ring_shape,
)
from lgekit.segmentation.slices import collect_slices, invent_appearance, landmarks_from_votes
from lgekit.segmentation.train import fit_heart_network, heart_loss, polar_examples
from lgekit.study import Cohort

CENTRE, HALF = torch.tensor([0.1, -0.2]), torch.tensor(0.5)
MIDDLE, RADIUS, INNER = (0.15, 0.1), 0.4, 0.25  # of a ring, in crop coordinates


def screen_distance(middle=MIDDLE):
    axis = (torch.arange(DRAWN) + 0.5) / DRAWN * 2 - 1
    x, y = axis[None] - middle[0], axis[:, None] - middle[1]
    return x, y, torch.hypot(x, y)


def ring_maps(slices=3, inner=INNER, outer=RADIUS, middle=MIDDLE):
    """Maps ``(slices, 8, h, h)`` of a U-Net that is certain of a ring."""
    distance = screen_distance(middle)[2]
    classes = torch.where(distance < inner, 1, torch.where(distance < outer, 2, 0))
    maps = torch.zeros(slices, 8, DRAWN, DRAWN)
    maps[:, :4] = nn.functional.one_hot(classes, 4).permute(2, 0, 1).float()
    return maps


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def refine(network, maps):
    squares = torch.zeros(len(maps), 1, 256, 256)
    return refine_borders(nn.ModuleList([network]), squares, maps, CENTRE, HALF)


class AlwaysTheSame(nn.Module):
    """Draws a cavity up to `inner` radii, a wall up to 1, and an RV up to 2 at the lower left."""

    def __init__(self, inner, anterior, mirrored):
        super().__init__()
        depth = SAMPLE_DEPTHS[:, 0]
        rv = (3 * (depth - 1)).clamp(max=1)  # equals the wall at 1 and the surroundings at 2 radii
        logits = 30 * torch.stack([depth - 1, inner - depth, torch.zeros(DEPTHS), rv])
        logits = logits[:, :, None].repeat(1, 1, ANGLES)
        logits[3, :, : ANGLES // 4], logits[3, :, ANGLES // 2 :] = -90, -90
        columns = -torch.arange(ANGLES) * (2 * torch.pi / ANGLES)  # clockwise on the screen
        hand = -1 if mirrored else 1
        points = [np.radians(anterior), np.radians(anterior + 110 * hand)]
        angles = [hand * (columns - point) for point in points]
        field = torch.stack([f(angle) for angle in angles for f in (torch.cos, torch.sin)])
        self.output = torch.cat([logits, field[:, None].expand(4, DEPTHS, ANGLES)])[None]

    def forward(self, pictures):
        return self.output.expand(len(pictures), -1, -1, -1)


def test_the_output_turns_with_the_picture():
    network = build_border_network((8, 8, 16, 16), 0).eval()
    pictures = torch.rand(2, 3, DEPTHS, ANGLES, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        turned = network(pictures.roll(16, 3))
        assert torch.allclose(turned, network(pictures).roll(16, 3), atol=1e-5)
    assert turned.shape == (2, 8, DEPTHS, ANGLES)


def test_areas_of_the_samples_add_up_to_the_disc():
    assert float(SAMPLE_AREAS.sum()) * STRETCH == pytest.approx(OUTER**2 / 2, rel=1e-3)
    steps = SAMPLE_DEPTHS[:, 0].diff()
    assert (steps.diff() > 0).all() and steps[0] < 0.045 and steps[-1] > 0.12


def test_ring_points_run_clockwise_on_the_screen_unless_mirrored():
    centre, radius = torch.tensor([[0.2, 0.1]]), torch.tensor([0.4])
    points = ring_points(centre, radius)[0]
    end = torch.tensor([0.4 * float(SAMPLE_DEPTHS[-1]), 0.0])
    assert torch.allclose(points[-1, 0] - centre[0], end)
    assert points[-1, ANGLES // 4, 1] > centre[0, 1] + 0.5  # y points down
    mirrored = ring_points(centre, radius, 0.0, torch.tensor([[-1.0]]))[0]
    assert torch.allclose(mirrored[:, 1:].flip(1), points[:, 1:], atol=1e-6)


@pytest.mark.parametrize("mirrored", [False, True])
def test_polar_drawings_and_votes_return_to_the_right_place(mirrored):
    network = AlwaysTheSame(INNER / RADIUS, 70.0, mirrored)
    maps, votes = refine(network, ring_maps(inner=0.33))  # the U-Net's cavity is too large
    for code in (1, 2):
        assert dice(maps.argmax(1) == code, ring_maps()[:, code] > 0) > 0.97
    x, y, distance = screen_distance()
    rv = (distance > RADIUS) & (distance < 2 * RADIUS) & (x < 0) & (y > 0)
    assert dice(maps[0].argmax(0) == 3, rv) > 0.95
    assert torch.allclose(maps.sum(1), torch.ones(3, DRAWN, DRAWN), atol=1e-4)
    points = landmarks_from_votes(votes)
    assert points.anterior_rvip_deg == pytest.approx(70, abs=0.5) and points.mirrored == mirrored
    assert points.confidence > 0.9


def test_a_slice_with_almost_no_heart_is_left_alone():
    rough = ring_maps()
    rough[2] = ring_maps(1, 0, 0.05)[0]
    maps, _ = refine(AlwaysTheSame(0.2, 0, False), rough)
    assert torch.equal(maps[2], rough[2, :4]) and not torch.equal(maps[1], rough[1, :4])


def test_only_slices_whose_heart_moved_or_grew_are_drawn_twice():
    rough = torch.cat([ring_maps(1), ring_maps(1, outer=0.3), ring_maps(1, middle=(0.3, 0.1))])
    seen = []

    class Seeing(AlwaysTheSame):
        def forward(self, pictures):
            seen.append(len(pictures))
            if len(pictures) < 3:
                return super().forward(pictures)
            size = torch.tensor([1.0, RADIUS / 0.3, 1.0])  # the second heart is larger than drawn
            offset = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-0.15 / RADIUS, 0.0]])  # the third off
            points = ring_points(torch.zeros(3, 2), torch.ones(3)) - offset[:, None, None]
            inside = (points.norm(dim=-1) < size[:, None, None]).float()
            logits = 30 * torch.stack([1 - inside, inside, 0 * inside - 1, 0 * inside - 1], dim=1)
            return torch.cat([logits, logits], dim=1)

    maps, _ = refine(Seeing(INNER / RADIUS, 70.0, False), rough)
    assert seen == [3, 2]
    for number in (1, 2):
        assert dice(maps[number, 1:3].sum(0) > 0.5, ring_maps()[0, 1:3].sum(0) > 0.5) > 0.97


def test_centroid_and_size_of_a_polar_ring_are_measured():
    shift, radius = torch.tensor([0.2, -0.1]), 0.8
    points = ring_points(torch.zeros(1, 2), torch.ones(1))
    left = ((points - shift).norm(dim=-1) < radius).float()
    moved, size = ring_shape(torch.stack([1 - left, left * 0.3, left * 0.7, 0 * left], dim=1))
    assert torch.allclose(moved[0], shift, atol=0.01)
    assert float(size) == pytest.approx(radius, abs=0.01)


def test_training_lowers_the_loss():
    cohort = Cohort(phantom_cohort(3, seed=2, pixels=96, workers=1).studies)
    changes = {"steps": 1, "border_steps": 40, "border_channels": (8, 16, 16, 16)}
    heart = fit_heart_network([cohort], "smoke", seed=1, progress=False, **changes)
    slices = collect_slices([cohort.studies])
    usable = torch.nonzero((slices.labels > 0).sum((1, 2)) > 200)[:, 0]

    def loss(network):
        rng = torch.Generator().manual_seed(0)
        examples = polar_examples(slices, usable, SIZES["smoke"], rng)
        with torch.no_grad():
            return float(heart_loss(network(examples.pictures), examples))

    assert loss(heart.borders[0]) < 0.85 * loss(build_border_network((8, 16, 16, 16), 1).eval())


def test_generated_pictures_keep_the_shape_and_close_the_ring():
    rng = torch.Generator().manual_seed(3)
    labels = torch.zeros(40, 3, DEPTHS, ANGLES)
    labels[:, :, :12], labels[:, :, 12:20] = 1, 2
    images = torch.full_like(labels, 0.5)
    assert torch.equal(invent_appearance(images, labels, 0.0, rng), images)
    drawn = invent_appearance(images, labels, 1.0, rng, wrap=True)
    assert drawn.shape == images.shape and 0 <= drawn.min() and drawn.max() <= 1
    blood = drawn[:, :, 2:9].median(3).values.mean((1, 2))
    muscle = drawn[:, :, 14:18].median(3).values.mean((1, 2))
    assert (blood - muscle).abs().median() > 0.1 and 0.5 < (blood > muscle).float().mean() < 1
    jump = (drawn[..., 0] - drawn[..., -1]).abs().mean()
    assert jump < 1.2 * (drawn[..., 1:] - drawn[..., :-1]).abs().mean()
    some = invent_appearance(images, labels, 0.3, rng)
    assert 0.05 < (some != images).flatten(1).any(1).float().mean() < 0.6
