"""Say what a cohort holds, and choose studies to show."""

from __future__ import annotations

import numpy as np

from lgekit.reports.reader import states_enhancement
from lgekit.study import SCARRED, Cohort, Study


def cohort_summary(cohort: Cohort) -> str:
    """Say in one sentence what a cohort holds, to check before training."""
    table = cohort.manifest
    counts = f"{len(table)} studies of {table['patient_id'].nunique()} patients"
    own_table = cohort.name.startswith(("manifest", "dicom"))
    if own_table and (table["patient_id"] == table["study_id"]).all():
        counts += " (each study counts as a patient: the column patient_id can group them)"
    sources = table["report_source"].value_counts(sort=False).items()
    parts = [counts, f"reports: {', '.join(f'{count} {name}' for name, count in sources)}"]
    reports = [study["report"] for study in cohort.studies if study["report"].strip()]
    if silent := sum(not states_enhancement(report) for report in reports):
        words = "of them do not say, in English, whether there is late enhancement"
        parts.append(f"{silent} {words} (not used for training)")
    scar = table["scar"]
    parts.append(f"scar in {scar.eq(True).sum()}, none in {scar.eq(False).sum()}")
    masks = [study.label_map for study in cohort.studies if study.label_map is not None]
    parts.append(f"masks of {len(masks)}")
    if masks and scar.eq(True).any() and not any(np.isin(mask, SCARRED).any() for mask in masks):
        parts[-1] += ", none with scar outlined: presence of scar comes from the reports"
    splits = table["split"].value_counts().items()
    return "; ".join([*parts, ", ".join(f"{count} {split}" for split, count in splits)])


def positive_example(cohort: Cohort) -> Study:
    """Choose the first study with scar in one to three walls, else in more, else the first."""

    def rank(study: Study) -> tuple[bool, bool, str]:
        walls = study["findings"].walls if study["findings"] is not None else ()
        return not 1 <= len(walls) <= 3, not walls, study["study_id"]

    return min(cohort.studies, key=rank)
