"""Pictures of studies: slices with their outlines, grids of images, and the tables that hold their pixels."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lgekit.errors import InputError
from lgekit.findings import WALLS
from lgekit.studies import CAVITY, LABEL_NAMES, NO_REFLOW, RV, SCAR, Study

# Okabe & Ito's palette, https://jfly.uni-koeln.de/color/: distinguishable with any of the common colour deficiencies.
TISSUE_COLOURS = {1: "#56B4E9", 2: "#009E73", 3: "#E69F00", 4: "#CC79A7", 5: "#0072B2"}
# Width in inches of a column and of the page of a journal with two columns: so wide is every figure of `figures/`, and
# its smallest letters have 6 points as printed.
COLUMN, PAGE = 3.4, 7.0
FINE = 200  # dots an inch, on the screen too, where many pictures stand side by side


def show_stack(study: Study, slices: Sequence[int] | None = None, contours: bool = True, title: str = "") -> Figure:
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
        raise InputError(f"slices of {study['study_id']}", "none is named", "Name one or more, or leave it out.")
    side = min(1.9, PAGE / len(chosen))
    figure, axes = plt.subplots(1, len(chosen), figsize=(side * len(chosen), side + 0.4), dpi=FINE, squeeze=False)
    for axis, index in zip(axes[0], chosen, strict=True):
        draw_slice(axis, study, index, contours)
        axis.set_title(f"slice {index + 1}", fontsize=7)
    figure.suptitle(title or study["study_id"])
    return closed(figure)


def show_studies(
    studies: Mapping[str, Study], contours: bool = True, columns: int = 6, slices: Mapping[str, int] | None = None
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
        segments: of its voxels, as `lgekit.anatomy.segment_map` gives them.
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
        np.ma.masked_equal(segments.T, 0), cmap="tab20", vmin=1, vmax=20, aspect=aspect, interpolation="nearest"
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
    images: Mapping[str, np.ndarray], columns: int = 4, cmap: str = "gray", limits=None, unit: str = ""
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
        limits = np.nanpercentile(np.concatenate([np.ravel(image) for image in images.values()]), [0, 100])
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    aspect = max(image.shape[1] / image.shape[0] for image in images.values())  # height over width
    side = min(2.4, PAGE / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, (side * aspect + 0.35) * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (caption, image) in zip(axes.flat, images.items(), strict=False):
        low, high = np.nanpercentile(image, [1, 99.5]) if limits is None else limits
        shown = axis.imshow(np.asarray(image).T, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
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
    return int(np.argmax(scar if scar.any() else heart)) if heart.any() else study.pixels.shape[2] // 2


def pixel_table(images: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Pictures as one long table ``picture, x, y, value``, so that a figure made of pixels has its data beside it.

    A picture's name, which may be a whole sentence, stands at its first pixel; below it is empty.
    """
    parts = []
    for name, image in images.items():
        x, y = np.indices(image.shape)
        names = [name] + [""] * (image.size - 1)
        parts.append(pd.DataFrame({"picture": names, "x": x.ravel(), "y": y.ravel(), "value": np.ravel(image)}))
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
    heart = np.flatnonzero((labels > 0).any((0, 1))) if labels is not None else np.arange(study.pixels.shape[2])
    heart = heart if len(heart) else np.arange(study.pixels.shape[2])
    return [
        int(index)
        for index in heart[np.unique(np.linspace(0, len(heart) - 1, min(most, len(heart))).round().astype(int))]
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
            axis.annotate(arrow, place, xycoords="axes fraction", fontsize=14, va="center", annotation_clip=False)
    return closed(figure)


def _unrolled(width: int, height: int) -> bool:
    """Whether a picture is a wall unrolled: about three times as wide as high."""
    return width >= 2.5 * height


def _name_walls(axis: Axes, width: int, height: int, rotation: float = 25) -> None:
    """Names of the walls below an unrolled wall, which is three times as wide as high, and of its two sides."""
    if _unrolled(width, height):
        sixth = width / 6  # from the anterior insertion point over the septum
        axis.set_xticks(
            [(n + 0.5) * sixth - 0.5 for n in range(6)], (*WALLS[1:], WALLS[0]), fontsize=6, rotation=rotation
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
