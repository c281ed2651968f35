"""Read findings from a report.

A report is divided into sentences (`lgekit.reports.text`); each sentence is put in one wording
(`_plain`), cut into clauses where a negation's reach ends (`_clauses`), and each clause is judged:
does it speak of late enhancement of the left ventricle, of today, and does it affirm or deny it?
What affirmed clauses say of walls, depth and cause becomes scars.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby, islice, takewhile
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from lgekit.findings import ISCHAEMIC, LEVELS, WALL_WORDS, WALLS, Findings, Scar
from lgekit.reports.text import Sentence, rewrites, rules, sentences

_WALL_NAMES = "|".join(sorted(WALL_WORDS, key=len, reverse=True))
_TABLES = rules("reading_rules.toml", walls=_WALL_NAMES)
_CAUSES = list(_TABLES["aetiology"])
_CAUSE = re.compile("|".join(f"({'|'.join(each)})" for each in _TABLES["aetiology"].values()))
_RULES = SimpleNamespace(
    **{name: re.compile("|".join(options)) for name, options in _TABLES["rules"].items()}
)
_KINDS = "|".join(f"(?P<{kind}>{'|'.join(each)})" for kind, each in _TABLES["events"].items())
_EVENT = re.compile(rf"(?:(?<!\w)|(?=\W))(?:{_KINDS})")
_WORDS = [(re.compile(rule), plain) for rule, plain in rewrites(_TABLES["words"])]
_BOUNDED = r"(?<!\w)(?:%s)(?:(?<=\W)|(?!\w))"
_ROUNDS = [
    (re.compile(_BOUNDED % "|".join(f"(?P<_{n}>{each[0]})" for n, each in enumerate(pairs))), pairs)
    for pairs in map(rewrites, _TABLES["phrases"])
]
_ROOTS = _TABLES["roots"].split()
_VOCABULARY = (*WALL_WORDS, *_TABLES["vocabulary"].split())
_YES, _NO = (set(_TABLES["values"][name].split()) for name in ("yes", "no"))
_PLACES, _DETAILS, _LV, _SAID, _TARGETS = (
    set(kinds.split()) for kinds in _TABLES["kinds"].values()
)
_BACKWARD = {"absent": "no", "fine": "no", "doubted": "doubt"}
_LONG = 50_000  # characters; a report of one study has no more on late enhancement
_Group = tuple[tuple[str, ...], tuple[str, ...]]  # (walls, levels)


@lru_cache(maxsize=20_000)
def _word(word: str) -> str:
    """Return the one spelling of a word: typing errors, compounds, abbreviations."""
    for rule, plain in _WORDS:
        if found := rule.fullmatch(word):
            return found.expand(plain)
    if "-" in word:
        return " ".join(map(_word, word.split("-")))
    if 6 <= len(word) <= 20 and word not in _VOCABULARY:
        from rapidfuzz.distance import OSA

        for right in _VOCABULARY:  # one edit, or two in words of ten letters
            allowed = 2 if min(len(word), len(right)) >= 10 else 1
            if word[0] == right[0] and OSA.distance(word, right, score_cutoff=allowed) <= allowed:
                return _word(right)
    return word


def _walls_left(found: re.Match) -> str:
    """Name the walls that "all walls but …" leaves."""
    out = {wall for word in re.findall(_WALL_NAMES, found["walls"]) for wall in WALL_WORDS[word]}
    return " ".join(wall for wall in WALLS if wall not in out) + found["between"]


def _reworded(pairs: list[tuple[str, str]], found: re.Match) -> str:
    rule, words = pairs[int(str(found.lastgroup)[1:])]
    alone = re.compile(_BOUNDED % rule).match(found.string, found.start())
    return alone.expand(words) if alone else found[0]


@lru_cache(maxsize=20_000)
def _plain(text: str) -> str:
    """Return a sentence in lower case with one wording for each thing."""
    text = _RULES.prefix.sub(r"\1-", text.lower())
    text = re.sub(r"[a-z]+(?:['-][a-z]+)*", lambda found: _word(found[0]), text)
    text = re.sub(r"\s+", " ", text)
    for rule, pairs in _ROUNDS:
        text = rule.sub(partial(_reworded, pairs), text)
    return text.strip(" .")


def _kinds(events: Sequence[re.Match]) -> set[str]:
    return {str(event.lastgroup) for event in events}


@lru_cache(maxsize=20_000)
def _said(text: str) -> set[str]:
    return _kinds(list(_EVENT.finditer(_plain(text))))


def _rooted(text: str) -> bool:
    """Tell whether a sentence may be about late enhancement."""
    return any(map(text.lower().__contains__, _ROOTS))


def _reach(events: list[re.Match], start: int, ends: tuple[str, ...]) -> list[re.Match]:
    """Return the events from ``start`` to the first of these kinds."""
    return list(takewhile(lambda event: event.lastgroup not in ends, islice(events, start, None)))


def _list(events: list[re.Match], start: int) -> tuple[list[re.Match], re.Match | None]:
    """Return the list of places from ``start``, and the denial that follows it."""
    places = _PLACES | {"lv", "soft", "or"}
    listed = list(takewhile(lambda event: event.lastgroup in places, events[start : start + 40]))
    after = events[start + len(listed) : start + len(listed) + 1]
    return listed, next((event for event in after if event.lastgroup in ("absent", "fine")), None)


def _parts_company(left: list[re.Match], sign: str, events: list[re.Match], start: int) -> bool:
    """Tell whether what follows a comma, "and" or "with" has a polarity of its own."""
    right = _reach(events, start, ("soft", "hard", "except"))
    before, after = _kinds(left) - {"soft"}, _kinds(right)
    ahead, end = _list(events, start)
    if end and before and ahead and ahead[-1].lastgroup != "soft":
        signs = {event[0] for event in ahead}
        if before <= _PLACES | {"lv", "imaging"}:  # "Septum and apex: free"
            told = end.string[: end.start()].rstrip().endswith(":")
            return sign == "," and signs <= {","} and not told
        if "lv" in _kinds(ahead):  # "…, the other walls are free"
            return ahead[0].lastgroup == "lv"
        return sign == ","
    if next((event.lastgroup for event in right if event.lastgroup != "present"), "") == "no":
        return sign != "with" or not before <= _PLACES  # "The apex is alive, with no scar"
    thing = after & (_PLACES | {"cue", "other", "mvo", "organ", "lv", "imaging"})
    if after & {"absent", "fine", "denial"} and thing:
        return "cue" not in after
    if not ("cue" in after or "depth" in after):
        return False
    if "no" in before:
        negated = _kinds(left[[event.lastgroup for event in left].index("no") :])
        rest = _kinds(_reach(events, start, ("hard", "except")))
        return bool(negated & {"other", "mvo", "organ", "cue", "imaging"}) and "or" not in rest
    return bool(before & {"absent", "fine", "doubted", "doubt"})


def _clauses(text: str) -> list[tuple[list[re.Match], bool]]:
    """Cut a sentence where a negation's reach ends: (events, whether it is an exception)."""
    events = list(_EVENT.finditer(text))
    clauses: list[tuple[list[re.Match], bool]] = [([], False)]
    for index, event in enumerate(events):
        clause, exception = clauses[-1]
        if event.lastgroup in ("hard", "except"):
            clauses.append(([], event.lastgroup == "except"))
        elif exception and not clauses[0][0] and event.lastgroup in ("no", "denial"):
            clauses.append(([event], False))  # the main clause, after "Apart from …"
        elif event.lastgroup == "soft" and _parts_company(clause, event[0], events, index + 1):
            clauses.append(([], False))
        else:
            clause.append(event)
    return clauses


