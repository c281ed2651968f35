"""Report grids."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lgekit.config import SIZES
from lgekit.data.readers import missing_path
from lgekit.errors import InputError
from lgekit.evaluation.compare import claims_table, reference_row, uncompared
from lgekit.evaluation.metrics import compare_rows, title_of
from lgekit.grid.file import load_grid
from lgekit.grid.run import REFERENCES, collect, collect_predictions

STATISTICS = {
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auc": "AUC",
    "auc_walls": "AUC, mean of walls",
}
NO_AXIS = (
    "row",
    "seed",
    "fold",
)  # what stands before the study in a table of predictions, beside further axes
# Axis that a curve is drawn over → the figure.
CURVES = {"synthetic_per_real": "synthetic_ratio", "train_studies": "label_efficiency"}


def report_grid(file: str | Path, folder: Path, seed: int = 0) -> list[Path]:
    """Tables and figures of a grid's finished runs, under the grid's name.

    Args:
        file: the grid's YAML file.
        folder: where figures go; the tables go into ``tables/`` in it. Nothing of a single patient is written.
        seed: of the bootstrap.

    Returns:
        The files: ``tables/<grid>_runs.csv`` (a row a run, with commit and device), ``_comparison.csv``,
        ``_claims.csv``, ``_table.md``, ``_table.tex``, ``_references.csv`` where runs trained references,
        ``_places.csv`` (`lgekit.evaluation.scores.grid_places`) where all runs are of one cohort and it is there, and
        ``ablation_forest_<grid>`` and curves as figures.

    Raises:
        InputError: as `lgekit.grid.run.collect`; no seed is done.
    """
    from lgekit.viz.figures import make_figure
    from lgekit.viz.plots import use_style

    use_style()
    name, tables = Path(file).stem, Path(folder) / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    runs = collect(file, tables / f"{name}_runs.csv")
    predictions = of_whole_seeds(runs, collect_predictions(file), name)
    whole = last_point(predictions)
    comparison = compare_rows(whole, reference=reference_row(runs["row"]), seed=seed)
    answered = {name: claims_table(comparison, name, runs) for name in ("balanced_accuracy", "auc")}
    claims = pd.concat(answered, names=["statistic"]).reset_index("statistic")
    comparison.to_csv(tables / f"{name}_comparison.csv", index=False, float_format="%.5g")
    claims.to_csv(tables / f"{name}_claims.csv", index=False, float_format="%.5g")
    # from what is kept, so that `make figures` sets the same table again
    set_table(paper_table(read_comparison(tables / f"{name}_comparison.csv"), runs), tables, name)
    made = [
        tables / f"{name}_{what}"
        for what in ("runs.csv", "comparison.csv", "claims.csv", "table.md", "table.tex")
    ]
    beside = reference_comparison(whole, collect_predictions(file, of=REFERENCES), seed)
    if len(beside):
        made.append(tables / f"{name}_references.csv")
        beside.to_csv(made[-1], index=False, float_format="%.5g")
    if len(places := _places(file, whole, seed)):
        made.append(tables / f"{name}_places.csv")
        places.to_csv(made[-1], index=False, float_format="%.5g")
    axes = ", ".join(further_axes(predictions))
    at = f" At the last value of {axes} in the grid's file." if axes else ""
    where = f"Grid {name}: {provenance(runs, whole)}.{at}"
    made.append(make_figure(f"ablation_forest_{name}", comparison, folder, where))
    for axis, figure in CURVES.items():
        curve = curve_table(predictions, runs, axis, seed)
        if curve[axis].nunique() > 2:
            own = figure if figure == name else f"{figure}_{name}"
            drawn = last_point(predictions, but=axis)
            drawn = drawn[drawn["row"].isin(curve["row"])]
            rows = (
                None if axis in predictions else _ratios(runs)
            )  # a curve through rows is of these rows alone
            made.append(
                make_figure(own, curve, folder, f"Grid {name}: {provenance(runs, drawn, rows)}.")
            )
    return made


def _places(file: str | Path, predictions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Where scar is said to be, held against the cohort; empty where it is not at hand."""
    if not {"segments", "slice_weights", "caption"} <= {*predictions}:
        return pd.DataFrame()
    from lgekit.data.readers import read_cohort
    from lgekit.evaluation.scores import grid_places

    grid = load_grid(file)
    specs = {str(run.params.get("cohort", "")) for run in grid.runs}
    spec = specs.pop()
    if specs or not spec or missing_path(spec, grid.root):
        print(
            f"grid {grid.file.stem}: without {grid.file.stem}_places.csv, which needs one cohort, and its files"
        )
        return pd.DataFrame()
    with contextlib.chdir(grid.root):  # paths in SPECs are from there
        return grid_places(predictions, read_cohort(spec), seed)


def read_comparison(path: Path) -> pd.DataFrame:
    """What `report_grid` kept of `lgekit.evaluation.metrics.compare_rows`; a row may be named by a number."""
    return pd.read_csv(path, dtype={"row": str})


