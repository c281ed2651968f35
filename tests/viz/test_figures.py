"""Every figure is drawn again from its table alone. What is drawn is held against the table in test_plots.py."""

import itertools
import json
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.table import Table
from matplotlib.text import Text

from lgekit import workbook
from lgekit.errors import InputError
from lgekit.evaluation.compare import ROWS
from lgekit.evaluation.metrics import compare_rows, roc_table
from lgekit.findings import DEPTHS, WALLS
from lgekit.grid import report as ablation_report
from lgekit.viz import figures as paper_figures
from lgekit.viz import plots
from lgekit.workbook import save_run

KEPT = Path(__file__).parents[2] / "figures"
RATIOS = {"no_synthetic": 0.5, "full": 1.0, "synthetic_2": 1.5}


def predictions(rows, seeds=2, patients=60, **further):
    generator = np.random.default_rng(0)
    truth = generator.random(patients) < 0.5
    parts = []
    for row, strength in rows.items():
        for seed in range(seeds):
            part = pd.DataFrame(
                {"row": row, "seed": seed, "study_id": [f"P{n}" for n in range(patients)]}
            )
            part["patient_id"], part["scar"] = part["study_id"], truth
            part["p_lge"] = 1 / (
                1 + np.exp(-strength * (2 * truth - 1) - generator.normal(size=patients))
            )
            for number, wall in enumerate(WALLS):
                part[f"scar_{wall}"] = truth & (np.arange(patients) % 6 == number)
                part[f"p_{wall}"] = part[f"scar_{wall}"] * strength + generator.random(patients)
            parts.append(part.assign(**further))
    return pd.concat(parts, ignore_index=True)


def runs_of(table):
    axes = list(table.columns[: table.columns.get_loc("study_id")])
    runs = (
        table[axes]
        .drop_duplicates()
        .assign(state="done", commit="abc", device="CPU", studies_train=200)
    )
    return runs.reset_index(drop=True)


def test_every_kept_figure_is_drawn_again_from_its_csv_alone(tmp_path):
    captions = json.loads((KEPT / "captions.json").read_text())
    for name in ("captions.json", *(f"{figure}.csv" for figure in captions)):
        shutil.copy(KEPT / name, tmp_path)
    made = paper_figures.redraw(tmp_path)
    assert [path.stem for path in made] == sorted(captions)
    assert json.loads((tmp_path / "captions.json").read_text()) == captions
    for name in captions:
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / f"{name}.csv"), pd.read_csv(KEPT / f"{name}.csv")
        )
        assert (tmp_path / f"{name}.svg").stat().st_size > 1000 and (
            tmp_path / f"{name}.png"
        ).stat().st_size > 1000


@pytest.mark.parametrize("name", json.loads((KEPT / "captions.json").read_text()))
def test_a_kept_figure_can_be_read_at_the_width_of_a_column_or_page(name):
    """As wide as one of them, where its smallest letters have 6 points."""
    with plt.rc_context():
        plots.use_style()
        figure = paper_figures.figure_of(name).draw(pd.read_csv(KEPT / f"{name}.csv"))
        figure.draw_without_rendering()
        cells = [
            cell.get_text()
            for table in figure.findobj(Table)
            for cell in table.get_celld().values()
        ]
        texts = [
            text
            for text in [*figure.findobj(Text), *cells]
            if text.get_visible() and text.get_text().strip()
        ]
        box = figure.get_tightbbox()
    assert box.width <= plots.PAGE + 0.1 and (box.width > 5 or box.width <= plots.COLUMN + 0.2)
    assert min(text.get_fontsize() for text in texts) >= 6, name


@pytest.mark.parametrize(
    "name",
    [
        "pipeline",
        "orientation_mean_maps",
        "orientation_scar_maps",
        "scar_gallery",
        "real_beside_synthetic",
    ],
)
def test_kept_pictures_are_drawn_each_under_its_name(name):
    table = pd.read_csv(KEPT / f"{name}.csv")
    figure = paper_figures.FIGURES[name].draw(table)
    shown = {
        " ".join(axis.get_title().split()): axis.images[0].get_array()
        for axis in figure.axes
        if axis.images
    }
    wanted = {" ".join(caption.split()): image for caption, image in plots.pictures(table).items()}
    assert shown.keys() == wanted.keys()
    for caption, image in wanted.items():
        np.testing.assert_allclose(shown[caption].data, image.T)


