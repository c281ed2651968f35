"""Read findings from a report."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lgekit.findings import ISCHAEMIC, LEVELS, WALL_WORDS, WALLS, Findings, Scar

_TABLES = tomllib.loads(Path(__file__).with_name("reading_rules.toml").read_text(encoding="utf-8"))


def _one_of(table: dict[str, list[str]]) -> re.Pattern:
    """Return a pattern whose named groups are the table's entries."""
    text = "|".join(f"(?P<{name}>{'|'.join(options)})" for name, options in table.items())
    return re.compile(text.replace("{walls}", "|".join(sorted(WALL_WORDS, key=len, reverse=True))))


def _patterns(table: dict[str, list[str]]) -> dict[str, re.Pattern]:
    return {name: re.compile("|".join(options)) for name, options in table.items()}


_EVENT, _HEADING = _one_of(_TABLES["events"]), _one_of(_TABLES["headings"])
_AETIOLOGY = _patterns(_TABLES["aetiology"])
_RULES = SimpleNamespace(**_patterns(_TABLES["rules"]))
_SPELLINGS = [
    (re.compile(rule), word.strip().replace("_", " "))
    for rule, word in (line.split(" =>") for line in _TABLES["spellings"].strip().splitlines())
]
_VOCABULARY = (*WALL_WORDS, *_TABLES["vocabulary"].split())
_LONGEST = 1000  # characters; longer sentences are cut, so that no rule takes long
_Group = tuple[tuple[str, ...], tuple[str, ...]]  # (walls, levels)


@lru_cache(maxsize=20_000)
def _spelt(word: str) -> str:
    """Correct one edit (two in words of ten letters) towards the vocabulary."""
    if not 6 <= len(word) <= 20 or word in _VOCABULARY:
        return word
    from rapidfuzz.distance import OSA

    for right in _VOCABULARY:
        allowed = 2 if min(len(word), len(right)) >= 10 else 1
        longer = right.startswith(word) or word.startswith(right)
        if word[0] == right[0] and not longer and abs(len(word) - len(right)) <= allowed:
            if OSA.distance(word, right) <= allowed:
                return right
    return word


def _normal(sentence: str) -> str:
    """Return a sentence in lower case with one spelling for each thing."""
    text = re.sub(r"[a-z]{6,}", lambda found: _spelt(found[0]), sentence.lower())
    for rule, word in _SPELLINGS:
        text = rule.sub(word, text)
    return text.rstrip(" .").lstrip(" .•*-\t")


