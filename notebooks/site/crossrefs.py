"""Link names in code to the library's pages and terms to the glossary; draw formulae as MathML."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.nodes import caption, literal, literal_block, reference, title
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

import lgekit

CALL = re.compile(r"(?:lgekit\.|lk\.)?([A-Za-z_][\w.]*)(\(.*\))?$")
QUIET = (
    title,
    reference,
    literal,
    literal_block,
    nodes.term,
    caption,
    nodes.math,
    nodes.math_block,
)
Target = tuple[str, str]  # page and anchor


def add_links(app: Sphinx, document: nodes.document, page: str) -> None:
    """Add links to a page, once all pages are read; the library's own pages stay as they are."""
    if page.startswith("api"):
        return
    names = names_by_ending(app.env.domains.python_domain.objects)
    for word in list(document.findall(literal)):
        called = CALL.match(word.astext())
        if called and not is_quiet(word):
            if target := names.get(called[1]) or names.get(where_defined(called[1])):
                link = make_refnode(app.builder, page, *target, word.deepcopy())
                word.replace_self(link)
    if page != "glossary":
        link_terms(app, document, page)


def link_terms(app: Sphinx, document: nodes.document, page: str) -> None:
    """Link the first use of each term on a page to the glossary."""
    objects = app.env.domains.standard_domain.objects
    terms = {name.lower(): target for (kind, name), target in objects.items() if kind == "term"}
    words = "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w-])({words})(?![\w-])", re.IGNORECASE)
    linked = set()
    for text in [text for text in document.findall(nodes.Text) if not is_quiet(text)]:
        pieces: list[nodes.Node] = []
        for piece in pattern.split(text.astext()):
            target = terms.get(piece.lower())
            if target and target not in linked:
                linked.add(target)
                word = nodes.inline("", piece, classes=["term"])
                pieces.append(make_refnode(app.builder, page, *target, word))
            else:
                pieces.append(nodes.Text(piece))
        if len(pieces) > 1:
            text.parent.replace(text, pieces)


def names_by_ending(objects: dict) -> dict[str, Target]:
    """Map each unambiguous end of a documented name to its page and anchor.

    A single word needs a capital or an underscore, so that ordinary words are not linked.
    """
    found: dict[str, set[Target]] = {}
    for name, entry in objects.items():
        parts = name.split(".")[1:]
        for ending in (".".join(parts[start:]) for start in range(len(parts))):
            if re.search(r"[A-Z_.]", ending):
                found.setdefault(ending, set()).add((entry.docname, entry.node_id))
    return {ending: targets.pop() for ending, targets in found.items() if len(targets) == 1}


def where_defined(name: str) -> str:
    """Resolve a public name of lgekit, such as ``plots.roc`` → ``viz.plots.roc``."""
    found = lgekit
    for part in name.split("."):
        found = getattr(found, part, None)
    module, path = (getattr(found, key, "") for key in ("__module__", "__qualname__"))
    return f"{module}.{path}".removeprefix("lgekit.")


def is_quiet(node: nodes.Node) -> bool:
    """Tell whether a node is in a title, link, code or caption, which get no links."""
    parent = node.parent
    while parent and not isinstance(parent, QUIET):
        parent = parent.parent
    return bool(parent)


def draw_formula(translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula in the browser's own language, which needs no script."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f"<p>{formula}</p>" if block else formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", (draw_formula, None), (draw_formula, None))
    app.connect("doctree-resolved", add_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
