"""The command line of lgekit."""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from lgekit import __version__
from lgekit.errors import InputError, RunError

PREDICTIONS = ("study_id", "p_lge")  # columns by which a table is known as one of `lgekit predict`
WRITABLE = "Give a place that you may write to"


def refuse_full(folder: Path) -> None:
    """See, before long work, that a folder can take its results.

    Raises:
        InputError: it holds something, its parent is not there, or nothing can be written beside it (or into it).
    """
    target = folder.resolve()
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(
                folder,
                "is there already and not an empty folder",
                "Name a new folder, or empty this one",
            )
        if not target.parent.exists():
            raise InputError(
                folder,
                "its parent folder does not exist",
                f"Make it first: mkdir -p {folder.parent}",
            )
        for place in [target.parent, *([target] if target.exists() else [])]:
            Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=place)).rmdir()
    except OSError as error:
        raise InputError(folder, f"cannot be written ({error.strerror})", WRITABLE) from error


class WholeFolder:
    """A temporary sibling that becomes the folder when all is written, or vanishes when writing fails.

    By one rename where the folder can be replaced. A mount point, or the folder that the user stands in, is filled
    instead.

    Args:
        target: a folder that `refuse_full` lets pass; links are followed.

    Raises:
        InputError: on leaving, where nothing can be put there; what was written stays beside it, and is named.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.resolve()

    def __enter__(self) -> Path:
        """The place to write to; not made yet."""
        self.part = (
            Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
            / self.target.name
        )
        return self.part

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._hand_over()
            except OSError as error:
                remedy = f"What was made is not lost: move it from {self.part}"
                raise InputError(
                    self.target, f"cannot be written ({error.strerror or error})", remedy
                ) from error
        shutil.rmtree(self.part.parent, ignore_errors=True)

    def _hand_over(self) -> None:
        with suppress(OSError):  # what cannot be replaced can be filled
            if self.target.exists() and self.target != Path.cwd():
                self.target.rmdir()  # it is empty, or the rename would lose something
            if not self.target.exists():
                self.part.rename(self.target)
                return
        self.target.mkdir(exist_ok=True)
        if any(self.target.iterdir()):
            raise OSError("it is no longer empty")
        for entry in sorted(self.part.iterdir()):
            shutil.move(entry, self.target / entry.name)


@contextmanager
def prediction_table(target: Path, inputs: Sequence[Path]) -> Iterator[Path]:
    """The file to write predictions to; it takes the target's place when the block ends well, and vanishes otherwise.

    Args:
        target: a new file, or a table of predictions to replace.
        inputs: files that the command reads; never written over.

    Raises:
        InputError: before the block, where the target is something else or cannot be written.
    """
    if not target.parent.is_dir():
        raise InputError(
            target, "its folder does not exist", f"Make it first: mkdir -p {target.parent}"
        )
    if target.is_dir():
        raise InputError(target, "is a folder", f"Name a file in it: {target / 'predictions.csv'}")
    remedy = "Name another file: nothing is written over that may be somebody's work"
    part = target.with_name(f".{target.name}.part")
    try:
        if target.exists() and any(file.exists() and target.samefile(file) for file in inputs):
            raise InputError(target, "is what the command reads", remedy)
        if target.exists() and not _is_predictions(target):
            raise InputError(target, "is there already and no table of predictions", remedy)
        part.write_bytes(b"")
    except OSError as error:
        raise InputError(target, f"cannot be written ({error.strerror})", WRITABLE) from error
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _is_predictions(file: Path) -> bool:
    """Whether a file may be replaced by predictions: it has their columns, or nothing at all."""
    if not file.is_file():  # a device, a pipe
        return False
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        first = stream.readline(100_000)
    return not first or set(PREDICTIONS) <= {name.strip() for name in next(csv.reader([first]), [])}


grid_app = typer.Typer(
    help="Ablation grids: YAML → runs → one tidy table.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
NOT_KNOWN = "; how long they take is not known: none is done"


@grid_app.command("run")
def grid_run(
    file: Annotated[Path, typer.Argument(help="Grid YAML.")],
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Local processes; by default one a GPU, else one a core as memory allows."
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler, tcp://…")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this row; repeatable.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="Only this seed; repeatable.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds a run may take.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs, run nothing.")] = False,
    retries: Annotated[
        int, typer.Option(min=0, help="Times a failed run is tried again at once.")
    ] = 0,
) -> None:
    """Run what is not yet done. Example: lgekit grid run papermill_runs/grids/smoke.yaml --workers 2"""
    from lgekit.grid import run as grid

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
    from lgekit.grid import run as grid

    typer.echo(grid.grid_status(file).to_string(index=False))


@grid_app.command("collect")
def grid_collect(file: Annotated[Path, typer.Argument(help="Grid YAML.")]) -> None:
    """One tidy table of all finished runs, written beside them."""
    from lgekit.grid import run as grid

    typer.echo(grid.collect(file).to_string(index=False))


@grid_app.command("report")
def grid_report(
    file: Annotated[Path, typer.Argument(help="Grid YAML.")],
    folder: Annotated[Path, typer.Argument(help="Where figures and tables go.")] = Path("figures"),
) -> None:
    """Tables (CSV, Markdown, LaTeX) with intervals and claims, and figures, of all finished runs."""
    from lgekit.grid.report import report_grid

    for path in report_grid(file, folder):
        typer.echo(path)


@grid_app.command("clean")
def grid_clean(
    file: Annotated[Path, typer.Argument(help="Grid YAML.")],
    everything: Annotated[bool, typer.Option("--all", help="The finished runs too.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before finished runs are removed.")
    ] = False,
) -> None:
    """Remove runs that the grid no longer holds (of code before an edit, say), and the records of failures."""
    from lgekit.grid import run as grid

    older = len(grid.older_runs(file))
    if older and not yes:
        typer.confirm(
            f"Finished runs of other code, parameters or data: {older}. Remove them?", abort=True
        )
    typer.echo(f"{len(grid.clean(file, everything=everything))} removed")


SPEC_HELP = (
    "Cohort SPEC: phantom:studies=200,seed=1 | emidec:FOLDER | acdc:FOLDER | myops:FOLDER | mnms:FOLDER | "
    "manifest:FILE.csv | dicom:FOLDER | bids:FOLDER"
)
Spec = Annotated[str, typer.Argument(help=SPEC_HELP, metavar="SPEC")]
Size = Annotated[
    str, typer.Option(help="smoke (seconds), laptop (minutes on two cores) or paper (a GPU).")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]

app = typer.Typer(
    help="Text-supervised scar detection in cardiac LGE MRI. Research and teaching only: not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
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
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Text-supervised scar detection in cardiac LGE MRI. Research and teaching only: not a medical device."""
    if show:
        typer.echo(f"lgekit {__version__}")
        raise typer.Exit


