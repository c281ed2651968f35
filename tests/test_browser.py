"""Copies of the notebooks, run in order at smoke size, and the apps in a real browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.error import HTTPError

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

import lgekit as lk

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "papermill_runs" / "browser"
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()
# No news and updates from the network; draw all cells, also those out of sight.
LAB_SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}
START_TIMEOUT_S, RUN_TIMEOUT_S, ANSWER_TIMEOUT_S = 240, 480, 30  # generous, for busy machines
WATCH = """box => {
    const answer = new MutationObserver(() => { box.answered = true; });
    box.addEventListener('keydown', () => { box.answered = false; }, true);
    answer.observe(box.querySelector('.widget-html-content'), {childList: true});
    const start = document.createElement('span');
    start.tabIndex = -1; box.before(start); start.focus();
}"""
LAB = """jupyterlab --no-browser --allow-root --port={port} --IdentityProvider.token=
    --ServerApp.disable_check_xsrf=True --LabApp.news_url=None
    --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --ServerApp.root_dir="""
PAINT = [("button", name, "Space") for name in ("inferoseptal", "basal", "transmural")]
PAINT.append(("checkbox", "no-reflow", "Space"))
ASK = [("textbox", "sentence", "x"), ("spinbutton", "study", "ArrowUp")]
# Notebook → how many pictures it shows at least, and the controls of its widgets.
NOTEBOOKS = {
    "00_start_here": (2, []),
    "01_data_exploration": (2, []),
    "02_orientation_standardization": (14, []),
    "03_synthetic_scar_generation": (16, []),
    "04_pretraining": (18, []),
    "05_clip_captioning": (20, [ASK]),
    "06_ablations": (2, []),
    "07_paper_figures": (6, []),
}


def wait_until(answered: Callable[[], object], seconds: float, otherwise: str) -> None:
    end = time.monotonic() + seconds
    while not answered():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


@contextmanager
def server(command: str, home: Path, **variables: str) -> Iterator[str]:
    """Run a module as a server, with settings and log in ``home``; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    settings = home / "config/lab/user-settings/@jupyterlab"
    for name, content in LAB_SETTINGS.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(content)
    kinds = ("config", "data", "runtime")
    own = {f"JUPYTER_{kind.upper()}_DIR": str(home / kind) for kind in kinds}
    environment = os.environ | own | {"IPYTHONDIR": str(home / "ipython")} | variables
    arguments = [sys.executable, "-m", *command.format(port=port).split()]
    with open(home / "server.log", "w") as log:
        output = {"stdout": log, "stderr": log, "env": environment}
        process = subprocess.Popen(arguments, cwd=ROOT, **output)

    def answers() -> bool:
        assert process.poll() is None, (home / "server.log").read_text()[-2000:]
        try:
            urllib.request.urlopen(address).close()
            return True
        except OSError:
            return False

    try:
        wait_until(answers, START_TIMEOUT_S, f"{address} does not answer")
        yield address
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def offline_page(browser: Browser, name: str) -> Iterator[Page]:
    """A page that must not request anything from outside this machine; ends with a screenshot."""
    elsewhere: set[str] = set()
    refused: set[str] = set()
    local = re.compile(r"^(https?|wss?)://127\.0\.0\.1[:/]|^(data|blob):")
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(1000 * ANSWER_TIMEOUT_S)
    page.on("request", lambda one: local.match(one.url) or elsewhere.add(one.url))
    page.on("requestfailed", lambda one: one.failure == "csp" and refused.add(one.url))
    try:
        yield page
        assert elsewhere <= refused, "asked the network, and no policy of the server refused it"
    finally:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png")
        page.close()


class Notebook:
    """A notebook that is open in the browser."""

    def __init__(self, page: Page):
        self.page = page

    def run(self, menu: str, item: str) -> None:
        """Choose an item of a menu, and wait until all code cells have run without an error."""
        cells = self.page.locator(".jp-CodeCell")
        prompts = cells.locator(".jp-InputPrompt")
        errors = self.page.locator('[data-mime-type$="stderr"], [data-mime-type$="error"]')
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}")).click()
        if "Restart" in item:
            self.page.locator(".jp-Dialog .jp-mod-accept").click()
        expect(prompts.last).to_have_text("[*]:")
        ended = lambda: "[*]:" not in prompts.all_inner_texts()  # noqa: E731
        wait_until(ended, RUN_TIMEOUT_S, "the notebook has not ended")
        assert prompts.last.inner_text() == f"[{cells.count()}]:", errors.all_inner_texts()

    def outputs(self) -> tuple[int, list[str]]:
        """The number of pictures drawn, what the cells printed, and their tables."""
        drawn = "all => all.filter(image => image.complete && image.naturalWidth > 50).length"
        kinds = [f'[data-mime-type$="{name}"]' for name in ("stdout", "text/html", "text/plain")]
        texts = self.page.locator(f".jp-OutputArea-output:is({', '.join(kinds)})")
        pictures = self.page.locator(".jp-OutputArea-output img").evaluate_all(drawn)
        return pictures, texts.all_inner_texts()

    def widget(self, number: int = 0) -> "Widget":
        boxes = self.page.locator(".jp-OutputArea-output .widget-vbox")
        return Widget(self.page, boxes.nth(number))


