"""Read findings from a report.

A report is divided into sentences (`lgekit.reports.text`); each sentence is put in one wording
(`_plain`), cut into clauses where a negation's reach ends (`_clauses`), and each clause is judged:
does it speak of late enhancement of the left ventricle, of today, and does it affirm or deny it?
What affirmed clauses say of walls, depth and cause becomes scars.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from lgekit.findings import ISCHAEMIC, LEVELS, WALL_WORDS, WALLS, Findings, Scar
from lgekit.reports.text import Sentence, sentences

_TABLES = tomllib.loads(Path(__file__).with_name("reading_rules.toml").read_text(encoding="utf-8"))


def _rules(table: dict[str, list[str]]) -> dict[str, re.Pattern]:
    return {name: re.compile("|".join(options)) for name, options in table.items()}


def _rewriting(table: str) -> list[tuple[str, str]]:
    lines = [line.split(" =>") for line in table.strip().splitlines()]
    return [(rule, word.strip()) for rule, word in lines]


_CAUSES = list(_TABLES["aetiology"])
_CAUSE = re.compile("|".join(f"({'|'.join(rules)})" for rules in _TABLES["aetiology"].values()))
_FOREIGN = re.compile(_TABLES["foreign"])
_RULES = SimpleNamespace(**_rules(_TABLES["rules"]))
_EVENT = re.compile(
    r"(?:(?<!\w)|(?=\W))(?:"
    + "|".join(
        f"(?P<{kind}>{'|'.join(rules)})" for kind, rules in _TABLES["events"].items()
    ).replace("{walls}", "|".join(sorted(WALL_WORDS, key=len, reverse=True)))
    + ")"
)
_ORGAN = re.compile(rf"\b(?:{'|'.join(_TABLES['events']['organ'])})")
_WORDS = [(re.compile(rule), word) for rule, word in _rewriting(_TABLES["words"])]
_PHRASES = []
for _table in _TABLES["phrases"]:
    _pairs = _rewriting(_table.replace("{layer}", _TABLES["layer"]))
    _any = "|".join(f"(?P<r{number}>{rule})" for number, (rule, _) in enumerate(_pairs))
    _PHRASES.append((re.compile(rf"(?<!\w)(?:{_any})(?:(?<=\W)|(?!\w))"), [w for _, w in _pairs]))
_ROOTS = _TABLES["roots"].split()
_VOCABULARY = (*WALL_WORDS, *_TABLES["vocabulary"].split())
_YES, _NO = (set(_TABLES["values"][name].split()) for name in ("yes", "no"))
_SAID = {"cue", "depth", "imaging", "denial"}
_THINGS = {"cue", "depth", "other", "organ", "mvo"}
_DENYING = re.compile(r"(?i)\b(?:absent|negative|no(?![ -]reflow))\b")
_PLACES = {"wall", "segments", "levels", "everywhere"}
_TARGETS = _PLACES | {"cue", "depth", "other", "organ", "mvo", "imaging"}
_DETAILS = {"depth", "pattern", "percent"} | _PLACES
_Group = tuple[tuple[str, ...], tuple[str, ...]]  # (walls, levels)


@lru_cache(maxsize=20_000)
def _word(word: str) -> str:
    """Return the one spelling of a word: typing errors, compounds, abbreviations."""
    for rule, plain in _WORDS:
        if found := rule.fullmatch(word):
            return found.expand(plain)
    if "-" in word:
        return " ".join(map(_word, word.split("-")))
    right = _corrected(word)
    return word if right == word else _word(right)


@lru_cache(maxsize=20_000)
def _foreign(word: str) -> bool:
    return bool(_FOREIGN.fullmatch(word))


def _corrected(word: str) -> str:
    """Correct one edit (two in words of ten letters) towards the vocabulary."""
    if not 6 <= len(word) <= 20 or word in _VOCABULARY:
        return word
    from rapidfuzz.distance import OSA

    for right in _VOCABULARY:
        allowed = 2 if min(len(word), len(right)) >= 10 else 1
        longer = word != right + right[-1] and (right.startswith(word) or word.startswith(right))
        if word[0] == right[0] and not longer and abs(len(word) - len(right)) <= allowed:
            if OSA.distance(word, right) <= allowed:
                return right
    return word


_CODES = {"a": "anterior", "i": "inferior", "l": "lateral", "s": "septal"}
_CODES |= {"se": "subendocardial", "transmurality": "transmural"}
_CODES |= {"al": "anterolateral", "il": "inferolateral", "as": "anteroseptal", "is": "inferoseptal"}
_CODED = re.compile(
    r"\b[ai][ls](?= and \w+ walls?\b)"
    r"|(?<= - )[ai][ls](?= and)|\b[ai][ls](?= (?:walls?|segments?)\b(?! (?:motion|thick|stress)))"
    r"|(?<=\bbasal )[ai][ls]\b|(?<=\bmid )[ai][ls]\b|(?<=\bapical )[ai][ls]\b"
    r"|(?<=[a-z])(?: ?and | ?[,/+&] ?)[ai][ls](?= ?(?:[,;/+&.()]|and |walls?|seg|$))"
    r"|\b[ai][ls](?= ?[/+&])"
    r"|(?<=[a-z] )se(?= ?[,;.)]|$)|(?<=[a-z,] )transmurality(?= ?[,;.)]|$)"
)


_SEGMENT = re.compile(  # "s7", "7 yes"
    r"\bs(1[0-7]|[1-9])\b|(?:(?<=[:;,] )|^)(1[0-7]|[1-9])(?=[ =:]+(?:yes|no|positive|negative)\b)"
)
_NAMED = "|".join(sorted(WALL_WORDS, key=len, reverse=True))
_LEFT_OUT = re.compile(
    r"(?:all walls|circumferential|global)(?P<between>[^.;:,]{0,30}?),? "
    r"(?:but|other than|not|without|(?:apart|aside) from|(?:except|sav|spar|barr|exclud)\w*"
    r"|with the exception)(?: (?:for|of|in))?(?P<walls>(?:,?"
    rf"(?: (?:and|or|both|the|basal|mid|apical|walls?))* (?:{_NAMED})\b)+)(?: walls?)?"
)
_OTHERS = re.compile(r"\b(?:(?:all|every|the) )*(?:other|remaining) (?:walls?|segments?)")


def _complement(walls: str) -> str:
    """Return the walls that are not among those named."""
    named = {wall for word in re.findall(_NAMED, walls) for wall in WALL_WORDS[word]}
    return " ".join(wall for wall in WALLS if wall not in named)


def _decoded(found: re.Match) -> str:
    return re.sub(r"\b(?:[ai][ls]|se|transmurality)\b", lambda code: _CODES[code[0]], found[0])


def _reworded(words: list[str], found: re.Match) -> str:
    return found.expand(words[int((found.lastgroup or "r0")[1:])])


@lru_cache(maxsize=20_000)
def _plain(text: str) -> str:
    """Return a sentence in lower case with one wording for each thing."""
    text = re.sub(
        r"\b(antero|infero|postero|sub|epi|endo|trans|intra) (?=[a-z])", r"\1-", text.lower()
    )
    text = re.sub(r"[a-z]+(?:['-][a-z]+)*", lambda found: _word(found[0]), text)
    text = re.sub(r"\bw/o\b", "without", re.sub(r"per ?cent\b", "%", re.sub(r"\s+", " ", text)))
    text = _SEGMENT.sub(r"segment \1\2", _CODED.sub(_decoded, text))
    for rule, words in _PHRASES:
        text = rule.sub(partial(_reworded, words), text)
    return text.strip(" .")


def _with_label(label: str, value: str) -> str:
    """Return the value of a field on enhancement with what its label adds."""
    named, said = (_kinds(list(_EVENT.finditer(_plain(part)))) for part in (label, value))
    kept = bool(named & _DETAILS or _aetiology(_plain(label)))
    return value if said & (_PLACES | _SAID) and not kept else f"{label}: {value}"


_FAR = 40  # words of the rules; no phrase reaches further


def _rooted(text: str) -> bool:
    return any(root in text for root in _ROOTS)


def _kinds(events: list[re.Match]) -> set[str]:
    return {str(event.lastgroup) for event in events}


def _reach(events: list[re.Match], start: int, ends: tuple[str, ...]) -> list[re.Match]:
    """Return the events from ``start`` to the first of these kinds."""
    for index in range(start, min(start + _FAR, len(events))):
        if events[index].lastgroup in ends:
            return events[start:index]
    return events[start : start + _FAR]


def _parts_company(left: list[re.Match], sign: str, events: list[re.Match], start: int) -> bool:
    """Tell whether what follows a comma, "and" or "with" has a polarity of its own."""
    right, left = _reach(events, start, ("soft", "hard", "except")), left[-_FAR:]
    before, after = _kinds(left) - {"soft"}, _kinds(right)
    first = next((event.lastgroup for event in right if event.lastgroup != "present"), "")
    thing = after & (_PLACES | {"cue", "other", "mvo", "organ", "lv", "imaging"})
    if not before or not right:
        return False
    if first == "no":
        return True
    if (
        after & {"absent", "fine", "denial"}
        and thing
        and before - {"wall", "levels", "lv", "present", "segments", "everywhere", "imaging"}
    ):
        return len(sign) < 6 and (sign != "and" or "cue" not in after)
    if "yes" in after and thing and before & {"absent", "yes", "no"}:
        return True
    claim = "cue" in after and len(after & (_DETAILS | {"present"})) > 0
    claim = claim or ("depth" in after and bool(after & _PLACES))
    if not claim:
        return False
    if "no" in before:
        negated = _kinds(_reach(left, _index(left, "no"), ()))
        rest = _reach(events, start, ("hard", "except"))
        named = [event.lastgroup for event in rest if event.lastgroup not in ("present", "lv")]
        listed = any(pair[0] == "or" and pair[1] in _THINGS for pair in pairwise(named))
        things = {"other", "mvo", "organ"} | ({"cue", "imaging"} if len(sign) < 6 else set())
        return bool(negated & things) and not listed
    return bool(before & {"absent", "fine", "doubted", "doubt"})


def _index(events: list[re.Match], kind: str) -> int:
    return next(n for n, event in enumerate(events) if event.lastgroup == kind)


def _clauses(text: str) -> list[tuple[list[re.Match], bool]]:
    """Cut a sentence where a negation's reach ends: (events, whether it is an exception)."""
    events = list(_EVENT.finditer(text))
    clauses: list[tuple[list[re.Match], bool]] = [([], False)]
    for index, event in enumerate(events):
        clause, exception = clauses[-1]
        if event.lastgroup in ("hard", "except"):
            clauses.append(([], event.lastgroup == "except"))
        elif exception and len(clauses) == 2 and not clauses[0][0] and _main(events, index):
            clauses.append(([] if event.lastgroup == "soft" else [event], False))
        elif event.lastgroup == "soft":
            if _parts_company(clause, event[0], events, index + 1):
                clauses.append(([], False))
            else:
                clause.append(event)
        else:
            clause.append(event)
    return clauses


