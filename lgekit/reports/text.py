"""Divide a report into its sentences, whatever layout and line ends it came in; find identifiers.

Steps: one kind of line end, plain characters and tick boxes (`clean`); wrapped lines joined; tables
read by cell; fields ("Label: value") and section heads; sentences.
"""

import html
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

from lgekit.errors import InputError


def rules(name: str, **parts: str) -> dict:
    """Load a table of rules, with the text of its parts in place of "{name}"."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for part, words in (parts | tomllib.loads(text).get("parts", {})).items():
        text = text.replace(f"{{{part}}}", words)
    return tomllib.loads(text)


def rewrites(table: str) -> list[tuple[str, str]]:
    """Return (pattern, replacement) of each line "pattern => replacement"."""
    pairs = (line.partition(" =>") for line in table.strip("\n").split("\n"))
    return [(pattern, words[1:]) for pattern, _, words in pairs]


_TABLES = rules("layout.toml")
_SIGNS = str.maketrans({old: new for new, olds in _TABLES["characters"].items() for old in olds})
_REWRITES = [
    (re.compile(rule), word.replace("\\n", "\n")) for rule, word in rewrites(_TABLES["rewrites"])
]
_LABEL = "|".join(f"(?P<{kind}>{'|'.join(each)})" for kind, each in _TABLES["labels"].items())
_LABEL_END = re.compile(rf"(?:^|(?<=[\s.;,|(\]]))(?:{_LABEL})(?: ?\((?![-+])[^()]*\))? ?\??$")
_RULE = SimpleNamespace(
    **{name: re.compile("|".join(each)) for name, each in _TABLES["patterns"].items()}
)
_open_end = lru_cache(maxsize=10_000)(_RULE.open_end.search)
ENCODED_LINE_END = _RULE.line_end
# A sentence of more than 2000 characters is divided at commas, or else between words
_PIECE = re.compile(r"(?s).{1,2000}\Z|.{1,1999}[,;](?=\s)|.{1,2000}(?=\s)|.{2000}")
_IDENTIFIERS = [
    (kind, re.compile(rule)) for kind, each in rules("identifiers.toml").items() for rule in each
]
_CODED = "\\<~¶[=%*#_/"  # one of these is in every encoded line end and mark


@dataclass(frozen=True)
class Sentence:
    """A sentence or field of a report."""

    text: str  # as it stands, on one line, with its label
    label: str = ""  # of the field or section that it begins, as it stands
    kind: str = ""  # of its section: a key of `labels` in layout.toml, or "" if there is none
    value: str = ""  # without label


def clean(text: str) -> str:
    """Return text with ``\\n`` as its only line end, plain signs, and only ticked options."""
    text = html.unescape(text).translate(_SIGNS)
    text = re.sub(r"\n{3,}", "\n\n", _RULE.plain_end.sub("\n", text))
    if any(sign in text for sign in _CODED):
        text, ends = _RULE.line_end.subn("\v", _RULE.next_cell.sub(" | ", text))
        if ends > 1:
            text = re.sub(r"(?<=\w-)\n(?=\w)", "", text)
            text = re.sub(r"\n(?!\n)", " ", text)  # only where an export wrapped its lines
        text = _RULE.markup.sub("", text.replace("\v", "\n"))
    text = "\n".join(_ticked(line) if _RULE.box.search(line) else line for line in text.split("\n"))
    text = _RULE.series.sub(lambda found: _RULE.values.sub(_by_segment, found[0]), text)
    for rule, word in _REWRITES:
        text = rule.sub(word, text)
    if not _RULE.punctuation.search(text):
        text = _RULE.spoken.sub(". ", text)
    years = set(_RULE.year.findall(text))
    titles = {max(years): "\nToday:"} if len(years) > 1 else {}
    if titles or (years and _RULE.now.search(text)):
        text = _RULE.year.sub(lambda found: titles.get(found[1], "\nPrior study:"), text)
    return text


def _by_segment(found: re.Match) -> str:
    """Give each value of "mid (7-12): 0 75 0 …" a line with its segment, if their number fits."""
    first, values = int(found["first"]), found["values"].split()
    if first + len(values) - 1 != int(found["last"] or first):
        return found[0]
    words = [f"{value}%" if value.isdigit() and int(value) > 4 else value for value in values]
    return "\n".join(f"segment {segment}: {word}" for segment, word in enumerate(words, first))


def _ticked(line: str) -> str:
    """Keep the options of a line whose box is ticked; boxes precede options, or all follow."""
    boxes = list(_RULE.box.finditer(line))
    start = line.rfind(":", 0, boxes[0].start()) + 1
    first, last = boxes[0].start(), boxes[-1].end()
    follow = bool(line[start:first].strip(" -")) and not line[last:].strip()
    if not follow and not start:
        head = line[:first].rstrip(" ?")
        line, start = f"{head}: {line[first:]}", len(head) + 1
        boxes = list(_RULE.box.finditer(line))
    after = None if follow else _RULE.options_end.search(line, boxes[-1].end())
    end = after.start() if after else len(line)
    edges = [edge for box in boxes for edge in box.span()]
    edges = [start, *edges[:-1]] if follow else [*edges[1:], end]
    spans = zip(edges[::2], edges[1::2], strict=True)
    options = [line[slice(*span)].strip(" |\t") or "yes" for span in spans]
    kept = [option for option, box in zip(options, boxes, strict=True) if box["ticked"]]
    return f"{line[:start]} {', '.join(kept)}{line[end:]}"


@lru_cache(maxsize=10_000)
def _label(head: str) -> tuple[int, str]:
    """Return (length, kind) of the known label at the end of some words; (0, "") if none."""
    found = _LABEL_END.search(head.lower())  # faster than a pattern that ignores case
    before = head[: found.start()] if found else ""
    if not found or _open_end(before.rstrip()[-20:] or "."):
        return 0, ""
    return len(head) - found.start(), next(k for k, words in found.groupdict().items() if words)


@lru_cache(maxsize=10_000)
def _cells(line: str) -> list[str]:
    """Return the cells of a line of a table; at most one if it is none."""
    bare = line.strip(" |;\t")
    short = ";" in bare and ":" not in bare and max(map(len, bare.split(";"))) < 30
    columns = r"\|" if "|" in bare else ";" if short else r"\t+|(?<=\S) {2,}"
    return [cell.strip() for cell in re.split(columns, bare)] if len(bare) < 1000 else [bare]


def _tables(paragraph: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Divide the lines of a paragraph into tables and others."""
    runs = [list(run) for _, run in groupby(paragraph, lambda line: len(_cells(line)))]
    kinds = [len(_cells(run[0])) > 1 and (len(run) > 2 or "|" in run[0]) for run in runs]
    for is_table, group in groupby(zip(kinds, runs, strict=True), itemgetter(0)):
        yield is_table, [line for _, run in group for line in run]


