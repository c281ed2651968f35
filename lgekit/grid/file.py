"""Grid files."""

from __future__ import annotations

import csv
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from lgekit.cache import code_version
from lgekit.config import SIZES, FitSettings, size_settings
from lgekit.data.readers import _path, parse_spec, pretraining_specs, split_specs
from lgekit.errors import InputError
from lgekit.workbook import check_parameters, read_code, read_parameters

# What can change a number of a run. Plots, grids and the command line cannot.
ROOMS = ("anatomy", "reports", "data", "segmentation", "scars", "clip", "evaluation")


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
        listing = [
            (str(path.resolve()), name, status.st_size, status.st_mtime_ns)
            for name, _, status in files
        ]
        stamp = hashlib.sha256(repr(listing).encode()).hexdigest()
        from lgekit.cache import memory

        digest.update(
            memory().cache(_contents, ignore=["files"])(
                stamp, [(name, file) for name, file, _ in files]
            )
        )
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
            if (
                name.lower().endswith((".nii", ".nii.gz", ".txt"))
                and (table.parent / name).is_file()
            ):
                yield name, table.parent / name, (table.parent / name).stat()


Scalar = StrictBool | StrictInt | StrictFloat | StrictStr
RESERVED = ("grids", "workbook", "manual")  # other folders of papermill_runs/


class GridFile(BaseModel):
    """What may stand in a grid's YAML file; see `lgekit.grid.run`."""

    model_config = ConfigDict(extra="forbid")
    notebook: StrictStr
    parameters: dict[str, Scalar] = {}
    rows: dict[str, dict[str, Scalar]] = Field(min_length=1)
    seeds: list[StrictInt] = Field([0], min_length=1)
    folds: StrictInt | None = Field(None, ge=2)
    axes: dict[str, list[Scalar]] = {}
    timeout: float | None = Field(None, gt=0)


