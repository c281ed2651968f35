"""Chromium on JupyterLab, Voilà and the site, for test_browser: servers, pages, widgets."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "papermill_runs" / "browser"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
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
    answer.observe(box.querySelector('img.widget-image'), {attributeFilter: ['src']});
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium, without a window."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        pytest.fail("no Chromium: apt-get install chromium, or deselect with -m 'not browser'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(command: list[str], address: str, home: Path, **variables: str) -> Iterator[None]:
    """Run a module as a server until the block ends, with its settings and log in ``home``."""
    kinds = ["CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"]
    folders = [f"JUPYTER_{kind}" for kind in kinds] + ["JUPYTERLAB_SETTINGS_DIR"]
    folders += ["JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
    own = {name: str(home / name.lower()) for name in folders}
    for name, content in LAB_SETTINGS.items():
        file = home / "jupyterlab_settings_dir/@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    with open(home / "server.log", "w") as log:
        output = {"stdout": log, "stderr": log, "env": os.environ | own | variables}
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, **output)
        try:
            _await(address, process, home / "server.log")
            yield
        finally:
            process.terminate()
            process.wait(60)


def _await(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.2)
    pytest.fail(f"{address} does not answer:\n{log.read_text()[-2000:]}")


def smoke_copies(target: Path, results: Path) -> None:
    """Copy the notebooks with parameters for smoke size and results in a folder of the test."""
    target.mkdir()
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = notebook.read_text("utf-8")
        wanted = {"size": "smoke", "out": results / notebook.stem, "figures": results / "figures"}
        for name, value in wanted.items():
            text = re.sub(rf'"{name}: str = \\".*?\\"', f'"{name}: str = \\\\"{value}\\\\"', text)
        assert 'size: str = \\"smoke\\"' in text and str(results / notebook.stem) in text
        (target / notebook.name).write_text(text, "utf-8")


@dataclass
class Lab:
    """A running JupyterLab on copies of the notebooks."""

    browser: Browser
    address: str
    token: str

    @contextmanager
    def run(self, name: str) -> Iterator[Notebook]:
        """Open a notebook and run all cells without an error; the kernel ends with the block."""
        with offline_page(self.browser) as page:
            address = f"{self.address}/lab/workspaces/{name}/tree/{name}.ipynb?token={self.token}"
            page.goto(address, timeout=1000 * START_TIMEOUT_S)
            notebook = Notebook(page, name)
            state, idle = page.locator("#jp-main-statusbar"), re.compile(r"Python 3.*\| Idle")
            expect(state).to_contain_text(idle, timeout=1000 * START_TIMEOUT_S)
            sessions, token = f"{self.address}/api/sessions", f"?token={self.token}"
            try:
                notebook.menu("Run", "Run All Cells")
                notebook.await_end()
                yield notebook
            finally:
                notebook.screenshot()
                for session in page.request.get(sessions + token).json():
                    page.request.delete(f"{sessions}/{session['id']}{token}")


@dataclass
class Notebook:
    """A notebook that is open in the browser."""

    page: Page
    name: str

    def menu(self, menu: str, item: str) -> None:
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{re.escape(item)}")).click()

    def restart_and_run_all(self) -> None:
        self.menu("Kernel", "Restart Kernel and Run All Cells")
        last = self.prompts()[-1]
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        prompt = self.page.locator(".jp-CodeCell .jp-InputPrompt").last
        expect(prompt).not_to_have_text(last, timeout=1000 * ANSWER_TIMEOUT_S)
        self.await_end()

    def await_end(self) -> None:
        """Wait until all code cells have run; an error in an output fails the test."""
        errors = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]')
        cells = self.page.locator(".jp-CodeCell").count()
        assert cells > 5
        end = time.monotonic() + RUN_TIMEOUT_S
        while "[*]:" in self.prompts() or self.prompts()[-1] != f"[{cells}]:":
            assert not errors.count(), f"{self.name}: {errors.first.inner_text()[-2000:]}"
            assert time.monotonic() < end, f"{self.name} has not ended: {self.prompts()}"
            time.sleep(0.5)
        assert not errors.count()

    def prompts(self) -> list[str]:
        """``[1]:`` if a cell has run, ``[*]:`` if it waits, nothing if its code is folded."""
        return self.page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()

    def pictures(self) -> int:
        """How many pictures were really drawn."""
        script = "all => all.filter(image => image.complete && image.naturalWidth > 50).length"
        return self.page.locator(".jp-OutputArea-output img").evaluate_all(script)

    def texts(self) -> list[str]:
        """What the cells printed, and their tables."""
        names = ("stdout", "text/html", "text/plain")
        kinds = ", ".join(f'[data-mime-type$="{name}"]' for name in names)
        return self.page.locator(f".jp-OutputArea-output:is({kinds})").all_inner_texts()

    def widget(self, number: int = 0) -> MovedWidget:
        boxes = self.page.locator(".jp-OutputArea-output .widget-vbox")
        return MovedWidget(self.page, boxes.nth(number))

    def screenshot(self, what: str = "end") -> None:
        screenshot(self.page, f"{self.name}_{what}")


class MovedWidget:
    """An ``Explorer`` in a page, used by keyboard as a reader would."""

    def __init__(self, page: Page, box: Locator):
        self.page, self.box = page, box
        self.picture = box.locator("img.widget-image")
        self.text = box.locator(".widget-html-content").last
        expect(self.picture).to_be_visible(timeout=1000 * START_TIMEOUT_S)
        box.scroll_into_view_if_needed()
        box.evaluate(WATCH)

    def shown(self) -> tuple[str, str]:
        """Picture (in hexadecimal digits) and words as they are now."""
        script = """async picture => {
            const bytes = new Uint8Array(await (await fetch(picture.src)).arrayBuffer());
            return Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('');
        }"""
        return self.picture.evaluate(script), self.text.inner_text()

    def enter(self) -> None:
        """Put the focus just before the controls, all of which must have accessible names."""
        roles = "button|checkbox|combobox|img|radio|slider|spinbutton|textbox"
        unnamed = re.findall(rf'(?m)^ *- (?:{roles})\b(?! ").*', self.box.aria_snapshot())
        assert not unnamed, f"a screen reader has no name for {unnamed}"
        self.box.evaluate("""box => {
            const start = document.createElement('span');
            start.tabIndex = -1; box.before(start); start.focus();
        }""")

    def tab_to(self, role: str, name: str | None = None) -> Locator:
        """Press Tab until the control has the focus; it must be among the next ones."""
        control = self.box.get_by_role(role, name=name, exact=True)
        for _ in range(12):
            self.page.keyboard.press("Tab")
            if control.evaluate("control => control === document.activeElement"):
                return control
        raise AssertionError(f"Tab does not reach the {role} {name}")

    def press(self, key: str) -> tuple[str, str]:
        """Press a key where the focus is; picture and words that answer it."""
        self.page.keyboard.press(key)
        end = time.monotonic() + ANSWER_TIMEOUT_S
        while not self.box.evaluate("box => box.answered"):
            assert time.monotonic() < end, f"no new picture after {key}"
            time.sleep(0.02)
        return self.shown()


@contextmanager
def offline_page(browser: Browser) -> Iterator[Page]:
    """A page that must not ask for anything outside of this machine."""
    elsewhere: list[str] = []
    refused: list[str] = []
    local = re.compile(r"^(https?|wss?)://127\.0\.0\.1[:/]|^(data|blob):")
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(1000 * ANSWER_TIMEOUT_S)
    page.on("request", lambda request: local.match(request.url) or elsewhere.append(request.url))
    page.on("requestfailed", lambda one: one.failure == "csp" and refused.append(one.url))
    try:
        yield page
        asked = set(elsewhere) - set(refused)  # refused by the server's policy, not sent
        assert not asked, f"asked for on the network: {asked}"
    finally:
        page.close()


def screenshot(page: Page, name: str) -> None:
    """The page as it stands, into ``papermill_runs/browser/``, which git ignores."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """JupyterLab on smoke-size copies of the notebooks, with Chromium beside it."""
    notebooks, token, port = folder / "notebooks", secrets.token_hex(16), free_port()
    smoke_copies(notebooks, folder / "results")
    address = f"http://127.0.0.1:{port}"
    options = f"""--no-browser --allow-root --port={port} --ServerApp.port_retries=0
        --ServerApp.root_dir={notebooks} --IdentityProvider.token={token} --LabApp.news_url=None
        --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"""
    command = ["jupyterlab", *options.split()]
    with server(command, f"{address}/api", folder), chromium() as browser:
        yield Lab(browser, address, token)


@contextmanager
def voila(folder: Path, **variables: str) -> Iterator[str]:
    """The app notebooks served by Voilà as `make app` does; gives the address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    (recipe,) = re.findall(r"\$\(BIN\)/(voila .*)", (ROOT / "Makefile").read_text())
    command = [*recipe.split(), "--no-browser", f"--port={port}"]
    with server(command, address, folder, **variables):
        yield address


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """The site without executed notebooks on a server of its own; gives the address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    arguments = ["--out", folder / "site", "--executed", folder / "none"]
    build = [sys.executable, "notebooks/site/build_site.py", *arguments]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"the site cannot be built:\n{done.stderr[-2000:]}")
    command = ["http.server", str(port), "--bind=127.0.0.1", f"--directory={folder / 'site'}"]
    with server(command, address, folder):
        yield address
