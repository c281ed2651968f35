"""Write reports and prompts from findings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar, draw_scar

STYLES = ("terse", "prose", "narrative", "structured", "segments", "older")

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_TERM = (
    "[late gadolinium enhancement|late gadolinium enhancement|LGE|LGE|delayed enhancement|hyperenhancement|"
    "late enhancement|delayed hyperenhancement|myocardial delayed enhancement]"
)
_DEPTH_WORDS = {
    "subendocardial": "[subendocardial|subendocardial|sub-endocardial|endocardial]",
    "mid-wall": "[mid-wall|midwall|mid-myocardial|intramural|mid wall]",
    "subepicardial": "[subepicardial|subepicardial|epicardial|sub-epicardial]",
    "transmural": "[transmural|transmural|full-thickness|full thickness]",
}
_PATTERN_WORDS = {
    "patchy": "patchy",
    "linear": "[linear|linear|band-like]",
    "diffuse": "[diffuse|diffuse|global diffuse]",
}
_CONSISTENT = "[consistent with|in keeping with|compatible with|suggestive of|typical of|most in keeping with]"
_ARTERY = {
    "LAD": "[LAD|LAD|left anterior descending|left anterior descending (LAD)]",
    "RCA": "[RCA|RCA|right coronary artery|right coronary]",
    "LCx": "[LCx|LCX|circumflex|left circumflex|Cx]",
}
_AETIOLOGY_WORDS = {
    **{
        artery: f"[[prior|previous|old|chronic] [myocardial infarction|infarction|infarct] in the {words} territory|"
        f"{words} [territory infarction|territory infarct|infarct|infarction]|"
        f"an ischaemic [scar|pattern] in the {words} [territory|distribution]]"
        for artery, words in _ARTERY.items()
    },
    "ischaemic": "[[prior|previous|old] myocardial infarction|an [ischaemic|ischemic] [aetiology|pattern|cause]|"
    "[prior|previous] infarction|ischaemic scar|coronary artery disease]",
    "myocarditis": "[[prior|previous|acute|healed] myocarditis|myocarditis|a myocarditic pattern]",
    "dilated": "[dilated cardiomyopathy|DCM|idiopathic dilated cardiomyopathy]",
    "hypertrophic": "[hypertrophic cardiomyopathy|HCM|hypertrophic cardiomyopathy (HCM)]",
    "sarcoid": "[cardiac sarcoidosis|cardiac sarcoid|sarcoidosis|cardiac involvement by sarcoidosis]",
    "amyloid": "[cardiac amyloidosis|cardiac amyloid|amyloidosis|amyloid infiltration]",
    "non-ischaemic": "[a [non-ischaemic|nonischemic|non-ischemic] [aetiology|pattern|cardiomyopathy|process]|"
    "[non-ischaemic|non-ischemic] fibrosis]",
}
_NO_REFLOW = (
    "[a core of microvascular obstruction|central microvascular obstruction|microvascular obstruction (MVO)|MVO|"
    "a central no-reflow zone|a hypointense core of no-reflow]"
)
_NEGATIVE = {
    "terse": "[LGE: [none|nil|negative|absent|no enhancement]|No LGE|No scar|No late enhancement|LGE negative|"
    "No delayed enhancement|No LGE seen|No scar or fibrosis].",
    "prose": "[[There is no [|evidence of |convincing |abnormal |significant |focal ]{term}|No [|areas of |evidence "
    "of |"
    "definite |focus of |convincing ]{term} [is|was] [seen|identified|demonstrated|detected|present|noted]]"
    "[| in the left ventricle| in the left ventricular myocardium| on the post-contrast images]|"
    "{Term} [was|is] [not seen|absent|not present|not identified|not observed]].",
    "narrative": "[After gadolinium the myocardium nulls [normally|uniformly|homogeneously][| throughout| in all "
    "segments]"
    "[|, with no [scar|fibrosis|late enhancement]]|"
    "[Late gadolinium|Delayed post-contrast|Late enhancement] [imaging|images] [is normal|shows normal nulling of the "
    "myocardium|shows no abnormal enhancement|demonstrates no scar or fibrosis|demonstrates no evidence of infarction, "
    "fibrosis or infiltration]|The myocardium is free of [scar|late enhancement|fibrosis]].",
    "structured": "[Presence: [no|none|absent]|Present: no|Result: [negative|no enhancement|normal]|"
    "[None|Absent|Negative|Nil|No enhancement|No abnormal enhancement|Not present]].",
    "segments": "[No [LGE|delayed enhancement|hyperenhancement] in any of the 17 [AHA |]segments|"
    "All 17 segments [without|free of] [LGE|late enhancement|scar]|LGE score 0 in all segments, no scar|"
    "Segments 1-17: no [LGE|late enhancement|scar]].",
    "older": "[No [delayed|late] [hyperenhancement|enhancement|contrast enhancement] [is|was] [seen|appreciated] to "
    "suggest "
    "[infarction|infarction or fibrosis|myocardial scar]|"
    "[Delayed|Late] [hyperenhancement|contrast enhancement] imaging: [no evidence of scar|no infarct|negative for "
    "infarction]|"
    "No [evidence of ]myocardial [scar|infarct|fibrosis]].",
}
_DOUBT = (
    "[A [faint|subtle|questionable|possible] [signal|focus of enhancement|area of enhancement] in the {where} "
    "[is favoured to represent|is most likely|is felt to be] [artefact|artifact|partial volume effect|a partial "
    "volume artefact]|"
    "[Equivocal|Questionable] [enhancement|hyperintensity] in the {where}, [likely artefactual|favoured artefact|"
    "probably partial volume]|A small [area of scar|focus of late enhancement] in the {where} cannot be [|entirely |"
    "completely ]"
    "excluded[| due to artefact| owing to motion]|Image quality is [limited|reduced], and a small scar cannot be "
    "excluded]."
)


def say(rng: np.random.Generator, template: str, **words: str) -> str:
    """Fill the words in, then settle every choice, from the inside out."""
    for name, word in words.items():
        template = template.replace("{" + name + "}", word)
        template = template.replace("{" + name.capitalize() + "}", f"<{word}>")

    def settle(found: re.Match) -> str:
        options = found[1].split("|")
        return options[int(rng.random() * len(options))]

    while "[" in template:
        template = _CHOICE.sub(settle, template)
    return re.sub(r"<(.)([^<>]*)>", lambda found: found[1].upper() + found[2], template)


def _join(items: list[str], last: str = " and ") -> str:
    return last.join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _wall_words(walls: tuple[str, ...], rng: np.random.Generator, older: bool) -> str:
    """Words for the walls, with their noun: "anterior wall and septum", "posterior and lateral segments"."""
    left, words = list(walls), []
    merged = {
        "septal": ("anteroseptal", "inferoseptal"),
        "lateral": ("inferolateral", "anterolateral"),
    }
    if older:
        merged = {"inferoposterior": ("inferior", "inferolateral"), **merged}
    for word, parts in merged.items():
        if set(parts) <= set(left) and rng.random() < 0.75:
            words.append(word)
            left = [wall for wall in left if wall not in parts]
    older_names = {
        "inferolateral": "[posterior|posterolateral]",
        "inferoseptal": "[posteroseptal|inferoseptal]",
    }
    words += [older_names.get(wall, wall) if older else wall for wall in left]
    if words == ["septal"]:
        return "[septum|interventricular septum|septal wall|septal segments]"
    if words == ["lateral"] and rng.random() < 0.3:
        return "lateral free wall"
    if rng.random() < 0.2:
        return _join([f"{word} wall" if word != "septal" else "septum" for word in words])
    hyphened = [word.replace("antero", "antero-").replace("infero", "infero-") for word in words]
    words = hyphened if rng.random() < 0.1 else words
    return _join(words) + (
        " [wall|wall|segment|myocardium]" if len(words) == 1 else " [walls|walls|segments]"
    )


def _segment_words(scar: Scar, rng: np.random.Generator) -> str:
    numbers = sorted(scar.segments)
    if len(numbers) > 2 and rng.random() < 0.4:  # runs: 4-5, 10-11
        runs: list[list[int]] = []
        for number in numbers:
            runs.append(runs.pop() + [number] if runs and runs[-1][-1] == number - 1 else [number])
        parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    else:
        parts = [str(number) for number in numbers]
    noun = "[segment|AHA segment]" if len(numbers) == 1 else "[segments|AHA segments|LV segments]"
    return f"{noun} {_join(parts, '[ and |, ]')}"


def _location(scar: Scar, rng: np.random.Generator, style: str) -> str:
    """Where a scar is, as a noun phrase with its article; empty where the findings do not say."""
    rings, apex = tuple(level for level in scar.levels if level != "apex"), "apex" in scar.levels
    cap = "[the true apex|the apical cap|the apex|the LV apex]"
    if scar.levels == ("apex",):
        return (
            cap
            if style != "segments"
            else "[segment 17|AHA segment 17|the apical cap (segment 17)]"
        )
    if not scar.walls and not rings:
        return ""
    if style == "segments" and rings and scar.walls:
        return _segment_words(scar, rng)
    mid = "[mid|mid|mid|mid-ventricular|mid-cavity|mid ventricular]"
    names = {"basal": "basal", "mid": mid, "apical": "apical"}
    level, after = "", ""
    if len(rings) == 3:
        if scar.walls and rng.random() < 0.4:
            after = " [from base to apex|from base to apex|from the base to the apex]"
        else:
            level = "[basal to apical|basal, mid and apical|basal-to-apical]"
    elif rings in (("basal", "mid"), ("mid", "apical")):
        level = f"{rings[0]}[ and | to | to |-to-|/]{rings[1]}"
    elif rings:
        level = _join([names[ring] for ring in rings])
    if apex:
        after += f"[, extending to| and|, including|, with extension into] {cap}"
    if not scar.walls:
        return f"the {level} [segments|left ventricle|LV|myocardium]{after}"
    if len(scar.walls) == 6:
        if level and rng.random() < 0.5:
            return f"[all {level} segments|all walls at the {level} level]{after}"
        return f"[all|all] {level} [walls|segments|LV walls|LV segments]{after}".replace("  ", " ")
    if (
        scar.aetiology == "hypertrophic"
        and scar.walls == ("anteroseptal", "inferoseptal")
        and rng.random() < 0.5
    ):
        return (
            f"the {level} [septum at the RV insertion points|RV insertion points]{after}".replace(
                "  ", " "
            )
        )
    if len(rings) == 1 and len(scar.walls) > 1 and rng.random() < 0.15:
        return (
            _join([f"[the ]{level} {wall}" for wall in scar.walls]).replace("[the ]", "", 1)
            + f" segments{after}"
        )
    return f"the {level} {_wall_words(scar.walls, rng, style == 'older')}{after}".replace("  ", " ")


def _percent(value: int, rng: np.random.Generator) -> str:
    ranges = {13: "1-25%", 38: "25-50%", 63: "50-75%", 88: "75-100%"}
    if value in ranges and rng.random() < 0.5:
        return ranges[value]
    return f"{value}[%|%|%| %| percent]"


def _details(scar: Scar, rng: np.random.Generator, depth_said: bool) -> tuple[list[str], list[str]]:
    """Clauses that can follow the location, and full sentences, for what has not been said yet."""
    clauses, sentences = [], []
    if scar.depth and not depth_said:
        clauses.append(f"{_DEPTH_WORDS[scar.depth]} [in distribution|in location|in extent]")
    if scar.transmurality:
        percent = f"[|approximately |up to |about |~]{_percent(scar.transmurality, rng)}"
        if rng.random() < 0.75:
            clauses.append(
                f"[with {percent} transmurality|{percent} transmural extent|transmurality {percent}|"
                f"involving {percent} of [the wall thickness|wall thickness|the myocardial thickness]]"
            )
        else:
            sentences.append(
                f"[Transmurality is {percent}|It involves {percent} of the wall thickness]."
            )
    if scar.circumference:
        percent = f"[|approximately |about ]{_percent(scar.circumference, rng)}"
        clauses.append(
            f"[over|covering|spanning|involving] {percent} of the [|LV |left ventricular ]circumference"
        )
    if scar.no_reflow:
        if rng.random() < 0.6:
            clauses.append(f"with {_NO_REFLOW}")
        else:
            sentences.append(
                "[There is|Note is made of] [an associated area of |]microvascular obstruction[| within the scar]."
            )
    elif scar.depth in ("subendocardial", "transmural") and rng.random() < 0.2:
        sentences.append(
            "[No microvascular obstruction|There is no MVO|No evidence of no-reflow|MVO absent]."
        )
    if scar.aetiology:
        words = _AETIOLOGY_WORDS[scar.aetiology]
        if rng.random() < 0.6:
            clauses.append(f"{_CONSISTENT} {words}")
        else:
            sentences.append(
                f"[This is|The appearance is|The pattern is|Appearances are] [|most |likely "
                f"]{_CONSISTENT.replace('most ', '')} {words}."
            )
    return clauses, sentences


def _scar_text(scar: Scar, rng: np.random.Generator, style: str, number: int, count: int) -> str:
    """One scar in one style, as a template."""
    location = _location(scar, rng, style)
    depth = _DEPTH_WORDS.get(scar.depth or "", "")
    pattern = _PATTERN_WORDS.get(scar.pattern or "", "[||||focal|confluent]")
    if style in ("structured", "terse"):
        return _listed(scar, rng, style, location, number, count)
    said = rng.random() < 0.85
    doubt = "[|||||||probable|likely|clear|definite]"
    what = f"{doubt} {pattern} {depth if said else ''} {{term}}"
    if scar.ischaemic and rng.random() < 0.3:
        what = f"{pattern} {depth if said else ''} [infarct scar|scar|infarction|myocardial scar]"
    elif rng.random() < 0.15:
        what = f"[|an area of|a region of] {pattern} {depth if said else ''} [scar|fibrosis|enhancement]"
    clauses, sentences = _details(scar, rng, said)
    rng.shuffle(sentences)
    where = (
        f"[in|in|involving|of|affecting] {location}"
        if location
        else "[in the left ventricle|in the LV myocardium|]"
    )
    tail = "".join(
        f"[, |, | ]{clause}" if index == 0 else f", {clause}"
        for index, clause in enumerate(clauses)
    )
    lead = "[There is|There is|We see|Note is made of|Presence of|Evidence of]"
    if number:
        lead = "[There is also|In addition, there is|Additionally, there is|Further,|Separately, there is|A second area:]"
    if style == "narrative" and location and not number and rng.random() < 0.5:
        first = f"[After|Following] gadolinium, {what} [is|was] [seen|present|demonstrated]."
        second = f"[It|This] [involves|affects|is located in|is confined to] {location}{tail}."
        return " ".join([first, second, *sentences])
    if style == "narrative" and location and rng.random() < 0.5:
        verb = "[also |]" if number else ""
        first = f"{location} {verb}[shows|demonstrates|exhibits|has] {what}{tail}."
        return " ".join([f"<{first}>", *sentences])
    if not number and rng.random() < 0.4:
        where = where.replace("[in|in|involving|of|affecting]", "in")
        body = f"<{what} [is|was] [seen|present|noted|identified|demonstrated] {where}{tail}>."
    else:
        body = f"{lead} {what} {where}{tail}."
    return " ".join([body, *sentences])


def _listed(
    scar: Scar, rng: np.random.Generator, style: str, location: str, number: int, count: int
) -> str:
    """Terse and structured styles: items, not sentences."""
    depth = _DEPTH_WORDS.get(scar.depth or "", "")
    place = location.removeprefix("the ") or "[LV|left ventricle]"
    percent = _percent(scar.transmurality, rng) if scar.transmurality else ""
    around = _percent(scar.circumference, rng) if scar.circumference else ""
    aetiology = _AETIOLOGY_WORDS.get(scar.aetiology or "", "")
    if style == "terse":
        short = {
            "subendocardial": "[subendocardial|subendo]",
            "subepicardial": "[subepicardial|subepi]",
        }
        parts = [
            f"[+ve |]{scar.pattern or ''} {short.get(scar.depth or '', depth)} [LGE|LGE|scar|late enhancement] {place}",
            *([f"{percent} [transmural|transmurality|TM]"] if percent else []),
            *([f"{around} of circumference"] if around else []),
            *(["[MVO present|with MVO|MVO +|no-reflow present]"] if scar.no_reflow else []),
            *(["[no MVO|MVO -]"] if not scar.no_reflow and rng.random() < 0.4 else []),
            *([f"[c/w |likely |]{aetiology}"] if aetiology else []),
        ]
        return "[, |; ]".join(parts) + "."
    lines = [
        f"Location: {place}",
        *(
            [f"[Distribution|Depth|Pattern]: {scar.pattern or ''} {depth}"]
            if depth or scar.pattern
            else []
        ),
        *([f"[Transmurality|Transmural extent]: {percent}"] if percent else []),
        *(
            [f"[Extent: {around} of the circumference|Circumferential extent: {around}]"]
            if around
            else []
        ),
        *(["[MVO|Microvascular obstruction|No-reflow]: [present|yes]"] if scar.no_reflow else []),
        *(
            ["[MVO|Microvascular obstruction]: [absent|no|none]"]
            if not scar.no_reflow and rng.random() < 0.5
            else []
        ),
        *(
            [f"[Aetiology|Etiology|Interpretation]: [|likely |consistent with ]{aetiology}"]
            if aetiology
            else []
        ),
    ]
    title = (
        f"[Scar|Lesion|Region] {number + 1}\n"
        if count > 1
        else "[Presence: yes\n|Present: yes\n|Enhancement present\n|]"
    )
    return title + "\n".join(f"- {line}" for line in lines)


def lge_words(findings: Findings, rng: np.random.Generator, style: str) -> str:
    """The statement about enhancement in one of `STYLES`: sentences, or lines in the structured style."""
    if not findings.present:
        text = say(rng, _NEGATIVE[style], term=_TERM)
        if rng.random() < 0.12 and style in ("prose", "narrative", "older"):
            level, wall = (
                ("basal", "mid", "apical")[int(rng.integers(3))],
                WALLS[int(rng.integers(6))],
            )
            text += " " + say(rng, _DOUBT, where=f"{level} {wall} wall")
        return text[0].upper() + text[1:]
    order = rng.permutation(len(findings.scars))
    count = len(order)
    said = [
        say(rng, _scar_text(findings.scars[index], rng, style, number, count), term=_TERM)
        for number, index in enumerate(order)
    ]
    said = [
        re.sub(r" +", " ", text).replace(" ,", ",").replace(" .", ".").replace(" ;", ";").strip()
        for text in said
    ]
    text = ("\n" if style == "structured" else " ").join(said)
    return text[0].upper() + text[1:]


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


def write_report(
    findings: Findings, rng: np.random.Generator, style: str | None = None, whole: bool = True
) -> str:
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
        raise InputError(
            "style", f"unknown style {style!r}", f"use one of {', '.join(STYLES)}, or None"
        )
    statement = lge_words(findings, rng, style)
    if not whole:
        return statement
    ef = int(rng.normal(48 if findings.present else 60, 8))
    edv = int(rng.normal(170, 30))
    facts = {
        **{
            "ef": str(ef),
            "edv": str(edv),
            "esv": str(round(edv * (100 - ef) / 100)),
            "edvi": str(round(edv / 1.9)),
        },
        **{
            "rvef": str(int(rng.normal(55, 6))),
            "t1": str(int(rng.normal(1010, 30))),
            "mass": str(int(rng.normal(120, 20))),
        },
        **{
            "thick": str(int(rng.integers(9, 14))),
            "size": "[normal in size|mildly dilated|of normal size]",
        },
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
            *(
                [f"[Indication|INDICATION|Clinical details]: {_INDICATION}"]
                if rng.random() < 0.6
                else []
            ),
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
        place = _listing(
            tuple(filter(None, (place, "apical cap" if "apex" in scar.levels else "")))
        )
        kind = " ".join(filter(None, (scar.pattern, scar.depth, "late gadolinium enhancement")))
        details = [
            f"{scar.transmurality}% transmurality" if scar.transmurality else "",
            f"{scar.circumference}% of the circumference" if scar.circumference else "",
            "with microvascular obstruction" if scar.no_reflow else "",
            f"consistent with {_AETIOLOGY_TEXT[scar.aetiology]}" if scar.aetiology else "",
        ]
        sentences.append(
            ", ".join([kind + (f" in {article} {place}" if place else ""), *filter(None, details)])
            + "."
        )
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


_AETIOLOGY_TEXT = {
    **{artery: f"infarction in the {artery} territory" for artery in ("LAD", "RCA", "LCx")},
    **{
        "ischaemic": "myocardial infarction",
        "myocarditis": "myocarditis",
        "dilated": "dilated cardiomyopathy",
    },
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
        *(
            "There is delayed enhancement in the left ventricle.",
            "Subendocardial late gadolinium enhancement is seen.",
        ),
        *(
            "Transmural infarct scar.",
            "Mid-wall fibrosis is seen.",
            "Late enhancement in the inferior wall.",
        ),
        "Evidence of prior myocardial infarction with subendocardial LGE.",
    ),
    "negative": (
        *(
            "There is no late gadolinium enhancement.",
            "No LGE.",
            "No myocardial scar is seen.",
            "No hyperenhancement.",
        ),
        *(
            "There is no evidence of delayed enhancement.",
            "Normal nulling of the myocardium on late gadolinium imaging.",
        ),
        *(
            "No scar or fibrosis.",
            "No evidence of infarction.",
            "Late enhancement is absent.",
            "LGE: none.",
        ),
    ),
}
_PLACE_PROMPTS = (
    *(
        "There is late gadolinium enhancement in the {} wall.",
        "LGE in the {} wall.",
        "{} wall scar.",
    ),
    *("Hyperenhancement of the {} segments.", "Delayed enhancement is seen in the {} wall."),
)
_KIND_PROMPTS = (
    "There is {} late gadolinium enhancement.",
    "{} LGE.",
    "{} scar is seen.",
    "{} hyperenhancement.",
)


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
    tables = {
        "wall": (WALLS, _PLACE_PROMPTS),
        "level": (LEVELS, _PLACE_PROMPTS),
        "depth": (DEPTHS, _KIND_PROMPTS),
    }
    if kind not in tables:
        raise InputError(
            "kind", f"unknown kind of prompt {kind!r}", "use presence, wall, level or depth"
        )
    labels, templates = tables[kind]
    result = {}
    for label in labels:
        texts = [template.format(label) for template in templates]
        if label == "apex":
            texts = [
                text.replace("apex wall", "apical cap").replace("apex segments", "true apex")
                for text in texts
            ]
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
        replace(scar, levels=(LEVELS[(LEVELS.index(scar.levels[0]) + 1) % 3],))
        if scar.walls and scar.levels
        else scar,
        replace(scar, depth=DEPTHS[(DEPTHS.index(scar.depth) + step) % 4], transmurality=None)
        if scar.depth
        else scar,
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
    "phone": (
        r"(?i)\b(?:tel|phone|fax|bleep|pager)\b\.?\s*[:=]?\s*\+?[\d ()/-]{4,}\d",
        r"\+\d{1,3}[ \d()/-]{7,}\d",
    ),
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
            listed = kind == "date" and re.search(
                r"(?i)(?:aha|seg\w*\.?)[\s:(-]*$", text[: match.start()][-20:]
            )
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
    found = {
        name: sorted({kind for kind, _ in check_privacy(text)}) for name, text in reports.items()
    }
    suspects = [name for name, kinds in found.items() if kinds]
    if suspects:
        more = f" (and {len(suspects) - 1} more studies)" if len(suspects) > 1 else ""
        problem = f"the report may identify a person: {', '.join(found[suspects[0]])}{more}"
        remedy = "De-identify it; or, where reports are safe, pass show_identifiers=True to session.cohort()"
        raise InputError(f"{suspects[0]}, report", problem, remedy)
