"""The workbook as a reader meets it: JupyterLab in a real browser, widgets moved by keyboard, apps and site.

The notebooks run in order, at smoke size, on copies: later ones read the tables of earlier ones.
"""

from __future__ import annotations

import re

import pytest
import real_browser
from playwright.sync_api import expect

from lgekit.data import phantom, readers
from lgekit.viz import widgets as apps

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with real_browser.lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.mark.parametrize("name", ["00_start_here", "01_data_exploration"])
def test_the_first_notebooks_run(lab, name):
    with lab.run(name) as notebook:
        assert notebook.pictures() >= 2


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
        explorer.report("orientation explorer")
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
        quiz.report("quiz")
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
        painter.report("scar painter")
        notebook.screenshot("moved")


def test_the_network_trains_in_the_browser(lab):
    with lab.run("04_pretraining") as notebook:
        assert notebook.pictures() >= 2


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
        playground.report("prompt playground")
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
        browser.report("run browser")
        notebook.screenshot("moved")


def test_the_figures_are_drawn(lab):
    with lab.run("07_paper_figures") as notebook:
        assert notebook.pictures() >= 6


@pytest.mark.parametrize(
    ("name", "control", "key"),
    [
        ("scar_painter", ("button", "anterior"), "Space"),
        ("prompt_playground", ("spinbutton", "study"), "ArrowUp"),
    ],
)
def test_the_apps_answer_without_code(lab, tmp_path, name, control, key):
    with real_browser.voila(tmp_path) as address, real_browser.offline_page(lab.browser) as page:
        page.goto(
            f"{address}/voila/render/{name}.ipynb", timeout=1000 * real_browser.START_TIMEOUT_S
        )
        app = real_browser.MovedWidget(page, page.locator(".widget-vbox").first)
        before = app.shown()
        app.enter()
        app.tab_to(*control)
        after = app.press(key)
        assert after[0] != before[0] and after[1] != before[1]
        words = page.locator("body").inner_text()
        assert "Not a medical device" in words and "plots.use_style" not in words
        app.report(f"app {name}")
        real_browser.screenshot(page, f"app_{name}")


def test_the_playground_takes_a_model_and_images_of_ones_own(lab, tmp_path):
    apps.playground_detector().save(tmp_path / "model")
    readers.write_manifest(phantom.phantom_cohort(studies=3, seed=5), tmp_path / "mine")
    own = {"MODEL_DIR": str(tmp_path / "model"), "COHORT": f"manifest:{tmp_path}/mine/manifest.csv"}
    with (
        real_browser.voila(tmp_path, **own) as address,
        real_browser.offline_page(lab.browser) as page,
    ):
        page.goto(
            f"{address}/voila/render/prompt_playground.ipynb",
            timeout=1000 * real_browser.START_TIMEOUT_S,
        )
        app = real_browser.MovedWidget(page, page.locator(".widget-vbox").first)
        app.enter()
        app.tab_to("spinbutton", "study")
        assert "Phantom_5_00001" in app.press("ArrowUp")[1]


def test_the_site_opens_and_can_be_searched(lab, tmp_path):
    with real_browser.site(tmp_path) as address, real_browser.offline_page(lab.browser) as page:
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "response",
            lambda answer: answer.status < 400 or wrong.append(f"{answer.status} {answer.url}"),
        )
        page.goto(f"{address}/index.html")
        real_browser.screenshot(page, "site_index")
        page.get_by_role("link", name="02 · Orientation standardisation").first.click()
        expect(page).to_have_title(re.compile("^02 · Orientation standardisation"))
        expect(
            page.locator(".highlight", has_text="widgets.orientation_explorer(example)")
        ).to_be_visible()
        real_browser.screenshot(page, "site_notebook")
        page.keyboard.press("Control+k")
        page.keyboard.type("StandardizeShortAxis")
        page.keyboard.press("Enter")
        found = page.locator("#search-results")
        expect(found).to_contain_text(re.compile(r"found [1-9]\d* pages"))
        expect(found.get_by_role("link", name="02 · Orientation standardisation")).to_be_visible()
        real_browser.screenshot(page, "site_search")
        found.get_by_role(
            "link", name="lgekit.anatomy.frame.StandardizeShortAxis", exact=True
        ).click()
        definition = page.locator("[id='lgekit.anatomy.frame.StandardizeShortAxis']")
        expect(definition).to_contain_text("class")
        real_browser.screenshot(page, "site_library")
        page.goto(f"{address}/figures.html")
        drawn = page.locator("article img").evaluate_all(
            "every => every.map(picture => picture.naturalWidth)"
        )
        assert len(drawn) >= 12 and min(drawn) > 50
        page.goto(f"{address}/search.html?q=zzzznothing")
        expect(page.locator("#search-results")).to_contain_text("did not match any documents")
        assert not wrong
