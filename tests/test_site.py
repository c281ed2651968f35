"""The site: notebooks and documents, gathered and built without a network; every link within it leads somewhere."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import alt_text
import build_site
import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
SITE = ROOT / "notebooks" / "site"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RAN = NOTEBOOKS[2]
DOT = base64.b64encode((ROOT / "figures" / "roc.png").read_bytes()).decode()


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """A run of the workbook that got as far as one notebook: a picture, a widget, a progress bar, a warning, a path."""
    folder = tmp_path_factory.mktemp("workbook")
    notebook = nbformat.read(RAN, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "box"}
    code[3].outputs = [
        nbformat.v4.new_output("display_data", {"image/png": DOT, "text/plain": "<Figure>"}),
        nbformat.v4.new_output("display_data", widget),
        nbformat.v4.new_output("display_data", {**widget, "image/png": DOT}),
        nbformat.v4.new_output("stream", name="stderr", text="a warning of some package"),
        nbformat.v4.new_output(
            "stream", name="stdout", text="in /home/ada/lge/papermill_runs/workbook/x.yaml"
        ),
    ]
    injected = nbformat.v4.new_code_cell(
        "size = 'smoke'", metadata={"tags": ["injected-parameters"]}
    )
    notebook.cells.insert(2, injected)
    nbformat.write(notebook, folder / RAN.name)
    (folder / RAN.stem).mkdir()
    (folder / RAN.stem / "params.json").write_text('{"cohort": "", "size": "smoke", "seed": 3}')
    return folder


class TestNotebookPages:
    def test_a_notebook_that_was_not_run_says_so(self, executed):
        page = build_site.notebook_page(NOTEBOOKS[0], executed, {})
        assert "without outputs" in page.cells[1].source

    def test_outputs_stay_where_a_browser_can_show_them(self, executed):
        page = build_site.notebook_page(RAN, executed, {})
        assert (
            "size `smoke`, seed 3" in page.cells[1].source
            and "has changed" not in page.cells[1].source
        )
        outputs = [output for cell in page.cells for output in cell.get("outputs", [])]
        assert ["image/png" in output.get("data", {}) for output in outputs] == [True, True, False]
        assert outputs[-1].text == "in papermill_runs/workbook/x.yaml"
        assert "injected-parameters" not in str(page)

    def test_every_code_cell_has_alternative_text_from_the_words_above_it(self, executed):
        page = build_site.notebook_page(RAN, executed, {})
        texts = [cell.metadata.mystnb.image.alt for cell in page.cells if cell.cell_type == "code"]
        assert all(len(text) > 8 for text in texts)
        assert not re.search(r"[*`\n]", "".join(texts))

    def test_solutions_are_folded_and_the_stored_notebook_is_left_alone(self, executed):
        before = RAN.read_bytes()
        page = build_site.notebook_page(RAN, executed, {})
        assert sum("hide-cell" in build_site.tags(cell) for cell in page.cells) == 3
        assert RAN.read_bytes() == before

    def test_a_run_on_real_studies_or_on_an_older_text_is_marked(self, executed, tmp_path):
        older = nbformat.read(executed / RAN.name, as_version=4)
        older.cells[0].source += "\n\nOnce there was another line."
        nbformat.write(older, tmp_path / RAN.name)
        (tmp_path / RAN.stem).mkdir()
        (tmp_path / RAN.stem / "params.json").write_text(
            '{"cohort": "emidec:x", "size": "smoke", "seed": 0}'
        )
        note = build_site.notebook_page(RAN, tmp_path, {}).cells[1].source
        assert "licence" in note and "has changed since" in note


class TestAlternativeText:
    def test_says_what_the_drawing_function_draws_and_how_it_is_labelled(self):
        code = 'x = table["with space"]\nplots.histogram(table["error of x"], "error (degrees)", "studies with scar")'
        assert re.fullmatch(
            r"\w[^:]*: error \(degrees\), studies with scar\.", alt_text.drawn_by(code, {})
        )
        code = 'plots.show_images({"speaks for scar": a["b c"], "x": b}, columns=1)'
        assert re.fullmatch(r"[^(`]*: speaks for scar\.", alt_text.drawn_by(code, {}))
        assert (
            alt_text.drawn_by('print("a b")', {}) == alt_text.drawn_by("plots.nothing(1)", {}) == ""
        )
        assert alt_text.drawn_by("%time plots.roc(curves)", {}) == ""

    def test_a_figure_with_a_caption_is_told_by_it(self):
        assert (
            alt_text.drawn_by(
                'paper_figures.from_session("roc", session, folder)', {"roc": "A curve."}
            )
            == "A curve."
        )

    def test_keeps_whole_sentences(self):
        text = alt_text.alt_text("Why?", "Bars of walls.", "A short one. " + "long " * 80)
        assert text == "Why. Bars of walls. A short one."

    def test_the_words_are_those_right_above_and_not_of_a_title_page(self):
        assert alt_text.heading_and_prose("# 02 · Turn\n\n*About 1 minute.*") == ("02 · Turn", "")
        assert alt_text.heading_and_prose("## Mean\n\nOne.\n\nA **blur**, `x`.") == (
            "Mean",
            "A blur, x.",
        )
        assert alt_text.heading_and_prose("More of it.", "Mean") == ("Mean", "More of it.")


def test_the_page_of_figures_shows_each_with_its_caption_as_alternative_text():
    figures = ROOT / "figures"
    text = build_site.figure_list(figures)
    for name, caption in json.loads((figures / "captions.json").read_text("utf-8")).items():
        assert (
            f"figures/{name}.png" in text
            and f":alt: {caption}" in text
            and f"figures/{name}.csv" in text
        )


def test_broken_links_are_found(tmp_path):
    (tmp_path / "two.html").write_text('<p id="here">x</p>')
    good = '<a href="two.html#here">a</a> <a href="#top" id="top">b</a> <a href="https://arxiv.org/">c</a>'
    (tmp_path / "one.html").write_text(good)
    assert build_site.broken_links(tmp_path) == []
    bad = ["three.html", "two.html#there", "#nowhere"]
    fetched = ["https://example.org/a.js", "//example.org/b.js"]
    anchors = "".join(f'<a href="{link}">x</a>' for link in bad)
    scripts = "".join(f'<script src="{link}"></script>' for link in fetched)
    (tmp_path / "one.html").write_text(anchors + scripts + '<img src="no.png">')
    assert build_site.broken_links(tmp_path) == [
        f"one.html: {link}" for link in [*bad, *fetched, "no.png"]
    ]


@pytest.fixture(scope="module")
def site(executed, tmp_path_factory) -> Path:
    """Built in a process of its own, for Sphinx loads the library's modules anew."""
    out = tmp_path_factory.mktemp("site") / "html"
    command = [
        sys.executable,
        str(SITE / "build_site.py"),
        "--out",
        str(out),
        "--executed",
        str(executed),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def soup_of(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser")


@pytest.mark.timeout(1800)
class TestBuilt:
    def test_can_be_searched(self, site):
        index = (site / "searchindex.js").read_text("utf-8")
        assert index.startswith("Search.setIndex(") and "gadolinium" in index
        assert "standardizeshortaxis" in index.lower()

    def test_every_link_leads_somewhere_and_every_picture_has_alternative_text(self, site):
        assert build_site.broken_links(site) == []
        pages = [page.pictures for page in build_site.read_pages(site).values()]
        pictures = [pair for found in pages for pair in found.items() if "_static/" not in pair[0]]
        assert len(pictures) >= 12
        assert not [source for source, text in pictures if len(text) < 8 or text in source]

    def test_terms_lead_to_the_glossary_and_code_to_the_library(self, site):
        links = {
            tag["href"]
            for tag in soup_of(site, "notebooks/02_orientation_standardization").find_all(
                "a", href=True
            )
        }
        assert any("glossary.html#term-" in link for link in links)
        assert any(
            "api/lgekit.anatomy.frame.html#lgekit.anatomy.frame.StandardizeShortAxis" in link
            for link in links
        )
        terms = soup_of(site, "paper_terms")
        rows = [row.find_all("td") for row in terms.find("table").find_all("tr")[1:]]
        for cells in rows:
            assert "notebooks/" in str(cells[2].find("a")) and cells[3].find("a"), cells[0].text

    def test_all_that_was_gathered_is_there(self, site):
        names = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
        modules = {f"api/lgekit.{path.stem}" for path in (ROOT / "lgekit").glob("[a-z]*.py")}
        assert modules <= names
        assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} | {
            "README",
            "CONTRIBUTING",
            "CHANGELOG",
        } <= names
        assert {path.stem for path in SITE.glob("*.md")} <= names

    def test_the_disclaimer_stands_on_every_page(self, site):
        for path in NOTEBOOKS:
            feet = soup_of(site, f"notebooks/{path.stem}").find_all("footer")
            assert "Not a medical device" in "".join(foot.text for foot in feet)
