"""The texts that a network is trained on, and the prompts for its zero-shot scores."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar
from lgekit.reports.reader import lge_statement, read_report
from lgekit.reports.text import ENCODED_LINE_END
from lgekit.reports.writer import PHRASES, canonical_text, upper_first

# Encoded line ends, empty lines, line ends before bullets and fields, and full stops
_SENTENCE_END = re.compile(
    rf"{ENCODED_LINE_END.pattern}|\n\s*\n|\n(?=\s*(?:[-*•]|o )|[A-Z][^.:=\n]{{0,40}}[:=])"
    r"|(?<=[.;!?])\s+(?=[A-Z\d+-])"
)
KINDS = ("presence", "wall", "level", "depth")


def report_texts(report: str, mode: str = "findings") -> tuple[str, ...]:
    """Return the training texts of a report: first the fullest (the caption), then others.

    Args:
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
    unstated: dict[str, Any] = {"transmurality": None, "circumference": None, "aetiology": None}
    plain = Findings(tuple(replace(scar, **unstated) for scar in found.scars))
    walls = tuple(wall for wall in WALLS if wall in found.walls)
    levels = tuple(level for level in LEVELS if any(level in scar.levels for scar in found.scars))
    parts: list[dict[str, Any]] = [{"walls": (wall,)} for wall in walls]
    parts += [{"levels": (level,)} for level in levels]
    parts += [{"walls": walls}] if walls else []
    parts += [{"levels": levels}] if levels else []
    parts += [{"depth": scar.depth} for scar in found.scars if scar.depth]
    texts = [canonical_text(plain), *(_one_scar(**part) for part in parts)]
    return tuple(dict.fromkeys(texts))


def one_line(text: str) -> str:
    """Text with single spaces in place of its line ends."""
    return " ".join(text.split())


def sentences(report: str) -> list[str]:
    """Divide a report at full stops and line ends, without any knowledge of what it says."""
    return [one_line(part) for part in _SENTENCE_END.split(report) if part.strip()]


def _one_scar(**fields) -> str:
    return canonical_text(Findings((Scar(**fields),)))


def prompt_sets(mode: str = "findings") -> dict[str, dict[str, list[str]]]:
    """Return prompts by kind (`KINDS`) and label, in the words of the mode's training texts."""
    labels = {"wall": WALLS, "level": LEVELS, "depth": DEPTHS}
    sets: dict[str, dict[str, list[str]]] = {}
    if mode == "findings":
        for kind, field in (("wall", "walls"), ("level", "levels"), ("depth", "depth")):
            sets[kind] = {name: [_one_scar(**{field: name})] for name in labels[kind]}
        positive = [text for texts in sets["wall"].values() for text in texts]
        presence = {"positive": positive, "negative": [canonical_text(Findings())]}
        return {"presence": presence, **sets}
    lists = PHRASES["lists"]
    sets["presence"] = {label: list(texts) for label, texts in lists["presence_prompts"].items()}
    for kind, names in labels.items():
        texts = lists[f"{kind}_prompts"]
        sets[kind] = {name: [upper_first(text.format(name)) for text in texts] for name in names}
    sets["level"]["apex"] = list(lists["apex_prompts"])
    return sets
