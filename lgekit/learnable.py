"""What of a cohort can be learned from: asked of its reports alone, before the long run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lgekit.errors import InputError
from lgekit.reports import read_report, states_enhancement
from lgekit.settings import FitSettings
from lgekit.stages import without_scar
from lgekit.studies import Cohort, Study


def with_statement(cohort: Cohort) -> list[Study]:
    """The studies whose report says whether there is late enhancement: silence is not a report of none.

    Warns of reports that are there and do not say.
    """
    kept = [study for study in cohort.studies if states_enhancement(study["report"])]
    if silent := sum(bool(study["report"].strip()) for study in cohort.studies) - len(kept):
        warnings.warn(
            f"{silent} reports do not say whether there is late enhancement (they are read in English): their studies "
            "are left out",
            stacklevel=3,
        )
    return kept


def require_contrast(train: Cohort, settings: FitSettings) -> None:
    """Refuse reports that leave nothing to tell apart, or no study to paint a scar into.

    Warns where all speak of scar.

    Raises:
        InputError: none speaks of scar and none will be painted, or none is free of it and scars are to be painted.
    """
    free = len(without_scar(train))
    if not free and settings.synthetic_per_real:
        problem = "no training study can take a synthetic scar: none is without scar by its report"
        raise InputError(train.name, problem, "Give studies without scar, or set synthetic_per_real to 0.")
    if not free:
        warnings.warn("all training reports say that there is scar: what none looks like is not learned", stacklevel=3)
    if free == len(train) and not settings.synthetic_per_real:
        problem = f"none of {free} training reports says that there is scar: there is nothing to tell apart"
        raise InputError(train.name, problem, "Give studies with scar, or let synthetic_per_real be above 0.")


def warn_of_calibration(held: Sequence[Study]) -> None:
    """Warn that the decision ``p_lge > 0.5`` will mean nothing: the reports of ``held`` are not of both kinds."""
    scarred = sum(read_report(study["report"]).present for study in held)
    if not 0 < scarred < len(held):
        warnings.warn(
            f"of {len(held)} studies to calibrate on {scarred} have scar by their reports: without both kinds "
            "p_lge > 0.5 is no decision. Put more studies into the split validation, or fit with --all",
            stacklevel=3,
        )
