"""Words into findings: rules that read a CMR report, with negation, uncertainty, history and hypotheticals.

Findings hold what a report asserts: "likely" and "probable" count as present; "possible", "questionable", "cannot be
excluded" and what is blamed on an artefact do not [O]. A clinical history or a question is not a finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lgekit import report_language as language
from lgekit.findings import ISCHAEMIC, LEVELS, WALL_WORDS, WALLS, Findings, Scar

_Group = tuple[tuple[str, ...], tuple[str, ...]]  # (walls, levels)
_PLACES = {"wall", "segments", "levels", "everywhere"}


@dataclass
class _Region:
    """What has been read of one scar so far."""

    segments: set[int] = field(default_factory=set)
    groups: list[_Group] = field(default_factory=list)
    depth: str | None = None
    details: dict[str, Any] = field(default_factory=dict)  # the other fields of Scar

    @property
    def placed(self) -> bool:
        return bool(self.segments or self.groups)

    def absorb(self, other: _Region) -> None:
        """Take over what the other says and this one does not."""
        self.segments |= other.segments
        self.groups += other.groups
        self.depth = self.depth or other.depth
        self.details = {**other.details, **self.details}
        if self.details.get("aetiology") in ("ischaemic", None) and other.details.get("aetiology") in ISCHAEMIC:
            self.details["aetiology"] = other.details["aetiology"]

    def scars(self) -> Iterator[Scar]:
        """The scars of this region: one, unless its walls and levels do not multiply."""
        details = {"depth": self.depth, **self.details}
        vague = [group for group in self.groups if not group[0] or not group[1]]
        full = [group for group in self.groups if group[0] and group[1]]
        segments = self.segments | {s for walls, levels in full for s in Scar(walls, levels).segments}
        apex_alone = [group for group in vague if group[1] == ("apex",)]
        segments |= {17} if apex_alone else set()
        if segments:  # "global": said more exactly elsewhere
            vague = [group for group in vague if group != (WALLS, ())]
        vague = [group for group in vague if group[1] != ("apex",)]
        if segments:
            yield from Findings.from_segments(segments, **details).scars
        if walls := tuple(wall for group in vague for wall in group[0]):
            yield Scar(walls, (), **details)
        if levels := tuple(level for group in vague for level in group[1]):
            yield Scar((), levels, **details)
        if not self.placed:
            yield Scar(WALLS if self.details.get("pattern") == "diffuse" else (), **details)


def _segment_numbers(words: str) -> set[int]:
    """ "segments 4-5 and 10" → {4, 5, 10}; "4-10-15" is a list, not a range."""
    numbers = re.findall(r"\d+|-|\bto\b", re.sub(r"^\D+", "", words))
    ranges = len(re.findall(r"-|\bto\b", words)) < 2 or bool(re.search(r"[,&/+]|and", words))
    found = {int(number) for number in numbers if number.isdigit()}
    for index, number in enumerate(numbers):
        if not number.isdigit() and ranges:
            found |= set(range(int(numbers[index - 1]), int(numbers[index + 1]) + 1))
    return found


def _runs(events: list[re.Match]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Words for walls and levels, neighbours of one kind joined: ("levels", (basal, mid)), ("wall", (inferior,)), …"""
    runs: list[tuple[str, list[str]]] = []
    for event in events:
        word, found = event[0], [("levels", [event[0]])]
        if event.lastgroup in ("wall", "everywhere"):
            found = [("wall", list(WALL_WORDS.get(word, WALLS)))]
            if levels := [level for level in LEVELS if word.startswith("all") and level in word]:
                found.insert(0, ("levels", levels))
        for kind, values in found:
            if runs and runs[-1][0] == kind:
                runs[-1][1].extend(values)
            else:
                runs.append((kind, values))
    return ((kind, tuple(values)) for kind, values in runs)


def _locate(events: list[re.Match]) -> list[_Group]:
    """Groups of walls and levels from the words for places: levels stand before their walls, or all after them."""
    runs = list(_runs(events))
    groups: list[_Group] = []
    postfix = len(runs) > 1 and runs[0][0] == "wall" and runs[-1][0] == "levels"
    pending: tuple[str, ...] = ()
    for kind, own in runs:
        if kind == "levels" and groups and (postfix or set(own) == {"apex"}):
            groups[-1] = (groups[-1][0], groups[-1][1] + own)
        elif kind == "levels":
            pending = own
        else:
            groups.append((own, pending))
            pending = ()
    if pending and groups and groups[-1][1]:
        groups[-1] = (groups[-1][0], groups[-1][1] + pending)
    elif pending:
        groups.append(((), pending))
    return groups


