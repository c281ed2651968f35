"""Figures of the paper are drawn from their tables alone, and show what the tables hold."""

import itertools
import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.table import Table
from matplotlib.text import Text

from lgekit.errors import InputError
from lgekit.findings import DEPTHS, WALLS
from lgekit.viz import figures, plots
from lgekit.workbook import Session, save_run

KEPT = Path(__file__).parents[2] / "figures"
CAPTIONS = json.loads((KEPT / "captions.json").read_text())


def kept(name: str) -> pd.DataFrame:
    return pd.read_csv(KEPT / f"{name}.csv")


def draw(name: str, table: pd.DataFrame):
    return figures.FIGURES[figures.figure_name(name)].draw(table)


def titled_images(figure) -> dict[str, np.ndarray]:
    axes = [axis for axis in figure.axes if axis.images]
    return {" ".join(axis.get_title().split()): axis.images[0].get_array() for axis in axes}


@pytest.fixture
def session(tmp_path):
    folder = tmp_path / "07_paper_figures"
    return Session("07_paper_figures", "phantom:studies=9", "smoke", 0, folder)


def test_figures_and_tables_are_made_again_from_their_csv_files(tmp_path):
    names = ["captions", "orientation_scar_maps", "roc", "segment_auc", "slice_weights"]
    captions = {name: CAPTIONS[name] for name in names}
    shutil.copytree(KEPT / "tables", tmp_path / "tables")
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    for name in names:
        shutil.copy(KEPT / f"{name}.csv", tmp_path)
    tables = {path.name: path.read_text() for path in (KEPT / "tables").glob("*_table.*")}
    for name in tables:
        (tmp_path / "tables" / name).unlink()
    made = figures.redraw(tmp_path)
    assert [path.stem for path in made] == names
    assert json.loads((tmp_path / "captions.json").read_text()) == captions
    for name in names:
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"{name}.csv"), kept(name))
        assert all((tmp_path / f"{name}.{end}").stat().st_size > 1000 for end in ("png", "svg"))
    assert tables == {name: (tmp_path / "tables" / name).read_text() for name in tables}


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_figure_is_readable_at_the_width_of_a_column_or_page(name):
    with plt.rc_context():
        plots.use_style()
        figure = draw(name, kept(name))
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    tables = figure.findobj(Table)
    cells = [cell.get_text() for table in tables for cell in table.get_celld().values()]
    texts = [text for text in [*figure.findobj(Text), *cells] if text.get_text().strip()]
    assert box.width <= plots.PAGE + 0.1 and (box.width > 5 or box.width <= plots.COLUMN + 0.2)
    assert min(text.get_fontsize() for text in texts if text.get_visible()) >= 6


@pytest.mark.parametrize(
    "name",
    ["pipeline", "orientation_mean_maps", "orientation_scar_maps", "scar_gallery"],
)
def test_images_are_drawn_below_their_names(name):
    wanted = plots.images_from_table(kept(name))
    drawn = titled_images(draw(name, kept(name)))
    assert len(drawn) == len(wanted)
    for caption, image in wanted.items():
        np.testing.assert_allclose(drawn[" ".join(caption.split())].data, image.T)


def test_the_gallery_has_walls_as_columns_and_depths_as_rows():
    titles = [title.lower() for title in titled_images(draw("scar_gallery", kept("scar_gallery")))]
    for title, (depth, wall) in zip(titles, itertools.product(DEPTHS, WALLS), strict=True):
        assert title.startswith(depth) and title.endswith(f" {wall} wall.")


def test_a_gallery_without_one_image_shows_the_others_below_their_sentences():
    images = plots.images_from_table(kept("scar_gallery"))
    first, *others = images
    drawn = titled_images(draw("scar_gallery", plots.pixel_table({n: images[n] for n in others})))
    assert list(drawn) == others
    for name in others:
        np.testing.assert_allclose(drawn[name].data, images[name].T)


def test_a_pipeline_of_square_images_shows_all_words_of_the_caption():
    words = f'what speaks for scar. Read as: "{" and ".join(WALLS)} walls", p = 0.9'
    steps = dict.fromkeys(["as stored", "centred", words], np.eye(9))
    assert list(titled_images(plots.pipeline(plots.pixel_table(steps))))[:3] == list(steps)


def test_similarities_are_drawn_before_and_after_training():
    table = kept("similarity_matrix")
    axes = draw("similarity_matrix", table).axes[:2]
    for axis, (when, matrix) in zip(axes, plots.images_from_table(table).items(), strict=True):
        assert axis.get_title() == f"{when} training"
        np.testing.assert_allclose(axis.images[0].get_array().data, matrix)
        assert axis.images[0].get_clim() == (-1, 1)


