"""A U-Net on polar pictures."""

from __future__ import annotations

from collections.abc import Sequence
from math import asinh

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgekit.cache import predicting
from lgekit.segmentation.slices import (
    CANVAS,
    CLASSES,
    LV_CLASSES,
    Slices,
    invent_appearance,
    uniform,
    vary_appearance,
)

DEPTHS, ANGLES = 48, 64  # samples of the polar picture
REACH = (
    3.4  # its outer end, in radii of the LV (of a circle as large as the slice's epicardial area)
)
STRETCH = (
    asinh(REACH) / DEPTHS
)  # depth of sample i is sinh((i + 1/2) STRETCH): 0.04 apart within, 0.14 at the end
DRAWN = 96  # side of the maps that are drawn; with 128 all medians of Dice are the same within 0.002 [O]
SMALLEST = 30  # canvas pixels of left ventricle that a slice needs to be trained on
FAR = 1.4  # most area a sample is weighted by in the cross-entropy: the surroundings shall not outweigh the wall
STILL = 0.1  # of its radius: a circle that the first round moves and scales by less is not drawn again. On a fold of
# EMIDEC 80 of 174 slices are; mean Dice of the wall 0.830, with all of them 0.831 [O]
PRESENT = 0.15  # of the largest LV area of a study: a slice with less is left as the U-Net drew it


class CloseRing(torch.autograd.Function):
    """``(B, C, depth, angle)`` with one more column at either end, those of the other end.

    A padding of torch costs more: its gradient is summed up from full-sized parts (a tenth of a whole training step).
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """``(B, C, depth, angle)`` → ``(B, C, depth, angle + 2)``."""
        return torch.cat([x[..., -1:], x, x[..., :1]], dim=3)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """The gradient of the two added columns goes to those that they are copies of."""
        inner = gradient[..., 1:-1].clone()
        inner[..., -1] += gradient[..., 0]
        inner[..., 0] += gradient[..., -1]
        return inner


class RingBlock(nn.Module):
    """Two 3 × 3 convolutions on ``(B, C, depth, angle)``; the angle's two ends meet."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        pairs = zip((channels_in, channels_out), (channels_out, channels_out), strict=True)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=(1, 0), bias=False) for a, b in pairs
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels_out) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(CloseRing.apply(x))).relu()
        return x


class BorderNetwork(nn.Module):
    """U-Net on polar pictures ``(B, 3, 48, 64)`` in [0, 1], a slice between its neighbours.

    Gives ``(B, 8, 48, 64)``: logits of outside, cavity, myocardium and RV, then the angle field (:mod:`lgekit.segmentation.slices`).
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.down = nn.ModuleList(
            RingBlock(a, b) for a, b in zip((4, *channels[:-1]), channels, strict=True)
        )
        deep_to_shallow = list(channels)[::-1]
        self.up = nn.ModuleList(
            RingBlock(a + b, b) for a, b in zip(deep_to_shallow, deep_to_shallow[1:], strict=False)
        )
        self.head = nn.Conv2d(channels[0], CLASSES + 4, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        mean, deviation = (
            pictures.mean((1, 2, 3), keepdim=True),
            pictures.std((1, 2, 3), keepdim=True),
        )
        depth = torch.linspace(-1, 1, pictures.shape[2], device=pictures.device)[:, None]
        depth = depth.expand(len(pictures), 1, *pictures.shape[2:])
        x = torch.cat(
            [(pictures - mean) / (deviation + 1e-3), depth], dim=1
        )  # (B, 4, depth, angle)
        kept = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0), skip], dim=1))
        return self.head(x)


def build_border_network(channels: Sequence[int], seed: int) -> BorderNetwork:
    """A border network of random weights from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BorderNetwork(channels).to(memory_format=torch.channels_last)


def sample_depths(device: torch.device) -> Tensor:
    """``(depth,)`` distances of the samples from the centre, in LV radii: dense in the wall, sparse over the RV."""
    return torch.sinh((torch.arange(DEPTHS, device=device) + 0.5) * STRETCH)