@app.command()
def cohort(
    spec: Spec, out_dir: Annotated[Path, typer.Argument(help="A new or empty folder.")]
) -> None:
    """Write a cohort as NIfTI + manifest.csv, the layout for bringing your own studies.

    Example: lgekit cohort phantom:studies=20,seed=1 my_cohort
    """
    from lgekit.data import readers
    from lgekit.data.manifest import write_manifest

    refuse_full(out_dir)
    studies = readers.read_cohort(spec)
    with WholeFolder(out_dir) as folder:
        write_manifest(studies, folder)
    typer.echo(
        f"{len(studies)} studies in {out_dir}; read them with manifest:{out_dir}/manifest.csv"
    )


@app.command()
def check(spec: Spec) -> None:
    """Read a whole cohort and list every fault with its remedy (exit code 1), or say what it holds.

    Example: lgekit check manifest:my_cohort/manifest.csv
    """
    from lgekit.data import readers
    from lgekit.viz.describe import cohort_summary

    faults = readers.check_cohort(spec)
    for fault in faults:
        typer.echo(f"{fault.study_id or '-'}\t{fault.where}: {fault.problem}. {fault.remedy}")
    if faults:
        typer.echo(f"{len(faults)} fault{'s' * (len(faults) > 1)}")
        raise typer.Exit(1)
    typer.echo(f"no faults; {cohort_summary(readers.read_cohort(spec))}")


