"""Bull's-eyes: what is hot in one segment of the wall is hot in that segment alone, in either view; what slices say."""

import json

import numpy as np
import pytest

from lgekit.anatomy.segments import segment_map
from lgekit.clip.data import make_view
from lgekit.clip.detector import Detector, segment_means
from lgekit.clip.zeroshot import Calibration, Reading
from lgekit.config import make_settings, size_settings
from lgekit.findings import WALLS
from lgekit.study import CAVITY, MYOCARDIUM, Cohort, Landmarks, Study

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
    inferior = anterior + (-120 if mirrored else 120)
    landmarks = Landmarks(anterior % 360, inferior % 360)
    image = 100.0 * (segment_map(labels, (1.5, 1.5, 10), landmarks) == segment)
    return Study.from_arrays("cone", image, (1.5, 1.5, 10), labels, landmarks=landmarks)


@pytest.mark.parametrize("changes", VIEWS, ids=str)
@pytest.mark.parametrize("segment", [1, 3, 10, 12, 14, 16])
@pytest.mark.parametrize(
    ("anterior", "mirrored", "base_first"), [(120, False, True), (300, True, False)]
)
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
    assert {
        number for number, value in segment_means(heat, view, study, settings).items() if value > 0
    } == {17}


def test_without_a_heart_or_insertion_points_there_is_no_bulls_eye():
    study = cone(120, False, True, 1)
    bare = Study(**{key: value for key, value in study.items() if key != "labels"})
    lost = Study(**{**study, "landmarks": None})
    unsure = Study(**{**study, "landmarks": Landmarks(120, 240, confidence=0.001)})
    for one, changes in (
        (bare, {}),
        (lost, {"view": "image"}),
        (lost, {}),
        (unsure, {}),
        (unsure, {"view": "image"}),
    ):
        settings = make_settings(**changes)
        view = make_view(one, settings)
        assert segment_means(view.images[:, 0].numpy(), view, one, settings) == {}


@pytest.fixture
def seven():
    """A located ventricle of seven slices, the last without a cavity, between slices without a heart, base first; and a
    detector that holds it for located, whose calibration doubles the score of the fourth wall."""
    labels = np.zeros((24, 24, 9), np.uint8)
    x, y = np.indices((24, 24)) - 11.5
    for s in range(1, 8):
        labels[np.hypot(x, y) < 9 - 0.5 * s, s] = 2
        labels[np.hypot(x, y) < 6 - 0.5 * s, s] = 1 if s < 7 else 2
    study = Study.from_arrays(
        "s", labels * 10.0, (1.5, 1.5, 10), labels, landmarks=Landmarks(120, 240, 1.0)
    )
    pairs = tuple((2.0 if wall == "inferior" else 1.0, 0.0) for wall in WALLS)
    own = Calibration((1.0, 0.0), pairs, (3.0, 0.0))
    return study, Detector(size_settings("smoke", masks="true"), [], None, own)


def told(detector, study, walls, present, attention):
    view = make_view(study, detector.settings)
    pad = ((0, 2), (0, 0))  # another study of the batch has two slices more
    blank = np.zeros((1, 6))
    each = [
        np.pad(given, pad[: given.ndim], constant_values=np.nan)[None]
        for given in (present, walls, attention)
    ]
    reading = Reading(np.zeros(1), blank, blank, blank, *each)
    row = detector.table(Cohort([study]), [view], reading, [""]).iloc[0]
    return (
        view,
        json.loads(row["segments"]),
        json.loads(row["attention"]),
        json.loads(row["slice_weights"]),
    )


@pytest.mark.parametrize("backwards", [False, True])
def test_segments_are_the_most_that_a_slice_of_the_ring_says_of_the_wall(seven, backwards):
    study, detector = seven
    if backwards:
        turned = study.label_map[..., ::-1].copy()
        study = Study.from_arrays(
            "s", turned * 10.0, (1.5, 1.5, 10), turned, landmarks=study["landmarks"]
        )
    random = np.random.default_rng(0)
    walls, present, attention = (
        random.normal(size=(7, 6)),
        random.normal(size=7),
        random.dirichlet(np.ones(7)),
    )
    walls[5] = (
        0,
        2,
        1,
        0.5,
        0.5,
        1,
    )  # the apical slice: the anterior septum surer than the inferior one
    view, segments, stored, weights = told(detector, study, walls, present, attention)
    own = [8 - s for s in range(1, 8)] if backwards else list(range(1, 8))
    assert view.own_slices.tolist() == own
    sure = 1 / (1 + np.exp(-walls * [1, 1, 1, 2, 1, 1]))
    third = [
        0,
        0,
        1,
        1,
        1,
        2,
        3,
    ]  # equal thirds of seven slices, counted at their middles; the last has no cavity
    rings = [sure[np.array(third) == number].max(0) for number in range(3)]
    apical = [rings[2][0], max(rings[2][1:3]), rings[2][3], max(rings[2][4:6])]
    wanted = [*rings[0], *rings[1], *apical, 1 / (1 + np.exp(-3 * present[6]))]
    assert segments == pytest.approx(wanted, abs=1e-4)
    assert sum(stored) == pytest.approx(1, abs=1e-3) and stored[0] == stored[8] == 0
    assert [stored[s] for s in own] == pytest.approx(attention, abs=1e-4)
    assert [weights[s] for s in own] == pytest.approx(1 / (1 + np.exp(-3 * present)), abs=1e-4)


def test_segments_that_no_slice_shows_are_null(seven):
    study, detector = seven
    zeros = np.zeros((7, 6)), np.zeros(7), np.full(7, 1 / 7)
    assert None not in told(detector, study, *zeros)[1]
    closed = study.label_map.copy()
    closed[..., 7] = 0  # no slice without a cavity
    capless = Study.from_arrays(
        "s", study.pixels, (1.5, 1.5, 10), closed, landmarks=study["landmarks"]
    )
    values = told(detector, capless, *(a[:6] for a in zeros))[1]
    assert values[16] is None and None not in values[:16]
    lost, unsure = (
        Study(**{**study, "landmarks": marks}) for marks in (None, Landmarks(120, 240, 0.001))
    )
    empty = Study.from_arrays(
        "s", study.pixels, (1.5, 1.5, 10), 0 * closed, landmarks=study["landmarks"]
    )
    bare = np.zeros((9, 6)), np.zeros(9), np.full(9, 1 / 9)
    for one, given in ((lost, zeros), (unsure, zeros), (empty, bare)):
        assert told(detector, one, *given)[1] == [None] * 17
    centred = Detector(
        detector.settings.override(orientation="centre"), [], None, detector.calibration
    )
    assert told(centred, study, *zeros)[1] == [None] * 17