def sample_areas(device: torch.device) -> Tensor:
    """``(depth, 1)`` area that each sample stands for; the mean within 1.5 LV radii is near 1."""
    step = (torch.arange(DEPTHS, device=device) + 0.5) * STRETCH
    return (torch.sinh(step) * torch.cosh(step))[:, None]  # r dr


def ring_points(
    centre: Tensor, radius: Tensor, start: Tensor | None = None, mirror: Tensor | None = None
) -> Tensor:
    """Where the samples of polar pictures lie, ``(B, depth, angle, 2)`` in the coordinates of ``centre``.

    Args:
        centre: ``(B, 2)``, x right and y down.
        radius: ``(B,)`` LV radius.
        start: ``(B,)`` angle of the first column, radians; 0 if None.
        mirror: ``(B,)`` 1 or -1: whether the columns go clockwise on the screen or the other way; 1 if None.
    """
    count, device = len(centre), centre.device
    depth = sample_depths(device)
    angle = (torch.arange(ANGLES, device=device) * (2 * torch.pi / ANGLES)).expand(count, ANGLES)
    angle = angle if mirror is None else angle * mirror[:, None]
    angle = angle if start is None else angle + start[:, None]
    unit = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None]  # (B, 1, angle, 2)
    return centre[:, None, None] + unit * depth[:, None, None] * radius[:, None, None, None]


def hide_unknown_rv(logs: Tensor, rv_known: Tensor) -> Tensor:
    """Log shares ``(B, 4, h, w)`` whose background, where a study's labels know no RV, is background or RV."""
    either = torch.where(
        rv_known[:, None, None], logs[:, 0], torch.logaddexp(logs[:, 0], logs[:, 3])
    )
    return torch.cat([either[:, None], logs[:, 1:]], dim=1)


def border_loss(
    network: nn.Module, slices: Slices, chosen: Tensor, invented: float, rng: torch.Generator
) -> Tensor:
    """Cross-entropy + soft Dice of the classes + squared error of the angle field, on shifted, scaled, turned and
    mirrored polar pictures of ``chosen (B,)`` slices. Samples count by the area they stand for, :data:`FAR` at most."""
    batch, device = slices[chosen], slices.images.device
    count, together = len(batch), chosen[:, None] + torch.tensor([-1, 0, 1], device=device)
    together = together.clamp(0, len(slices) - 1)
    same = slices.study[together] == batch.study[:, None]
    together = torch.where(
        same, together, chosen[:, None]
    )  # (B, 3); the end slices are their own neighbours
    lv = (batch.labels == 1) | (batch.labels == 2)
    own = torch.sqrt(lv.sum((1, 2)) / torch.pi) * 2 / CANVAS
    centre = batch.centre + uniform(-0.18, 0.18, (count, 2), rng) * own[:, None]
    mirror = uniform(0, 1, count, rng).lt(0.5).float() * 2 - 1
    radius = own * torch.exp(uniform(-0.25, 0.25, count, rng))
    points = ring_points(centre, radius, uniform(0, 2 * torch.pi, count, rng), mirror)
    pictures = functional.grid_sample(
        slices.images[together].float() / 255, points, align_corners=False
    )
    drawn = functional.grid_sample(
        slices.labels[together].float(), points, mode="nearest", align_corners=False
    )
    pictures = invent_appearance(pictures, drawn, invented, rng, wrap=True)
    pictures = vary_appearance(pictures, rng).contiguous(memory_format=torch.channels_last)
    output, target = network(pictures), drawn[:, 1].long()
    area = sample_areas(device)
    logs = hide_unknown_rv(output[:, :CLASSES].log_softmax(1), batch.rv_known)
    entropy = (functional.nll_loss(logs, target, reduction="none") * area.clamp(max=FAR)).mean()
    overlap = torch.zeros((), device=device)
    for code in range(1, CLASSES):
        used = batch.rv_known if code == 3 else torch.ones_like(batch.rv_known)
        true, shares = (target == code) * area, logs[:, code].exp() * area
        both = (shares * (target == code)).sum((1, 2))
        dice = 1 - (2 * both + 2) / (shares.sum((1, 2)) + true.sum((1, 2)) + 2)
        overlap = overlap + (dice * used).sum() / used.sum().clamp(min=1) / 2
    offset = points - batch.centre[:, None, None]
    field = functional.normalize(offset, dim=-1)
    channels = []
    for point in range(2):
        towards = batch.insertions[:, point, None, None]  # (B, 1, 1, 2)
        cross = (
            field[..., 0] * towards[..., 1] - field[..., 1] * towards[..., 0]
        )  # as `lgekit.segmentation.slices.angle_field`
        channels += [(field * towards).sum(-1), batch.handedness[:, None, None] * cross]
    weight = ((target == 1) | (target == 2)) * area
    weight = (
        weight
        / weight.sum((1, 2), keepdim=True).clamp(min=20)
        * batch.landmark_weight[:, None, None]
    )
    error = (output[:, CLASSES:] - torch.stack(channels, dim=1)).square().sum(1)
    return entropy + overlap + 0.5 * (weight * error).sum() / count


