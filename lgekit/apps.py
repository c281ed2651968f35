"""What the apps of `make app` need beside their widgets: a detector that answers within a minute of the first start."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lgekit.cache import memory
from lgekit.detector import Detector, fit_detector
from lgekit.fingerprints import code_version
from lgekit.phantom import phantom_cohort
from lgekit.runs import locked
from lgekit.settings import size_settings

STUDIES = 40


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


def _small() -> Detector:
    return fit_detector(phantom_cohort(STUDIES, seed=0), size_settings("smoke"), progress=False)