def _statuses(events: list[re.Match]) -> list[str]:
    """Return yes, no or doubt for each event of a clause, by the words of denial around it."""
    statuses: list[str] = []
    reach, chunk = "yes", 0
    for index, event in enumerate(events):
        kind = str(event.lastgroup)
        if kind == "nil":
            after, listed = _kinds(events[index + 1 : index + 2]), events[index - 1][0] == ","
            ahead = after & {"cue", "imaging", "mvo"}  # and "inferior scar, none in the apex":
            if listed and event.string.startswith(" in ", event.end()):
                ahead |= after & _PLACES
            kind = "no" if ahead else "absent"
        told = event.string[: event.start()].rstrip().endswith(":")  # "Fibrosis: no evidence of"
        if kind == "no" and told and not _kinds(events[index + 1 :]) & _TARGETS:
            kind = "absent"
        if kind == "absent" and _kinds(events[:index]) <= {"soft", "present"}:
            kind = "no"
        if kind in _BACKWARD:
            zero = event[0][0] == "0" and "percent" in _kinds(events)  # "Apex 0%, septum 50%"
            near = kind == "fine" or _kinds(events[chunk:index]) - {"soft"} == {"mvo"} or zero
            for n in range(chunk if near else 0, index):
                if not (zero and events[n].lastgroup == "cue"):
                    statuses[n] = _BACKWARD[kind]
        elif kind == "soft":
            chunk = index
        elif kind in ("no", "doubt"):
            reach = kind
        statuses.append(reach)
    return statuses


