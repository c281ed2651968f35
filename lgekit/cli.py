"""The command line ``lgekit``: cohorts are named by a SPEC, and bad input gets one line that says what to do."""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import typer

from lgekit import __version__
from lgekit.errors import InputError, RunError

SPEC_HELP = (
    "Cohort SPEC: phantom:studies=200,seed=1 | emidec:FOLDER | acdc:FOLDER | myops:FOLDER | mnms:FOLDER | "
    "manifest:FILE.csv | dicom:FOLDER | bids:FOLDER"
)
Spec = Annotated[str, typer.Argument(help=SPEC_HELP, metavar="SPEC")]
Size = Annotated[str, typer.Option(help="smoke (seconds), laptop (minutes on two cores) or paper (a GPU).")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]

app = typer.Typer(
    help="Text-supervised scar detection in cardiac LGE MRI. Research and teaching only: not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
grid_app = typer.Typer(
    help="Ablation grids: YAML → runs → one tidy table.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(grid_app, name="grid")


def main() -> None:
    """Run the command line; bad input ends with its one message and exit code 2, never with a traceback."""
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Text-supervised scar detection in cardiac LGE MRI. Research and teaching only: not a medical device."""
    if show:
        typer.echo(f"lgekit {__version__}")
        raise typer.Exit


@app.command()
def cohort(spec: Spec, out_dir: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Write a cohort as NIfTI + manifest.csv, the layout for bringing your own studies.

    Example: lgekit cohort phantom:studies=20,seed=1 my_cohort
    """
    from lgekit import readers

    _refuse_full(out_dir)
    studies = readers.read_cohort(spec)
    readers.write_manifest(studies, out_dir)
    typer.echo(f"{len(studies)} studies in {out_dir}; read them with manifest:{out_dir}/manifest.csv")


@app.command()
def check(spec: Spec) -> None:
    """Read a whole cohort and list every fault with its remedy; exit code 1 if there is any.

    Example: lgekit check manifest:my_cohort/manifest.csv
    """
    from lgekit import readers

    faults = readers.check_cohort(spec)
    for fault in faults:
        typer.echo(f"{fault.study_id or '-'}\t{fault.where}: {fault.problem}. {fault.remedy}")
    typer.echo("no faults" if not faults else f"{len(faults)} faults")
    raise typer.Exit(bool(faults))


@app.command()
def standardize(
    spec: Spec,
    out_dir: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    model: Annotated[
        Path | None, typer.Option(help="Folder of a fitted model: its heart network finds the heart.")
    ] = None,
    pixels: Annotated[int, typer.Option(min=16, help="Side of the square frame in pixels.")] = 96,
) -> None:
    """Write every study in the standard short-axis frame, with landmarks.csv.

    Labels and landmarks come from the cohort where it has them, else from --model.
    Example: lgekit standardize emidec:data/emidec standard_frame
    """
    import pandas as pd

    from lgekit import readers
    from lgekit.locating import landmark_row, locate_hearts
    from lgekit.standardize import StandardizeShortAxis
    from lgekit.studies import Cohort

    _refuse_full(out_dir)
    located = locate_hearts(readers.read_cohort(spec), model)
    transform = StandardizeShortAxis(pixels=pixels)
    framed = Cohort([transform(study) for study in _progress(located.studies, "standardising")], located.name)
    rows = [landmark_row(before, after) for before, after in zip(located.studies, framed.studies, strict=True)]
    with _whole_folder(out_dir) as folder:
        readers.write_manifest(framed, folder)
        pd.DataFrame(rows).to_csv(folder / "landmarks.csv", index=False, float_format="%.1f")
    typer.echo(f"{len(framed)} studies and landmarks.csv in {out_dir}")


@app.command()
def fit(
    spec: Spec,
    model_dir: Annotated[Path, typer.Argument(help="A new or empty folder for the model.")],
    all_studies: Annotated[
        bool, typer.Option("--all", help="Train on every study; threshold from inner folds.")
    ] = False,
    size: Size = "laptop",
    seed: Seed = 0,
    pretrain_on: Annotated[
        str,
        typer.Option(
            help="Further cohorts with masks for the heart network: SPECs separated by spaces, none, or auto: a folder "
            "named acdc beside the cohort's own."
        ),
    ] = "auto",
) -> None:
    """Train the full method from the reports' text: heart network, standard frame, synthetic scars, CLIP + captions.

    Example: lgekit fit emidec:data/emidec my_model --all --pretrain-on acdc:data/acdc
    """
    from lgekit import detector, readers
    from lgekit.locating import pretraining_specs
    from lgekit.settings import size_settings

    settings = size_settings(size, seed=seed)
    _refuse_full(model_dir)
    studies = readers.read_cohort(spec)
    specs = pretraining_specs(spec, pretrain_on)
    further = [readers.read_cohort(other) for other in specs]
    typer.echo(_where_reports_come_from(studies))
    typer.echo(f"Heart network: the cohort's own masks, phantoms{''.join(f', {other}' for other in specs)}.")
    fitted = detector.fit_detector(studies, settings, all_studies=all_studies, pretrain_on=further)
    with _whole_folder(model_dir) as folder:
        fitted.save(folder)
    typer.echo(f"model in {model_dir}; use it with: lgekit predict {model_dir} SPEC OUT.csv")


@app.command()
def predict(
    model_dir: Annotated[Path, typer.Argument(help="Folder that `lgekit fit` wrote.")],
    spec: Spec,
    out_csv: Annotated[Path, typer.Argument(help="Table to write.")],
    beams: Annotated[int, typer.Option(min=1, help="Width of the captions' beam search; 1 is greedy.")] = 1,
) -> None:
    """Detect scar from images alone: study_id, p_lge, p_<wall>, slice_weights, caption, insertion points.

    The decision is p_lge > 0.5. Example: lgekit predict my_model emidec:data/emidec predictions.csv
    """
    from lgekit import detector, readers

    loaded = detector.Detector.load(model_dir)
    if not out_csv.parent.is_dir():
        raise InputError(out_csv, "its folder does not exist", f"Make it first: mkdir -p {out_csv.parent}")
    table = loaded.predict(readers.read_cohort(spec, images_only=True), beams)
    part = out_csv.with_name(f".{out_csv.name}.part")
    table.to_csv(part, index=False, float_format="%.6g")
    part.replace(out_csv)
    typer.echo(f"{len(table)} studies, {int((table['p_lge'] > 0.5).sum())} called positive, in {out_csv}")


@app.command()
def push(
    model_dir: Annotated[Path, typer.Argument(help="Folder that `lgekit fit` wrote.")],
    repo: Annotated[str, typer.Argument(help="Hugging Face hub repository, OWNER/NAME; made if absent.")],
    public: Annotated[bool, typer.Option("--public", help="A new repository that everybody can read.")] = False,
) -> None:
    """Send a model to the Hugging Face hub, to the repository that you name and with your own login.

    Sent: weights (safetensors), settings and tokenizer (JSON), a model card (README.md). Not sent: held_out.csv, which
    has a row a study; any other file in the folder is refused. Mind that a tokenizer holds words of the reports that
    it was trained on. Example: lgekit push my_model my-name/lge-scar
    """
    from lgekit import hub

    sent = hub.push(model_dir, repo, public)
    typer.echo(f"sent to {repo}: {', '.join(sent)}")


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="Hugging Face hub repository, OWNER/NAME.")],
    model_dir: Annotated[Path, typer.Argument(help="A new or empty folder for the model.")],
) -> None:
    """Fetch a model from the Hugging Face hub: safetensors, JSON and a model card; a repository with more is refused.

    Example: lgekit pull my-name/lge-scar my_model
    """
    from lgekit import hub

    _refuse_full(model_dir)
    with _whole_folder(model_dir) as folder:
        names = hub.pull(repo, folder)
    typer.echo(f"{len(names)} files in {model_dir}; use it with: lgekit predict {model_dir} SPEC OUT.csv")


