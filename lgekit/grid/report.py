"""Tables and figures of a grid's finished runs."""

from pathlib import Path

import pandas as pd

from lgekit.config import SIZES
from lgekit.errors import InputError
from lgekit.evaluation.metrics import claims_table, compare_rows
from lgekit.grid.run import REFERENCES, Grid, collect, collect_predictions, load_grid
from lgekit.viz import figures, plots
from lgekit.viz.figures import further_axes

CURVES = {fig["table"]: name for name, fig in figures.FIGURES.items() if not fig["notebook"]}


def report_grid(file: str | Path, folder: Path) -> list[Path]:
    """Write tables and figures of a grid's finished runs; no data of single patients.

    Returns the files: in ``tables/`` ``<grid>_runs.csv`` (a line per run, with commit and device),
    ``_comparison.csv``, ``_claims.csv``, ``_table.md``, ``_table.tex``; ``_references.csv`` if runs
    trained references; ``ablation_forest_<grid>`` and curves over axes, if of three or more.
    """
    plots.use_style()
    grid, runs, name, tables = load_grid(file), collect(file), Path(file).stem, folder / "tables"
    predictions = complete_runs(runs, collect_predictions(file), name)
    last = last_point(predictions)
    comparison = compare_rows(last)
    claims = {each: claims_table(comparison, each, runs) for each in ("balanced_accuracy", "auc")}
    results = {
        "runs": runs,
        "comparison": comparison,
        "claims": pd.concat(claims, names=["statistic"]).reset_index("statistic"),
        "references": reference_comparison(last, collect_predictions(file, of=REFERENCES)),
    }
    tables.mkdir(parents=True, exist_ok=True)
    made = []
    for what, table in results.items():
        if len(table):
            made.append(tables / f"{name}_{what}.csv")
            table.to_csv(made[-1], index=False, float_format=None if what == "runs" else "%.5g")
    made += figures.set_tables(tables, name)
    axes = ", ".join(further_axes(predictions))
    at = f" At the last value of {axes} in the grid's file." if axes else ""
    source = f"Grid {name}: {figures.provenance(runs, last)}.{at}"
    if comparison["row"].nunique() > 2:  # one difference needs no figure
        made.append(figures.make_figure(f"ablation_forest_{name}", comparison, folder, source))
    for axis, figure in CURVES.items():
        shown, of_runs = last_point(predictions, but=axis), runs
        if axis == "synthetic_per_real" and axis not in shown:
            ratios = synthetic_ratios(grid)
            of_runs, shown = (part[part["row"].isin(ratios)] for part in (runs, shown))
            shown = shown.assign(**{axis: shown["row"].map(ratios)})
        if axis in shown and shown[axis].nunique() > 2:
            curve = curve_table(shown, runs, axis)
            source = f"Grid {name}: {figures.provenance(of_runs, shown)}."
            figure = figure if figure == name else f"{figure}_{name}"
            made.append(figures.make_figure(figure, curve, folder, source))
    return made


def last_point(predictions: pd.DataFrame, but: str = "") -> pd.DataFrame:
    """Select the predictions at the last value of each further axis of a grid, except ``but``."""
    for axis in further_axes(predictions):
        if axis != but:
            predictions = predictions[predictions[axis] == predictions[axis].iloc[-1]]
    return predictions


def complete_runs(runs: pd.DataFrame, predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """Select the largest set of seeds that the first row shares with others, and their rows.

    A seed of a row is complete if all its ``runs`` (`lgekit.grid.run.collect`) are done. Of sets of
    the same size the one with more rows is chosen. Rows and seeds that are left out are printed.
    """
    done = runs.assign(done=runs["state"] == "done").groupby(["seed", "row"])["done"].all()
    done = done.unstack("row", fill_value=False)[runs["row"].unique()]
    first = done.columns[0]
    common = done[done[first]]
    if common.empty:
        remedy = "Continue it: lgekit grid run"
        raise InputError(f"grid {name}", f"no seed of row {first!r} is done", remedy)
    shared = [common[common[row]] for row in common if common[row].any()]
    sets = [(part.index, part.columns[part.all()]) for part in shared]
    seeds, rows = max(sets, key=lambda one: (len(one[0]) * len(one[1]), len(one[1])))
    for what, of_all, kept in ("rows", done.columns, rows), ("seeds", done.index, seeds):
        if left := [str(one) for one in of_all if one not in kept]:
            print(f"grid {name}: {what} {', '.join(left)} left out, because runs are missing")
    return predictions[predictions["seed"].isin(seeds) & predictions["row"].isin(rows)]


def reference_comparison(predictions: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """Compare the first row with each ``method`` that its runs trained on the same studies."""
    if references.empty:
        return pd.DataFrame()
    first = predictions["row"].iloc[0]
    own = predictions[predictions["row"] == first]
    axes = ["row", "seed", *further_axes(own)]
    same = references.merge(own[axes].drop_duplicates(), on=axes)
    same["row"] = same["method"]
    parts = [part for _, part in same.groupby("method") if len(part) == len(own)]
    columns = ["row", "seed", "study_id", "patient_id", "scar", "p_lge"]  # without walls
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
        compared = compare_rows(part).drop(columns=["p", "p_holm"], errors="ignore")
        parts.append(compared.assign(**{axis: value}))
    return pd.concat(parts, ignore_index=True).sort_values([axis, "row"], ignore_index=True)


def synthetic_ratios(grid: Grid) -> dict[str, float]:
    """Map rows that change nothing, or only the synthetic scars per real study, to this number."""
    common = SIZES[grid.runs[0].params["size"]].model_dump() | grid.spec.parameters
    ratios = {}
    for row, changes in grid.spec.rows.items():  # compare_with trains references only
        if changes.keys() <= {"synthetic_per_real", "compare_with"}:
            ratios[row] = (common | changes)["synthetic_per_real"]
    return ratios
