"""Imports between the rooms of lgekit go downwards; its public face is complete and light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lgekit as lk

PACKAGE = Path(lk.__file__).parent
FLOORS = [  # from the top down; rooms on one floor do not import each other
    {"cli"},
    {"grid", "builtin"},
    {"workbook", "exercises"},
    {"viz"},
    {"evaluation"},
    {"clip"},
    {"scars", "segmentation"},
    {"data"},
    {"reports", "anatomy"},
    {"study", "findings", "config", "cache"},
    {"errors"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
GROUND = FLOOR["study"]  # the ground floor is one room
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_rooms(source: str) -> set[str]:
    """Rooms that a module imports, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "lgekit":
            rooms |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lgekit."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lgekit.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for other in imported_rooms(path.read_text("utf-8")) - {room}:
        both_ground = FLOOR[other] == FLOOR[room] == GROUND
        assert FLOOR[other] > FLOOR[room] or both_ground, f"{room} imports {other}"


def test_every_public_name_exists():
    for name in lk.__all__:
        assert getattr(lk, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        lk.no_such_name  # noqa: B018


def test_importing_lgekit_loads_nothing_heavy():
    heavy = "'torch', 'pandas', 'matplotlib', 'torchio'"
    code = f"import sys, lgekit; sys.exit(any(name in sys.modules for name in [{heavy}]))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
