"""Figures and tables of the paper, drawn and set from CSV files alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lgekit.errors import InputError
from lgekit.evaluation.compare import WORKBOOK_EPOCHS, WORKBOOK_SEEDS, uncompared
from lgekit.evaluation.metrics import PRESENCE_STATISTICS, title_of
from lgekit.findings import DEPTHS, WALLS
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.viz import plots

ORIENTATION = "02_orientation_standardization"
SCARS = "03_synthetic_scar_generation"
PRETRAINING = "04_pretraining"
DETECTION = "05_clip_captioning"
ABLATIONS = "06_ablations"
GRID = ""  # drawn from a grid's own table by `lgekit grid report`
STATISTICS = {name: title_of(name) for name in PRESENCE_STATISTICS}
STATISTICS["auc_walls"] = "AUC, mean of walls"
CURVES = {  # axis of a grid → label
    "synthetic_per_real": "synthetic scars for each real study",
    "train_studies": "studies with reports to train on",
}
VALUE = "{value:.2f} ({low:.2f}–{high:.2f})"
DIFFERENCE = "{difference:+.3f} ({difference_low:+.3f} to {difference_high:+.3f})"


def _images(table: pd.DataFrame, columns: int, cmap: str = "gray", unit: str = "") -> Figure:
    return plots.show_images(plots.images_from_table(table), columns, cmap, unit)


def _gallery(table: pd.DataFrame) -> Figure:
    """Draw one column for each wall and one row for each depth; the table is sorted by wall."""
    images, depths = plots.images_from_table(table), len(DEPTHS)
    names = [name for depth in range(depths) for name in list(images)[depth::depths]]
    return plots.show_images({name: images[name] for name in names}, columns=len(WALLS))


def _roc(table: pd.DataFrame) -> Figure:
    return plots.roc(dict(iter(table.groupby("reading", sort=False))))


def _bulls_eye(segments: pd.DataFrame) -> Figure:
    values = segments.set_index("segment")["value"].to_dict()
    return plots.bulls_eye(values, "AUC by AHA segment", "AUC", limits=(0.5, 1))


def _slices(slices: pd.DataFrame) -> Figure:
    """Draw the study whose slices are most evenly divided between scar and no scar."""
    scar = slices["scar"].astype(bool).groupby(slices["study_id"], sort=False).mean()
    return plots.slice_bars(slices, (scar - 0.5).abs().idxmin())


def _similarity(table: pd.DataFrame) -> Figure:
    before, after = plots.images_from_table(table).values()
    names = [f"study {number + 1}" for number in range(len(after))]
    return plots.similarity_matrix(before, after, names, rows="study")


def _point_error(table: pd.DataFrame) -> Figure:
    label = "error of the anterior insertion point (degrees)"
    return plots.histogram(table["anterior_error_deg"], label, "studies")


def _caption_table(table: pd.DataFrame) -> Figure:
    """Draw captions and ground truth, five right and five wrong."""
    right = table["right"].astype(bool)
    different = table[right].drop_duplicates(["caption", "truth"])
    chosen = pd.concat([different.head(5), table[~right].head(5)])
    texts = chosen[["caption", "truth"]].map(lambda text: plots.wrap(str(text), 62, lines=99))
    lines = [1, *(1 + texts.map(lambda text: text.count("\n")).max(axis=1))]  # heading first
    figure, axis = plt.subplots(figsize=(plots.PAGE, 0.14 * sum(lines) + 0.1 * len(lines)))
    axis.axis("off")
    cells, heading = texts.to_numpy().tolist(), ["the decoder wrote", "truth"]
    drawn = axis.table(cells, cellLoc="left", colLabels=heading, bbox=Bbox.unit())
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    colours = ["white", *np.where(chosen["right"].astype(bool), "#E8F1F8", "#FBEBD5")]
    for (line, _), cell in drawn.get_celld().items():
        cell.set(height=lines[line] + 0.7, edgecolor="#CCCCCC", facecolor=colours[line])
    return plots.closed(figure)


def interval_curve(table: pd.DataFrame) -> Figure:
    """Draw balanced accuracy and AUC over an axis: a line per row, or one if rows are points."""
    (axis_name,) = CURVES.keys() & table.columns
    one_line = table.groupby("row")[axis_name].nunique().max() == 1
    values = sorted(table[axis_name].unique())
    figure, axes = plt.subplots(1, 2, figsize=(plots.PAGE, 2.4), sharey=True)
    for axis, statistic in zip(axes, ("balanced_accuracy", "auc"), strict=True):
        chosen = table[table["statistic"] == statistic].sort_values(axis_name, kind="stable")
        lines = [("", chosen)] if one_line else chosen.groupby("row", sort=False)
        for number, (row, line) in enumerate(lines):
            x = np.searchsorted(values, line[axis_name]) + 0.08 * number
            errors, name = plots.whiskers(line), title_of(row)
            axis.errorbar(x, line["value"], yerr=errors, marker="o", capsize=2, label=name)
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axis.set(xlabel=CURVES[axis_name], ylabel=title_of(statistic))
    if not one_line:
        axes[1].legend(frameon=False)
    return plots.closed(figure)


_scar_maps = partial(_images, columns=3, cmap="cividis", unit="share of studies with scar")
# Figure → the notebook that saves its data, the table (of `GRID`: the axis), how it is drawn.
FIGURES: dict[str, tuple[str, str, Callable[[pd.DataFrame], Figure]]] = {
    "pipeline": (DETECTION, "pipeline", plots.pipeline),
    "orientation_mean_maps": (ORIENTATION, "mean_images", partial(_images, columns=3)),
    "orientation_scar_maps": (ORIENTATION, "mean_scars", _scar_maps),
    "scar_gallery": (SCARS, "gallery", _gallery),
    "real_beside_synthetic": (SCARS, "real_beside_synthetic", partial(_images, columns=4)),
    "insertion_point_error": (PRETRAINING, "heart_network", _point_error),
    "similarity_matrix": (DETECTION, "similarity", _similarity),
    "training_curves": (DETECTION, "history", plots.training_curves),
    "roc": (DETECTION, "roc", _roc),
    "wall_auc": (DETECTION, "walls", plots.wall_bars),
    "segment_auc": (DETECTION, "segments", _bulls_eye),
    "slice_weights": (DETECTION, "slices", _slices),
    "captions": (DETECTION, "captions", _caption_table),
    "ablation_forest": (ABLATIONS, "ablations", plots.forest),
    "synthetic_ratio": (GRID, "synthetic_per_real", interval_curve),
    "label_efficiency": (GRID, "train_studies", interval_curve),
}
# With the marks [P], [S] and [O]; the cohort or the grid is added to each.
CAPTIONS = {
    "pipeline": "The method on one test study: image as stored; in the standard frame, from the "
    "contours and insertion points of the heart network [S]; the unrolled wall [O]; evidence for "
    "scar (occlusion map) with the generated caption.",
    "orientation_mean_maps": "Mean image of the middle slices over all studies: as stored, centred "
    "and scaled, and in the standard frame.",
    "orientation_scar_maps": "Share of studies with scar in each pixel of the middle slices, "
    "before and after orientation.",
    "scar_gallery": "Synthetic scars in one healthy heart, by wall (columns) and depth (rows): "
    "region [S], appearance [O]. Above each image is the sentence of its report, measured from the "
    "mask.",
    "real_beside_synthetic": "Scars of the cohort (upper row) and synthetic scars of similar size "
    "in its scar-free hearts (lower row). “A as B” is heart A with a scar that matches B's in "
    "place and size.",
    "insertion_point_error": "Heart network on test studies, rotated and mirrored at random: error "
    "of the anterior insertion point.",
    "similarity_matrix": "Cosine similarity of test studies to their own texts (diagonal) and to "
    "those of other studies, before and after training. Studies with the same text share a "
    "pattern.",
    "training_curves": "Training losses of the detector over epochs.",
    "roc": "Zero-shot detection of scar in test patients, with 95 % confidence bands.",
    "wall_auc": "Zero-shot AUC of each wall, with 95 % intervals.",
    "segment_auc": "Zero-shot AUC of each AHA segment in test patients. Ground truth: the segments "
    "found in the masks, or in the reports where there are no masks. A segment's score is the "
    "largest probability of its wall over the slices of its ring, each slice read alone; the apex "
    "(17) has no wall and takes the probability of scar. Grey: all studies are of one class.",
    "slice_weights": "One test study, slice by slice. Top: probability of scar of each slice read "
    "alone, with the calibration of whole studies. Bottom: attention, each slice's share of the "
    "study's embedding, which sums to 1; it shows where the network looked, not what it found. "
    "Orange: slices with scar in the ground truth. Slices without heart are left out.",
    "captions": "Generated captions and ground truth: five different captions with all walls "
    "correct (blue), five others (orange). Levels, depth and microvascular obstruction are not "
    "judged.",
    "ablation_forest": "Ablations: mean over seeds, with 95 % bootstrap intervals over patients "
    "and seeds. Dotted: full method.",
    "synthetic_ratio": "Detection by number of synthetic scars for each real study (not to scale), "
    "with 95 % intervals over patients and seeds.",
    "label_efficiency": "Detection by number of training studies (not to scale), with 95 % "
    "intervals over patients and seeds.",
}


def figure_name(name: str) -> str:
    """Find the figure of a file name; grids add a suffix, as in ``ablation_forest_emidec``."""
    for known in FIGURES:
        if f"{name}_".startswith(f"{known}_"):
            return known
    raise InputError(f"figure {name!r}", "is not known", f"Figures: {', '.join(FIGURES)}.")


def draw(name: str, table: pd.DataFrame) -> Figure:
    """Draw a figure from its table."""
    return FIGURES[figure_name(name)][2](table)


def make_figure(name: str, table: pd.DataFrame, folder: Path, source: str) -> Path:
    """Draw a figure and save it with data and caption, which ``source`` ends; return the PNG."""
    caption = f"{CAPTIONS[figure_name(name)]} {source}"
    return plots.save_figure(draw(name, table), folder, name, table, caption)


def from_session(name: str, session: Any, folder: Path) -> Figure:
    """Draw, save and return a figure from a table of a run (`lgekit.workbook.Session`)."""
    notebook, file, _ = FIGURES[figure_name(name)]
    table = session.table(notebook, file)
    source = f"Cohort: {session.spec}; size {session.size}."
    if notebook == ABLATIONS:
        metrics = json.loads((session.of(ABLATIONS) / "metrics.json").read_text("utf-8"))
        if grid := metrics.get("grid"):
            runs, predictions = (session.table(ABLATIONS, n) for n in ("runs", "predictions"))
            source = f"Grid {grid}: {provenance(runs, predictions)}."
        else:
            epochs = WORKBOOK_EPOCHS[session.size] or "the size's own"
            run = f"epochs: {epochs}, seeds: {WORKBOOK_SEEDS[session.size]}"
            source = f"The workbook's own small grid, {run}. {source}"
    if name == "pipeline" and "study_id" in table:
        captions = session.table(DETECTION, "captions")
        source = f"{caption_verdict(table['study_id'].iloc[0], captions)} {source}".strip()
    make_figure(name, table, folder, source)
    return draw(name, table)


def caption_verdict(study_id: str, captions: pd.DataFrame) -> str:
    """Say whether a study's caption in a `caption_table` is right; empty if unknown."""
    own = captions[captions["study_id"] == study_id].fillna({"caption": ""})
    if own.empty:
        return ""
    caption, truth, right = own.iloc[0][["caption", "truth", "right"]]
    if right:
        return "The caption is right about presence of scar and walls."
    if states_enhancement(caption) and read_report(caption).present == read_report(truth).present:
        return "The caption is right about presence of scar, but not about all walls."
    return "The caption is wrong about presence of scar."


