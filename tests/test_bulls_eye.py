"""Heat maps as bull's-eyes: what is hot in one segment of the wall is hot in that segment alone, in either view."""

import numpy as np
import pytest

from lgekit.anatomy import segment_map
from lgekit.bulls_eye import segment_means
from lgekit.settings import make_settings
from lgekit.stages import make_view
from lgekit.studies import CAVITY, MYOCARDIUM, Landmarks, Study

VIEWS = [{"view": "polar"}, {"view": "polar", "masks": "true"}, {"view": "image"}, {"orientation": "none"}]


def cone(anterior: float, mirrored: bool, base_first: bool, segment: int) -> Study:
    """A cone of ten slices; the image is bright in one segment of the wall and dark elsewhere."""
    x, y = ((np.arange(96) - 47.5 - shift) * 1.5 for shift in (6, -4))
    radius = np.hypot(x[:, None], y[None])
    labels = np.zeros((96, 96, 10), np.uint8)
    for s in range(10):
        labels[..., s][radius < 32 - 1.5 * s] = MYOCARDIUM
        labels[..., s][radius < 22 - 1.5 * s] = CAVITY if s < 9 else MYOCARDIUM
    labels = labels if base_first else labels[..., ::-1].copy()
    inferior = anterior + (-120 if mirrored else 120)
    landmarks = Landmarks(anterior % 360, inferior % 360)
    image = 100.0 * (segment_map(labels, (1.5, 1.5, 10), landmarks) == segment)
    return Study.from_arrays("cone", image, (1.5, 1.5, 10), labels, landmarks=landmarks)


@pytest.mark.parametrize("changes", VIEWS, ids=str)
@pytest.mark.parametrize("segment", [1, 3, 10, 12, 14, 16])
@pytest.mark.parametrize(("anterior", "mirrored", "base_first"), [(120, False, True), (300, True, False)])
def test_a_hot_segment_is_the_hot_one(changes, segment, anterior, mirrored, base_first):
    settings = make_settings(**changes)
    study = cone(anterior, mirrored, base_first, segment)
    view = make_view(study, settings)
    bright = (view.images[:, 0].numpy() > 0.5 * view.images.max().item()).astype(float)
    means = segment_means(bright, view, study, settings)
    assert set(means) == set(range(1, 18))
    others = [value for number, value in means.items() if number != segment]
    assert means[segment] > 0.6 and max(others) < 0.3


@pytest.mark.parametrize("changes", VIEWS, ids=str)
@pytest.mark.parametrize("base_first", [True, False])
def test_the_apex_is_the_slice_without_a_cavity(changes, base_first):
    settings = make_settings(**changes)
    study = cone(120, False, base_first, 1)
    view = make_view(study, settings)
    heat = np.zeros(tuple(view.images.shape[i] for i in (0, 2, 3)))
    heat[view.own_slices == (9 if base_first else 0)] = 1
    assert {number for number, value in segment_means(heat, view, study, settings).items() if value > 0} == {17}


def test_without_a_heart_or_insertion_points_there_is_no_bulls_eye():
    study = cone(120, False, True, 1)
    bare = Study(**{key: value for key, value in study.items() if key != "labels"})
    lost = Study(**{**study, "landmarks": None})
    unsure = Study(**{**study, "landmarks": Landmarks(120, 240, confidence=0.001)})
    for one, changes in ((bare, {}), (lost, {"view": "image"}), (lost, {}), (unsure, {}), (unsure, {"view": "image"})):
        settings = make_settings(**changes)
        view = make_view(one, settings)
        assert segment_means(view.images[:, 0].numpy(), view, one, settings) == {}
