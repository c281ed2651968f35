"""The border network: a U-Net on polar pictures, which draws both ventricles again."""

from __future__ import annotations

from collections.abc import Sequence
from math import asinh

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgekit.cache import predicting
from lgekit.segmentation import slices

DEPTHS, ANGLES = 48, 64  # samples of the polar picture
OUTER = 3.4  # its outer end, in radii of a circle with the slice's epicardial area
STRETCH = asinh(OUTER) / DEPTHS
_STEPS = (torch.arange(DEPTHS)[:, None] + 0.5) * STRETCH
SAMPLE_DEPTHS = torch.sinh(_STEPS)  # (depth, 1) LV radii from the centre; dense in the wall
SAMPLE_AREAS = torch.sinh(_STEPS) * torch.cosh(_STEPS)  # (depth, 1), r dr
COLUMN_ANGLES = torch.arange(ANGLES) * (2 * torch.pi / ANGLES)  # radians, clockwise on the screen
DRAWN = 96  # side of the maps that are drawn
UNMOVED = 0.1  # of its radius: a circle that moves and grows by less is not drawn again
PRESENT = 0.15  # of a study's largest LV area: a slice with less stays as the U-Net drew it


class RingBlock(nn.Module):
    """Two 3 × 3 convolutions on ``(B, C, depth, angle)``, where the two ends of the angle meet."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels_out, 3, padding=(1, 0), bias=False)
            for channels in (channels_in, channels_out)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels_out) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            closed = torch.cat([x[..., -1:], x, x[..., :1]], dim=3)
            x = norm(convolution(closed)).relu()
        return x


class BorderNetwork(nn.Module):
    """Map polar pictures ``(B, 3, 48, 64)``, a slice and its neighbours, to ``(B, 8, 48, 64)``.

    The output holds the logits of the four classes, then the angle field.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.down = nn.ModuleList(map(RingBlock, (4, *channels[:-1]), channels))
        self.up = nn.ModuleList(
            RingBlock(deep + shallow, shallow)
            for deep, shallow in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(channels[0], slices.CLASSES + slices.ANGLE_CHANNELS, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        count, _, height, width = pictures.shape
        depth = torch.linspace(-1, 1, height, device=pictures.device)[:, None]
        depth = depth.expand(count, 1, height, width)
        x, skips = torch.cat([slices.standardise(pictures), depth], dim=1), []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0), skip], dim=1))
        return self.head(x)


