"""The workbook in a real browser: JupyterLab, widgets used by keyboard, apps and site.

The notebooks run in order, at smoke size, on copies: later ones read the tables of earlier ones.
"""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
import real_browser
from playwright.sync_api import expect

import lgekit as lk

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with real_browser.lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


def run_and_count_pictures(lab, name, at_least=2):
    with lab.run(name) as notebook:
        assert notebook.pictures() >= at_least


@pytest.mark.parametrize("name", ["00_start_here", "01_data_exploration"])
def test_the_first_notebooks_run(lab, name):
    run_and_count_pictures(lab, name)


def test_the_orientation_explorer_answers_and_a_restart_leaves_nothing_behind(lab):
    with lab.run("02_orientation_standardization") as notebook:
        pictures, texts = notebook.pictures(), notebook.texts()
        assert pictures >= 8
        explorer = notebook.widget()
        before = explorer.shown()
        explorer.enter()
        explorer.tab_to("spinbutton", "turn (deg)")
        turns = [explorer.press("ArrowUp") for _ in range(3)]  # 5° each
        assert len({picture for picture, _ in [before, *turns]}) == 4
        assert turns[-1][1] != before[1]
        explorer.tab_to("checkbox", "take it for mirrored")
        assert explorer.press("Space")[0] != turns[-1][0]
        notebook.screenshot("moved")
        notebook.restart_and_run_all()
        assert notebook.widget().shown() == before
        assert (notebook.pictures(), notebook.texts()) == (pictures, texts)


def test_quiz_and_scar_painter_answer(lab):
    with lab.run("03_synthetic_scar_generation") as notebook:
        assert notebook.pictures() >= 6
        quiz, painter = notebook.widget(0), notebook.widget(1)
        question = quiz.shown()
        quiz.enter()
        quiz.tab_to("checkbox", "show the answer")
        answer = quiz.press("Space")
        assert answer[0] != question[0] and "Which are painted" in question[1] and not answer[1]
        assert quiz.press("Space") == question
        before = painter.shown()
        painter.enter()
        painter.tab_to("button", "inferoseptal")
        shown = [before, painter.press("Space")]
        assert shown[1][1] != before[1]
        painter.tab_to("button", "basal")
        shown.append(painter.press("Space"))
        painter.tab_to("button", "transmural")
        shown.append(painter.press("Space"))
        painter.tab_to("spinbutton", "% of wall")
        painter.tab_to("checkbox", "no-reflow")
        shown.append(painter.press("Space"))
        assert len(set(shown)) == 5
        notebook.screenshot("moved")


def test_the_network_trains_in_the_browser(lab):
    run_and_count_pictures(lab, "04_pretraining")


def test_the_prompt_playground_answers(lab):
    with lab.run("05_clip_captioning") as notebook:
        assert notebook.pictures() >= 6
        playground = notebook.widget()
        before = playground.shown()
        playground.enter()
        playground.tab_to("textbox", "sentence")
        notebook.page.keyboard.press("Control+A")
        notebook.page.keyboard.type("No late gadolinium enhancemen")
        asked = playground.press("t")
        expect(playground.text).to_contain_text("No late gadolinium enhancement”", timeout=30_000)
        assert asked[0] != before[0]
        playground.tab_to("spinbutton", "study")
        study = playground.press("ArrowUp")
        assert study[0] != asked[0] and study[1] != asked[1]
        notebook.screenshot("moved")


def test_the_run_browser_answers(lab):
    with lab.run("06_ablations") as notebook:
        assert notebook.pictures() >= 2
        browser = notebook.widget()
        before = browser.shown()
        assert "Worst cases" in before[1]
        browser.enter()
        browser.tab_to("button", "plain_clip")
        other = browser.press("Space")
        assert other[0] != before[0] and other[1] != before[1]
        notebook.screenshot("moved")


def test_the_figures_are_drawn(lab):
    run_and_count_pictures(lab, "07_paper_figures", 6)


@contextmanager
def app(lab, folder, name, **variables):
    """An app of `make app` in a page of the browser."""
    with real_browser.voila(folder, **variables) as address:
        with real_browser.offline_page(lab.browser) as page:
            address = f"{address}/voila/render/{name}.ipynb"
            page.goto(address, timeout=1000 * real_browser.START_TIMEOUT_S)
            yield page, real_browser.MovedWidget(page, page.locator(".widget-vbox").first)


@pytest.mark.parametrize(
    ("name", "role", "control", "key"),
    [
        ("scar_painter", "button", "anterior", "Space"),
        ("prompt_playground", "spinbutton", "study", "ArrowUp"),
    ],
)
def test_the_apps_answer_without_code(lab, tmp_path, name, role, control, key):
    with app(lab, tmp_path, name) as (page, widget):
        before = widget.shown()
        widget.enter()
        widget.tab_to(role, control)
        after = widget.press(key)
        assert after[0] != before[0] and after[1] != before[1]
        words = page.locator("body").inner_text()
        assert "Not a medical device" in words and "plots.use_style" not in words
        real_browser.screenshot(page, f"app_{name}")


def test_the_playground_takes_a_model_and_images_of_ones_own(lab, tmp_path):
    lk.widgets.playground_detector().save(tmp_path / "model")
    lk.write_manifest(lk.phantom_cohort(studies=3, seed=5), tmp_path / "mine")
    own = {"MODEL_DIR": str(tmp_path / "model"), "COHORT": f"manifest:{tmp_path}/mine/manifest.csv"}
    with app(lab, tmp_path, "prompt_playground", **own) as (_, widget):
        widget.enter()
        widget.tab_to("spinbutton", "study")
        assert "Phantom_5_00001" in widget.press("ArrowUp")[1]


def test_the_site_opens_and_can_be_searched(lab, tmp_path):
    with real_browser.site(tmp_path) as address, real_browser.offline_page(lab.browser) as page:
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: answer.status < 400 or wrong.append(answer.url))
        page.goto(f"{address}/index.html")
        real_browser.screenshot(page, "site_index")
        title = "02 · Orientation standardisation"
        page.get_by_role("link", name=title).first.click()
        expect(page).to_have_title(re.compile(f"^{title}"))
        call = "widgets.orientation_explorer(example)"
        expect(page.locator(".highlight", has_text=call)).to_be_visible()
        page.keyboard.press("Control+k")
        page.keyboard.type("StandardizeShortAxis")
        page.keyboard.press("Enter")
        found = page.locator("#search-results")
        expect(found).to_contain_text(re.compile(r"found [1-9]\d* pages"))
        expect(found.get_by_role("link", name=title)).to_be_visible()
        real_browser.screenshot(page, "site_search")
        name = "lgekit.anatomy.frame.StandardizeShortAxis"
        found.get_by_role("link", name=name, exact=True).click()
        expect(page.locator(f"[id='{name}']")).to_contain_text("class")
        page.goto(f"{address}/figures.html")
        images = page.locator("article img")
        widths = images.evaluate_all("all => all.map(image => image.naturalWidth)")
        assert len(widths) >= 12 and min(widths) > 50
        page.goto(f"{address}/search.html?q=zzzznothing")
        expect(page.locator("#search-results")).to_contain_text("did not match any documents")
        assert not wrong
