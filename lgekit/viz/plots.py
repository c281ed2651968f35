"""Plots for notebooks, figures and widgets; images are ``(X, Y)``, X to the right and Y down."""

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.transforms import Bbox
from tqdm.auto import tqdm

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.anatomy.segments import Ventricle
from lgekit.cache import replacing
from lgekit.evaluation.metrics import title_of
from lgekit.findings import DEPTHS, WALLS
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, RV, SCAR, SCARRED, Study

if TYPE_CHECKING:
    from lgekit.clip.detector import Detector

# Palette of Okabe & Ito, https://jfly.uni-koeln.de/color/, safe for colour-blind readers.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999")
BLUE, ORANGE, GREEN, PINK, SKY, GREY = PALETTE
TISSUE_COLOURS = {CAVITY: SKY, MYOCARDIUM: GREEN, SCAR: ORANGE, NO_REFLOW: PINK, RV: BLUE}
# Occlusion maps, to lay over a grey picture: transparent where nothing supports the sentence.
EVIDENCE = LinearSegmentedColormap.from_list("evidence", ["#D81B6000", "#D81B60C0"])
# Column and page width of a two-column journal in inches; the smallest letters have 6 points.
COLUMN, PAGE = 3.4, 7.0
FINE = 200  # dots per inch on screen for figures with many small images


def use_style() -> None:
    """Set the workbook's style for all figures that follow."""
    sns.set_theme(context="paper", font_scale=0.85, style="ticks", palette=PALETTE)
    plt.style.use(Path(__file__).with_name("lgekit.mplstyle"))


def closed(figure: Figure) -> Figure:
    """Close a figure; a notebook would show an open one twice."""
    plt.close(figure)
    return figure


def show_pixels(
    axis: Axes, image: np.ndarray, cmap: Any = "gray", limits: Any = None, aspect: float = 1
) -> AxesImage:
    """Draw an image ``(X, Y)`` pixel by pixel; ``limits``: darkest and brightest value."""
    low, high = np.nanpercentile(image, [1, 99.5]) if limits is None else limits
    axis.axis("off")
    style = {"cmap": cmap, "vmin": low, "vmax": high, "aspect": aspect}
    return axis.imshow(image.T, interpolation="nearest", **style)


def bulls_eye(
    values: Any, title: str = "", unit: str = "", limits: Any = None, axis: Any = None
) -> Figure:
    """The 17 AHA segments as a bull's-eye: base outside, anterior up, septum left.

    ``values``: segment → value, or a table ``segment, value``. With a unit, values and a colour bar
    are shown. Segments without a value are grey; ``limits``: lowest and highest colour, by default
    of the data; ``axis``: polar, of another figure. Cerqueira 2002, doi:10.1161/hc0402.102975.
    """
    if isinstance(values, pd.DataFrame):
        values = values.set_index("segment")["value"].to_dict()
    if axis is None:
        _, axis = plt.subplots(figsize=(COLUMN, 2.9), subplot_kw={"projection": "polar"})
    figure = axis.figure
    finite = [value for value in values.values() if np.isfinite(value)]
    low, high = limits or ((min(finite), max(finite)) if finite else (0, 1))
    colours, scale = plt.get_cmap("cividis"), plt.Normalize(low, high if high > low else low + 1)
    colours = colours.with_extremes(bad="lightgray")
    rings = ((3, 6, 60), (2, 6, 60), (1, 4, 45), (0, 1, 0))  # inner radius, segments, start (deg)
    wedges = [(ring, number) for ring in rings for number in range(ring[1])]
    style: Any = {"ha": "center", "va": "center", "fontsize": 6}
    for segment, ((radius, count, first), number) in enumerate(wedges, 1):
        value, apex = values.get(segment, np.nan), segment == 17
        colour, ink = colours(scale(value)), "white" if scale(value) < 0.5 else "black"
        start, width = np.deg2rad(first + 360 / count * number), 2 * np.pi / count
        edge = colour if apex else "white"
        axis.bar(start, 1, width, radius, align="edge", color=colour, edgecolor=edge)
        words = f"{segment}\n{value:.2f}" if unit and np.isfinite(value) else str(segment)
        axis.text(start + width / 2, 0 if apex else radius + 0.5, words, color=ink, **style)
    for wall, angle in zip(WALLS, range(90, 450, 60), strict=True):  # along the rim
        axis.text(np.deg2rad(angle), 4.3, wall, rotation=angle % 180 - 90, **style)
    axis.set(xticks=[], yticks=[], ylim=(0, 4.5), title=title + ": no signal" * (not finite))
    axis.spines["polar"].set_visible(False)
    if unit:
        figure.colorbar(plt.cm.ScalarMappable(scale, colours), ax=axis, shrink=0.7, label=unit)
    return closed(figure)


