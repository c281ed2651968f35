"""Random views of heart slices, made in batches: one resampling for all geometry, then changes of appearance.

TorchIO augments one sample at a time on a CPU worker; on two cores that costs several times the network's own step.
Here a batch is turned, mirrored, scaled, stretched and shifted by one ``grid_sample``, and bias field, ghosting,
motion, noise, gamma and contrast inversion act on the whole batch as tensors, on whichever device the slices live.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Views:
    """Where square views lie on their square canvases, both in coordinates from -1 to 1 (x right, y down).

    A point ``v`` of view ``i`` lies at ``axes[i] @ v + centre[i]`` on its canvas.

    Attributes:
        axes: ``(B, 2, 2)`` float32; rotation, mirror, stretch and half the view's width, in one matrix.
        centre: ``(B, 2)`` float32.
    """

    axes: Tensor
    centre: Tensor

    def sample(self, canvases: Tensor, pixels: int, mode: str = "bilinear") -> Tensor:
        """The views of ``(B, C, H, H)`` canvases as ``(B, C, pixels, pixels)``; zero outside the canvas."""
        grid = pixel_points(self.axes, self.centre, pixels, pixels)
        return functional.grid_sample(canvases, grid, mode=mode, align_corners=False)

    def to_view(self, vectors: Tensor, direction: bool = False) -> Tensor:
        """Canvas points (or directions, which no shift moves) ``(B, 2)`` in the coordinates of the views."""
        moved = vectors if direction else vectors - self.centre
        return torch.linalg.solve(self.axes, moved[:, :, None])[:, :, 0]

    @property
    def handedness(self) -> Tensor:
        """``(B,)``, -1 where the view mirrors its canvas, 1 elsewhere."""
        return torch.linalg.det(self.axes).sign()


def pixel_points(axes: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Where the pixels of pictures lie: ``axes (B, 2, 2) @ (x, y) + centre (B, 2)``, as ``(B, height, width, 2)``.

    ``x`` and ``y`` are the pixels' centres on the picture, from -1 to 1. This is `torch.nn.functional.affine_grid`,
    which multiplies matrices of three columns and takes as long as the sampling itself.
    """
    x, y = (((torch.arange(n, device=axes.device) * 2 + 1) / n - 1) for n in (width, height))
    down = axes[:, :, 1, None] * y + centre[:, :, None]  # (B, 2, height)
    across = axes[:, :, 0, None] * x  # (B, 2, width)
    return torch.stack([across[:, i, None] + down[:, i, :, None] for i in range(2)], dim=-1)


def plain_views(centre: Tensor, half_width: Tensor) -> Views:
    """Views neither turned nor mirrored: ``centre (B, 2)`` and ``half_width (B,)`` in canvas coordinates."""
    return Views(half_width[:, None, None] * torch.eye(2, device=centre.device), centre)


def uniform(low: float, high: float, shape: int | tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform float32 numbers from ``rng``, on its device."""
    return torch.rand(shape, generator=rng, device=rng.device) * (high - low) + low


def random_views(centre: Tensor, half_width: Tensor, shift: float, zoom: float, rng: torch.Generator) -> Views:
    """Views turned by any angle, mirrored half the time, stretched by up to 12 %, zoomed and shifted.

    Args:
        centre: ``(B, 2)``, canvas coordinates.
        half_width: ``(B,)``, canvas coordinates.
        shift: the largest shift, as a share of the view's half width.
        zoom: the largest change of scale, as a natural logarithm.
        rng: on the device of ``centre``.
    """
    count = len(centre)
    turn, stretch = uniform(0, 2 * torch.pi, count, rng), uniform(-0.12, 0.12, count, rng)
    mirror = uniform(0, 1, count, rng).lt(0.5).float() * 2 - 1
    width = half_width * torch.exp(uniform(-zoom, zoom, count, rng))
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=1).view(-1, 2, 2)
    # the stretch is along the canvas's axes, which are the storage axes: pixels of unknown shape stretch these
    axes = torch.stack([stretch.exp(), (-stretch).exp()], dim=1)[:, :, None] * rotation
    axes = axes * torch.stack([mirror, torch.ones_like(mirror)], dim=1)[:, None, :] * width[:, None, None]
    return Views(axes, centre + uniform(-shift, shift, (count, 2), rng) * width[:, None])


def standardise(images: Tensor) -> Tensor:
    """Each image of ``(B, 1, H, W)`` with mean 0 and standard deviation 1."""
    mean, deviation = images.mean((1, 2, 3), keepdim=True), images.std((1, 2, 3), keepdim=True)
    return (images - mean) / (deviation + 1e-3)


def vary_appearance(images: Tensor, rng: torch.Generator, share: float = 0.5) -> Tensor:
    """Change how a share of ``(B, 1, H, W)`` images in [0, 1] look, never where things lie.

    A random tone curve (a gamma on a piecewise linear curve, inverted for a tenth of the images: so that bright-blood
    cine teaches a network that sees late enhancement, where blood, muscle and scar rank otherwise), a smooth bias
    field, ghosts (faint copies shifted along one axis), motion (blur along one axis), softness and noise. All images
    at once is too much for a short training: the angle field was then not learned at all in 240 steps (measured).
    """
    count, shape = len(images), images.shape[-2:]

    def strength(low: float, high: float, share: float = 1.0) -> Tensor:
        """One number an image, zero for all but a share of the images, as ``(B, 1, 1, 1)``."""
        value = uniform(low, high, count, rng) * uniform(0, 1, count, rng).lt(share)
        return value[:, None, None, None]

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=rng, device=rng.device))

    # tone: x ** gamma, then a curve through six knots whose steps vary up to fourfold
    tone = images.clamp(0, 1) ** torch.exp(strength(-0.7, 0.7))
    steps = torch.exp(uniform(-0.7, 0.7, (count, 5), rng))
    knots = functional.pad(torch.cumsum(steps / steps.sum(1, keepdim=True), dim=1), (1, 0))  # (B, 6)
    position = tone.flatten(1) * 5
    low = position.long().clamp(max=4)
    left, right = knots.gather(1, low), knots.gather(1, low + 1)
    tone = (left + (right - left) * (position - low)).view_as(images)
    tone = tone + strength(1, 1, 0.2) * (1 - 2 * tone)  # inversion
    # coil bias: a smooth field through 3 x 3 random values
    field = uniform(-0.5, 0.5, (count, 1, 3, 3), rng)
    tone = tone * torch.exp(functional.interpolate(field, shape, mode="bilinear", align_corners=True))
    # ghosts and motion: shifted copies along one axis (one shift a batch, a strength an image)
    axis, period = whole(2, 4), shape[0] // whole(2, 6)
    tone = tone + strength(0, 0.25, 0.25) * (tone.roll(period, axis) - tone)
    tone = tone + strength(0, 0.4, 0.25) * (tone.roll(2, axis) + tone.roll(-2, axis) - 2 * tone)
    soft = functional.avg_pool2d(tone, 3, stride=1, padding=1, count_include_pad=False)
    tone = tone + strength(-0.5, 1, 0.4) * (soft - tone)
    tone = tone + strength(0, 0.08) * torch.randn(images.shape, generator=rng, device=rng.device)
    return images + strength(1, 1, share) * (tone - images)