def test_the_gallery_has_a_wall_a_column_and_a_depth_a_row():
    figure = paper_figures.FIGURES["scar_gallery"].draw(pd.read_csv(KEPT / "scar_gallery.csv"))
    titles = [" ".join(axis.get_title().split()).lower() for axis in figure.axes]
    for number, (depth, wall) in enumerate(itertools.product(DEPTHS, WALLS)):
        assert titles[number].startswith(depth.replace("_", "-")) and titles[number].endswith(
            f" {wall} wall."
        )


def test_a_gallery_with_a_picture_less_shows_each_under_its_own_words():
    images = plots.pictures(pd.read_csv(KEPT / "scar_gallery.csv"))
    less = plots.pixel_table(dict(list(images.items())[1:]))
    figure = paper_figures.FIGURES["scar_gallery"].draw(less)
    shown = {
        " ".join(axis.get_title().split()): axis.images[0].get_array()
        for axis in figure.axes
        if axis.images
    }
    assert len(shown) == len(images) - 1
    for name, image in shown.items():
        np.testing.assert_allclose(image.data, images[name].T)


def test_a_pipeline_without_unrolled_walls_shows_all_of_its_words():
    words = (
        'what speaks for scar. Read as: "'
        + " and ".join(WALLS)
        + ' walls, with microvascular obstruction", p = 0.9'
    )
    figure = plots.pipeline(
        plots.pixel_table({"as stored": np.eye(9), "centred": np.eye(9), words: np.eye(9)})
    )
    assert [" ".join(axis.get_title().split()) for axis in figure.axes[:3]] == [
        "as stored",
        "centred",
        words,
    ]


def test_the_kept_similarities_are_drawn_before_and_after():
    table = pd.read_csv(KEPT / "similarity_matrix.csv")
    figure = paper_figures.FIGURES["similarity_matrix"].draw(table)
    for axis, (when, matrix) in zip(figure.axes[:2], plots.pictures(table).items(), strict=True):
        assert axis.get_title() == f"{when} training"
        np.testing.assert_allclose(axis.images[0].get_array().data, matrix)
        assert axis.images[0].get_clim() == (-1, 1)


def test_the_kept_captions_stand_beside_their_truth():
    table = pd.read_csv(KEPT / "captions.csv")
    (cells,) = paper_figures.FIGURES["captions"].draw(table).axes[0].tables
    shown = {
        place: " ".join(cell.get_text().get_text().split())
        for place, cell in cells.get_celld().items()
    }
    lines = [
        (shown[line, 0], shown[line, 1]) for line in range(1, max(place[0] for place in shown) + 1)
    ]
    right = table[table["right"]].drop_duplicates(["caption", "truth"]).head(5)
    wanted = pd.concat([right, table[~table["right"]].head(5)])
    assert lines == [*zip(wanted["caption"], wanted["truth"], strict=True)]
    colours = [cells[line + 1, 0].get_facecolor() for line in range(len(lines))]
    first = wanted["right"].iloc[
        0
    ]  # False where a smoke run has just drawn them, and read none right
    assert [colour == colours[0] for colour in colours] == (wanted["right"] == first).tolist()


def test_the_kept_losses_and_errors_are_drawn():
    table = pd.read_csv(KEPT / "training_curves.csv")
    (axis,) = paper_figures.FIGURES["training_curves"].draw(table).axes
    drawn = [line.get_xydata() for line in axis.lines if len(line.get_xdata())]
    names = [text.get_text() for text in axis.get_legend().texts]
    for name, points in zip(names, drawn, strict=True):
        np.testing.assert_allclose(points, table[["epoch", name.replace(" ", "_")]].dropna())
    assert len(names) == 3 and "nats" in axis.get_ylabel()
    errors = pd.read_csv(KEPT / "insertion_point_error.csv")
    (axis,) = paper_figures.FIGURES["insertion_point_error"].draw(errors).axes
    counts, edges = np.histogram(errors["anterior_error_deg"].dropna(), bins=20)
    assert [
        bar.get_height() for bar in axis.patches
    ] == counts.tolist() and "degrees" in axis.get_xlabel()
    np.testing.assert_allclose([bar.get_x() for bar in axis.patches], edges[:-1])


