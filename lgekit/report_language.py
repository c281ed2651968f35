"""The language of CMR reports: spellings, sections, sentences, and the words that stand for findings or against them.

Rules only; `lgekit.report_reader` puts them together. All rules but the headings work on `normal` text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from lgekit.findings import WALL_WORDS

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
        *(("LAD", r"\blad\b"), ("RCA", r"\brca\b"), ("LCx", r"\blcx\b"), ("myocarditis", r"myocardit\w+")),
        *(("sarcoid", r"sarcoid\w*"), ("dilated", r"dilated cardiomyopathy|\bi?dcm\b")),
        *(("hypertrophic", r"hypertrophic (?:obstructive )?cardiomyopathy|\bho?cm\b"), ("amyloid", r"amyloid\w*")),
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
NORMAL = re.compile(r"\bnormal|\bunremarkable|\bviab|\bhomogen\w+ null|: ?[-–ø]$")  # in a sentence on enhancement
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
    section, block, seen = "body", False, False  # block: an ignored heading with a line to itself, up to an empty line
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
        if section == "ignore" and not heads:  # ends with its line, or with an empty one after its block
            section = "ignore" if (block and line.strip()) or (block and not seen) else "body"
            seen = seen or bool(line.strip())
