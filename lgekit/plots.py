"""Every figure of the workbook: one style, colours that colour-blind readers can tell apart, units on the axes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from lgekit.metrics import title_of
from lgekit.pictures import (
    COLUMN,
    PAGE,
    closed,
    draw_segments,
    draw_slice,
    legend_of_tissues,
    most_telling_slice,
    pictures,
    pipeline,
    pixel_table,
    show_image,
    show_images,
    show_segments,
    show_stack,
    show_studies,
    wrap,
)

__all__ = [
    "draw_segments",
    "draw_slice",
    "legend_of_tissues",
    "most_telling_slice",
    "pictures",
    "pipeline",
    "pixel_table",
    "show_image",
    "show_images",
    "show_segments",
    "show_stack",
    "show_studies",
]

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,  # on the screen
    "figure.titlesize": 9,
    "svg.hashsalt": "lgekit",  # the same figure, the same bytes
    "text.parse_math": False,  # captions and reports are drawn as they stand: "$" begins no formula
}


def use_style() -> None:
    """The workbook's look, for every figure drawn after it."""
    sns.set_theme(context="paper", font_scale=0.85, style="ticks", palette="colorblind", rc=STYLE)


def bulls_eye(values: Mapping[int, float], title: str = "", unit: str = "", limits=None) -> Figure:
    """The 17 AHA segments as a bull's-eye: base outside, apex in the middle, anterior up, septum left.

    Args:
        values: segment 1–17 → value; missing segments stay grey. Cerqueira 2002, doi:10.1161/hc0402.102975.
        title: above the picture.
        unit: beside the colour bar.
        limits: lowest and highest colour; the values' own range by default.
    """
    figure, axis = plt.subplots(figsize=(COLUMN, 2.9), subplot_kw={"projection": "polar"})
    finite = [value for value in values.values() if np.isfinite(value)]
    low, high = limits or ((min(finite), max(finite)) if finite else (0, 1))
    colours = plt.get_cmap("cividis")
    shade = plt.Normalize(low, high if high > low else low + 1)
    for segment in range(1, 18):
        start, width, inner = segment_wedge(segment)
        value = values.get(segment, np.nan)
        colour = colours(shade(value)) if np.isfinite(value) else "lightgray"
        edge = "white" if segment < 17 else colour  # a whole circle has no sides
        axis.bar(np.deg2rad(start), 1, np.deg2rad(width), bottom=inner, align="edge", color=colour, edgecolor=edge)
        middle = np.deg2rad(start + width / 2), (inner + 0.5 if segment < 17 else 0)
        dark = np.isfinite(value) and shade(value) < 0.5
        axis.text(*middle, str(segment), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axis.set(xticks=[], yticks=[], ylim=(0, 4), title=title)
    axis.spines["polar"].set_visible(False)
    beyond = "min" if finite and min(finite) < low else "neither"
    figure.colorbar(plt.cm.ScalarMappable(shade, colours), ax=axis, shrink=0.7, label=unit, extend=beyond)
    return closed(figure)


def segment_wedge(segment: int) -> tuple[float, float, int]:
    """Where a segment lies in the bull's-eye: start (degrees, counter-clockwise, 0 = right), width, inner radius."""
    if segment == 17:
        return 0.0, 360.0, 0
    if segment > 12:
        return 45.0 + 90.0 * (segment - 13), 90.0, 1
    return 60.0 + 60.0 * ((segment - 1) % 6), 60.0, 3 - (segment - 1) // 6


def tissue_histograms(tissues: pd.DataFrame, unit: str = "normalised signal (0 = remote, 1 = blood)") -> Figure:
    """Signal by tissue: columns ``cohort``, ``tissue``, ``signal``."""
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn lays its grids out itself
        grid = sns.displot(
            tissues, x="signal", hue="tissue", col="cohort", kind="kde", common_norm=False, height=2.4, aspect=1.3
        )
    grid.set_axis_labels(wrap(unit, 28), "density")
    grid.tight_layout()
    return closed(grid.figure)


def figure_distributions(figures: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Distributions of per-study figures, cohorts side by side.

    Args:
        figures: what ``realism.cohort_figures`` gives, with a column ``cohort``.
        names: column → label of the axis.
    """
    rows = -(-len(names) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(PAGE, 1.8 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, (column, label) in zip(axes.flat, names.items(), strict=False):
        sns.boxplot(figures, x=column, y="cohort", hue="cohort", ax=axis, fliersize=2, legend=False)
        axis.set(xlabel=wrap(label, 34), ylabel="")
    return closed(figure)


def angle_rose(degrees: Sequence[float], title: str) -> Figure:
    """How often each angle occurs: counter-clockwise degrees, 0 to the right."""
    figure, axis = plt.subplots(figsize=(2.8, 2.8), subplot_kw={"projection": "polar"})
    counts, edges = np.histogram(np.asarray(degrees) % 360, bins=24, range=(0, 360))
    axis.bar(np.deg2rad(edges[:-1]), counts, width=np.deg2rad(15), align="edge", edgecolor="white")
    axis.set_title(f"{title}\n(studies)")
    return closed(figure)


def histogram(values: Sequence[float], xlabel: str, ylabel: str) -> Figure:
    """How often each value occurs."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.1))
    axis.hist(np.asarray(values, float)[np.isfinite(values)], bins=20, edgecolor="white")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.locator_params(axis="y", integer=True)
    return closed(figure)


def scatter(table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """One point a row of a table."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.1))
    axis.scatter(table[x], table[y], s=10, alpha=0.7)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    return closed(figure)


def training_curves(history: pd.DataFrame) -> Figure:
    """Losses over epochs: column ``epoch`` and one column a curve."""
    long = history.rename(columns=title_of).melt("epoch", var_name="curve", value_name="loss").dropna()
    figure, axis = plt.subplots(figsize=(COLUMN, 2.2))
    sns.lineplot(long, x="epoch", y="loss", hue="curve", style="curve", ax=axis)
    axis.set(ylabel="loss (nats)")
    axis.legend(frameon=False)
    return closed(figure)


def similarity_matrix(
    before: np.ndarray, after: np.ndarray, names: Sequence[str], rows: str = "study, by what its report says"
) -> Figure:
    """Cosine similarity of studies (rows) and their own texts (columns), before and after training, ``(n, n)`` each."""
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 3.3), sharey=True)
    for axis, matrix, title in zip(axes, (before, after), ("before training", "after training"), strict=True):
        shown = axis.imshow(matrix, cmap="cividis", vmin=-1, vmax=1)
        axis.set(title=title, xlabel="their texts", xticks=[])
    shown_names = [name if len(name) < 46 else f"{name[:44]}…" for name in names]
    axes[0].set_yticks(range(len(names)), shown_names, fontsize=6)
    axes[0].set_ylabel(rows)
    figure.colorbar(shown, ax=axes, label="cosine similarity", shrink=0.8)
    return closed(figure)


def roc(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Curves with their bands: name → what `lgekit.metrics.roc_table` gives."""
    figure, axis = plt.subplots(figsize=(COLUMN, 3.4))
    for name, table in tables.items():
        (line,) = axis.plot(table["false_positive_rate"], table["sensitivity"], label=name)
        axis.fill_between(table["false_positive_rate"], table["low"], table["high"], alpha=0.2, color=line.get_color())
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", label="chance")
    axis.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    return closed(figure)


def forest(table: pd.DataFrame, *statistics: str) -> Figure:
    """One line an ablation row, its value and 95 % interval, a panel a statistic.

    Args:
        table: columns ``row, statistic, value, low, high``.
        statistics: which; balanced accuracy by default.
    """
    statistics = statistics or ("balanced_accuracy",)
    rows = list(dict.fromkeys(table["row"]))
    size = (min(1.6 + 2.7 * len(statistics), PAGE), 0.24 * len(rows) + 0.8)
    figure, axes = plt.subplots(1, len(statistics), figsize=size, sharey=True, squeeze=False)
    for axis, statistic in zip(axes[0], statistics, strict=True):
        shown = table[table["statistic"] == statistic].set_index("row").loc[rows]
        errors = np.stack([shown["value"] - shown["low"], shown["high"] - shown["value"]]).clip(0)
        axis.errorbar(shown["value"], range(len(rows)), xerr=errors, fmt="o", capsize=2, color="#0072B2")
        axis.axvline(shown["value"].get("full", shown["value"].iloc[0]), color="gray", linestyle=":")
        axis.set(xlabel=f"{title_of(statistic)}, 95 % interval", xlim=(min(0.4, shown["low"].min()) - 0.02, 1.02))
    axes[0, 0].set_yticks(range(len(rows)), [title_of(row) for row in rows])
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    return closed(figure)


def interval_curve(table: pd.DataFrame, axis_name: str, label: str) -> Figure:
    """Balanced accuracy and AUC over a quantity, a line a row: columns ``row, <axis_name>, statistic, value, low,
    high``. Where each row has one value of it, all rows are one line."""
    one_line = table.groupby("row")[axis_name].nunique().max() == 1
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.4), sharey=True)
    for axis, statistic in zip(axes, ("balanced_accuracy", "auc"), strict=True):
        shown = table[table["statistic"] == statistic].sort_values(axis_name, kind="stable")
        places = {value: place for place, value in enumerate(sorted(shown[axis_name].unique()))}
        lines = [("", shown)] if one_line else list(shown.groupby("row", sort=False))
        for number, (row, line) in enumerate(lines):
            errors = np.stack([line["value"] - line["low"], line["high"] - line["value"]]).clip(0)
            at = [places[value] + 0.08 * number for value in line[axis_name]]
            axis.errorbar(at, line["value"], yerr=errors, marker="o", capsize=2, label=title_of(row))
        axis.set_xticks(list(places.values()), [f"{value:g}" for value in places])
        axis.set(xlabel=label, ylabel=title_of(statistic))
    if not one_line:
        axes[1].legend(frameon=False)
    return closed(figure)


def wall_bars(table: pd.DataFrame) -> Figure:
    """AUC of each wall with its interval: columns ``wall, value, low, high``."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.2))
    errors = np.stack([table["value"] - table["low"], table["high"] - table["value"]]).clip(0)
    axis.errorbar(table["wall"], table["value"], yerr=errors, fmt="o", capsize=2, color="#0072B2")
    axis.axhline(0.5, color="gray", linestyle=":")
    axis.set(ylabel="AUC, 95 % interval", ylim=(min(0.3, table["low"].min()), 1.02))
    axis.tick_params(axis="x", rotation=30)
    return closed(figure)


def slice_bars(slices: pd.DataFrame, study_id: str) -> Figure:
    """What each slice of a study says when asked on its own, and below it the attention that it gets.

    Args:
        slices: columns ``study_id, slice, weight, scar``, and ``attention``: without it the first panel alone is drawn.
        study_id: which study.
    """
    shown = slices[slices["study_id"] == study_id]
    panels = {"weight": "probability of scar,\neach slice alone"}
    if "attention" in shown and shown["attention"].notna().any():
        panels["attention"] = "attention: share of\nthe study's embedding"
    figure, axes = plt.subplots(len(panels), figsize=(COLUMN, 0.7 + 1.5 * len(panels)), sharex=True, squeeze=False)
    names = {"#E69F00": "holds scar", "#999999": "holds none"}
    colours = np.where(shown["scar"].astype(bool), *names).tolist()
    for axis, (column, label) in zip(axes[:, 0], panels.items(), strict=True):
        axis.bar(shown["slice"] + 1, shown[column], color=colours)
        axis.set_ylabel(label)
        axis.locator_params(axis="x", integer=True)
    axes[0, 0].set_ylim(0, 1)
    patches = [Patch(color=colour, label=name) for colour, name in names.items()]
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 2, "frameon": False}
    axes[0, 0].legend(handles=patches, title="by the truth", **place)
    figure.align_ylabels()
    axes[-1, 0].set_xlabel(f"slice of {study_id} (stored order)")
    return closed(figure)


def caption_lines(table: pd.DataFrame) -> Figure:
    """Captions beside the truth, five right ones and five wrong ones: columns ``caption, truth, right``."""
    right = table["right"].astype(bool)
    different = table[right].drop_duplicates(["caption", "truth"])
    shown = pd.concat([different.head(5), table[~right].head(5)])
    words = [[wrap(str(text), 62, lines=99) for text in line] for line in shown[["caption", "truth"]].to_numpy()]
    lines = [1, *(1 + max(text.count("\n") for text in line) for line in words)]  # the heading is one
    figure, axis = plt.subplots(figsize=(PAGE, 0.14 * sum(lines) + 0.1 * len(lines)))
    axis.axis("off")
    drawn = axis.table(words, colLabels=["the decoder wrote", "truth"], loc="center", cellLoc="left", bbox=Bbox.unit())
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    for (line, _), cell in drawn.get_celld().items():
        cell.set_height(lines[line] + 0.7)
        cell.set_edgecolor("#CCCCCC")
        if line:
            cell.set_facecolor("#E8F1F8" if shown["right"].astype(bool).iloc[line - 1] else "#FBEBD5")
    return closed(figure)


def save_figure(figure: Figure, folder: Path, name: str, data: pd.DataFrame, caption: str) -> Path:
    """Write ``name.png`` and ``.svg``, the data as ``name.csv``, the caption (its alt text too) into captions.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        figure.savefig(folder / f"{name}.{ending}", dpi=220, bbox_inches="tight", metadata=metadata)
    data.to_csv(folder / f"{name}.csv", index=False, float_format="%.5g")
    captions = folder / "captions.json"
    known = json.loads(captions.read_text()) if captions.exists() else {}
    captions.write_text(
        json.dumps(dict(sorted((known | {name: caption}).items())), indent=1, ensure_ascii=False) + "\n"
    )
    return folder / f"{name}.png"