def test_tables_are_set_again_from_what_is_kept(tmp_path):
    shutil.copytree(KEPT / "tables", tmp_path / "tables")
    for name in ("captions.json", "roc.csv"):
        shutil.copy(KEPT / name, tmp_path)
    (tmp_path / "captions.json").write_text(json.dumps({"roc": "A curve."}))
    kept = {path.name: path.read_text() for path in sorted((tmp_path / "tables").glob("*_table.*"))}
    for name in kept:
        (tmp_path / "tables" / name).unlink()
    paper_figures.redraw(tmp_path)
    assert len(kept) == 2 * len(list((KEPT / "tables").glob("*_comparison.csv"))) >= 6
    assert {
        path.name: path.read_text() for path in sorted((tmp_path / "tables").glob("*_table.*"))
    } == kept


def test_a_figure_without_its_data_is_named(tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps({"roc": "A curve."}))
    with pytest.raises(InputError, match="roc.csv.*data are missing"):
        paper_figures.redraw(tmp_path)
    with pytest.raises(InputError, match="holds no figure"):
        paper_figures.redraw(tmp_path / "nowhere")
    with pytest.raises(InputError, match="'rock'.*is not known"):
        paper_figures.figure_of("rock")
    with pytest.raises(
        InputError, match="'wall_auc_bulls_eye'.*is not known"
    ):  # of an older folder; no wall_auc
        paper_figures.figure_of("wall_auc_bulls_eye")
    assert paper_figures.figure_of("segment_auc") is paper_figures.FIGURES["segment_auc"]
    assert (
        paper_figures.figure_of("ablation_forest_emidec")
        is paper_figures.FIGURES["ablation_forest"]
    )


def test_segments_and_slices_are_drawn_from_the_tables_of_notebook_05(tmp_path):
    segments = pd.DataFrame(
        {"segment": range(1, 18), "value": [0.9, np.nan] + [0.7] * 15, "low": 0.5, "high": 1.0}
    )
    slices = pd.DataFrame(
        {"study_id": [*"aabb"], "slice": [1, 2] * 2, "weight": 0.5, "attention": 0.25}
    )
    slices["scar"] = [True, True, True, False]
    tables = {"segments": segments, "slices": slices}
    session = workbook.Session(
        "07_paper_figures", "phantom:studies=9", "smoke", 0, tmp_path / "07_paper_figures"
    )
    save_run(session.of("05_clip_captioning"), {}, tables=tables)
    wedges = (
        paper_figures.from_session("segment_auc", session, tmp_path / "figures").axes[0].patches
    )
    colours = [wedge.get_facecolor() for wedge in wedges]
    assert len(set(colours)) == 3 and colours.count(colours[0]) == colours.count(colours[1]) == 1
    both = paper_figures.from_session("slice_weights", session, tmp_path / "figures").axes
    assert len(both) == 2 and "slice of b" in both[1].get_xlabel()
    captions = json.loads((tmp_path / "figures" / "captions.json").read_text())
    assert "asked alone" in captions["segment_auc"] and "sums to 1" in captions["slice_weights"]
    assert [path.stem for path in paper_figures.redraw(tmp_path / "figures")] == [
        "segment_auc",
        "slice_weights",
    ]


def test_the_caption_of_the_pipeline_says_whether_its_words_are_right(tmp_path):
    """The showcase had named two of three walls, and nothing said so."""
    truth = "Late gadolinium enhancement in the inferior wall."
    said = {
        "a": (truth, True),
        "b": ("LGE in the anterior wall.", False),
        "c": ("No LGE.", False),
        "d": ("the", False),
    }
    rows = [
        {"study_id": name, "caption": words, "truth": truth, "right": right}
        for name, (words, right) in said.items()
    ]
    session = workbook.Session(
        "07_paper_figures", "phantom:studies=9", "smoke", 0, tmp_path / "07_paper_figures"
    )
    judged = {}
    for name in "abcde":
        steps = plots.pixel_table(
            {"as stored": np.eye(9), 'what speaks for scar. Read as: "x"': np.eye(9)}
        )
        steps.loc[0, "study_id"] = name
        tables = {"pipeline": steps, "captions": pd.DataFrame(rows)}
        save_run(session.of("05_clip_captioning"), {}, tables=tables)
        paper_figures.from_session("pipeline", session, tmp_path / "figures")
        caption = json.loads((tmp_path / "figures" / "captions.json").read_text())["pipeline"]
        judged[name] = caption.partition("the words it reads. ")[2].partition("Cohort")[0]
    assert judged["a"] == "The words are right about whether there is scar and about its walls. "
    assert (
        judged["b"]
        == "The words are right about whether there is scar, not about all of its walls. "
    )
    assert (
        judged["c"] == judged["d"] == "The words are wrong about whether there is scar. "
        and judged["e"] == ""
    )


