"""The command line of lgekit."""

import hashlib
import io
import shutil
import signal
import sys
import tempfile
import warnings
from json import JSONDecodeError
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError

import lgekit as lk
from lgekit import cache
from lgekit.errors import InputError, RunError

SPEC_HELP = """Cohort SPEC: phantom:studies=200,seed=1 | emidec:FOLDER | acdc:FOLDER | myops:FOLDER
| mnms:FOLDER | manifest:FILE.csv | dicom:FOLDER | bids:FOLDER"""
argument, option = typer.Argument, typer.Option
Spec = Annotated[str, argument(help=SPEC_HELP, metavar="SPEC")]
Size = Annotated[str, option(help="smoke (seconds), laptop (minutes on two cores), paper (a GPU).")]
Seed = Annotated[int, option(min=0, help="Random seed.")]
NewFolder = Annotated[Path, argument(help="A new or empty folder.")]
ModelFolder = Annotated[Path, argument(help="Folder that `lgekit fit` wrote.")]
AnyModel = Annotated[Path, argument(help="Folder of `lgekit fit`, or builtin: in the package.")]
GridYaml = Annotated[Path, argument(help="Grid YAML.")]
Repo = Annotated[str, argument(help="Hugging Face hub repository, OWNER/NAME.")]
Model = Annotated[Path | None, option(help="Fitted model whose heart network is used.")]
Pixels = Annotated[int, option(min=16, help="Side of the square frame in pixels.")]
AllStudies = Annotated[bool, option("--all", help="Use all studies; threshold from inner folds.")]
START_HELP = "builtin: the detector in the package (default at size laptop), or scratch."
Start = Annotated[str, option("--from", help=START_HELP, show_default=False)]
Named = Annotated[bool, option("--identifiable", help="Learn words that may identify a person.")]
Changes = Annotated[list[str] | None, option("--set", help="A setting, e.g. --set epochs=10.")]
Source = Annotated[str, argument(help=f"CSV with a column report, or {SPEC_HELP}")]
Strict = Annotated[bool, option("--strict", help="Stop at a study that cannot be read.")]
OutCsv = Annotated[Path, argument(help="New table.")]
OutFindings = Annotated[Path | None, argument(help="New table; else printed.", metavar="[OUT.csv]")]
Draw = Annotated[bool, option("--pictures", help="A PNG of each study in OUT_pictures/.")]
Predictions = Annotated[Path, argument(help="Table of `lgekit predict`, or held_out.csv.")]
Split = Annotated[str, option(help="Only this split: train, validation or test.")]
Public = Annotated[bool, option("--public", help="Make a new repository public.")]
OwnCohort = Annotated[str, option(help=f"{SPEC_HELP}; default: the size's phantom.")]
Only = Annotated[list[str] | None, option(help="Only this row or notebook; repeatable.")]
Figures = Annotated[Path | None, argument(help="Default: figures/ of the checkout.")]
NewFigures = Annotated[Path | None, option(help="Figures to copy, such as a run's.")]
Workers = Annotated[int | None, option(min=1, help="Local processes; default: by GPUs or cores.")]
Scheduler = Annotated[str | None, option(help="Address of a running Dask scheduler, tcp://…")]
Seeds = Annotated[list[int] | None, option(help="Only this seed; repeatable.")]
DryRun = Annotated[bool, option("--dry-run", help="List the runs, run nothing.")]
ReportFolder = Annotated[Path, argument(help="For figures and tables.")]

ABOUT = """Text-supervised scar detection in cardiac LGE MRI. Research and teaching only: not a
medical device."""
GRID = "Ablation grids: YAML → runs → one tidy table."
plain: Any = {"no_args_is_help": True, "rich_markup_mode": None}
app = typer.Typer(help=ABOUT, add_completion=False, pretty_exceptions_enable=False, **plain)
grid_app = typer.Typer(help=GRID, **plain)
app.add_typer(grid_app, name="grid")
cache_app = typer.Typer(help="The cache, which holds images and what was computed.", **plain)
app.add_typer(cache_app, name="cache")


