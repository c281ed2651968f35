"""What the pictures of a notebook show, in words: the heading above, the function that drew it, and its own labels."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping

from lgekit import plots, widgets

LONGEST = 300
SHAPE = re.compile(r",? *``\([^`]*\)``( each)?")  # of arrays, in docstrings
DRAWS = {"plots": plots, "widgets": widgets}


def heading_and_prose(markdown: str, heading: str = "") -> tuple[str, str]:
    """The last heading so far, and the last line of prose under it, as plain words; a title page has no such line."""
    lines = markdown.strip().splitlines()
    headings = [line for line in lines if line.startswith("#")]
    prose = [line for line in lines if line and not line.startswith(("#", "|", "```", "- "))]
    title_page = any(line.startswith("# ") for line in headings)
    return (
        plain_words(headings[-1].lstrip("# ")) if headings else heading,
        plain_words(prose[-1]) if prose and not title_page else "",
    )


def plain_words(markdown: str) -> str:
    """Markdown without its marks."""
    return (
        re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", markdown).replace("*", "").replace("`", "").strip()
    )


def drawn_by(code: str, captions: Mapping[str, str]) -> str:
    """What the cell's last drawing function says that it draws, with the labels given to it; empty for other cells.

    Args:
        code: the cell.
        captions: of the figures that notebook 07 draws, by name.
    """
    figures = [name for name in re.findall(r'"(\w+)"', code) if name in captions]
    if figures:
        return captions[figures[-1]]
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a cell with a magic command
        return ""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _function(node)]
    if not calls:
        return ""
    call = max(calls, key=lambda node: node.lineno)
    says = SHAPE.sub("", (inspect.getdoc(_function(call)) or "").partition("\n")[0])
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    given += [key for argument in given if isinstance(argument, ast.Dict) for key in argument.keys]
    labels = [
        node.value for node in given if isinstance(node, ast.Constant) and " " in str(node.value)
    ]
    return (
        plain_words(says).partition(":")[0].rstrip(".")
        + (f": {', '.join(labels)}" if labels else "")
        + "."
    )


def _function(call: ast.Call) -> Callable | None:
    """The function of lgekit that draws what this call shows; None for all other calls."""
    called = call.func
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
        return None
    return getattr(DRAWS.get(called.value.id), called.attr, None)


def alt_text(heading: str, drawn: str, prose: str) -> str:
    """Heading, what is drawn, then as many whole sentences of the prose above as fit."""
    words = " ".join(part for part in (heading.rstrip(".?!:") + ".", drawn) if part)
    for sentence in re.split(r"(?<=[.:?!]) ", prose):
        if len(words) + len(sentence) > LONGEST:
            break
        words += f" {sentence}"
    return words.strip().rstrip(":")
