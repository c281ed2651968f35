"""Figures: their data, not their pixels."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from lgekit import plots
from lgekit.findings import WALLS


def test_roc_table_is_scikit_learns_curve():
    generator = np.random.default_rng(0)
    truth = generator.random(60) < 0.5
    score = (truth + generator.normal(size=60)).round(1)  # with ties
    table = plots.roc_table(pd.DataFrame({"patient_id": range(60), "scar": truth, "p_lge": score}))
    alarms, hits, _ = roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose(table["sensitivity"], np.interp(table["false_positive_rate"], alarms, hits))
    area = np.trapezoid(table["sensitivity"], table["false_positive_rate"])
    assert area == pytest.approx(roc_auc_score(truth, score), abs=0.02)
    assert (table["low"] <= table["sensitivity"]).all() and (table["sensitivity"] <= table["high"]).all()


def test_a_caption_of_dollars_is_drawn_as_it_stands():
    """A decoder that was never trained writes such; a run of the grid failed on it."""
    with plt.rc_context():
        plots.use_style()
        figure, axes = plt.subplots()
        axes.set_title("$$$$septal")
        figure.canvas.draw()
        assert axes.title.get_window_extent().width > 50
        plt.close(figure)


@pytest.mark.parametrize(
    ("segment", "start", "width"),
    [(1, 60, 60), (2, 120, 60), (4, 240, 60), (7, 60, 60), (13, 45, 90), (14, 135, 90), (15, 225, 90), (17, 0, 360)],
)
def test_wedges_lie_where_cerqueira_puts_them(segment, start, width):
    assert plots.segment_wedge(segment)[:2] == (start, width)


def test_wall_values_reach_the_segments_of_their_wall():
    values = plots.wall_values({wall: float(number) for number, wall in enumerate(WALLS)})
    assert values[1] == values[7] == 0 and values[4] == values[10] == values[15] == 3
    assert values[14] == 1.5 and set(values) == set(range(1, 17))


def test_pictures_survive_the_table():
    images = {"a": np.random.default_rng(0).random((3, 5)), "b": np.eye(4)}
    for name, image in plots.pictures(plots.pixel_table(images)).items():
        np.testing.assert_array_equal(image, images[name])


def test_a_saved_figure_has_data_and_caption_and_comes_out_the_same_twice(tmp_path):
    data = pd.DataFrame({"epoch": [1, 2], "contrastive": [2.0, 1.0]})
    for _ in range(2):
        plots.save_figure(plots.training_curves(data), tmp_path, "curves", data, "Losses over epochs.")
        contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    plots.save_figure(plots.training_curves(data), tmp_path, "curves", data, "Losses over epochs.")
    assert contents["curves.png"] == (tmp_path / "curves.png").read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "curves.csv"), data, check_dtype=False)
    assert json.loads((tmp_path / "captions.json").read_text()) == {"curves": "Losses over epochs."}