def _sentences(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield a report's sentences as (sentence, section, heading).

    Sections are ``ignore`` (history, technique), ``lge``, ``impression`` and ``body``. A heading is
    one of these, ``lesion`` ("Location: …"), or "".
    """
    section = "body"
    block = started = False  # an ignored heading on its own line lasts until an empty line
    for line in text.splitlines():
        start, heads = 0, False
        for end in [*(found.end() for found in _RULES.sentence_end.finditer(line)), len(line)]:
            sentence, start = line[start:end].strip(), end
            head, colon, rest = sentence.lstrip("-*•# \t0123456789.)").partition(":")
            heading, alone = "", not rest.strip() and len(sentence) == len(line.strip())
            if (colon or alone) and (found := _HEADING.fullmatch(head.strip().lower())):
                heading = found.lastgroup or ""
                section = section if heading == "lesion" else heading
                block, started, heads = alone, False, heads or alone
            for cut in range(0, len(sentence), _LONGEST):
                if sentence[cut : cut + _LONGEST].strip(" .-*•"):
                    yield sentence[cut : cut + _LONGEST], section, heading if cut == 0 else ""
        if section == "ignore" and not heads:
            if not block or (started and not line.strip()):
                section = "body"
            started = started or bool(line.strip())


@dataclass
class _Region:
    """What has been read about one scar."""

    segments: set[int] = field(default_factory=set)
    groups: list[_Group] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # the other fields of Scar

    @property
    def placed(self) -> bool:
        return bool(self.segments or self.groups)

    def absorb(self, other: _Region) -> None:
        """Take over what only the other one states."""
        self.segments |= other.segments
        self.groups += other.groups
        mine, cause = self.details.get("aetiology"), other.details.get("aetiology")
        self.details = other.details | self.details
        if mine == "ischaemic" and cause in ISCHAEMIC:
            self.details["aetiology"] = cause

    def scars(self) -> Iterator[Scar]:
        """Yield the scars of this region: one, unless its walls and levels do not multiply."""
        exact = [group for group in self.groups if all(group) or group[1] == ("apex",)]
        segments = self.segments.union(*(Scar(*group).segments for group in exact))
        vague = [group for group in self.groups if group not in exact]
        if segments:  # then "global" adds nothing
            vague = [group for group in vague if group != (WALLS, ())]
            yield from Findings.from_segments(segments, **self.details).scars
        walls, levels = ({word for group in vague for word in group[side]} for side in (0, 1))
        if walls:
            yield Scar(tuple(walls), (), **self.details)
        if levels:
            yield Scar((), tuple(levels), **self.details)
        if not self.placed:
            yield Scar(WALLS if self.details.get("pattern") == "diffuse" else (), **self.details)


def _segment_numbers(words: str) -> set[int]:
    """Read "segments 4-5 and 10" as {4, 5, 10}; "4-10-15" is a list, not a range."""
    found = set(map(int, re.findall(r"\d+", words)))
    several = len(re.findall(r"-|\bto\b", words)) > 1
    if not several or re.search(r"[,&/+]|and", words):
        for low, high in re.findall(r"(\d+) ?(?:-|to) ?(?=(\d+))", words):
            found |= set(range(int(low), int(high) + 1))
    return found


def _locate(events: list[re.Match]) -> list[_Group]:
    """Group walls and levels: levels stand before their walls, or all after them."""
    words: list[tuple[str, tuple[str, ...]]] = []
    for event in events:
        word = event[0]
        if event.lastgroup == "levels":
            words.append(("levels", (word,)))
            continue
        if word.startswith("all"):
            words.append(("levels", tuple(level for level in LEVELS if level in word)))
        words.append(("wall", WALL_WORDS.get(word, WALLS)))
    stated = (entry for entry in words if entry[1])
    runs = [
        (kind, tuple(value for _, values in run for value in values))
        for kind, run in groupby(stated, key=itemgetter(0))
    ]
    groups: list[_Group] = []
    postfix = len(runs) > 1 and runs[0][0] == "wall" and runs[-1][0] == "levels"
    pending: tuple[str, ...] = ()
    for kind, values in runs:
        if kind == "wall":
            groups.append((values, pending))
            pending = ()
        elif groups and (postfix or set(values) == {"apex"}):
            groups[-1] = (groups[-1][0], groups[-1][1] + values)
        else:
            pending = values
    if pending and groups and groups[-1][1]:
        groups[-1] = (groups[-1][0], groups[-1][1] + pending)
    elif pending:
        groups.append(((), pending))
    return groups


def _parts(events: list[re.Match]) -> list[list[re.Match]]:
    """Split a clause's events where another depth, cue or matter with its own place begins."""
    parts: list[list[re.Match]] = [[]]
    for index, event in enumerate(events):
        kinds = {earlier.lastgroup for earlier in parts[-1]}
        begins = event.lastgroup in ("cue", "depth", "other", "pattern")
        full = kinds & {"wall", "levels", "segments"} and kinds & {"cue", "depth", "other"}
        later = {following.lastgroup for following in events[index + 1 :]}
        if begins and full and later & {"wall", "segments"}:
            parts.append([])
        parts[-1].append(event)
    return parts


def _percentage(clause: str, event: re.Match, sure: bool) -> dict[str, int]:
    """Read {"transmurality": 38} or {"circumference": 25}; nothing if it is neither."""
    before = re.split(r"[\d%]", clause[: event.start()])[-1][-45:]
    after = re.split(r"\d", clause[event.end() :])[0][:45]
    value, bound, kind = int(event["low"]), (event["bound"] or "").strip(), "transmurality"
    if re.search(r"circumf", after) or re.search(r"circumf\w+( extent)?:? ?$", before):
        bound, kind = "", "circumference"
    elif _RULES.share_of_mass.search(after):
        return {}
    elif not re.search(r"transm|thickness|\btm\b", before + after):
        if not sure or re.search(r"\b(?:ef|lvef|rvef|fraction|ecv|burden)\b", before):
            return {}
    if event["high"]:
        value = (value + int(event["high"]) + 1) // 2
    elif bound:
        value = (value + (1 if bound in ("<", "≤", "less than", "under", "below") else 101)) // 2
    return {kind: min(max(value, 1), 100)}


def _aetiology(text: str) -> str | None:
    return next((name for name, rule in _AETIOLOGY.items() if rule.search(text)), None)


def _region(clause: str, events: list[re.Match], text: str, sure: bool) -> _Region:
    """Read the events of one part (``text``). ``sure``: a bare percentage is a transmurality."""
    kinds = {event.lastgroup for event in events}
    words = {"wall", "levels"} if kinds & {"wall", "segments"} else {"levels", "everywhere"}
    region = _Region(groups=_locate([event for event in events if event.lastgroup in words]))
    stated: dict[str, Any] = {}
    for event in events:
        if event.lastgroup == "segments":
            region.segments |= _segment_numbers(event[0])
        elif event.lastgroup == "depth":
            stated = {"depth": event[0].replace("midwall", "mid-wall")} | stated
        elif event.lastgroup == "pattern":
            pattern = {"m": "patchy", "p": "patchy", "d": "diffuse"}.get(event[0][0], "linear")
            stated = {"pattern": pattern} | stated
        elif event.lastgroup == "percent":
            stated = _percentage(clause, event, sure) | stated
    if "mvo" in text:
        stated["no_reflow"] = True
    if aetiology := _aetiology(text):
        stated["aetiology"] = aetiology
    region.details = stated
    return region


@dataclass
class _Reading:
    """The state of reading one report."""

    body: list[_Region] = field(default_factory=list)
    impression: list[_Region] = field(default_factory=list)
    causes: set[str] = field(default_factory=set)  # aetiologies in the conclusion
    kept: list[str] = field(default_factory=list)  # the sentences about enhancement
    new_scar: bool = False  # the next place starts a new scar

    def take(self, sentence: str, section: str, heading: str, follows: bool) -> bool:
        """Read a sentence; tell whether it is about enhancement. ``follows``: the last one was."""
        context, concludes = section == "lge" or heading == "lesion", section == "impression"
        if not (context or follows or concludes or _RULES.roots.search(sentence.lower())):
            return False
        text = _normal(sentence)
        if re.fullmatch(r"(?:scar|lesion|region)s? \d+:?", text):
            self.new_scar = True
            return True
        if heading in ("lge", "impression", "body") and "segment" not in text.partition(":")[0]:
            text = text.partition(":")[2].strip()
        about = bool(_RULES.no_mvo.search(text)) or (section == "lge" and bool(heading))
        text = _RULES.not_meant.sub(" ", _RULES.no_mvo.sub(" ", text))
        if _RULES.hypothetical.search(text) and not _RULES.asserted.search(text):
            return False
        if _RULES.modality.search(text):
            text, context, about = _RULES.modality.sub("imaging", text), True, True
        text = _RULES.history.sub(" ", text)
        regions = self.impression if concludes else self.body
        negated, implied, skip, start = False, False, False, 0
        for found in [*_RULES.clause_end.finditer(text), None]:
            clause = text[start : found.start() if found else len(text)]
            start = found.end() if found else len(text)
            kinds = {event.lastgroup for event in _EVENT.finditer(clause)}
            bare = not kinds & {"cue", "depth", "percent"}  # "all 17 segments | without LGE"
            if _RULES.negative.search(clause):
                about |= "cue" in kinds or context
                negated |= "cue" in kinds or context
            elif skip or (bare and _RULES.negated_next.match(text, start)):
                about |= context
            elif clause.strip():
                if concludes and (cause := _aetiology(clause)):
                    self.causes.add(cause)
                    about |= bool(self.body)
                about |= self._assert(clause, regions, context or implied, follows or about)
            implied = skip = False
            if found and found["except"]:  # the opposite of what is before it, or of what follows
                later = found.start() == 0 and bool(_RULES.negative.search(text[start:]))
                implied = negated or later or "limited" in found[0] or "only" in found[0]
                skip = not implied
        return about

    def _assert(self, clause: str, regions: list[_Region], context: bool, follows: bool) -> bool:
        """Read a clause without negation: its parts become scars, or details of the last one."""
        parts, taken = _parts(list(_EVENT.finditer(clause))), False
        refers = bool(_RULES.refers.match(clause.strip()))
        yes = context and bool(re.search(r"\b(?:positive|present|yes)\b|\+ve", clause))
        for index, part in enumerate(parts):
            start = part[0].start() if index else 0
            end = parts[index + 1][0].start() if index + 1 < len(parts) else len(clause)
            kinds = {event.lastgroup for event in part}
            place = bool(kinds & {"wall", "segments", "levels", "everywhere"})
            if "other" in kinds and "cue" not in kinds and not (context and "depth" in kinds):
                continue
            strong = "cue" in kinds or yes or (place and (context or "depth" in kinds))
            region = _region(clause, part, clause[start:end], sure=strong or context)
            last = regions[-1] if regions and not self.new_scar else None
            if strong and (last is None or (region.placed and last.placed and not refers)):
                regions.append(region)
                self.new_scar, taken = False, True
            elif last is not None and (strong or follows or context):
                if not (strong or refers or context):
                    region.segments, region.groups = set(), []
                if region.placed or region.details:
                    last.absorb(region)
                    taken = True
        return taken


def _read(text: str) -> _Reading:
    reading, follows = _Reading(), False
    for sentence, section, heading in _sentences(text):
        if section == "ignore":
            continue
        follows = reading.take(sentence, section, heading, follows)
        if follows:
            reading.kept.append(sentence)
    return reading


def read_report(text: str) -> Findings:
    """Return the findings that a report asserts about late enhancement of the left ventricle.

    A conclusion adds an aetiology to the scars in the body of the report, or replaces the body if
    that states no scar. Never raises; what is not understood is left out.
    """
    reading = _read(str(text))
    regions = reading.body or reading.impression
    causes = reading.causes - {"ischaemic", "non-ischaemic"} or reading.causes
    if len(causes) == 1 and not any("aetiology" in region.details for region in regions):
        for region in regions:
            region.details["aetiology"] = next(iter(causes))
    return Findings(tuple(scar for region in regions for scar in region.scars()))


def states_enhancement(text: str) -> bool:
    """Tell whether a report says if there is late enhancement; a possible scar counts as none.

    False if no sentence is about it, no contrast was given, the images show nothing, or it is
    denied in another language ("kein LGE"). `read_report` finds no scar, or a wrong one, in these.
    """
    reading = _read(str(text))
    kept = [_normal(sentence) for sentence in reading.kept]
    if any(map(_RULES.foreign.search, kept)):
        return False
    if reading.body or reading.impression:
        return True
    if any(map(_RULES.not_assessed.search, kept)):
        return False
    if any(_RULES.negative.search(each) or _RULES.normal.search(each) for each in kept):
        return True
    said = [sentence for sentence, section, _ in _sentences(str(text)) if section != "ignore"]
    return any(_RULES.normal_enhancement.search(_normal(sentence)) for sentence in said)


def lge_statement(text: str) -> str:
    """Return the sentences of a report about late enhancement, joined; empty if there are none."""
    return "\n".join(_read(str(text)).kept)
