"""Figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lgekit.errors import InputError
from lgekit.evaluation.compare import WORKBOOK_EPOCHS, WORKBOOK_SEEDS
from lgekit.findings import DEPTHS, WALLS
from lgekit.grid.report import paper_table, provenance, read_comparison, set_table
from lgekit.reports.reader import read_report, states_enhancement
from lgekit.viz import plots
from lgekit.workbook import NOTEBOOKS, Session, load_metrics

CAPTIONS = "captions.json"


@dataclass(frozen=True)
class PaperFigure:
    """One figure: the table that a notebook saves for it, how it is drawn, and what stands below it.

    Attributes:
        notebook: number of the notebook; empty: an ablation grid (`lgekit.grid.report`).
        table: the name that it saves the table under.
        draw: table → figure.
        caption: with the marks [P], [S] and [O]; the cohort is added.
    """

    notebook: str
    table: str
    draw: Callable[[pd.DataFrame], Figure]
    caption: str


def _images(columns: int, cmap: str = "gray", unit: str = "") -> Callable[[pd.DataFrame], Figure]:
    return lambda table: plots.show_images(
        plots.pictures(table), columns=columns, cmap=cmap, unit=unit
    )


def _gallery(table: pd.DataFrame) -> Figure:
    """A wall a column, a depth a row; in the table the depths of a wall follow one another."""
    images = list(plots.pictures(table).items())
    if len(images) != len(DEPTHS) * len(WALLS):  # two scars of one sentence are one picture
        return plots.show_images(dict(images), columns=len(WALLS))
    rows = [images[depth :: len(DEPTHS)] for depth in range(len(DEPTHS))]
    return plots.show_images(dict(picture for row in rows for picture in row), columns=len(rows[0]))


def _roc(table: pd.DataFrame) -> Figure:
    return plots.roc({str(name): curve for name, curve in table.groupby("reading", sort=False)})


def _bulls_eye(segments: pd.DataFrame) -> Figure:
    values = dict(zip(segments["segment"].astype(int), segments["value"], strict=True))
    return plots.bulls_eye(values, "AUC by AHA segment", "AUC", limits=(0.5, 1))


def _slices(slices: pd.DataFrame) -> Figure:
    scarred = (
        slices.assign(scar=slices["scar"].astype(bool))
        .groupby("study_id", sort=False)["scar"]
        .mean()
    )
    telling = (
        (scarred - 0.5).abs().idxmin()
    )  # a study with slices of both kinds, where there is one
    return plots.slice_bars(slices, telling)


def _similarity(table: pd.DataFrame) -> Figure:
    matrices = plots.pictures(table)
    names = [f"study {number + 1}" for number in range(len(matrices["after"]))]
    return plots.similarity_matrix(matrices["before"], matrices["after"], names, rows="study")


def _point_error(table: pd.DataFrame) -> Figure:
    return plots.histogram(
        table["anterior_error_deg"], "error of the anterior insertion point (degrees)", "studies"
    )


def _losses(history: pd.DataFrame) -> Figure:
    return plots.training_curves(history.drop(columns="learning_rate", errors="ignore"))


FIGURES = {
    "pipeline": PaperFigure(
        "05",
        "pipeline",
        plots.pipeline,
        "One test study through the method: as stored; turned into the standard frame by the contours and insertion "
        "points that the heart network finds [S]; the wall unrolled [O]; what speaks for scar; and the words it reads.",
    ),
    "orientation_mean_maps": PaperFigure(
        "02",
        "mean_images",
        _images(3),
        "Mean of the middle slices over all studies: as stored, centred and scaled, and in the standard frame.",
    ),
    "orientation_scar_maps": PaperFigure(
        "02",
        "mean_scars",
        _images(3, "cividis", "share of studies with scar"),
        "Share of studies with scar in each pixel of the middle slices, before and after orientation.",
    ),
    "scar_gallery": PaperFigure(
        "03",
        "gallery",
        _gallery,
        "A healthy heart with a synthetic scar in each wall (a column) and depth (a row): region [S], appearance [O]. "
        "Above each: what its report says of the scar, as measured in the painted mask.",
    ),
    "real_beside_synthetic": PaperFigure(
        "03",
        "real_beside_synthetic",
        _images(4),
        "Scars of the cohort (upper row) and synthetic ones of like size painted into its scar-free hearts (lower): "
        "“A as B” is heart A with a scar of the place and size that B has.",
    ),
    "insertion_point_error": PaperFigure(
        "04",
        "heart_network",
        _point_error,
        "Heart network on test studies turned and mirrored at random: error of the anterior insertion point.",
    ),
    "similarity_matrix": PaperFigure(
        "05",
        "similarity",
        _similarity,
        "Similarity of test studies to their own texts (on the diagonal) and one another's, before and after training; "
        "studies whose texts are the same share a pattern.",
    ),
    "training_curves": PaperFigure("05", "history", _losses, "Losses of the detector over epochs."),
    "roc": PaperFigure(
        "05", "roc", _roc, "Zero-shot detection of scar on test patients, with 95 % intervals."
    ),
    "wall_auc": PaperFigure(
        "05", "walls", plots.wall_bars, "Zero-shot AUC of each wall with 95 % intervals."
    ),
    "segment_auc": PaperFigure(
        "05",
        "segments",
        _bulls_eye,
        "Zero-shot AUC of each AHA segment on test patients, against the segments that the truth names (the findings "
        "of the masks, or of the reports where there are none). A segment's value is the largest probability of its "
        "wall that a slice of its ring gets when asked alone; the apex (17) has no wall and takes the probability of "
        "scar. Grey: no AUC, for all studies that show it are of one class.",
    ),
    "slice_weights": PaperFigure(
        "05",
        "slices",
        _slices,
        "One test study, slice by slice. Above: the probability of scar that each slice gets when asked on its own, "
        "calibrated as whole studies are. Below, where the table has it: the network's attention, the share that each "
        "slice has in the study's embedding, which sums to 1 over the stack; it says what was looked at, not what was "
        "found. Orange: slices that truly hold scar; slices without a heart by the truth are left out.",
    ),
    "captions": PaperFigure(
        "05",
        "captions",
        plots.caption_lines,
        "Captions that the decoder wrote beside the truth: five different ones with all walls right (blue), five not "
        "(orange). Levels, depth and microvascular obstruction are not judged.",
    ),
    "ablation_forest": PaperFigure(
        "06",
        "ablations",
        lambda table: plots.forest(table, "balanced_accuracy", "auc"),
        "Each ablation: mean over seeds, 95 % bootstrap intervals over patients and, of several, seeds; "
        "dotted: the full method.",
    ),
    "synthetic_ratio": PaperFigure(
        "",
        "",
        lambda table: plots.interval_curve(
            table, "synthetic_per_real", "synthetic scars for each real study"
        ),
        "Detection against the number of synthetic scars for each real study (not to scale); bars: 95 % intervals over "
        "patients and, of several, seeds.",
    ),
    "label_efficiency": PaperFigure(
        "",
        "",
        lambda table: plots.interval_curve(
            table, "train_studies", "studies with reports to train on"
        ),
        "Detection against the number of training studies (not to scale); bars: 95 % intervals over patients and, of "
        "several, seeds.",
    ),
}


def figure_of(name: str) -> PaperFigure:
    """The figure that a name belongs to: its own, or that of a grid (``ablation_forest_emidec``), which alone goes by
    longer names.

    Raises:
        InputError: no such figure.
    """
    of_grids = [known for known, figure in FIGURES.items() if figure.notebook in ("", "06")]
    fitting = [
        known
        for known in FIGURES
        if name == known or (known in of_grids and name.startswith(f"{known}_"))
    ]
    if not fitting:
        raise InputError(f"figure {name!r}", "is not known", f"Figures: {', '.join(FIGURES)}.")
    return FIGURES[max(fitting, key=len)]


def make_figure(name: str, table: pd.DataFrame, folder: Path, where: str) -> Path:
    """Draw a figure and write it with its data and caption; the path of its PNG.

    Args:
        name: of the figure.
        table: its data.
        folder: of the figures.
        where: cohort and size (or the grid), a sentence for the caption.
    """
    shown = figure_of(name)
    return plots.save_figure(shown.draw(table), folder, name, table, f"{shown.caption} {where}")


def from_session(name: str, session: Session, folder: Path) -> Figure:
    """Draw and write a figure from the table that a notebook of this run saved; the figure, to show it."""
    shown = figure_of(name)
    notebook = next(full for full in NOTEBOOKS if full.startswith(shown.notebook))
    table = session.table(notebook, shown.table)
    where = f"Cohort: {session.spec}; size {session.size}."
    if shown.notebook == "06":
        epochs, seeds = (
            WORKBOOK_EPOCHS[session.size] or "the size's own",
            WORKBOOK_SEEDS[session.size],
        )
        where = f"The workbook's own small grid, epochs: {epochs}, seeds: {seeds}. {where}"
        if grid := (load_metrics(session.of(notebook)) or {}).get(
            "grid"
        ):  # notebook 06 was given a file
            runs, predictions = (session.table(notebook, name) for name in ("runs", "predictions"))
            where = f"Grid {grid}: {provenance(runs, predictions)}."
    if name == "pipeline" and "study_id" in table:
        judged = words_held_against_the_truth(
            table["study_id"].iloc[0], session.table(notebook, "captions")
        )
        where = f"{judged} {where}".strip()
    make_figure(name, table, folder, where)
    return shown.draw(table)


def words_held_against_the_truth(study: str, captions: pd.DataFrame) -> str:
    """A sentence: whether a study's caption is right about presence and walls; empty where it has no truth.

    Args:
        study: its id.
        captions: ``study_id, caption, truth, right``, as `lgekit.evaluation.scores.caption_table` gives them.
    """
    own = captions[captions["study_id"] == study].fillna({"caption": ""})
    if own.empty:
        return ""
    row = own.iloc[0]
    if row["right"]:
        return "The words are right about whether there is scar and about its walls."
    if (
        states_enhancement(row["caption"])
        and read_report(row["caption"]).present == read_report(row["truth"]).present
    ):
        return "The words are right about whether there is scar, not about all of its walls."
    return "The words are wrong about whether there is scar."


def redraw(folder: Path) -> list[Path]:
    """Draw every figure of a folder, and of the folders in it, again from its CSV alone, and set the tables of grids
    again (``tables/<grid>_table.md`` and ``.tex``) from theirs.

    Raises:
        InputError: the folder holds no figure.
    """
    plots.use_style()
    made = []
    for comparison in sorted(Path(folder).rglob("tables/*_comparison.csv")):
        name = comparison.name.removesuffix("_comparison.csv")
        file = comparison.with_name(f"{name}_runs.csv")
        runs = pd.read_csv(file, dtype={"row": str}) if file.exists() else None
        set_table(paper_table(read_comparison(comparison), runs), comparison.parent, name)
    for captions in sorted(Path(folder).rglob(CAPTIONS)):
        for name, caption in json.loads(captions.read_text("utf-8")).items():
            data = captions.with_name(f"{name}.csv")
            if not data.exists():
                raise InputError(
                    data, "the figure's data are missing", "Run the workbook: make workbook"
                )
            table = pd.read_csv(data)
            made.append(
                plots.save_figure(
                    figure_of(name).draw(table), captions.parent, name, table, caption
                )
            )
    if not made:
        raise InputError(folder, "holds no figure", "Run the workbook first: make workbook")
    return made
