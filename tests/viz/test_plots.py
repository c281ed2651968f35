"""Figures: their data, not their pixels."""

import itertools
import json

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.evaluation.metrics import roc_table
from lgekit.findings import DEPTHS, WALLS, Findings, Scar
from lgekit.reports.writer import canonical_text
from lgekit.study import Study
from lgekit.viz import plots


def test_roc_table_is_scikit_learns_curve():
    generator = np.random.default_rng(0)
    truth = generator.random(60) < 0.5
    score = (truth + generator.normal(size=60)).round(1)  # with ties
    table = roc_table(pd.DataFrame({"patient_id": range(60), "scar": truth, "p_lge": score}))
    alarms, hits, _ = roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose(
        table["sensitivity"], np.interp(table["false_positive_rate"], alarms, hits)
    )
    area = np.trapezoid(table["sensitivity"], table["false_positive_rate"])
    assert area == pytest.approx(roc_auc_score(truth, score), abs=0.02)
    assert (table["low"] <= table["sensitivity"]).all() and (
        table["sensitivity"] <= table["high"]
    ).all()


def test_a_caption_of_dollars_is_drawn_as_it_stands():
    """A decoder that was never trained writes such; a run of the grid failed on it."""
    with plt.rc_context():
        plots.use_style()
        figure, axes = plt.subplots()
        axes.set_title("$$$$septal")
        figure.draw_without_rendering()
        assert axes.title.get_window_extent().width > 50
        plt.close(figure)


@pytest.mark.parametrize(
    ("segment", "start", "width"),
    [
        (1, 60, 60),
        (2, 120, 60),
        (4, 240, 60),
        (7, 60, 60),
        (13, 45, 90),
        (14, 135, 90),
        (15, 225, 90),
        (17, 0, 360),
    ],
)
def test_wedges_lie_where_cerqueira_puts_them(segment, start, width):
    assert plots.segment_wedge(segment)[:2] == (start, width)


def test_a_bulls_eye_shows_the_values_of_its_segments():
    figure = plots.bulls_eye(
        {1: 0.5, 10: 1.0, 14: 0.75, 16: 0.3, 17: np.nan}, "title", "AUC", limits=(0.5, 1)
    )
    wedges = dict(zip(range(1, 18), figure.axes[0].patches, strict=True))
    colours, grey = plt.get_cmap("cividis"), matplotlib.colors.to_rgba("lightgray")
    for segment, share in ((1, 0.0), (10, 1.0), (14, 0.5), (16, 0.0)):
        assert wedges[segment].get_facecolor() == colours(share)
    assert all(wedges[segment].get_facecolor() == grey for segment in (2, 9, 13, 17))
    assert figure.axes[1].get_ylabel() == "AUC"


def test_slices_are_drawn_with_their_answers_and_the_attention_they_get():
    slices = pd.DataFrame(
        {
            "study_id": "a",
            "slice": [1, 2, 3],
            "weight": [0.1, 0.9, 0.2],
            "scar": [False, True, False],
        }
    )
    slices = pd.concat(
        [slices.assign(attention=[0.5, 0.2, 0.3]), slices.assign(study_id="b", attention=1.0)]
    )
    figure = plots.slice_bars(slices, "a")
    for axis, heights in zip(figure.axes, ([0.1, 0.9, 0.2], [0.5, 0.2, 0.3]), strict=True):
        bars = sorted(
            (bar.get_x() + bar.get_width() / 2, bar.get_height(), bar.get_facecolor())
            for bar in axis.patches
        )
        assert [bar[0] for bar in bars] == pytest.approx([2, 3, 4]) and [
            bar[1] for bar in bars
        ] == heights
        assert bars[1][2] == matplotlib.colors.to_rgba("#E69F00") != bars[0][2] == bars[2][2]
    assert (
        "probability" in figure.axes[0].get_ylabel() and "attention" in figure.axes[1].get_ylabel()
    )
    assert figure.axes[0].get_ylim() == (0, 1) and "slice" in figure.axes[1].get_xlabel()
    legend = (
        plots.slice_bars(slices.assign(scar=True), "a").axes[0].get_legend()
    )  # both colours, though one is drawn
    names = {
        text.get_text(): patch.get_facecolor()
        for text, patch in zip(legend.texts, legend.get_patches(), strict=True)
    }
    assert names == {"holds scar": bars[1][2], "holds none": bars[0][2]}
    for before in (slices.drop(columns="attention"), slices.assign(attention=np.nan)):
        (axis,) = plots.slice_bars(before, "a").axes
        assert "probability" in axis.get_ylabel() and "slice" in axis.get_xlabel()


