"""The border network: rings closed, places right, votes right, and better borders after a short training."""

import numpy as np
import pytest
import torch
from torch import nn

from lgekit.data.phantom import phantom_cohort
from lgekit.segmentation.polar_unet import (
    ANGLES,
    DEPTHS,
    DRAWN,
    REACH,
    STRETCH,
    CloseRing,
    border_loss,
    build_border_network,
    fit_border_network,
    hide_unknown_rv,
    redraw,
    ring_points,
    ring_shape,
    sample_areas,
    sample_depths,
)
from lgekit.segmentation.slices import collect_slices, invent_appearance, landmarks_from_votes

SIDE, CENTRE, HALF = DRAWN, torch.tensor([0.1, -0.2]), torch.tensor(0.5)
MIDDLE, OUTER, INNER = (0.15, 0.1), 0.4, 0.25  # of a ring, in view coordinates


def ring_maps(slices=3, inner=INNER, outer=OUTER, middle=MIDDLE):
    """Maps of a U-Net that is sure of a ring, `(slices, 8, h, h)`."""
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    distance = torch.hypot(axis[None] - middle[0], axis[:, None] - middle[1])
    classes = torch.where(distance < inner, 1, torch.where(distance < outer, 2, 0))
    maps = torch.zeros(slices, 8, SIDE, SIDE)
    maps[:, :4] = nn.functional.one_hot(classes, 4).permute(2, 0, 1).float()
    return maps


