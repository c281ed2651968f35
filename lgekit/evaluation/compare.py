"""Rows of the ablation, the claims that they test, and the answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lgekit.config import PLAIN_CLIP, SIZES

# Row → the settings of notebook 05 that it changes.
ROWS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_orientation": {"orientation": "none"},
    "no_synthetic": {"synthetic_per_real": 0},
    "no_caption": {"caption_weight": 0},
    "no_pretraining": {"encoder_init": "random"},
    "plain_clip": PLAIN_CLIP,
}
# Row → the paper's claim that it tests [P].
CLAIMS = {
    "no_orientation": "anatomy-informed orientation helps",
    "no_synthetic": "synthetic scars with matching text help",
    "no_caption": "the captioning loss helps",
    "no_pretraining": "pretraining on myocardium segmentation helps",
}
# The workbook's own grid, by size. Ten epochs keep the workbook within its time.
PAIR = ["full", "plain_clip"]
WORKBOOK_ROWS = {"smoke": PAIR, "laptop": PAIR, "paper": [*ROWS]}
WORKBOOK_EPOCHS = {size: settings.epochs for size, settings in SIZES.items()} | {"laptop": 10}
WORKBOOK_SEEDS = {"smoke": 1, "laptop": 1, "paper": 5}


def write_grid(session: Any) -> Path:
    """Write the grid of a notebook's session (its cohort and size) as YAML into its folder."""
    size = session.size
    content = {
        "notebook": "notebooks/05_clip_captioning.ipynb",
        "parameters": {"cohort": session.spec, "size": size, "epochs": WORKBOOK_EPOCHS[size]},
        "rows": {row: ROWS[row] for row in WORKBOOK_ROWS[size]},
        "seeds": [session.seed + number for number in range(WORKBOOK_SEEDS[size])],
    }
    file = session.scratch("grid") / f"ablation_{size}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def uncompared(comparison: pd.DataFrame, runs: pd.DataFrame | None) -> dict[str, str]:
    """Describe the runs (columns ``row, state``) of the rows that a comparison lacks.

    Row → ``not run``, or for example ``not compared (2 of 3 runs done, 1 failed)``.
    """
    words: dict[str, str] = {}
    if runs is None:
        return words
    missing = runs[~runs["row"].isin(comparison["row"])]
    for row, states in missing.groupby("row", sort=False)["state"]:
        done, failed = (states == "done").sum(), (states == "failed").sum()
        count = f"{done} of {len(states)} runs done" + f", {failed} failed" * bool(failed)
        words[str(row)] = f"not compared ({count})" if done or failed else "not run"
    return words


def reference_row(rows: Iterable[str]) -> str:
    """Return the row to compare with: ``full`` if there is one, else the first."""
    names = list(rows)
    return "full" if "full" in names else names[0]


def claims_table(
    comparison: pd.DataFrame, statistic: str = "balanced_accuracy", runs: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Answer each claim from the row that tests it, compared with the row ``full``.

    ``yes`` (worse without the component) or ``no`` if the interval of the difference excludes 0 and
    ``p_holm`` is below 0.05, else ``not shown``.

    Takes what `lgekit.evaluation.metrics.compare_rows` returns, the statistic that decides and the
    grid's runs (see `uncompared`); returns ``claim, row, difference, low, high, p_holm, answer``.
    """
    left_out = uncompared(comparison, runs)
    shown = comparison[comparison["statistic"] == statistic].set_index("row")
    lines = []
    for row, claim in CLAIMS.items():
        found = dict.fromkeys(("difference", "difference_low", "difference_high", "p_holm"), np.nan)
        answer = left_out.get(row, "not run")
        if "full" in shown.index and row in shown.index:
            found = shown.loc[row, list(found)].astype(float)
            difference, low, high, p_holm = found
            answer = "not shown"
            if np.isfinite(difference) and low * high > 0 and p_holm < 0.05:
                answer = "yes" if high < 0 else "no"
        lines.append([claim, row, *dict(found).values(), answer])
    columns = ["claim", "row", "difference", "low", "high", "p_holm", "answer"]
    return pd.DataFrame(lines, columns=columns)
