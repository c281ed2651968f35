"""Plots show the data of their tables; titles stay readable."""

import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.text import Text

from lgekit.data.phantom import phantom_cohort
from lgekit.findings import DEPTHS, WALLS, Findings, Scar
from lgekit.reports.writer import canonical_text
from lgekit.study import Study
from lgekit.viz import plots


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.use_style()
        yield


def test_a_bulls_eye_has_its_segments_where_cerqueira_put_them():
    values = {1: 0.5, 10: 1.0, 14: 0.75, 16: 0.3, 17: np.nan}
    wedges = plots.bulls_eye(values, "title", "AUC", limits=(0.5, 1)).axes[0].patches
    scale, grey = plt.get_cmap("cividis"), to_rgba("lightgray")
    colours = {number: wedge.get_facecolor() for number, wedge in enumerate(wedges, 1)}
    assert [colours[n] for n in (1, 10, 14, 16)] == [scale(x) for x in (0.0, 1.0, 0.5, 0.0)]
    assert all(colours[n] == grey for n in (2, 9, 13, 17))
    figure = plots.bulls_eye({1: 1.0}, "truth")  # without a unit: no colour bar, no values
    assert len(figure.axes) == 1
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == [*map(str, range(1, 18)), *WALLS]
    places = {1: (60, 60), 2: (120, 60), 4: (240, 60), 7: (60, 60), 13: (45, 90), 15: (225, 90)}
    for segment, place in places.items():
        wedge = wedges[segment - 1]
        assert np.rad2deg([wedge.get_x(), wedge.get_width()]) == pytest.approx(place)


def test_slice_bars_show_probability_attention_and_truth():
    slices = pd.DataFrame({"study_id": "a", "slice": [1, 2], "weight": [0.1, 0.9]})
    slices = slices.assign(scar=[False, True], attention=[0.7, 0.3])
    figure = plots.slice_bars(pd.concat([slices, slices.assign(study_id="b", weight=1.0)]), "a")
    for axis, name in zip(figure.axes, ("weight", "attention"), strict=True):
        assert [bar.get_height() for bar in axis.patches] == slices[name].tolist()
        assert axis.patches[1].get_facecolor() == to_rgba(plots.ORANGE)


def test_a_saved_figure_has_data_and_caption_and_is_reproducible(tmp_path):
    data = pd.DataFrame({"epoch": [1, 2], "contrastive": [2.0, 1.0]})
    contents = []
    for _ in range(2):
        plots.save_figure(plots.training_curves(data), tmp_path, "curves", data, "A caption.")
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "curves.csv"), data, check_dtype=False)
    assert json.loads((tmp_path / "captions.json").read_text()) == {"curves": "A caption."}


@pytest.mark.parametrize("paired", [False, True])
def test_a_forest_shows_values_or_paired_differences_of_its_table(paired):
    rows, statistics = ["full", "no_caption", "plain_clip"], ["balanced_accuracy", "auc"]
    columns, first = ["value", "low", "high"], 0
    table = pd.DataFrame({"row": rows * 2, "statistic": np.repeat(statistics, 3)})
    table[["low", "value", "high"]] = np.sort(np.random.default_rng(0).random((6, 3)))
    if paired:
        columns, first = ["difference", "difference_low", "difference_high"], 1
        table[columns] = table[["value", "low", "high"]] - 1
    figure = plots.forest(table)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["full", "no caption", "plain CLIP"][first:]
    for axis, name in zip(figure.axes, statistics, strict=True):
        own = table[table["statistic"] == name]
        ((line, _, (bars,)),) = (container.lines for container in axis.containers)
        ends = [segment[:, 0] for segment in bars.get_segments()]
        drawn = np.column_stack([line.get_xdata(), ends]).astype(float)
        np.testing.assert_allclose(drawn, own[columns].to_numpy()[first:])
        assert axis.lines[-1].get_xdata() == [0 if paired else 0.5] * 2
        assert not paired or f"full ({own['value'].iloc[0]:.2f})" in axis.get_xlabel()


