"""Figures of the paper are drawn from their tables alone, and show their values."""

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


def test_figures_and_tables_are_made_again_from_their_csv_files(tmp_path):
    names = ["captions", "orientation_scar_maps", "roc", "segment_auc", "slice_weights"]
    captions = {name: CAPTIONS[name] for name in names}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    for name in names:
        shutil.copy(KEPT / f"{name}.csv", tmp_path)
    shutil.copytree(KEPT / "tables", tmp_path / "tables")
    tables = {path.name: path.read_text() for path in (KEPT / "tables").glob("*_table.*")}
    for name in tables:
        (tmp_path / "tables" / name).unlink()
    assert [path.stem for path in figures.redraw(tmp_path)] == names
    assert json.loads((tmp_path / "captions.json").read_text()) == captions
    for name in names:
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"{name}.csv"), kept(name))
        assert all((tmp_path / f"{name}.{end}").stat().st_size > 1000 for end in ("png", "svg"))
    assert tables == {name: (tmp_path / "tables" / name).read_text() for name in tables}


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_figure_is_readable_at_the_width_of_a_column_or_page(name):
    with plt.rc_context():
        plots.use_style()
        figure = figures.draw(name, kept(name))
        figure.draw_without_rendering()
        width = figure.get_tightbbox().width
    tables = figure.findobj(Table)
    cells = [cell.get_text() for table in tables for cell in table.get_celld().values()]
    texts = [text for text in [*figure.findobj(Text), *cells] if text.get_text().strip()]
    assert width <= plots.PAGE + 0.1 and (width > 5 or width <= plots.COLUMN + 0.2)
    assert min(text.get_fontsize() for text in texts if text.get_visible()) >= 6
    assert CAPTIONS[name].startswith(figures.FIGURES[figures.figure_name(name)]["caption"])


def test_images_are_drawn_below_their_names():
    table = kept("orientation_scar_maps")
    wanted = plots.images_from_table(table)
    *axes, _ = figures.draw("orientation_scar_maps", table).axes
    for axis, (caption, image) in zip(axes, wanted.items(), strict=True):
        assert axis.get_title().split() == caption.split()
        np.testing.assert_allclose(axis.images[0].get_array(), image.T)


def test_the_gallery_has_walls_as_columns_and_depths_as_rows():
    table = kept("scar_gallery")
    wanted, axes = plots.images_from_table(table), figures.draw("scar_gallery", table).axes
    assert [axis.get_title() for axis in axes[:6]] == list(WALLS)
    assert [axis.get_title(loc="left") for axis in axes[::6]] == list(DEPTHS)
    places = itertools.product(WALLS, DEPTHS)
    for (name, image), (wall, depth) in zip(wanted.items(), places, strict=True):
        assert name.startswith(f"{wall}, {depth}: {depth.capitalize()}")
        drawn = axes[6 * DEPTHS.index(depth) + WALLS.index(wall)].images[0].get_array()
        np.testing.assert_allclose(drawn, image.T)


def test_unknown_figures_are_named():
    with pytest.raises(InputError, match="'rock'.*is not known"):
        figures.figure_name("rock")
    assert figures.figure_name("ablation_forest_emidec") == "ablation_forest"


def test_a_figure_of_a_run_names_its_cohort_and_can_be_redrawn(tmp_path):
    session = Session("phantom:studies=9", "smoke", 0, tmp_path / "07_paper_figures")
    slices = pd.DataFrame({"study_id": [*"aabb"], "slice": [1, 2] * 2, "weight": 0.5})
    slices = slices.assign(attention=0.25, scar=[True, True, True, False])
    save_run(session.out.parent / "05_clip_captioning", {}, slices=slices)
    folder = tmp_path / "figures"
    figures.from_session("slice_weights", session, folder)
    axes = figures.draw("slice_weights", slices).axes
    assert "slice of b" in axes[1].get_xlabel()  # the study with both kinds of slices
    assert "phantom:studies=9" in (folder / "captions.json").read_text()
    assert [path.stem for path in figures.redraw(folder)] == ["slice_weights"]
    (renewed,) = figures.redraw(tmp_path / "kept", source=folder)
    assert renewed == tmp_path / "kept" / "slice_weights.png" and renewed.stat().st_size > 1000
