"""Tables and figures of a grid's finished runs."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pandas as pd

from lgekit.config import SIZES
from lgekit.data.readers import missing_path, read_cohort
from lgekit.errors import InputError
from lgekit.evaluation.compare import claims_table, reference_row
from lgekit.evaluation.metrics import compare_rows
from lgekit.evaluation.scores import grid_places
from lgekit.grid.file import load_grid
from lgekit.grid.run import REFERENCES, collect, collect_predictions
from lgekit.viz.figures import (
    further_axes,
    make_figure,
    paper_table,
    provenance,
    read_comparison,
    set_table,
)
from lgekit.viz.plots import use_style

# Axis of a curve → its figure.
CURVES = {"synthetic_per_real": "synthetic_ratio", "train_studies": "label_efficiency"}


def report_grid(file: str | Path, folder: Path, seed: int = 0) -> list[Path]:
    """Write tables and figures of a grid's finished runs; no data of single patients.

    Args:
        file: the grid's YAML file.
        folder: folder of the figures; tables go to ``tables/`` in it.
        seed: seed of the bootstrap.

    Returns:
        The files: ``tables/<grid>_runs.csv`` (one line per run, with commit and device),
        ``_comparison.csv``, ``_claims.csv``, ``_table.md``, ``_table.tex``; ``_references.csv`` if
        runs trained references; ``_places.csv`` (`lgekit.evaluation.scores.grid_places`) if all
        runs are of one cohort whose files are there; the figures ``ablation_forest_<grid>`` and
        curves over the grid's axes.

    Raises:
        InputError: as `lgekit.grid.run.collect`, or no seed is done.
    """
    use_style()
    name, tables = Path(file).stem, Path(folder) / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    runs = collect(file, tables / f"{name}_runs.csv")
    predictions = of_whole_seeds(runs, collect_predictions(file), name)
    last = last_point(predictions)
    comparison = compare_rows(last, reference=reference_row(runs["row"]), seed=seed)
    statistics = ("balanced_accuracy", "auc")
    claims = {each: claims_table(comparison, each, runs) for each in statistics}
    results = {
        "comparison": comparison,
        "claims": pd.concat(claims, names=["statistic"]).reset_index("statistic"),
        "references": reference_comparison(last, collect_predictions(file, of=REFERENCES), seed),
        "places": _places(file, last, seed),
    }
    made = [tables / f"{name}_runs.csv"]
    for what, table in results.items():
        if len(table):
            made.append(tables / f"{name}_{what}.csv")
            table.to_csv(made[-1], index=False, float_format="%.5g")
    # `make figures` sets the same table again from the rounded numbers of the file
    set_table(paper_table(read_comparison(tables / f"{name}_comparison.csv"), runs), tables, name)
    made += [tables / f"{name}_table.{ending}" for ending in ("md", "tex")]
    axes = ", ".join(further_axes(predictions))
    at = f" At the last value of {axes} in the grid's file." if axes else ""
    source = f"Grid {name}: {provenance(runs, last)}.{at}"
    made.append(make_figure(f"ablation_forest_{name}", comparison, folder, source))
    for axis, figure in CURVES.items():
        curve = curve_table(predictions, runs, axis, seed)
        if curve[axis].nunique() > 2:
            drawn = last_point(predictions, but=axis)
            drawn = drawn[drawn["row"].isin(curve["row"])]
            source = provenance(runs, drawn, None if axis in predictions else _ratios(runs))
            figure = figure if figure == name else f"{figure}_{name}"
            made.append(make_figure(figure, curve, folder, f"Grid {name}: {source}."))
    return made


def _places(file: str | Path, predictions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Compare the places of scar with the cohort's; empty if that is not possible."""
    if not {"segments", "slice_weights", "caption"} <= {*predictions}:
        return pd.DataFrame()
    grid = load_grid(file)
    specs = {str(run.params.get("cohort", "")) for run in grid.runs}
    spec = specs.pop()
    if specs or not spec or missing_path(spec, grid.root):
        name = grid.file.stem
        print(f"grid {name}: without {name}_places.csv, which needs one cohort, and its files")
        return pd.DataFrame()
    with contextlib.chdir(grid.root):  # paths in SPECs start there
        return grid_places(predictions, read_cohort(spec), seed)


def last_point(predictions: pd.DataFrame, but: str = "") -> pd.DataFrame:
    """Select the predictions at the last value of each further axis of a grid, except ``but``."""
    for axis in further_axes(predictions):
        if axis != but:
            predictions = predictions[predictions[axis] == predictions[axis].iloc[-1]]
    return predictions