def _main(events: list[re.Match], index: int) -> bool:
    """Tell whether the main clause begins here, after "Apart from …"."""
    if events[index].lastgroup == "soft":
        follows = _kinds(_reach(events, index + 1, ("soft", "hard")))
        return events[index][0] == "," and bool(follows & {"no", "absent", "present", "yes", "cue"})
    return events[index].lastgroup in ("no", "denial") or events[index][0].startswith("there ")


_BACKWARD = {"absent": "no", "fine": "no", "doubted": "doubt"}


def _statuses(events: list[re.Match]) -> list[str]:
    """Return yes, no or doubt for each event of a clause, by the words of denial around it."""
    statuses: list[str] = []
    reach, done, chunk = "yes", 0, 0
    before: set[str] = set()
    for index, event in enumerate(events):
        kind = event.lastgroup or ""
        if kind == "nil":
            named = before & {"cue", "imaging", "mvo", "depth", *_PLACES}
            ahead = _kinds(events[index + 1 : index + 2]) & {"cue", "imaging", "mvo"}
            kind = "absent" if named and not ahead else "no"
        if kind == "no" and before & {"cue"} and not _kinds(events[index + 1 :]) & _TARGETS:
            kind = "absent" if event.string[: event.start()].rstrip().endswith(":") else "no"
        if kind == "absent" and not before - {"soft", "present"}:
            kind = "no"
        if kind in _BACKWARD:
            near = kind == "fine" or _kinds(events[chunk:index]) - {"soft"} == {"mvo"}
            for n in range(max(done, chunk if near else 0), index):
                statuses[n] = _BACKWARD[kind] if statuses[n] == "yes" else statuses[n]
            done = index
        elif kind == "soft":
            chunk = index
        elif kind == "no" or (kind == "doubt" and reach == "yes"):
            reach = kind
        statuses.append(reach)
        before.add(kind)
    return statuses


