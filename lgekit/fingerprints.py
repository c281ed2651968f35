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

from lgekit.specs import split_specs

# Modules that show, start or schedule and cannot change a number: editing them repeats no run.
WITHOUT_EFFECT = """ablation_report bench bench_cohort bench_grid bench_scars bench_training cli cluster fingerprints
    grid grid_file grid_tables hub outputs paper_figures parameters pictures plots runs widgets""".split()
DYNAMIC = ("import_module", "__import__")


def code_version(sources: Iterable[str]) -> str:
    """16 hex digits of the library's modules that a notebook uses, directly or through others: of what their code
    says, so that a comment, a docstring or a line broken elsewhere repeats no run.

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
        digest.update(f"{name}\0{_meaning(modules[name].read_text('utf-8'))}".encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=512)
def _meaning(source: str) -> str:
    """A hash of the code without comments, docstrings and layout; of the text where it does not parse."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return hashlib.sha256(_dump(tree).encode()).hexdigest()


def _dump(node: object) -> str:
    """`ast.dump`, the same in every Python: what is empty, as fields that a later one brings, is left out."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({','.join(f'{name}={_dump(value)}' for name, value in fields)})"
    return f"[{','.join(map(_dump, node))}]" if isinstance(node, list) else repr(node)


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


def pretraining_specs(spec: str, asked: str = "auto", root: Path = Path()) -> list[str]:
    """Further cohorts with masks for the heart network of a cohort.

    Args:
        spec: of the cohort.
        asked: SPECs separated by spaces (paths may hold spaces too); ``none``; or ``auto``: the public cine set ACDC,
            where a folder ``acdc`` lies beside the cohort's own folder.
        root: the folder that paths in SPECs start from.
    """
    if asked != "auto":
        return [] if asked == "none" else split_specs(asked)
    kind, _, path = spec.partition(":")
    beside = Path(path).parent / "acdc"
    there = path and kind not in ("phantom", "acdc") and (root / beside.expanduser()).is_dir()
    return [f"acdc:{beside}"] if there else []


def cohort_fingerprint(spec: str, root: Path) -> str:
    """What stands for a cohort in a run's id: the SPEC, and names and contents of its files.

    Of a folder all files count, of a table the table and the images and reports that it names. Files copied to another
    place or machine have the same fingerprint; contents are read once for each name, size and time stamp
    (`lgekit.cache`). A folder that is not there has a fingerprint too: a grid can be looked at where its data are not.
    """
    path = _path(spec, root)
    digest = hashlib.sha256(spec.encode())
    if path is not None and path.exists():
        files = sorted(_files(path, "") if path.is_dir() else _of_table(path))
        listing = [(str(path.resolve()), name, status.st_size, status.st_mtime_ns) for name, _, status in files]
        stamp = hashlib.sha256(repr(listing).encode()).hexdigest()
        from lgekit.cache import memory  # here: it brings numpy, which a grid's start then waits for

        digest.update(memory().cache(_contents, ignore=["files"])(stamp, [(name, file) for name, file, _ in files]))
    return digest.hexdigest()[:16]


def _contents(stamp: str, files: list[tuple[str, Path]]) -> bytes:
    digest = hashlib.sha256()
    for name, file in files:
        with file.open("rb") as stream:
            digest.update(f"{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.digest()


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, Path, os.stat_result]]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(Path(entry.path), f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, Path(entry.path), entry.stat()


def _of_table(table: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    yield "", table, table.stat()
    for row in csv.reader(table.read_text("utf-8", "replace").splitlines()):
        for cell in row:
            name = cell.strip()
            if name.lower().endswith((".nii", ".nii.gz", ".txt")) and (table.parent / name).is_file():
                yield name, table.parent / name, (table.parent / name).stat()
