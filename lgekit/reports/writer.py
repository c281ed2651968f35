"""Write reports and texts in fixed words from findings; find identifiers in reports."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALL_WORDS, WALLS, Findings, Scar, draw_scar

STYLES = ("terse", "prose", "narrative", "structured", "segments", "older")
_FOLDER = Path(__file__).parent
PHRASES: dict[str, Any] = tomllib.loads((_FOLDER / "phrases.toml").read_text(encoding="utf-8"))


def _choices(phrases: Any) -> Any:
    """Turn each list of phrases into a template that draws one of them."""
    if isinstance(phrases, dict):
        return {name: _choices(phrase) for name, phrase in phrases.items()}
    return phrases if isinstance(phrases, str) else f"[{'|'.join(phrases)}]"


_WORDS = _choices(PHRASES["choices"])
_DEPTH = _WORDS["depth"]
_AETIOLOGY = _WORDS["aetiology"] | {
    territory: _WORDS["aetiology"]["infarct"].replace("{artery}", artery)
    for territory, artery in _WORDS["artery"].items()
}


def _put(template: str, **words: object) -> str:
    for name, word in words.items():
        template = template.replace("{" + name + "}", str(word))
        template = template.replace("{" + name.capitalize() + "}", f"<{word}>")
    return template


def _fill(rng: np.random.Generator, template: str, **words: object) -> str:
    """Fill in the words, draw every choice from the inside out, and write "<x>" as "X"."""

    def draw(found: re.Match) -> str:
        options = found[1].split("|")
        return options[int(rng.random() * len(options))]

    text = _put(template, **words)
    while "[" in text:
        text = re.sub(r"\[([^\[\]]*)\]", draw, text)
    return re.sub(r"<(.)([^<>]*)>", lambda found: found[1].upper() + found[2], text)


def _join(items: Sequence[str], last: str = " and ") -> str:
    return last.join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _maybe(rng: np.random.Generator, chance: float, text: str) -> list[str]:
    return [text] if rng.random() < chance else []


def upper_first(text: str) -> str:
    return text[0].upper() + text[1:]


def _wall_words(walls: tuple[str, ...], rng: np.random.Generator, older: bool) -> str:
    """Name the walls: "anterior wall and septum", "posterior and lateral segments"."""
    left, words = list(walls), []
    for word in (*(["inferoposterior"] if older else []), "septal", "lateral"):
        if set(WALL_WORDS[word]) <= set(left) and rng.random() < 0.75:
            words.append(word)
            left = [wall for wall in left if wall not in WALL_WORDS[word]]
    words += [_WORDS["older_walls"].get(wall, wall) if older else wall for wall in left]
    if words == ["septal"]:
        return _WORDS["place"]["septum"]
    if words == ["lateral"] and rng.random() < 0.3:
        return "lateral free wall"
    if rng.random() < 0.2:
        return _join([f"{word} wall" if word != "septal" else "septum" for word in words])
    if rng.random() < 0.1:
        words = [word.replace("antero", "antero-").replace("infero", "infero-") for word in words]
    noun = "[wall|wall|segment|myocardium]" if len(words) == 1 else "[walls|walls|segments]"
    return f"{_join(words)} {noun}"


def _location(scar: Scar, rng: np.random.Generator, style: str) -> str:
    """Say where a scar is: a noun phrase with its article, or nothing if it is not stated."""
    place = _WORDS["place"]
    rings = tuple(level for level in scar.levels if level != "apex")
    if scar.levels == ("apex",):
        return place["segment_17" if style == "segments" else "apex"]
    if not scar.walls and not rings:
        return ""
    if style == "segments" and rings and scar.walls:
        numbers = sorted(scar.segments)
        parts = [str(number) for number in numbers]
        if len(numbers) > 2 and rng.random() < 0.4:  # runs: 4-5, 10-11
            runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
            parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
        noun = place["segment" if len(numbers) == 1 else "segments"]
        return f"{noun} {_join(parts, '[ and |, ]')}"
    level, after = "", ""
    if len(rings) == 3:
        if scar.walls and rng.random() < 0.4:
            after = " " + place["from_base_to_apex"]
        else:
            level = place["all_levels"]
    elif rings in (("basal", "mid"), ("mid", "apical")):
        level = f"{rings[0]}[ and | to | to |-to-|/]{rings[1]}"
    elif rings:
        level = _join([place["mid"] if ring == "mid" else ring for ring in rings])
    if "apex" in scar.levels:
        after += f"{place['extending_to']} {place['apex']}"
    if not scar.walls:
        return f"the {level} [segments|left ventricle|LV|myocardium]{after}"
    if len(scar.walls) == 6:
        if level and rng.random() < 0.5:
            return f"[all {level} segments|all walls at the {level} level]{after}"
        return f"[all|all] {level} [walls|segments|LV walls|LV segments]{after}"
    septal = scar.walls == WALL_WORDS["septal"]
    if scar.aetiology == "hypertrophic" and septal and rng.random() < 0.5:
        return f"the {level} {place['insertion_points']}{after}"
    if len(rings) == 1 and len(scar.walls) > 1 and rng.random() < 0.15:
        first, *rest = (f"{level} {wall}" for wall in scar.walls)
        return _join([first, *(f"[the ]{words}" for words in rest)]) + f" segments{after}"
    return f"the {level} {_wall_words(scar.walls, rng, style == 'older')}{after}"


def _percent(value: int | None, rng: np.random.Generator) -> str:
    ranges = {13: "1-25%", 38: "25-50%", 63: "50-75%", 88: "75-100%"}
    if value in ranges and rng.random() < 0.5:
        return ranges[value]
    return f"{value}[%|%|%| %| percent]" if value else ""


def _scar_text(scar: Scar, rng: np.random.Generator, style: str, number: int) -> str:
    """Describe one scar in sentences, as a template."""
    words, location = _WORDS["scar"], _location(scar, rng, style)
    depth_said = rng.random() < 0.85
    pattern = _WORDS["pattern"].get(scar.pattern, "[||||focal|confluent]")
    kind = f"{pattern} {_DEPTH.get(scar.depth, '') if depth_said else ''}"
    what = f"{words['certainty']} {kind} {{term}}"
    if scar.ischaemic and rng.random() < 0.3:
        what = f"{kind} [infarct scar|scar|infarction|myocardial scar]"
    elif rng.random() < 0.15:
        what = f"[|an area of|a region of] {kind} [scar|fibrosis|enhancement]"
    clauses: list[str] = []  # what can follow the location
    sentences: list[str] = []
    if scar.depth and not depth_said:
        clauses.append(f"{_DEPTH[scar.depth]} [in distribution|in location|in extent]")
    chances = {"transmurality": 0.75, "circumference": 1.0, "no_reflow": 0.6, "aetiology": 0.6}
    for detail, chance in chances.items():
        if value := getattr(scar, detail):
            percent = _percent(value, rng) if detail in ("transmurality", "circumference") else ""
            is_clause = detail == "circumference" or rng.random() < chance
            template = _WORDS["clause"][detail] if is_clause else _WORDS["sentence"][detail] + "."
            text = _put(template, percent=percent, aetiology=_AETIOLOGY.get(scar.aetiology))
            (clauses if is_clause else sentences).append(text)
        elif detail == "no_reflow" and scar.depth in ("subendocardial", "transmural"):
            sentences += _maybe(rng, 0.2, _WORDS["sentence"]["no_reflow_absent"] + ".")
    rng.shuffle(sentences)
    tail = f"[, |, | ]{', '.join(clauses)}" if clauses else ""
    if style == "narrative" and location and not number and rng.random() < 0.5:
        first = f"[After|Following] gadolinium, {what} [is|was] [seen|present|demonstrated]."
        text = f"{first} [It|This] {words['involves']} {location}{tail}."
    elif style == "narrative" and location and rng.random() < 0.5:
        verb = "[also |]" if number else ""
        text = f"<{location} {verb}[shows|demonstrates|exhibits|has] {what}{tail}.>"
    elif not number and rng.random() < 0.4:
        where = f"in {location}" if location else words["anywhere"]
        text = f"<{what} [is|was] {words['seen']} {where}{tail}>."
    else:
        where = f"[in|in|involving|of|affecting] {location}" if location else words["anywhere"]
        text = f"{words['also' if number else 'there_is']} {what} {where}{tail}."
    return " ".join([text, *sentences])


def _list_text(scar: Scar, rng: np.random.Generator, style: str, title: str) -> str:
    """Describe one scar in the terse style (items on one line) or the structured one (a list)."""
    words, depth = _WORDS[style], _DEPTH.get(scar.depth, "")
    facts = {
        "place": _location(scar, rng, style).removeprefix("the ") or "[LV|left ventricle]",
        "pattern": scar.pattern or "",
        "depth": words["short_depth"].get(scar.depth, depth) if style == "terse" else depth,
        "transmurality": _percent(scar.transmurality, rng),
        "circumference": _percent(scar.circumference, rng),
        "aetiology": _AETIOLOGY.get(scar.aetiology, ""),
    }
    items = [words["scar"]]
    if style == "structured" and (scar.depth or scar.pattern):
        items.append(words["kind"])
    items += [words[name] for name in ("transmurality", "circumference") if facts[name]]
    if scar.no_reflow:
        items.append(words["no_reflow"])
    else:
        items += _maybe(rng, 0.4 if style == "terse" else 0.5, words["no_reflow_absent"])
    if scar.aetiology:
        items.append(words["aetiology"])
    text = "[, |; ]".join(items) + "."
    if style == "structured":
        text = title + "\n".join(f"- {item}" for item in items)
    return _put(text, **facts)


def _statement(findings: Findings, rng: np.random.Generator, style: str) -> str:
    """Write the statement on enhancement: sentences, or lines in the structured style."""
    said = []
    order = rng.permutation(len(findings.scars))
    for number, index in enumerate(order):
        scar = findings.scars[index]
        if style in ("terse", "structured"):
            title = f"[Scar|Lesion|Region] {number + 1}\n"
            title = title if len(order) > 1 else _WORDS["structured"]["title"]
            template = _list_text(scar, rng, style, title)
        else:
            template = _scar_text(scar, rng, style, number)
        text = _fill(rng, template, term=_WORDS["term"])
        said.append(re.sub(r" ([,.;])", r"\1", re.sub(r" +", " ", text)).strip())
    if not said:
        said.append(_fill(rng, _WORDS["negative"][style] + ".", term=_WORDS["term"]))
        if rng.random() < 0.12 and style in ("prose", "narrative", "older"):
            level, wall = LEVELS[int(rng.integers(3))], WALLS[int(rng.integers(6))]
            said.append(_fill(rng, _WORDS["doubt"] + ".", where=f"{level} {wall} wall"))
    return upper_first(("\n" if style == "structured" else " ").join(said))


def write_report(
    findings: Findings, rng: np.random.Generator, style: str | None = None, whole: bool = True
) -> str:
    """Write a report that states these findings, in random words; `read_report` returns them.

    Args:
        style: one of `STYLES` (kinds of writers), or None for a random one.
        whole: True for a full CMR report, False for its statement on enhancement alone.
    """
    style = style or STYLES[int(rng.integers(len(STYLES)))]
    if style not in STYLES:
        remedy = f"use one of {', '.join(STYLES)}, or None"
        raise InputError("style", f"unknown style {style!r}", remedy)
    statement = _statement(findings, rng, style)
    if not whole:
        return statement
    ef, edv = int(rng.normal(48 if findings.present else 60, 8)), int(rng.normal(170, 30))
    rvef, t1, mass = (int(rng.normal(*spread)) for spread in ((55, 6), (1010, 30), (120, 20)))
    thick, wall = int(rng.integers(9, 14)), WALLS[int(rng.integers(6))]
    others = rng.permutation(PHRASES["lists"]["others"])[: int(rng.integers(1, 5))].tolist()
    main = [_WORDS["volumes"], _WORDS["wall_motion"]]
    main += _maybe(rng, 0.8, _WORDS["right_ventricle"])
    cut = int(rng.integers(len(others) + 1))
    before, after = " ".join(main + others[:cut]), " ".join(others[cut:])
    has_sections, heading = style in ("structured", "terse") or rng.random() < 0.3, ""
    if has_sections:
        heading = _fill(rng, _WORDS["heading"]) + (":\n" if style == "structured" else ": ")
    parts = [
        text
        for text, chance in PHRASES["layouts"]["sections" if has_sections else "prose"]
        if (after or not text.endswith("{after}")) and (chance == 1 or rng.random() < chance)
    ]
    conclusion = _WORDS["conclusion_positive" if findings.present else "conclusion_negative"]
    words = {"before": before, "after": after, "heading": heading, "conclusion": conclusion}
    words |= {name: _WORDS[name] for name in ("indication", "technique", "size")}
    words |= {"where": f"[basal |mid |apical |]{wall}", "rvef": rvef, "t1": t1, "mass": mass}
    words |= {"ef": ef, "edv": edv, "esv": round(edv * (100 - ef) / 100), "edvi": round(edv / 1.9)}
    template = ("\n" if has_sections else "[\n| ]").join(parts)
    report = _fill(rng, template, **words, thick=thick)
    return report.replace("{statement}", statement)


def canonical_text(findings: Findings) -> str:
    """State the findings in one fixed wording, which `read_report` reads back."""
    sentences = []
    for scar in findings.scars:
        rings = _join([level for level in scar.levels if level != "apex"])
        article, named = ("all", "") if len(scar.walls) == 6 else ("the", _join(scar.walls))
        noun = {0: "segments", 1: "wall"}.get(len(scar.walls), "walls")
        places = [_spaced(rings, named, noun)] if rings or scar.walls else []
        places += ["apical cap"] if "apex" in scar.levels else []
        kind = _spaced(scar.pattern, scar.depth, "late gadolinium enhancement")
        details = [f"{kind} in {article} {_join(places)}" if places else kind]
        if scar.transmurality:
            details.append(f"{scar.transmurality}% transmurality")
        if scar.circumference:
            details.append(f"{scar.circumference}% of the circumference")
        if scar.no_reflow:
            details.append("with microvascular obstruction")
        if scar.aetiology:
            details.append(f"consistent with {PHRASES['canonical_aetiology'][scar.aetiology]}")
        sentences.append(upper_first(", ".join(details)) + ".")
    return " ".join(sentences) or "No late gadolinium enhancement."


def _spaced(*words: str | None) -> str:
    return " ".join(filter(None, words))


def corrupt_findings(findings: Findings, rng: np.random.Generator, rate: float) -> Findings:
    """Return findings as a careless report states them: one omission or error with chance ``rate``.

    One in eight corrupted positive reports denies enhancement; the others miss a detail or a
    scar, or state a wrong wall, level or depth. A negative report can only invent a scar, with
    chance ``rate / 8``.
    """
    if not 0 <= rate <= 1:
        raise InputError("rate", f"{rate!r} is not a share", "use a number from 0 to 1")
    hit, grave, which, kind = rng.random(4)
    if hit >= rate:
        return findings
    if not findings.present:
        return Findings((draw_scar(rng),)) if grave < 1 / 8 else findings
    if grave < 1 / 8:
        return Findings()
    others = list(findings.scars)
    scar = others.pop(int(which * len(others)))
    turn, step = (1, 5)[int(rng.integers(2))], int(rng.integers(1, 4))
    mistakes: list[dict[str, Any]] = [{"depth": None, "transmurality": None}]
    mistakes += [{"aetiology": None}, {"no_reflow": False}]
    if scar.walls:
        turned = tuple(WALLS[(WALLS.index(wall) + turn) % 6] for wall in scar.walls)
        mistakes += [{"levels": ()}, {"walls": turned}]
    if scar.walls and scar.levels:
        mistakes.append({"levels": LEVELS[(LEVELS.index(scar.levels[0]) + 1) % 3]})
    if scar.depth:
        depth = DEPTHS[(DEPTHS.index(scar.depth) + step) % 4]
        mistakes.append({"depth": depth, "transmurality": None})
    wrong = [(replace(scar, **mistake),) for mistake in mistakes]
    options = [scars for scars in wrong if scars != (scar,)] + ([()] if others else [])
    return Findings((*others, *options[int(kind * len(options))]))


_IDENTIFIERS = [
    (kind, re.compile(rule))
    for kind, rules in tomllib.loads((_FOLDER / "identifiers.toml").read_text("utf-8")).items()
    for rule in rules
]


def check_privacy(text: str) -> list[tuple[str, str]]:
    """Return suspected identifiers in a report, in the order of the text.

    Returns:
        (kind, excerpt): kind is ``name``, ``date``, ``id``, ``phone``, ``email`` or ``address``;
        the excerpt is masked (letters x, digits 0, except the first character). An empty list does
        not prove that the text is anonymous.
    """
    return [
        (kind, text[start] + re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", text[start + 1 : end])))
        for start, end, kind in _identifiers(text)
    ]


def _identifiers(text: str) -> list[tuple[int, int, str]]:
    """Return (start, end, kind) of suspected identifiers, in the order of the text."""
    found: list[tuple[int, int, str]] = []
    for kind, rule in _IDENTIFIERS:
        for start, end in (match.span() for match in rule.finditer(text)):
            if all(end <= first or start >= last for first, last, _ in found):
                found.append((start, end, kind))
    return [identifier for identifier in sorted(found) if identifier[2] != "segments"]


def without_identifiers(text: str) -> str:
    """Replace suspected identifiers by their kind: "[name]"."""
    for start, end, kind in reversed(_identifiers(text)):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text


def require_privacy(reports: Mapping[str, str]) -> None:
    """Refuse reports, by study, in which :func:`check_privacy` suspects an identifier."""
    found = {name: {kind for kind, _ in check_privacy(text)} for name, text in reports.items()}
    suspects = [name for name, kinds in found.items() if kinds]
    if suspects:
        more = f" (and {len(suspects) - 1} more studies)" if len(suspects) > 1 else ""
        kinds = ", ".join(sorted(found[suspects[0]]))
        problem = f"the report may identify a person: {kinds}{more}"
        remedy = "De-identify it; or, where reports are safe, "
        remedy += "pass show_identifiers=True to session.cohort()"
        raise InputError(f"{suspects[0]}, report", problem, remedy)
