"""Write reports from findings, and training texts and prompts."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALL_WORDS, WALLS, Findings, Scar, draw_scar
from lgekit.reports.reader import lge_statement, read_report
from lgekit.reports.text import ENCODED_LINE_END, rules

PHRASES: dict[str, Any] = rules("phrases.toml")
STYLES = tuple(PHRASES["styles"])
# Encoded line ends, empty lines, line ends before bullets and fields, and full stops
_SENTENCE_END = re.compile(
    rf"{ENCODED_LINE_END.pattern}|\n\s*\n|\n(?=\s*(?:[-*•]|o )|[A-Z][^.:=\n]{{0,40}}[:=])"
    r"|(?<=[.;!?])\s+(?=[A-Z\d+-])"
)


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


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.random() * len(options))]


def _fill(rng: np.random.Generator, template: str, **words: object) -> str:
    """Draw every choice from the inside out, fill in the words, and write "<x>" as "X"."""

    def look_up(found: re.Match) -> str:
        name = found[1].lower()
        text = words[name] if name in words else _WORDS[name]
        return str(text) if name == found[1] else f"<{text}>"

    text = template
    while "[" in text or "{" in text:
        if "[" in text:
            text = re.sub(r"\[([^\[\]]*)\]", lambda found: _pick(rng, found[1].split("|")), text)
        else:
            text = re.sub(r"\{(\w+)\}", look_up, text)
    text = re.sub(r"(?<=\S) +(?=[ ,.;>])", "", re.sub(r"< +", "<", text))
    return re.sub(r"<(.)([^<>]*)>", lambda found: found[1].upper() + found[2], text)


def _join(items: Sequence[str], last: str = " and ") -> str:
    return last.join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def upper_first(text: str) -> str:
    return text[0].upper() + text[1:]


def _wall_words(walls: tuple[str, ...], rng: np.random.Generator, style: str) -> str:
    """Name the walls: "anterior wall and septum", "posterior and lateral segments"."""
    left, words = list(walls), []
    for word in (*(["inferoposterior"] if style == "older" else []), "septal", "lateral"):
        if set(WALL_WORDS[word]) <= set(left) and rng.random() < 0.75:
            words.append(word)
            left = [wall for wall in left if wall not in WALL_WORDS[word]]
    names = _WORDS["wall_names"].get(style, {})
    words += [names.get(wall, wall) for wall in left]
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
    """Say where a scar is: a noun phrase with its article."""
    place = _WORDS["place"]
    rings = tuple(level for level in scar.levels if level != "apex")
    if scar.levels == ("apex",):
        return place["segment_17" if style == "segments" else "apex"]
    if not scar.walls and not rings:
        return "the [LV|left ventricle]"
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
    walls = _wall_words(scar.walls, rng, style)
    if level and rng.random() < 0.35:  # "the inferior wall at basal level", in some styles
        walls += _WORDS["levels_after"].get(style, "").replace("{level}", level)
    return f"the {walls}{after}" if level in walls else f"the {level} {walls}{after}"


def _percent(value: int | None, rng: np.random.Generator) -> str:
    ranges = {13: "1-25%", 38: "25-50%", 63: "50-75%", 88: "75-100%"}
    if value in ranges and rng.random() < 0.5:
        return ranges[value]
    return f"{value}[%|%|%| %| percent]" if value else ""


def _cause(scar: Scar) -> str:
    """Name the aetiology; no-reflow is seen in infarcts of the last weeks only."""
    words = _AETIOLOGY.get(scar.aetiology, "")
    return re.sub(r"\[prior[^]]*\]", "[recent|acute]", words) if scar.no_reflow else words


def _scar_text(scar: Scar, rng: np.random.Generator, style: str, parts: dict, number: int) -> str:
    """Describe one scar: the parts of the style whose facts are stated."""
    place = _location(scar, rng, style)
    noun = "infarct_term" if scar.ischaemic and rng.random() < 0.3 else "scar_term"
    facts = {
        "place": place,
        "spot": place.removeprefix("the "),
        "noun": _WORDS[noun],
        "pattern": _WORDS["pattern"].get(scar.pattern, ""),
        "plain_pattern": scar.pattern or "",
        "depth": parts.get(f"depth_{scar.depth}", _DEPTH.get(scar.depth, "")),
        "layer": _WORDS["layer"].get(scar.depth, ""),
        "transmurality": _percent(scar.transmurality, rng),
        "circumference": _percent(scar.circumference, rng),
        "aetiology": _cause(scar),
        **parts["labels"],
    }
    said = [parts["also" if number and "also" in parts else "scar"]]
    said += [parts.get("kind", "")] if scar.depth or scar.pattern else []
    for detail in ("circumference", "transmurality", "no_reflow", "aetiology"):
        if getattr(scar, detail):
            said.append(parts[detail])
        elif detail == "no_reflow" and scar.depth in ("subendocardial", "transmural"):
            said.append(parts["no_reflow_absent"])
    texts = sorted((_fill(rng, text, **facts) for text in said), key=lambda text: text[:1] == ".")
    return re.sub(r" +(?=[,.;\n]|$)", "", "".join(texts)) + parts["end"]


def _statement(findings: Findings, rng: np.random.Generator, style: str) -> str:
    """Write the statement on enhancement: sentences, items or lines."""
    kind = PHRASES["styles"][style]
    parts = _choices(PHRASES["statement"][kind.get("statement", style)])
    parts["labels"] = {name: _fill(rng, text) for name, text in parts.get("labels", {}).items()}
    title = parts.get("several" if len(findings.scars) > 1 else "single", "")
    title = _fill(rng, title, number="#")
    said = [_fill(rng, parts["first"])] if findings.present and "first" in parts else []
    for number, index in enumerate(rng.permutation(len(findings.scars))):
        said.append(title.replace("#", str(number + 1)))
        said.append(_scar_text(findings.scars[index], rng, style, parts, number))
    if not said:
        said.append(_fill(rng, _choices(PHRASES["negative"][style]) + parts["end"]))
        if rng.random() < kind.get("doubt", 0):
            where = f"{_pick(rng, LEVELS[:3])} {_pick(rng, WALLS)} wall"
            said.append(_fill(rng, _WORDS["doubt"] + ".", where=where))
    return upper_first(parts.get("join", " ").join(filter(None, said)).strip())


def _patient(findings: Findings, rng: np.random.Generator) -> tuple[dict[str, Any], set[str]]:
    """Draw the numbers and places that a report mentions, and what is true of the study."""
    scars, walls = findings.scars, [wall for wall in WALLS if wall not in findings.walls]
    remote = _pick(rng, walls or WALLS)
    words: dict[str, Any] = {"remote": remote, "where": f"[basal |mid |apical |]{remote}"}
    ef = int(rng.normal(61 - 1.5 * len(findings.segments), 6) - 18 * (rng.random() < 0.15))
    words["ef"] = ef = min(max(ef, 15), 72)
    words["tesla"] = _pick(rng, ("1.5 T", "1.5 T", "3 T"))
    true = {"any", words["tesla"], "rest" if rng.random() < 0.7 else "stress"}
    true |= {"preserved" if ef >= 50 else "reduced", "large" if ef < 42 else "usual"}
    words["size"] = "dilated" if "large" in true else "[normal in|of normal] size"
    true |= {"positive" if scars else "negative"}
    if scars:
        scar = _pick(rng, scars)
        words |= {"depth": _DEPTH.get(scar.depth, ""), "aetiology": _cause(scar)}
        words["near"] = _location(replace(scar, aetiology=None), rng, "")
        infarct = scar.ischaemic or not (scar.aetiology or scar.depth in DEPTHS[1:3])
        true |= {"infarct" if infarct else "other"}
        true |= {"acute" if any(one.no_reflow for one in scars) else "old"}
        true |= {"single"} if len(scars) == 1 else set()
        true |= {"named", scar.aetiology} if scar.aetiology else set()
        true |= {"apical"} if infarct and {"apical", "apex"} & {*scar.levels} else set()
    true |= {"thick" if {"hypertrophic", "amyloid"} & true else "slim"}
    for kind, numbers in PHRASES["numbers"].items():
        if kind in true:
            words |= {name: int(rng.integers(*ends)) for name, ends in numbers.items()}
    words["esv"] = round(words["edv"] * (100 - ef) / 100)
    words["sv"] = words["edv"] - words["esv"]
    words |= {f"{name}i": round(100 * words[name] / words["bsa"]) for name in ("edv", "mass")}
    return words | ({"year": "[last week|this week]"} if "acute" in true else {}), true


def _lay_out(findings: Findings, rng: np.random.Generator, style: str, statement: str) -> str:
    """Write a whole report around the statement on enhancement."""
    layout = PHRASES["layouts"][_pick(rng, PHRASES["styles"][style]["layouts"])]
    words, true = _patient(findings, rng)
    true |= set(layout.get("situation", "").split())
    order, chance = _pick(rng, layout["orders"]).split(), layout.get("chance", {})
    topics = [name for name in layout.get("topics", "").split() if name not in order]
    topics = [name for name in rng.permutation(topics) if rng.random() < chance.get(name, 0.55)]
    if "statement" not in order:
        topics.insert(int(rng.integers(len(topics) + 1)), "statement")
    if not statement:
        silent = {"statement", "conclusion", "summary"}
        order, topics = ([one for one in names if one not in silent] for names in (order, topics))
    parts = [part for part in ("section", "topic", "statement") if part in layout]
    frames = {part: _pick(rng, layout[part]) for part in parts}
    letters = _pick(rng, (str, str, str.upper))

    def write(name: str, part: str = "section") -> str:
        text = statement.removesuffix(".")
        if name == "findings":
            text = "".join(write(topic, "topic") for topic in topics)
            if "topic" not in frames:
                return text
            text = text.removesuffix(". ")
        elif name != "statement":
            lists = PHRASES["topics"][name].items()
            fitting = [texts for key, texts in lists if {*key.split("+")} <= true]
            # Half of the draws choose a list first, because the special lists are short.
            texts = _pick(rng, fitting) if rng.random() < 0.5 else sum(fitting, [])
            text = _fill(rng, _pick(rng, texts), **words).removesuffix(".")
            if order[0] == name == "conclusion":
                text = text.replace("above", "below")
        frame = frames.get(name, frames.get(part, frames["section"]))
        heading = letters(_fill(rng, _choices(PHRASES["headings"][name])))
        return frame.replace("{heading}", heading).replace("{text}", text).replace("?.", "?")

    texts = [write(name) for name in order if rng.random() < chance.get(name, 1)]
    text = "".join(texts).strip("\n").rstrip()
    if rng.random() < layout.get("wrap", 0):
        width, indent = int(rng.integers(60, 101)), _pick(rng, layout["indent"])
        lines = (textwrap.fill(line, width, subsequent_indent=indent) for line in text.split("\n"))
        text = "\n".join(lines)
    return text


def write_report(
    findings: Findings | None, rng: np.random.Generator, style: str | None = None, whole=True
) -> str:
    """Write a report that states these findings, in random words; `read_report` returns them.

    A report of ``findings=None`` does not say whether there is enhancement. ``style`` is one of
    `STYLES` (kinds of writers), or None for a random one. Not ``whole``: the statement alone.
    """
    style = style or _pick(rng, STYLES)
    if style not in STYLES:
        remedy = f"use one of {', '.join(STYLES)}, or None"
        raise InputError("style", f"unknown style {style!r}", remedy)
    if bases := PHRASES["styles"][style].get("bases"):
        text = write_report(findings, rng, _pick(rng, bases), whole)
        return text.replace("\n", _pick(rng, PHRASES["styles"][style]["line_ends"]))
    statement = _statement(findings, rng, style) if findings else ""
    return _lay_out(findings or Findings(), rng, style, statement) if whole else statement


def canonical_text(findings: Findings) -> str:
    """State the findings in one fixed wording, which `read_report` reads back."""
    sentences = []
    for scar in findings.scars:
        rings = _join([level for level in scar.levels if level != "apex"])
        article, named = ("all", "") if len(scar.walls) == 6 else ("the", _join(scar.walls))
        noun = {0: "segments", 1: "wall"}.get(len(scar.walls), "walls")
        places = [" ".join(filter(None, (rings, named, noun)))] if rings or scar.walls else []
        places += ["apical cap"] if "apex" in scar.levels else []
        kind = " ".join(filter(None, (scar.pattern, scar.depth, "late gadolinium enhancement")))
        details = [f"{kind} in {article} {_join(places)}" if places else kind]
        known = vars(scar) | {"aetiology": PHRASES["canonical_aetiology"].get(scar.aetiology)}
        texts = PHRASES["canonical"].items()
        details += [text.format(known[name]) for name, text in texts if known[name]]
        sentences.append(upper_first(", ".join(details)) + ".")
    return " ".join(sentences) or "No late gadolinium enhancement."


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
    mistakes: list[dict[str, Any]] = [{"aetiology": None}, {"no_reflow": False}]
    mistakes += [{"depth": each, "transmurality": None} for each in (None, _pick(rng, DEPTHS))]
    if scar.walls:
        turn = _pick(rng, (1, 5))
        turned = tuple(WALLS[(WALLS.index(wall) + turn) % 6] for wall in scar.walls)
        mistakes += [{"walls": turned}, {"levels": ()}, {"levels": _pick(rng, LEVELS[:3])}]
    wrong = [(replace(scar, **mistake),) for mistake in mistakes]
    options = [scars for scars in wrong if scars != (scar,)] + ([()] if others else [])
    return Findings((*others, *options[int(kind * len(options))]))


def report_texts(report: str, mode: str = "findings") -> tuple[str, ...]:
    """Return the training texts of a report: first the fullest (the caption), then others.

    ``mode`` is ``report``: the whole report, ``lge_statement``: its sentences on enhancement, or
    ``findings`` [O]: what `read_report` finds, in fixed words: all of it, and each wall, level and
    depth alone. So studies share texts, and every prompt of `prompt_sets` is a training text.
    """
    if mode == "report":
        return (report.strip(),)
    if mode == "lge_statement":
        return (lge_statement(report).strip() or report.strip(),)
    found = read_report(report)
    left_out: dict[str, Any] = {"transmurality": None, "circumference": None, "aetiology": None}
    plain = Findings(tuple(replace(scar, **left_out) for scar in found.scars))
    walls = [wall for wall in WALLS if wall in found.walls]
    levels = [level for level in LEVELS if any(level in scar.levels for scar in found.scars)]
    places = {"walls": walls, "levels": levels}
    parts: list[dict[str, Any]] = [{name: one} for name, some in places.items() for one in some]
    parts += [{name: some} for name, some in places.items() if some]
    parts += [{"depth": scar.depth} for scar in found.scars if scar.depth]
    texts = [canonical_text(plain), *(_one_scar(**part) for part in parts)]
    return tuple(dict.fromkeys(texts))


def _one_scar(**fields: Any) -> str:
    return canonical_text(Findings((Scar(**fields),)))


def one_line(text: str) -> str:
    """Text with single spaces in place of its line ends."""
    return " ".join(text.split())


def split_sentences(report: str) -> list[str]:
    """Divide a report at full stops and line ends, without any knowledge of what it says."""
    return [one_line(part) for part in _SENTENCE_END.split(report) if part.strip()]


def prompt_sets(mode: str = "findings") -> dict[str, dict[str, list[str]]]:
    """Return prompts by kind (presence, wall, level, depth) and label, worded as training texts."""
    fields = {"wall": ("walls", WALLS), "level": ("levels", LEVELS), "depth": ("depth", DEPTHS)}
    sets: dict[str, dict[str, list[str]]] = {}
    if mode == "findings":
        for kind, (field, names) in fields.items():
            sets[kind] = {name: [_one_scar(**{field: name})] for name in names}
        positive = [text for texts in sets["wall"].values() for text in texts]
        return {"presence": {"positive": positive, "negative": [canonical_text(Findings())]}} | sets
    lists = PHRASES["lists"]
    sets["presence"] = {label: list(texts) for label, texts in lists["presence_prompts"].items()}
    for kind, (_, names) in fields.items():
        texts = lists[f"{kind}_prompts"]
        sets[kind] = {name: [upper_first(text.format(name)) for text in texts] for name in names}
    sets["level"]["apex"] = list(lists["apex_prompts"])
    return sets