def _ventricular(text: str, events: list[re.Match], cue: re.Match, default: bool) -> bool:
    """Tell whether an enhancement is the left ventricle's, by its attribute, object or subject."""
    kinds = _LV | {"organ"} | ({"mapping"} if cue[0].endswith("fibrosis") else set())
    organs = [event for event in events if event.lastgroup in kinds]
    before = [event for event in organs if event.end() <= cue.start()]
    after = [event for event in organs if event.start() >= cue.end()]
    gap = text[before[-1].end() : cue.start()] if before else ""
    subject, target = (each[0].lastgroup if each else "" for each in (before[-1:], after))
    ahead = text[cue.end() : after[0].start()] if after else ""
    close = target == "organ" and cue[0].endswith("ing")
    if close or (subject == "organ" and _RULES.attribute.fullmatch(gap.strip() + " ")):
        return False
    if after and _RULES.complement.fullmatch(ahead):
        return target not in ("organ", "mapping")
    if subject == "mapping":
        return bool(re.search(r"[,;]|\b(?:no|without)\b", gap))
    apposed = subject == "organ" and _RULES.apposed.fullmatch(gap)
    if apposed or (not organs and _RULES.elsewhere.match(text, cue.end())):
        return False
    if not before or "myocardial" in cue[0]:
        return default or bool(before)
    linked = "," not in gap and _RULES.linked.fullmatch(gap)
    return subject != "organ" or (default and not linked)


class _Claim(NamedTuple):
    """What a clause says: yes, no, doubt, undone, or detail or mvo of a scar."""

    says: str
    events: Sequence[re.Match] = ()  # those affirmed


def _claim(text: str, events: list[re.Match], context: bool, default: bool) -> _Claim | None:
    """Judge a clause. ``context``: it is known to be about late enhancement."""
    kinds = _kinds(events)
    if not events or kinds & {"template", "undiagnostic"}:
        return None
    if "undone" in kinds:
        return _Claim("undone")
    first = next((event for event in events if event.lastgroup != "soft"), events[0])
    start = max(text.rfind(sign, 0, first.start()) + 1 for sign in ";,")
    clause = text[start : events[-1].end()]
    if _RULES.earlier.search(clause) and not _RULES.today.search(clause):
        return None
    statuses = _statuses(events)
    judged = list(zip(events, statuses, strict=True))
    affirmed = [event for event, status in judged if status == "yes"]
    stated = _kinds(affirmed)
    cues = [(event, status) for event, status in judged if event.lastgroup == "cue"]
    says = {status for cue, status in cues if _ventricular(text, events, cue, default)}
    context = context or "imaging" in kinds
    if "organ" in kinds and not says:
        return None
    if "yes" in says:
        enough = stated & (_DETAILS | {"present", "yes", "mvo", "territory"})
        return _Claim("yes", affirmed) if enough else None
    if "denial" in kinds:
        return _Claim("no")
    if says == {"doubt"} and "?" in clause:
        return None
    if says:
        return _Claim("doubt" if "doubt" in says else "no")
    if stated & {"other", "mapping"} and not (context and "depth" in stated):
        return None
    if stated & _PLACES and "depth" in stated or context and stated & (_PLACES | {"depth", "yes"}):
        return _Claim("yes", affirmed)
    if context and (set(statuses) - {"yes"} or kinds & {"absent", "fine", "nil"}):
        return _Claim("no")
    if stated & (_DETAILS | {"mvo"}):
        return _Claim("detail", affirmed)
    return _Claim("mvo") if "mvo" in kinds else None


