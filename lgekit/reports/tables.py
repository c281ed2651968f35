"""Say what a cohort holds, and tabulate what its reports and masks say."""

import numpy as np
import pandas as pd

from lgekit.findings import AETIOLOGIES, DEPTHS, LEVELS, WALLS
from lgekit.reports.reader import read
from lgekit.reports.text import without_identifiers
from lgekit.study import SCARRED, Cohort

COLUMNS = """study_id states walls segments levels depth transmurality no_reflow aetiology
    evidence""".split()


def findings_row(study_id: str, report: str) -> dict[str, str]:
    """Return what `lgekit reports` writes of a report: `COLUMNS`, lists separated by spaces.

    ``no_reflow`` is yes or no, and empty where no scar is stated. ``evidence`` is the sentences,
    separated by " | ", with suspected identifiers replaced by their kind ("[name]").
    """
    reading = read(report)
    found, scars = reading.findings, reading.findings.scars
    stated: dict[str, list] = {
        "walls": [wall for wall in WALLS if wall in found.walls],
        "segments": sorted(found.segments),
        "levels": [level for level in LEVELS if any(level in scar.levels for scar in scars)],
        "depth": [depth for depth in DEPTHS if any(depth == scar.depth for scar in scars)],
        "transmurality": sorted({scar.transmurality for scar in scars if scar.transmurality}),
        "no_reflow": ["yes" if any(scar.no_reflow for scar in scars) else "no"] if scars else [],
        "aetiology": [cause for cause in AETIOLOGIES if any(cause == s.aetiology for s in scars)],
    }
    row = {name: " ".join(map(str, values)) for name, values in stated.items()}
    evidence = without_identifiers(" | ".join(dict.fromkeys(each for _, each in reading.evidence)))
    return {"study_id": study_id, "states": reading.states, **row, "evidence": evidence}


def report_states(cohort: Cohort) -> pd.DataFrame:
    """Tabulate the studies with a report: columns ``study_id, report, mask``.

    ``report``: ``yes`` or ``no``, whether it states scar, or ``unsaid``. ``mask``: ``yes`` or
    ``no``, whether it shows scar; missing without a mask, or if no mask of the cohort shows any.
    """
    rows = []
    for study in (one for one in cohort.studies if one["report"].strip()):
        mask = study.label_map
        shown = None if mask is None else bool(np.isin(mask, SCARRED).any())
        rows.append((study["study_id"], read(study["report"]).states, shown))
    table = pd.DataFrame(rows, columns=["study_id", "report", "mask"])
    words = {True: "yes", False: "no"} if table["mask"].eq(True).any() else {}
    return table.assign(mask=table["mask"].map(words))


def cohort_summary(cohort: Cohort) -> str:
    """Say in one sentence what a cohort holds, to check before training."""
    table, states = cohort.manifest, report_states(cohort)
    counts = f"{len(table)} studies of {table['patient_id'].nunique()} patients"
    own_table = cohort.name.startswith(("manifest", "dicom"))
    if own_table and (table["patient_id"] == table["study_id"]).all():
        counts += " (each study counts as a patient: the column patient_id can group them)"
    sources = table["report_source"].value_counts(sort=False).items()
    parts = [counts, f"reports: {', '.join(f'{count} {name}' for name, count in sources)}"]
    if silent := states["report"].eq("unsaid").sum():
        words = "of them do not say, in English, whether there is late enhancement"
        parts.append(f"{silent} {words} (not used for training)")
    scarred, masks = table["scar"].eq(True).sum(), sum("labels" in one for one in cohort.studies)
    parts += [f"scar in {scarred}, none in {table['scar'].eq(False).sum()}", f"masks of {masks}"]
    if masks and scarred and states["mask"].isna().all():
        parts[-1] += ", none with scar outlined: presence of scar comes from the reports"
    splits = table["split"].value_counts().items()
    return "; ".join([*parts, ", ".join(f"{count} {split}" for split, count in splits)])


def agreement_table(states: pd.DataFrame) -> pd.DataFrame:
    """Count the studies of `report_states` by what report (rows) and mask (columns) say.

    The column ``disagree`` lists the studies whose report says yes and mask no, or the reverse.
    """
    known = states.dropna(subset="mask")
    counts = pd.crosstab(known["report"], known["mask"])
    counts = counts.reindex(index=["yes", "no", "unsaid"], columns=["yes", "no"], fill_value=0)
    wrong = known[known["report"].ne("unsaid") & known["report"].ne(known["mask"])]
    names = wrong.groupby("report")["study_id"].agg(", ".join)
    return counts.assign(disagree=names.reindex(counts.index, fill_value=""))
