"""A cohort in tables: how bright, how often, where; what notebook 01 draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from lgekit.anatomy import segments as anatomy
from lgekit.anatomy.frame import normalise_intensity
from lgekit.anatomy.labels import base_first, slice_levels
from lgekit.errors import InputError
from lgekit.evaluation import baselines, metrics
from lgekit.reports.reader import states_enhancement
from lgekit.study import CAVITY, LABEL_NAMES, MYOCARDIUM, NO_REFLOW, SCAR, Cohort, Study


def cohort_summary(cohort: Cohort) -> str:
    """What a cohort holds, in one sentence: what to look at before training on it."""
    table = cohort.manifest
    patients = table["patient_id"].nunique()
    own = cohort.name.startswith(("manifest", "dicom")) and bool(
        (table["patient_id"] == table["study_id"]).all()
    )
    alone = (
        " (each study counts as a patient: name one person's alike in the column patient_id)" * own
    )
    parts = [f"{len(table)} studies of {patients} patients{alone}", report_sources(cohort)]
    written = [study["report"] for study in cohort.studies if study["report"].strip()]
    if silent := sum(not states_enhancement(report) for report in written):
        parts += [
            f"{silent} of them do not say, in English, whether there is late enhancement: not learned from"
        ]
    parts += [
        f"scar in {int(table['scar'].eq(True).sum())}, none in {int(table['scar'].eq(False).sum())}"
    ]
    outlines = (
        ", in none of which scar is drawn: who has scar is what the reports say"
        * _outlines_alone(cohort)
    )
    parts += [f"masks of {sum(study.label_map is not None for study in cohort.studies)}{outlines}"]
    parts += [
        ", ".join(f"{count} {split}" for split, count in table["split"].value_counts().items())
    ]
    return "; ".join(parts)


def _outlines_alone(cohort: Cohort) -> bool:
    """Whether there are masks, of which none holds scar, though there is scar in the cohort."""
    masks = [study.label_map for study in cohort.studies if study.label_map is not None]
    told = any(
        study["findings"] is not None and study["findings"].present for study in cohort.studies
    )
    return (
        bool(masks) and told and not any(np.isin(mask, (SCAR, NO_REFLOW)).any() for mask in masks)
    )


def report_sources(cohort: Cohort) -> str:
    """Where a cohort's reports come from, and how many."""
    sources = cohort.manifest["report_source"].value_counts(sort=False)
    return f"reports: {', '.join(f'{count} {name}' for name, count in sources.items())}"


def positive_example(cohort: Cohort) -> Study:
    """The first study (in the order of ids) with scar in one to three walls, else with any scar, else the first of all.

    Raises:
        InputError: the cohort is empty.
    """
    if not len(cohort):
        raise InputError(
            cohort.name or "cohort", "holds no study", "Check the SPEC with `lgekit check`."
        )
    ordered = sorted(cohort.studies, key=lambda study: study["study_id"])
    positive = [
        study for study in ordered if study["findings"] is not None and study["findings"].present
    ]
    localised = [study for study in positive if 1 <= len(study["findings"].walls) <= 3]
    return (localised or positive or ordered)[0]


def scar_free(cohort: Cohort) -> list[Study]:
    """The studies known to be without scar that have labels and both insertion points: where a scar can be painted."""
    return [
        study
        for study in cohort.studies
        if study["findings"] is not None
        and not study["findings"].present
        and study.label_map is not None
        and study["landmarks"] is not None
    ]


def tissue_signals(cohort: Cohort, per_tissue: int = 200, seed: int = 0) -> pd.DataFrame:
    """Signal of pixels by tissue, on each study's own scale: 0 = median healthy myocardium, 1 = median blood.

    Args:
        cohort: studies without labels are passed over.
        per_tissue: at most so many pixels of each tissue of each study.
        seed: which pixels.

    Returns:
        Columns ``cohort``, ``study_id``, ``tissue``, ``signal``.
    """
    generator = np.random.default_rng(seed)
    parts = []
    for study in _labelled(cohort):
        image, labels = study.pixels, study.label_map
        remote, blood = (np.median(image[labels == code]) for code in (MYOCARDIUM, CAVITY))
        for code in (CAVITY, MYOCARDIUM, SCAR, NO_REFLOW):
            values = image[labels == code]
            chosen = (
                generator.choice(values, min(per_tissue, len(values)), replace=False)
                if len(values)
                else values
            )
            signal = (chosen - remote) / (blood - remote) if blood != remote else chosen * np.nan
            fields = {
                "cohort": cohort.name.split(":")[0],
                "study_id": study["study_id"],
                "tissue": LABEL_NAMES[code],
            }
            parts.append(pd.DataFrame({**fields, "signal": signal}))
    table = pd.concat(parts, ignore_index=True)
    return table[
        table["signal"].between(-1.5, 3)
    ]  # a few pixels far outside would flatten every picture


