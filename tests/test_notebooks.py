"""The notebooks: their form, and a smoke run of all of them with Papermill."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

import lgekit as lk
from lgekit import workbook
from lgekit.errors import InputError
from lgekit.grid.run import load_grid
from lgekit.workbook import read_parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 15  # lines


def cells(path: Path, kind: str = "") -> list[dict]:
    found = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in found if kind in ("", cell["cell_type"])]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_the_notebooks_are_those_that_the_workbook_runs():
    assert [path.stem for path in NOTEBOOKS] == list(workbook.NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestForm:
    def test_stored_without_outputs_and_with_stable_ids(self, path):
        for cell in cells(path):
            assert cell["id"], "strip it: nbstripout --keep-id"
            assert not cell.get("outputs") and not cell.get("execution_count")

    def test_first_code_cell_holds_the_parameters_with_comments(self, path):
        first = cells(path, "code")[0]
        assert tags(first) == ["parameters"]
        parameters = read_parameters(path)
        assert {"cohort", "size", "seed", "out"} <= set(parameters)
        assert source(first).count("  # ") >= len(parameters)

    def test_cells_are_short(self, path):
        for cell in cells(path, "code"):
            assert len(source(cell).splitlines()) <= LONGEST_CELL, source(cell)

    def test_opens_with_question_and_ends_with_three_solved_exercises(self, path):
        texts = [source(cell) for cell in cells(path, "markdown")]
        assert "question" in texts[0].lower() and "minute" in texts[0]
        assert len(re.findall(r"\*\*Exercise \d\*\*", "\n".join(texts))) == 3
        solutions = [cell for cell in cells(path) if "solution" in tags(cell)]
        assert len(solutions) == 3
        for cell in solutions:
            assert "assert" in source(cell) and cell["metadata"]["jupyter"]["source_hidden"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """All notebooks, run in order at size smoke on the phantom."""
    folder = tmp_path_factory.mktemp("workbook")
    with pytest.MonkeyPatch.context() as patch:  # other tests train networks on more threads
        patch.setenv("LGEKIT_CACHE", str(folder / "cache"))
        return workbook.run_workbook("smoke", folder=folder / "runs")


@pytest.mark.timeout(900)
class TestSmokeRun:
    @pytest.mark.parametrize("name", workbook.NOTEBOOKS)
    def test_ran_to_its_end_and_shows_pictures(self, smoke, name):
        found = cells(smoke / f"{name}.ipynb", "code")
        outputs = [output for cell in found for output in cell["outputs"]]
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
        assert json.loads((smoke / name / "metrics.json").read_text())
        record = json.loads((smoke / name / "environment.json").read_text())
        assert record["torch"] and record["device"] and record["wall_seconds"] > 0

    def test_its_ablation_is_the_grid_smoke_yaml(self, smoke):
        grid = load_grid(ROOT / "papermill_runs" / "grids" / "smoke.yaml")
        runs = pd.read_csv(smoke / "06_ablations" / "runs.csv")
        assert list(runs["run_id"]) == [run.id for run in grid.runs]
        assert (runs["state"] == "done").all()

    def test_figures_have_data_and_captions(self, smoke):
        figures = smoke / "figures"
        captions = json.loads((figures / "captions.json").read_text())
        pictures = sorted(figures.glob("*.png"))
        assert len(pictures) >= 6
        for picture in pictures:
            assert picture.with_suffix(".csv").stat().st_size > 0
            assert len(captions[picture.stem]) > 20

    def test_executed_notebooks_hold_nothing_personal(self, smoke):
        for path in smoke.glob("*.ipynb"):
            text = path.read_text("utf-8").replace(str(workbook.project_root()), "")
            assert str(Path.home()) not in text

    def test_the_same_seed_gives_the_same_metrics_byte_for_byte(self, smoke, tmp_path, monkeypatch):
        monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path / "cache"))  # an empty one

        def again(number: str) -> Path:  # side by side: one core is free at the end of the tests
            return workbook.run_workbook("smoke", only=[number], folder=tmp_path / number)

        with ThreadPoolExecutor(2) as pool:
            for name, folder in zip(
                workbook.NOTEBOOKS[4:6], pool.map(again, ["04", "05"]), strict=True
            ):
                first, second = (one / name / "metrics.json" for one in (smoke, folder))
                assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(("size", "only"), [("huge", None), ("smoke", ["99"])])
def test_an_unknown_notebook_or_size_is_refused_before_anything_runs(tmp_path, size, only):
    with pytest.raises(InputError, match=only[0] if only else size):
        workbook.run_workbook(size, only=only, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["smoke", "laptop", "paper"])
def test_notebook_05_takes_changes_of_the_settings(size):
    code = [source(cell) for cell in cells(NOTEBOOKS[5], "code")]
    (cell,) = [text for text in code if "size_settings(size" in text]
    names = read_parameters(NOTEBOOKS[5]) | {"size": size, "lk": lk}
    exec(cell, {"pd": pd, **names}, own := {})
    assert own["settings"] == lk.size_settings(size)
    exec(cell, {"pd": pd, **names, "changes": "text=report synthetic_per_real=0"}, own)
    assert own["settings"] == lk.size_settings(size, text="report", synthetic_per_real=0)