_ATTRIBUTE = re.compile(
    r"\W?(?:(?!(?:and|with|without|of|in|or|is|are|on|no|shows?|but|for|from|to|by|as)\b)\w+ ){0,3}"
)
_COMPLEMENT = re.compile(
    r"[ :](?:(?!(?:and|with|but|or|no)\b)[\w-]+ ){0,4}?"
    r"(?:of|in|along|at|within|involving|affecting|over|throughout|around)(?: [\w-]+){0,4} ?"
)
_ADJECTIVE = re.compile(r"(?:al|ic|ary|ar|ous)$")  # names an organ as an attribute
_LINK = re.compile(
    r"[^,]*\b(?:with|shows?|showing|which|that|is|are|has|does)(?!.* (?:and|or) )\b.*"
)
_APPOSED = re.compile(
    r".*, (?:(?:most|very|an?|the|old|likely|probabl[ey]|presumabl[ey]|perhaps) ?)+"
)
_ELSEWHERE = re.compile(  # "of the …", where … has no name of the heart
    r" (?:\w+ )?(?:of|in|within|along) (?:the|an?|both) (?:left |right |upper |lower )?(?!(?:\w+ )?"
    r"(?:mid|middle|inner|outer|area|region|zone|territor|distribut|same|late|lge|heart|cardiac|remain|other"
    r"|rest|known|affected|involved|infarct|scar|setting|context|absence|presence|form|shape|pattern"
    r"|first|second|third|\d|usual|typical|core|centre|cent|patient|study|scan|image|short|long|above"
    r"|described|previous|prior|old|extent|size|order|vicinity|wall))\w"
)
_GENERAL = re.compile(r"^(?:enhanc|uptake|fibro|scarring)")  # said of any organ
_LV = _PLACES | {"depth", "lv"}