def test_the_readme_says_of_its_picture_what_the_picture_s_caption_says():
    """Also below a picture that was drawn anew: right or wrong, the alternative text follows."""
    judged = re.search(
        r"The words are (.+?)\.", json.loads((KEPT / "captions.json").read_text())["pipeline"]
    )
    alternative = re.search(
        r"!\[(.+?)\]\(figures/pipeline.png\)", (KEPT.parent / "README.md").read_text("utf-8")
    )
    assert judged and alternative and alternative[1].endswith(f"the words it reads, {judged[1]}")


def test_kept_captions_are_in_the_library_s_words():
    for name, caption in json.loads((KEPT / "captions.json").read_text()).items():
        assert caption.startswith(paper_figures.figure_of(name).caption), name


def test_the_table_says_what_the_comparison_says(tmp_path):
    comparison = compare_rows(predictions({"full": 2.0, "no_caption": 0.0}))
    paper = ablation_report.paper_table(comparison).set_index("row")
    full = comparison.set_index(["row", "statistic"]).loc[("full", "auc")]
    assert paper.loc["full", "AUC"] == f"{full['value']:.2f} ({full['low']:.2f}–{full['high']:.2f})"
    less = comparison.set_index(["row", "statistic"]).loc[("no_caption", "auc")]
    words = "{:+.3f} ({:+.3f} to {:+.3f})".format(
        *less[["difference", "difference_low", "difference_high"]]
    )
    assert paper.loc["full", "AUC − full"] == "" and paper.loc["no caption", "AUC − full"] == words
    assert less["difference"] < -0.2
    assert float(paper.loc["no caption", "p, AUC"]) < 0.01
    ablation_report.set_table(paper.reset_index(), tmp_path, "toy")
    lines = (tmp_path / "toy_table.md").read_text().splitlines()
    assert len(lines) == 4 and all(line.count("|") == lines[0].count("|") for line in lines)


def test_walls_are_compared_over_studies_whose_walls_are_known():
    table = predictions({"full": 3.0, "blind": 0.0})
    walls = compare_rows(table).set_index(["statistic", "row"]).loc["auc_walls"]
    assert walls.loc["full", "value"] == 1 and 0.3 < walls.loc["blind", "value"] < 0.7
    assert walls.loc["blind", "difference_high"] < 0
    unknown = table["study_id"] == "P0"
    assert table.loc[unknown, "scar"].notna().all()
    table[[f"scar_{wall}" for wall in WALLS]] = table[[f"scar_{wall}" for wall in WALLS]].astype(
        object
    )
    table.loc[unknown, [f"scar_{wall}" for wall in WALLS]] = None
    assert (
        compare_rows(table).set_index(["statistic", "row"]).loc[("auc_walls", "full"), "value"] == 1
    )


def test_rows_named_after_a_ratio_make_a_curve():
    table = predictions(RATIOS)
    curve = ablation_report.curve_table(table, runs_of(table), "synthetic_per_real")
    auc = curve[curve["statistic"] == "auc"]
    assert auc["synthetic_per_real"].tolist() == [0, 1, 2] and auc["value"].is_monotonic_increasing
    assert ablation_report.curve_table(table, runs_of(table), "train_studies").empty


def test_an_axis_of_the_grid_makes_a_curve_a_row():
    parts = [
        predictions({"full": 0.5 * size, "plain_clip": 0.2}, train_studies=size)
        for size in (1, 2, 0)
    ]
    table = pd.concat(parts, ignore_index=True)
    curve = ablation_report.curve_table(table, runs_of(table), "train_studies")
    assert sorted(curve["train_studies"].unique()) == [1, 2, 200]  # 0 stands for all
    at = curve[(curve["statistic"] == "auc") & (curve["train_studies"] == 2)].set_index("row")
    assert at.loc["plain_clip", "difference"] == pytest.approx(
        at["value"]["plain_clip"] - at["value"]["full"]
    )
    assert (
        at.loc["plain_clip", "difference_low"] < at.loc["plain_clip", "difference"]
        and "p" not in curve
    )
    assert set(curve["row"]) == {"full", "plain_clip"}