@dataclass(frozen=True)
class Run:
    """One run of a grid: a row of the table at one seed (and fold, …).

    Attributes:
        id: 16 hex digits of all that the run depends on; two rows with the same parameters share a run.
        row: the row's name.
        axes: ``seed``, ``fold`` and the file's own axes → this run's value.
        params: what the notebook is called with.
    """

    id: str
    row: str
    axes: dict[str, Any]
    params: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A grid file, read and checked: where it lives and what it consists of."""

    file: Path
    root: Path
    notebook: Path
    folder: Path
    timeout: float | None
    runs: list[Run] = field(repr=False)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """yaml.safe_load's loader that refuses a key given twice, where YAML would let the last one win."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(
                key, yaml.ScalarNode
            ):  # as in {{spec}}, a template that nobody filled in
                raise yaml.constructor.ConstructorError(
                    None, None, "a name must be a word", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_grid(file: str | Path) -> Grid:
    """Read a grid file, hold it against its notebook's parameters and expand it.

    Raises:
        InputError: no such file, no YAML, an unknown field, a missing notebook, an unknown or mistyped parameter, a
            value that its run would fail on.
    """
    file = Path(file).absolute()
    try:
        content = yaml.load(file.read_text("utf-8"), _Loader)  # _Loader is a safe loader
        if isinstance(content, dict) and isinstance(content.get("rows"), dict):
            content["rows"] = {
                str(name): changes or {} for name, changes in content["rows"].items()
            }
        spec = GridFile.model_validate(content)
    except OSError as error:
        raise InputError(
            file, f"cannot be read ({error.strerror})", "Give a grid's YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            file, f"is not YAML: {error}", "Mend it; see papermill_runs/grids/ for examples"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = " → ".join(map(str, first["loc"][:3])) or "the file"
        fields = ", ".join(GridFile.model_fields)
        raise InputError(
            f"{file}, {place}", f"{first['msg']}", f"The fields are {fields}"
        ) from error
    if file.stem in RESERVED:
        raise InputError(
            file,
            f"a grid cannot be called {file.stem!r}",
            "Rename the file: its runs need a folder",
        )
    root = next(
        (place for place in (*file.parents, Path.cwd()) if (place / spec.notebook).is_file()), None
    )
    if root is None:
        raise InputError(
            file,
            f"notebook {spec.notebook!r} is not there",
            "Give its path from the project's folder",
        )
    notebook, folder = root / spec.notebook, root / "papermill_runs" / file.stem
    return Grid(file, root, notebook, folder, spec.timeout, _expand(file, spec, notebook, root))


def notebook_version(notebook: str | Path) -> str:
    """A hash of a notebook's code and of the library's modules that it uses: what a run depends on, but parameters."""
    cells = read_code(notebook)
    return hashlib.sha256(json.dumps([cells, code_version(*ROOMS)]).encode()).hexdigest()


def expand(file: str | Path) -> list[Run]:
    """The runs of a grid, row by row. Raises InputError as `load_grid` does."""
    return load_grid(file).runs


def _refuse_taken(file: Path, spec: GridFile) -> None:
    """Each parameter has one place in the file: what the grid sets itself, no other part of it sets too."""
    own = {"seed", "out", *(("fold", "folds") if spec.folds else ())}
    places = [
        ("axes", {*spec.axes}, own | {"fold", "folds"}),
        ("parameters", {*spec.parameters}, own | {*spec.axes}),
    ]
    places += [(f"row {name}", {*row}, own | {*spec.axes}) for name, row in spec.rows.items()]
    for place, given, taken in places:
        for name in sorted(given & taken):
            remedy = "Take it out here: what varies stands in `seeds`, `folds` or `axes`, and each run has its own folder"
            raise InputError(f"{file}, {place}", f"{name!r} is set by the grid", remedy)


def _settings_named(notebook: Path) -> set[str]:
    """The settings of the method that a notebook makes of parameters which are called like them."""
    cells = [cell for cell in read_code(notebook) if "size_settings(" in cell]
    return {
        word for cell in cells for word in re.findall(r"\w+", cell)
    } & FitSettings.model_fields.keys()


@functools.lru_cache(maxsize=4096)
def _try_settings(size: str, named: tuple[tuple[str, Any], ...]) -> None:
    """Raises InputError where these are no settings; looked at once for all runs that share them."""
    size_settings(size, **dict(named))


def _refuse_impossible(
    params: dict[str, Any], defaults: dict[str, Any], settings: set[str], where: str
) -> None:
    """Values that a run would fail on after others have run for hours: SPECs, sizes and settings of the method.

    Args:
        params: of a run.
        defaults: the notebook's own, which always pass: 0 or -1 may stand there for "the size's own".
        settings: names of the parameters that are settings.
        where: the place of the fault.
    """
    given = {name: value for name, value in params.items() if value != defaults[name]}
    size = params["size"] if defaults.get("size") in SIZES else "laptop"
    try:
        for spec in [given.get("cohort"), *split_specs(str(given.get("pretrain_on", "")))]:
            if spec and spec not in ("auto", "none"):
                parse_spec(spec)
        named = sorted((name, value) for name, value in given.items() if name in settings)
        _try_settings(size, tuple(pair for pair in named if pair[0] != "seed"))
        _try_settings(
            size, tuple(pair for pair in named if pair[0] == "seed")
        )  # apart: rows share their seeds
    except InputError as error:
        raise InputError(where, f"{error.where}: {error.problem}", error.remedy) from error


def _expand(file: Path, spec: GridFile, notebook: Path, root: Path) -> list[Run]:
    _refuse_taken(file, spec)
    axes: dict[str, Sequence[Any]] = {"seed": spec.seeds, **spec.axes}
    base = dict(spec.parameters)
    if spec.folds:
        base["folds"], axes["fold"] = spec.folds, range(spec.folds)
    known = read_parameters(notebook)
    defaults = {name: parameter.default for name, parameter in known.items()}
    base = defaults | check_parameters(notebook, base, f"{file}, parameters")
    rows = {
        name: check_parameters(notebook, row, f"{file}, row {name}")
        for name, row in spec.rows.items()
    }
    values = []
    for name, points in axes.items():
        if len(set(points)) < len(points) or not points:
            raise InputError(
                f"{file}, {name}",
                f"{list(points)} is empty or names a value twice",
                "Name each once",
            )
        values.append(
            [check_parameters(notebook, {name: point}, f"{file}, {name}")[name] for point in points]
        )
    settings = _settings_named(notebook)
    common = hashlib.sha256(notebook_version(notebook).encode())
    cohorts: dict[str, str] = {}
    runs = []
    for row, changes in rows.items():
        for point in itertools.product(*values):
            at = dict(zip(axes, point, strict=True))
            params = base | changes | at
            params.pop("out", None)
            _refuse_impossible(params, defaults, settings, f"{file}, row {row}")
            cohort = str(params.get("cohort", ""))
            if cohort not in cohorts:
                cohorts[cohort] = cohort_fingerprint(cohort, root)
            beside = (
                pretraining_specs(cohort, str(params["pretrain_on"]), root)
                if "pretrain_on" in params
                else []
            )
            for further in beside:
                if further not in cohorts:
                    cohorts[further] = cohort_fingerprint(further, root)
            read = [cohorts[cohort], *(cohorts[further] for further in beside)]
            digest = common.copy()
            digest.update(json.dumps([params, read], sort_keys=True).encode())
            runs.append(Run(digest.hexdigest()[:16], row, at, params))
    return runs