def _ventricular(text: str, events: list[re.Match], index: int, default: bool) -> bool:
    """Tell whether an enhancement is the left ventricle's: asked of its attribute, then of what
    it is an enhancement of, then of the subject before it."""
    cue = events[index]
    near = events[max(0, index - _FAR) : index + _FAR]
    kinds = _LV | {"organ"} | ({"mapping"} if cue[0].endswith("fibrosis") else set())
    organs = [event for event in near if event.lastgroup in kinds]
    before = [event for event in organs if event.end() <= cue.start()]
    after = [event for event in organs if event.start() >= cue.end()]
    gap = text[before[-1].end() : cue.start()] if before else ""
    if cue[0] in ("enhance", "enhances"):
        gap = gap.replace(",", "")
    if before and before[-1].lastgroup == "organ" and _ATTRIBUTE.fullmatch(gap.strip() + " "):
        return False
    if after:
        ahead = text[cue.end() : after[0].start()]
        if after[0].lastgroup == "organ" and cue[0].endswith("ing") and ahead.count(" ") < 3:
            return False
        if _COMPLEMENT.fullmatch(ahead):
            return after[0].lastgroup != "organ"
    if before and before[-1].lastgroup == "mapping":
        return bool(re.search(r"[,;]|\b(?:no|without)\b", gap))
    if before and before[-1].lastgroup == "organ" and _APPOSED.fullmatch(gap):
        return False
    if not organs and _ELSEWHERE.match(text, cue.end()):
        return False
    if not before or "myocardial" in cue[0]:
        return default or bool(before)
    adjective = bool(_ADJECTIVE.search(before[-1][0])) and not _LINK.fullmatch(gap)
    apart = "," in gap and not _GENERAL.search(cue[0])
    return before[-1].lastgroup != "organ" or (default and (adjective or apart))


