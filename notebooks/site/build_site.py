"""Build the site: ``make site``, or ``python notebooks/site/build_site.py [--out FOLDER]``.

The pages are this folder's own, README.md and its neighbours, all notebooks as `make workbook` last
executed them, and a page of figures. Nothing is fetched from the network.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from sphinx.cmd.build import build_main

import lgekit as lk
from lgekit.evaluation.metrics import title_of

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]
EXECUTED = ROOT / "papermill_runs" / "workbook"
ABOVE_RUNS = re.compile(r"/\S*/papermill_runs/")
LARGEST_TABLE = (12, 10)  # rows and columns; larger tables are only offered for download
CALL = re.compile(r"\b(plots|widgets)\.(\w+)\((.*?)\)$", re.DOTALL | re.MULTILINE)
WIDGET = "application/vnd.jupyter.widget-view+json"


def gather(source: Path, executed: Path) -> None:
    """Write the sources of all pages into a new folder."""
    shutil.copytree(SITE, source, ignore=shutil.ignore_patterns("*.py", "_*"))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copyfile(ROOT / name, source / name)
    shutil.copyfile(ROOT / "lgekit/data/weights/model_card.md", source / "weights_card.txt")
    for page in source.glob("*.md"):  # they come from two folders
        text = page.read_text("utf-8")
        page.write_text(text.replace("](notebooks/site/", "](").replace("](../../", "]("), "utf-8")
    figures = ROOT / "figures"
    (source / "figures").mkdir()
    for file in filter(Path.is_file, figures.iterdir()):
        shutil.copyfile(file, source / "figures" / file.name)
    with (source / "figures.md").open("a", encoding="utf-8") as page:
        page.write(figure_list(figures))
    (source / "notebooks").mkdir()
    captions = json.loads((figures / "captions.json").read_text("utf-8"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        nbformat.write(notebook_page(path, executed, captions), source / "notebooks" / path.name)


def notebook_page(
    stored: Path, executed: Path, captions: Mapping[str, str]
) -> nbformat.NotebookNode:
    """Prepare a notebook: outputs if it was executed, alternative texts, folded solutions."""
    plain = nbformat.read(stored, as_version=4)
    run = executed / stored.name
    page = nbformat.read(run, as_version=4) if run.exists() else plain
    page.metadata.pop("widgets", None)  # they need a kernel; each has a still picture
    page.cells = [cell for cell in page.cells if "injected-parameters" not in tags(cell)]
    note = source_note(page, plain, executed / stored.stem)
    heading = ""
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](site/", "](../")  # where the pages are
            heading = "".join(re.findall(r"^#+ (.*)", cell.source, re.MULTILINE)[-1:]) or heading
            continue
        words = re.sub(r"[*`]", "", heading).rstrip(".?!:") + f". {drawn_by(cell.source, captions)}"
        cell.metadata["mystnb"] = {"image": {"alt": words.strip()}}
        cell.outputs = [output for output in cell.outputs if is_shown(output)]
        for output in cell.outputs:
            if "text" in output:
                output.text = ABOVE_RUNS.sub("papermill_runs/", output.text)  # no private paths
        if "solution" in tags(cell):
            cell.metadata.tags.append("hide-cell")
    page.cells.insert(1, nbformat.v4.new_markdown_cell(f":::{{note}}\n{note}\n:::\n"))
    return page


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def is_shown(output: nbformat.NotebookNode) -> bool:
    """Leave out progress bars, warnings and widgets without a still picture."""
    data = output.get("data", {})
    return output.get("name") != "stderr" and (WIDGET not in data or "image/png" in data)


def source_note(page: nbformat.NotebookNode, plain: nbformat.NotebookNode, results: Path) -> str:
    """Say which run the outputs of a page are from."""
    if page is plain:
        return "Shown without outputs: run the workbook with `make workbook`."
    chosen = json.loads((results / "params.json").read_text("utf-8"))
    cohort = f"`{chosen['cohort']}`" if chosen["cohort"] else "the phantom"
    text = f"Outputs of a run on {cohort}, size `{chosen['size']}`, seed {chosen['seed']}."
    if chosen["cohort"] and not chosen["cohort"].startswith("phantom:"):
        text += " **Images of real studies: check the data's licence before you share this page.**"
    if [cell.source for cell in page.cells] != [cell.source for cell in plain.cells]:
        text += " The notebook has changed since this run."
    return text


def drawn_by(code: str, captions: Mapping[str, str]) -> str:
    """Describe what a cell draws: a figure's caption, or the plot function's docstring."""
    for name in re.findall(r'"(\w+)"', code):
        if name in captions:
            return captions[name]
    calls = [call for call in CALL.findall(code) if hasattr(getattr(lk, call[0]), call[1])]
    if not calls:
        return ""
    module, name, arguments = calls[-1]
    says = (getattr(getattr(lk, module), name).__doc__ or "").partition("\n")[0]
    words = re.sub(r"\(?``.*?``\)?|[*`]", "", says).partition(":")[0].rstrip(". ")
    texts = re.findall(r'(\[?)"([^"]*)"', arguments)
    labels = [text for bracket, text in texts if " " in text and not bracket]
    return ": ".join(filter(None, (words, ", ".join(labels)))) + "."


def figure_list(figures: Path) -> str:
    """List all figures with caption, downloads and, if it is small, their table, as MyST."""
    parts = []
    for name, caption in json.loads((figures / "captions.json").read_text("utf-8")).items():
        file, title = f"figures/{name}", title_of(name)
        links = [f"{{download}}`{end.upper()} <{file}.{end}>`" for end in ("csv", "png", "svg")]
        picture = f"{file}.png\n:alt: {caption}\n:name: figure-{name}\n{caption}"
        parts += [f"\n## {title[0].upper()}{title[1:]}\n", f"```{{figure}} {picture}\n```\n"]
        parts += [f"Download: {', '.join(links)}.\n"]
        rows, columns = pd.read_csv(figures / f"{name}.csv").shape
        if rows <= LARGEST_TABLE[0] and columns <= LARGEST_TABLE[1]:
            numbers = f"The numbers of this figure\n:file: {file}.csv\n:header-rows: 1"
            parts += [f"```{{csv-table}} {numbers}\n```\n"]
    return "\n".join(parts)


def read_pages(site: Path) -> dict[Path, BeautifulSoup]:
    """Read all pages of a built site, without the theme's templates."""
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {path: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in paths}


