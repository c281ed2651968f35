"""Build the site: ``make site``, or ``python notebooks/site/build_site.py [--out FOLDER]``.

The pages are gathered in a temporary folder: this folder's own, README.md and its neighbours, every notebook as it was
last executed by ``make workbook`` (as it is stored where it was not), and a page of ``figures/``. Then Sphinx makes
HTML of them, warnings are errors, and every link within the site is followed. Nothing is fetched from the network.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
from alt_text import alt_text, drawn_by, heading_and_prose
from sphinx.cmd.build import build_main

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
ABOVE_RUNS = re.compile(r"/\S*/papermill_runs/")
LARGEST_TABLE = (12, 10)  # rows and columns that a page shows; larger ones are there to download


def gather(
    source: Path,
    executed: Path,
    stored: Path = ROOT / "notebooks",
    figures: Path = ROOT / "figures",
) -> None:
    """Write the pages' sources.

    Args:
        source: a new folder.
        executed: the folder of the last ``make workbook``; it may be missing.
        stored: the notebooks without outputs.
        figures: pictures with their tables, and ``captions.json``.
    """
    shutil.copytree(SITE, source, ignore=shutil.ignore_patterns("*.py", "_*"))
    for name in DOCUMENTS:
        shutil.copyfile(ROOT / name, source / name)
    for page in source.glob("*.md"):  # in the checkout they lie in two folders, here in one
        text = page.read_text("utf-8")
        page.write_text(text.replace("](notebooks/site/", "](").replace("](../../", "]("), "utf-8")
    shutil.copytree(
        figures, source / "figures", ignore=lambda folder, names: [n for n in names if "." not in n]
    )
    (source / "figures.md").write_text(
        (SITE / "figures.md").read_text("utf-8") + figure_list(figures), "utf-8"
    )
    (source / "notebooks").mkdir()
    captions = read_captions(figures)
    for path in sorted(stored.glob("*.ipynb")):
        nbformat.write(notebook_page(path, executed, captions), source / "notebooks" / path.name)


def notebook_page(
    stored: Path, executed: Path, captions: Mapping[str, str]
) -> nbformat.NotebookNode:
    """A notebook as the site shows it: with outputs where there are any, alt text, solutions folded away."""
    plain = nbformat.read(stored, as_version=4)
    run = executed / stored.name
    page = nbformat.read(run, as_version=4) if run.exists() else plain
    page.metadata.pop("widgets", None)  # drawing them needs a kernel; each has a still picture
    page.cells = [cell for cell in page.cells if "injected-parameters" not in tags(cell)]
    note = origin(page, plain, executed / stored.stem)
    heading, prose = "", ""
    for cell in page.cells:
        if cell.cell_type == "markdown":
            heading, prose = heading_and_prose(cell.source, heading)
            continue
        cell.metadata["mystnb"] = {
            "image": {"alt": alt_text(heading, drawn_by(cell.source, captions), prose)}
        }
        cell.outputs = [output for output in cell.outputs if shown(output)]
        for output in cell.outputs:
            if "text" in output:  # where the checkout lies is nobody's business
                output.text = ABOVE_RUNS.sub("papermill_runs/", output.text)
        if "solution" in tags(cell):
            cell.metadata.tags.append("hide-cell")
    page.cells.insert(1, nbformat.v4.new_markdown_cell(f":::{{note}}\n{note}\n:::\n"))
    return page


def tags(cell: nbformat.NotebookNode) -> Sequence[str]:
    return cell.metadata.get("tags", [])


def shown(output: nbformat.NotebookNode) -> bool:
    """Not what a browser cannot show: progress bars, widgets without a still, warnings of other packages."""
    widget_alone = (
        "application/vnd.jupyter.widget-view+json" in output.get("data", {})
        and "image/png" not in output.data
    )
    return not widget_alone and output.get("name") != "stderr"


def origin(page: nbformat.NotebookNode, plain: nbformat.NotebookNode, results: Path) -> str:
    """Where the outputs of a page come from, in a sentence or two."""
    if page is plain:
        return "Shown without outputs, for the workbook has not been run to here: `make workbook`."
    chosen = json.loads((results / "params.json").read_text("utf-8"))
    cohort = f"`{chosen['cohort']}`" if chosen["cohort"] else "the phantom"
    text = f"Outputs of a run on {cohort}, size `{chosen['size']}`, seed {chosen['seed']}."
    if chosen["cohort"] and not chosen["cohort"].startswith("phantom:"):
        text += " **Pictures of real studies: this page is for your own eyes, unless the data's licence allows more.**"
    if [cell.source for cell in page.cells] != [cell.source for cell in plain.cells]:
        text += " The notebook has changed since; the text here is the one that was run."
    return text


def read_captions(figures: Path) -> dict[str, str]:
    return json.loads((figures / "captions.json").read_text("utf-8"))


def titled(name: str) -> str:
    """``wall_auc`` → Wall AUC."""
    return re.sub(
        r"\b(auc|roc)\b",
        lambda word: word[0].upper(),
        name.replace("_", " ").capitalize(),
        flags=re.I,
    )


def figure_list(figures: Path) -> str:
    """Every figure with its caption (its alt text too) and its table, as MyST."""
    captions = read_captions(figures)
    parts = []
    for picture in sorted(figures.glob("*.png")):
        name, table = picture.stem, picture.with_suffix(".csv")
        parts += [f"\n## {titled(name)}\n"]
        parts += [
            f"```{{figure}} figures/{name}.png\n:alt: {captions[name]}\n:name: figure-{name}\n{captions[name]}\n```\n"
        ]
        links = [
            f"{{download}}`{path.suffix[1:].upper()} <figures/{path.name}>`"
            for path in (table, picture, picture.with_suffix(".svg"))
        ]
        parts += ["Download: " + ", ".join(links) + ".\n"]
        shape = pd.read_csv(table).shape
        if shape[0] <= LARGEST_TABLE[0] and shape[1] <= LARGEST_TABLE[1]:
            parts += [
                f"```{{csv-table}} The numbers of this figure\n:file: figures/{name}.csv\n:header-rows: 1\n```\n"
            ]
    return "\n".join(parts)


class Page(HTMLParser):
    """What a built page leads to.

    Attributes:
        ids: anchors on the page.
        links: tag and address of each link, script, style and picture.
        pictures: source → alternative text.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.pictures: dict[str, str] = {}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if "id" in given:
            self.ids.add(given["id"])
        if tag in ("a", "link", "script", "img") and (
            address := given.get("href") or given.get("src")
        ):
            self.links.append((tag, address))
        if tag == "img":
            self.pictures[given["src"]] = given.get("alt", "")


