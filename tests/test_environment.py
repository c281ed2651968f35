"""pyproject.toml, requirements.lock and environment.yml describe one environment."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [*PROJECT["dependencies"], *EXTRAS["workbook"], *EXTRAS["dev"]]
WANTED = [Requirement(line) for line in WANTED]
LOCK = re.sub(r"#.*|\\\n *", "", (ROOT / "requirements.lock").read_text())  # one pin per line
LINES = [line for line in LOCK.splitlines() if line]
HASHED = re.compile(r"( --hash=sha256:\w{64})+$")
LOCKED = {pin.name: pin for pin in (Requirement(HASHED.sub("", line)) for line in LINES)}
PLATFORMS = [{"sys_platform": "linux", "platform_machine": "x86_64"}, {"sys_platform": "darwin"}]


def version(requirement: Requirement) -> str:
    (pin,) = requirement.specifier
    assert pin.operator == "=="
    return pin.version


@pytest.mark.parametrize("wanted", WANTED, ids=lambda requirement: requirement.name)
def test_the_lock_pins_every_dependency_at_an_allowed_version(wanted):
    locked = LOCKED[canonicalize_name(wanted.name)]
    assert version(locked) in wanted.specifier
    assert locked.marker is None or all(map(locked.marker.evaluate, PLATFORMS))


def test_the_lock_pins_each_package_once_and_conda_installs_it():
    assert len(LINES) == len(LOCKED) and all(map(version, LOCKED.values()))
    assert all(map(HASHED.search, LINES))
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {"pip": ["-r requirements.lock"]} in entries


def packages(nodes) -> set[str]:
    """The packages that some nodes of a syntax tree import."""
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named = [node for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in [*names, *(node.module or "" for node in named)]}


def test_notebook_packages_are_not_imported_before_they_are_needed():
    extra = {canonicalize_name(Requirement(line).name) for line in EXTRAS["workbook"]}
    distributions = packages_distributions()
    for file in (ROOT / "lgekit").rglob("*.py"):
        at_once = packages(ast.parse(file.read_text()).body)
        found = {
            canonicalize_name(origin) for name in at_once for origin in distributions.get(name, [])
        }
        assert not found & extra or file.name == "widgets.py", file


def test_every_import_is_of_a_declared_dependency():
    """A package that is installed only by chance is missing from a fresh environment."""
    declared = {canonicalize_name(requirement.name) for requirement in WANTED}
    folders = ("lgekit", "tests", "notebooks")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    sources = {file: file.read_text() for file in files}
    for file in (ROOT / "notebooks").rglob("*.ipynb"):
        cells = nbformat.read(file, as_version=4).cells
        sources[file] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    known = {"lgekit", *(file.stem for file in files), *sys.stdlib_module_names}
    distributions = packages_distributions()
    for file, source in sources.items():
        for package in packages([*ast.walk(ast.parse(source))]) - known:
            origin = set(map(canonicalize_name, distributions.get(package, [])))
            assert origin & declared, f"{file} imports {package}, not in pyproject.toml"
