"""Fill the marked tables of README.md and the site from CSV files: ``make tables``.

A marked block is a comment in YAML, the table (rewritten each time), and a closing comment::

    <!-- table: figures/tables/laptop_comparison.csv
    rows: {full: "**full**", no_orientation: no orientation}
    columns: {balanced accuracy: balanced_accuracy, AUC: auc}
    -->
    | | balanced accuracy | AUC |
    …
    <!-- /table -->

table
    A CSV file, a list of files to read one below the other, or a mapping of labels to files, whose
    labels then name the lines. ``FILE where CONDITION`` selects lines (`pandas.DataFrame.query`).
rows
    Lines to show, in order: name in the column ``row``, else in the first one → label. Else all.
columns
    Heading → value in the column ``statistic`` (also ``score``, ``place``, ``figure``). If that
    column names the lines, heading → format of the cell, such as ``"{value:.2f}"``.
pivot, cell, missing
    Another column than ``statistic`` whose values are the columns; the format of all cells, by
    default ``"{value:.2f} ({low:.2f}–{high:.2f})"``; the text of a cell without data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- (table:.*?)-->\n).*?(<!-- /table -->)", re.DOTALL)
INTERVAL = "{value:.2f} ({low:.2f}–{high:.2f})"
STATISTIC = dict.fromkeys(("score", "place", "figure"), "statistic")


def read_table(source: str) -> pd.DataFrame:
    """Read ``FILE`` or ``FILE where CONDITION``."""
    file, _, condition = source.partition(" where ")
    table = pd.read_csv(ROOT / file, dtype={"row": str}).rename(columns=STATISTIC)
    return table.query(condition) if condition else table


def markdown_table(options: Mapping[str, Any]) -> str:
    """Set the table of a block; see the top of this file."""
    sources, names, pivot = options["table"], "row", options.get("pivot", "statistic")
    if isinstance(sources, Mapping):
        names = "table"
        table = pd.concat(read_table(file).assign(table=label) for label, file in sources.items())
    else:
        table = pd.concat(map(read_table, [sources] if isinstance(sources, str) else sources))
        names = names if names in table else table.columns[0]
    by_value = pivot in table and pivot != names
    columns, missing = options["columns"], options.get("missing", "")
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for name, label in (options.get("rows") or {n: n for n in table[names].unique()}).items():
        found = table[table[names] == name]
        if found.empty:
            raise ValueError(f"{options['table']}: column {names} does not hold {name!r}")
        cells = []
        for wanted in columns.values():
            chosen = found[found[pivot] == wanted] if by_value else found
            style = options.get("cell", INTERVAL) if by_value else wanted
            text = "nan" if chosen.empty else style.format(**chosen.iloc[0].to_dict())
            cells.append(missing if text == "nan" else text)
        lines.append([label, *cells])
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def fill(text: str) -> str:
    """Replace the table in each marked block of a page."""
    return BLOCK.sub(lambda hit: hit[1] + markdown_table(yaml.safe_load(hit[2])) + hit[3], text)


if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "notebooks" / "site").glob("*.md"))):
        page.write_text(fill(page.read_text("utf-8")), "utf-8")