@dataclass(frozen=True)
class _Claim:
    """What a clause says: yes, no, doubt, undone, undiagnostic, or detail or mvo of a scar."""

    says: str
    events: tuple[re.Match, ...] = ()  # those affirmed
    cue: bool = False


def _claim(text: str, events: list[re.Match], context: bool, default: bool) -> _Claim | None:
    """Judge a clause. ``context``: it is known to be about late enhancement."""
    kinds = _kinds(events)
    if not events or "template" in kinds:
        return None
    for kind in ("undone", "undiagnostic"):
        if kind in kinds:
            return _Claim(kind)
    first = next((event for event in events if event.lastgroup != "soft"), events[0])
    near = max(0, first.start() - 300)
    start = max(near, *(text.rfind(sign, near, first.start()) + 1 for sign in ";,"))
    clause = text[start : events[-1].end()]
    if _RULES.earlier.search(clause) and not _RULES.today.search(clause):
        return None
    statuses = _statuses(events)
    cues = [
        index
        for index, event in enumerate(events)
        if event.lastgroup == "cue" and _ventricular(text, events, index, default)
    ]
    if "cue" in kinds and not cues and "denial" not in kinds:
        return None
    affirmed = tuple(e for e, s in zip(events, statuses, strict=True) if s == "yes")
    stated = _kinds(list(affirmed))
    says = {statuses[index] for index in cues}
    context = context or "imaging" in kinds
    if "organ" in kinds and not cues and not stated & {"depth"}:
        return None
    if "yes" in says:
        if stated & (_DETAILS | {"present", "yes", "mvo", "territory"}):
            return _Claim("yes", affirmed, True)
        return None
    if "denial" in kinds:
        return _Claim("no")
    if says == {"doubt"} and "?" in clause:
        return None
    if says:
        return _Claim("doubt" if "doubt" in says else "no")
    denied = {s for e, s in zip(events, statuses, strict=True) if e.lastgroup != "organ"} - {"yes"}
    if stated & {"other", "mapping"} and not (context and "depth" in stated):
        return None
    if context:
        if stated & (_PLACES | {"depth"}) or "yes" in stated:
            return _Claim("yes", affirmed)
        if denied or kinds & {"absent", "fine", "nil"}:
            return _Claim("no")
    elif "depth" in stated and stated & _PLACES:
        return _Claim("yes", affirmed)
    if stated & (_DETAILS | {"mvo"}):
        return _Claim("detail", affirmed)
    return _Claim("mvo") if "mvo" in kinds else None