def main() -> None:
    """Run the command line. Bad input ends with one line and exit code 2, without a traceback."""
    for kind in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", kind)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, which cleans up
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
    except (OSError, SafetensorError, JSONDecodeError) as error:
        remedy = "Make room on the disk, correct its rights, or copy a damaged file again"
        print(f"error: {type(error).__name__}: {error}. {remedy}", file=sys.stderr)
    else:
        return
    raise SystemExit(2)


def refuse_existing(target: Path) -> None:
    """Raise InputError before long work if an output exists or cannot be written."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(target, "exists already", "Name another place, or remove this first")
    try:
        tempfile.TemporaryFile(dir=target.resolve().parent).close()
    except OSError as error:
        remedy = "Make its folder first, or choose a place that you may write to"
        raise InputError(target, f"cannot be written ({error.strerror})", remedy) from error


@app.command()
def cohort(spec: Spec, out_dir: NewFolder) -> None:
    """Write a cohort as NIfTI files and manifest.csv, the layout for your own studies.

    Example: lgekit cohort phantom:studies=20,seed=1 my_cohort
    """
    refuse_existing(out_dir)
    studies = lk.read_cohort(spec)
    lk.write_manifest(studies, out_dir)
    typer.echo(f"{len(studies)} studies; read them with manifest:{out_dir}/manifest.csv")


@app.command()
def check(spec: Spec) -> None:
    """Read a whole cohort. List every fault with its remedy (exit code 1), or say what it holds.

    Also counts what the reports say about late enhancement, and compares them with the masks. Ends
    with an account of the folder: files seen = read + left out, by reason.
    Example: lgekit check manifest:my_cohort/manifest.csv
    """
    from lgekit.data.readers import count_files

    faults, account = lk.check_cohort(spec), count_files(spec)
    for fault in faults:
        typer.echo(f"{fault.study_id or '-'}\t{fault.where}: {fault.problem}. {fault.remedy}")
    if faults:
        typer.echo(f"{len(faults)} fault{'s' * (len(faults) > 1)}")
        typer.echo(account, nl=bool(account))
        raise typer.Exit(1)
    studies = lk.read_cohort(spec, pixels=False)
    typer.echo(f"no faults; {lk.tables.cohort_summary(studies)}")
    states = lk.tables.report_states(studies)
    said = [f"{(states['report'] == word).sum()} {word}" for word in ("yes", "no", "unsaid")]
    typer.echo(f"late enhancement, by the reports: {', '.join(said)}")
    if names := states.loc[states["report"] == "unsaid", "study_id"].tolist():
        typer.echo(f"unsaid: {', '.join(names[:20])}{', …' * (len(names) > 20)}")
    if states["mask"].notna().any():
        typer.echo("report says (row) / mask shows (column); studies that disagree:")
        table = lk.tables.agreement_table(states).rename_axis(index=None, columns=None)
        typer.echo(table.to_string())
    typer.echo(account, nl=bool(account))


@app.command()
def reports(source: Source, out_csv: OutFindings = None) -> None:
    """Read what reports say of late enhancement: a table of findings with their sentences.

    Columns: study_id, states (yes, no or unsaid), walls, segments, levels, depth, transmurality,
    no_reflow, aetiology, evidence.
    Example: lgekit reports my_reports.csv findings.csv
    """
    import pandas as pd

    from lgekit.data.manifest import read_table

    if out_csv:
        refuse_existing(out_csv)
    if Path(source).is_file() or (source.lower().endswith(".csv") and ":" not in source):
        rows = enumerate(read_table(Path(source), ("report",)), 1)
        texts = [(row.get("study_id") or str(number), row["report"]) for number, row in rows]
    else:
        studies = lk.read_cohort(source).studies
        texts = [(study["study_id"], study["report"]) for study in studies]
    found = [lk.tables.findings_row(*text) for text in texts]
    table = pd.DataFrame(found, columns=lk.tables.COLUMNS)
    if out_csv is None:
        typer.echo(table.to_csv(index=False), nl=False)
        return
    with cache.replacing(out_csv) as part:
        table.to_csv(part, index=False)
    counts = ", ".join(f"{sum(table['states'] == word)} {word}" for word in ("yes", "no", "unsaid"))
    typer.echo(f"{len(table)} reports in {out_csv}: {counts}")


@app.command()
def standardize(spec: Spec, out_dir: NewFolder, model: Model = None, pixels: Pixels = 96) -> None:
    """Write every study in the standard short-axis frame, with landmarks.csv.

    Labels and landmarks come from the cohort if it has them, or else from the heart network of
    --model, by default the one in the package (trained on phantoms alone).
    Example: lgekit standardize emidec:data/emidec standard_frame
    """
    import pandas as pd
    from tqdm import tqdm

    cache.cache_folder()  # fails now if it is not private
    refuse_existing(out_dir)
    studies = lk.read_cohort(spec)
    located = lk.locate_hearts(studies, model)
    transform, framed, rows = lk.StandardizeShortAxis(pixels=pixels), [], []
    for study in tqdm(located.studies, desc="standardizing", unit="study", disable=None):
        framed.append(transform(study))
        marks, turned = study["landmarks"], framed[-1]["orientation_confident"]
        row = {"study_id": study["study_id"], **vars(marks), "mirrored": marks.mirrored}
        rows.append(row | {"turned": turned, "located_by": study["located_by"]})
    with cache.replacing(out_dir) as folder:
        lk.write_manifest(lk.Cohort(framed, located.name), folder)
        landmarks = pd.DataFrame(rows)
        landmarks.to_csv(folder / "landmarks.csv", index=False, float_format="%.1f")
    lost = sum(not row["turned"] for row in rows)
    typer.echo(f"{len(framed)} studies and landmarks.csv in {out_dir}; {lost} could not be turned")


@app.command()
def fit(
    spec: Spec,
    model_dir: NewFolder,
    all_studies: AllStudies = False,
    size: Size = "laptop",
    seed: Seed = 0,
    start: Start = "",
    identifiable: Named = False,
    changes: Changes = None,
) -> None:
    """Train the full method on the reports: synthetic scars, CLIP and captions.

    Example: lgekit fit emidec:data/emidec my_model --all
    """
    from lgekit.clip.fit import packaged_networks
    from lgekit.clip.model import ImageEncoder
    from lgekit.reports.text import require_privacy

    start = start or ("builtin" if size == "laptop" else "scratch")
    if start not in ("builtin", "scratch"):
        raise InputError("--from", f"unknown start {start!r}", "Use builtin or scratch")
    preset = lk.FROM_BUILTIN if start == "builtin" else {}
    settings = lk.size_settings(size, **{"seed": seed, **preset, **lk.read_changes(changes or [])})
    cache.cache_folder()
    refuse_existing(model_dir)
    ImageEncoder(settings)  # fails now if timm has no such encoder
    if settings.encoder_init == "builtin":
        packaged_networks(settings)  # likewise if its shape is another
    studies = lk.read_cohort(spec)
    if settings.text != "findings" and not identifiable:  # captions repeat the words of reports
        require_privacy({study["study_id"]: study["report"] for study in studies})
    typer.echo(lk.tables.cohort_summary(studies))
    fitted = lk.fit_detector(studies, settings, all_studies)
    with cache.replacing(model_dir) as folder:
        fitted.save(folder)
    typer.echo(f"model in {model_dir}; use it with: lgekit predict {model_dir} SPEC OUT.csv")


@app.command()
def predict(
    model_dir: AnyModel, spec: Spec, out_csv: OutCsv, strict: Strict = False, pictures: Draw = False
) -> None:
    """Detect scar from images alone: study_id, p_lge, p_<wall>, slice_weights, attention, segments,
    caption and insertion points (degrees).

    slice_weights: probability of scar in each slice by itself. attention: weight of each slice in
    the study's embedding; sums to 1. segments: probability in each AHA segment 1-17, null where
    unseen. The decision is p_lge > 0.5. Studies that cannot be read are listed and left out.
    --pictures draws what to check first: contours, insertion points, segments, evidence for scar.
    After a stop, the same command continues from the rows in OUT.csv.*.part.
    Example: lgekit predict my_model emidec:data/emidec predictions.csv
    """
    from lgekit.clip.detector import read_predictions, rows_so_far
    from lgekit.data.readers import stream_images

    refuse_existing(out_csv)
    folder = out_csv.with_name(f"{out_csv.stem}_pictures")
    if pictures:
        refuse_existing(folder)
    cache.cache_folder()
    model = lk.Detector.load(model_dir)
    if model.settings.masks == "true" and model.settings.orientation != "none":
        problem = "was fitted with masks='true': it needs contours drawn by hand"
        raise InputError(model_dir, problem, "Give a model fitted with masks='predicted'")
    version = cache.code_version(*cache.FIT_ROOMS)
    key = repr((model.settings, model.calibration, spec, version, pictures))
    key = hashlib.sha256(key.encode()).hexdigest()[:8]
    part = out_csv.with_name(f"{out_csv.name}.{key}.part")
    faults: dict[str, InputError] = {}  # of the studies left out
    studies = stream_images(spec, rows_so_far(part), None if strict else faults)
    drawn = folder.with_name(f"{folder.name}.{key}.part")
    for located, rows in model.predict_groups(studies):
        if pictures:
            from lgekit.viz.plots import save_readings

            save_readings(model, located, rows, drawn)
        with part.open("a", encoding="utf-8") as file:
            rows.to_csv(file, index=False, float_format="%.6g", header=not file.tell())
    for name, fault in faults.items():
        typer.echo(f"left out: {name}: {fault}", err=True)
    if not part.exists():
        raise InputError(spec, "no study can be read", "Correct the studies listed above")
    if pictures:
        drawn.replace(folder)
    part.replace(out_csv)
    table = read_predictions(out_csv)
    positive = int((table["p_lge"] > 0.5).sum())
    left_out = f"; {len(faults)} left out" if faults else ""
    typer.echo(f"{len(table)} studies, {positive} called positive, in {out_csv}{left_out}")
    if model.heart is not None and (lost := int(table["anterior_rvip_deg"].isna().sum())):
        typer.echo(f"The heart was not found in {lost} of them: do not rely on these.")


@app.command()
def score(predictions: Predictions, spec: Spec, split: Split = "") -> None:
    """Compare predictions with the cohort's masks, or else with its reports.

    Every score has a patient-level 95 % interval. Score only studies that the model was not trained
    on: the split test, another cohort, or held_out.csv in the model's folder.
    Example: lgekit score predictions.csv manifest:mine.csv --split test
    """
    table, studies = lk.scores.in_both(predictions, lk.read_cohort(spec))
    if split:
        studies = studies.split(split)
        table = table[table["study_id"].isin(studies.manifest["study_id"])]
    splits = set(studies.manifest["split"])
    if predictions.name != "held_out.csv" and len(splits) > 1 and "train" in splits:
        together = "studies of the splits train and test are scored together"
        remedy = "if the model was trained on this cohort, give --split test"
        warnings.warn(f"{together}: {remedy}", stacklevel=1)
    typer.echo(f"{len(table)} predictions; {lk.tables.cohort_summary(studies)}")
    scores = lk.score_table(table, studies)
    shown = scores.dropna(subset="value")
    typer.echo(shown.to_string(float_format="{:.2f}".format, na_rep=""))
    for note in scores.attrs["notes"]:
        typer.echo(note, err=True)


@app.command()
def push(model_dir: ModelFolder, repo: Repo, public: Public = False) -> None:
    """Send a model to the repository that you name on the Hugging Face hub, with your own login.

    Sent: weights (safetensors), settings and tokenizer (JSON), a model card (README.md). Not sent:
    held_out.csv, which has one row per study, or any other file. The tokenizer holds words of the
    training reports. Example: lgekit push my_model my-name/lge-scar
    """
    sent = lk.push(model_dir, repo, public)
    typer.echo(f"sent to {repo}: {', '.join(sent)}")


@app.command()
def pull(repo: Repo, model_dir: NewFolder) -> None:
    """Fetch a model from the Hugging Face hub. Other files of the repository are ignored.

    Example: lgekit pull my-name/lge-scar my_model
    """
    refuse_existing(model_dir)
    with cache.replacing(model_dir) as folder:
        names = lk.pull(repo, folder)
    typer.echo(f"{len(names)} files; use them with: lgekit predict {model_dir} SPEC OUT.csv")


@app.command()
def workbook(
    size: Size = "laptop", cohort: OwnCohort = "", seed: Seed = 0, only: Only = None
) -> None:
    """Run the notebooks 00-08 in order; results and figures in papermill_runs/workbook/.

    Example: lgekit workbook --size smoke --only 05
    """
    folder = lk.run_workbook(size, cohort, seed, only)
    typer.echo(f"executed notebooks in {folder}")


@app.command()
def figures(folder: Figures = None, source: NewFigures = None) -> None:
    """Redraw every figure, and each grid's table, from the CSV next to it, without images."""
    folder = folder or lk.project_root() / "figures"
    typer.echo(f"{len(lk.figures.redraw(folder, source))} figures in {folder}")


