"""Commands, make targets and links in documents exist; generated tables are current."""

import json
import re
from pathlib import Path

import fill_tables
import pytest
import typer.main

from lgekit.cli import app

ROOT = Path(__file__).parents[1]
SITE_PAGES = sorted((ROOT / "notebooks" / "site").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE_PAGES]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
COMMAND = typer.main.get_command(app)
SETTINGS = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE))
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")  # of files, not of pages elsewhere
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
every_document = pytest.mark.parametrize("path", [*DOCUMENTS, *NOTEBOOKS], ids=lambda p: p.name)


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text("utf-8")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def code_lines(text: str) -> list[str]:
    """Lines of code blocks and words in code marks, without comments."""
    pieces = [piece.strip("`") for piece in CODE.findall(text)]
    return [line.split("#")[0].strip() for piece in pieces for line in piece.splitlines()]


def unknown_names(line: str) -> list[str]:
    """Commands, options, targets and settings in a line that lgekit or the Makefile do not have."""
    program, *words = line.split() or [""]
    if program == "make":
        named = [word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=|[a-z-]+$", word)]
        return [name for name in named if name not in TARGETS | SETTINGS]
    command, unknown = COMMAND, []
    for word in words if program.endswith("lgekit") else []:
        if hasattr(command, "commands"):
            if word in command.commands:
                command = command.commands[word]
                continue
            if re.fullmatch(r"[a-z]+", word):
                return [word]
        options = {option for parameter in command.params for option in parameter.opts}
        if re.fullmatch(r"--[a-z-]+", word) and word not in options:
            unknown.append(word)
    return unknown


@every_document
def test_commands_in_a_document_exist(path):
    assert not [name for line in code_lines(text_of(path)) for name in unknown_names(line)]


@every_document
def test_linked_files_exist(path):
    assert not [name for name in LINK.findall(text_of(path)) if not (path.parent / name).exists()]


@pytest.mark.parametrize("path", [ROOT / "README.md", *SITE_PAGES], ids=lambda path: path.name)
def test_generated_tables_are_current(path):
    text = path.read_text("utf-8")
    assert fill_tables.fill(text) == text, "run `make tables`"