def test_of_a_further_axis_the_last_value_is_compared():
    parts = [predictions({"full": 0.5, "plain_clip": 0.2}, seeds=1) for _ in range(2)]
    for part, size in zip(parts, (30, 0), strict=True):
        part.insert(2, "train_studies", size)
    table = pd.concat(parts, ignore_index=True)
    last = ablation_report.last_point(table)
    assert set(last["train_studies"]) == {0} and len(last) == len(parts[1])
    pd.testing.assert_frame_equal(ablation_report.last_point(parts[0]), parts[0])


def test_a_ratio_of_none_is_drawn_at_zero():
    parts = [predictions({"full": 1.0}, synthetic_per_real=ratio) for ratio in (0.0, 1.0)]
    table = pd.concat(parts, ignore_index=True)
    assert set(
        ablation_report.curve_table(table, runs_of(table), "synthetic_per_real")[
            "synthetic_per_real"
        ]
    ) == {0, 1}


def test_no_curve_with_one_class_only():
    table = predictions({"full": 1.0}, seeds=1).assign(scar=True)
    curve = roc_table(table)
    assert len(curve) == 101 and curve[["sensitivity", "low", "high"]].isna().all(axis=None)


def test_rows_are_compared_over_seeds_that_they_have_whole():
    table = predictions({"full": 1.0, "no_caption": 1.0, "plain_clip": 0.0}, seeds=3)
    runs = runs_of(table)
    runs.loc[(runs["row"] == "no_caption") & (runs["seed"] == 1), "state"] = "failed"
    chosen = ablation_report.of_whole_seeds(runs, table, "toy")
    assert set(chosen["seed"]) == {0, 2} and set(chosen["row"]) == {
        "full",
        "no_caption",
        "plain_clip",
    }
    runs.loc[runs["row"] == "plain_clip", "state"] = "to do"
    chosen = ablation_report.of_whole_seeds(runs, table, "toy")
    assert set(chosen["seed"]) == {0, 2} and set(chosen["row"]) == {"full", "no_caption"}
    paper = ablation_report.paper_table(compare_rows(chosen), runs).set_index("row")
    assert (
        paper.loc["plain CLIP", "balanced accuracy"] == "not run"
        and paper.loc["plain CLIP", "AUC"] == ""
    )
    with pytest.raises(InputError, match="toy.*no seed of row 'full' is done"):
        ablation_report.of_whole_seeds(runs.assign(state="failed"), table, "toy")


def test_most_seeds_times_rows_are_compared_and_what_is_left_out_is_said(capsys):
    table = predictions({"full": 1.0, "no_caption": 1.0, "no_synthetic": 0.0}, seeds=3, patients=20)
    runs = runs_of(table)
    runs.loc[(runs["row"] == "no_synthetic") & (runs["seed"] > 0), "state"] = ["failed", "to do"]
    chosen = ablation_report.of_whole_seeds(runs, table, "toy")
    assert set(chosen["seed"]) == {0, 1, 2} and set(chosen["row"]) == {"full", "no_caption"}
    assert (
        capsys.readouterr().out
        == "grid toy: rows no_synthetic left out, not whole where the others are\n"
    )
    words = "not compared (1 of 3 runs done, 1 failed)"
    comparison = compare_rows(chosen)
    assert ablation_report.paper_table(comparison, runs)["balanced accuracy"].iloc[-1] == words
    claims = ablation_report.claims_table(comparison, runs=runs).set_index("row")["answer"]
    assert claims["no_synthetic"] == words and claims["no_pretraining"] == "not run"
    runs["state"] = "done"
    runs.loc[(runs["row"] == "no_synthetic") & (runs["seed"] == 2), "state"] = "to do"
    chosen = ablation_report.of_whole_seeds(
        runs, table, "toy"
    )  # 2 seeds of 3 rows, 3 of 2: the more rows
    assert set(chosen["seed"]) == {0, 1} and chosen["row"].nunique() == 3
    assert "seeds 2 left out" in capsys.readouterr().out


