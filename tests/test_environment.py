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
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
]
LOCK_LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and line[0] != "#"
]
LOCKED = {canonicalize_name(Requirement(line).name): Requirement(line) for line in LOCK_LINES}
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
CONDA_NAMES = {"matplotlib-base": "matplotlib"}
PLATFORMS = [{"sys_platform": "linux", "platform_machine": "x86_64"}, {"sys_platform": "darwin"}]


def version(requirement: Requirement) -> Version:
    (pin,) = requirement.specifier
    assert pin.operator == "=="
    return Version(pin.version)


@pytest.mark.parametrize("wanted", WANTED, ids=lambda requirement: requirement.name)
def test_the_lock_holds_every_dependency_at_a_version_the_project_allows(wanted):
    locked = LOCKED[canonicalize_name(wanted.name)]
    assert version(locked) in wanted.specifier
    for platform in PLATFORMS:
        assert locked.marker is None or locked.marker.evaluate(platform), f"not on {platform}"


def test_the_lock_has_names_versions_and_markers_only():
    assert len(LOCK_LINES) == len(LOCKED), "a package is pinned twice"
    for line in LOCK_LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; .+)?", line), line
        if ";" in line:
            Marker(line.split(";", 1)[1])


def test_conda_takes_the_versions_of_the_lock_and_a_python_the_project_allows():
    named = dict(entry.split("=") for entry in CONDA if isinstance(entry, str) and "=" in entry)
    assert Version(named.pop("python")) in Requirement(f"x{PROJECT['requires-python']}").specifier
    assert named, "no compiled basics"
    for name, pinned in named.items():
        assert version(LOCKED[CONDA_NAMES.get(name, name)]) == Version(pinned)
    (through_pip,) = [entry["pip"] for entry in CONDA if isinstance(entry, dict)]
    assert through_pip == ["-r requirements.lock", "-e ."]


def test_torch_fits_torchvision():
    """`open_clip` imports torchvision, which loads only beside the torch it was built for."""
    import torch
    import torchvision

    assert torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).tolist() == [0]


def test_every_import_is_of_a_declared_dependency():
    """A package that only happens to be installed is missing from a fresh environment."""
    declared = {canonicalize_name(requirement.name) for requirement in WANTED}
    distributions = packages_distributions()
    folders = ("lgekit", "tests", "notebooks/site")
    sources = {
        str(file): file.read_text() for folder in folders for file in (ROOT / folder).glob("*.py")
    }
    for file in [
        *(ROOT / "notebooks").glob("*.ipynb"),
        *(ROOT / "notebooks" / "apps").glob("*.ipynb"),
    ]:
        cells = nbformat.read(file, as_version=4).cells
        sources[str(file)] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    ours = {"lgekit"} | {
        file.stem for folder in ("tests", "notebooks/site") for file in (ROOT / folder).glob("*.py")
    }
    for file, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module and not node.level
                else []
            )
            for package in (
                {name.split(".")[0] for name in names} - ours - set(sys.stdlib_module_names)
            ):
                origin = {canonicalize_name(name) for name in distributions.get(package, [])}
                assert origin & declared, (
                    f"{file} imports {package}, which pyproject.toml does not name"
                )
