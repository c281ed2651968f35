"""The commands ``lgekit grid …``: ablation grids from a YAML file to one tidy table and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

grid_app = typer.Typer(
    help="Ablation grids: YAML → runs → one tidy table.", no_args_is_help=True, rich_markup_mode=None
)
NOT_KNOWN = "; how long they take is not known: none is done"


@grid_app.command("run")
def grid_run(
    file: Annotated[Path, typer.Argument(help="Grid YAML.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Local processes; by default one a GPU, else one a core as memory allows.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask scheduler, tcp://…")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this row; repeatable.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="Only this seed; repeatable.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds a run may take.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs, run nothing.")] = False,
    retries: Annotated[int, typer.Option(min=0, help="Times a failed run is tried again at once.")] = 0,
) -> None:
    """Run what is not yet done. Example: lgekit grid run papermill_runs/grids/smoke.yaml --workers 2"""
    from lgekit import grid

    result = grid.run_grid(file, workers, scheduler, only, seeds, timeout, dry_run, retries)
    typer.echo(result.to_string(index=False))
    if dry_run:
        left = result.loc[result["state"] != "done", "expected_seconds"]
        known = f": {left.sum():.0f} s if each runs alone" if left.notna().all() else NOT_KNOWN
        typer.echo(f"{len(left)} of {len(result)} runs to go{known}")
    raise typer.Exit(int(not dry_run and (result["state"] != "done").any()))


@grid_app.command("status")
def grid_status(file: Annotated[Path, typer.Argument(help="Grid YAML.")]) -> None:
    """Which runs are done, running (and what they are at), failed (and where), or waiting."""
    from lgekit import grid

    typer.echo(grid.grid_status(file).to_string(index=False))


@grid_app.command("collect")
def grid_collect(file: Annotated[Path, typer.Argument(help="Grid YAML.")]) -> None:
    """One tidy table of all finished runs, written beside them."""
    from lgekit import grid

    typer.echo(grid.collect(file).to_string(index=False))


@grid_app.command("report")
def grid_report(
    file: Annotated[Path, typer.Argument(help="Grid YAML.")],
    folder: Annotated[Path, typer.Argument(help="Where figures and tables go.")] = Path("figures"),
) -> None:
    """Tables (CSV, Markdown, LaTeX) with intervals and claims, and figures, of all finished runs."""
    from lgekit.ablation_report import report_grid

    for path in report_grid(file, folder):
        typer.echo(path)


@grid_app.command("clean")
def grid_clean(
    file: Annotated[Path, typer.Argument(help="Grid YAML.")],
    everything: Annotated[bool, typer.Option("--all", help="The finished runs too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before finished runs are removed.")] = False,
) -> None:
    """Remove runs that the grid no longer holds (of code before an edit, say), and the records of failures."""
    from lgekit import grid

    older = len(grid.older_runs(file))
    if older and not yes:
        typer.confirm(f"Finished runs of other code, parameters or data: {older}. Remove them?", abort=True)
    typer.echo(f"{len(grid.clean(file, everything=everything))} removed")
