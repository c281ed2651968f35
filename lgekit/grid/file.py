"""Read grid files and expand them to runs."""

from __future__ import annotations

import csv
import functools
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from lgekit.cache import code_version
from lgekit.config import SIZES, FitSettings, size_settings
from lgekit.errors import InputError
from lgekit.workbook import check_parameters, read_code, read_parameters

# The rooms whose code can change the numbers of a run.
ROOMS = ("anatomy", "reports", "data", "segmentation", "scars", "clip", "evaluation")
RESERVED = ("grids", "workbook", "manual")  # other folders of papermill_runs/
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr
Seed = Annotated[int, Strict(), Field(ge=0)]


class GridFile(BaseModel):
    """The content of a grid's YAML file."""

    model_config = ConfigDict(extra="forbid")
    notebook: StrictStr  # path from the project's folder
    parameters: dict[str, Scalar] = {}  # of all runs
    rows: dict[str, dict[str, Scalar]] = Field(min_length=1)  # row → the parameters it changes
    seeds: list[Seed] = Field([0], min_length=1)
    folds: StrictInt | None = Field(None, ge=2)  # of a cross-validation
    axes: dict[str, list[Scalar]] = {}  # parameter → values, combined with all others
    timeout: float | None = Field(None, gt=0)  # seconds for a run


@dataclass(frozen=True)
class Run:
    """One row of a grid at one seed (and fold, and point of further axes)."""

    id: str  # 16 hex digits of all that the run depends on; rows that are alike share a run
    row: str
    axes: dict[str, Any]  # seed, fold and further axes → the value
    params: dict[str, Any]  # of the notebook


@dataclass(frozen=True)
class Grid:
    """A grid file that was read and checked."""

    file: Path
    root: Path  # the project's folder
    notebook: Path
    folder: Path  # of its runs
    timeout: float | None
    runs: list[Run] = field(repr=False)


class _Loader(yaml.CSafeLoader):
    """Refuse a key that is given twice; YAML itself would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        for key, count in Counter(str(key.value) for key, _ in node.value).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(problem=f"{key!r} is given twice")
        return super().construct_mapping(node, deep)


def load_grid(file: str | Path) -> Grid:
    """Read a grid file, check all that its runs could fail on, and list its runs row by row.

    Raises:
        InputError: the file is missing or not YAML, or it has an unknown field, a missing notebook,
            an unknown or mistyped parameter, or a SPEC, size or setting that a run would refuse.
    """
    file = Path(file).absolute()
    try:
        content = yaml.load(file.read_text("utf-8"), _Loader)  # a safe loader
        if isinstance(content, dict) and isinstance(content.get("rows"), dict):
            content["rows"] = {str(name): row or {} for name, row in content["rows"].items()}
        spec = GridFile.model_validate(content)
    except OSError as error:
        remedy = "Give a grid's YAML file"
        raise InputError(file, f"cannot be read ({error.strerror})", remedy) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        remedy = "See papermill_runs/grids/ for examples"
        raise InputError(file, f"is not YAML: {error}", remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = " → ".join(map(str, first["loc"][:3])) or "the file"
        remedy = f"The fields are {', '.join(GridFile.model_fields)}"
        raise InputError(f"{file}, {place}", first["msg"], remedy) from error
    if file.stem in RESERVED:
        remedy = "Rename the file: its runs need a folder"
        raise InputError(file, f"a grid cannot be called {file.stem!r}", remedy)
    for root in (*file.parents, Path.cwd()):
        if (root / spec.notebook).is_file():
            runs = _expand(file, spec, root)
            folder = root / "papermill_runs" / file.stem
            return Grid(file, root, root / spec.notebook, folder, spec.timeout, runs)
    remedy = "Give its path from the project's folder"
    raise InputError(file, f"notebook {spec.notebook!r} does not exist", remedy)


def notebook_version(notebook: str | Path) -> str:
    """Hash the code of a notebook and of the library's rooms that it can use."""
    code = json.dumps([read_code(notebook), code_version(*ROOMS)])
    return hashlib.sha256(code.encode()).hexdigest()


