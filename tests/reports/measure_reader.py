"""Measure the reader on labelled reports: presence, inverted, walls, depth and other fields.

    python tests/reports/measure_reader.py FILE.csv… [--errors]

FILE has columns report, present (yes, no, unsaid, not yes, not no), walls, depth (empty: not
checked) and, if there, other: JSON with segs, pct, pattern, mvo, aet. Prints CSV:
shares with Wilson intervals at 95 %.
"""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

from scipy.stats import binomtest

from lgekit.reports.reader import read

DETAILS = {"pct": "transmurality", "pattern": "pattern", "aet": "aetiology", "mvo": "no_reflow"}


def faults(row: dict[str, str]) -> dict[str, str]:
    """Return what is wrong in the reading of one row, by kind; a right check is ""."""
    reading, wanted = read(row["report"]), row["present"]
    scars, checks = reading.findings.scars, {}
    wrong = reading.states == wanted[4:] if wanted.startswith("not ") else reading.states != wanted
    checks["presence"] = f"{reading.states}, not {wanted}" if wrong else ""
    if wrong and (wanted == "unsaid" or reading.states != "unsaid"):
        checks["inverted"] = checks["presence"]
    if wanted != "yes":
        return checks
    walls, depths = reading.findings.walls, {scar.depth for scar in scars}
    if row["walls"]:
        checks["walls"] = "" if walls == set(row["walls"].split()) else f"walls {sorted(walls)}"
    if row["depth"]:
        checks["depth"] = "" if depths == {row["depth"]} else f"depth {depths}"
    for name, value in json.loads(row.get("other") or "{}").items():
        if name == "segs":
            right = reading.findings.segments == set(value)
        else:
            right = {getattr(scar, DETAILS[name]) for scar in scars} == {value}
        checks["other"] = checks.get("other", "") + ("" if right else f"{name} not {value} ")
    return checks


def measure(path: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return (right, of ``inverted`` wrong; all) by kind, and a line for each error."""
    right, total, errors = Counter(), Counter(), []
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    for number, row in enumerate(rows, 1):
        checks = faults(row)
        for kind, fault in checks.items():
            total[kind] += 1
            right[kind] += not fault
        if problems := sorted({fault for fault in checks.values() if fault}):
            kind = row.get("kind") or row.get("style") or ""
            errors.append(f"{number} [{kind}] {'; '.join(problems)}\n    {row['report']!r}")
    counts = {kind: (right[kind], total[kind]) for kind in total if kind != "inverted"}
    return counts | {"inverted": (total["inverted"], len(rows))}, errors


if __name__ == "__main__":
    print("row,statistic,value,low,high,reports")
    for name in [argument for argument in sys.argv[1:] if argument != "--errors"]:
        counts, errors = measure(Path(name))
        for kind, (part, whole) in counts.items():
            limits = binomtest(part, whole).proportion_ci(method="wilson")
            print(f"{name},{kind},{part / whole:.4f},{limits.low:.4f},{limits.high:.4f},{whole}")
        if "--errors" in sys.argv:
            print("\n".join(errors))