def test_a_caption_counts_the_runs_that_are_shown_and_names_the_rows_that_are_not():
    table = predictions({"full": 1.0, "no_caption": 1.0, "plain_clip": 0.0}, seeds=3, patients=20)
    runs = runs_of(table)
    runs.loc[(runs["row"] == "plain_clip") & (runs["seed"] > 0), "state"] = "to do"
    runs.loc[runs["row"] == "plain_clip", "device"] = "another"
    shown = ablation_report.of_whole_seeds(runs, table, "toy")
    words = (
        "6 of the grid's 9 runs (without plain CLIP), 3 seeds, 20 test patients, commit abc, CPU"
    )
    assert ablation_report.provenance(runs, shown) == words
    assert ablation_report.provenance(runs, shown, ["full"]) == words.replace(
        " (without plain CLIP)", ""
    )
    unknown = runs.assign(commit=np.nan)  # read from a table: the checkout was no git repository
    assert "commit unknown" in ablation_report.provenance(unknown, shown)


def test_a_curve_through_rows_names_the_point_that_is_missing(tmp_path, monkeypatch):
    table = predictions(RATIOS | {"synthetic_4": 1.5, "no_caption": 1.0}, patients=20)
    runs = runs_of(table)
    runs.loc[(runs["row"] == "synthetic_4") & (runs["seed"] == 1), "state"] = "failed"
    monkeypatch.setattr(ablation_report, "collect", lambda file, out: runs.to_csv(out) or runs)
    monkeypatch.setattr(
        ablation_report, "collect_predictions", lambda file, of="": table.iloc[:0] if of else table
    )
    ablation_report.report_grid("grids/toy.yaml", tmp_path)
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert (
        "6 of the grid's 10 runs (without synthetic 4), 2 seeds" in captions["synthetic_ratio_toy"]
    )
    assert (
        "8 of the grid's 10 runs (without synthetic 4), 2 seeds" in captions["ablation_forest_toy"]
    )


def test_rows_named_by_numbers_stand_in_the_table_once(tmp_path, monkeypatch):
    table = predictions({"1": 1.0, "2": 0.5}, patients=20)
    monkeypatch.setattr(
        ablation_report, "collect", lambda file, out: runs_of(table).to_csv(out) or runs_of(table)
    )
    monkeypatch.setattr(
        ablation_report, "collect_predictions", lambda file, of="": table.iloc[:0] if of else table
    )
    ablation_report.report_grid("grids/toy.yaml", tmp_path)
    first = (tmp_path / "tables/toy_table.md").read_text()
    assert len(first.splitlines()) == 4 and "not compared" not in first
    paper_figures.redraw(tmp_path)
    assert (tmp_path / "tables/toy_table.md").read_text() == first


def test_a_report_of_a_grid_holds_tables_and_figures_and_no_patient(tmp_path, monkeypatch):
    table = predictions(dict.fromkeys(ROWS, 1.0) | RATIOS)
    monkeypatch.setattr(
        ablation_report, "collect", lambda file, out: runs_of(table).to_csv(out) or runs_of(table)
    )
    beside = predictions({"full": 2.0}).assign(method="supervised")
    monkeypatch.setattr(
        ablation_report, "collect_predictions", lambda file, of="": beside if of else table
    )
    made = ablation_report.report_grid("grids/toy.yaml", tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in made}
    assert names == {
        f"tables/toy_{what}"
        for what in ("runs.csv", "comparison.csv", "claims.csv", "references.csv")
    } | {
        "tables/toy_table.md",
        "tables/toy_table.tex",
        "ablation_forest_toy.png",
        "synthetic_ratio_toy.png",
    }
    claims = pd.read_csv(tmp_path / "tables/toy_claims.csv")
    assert len(claims) == 8 and set(claims["answer"]) <= {"yes", "no", "not shown"}
    caption = json.loads((tmp_path / "captions.json").read_text())["ablation_forest_toy"]
    assert (
        "Grid toy: 14 of the grid's 14 runs, 2 seeds, 60 test patients, commit abc, CPU." in caption
    )
    for path in tmp_path.rglob("*.csv"):
        assert "P17" not in path.read_text()
    assert "\\begin{tabular}" in (tmp_path / "tables/toy_table.tex").read_text()