@contextmanager
def notebook(browser: Browser, lab: str, name: str) -> Iterator[Notebook]:
    """Open a notebook and run all cells; the kernel ends with the block."""
    with offline_page(browser, name) as page:
        address = f"{lab}/lab/workspaces/{name}/tree/{name}.ipynb"
        page.goto(address, timeout=1000 * START_TIMEOUT_S)
        state, idle = page.locator("#jp-main-statusbar"), re.compile(r"Python 3.*\| Idle")
        expect(state).to_contain_text(idle, timeout=1000 * START_TIMEOUT_S)
        try:
            opened = Notebook(page)
            opened.run("Run", "Run All Cells")
            yield opened
        finally:
            for session in page.request.get(f"{lab}/api/sessions").json():
                page.request.delete(f"{lab}/api/sessions/{session['id']}")


class Widget:
    """An ``Explorer`` in a page, used by keyboard; its controls must have accessible names."""

    def __init__(self, page: Page, box: Locator):
        self.page, self.box = page, box
        self.text = box.locator(".widget-html-content").last
        self.picture = self.text.locator("img")
        expect(self.picture).to_be_visible(timeout=1000 * START_TIMEOUT_S)
        box.scroll_into_view_if_needed()
        box.evaluate(WATCH)
        roles = "button|checkbox|combobox|img|radio|slider|spinbutton|textbox"
        unnamed = re.findall(rf'(?m)^ *- (?:{roles})\b(?! ").*', box.aria_snapshot())
        assert not unnamed, f"a screen reader has no name for {unnamed}"

    def shown(self) -> tuple[str, str]:
        """The current picture (as a data URL) and words."""
        return self.picture.get_attribute("src"), self.text.inner_text()

    def press(self, role: str, name: str, key: str) -> tuple[str, str]:
        """Reach a control by Tab and press a key; return the resulting picture and words."""
        control = self.box.get_by_role(role, name=name, exact=True)
        for _ in range(12):
            self.page.keyboard.press("Tab")
            if control.evaluate("control => control === document.activeElement"):
                break
        else:
            raise AssertionError(f"Tab does not reach the {role} {name}")
        self.page.keyboard.press(key)
        answered = partial(self.box.evaluate, "box => box.answered")
        wait_until(answered, ANSWER_TIMEOUT_S, f"no new picture after {key}")
        return self.shown()


@pytest.fixture(scope="module")
def browser():
    """The machine's own Chromium, without a window."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.fail("no Chromium: apt-get install chromium, or deselect with -m 'not browser'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


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


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_its_widgets_answer(browser, lab, name):
    pictures, widgets = NOTEBOOKS[name]
    with notebook(browser, lab, name) as opened:
        before = opened.outputs()
        assert before[0] >= pictures
        for number, controls in enumerate(widgets):
            use(opened.widget(number), controls)
        if name.startswith("02"):  # a restart leaves nothing behind
            opened.run("Kernel", "Restart Kernel and Run All Cells")
            assert opened.outputs() == before


def test_the_apps_answer_without_code(browser, tmp_path):
    small = lk.fit_detector(lk.phantom_cohort(40, seed=0), lk.size_settings("smoke"))
    small.save(tmp_path / "model")
    lk.write_manifest(lk.phantom_cohort(studies=3, seed=5), tmp_path / "mine")
    own = {"MODEL_DIR": str(tmp_path / "model"), "COHORT": f"manifest:{tmp_path}/mine/manifest.csv"}
    (recipe,) = re.findall(r"\$\(BIN\)/(voila .*)", (ROOT / "Makefile").read_text())
    command = f"{recipe} --token=secret --no-browser --port={{port}}"
    with server(command, tmp_path, **own) as address:
        with urllib.request.urlopen(f"{address}/voila/render/scar_painter.ipynb") as answer:
            assert "/login" in answer.url, "no token, no page"
        renamed = urllib.request.Request(f"{address}?token=secret", headers={"Host": "evil.org"})
        with pytest.raises(HTTPError, match="403"):
            urllib.request.urlopen(renamed)  # DNS rebinding
        for app, controls in {"scar_painter": PAINT, "prompt_playground": ASK}.items():
            with offline_page(browser, app) as page:
                link = f"{address}/voila/render/{app}.ipynb?token=secret"
                page.goto(link, timeout=1000 * START_TIMEOUT_S)
                widget = Widget(page, page.locator(".widget-vbox").first)
                use(widget, controls)
                words = page.locator("body").inner_text()
                assert "Not a medical device" in words and "plots.use_style" not in words
        assert "Phantom_5_00001" in words  # of the user's own cohort
