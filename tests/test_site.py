"""The site is built without a network from notebooks, documents and figures; all its links work."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import build_site
import fill_tables
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "notebooks" / "site"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = NOTEBOOKS[2]
IMAGE = base64.b64encode((ROOT / "figures" / "roc.png").read_bytes()).decode()


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """A run of one notebook with images, widgets, a warning and a private path in its outputs."""
    folder = tmp_path_factory.mktemp("workbook")
    notebook = nbformat.read(EXECUTED, as_version=4)
    new = nbformat.v4.new_output
    widget = {build_site.WIDGET: {"model_id": "x"}, "text/plain": "box"}
    path = "in /home/ada/lge/papermill_runs/workbook/x.yaml"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [{"image/png": IMAGE}, widget, {**widget, "image/png": IMAGE}]
    code[3].outputs = [new("display_data", picture) for picture in pictures]
    code[3].outputs.append(new("stream", name="stderr", text="a warning of some package"))
    code[3].outputs.append(new("stream", name="stdout", text=path))
    tagged = {"tags": ["injected-parameters"]}
    notebook.cells.insert(2, nbformat.v4.new_code_cell("size = 'smoke'", metadata=tagged))
    nbformat.write(notebook, folder / EXECUTED.name)
    (folder / EXECUTED.stem).mkdir()
    parameters = {"cohort": "emidec:x", "size": "smoke", "seed": 3}
    (folder / EXECUTED.stem / "params.json").write_text(json.dumps(parameters))
    return folder


def test_outputs_that_a_browser_can_show_are_kept(executed):
    page = build_site.notebook_page(EXECUTED, executed, {})
    note = page.cells[1].source
    assert "size `smoke`, seed 3" in note and "licence" in note and "has changed" not in note
    outputs = [output for cell in page.cells for output in cell.get("outputs", [])]
    assert ["image/png" in output.get("data", {}) for output in outputs] == [True, True, False]
    assert outputs[-1].text == "in papermill_runs/workbook/x.yaml"
    assert "injected-parameters" not in str(page)
    assert any("hide-cell" in build_site.tags(cell) for cell in page.cells)  # solutions


def test_missing_and_old_runs_are_marked(executed, tmp_path):
    unexecuted = build_site.notebook_page(NOTEBOOKS[0], executed, {})
    assert "without outputs" in unexecuted.cells[1].source
    shutil.copytree(executed, tmp_path / "run")
    older = nbformat.read(executed / EXECUTED.name, as_version=4)
    older.cells[0].source += "\n\nOnce there was another line."
    nbformat.write(older, tmp_path / "run" / EXECUTED.name)
    page = build_site.notebook_page(EXECUTED, tmp_path / "run", {})
    assert "has changed since" in page.cells[1].source


def test_broken_links_are_found(tmp_path):
    (tmp_path / "two.html").write_text('<p id="here">x</p>')
    good = ["two.html#here", "#top", "https://arxiv.org/"]
    bad = ["three.html", "two.html#there", "#nowhere"]
    anchors = "".join(f'<a href="{link}">x</a>' for link in good + bad)
    scripts = '<script src="https://example.org/a.js"></script><script src="//x.org/b"></script>'
    page = f'<h1 id="top">x</h1>{anchors}{scripts}<img src="no.png">'
    (tmp_path / "one.html").write_text(page)
    wanted = [*bad, "https://example.org/a.js", "//x.org/b", "no.png"]
    assert build_site.broken_links(tmp_path) == [f"one.html: {link}" for link in wanted]


PAGE = """<!-- table: {whole: a.csv where row == 'full', other: b.csv}
columns: {AUC: auc, F1: f1}
missing: no F1
-->
old
<!-- /table -->
"""


def test_tables_are_filled_from_csv_files(tmp_path, monkeypatch):
    monkeypatch.setattr(fill_tables, "ROOT", tmp_path)
    rows = "full,auc,0.9,0.8,1\nfull,f1,0.5,0.4,0.6\n2,auc,0.7,0.6,0.8\n"
    (tmp_path / "a.csv").write_text(f"row,statistic,value,low,high\n{rows}")
    (tmp_path / "b.csv").write_text("score,value,low,high\nauc,0.25,0.2,0.3\n")
    filled = fill_tables.fill(PAGE)
    assert "| whole | 0.90 (0.80–1.00) | 0.50 (0.40–0.60) |\n| other | 0.25" in filled
    assert "| no F1 |" in filled and "old" not in filled and fill_tables.fill(filled) == filled
    with pytest.raises(ValueError, match="does not hold 'nobody'"):
        fill_tables.fill(PAGE.replace("missing: no F1", "rows: {nobody: x}"))


@pytest.mark.timeout(1800)
def test_the_built_site_is_whole_and_its_links_work(executed, tmp_path):
    site = tmp_path / "html"
    arguments = ["--out", str(site), "--executed", str(executed)]
    command = [sys.executable, str(SITE / "build_site.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert build_site.broken_links(site) == []
    soups = build_site.read_pages(site).items()
    pages = {path.relative_to(site).with_suffix("").as_posix(): soup for path, soup in soups}
    notebooks = {f"notebooks/{path.stem}" for path in NOTEBOOKS}
    documents = {"README", "CHANGELOG", *(page.stem for page in SITE.glob("*.md"))}
    assert notebooks | documents <= pages.keys()
    for name in notebooks:
        feet = pages[name].find_all("footer")
        assert "Not a medical device" in "".join(foot.text for foot in feet)
    images = [image for page in pages.values() for image in page.find_all("img")]
    images = [image for image in images if "_static/" not in image["src"]]
    assert len(images) >= 12 and all(len(image["alt"]) >= 8 for image in images)
    page = pages["notebooks/02_orientation_standardization"]
    links = " ".join(link["href"] for link in page.find_all("a", href=True))
    assert "glossary.html#term-" in links
    assert "api/lgekit.anatomy.frame.html#lgekit.anatomy.frame.StandardizeShortAxis" in links
    index = (site / "searchindex.js").read_text("utf-8")
    assert "gadolinium" in index and "standardizeshortaxis" in index.lower()