def test_a_row_of_no_slices_is_refused_by_name():
    study = Study.from_arrays("a", np.ones((6, 6, 2)), (1, 1, 10))
    assert len(plots.show_stack(study, [1]).axes) == 1
    with pytest.raises(InputError, match="slices of a: none is named"):
        plots.show_stack(study, [])


def test_pictures_survive_the_table():
    images = {"a": np.random.default_rng(0).random((3, 5)), "b": np.eye(4)}
    for name, image in plots.pictures(plots.pixel_table(images)).items():
        np.testing.assert_array_equal(image, images[name])


def test_a_saved_figure_has_data_and_caption_and_comes_out_the_same_twice(tmp_path):
    data = pd.DataFrame({"epoch": [1, 2], "contrastive": [2.0, 1.0]})
    for _ in range(2):
        plots.save_figure(
            plots.training_curves(data), tmp_path, "curves", data, "Losses over epochs."
        )
        contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    plots.save_figure(plots.training_curves(data), tmp_path, "curves", data, "Losses over epochs.")
    assert contents["curves.png"] == (tmp_path / "curves.png").read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "curves.csv"), data, check_dtype=False)
    assert json.loads((tmp_path / "captions.json").read_text()) == {"curves": "Losses over epochs."}


def drawn(axis, way: str) -> list[np.ndarray]:
    """What the error bars of an axis show: for each of them ``(points, 3)``, value, low and high along x or y."""
    shown = []
    for container in axis.containers:
        line, _, (bars,) = container.lines
        values = line.get_xdata() if way == "x" else line.get_ydata()
        ends = [[end["xy".index(way)] for end in bar] for bar in bars.get_segments()]
        shown.append(np.column_stack([values, ends]).astype(float))
    return shown


def ablation(*rows: str) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    lines = [
        {"row": row, "statistic": name} for name in ("balanced_accuracy", "auc") for row in rows
    ]
    low, value, high = np.sort(generator.uniform(0.3, 1, (3, len(lines))), axis=0)
    return pd.DataFrame(lines).assign(value=value, low=low, high=high)


def test_a_forest_shows_the_values_of_its_table():
    table = ablation("full", "no_caption", "plain_clip")
    figure = plots.forest(table, "balanced_accuracy", "auc")
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "full",
        "no caption",
        "plain CLIP",
    ]
    for axis, name in zip(figure.axes, ("balanced_accuracy", "auc"), strict=True):
        wanted = table.loc[table["statistic"] == name, ["value", "low", "high"]].to_numpy()
        np.testing.assert_allclose(drawn(axis, "x"), [wanted])
        assert axis.containers[0].lines[0].get_ydata().tolist() == [0, 1, 2]
        assert axis.lines[-1].get_xdata() == [wanted[0, 0]] * 2  # dotted: the first row
        assert plots.title_of(name) in axis.get_xlabel()