def _parts(events: list[re.Match]) -> list[list[re.Match]]:
    """Split a clause's events where another depth, cue or matter begins that has a place of its own."""
    parts: list[list[re.Match]] = [[]]
    for index, event in enumerate(events):
        kinds = {e.lastgroup for e in parts[-1]}
        begins = event.lastgroup in ("cue", "depth", "other", "pattern")
        if begins and kinds & {"wall", "levels", "segments"} and kinds & {"cue", "depth", "other"}:
            if any(later.lastgroup in ("wall", "segments") for later in events[index + 1 :]):
                parts.append([])
        parts[-1].append(event)
    return parts


def _percentage(event: re.Match, bounded: bool = True) -> int:
    low, high, bound = int(event["low"]), event["high"], (event["bound"] or "") if bounded else ""
    if high:
        value = (low + int(high) + 1) // 2
    elif bound.strip() in ("<", "≤", "less than", "under", "below"):
        value = (low + 1) // 2
    elif bound:
        value = (low + 101) // 2
    else:
        value = low
    return min(max(value, 1), 100)


def _aetiology(text: str) -> str | None:
    return next((name for name, rule in language.AETIOLOGY.items() if rule.search(text)), None)


def _region(clause: str, events: list[re.Match], start: int, end: int, sure: bool) -> _Region:
    """What the events of one part say; ``sure``: a bare percentage is the transmurality."""
    region = _Region()
    exact = any(event.lastgroup in ("wall", "segments") for event in events)
    words = ("wall", "levels") if exact else ("wall", "levels", "everywhere")
    region.groups = _locate([event for event in events if event.lastgroup in words])
    region.segments = {n for e in events if e.lastgroup == "segments" for n in _segment_numbers(e[0])}
    text = clause[start:end]
    for event in events:
        if event.lastgroup == "depth" and region.depth is None:
            region.depth = event[0]
        elif event.lastgroup == "pattern":
            pattern = {"patchy": "patchy", "diffuse": "diffuse", "multifocal": "patchy", "multi focal": "patchy"}
            region.details.setdefault("pattern", pattern.get(event[0], "linear"))
        elif event.lastgroup == "percent":
            before = re.split(r"[\d%]", clause[: event.start()])[-1][-45:]
            after = re.split(r"\d", clause[event.end() :])[0][:45]
            if re.search(r"circumf", after) or re.search(r"circumf\w+( extent)?:? ?$", before):
                region.details.setdefault("circumference", _percentage(event, bounded=False))
            elif re.search(
                r"^ ?(?:of )?(?:the )?(?:total )?(?:lv |left ventricular |myocardial )?(?:mass|volume|myocardium)",
                after,
            ):
                continue
            elif re.search(r"transm|thickness|\btm\b", before + after) or (
                sure and not re.search(r"\b(?:ef|lvef|rvef|fraction|ecv|burden)\b", before)
            ):
                region.details.setdefault("transmurality", _percentage(event))
    region.depth = {"midwall": "mid-wall"}.get(region.depth or "", region.depth)
    if "mvo" in text:
        region.details["no_reflow"] = True
    if aetiology := _aetiology(text):
        region.details["aetiology"] = aetiology
    return region


