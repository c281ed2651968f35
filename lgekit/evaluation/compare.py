"""Ablation rows and claims."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lgekit.evaluation.metrics import claim_answer
from lgekit.workbook import Session

# Row → what it changes in notebook 05. "plain_clip" leaves all of them out.
ROWS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_orientation": {"orientation": "none"},
    "no_synthetic": {"synthetic_per_real": 0},
    "no_caption": {"caption_weight": 0},
    "no_pretraining": {"encoder_init": "random"},
    "plain_clip": {
        "orientation": "none",
        "synthetic_per_real": 0,
        "caption_weight": 0,
        "encoder_init": "random",
        "targets": "identity",
        "text": "report",
    },
}
# Row → the paper's claim that it tests [P].
CLAIMS = {
    "no_orientation": "anatomy-informed orientation helps",
    "no_synthetic": "synthetic scars with matching text help",
    "no_caption": "the captioning loss helps",
    "no_pretraining": "pretraining on myocardium segmentation helps",
}
WORKBOOK_ROWS = {
    "smoke": ("full", "plain_clip"),
    "laptop": ("full", "plain_clip"),
    "paper": tuple(ROWS),
}
WORKBOOK_EPOCHS = {
    "smoke": 0,
    "laptop": 10,
    "paper": 0,
}  # 0: the size's own; fewer keep the workbook within its time
WORKBOOK_SEEDS = {"smoke": 1, "laptop": 1, "paper": 5}


def write_grid(session: Session) -> Path:
    """The workbook's own grid for its cohort and size, as a YAML file in the notebook's scratch folder."""
    content = {
        "notebook": "notebooks/05_clip_captioning.ipynb",
        "parameters": {
            "cohort": session.spec,
            "size": session.size,
            "epochs": WORKBOOK_EPOCHS[session.size],
        },
        "rows": {row: ROWS[row] for row in WORKBOOK_ROWS[session.size]},
        "seeds": [session.seed + number for number in range(WORKBOOK_SEEDS[session.size])],
    }
    file = session.scratch("grid") / f"ablation_{session.size}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def uncompared(comparison: pd.DataFrame, runs: pd.DataFrame | None) -> dict[str, str]:
    """Rows of a grid that its comparison leaves out, each with what became of its runs.

    Args:
        comparison: what ``comparison.compare_rows`` gives.
        runs: columns ``row``, ``state``, one line a run; None: not known.

    Returns:
        Row → ``not run``, or ``not compared (2 of 3 runs done, 1 failed)``.
    """
    if runs is None:
        return {}
    words = {}
    for row, states in runs[~runs["row"].isin(comparison["row"])].groupby("row", sort=False)[
        "state"
    ]:
        done, failed = (states == "done").sum(), (states == "failed").sum()
        became = f"{done} of {len(states)} runs done" + f", {failed} failed" * bool(failed)
        words[str(row)] = f"not compared ({became})" if done or failed else "not run"
    return words


def reference_row(rows: Iterable[str]) -> str:
    """The row that the others are compared with: ``full``, wherever it stands; without it the first."""
    names = list(rows)
    return "full" if "full" in names else names[0]


def claims_table(
    comparison: pd.DataFrame, statistic: str = "balanced_accuracy", runs: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Each claim with the row that tests it, the difference (without − with) and the answer.

    Args:
        comparison: what ``comparison.compare_rows`` gives.
        statistic: the one that the answer rests on.
        runs: of the grid, for what to say of rows that were not compared (`uncompared`).

    Claims are answered against the row ``full`` alone (`reference_row`).

    Returns:
        Columns ``claim, row, difference, low, high, p_holm, answer``; a claim whose row was not compared has the answer
        ``not run``, or says what became of its runs.
    """
    left_out = uncompared(comparison, runs)
    if "full" not in set(comparison["row"]) or "difference" not in comparison:
        comparison = comparison.iloc[
            :0
        ]  # compared with another row, or with none: no claim is answered
    shown = comparison[comparison["statistic"] == statistic].set_index("row")
    lines = []
    for row, claim in CLAIMS.items():
        line: dict[str, Any] = {"claim": claim, "row": row, "answer": left_out.get(row, "not run")}
        if row in shown.index:
            found = shown.loc[row]
            difference, low, high, p_holm = (
                float(found[name])
                for name in ("difference", "difference_low", "difference_high", "p_holm")
            )
            line |= {"difference": difference, "low": low, "high": high, "p_holm": p_holm}
            line["answer"] = claim_answer(difference, low, high, p_holm)
        lines.append(line)
    columns = ["claim", "row", "difference", "low", "high", "p_holm", "answer"]
    return pd.DataFrame(lines).reindex(columns=columns)