def short_names(cohorts: Sequence[Cohort]) -> list[str]:
    """Each cohort's kind (``phantom``, ``emidec``), numbered where two are of one kind: labels for pictures."""
    kinds = [cohort.name.split(":")[0] for cohort in cohorts]
    return [
        kind if kinds.count(kind) == 1 else f"{kind} {number}"
        for number, kind in enumerate(kinds, 1)
    ]


def segment_prevalence(cohort: Cohort) -> dict[int, float]:
    """Share of the studies with known walls that have scar in each AHA segment, from their findings."""
    known = [study["findings"] for study in cohort.studies if study["findings"] is not None]
    if not known:
        return dict.fromkeys(range(1, 18), np.nan)
    return {
        segment: float(
            np.mean(
                [any(segment in scar.segments for scar in findings.scars) for findings in known]
            )
        )
        for segment in range(1, 18)
    }


def scar_details(cohort: Cohort) -> pd.DataFrame:
    """One row a scar: ``study_id, walls, levels, depth, transmurality, aetiology, no_reflow`` of the findings."""
    rows = [
        {
            "study_id": study["study_id"],
            "walls": ", ".join(scar.walls),
            "levels": ", ".join(scar.levels),
            "depth": scar.depth or "not stated",
            "transmurality": scar.transmurality,
            "aetiology": scar.aetiology or "not stated",
            "no_reflow": scar.no_reflow,
        }
        for study in cohort.studies
        if study["findings"] is not None
        for scar in study["findings"].scars
    ]
    columns = ["study_id", "walls", "levels", "depth", "transmurality", "aetiology", "no_reflow"]
    return pd.DataFrame(rows, columns=columns)


def threshold_table(scores: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """AUC of each threshold rule with its interval.

    Args:
        scores: what ``baselines.threshold_scores`` gives.
        seed: of the bootstrap.

    Returns:
        Index the rule; columns ``value``, ``low``, ``high``.
    """
    truth, patients = scores["scar"].to_numpy(bool), scores["patient_id"].tolist()
    rules = [column for column in scores if column not in ("study_id", "patient_id", "scar")]

    def auc(rule: str, weights: np.ndarray) -> np.ndarray:
        return metrics.presence_statistic("auc", truth, scores[rule].to_numpy(float), weights)

    rows = {rule: metrics.interval(partial(auc, rule), patients, seed) for rule in rules}
    return pd.DataFrame(rows).T.rename_axis("rule")


def threshold_scores(cohort: Cohort) -> pd.DataFrame:
    """Patient-level score of every threshold rule: ``study_id, patient_id, scar`` and one column a rule.

    Args:
        cohort: studies without labels or without known truth are passed over.
    """
    studies = [study for study in _labelled(cohort) if study["findings"] is not None]
    rows = [
        {
            "study_id": study["study_id"],
            "patient_id": study["patient_id"],
            "scar": study["findings"].present,
        }
        | {name: rule(study) for name, rule in baselines.THRESHOLD_RULES.items()}
        for study in studies
    ]
    return pd.DataFrame(
        rows, columns=["study_id", "patient_id", "scar", *baselines.THRESHOLD_RULES]
    )


def poses(cohort: Cohort) -> pd.DataFrame:
    """How each study lies in storage: angles of the insertion points in degrees, mirrored, base first, confidence."""
    rows = [
        {
            "study_id": study["study_id"],
            "anterior_rvip_deg": study["landmarks"].anterior_rvip_deg,
            "inferior_rvip_deg": study["landmarks"].inferior_rvip_deg,
            "mirrored": study["landmarks"].mirrored,
            "base_first": base_first(study.label_map) if study.label_map is not None else None,
            "confidence": study["landmarks"].confidence,
        }
        for study in cohort.studies
        if study["landmarks"] is not None
    ]
    return pd.DataFrame(rows)


def mean_maps(studies: Iterable[Study]) -> dict[str, np.ndarray]:
    """Mean over studies of the slices in the middle third of the heart: signal, and how often there is scar.

    Args:
        studies: labelled, all on grids of one size (``StandardizeShortAxis``).

    Returns:
        ``image``: ``(X, Y)``, each study scaled to remote myocardium 0 and blood 1; ``scar``: ``(X, Y)``, share of
        the studies with scar in that pixel.
    """
    images, scars = [], []
    for study in studies:
        labels = study.label_map
        if labels is None:
            continue
        levels = slice_levels(labels)
        middle = (levels > 0.3) & (levels < 0.7)
        if middle.any():
            images.append(normalise_intensity(study).pixels[:, :, middle].mean(2))
            scars.append(np.isin(labels, (SCAR, NO_REFLOW))[:, :, middle].any(2))
    return {"image": np.mean(images, 0), "scar": np.mean(scars, 0)}


def segment_truth(study: Study) -> dict[int, float]:
    """Share of each AHA segment of a study that is scar, for a bull's-eye."""
    return anatomy.segment_share(study)["scar"].to_dict()


def _labelled(cohort: Cohort) -> Iterable[Study]:
    for study in cohort.studies:
        labels = study.label_map
        if labels is not None and (labels == CAVITY).any() and (labels == MYOCARDIUM).any():
            yield study
