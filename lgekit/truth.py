"""What the files of a cohort do not say and its studies need: landmarks, findings, and reports from the masks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lgekit.studies import NO_REFLOW, RV, SCAR, Study, hash_unit
from lgekit.volumes import Entry, Volume, recode, storage_mirrored


def mask_of(entry: Entry) -> np.ndarray | None:
    """The label map of an entry in file order; None where there is none that could be used."""
    return recode(entry.labels(), entry.codes, Volume("")) if entry.labels is not None else None


def scar_is_drawn(entries: list[Entry], masks: Iterable[np.ndarray | None]) -> bool:
    """Whether a mask without scar means a heart without: not where some report speaks of scar and no mask has any, for
    then only the heart was outlined.

    Args:
        entries: of the whole cohort.
        masks: in the internal codes, None where there is none; looked at only as far as needed.
    """
    from lgekit.reports import read_report, states_enhancement

    told = [entry.report for entry in entries if entry.report and entry.report_source != "masks"]
    outlined = any(entry.labels is not None and entry.scar_labelled for entry in entries)
    if not (outlined and any(states_enhancement(report) and read_report(report).present for report in told)):
        return True
    return any(bool(np.isin(mask, (SCAR, NO_REFLOW)).any()) for mask in masks if mask is not None)


def complete(study: Study, entry: Entry, drawn: bool) -> None:
    """Derive what the files do not say: landmarks from an RV label, findings, and a report from the masks.

    Args:
        study: as read; changed in place.
        entry: that it was read from.
        drawn: whether the cohort's masks tell scar (`scar_is_drawn`); else the reports do.
    """
    labels = study.label_map
    if labels is not None and study["landmarks"] is None and (labels == RV).any():
        mirrored = storage_mirrored(study["image"].affine)
        mirrored = entry.mirrored if mirrored is None else mirrored
        if mirrored is not None:  # else nothing tells the anterior insertion point from the inferior one
            from lgekit.anatomy import insertion_points

            landmarks = insertion_points(labels, study.spacing_mm, mirrored=mirrored)
            study["landmarks"] = landmarks if landmarks.confidence > 0 else None
    masks_tell = labels is not None and entry.scar_labelled and drawn
    if masks_tell and study["findings"] is None and entry.report_source != "none":
        from lgekit.anatomy import findings_from_labels

        study["findings"] = findings_from_labels(study)
    elif (labels is None or not drawn) and study["findings"] is None and entry.report:
        from lgekit.reports import read_report, states_enhancement

        if states_enhancement(entry.report):  # else it stays unknown
            study["findings"] = read_report(entry.report)
    wanted = entry.report_source == "masks" or not entry.report_source
    if wanted and not entry.report and study["findings"] is not None:
        from lgekit.reports import write_report

        rng = np.random.default_rng(int(hash_unit(study["study_id"]) * 2**53))
        study["report"], study["report_source"] = write_report(study["findings"], rng), "masks"
