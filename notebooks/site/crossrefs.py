"""Links that nobody has to write: names in code to the library's pages, the first use of a term to the glossary."""

from __future__ import annotations

import re
from importlib import import_module
from operator import attrgetter

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

CALL = re.compile(r"(?:lgekit\.)?([A-Za-z_][\w.]*)(\(.*\))?$")
QUIET = (
    nodes.title,
    nodes.reference,
    nodes.literal,
    nodes.literal_block,
    nodes.term,
    nodes.caption,
)


def add_links(app: Sphinx, document: nodes.document, page: str) -> None:
    """Called for every page once all are read, so that links lead only to what exists; the library's pages stay."""
    if page.startswith("api"):
        return
    link_names(app, document, page)
    if page != "glossary":
        link_terms(app, document, page)


def link_names(app: Sphinx, document: nodes.document, page: str) -> None:
    """`reports.read_report` and `RandomScar(p=0.5)` lead to where lgekit documents them."""
    known = names_by_ending(app.env.domains.python_domain.objects)
    for literal in list(document.findall(nodes.literal)):
        if any(isinstance(parent, QUIET) for parent in ancestors(literal)):
            continue
        called = CALL.match(literal.astext())
        if called and (target := known.get(called[1]) or known.get(where_defined(called[1]))):
            literal.replace_self(make_refnode(app.builder, page, *target, literal.deepcopy()))


def link_terms(app: Sphinx, document: nodes.document, page: str) -> None:
    """The first time a page uses a term of the glossary, it leads there."""
    terms = glossary_terms(app.env.domains.standard_domain.objects)
    if not terms:
        return
    words = "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w-])({words})(?![\w-])", re.IGNORECASE)
    seen = set()
    for text in list(document.findall(nodes.Text)):
        if any(isinstance(parent, QUIET) for parent in ancestors(text)):
            continue
        pieces, end = [], 0
        for hit in pattern.finditer(text.astext()):
            target = terms.get(hit[0]) or terms.get(hit[0].lower())
            if target and target not in seen:
                seen.add(target)
                link = make_refnode(
                    app.builder, page, *target, nodes.inline("", hit[0], classes=["term"])
                )
                pieces += [nodes.Text(text[end : hit.start()]), link]
                end = hit.end()
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(text[end:])])


def names_by_ending(objects: dict) -> dict[str, tuple[str, str]]:
    """Each way to end a documented name that only one object has → its page and anchor.

    A bare word counts only where nobody could mean something else: with a capital, an underscore or a dot.
    """
    found: dict[str, set[tuple[str, str]]] = {}
    for name, entry in objects.items():
        parts = name.split(".")[1:]
        for start in range(len(parts)):
            ending = ".".join(parts[start:])
            if re.search(r"[A-Z_.]", ending):
                found.setdefault(ending, set()).add((entry.docname, entry.node_id))
    return {ending: targets.pop() for ending, targets in found.items() if len(targets) == 1}


def where_defined(name: str) -> str:
    """``reports.read_report``, which `reports` takes over from elsewhere → ``report_reader.read_report``."""
    module, _, rest = name.partition(".")
    try:
        found = attrgetter(rest)(import_module(f"lgekit.{module}"))
        return f"{found.__module__}.{found.__qualname__}".removeprefix("lgekit.")
    except (ImportError, AttributeError):
        return ""


def glossary_terms(objects: dict) -> dict[str, tuple[str, str]]:
    """Term as the glossary spells it → its page and anchor."""
    return {name: target for (kind, name), target in objects.items() if kind == "term"}


def ancestors(node: nodes.Node):
    while node := node.parent:
        yield node


def setup(app: Sphinx) -> dict:
    app.connect("doctree-resolved", add_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