@pytest.mark.parametrize("columns", [4, 6, 8])
def test_long_captions_are_whole_and_touch_nothing(columns):
    scars = [Scar((wall,), ("basal", "mid"), depth) for wall in WALLS for depth in DEPTHS]
    sentences = [canonical_text(Findings((scar,))) for scar in scars]
    sentences[0] += " $$$$"  # untrained decoders write what would be a faulty formula
    figure = plots.show_images(dict.fromkeys(sentences, np.eye(9)), columns=columns)
    figure.draw_without_rendering()
    assert [" ".join(axis.get_title().split()) for axis in figure.axes] == sentences
    boxes = [part.get_window_extent() for axis in figure.axes for part in (axis, axis.title)]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_the_pipeline_lays_evidence_and_true_scar_over_the_unrolled_wall():
    wall, drop = np.random.default_rng(0).normal(size=(2, 48, 16))
    steps = {"as stored": np.eye(9), "unrolled": wall, "read as: scar": drop}
    success = plots.pixel_table(steps | {"true scar": drop > 1})
    failure = plots.pixel_table(steps)  # without a mask
    success.loc[0, "study_id"], failure.loc[0, "study_id"] = "a", "b"
    axes = plots.pipeline(pd.concat([success, failure])).axes
    names = [axis.get_title() for axis in axes]
    assert names == ["1. as stored", "2. unrolled\nread as: scar"] * 2 + [""]
    for axis in (axes[1], axes[3]):
        for image, wanted in zip(axis.images, (wall, drop), strict=True):
            np.testing.assert_allclose(image.get_array(), wanted.T)
    assert to_hex(axes[1].collections[0].get_edgecolor()[0]) == plots.ORANGE.lower()
    assert not axes[3].collections


def test_the_similarity_matrix_has_studies_as_rows_and_marks_their_own_texts():
    matrices = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3))
    table = plots.pixel_table(dict(zip(("before", "after"), matrices, strict=True)))
    for axis, matrix in zip(plots.similarity_matrix(table).axes, matrices, strict=False):
        np.testing.assert_allclose(axis.images[0].get_array(), matrix)
        assert axis.lines[0].get_xydata().tolist() == [[0, 0], [1, 1], [2, 2]]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "3"]


def test_each_label_has_its_colour():
    labels = np.zeros((60, 60, 2), np.uint8)
    labels[20:40, 20:40], labels[25:35, 25:35], labels[20:25, 20:25] = 2, 1, 3
    study = Study.from_arrays("a", np.random.default_rng(0).random(labels.shape), (1, 1, 9), labels)
    (image,) = plots.show_studies({"a": study}).axes
    drawn = [to_hex(line.get_edgecolor()[0]) for line in image.collections]
    assert drawn == [plots.TISSUE_COLOURS[label].lower() for label in (1, 2, 3)]
    assert plots.slice_with_most_scar(study) == 0


@pytest.mark.parametrize("heart", ["found", "not found"])
def test_a_reading_shows_what_to_check_and_clips_no_word(heart):
    (study,) = phantom_cohort(1, seed=0, workers=1).studies
    if heart == "not found":
        study = Study(study_id="a", image=study["image"])
    row = {"study_id": "a", "p_lge": 0.7, "caption": "transmural enhancement " * 12}
    row |= {f"p_{wall}": 0.9 for wall in WALLS} | {"slice_weights": "[0.1, 0.8, 0.2]"}
    row["segments"] = json.dumps([0.5] * 16 + [None])
    figure = plots.reading(study, row, 1, *np.random.default_rng(0).normal(size=(2, 24, 72)))
    figure.canvas.draw()
    words = "\n".join(text.get_text() for text in figure.findobj(Text))
    for said in ("p_lge = 0.70", "anterolateral 0.90", "slice 2, the strongest: 0.80", "medical"):
        assert said in words
    assert ("▲▼ insertion points" in words) == (heart == "found")
    assert ("no heart found" in words) == (heart == "not found")
    drawn = figure.get_tightbbox().extents  # inches
    assert drawn.min() >= 0 and (drawn[2:] <= figure.get_size_inches()).all()
