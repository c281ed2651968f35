"""Write reports, texts in fixed words and prompts from findings; find identifiers in reports."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lgekit.errors import InputError
from lgekit.findings import (
    DEPTHS,
    LEVELS,
    WALL_WORDS,
    WALLS,
    Findings,
    Scar,
    draw_scar,
)

STYLES = ("terse", "prose", "narrative", "structured", "segments", "older")


def _load(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _choices(phrases: Any) -> Any:
    """Turn each list of phrases into a template that draws one of them."""
    if isinstance(phrases, dict):
        return {name: _choices(phrase) for name, phrase in phrases.items()}
    return phrases if isinstance(phrases, str) else f"[{'|'.join(phrases)}]"


_PHRASES = _load("phrases.toml")
_WORDS = _choices(_PHRASES["choices"])
_LISTS = _PHRASES["lists"]
_DEPTH = _WORDS["depth"]
_AETIOLOGY = _WORDS["aetiology"] | {
    territory: _WORDS["aetiology"]["infarct"].replace("{artery}", artery)
    for territory, artery in _WORDS["artery"].items()
}
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


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
        text = _CHOICE.sub(draw, text)
    return re.sub(r"<(.)([^<>]*)>", lambda found: found[1].upper() + found[2], text)


def _join(items: Sequence[str], last: str = " and ") -> str:
    return last.join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _maybe(rng: np.random.Generator, chance: float, text: str) -> list[str]:
    return [text] if rng.random() < chance else []


def _wall_words(walls: tuple[str, ...], rng: np.random.Generator, older: bool) -> str:
    """Name the walls: "anterior wall and septum", "posterior and lateral segments"."""
    left, words = list(walls), []
    for word in (*(["inferoposterior"] if older else []), "septal", "lateral"):
        if set(WALL_WORDS[word]) <= set(left) and rng.random() < 0.75:
            words.append(word)
            left = [wall for wall in left if wall not in WALL_WORDS[word]]
    if older:
        old_names = {
            "inferolateral": "[posterior|posterolateral]",
            "inferoseptal": "[posteroseptal|inferoseptal]",
        }
        left = [old_names.get(wall, wall) for wall in left]
    words += left
    if words == ["septal"]:
        return "[septum|interventricular septum|septal wall|septal segments]"
    if words == ["lateral"] and rng.random() < 0.3:
        return "lateral free wall"
    if rng.random() < 0.2:
        return _join([f"{word} wall" if word != "septal" else "septum" for word in words])
    if rng.random() < 0.1:
        words = [word.replace("antero", "antero-").replace("infero", "infero-") for word in words]
    noun = "[wall|wall|segment|myocardium]" if len(words) == 1 else "[walls|walls|segments]"
    return f"{_join(words)} {noun}"


def _segment_words(scar: Scar, rng: np.random.Generator) -> str:
    numbers = sorted(scar.segments)
    parts = [str(number) for number in numbers]
    if len(numbers) > 2 and rng.random() < 0.4:  # runs: 4-5, 10-11
        runs: list[list[int]] = []
        for number in numbers:
            if runs and runs[-1][-1] == number - 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    noun = "[segment|AHA segment]" if len(numbers) == 1 else "[segments|AHA segments|LV segments]"
    return f"{noun} {_join(parts, '[ and |, ]')}"


def _location(scar: Scar, rng: np.random.Generator, style: str) -> str:
    """Say where a scar is: a noun phrase with its article, or nothing if it is not stated."""
    place = _WORDS["place"]
    rings = tuple(level for level in scar.levels if level != "apex")
    if scar.levels == ("apex",):
        return place["segment_17" if style == "segments" else "apex"]
    if not scar.walls and not rings:
        return ""
    if style == "segments" and rings and scar.walls:
        return _segment_words(scar, rng)
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
    if not value:
        return ""
    ranges = {13: "1-25%", 38: "25-50%", 63: "50-75%", 88: "75-100%"}
    if value in ranges and rng.random() < 0.5:
        return ranges[value]
    return f"{value}[%|%|%| %| percent]"


def _details(scar: Scar, rng: np.random.Generator, depth_said: bool) -> tuple[list[str], list[str]]:
    """Return clauses that can follow the location, and full sentences, for the other fields."""
    clauses, sentences = [], []

    def add(detail: str, clause_chance: float, **words: str) -> None:
        if rng.random() < clause_chance:
            clauses.append(_put(_WORDS["clause"][detail], **words))
        else:
            sentences.append(_put(_WORDS["sentence"][detail], **words) + ".")

    if scar.depth and not depth_said:
        clauses.append(f"{_DEPTH[scar.depth]} [in distribution|in location|in extent]")
    if scar.transmurality:
        add("transmurality", 0.75, percent=_percent(scar.transmurality, rng))
    if scar.circumference:
        percent = _percent(scar.circumference, rng)
        clauses.append(_put(_WORDS["clause"]["circumference"], percent=percent))
    if scar.no_reflow:
        add("no_reflow", 0.6)
    elif scar.depth in ("subendocardial", "transmural"):
        sentences += _maybe(rng, 0.2, _WORDS["sentence"]["no_reflow_absent"] + ".")
    if scar.aetiology:
        add("aetiology", 0.6, aetiology=_AETIOLOGY[scar.aetiology])
    return clauses, sentences


def _scar_text(scar: Scar, rng: np.random.Generator, style: str, number: int, count: int) -> str:
    """Describe one scar in one style, as a template."""
    location = _location(scar, rng, style)
    if style in ("terse", "structured"):
        return _list_text(scar, rng, style, location, number, count)
    words = _WORDS["scar"]
    depth_said = rng.random() < 0.85
    pattern = _WORDS["pattern"].get(scar.pattern, "[||||focal|confluent]")
    kind = f"{pattern} {_DEPTH.get(scar.depth, '') if depth_said else ''}"
    what = f"{words['certainty']} {kind} {{term}}"
    if scar.ischaemic and rng.random() < 0.3:
        what = f"{kind} [infarct scar|scar|infarction|myocardial scar]"
    elif rng.random() < 0.15:
        what = f"[|an area of|a region of] {kind} [scar|fibrosis|enhancement]"
    clauses, sentences = _details(scar, rng, depth_said)
    rng.shuffle(sentences)
    tail = ", ".join(clauses)
    tail = f"[, |, | ]{tail}" if tail else ""
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


def _list_text(
    scar: Scar, rng: np.random.Generator, style: str, location: str, number: int, count: int
) -> str:
    """Describe one scar in the terse style (items on one line) or the structured one (a list)."""
    words, depth = _WORDS[style], _DEPTH.get(scar.depth, "")
    facts = {
        "place": location.removeprefix("the ") or "[LV|left ventricle]",
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
        title = f"[Scar|Lesion|Region] {number + 1}\n" if count > 1 else words["title"]
        text = title + "\n".join(f"- {item}" for item in items)
    return _put(text, **facts)


def _statement(findings: Findings, rng: np.random.Generator, style: str) -> str:
    """Write the statement on enhancement: sentences, or lines in the structured style."""
    if findings.present:
        said = []
        order = rng.permutation(len(findings.scars))
        for number, index in enumerate(order):
            template = _scar_text(findings.scars[index], rng, style, number, len(order))
            text = _fill(rng, template, term=_WORDS["term"])
            said.append(re.sub(r" ([,.;])", r"\1", re.sub(r" +", " ", text)).strip())
        text = ("\n" if style == "structured" else " ").join(said)
    else:
        text = _fill(rng, _WORDS["negative"][style] + ".", term=_WORDS["term"])
        if rng.random() < 0.12 and style in ("prose", "narrative", "older"):
            level, wall = LEVELS[int(rng.integers(3))], WALLS[int(rng.integers(6))]
            text += " " + _fill(rng, _WORDS["doubt"] + ".", where=f"{level} {wall} wall")
    return text[0].upper() + text[1:]


def write_report(
    findings: Findings, rng: np.random.Generator, style: str | None = None, whole: bool = True
) -> str:
    """Write a report that states these findings, in random words.

    Args:
        findings: what to state; `read_report` returns exactly these.
        rng: the only source of randomness.
        style: one of `STYLES` (kinds of writers), or None for a random one.
        whole: True for a full CMR report, False for its statement on enhancement alone.

    Raises:
        InputError: unknown style.
    """
    if style is None:
        style = STYLES[int(rng.integers(len(STYLES)))]
    elif style not in STYLES:
        remedy = f"use one of {', '.join(STYLES)}, or None"
        raise InputError("style", f"unknown style {style!r}", remedy)
    statement = _statement(findings, rng, style)
    if not whole:
        return statement
    ef = int(rng.normal(48 if findings.present else 60, 8))
    edv = int(rng.normal(170, 30))
    facts = {
        "ef": ef,
        "edv": edv,
        "esv": round(edv * (100 - ef) / 100),
        "edvi": round(edv / 1.9),
        "rvef": int(rng.normal(55, 6)),
        "t1": int(rng.normal(1010, 30)),
        "mass": int(rng.normal(120, 20)),
        "thick": int(rng.integers(9, 14)),
        "size": "[normal in size|mildly dilated|of normal size]",
        "where": f"[basal |mid |apical |]{WALLS[int(rng.integers(6))]}",
    }
    order = rng.permutation(len(_LISTS["others"]))
    others = [_LISTS["others"][index] for index in order[: int(rng.integers(1, 5))]]
    main = [_WORDS["volumes"], _WORDS["wall_motion"]]
    main += _maybe(rng, 0.8, _WORDS["right_ventricle"])
    cut = int(rng.integers(len(others) + 1))
    before, after = " ".join(main + others[:cut]), " ".join(others[cut:])
    end = _WORDS["conclusion_positive" if findings.present else "conclusion_negative"]
    if style in ("structured", "terse") or rng.random() < 0.3:
        heading = _fill(rng, _WORDS["heading"])
        label = "[Indication|INDICATION|Clinical details]"
        parts = _maybe(rng, 0.6, f"{label}: {_WORDS['indication']}")
        parts += _maybe(rng, 0.4, f"[Technique|TECHNIQUE]: {_WORDS['technique']}")
        parts.append(f"[LV|Left ventricle|Function|FINDINGS]: {before}")
        gap = "\n" if style == "structured" else " "
        parts.append(f"{heading}:{gap}{{statement}}")
        if after:
            parts.append(f"[Other|Other findings|Remainder]: {after}")
        parts += _maybe(rng, 0.6, f"[Conclusion|IMPRESSION|Impression|Summary]: {end}")
        template = "\n".join(parts)
    else:
        parts = _maybe(rng, 0.3, _WORDS["indication"]) + _maybe(rng, 0.2, _WORDS["technique"])
        parts += [before, "{statement}", *([after] if after else [])]
        parts += _maybe(rng, 0.5, f"[Conclusion|Impression|In summary]: {end}")
        template = "[\n| ]".join(parts)
    return _fill(rng, template, **facts).replace("{statement}", statement)


def canonical_text(findings: Findings) -> str:
    """State the findings in one fixed wording, which `read_report` reads back."""
    sentences = []
    for scar in findings.scars:
        rings = _join([level for level in scar.levels if level != "apex"])
        article, named = ("all", "") if len(scar.walls) == 6 else ("the", _join(scar.walls))
        noun = "segments"
        if scar.walls:
            noun = "wall" if len(scar.walls) == 1 else "walls"
        place = _spaced(rings, named, noun) if rings or scar.walls else ""
        cap = "apical cap" if "apex" in scar.levels else ""
        place = _join([words for words in (place, cap) if words])
        kind = _spaced(scar.pattern, scar.depth, "late gadolinium enhancement")
        details = [f"{kind} in {article} {place}" if place else kind]
        if scar.transmurality:
            details.append(f"{scar.transmurality}% transmurality")
        if scar.circumference:
            details.append(f"{scar.circumference}% of the circumference")
        if scar.no_reflow:
            details.append("with microvascular obstruction")
        if scar.aetiology:
            details.append(f"consistent with {_PHRASES['canonical_aetiology'][scar.aetiology]}")
        text = ", ".join(details) + "."
        sentences.append(text[0].upper() + text[1:])
    return " ".join(sentences) or "No late gadolinium enhancement."


def _spaced(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def prompts(kind: str = "presence") -> dict[str, list[str]]:
    """Return prompt ensembles for zero-shot scores, in the writer's words.

    Args:
        kind: ``"presence"`` (labels ``positive`` and ``negative``), ``"wall"`` (`WALLS`),
            ``"level"`` (`LEVELS`) or ``"depth"`` (`DEPTHS`).

    Raises:
        InputError: unknown kind.
    """
    if kind == "presence":
        return {label: list(texts) for label, texts in _LISTS["presence_prompts"].items()}
    labels = {"wall": WALLS, "level": LEVELS, "depth": DEPTHS}.get(kind)
    if labels is None:
        problem = f"unknown kind of prompt {kind!r}"
        raise InputError("kind", problem, "use presence, wall, level or depth")
    result = {}
    for label in labels:
        texts = [template.format(label) for template in _LISTS[f"{kind}_prompts"]]
        result[label] = [text[0].upper() + text[1:] for text in texts]
    if kind == "level":
        result["apex"] = list(_LISTS["apex_prompts"])
    return result


def corrupt_findings(findings: Findings, rng: np.random.Generator, rate: float) -> Findings:
    """Return findings as a careless report states them: one omission or error with chance ``rate``.

    Of corrupted positive reports one in eight denies enhancement; the others miss a detail or a
    scar, or state a wrong wall, level or depth. A negative report can only invent a scar, with
    chance ``rate / 8``.

    Raises:
        InputError: ``rate`` outside 0-1.
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
    scars = list(findings.scars)
    scar = scars.pop(int(which * len(scars)))
    changes: list[Scar | None] = [*_mistakes(scar, rng)]
    if scars:
        changes.append(None)  # the scar is left out
    change = changes[int(kind * len(changes))]
    return Findings((*scars, change) if change else tuple(scars))


