"""Read findings from a report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lgekit.findings import ISCHAEMIC, LEVELS, WALL_WORDS, WALLS, Findings, Scar

# One way to write each thing: applied to lower-case text, in this order; "_" stands for a space.
_SPELLINGS = r"""
[\u2010-\u2015\u2212] => -
[\u00a0\u2007\u202f] => _
per ?cent\b => %
\b(antero|infero|postero)[- ](?=sept|lat|inf|post|bas) => \1
\binferior[-/ ]?post(?:erior)?\b(?! wall and) => inferoposterior
\b(?:the )?left anterior descending(?: coronary)?(?: artery)?(?: \(lad\))? => lad
\bright coronary(?: artery)?(?: \(rca\))? => rca
\b(?:left )?circumflex(?: coronary)?(?: artery)?(?: \((?:lcx|cx)\))?|\bcx\b => lcx
\b(?:pci|stent\w*|stenosis|occlusion|cabg|graft\w*|lima|angioplasty)\b[^.;,]{0,20}\b(?:lad|rca|lcx)\b => _
\b\w+ papillary muscles?|\b(?:anterior|posterior) (?:mitral )?leaflets?|posterior descending => _
\b(?:late )?(?:hyper)?enhancement (?:of|along|in) the pericardium|\bpericardi\w+ (?:late )?(?:enhancement|lge) => _
\b(?:non|not)[- ]?transmural\w* => subendocardial
\b(?:near|almost|nearly|predominantly)[- ](?=transmural) =>
\bfull[- ]?(?:wall[- ])?thickness\b|\btransmurally\b => transmural
\bsub[- ]?endo(?:card\w*)?\b|\bendocardi\w+ => subendocardial
\bsub[- ]?epi(?:card\w*)?\b|\bepicardi\w+ => subepicardial
\bmid[- ]?(?:wall|myocardi\w+|mural)\b(?!s)|\bintra(?:mural|myocardial)\b|\bmesocardial\b => midwall
\b(?:anterior|inferior)(?: and | or |/|, )(?:the )?(?:inferior|anterior)(?= (?:septum|(?:rv )?insert)) => rv insertion
\b(?:insertion|hinge) points?( \w+)? \((anterior|inferior)\) => \2 insertion\1
\b(?:insertion|hinge) points?( \w+)? \((?:anterior and inferior|both)\) => rv insertion\1
\binferior(?: inter(?:ventricular)?)? ?septum|\binferior septal|\binferoseptum|\bposterior sept\w+ => inferoseptal
\banterior(?: inter(?:ventricular)?)? ?septum|\banterior septal|\banteroseptum => anteroseptal
\binferior (?:rv |right ventricular )?(?:insertion|hinge)(?: points?)? => inferoseptal
\banterior (?:rv |right ventricular )?(?:insertion|hinge)(?: points?)? => anteroseptal
\b(?:rv |right ventricular )?(?:insertion|hinge) points?|\brv insertions?|\brv insertion\b(?: points?)? => septal
\binferobasal|\bbasoinferior => basal inferior
\banterobasal => basal anterior
\bapico(?=septal|lateral|inferior|anterior) => apical_
\banteroapical => apical anterior
\b(?:interventricular )?septum|\bseptally => septal
\b(?:lv|left ventricular) free wall|\bhigh lateral => lateral
\b(anterior|inferior|lateral|posterior|inferolateral|anterolateral)ly\b => \1
\b(?:from )?(?:the )?base (?:through |down )?to (?:the )?(?:lv )?apex|\bbase-to-apex => basal mid apical
\bbasal (?:to|-) apex => basal mid apical
\bbas(?:e|al)(?: to | - |[-/]to[-/]|-)(?:the )?apical => basal mid apical
\b(?:from )?mid(?:[- ]?(?:ventric\w+|cavity|lv|level))? to (?:the )?(?:lv )?apex => mid apical
\bmid[- ]?(?:ventric\w+|cavit\w+|chamber|lv|level|third)\b|\bmedial\b => mid
\b(?:the |at )?base\b(?! of (?:the )?(?:skull|heart)) => basal
\b(?:the )?apex level|\bat (?:the )?level of the apex => apical
\b(?:true |lv |left ventricular |cardiac )?apex\b|\bapical (?:cap|tip)\b => apex
\bmicrovascular obstruction(?: \(mvo\))?|\bmvo\b|\bno[- ]reflow\b|\bhypointense core|\bdark core => mvo
\bnon[- ]?(?:isch[ae]{1,2}mic|infarct|coronary)\b => nonischaemic
\bperi[- ]?infarct\w* => bordering
\bmyocardial infarction|\binfarct(?:ion|ions|s|ed)?\b|\b(?:n?stemi|mi)\b => infarct
\b(?:lge|scar|enhancement)[- ]positive segments|\bsegments (?:with|showing) (?:lge|scar|enhancement) => lge segments
\bs(1[0-7]|[1-9])\b => segment \1
(?<=[a-z%)])-(?=[a-z(])|\s+ => _
"""
_SPELLING_RULES = [
    (re.compile(rule), text.strip().replace("_", " "))
    for rule, text in (line.split(" =>") for line in _SPELLINGS.strip().splitlines())
]

_CUE = (
    r"(?:(?:late|delayed|myocardial|post[- ]gadolinium|gadolinium|contrast|abnormal|pathological|focal) )*"
    r"(?:hyper ?enhanc\w+|enhanc\w+|uptake|lge|mde|dhe)|late gad\w*|\bscar\w*|\bfibrosis|\binfarct|\bfibrotic"
)
_OTHER = (  # matters that have places of their own, without being scar
    r"(?:hypo|a|dys|hyper)kine\w+|wall motion|thinn\w+|thicken\w+|wall thickness (?:of )?\d|measur\w+|\d+ ?mm\b|"
    r"perfusion|isch[ae]{1,2}mia\b|oedema|edema|\bt1\b|\bt2\b|t2\*|ecv|hyperintens\w+|thromb\w+|aneurysm\w*|"
    r"hypertroph(?:y|ied)|dysfunction\w*|contract\w+|strain|viab\w+"
)
_NUMBER = r"(?:1[0-7]|[1-9])\b"
_SEGMENTS = (
    r"(?:aha|\bseg(?:ment)?s?\b\.?|numbers?)[ :#(-]*(?:aha |lv )?(?:segments?|numbers?)?[ :#-]*"
    rf"(?:{_NUMBER}(?: ?(?:,|and|&|/|\+|to|-) ?)+)*{_NUMBER}(?! ?(?:%|mm|cm|g\b)|[-.]\d)"
)
_WALL = (
    rf"\b(?:{'|'.join(sorted(WALL_WORDS, key=len, reverse=True))})\b|"
    r"\ball (?:(?:of|the|basal|mid|apical|to|and|1[67]|lv|myocardial|aha)[,/]? ?)*(?:walls|segments)"
)
_PERCENT = (
    r"(?P<bound>[<>≤≥]|less than |under |below |more than |greater than |over |at least )? ?"
    r"(?P<low>\d{1,3})(?: ?%)?(?: ?(?:-|to) ?(?P<high>\d{1,3}))? ?%"
)
EVENT = re.compile(
    rf"(?P<other>{_OTHER})|(?P<cue>{_CUE})|(?P<segments>{_SEGMENTS})|"
    r"(?P<depth>\bsubendocardial|\bmidwall|\bsubepicardial|(?<!% )\btransmural\b"
    r"(?! (?:extent|extension|involvement of)))|"
    rf"(?P<wall>{_WALL})|(?P<everywhere>\b(?:circumferential|concentric)(?! extent)|\bglobal\b)|"
    rf"(?P<levels>\bbasal|\bmid\b|\bapical|\bapex)|(?P<percent>{_PERCENT})|"
    r"(?P<pattern>\bpatchy|\blinear|\bstriae?\b|\bstripe|\bband|\bdiffuse|\bmulti ?focal)"
)
# The first that fits; what is more exact comes first.
AETIOLOGY = {
    name: re.compile(rule)
    for name, rule in (
        *(
            ("LAD", r"\blad\b"),
            ("RCA", r"\brca\b"),
            ("LCx", r"\blcx\b"),
            ("myocarditis", r"myocardit\w+"),
        ),
        *(("sarcoid", r"sarcoid\w*"), ("dilated", r"dilated cardiomyopathy|\bi?dcm\b")),
        *(
            ("hypertrophic", r"hypertrophic (?:obstructive )?cardiomyopathy|\bho?cm\b"),
            ("amyloid", r"amyloid\w*"),
        ),
        *(("non-ischaemic", r"nonischaemic"),),
        ("ischaemic", r"\binfarct|\bisch[ae]{1,2}mic|coronary artery disease"),
    )
}
NO_MVO = re.compile(
    r"\b(?:no|without|nor|absence of|free of|negative for)(?: \w+){0,4}? mvo|"
    r"mvo(?: is| was|:)*[: ]+(?:absent|none|no|nil|not \w+|-(?!\w))"
)
MODALITY = re.compile(  # the method, not a finding
    r"\b(?:(?:late|delayed|post|contrast|phase|gad\w+|enhanc\w+|hyper ?enhanc\w+|lge|mde|de|inversion|recovery|ir)"
    r"[ -]?)+(?:mri?|imag\w+|sequences?|stud\w+|protocol|series|views?|acquisitions?|scans?)\b|\b(?:lge|mde|"
    r"late enhancement|"
    r"late gad\w*(?: enhancement)?)(?= (?:shows?|showed|demonstrat\w+|reveal\w+|confirm\w+|identif\w+|does|did))"
)
NOT_MEANT = re.compile(  # negated things that are no scars, and parts of the heart that a scar is said to spare
    r"\b(?:no|without|nor|not|absence of)(?: [\w/-]+){0,3}? (?:thromb\w+|effusion|o?edema|stenosis|regurgitation|"
    r"isch[ae]{1,2}mia|perfusion defects?|wall motion \w+|inflammation|change\w*|valve \w+|artefacts?|complications?)"
    r"(?! or| nor|, )|\b(?:sparing|excluding|not (?:involv|extend|affect|reach|includ)\w+|spared?)\b[^,;.]*|"
    r"\bunlikely to (?:recover|improve|benefit)|\brv side of the septal|\bno interval change in|\b(?:no|unclear|"
    r"uncertain) (?:[a-z]+ )?(?:relevance|significance|consequence)"
)
BREAK = re.compile(  # where a clause ends, so that a negation reaches no further
    r"[;]| (?:but|however|although|though|whereas|while|otherwise|therefore)\b|"
    r", (?=(?:there (?:is|was|were|are) )?(?:no|without|nil) )| (?=(?:with|and) (?:no|without)\b)|"
    r"(?<!^) (?=without )|"
    r"(?P<except>,? ?\b(?:apart from|except\w*(?: for)?|other than|with the exception of|limited to|only) )"
)
_ARTEFACT = r"(?:artefact|artifact|partial volume)"
NEGATIVE = re.compile(
    r"\bnull\w* (?:normal|uniform|homogen)\w*|\bnormal\w* null|\b(?:no|not|without|absen\w+|free of|negative|nil|none|"
    r"neither|nor|never|fail\w* to|ruled out|resolved|resolution of|exclud\w+|unremarkable|lack\w*|devoid|unlikely|"
    r"low (?:likelihood|probability)|questionable|doubtful|equivocal|uncertain|non ?diagnostic|score 0|0/1[67])\b|\b0%|"
    r"-ve\b|\blge-(?= )|"
    r"\blge:? ?\(?-\)?$|\bpossible (?:\w+ ){0,4}(?:enhanc|lge|scar|fibro|infarct|focus)|(?:enhancement|lge|"
    r"scar) possible|enhances? (?:homogen|uniform|normal)\w*|"
    r"(?:enhanc\w+|lge|scar\w*) (?:is|are|was|were|appears?)? ?normal|\b(?:could|can) ?not\b|"
    r"\bnormal (?:t[12] and |perfusion and )?(?:lge|late)\b|(?:scar|lge|fibrosis)[ -]free\b|"
    rf"{_ARTEFACT}\w*(?= |$|[.,;)]).*(?:likely|favou?red|probab)|"
    rf"(?:likely|favou?red|probab|felt|thought|represent|due to|may|could).*{_ARTEFACT}"
)
FOREIGN = re.compile(  # denials of other languages, which use the words LGE and late enhancement too
    r"\b(?:kein\w*|nicht|ohne|ausschluss|geen|niet|zonder|pas d[e'’]|aucune?|sin|ning[uú]n\w*|nessun\w*|senza|"
    r"nenhum\w*|negativ|unauff[aä]llig\w*|nachweis\w*|assenza|assente|ausencia|ausente|ingen|inget|inga|utan|ikke|uden|"
    r"brak|bez|nie|ej|n[aã]o|non (?:si|c|evidenz\w*|evident\w*|aree|segni)|"
    r"(?:sans|sem) (?:late|lge|r[ée]haus\w*|realce|evid\w*))\b"
)
UNSEEN = re.compile(  # nothing was given, nothing was imaged, or nothing could be told from it
    r"\b(?:non ?diagnostic|uninterpretable|inconclusive|indeterminate|pending)\b|"
    r"\bno (?:iv |intravenous )?(?:contrast|gadolinium)(?: agent| medium)? (?:was |has been |could be )?"
    r"(?:given|admin|used|inject)|"
    r"\b(?:not|(?:could|can) ?not be|insufficient\w*)(?: \w+){0,3}? (?:given|administered|injected|performed|acquired|"
    r"obtained|done|available|assess\w*|evalua\w+|interpret\w*|comment)\b"
)
NORMAL = re.compile(
    r"\bnormal|\bunremarkable|\bviab|\bhomogen\w+ null|: ?[-–ø]$"
)  # in a sentence on enhancement
NORMAL_ENHANCEMENT = re.compile(  # in any sentence
    r"\bnull\w* (?:normal|uniform|homogen)|\b(?:normal|uniform|homogen\w+) (?:myocardial )?(?:null|suppress)|"
    r"\b(?:(?:post|late|delayed|recovery|psir|lge|mde)[ -]?)+(?:contrast |enhancement )?(?:imag\w+|sequences?|"
    r"phase\w*)\b[^,;.]*\b(?:normal|unremarkable|negative|null)|"
    r"\b(?:no|without) (?:[a-z]+ ){0,2}?(?:scar|infarct\w*|fibrosis|lge)\b"
)
NEGATED_NEXT = re.compile(r"(?:(?:with|and|there (?:is|was)) )?(?:no|without|nil|absent)\b")
HYPOTHETICAL = re.compile(
    r"\?|^(?:if|should|patients with)\b|\b(?:to|please) (?:assess|evaluate|look for|exclude|rule out|comment|detect)|"
    r"\b(?:assess\w*|evaluat\w+|query|search\w*|look) (?:for|of)\b|^assess\b|\bassess (?:viab|lv|scar|myo)|\bquery\b|"
    r"\brule out|\br/o\b|\bsuspected\b|\bindication\b|\bif (?:lge|scar)|\bwhether\b|\bdifferential\b|"
    r"\b(?:was|were|been) (?:performed|acquired|obtained)|\bacquired\b|\bfamily history|\bprotocol\b|\bmmol\b"
)
ASSERTED = re.compile(r"\b(?:show|demonstrat|reveal|confirm)\w*")
HISTORY = re.compile(
    r"\b(?:history of|h/o|hx|s/p|status post|known|post|day \d+ post|had an?)\b (?:(?:\w+ ){0,4}?)infarct|"
    r"infarct (?:in |\()?(?:19|20)\d\d"
)
REFERS = re.compile(r"(?:it|this|these|they|the (?:scar|enhancement|latter))\b")
ROOTS = re.compile(  # without one of these a sentence is about something else
    r"enh|ehanc|lge|scar|fibro|inf|gad|mde|dhe|upta|mural|endo|epi|myoc|mid|mvo|micro|reflow|seg|transm|lesion|region|"
    r"location|\bs1?\d\b"
)

_HEADINGS = {
    "ignore": r"indications?|clinical\b[\w /]*|history|reason for[\w ]*|request\w*|technique|protocol|methods?|"
    r"comparison|question|background",
    "lge": r"presence|present|result|(?:the )?(?:(?:late|delayed|myocardial|post)[ -]?)*(?:gad\w*|contrast)?[ -]?"
    r"(?:hyper ?)?(?:enhancement|lge|mde)(?: imaging| images)?|late gad\w*[\w ]*|tissue char\w+|viability|fibrosis|"
    r"(?:infarct )?scar\w*(?: imaging)?|delayed[\w ]*imag\w+|lge [\w ()]+",
    "impression": r"(?:in )?(?:conclusions?|impressions?|summary|opinion|diagnosis|comment)",
    "lesion": r"location|localisation|depth|distribution|pattern|transmurality|transmural extent|extent[\w ]*|mvo|"
    r"circumferential extent|microvascular obstruction|no[- ]reflow|a?etiology|interpretation",
    "body": r"lv|rv|left ventricle|right ventricle|function|findings|report|other[\w ]*|remainder|perfusion|oedema|"
    r"t2[\w ]*|t1[\w ]*|valves?|atria|pericardium|morphology|volumes|wall motion|aorta|lungs|extra-?cardiac[\w ]*",
}
_HEADING = re.compile("|".join(rf"(?P<{name}>{rule})" for name, rule in _HEADINGS.items()))
_SENTENCE_END = re.compile(
    r"(?<!\bapprox)(?<!\be\.g)(?<!\bi\.e)(?<!\bseg)(?<!\bvs)(?<!\bca)(?<!\bdr)(?<!\bmr)(?<!^\d)(?<!\s\d)[.!?]+(?=\s|$)",
    re.IGNORECASE,
)
_LONGEST = 1000  # characters of a sentence; what is longer is cut, so that no rule needs long
_WORDS = (*WALL_WORDS, *"""septum anteroseptum inferoseptum interventricular subendocardial subepicardial transmural
transmurality enhancement hyperenhancement gadolinium infarction infarct fibrosis delayed intramural epicardial
endocardial myocardial myocardium circumference circumferential microvascular obstruction""".split())  # fmt: skip


def _edits(one: str, two: str) -> int:
    """Damerau-Levenshtein distance (an adjacent swap counts once)."""
    rows = [list(range(len(two) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(two, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and a == two[j - 2] and one[i - 2] == b:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


@lru_cache(maxsize=20_000)
def spelt(word: str) -> str:
    """The vocabulary's word that this one misspells by one edit (two from ten letters on), or the word itself."""
    if len(word) < 6 or len(word) > 20 or word in _WORDS:
        return word
    for right in _WORDS:
        longer = right.startswith(word) or word.startswith(right)
        if word[0] == right[0] and abs(len(word) - len(right)) <= 2 and not longer:
            if _edits(word, right) <= (2 if min(len(word), len(right)) >= 10 else 1):
                return right
    return word


def normal(sentence: str) -> str:
    """A sentence in lower case with one spelling for each thing ("sub-endocardial", "endocardial" → subendocardial)."""
    text = re.sub(r"[a-z]{6,}", lambda found: spelt(found[0]), sentence.lower())
    for rule, word in _SPELLING_RULES:
        text = rule.sub(word, text)
    return text.rstrip(" .").lstrip(" .•*-\t")


def sentences(text: str) -> Iterator[tuple[str, str, str]]:
    """A report's sentences as (sentence, section, heading).

    Section and heading are ``ignore`` (history, technique), ``lge``, ``impression``, ``lesion`` (a line such as
    "Location: …") or ``body``; heading is "" where the sentence has none of its own.
    """
    section, block, seen = (
        "body",
        False,
        False,
    )  # block: an ignored heading with a line to itself, up to an empty line
    for line in text.splitlines():
        start, heads = 0, False
        for end in [*(found.end() for found in _SENTENCE_END.finditer(line)), len(line)]:
            sentence, start = line[start:end].strip(), end
            head, colon, rest = sentence.lstrip("-*•# \t0123456789.)").partition(":")
            heading, alone = "", not rest.strip() and len(sentence) == len(line.strip())
            if (colon or alone) and (found := _HEADING.fullmatch(head.strip().lower())):
                heading = found.lastgroup or ""
                section = section if heading == "lesion" else heading
                block, seen, heads = alone, False, heads or alone
            for cut in range(0, len(sentence), _LONGEST):
                if sentence[cut : cut + _LONGEST].strip(" .-*•"):
                    yield sentence[cut : cut + _LONGEST], section, heading if cut == 0 else ""
        if (
            section == "ignore" and not heads
        ):  # ends with its line, or with an empty one after its block
            section = "ignore" if (block and line.strip()) or (block and not seen) else "body"
            seen = seen or bool(line.strip())


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
        if (
            self.details.get("aetiology") in ("ischaemic", None)
            and other.details.get("aetiology") in ISCHAEMIC
        ):
            self.details["aetiology"] = other.details["aetiology"]

    def scars(self) -> Iterator[Scar]:
        """The scars of this region: one, unless its walls and levels do not multiply."""
        details = {"depth": self.depth, **self.details}
        vague = [group for group in self.groups if not group[0] or not group[1]]
        full = [group for group in self.groups if group[0] and group[1]]
        segments = self.segments | {
            s for walls, levels in full for s in Scar(walls, levels).segments
        }
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
    return next((name for name, rule in AETIOLOGY.items() if rule.search(text)), None)


def _region(clause: str, events: list[re.Match], start: int, end: int, sure: bool) -> _Region:
    """What the events of one part say; ``sure``: a bare percentage is the transmurality."""
    region = _Region()
    exact = any(event.lastgroup in ("wall", "segments") for event in events)
    words = ("wall", "levels") if exact else ("wall", "levels", "everywhere")
    region.groups = _locate([event for event in events if event.lastgroup in words])
    region.segments = {
        n for e in events if e.lastgroup == "segments" for n in _segment_numbers(e[0])
    }
    text = clause[start:end]
    for event in events:
        if event.lastgroup == "depth" and region.depth is None:
            region.depth = event[0]
        elif event.lastgroup == "pattern":
            pattern = {
                "patchy": "patchy",
                "diffuse": "diffuse",
                "multifocal": "patchy",
                "multi focal": "patchy",
            }
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
        if not (context or follows or concludes or ROOTS.search(sentence.lower())):
            return False
        text = normal(sentence)
        if re.fullmatch(r"(?:scar|lesion|region)s? \d+:?", text):
            self.fresh = True
            return True
        if heading in ("lge", "impression", "body") and "segment" not in text.partition(":")[0]:
            text = text.partition(":")[2].strip()
        about = bool(NO_MVO.search(text)) or (section == "lge" and bool(heading))
        text = NOT_MEANT.sub(" ", NO_MVO.sub(" ", text))
        if HYPOTHETICAL.search(text) and not ASSERTED.search(text):
            return False
        if MODALITY.search(text):
            text, context, about = MODALITY.sub("imaging", text), True, True
        text = HISTORY.sub(" ", text)
        regions = self.impression if concludes else self.body
        negated, implied, skip, start = False, False, False, 0
        for found in [*BREAK.finditer(text), None]:
            clause = text[start : found.start() if found else len(text)]
            start = found.end() if found else len(text)
            events = list(EVENT.finditer(clause))
            kinds = {event.lastgroup for event in events}
            bare = not kinds & {"cue", "depth", "percent"}  # "all 17 segments | without LGE"
            if NEGATIVE.search(clause):
                about |= "cue" in kinds or context
                negated |= "cue" in kinds or context
            elif skip or (bare and NEGATED_NEXT.match(text, start)):
                about |= context
            elif clause.strip():
                if concludes and (cause := _aetiology(clause)):
                    self.causes.add(cause)
                    about |= bool(self.body)
                about |= self._clause(
                    clause, events, regions, context or implied, heading, follows or about
                )
            implied = skip = False
            if (
                found and found["except"]
            ):  # what follows is the opposite of what came before, or of what comes after
                opposite = negated or (found.start() == 0 and bool(NEGATIVE.search(text[start:])))
                implied = opposite or "limited" in found[0] or "only" in found[0]
                skip = not implied
        return about

    def _clause(
        self,
        clause: str,
        events: list[re.Match],
        regions: list[_Region],
        context: bool,
        heading: str,
        follows: bool,
    ) -> bool:
        """A clause that negates nothing: its parts become scars, or details of the last one."""
        parts, taken = _parts(events), False
        refers = bool(REFERS.match(clause.strip()))
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
    for sentence, section, heading in sentences(text):
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
    if any(FOREIGN.search(normal(sentence)) for sentence in reading.kept):
        return False
    if reading.body or reading.impression:
        return True
    said = [normal(sentence) for sentence in reading.kept]
    if any(map(UNSEEN.search, said)):
        return False
    if any(NEGATIVE.search(each) or NORMAL.search(each) for each in said):
        return True
    kept = [sentence for sentence, section, _ in sentences(str(text)) if section != "ignore"]
    return any(NORMAL_ENHANCEMENT.search(normal(sentence)) for sentence in kept)


def lge_statement(text: str) -> str:
    """The sentences of a report that speak of late enhancement, as they stand, joined; empty if there are none."""
    return "\n".join(_read(str(text)).kept)
