"""Figures and tables of the paper, drawn and set from CSV files alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lgekit.errors import InputError
from lgekit.evaluation.compare import WORKBOOK_EPOCHS, WORKBOOK_SEEDS, uncompared
from lgekit.evaluation.metrics import title_of
from lgekit.findings import DEPTHS, WALLS
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.viz import plots

ORIENTATION = "02_orientation_standardization"
SCARS = "03_synthetic_scar_generation"
PRETRAINING = "04_pretraining"
DETECTION = "05_clip_captioning"
ABLATIONS = "06_ablations"
GRID = ""  # drawn from a grid's own table by `lgekit grid report`
STATISTICS = {
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auc": "AUC",
    "auc_walls": "AUC, mean of walls",
}
VALUE = "{value:.2f} ({low:.2f}–{high:.2f})"
DIFFERENCE = "{difference:+.3f} ({difference_low:+.3f} to {difference_high:+.3f})"


class NotebookRun(Protocol):
    """What figures need of a run of the workbook (`lgekit.workbook.Session`)."""

    spec: str
    size: str

    def of(self, notebook: str) -> Path: ...

    def table(self, notebook: str, name: str) -> pd.DataFrame: ...


class PaperFigure(NamedTuple):
    """Where a figure's data come from and how it is drawn."""

    notebook: str  # that saves the data, or `GRID`
    table: str
    draw: Callable[[pd.DataFrame], Figure]


def _images(columns: int, cmap: str = "gray", unit: str = "") -> Callable[[pd.DataFrame], Figure]:
    return lambda table: plots.show_images(plots.images_from_table(table), columns, cmap, unit)


def _curve(axis: str, label: str) -> Callable[[pd.DataFrame], Figure]:
    return lambda table: plots.interval_curve(table, axis, label)


def _gallery(table: pd.DataFrame) -> Figure:
    """Draw one column for each wall and one row for each depth; the table is sorted by wall."""
    images = plots.images_from_table(table)
    names = list(images)
    if len(names) == len(DEPTHS) * len(WALLS):  # fewer if two scars have the same sentence
        names = [name for depth in range(len(DEPTHS)) for name in names[depth :: len(DEPTHS)]]
    return plots.show_images({name: images[name] for name in names}, columns=len(WALLS))


def _roc(table: pd.DataFrame) -> Figure:
    return plots.roc({str(name): curve for name, curve in table.groupby("reading", sort=False)})


def _bulls_eye(segments: pd.DataFrame) -> Figure:
    values = dict(zip(segments["segment"].astype(int), segments["value"], strict=True))
    return plots.bulls_eye(values, "AUC by AHA segment", "AUC", limits=(0.5, 1))


def _slices(slices: pd.DataFrame) -> Figure:
    """Draw the study whose slices are most evenly divided between scar and no scar."""
    scar = slices["scar"].astype(bool).groupby(slices["study_id"], sort=False).mean()
    return plots.slice_bars(slices, (scar - 0.5).abs().idxmin())


def _similarity(table: pd.DataFrame) -> Figure:
    matrices = plots.images_from_table(table)
    names = [f"study {number + 1}" for number in range(len(matrices["after"]))]
    return plots.similarity_matrix(matrices["before"], matrices["after"], names, rows="study")


def _point_error(table: pd.DataFrame) -> Figure:
    label = "error of the anterior insertion point (degrees)"
    return plots.histogram(table["anterior_error_deg"], label, "studies")