@lru_cache(maxsize=20_000)
def _claims(text: str, context: bool, default: bool) -> tuple[tuple[_Claim, ...], str | None]:
    """Return what the clauses of a sentence say of late enhancement of the left ventricle, and the
    cause that it names."""
    plain = _plain(text)
    if "compar" in plain or " than " in plain:
        plain = _RULES.comparison.sub(" ", plain)
    if any(word in plain for word in ("correct", "that", "read", "amended")):
        plain = _RULES.corrected.sub("", plain)
    if not _RULES.today.search(plain.partition(";")[0]):
        plain = _RULES.then.sub("", plain)
    plain = _LEFT_OUT.sub(lambda found: _complement(found["walls"]) + found["between"], plain)
    if " other " in plain or "remaining" in plain:
        plain = _OTHERS.sub(lambda found: _complement(found.string[: found.start()]), plain)
    if context:  # scores: "anterior 0, inferior 3"
        plain = re.sub(r"(rior|al|apex) [1-4](?= ?(?:[,;)]|$))", r"\1 yes", plain)
    if not _RULES.today.search(plain) and not plain.startswith(("apart", "except", "other than")):
        plain = _RULES.history.sub(" ", plain)
    if any(map(_foreign, re.findall(r"[^\W\d_]+", plain))):
        return (), None
    if _RULES.hypothetical.search(plain) and not _RULES.asserted.search(plain):
        return (), None
    if _RULES.irrelevant.search(plain):
        return (), None
    clauses = _clauses(plain)
    claims: list[_Claim | None] = []
    cause = _aetiology(plain)
    if cause:
        parts = re.split(r"[;,]|->|\b(?:but|and|with)\b", plain)
        own = [each for each in parts if not (_RULES.denied.search(each) or _ORGAN.search(each))]
        cause = _aetiology(",".join(own))
    for number, (events, exception) in enumerate(clauses):
        implied = context
        if exception:  # the opposite of what it is an exception from
            whole: list[_Claim | None] = [claim for claim in claims if claim]
            if not whole and number + 1 < len(clauses):
                whole = [_claim(plain, clauses[number + 1][0], context, default)]
            if not whole or not whole[-1] or whole[-1].says != "no":
                continue
            implied = True
        claims.append(_claim(plain, events, implied, default))
    return tuple(claim for claim in claims if claim), cause


@dataclass
class _Region:
    """What has been read about one scar."""

    segments: set[int] = field(default_factory=set)
    groups: list[_Group] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # the other fields of Scar
    sentences: list[str] = field(default_factory=list)  # that it was read from

    @property
    def placed(self) -> bool:
        return bool(self.segments or self.groups)

    def completes(self, other: _Region) -> bool:
        """Tell whether one names walls alone, and the other levels alone."""
        sides = [
            [any(group[side] for group in each.groups) for side in (0, 1)] for each in (self, other)
        ]
        return sorted(sides) == [[False, True], [True, False]] and not other.segments

    @property
    def walls(self) -> frozenset[str]:
        return frozenset(wall for scar in self.scars() for wall in scar.walls)

    @property
    def bare(self) -> bool:
        """Tell whether it names nothing but walls."""
        located = self.segments or any(group[1] for group in self.groups)
        return self.placed and not located and "depth" not in self.details

    def absorb(self, other: _Region) -> None:
        """Take over what only the other one states."""
        self.segments |= other.segments
        if self.completes(other):
            both = [
                sum((group[side] for group in self.groups + other.groups), ()) for side in (0, 1)
            ]
            self.groups = [(both[0], both[1])]
        else:
            self.groups += other.groups
        mine, cause = self.details.get("aetiology"), other.details.get("aetiology")
        self.details = other.details | self.details
        if mine == "ischaemic" and cause in ISCHAEMIC:
            self.details["aetiology"] = cause

    def scars(self) -> Iterator[Scar]:
        """Yield the scars of this region: one, unless its walls and levels do not multiply."""
        groups = list(dict.fromkeys(self.groups))
        exact = [group for group in groups if all(group) or group[1] == ("apex",)]
        segments = self.segments.union(*(Scar(*group).segments for group in exact))
        vague = [group for group in groups if group not in exact]
        if segments:  # then "global" adds nothing
            vague = [group for group in vague if group != (WALLS, ())]
            whole = Scar(*exact[0], **self.details) if len(exact) == 1 else None
            if whole and whole.segments == segments:
                yield whole
            else:
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
    last = max((n for n, e in enumerate(events) if e.lastgroup in ("wall", "segments")), default=0)
    kinds: set[str] = set()
    for index, event in enumerate(events):
        begins = event.lastgroup in ("cue", "depth", "other", "pattern")
        full = kinds & {"wall", "levels", "segments"} and kinds & {"cue", "depth", "other"}
        if begins and full and index < last and event.string[event.start() - 1] != "(":
            parts.append([])
            kinds = set()
        parts[-1].append(event)
        kinds.add(str(event.lastgroup))
    return parts