def build_border_network(channels: Sequence[int], seed: int) -> BorderNetwork:
    """Build a border network with random weights from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BorderNetwork(channels).to(memory_format=torch.channels_last)


def ring_points(
    centre: Tensor, radius: Tensor, start: Tensor | float = 0.0, mirror: Tensor | float = 1.0
) -> Tensor:
    """Positions ``(B, depth, angle, 2)`` of the samples of polar pictures, x right and y down.

    The first column is at the angle ``start (B, 1)``, in radians; the columns run clockwise on the
    screen where ``mirror (B, 1)`` is 1, else the other way. ``radius (B,)`` is the LV's.
    """
    angle = COLUMN_ANGLES.to(centre.device) * mirror + start
    unit = torch.stack([angle.cos(), angle.sin()], dim=-1).view(-1, 1, ANGLES, 2)
    depth = SAMPLE_DEPTHS.to(centre.device)[:, None]
    return centre[:, None, None] + unit * depth * radius[:, None, None, None]


@torch.inference_mode()
def refine_borders(
    networks: nn.ModuleList, images: Tensor, maps: Tensor, centre: Tensor, half_width: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw both ventricles of one study again, in polar pictures around what the U-Net drew.

    Slices whose heart moves or grows by that are drawn once more. ``images`` are square slices; the
    ``maps (S, 8, h, h)`` are of upright crops at ``centre (2,)``, ``half_width ()``.

    Returns class probabilities ``(S, 4, 96, 96)``, new where the polar pictures reach, and votes
    ``(5,)``.
    """
    device, shape = images.device, (DRAWN, DRAWN)
    maps = maps[:, : slices.CLASSES].to(device)
    centre, half_width = centre.to(device), half_width.to(device)
    if maps.shape[2:] != shape:
        maps = functional.interpolate(maps, shape, mode="bilinear", align_corners=False)
    padded = torch.cat([images[:1], images, images[-1:]])[:, 0]
    triples = padded.unfold(0, 3, 1).permute(0, 3, 1, 2)  # (S, 3, 256, 256): slice and neighbours
    middle, area = slices.lv_centres(maps[:, slices.LV_CLASSES].sum(1), smallest=1)
    radius = (torch.sqrt(area / torch.pi) * 2 / DRAWN).clamp(min=2 / DRAWN)

    def unroll_and_draw(rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        points = ring_points(centre + half_width * middle[rows], half_width * radius[rows])
        pictures = functional.grid_sample(triples[rows], points, align_corners=False)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with predicting(device):
            output = torch.stack([network(pictures).float() for network in networks])
        shares, field = output.split((slices.CLASSES, slices.ANGLE_CHANNELS), dim=2)
        return shares.softmax(2).mean(0), field.mean(0)

    shares, field = unroll_and_draw(slice(None))
    present = radius.square() > PRESENT * radius.square().max()
    shift, growth = ring_shape(shares)
    moved = present & ((shift.norm(dim=1) > UNMOVED) | (growth.log().abs() > UNMOVED))
    middle = torch.where(moved[:, None], middle + radius[:, None] * shift, middle)
    radius = torch.where(moved, radius * growth, radius).clamp(min=2 / DRAWN)
    if moved.any():
        shares[moved], field[moved] = unroll_and_draw(moved)
    present = radius.square() > PRESENT * radius.square().max()
    votes = ring_votes(shares[present], field[present], radius[present])
    # back from the polar pictures to the crops
    axis = slices.pixel_axis(DRAWN, device)
    screen = torch.stack([axis.expand(shape), axis[:, None].expand(shape)], dim=-1)  # (h, h, 2)
    offset = (screen - middle[:, None, None]) / radius[:, None, None, None]
    distance = offset.norm(dim=-1)
    angle = torch.atan2(offset[..., 1], offset[..., 0]) % (2 * torch.pi)
    # asinh of the distance, five times as fast as torch.asinh
    row = torch.log(distance + torch.sqrt(distance.square() + 1)) / STRETCH - 0.5
    place = torch.stack([angle / torch.pi - 1, row / (DEPTHS - 1) * 2 - 1], dim=-1)
    closed = torch.cat([shares, shares[..., :1]], dim=3)
    back = functional.grid_sample(closed, place, padding_mode="border", align_corners=True)
    inside = (distance < OUTER)[:, None] & present[:, None, None, None]
    return torch.where(inside, back, maps).cpu(), votes


def ring_shape(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the LV in polar class probabilities ``(B, 4, depth, angle)``.

    Returns centroids ``(B, 2)`` relative to the pictures' centres and radii ``(B,)`` of circles of
    the same area, both in the pictures' LV radii, x right and y down.
    """
    device = shares.device
    angle = COLUMN_ANGLES.to(device)
    area = shares[:, slices.LV_CLASSES].sum(1) * SAMPLE_AREAS.to(device)
    arms, total = area * SAMPLE_DEPTHS.to(device), area.sum((1, 2)).clamp(min=1e-6)
    unit = torch.stack([angle.cos(), angle.sin()], dim=1)
    return arms.sum(1) @ unit / total[:, None], torch.sqrt(total * STRETCH * 2 / ANGLES)


def ring_votes(shares: Tensor, field: Tensor, radius: Tensor) -> Tensor:
    """Normalised votes ``(5,)`` of a study's polar pictures ``(S, …, depth, angle)``."""
    angle = COLUMN_ANGLES.to(field.device)
    arms = (SAMPLE_AREAS * SAMPLE_DEPTHS).to(field.device)  # area times distance
    weight = shares[:, slices.LV_CLASSES].sum(1) * arms * radius[:, None, None].pow(3)
    votes = slices.angle_votes(field, weight, angle.cos(), angle.sin(), over=(0, 1, 2)).cpu()
    return votes / votes[4].real.clamp(min=1e-6)
