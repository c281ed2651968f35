"""The notebooks as products: their form, and a smoke run of every one of them through Papermill."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from lgekit import workbook
from lgekit.grid import run as grid
from lgekit.workbook import read_parameters

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 15


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text("utf-8"))["cells"]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_the_notebooks_are_those_that_the_workbook_runs():
    assert [path.stem for path in NOTEBOOKS] == list(workbook.NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestForm:
    def test_stored_without_outputs_and_with_stable_ids(self, path):
        for cell in cells(path):
            assert cell["id"]
            assert not cell.get("outputs") and not cell.get("execution_count"), (
                "strip it: nbstripout --keep-id"
            )

    def test_first_code_cell_holds_the_parameters_each_with_type_and_comment(self, path):
        first = next(cell for cell in cells(path) if cell["cell_type"] == "code")
        assert tags(first) == ["parameters"]
        parameters = read_parameters(path)
        assert {"cohort", "size", "seed", "out"} <= set(parameters)
        assert all(parameter.comment for parameter in parameters.values())

    def test_cells_are_short(self, path):
        for cell in cells(path):
            if cell["cell_type"] == "code" and not {"solution", "parameters"} & set(tags(cell)):
                source = "".join(cell["source"])
                assert len(source.splitlines()) <= LONGEST_CELL, source

    def test_opens_with_question_and_ends_with_three_solved_exercises(self, path):
        texts = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown"]
        assert "question" in texts[0].lower() and "minute" in texts[0]
        assert len(re.findall(r"\*\*Exercise \d\*\*", "\n".join(texts))) == 3
        solutions = [cell for cell in cells(path) if "solution" in tags(cell)]
        assert len(solutions) == 3
        for cell in solutions:
            assert (
                "assert" in "".join(cell["source"]) and cell["metadata"]["jupyter"]["source_hidden"]
            )

    def test_claims_about_the_paper_carry_marks(self, path):
        texts = "".join(
            "".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown"
        )
        if "paper" in texts and not path.stem.startswith("07"):
            assert re.search(r"\[[PS]( \+ [PS])?\]", texts)


def test_the_messages_that_the_first_notebook_explains_are_the_library_s_own():
    text = "\n".join(
        "".join(cell["source"]) for cell in cells(NOTEBOOKS[0]) if cell["cell_type"] == "markdown"
    )
    table = text.split("### What the messages mean")[1].split("\n#")[0]
    messages = re.findall(r"(?m)^\| `([^`]+)` \|", table)
    library = "".join(
        path.read_text("utf-8") for path in Path(workbook.__file__).parent.glob("*.py")
    )
    assert len(messages) >= 10
    assert not [message for message in messages if message not in library]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """All notebooks, run in order at smoke size on the phantom."""
    folder = tmp_path_factory.mktemp("workbook")
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # a network that another test trained, on more threads, is another one
        patch.setenv("LGEKIT_CACHE", str(folder / "cache"))
        return workbook.run_workbook("smoke", folder=folder / "runs", figures=folder / "figures")


@pytest.mark.timeout(900)
class TestSmokeRun:
    @pytest.mark.parametrize("name", workbook.NOTEBOOKS)
    def test_ran_to_its_end_and_shows_something(self, smoke, name):
        outputs = [
            output for cell in cells(smoke / f"{name}.ipynb") for output in cell.get("outputs", [])
        ]
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
        assert json.loads((smoke / name / "metrics.json").read_text())
        record = json.loads((smoke / name / "environment.json").read_text())
        assert (
            record["torch"]
            and record["device"]
            and record["wall_seconds"] > 0
            and "commit" in record
        )

    def test_its_ablation_is_the_grid_smoke_yaml(self, smoke):
        file = workbook.project_root() / "papermill_runs" / "grids" / "smoke.yaml"
        runs = pd.read_csv(smoke / "06_ablations" / "runs.csv")
        assert list(runs["run_id"]) == [run.id for run in grid.expand(file)]
        assert (runs["state"] == "done").all()

    def test_figures_have_their_data_and_captions_beside_them(self, smoke):
        figures = smoke.parent / "figures"
        pictures = sorted(figures.glob("*.png"))
        captions = json.loads((figures / "captions.json").read_text())
        assert len(pictures) >= 6
        for picture in pictures:
            assert picture.with_suffix(".csv").stat().st_size > 0
            assert len(captions[picture.stem]) > 20

    def test_nothing_personal_in_the_executed_notebooks(self, smoke):
        for path in smoke.glob("*.ipynb"):
            assert str(Path.home()) not in path.read_text("utf-8").replace(
                str(workbook.project_root()), ""
            )


def test_the_same_seed_gives_the_same_metrics_byte_for_byte(tmp_path, monkeypatch, smoke):
    monkeypatch.setenv(
        "LGEKIT_CACHE", str(tmp_path / "cache")
    )  # nothing is taken from the first run
    again = workbook.run_workbook("smoke", only=["04", "05"], folder=tmp_path / "runs")
    for name in workbook.NOTEBOOKS[4:6]:
        assert (again / name / "metrics.json").read_bytes() == (
            smoke / name / "metrics.json"
        ).read_bytes()


def test_an_unknown_notebook_or_size_is_refused_before_anything_runs(tmp_path):
    from lgekit.errors import InputError

    with pytest.raises(InputError, match="huge"):
        workbook.run_workbook("huge", folder=tmp_path)
    with pytest.raises(InputError, match="99"):
        workbook.run_workbook("smoke", only=["99"], folder=tmp_path)
    assert not list(tmp_path.rglob("*.ipynb"))


def test_the_defaults_of_notebook_05_are_the_settings_own():
    from lgekit.config import FitSettings

    of_size = ("epochs", "pixels", "synthetic_per_real", "synthetic_pool")  # left to the size
    for name, parameter in read_parameters(NOTEBOOKS[5]).items():
        if name in FitSettings.model_fields and name not in ("seed", "folds", *of_size):
            assert parameter.default == FitSettings.model_fields[name].default, name


@pytest.mark.parametrize("size", ["smoke", "laptop", "paper"])
def test_notebook_05_without_parameters_is_the_size_s_own(size):
    from lgekit.config import size_settings

    (cell,) = [
        "".join(cell["source"])
        for cell in cells(NOTEBOOKS[5])
        if "size_settings(size" in "".join(cell["source"])
    ]
    names = {name: parameter.default for name, parameter in read_parameters(NOTEBOOKS[5]).items()}
    names |= {"size": size, "size_settings": size_settings}
    exec(cell[: cell.index("pd.Series")], names)
    assert names["settings"] == size_settings(size)
