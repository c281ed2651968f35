"""Tables and figures of a grid's finished runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd

from lgekit.config import SIZES
from lgekit.data.readers import missing_path, read_cohort
from lgekit.errors import InputError
from lgekit.evaluation.compare import claims_table, reference_row
from lgekit.evaluation.metrics import compare_rows
from lgekit.evaluation.scores import grid_places
from lgekit.grid.run import REFERENCES, Grid, collect, collect_predictions, load_grid
from lgekit.viz import figures
from lgekit.viz.figures import further_axes
from lgekit.viz.plots import use_style

CURVES = {fig["table"]: name for name, fig in figures.FIGURES.items() if not fig["notebook"]}


def report_grid(file: str | Path, folder: Path) -> list[Path]:
    """Write tables and figures of a grid's finished runs; no data of single patients.

    Returns:
        The files: in ``tables/`` ``<grid>_runs.csv`` (one line per run, with commit and device),
        ``_comparison.csv``, ``_claims.csv``, ``_table.md``, ``_table.tex``; ``_references.csv`` if
        runs trained references; ``_places.csv`` (`lgekit.evaluation.scores.grid_places`) if all
        runs are of one cohort whose files exist; the figures ``ablation_forest_<grid>`` and
        curves over axes with at least three values.
    """
    use_style()
    grid, name, tables = load_grid(file), Path(file).stem, Path(folder) / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    made = [tables / f"{name}_runs.csv"]
    runs = collect(file, made[0])
    predictions = complete_runs(runs, collect_predictions(file), name)
    last = last_point(predictions)
    comparison = compare_rows(last, reference=reference_row(runs["row"]))
    claims = {each: claims_table(comparison, each, runs) for each in ("balanced_accuracy", "auc")}
    results = {
        "comparison": comparison,
        "claims": pd.concat(claims, names=["statistic"]).reset_index("statistic"),
        "references": reference_comparison(last, collect_predictions(file, of=REFERENCES)),
        "places": _places(grid, last),
    }
    for what, table in results.items():
        if len(table):
            made.append(tables / f"{name}_{what}.csv")
            table.to_csv(made[-1], index=False, float_format="%.5g")
    made += figures.set_tables(tables, name)
    axes = ", ".join(further_axes(predictions))
    at = f" At the last value of {axes} in the grid's file." if axes else ""
    source = f"Grid {name}: {figures.provenance(runs, last)}.{at}"
    made.append(figures.make_figure(f"ablation_forest_{name}", comparison, folder, source))
    for axis, figure in CURVES.items():
        shown, ratios = last_point(predictions, but=axis), None
        if axis == "synthetic_per_real" and axis not in shown:
            ratios = synthetic_ratios(grid)
            shown = shown[shown["row"].isin(ratios)]
            shown = shown.assign(**{axis: shown["row"].map(ratios)})
        if axis in shown and shown[axis].nunique() > 2:
            curve = curve_table(shown, runs, axis)
            source = f"Grid {name}: {figures.provenance(runs, shown, ratios)}."
            figure = figure if figure == name else f"{figure}_{name}"
            made.append(figures.make_figure(figure, curve, folder, source))
    return made


def _places(grid: Grid, predictions: pd.DataFrame) -> pd.DataFrame:
    """Compare the places of scar with the cohort's; empty if that is not possible."""
    specs = {str(run.params.get("cohort", "")) for run in grid.runs}
    spec = specs.pop()
    if not {"segments", "slice_weights", "caption"} <= {*predictions}:
        return pd.DataFrame()
    if specs or not spec or missing_path(spec, grid.root):
        print(f"grid {grid.file.stem}: no places.csv, which needs one cohort and its files")
        return pd.DataFrame()
    with contextlib.chdir(grid.root):  # paths in SPECs start there
        return grid_places(predictions, read_cohort(spec))