def set_table(paper: pd.DataFrame, tables: Path, name: str) -> None:
    """Write what `paper_table` gives as ``<name>_table.md`` and ``<name>_table.tex``."""
    lines = [list(paper.columns), ["---"] * paper.shape[1], *paper.astype(str).to_numpy().tolist()]
    (tables / f"{name}_table.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    (tables / f"{name}_table.tex").write_text(paper.to_latex(index=False, escape=True))


def further_axes(predictions: pd.DataFrame) -> list[str]:
    """The axes of a grid beside row, seed and fold: they stand before the column ``study_id``."""
    return [
        name
        for name in predictions.columns[: predictions.columns.get_loc("study_id")]
        if name not in NO_AXIS
    ]


def last_point(predictions: pd.DataFrame, but: str = "") -> pd.DataFrame:
    """The predictions at the last value of each further axis of a grid: those of all studies to learn from, where the
    axis is ``train_studies`` and ends at 0.

    Args:
        predictions: of the grid; the axes stand before the column ``study_id``.
        but: an axis of which all values stay.
    """
    for axis in further_axes(predictions):
        if axis != but:
            predictions = predictions[predictions[axis] == predictions[axis].iloc[-1]]
    return predictions


def of_whole_seeds(runs: pd.DataFrame, predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """The predictions that can be compared like with like, all rows over the same seeds, whole (all folds).

    Of all such choices with the first row that of the most seeds × rows, then of the most rows. What is left out is
    printed.

    Args:
        runs: what `lgekit.grid.run.collect` gives.
        predictions: of the grid.
        name: of the grid.

    Raises:
        InputError: there is no seed that the first row has whole.
    """
    first = runs["row"].iloc[0]
    whole = (
        runs.assign(done=runs["state"] == "done")
        .groupby(["seed", "row"])["done"]
        .all()
        .unstack("row")
    )
    seeds_of = {row: frozenset(whole.index[whole[row]]) for row in runs["row"].unique()}
    if not seeds_of[first]:
        raise InputError(
            f"grid {name}", f"no seed of row {first!r} is done", "Go on with it: lgekit grid run"
        )
    shared = {seeds_of[first]}  # what seeds some rows and the first have in common
    for own in set(seeds_of.values()):
        shared |= {common & own for common in shared} - {frozenset()}
    choices = {
        tuple(sorted(seeds)): [row for row, own in seeds_of.items() if own >= seeds]
        for seeds in shared
    }
    seeds = max(
        sorted(choices),
        key=lambda chosen: (len(chosen) * len(choices[chosen]), len(choices[chosen])),
    )
    rows = choices[seeds]
    for what, of_all, kept in ("rows", seeds_of, rows), ("seeds", whole.index, seeds):
        if left := [str(one) for one in of_all if one not in kept]:
            print(f"grid {name}: {what} {', '.join(left)} left out, not whole where the others are")
    return predictions[predictions["seed"].isin(seeds) & predictions["row"].isin(rows)]


def reference_comparison(
    predictions: pd.DataFrame, references: pd.DataFrame, seed: int = 0
) -> pd.DataFrame:
    """The first row beside the references that its runs trained or computed: see `lgekit.evaluation.metrics.compare_rows`.

    Args:
        predictions: of the grid, at one value of each further axis (`last_point`).
        references: ``reference_predictions.csv`` of the runs (notebook 05), with a column ``method``, at all values of
            the axes; may be empty.
        seed: of the bootstrap.

    Returns:
        Column ``row``: the grid's first row, then each method that read all of its studies in all of its seeds.
    """
    first = predictions["row"].iloc[0]
    own = predictions[predictions["row"] == first]
    if references.empty:
        return pd.DataFrame()
    same = references[(references["row"] == first) & references["seed"].isin(own["seed"])]
    for axis in further_axes(own):
        same = same[same[axis] == own[axis].iloc[0]]
    wanted = {*zip(own["seed"], own["study_id"], strict=True)}
    read = {
        name: {*zip(part["seed"], part["study_id"], strict=True)}
        for name, part in same.groupby("method")
    }
    whole = [name for name, studies in read.items() if studies == wanted]
    beside = same[same["method"].isin(whole)].assign(row=lambda table: table["method"])
    columns = ["row", "seed", "study_id", "patient_id", "scar", "p_lge"]
    return compare_rows(pd.concat([own[columns], beside[columns]], ignore_index=True), first, seed)


def paper_table(comparison: pd.DataFrame, runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """One line a row: each statistic as ``value (low–high)``; differences from the first row as ``difference (low to
    high)`` with p after Holm.

    Args:
        comparison: what `lgekit.evaluation.metrics.compare_rows` gives.
        runs: of the grid, what `lgekit.grid.run.collect` gives; rows that were not compared stand there with what
            became of their runs (`lgekit.evaluation.compare.uncompared`).
    """
    lines, reference = [], comparison["row"].iloc[0]
    for row, of_row in comparison.groupby("row", sort=False):
        found = of_row.set_index("statistic")
        line = {"row": title_of(row)}
        line |= {
            title: _with_interval(found, name)
            for name, title in STATISTICS.items()
            if name in found.index
        }
        for name in ("balanced_accuracy", "auc"):
            compared = "difference" in found and np.isfinite(found.loc[name, "difference"])
            line[f"{STATISTICS[name]} − {reference}"] = _difference(found, name) if compared else ""
            line[f"p, {STATISTICS[name]}"] = f"{found.loc[name, 'p_holm']:.3f}" if compared else ""
        lines.append(line)
    for row, why in uncompared(comparison, runs).items():
        lines.append({"row": title_of(row), STATISTICS["balanced_accuracy"]: why})
    return pd.DataFrame(lines).fillna("")


def curve_table(
    predictions: pd.DataFrame, runs: pd.DataFrame, axis: str, seed: int = 0
) -> pd.DataFrame:
    """A statistic over an axis of the grid, with intervals over patients and seeds: columns ``row``, the axis,
    ``statistic``, ``value``, ``low``, ``high``; along an axis of the grid's own ``difference``, ``difference_low``,
    ``difference_high`` too, paired, from the first row at the same value.

    The axis is the grid's own, or a parameter in which rows named after it differ (``no_synthetic``, ``full``,
    ``synthetic_2`` …): those make up one curve. ``full`` stands for 1 there, unless a row ``synthetic_1`` does: then
    it is of the paper's size and has that size's ratio.
    """
    if axis in predictions:
        parts = []
        for value, part in last_point(predictions, but=axis).groupby(axis):
            compared = compare_rows(part, reference_row(part["row"]), seed)
            size = (
                runs["studies_train"].max() if axis == "train_studies" and value == 0 else value
            )  # 0: all studies
            parts.append(
                compared.drop(columns=["p", "p_holm"], errors="ignore").assign(**{axis: size})
            )
        return pd.concat(parts, ignore_index=True).sort_values([axis, "row"], ignore_index=True)
    ratios = _ratios(runs)
    whole = last_point(predictions)
    chosen = whole[whole["row"].isin(ratios)] if axis == "synthetic_per_real" else whole.iloc[:0]
    if chosen.empty:
        return pd.DataFrame(columns=["row", axis, "statistic", "value", "low", "high"])
    compared = compare_rows(chosen, reference_row(chosen["row"]), seed)
    compared[axis] = compared["row"].map(ratios)
    columns = ["row", axis, "statistic", "value", "low", "high"]
    return (
        compared[columns].drop_duplicates([axis, "statistic"]).sort_values(axis, ignore_index=True)
    )


def _ratios(runs: pd.DataFrame) -> dict[str, float]:
    """Row → synthetic scars per real study, of the rows that differ in it alone, in the grid's order."""
    named = {row: re.fullmatch(r"synthetic_(\d+(?:\.\d+)?)", row) for row in runs["row"].unique()}
    full = SIZES["paper"].synthetic_per_real if "synthetic_1" in named else 1.0
    known = {"no_synthetic": 0.0, "full": full} | {
        row: float(found[1]) for row, found in named.items() if found
    }
    return {row: known[row] for row in named if row in known}


def provenance(
    runs: pd.DataFrame, predictions: pd.DataFrame, expected: Iterable[str] | None = None
) -> str:
    """How many runs, seeds and patients the numbers are from, which commit and device, and which rows are not shown.

    Args:
        runs: of the grid, what `lgekit.grid.run.collect` gives.
        predictions: those that the figure shows, with the axes of the grid.
        expected: rows that are named where they are not among them; None: all of the grid.
    """
    axes = [
        name
        for name in (*NO_AXIS, *further_axes(predictions))
        if name in predictions and name in runs
    ]
    shown = predictions[axes].drop_duplicates()
    done = runs[runs["state"] == "done"].merge(shown, on=axes)
    commits, devices = (
        "/".join(sorted(done[name].fillna("unknown").astype(str).unique()))
        for name in ("commit", "device")
    )
    patients = predictions.dropna(subset=["scar"])["patient_id"].nunique()
    seeds = predictions["seed"].nunique()
    several = f"{seeds} seed{'s' if seeds > 1 else ''}"
    rows = runs["row"].unique() if expected is None else expected
    left_out = [title_of(row) for row in rows if row not in set(predictions["row"])]
    number = (
        f"{len(shown)} of the grid's {len(runs)} runs"
        + f" (without {', '.join(left_out)})" * bool(left_out)
    )
    return f"{number}, {several}, {patients} test patients, commit {commits}, {devices}"


def _with_interval(found: pd.DataFrame, name: str) -> str:
    value, low, high = found.loc[name, ["value", "low", "high"]]
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def _difference(found: pd.DataFrame, name: str) -> str:
    value, low, high = found.loc[name, ["difference", "difference_low", "difference_high"]]
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