def redraw(folder: Path) -> list[Path]:
    """Draw all figures below a folder, and set the tables of grids, from their CSV files."""
    plots.use_style()
    made = []
    for file in sorted(Path(folder).rglob("tables/*_comparison.csv")):
        set_tables(file.parent, file.name.removesuffix("_comparison.csv"))
    for captions in sorted(Path(folder).rglob("captions.json")):
        for name, caption in json.loads(captions.read_text("utf-8")).items():
            file = captions.with_name(f"{name}.csv")
            if not file.exists():
                remedy = "Run the workbook: make workbook"
                raise InputError(file, "the figure's data are missing", remedy)
            table = pd.read_csv(file)
            figure = draw(name, table)
            made.append(plots.save_figure(figure, captions.parent, name, table, caption))
    if not made:
        raise InputError(folder, "contains no figure", "Run the workbook first: make workbook")
    return made


def set_tables(tables: Path, name: str) -> list[Path]:
    """Write ``<name>_table.md`` and ``.tex`` from ``<name>_comparison.csv`` and ``_runs.csv``."""
    files = [tables / f"{name}_{what}.csv" for what in ("comparison", "runs")]
    saved = [pd.read_csv(file, dtype={"row": str}) for file in files if file.exists()]
    paper = paper_table(*saved)
    lines = [list(paper.columns), ["---"] * paper.shape[1], *paper.astype(str).to_numpy().tolist()]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    made = [tables / f"{name}_table.md", tables / f"{name}_table.tex"]
    made[0].write_text(markdown, "utf-8")
    made[1].write_text(paper.to_latex(index=False, escape=True), "utf-8")
    return made


