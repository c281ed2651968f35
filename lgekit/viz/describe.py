"""Summaries of a cohort as text and tables: what notebook 01 shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from lgekit.anatomy.frame import normalised
from lgekit.anatomy.segments import Ventricle
from lgekit.evaluation.baselines import THRESHOLD_RULES
from lgekit.evaluation.metrics import auc_interval
from lgekit.reports.reader import states_enhancement
from lgekit.study import CAVITY, LABEL_NAMES, MYOCARDIUM, NO_REFLOW, SCAR, SCARRED, Cohort, Study


def cohort_summary(cohort: Cohort) -> str:
    """Say in one sentence what a cohort holds, to check before training."""
    table = cohort.manifest
    counts = f"{len(table)} studies of {table['patient_id'].nunique()} patients"
    own_table = cohort.name.startswith(("manifest", "dicom"))
    if own_table and (table["patient_id"] == table["study_id"]).all():
        counts += " (each study counts as a patient: the column patient_id can group them)"
    parts = [counts, report_sources(cohort)]
    reports = [study["report"] for study in cohort.studies if study["report"].strip()]
    if silent := sum(not states_enhancement(report) for report in reports):
        words = "of them do not say, in English, whether there is late enhancement"
        parts.append(f"{silent} {words} (not used for training)")
    scar = table["scar"]
    parts.append(f"scar in {scar.eq(True).sum()}, none in {scar.eq(False).sum()}")
    masks = [study.label_map for study in cohort.studies if study.label_map is not None]
    drawn = any(np.isin(mask, SCARRED).any() for mask in masks)
    present = any(study["findings"].present for study in _with_findings(cohort))
    undrawn = ", none with scar outlined: presence of scar comes from the reports"
    parts.append(f"masks of {len(masks)}" + undrawn * bool(masks and present and not drawn))
    splits = table["split"].value_counts().items()
    return "; ".join([*parts, ", ".join(f"{count} {split}" for split, count in splits)])


def report_sources(cohort: Cohort) -> str:
    """Count a cohort's reports by source."""
    sources = cohort.manifest["report_source"].value_counts(sort=False)
    return f"reports: {', '.join(f'{count} {name}' for name, count in sources.items())}"


def positive_example(cohort: Cohort) -> Study:
    """Choose the first study with scar in one to three walls, else with scar, else the first."""

    def rank(study: Study) -> tuple[bool, bool, str]:
        findings = study["findings"]
        present = findings is not None and findings.present
        return not (present and 1 <= len(findings.walls) <= 3), not present, study["study_id"]

    return min(cohort.studies, key=rank)


def scar_free(cohort: Cohort) -> list[Study]:
    """Select the studies without scar in which scar can be painted: with labels and landmarks."""
    negative = [study for study in _with_findings(cohort) if not study["findings"].present]
    painted = [study for study in negative if study.label_map is not None]
    return [study for study in painted if study["landmarks"] is not None]


def _with_findings(cohort: Cohort) -> list[Study]:
    return [study for study in cohort.studies if study["findings"] is not None]


def _labelled(cohort: Cohort) -> Iterator[Study]:
    """Select the studies in which cavity and myocardium are drawn."""
    for study in cohort.studies:
        mask = study.label_map
        if mask is not None and np.isin((CAVITY, MYOCARDIUM), mask).all():
            yield study


def tissue_signals(cohort: Cohort) -> pd.DataFrame:
    """Sample signals by tissue, scaled in each study to remote myocardium 0 and blood 1 (medians).

    Studies without labels are skipped. Columns ``study_id, tissue, signal``.
    """
    generator, parts = np.random.default_rng(0), []
    for study in _labelled(cohort):
        image, labels = study.pixels, study.label_map
        remote, blood = (np.median(image[labels == code]) for code in (MYOCARDIUM, CAVITY))
        for code in (CAVITY, MYOCARDIUM, SCAR, NO_REFLOW):
            values = generator.permutation(image[labels == code])[:200]
            part = pd.DataFrame({"signal": (values - remote) / (blood - remote)})
            parts.append(part.assign(study_id=study["study_id"], tissue=LABEL_NAMES[code]))
    table = pd.concat(parts, ignore_index=True)[["study_id", "tissue", "signal"]]
    return table[table["signal"].between(-1.5, 3)]  # a few outliers would flatten every plot


def segment_prevalence(cohort: Cohort) -> dict[int, float]:
    """Compute the share of studies with scar in each AHA segment, among those with findings."""
    scars = [study["findings"].scars for study in _with_findings(cohort)]
    hit = [[any(n in scar.segments for scar in each) for n in range(1, 18)] for each in scars]
    shares = np.mean(hit, 0) if hit else np.full(17, np.nan)
    return dict(zip(range(1, 18), shares.tolist(), strict=True))


def scar_details(cohort: Cohort) -> pd.DataFrame:
    """List all scars: ``study_id, walls, levels, depth, transmurality, aetiology, no_reflow``."""
    columns = ["study_id", "walls", "levels", "depth", "transmurality", "aetiology", "no_reflow"]
    scars = [(s["study_id"], scar) for s in _with_findings(cohort) for scar in s["findings"].scars]
    table = pd.DataFrame([{"study_id": name} | vars(scar) for name, scar in scars], columns=columns)
    for name in ("walls", "levels"):
        table[name] = table[name].map(", ".join)
    return table.fillna({"depth": "not stated", "aetiology": "not stated"})


def threshold_scores(cohort: Cohort) -> pd.DataFrame:
    """Score labelled studies: ``study_id, patient_id, scar`` and a column for each rule."""
    names = ["study_id", "patient_id"]
    rows = [
        [*map(study.get, names), study["findings"].present]
        + [rule(study) for rule in THRESHOLD_RULES.values()]
        for study in _labelled(cohort)
        if study["findings"] is not None
    ]
    return pd.DataFrame(rows, columns=[*names, "scar", *THRESHOLD_RULES])


def threshold_table(scores: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compute the AUC of each rule in `threshold_scores`: ``value, low, high``."""
    truth, patients = scores["scar"].to_numpy(bool), scores["patient_id"].tolist()
    aucs = {rule: auc_interval(truth, scores[rule], patients, seed) for rule in THRESHOLD_RULES}
    return pd.DataFrame(aucs).T.rename_axis("rule")


def poses(cohort: Cohort) -> pd.DataFrame:
    """List how studies are stored: angles of the insertion points, mirroring, order of slices."""
    rows = []
    for study in cohort.studies:
        marks, mask = study["landmarks"], study.label_map
        if marks is not None:
            first = None if mask is None else Ventricle.of(mask).base_first
            order = {"mirrored": marks.mirrored, "base_first": first}
            rows.append({"study_id": study["study_id"]} | vars(marks) | order)
    return pd.DataFrame(rows)


def mean_maps(studies: Iterable[Study]) -> dict[str, np.ndarray]:
    """Average the slices in the middle third of the heart over labelled studies on one grid.

    ``image`` ``(X, Y)``: remote myocardium 0, blood 1; ``scar`` ``(X, Y)``: share of the studies.
    """
    images, scars = [], []
    for study in studies:
        labels = study.label_map
        if labels is None:
            continue
        levels = Ventricle.of(labels).levels
        middle = (levels > 0.3) & (levels < 0.7)
        if middle.any():
            images.append(normalised(study)[0].numpy()[:, :, middle].mean(2))
            scars.append(np.isin(labels, SCARRED)[:, :, middle].any(2))
    return {"image": np.mean(images, 0), "scar": np.mean(scars, 0)}
