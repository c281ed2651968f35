"""What the reports of a cohort say about late enhancement, and what its masks show."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lgekit.reports.reader import read
from lgekit.study import SCARRED, Cohort


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
