"""Findings into reports: whole CMR reports in several writers' styles, zero-shot prompts, report noise, privacy check.

Reading a report back is `lgekit.report_reader`, whose functions are also found here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar, draw_scar
from lgekit.report_grammar import STYLES, lge_words, say
from lgekit.report_reader import lge_statement, read_report, states_enhancement

__all__ = [
    "STYLES",
    "canonical_text",
    "check_privacy",
    "corrupt_findings",
    "lge_statement",
    "prompts",
    "read_report",
    "require_privacy",
    "states_enhancement",
    "write_report",
]

# The rest of a report, by part: what every CMR report holds and what a reader of scars must not fall for.
_INDICATION = (
    "[Assess for [scar|viability|fibrosis|myocardial scar].|Known ischaemic heart disease, viability?|"
    "History of myocardial infarction. Assess LV function and scar.|Chest pain and raised troponin, ?myocarditis.|"
    "Palpitations, to exclude cardiomyopathy.|Dyspnoea. Query infiltrative disease.|Ventricular ectopy, rule out scar.|"
    "New heart failure, aetiology?|Previous PCI to LAD, residual viability?|Family history of HCM.|Abnormal ECG.]"
)
_TECHNIQUE = (
    "[Cine SSFP in long and short axis, late gadolinium imaging [10|12|15] minutes after 0.[1|15|2] mmol/kg "
    "gadolinium contrast.|"
    "Standard protocol with cines, T2 imaging and LGE at [1.5|3] T.|"
    "Multiplanar cine imaging and inversion recovery imaging for late enhancement were performed.]"
)
_VOLUMES = (
    "[The left ventricle is {size} (LVEDV {edv} ml, LVESV {esv} ml) with LVEF {ef}%.|LV EDV {edv} ml, ESV {esv} ml, "
    "EF {ef}%.|"
    "LVEF {ef}%, LVEDVi {edvi} ml/m2.|LV {size}. Ejection fraction {ef}%.]"
)
_MOTION = (
    "[No regional wall motion abnormality.|Normal wall motion.|Mild global hypokinesia.|"
    "[Hypokinesia|Akinesia|Hypokinesis] of the {where} wall.|There is a regional wall motion abnormality in the "
    "{where} wall.|"
    "The {where} wall is [thinned|hypokinetic].|Septal dyskinesia due to LBBB.]"
)
_RIGHT = (
    "[RV normal in size and function.|RVEF {rvef}%.|The right ventricle is normal, with no regional wall motion "
    "abnormality.|"
    "RV mildly dilated, RVEF {rvef}%.]"
)
_OTHERS = (
    "No [LV |intracardiac |][thrombus|thrombus seen].",
    "[Trivial|Mild] [mitral|tricuspid] regurgitation.",
    "[No pericardial effusion|Small pericardial effusion|No pericardial thickening or effusion].",
    "[Atria [are |]normal in size|The left atrium is [mildly |]dilated].",
    "[No [myocardial |]oedema on T2 imaging|T2 signal is normal|Native T1 {t1} ms].",
    "[Aortic valve trileaflet, no stenosis|Normal aortic root].",
    "[No inducible perfusion defect|Maximal wall thickness {thick} mm in the septum|LV mass {mass} g].",
)
_LGE_HEADINGS = (
    "[LGE|Late gadolinium enhancement|LATE GADOLINIUM ENHANCEMENT|Delayed enhancement|Late enhancement|"
    "Tissue characterisation]"
)
_ENDS = {
    True: "[LGE as [described|above].|Myocardial scar as [described |detailed ]above.|Late enhancement as described.|"
    "Abnormal study.|LVEF {ef}%.|Please see findings above.]",
    False: "[No [evidence of |][scar|LGE|late enhancement|myocardial fibrosis].|Normal study.|LVEF {ef}%.|"
    "Structurally normal heart.|No evidence of [infarction|infarct, fibrosis or infiltration].]",
}


def write_report(findings: Findings, rng: np.random.Generator, style: str | None = None, whole: bool = True) -> str:
    """Write a report that says these findings, each time in other words.

    Args:
        findings: what to say; `read_report` gives exactly these back.
        rng: the only source of chance.
        style: one of `STYLES` (kinds of writers), or None for a chance one.
        whole: True for a CMR report with all its parts around the statement on enhancement, False for that alone.

    Raises:
        InputError: unknown style.
    """
    if style is None:
        style = STYLES[int(rng.integers(len(STYLES)))]
    elif style not in STYLES:
        raise InputError("style", f"unknown style {style!r}", f"use one of {', '.join(STYLES)}, or None")
    statement = lge_words(findings, rng, style)
    if not whole:
        return statement
    ef = int(rng.normal(48 if findings.present else 60, 8))
    edv = int(rng.normal(170, 30))
    facts = {
        **{"ef": str(ef), "edv": str(edv), "esv": str(round(edv * (100 - ef) / 100)), "edvi": str(round(edv / 1.9))},
        **{
            "rvef": str(int(rng.normal(55, 6))),
            "t1": str(int(rng.normal(1010, 30))),
            "mass": str(int(rng.normal(120, 20))),
        },
        **{"thick": str(int(rng.integers(9, 14))), "size": "[normal in size|mildly dilated|of normal size]"},
        "where": f"[basal |mid |apical |]{WALLS[int(rng.integers(6))]}",
    }
    others = [_OTHERS[index] for index in rng.permutation(len(_OTHERS))[: int(rng.integers(1, 5))]]
    before = [_VOLUMES, _MOTION, _RIGHT] if rng.random() < 0.8 else [_VOLUMES, _MOTION]
    cut = int(rng.integers(len(others) + 1))
    before, after = before + others[:cut], others[cut:]
    end = _ENDS[findings.present]
    if style in ("structured", "terse") or rng.random() < 0.3:
        heading = say(rng, _LGE_HEADINGS)
        parts = [
            *([f"[Indication|INDICATION|Clinical details]: {_INDICATION}"] if rng.random() < 0.6 else []),
            *([f"[Technique|TECHNIQUE]: {_TECHNIQUE}"] if rng.random() < 0.4 else []),
            f"[LV|Left ventricle|Function|FINDINGS]: {' '.join(before)}",
            f"{heading}:{chr(10) if style == 'structured' else ' '}{{statement}}",
            *([f"[Other|Other findings|Remainder]: {' '.join(after)}"] if after else []),
            *([f"[Conclusion|IMPRESSION|Impression|Summary]: {end}"] if rng.random() < 0.6 else []),
        ]
        text = say(rng, "\n".join(parts), **facts)
        return text.replace("{statement}", statement)
    parts = [
        *([_INDICATION] if rng.random() < 0.3 else []),
        *([_TECHNIQUE] if rng.random() < 0.2 else []),
        *(" ".join(before), "{statement}", " ".join(after)),
        *([f"[Conclusion|Impression|In summary]: {end}"] if rng.random() < 0.5 else []),
    ]
    text = say(rng, "[\n| ]".join(part for part in parts if part), **facts)
    return text.replace("{statement}", statement)


def _listing(words: tuple[str, ...]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def canonical_text(findings: Findings) -> str:
    """The findings in one fixed wording, which `read_report` reads back."""
    if not findings.present:
        return "No late gadolinium enhancement."
    sentences = []
    for scar in findings.scars:
        rings = _listing(tuple(level for level in scar.levels if level != "apex"))
        article, named = ("all", "") if len(scar.walls) == 6 else ("the", _listing(scar.walls))
        noun = "wall" if len(scar.walls) == 1 else "walls" if scar.walls else "segments"
        place = " ".join(filter(None, (rings, named, noun))) if rings or scar.walls else ""
        place = _listing(tuple(filter(None, (place, "apical cap" if "apex" in scar.levels else ""))))
        kind = " ".join(filter(None, (scar.pattern, scar.depth, "late gadolinium enhancement")))
        details = [
            f"{scar.transmurality}% transmurality" if scar.transmurality else "",
            f"{scar.circumference}% of the circumference" if scar.circumference else "",
            "with microvascular obstruction" if scar.no_reflow else "",
            f"consistent with {_AETIOLOGY_TEXT[scar.aetiology]}" if scar.aetiology else "",
        ]
        sentences.append(", ".join([kind + (f" in {article} {place}" if place else ""), *filter(None, details)]) + ".")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


_AETIOLOGY_TEXT = {
    **{artery: f"infarction in the {artery} territory" for artery in ("LAD", "RCA", "LCx")},
    **{"ischaemic": "myocardial infarction", "myocarditis": "myocarditis", "dilated": "dilated cardiomyopathy"},
    **{
        "hypertrophic": "hypertrophic cardiomyopathy",
        "sarcoid": "cardiac sarcoidosis",
        "amyloid": "cardiac amyloidosis",
    },
    "non-ischaemic": "a non-ischaemic pattern",
}

_PRESENCE_PROMPTS = {
    "positive": (
        *(
            "There is late gadolinium enhancement.",
            "LGE present.",
            "Myocardial scar is seen.",
            "Hyperenhancement is present.",
        ),
        *("There is delayed enhancement in the left ventricle.", "Subendocardial late gadolinium enhancement is seen."),
        *("Transmural infarct scar.", "Mid-wall fibrosis is seen.", "Late enhancement in the inferior wall."),
        "Evidence of prior myocardial infarction with subendocardial LGE.",
    ),
    "negative": (
        *("There is no late gadolinium enhancement.", "No LGE.", "No myocardial scar is seen.", "No hyperenhancement."),
        *(
            "There is no evidence of delayed enhancement.",
            "Normal nulling of the myocardium on late gadolinium imaging.",
        ),
        *("No scar or fibrosis.", "No evidence of infarction.", "Late enhancement is absent.", "LGE: none."),
    ),
}
_PLACE_PROMPTS = (
    *("There is late gadolinium enhancement in the {} wall.", "LGE in the {} wall.", "{} wall scar."),
    *("Hyperenhancement of the {} segments.", "Delayed enhancement is seen in the {} wall."),
)
_KIND_PROMPTS = ("There is {} late gadolinium enhancement.", "{} LGE.", "{} scar is seen.", "{} hyperenhancement.")


def prompts(kind: str = "presence") -> dict[str, list[str]]:
    """Prompt ensembles for zero-shot scores, in the writers' words.

    Args:
        kind: ``"presence"`` (labels ``positive`` and ``negative``), ``"wall"`` (labels `WALLS`), ``"level"`` (`LEVELS`)
            or ``"depth"`` (`DEPTHS`).

    Raises:
        InputError: unknown kind.
    """
    if kind == "presence":
        return {label: list(texts) for label, texts in _PRESENCE_PROMPTS.items()}
    tables = {"wall": (WALLS, _PLACE_PROMPTS), "level": (LEVELS, _PLACE_PROMPTS), "depth": (DEPTHS, _KIND_PROMPTS)}
    if kind not in tables:
        raise InputError("kind", f"unknown kind of prompt {kind!r}", "use presence, wall, level or depth")
    labels, templates = tables[kind]
    result = {}
    for label in labels:
        texts = [template.format(label) for template in templates]
        if label == "apex":
            texts = [text.replace("apex wall", "apical cap").replace("apex segments", "true apex") for text in texts]
        elif kind == "level":
            texts = [text.replace(f"{label} wall", f"{label} segments") for text in texts]
        result[label] = [text[0].upper() + text[1:] for text in texts]
    return result


def corrupt_findings(findings: Findings, rng: np.random.Generator, rate: float) -> Findings:
    """Findings as a careless report has them: with chance ``rate`` one omission or one error.

    Positive: a detail or a scar is left out, or a wall, level or depth is wrong; one in eight says "no enhancement".
    Negative: one error in eight reports a scar that is not there; otherwise a negative report has nothing to get wrong,
    so its share of corrupted reports is ``rate / 8``.

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
    index = int(which * len(scars))
    scar = scars.pop(index)
    changes = _mistakes(scar, rng)
    if scars:
        changes.append(None)  # the scar is left out
    change = changes[int(kind * len(changes))]
    return Findings((*scars, change) if change else tuple(scars))