@app.command()
def workbook(
    size: Size = "laptop",
    cohort: Annotated[str, typer.Option(help=SPEC_HELP + "; by default the size's own phantom.")] = "",
    seed: Seed = 0,
    only: Annotated[list[str] | None, typer.Option(help="Only this notebook (its number or name); repeatable.")] = None,
) -> None:
    """Run the notebooks 00-07 in order; copies in papermill_runs/workbook/, pictures and tables in figures/.

    Example: lgekit workbook --size smoke --only 05
    """
    from lgekit.workbook import run_workbook

    folder = run_workbook(size, cohort, seed, only)
    typer.echo(f"executed notebooks in {folder}")


@app.command()
def figures(
    folder: Annotated[Path | None, typer.Argument(help="Folder of figures; figures/ of the checkout.")] = None,
) -> None:
    """Redraw every figure from the CSV beside it. No image and no network is needed."""
    from lgekit.paper_figures import redraw
    from lgekit.workbook import project_root

    folder = folder or project_root() / "figures"
    typer.echo(f"{len(redraw(folder))} figures in {folder}")


@grid_app.command("run")
def grid_run(
    file: Annotated[Path, typer.Argument(help="Grid YAML.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Local processes; one for each core by default.")] = None,
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
    raise typer.Exit(int(not dry_run and (result["state"] == "failed").any()))


@grid_app.command("status")
def grid_status(file: Annotated[Path, typer.Argument(help="Grid YAML.")]) -> None:
    """Which runs are done, running, failed (and where), or waiting."""
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
) -> None:
    """Remove runs that the grid no longer holds, and the records of failures."""
    from lgekit import grid

    typer.echo(f"{len(grid.clean(file, everything=everything))} removed")


def _refuse_full(folder: Path) -> None:
    """Checked before long work, so that nothing is lost at its end."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(folder, "is there already and not an empty folder", "Name a new folder, or empty this one.")
    if not folder.parent.exists():
        raise InputError(folder, "its parent folder does not exist", f"Make it first: mkdir -p {folder.parent}")


class _whole_folder:
    """A temporary sibling that becomes the folder by one rename, or vanishes when writing fails."""

    def __init__(self, target: Path):
        self.target = target

    def __enter__(self) -> Path:
        self.part = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent)) / self.target.name
        return self.part

    def __exit__(self, kind, value, trace) -> None:
        if kind is None:
            if self.target.exists():
                self.target.rmdir()  # it is empty, or the rename would lose something
            self.part.rename(self.target)
        shutil.rmtree(self.part.parent, ignore_errors=True)


def _progress(items, what: str):
    from tqdm import tqdm

    return tqdm(items, desc=what, unit="study", disable=None)


def _where_reports_come_from(studies) -> str:
    sources = studies.manifest["report_source"].value_counts().to_dict()
    if set(sources) == {"masks"}:
        return "No clinical reports: trained on reports written from the masks, an easier setting than clinical text."
    return "Reports: " + ", ".join(f"{count} {source}" for source, count in sources.items())


if __name__ == "__main__":
    main()
