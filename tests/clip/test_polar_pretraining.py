"""Segmentation in the polar view: the warp's classes have known places, and the weights fit the encoder."""

import torch

from lgekit.clip.fit import pretrain_polar, warp
from lgekit.clip.model import StudyEncoder, pad_studies
from lgekit.config import make_settings


def rings(count=24, depths=16, angles=24):
    """Dark wall from depth 0 to 1 of (-0.6, 1.4), bright cavity, grey outside."""
    depth = -0.6 + 2.0 * (torch.arange(depths) + 0.5) / depths
    row = torch.where(depth < 0, 1.0, torch.where(depth < 1, 0.0, 0.5))
    return row[:, None].expand(count, 1, depths, angles).contiguous()


def test_classes_move_with_the_picture():
    images = rings()
    warped, classes = warp(images, (0.6, 0.4), torch.Generator().manual_seed(0))
    value = torch.tensor([1.0, 0.0, 0.5])[classes]
    assert warped.shape == images.shape and classes.shape == (24, 16, 24)
    assert ((warped[:, 0] - value).abs() < 0.3).float().mean() > 0.9  # all but the blurred borders
    assert (classes != warp(images, (0.6, 0.4), torch.Generator().manual_seed(1))[1]).any()


def test_weights_start_the_slice_encoder():
    settings = make_settings(
        width=16, polar_channels=8, depths=16, angles=24, batch_size=2, polar_pretraining=2
    )
    batch = pad_studies([(rings(4), torch.linspace(0, 1, 4)) for _ in range(4)])
    one, other = (pretrain_polar(batch, settings) for _ in range(2))
    encoder = StudyEncoder(settings)
    encoder.load_segmentation(one)
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(value, one[name]) and torch.equal(value, other[name])
