"""A notebook's parameters: read from its tagged cell without running it, and held against what is asked for.

Papermill only warns of a misspelt parameter and goes on with the default, and YAML hands ``1e-4`` over as text; here
both are settled before anything runs.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import io
import json
import os
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgekit.errors import InputError

TYPES = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's ``parameters`` cell: ``name: type = default  # comment``."""

    name: str
    type: type
    default: Any
    comment: str = ""

    def convert(self, value: Any, where: object) -> Any:
        """The value in this parameter's type.

        Text is read as a number or ``true``/``false`` (YAML hands ``1e-4`` over as text), an int serves as a float;
        bool and int are not mixed.

        Raises:
            InputError: the value is of another type.
        """
        value = value.item() if hasattr(value, "item") else value  # numpy scalars fail when Papermill saves them
        if type(value) is self.type:
            return value
        if self.type is float and type(value) is int:
            return float(value)
        if isinstance(value, str):
            with contextlib.suppress(ValueError, KeyError):
                return {"true": True, "false": False}[value.lower()] if self.type is bool else self.type(value)
        raise InputError(
            f"{where}, parameter {self.name}",
            f"{value!r} is no {self.type.__name__}",
            f"Give a {self.type.__name__}, as the default {self.default!r}",
        )


def read_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, from its code cell tagged ``parameters``, without running anything.

    Raises:
        InputError: no such file, no notebook, or a line that is not ``name: int|float|str|bool = literal``.
    """
    return dict(_read_parameters(*_state(notebook)))


def read_code(notebook: str | Path) -> list[str]:
    """The sources of the notebook's code cells, without the one tagged ``parameters``."""
    return [cell["source"] for cell in _cells(*_state(notebook)) if "parameters" not in _tags(cell)]


def check_parameters(notebook: str | Path, params: Mapping[str, Any], where: object = "") -> dict[str, Any]:
    """Hold parameters against the notebook's own, names and types; return them converted.

    Args:
        notebook: the notebook.
        params: names → values.
        where: what an error names as the place of the fault; the notebook by default.

    Raises:
        InputError: an unknown name (Papermill itself would only warn, and run with the default) or a wrong type.
    """
    known = _read_parameters(*_state(notebook))
    where = where or Path(notebook).name
    for name in params:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5) or sorted(known)
            remedy = f"Did you mean {' or '.join(close) or 'none'}?"
            raise InputError(where, f"{Path(notebook).name} has no parameter {name!r}", remedy)
    return {name: known[name].convert(value, where) for name, value in params.items()}


def _state(notebook: str | Path) -> tuple[str, int]:
    try:
        return str(notebook), os.stat(notebook).st_mtime_ns
    except OSError as error:
        raise InputError(notebook, f"cannot be read ({error.strerror})", "Give the path of a notebook") from error


@functools.lru_cache(maxsize=32)  # keyed by the file's time stamp too: an edited notebook is read again
def _cells(notebook: str, modified: int) -> list[dict]:
    try:
        cells = json.loads(Path(notebook).read_text("utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(notebook, "is not a Jupyter notebook", "Give a file in format .ipynb, version 4") from error
    for cell in cells:
        cell["source"] = "".join(cell["source"])  # a string or a list of lines
    return [cell for cell in cells if cell["cell_type"] == "code"]


def _tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


@functools.lru_cache(maxsize=32)
def _read_parameters(notebook: str, modified: int) -> dict[str, Parameter]:
    source = next((cell["source"] for cell in _cells(notebook, modified) if "parameters" in _tags(cell)), "")
    remedy = "Write each parameter as `name: int|float|str|bool = literal  # comment`"
    found = {}
    try:
        statements = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError) as error:
        raise InputError(notebook, f"its parameters cell is not Python ({error})", remedy) from error
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    for statement in statements:
        where = f"{notebook}, parameters cell, line {statement.lineno}"
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id=kind), value=ast.expr() as value) if (
                kind in TYPES
            ):
                try:
                    default = ast.literal_eval(value)
                except ValueError as error:
                    raise InputError(where, f"{name} has no literal default", remedy) from error
                bare = Parameter(name, TYPES[kind], default)
                comment = comments.get(statement.end_lineno or 0, "")
                found[name] = Parameter(name, TYPES[kind], bare.convert(default, where), comment)
            case _:
                raise InputError(where, f"{ast.unparse(statement)!r} declares no parameter", remedy)
    return found