def _percentage(clause: str, event: re.Match, sure: bool) -> dict[str, int]:
    """Read {"transmurality": 38} or {"circumference": 25}; nothing if it is neither."""
    before = re.split(r"[\d%]", clause[max(0, event.start() - 45) : event.start()])[-1]
    after = re.split(r"\d", clause[event.end() : event.end() + 45])[0]
    value, bound, kind = int(event["low"]), (event["bound"] or "").strip(), "transmurality"
    if re.search(r"circumf", after) or re.search(
        r"circumferential(?!.*transm)[^;.]{0,30}$|circumference:? ?$", before
    ):
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
    found = [cause.lastindex or 0 for cause in _CAUSE.finditer(text)]
    return _CAUSES[min(found) - 1] if found else None


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
    if "mvo" in kinds:
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
    kept: list[tuple[str, str]] = field(default_factory=list)  # (what it says, sentence)
    new_scar: bool = False  # the next place starts a new scar
    about: bool = True  # the last field was about late enhancement
    listed: bool = False  # the last field was a property of a scar
    follows: bool = False  # the last sentence was about it

    def take(self, sentence: Sentence) -> None:
        """Read a sentence."""
        if re.fullmatch(r"(?i)\W*(?!segm|grade|aha)[a-z]+ #?(?:\d|[a-d]|i{1,3})\W*", sentence.text):
            self.new_scar = not self.body or self.body[-1].placed
            self.listed = True
            self.kept.append(("", sentence.text))
            return
        if sentence.kind == "outside" or (sentence.label and not sentence.value.strip(" -.")):
            if sentence.label and sentence.kind not in ("lesion", "place"):
                self.about = sentence.kind not in ("organ", "outside")
                self.listed = sentence.kind == "lge"
            return
        if sentence.label and not sentence.kind and self.listed:
            events = _kinds(list(_EVENT.finditer(_plain(sentence.text))))
            if events & _DETAILS and not events & {"other", "organ", "mapping"}:
                sentence = replace(sentence, kind="lesion")
        if sentence.kind:
            self.listed = sentence.kind in ("lge", "lesion", "place")
        if sentence.kind == "lge" or (sentence.label and sentence.kind not in ("lesion", "place")):
            self.about = sentence.kind not in ("organ", "outside")
        needed = self.follows or sentence.kind in ("lge", "lesion", "place", "conclusion")
        if not needed and not _rooted(sentence.text.lower()):
            return
        text, default = sentence.text, sentence.kind not in ("organ", "outside")
        if sentence.label:
            value = sentence.value.strip(" .").lower()
            denied = value in _NO or (value in _YES and bool(_DENYING.search(sentence.label)))
            word = "absent" if denied else "present" if value in _YES else sentence.value
            label = _DENYING.sub("", sentence.label) if denied else sentence.label
            label = f"segment {label}" if label.isdigit() else label.rstrip(" ?")
            if sentence.kind == "place" and word == sentence.value and "," in word:
                word = f", {label} ".join(word.split(","))
            keep = sentence.kind in ("lesion", "place", "")
            if sentence.kind == "lesion":  # a depth in the label and one in the value
                both = [_kinds(list(_EVENT.finditer(_plain(part)))) for part in (label, word)]
                keep = "depth" not in both[0] & both[1]
            text = f"{label}: {word}" if keep else word
            if sentence.kind == "lge":
                text = _with_label(label, word)
        elif sentence.kind == "organ":
            default = True
        context = default and self.about and sentence.kind in ("lge", "lesion", "place")
        claims, cause = _claims(text, context, default)
        concludes, says = sentence.kind == "conclusion", ""
        regions = self.impression if concludes else self.body
        for claim in claims:
            if claim.says in ("yes", "detail"):
                taken = self._assert(claim, _plain(text), regions, context)
                for region in taken:
                    region.sentences.append(sentence.text)
                    if cause and "aetiology" not in region.details:
                        region.details["aetiology"] = cause
                if taken:
                    says, self.follows = "yes", True
            else:
                says = says or claim.says
        if cause and not says and (self.follows or concludes):
            if concludes:
                self.causes.add(cause)
            if self.follows and regions:
                regions[-1].absorb(_Region(details={"aetiology": cause}))
            says = "cause" if self.body else ""
        elif cause and concludes and "no" not in {claim.says for claim in claims}:
            self.causes.add(cause)
        self.follows = bool(says) if says != "mvo" else bool(regions)
        if self.follows:
            self.kept.append((says, sentence.text))

    def _assert(
        self, claim: _Claim, text: str, regions: list[_Region], context: bool
    ) -> list[_Region]:
        """Make scars of an affirming clause, or details of the last one; return them."""
        parts: list = _parts(list(claim.events))
        taken: list[_Region] = []
        strong_clause = claim.says == "yes"
        refers = bool(_RULES.refers.match(text))
        for index, part in enumerate(parts):
            end = parts[index + 1][0].start() if index + 1 < len(parts) else part[-1].end()
            kinds = _kinds(part)
            place = bool(kinds & _PLACES)
            if (
                kinds & {"other", "mapping"}
                and "cue" not in kinds
                and not (context and "depth" in kinds)
            ):
                continue
            strong = strong_clause and (
                bool(kinds & {"cue", "yes"} or (context and "depth" in kinds))
                or (place and (context or "depth" in kinds or index == 0))
            )
            region = _region(
                part[0].string, part, part[0].string[part[0].start() : end], strong or context
            )
            last = regions[-1] if regions and not self.new_scar else None
            another = bool(last and region.placed and last.placed and not refers)
            if strong and (last is None or (another and not (context and region.completes(last)))):
                regions.append(region)
                self.new_scar = False
                taken.append(region)
            elif last is not None and (strong or self.follows or context or taken):
                if not (strong or refers or context):
                    region.segments, region.groups = set(), []
                if region.placed or region.details:
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
def _read(text: str) -> ReportReading:
    reading = _Reading()
    for sentence in sentences(text):
        if sentence.kind != "ignore":
            reading.take(sentence)
    says = {said for said, _ in reading.kept}
    regions = reading.body or reading.impression
    causes = reading.causes - {"ischaemic", "non-ischaemic"} or reading.causes
    if len(causes) == 1 and not any("aetiology" in region.details for region in regions):
        for region in regions:
            region.details["aetiology"] = next(iter(causes))
    stated = {region.walls for region in regions if not region.bare}
    regions = [  # without those that another one states more exactly
        region
        for region in regions
        if not (region.bare and any(region.walls <= walls for walls in stated))
    ]
    depths = {region.details["depth"] for region in reading.impression if "depth" in region.details}
    if len(depths) == 1 and not any("depth" in region.details for region in regions):
        for region in regions:
            region.details["depth"] = next(iter(depths))
    found = [
        (scar, each) for region in regions for scar in region.scars() for each in region.sentences
    ]
    states: Literal["yes", "no", "unsaid"] = "unsaid"
    if found:
        states = "yes"
    elif (
        "undone" not in says
        and says & {"no", "doubt"}
        and not (says >= {"undiagnostic"} and "no" not in says)
    ):
        states = "no"
    denials = [(None, each) for said, each in reading.kept if said in ("no", "doubt")]
    evidence = tuple(found or (denials if states == "no" else []))
    statement = "\n".join(each for _, each in reading.kept)
    return ReportReading(states, Findings(tuple(scar for scar, _ in found)), evidence, statement)


def read(text: str) -> ReportReading:
    """Return all that a report says of late enhancement of the left ventricle. Never raises.

    ``states`` is ``unsaid`` if no sentence is about it, it was not done or not diagnostic, or the
    sentences are in another language than English. A scar that is only possible counts as none.
    A conclusion adds an aetiology to the scars in the body of the report, or replaces the body if
    that states no scar.
    """
    return _read(str(text))


def read_report(text: str) -> Findings:
    """Return the findings that a report asserts about late enhancement of the left ventricle."""
    return read(text).findings


def states_enhancement(text: str) -> bool:
    """Tell whether a report says if there is late enhancement; a possible scar counts as none."""
    return read(text).states != "unsaid"


def lge_statement(text: str) -> str:
    """Return the sentences of a report about late enhancement, joined; empty if there are none."""
    return read(text).statement