def test_claims_are_answered_against_the_full_method_wherever_its_row_stands(tmp_path, monkeypatch):
    def answers(rows):
        table = predictions(rows, patients=40)
        monkeypatch.setattr(ablation_report, "collect", lambda file, out: runs_of(table))
        monkeypatch.setattr(
            ablation_report,
            "collect_predictions",
            lambda file, of="": table.iloc[:0] if of else table,
        )
        ablation_report.report_grid("grids/toy.yaml", tmp_path)
        claims = pd.read_csv(tmp_path / "tables/toy_claims.csv")
        return claims[claims["statistic"] == "auc"].set_index("row")["answer"]

    assert answers({"no_synthetic": 0.0, "full": 3.0})["no_synthetic"] == "yes"
    assert (
        answers({"no_synthetic": 3.0, "no_caption": 3.0}).eq("not run").all()
    )  # nothing to hold them against


def test_a_grid_with_an_axis_is_reported_at_its_last_point_and_over_the_axis(tmp_path, monkeypatch):
    parts, beside = [], []
    for size in (30, 60, 0):
        part, other = (
            predictions({"full": 2.0, "no_synthetic": 0.5}),
            predictions({"full": 3.0 + size}),
        )
        part.insert(2, "train_studies", size)
        other.insert(2, "train_studies", size)
        other.insert(3, "method", "supervised")
        parts.append(part)
        beside.append(other)
    table, references = pd.concat(parts, ignore_index=True), pd.concat(beside, ignore_index=True)
    runs = runs_of(table)
    monkeypatch.setattr(ablation_report, "collect", lambda file, out: runs)
    monkeypatch.setattr(
        ablation_report, "collect_predictions", lambda file, of="": references if of else table
    )
    names = {path.name for path in ablation_report.report_grid("label_efficiency.yaml", tmp_path)}
    assert {"ablation_forest_label_efficiency.png", "label_efficiency.png"} <= names
    assert "synthetic_ratio_label_efficiency.png" not in names  # two points make no curve
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert captions["ablation_forest_label_efficiency"].endswith(
        "the last value of train_studies in the grid's file."
    )
    assert "4 of the grid's 12 runs, 2 seeds" in captions["ablation_forest_label_efficiency"]
    assert "12 of the grid's 12 runs, 2 seeds" in captions["label_efficiency"]
    assert "last value" not in captions["label_efficiency"]
    methods = pd.read_csv(tmp_path / "tables/label_efficiency_references.csv")
    last = compare_rows(beside[-1].assign(row="supervised"), "supervised")
    assert methods["row"].unique().tolist() == ["full", "supervised"]
    assert methods["value"].iloc[-1] == pytest.approx(last["value"].iloc[-2], abs=1e-4)


def test_a_row_named_like_a_ratio_is_no_point_of_the_curve():
    table = predictions(RATIOS | {"synthetic_only": 2.0})
    curve = ablation_report.curve_table(table, runs_of(table), "synthetic_per_real")
    assert set(curve["row"]) == set(RATIOS)


def test_the_caption_says_which_grid_notebook_06_ran(tmp_path):
    table = predictions({"full": 2.0, "no_caption": 0.0})
    tables = {"ablations": compare_rows(table), "runs": runs_of(table), "predictions": table}
    session = workbook.Session(
        "07_paper_figures", "phantom:studies=9", "smoke", 0, tmp_path / "07_paper_figures"
    )
    for given, words in (
        ("", "The workbook's own small grid"),
        ("emidec", "Grid emidec: 4 of the grid's 4 runs, 2 seeds, 60 test"),
    ):
        save_run(session.of("06_ablations"), {"grid": given}, tables=tables)
        paper_figures.from_session("ablation_forest", session, tmp_path / "figures")
        caption = json.loads((tmp_path / "figures" / "captions.json").read_text())[
            "ablation_forest"
        ]
        assert words in caption and ("phantom" in caption) == (not given)


def test_references_that_read_every_study_stand_beside_the_first_row():
    own = predictions({"full": 1.0, "no_caption": 0.5})
    whole = predictions({"full": 3.0}).assign(method="supervised")
    part = whole[whole["study_id"] != "P0"].assign(method="half done")
    other = whole.assign(
        method="others", study_id="Q" + whole["study_id"]
    )  # as many studies, but not the same
    beside = ablation_report.reference_comparison(
        own, pd.concat([whole, part, other], ignore_index=True)
    )
    assert beside["row"].unique().tolist() == ["full", "supervised"]
    better = beside[(beside["row"] == "supervised") & (beside["statistic"] == "auc")].iloc[0]
    assert better["difference"] > 0 and better["p"] < 0.05
    assert ablation_report.reference_comparison(own, pd.DataFrame()).empty
