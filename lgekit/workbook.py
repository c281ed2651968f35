"""How a notebook starts and ends, and how all of them are run in order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import lgekit
from lgekit.errors import InputError
from lgekit.studies import Cohort

NOTEBOOKS = (
    "00_start_here",
    "01_data_exploration",
    "02_orientation_standardization",
    "03_synthetic_scar_generation",
    "04_pretraining",
    "05_clip_captioning",
    "06_ablations",
    "07_paper_figures",
)
# What a notebook reads when no cohort is named. 965 is the paper's number of patients [P].
DEFAULT_COHORTS = {
    "smoke": "phantom:studies=40,seed={seed}",
    "laptop": "phantom:studies=300,seed={seed}",
    "paper": "phantom:studies=965,seed={seed}",
}
# The references that notebook 05 trains in a run of the workbook; at laptop size those that its time allows.
COMPARED = {"smoke": "all", "laptop": "supervised", "paper": "all"}


def project_root() -> Path:
    """The checkout that lgekit was installed from, with notebooks/ and papermill_runs/; else the present folder."""
    checkout = Path(lgekit.__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


@dataclass
class Session:
    """One notebook's run: what it reads, and where its results go.

    Attributes:
        name: the notebook.
        spec: the cohort's SPEC.
        size: ``smoke``, ``laptop`` or ``paper``.
        seed: of everything random.
        out: the folder of its results.
    """

    name: str
    spec: str
    size: str
    seed: int
    out: Path

    def versions(self) -> pd.DataFrame:
        """What this run was made with, for the record: a table to show at the top."""
        from lgekit.results import environment_record

        record = environment_record(self.spec, self.size, self.seed)
        return pd.Series(record).to_frame("")

    def cohort(self, show_identifiers: bool = False) -> Cohort:
        """The cohort that the notebook works on. Its reports may be shown: they have passed the privacy check.

        Args:
            show_identifiers: True leaves the check out.

        Raises:
            InputError: a report seems to hold a name, date, number or address.
        """
        from lgekit.readers import read_cohort
        from lgekit.reports import require_privacy

        cohort = read_cohort(self.spec)
        if not show_identifiers:
            require_privacy({study["study_id"]: study["report"] for study in cohort.studies})
        return cohort

    def scratch(self, name: str) -> Path:
        """An empty folder for the notebook's own trials, beside its results."""
        folder = self.out / "scratch" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def of(self, notebook: str) -> Path:
        """The results of another notebook of the same run."""
        return self.out.parent / notebook

    def table(self, notebook: str, name: str) -> pd.DataFrame:
        """A table that another notebook of the same run saved.

        Raises:
            InputError: that notebook has not run.
        """
        path = self.of(notebook) / f"{name}.csv"
        if not path.exists():
            raise InputError(path, "is not there", f"Run notebook {notebook} first, or `make workbook` for all.")
        return pd.read_csv(path)

    def save(self, metrics: Mapping[str, Any], tables: Mapping[str, pd.DataFrame] | None = None, **named) -> None:
        """Write ``metrics.json`` and each table as ``<name>.csv`` into the run's folder.

        Args:
            metrics: name → plain value.
            tables: name → table.
            named: ``predictions`` and ``history``, see :func:`lgekit.results.save_run`.
        """
        from lgekit.results import save_run

        save_run(self.out, metrics, tables=dict(tables or {}), **named)


def check_choices(size: str, seed: int) -> None:
    """Refuse an unknown size or a negative seed with an InputError."""
    if size not in DEFAULT_COHORTS:
        raise InputError("size", f"unknown value {size!r}", f"Use one of {', '.join(DEFAULT_COHORTS)}.")
    if seed < 0:
        raise InputError("seed", f"{seed} is negative", "Use 0 or more.")


def start(name: str, cohort: str, size: str, seed: int, out: str) -> Session:
    """Begin a notebook: check its parameters, go to the project's folder, seed torch, set the figures' style.

    Relative paths in SPECs are meant from the project's folder, in JupyterLab as under Papermill.

    Raises:
        InputError: an unknown size, or a negative seed.
    """
    import torch

    from lgekit.plots import use_style

    check_choices(size, seed)
    os.chdir(project_root())
    # Sums of gradients that several threads add up come out in any order: the same seed would give other last digits.
    torch.use_deterministic_algorithms(True, warn_only=True)
    if size == "smoke":
        torch.set_num_threads(1)
    torch.manual_seed(seed)  # TorchIO's own transforms draw from torch's global generator
    use_style()
    folder = Path(out) if out else project_root() / "papermill_runs" / "manual" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Session(name, cohort or DEFAULT_COHORTS[size].format(seed=seed), size, seed, folder)


def run_workbook(
    size: str = "laptop",
    cohort: str = "",
    seed: int = 0,
    only: Sequence[str] | None = None,
    folder: Path | None = None,
    figures: Path | None = None,
) -> Path:
    """Run the notebooks in order through Papermill; executed copies and results under ``papermill_runs/workbook/``.

    Args:
        size: ``smoke``, ``laptop`` or ``paper``.
        cohort: a SPEC; empty for the phantom of that size.
        seed: of everything random.
        only: names or numbers of notebooks, such as ``["05"]``; all by default.
        folder: where the copies go.
        figures: where notebook 07 puts its pictures; ``figures/``, and a folder of its own in there for each kind of
            cohort that is not the phantom.

    Returns:
        The folder, with ``NN_name.ipynb`` beside a folder ``NN_name/`` of its results.

    Raises:
        InputError: an unknown notebook, size or SPEC, before anything runs.
    """
    from lgekit.readers import parse_spec
    from lgekit.runs import run_notebook

    if unknown := set(only or ()) - set(NOTEBOOKS) - {name[:2] for name in NOTEBOOKS}:
        raise InputError("notebook", f"{sorted(unknown)} not known", f"Notebooks: {', '.join(NOTEBOOKS)}.")
    check_choices(size, seed)
    kind = parse_spec(cohort)[0] if cohort else "phantom"
    root = project_root()
    folder = folder or root / "papermill_runs" / "workbook"
    figures = figures or (root / "figures" if kind == "phantom" else root / "figures" / kind)
    folder.mkdir(parents=True, exist_ok=True)
    choices = {"size": size, "cohort": cohort, "seed": seed}
    own = {NOTEBOOKS[5]: {"compare_with": COMPARED[size]}, NOTEBOOKS[7]: {"figures": str(figures)}}
    chosen = [name for name in NOTEBOOKS if not only or name in only or name[:2] in only]
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        run_notebook(root / "notebooks" / f"{name}.ipynb", folder / name, choices | own.get(name, {}), root=root)
        shutil.copyfile(folder / name / "run.ipynb", folder / f"{name}.ipynb")
    return folder