def read_pages(site: Path) -> dict[Path, Page]:
    """Every page of a built site; the theme's own templates are none."""
    paths = sorted(
        path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts
    )
    return {path: Page(path) for path in paths}


def broken_links(site: Path) -> list[str]:
    """Follow every link within the built pages: ``page: link`` for each that leads nowhere or would be fetched.

    Args:
        site: a folder of HTML. Links to other sites are not followed; scripts, styles and pictures must not have any.
    """
    pages = read_pages(site)
    broken = []
    for path, page in pages.items():
        for tag, link in page.links:
            if link.startswith(("data:", "mailto:")):
                continue
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or parts.netloc:
                wrong = tag != "a"
            else:
                anchors = pages[target].ids if target in pages else ()
                wrong = not target.is_file() or bool(
                    parts.fragment and unquote(parts.fragment) not in anchors
                )
            if wrong:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def build(out: Path, executed: Path = ROOT / "papermill_runs" / "workbook", **where: Path) -> int:
    """Gather, build and check; 0, or what the command line should exit with."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        gather(source, executed, **where)
        made = Path(scratch) / "html"
        arguments = [
            "-b",
            "html",
            "-q",
            "-W",
            "--keep-going",
            "-c",
            str(SITE),
            "-d",
            f"{scratch}/doctrees",
        ]
        if code := build_main([*arguments, str(source), str(made)]):
            return code
        if broken := broken_links(made):
            print("links that lead nowhere:", *broken, sep="\n  ", file=sys.stderr)
            return 1
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(made, out)
    print(f"the site is in {out}; open {out}/index.html")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "_site", help="folder of the site, replaced whole"
    )
    parser.add_argument(
        "--executed",
        type=Path,
        default=ROOT / "papermill_runs" / "workbook",
        help="executed notebooks",
    )
    chosen = parser.parse_args()
    sys.exit(build(chosen.out, chosen.executed))