def cohort_fingerprint(spec: str, root: Path) -> str:
    """Hash a SPEC with the names and contents of its files.

    All files of a folder count; of a table, the table and the files that its cells name. A copy in
    another place has the same fingerprint.
    """
    from lgekit.data.readers import _path

    digest = hashlib.sha256(spec.encode())
    path = _path(spec, root)
    files: list[Path] = []
    if path is not None and path.is_dir():
        for folder, _, names in os.walk(path, followlinks=True):
            files += [Path(folder) / name for name in names]
    elif path is not None and path.exists():
        rows = csv.reader(path.read_text("utf-8", "replace").splitlines())
        named = {os.path.join(path.parent, cell.strip()) for row in rows for cell in row}
        files = [path, *map(Path, filter(os.path.isfile, named))]
    for file in sorted(files):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{os.path.relpath(file, path)}\0{content}\n".encode())
    return digest.hexdigest()


def _expand(file: Path, spec: GridFile, root: Path) -> list[Run]:
    from lgekit.data.readers import pretraining_specs

    notebook = root / spec.notebook
    defaults = read_parameters(notebook)
    axes: dict[str, list[Any]] = {"seed": list(spec.seeds), **spec.axes}
    base = dict(spec.parameters)
    if spec.folds:
        base["folds"], axes["fold"] = spec.folds, list(range(spec.folds))
    _refuse_given_twice(file, spec)
    base = defaults | check_parameters(defaults, base, f"{file}, parameters")
    for name, points in axes.items():
        if not points or len(set(points)) < len(points):
            problem = f"{points} is empty or names a value twice"
            raise InputError(f"{file}, {name}", problem, "Name each value once")
        checked = [check_parameters(defaults, {name: p}, f"{file}, {name}") for p in points]
        axes[name] = [point[name] for point in checked]
    # The settings that the notebook takes from parameters of the same name.
    code = " ".join(cell for cell in read_code(notebook) if "size_settings(" in cell)
    settings = set(re.findall(r"\w+", code)) & FitSettings.model_fields.keys()
    version = notebook_version(notebook)
    fingerprint = functools.cache(lambda cohort: cohort_fingerprint(cohort, root))
    runs = []
    for row, changes in spec.rows.items():
        where = f"{file}, row {row}"
        changes = check_parameters(defaults, changes, where)
        for point in itertools.product(*axes.values()):
            at = dict(zip(axes, point, strict=True))
            params = base | changes | at
            params.pop("out", None)
            _refuse_impossible(params, defaults, settings, where)
            cohorts = [str(params.get("cohort", ""))]
            if "pretrain_on" in params:
                cohorts += pretraining_specs(cohorts[0], params["pretrain_on"], root)
            known_by = [version, params, [fingerprint(cohort) for cohort in cohorts]]
            digest = hashlib.sha256(json.dumps(known_by, sort_keys=True).encode()).hexdigest()
            runs.append(Run(digest[:16], row, at, params))
    return runs


def _refuse_given_twice(file: Path, spec: GridFile) -> None:
    """Refuse a parameter that two parts of the file set, or that the grid sets itself."""
    own = {"seed", "out", *(("fold", "folds") if spec.folds else ())}
    parts = {"axes": [*spec.axes], "parameters": [*spec.parameters]}
    parts |= {f"row {name}": [*row] for name, row in spec.rows.items()}
    for place, given in parts.items():
        taken = ["fold", "folds"] if place == "axes" else [*spec.axes]
        for name in sorted({*given} & {*own, *taken}):
            remedy = "Remove it here: `seeds`, `folds` and `axes` set what varies"
            raise InputError(f"{file}, {place}", f"{name!r} is set by the grid", remedy)


def _refuse_impossible(
    params: dict[str, Any], defaults: dict[str, Any], settings: set[str], where: str
) -> None:
    """Refuse SPECs, sizes and settings that a run would fail on. Defaults always pass."""
    from lgekit.data.readers import parse_spec, split_specs

    given = {name: value for name, value in params.items() if value != defaults[name]}
    size = params["size"] if defaults.get("size") in SIZES else "laptop"
    try:
        for spec in [given.get("cohort"), *split_specs(str(given.get("pretrain_on", "")))]:
            if spec and spec not in ("auto", "none"):
                parse_spec(spec)
        size_settings(size, **{name: given[name] for name in settings & given.keys()})
    except InputError as error:
        raise InputError(where, f"{error.where}: {error.problem}", error.remedy) from error
