"""The workbook in a real browser: JupyterLab, widgets used by keyboard, apps and site.

The notebooks run in order, at smoke size, on copies: later ones read the tables of earlier ones.
"""

import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect
from real_browser import ROOT, START_TIMEOUT_S, Widget, chromium, notebook, offline_page, server

import lgekit as lk

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]
LAB = """jupyterlab --no-browser --allow-root --port={port} --IdentityProvider.token=
    --ServerApp.disable_check_xsrf=True --LabApp.news_url=None
    --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --ServerApp.root_dir="""
TURN = [("spinbutton", "turn (deg)", "ArrowUp"), ("checkbox", "take it for mirrored", "Space")]
PAINT = [("button", name, "Space") for name in ("inferoseptal", "basal", "transmural")]
PAINT.append(("checkbox", "no-reflow", "Space"))
ASK = [("textbox", "sentence", "x"), ("spinbutton", "study", "ArrowUp")]
# Notebook → how many pictures it shows at least, and the controls of its widgets.
NOTEBOOKS = {
    "00_start_here": (2, []),
    "01_data_exploration": (2, []),
    "02_orientation_standardization": (8, [TURN]),
    "03_synthetic_scar_generation": (6, [[("checkbox", "show the answer", "Space")], PAINT]),
    "04_pretraining": (2, []),
    "05_clip_captioning": (6, [ASK]),
    "06_ablations": (2, [[("button", "plain_clip", "Space")]]),
    "07_paper_figures": (6, []),
}


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of JupyterLab on copies of the notebooks that have the smoke size."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text, results = path.read_text("utf-8"), folder / "results"
        own = {"size": "smoke", "out": results / path.stem, "figures": results / "figures"}
        for name, value in own.items():
            text = re.sub(rf'"{name}: str = \\".*?\\"', f'"{name}: str = \\\\"{value}\\\\"', text)
        (folder / "notebooks" / path.name).write_text(text, "utf-8")
    with server(f"{LAB}{folder / 'notebooks'}", folder) as address:
        yield address


def use(widget, controls):
    """Use all controls; each must change the picture or the words."""
    shown = [widget.shown()]
    for control in controls:
        shown.append(widget.press(*control))
    assert len(set(shown)) == len(shown)
    return shown[0]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_its_widgets_answer(browser, lab, name):
    pictures, widgets = NOTEBOOKS[name]
    with notebook(browser, lab, name) as opened:
        assert opened.pictures() >= pictures
        before = opened.pictures(), opened.texts()
        first = [use(opened.widget(n), controls) for n, controls in enumerate(widgets)]
        if name.startswith("02"):  # a restart leaves nothing behind
            opened.run("Kernel", "Restart Kernel and Run All Cells")
            assert opened.widget().shown() == first[0]
            assert (opened.pictures(), opened.texts()) == before


def test_the_apps_answer_without_code(browser, tmp_path):
    lk.widgets.playground_detector().save(tmp_path / "model")
    lk.write_manifest(lk.phantom_cohort(studies=3, seed=5), tmp_path / "mine")
    own = {"MODEL_DIR": str(tmp_path / "model"), "COHORT": f"manifest:{tmp_path}/mine/manifest.csv"}
    (recipe,) = re.findall(r"\$\(BIN\)/(voila .*)", (ROOT / "Makefile").read_text())
    with server(f"{recipe} --no-browser --port={{port}}", tmp_path, **own) as address:
        for app, controls in {"scar_painter": PAINT, "prompt_playground": ASK}.items():
            with offline_page(browser, app) as page:
                link = f"{address}/voila/render/{app}.ipynb"
                page.goto(link, timeout=1000 * START_TIMEOUT_S)
                widget = Widget(page, page.locator(".widget-vbox").first)
                use(widget, controls)
                words = page.locator("body").inner_text()
                assert "Not a medical device" in words and "plots.use_style" not in words
        assert "Phantom_5_00001" in words  # of the user's own cohort


def test_the_site_opens_and_can_be_searched(browser, tmp_path):
    arguments = ["--out", tmp_path / "site", "--executed", tmp_path / "none"]
    build = [sys.executable, "notebooks/site/build_site.py", *arguments]
    subprocess.run(build, cwd=ROOT, check=True)
    command = f"http.server {{port}} --bind=127.0.0.1 --directory={tmp_path / 'site'}"
    with server(command, tmp_path) as address, offline_page(browser, "site") as page:
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: answer.status < 400 or wrong.append(answer.url))
        page.goto(f"{address}/index.html")
        title = "02 · Orientation standardisation"
        page.get_by_role("link", name=title).first.click()
        expect(page).to_have_title(re.compile(f"^{title}"))
        page.keyboard.press("Control+k")
        page.keyboard.type("StandardizeShortAxis")
        page.keyboard.press("Enter")
        found = page.locator("#search-results")
        expect(found.get_by_role("link", name=title)).to_be_visible()
        name = "lgekit.anatomy.frame.StandardizeShortAxis"
        found.get_by_role("link", name=name, exact=True).click()
        expect(page.locator(f"[id='{name}']")).to_contain_text("class")
        page.goto(f"{address}/figures.html")
        images = page.locator("article img")
        widths = images.evaluate_all("all => all.map(image => image.naturalWidth)")
        assert len(widths) >= 12 and min(widths) > 50
        assert not wrong
