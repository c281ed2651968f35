"""What a run depends on beside its parameters, as short hashes: the library's code and the cohort's files."""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# Modules that show, start or schedule and cannot change a number: editing them repeats no run.
WITHOUT_EFFECT = """ablation_report bench bench_cohort bench_grid bench_scars bench_training cli cluster fingerprints
    grid grid_file grid_tables hub paper_figures parameters pictures plots runs widgets""".split()
DYNAMIC = ("import_module", "__import__")


def code_version(sources: Iterable[str]) -> str:
    """16 hex digits of the library's modules that a notebook uses, directly or through others.

    Imports are found by reading, also those inside functions. Where that cannot be sure (code that does not parse, an
    import by computed name) every module counts.

    Args:
        sources: the notebook's code cells.
    """
    modules = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.py"))}
    used: set[str] = set()
    waiting = {"__init__", "results"}.union(*(_imported(re.sub(r"(?m)^\s*[%!].*$", "", source)) for source in sources))
    while waiting:
        name = waiting.pop()
        if name == "*":
            waiting |= modules.keys() - used
        elif name in modules and name not in used and name not in WITHOUT_EFFECT:
            used.add(name)
            waiting |= _imported(modules[name].read_text("utf-8"))
    digest = hashlib.sha256()
    for name in sorted(used):
        digest.update(name.encode() + b"\0" + modules[name].read_bytes())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=512)
def _imported(source: str) -> frozenset[str]:
    """Names of the modules of lgekit that a source imports, perhaps with other names; "*" where nobody can tell."""
    found = set()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return frozenset("*")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lgekit.")}
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "lgekit"):
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Name | ast.Attribute):
            found |= {"*"} & {"*" if getattr(node, "id", getattr(node, "attr", "")) in DYNAMIC else ""}
    return frozenset(found)


def _path(spec: str, root: Path) -> Path | None:
    """The file or folder that a SPEC names, None where it names none (as ``phantom:…``)."""
    kind, _, rest = spec.partition(":")
    return None if kind == "phantom" or not rest else root / Path(rest).expanduser()


def missing_path(spec: str, root: Path) -> Path | None:
    """The path of a SPEC if it is not there."""
    path = _path(spec, root)
    return path if path is not None and not path.exists() else None


def cohort_fingerprint(spec: str, root: Path) -> str:
    """What stands for a cohort in a run's id, cheap enough to take at every call.

    The SPEC itself; for a folder also name, size and time stamp of every file in it; for a table the content, and size
    and time stamp of the files it names. A folder that is not there has a fingerprint too: a grid can be looked at
    where its data are not.
    """
    path = _path(spec, root)
    digest = hashlib.sha256(spec.encode())
    if path is not None and path.is_dir():
        for name, size, changed in sorted(_files(path, "")):
            digest.update(f"{name}\0{size}\0{changed}\n".encode())
    elif path is not None and path.is_file():
        content = path.read_bytes()
        digest.update(content)
        for row in csv.reader(content.decode("utf-8", "replace").splitlines()):
            for cell in row:
                named = path.parent / cell
                if cell.endswith((".nii", ".nii.gz")) and named.is_file():
                    digest.update(f"{cell}\0{named.stat().st_size}\0{named.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, int, int]]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(Path(entry.path), f"{prefix}{entry.name}/")
        else:
            status = entry.stat()
            yield prefix + entry.name, status.st_size, status.st_mtime_ns