class Certain(nn.Module):
    """A border network that always says: cavity up to `inner` radii, wall up to 1, this anterior angle, and an RV in
    the quarter from below (y points down) to the left, up to 2 radii."""

    def __init__(self, inner, anterior, mirrored):
        super().__init__()
        depth = sample_depths(torch.device("cpu"))
        right = (3 * (depth - 1)).clamp(
            max=1
        )  # equal to the wall at 1 and to the surroundings at 2 radii
        logits = 30 * torch.stack([depth - 1, inner - depth, torch.zeros(DEPTHS), right])
        logits = logits[:, :, None].repeat(1, 1, ANGLES)
        logits[3, :, : ANGLES // 4], logits[3, :, ANGLES // 2 :] = -90, -90
        seen = -torch.arange(ANGLES) * (
            2 * torch.pi / ANGLES
        )  # counter-clockwise: columns go clockwise on the screen
        points = [np.radians(anterior), np.radians(anterior + (-110 if mirrored else 110))]
        around = [(-1 if mirrored else 1) * (seen - point) for point in points]
        field = torch.stack([f(p) for p in around for f in (torch.cos, torch.sin)])
        self.output = torch.cat([logits, field[:, None].expand(4, DEPTHS, ANGLES)])[None]

    def forward(self, pictures):
        return self.output.expand(len(pictures), -1, -1, -1)


def test_the_network_turns_with_its_picture():
    network = build_border_network((8, 8, 16, 16), 0).eval()
    pictures = torch.rand(2, 3, DEPTHS, ANGLES, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        turned = network(pictures.roll(16, 3))
        assert torch.allclose(turned, network(pictures).roll(16, 3), atol=1e-5)
        assert turned.shape == (2, 8, DEPTHS, ANGLES)


def test_a_closed_ring_has_the_right_gradient():
    x = torch.rand(
        2,
        3,
        4,
        6,
        dtype=torch.double,
        requires_grad=True,
        generator=torch.Generator().manual_seed(0),
    )
    closed = CloseRing.apply(x)
    assert torch.equal(closed[..., 0], x[..., -1]) and torch.equal(closed[..., -1], x[..., 0])
    assert torch.autograd.gradcheck(CloseRing.apply, (x,))


def test_samples_stand_for_their_areas():
    depths, areas = sample_depths(torch.device("cpu")), sample_areas(torch.device("cpu"))
    assert float(areas.sum()) * STRETCH == pytest.approx(
        REACH**2 / 2, rel=1e-3
    )  # the integral of r dr
    steps = depths.diff()
    assert (steps.diff() > 0).all() and steps[0] < 0.045 and steps[-1] > 0.12


def test_where_the_labels_know_no_rv_it_may_be_drawn_or_not():
    logits = torch.rand(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    logs = logits.log_softmax(1)
    hidden = hide_unknown_rv(logs, torch.tensor([True, False]))
    assert torch.equal(hidden[0], logs[0]) and torch.equal(hidden[1, 1:], logs[1, 1:])
    assert torch.allclose(hidden[1, 0].exp(), logs[1, 0].exp() + logs[1, 3].exp())


def test_ring_points_go_clockwise_on_the_screen_or_back():
    centre, radius = torch.tensor([[0.2, 0.1]]), torch.tensor([0.4])
    points = ring_points(centre, radius)[0]
    assert torch.allclose(
        points[-1, 0] - centre[0],
        torch.tensor([0.4 * float(sample_depths(centre.device)[-1]), 0.0]),
    )
    assert points[-1, ANGLES // 4, 1] > centre[0, 1] + 0.5  # y points down
    back = ring_points(centre, radius, torch.tensor([0.0]), torch.tensor([-1.0]))[0]
    assert torch.allclose(back[:, 1:].flip(1), points[:, 1:], atol=1e-6)


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_it_says_is_laid_back_where_it_belongs(mirrored):
    rough = ring_maps(inner=0.33)  # too large a cavity
    network = nn.ModuleList([Certain(INNER / OUTER, 70.0, mirrored)])
    maps, votes = redraw(network, torch.zeros(3, 1, 256, 256), rough, CENTRE, HALF)
    true = ring_maps()
    for code in (1, 2):
        drawn, wanted = maps[:, :4].argmax(1) == code, true[:, code] > 0
        dice = 2 * (drawn & wanted).sum() / (drawn.sum() + wanted.sum())
        assert dice > 0.97
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    x, y = axis[None] - MIDDLE[0], axis[:, None] - MIDDLE[1]
    wanted = (torch.hypot(x, y) > OUTER) & (torch.hypot(x, y) < 2 * OUTER) & (x < 0) & (y > 0)
    drawn = maps[0, :4].argmax(0) == 3
    assert 2 * (drawn & wanted).sum() / (drawn.sum() + wanted.sum()) > 0.95
    assert torch.allclose(maps[:, :4].sum(1), torch.ones(3, SIDE, SIDE), atol=1e-4)
    points = landmarks_from_votes(votes)
    assert points.anterior_rvip_deg == pytest.approx(70, abs=0.5) and points.mirrored == mirrored
    assert points.confidence > 0.9


def test_a_slice_nearly_without_heart_is_left_alone():
    rough = ring_maps()
    rough[2] = ring_maps(1, 0, 0.05)[0]
    maps, _ = redraw(
        nn.ModuleList([Certain(0.2, 0, False)]), torch.zeros(3, 1, 256, 256), rough, CENTRE, HALF
    )
    assert torch.equal(maps[2], rough[2, :4]) and not torch.equal(maps[1], rough[1, :4])


def test_only_circles_that_were_elsewhere_are_drawn_again():
    rough = torch.cat([ring_maps(1), ring_maps(1, outer=0.3), ring_maps(1, middle=(0.3, 0.1))])

    class Counted(Certain):
        seen: list[int] = []

        def forward(self, pictures):
            self.seen.append(len(pictures))
            if len(pictures) < 3:
                return super().forward(pictures)
            size = torch.tensor(
                [1.0, OUTER / 0.3, 1.0]
            )  # the second sees a larger ring, the third one beside it
            offset = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-0.15 / OUTER, 0.0]])
            points = ring_points(torch.zeros(3, 2), torch.ones(3)) - offset[:, None, None]
            inside = (points.norm(dim=-1) < size[:, None, None]).float()
            logits = 30 * torch.stack([1 - inside, inside, 0 * inside - 1, 0 * inside - 1], dim=1)
            return torch.cat([logits, logits], dim=1)

    network = Counted(INNER / OUTER, 70.0, False)
    maps, _ = redraw(nn.ModuleList([network]), torch.zeros(3, 1, 256, 256), rough, CENTRE, HALF)
    assert network.seen == [3, 2]
    true = ring_maps()
    for number in (1, 2):
        drawn, wanted = maps[number, 1:3].sum(0) > 0.5, true[0, 1:3].sum(0) > 0.5
        assert 2 * (drawn & wanted).sum() / (drawn.sum() + wanted.sum()) > 0.97


def test_a_drawn_ring_tells_its_centroid_and_size():
    shift, radius = (
        torch.tensor([0.2, -0.1]),
        0.8,
    )  # in the radii of a picture around the wrong place
    points = ring_points(torch.zeros(1, 2), torch.ones(1))
    left = ((points - shift).norm(dim=-1) < radius).float()
    moved, growth = ring_shape(torch.stack([1 - left, left * 0.3, left * 0.7, 0 * left], dim=1))
    assert torch.allclose(moved[0], shift, atol=0.01) and float(growth) == pytest.approx(
        radius, abs=0.01
    )


def test_training_mends_rough_borders_and_repeats_itself():
    slices = collect_slices([phantom_cohort(3, seed=2, pixels=96, workers=1).studies])
    first, again = (
        fit_border_network(slices, (8, 16, 16, 16), 5, seed=1, progress=False) for _ in range(2)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    usable = torch.nonzero((slices.labels > 0).sum((1, 2)) > 200)[:, 0]

    def loss(network):
        with torch.no_grad():
            rng = torch.Generator().manual_seed(0)
            return float(
                np.mean([float(border_loss(network, slices, usable, 0.0, rng)) for _ in range(3)])
            )

    longer = fit_border_network(slices, (8, 16, 16, 16), 60, seed=1, progress=False)
    assert loss(longer) < 0.75 * loss(build_border_network((8, 16, 16, 16), 1).eval())


def test_invented_pictures_keep_the_shape_and_close_the_ring():
    rng = torch.Generator().manual_seed(3)
    labels = torch.zeros(40, 3, DEPTHS, ANGLES)
    labels[:, :, :12], labels[:, :, 12:20] = 1, 2
    images = torch.full_like(labels, 0.5)
    assert torch.equal(invent_appearance(images, labels, 0.0, rng), images)
    drawn = invent_appearance(images, labels, 1.0, rng, wrap=True)
    assert drawn.shape == images.shape and 0 <= drawn.min() and drawn.max() <= 1
    blood, muscle = (
        drawn[:, :, 2:9].median(3).values.mean((1, 2)),
        drawn[:, :, 14:18].median(3).values.mean((1, 2)),
    )
    assert (blood - muscle).abs().median() > 0.1 and 0.5 < (blood > muscle).float().mean() < 1
    jump = (drawn[..., 0] - drawn[..., -1]).abs().mean()
    inside = (drawn[..., 1:] - drawn[..., :-1]).abs().mean()
    assert jump < 1.2 * inside
    some = invent_appearance(images, labels, 0.3, rng)
    assert 0.05 < (some != images).flatten(1).any(1).float().mean() < 0.6