@lru_cache(maxsize=20_000)
def _claims(text: str, context: bool, default: bool) -> tuple[tuple[_Claim, ...], str | None]:
    """Return what the clauses of a sentence say of late enhancement, and the cause it names."""
    plain = _plain(text)
    plain = _RULES.corrected.sub("", _RULES.comparison.sub(" ", plain))
    plain = _RULES.left_out.sub(_walls_left, plain)
    if not _RULES.today.search(plain) and not plain.startswith(("apart", "except", "other than")):
        plain = _RULES.history.sub(" ", plain)
    asked = _RULES.hypothetical.search(plain) and not _RULES.asserted.search(plain)
    if asked or _RULES.irrelevant.search(plain):
        return (), None
    clauses = _clauses(plain)
    claims: list[_Claim] = []
    told = False  # the clause before was about an earlier enhancement
    for number, (events, exception) in enumerate(clauses):
        if exception:  # the opposite of what it is an exception from
            after = clauses[number + 1 : number + 2]
            rest = (_claim(plain, one, context, default) for one, _ in after)
            main = claims[-1] if claims else next(rest, None)
            if not main or main.says != "no":
                continue
        if claim := _claim(plain, events, context or told or exception, default):
            claims.append(claim)
        told = "cue" in _kinds(events) and not claim and bool(_RULES.earlier.search(plain))
    parts = re.split(r"[;,]|->|\b(?:but|and|with)\b", plain) if _aetiology(plain) else []
    own = [each for each in parts if not (_RULES.denied.search(each) or "organ" in _said(each))]
    return tuple(claims), _aetiology(",".join(own))


@dataclass
class _Region:
    """What has been read about one scar."""

    segments: set[int] = field(default_factory=set)
    groups: list[_Group] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # the other fields of Scar
    said: list[str] = field(default_factory=list)  # the sentences that it was read from

    @property
    def placed(self) -> bool:
        return bool(self.segments or self.groups)

    def completes(self, other: _Region) -> bool:
        """Tell whether one names walls alone, and the other levels alone."""
        sides = [
            [any(group[side] for group in each.groups if group[1] != ("apex",)) for side in (0, 1)]
            for each in (self, other)
        ]
        return sorted(sides) == [[False, True], [True, False]] and not other.segments

    def absorb(self, other: _Region) -> None:
        """Take over what only the other one states."""
        self.segments |= other.segments
        groups = list(dict.fromkeys(self.groups + other.groups))
        if self.completes(other):
            walls, levels = (sum((group[side] for group in groups), ()) for side in (0, 1))
            groups = [(walls, levels)]
        self.groups = groups
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
        for place in ((tuple(walls), ()), ((), tuple(levels))):
            if any(place):
                yield Scar(*place, **self.details)
        if not self.placed:
            yield Scar(WALLS if self.details.get("pattern") == "diffuse" else (), **self.details)


def _segment_numbers(words: str) -> set[int]:
    """Read "segments 4-5 and 10" as {4, 5, 10}; "4-10-15" is a list, not a range."""
    found = set(map(int, re.findall(r"\d+", words)))
    several = len(re.findall(r"-|\bto\b", words)) > 1
    listed = several and not re.search(r"[,&/+]|and", words)
    ranges = [] if listed else re.findall(r"(\d+) ?(?:-|to) ?(?=(\d+))", words)
    return found.union(*(range(int(low), int(high) + 1) for low, high in ranges))