def paper_table(comparison: pd.DataFrame, runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Set a `compare_rows` table as text: ``value (low–high)``, differences, p values after Holm.

    Rows of ``runs`` (`lgekit.grid.run.collect`) that were not compared are added with the reason.
    """
    lines, reference = [], comparison["row"].iloc[0]
    for row, of_row in comparison.groupby("row", sort=False):
        found = of_row.set_index("statistic").to_dict("index")
        line = {"row": title_of(row)}
        for name, title in STATISTICS.items():
            if name in found:
                line[title] = VALUE.format(**found[name])
        for name in ("balanced_accuracy", "auc"):
            compared = np.isfinite(found[name].get("difference", np.nan))
            difference = DIFFERENCE.format(**found[name]) if compared else ""
            line[f"{STATISTICS[name]} − {reference}"] = difference
            line[f"p, {STATISTICS[name]}"] = f"{found[name]['p_holm']:.3f}" if compared else ""
        lines.append(line)
    for row, why in uncompared(comparison, runs).items():
        lines.append({"row": title_of(row), STATISTICS["balanced_accuracy"]: why})
    return pd.DataFrame(lines).fillna("")


def further_axes(predictions: pd.DataFrame) -> list[str]:
    """Axes of a grid other than seed and fold; its axes are the columns before ``study_id``."""
    axes = predictions.columns[: predictions.columns.get_loc("study_id")]
    return [name for name in axes if name not in ("row", "seed", "fold")]


def provenance(
    runs: pd.DataFrame, predictions: pd.DataFrame, expected: Iterable[str] | None = None
) -> str:
    """Count runs, seeds and patients behind a figure; name commit, device and missing rows.

    Missing are those rows of ``expected``, by default of the grid, that ``predictions`` lack.
    """
    axes = [name for name in ("row", "seed", "fold") if name in predictions]
    axes += further_axes(predictions)
    used = predictions[axes].drop_duplicates()
    done = runs[runs["state"] == "done"].merge(used, on=axes).fillna("unknown").astype(str)
    commits, devices = ("/".join(sorted(done[name].unique())) for name in ("commit", "device"))
    patients = predictions.dropna(subset=["scar"])["patient_id"].nunique()
    seeds = predictions["seed"].nunique()
    rows = runs["row"].unique() if expected is None else expected
    missing = [title_of(row) for row in rows if row not in set(predictions["row"])]
    without = f" (without {', '.join(missing)})" if missing else ""
    return (
        f"{len(used)} of the grid's {len(runs)} runs{without}, {seeds} seed{'s' * (seeds > 1)}, "
        f"{patients} test patients, commit {commits}, {devices}"
    )