def of_whole_seeds(runs: pd.DataFrame, predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """Select the largest complete set of seeds and rows that contains the first row.

    A seed of a row is complete if all its runs are done. Of sets of the same size the one with more
    rows is chosen. Rows and seeds that are left out are printed.

    Args:
        runs: result of `lgekit.grid.run.collect`.
        predictions: predictions of the grid.
        name: name of the grid.

    Raises:
        InputError: the first row has no complete seed.
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
    choices = {
        tuple(sorted(seeds)): [row for row, own in seeds_of.items() if own >= seeds]
        for seeds in common
    }
    size = {seeds: (len(seeds) * len(rows), len(rows)) for seeds, rows in choices.items()}
    seeds = max(sorted(choices), key=size.__getitem__)
    rows = choices[seeds]
    for what, of_all, kept in ("rows", seeds_of, rows), ("seeds", done.index, seeds):
        if left := [str(one) for one in of_all if one not in kept]:
            print(f"grid {name}: {what} {', '.join(left)} left out, not whole where the others are")
    return predictions[predictions["seed"].isin(seeds) & predictions["row"].isin(rows)]


def reference_comparison(
    predictions: pd.DataFrame, references: pd.DataFrame, seed: int = 0
) -> pd.DataFrame:
    """Compare the first row with the references that its runs trained.

    Args:
        predictions: predictions of the grid at its `last_point`.
        references: all ``reference_predictions.csv``, with a column ``method``; may be empty.
        seed: seed of the bootstrap.

    Returns:
        As `compare_rows`, for the first row and each method with the same studies and seeds.
    """
    if references.empty:
        return pd.DataFrame()
    first = predictions["row"].iloc[0]
    own = predictions[predictions["row"] == first]
    axes = ["row", *further_axes(own)]
    same = references.merge(own[axes].drop_duplicates(), on=axes)
    pairs = own[["seed", "study_id"]].apply(tuple, axis=1)
    beside = same[same["seed"].isin(own["seed"])].assign(row=same["method"])
    beside = beside.groupby("method").filter(
        lambda part: {*part[["seed", "study_id"]].apply(tuple, axis=1)} == {*pairs}
    )
    columns = ["row", "seed", "study_id", "patient_id", "scar", "p_lge"]
    return compare_rows(pd.concat([own[columns], beside[columns]], ignore_index=True), first, seed)


def curve_table(
    predictions: pd.DataFrame, runs: pd.DataFrame, axis: str, seed: int = 0
) -> pd.DataFrame:
    """Compute statistics over an axis, with intervals over patients and seeds.

    The axis is one of the grid, or ``synthetic_per_real`` for a grid whose rows differ in it and
    are named after it (``no_synthetic``, ``full``, ``synthetic_2``, …).

    Returns:
        Columns ``row``, the axis, ``statistic``, ``value``, ``low``, ``high``; for an axis of the
        grid also ``difference`` (with ``_low`` and ``_high``) from the first row at the same value.
    """
    if axis in predictions:
        parts = []
        for value, part in last_point(predictions, but=axis).groupby(axis):
            compared = compare_rows(part, reference_row(part["row"]), seed)
            if axis == "train_studies" and value == 0:  # 0 means all studies
                value = runs["studies_train"].max()
            compared = compared.drop(columns=["p", "p_holm"], errors="ignore")
            parts.append(compared.assign(**{axis: value}))
        return pd.concat(parts, ignore_index=True).sort_values([axis, "row"], ignore_index=True)
    ratios, last = _ratios(runs), last_point(predictions)
    columns = ["row", axis, "statistic", "value", "low", "high"]
    chosen = last[last["row"].isin(ratios)]
    if axis != "synthetic_per_real" or chosen.empty:
        return pd.DataFrame(columns=columns)
    compared = compare_rows(chosen, reference_row(chosen["row"]), seed)
    compared[axis] = compared["row"].map(ratios)
    compared = compared[columns].drop_duplicates([axis, "statistic"])
    return compared.sort_values(axis, ignore_index=True)


def _ratios(runs: pd.DataFrame) -> dict[str, float]:
    """Map the rows that differ in synthetic scars per real study to this ratio, in grid order.

    ``full`` has the ratio 1; a grid with a row ``synthetic_1`` has the paper's size and its ratio.
    """
    ratios = {}
    rows = runs["row"].unique()
    full = SIZES["paper"].synthetic_per_real if "synthetic_1" in rows else 1.0
    for row in rows:
        if found := re.fullmatch(r"synthetic_(\d+(?:\.\d+)?)", row):
            ratios[row] = float(found[1])
        elif row in ("full", "no_synthetic"):
            ratios[row] = full if row == "full" else 0.0
    return ratios
