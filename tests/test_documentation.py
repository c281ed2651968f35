"""Commands, make targets and links in documents exist; generated tables are current."""

import json
import re
from pathlib import Path

import fill_tables
import pytest
import typer.main
import yaml

from lgekit.cli import app

ROOT = Path(__file__).parents[1]
SITE_PAGES = sorted((ROOT / "notebooks" / "site").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE_PAGES]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ISSUE_FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
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


def unknown_to_lgekit(line: str) -> list[str]:
    """Commands and options in a line ``lgekit …`` that the command line does not have."""
    words = re.match(r"(?:\S*/)?lgekit (.*)", line)
    command, unknown = COMMAND, []
    for word in words[1].split() if words else []:
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


def unknown_to_make(line: str) -> list[str]:
    """Targets and settings in a line ``make …`` that the Makefile does not have."""
    words = line.split()[1:] if line.startswith("make ") else []
    named = [word.partition("=")[0] for word in words if re.fullmatch(r"[A-Z_]+=.*|[a-z-]+", word)]
    return [name for name in named if name not in TARGETS | SETTINGS]


@every_document
def test_commands_in_a_document_exist(path):
    lines = code_lines(text_of(path))
    assert not [name for line in lines for name in unknown_to_lgekit(line) + unknown_to_make(line)]


@every_document
def test_linked_files_exist(path):
    assert not [name for name in LINK.findall(text_of(path)) if not (path.parent / name).exists()]


def test_unknown_commands_and_options_are_found():
    block = "lgekit grid sing FILE  # why\nlgekit fit SPEC model --fast\nmake workbook SPEED=9"
    lines = code_lines(f"`lgekit dance`, `make tea`\n```\n{block}\n```")
    found = [name for line in lines for name in unknown_to_lgekit(line) + unknown_to_make(line)]
    assert sorted(found) == ["--fast", "SPEED", "dance", "sing", "tea"]
    assert unknown_to_lgekit("lgekit grid run FILE --only full --dry-run") == []
    assert unknown_to_make("make workbook SIZE=smoke") == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *SITE_PAGES], ids=lambda path: path.name)
def test_generated_tables_are_current(path):
    text = path.read_text("utf-8")
    assert fill_tables.fill(text) == text, "run `make tables`"


@pytest.mark.parametrize(
    "path", [path for path in ISSUE_FORMS if path.stem != "config"], ids=lambda path: path.stem
)
def test_issue_forms_are_valid(path):
    form = yaml.safe_load(path.read_text("utf-8"))
    kinds = {field["type"] for field in form["body"]}
    assert form["name"] and form["description"] and len(form["body"]) >= 4
    assert kinds <= {"markdown", "input", "textarea", "checkboxes", "dropdown"}