@dataclass
class _Reading:
    """The state of reading one report."""

    body: list[_Region] = field(default_factory=list)
    impression: list[_Region] = field(default_factory=list)
    causes: set[str] = field(default_factory=set)  # aetiologies that a conclusion names
    kept: list[str] = field(default_factory=list)  # the sentences about enhancement
    fresh: bool = False  # the next place starts a new scar

    def take(self, sentence: str, section: str, heading: str, follows: bool) -> bool:
        """Read one sentence; ``follows``: the one before was about enhancement. Whether this one is too."""
        context = section == "lge" or heading == "lesion"
        concludes = section == "impression"
        if not (context or follows or concludes or language.ROOTS.search(sentence.lower())):
            return False
        text = language.normal(sentence)
        if re.fullmatch(r"(?:scar|lesion|region)s? \d+:?", text):
            self.fresh = True
            return True
        if heading in ("lge", "impression", "body") and "segment" not in text.partition(":")[0]:
            text = text.partition(":")[2].strip()
        about = bool(language.NO_MVO.search(text)) or (section == "lge" and bool(heading))
        text = language.NOT_MEANT.sub(" ", language.NO_MVO.sub(" ", text))
        if language.HYPOTHETICAL.search(text) and not language.ASSERTED.search(text):
            return False
        if language.MODALITY.search(text):
            text, context, about = language.MODALITY.sub("imaging", text), True, True
        text = language.HISTORY.sub(" ", text)
        regions = self.impression if concludes else self.body
        negated, implied, skip, start = False, False, False, 0
        for found in [*language.BREAK.finditer(text), None]:
            clause = text[start : found.start() if found else len(text)]
            start = found.end() if found else len(text)
            events = list(language.EVENT.finditer(clause))
            kinds = {event.lastgroup for event in events}
            bare = not kinds & {"cue", "depth", "percent"}  # "all 17 segments | without LGE"
            if language.NEGATIVE.search(clause):
                about |= "cue" in kinds or context
                negated |= "cue" in kinds or context
            elif skip or (bare and language.NEGATED_NEXT.match(text, start)):
                about |= context
            elif clause.strip():
                if concludes and (cause := _aetiology(clause)):
                    self.causes.add(cause)
                    about |= bool(self.body)
                about |= self._clause(clause, events, regions, context or implied, heading, follows or about)
            implied = skip = False
            if found and found["except"]:  # what follows is the opposite of what came before, or of what comes after
                opposite = negated or (found.start() == 0 and bool(language.NEGATIVE.search(text[start:])))
                implied = opposite or "limited" in found[0] or "only" in found[0]
                skip = not implied
        return about

    def _clause(
        self, clause: str, events: list[re.Match], regions: list[_Region], context: bool, heading: str, follows: bool
    ) -> bool:
        """A clause that negates nothing: its parts become scars, or details of the last one."""
        parts, taken = _parts(events), False
        refers = bool(language.REFERS.match(clause.strip()))
        yes = context and bool(re.search(r"\b(?:positive|present|yes)\b|\+ve", clause))
        for index, part in enumerate(parts):
            start = part[0].start() if index else 0
            end = parts[index + 1][0].start() if index + 1 < len(parts) else len(clause)
            kinds = {event.lastgroup for event in part}
            place, cue = bool(kinds & _PLACES), "cue" in kinds
            if "other" in kinds and not cue and not (context and "depth" in kinds):
                continue
            strong = cue or yes or (place and (context or "depth" in kinds))
            region = _region(clause, part, start, end, sure=strong or context)
            last = regions[-1] if regions and not self.fresh else None
            if strong and (last is None or (region.placed and last.placed and not refers)):
                regions.append(region)
                self.fresh, taken = False, True
            elif last is not None and (strong or follows or context):
                if not (strong or refers or context):
                    region.segments, region.groups = set(), []
                if region.placed or region.depth or region.details:
                    last.absorb(region)
                    taken = True
        return taken


def _read(text: str) -> _Reading:
    reading, follows = _Reading(), False
    for sentence, section, heading in language.sentences(text):
        if section == "ignore":
            continue
        follows = reading.take(sentence, section, heading, follows)
        if follows:
            reading.kept.append(sentence)
    return reading


def read_report(text: str) -> Findings:
    """Findings that a report asserts about late enhancement of the left ventricle.

    Conclusions add an aetiology to what the body of the report describes, or stand in for it where it says nothing.
    Never raises on any text; what is not understood is not in the result.
    """
    reading = _read(str(text))
    regions = reading.body or reading.impression
    causes = reading.causes - {"ischaemic", "non-ischaemic"} or reading.causes
    if len(causes) == 1 and not any("aetiology" in region.details for region in regions):
        for region in regions:
            region.details["aetiology"] = next(iter(causes))
    return Findings(tuple(scar for region in regions for scar in region.scars()))


def states_enhancement(text: str) -> bool:
    """Whether a report says if there is late enhancement or none.

    It does not where no sentence speaks of it, where contrast was not given or the images show nothing, or where they
    deny it in one of the commoner languages beside English: `read_report` finds no scar there, or does not see that it
    is denied ("kein LGE"), which is not the same as a report of none. What is merely possible counts as none, as there.
    """
    reading = _read(str(text))
    if any(language.FOREIGN.search(language.normal(sentence)) for sentence in reading.kept):
        return False
    if reading.body or reading.impression:
        return True
    said = [language.normal(sentence) for sentence in reading.kept]
    if any(map(language.UNSEEN.search, said)):
        return False
    if any(language.NEGATIVE.search(each) or language.NORMAL.search(each) for each in said):
        return True
    sentences = [sentence for sentence, section, _ in language.sentences(str(text)) if section != "ignore"]
    return any(language.NORMAL_ENHANCEMENT.search(language.normal(sentence)) for sentence in sentences)


def lge_statement(text: str) -> str:
    """The sentences of a report that speak of late enhancement, as they stand, joined; empty if there are none."""
    return "\n".join(_read(str(text)).kept)