FIGURES = {
    "pipeline": PaperFigure(DETECTION, "pipeline", plots.pipeline),
    "orientation_mean_maps": PaperFigure(ORIENTATION, "mean_images", _images(3)),
    "orientation_scar_maps": PaperFigure(
        ORIENTATION, "mean_scars", _images(3, "cividis", "share of studies with scar")
    ),
    "scar_gallery": PaperFigure(SCARS, "gallery", _gallery),
    "real_beside_synthetic": PaperFigure(SCARS, "real_beside_synthetic", _images(4)),
    "insertion_point_error": PaperFigure(PRETRAINING, "heart_network", _point_error),
    "similarity_matrix": PaperFigure(DETECTION, "similarity", _similarity),
    "training_curves": PaperFigure(DETECTION, "history", plots.training_curves),
    "roc": PaperFigure(DETECTION, "roc", _roc),
    "wall_auc": PaperFigure(DETECTION, "walls", plots.wall_bars),
    "segment_auc": PaperFigure(DETECTION, "segments", _bulls_eye),
    "slice_weights": PaperFigure(DETECTION, "slices", _slices),
    "captions": PaperFigure(DETECTION, "captions", plots.caption_lines),
    "ablation_forest": PaperFigure(ABLATIONS, "ablations", plots.forest),
    "synthetic_ratio": PaperFigure(
        GRID, "", _curve("synthetic_per_real", "synthetic scars for each real study")
    ),
    "label_efficiency": PaperFigure(
        GRID, "", _curve("train_studies", "studies with reports to train on")
    ),
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
    "in its scar-free hearts (lower row). “A as B” is heart A with a scar of the place and size of "
    "that in B.",
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
    """Find the figure of a file name; grids add a suffix, as in ``ablation_forest_emidec``.

    Raises:
        InputError: there is no such figure.
    """
    for known, figure in FIGURES.items():
        of_grids = figure.notebook in (GRID, ABLATIONS)
        if name == known or (of_grids and name.startswith(f"{known}_")):
            return known
    raise InputError(f"figure {name!r}", "is not known", f"Figures: {', '.join(FIGURES)}.")


def make_figure(name: str, table: pd.DataFrame, folder: Path, source: str) -> Path:
    """Draw a figure and save it with its data and caption; return the path of the PNG file.

    ``source`` ends the caption: cohort and size, or the grid.
    """
    known = figure_name(name)
    caption = f"{CAPTIONS[known]} {source}"
    return plots.save_figure(FIGURES[known].draw(table), folder, name, table, caption)


def from_session(name: str, session: NotebookRun, folder: Path) -> Figure:
    """Draw, save and return a figure from the table that a notebook of this run saved."""
    figure = FIGURES[figure_name(name)]
    table = session.table(figure.notebook, figure.table)
    source = f"Cohort: {session.spec}; size {session.size}."
    if figure.notebook == ABLATIONS:
        source = _ablation_source(session, source)
    if name == "pipeline" and "study_id" in table:
        captions = session.table(DETECTION, "captions")
        source = f"{caption_verdict(table['study_id'].iloc[0], captions)} {source}".strip()
    make_figure(name, table, folder, source)
    return figure.draw(table)


def _ablation_source(session: NotebookRun, source: str) -> str:
    """Say which grid notebook 06 ran: the workbook's own small one, or one from a file."""
    metrics = json.loads((session.of(ABLATIONS) / "metrics.json").read_text("utf-8"))
    if grid := metrics.get("grid"):
        runs, predictions = (session.table(ABLATIONS, name) for name in ("runs", "predictions"))
        return f"Grid {grid}: {provenance(runs, predictions)}."
    epochs = WORKBOOK_EPOCHS[session.size] or "the size's own"
    seeds = WORKBOOK_SEEDS[session.size]
    return f"The workbook's own small grid, epochs: {epochs}, seeds: {seeds}. {source}"


def caption_verdict(study_id: str, captions: pd.DataFrame) -> str:
    """Say whether a study's caption in a `caption_table` is right; empty if nobody knows."""
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
    """Draw all figures below a folder, and set the tables of grids, from their CSV files.

    Raises:
        InputError: the folder has no figure, or a figure has no data.
    """
    plots.use_style()
    made = []
    for comparison in sorted(Path(folder).rglob("tables/*_comparison.csv")):
        name = comparison.name.removesuffix("_comparison.csv")
        file = comparison.with_name(f"{name}_runs.csv")
        runs = pd.read_csv(file, dtype={"row": str}) if file.exists() else None
        set_table(paper_table(read_comparison(comparison), runs), comparison.parent, name)
    for captions in sorted(Path(folder).rglob("captions.json")):
        for name, caption in json.loads(captions.read_text("utf-8")).items():
            file = captions.with_name(f"{name}.csv")
            if not file.exists():
                remedy = "Run the workbook: make workbook"
                raise InputError(file, "the figure's data are missing", remedy)
            table = pd.read_csv(file)
            figure = FIGURES[figure_name(name)].draw(table)
            made.append(plots.save_figure(figure, captions.parent, name, table, caption))
    if not made:
        raise InputError(folder, "holds no figure", "Run the workbook first: make workbook")
    return made


def read_comparison(path: Path) -> pd.DataFrame:
    """Read a saved result of `lgekit.evaluation.metrics.compare_rows`; row names are strings."""
    return pd.read_csv(path, dtype={"row": str})


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


def set_table(paper: pd.DataFrame, tables: Path, name: str) -> None:
    """Write a result of `paper_table` as ``<name>_table.md`` and ``<name>_table.tex``."""
    lines = [list(paper.columns), ["---"] * paper.shape[1], *paper.astype(str).to_numpy().tolist()]
    (tables / f"{name}_table.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    (tables / f"{name}_table.tex").write_text(paper.to_latex(index=False, escape=True))


def further_axes(predictions: pd.DataFrame) -> list[str]:
    """Axes of a grid other than seed and fold; its axes are the columns before ``study_id``."""
    axes = predictions.columns[: predictions.columns.get_loc("study_id")]
    return [name for name in axes if name not in ("row", "seed", "fold")]


def provenance(
    runs: pd.DataFrame, predictions: pd.DataFrame, expected: Iterable[str] | None = None
) -> str:
    """Count runs, seeds and patients behind a figure; name commit, device and missing rows.

    Args:
        runs: result of `lgekit.grid.run.collect`.
        predictions: what the figure shows, with the axes of the grid.
        expected: rows to name if they are missing; all rows of the grid by default.
    """
    axes = ["row", "seed", "fold", *further_axes(predictions)]
    axes = [name for name in axes if name in predictions and name in runs]
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