@grid_app.command("run")
def grid_run(
    file: GridYaml,
    workers: Workers = None,
    scheduler: Scheduler = None,
    only: Only = None,
    seeds: Seeds = None,
    dry_run: DryRun = False,
) -> None:
    """Run what is not yet done.

    Example: lgekit grid run papermill_runs/grids/smoke.yaml --workers 2
    """
    result = lk.run_grid(file, workers, scheduler, only, seeds, dry_run)
    show_runs(result)
    left = result[result["state"] != "done"]
    if dry_run:
        seconds = result["seconds"].mean()
        known = f"finished runs took {seconds:.0f} s each" if seconds >= 0 else "none is finished"
        typer.echo(f"{len(left)} of {len(result)} runs to go; {known}")
    raise typer.Exit(int(not dry_run and len(left) > 0))


@grid_app.command("status")
def grid_status(file: GridYaml) -> None:
    """Show which runs are done, running, failed or waiting; RUN_ID names the folder of a run."""
    show_runs(lk.grid_status(file))


def show_runs(table: Any) -> None:
    """Print the states of runs, and below them each error once."""
    typer.echo(table.drop(columns="error").to_string(index=False, na_rep=""))
    for error, runs in table[table["error"] != ""].groupby("error"):
        typer.echo(f"\n{len(runs)} failed: {error}")


@grid_app.command("collect")
def grid_collect(file: GridYaml) -> None:
    """Save the metrics of all runs as table.csv in the grid's folder; print the main columns."""
    table = lk.collect(file)
    main = table.columns.isin(["run_id", "balanced_accuracy", "auc", "auc_walls"])
    main[: table.columns.get_loc("state") + 1] = True
    typer.echo(table.loc[:, main].to_string(index=False, na_rep=""))


@grid_app.command("report")
def grid_report(file: GridYaml, folder: ReportFolder = Path("figures")) -> None:
    """Make tables (CSV, Markdown, LaTeX) with intervals and claims, and figures, of all runs."""
    for path in lk.report.report_grid(file, folder):
        typer.echo(path)


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove all results, images and unfinished fits from the cache: LGEKIT_CACHE, by default
    ~/.cache/lgekit."""
    if folder := cache.cache_folder():
        shutil.rmtree(folder)
        typer.echo(f"removed {folder}")


if __name__ == "__main__":
    main()