def test_a_curve_shows_the_values_of_its_table_in_order():
    rows = ("full", "plain_clip")
    table = pd.concat(
        [ablation(*rows).assign(train_studies=size, high=1.0) for size in (120, 30, 200)]
    )
    figure = plots.interval_curve(table, "train_studies", "studies")
    figure.draw_without_rendering()
    for axis, name in zip(figure.axes, ("balanced_accuracy", "auc"), strict=True):
        assert [label.get_text() for label in axis.get_xticklabels()] == ["30", "120", "200"]
        wanted = table[table["statistic"] == name].sort_values("train_studies").set_index("row")
        shown = drawn(axis, "y")
        assert [container.get_label() for container in axis.containers] == ["full", "plain CLIP"]
        for row, bars in zip(rows, shown, strict=True):
            np.testing.assert_allclose(bars, wanted.loc[row, ["value", "low", "high"]].to_numpy())


def test_wall_bars_show_the_values_of_their_table():
    low, value, high = np.sort(np.random.default_rng(1).uniform(0.3, 1, (3, 6)), axis=0)
    table = pd.DataFrame({"wall": WALLS, "value": value, "low": low, "high": high})
    (axis,) = (figure := plots.wall_bars(table)).axes
    figure.draw_without_rendering()
    assert [label.get_text() for label in axis.get_xticklabels()] == list(WALLS)
    np.testing.assert_allclose(drawn(axis, "y"), [table[["value", "low", "high"]].to_numpy()])


def test_roc_shows_the_curve_and_the_band_of_its_table():
    generator = np.random.default_rng(0)
    truth = generator.random(60) < 0.5
    table = roc_table(
        pd.DataFrame(
            {"patient_id": range(60), "scar": truth, "p_lge": truth + generator.normal(size=60)}
        )
    )
    (axis,) = plots.roc({"model": table}).axes
    curve, chance = axis.lines
    assert (curve.get_label(), chance.get_label()) == ("model", "chance")
    np.testing.assert_allclose(curve.get_xydata(), table[["false_positive_rate", "sensitivity"]])
    outline = axis.collections[0].get_paths()[0].vertices
    for rate, low, high in table[["false_positive_rate", "low", "high"]].iloc[1:-1].to_numpy():
        at = outline[np.isclose(outline[:, 0], rate), 1]
        assert at.min() == pytest.approx(low) and at.max() == pytest.approx(high)


@pytest.mark.parametrize("columns", [4, 6, 8])
def test_every_scar_of_the_gallery_has_its_whole_sentence_above_it(columns):
    scars = [Scar((wall,), ("basal", "mid"), depth) for wall in WALLS for depth in DEPTHS]
    sentences = [canonical_text(Findings((scar,))) for scar in scars]
    assert len(set(sentences)) == len(scars)  # each picture under its own words
    with plt.rc_context():
        plots.use_style()
        figure = plots.show_images(dict.fromkeys(sentences, np.eye(9)), columns=columns)
        figure.draw_without_rendering()
    assert [" ".join(axis.get_title().split()) for axis in figure.axes] == sentences
    boxes = [
        box
        for axis in figure.axes
        for box in (axis.get_window_extent(), axis.title.get_window_extent())
    ]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize("words", ["No late gadolinium enhancement.", "network", "truth"])
def test_titles_of_neighbours_keep_apart(words):
    names = [f"Phantom_0_{number:05d}: {words}" for number in range(6)]
    with plt.rc_context():
        plots.use_style()
        figure = plots.show_images(dict.fromkeys(names, np.eye(9)), columns=6)
        figure.draw_without_rendering()
    boxes = [axis.title.get_window_extent() for axis in figure.axes]
    letter = figure.dpi * 6 * 0.58 / 72
    assert all(right.x0 - left.x1 > letter for left, right in itertools.pairwise(boxes))


def test_each_segment_bears_its_number():
    study, segments = (
        phantom_cohort(1, seed=3, pixels=72, slices=6, workers=1).studies[0],
        np.zeros((72, 72, 6), int),
    )
    segments[10:20, 10:20, 2], segments[40:50, 10:20, 2], segments[10:20, 40:50, 3] = 7, 12, 3
    axis = plots.show_segments(study, segments, 2).axes[1]
    assert {text.get_text(): text.get_position() for text in axis.texts} == {
        "7": (14.5, 14.5),
        "12": (44.5, 14.5),
    }