def _locate(events: list[re.Match]) -> list[_Group]:
    """Group walls and levels: levels stand before their walls, or all after them."""
    words: list[tuple[str, tuple[str, ...]]] = []
    for event in events:
        words.append(("levels", tuple(level for level in LEVELS if level in event[0])))
        if event.lastgroup != "levels":
            words.append(("wall", WALL_WORDS.get(event[0], WALLS)))
    runs = [
        (kind, tuple(value for _, values in run for value in values))
        for kind, run in groupby(filter(itemgetter(1), words), key=itemgetter(0))
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
    if pending:
        groups.append(((), pending))
    return groups


def _parts(events: Sequence[re.Match]) -> list[list[re.Match]]:
    """Split a clause's events where another depth, cue or matter with its own place begins."""
    parts: list[list[re.Match]] = [[]]
    last = max((n for n, e in enumerate(events) if e.lastgroup in ("wall", "segments")), default=0)
    for index, event in enumerate(events):
        begins = event.lastgroup in ("cue", "depth", "other", "pattern") and index < last
        kinds = _kinds(parts[-1]) if begins and event.string[event.start() - 1] != "(" else set()
        if kinds & {"wall", "levels", "segments"} and kinds & {"cue", "depth", "other"}:
            parts.append([])
        parts[-1].append(event)
    return parts


def _percentage(event: re.Match, sure: bool) -> dict[str, int]:
    """Read {"transmurality": 38} or {"circumference": 25}; nothing if it is neither."""
    before = re.split(r"[\d%]", event.string[: event.start()][-45:])[-1]
    around = f"{before}%{re.split(r'[0-9]', event.string[event.end() :][:45])[0]}"
    value, bound, kind = int(event["low"]), (event["bound"] or "").strip(), "transmurality"
    other = _RULES.fraction.search(around) or not sure
    if _RULES.circumference.search(around):
        bound, kind = "", "circumference"
    elif _RULES.share_of_mass.search(around) or (other and not _RULES.thickness.search(around)):
        return {}
    if event["high"]:
        value = (value + int(event["high"]) + 1) // 2
    elif bound:
        value = (value + (1 if bound in ("<", "≤", "less than", "under", "below") else 101)) // 2
    return {kind: min(max(value, 1), 100)}


def _aetiology(text: str) -> str | None:
    found = [cause.lastindex or 0 for cause in _CAUSE.finditer(text)]
    return _CAUSES[min(found) - 1] if found else None


def _region(events: list[re.Match], text: str, sure: bool) -> _Region:
    """Read the events of one part (``text``). ``sure``: a bare percentage is a transmurality."""
    kinds = _kinds(events)
    words = {"wall", "levels"} if kinds & {"wall", "segments"} else {"levels", "everywhere"}
    groups = _locate([event for event in events if event.lastgroup in words])
    segments: set[int] = set()
    stated: dict[str, Any] = {"no_reflow": True} if "mvo" in kinds else {}
    for event in events:
        if event.lastgroup == "segments":
            segments |= _segment_numbers(event[0])
        elif event.lastgroup == "depth":
            stated = {"depth": event[0].replace("midwall", "mid-wall")} | stated
        elif event.lastgroup == "pattern":
            pattern = {"m": "patchy", "p": "patchy", "d": "diffuse"}.get(event[0][0], "linear")
            stated = {"pattern": pattern} | stated
        elif event.lastgroup == "percent":
            stated = _percentage(event, sure) | stated
    cause = _aetiology(text)
    return _Region(segments, groups, stated | ({"aetiology": cause} if cause else {}))


def _statement(label: str, value: str, kind: str) -> str:
    """Return what a field of a kind says, without a label that adds nothing."""
    word = value.strip(" .").lower()
    if word in _NO or (word in _YES and _RULES.denying.search(label)):
        label, word = _RULES.denying.sub("", label), "absent"
    else:
        word = "present" if word in _YES else value
    label = f"segment {label}" if label.isdigit() else label.rstrip(" ?")
    if kind == "place" and word == value:
        word = word.replace(",", f", {label} ")
    named, said = _said(label), _said(word)
    detailed = bool(named & (_DETAILS | {"no"})) or not said & (_PLACES | _SAID)
    adds = {"lge": detailed, "organ": "cue" in named, "lesion": "depth" not in named & said}
    return f"{label}: {word}" if adds.get(kind, kind in ("place", "")) else word


@dataclass
class _Reading:
    """The state of reading one report."""

    body: list[_Region] = field(default_factory=list)
    impression: list[_Region] = field(default_factory=list)
    causes: set[str] = field(default_factory=set)  # aetiologies in the conclusion
    kept: list[tuple[str, str]] = field(default_factory=list)  # (what it says, sentence)
    listed: bool = False  # the last field was a property of a scar
    follows: bool = False  # the last sentence was about it

    def take(self, sentence: Sentence) -> None:
        """Read a sentence."""
        label, value, kind = sentence.label, sentence.value, sentence.kind
        self.listed = kind in ("lge", "lesion", "place") if kind else self.listed
        if kind == "outside" or (label and not value.strip(" ." if kind == "place" else " -.")):
            return
        if label and not kind and self.listed:
            said = _said(sentence.text)
            kind = "lesion" if said & _DETAILS and not said & {"other", "organ", "mapping"} else ""
        context = kind in ("lge", "lesion", "place")
        if not (self.follows or context or kind == "conclusion" or _rooted(sentence.text)):
            return
        if kind == "lge" and value[:4].lower() == "not ":  # "Not done", below its label
            label = label or "LGE"
        text = _statement(label, value, kind) if label else sentence.text
        claims, cause = _claims(text, context, not label or kind != "organ")
        concludes, says = kind == "conclusion", ""
        regions = self.impression if concludes else self.body
        for claim in claims:
            if claim.says not in ("yes", "detail"):
                says = says or claim.says
            for region in self._assert(claim, regions, context) if claim.events else ():
                says, self.follows = "yes", True
                region.said.append(sentence.text)
                if cause and "aetiology" not in region.details:
                    region.details["aetiology"] = cause
        if cause and concludes and "no" not in {claim.says for claim in claims}:
            self.causes.add(cause)
        if cause and not says and (self.follows or concludes):
            if self.follows and regions:
                regions[-1].absorb(_Region(details={"aetiology": cause}))
            says = "cause" if self.body else ""
        self.follows = bool(says) if says != "mvo" else bool(regions)
        self.kept += [(says, sentence.text)] if self.follows else []

    def _assert(self, claim: _Claim, regions: list[_Region], context: bool) -> list[_Region]:
        """Make scars of an affirming clause, or details of the last one; return them."""
        taken: list[_Region] = []
        parts = _parts(claim.events)
        refers = bool(_RULES.refers.match(parts[0][0].string))
        for index, part in enumerate(parts):
            end = parts[index + 1][0].start() if index + 1 < len(parts) else part[-1].end()
            words = part[0].string[part[0].start() : end]
            kinds = _kinds(part)
            if kinds & {"other", "mapping"} and not kinds & {"cue", "depth"}:
                continue
            strong = claim.says == "yes" and bool(kinds & ({"cue", "yes", "depth"} | _PLACES))
            region = _region(part, words, strong or context)
            last = regions[-1] if regions else None
            another = bool(last and region.placed and last.placed and not refers)
            known = strong or context or self.follows or taken
            if strong and (last is None or (another and not (context and region.completes(last)))):
                regions.append(region)
                taken.append(region)
            elif last and known and (region.placed or region.details):
                last.absorb(region)
                taken.append(last)
        return taken


@dataclass(frozen=True)
class ReportReading:
    """What a report says of late enhancement of the left ventricle."""

    states: Literal["yes", "no", "unsaid"]
    findings: Findings
    evidence: tuple[tuple[Scar | None, str], ...]  # each scar, or None for a denial, and a sentence
    statement: str  # all sentences on enhancement, one a line


@lru_cache(maxsize=20_000)
def read(text: str) -> ReportReading:
    """Return all that a report says of late enhancement of the left ventricle. Never raises.

    ``states`` is ``unsaid`` if no sentence is about it, it was not done or not diagnostic, the
    sentences are in another language than English, or more than 50,000 characters of them differ:
    that is no report of one study. A scar that is only possible counts as none. A conclusion adds
    an aetiology to the scars in the body of the report, or replaces the body if that states no
    scar.
    """
    reading = _Reading()
    said = [sentence for sentence in sentences(str(text)) if sentence.kind != "ignore"]
    if sum(len(one.text) for one in said) > _LONG:  # then what is repeated is read once
        said = list(dict.fromkeys(said))
        if sum(len(one.text) for one in said if one.label or _rooted(one.text)) > _LONG:
            said = []
    for sentence in said:
        reading.take(sentence)
    regions = reading.body or reading.impression
    causes = reading.causes - {"ischaemic", "non-ischaemic"} or reading.causes
    depths = {region.details["depth"] for region in reading.impression if "depth" in region.details}
    for name, values in (("aetiology", causes), ("depth", depths)):
        if len(values) == 1 and not any(name in region.details for region in regions):
            for region in regions:
                region.details[name] = next(iter(values))
    found = [(scar, each) for region in regions for scar in region.scars() for each in region.said]
    vague = {scar for scar, _ in found if not (scar.levels or scar.depth)}
    exact = {frozenset(scar.walls) for scar, _ in found if scar not in vague}
    less = {scar for scar in vague if any(walls >= set(scar.walls or "?") for walls in exact)}
    found = [pair for pair in found if pair[0] not in less]  # another states them more exactly
    done = "undone" not in dict(reading.kept)
    denials = [(None, each) for says, each in reading.kept if done and says in ("no", "doubt")]
    statement = "\n".join(each for _, each in reading.kept)
    states: Literal["yes", "no", "unsaid"] = "yes" if found else "no" if denials else "unsaid"
    findings = Findings(tuple(scar for scar, _ in found))
    return ReportReading(states, findings, tuple(found or denials), statement)


def read_report(text: str) -> Findings:
    """Return the findings that a report asserts about late enhancement of the left ventricle."""
    return read(text).findings


def states_enhancement(text: str) -> bool:
    """Tell whether a report says if there is late enhancement; a possible scar counts as none."""
    return read(text).states != "unsaid"


def lge_statement(text: str) -> str:
    """Return the sentences of a report about late enhancement, joined; empty if there are none."""
    return read(text).statement