def _mistakes(scar: Scar, rng: np.random.Generator) -> list[Scar | None]:
    """Every omission and every kind of error that can befall this scar; each differs from it."""
    turn, step = (1, 5)[int(rng.integers(2))], int(rng.integers(1, 4))
    walls = tuple(WALLS[(WALLS.index(wall) + turn) % 6] for wall in scar.walls)
    found = [
        replace(scar, depth=None, transmurality=None),
        replace(scar, aetiology=None),
        replace(scar, no_reflow=False),
        replace(scar, levels=()) if scar.walls else scar,
        replace(scar, walls=walls) if scar.walls else scar,
        replace(scar, levels=(LEVELS[(LEVELS.index(scar.levels[0]) + 1) % 3],)) if scar.walls and scar.levels else scar,
        replace(scar, depth=DEPTHS[(DEPTHS.index(scar.depth) + step) % 4], transmurality=None) if scar.depth else scar,
    ]
    return [other for other in found if other != scar]


_PRIVATE = {
    "name": (
        r"\b(?:Mrs?|Ms|Miss|Dr|Prof|Professor|Doctor|Herr|Frau|Mme|"
        r"M\.)\.?\s+(?!of\b)[A-ZÀ-Þ][\w'’-]+(?:\s+[A-ZÀ-Þ][\w'’-]+)*",
        r"(?i:\b(?:patient(?:\s+name)?|name|surname|forename|referr(?:er|ing\s+\w+)|reported\s+by|signed(?:\s+by)?|"
        r"consultant|radiologist|dictated\s+by)\s*[:=]\s*)[A-ZÀ-Þ][\w'’.-]+(?:[ ,^]+[A-ZÀ-Þ][\w'’.-]+)*",
        r"\b[A-ZÀ-Þ][\w'’-]+\^[A-ZÀ-Þ][\w'’-]+",
    ),
    "date": (
        r"\b\d{1,2}([./])\d{1,2}\1(?:19|20)?\d{2}\b|\b\d{1,2}-\d{1,2}-(?:19|20)\d{2}\b",
        r"\b(?:19|20)\d{2}[./-]\d{1,2}[./-]\d{1,2}\b",
        r"(?i)\b\d{1,2}(?:st|nd|rd|th)?\s+(?:of\s+)?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|"
        r"dec)[a-z]*\.?,?\s+(?:19|20)?\d{2}\b",
        r"(?i)\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s+\d{1,2}(?:st|nd|rd|th)?,?\s+(?:19|"
        r"20)\d{2}\b",
        r"(?i)\b(?:dob|date\s+of\s+birth|born)\b\s*[:=]?\s*\S+",
        r"\b(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\b",
    ),
    "id": (
        r"(?i)\b(?:mrn|nhs(?:\s+n(?:o|umber))?|hospital\s+n(?:o|umber)|accession(?:\s+n(?:o|umber))?|patient\s+id|"
        r"pid|ssn|"
        r"id|case\s+n(?:o|umber))\b\.?\s*[:=#]?\s*(?=\S*\d)[\w/-]{4,}",
        r"\b\d{3}[ -]\d{3}[ -]\d{4}\b",
        r"\b\d{3}-\d{2}-\d{4}\b",
        r"\b\d{7,}\b",
    ),
    "phone": (r"(?i)\b(?:tel|phone|fax|bleep|pager)\b\.?\s*[:=]?\s*\+?[\d ()/-]{4,}\d", r"\+\d{1,3}[ \d()/-]{7,}\d"),
    "email": (r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b",),
    "address": (r"\b\d{1,4}\s+(?:[A-Z][a-z]+\s+){1,2}(?:Street|Road|Avenue|Lane|Drive|St|Rd)\b",),
}
_PRIVATE_RULES = [(kind, re.compile(rule)) for kind, rules in _PRIVATE.items() for rule in rules]


def check_privacy(text: str) -> list[tuple[str, str]]:
    """Suspected identifiers in a report, in the order of the text.

    Returns:
        (kind, excerpt): kind is ``name``, ``date``, ``id``, ``phone``, ``email`` or ``address``; the excerpt is masked
        (letters x, digits 0, but for the first character), so that it can be shown. An empty list is no proof that
        the text names nobody.
    """
    found: dict[int, tuple[int, str, str]] = {}
    text = str(text)
    for kind, rule in _PRIVATE_RULES:
        for match in rule.finditer(text):
            listed = kind == "date" and re.search(r"(?i)(?:aha|seg\w*\.?)[\s:(-]*$", text[: match.start()][-20:])
            if not listed and not any(
                start < match.end() and match.start() < end for start, (end, _, _) in found.items()
            ):
                excerpt = match[0][0] + re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", match[0][1:]))
                found[match.start()] = (match.end(), kind, excerpt)
    return [found[start][1:] for start in sorted(found)]


def require_privacy(reports: Mapping[str, str]) -> None:
    """Refuse reports, by study, in which :func:`check_privacy` suspects an identifier.

    Raises:
        InputError: naming the first such study, the kinds found there and how many studies more there are.
    """
    found = {name: sorted({kind for kind, _ in check_privacy(text)}) for name, text in reports.items()}
    suspects = [name for name, kinds in found.items() if kinds]
    if suspects:
        more = f" (and {len(suspects) - 1} more studies)" if len(suspects) > 1 else ""
        problem = f"the report may identify a person: {', '.join(found[suspects[0]])}{more}"
        remedy = "De-identify it; or, where reports are safe, pass show_identifiers=True to session.cohort()"
        raise InputError(f"{suspects[0]}, report", problem, remedy)