def last_point(predictions: pd.DataFrame, but: str = "") -> pd.DataFrame:
    """Select the predictions at the last value of each further axis of a grid, except ``but``."""
    for axis in further_axes(predictions):
        if axis != but:
            predictions = predictions[predictions[axis] == predictions[axis].iloc[-1]]
    return predictions


def complete_runs(runs: pd.DataFrame, predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """Select the largest complete set of seeds and rows that contains the first row.

    A seed of a row is complete if all its ``runs`` (`lgekit.grid.run.collect`) are done. Of sets of
    the same size the one with more rows is chosen. Rows and seeds that are left out are printed.
    """
    done = runs.assign(done=runs["state"] == "done").groupby(["seed", "row"])["done"].all()
    done = done.unstack("row", fill_value=False)
    seeds_of = {row: frozenset(done.index[done[row]]) for row in runs["row"].unique()}
    first = runs["row"].iloc[0]
    if not seeds_of[first]:
        remedy = "Go on with it: lgekit grid run"
        raise InputError(f"grid {name}", f"no seed of row {first!r} is done", remedy)
    common = {seeds_of[first]}  # all sets of seeds that the first row shares with some others
    for own in set(seeds_of.values()):
        common |= {seeds & own for seeds in common} - {frozenset()}
    choices = [
        (sorted(seeds), [row for row, own in seeds_of.items() if own >= seeds]) for seeds in common
    ]
    seeds, rows = max(sorted(choices), key=lambda one: (len(one[0]) * len(one[1]), len(one[1])))
    for what, of_all, kept in ("rows", seeds_of, rows), ("seeds", done.index, seeds):
        if left := [str(one) for one in of_all if one not in kept]:
            print(f"grid {name}: {what} {', '.join(left)} left out, because runs are missing")
    return predictions[predictions["seed"].isin(seeds) & predictions["row"].isin(rows)]


def reference_comparison(predictions: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """Compare the first row with each ``method`` that its runs trained on the same studies."""
    if references.empty:
        return pd.DataFrame()
    first = predictions["row"].iloc[0]
    own = predictions[predictions["row"] == first]
    axes = ["row", *further_axes(own)]
    same = references.merge(own[axes].drop_duplicates(), on=axes)
    same = same[same["seed"].isin(own["seed"])].assign(row=same["method"])
    pairs = {*own[["seed", "study_id"]].itertuples(index=False, name=None)}
    parts = [
        part
        for _, part in same.groupby("method")
        if {*part[["seed", "study_id"]].itertuples(index=False, name=None)} == pairs
    ]
    columns = ["row", "seed", "study_id", "patient_id", "scar", "p_lge"]
    return compare_rows(pd.concat([own, *parts], ignore_index=True)[columns], first)


def curve_table(predictions: pd.DataFrame, runs: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Compute statistics at each value of an axis, with intervals over patients and seeds.

    Columns ``row, statistic, value, low, high``, the axis, and ``difference`` (with ``_low`` and
    ``_high``) from the first row if a value has several rows.
    """
    parts = []
    for value, part in predictions.groupby(axis):
        if axis == "train_studies" and value == 0:  # 0 means all studies
            value = runs["studies_train"].max()
        compared = compare_rows(part, reference_row(part["row"]))
        compared = compared.drop(columns=["p", "p_holm"], errors="ignore")
        parts.append(compared.assign(**{axis: value}))
    return pd.concat(parts, ignore_index=True).sort_values([axis, "row"], ignore_index=True)


def synthetic_ratios(grid: Grid) -> dict[str, float]:
    """Map rows that differ from the reference only in synthetic scars per real study to it."""
    rows = {run.row: dict(run.params) for run in grid.runs}
    ratios = {}
    for row, params in rows.items():
        params.pop("compare_with", None)  # trains references only
        ratios[row] = params.pop("synthetic_per_real", 0)
        if ratios[row] < 0:  # the size's own
            ratios[row] = SIZES[params["size"]].synthetic_per_real
    reference = rows[reference_row(rows)]
    return {row: ratio for row, ratio in ratios.items() if rows[row] == reference}