@app.command()
def standardize(
    spec: Spec,
    out_dir: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of a fitted model: its heart network finds the heart."),
    ] = None,
    pixels: Annotated[int, typer.Option(min=16, help="Side of the square frame in pixels.")] = 96,
) -> None:
    """Write every study in the standard short-axis frame, with landmarks.csv.

    Labels and landmarks come from the cohort where it has them, else from --model.
    Example: lgekit standardize emidec:data/emidec standard_frame
    """
    import pandas as pd

    from lgekit.anatomy.frame import StandardizeShortAxis
    from lgekit.cache import memory
    from lgekit.data import readers
    from lgekit.data.manifest import write_manifest
    from lgekit.segmentation.train import landmark_row, locate_hearts, ready
    from lgekit.study import Cohort

    refuse_full(out_dir)
    memory()
    studies = readers.read_cohort(spec)
    if model is None and not all(map(ready, studies.studies)):
        typer.echo(
            "Masks or insertion points are missing: a heart network is trained first, for some minutes (see --model)."
        )
    located = locate_hearts(studies, model)
    transform = StandardizeShortAxis(pixels=pixels)
    framed = Cohort(
        [transform(study) for study in _progress(located.studies, "standardising")], located.name
    )
    rows = [
        landmark_row(before, after)
        for before, after in zip(located.studies, framed.studies, strict=True)
    ]
    with WholeFolder(out_dir) as folder:
        write_manifest(framed, folder)
        pd.DataFrame(rows).to_csv(folder / "landmarks.csv", index=False, float_format="%.1f")
    typer.echo(f"{len(framed)} studies and landmarks.csv in {out_dir}")
    if lost := sum(not row["turned"] for row in rows):
        typer.echo(
            f"{lost} of them could not be turned, for no insertion point was found: column turned of landmarks.csv."
        )


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
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of lgekit/settings.py, NAME=VALUE; repeatable, e.g. --set patience=10.",
        ),
    ] = None,
) -> None:
    """Train the full method from the reports' text: heart network, standard frame, synthetic scars, CLIP + captions.

    Example: lgekit fit emidec:data/emidec my_model --all --pretrain-on acdc:data/acdc
    """
    from lgekit.cache import memory
    from lgekit.clip import fit as detector
    from lgekit.clip.model import check_encoder
    from lgekit.clip.train import resumable
    from lgekit.config import read_changes, size_settings
    from lgekit.data import readers
    from lgekit.data.readers import pretraining_specs
    from lgekit.segmentation.train import pretraining_cohorts
    from lgekit.viz.describe import report_sources

    settings = size_settings(size, **{"seed": seed, **read_changes(changes or [])})
    refuse_full(model_dir)
    memory()
    check_encoder(settings)
    studies = readers.read_cohort(spec)
    specs, further = (
        pretraining_specs(spec, pretrain_on),
        pretraining_cohorts(studies, spec, pretrain_on),
    )
    typer.echo(report_sources(studies).capitalize() + ".")
    if set(studies.manifest["report_source"]) == {"masks"}:
        typer.echo(
            "No clinical reports: these are written from the masks, an easier setting than clinical text."
        )
    masks = sum(study.label_map is not None for study in studies.studies)
    typer.echo(
        f"Heart network: {masks} masks of the cohort, phantoms{''.join(f', {other}' for other in specs)}."
    )
    with resumable(studies, settings, all_studies, *further) as kept:
        fitted = detector.fit_detector(
            studies, settings, all_studies=all_studies, pretrain_on=further, checkpoints=kept
        )
        with WholeFolder(model_dir) as folder:
            fitted.save(folder)
    typer.echo(f"model in {model_dir}; use it with: lgekit predict {model_dir} SPEC OUT.csv")


@app.command()
def predict(
    model_dir: Annotated[Path, typer.Argument(help="Folder that `lgekit fit` wrote.")],
    spec: Spec,
    out_csv: Annotated[Path, typer.Argument(help="Table to write.")],
    beams: Annotated[
        int, typer.Option(min=1, help="Width of the captions' beam search; 1 is greedy.")
    ] = 1,
) -> None:
    """Detect scar from images alone: study_id, p_lge, p_<wall>, slice_weights, attention, segments, caption, angles.

    slice_weights: probability of scar in each stored slice, asked alone. attention: share of each in what the network
    keeps of the study; sums to 1. segments: probability in each AHA segment 1-17, null where unseen. Angles: insertion
    points, degrees. The decision is p_lge > 0.5. Example: lgekit predict my_model emidec:data/emidec predictions.csv
    """
    from lgekit.cache import memory
    from lgekit.clip import fit as detector
    from lgekit.data import readers

    inputs = [Path(readers.parse_spec(spec)[1]).expanduser(), model_dir / "held_out.csv"]
    with prediction_table(out_csv, inputs) as part:
        memory()  # one that cannot be written is told of before the long work
        loaded = detector.Detector.load(model_dir)
        if loaded.settings.masks == "true" and loaded.settings.orientation != "none":
            problem = "was fitted with masks='true': it reads along contours drawn by hand, which images alone lack"
            raise InputError(
                model_dir, problem, "Give a model fitted with masks='predicted', the default"
            )
        table = loaded.predict(readers.read_cohort(spec, images_only=True), beams)
        table.to_csv(part, index=False, float_format="%.6g")
    typer.echo(
        f"{len(table)} studies, {int((table['p_lge'] > 0.5).sum())} called positive, in {out_csv}"
    )
    if lost := int(table["anterior_rvip_deg"].isna().sum()) if loaded.heart is not None else 0:
        typer.echo(
            f"The heart was not found in {lost} of {len(table)}, which were read as stored: do not rely on these. "
            "A larger --size of `lgekit fit`, or masks (--pretrain-on), may help."
        )


