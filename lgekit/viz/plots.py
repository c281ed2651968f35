"""Plots."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from lgekit.errors import InputError
from lgekit.evaluation.metrics import title_of
from lgekit.findings import WALLS
from lgekit.study import CAVITY, LABEL_NAMES, NO_REFLOW, RV, SCAR, Study

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
        axis.bar(
            np.deg2rad(start),
            1,
            np.deg2rad(width),
            bottom=inner,
            align="edge",
            color=colour,
            edgecolor=edge,
        )
        middle = np.deg2rad(start + width / 2), (inner + 0.5 if segment < 17 else 0)
        dark = np.isfinite(value) and shade(value) < 0.5
        axis.text(
            *middle,
            str(segment),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )
    axis.set(xticks=[], yticks=[], ylim=(0, 4), title=title)
    axis.spines["polar"].set_visible(False)
    beyond = "min" if finite and min(finite) < low else "neither"
    figure.colorbar(
        plt.cm.ScalarMappable(shade, colours), ax=axis, shrink=0.7, label=unit, extend=beyond
    )
    return closed(figure)


def segment_wedge(segment: int) -> tuple[float, float, int]:
    """Where a segment lies in the bull's-eye: start (degrees, counter-clockwise, 0 = right), width, inner radius."""
    if segment == 17:
        return 0.0, 360.0, 0
    if segment > 12:
        return 45.0 + 90.0 * (segment - 13), 90.0, 1
    return 60.0 + 60.0 * ((segment - 1) % 6), 60.0, 3 - (segment - 1) // 6


def tissue_histograms(
    tissues: pd.DataFrame, unit: str = "normalised signal (0 = remote, 1 = blood)"
) -> Figure:
    """Signal by tissue: columns ``cohort``, ``tissue``, ``signal``."""
    with plt.rc_context(
        {"figure.constrained_layout.use": False}
    ):  # seaborn lays its grids out itself
        grid = sns.displot(
            tissues,
            x="signal",
            hue="tissue",
            col="cohort",
            kind="kde",
            common_norm=False,
            height=2.4,
            aspect=1.3,
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
    long = (
        history.rename(columns=title_of).melt("epoch", var_name="curve", value_name="loss").dropna()
    )
    figure, axis = plt.subplots(figsize=(COLUMN, 2.2))
    sns.lineplot(long, x="epoch", y="loss", hue="curve", style="curve", ax=axis)
    axis.set(ylabel="loss (nats)")
    axis.legend(frameon=False)
    return closed(figure)


def similarity_matrix(
    before: np.ndarray,
    after: np.ndarray,
    names: Sequence[str],
    rows: str = "study, by what its report says",
) -> Figure:
    """Cosine similarity of studies (rows) and their own texts (columns), before and after training, ``(n, n)`` each."""
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 3.3), sharey=True)
    for axis, matrix, title in zip(
        axes, (before, after), ("before training", "after training"), strict=True
    ):
        shown = axis.imshow(matrix, cmap="cividis", vmin=-1, vmax=1)
        axis.set(title=title, xlabel="their texts", xticks=[])
    shown_names = [name if len(name) < 46 else f"{name[:44]}…" for name in names]
    axes[0].set_yticks(range(len(names)), shown_names, fontsize=6)
    axes[0].set_ylabel(rows)
    figure.colorbar(shown, ax=axes, label="cosine similarity", shrink=0.8)
    return closed(figure)


