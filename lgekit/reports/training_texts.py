"""The texts that a network learns from, and the prompts that read it."""

from __future__ import annotations

from dataclasses import replace

from lgekit.findings import LEVELS, WALLS, Findings, Scar
from lgekit.reports.reader import lge_statement, read_report
from lgekit.reports.writer import canonical_text, prompts

KINDS = ("presence", "wall", "level", "depth")


def report_texts(report: str, mode: str = "findings") -> tuple[str, ...]:
    """Texts that say what a report says; the first is the fullest (the caption), training draws among all.

    Args:
        report: a CMR report.
        mode: ``report``: as it stands. ``lge_statement``: what it says about enhancement. ``findings`` [O]: what
            `read_report` finds in it, in fixed words: in full, and its walls, levels and depths one by one, so that
            studies share texts and every prompt of `prompt_sets` is a text that was learned. Nothing but the report
            is used.
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
    full = canonical_text(Findings(plain))
    walls = tuple(wall for wall in WALLS if wall in found.walls)
    levels = tuple(level for level in LEVELS if any(level in scar.levels for scar in found.scars))
    depths = tuple(dict.fromkeys(scar.depth for scar in found.scars if scar.depth))
    texts = [
        full,
        *(say(walls=(wall,)) for wall in walls),
        *(say(levels=(level,)) for level in levels),
    ]
    texts += [say(walls=walls)] * bool(walls) + [say(levels=levels)] * bool(levels)
    return tuple(dict.fromkeys(texts + [say(depth=depth) for depth in depths]))


def say(**fields) -> str:
    """One scar in fixed words, e.g. ``walls=("inferior",)``."""
    return canonical_text(Findings((Scar(**fields),)))


def prompt_sets(mode: str = "findings") -> dict[str, dict[str, list[str]]]:
    """Prompts by kind (presence, wall, level, depth) and label, in the words that the mode trains on."""
    if mode != "findings":
        return {kind: prompts(kind) for kind in KINDS}
    sets: dict[str, dict[str, list[str]]] = {
        kind: {label: [] for label in prompts(kind)} for kind in KINDS[1:]
    }
    sets["wall"] = {wall: [say(walls=(wall,))] for wall in WALLS}
    sets["level"] = {level: [say(levels=(level,))] for level in LEVELS}
    sets["depth"] = {depth: [say(depth=depth)] for depth in sets["depth"]}
    positive = [text for texts in sets["wall"].values() for text in texts]
    return {"presence": {"positive": positive, "negative": [canonical_text(Findings())]}, **sets}
