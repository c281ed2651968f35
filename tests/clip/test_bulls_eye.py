"""Bull's-eyes: occlusion maps and slice scores are assigned to the right AHA segments."""

import json

import numpy as np
import pytest

from lgekit.anatomy.segments import segment_map
from lgekit.clip.data import make_view
from lgekit.clip.detector import Detector, segment_means
from lgekit.clip.zeroshot import Calibration, Reading
from lgekit.config import FitSettings, size_settings
from lgekit.findings import WALLS
from lgekit.study import CAVITY, MYOCARDIUM, Landmarks, Study

VIEWS = [
    {"view": "polar"},
    {"view": "polar", "masks": "true"},
    {"view": "image"},
    {"orientation": "none"},
]


def cone(anterior: float, mirrored: bool, base_first: bool, segment: int) -> Study:
    """A cone of ten slices; the image is bright in one segment of the wall and dark elsewhere."""
    x, y = ((np.arange(96) - 47.5 - shift) * 1.5 for shift in (6, -4))
    radius = np.hypot(x[:, None], y[None])
    labels = np.zeros((96, 96, 10), np.uint8)
    for s in range(10):
        labels[..., s][radius < 32 - 1.5 * s] = MYOCARDIUM
        labels[..., s][radius < 22 - 1.5 * s] = CAVITY if s < 9 else MYOCARDIUM
    labels = labels if base_first else labels[..., ::-1].copy()
    landmarks = Landmarks(anterior % 360, (anterior + (-120 if mirrored else 120)) % 360)
    image = 100.0 * (segment_map(labels, (1.5, 1.5, 10), landmarks) == segment)
    return Study.from_arrays("cone", image, (1.5, 1.5, 10), labels, landmarks=landmarks)


@pytest.mark.parametrize("changes", VIEWS, ids=str)
@pytest.mark.parametrize(
    ("anterior", "mirrored", "base_first"), [(120, False, True), (300, True, False)]
)
def test_a_bright_segment_and_the_apex_are_found(changes, anterior, mirrored, base_first):
    settings = FitSettings(**changes)
    for segment in (1, 3, 10, 12, 14, 16):
        study = cone(anterior, mirrored, base_first, segment)
        view = make_view(study, settings)
        bright = (view.images[:, 0].numpy() > 0.5 * view.images.max().item()).astype(float)
        means = segment_means(bright, view, study, settings)
        assert set(means) == set(range(1, 18))
        others = [value for number, value in means.items() if number != segment]
        assert means[segment] > 0.6 and max(others) < 0.3
    heat = np.zeros(view.images[:, 0].shape)
    heat[view.own_slices == (9 if base_first else 0)] = 1  # the slice without a cavity
    means = segment_means(heat, view, study, settings)
    assert {number for number, value in means.items() if value > 0} == {17}


@pytest.fixture
def study():
    """A ventricle of seven slices, base first and the last without a cavity, among nine slices."""
    seven = cone(120, mirrored=False, base_first=True, segment=1).label_map[..., 3:]
    return with_labels(np.pad(seven, ((0, 0), (0, 0), (1, 1))))


def with_labels(labels: np.ndarray) -> Study:
    marks = Landmarks(120, 240, 1.0)
    return Study.from_arrays("s", labels * 10.0, (1.5, 1.5, 10), labels, landmarks=marks)


def detector(**changes):
    """Its calibration doubles the scores of the inferior wall and triples those of slices."""
    pairs = tuple((2.0 if wall == "inferior" else 1.0, 0.0) for wall in WALLS)
    own = size_settings("smoke", masks="true", **changes)
    return Detector(own, [], None, Calibration(slices=(3.0, 0.0), slice_walls=pairs))


def predicted(detector, study, walls, present, attention):
    """The view, and the lists segments, attention and slice_weights of the table."""
    view, blank = make_view(study, detector.settings), np.zeros((1, 6))
    padding = ((0, 2), (0, 0))  # another study of the batch has two more slices
    each = [
        np.pad(values, padding[: values.ndim], constant_values=np.nan)[None]
        for values in (present, walls, attention)
    ]
    reading = Reading(np.zeros(1), blank, blank, blank, *each)
    row = detector.table([study], [view], reading, [""]).iloc[0]
    return view, *(json.loads(row[name]) for name in ("segments", "attention", "slice_weights"))


@pytest.mark.parametrize("backwards", [False, True])
def test_a_segment_takes_the_largest_score_of_its_wall_in_its_ring(study, backwards):
    if backwards:
        study = with_labels(study.label_map[..., ::-1].copy())
    random = np.random.default_rng(0)
    walls, present = random.normal(size=(7, 6)), random.normal(size=7)
    attention = random.dirichlet(np.ones(7))
    walls[5] = (0, 2, 1, 0.5, 0.5, 1)  # apical slice: anterior septum above inferior septum
    view, segments, stored, weights = predicted(detector(), study, walls, present, attention)
    own = [8 - s for s in range(1, 8)] if backwards else list(range(1, 8))
    assert view.own_slices.tolist() == own
    sure, presence = 1 / (1 + np.exp(-walls * [1, 1, 1, 2, 1, 1])), 1 / (1 + np.exp(-3 * present))
    ring = np.array([0, 0, 1, 1, 1, 2, 3])  # thirds of the seven slices; the last is the apex
    rings = [sure[ring == number].max(0) for number in range(3)]
    apical = [rings[2][0], max(rings[2][1:3]), rings[2][3], max(rings[2][4:6])]
    wanted = [*rings[0], *rings[1], *apical, presence[6]]
    assert segments == pytest.approx(wanted, abs=1e-4) and stored[0] == stored[8] == 0
    assert [stored[s] for s in own] == pytest.approx(attention, abs=1e-4)
    assert [weights[s] for s in own] == pytest.approx(presence, abs=1e-4)


def test_segments_that_no_slice_shows_are_null(study):
    def segments(study, slices=7, **changes):
        even, scores = np.full(slices, 1 / slices), np.zeros((slices, 6))
        return predicted(detector(**changes), study, scores, scores[:, 0], even)[1]

    without_apex = study.label_map.copy()
    without_apex[..., 7] = 0
    values = segments(with_labels(without_apex), 6)
    assert values[16] is None and None not in values[:16] and None not in segments(study)
    lost, unsure = (
        Study(**{**study, "landmarks": marks}) for marks in (None, Landmarks(120, 240, 0.001))
    )
    no_heart = with_labels(0 * without_apex)
    assert segments(lost) == segments(unsure) == segments(no_heart, 9) == [None] * 17
    assert segments(study, orientation="centre") == [None] * 17
    for view in ("polar", "image"):
        own = FitSettings(view=view)
        for one in (lost, unsure, no_heart):
            shown = make_view(one, own)
            assert segment_means(shown.images[:, 0].numpy(), shown, one, own) == {}