def _mistakes(scar: Scar, rng: np.random.Generator) -> list[Scar]:
    """Return every omission and every kind of error for this scar; each differs from it."""
    turn, step = (1, 5)[int(rng.integers(2))], int(rng.integers(1, 4))
    found = [
        replace(scar, depth=None, transmurality=None),
        replace(scar, aetiology=None),
        replace(scar, no_reflow=False),
    ]
    if scar.walls:
        turned = tuple(WALLS[(WALLS.index(wall) + turn) % 6] for wall in scar.walls)
        found += [replace(scar, levels=()), replace(scar, walls=turned)]
    if scar.walls and scar.levels:
        level = LEVELS[(LEVELS.index(scar.levels[0]) + 1) % 3]
        found.append(replace(scar, levels=(level,)))
    if scar.depth:
        depth = DEPTHS[(DEPTHS.index(scar.depth) + step) % 4]
        found.append(replace(scar, depth=depth, transmurality=None))
    return [other for other in found if other != scar]


_IDENTIFIERS = [
    (kind, re.compile(rule)) for kind, rules in _load("identifiers.toml").items() for rule in rules
]


def check_privacy(text: str) -> list[tuple[str, str]]:
    """Return suspected identifiers in a report, in the order of the text.

    Returns:
        (kind, excerpt): kind is ``name``, ``date``, ``id``, ``phone``, ``email`` or ``address``;
        the excerpt is masked (letters x, digits 0, except the first character). An empty list does
        not prove that the text identifies nobody.
    """
    text = str(text)
    found: dict[int, tuple[int, str, str]] = {}
    for kind, rule in _IDENTIFIERS:
        for match in rule.finditer(text):
            before = text[: match.start()][-20:]
            if kind == "date" and re.search(r"(?i)(?:aha|seg\w*\.?)[\s:(-]*$", before):
                continue  # a list of segments
            overlaps = any(
                start < match.end() and match.start() < end for start, (end, _, _) in found.items()
            )
            if not overlaps:
                masked = re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", match[0][1:]))
                found[match.start()] = (match.end(), kind, match[0][0] + masked)
    return [found[start][1:] for start in sorted(found)]


def require_privacy(reports: Mapping[str, str]) -> None:
    """Refuse reports, by study, in which :func:`check_privacy` suspects an identifier.

    Raises:
        InputError: names the first study, the kinds found there, and the number of others.
    """
    found = {name: {kind for kind, _ in check_privacy(text)} for name, text in reports.items()}
    suspects = [name for name, kinds in found.items() if kinds]
    if suspects:
        more = f" (and {len(suspects) - 1} more studies)" if len(suspects) > 1 else ""
        kinds = ", ".join(sorted(found[suspects[0]]))
        problem = f"the report may identify a person: {kinds}{more}"
        remedy = (
            "De-identify it; or, where reports are safe, "
            "pass show_identifiers=True to session.cohort()"
        )
        raise InputError(f"{suspects[0]}, report", problem, remedy)