def broken_links(site: Path) -> list[str]:
    """List ``page: link`` for links within a site that lead nowhere, and files from elsewhere."""
    pages, broken = read_pages(site), []
    anchors = {path: {tag["id"] for tag in soup.find_all(id=True)} for path, soup in pages.items()}
    for path, soup in pages.items():
        for tag in soup.find_all(["a", "link", "script", "img"]):
            link = tag.get("href") or tag.get("src") or "data:"
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = anchors.get(target, ()) if parts.fragment else [""]
            if parts.scheme in ("data", "mailto") or (tag.name == "a" and parts.netloc):
                continue
            if parts.netloc or not target.is_file() or unquote(parts.fragment) not in known:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def build(out: Path, executed: Path) -> int:
    """Gather, build and check the site; return the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch) / "source", Path(scratch) / "html"
        gather(source, executed)
        options = ["-b", "html", "-q", "-W", "--keep-going", "-c", str(SITE)]
        if code := build_main([*options, "-d", f"{scratch}/doctrees", str(source), str(made)]):
            return code
        if broken := broken_links(made):
            print("links that lead nowhere:", *broken, sep="\n  ", file=sys.stderr)
            return 1
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(made, out)
    print(f"the site is in {out}; open {out}/index.html")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "_site", help="folder of the site")
    parser.add_argument("--executed", type=Path, default=EXECUTED, help="executed notebooks")
    chosen = parser.parse_args()
    sys.exit(build(chosen.out, chosen.executed))
