"""The texts that a network is trained on, and the prompts for its zero-shot scores."""

from __future__ import annotations

from dataclasses import replace

from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar
from lgekit.reports.reader import lge_statement, read_report
from lgekit.reports.writer import canonical_text, prompts

KINDS = ("presence", "wall", "level", "depth")


def report_texts(report: str, mode: str = "findings") -> tuple[str, ...]:
    """Return the training texts of a report.

    The first is the fullest (the caption); training draws among all.

    Args:
        report: a CMR report.
        mode: ``report``: the whole report. ``lge_statement``: its sentences on enhancement.
            ``findings`` [O]: what `read_report` finds, in fixed words: all of it, and each wall,
            level and depth alone. So studies share texts, and every prompt of `prompt_sets` is
            a training text.
    """
    if mode == "report":
        return (report.strip(),)
    if mode == "lge_statement":
        return (lge_statement(report).strip() or report.strip(),)
    found = read_report(report)
    if not found.present:
        return (canonical_text(found),)
    plain = tuple(
        replace(scar, transmurality=None, circumference=None, aetiology=None)
        for scar in found.scars
    )
    walls = tuple(wall for wall in WALLS if wall in found.walls)
    levels = tuple(level for level in LEVELS if any(level in scar.levels for scar in found.scars))
    texts = [canonical_text(Findings(plain))]
    texts += [_one_scar(walls=(wall,)) for wall in walls]
    texts += [_one_scar(levels=(level,)) for level in levels]
    if walls:
        texts.append(_one_scar(walls=walls))
    if levels:
        texts.append(_one_scar(levels=levels))
    texts += [_one_scar(depth=scar.depth) for scar in found.scars if scar.depth]
    return tuple(dict.fromkeys(texts))


def _one_scar(**fields) -> str:
    return canonical_text(Findings((Scar(**fields),)))


def prompt_sets(mode: str = "findings") -> dict[str, dict[str, list[str]]]:
    """Return prompts by kind (presence, wall, level, depth) and label, in the mode's own words."""
    if mode != "findings":
        return {kind: prompts(kind) for kind in KINDS}
    wall = {name: [_one_scar(walls=(name,))] for name in WALLS}
    level = {name: [_one_scar(levels=(name,))] for name in LEVELS}
    depth = {name: [_one_scar(depth=name)] for name in DEPTHS}
    positive = [text for texts in wall.values() for text in texts]
    presence = {"positive": positive, "negative": [canonical_text(Findings())]}
    return {"presence": presence, "wall": wall, "level": level, "depth": depth}