def histogram(table: pd.DataFrame, column: str, xlabel: str) -> Figure:
    """Frequency of a column's values over studies."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.1))
    axis.hist(table[column].dropna(), bins=20, edgecolor="white")
    axis.set(xlabel=xlabel, ylabel="studies")
    axis.locator_params(axis="y", integer=True)
    return closed(figure)


def training_curves(history: pd.DataFrame) -> Figure:
    """Losses over epochs: column ``epoch`` and one column for each loss."""
    losses = history.drop(columns=["learning_rate", "seconds"], errors="ignore")
    losses = losses.set_index("epoch").rename(columns=title_of)
    axis = losses.plot(figsize=(COLUMN, 2.2), ylabel="loss (nats)", style=["-", "--", ":", "-."])
    axis.legend(frameon=False)
    return closed(axis.figure)


def similarity_matrix(table: pd.DataFrame) -> Figure:
    """Cosine similarity of studies (rows) and their texts, a `pixel_table`; dots: own text."""
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 3.1), sharey=True)
    for axis, (when, matrix) in zip(axes, images_from_table(table).items(), strict=True):
        drawn = axis.imshow(matrix, cmap="cividis", vmin=-1, vmax=1)
        own = range(len(matrix))
        axis.plot(own, own, "o", color="white", markeredgecolor="black", markersize=4)
        axis.set(title=f"{when} training", xlabel="text of study", xticks=own, yticks=own)
        axis.set(xticklabels=(numbers := [n + 1 for n in own]), yticklabels=numbers)
    axes[0].set_ylabel("study")
    figure.colorbar(drawn, ax=axes, label="cosine similarity")
    return closed(figure)


def roc(curves: pd.DataFrame) -> Figure:
    """ROC curves with 95 % bands: `lgekit.evaluation.metrics.roc_table` with a name ``reading``."""
    figure, axis = plt.subplots(figsize=(COLUMN, 3.4))
    for name, table in curves.groupby("reading", sort=False):
        rates = table["false_positive_rate"]
        axis.plot(rates, table["sensitivity"], label=name)
        axis.fill_between(rates, table["low"], table["high"], alpha=0.2)
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", label="chance")
    axis.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01), aspect=1)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    return closed(figure)


def forest(table: pd.DataFrame, statistics: Sequence[str] = ("balanced_accuracy", "auc")) -> Figure:
    """Intervals of ablation rows: columns ``row, statistic, value, low, high``; dotted: chance.

    Of a `compare_rows` table, the paired differences from its reference; dotted: no difference.
    """
    every, paired = list(dict.fromkeys(table["row"])), "difference" in table
    first = "full" if "full" in every else every[0]  # the reference of `compare_rows`
    rows = [row for row in every if row != first or not paired]
    size = (COLUMN if len(statistics) == 1 else PAGE, 0.24 * len(rows) + 0.8)
    figure, axes = plt.subplots(1, len(statistics), figsize=size, sharey=True, squeeze=False)
    for axis, statistic in zip(axes[0], statistics, strict=True):
        chosen, label = table[table["statistic"] == statistic].set_index("row"), title_of(statistic)
        if paired:
            label = f"{label} − that of {title_of(first)} ({chosen.loc[first, 'value']:.2f})"
            chosen = chosen.filter(like="difference").set_axis(["value", "low", "high"], axis=1)
        ends, value = chosen.loc[rows, ["low", "high"]], chosen.loc[rows, "value"]
        errors = np.abs(ends.T - value).to_numpy()
        axis.errorbar(value, range(len(rows)), xerr=errors, fmt="o", capsize=2, color=BLUE)
        axis.axvline(0 if paired else 0.5, color="gray", linestyle=":")
        axis.set_xlabel(f"{label}, 95 % interval")
    axes[0, 0].set_yticks(range(len(rows)), map(title_of, rows))
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    return closed(figure)


def interval_curve(table: pd.DataFrame, axis_name: str, label: str) -> Figure:
    """Balanced accuracy and AUC over an axis: a line per row, or one if rows are points."""
    one_line = table.groupby("row")[axis_name].nunique().max() == 1
    values = sorted(table[axis_name].unique())
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.4), sharey=True)
    for axis, statistic in zip(axes, ("balanced_accuracy", "auc"), strict=True):
        chosen = table[table["statistic"] == statistic].sort_values(axis_name, kind="stable")
        lines = [("", chosen)] if one_line else chosen.groupby("row", sort=False)
        for number, (row, line) in enumerate(lines):
            x = np.searchsorted(values, line[axis_name]) + 0.08 * number
            errors, name = np.abs(line[["low", "high"]].T - line["value"]).to_numpy(), title_of(row)
            axis.errorbar(x, line["value"], yerr=errors, marker="o", capsize=2, label=name)
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axis.set(xlabel=label, ylabel=title_of(statistic))
    if not one_line:
        axes[1].legend(frameon=False)
    return closed(figure)


def slice_bars(slices: pd.DataFrame, study_id: str = "") -> Figure:
    """Probability of scar in each slice of a study, read alone, and the attention to it.

    Columns ``study_id, slice, weight, attention, scar``. Default: a study with both kinds of slices
    """
    share = slices.groupby("study_id", sort=False)["scar"].mean()
    study_id = study_id or (share - 0.5).abs().idxmin()
    chosen = slices[slices["study_id"] == study_id]
    figure, axes = plt.subplots(2, figsize=(COLUMN, 3.7), sharex=True)
    for axis, column in zip(axes, ("weight", "attention"), strict=True):
        axis.bar(chosen["slice"] + 1, chosen[column], color=np.where(chosen["scar"], ORANGE, GREY))
        axis.locator_params(axis="x", integer=True)
    axes[0].set(ylim=(0, 1), ylabel="probability of scar,\neach slice alone")
    axes[0].set_title("orange: slices with scar in the ground truth")
    axes[1].set(xlabel=f"slice of {study_id} (stored order)")
    axes[1].set(ylabel="attention: share of\nthe study's embedding")
    figure.align_ylabels()
    return closed(figure)


def caption_table(table: pd.DataFrame) -> Figure:
    """Five right and five wrong captions: columns ``caption, truth, differs, right``."""
    right = table["right"].astype(bool)
    different = table[right].drop_duplicates(["caption", "truth"])
    chosen = pd.concat([different.head(5), table[~right].head(5)]).fillna("")
    texts, widths = chosen[["caption", "truth", "differs"]].to_numpy(), (44, 48, 22)  # letters
    cells = [[*map(partial(textwrap.fill, break_on_hyphens=False), row, widths)] for row in texts]
    lines = [1, *(1 + max(text.count("\n") for text in row) for row in cells)]  # heading first
    figure, axis = plt.subplots(figsize=(PAGE, 0.14 * sum(lines) + 0.1 * len(lines)))
    axis.axis("off")
    heading, bbox = ["the decoder wrote", "truth", "differences"], Bbox.unit()
    drawn = axis.table(cells, cellLoc="left", colWidths=widths, colLabels=heading, bbox=bbox)
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    colours = ["white", *np.where(chosen["right"].astype(bool), "#E8F1F8", "#FBEBD5")]
    for (line, _), cell in drawn.get_celld().items():
        cell.PAD = 0.03
        cell.set(height=lines[line] + 0.7, edgecolor="#CCCCCC", facecolor=colours[line])
    return closed(figure)


def show_stack(study: Study, contours: bool = True, title: str = "") -> Figure:
    """At most eight slices of a study, in stored order, with the outlines of its labels."""
    heart = np.arange(study.pixels.shape[2])
    if study.label_map is not None and study.label_map.any():
        heart = np.flatnonzero(study.label_map.any((0, 1)))
    chosen = heart[np.linspace(0, len(heart) - 1, min(8, len(heart))).round().astype(int)]
    names = {f"slice {index + 1}": index for index in chosen}
    figure = show_studies(dict.fromkeys(names, study), contours, columns=8, slices=names)
    figure.suptitle(title or study["study_id"])
    return figure


def show_studies(
    studies: Mapping[str, Study],
    contours: bool = True,
    columns: int = 6,
    slices: Mapping[str, int] | None = None,
) -> Figure:
    """One slice of several studies: caption → study, and caption → slice if it is to be chosen."""
    figure, axes = captioned(studies, columns)
    for axis, (caption, study) in zip(axes, studies.items(), strict=False):
        draw_slice(axis, study, (slices or {}).get(caption, slice_with_most_scar(study)), contours)
    return closed(figure)


def show_images(
    images: Mapping[str, Any] | pd.DataFrame, columns: int = 4, cmap: Any = "gray", unit: Any = ""
) -> Figure:
    """Images (caption → image, or a `pixel_table`), each in its own scale; with a unit, in one.
    With label maps, ``unit`` maps the names of their codes 0, 1, … to colours."""
    shown = images_from_table(images) if isinstance(images, pd.DataFrame) else dict(images)
    height = max(image.shape[1] / image.shape[0] for image in shown.values())
    figure, axes = captioned(shown, columns, height)
    extremes = [np.nanpercentile(image, [0, 100]) for image in shown.values()]
    limits = (np.min(extremes), np.max(extremes)) if unit else None
    names = not isinstance(unit, str)
    if names:
        cmap, limits = ListedColormap([*unit.values()]), (-0.5, len(unit) - 0.5)
    for axis, image in zip(axes, shown.values(), strict=False):
        drawn = show_pixels(axis, image, cmap, limits)
    if unit:
        bar = figure.colorbar(drawn, ax=axes, label="" if names else unit, shrink=0.8)
    if names:
        bar.set_ticks(range(len(unit)), labels=unit)
    return closed(figure)


def scar_gallery(table: pd.DataFrame) -> Figure:
    """Painted scars in one grey scale, a `pixel_table` wall by wall: columns walls, rows depths."""
    images = list(images_from_table(table).values())
    figure, axes = plt.subplots(len(DEPTHS), len(WALLS), figsize=(PAGE, 4.9), dpi=FINE)
    limits = np.percentile(images, [1, 99.5])
    for axis, image in zip(axes.T.flat, images, strict=True):
        show_pixels(axis, image, limits=limits)
    for axis, wall in zip(axes[0], WALLS, strict=True):
        axis.set_title(wall)
    for axis, depth in zip(axes[:, 0], DEPTHS, strict=True):
        axis.set_title(depth, loc="left", x=-0.2, y=0.5, rotation=90, va="center")
    return closed(figure)


def captioned(captions: Iterable[str], columns: int, height: float = 1) -> tuple[Figure, Any]:
    """Make axes for images below captions, at most a page wide, so that captions do not touch."""
    names = list(captions)
    rows, columns = -(-len(names) // columns), min(columns, len(names))
    side = min(2.6, PAGE / columns)
    size = (side * columns, (side * height + 0.35) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=FINE, squeeze=False)
    font_size = 7 if side > 1.5 else 6
    letters = max(8, int(0.9 * 72 * side / (0.62 * font_size)))
    for axis, name in zip(axes.flat, names + [""] * columns, strict=False):
        axis.axis("off")
        text = textwrap.fill(name, letters, max_lines=7, placeholder="…")
        axis.set_title(text, fontsize=font_size)
    return figure, axes.ravel()


def draw_slice(axis: Axes, study: Study, index: int, contours: bool = True) -> None:
    """Draw one slice, with the outlines of its labels if they are wanted and known."""
    limits, (x, y, _) = np.nanpercentile(study.pixels, [1, 99.5]), study.spacing_mm
    show_pixels(axis, study.pixels[:, :, index], "gray", limits, y / x)
    if not contours or study.label_map is None:
        return
    inside = {MYOCARDIUM: (CAVITY, MYOCARDIUM, SCAR, NO_REFLOW), SCAR: SCARRED}
    for label, colour in TISSUE_COLOURS.items():  # all labels inside the outline of this one
        region = np.isin(study.label_map[:, :, index], inside.get(label, label))
        if region.any() and not region.all():
            axis.contour(region.T.astype(float), [0.5], colors=colour, linewidths=0.6)


def slice_with_most_scar(study: Study) -> int:
    """Find the slice with most scar, else the one with most heart, else the middle one."""
    labels = study.label_map
    if labels is None or not labels.any():
        return study.pixels.shape[2] // 2
    scar = np.isin(labels, SCARRED).sum((0, 1))
    return int(np.argmax(scar if scar.any() else (labels > 0).sum((0, 1))))


def pipeline(table: pd.DataFrame) -> Figure:
    """The steps of the method, a study in each row: a `pixel_table` and a name ``study_id``.

    The last step, an occlusion map, is laid over the one before it; ``true scar`` is an outline.
    """
    studies = []
    for _, part in table.groupby(table["study_id"].ffill(), sort=False):
        steps = images_from_table(part)
        studies.append((steps.pop("true scar", None), *steps.popitem(), steps))
    ratios = [image.shape[0] / image.shape[1] for image in steps.values()]
    strongest = max(1e-3, *(drop.max() for _, _, drop, _ in studies))
    shape, size = (len(studies), len(ratios)), (PAGE, 2.1 * len(studies) + 0.6)
    figure, axes = plt.subplots(*shape, figsize=size, width_ratios=ratios, squeeze=False)
    for row, (scar, reading, drop, steps) in zip(axes, studies, strict=True):
        for number, (axis, (name, image)) in enumerate(zip(row, steps.items(), strict=True), 1):
            show_pixels(axis, image)
            axis.set_title(f"{number}. {name}", fontsize=7)
        axis.set_title("\n".join([axis.get_title(), *textwrap.wrap(reading, 76)]), fontsize=7)
        drawn = show_pixels(axis, drop, EVIDENCE, (0, strongest))
        if scar is not None:  # unknown without a mask
            axis.contour(scar.T, [0.5], colors=TISSUE_COLOURS[SCAR], linewidths=1)
        if ratios[-1] > 2:  # the unrolled wall, which starts at the anterior insertion point
            name_walls(axis, image)
    figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.5, label="drop in score (logits)")
    return closed(figure)


def save_readings(detector: "Detector", located: list[Study], rows: pd.DataFrame, folder: Path):
    """Draw `reading` of studies and their rows of predictions as ``<study_id>.png``, once each."""
    use_style()
    folder.mkdir(exist_ok=True)
    pairs = list(zip(located, rows.to_dict("records"), strict=True))
    for study, row in tqdm(pairs, "drawing", leave=False, delay=2, disable=None):
        path = folder / f"{study['study_id']}.png"
        if not path.exists():
            evidence = detector.evidence(study, json.loads(row["slice_weights"]))
            figure = reading(study, row, *evidence)
            with replacing(path) as part:
                figure.savefig(part, format="png", dpi=220, metadata={"Software": None})


def reading(located: Study, row: Mapping, stored: int, view: Any, drop: Any) -> Figure:
    """What to check before believing a prediction (``row``): contours and insertion points in the
    standard frame, predicted segments, and what supports scar (`Detector.evidence`)."""
    walls = [f"{wall} {row[f'p_{wall}']:.2f}" for wall in WALLS if row[f"p_{wall}"] > 0.5]
    words = f"walls above 0.5: {', '.join(walls) or 'none'}", f"caption: {row['caption']}"
    lines = [line for text in words for line in textwrap.wrap(text, 62)]
    mosaic: Any = {"per_subplot_kw": {"eye": {"projection": "polar"}}, "height_ratios": (8, 5)}
    mosaic |= {"figsize": (COLUMN, 4 + 0.12 * len(lines)), "width_ratios": (4, 5)}
    figure, axes = plt.subplot_mosaic([["frame", "eye"], ["view", "view"]], **mosaic)
    framed: Any = StandardizeShortAxis()(located)
    small: Any = {"fontsize": 7}
    labels, turned, count = framed.label_map, framed["orientation_confident"], framed.shape[3]
    heart = Ventricle.of(np.zeros(framed.spatial_shape) if labels is None else labels)
    found = heart.area.any()
    middle = int(np.nanargmin(np.abs(heart.levels - 0.5))) if found else count // 2
    draw_slice(axes["frame"], framed, middle)
    for name, mark in (("anterior", "^"), ("inferior", "v")) if turned else ():
        angle = np.deg2rad(getattr(framed["landmarks"], f"{name}_rvip_deg"))
        away = np.sqrt(heart.area[middle] / np.pi) * np.array([np.cos(angle), -np.sin(angle)])
        axes["frame"].plot(*(heart.centres[middle] + away), mark, color="gold", markersize=4)
    place = count - middle if framed["frame"].reversed_slices else middle + 1
    how = "▲▼ insertion points" if turned else "not turned" if found else "no heart found"
    axes["frame"].set_title(f"slice {place}, mid-ventricular\n{how}", **small)
    segments = pd.Series(json.loads(row["segments"]), range(1, 18), float)
    bulls_eye(segments.to_dict(), limits=(0, 1), axis=axes["eye"])
    alone = json.loads(row["slice_weights"])[stored]
    axes["view"].set_title(f"slice {stored + 1}, the strongest: {alone:.2f} if read alone", **small)
    show_pixels(axes["view"], view.T)
    drawn = show_pixels(axes["view"], drop.T, EVIDENCE, (0, max(1, drop.max())))
    if turned and view.shape[1] > 2 * view.shape[0]:  # the wall, unrolled
        name_walls(axes["view"], view.T)
        narrow = [re.sub("o([ls])", r"o-\n\1", wall) for wall in (*WALLS[1:], WALLS[0])]
        axes["view"].set_xticklabels(narrow)
    scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), "cividis")
    bars = ("eye", scale, "probability, strongest slice"), ("view", drawn, "drop in score (logits)")
    for name, colours, label in bars:
        bar = figure.colorbar(colours, ax=axes[name], location="bottom", aspect=40, pad=0.03)
        bar.set_label(label, **small)
        bar.ax.tick_params(labelsize=6, length=2)
    title = f"{row['study_id']}: p_lge = {row['p_lge']:.2f}"
    figure.suptitle("\n".join([title, *lines, ""]), **small)
    figure.supxlabel("For research and teaching only. Not a medical device.", fontsize=6)
    return closed(figure)


def name_walls(axis: Axes, image: np.ndarray) -> None:
    """Label walls and sides of an unrolled wall, which starts at the anterior insertion point."""
    width, height = image.shape
    axis.axis("on")
    axis.spines[:].set_visible(False)
    axis.set_xticks((np.arange(6) + 0.5) * width / 6 - 0.5, (*WALLS[1:], WALLS[0]), fontsize=6)
    axis.set_yticks([0, height - 1], ["cavity", "outside"], fontsize=6)
    axis.tick_params(length=0, pad=1)


def pixel_table(images: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Write images as a table ``picture, x, y, value`` with each name at its first pixel only."""
    pixels = {name: pd.DataFrame(image, dtype=float).stack() for name, image in images.items()}
    table = pd.concat(pixels, names=["picture", "x", "y"]).rename("value").reset_index()
    return table.assign(picture=table["picture"].mask(table["picture"].duplicated(), ""))


def images_from_table(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Invert `pixel_table`."""
    names = table["picture"].replace("", np.nan).ffill()
    return {
        str(name): part.pivot(index="x", columns="y", values="value").to_numpy()
        for name, part in table.groupby(names, sort=False)
    }


def save_figure(figure: Figure, folder: Path, name: str, data: pd.DataFrame, caption: str) -> Path:
    """Save PNG, SVG, data as CSV, and the caption in ``captions.json``; return the PNG's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        figure.savefig(folder / f"{name}.{ending}", dpi=220, bbox_inches="tight", metadata=metadata)
    data.to_csv(folder / f"{name}.csv", index=False, float_format="%.5g")
    file = folder / "captions.json"
    captions = json.loads(file.read_text("utf-8")) if file.exists() else {}
    text = json.dumps(captions | {name: caption}, indent=1, ensure_ascii=False, sort_keys=True)
    file.write_text(text + "\n", "utf-8")
    return folder / f"{name}.png"