def _paragraphs(text: str) -> Iterator[list[str]]:
    """Yield the lines between empty lines and between rules of dashes; a repeated line once."""
    for filled, lines in groupby(text.split("\n"), lambda line: bool(line.strip().strip(" =_-*#"))):
        if filled:
            yield [line for line, _ in groupby(lines) if set(line) - set("|:+- ")]


def _joined(lines: list[str]) -> Iterator[str]:
    """Yield the lines of a paragraph with those joined that were wrapped."""
    width, last, whole = max(map(len, lines)), lines[0], lines[0].strip()
    for line in lines[1:]:
        bare = line.strip()
        end = whole[-20:].lower()
        listed = end.endswith((",", ";", " and", " or", " to"))
        listed |= bare[0].isdigit() and end.endswith((" segment", " segments"))
        open_end = listed or whole[-1] == ":" or bool(_open_end(whole[-20:]))
        fits = len(last.rstrip()) + 1 + len(bare.split(" ", 1)[0]) <= width
        fits &= whole[-1] == "." or whole == last.strip()  # lines wrapped twice are ragged
        item = bool(_RULE.bullet.match(line)) or _starts_field(bare, fits)
        split = whole[-1] == "-" and whole[-2:-1].isalpha() and bare[0].isalpha()
        new = fits if whole[-1] == "." else bare[1:2].islower() or (fits and not bare.isupper())
        new &= bare[0].isupper() and not open_end and not split
        head = fits and whole == last.strip() and bare[0].isupper() and _starts_field(whole, True)
        if (item and not listed) or "|" in line + last or head or new or len(whole) > 20_000:
            yield whole
            whole = bare
        elif split:
            whole = (whole if _RULE.word_part.search(whole[-12:]) else whole[:-1]) + bare
        else:
            apart = fits and not open_end and whole[-1] != "." and not _RULE.goes_on.match(bare)
            whole += (", " if apart else " ") + bare
        last = line
    yield whole


@lru_cache(maxsize=10_000)
def _starts_field(line: str, fits: bool) -> bool:
    """Tell whether a line begins with a label, or is a section head (never where a line wraps)."""
    head, colon, _ = line[:80].partition(":")
    if line[0].islower() and not fits:  # the middle of a sentence
        return False
    if (dash := _RULE.dashed.match(line)) and _label(dash[1])[0] == len(dash[1]):
        return True
    if not colon:
        title = fits or (line[1:2].islower() and " of " not in line)
        return title and len(line) < 50 and _label(line)[0] == len(line) and not line[0].islower()
    short = line[0].isupper() and len(head.split()) <= 5
    return _label(head)[0] == len(head) or bool(short and _RULE.any_label.fullmatch(head))


def _fields(line: str) -> Iterator[tuple[str, str, str]]:
    """Yield the (label, kind, value) in a line; known labels may stand anywhere in it."""
    bare = _RULE.numbering.sub("", _RULE.bullet.sub("", line, count=1))
    dash = _RULE.dashed.match(bare)
    if dash and _label(dash[1])[0] == len(dash[1]):
        bare = f"{dash[1]}: {bare[dash.end() :]}"
    label, kind, start = "", "", 0
    for colon in re.finditer(r":(?!\d)", bare):
        head = bare[max(start, colon.start() - 70) : colon.start()]
        length, found = _label(head)
        whole = len(head) == colon.start() and _RULE.any_label.fullmatch(head)
        if whole:
            found = "lge" if length != len(head) and _RULE.about.search(head) else found
            length = len(head)
        if length and (first := colon.start() - length) >= start:
            before = bare[start:first].strip(" -;,(|")
            if label or before:
                yield label, kind, before
            label, kind, start = bare[first : colon.start()].strip(), found, colon.end()
    if not label and len(bare) < 50 and _label(bare)[0] == len(bare) and not bare[:1].islower():
        yield bare.strip(), _label(bare)[1], ""
    else:
        yield label, kind, bare[start:].strip()