def fit_border_network(
    slices: Slices,
    channels: Sequence[int],
    steps: int,
    seed: int,
    init: nn.Module | None = None,
    batch: int = 16,
    learning_rate: float = 3e-3,
    invented: float = 0.0,
    progress: bool = True,
) -> BorderNetwork:
    """Train on the slices that hold a left ventricle.

    Args:
        slices: of `lgekit.segmentation.slices.collect_slices`; cohorts are drawn in proportion to the fourth root of their slices.
        channels: of the network's levels.
        steps: optimiser steps.
        seed: of weights, sampling and augmentation.
        init: start from this network's weights.
        batch: slices a step.
        learning_rate: peak of the one-cycle schedule.
        invented: share of pictures with an invented appearance.
        progress: show a bar.
    """
    from tqdm.auto import trange

    device = slices.images.device
    network = build_border_network(channels, seed).to(device)
    if init is not None:
        network.load_state_dict(init.state_dict())
    rng = torch.Generator(device).manual_seed(seed)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=learning_rate, weight_decay=0.02, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, max(steps, 2), pct_start=0.15, cycle_momentum=False
    )
    usable = ((slices.labels == 1) | (slices.labels == 2)).sum((1, 2)) > SMALLEST
    counts = torch.bincount(slices.cohort[usable], minlength=int(slices.cohort.max()) + 1).clamp(
        min=1
    )
    chance = usable * counts[slices.cohort].float() ** -0.75
    for _ in trange(steps, desc="border network", disable=not progress, leave=False):
        chosen = torch.multinomial(chance, batch, replacement=True, generator=rng)
        loss = border_loss(network, slices, chosen, invented, rng)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def redraw(
    networks: nn.ModuleList,
    images: Tensor,
    maps: Tensor,
    centre: Tensor,
    half_width: Tensor,
    rounds: int = 2,
) -> tuple[Tensor, Tensor]:
    """Draw both ventricles of one study anew.

    Args:
        networks: border networks, whose answers are averaged.
        images: the study's canvases ``(S, 1, 256, 256)``.
        maps: ``(S, 8, h, h)`` of the U-Net, in plain views.
        centre: ``(2,)`` of these views, canvas coordinates.
        half_width: ``()`` of these views, canvas coordinates.
        rounds: the second unrolls around what the first has drawn, where that is elsewhere (:data:`STILL`).

    Returns:
        Shares of the classes ``(S, 4, 96, 96)``, new within the polar pictures' reach, and the votes ``(5,)`` of the
        new angle fields as `lgekit.segmentation.slices.angle_votes` gives them, normalised to N = 1.
    """
    side, device = maps.shape[-1], images.device
    maps, centre, half_width = (
        maps[:, :CLASSES].to(device),
        centre.to(device),
        half_width.to(device),
    )
    if side != DRAWN:
        side, maps = (
            DRAWN,
            functional.interpolate(maps, (DRAWN, DRAWN), mode="bilinear", align_corners=False),
        )
    axis = (torch.arange(side, device=device) + 0.5) / side * 2 - 1
    ends = torch.cat([images[:1], images, images[-1:]])[
        :, 0
    ]  # the end slices are their own neighbours
    around = ends.unfold(0, 3, 1).permute(0, 3, 1, 2)  # (S, 3, 256, 256), a view
    left = maps[:, LV_CLASSES].sum(1)
    pixels = left.sum((1, 2))
    middle = (
        torch.stack([left.sum(1) @ axis, left.sum(2) @ axis], dim=1) / pixels.clamp(min=1)[:, None]
    )
    radius = (torch.sqrt(pixels / torch.pi) * 2 / side).clamp(min=2 / side)

    def look(rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Shares and field of some of the slices, around their present circles."""
        points = ring_points(centre + half_width * middle[rows], half_width * radius[rows])
        pictures = functional.grid_sample(around[rows], points, align_corners=False)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with predicting(device):
            output = torch.stack([network(pictures).float() for network in networks])
        return output[:, :, :CLASSES].softmax(2).mean(0), output[:, :, CLASSES:].mean(0)

    shares, field = look(slice(None))
    for _ in range(1, rounds):
        present = radius.square() > PRESENT * radius.square().max()
        shift, growth = ring_shape(shares)
        moved = present & ((shift.norm(dim=1) > STILL) | (growth.log().abs() > STILL))
        middle = torch.where(moved[:, None], middle + radius[:, None] * shift, middle)
        radius = torch.where(moved, radius * growth, radius).clamp(min=2 / side)
        again = moved.nonzero().flatten()
        if len(again):
            shares[again], field[again] = look(again)
    present = radius.square() > PRESENT * radius.square().max()
    votes = ring_votes(shares[present], field[present], radius[present])
    screen = torch.stack(
        [axis.expand(side, side), axis[:, None].expand(side, side)], dim=-1
    )  # (h, h, 2)
    offset = (screen - middle[:, None, None]) / radius[:, None, None, None]
    distance, angle = (
        offset.norm(dim=-1),
        torch.atan2(offset[..., 1], offset[..., 0]) % (2 * torch.pi),
    )
    closed = torch.cat([shares, shares[..., :1]], dim=3)  # the first column again behind the last
    row = (
        torch.log(distance + torch.sqrt(distance.square() + 1)) / STRETCH - 0.5
    )  # asinh, five times as fast
    place = torch.stack([angle / torch.pi - 1, row / (DEPTHS - 1) * 2 - 1], dim=-1)
    back = functional.grid_sample(closed, place, padding_mode="border", align_corners=True)
    inside = (distance < REACH)[:, None] & present[:, None, None, None]
    return torch.where(inside, back, maps).cpu(), votes


def ring_shape(shares: Tensor) -> tuple[Tensor, Tensor]:
    """What the left ventricles drawn in polar pictures ``(B, 4, depth, angle)`` that start at angle 0 are like.

    Returns:
        ``(B, 2)`` their centroids from the pictures' centres, in the pictures' LV radii, x right and y down; ``(B,)``
        the radii of circles as large, in the same unit.
    """
    device = shares.device
    angle = torch.arange(ANGLES, device=device) * (2 * torch.pi / ANGLES)
    area = shares[:, LV_CLASSES].sum(1) * sample_areas(
        device
    )  # (B, depth, angle), times STRETCH dθ: r dr dθ
    arms = area * sample_depths(device)[:, None]
    total = area.sum((1, 2)).clamp(min=1e-6)
    towards = torch.stack([angle.cos(), angle.sin()], dim=1)
    return arms.sum(1) @ towards / total[:, None], torch.sqrt(total * STRETCH * 2 / ANGLES)


def ring_votes(shares: Tensor, field: Tensor, radius: Tensor) -> Tensor:
    """Votes ``(5,)`` as `lgekit.segmentation.slices.angle_votes`, from polar pictures that start at angle 0."""
    angle = torch.arange(ANGLES, device=field.device) * (2 * torch.pi / ANGLES)
    place = torch.complex(angle.cos(), -angle.sin())  # exp(i t), t counter-clockwise, y down
    arms = sample_areas(field.device) * sample_depths(field.device)[:, None]  # area times distance
    weight = shares[:, LV_CLASSES].sum(1) * arms * radius[:, None, None].pow(3)
    found = [
        (weight * torch.complex(field[:, 2 * point], field[:, 2 * point + 1]) * turned).sum()
        for turned in (place.conj(), place)
        for point in range(2)
    ]
    total = weight.sum().clamp(min=1e-6)
    return torch.stack([*found, total.to(torch.complex64)]).cpu() / total.cpu()