def test_captions_are_drawn_with_their_truth_and_coloured_by_correctness():
    table = kept("captions")
    (cells,) = draw("captions", table).axes[0].tables
    right = table[table["right"]].drop_duplicates(["caption", "truth"]).head(5)
    wanted = pd.concat([right, table[~table["right"]].head(5)])
    for line, row in enumerate(wanted.itertuples(), 1):
        texts = [" ".join(cells[line, column].get_text().get_text().split()) for column in (0, 1)]
        assert texts == [row.caption, row.truth]
    colours = [cells[line, 0].get_facecolor() for line in range(1, len(wanted) + 1)]
    assert len({*zip(colours, wanted["right"], strict=True)}) == wanted["right"].nunique()


def test_losses_and_landmark_errors_are_those_of_their_tables():
    table = kept("training_curves")
    (axis,) = draw("training_curves", table).axes
    lines = [line.get_xydata() for line in axis.lines if len(line.get_xdata())]
    for text, points in zip(axis.get_legend().texts, lines, strict=True):
        name = text.get_text().replace(" ", "_")
        np.testing.assert_allclose(points, table[["epoch", name]].dropna())
    errors = kept("insertion_point_error")
    (axis,) = draw("insertion_point_error", errors).axes
    counts, edges = np.histogram(errors["anterior_error_deg"].dropna(), bins=20)
    assert [bar.get_height() for bar in axis.patches] == counts.tolist()
    np.testing.assert_allclose([bar.get_x() for bar in axis.patches], edges[:-1])


def test_unknown_figures_and_missing_data_are_named(tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps({"roc": "A curve."}))
    with pytest.raises(InputError, match="roc.csv.*data are missing"):
        figures.redraw(tmp_path)
    with pytest.raises(InputError, match="holds no figure"):
        figures.redraw(tmp_path / "nowhere")
    for unknown in ("rock", "wall_auc_emidec"):  # only figures of grids have a suffix
        with pytest.raises(InputError, match=f"{unknown}'.*is not known"):
            figures.figure_name(unknown)
    assert figures.figure_name("ablation_forest_emidec") == "ablation_forest"


def test_segments_and_slices_of_a_run_are_drawn_and_saved(session, tmp_path):
    segments = pd.DataFrame({"segment": range(1, 18), "value": [0.9, np.nan] + [0.7] * 15})
    slices = pd.DataFrame({"study_id": [*"aabb"], "slice": [1, 2] * 2, "weight": 0.5})
    slices = slices.assign(attention=0.25, scar=[True, True, True, False])
    save_run(session.of(figures.DETECTION), {}, tables={"segments": segments, "slices": slices})
    folder = tmp_path / "figures"
    wedges = figures.from_session("segment_auc", session, folder).axes[0].patches
    colours = [wedge.get_facecolor() for wedge in wedges]
    assert len(set(colours)) == 3 and colours.count(colours[0]) == colours.count(colours[1]) == 1
    axes = figures.from_session("slice_weights", session, folder).axes
    assert "slice of b" in axes[1].get_xlabel()  # the study with both kinds of slices
    captions = json.loads((folder / "captions.json").read_text())
    assert all("phantom:studies=9" in caption for caption in captions.values())
    assert [path.stem for path in figures.redraw(folder)] == ["segment_auc", "slice_weights"]


@pytest.mark.parametrize(
    ("caption", "right", "verdict"),
    [
        (
            "Late gadolinium enhancement in the inferior wall.",
            True,
            "right about presence of scar and",
        ),
        ("LGE in the anterior wall.", False, "but not about all walls"),
        ("No LGE.", False, "wrong about presence"),
        ("the", False, "wrong about presence"),
        (None, False, "wrong about presence"),
    ],
)
def test_the_pipeline_says_whether_its_caption_is_right(session, tmp_path, caption, right, verdict):
    truth = "Late gadolinium enhancement in the inferior wall."
    row = {"study_id": "a", "caption": caption, "truth": truth, "right": right}
    steps = plots.pixel_table({"as stored": np.eye(9), "read": np.eye(9)}).assign(study_id="a")
    tables = {"pipeline": steps, "captions": pd.DataFrame([row])}
    save_run(session.of(figures.DETECTION), {}, tables=tables)
    figures.from_session("pipeline", session, tmp_path)
    assert verdict in json.loads((tmp_path / "captions.json").read_text())["pipeline"]
    assert figures.caption_verdict("b", tables["captions"]) == ""


def test_captions_of_the_repository_are_those_of_the_library():
    for name, caption in CAPTIONS.items():
        assert caption.startswith(figures.CAPTIONS[figures.figure_name(name)]), name
