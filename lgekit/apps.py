"""What the apps of `make app` need beside their widgets: hearts, and a detector within a minute of the first start."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from lgekit.cache import memory
from lgekit.detector import Detector, fit_detector
from lgekit.fingerprints import code_version
from lgekit.phantom import phantom_cohort
from lgekit.readers import read_cohort
from lgekit.runs import locked
from lgekit.settings import size_settings
from lgekit.studies import Cohort
from lgekit.workbook import project_root

STUDIES = 40
SHOWN = 12


def playground_detector(model_dir: str = "") -> Detector:
    """The detector behind the prompt playground.

    Args:
        model_dir: what `lgekit fit` wrote; empty: a small one, trained on a small phantom cohort at smoke size and kept
            beside the caches. It shows how the method answers, not what it can do.

    Raises:
        InputError: ``model_dir`` holds no detector.
    """
    if model_dir:
        return Detector.load(model_dir)
    cache = memory().location
    if cache is None:
        return _small()
    folder = Path(cache) / "playground" / code_version(["import lgekit.detector, lgekit.phantom"])
    with locked(folder.with_name(f"{folder.name}.lock")):  # two visitors at the first start
        if not folder.is_dir():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            os.replace(_small().save(part), folder)
    return Detector.load(folder)


def playground_cohort(spec: str = "") -> Cohort:
    """The hearts that the prompt playground asks about: a dozen phantoms that its own detector has not seen, or yours.

    Args:
        spec: of a cohort; its first twelve studies are taken, images alone. Relative paths: from the project's folder.

    Raises:
        InputError: as `lgekit.readers.read_cohort`.
    """
    if not spec:
        return phantom_cohort(SHOWN, seed=1)
    with contextlib.chdir(project_root()):
        return Cohort(read_cohort(spec, images_only=True).studies[:SHOWN], spec)


def _small() -> Detector:
    return fit_detector(phantom_cohort(STUDIES, seed=0), size_settings("smoke"), progress=False)