def sentences(text: str) -> Iterator[Sentence]:
    """Yield the sentences of a report.

    A section head on a line of its own reaches to the next label, or to the first empty line after
    its content; a label with a value to the end of its line. Conclusions reach to the next label.
    """
    section, alone = "", False
    for paragraph in _paragraphs(clean(text)):
        content = False
        for is_table, rows in _tables(paragraph):
            if is_table:
                yield from _table(rows, section)
                continue
            for line in _joined(rows):
                if not alone and section != "conclusion":
                    section = ""
                for label, kind, value in _fields(line):
                    if label and kind not in ("lesion", "place"):
                        section, alone = kind, not value
                    content = content or bool(value)
                    rest = "" if section == "lge" and not alone else section
                    for part in _divided(label, kind or section, rest, value):
                        history = part.kind == "ignore" and not part.label
                        if history and _RULE.today.search(part.text):
                            section = ""  # no line end tells where a history ends
                        yield part if section or part.label else replace(part, kind="")
        if content and section != "conclusion":
            section, alone = "", False


def _divided(label: str, kind: str, rest: str, value: str) -> Iterator[Sentence]:
    """Yield the sentences of a value; its first is of one kind, the others of another."""
    start, kind = 0, kind if label else rest
    for end in [*(found.end() for found in _RULE.sentence_end.finditer(value)), len(value)]:
        pieces, start = _PIECE.findall(value[start:end].strip()), end
        for part in map(str.strip, pieces or [""]):
            if part.strip(" .-*") or label:
                yield Sentence(f"{label}: {part}".strip() if label else part, label, kind, part)
                label, kind = "", rest


def _table(rows: Iterable[str], section: str) -> Iterator[Sentence]:
    """Yield one field for each cell of a table; rows or columns are named by its first ones."""
    cells = [list(_cells(row)) for row in dict.fromkeys(rows)]
    head, kinds = cells[0], [_label(cell)[1] for cell in cells[0]]
    named = sum(kind == "place" for kind in kinds[1:]) > 1
    column = next((n for n, cell in enumerate(head) if n and _RULE.about.search(cell)), 0)
    has_head = named or column or bool(_RULE.row_head.fullmatch(head[0]))
    if has_head:
        text = " | ".join(head)
        yield Sentence(text, "", "lge" if column else "ignore" if named else section, text)
    for row in cells[1 if has_head else 0 :]:
        text = " | ".join(row)
        row[0] = re.sub(r"^\d+ (?=\D)", "", row[0])
        if named:
            for name, cell in zip(head[1:], row[1:], strict=False):
                yield Sentence(text, f"{row[0]} {name}", "place", cell)
        elif column:
            cell = row[column] if column < len(row) else ""
            unit = "%" if "%" in head[column] and cell.strip("0") else ""
            yield Sentence(text, row[0], "place", cell + unit)
        else:
            kind = _label(row[0])[1] or section
            yield from _divided(row[0], kind, kind, ", ".join(row[1:]))


def find_identifiers(text: str) -> list[tuple[int, int, str]]:
    """Return (start, end, kind) of suspected identifiers in a report, in the order of the text.

    Kinds are ``name``, ``date``, ``id``, ``phone``, ``email`` and ``address``. An empty list does
    not prove that the text is anonymous.
    """
    found: list[tuple[int, int, str]] = []
    for kind, rule in _IDENTIFIERS:
        for start, end in (match.span() for match in rule.finditer(text)):
            if all(end <= first or start >= last for first, last, _ in found):
                found.append((start, end, kind))
    return [identifier for identifier in sorted(found) if identifier[2] != "segments"]


def without_identifiers(text: str) -> str:
    """Replace suspected identifiers by their kind: "[name]"."""
    for start, end, kind in reversed(find_identifiers(text)):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text


def require_privacy(reports: Mapping[str, str]) -> None:
    """Refuse reports, by study, in which `find_identifiers` suspects an identifier."""
    found = {name: {kind for *_, kind in find_identifiers(text)} for name, text in reports.items()}
    suspects = [name for name, kinds in found.items() if kinds]
    if suspects:
        more = f" (and {len(suspects) - 1} more studies)" if len(suspects) > 1 else ""
        problem = f"the report may identify a person: {', '.join(sorted(found[suspects[0]]))}{more}"
        remedy = "De-identify it; or, where reports are safe, give `lgekit fit` --identifiable, "
        remedy += "or session.cohort() show_identifiers=True"
        raise InputError(f"{suspects[0]}, report", problem, remedy)