@app.command()
def score(
    predictions: Annotated[
        Path, typer.Argument(help="Table of `lgekit predict`, or held_out.csv of a model.")
    ],
    spec: Spec,
    split: Annotated[
        str, typer.Option(help="Only the studies of this split: train, validation or test.")
    ] = "",
) -> None:
    """Hold predictions against the cohort's truth: masks where there are any, else what the reports say.

    Every score with its patient-level 95 % interval. Score only studies that the model has not learned from: those of
    the split test, a cohort of its own, or held_out.csv in the model's folder.
    Example: lgekit score predictions.csv manifest:mine.csv --split test
    """
    from lgekit.data import readers
    from lgekit.evaluation import scores as evaluation
    from lgekit.evaluation.scores import in_both
    from lgekit.viz.describe import cohort_summary

    if not predictions.is_file():
        raise InputError(
            predictions, "there is no such file", "Name the table that `lgekit predict` wrote"
        )
    whole = readers.read_cohort(spec)
    asked = (
        set(whole.split(split).manifest["study_id"]) if split else None
    )  # first: a split that is not there
    table, studies = in_both(predictions, whole)
    if asked is not None:
        table = table[table["study_id"].isin(asked)]
        if not len(table):
            remedy = "Predict the studies of that split, or name another one"
            raise InputError(predictions, f"holds no study of the split {split!r}", remedy)
        studies = studies.subset(table["study_id"])
    splits = set(studies.manifest["split"])
    if predictions.name != "held_out.csv" and len(splits) > 1 and "train" in splits:
        warnings.warn(
            "studies of the splits train and test are scored together: if `lgekit fit` has learned from this cohort, "
            "give --split test",
            stacklevel=1,
        )
    typer.echo(f"{len(table)} predictions; {cohort_summary(studies)}")
    scores = evaluation.score_table(table, studies).dropna(subset="value")
    if table["caption"].isna().all():  # held_out.csv has none
        scores = scores[~scores.index.str.startswith("caption")]
    typer.echo(scores.to_string(float_format="{:.2f}".format, na_rep=""))


@app.command()
def push(
    model_dir: Annotated[Path, typer.Argument(help="Folder that `lgekit fit` wrote.")],
    repo: Annotated[
        str, typer.Argument(help="Hugging Face hub repository, OWNER/NAME; made if absent.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="A new repository that everybody can read.")
    ] = False,
) -> None:
    """Send a model to the Hugging Face hub, to the repository that you name and with your own login.

    Sent: weights (safetensors), settings and tokenizer (JSON), a model card (README.md). Not sent: held_out.csv, which
    has a row a study; any other file in the folder is refused. Mind that a tokenizer holds words of the reports that
    it was trained on. Example: lgekit push my_model my-name/lge-scar
    """
    from lgekit.clip import detector as hub

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
    from lgekit.clip import detector as hub

    refuse_full(model_dir)
    with WholeFolder(model_dir) as folder:
        names = hub.pull(repo, folder)
    typer.echo(
        f"{len(names)} files in {model_dir}; use it with: lgekit predict {model_dir} SPEC OUT.csv"
    )


@app.command()
def workbook(
    size: Size = "laptop",
    cohort: Annotated[
        str, typer.Option(help=SPEC_HELP + "; by default the size's own phantom.")
    ] = "",
    seed: Seed = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this notebook (its number or name); repeatable.")
    ] = None,
) -> None:
    """Run the notebooks 00-07 in order; copies in papermill_runs/workbook/, pictures and tables in figures/.

    Example: lgekit workbook --size smoke --only 05
    """
    from lgekit.workbook import run_workbook

    folder = run_workbook(size, cohort, seed, only)
    typer.echo(f"executed notebooks in {folder}")


@app.command()
def figures(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of figures; figures/ of the checkout.")
    ] = None,
) -> None:
    """Redraw every figure from the CSV beside it, and set grids' tables from theirs. No image or network is needed."""
    from lgekit.viz.figures import redraw
    from lgekit.workbook import project_root

    folder = folder or project_root() / "figures"
    typer.echo(f"{len(redraw(folder))} figures in {folder}")


def _progress(items, what: str):
    from tqdm import tqdm

    return tqdm(items, desc=what, unit="study", disable=None)


if __name__ == "__main__":
    main()
