"""The paraphrasing grammar: scars, and their absence, in the words of several kinds of writers.

Sentences are our own [O]; the paper's templates are not published. In a template ``[a|b|c]`` is a choice and may be
nested, ``{term}`` is a word to fill in. Whole reports are in `lgekit.reports`, reading in `lgekit.report_reader`.
"""

from __future__ import annotations

import re

import numpy as np

from lgekit.findings import WALLS, Findings, Scar

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
    merged = {"septal": ("anteroseptal", "inferoseptal"), "lateral": ("inferolateral", "anterolateral")}
    if older:
        merged = {"inferoposterior": ("inferior", "inferolateral"), **merged}
    for word, parts in merged.items():
        if set(parts) <= set(left) and rng.random() < 0.75:
            words.append(word)
            left = [wall for wall in left if wall not in parts]
    older_names = {"inferolateral": "[posterior|posterolateral]", "inferoseptal": "[posteroseptal|inferoseptal]"}
    words += [older_names.get(wall, wall) if older else wall for wall in left]
    if words == ["septal"]:
        return "[septum|interventricular septum|septal wall|septal segments]"
    if words == ["lateral"] and rng.random() < 0.3:
        return "lateral free wall"
    if rng.random() < 0.2:
        return _join([f"{word} wall" if word != "septal" else "septum" for word in words])
    hyphened = [word.replace("antero", "antero-").replace("infero", "infero-") for word in words]
    words = hyphened if rng.random() < 0.1 else words
    return _join(words) + (" [wall|wall|segment|myocardium]" if len(words) == 1 else " [walls|walls|segments]")


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
        return cap if style != "segments" else "[segment 17|AHA segment 17|the apical cap (segment 17)]"
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
    if scar.aetiology == "hypertrophic" and scar.walls == ("anteroseptal", "inferoseptal") and rng.random() < 0.5:
        return f"the {level} [septum at the RV insertion points|RV insertion points]{after}".replace("  ", " ")
    if len(rings) == 1 and len(scar.walls) > 1 and rng.random() < 0.15:
        return _join([f"[the ]{level} {wall}" for wall in scar.walls]).replace("[the ]", "", 1) + f" segments{after}"
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
            sentences.append(f"[Transmurality is {percent}|It involves {percent} of the wall thickness].")
    if scar.circumference:
        percent = f"[|approximately |about ]{_percent(scar.circumference, rng)}"
        clauses.append(f"[over|covering|spanning|involving] {percent} of the [|LV |left ventricular ]circumference")
    if scar.no_reflow:
        if rng.random() < 0.6:
            clauses.append(f"with {_NO_REFLOW}")
        else:
            sentences.append(
                "[There is|Note is made of] [an associated area of |]microvascular obstruction[| within the scar]."
            )
    elif scar.depth in ("subendocardial", "transmural") and rng.random() < 0.2:
        sentences.append("[No microvascular obstruction|There is no MVO|No evidence of no-reflow|MVO absent].")
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
        f"[in|in|involving|of|affecting] {location}" if location else "[in the left ventricle|in the LV myocardium|]"
    )
    tail = "".join(f"[, |, | ]{clause}" if index == 0 else f", {clause}" for index, clause in enumerate(clauses))
    lead = "[There is|There is|We see|Note is made of|Presence of|Evidence of]"
    if number:
        lead = (
            "[There is also|In addition, there is|Additionally, there is|Further,|Separately, there is|A second area:]"
        )
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


def _listed(scar: Scar, rng: np.random.Generator, style: str, location: str, number: int, count: int) -> str:
    """Terse and structured styles: items, not sentences."""
    depth = _DEPTH_WORDS.get(scar.depth or "", "")
    place = location.removeprefix("the ") or "[LV|left ventricle]"
    percent = _percent(scar.transmurality, rng) if scar.transmurality else ""
    around = _percent(scar.circumference, rng) if scar.circumference else ""
    aetiology = _AETIOLOGY_WORDS.get(scar.aetiology or "", "")
    if style == "terse":
        short = {"subendocardial": "[subendocardial|subendo]", "subepicardial": "[subepicardial|subepi]"}
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
        *([f"[Distribution|Depth|Pattern]: {scar.pattern or ''} {depth}"] if depth or scar.pattern else []),
        *([f"[Transmurality|Transmural extent]: {percent}"] if percent else []),
        *([f"[Extent: {around} of the circumference|Circumferential extent: {around}]"] if around else []),
        *(["[MVO|Microvascular obstruction|No-reflow]: [present|yes]"] if scar.no_reflow else []),
        *(["[MVO|Microvascular obstruction]: [absent|no|none]"] if not scar.no_reflow and rng.random() < 0.5 else []),
        *([f"[Aetiology|Etiology|Interpretation]: [|likely |consistent with ]{aetiology}"] if aetiology else []),
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
            level, wall = ("basal", "mid", "apical")[int(rng.integers(3))], WALLS[int(rng.integers(6))]
            text += " " + say(rng, _DOUBT, where=f"{level} {wall} wall")
        return text[0].upper() + text[1:]
    order = rng.permutation(len(findings.scars))
    count = len(order)
    said = [
        say(rng, _scar_text(findings.scars[index], rng, style, number, count), term=_TERM)
        for number, index in enumerate(order)
    ]
    said = [re.sub(r" +", " ", text).replace(" ,", ",").replace(" .", ".").replace(" ;", ";").strip() for text in said]
    text = ("\n" if style == "structured" else " ").join(said)
    return text[0].upper() + text[1:]
