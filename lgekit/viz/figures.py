"""Figures and tables of the paper, drawn and set from CSV files alone."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lgekit.errors import InputError
from lgekit.evaluation.metrics import PRESENCE_STATISTICS, WORKBOOK, title_of, uncompared
from lgekit.viz import plots

FIGURES: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("figures.toml").read_text("utf-8")
)
STATISTICS = {name: title_of(name) for name in PRESENCE_STATISTICS}
STATISTICS["auc_walls"] = "AUC, mean of walls"
VALUE = "{value:.2f} ({low:.2f}–{high:.2f})"
DIFFERENCE = "{difference:+.3f} ({difference_low:+.3f} to {difference_high:+.3f})"


def figure_name(name: str) -> str:
    """Find the figure of a file name; grids add a suffix, as in ``ablation_forest_emidec``."""
    for known in FIGURES:
        if f"{name}_".startswith(f"{known}_"):
            return known
    raise InputError(f"figure {name!r}", "is not known", f"Figures: {', '.join(FIGURES)}.")


def draw(name: str, table: pd.DataFrame) -> Figure:
    """Draw a figure from its table."""
    about = FIGURES[figure_name(name)]
    return getattr(plots, about["plot"])(table, **about.get("options", {}))


def make_figure(name: str, table: pd.DataFrame, folder: Path, source: str) -> Path:
    """Draw a figure and save it with data and caption, which ``source`` ends; return the PNG."""
    caption = f"{FIGURES[figure_name(name)]['caption']} {source}"
    return plots.save_figure(draw(name, table), folder, name, table, caption)


def from_session(name: str, session: Any, folder: Path) -> Path:
    """Draw and save a figure from a table of a run (`lgekit.workbook.Session`); return the PNG."""
    about = FIGURES[figure_name(name)]
    table = session.table(about["notebook"], about["table"])
    source = f"Cohort: {session.spec}; size {session.size}."
    if name == "ablation_forest":  # of a grid that may have a cohort of its own
        runs, predictions = (session.table(about["notebook"], n) for n in ("runs", "predictions"))
        epochs = f"the workbook's own has {WORKBOOK[session.size]['epochs']} epochs"
        source = f"Grid of notebook 06 ({epochs}): {provenance(runs, predictions)}."
    return make_figure(name, table, folder, source)


def redraw(folder: Path, source: Path | None = None) -> list[Path]:
    """Draw figures from a folder's CSV files (or those of ``source``), and set tables of grids."""
    plots.use_style()
    made = []
    for file in sorted(Path(folder).rglob("tables/*_comparison.csv")):
        set_tables(file.parent, file.name.removesuffix("_comparison.csv"))
    for captions in sorted(Path(source or folder).rglob("captions.json")):
        for name, caption in json.loads(captions.read_text("utf-8")).items():
            table = pd.read_csv(captions.with_name(f"{name}.csv"))
            place = folder if source else captions.parent
            made.append(plots.save_figure(draw(name, table), place, name, table, caption))
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
            if np.isfinite(found[name].get("difference", np.nan)):
                line[f"{STATISTICS[name]} − {reference}"] = DIFFERENCE.format(**found[name])
                line[f"p, {STATISTICS[name]}"] = f"{found[name]['p_holm']:.3f}"
        lines.append(line)
    for row, why in uncompared(comparison, runs).items():
        lines.append({"row": title_of(row), STATISTICS["balanced_accuracy"]: why})
    return pd.DataFrame(lines).fillna("")


def further_axes(predictions: pd.DataFrame) -> list[str]:
    """Axes of a grid other than seed and fold; its axes are the columns before ``study_id``."""
    axes = predictions.columns[: predictions.columns.get_loc("study_id")]
    return [name for name in axes if name not in ("row", "seed", "fold")]


def provenance(runs: pd.DataFrame, predictions: pd.DataFrame) -> str:
    """Count runs, seeds and patients behind a figure; name commit, device and missing rows."""
    axes = ["row", "seed", *further_axes(predictions), *({"fold"} & {*predictions})]
    used = predictions[axes].drop_duplicates()
    done = runs[runs["state"] == "done"].merge(used, on=axes).fillna("unknown").astype(str)
    commits, devices = ("/".join(sorted(done[name].unique())) for name in ("commit", "device"))
    patients = predictions.dropna(subset=["scar"])["patient_id"].nunique()
    seeds = predictions["seed"].nunique()
    missing = [title_of(row) for row in runs["row"].unique() if row not in set(used["row"])]
    without = f" (without {', '.join(missing)})" if missing else ""
    return (
        f"{len(used)} of the grid's {len(runs)} runs{without}, {seeds} seed{'s' * (seeds > 1)}, "
        f"{patients} test patients, commit {commits}, {devices}"
    )