def roc(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Curves with their bands: name → what `lgekit.evaluation.metrics.roc_table` gives."""
    figure, axis = plt.subplots(figsize=(COLUMN, 3.4))
    for name, table in tables.items():
        (line,) = axis.plot(table["false_positive_rate"], table["sensitivity"], label=name)
        axis.fill_between(
            table["false_positive_rate"],
            table["low"],
            table["high"],
            alpha=0.2,
            color=line.get_color(),
        )
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", label="chance")
    axis.set(
        xlabel="1 − specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01), aspect="equal"
    )
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
        axis.errorbar(
            shown["value"], range(len(rows)), xerr=errors, fmt="o", capsize=2, color="#0072B2"
        )
        axis.axvline(
            shown["value"].get("full", shown["value"].iloc[0]), color="gray", linestyle=":"
        )
        axis.set(
            xlabel=f"{title_of(statistic)}, 95 % interval",
            xlim=(min(0.4, shown["low"].min()) - 0.02, 1.02),
        )
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
            axis.errorbar(
                at, line["value"], yerr=errors, marker="o", capsize=2, label=title_of(row)
            )
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
    figure, axes = plt.subplots(
        len(panels), figsize=(COLUMN, 0.7 + 1.5 * len(panels)), sharex=True, squeeze=False
    )
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
    words = [
        [wrap(str(text), 62, lines=99) for text in line]
        for line in shown[["caption", "truth"]].to_numpy()
    ]
    lines = [
        1,
        *(1 + max(text.count("\n") for text in line) for line in words),
    ]  # the heading is one
    figure, axis = plt.subplots(figsize=(PAGE, 0.14 * sum(lines) + 0.1 * len(lines)))
    axis.axis("off")
    drawn = axis.table(
        words,
        colLabels=["the decoder wrote", "truth"],
        loc="center",
        cellLoc="left",
        bbox=Bbox.unit(),
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    for (line, _), cell in drawn.get_celld().items():
        cell.set_height(lines[line] + 0.7)
        cell.set_edgecolor("#CCCCCC")
        if line:
            cell.set_facecolor(
                "#E8F1F8" if shown["right"].astype(bool).iloc[line - 1] else "#FBEBD5"
            )
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
        json.dumps(dict(sorted((known | {name: caption}).items())), indent=1, ensure_ascii=False)
        + "\n"
    )
    return folder / f"{name}.png"


# Okabe & Ito's palette, https://jfly.uni-koeln.de/color/: distinguishable with any of the common colour deficiencies.
TISSUE_COLOURS = {1: "#56B4E9", 2: "#009E73", 3: "#E69F00", 4: "#CC79A7", 5: "#0072B2"}
# Width in inches of a column and of the page of a journal with two columns: so wide is every figure of `figures/`, and
# its smallest letters have 6 points as printed.
COLUMN, PAGE = 3.4, 7.0
FINE = 200  # dots an inch, on the screen too, where many pictures stand side by side


def show_stack(
    study: Study, slices: Sequence[int] | None = None, contours: bool = True, title: str = ""
) -> Figure:
    """The slices of a study side by side, pixels at their true shape, with the outlines of what is labelled.

    Args:
        study: any study; its slices are shown in stored order.
        slices: which ones; at most eight spread over those with a heart by default.
        contours: draw the labels' outlines and the insertion points, where there are any.
        title: of the whole figure; the study's id by default.

    Raises:
        InputError: no slice is named.
    """
    chosen = list(slices) if slices is not None else _slices_with_heart(study)
    if not chosen:
        raise InputError(
            f"slices of {study['study_id']}", "none is named", "Name one or more, or leave it out."
        )
    side = min(1.9, PAGE / len(chosen))
    figure, axes = plt.subplots(
        1, len(chosen), figsize=(side * len(chosen), side + 0.4), dpi=FINE, squeeze=False
    )
    for axis, index in zip(axes[0], chosen, strict=True):
        draw_slice(axis, study, index, contours)
        axis.set_title(f"slice {index + 1}", fontsize=7)
    figure.suptitle(title or study["study_id"])
    return closed(figure)


def show_studies(
    studies: Mapping[str, Study],
    contours: bool = True,
    columns: int = 6,
    slices: Mapping[str, int] | None = None,
) -> Figure:
    """One slice of several studies, each under its caption.

    Args:
        studies: caption → study.
        contours: draw the labels' outlines.
        columns: pictures a row.
        slices: caption → slice; where none is named the most telling one (:func:`most_telling_slice`).
    """
    rows, columns = -(-len(studies) // columns), min(columns, len(studies))
    side = min(2.2, PAGE / columns)
    size = (side * columns, (side + 0.4) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=FINE, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (caption, study) in zip(axes.flat, studies.items(), strict=False):
        draw_slice(axis, study, (slices or {}).get(caption, most_telling_slice(study)), contours)
        axis.set_title(wrap(caption, _letters(side), lines=7), fontsize=_size(side))
    return closed(figure)


def _size(side: float) -> float:
    """Points of the letters above a picture so many inches wide."""
    return 7 if side > 1.5 else 6


def _letters(side: float) -> int:
    """How many letters of `_size` fit above nine tenths of a picture so many inches wide, so that neighbours do not run
    together; one takes 0.62 of its size on average, digits and capitals more."""
    return max(8, int(0.9 * 72 * side / (0.62 * _size(side))))


def draw_slice(axis: Axes, study: Study, index: int, contours: bool = True) -> None:
    """One slice: first array axis to the right, second one down, as the angles of the workbook assume."""
    image = study.pixels[:, :, index]
    low, high = np.percentile(study.pixels, [1, 99.5])
    aspect = study.spacing_mm[1] / study.spacing_mm[0]
    axis.imshow(image.T, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    axis.axis("off")
    if not contours or study.label_map is None:
        return
    labels = study.label_map[:, :, index]
    for code, region in (
        (CAVITY, labels == CAVITY),
        (2, np.isin(labels, (1, 2, 3, 4))),
        (SCAR, np.isin(labels, (SCAR, NO_REFLOW))),
        (NO_REFLOW, labels == NO_REFLOW),
        (RV, labels == RV),
    ):
        if region.any() and not region.all():
            axis.contour(region.T.astype(float), [0.5], colors=TISSUE_COLOURS[code], linewidths=0.6)


def show_segments(study: Study, segments: np.ndarray, index: int) -> Figure:
    """A slice of a study and beside it its AHA segments, each with its number.

    Args:
        study: any study.
        segments: of its voxels, as `lgekit.anatomy.segments.segment_map` gives them.
        index: of the slice.
    """
    figure, axes = plt.subplots(1, 2, figsize=(4.8, 2.7), dpi=FINE)
    draw_slice(axes[0], study, index)
    draw_segments(axes[1], segments[:, :, index], study.spacing_mm[1] / study.spacing_mm[0])
    for axis, title in zip(axes, ("image", "AHA segments"), strict=True):
        axis.set_title(title, fontsize=8)
    return closed(figure)


def draw_segments(axis: Axes, segments: np.ndarray, aspect: float = 1.0) -> None:
    """AHA segments ``(X, Y)``, 0 outside the wall: a colour and a number each."""
    axis.imshow(
        np.ma.masked_equal(segments.T, 0),
        cmap="tab20",
        vmin=1,
        vmax=20,
        aspect=aspect,
        interpolation="nearest",
    )
    axis.axis("off")
    halo = [patheffects.withStroke(linewidth=2, foreground="white")]
    for number in np.unique(segments[segments > 0]):
        x, y = (float(where.mean()) for where in np.nonzero(segments == number))
        axis.text(x, y, str(number), ha="center", va="center", fontsize=8, path_effects=halo)


def show_image(image: np.ndarray, title: str = "", unit: str = "", cmap: str = "gray") -> Figure:
    """One picture ``(X, Y)`` with a colour bar; first axis to the right, second one down."""
    figure, axis = plt.subplots(figsize=(3.4, 3))
    shown = axis.imshow(np.asarray(image).T, cmap=cmap, interpolation="nearest")
    axis.set(title=title, xticks=[], yticks=[])
    figure.colorbar(shown, ax=axis, shrink=0.8, label=unit)
    return closed(figure)


def show_images(
    images: Mapping[str, np.ndarray],
    columns: int = 4,
    cmap: str = "gray",
    limits=None,
    unit: str = "",
) -> Figure:
    """Several pictures ``(X, Y)``, each on its own scale or, with a unit, all on one that a bar explains.

    Args:
        images: caption → picture.
        columns: pictures a row.
        cmap: matplotlib's colour map.
        limits: lowest and highest grey value; the 1st and 99.5th percentile of each picture by default, the lowest and
            highest of all pictures where there is a unit.
        unit: of the values; with one a colour bar is drawn.
    """
    if unit and limits is None:
        limits = np.nanpercentile(
            np.concatenate([np.ravel(image) for image in images.values()]), [0, 100]
        )
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    aspect = max(image.shape[1] / image.shape[0] for image in images.values())  # height over width
    side = min(2.4, PAGE / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(side * columns, (side * aspect + 0.35) * rows), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (caption, image) in zip(axes.flat, images.items(), strict=False):
        low, high = np.nanpercentile(image, [1, 99.5]) if limits is None else limits
        shown = axis.imshow(
            np.asarray(image).T, cmap=cmap, vmin=low, vmax=high, interpolation="nearest"
        )
        axis.set_title(wrap(caption, _letters(side), lines=7), fontsize=_size(side))
    if unit:
        figure.colorbar(shown, ax=axes, label=unit, shrink=0.8)
    return closed(figure)


def legend_of_tissues() -> Figure:
    """The colours of the outlines."""
    figure, axis = plt.subplots(figsize=(6, 0.5))
    for code, colour in TISSUE_COLOURS.items():
        axis.plot([], [], color=colour, label=LABEL_NAMES[code] if code != 2 else "epicardium")
    axis.legend(ncol=5, loc="center", frameon=False, fontsize=8)
    axis.axis("off")
    return closed(figure)


def most_telling_slice(study: Study) -> int:
    """The slice with most scar, else the one with most heart, else the middle one."""
    if study.label_map is None:
        return study.pixels.shape[2] // 2
    scar = np.isin(study.label_map, (SCAR, NO_REFLOW)).sum((0, 1))
    heart = (study.label_map > 0).sum((0, 1))
    return (
        int(np.argmax(scar if scar.any() else heart)) if heart.any() else study.pixels.shape[2] // 2
    )


def pixel_table(images: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Pictures as one long table ``picture, x, y, value``, so that a figure made of pixels has its data beside it.

    A picture's name, which may be a whole sentence, stands at its first pixel; below it is empty.
    """
    parts = []
    for name, image in images.items():
        x, y = np.indices(image.shape)
        names = [name] + [""] * (image.size - 1)
        parts.append(
            pd.DataFrame(
                {"picture": names, "x": x.ravel(), "y": y.ravel(), "value": np.ravel(image)}
            )
        )
    return pd.concat(parts, ignore_index=True)


def pictures(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The inverse of ``pixel_table``, also of tables that name the picture at every pixel."""
    names = table["picture"].replace("", np.nan).ffill()
    return {
        str(name): part.pivot(index="x", columns="y", values="value").to_numpy()
        for name, part in table.groupby(names, sort=False)
    }


def _slices_with_heart(study: Study, most: int = 8) -> list[int]:
    labels = study.label_map
    heart = (
        np.flatnonzero((labels > 0).any((0, 1)))
        if labels is not None
        else np.arange(study.pixels.shape[2])
    )
    heart = heart if len(heart) else np.arange(study.pixels.shape[2])
    return [
        int(index)
        for index in heart[
            np.unique(np.linspace(0, len(heart) - 1, min(most, len(heart))).round().astype(int))
        ]
    ]


def closed(figure: Figure) -> Figure:
    """A notebook shows the figure that a cell returns; left open, it would show it twice."""
    plt.close(figure)
    return figure


def pipeline(table: pd.DataFrame) -> Figure:
    """The steps of one study, arrows between them: what ``pixel_table`` gives, a picture a step.

    Unrolled walls (pictures three times as wide as high) stand one below the other at the right, with the names of the
    walls and of their two sides.
    """
    steps = pictures(table)
    wide = [name for name, image in steps.items() if _unrolled(*image.shape)]
    square = [name for name in steps if name not in wide]
    layout: list[Any] = [[*square, name] for name in wide] or [square]
    widths = [1.0] * len(square) + [2.8] * bool(wide)
    height = 1.9 * len(wide) + 0.5 if wide else PAGE / len(square) + 0.9
    figure, axes = plt.subplot_mosaic(layout, figsize=(PAGE, height), width_ratios=widths)
    names = list(steps)
    for number, (name, image) in enumerate(steps.items()):
        axis, heat = axes[name], "speaks" in name
        low, high = np.nanpercentile(image, [1, 99.5])
        shown = axis.imshow(image.T, cmap="cividis" if heat else "gray", vmin=low, vmax=high)
        axis.set_title(wrap(name, 80 if name in wide else 28, lines=9), fontsize=7)
        axis.set(xticks=[], yticks=[])
        for side in axis.spines.values():
            side.set_visible(False)
        _name_walls(axis, image.shape[0], image.shape[1], rotation=0)
        if heat:
            bar = figure.colorbar(shown, ax=axis, location="bottom", shrink=0.6, aspect=30)
            bar.set_label("fall of the score where it is painted over (logits)", fontsize=6)
            bar.ax.tick_params(labelsize=6)
        if number + 1 < len(names):
            below = name in wide and names[number + 1] in wide
            place, arrow = ((1.01, -0.1), "↓") if below else ((1.02, 0.5), "→")
            axis.annotate(
                arrow,
                place,
                xycoords="axes fraction",
                fontsize=14,
                va="center",
                annotation_clip=False,
            )
    return closed(figure)


def _unrolled(width: int, height: int) -> bool:
    """Whether a picture is a wall unrolled: about three times as wide as high."""
    return width >= 2.5 * height


def _name_walls(axis: Axes, width: int, height: int, rotation: float = 25) -> None:
    """Names of the walls below an unrolled wall, which is three times as wide as high, and of its two sides."""
    if _unrolled(width, height):
        sixth = width / 6  # from the anterior insertion point over the septum
        axis.set_xticks(
            [(n + 0.5) * sixth - 0.5 for n in range(6)],
            (*WALLS[1:], WALLS[0]),
            fontsize=6,
            rotation=rotation,
        )
        axis.set_yticks([0, height - 1], ["cavity", "outside"], fontsize=6)
        axis.tick_params(length=0, pad=1)


def draw_heat(axis: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    """A slice of a view and over it, the stronger the less transparent, what is above zero of a heat map.

    Args:
        axis: gets both, and the names of the walls where the view is the wall unrolled.
        image, heat: ``(height, width)``; of the heat only its shape is shown, relative to its maximum.
    """
    strength = np.clip(heat, 0, None) / max(float(heat.max()), 1e-6)
    axis.imshow(image, cmap="gray")
    axis.imshow(strength, cmap="inferno", vmin=0, vmax=1, alpha=0.8 * strength)
    axis.set(xticks=[], yticks=[])
    _name_walls(axis, *image.shape[::-1])


def wrap(text: str, width: int, lines: int = 4) -> str:
    """A text in lines of so many letters; what does not fit into the lines is left out, and a … says so."""
    parts = textwrap.wrap(text, width)
    return "\n".join(parts[:lines]) + ("…" if len(parts) > lines else "")
