"""Reports of grids: rows compared or left out, tables, claims, curves and their sources."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lgekit.errors import InputError
from lgekit.evaluation import metrics
from lgekit.evaluation.metrics import ROWS, claims_table, compare_rows
from lgekit.grid import report
from lgekit.grid.run import GridFile
from lgekit.viz import figures

RATIOS = {"no_synthetic": 0, "synthetic_2": 2, "synthetic_4": 4}  # full: the preset's 1


def predictions(rows: dict, seeds: int = 2, patients: int = 30, **axes) -> pd.DataFrame:
    """Predictions of a grid: row → how well its scores separate studies with scar from others."""
    generator = np.random.default_rng(0)
    truth = generator.random(patients) < 0.5
    names = [f"P{number}" for number in range(patients)]
    parts = []
    for (row, strength), seed in itertools.product(rows.items(), range(seeds)):
        part = pd.DataFrame({"row": row, "seed": seed, **axes, "study_id": names, "scar": truth})
        logits = strength * (2 * truth - 1) + generator.normal(size=patients)
        parts.append(part.assign(patient_id=names, p_lge=1 / (1 + np.exp(-logits))))
    return pd.concat(parts, ignore_index=True)


def runs_of(table: pd.DataFrame) -> pd.DataFrame:
    axes = table.columns[: table.columns.get_loc("study_id")]
    runs = table[axes].drop_duplicates(ignore_index=True)
    return runs.assign(state="done", commit="abc", device="CPU", studies_train=200)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 200)


@pytest.fixture
def report_of(tmp_path, monkeypatch):
    """Report a grid with these predictions; the names of the files that are made."""

    def make(table, references=None, runs=None, name="toy"):
        runs = runs_of(table) if runs is None else runs
        references = pd.DataFrame() if references is None else references
        rows = {row: {"text": "report"} for row in runs["row"]}
        rows |= {row: {"synthetic_per_real": ratio} for row, ratio in RATIOS.items()}
        rows |= {"full": {"compare_with": "supervised"}}
        of_rows = [SimpleNamespace(params={"size": "laptop"})]
        grid = SimpleNamespace(spec=GridFile(notebook="", rows=rows), runs=of_rows)
        monkeypatch.setattr(report, "load_grid", lambda file: grid)
        monkeypatch.setattr(report, "collect", lambda file: runs)
        read = lambda file, of="": references if of else table  # noqa: E731
        monkeypatch.setattr(report, "collect_predictions", read)
        made = report.report_grid(f"grids/{name}.yaml", tmp_path)
        return {path.relative_to(tmp_path).as_posix() for path in made}

    return make


def captions(folder) -> dict[str, str]:
    return json.loads((folder / "captions.json").read_text())


def test_the_paper_table_shows_values_differences_and_p_values():
    comparison = compare_rows(predictions({"full": 2.0, "no_caption": 0.0}))
    paper = figures.paper_table(comparison).set_index("row")
    auc = comparison[comparison["statistic"] == "auc"].set_index("row")
    full, less = auc.loc["full"], auc.loc["no_caption"]
    assert paper.loc["full", "AUC"] == f"{full['value']:.2f} ({full['low']:.2f}–{full['high']:.2f})"
    assert paper.loc["full", "AUC − full"] == ""
    ends = f"{less['difference_low']:+.3f} to {less['difference_high']:+.3f}"
    assert paper.loc["no caption", "AUC − full"] == f"{less['difference']:+.3f} ({ends})"
    assert float(paper.loc["no caption", "p, AUC"]) <= 0.01


@pytest.mark.parametrize(
    ("missing", "seeds", "rows"),
    [
        ({("no_caption", 1)}, {0, 2}, {"full", "no_caption", "plain_clip"}),
        ({("plain_clip", 1), ("plain_clip", 2)}, {0, 1, 2}, {"full", "no_caption"}),
        ({("plain_clip", 2)}, {0, 1}, {"full", "no_caption", "plain_clip"}),  # as large, more rows
        ({("full", 0), ("plain_clip", 1)}, {1, 2}, {"full", "no_caption"}),
    ],
)
def test_the_largest_complete_set_of_seeds_and_rows_is_compared(missing, seeds, rows, capsys):
    table = predictions(dict.fromkeys(("full", "no_caption", "plain_clip"), 1.0), seeds=3)
    runs = runs_of(table)
    for row, seed in missing:
        runs.loc[(runs["row"] == row) & (runs["seed"] == seed), "state"] = "failed"
    chosen = report.complete_runs(runs, table, "toy")
    assert (set(chosen["seed"]), set(chosen["row"])) == (seeds, rows)
    left_out = {"full", "no_caption", "plain_clip"} - rows | {str(n) for n in {0, 1, 2} - seeds}
    said = capsys.readouterr().out
    assert "grid toy" in said and all(f" {name} left out" in said for name in left_out)


def test_rows_that_were_not_compared_are_listed_with_the_reason():
    table = predictions({"full": 1.0, "no_caption": 1.0, "no_synthetic": 0.0}, seeds=3)
    runs = runs_of(table)
    runs.loc[(runs["row"] == "no_synthetic") & (runs["seed"] > 0), "state"] = ["failed", "to do"]
    comparison = compare_rows(report.complete_runs(runs, table, "toy"))
    words = "not compared (1 of 3 runs done)"
    assert figures.paper_table(comparison, runs)["balanced accuracy"].iloc[-1] == words
    claims = claims_table(comparison, runs=runs).set_index("row")["answer"]
    assert claims["no_synthetic"] == words and claims["no_pretraining"] == "not run"
    with pytest.raises(InputError, match="toy.*no seed of row 'full' is done"):
        report.complete_runs(runs.assign(state="failed"), table, "toy")


def test_a_report_has_tables_and_figures_and_no_patient(report_of, tmp_path):
    strengths = dict.fromkeys(ROWS, 1.0) | {"no_synthetic": 0.5, "synthetic_2": 1.5}
    table = predictions(strengths | {"synthetic_4": 2.0}, patients=40)
    runs = runs_of(table)
    runs.loc[(runs["row"] == "synthetic_4") & (runs["seed"] == 1), "state"] = "failed"
    made = report_of(table, predictions({"full": 2.0}, patients=40).assign(method="other"), runs)
    endings = "runs.csv comparison.csv claims.csv references.csv table.md table.tex".split()
    wanted = {f"tables/toy_{ending}" for ending in endings}
    assert made == wanted | {"ablation_forest_toy.png", "synthetic_ratio_toy.png"}
    claims = pd.read_csv(tmp_path / "tables/toy_claims.csv")
    assert len(claims) == 8 and set(claims["answer"]) <= {"yes", "no", "not shown"}
    counts = "{} of the grid's {} runs (without synthetic 4), 2 seeds, 40 test patients, commit abc"
    assert counts.format(14, 16) in captions(tmp_path)["ablation_forest_toy"]
    assert counts.format(6, 8) in captions(tmp_path)["synthetic_ratio_toy"]
    curve = pd.read_csv(tmp_path / "synthetic_ratio_toy.csv")
    auc = curve[curve["statistic"] == "auc"]
    assert auc["synthetic_per_real"].tolist() == [0, 1, 2] and auc["value"].is_monotonic_increasing
    assert auc["row"].tolist() == ["no_synthetic", "full", "synthetic_2"]
    assert not [path for path in tmp_path.rglob("*.csv") if "P17" in path.read_text()]
    assert "\\begin{tabular}" in (tmp_path / "tables/toy_table.tex").read_text()


def test_claims_compare_with_the_full_method_wherever_its_row_is(report_of, tmp_path):
    def answers(rows):
        assert "ablation_forest_toy.png" not in report_of(predictions(rows))  # two rows
        claims = pd.read_csv(tmp_path / "tables/toy_claims.csv")
        return claims[claims["statistic"] == "auc"].set_index("row")["answer"]

    assert answers({"no_synthetic": 0.0, "full": 3.0})["no_synthetic"] == "yes"
    assert answers({"no_synthetic": 3.0, "no_caption": 3.0}).eq("not run").all()


def test_a_grid_with_an_axis_is_reported_at_its_last_point_and_over_the_axis(report_of, tmp_path):
    rows, parts, others = {"full": 2.0, "no_caption": 1.0, "plain_clip": 0.2}, [], []
    for size in (30, 60, 0):  # 0 means all studies
        parts.append(predictions(rows, train_studies=size))
        others.append(predictions({"full": 3.0 + size}, train_studies=size))
        others[-1].insert(3, "method", "supervised")
    made = report_of(pd.concat(parts), pd.concat(others), name="label_efficiency")
    assert {"ablation_forest_label_efficiency.png", "label_efficiency.png"} <= made
    forest, curve = map(captions(tmp_path).get, sorted(captions(tmp_path)))
    assert "6 of the grid's 18 runs" in forest and "last value of train_studies" in forest
    assert "18 of the grid's 18 runs" in curve and "last value" not in curve
    table = pd.read_csv(tmp_path / "label_efficiency.csv").query("statistic == 'auc'")
    assert table["train_studies"].tolist() == [30] * 3 + [60] * 3 + [200] * 3
    assert "p" not in table
    full, plain = table["value"].iloc[[-3, -1]]
    assert table["difference"].iloc[-1] == pytest.approx(plain - full, abs=1e-4)
    references = pd.read_csv(tmp_path / "tables/label_efficiency_references.csv")
    last = compare_rows(others[-1].assign(row="supervised"), "supervised")
    assert references["row"].unique().tolist() == ["full", "supervised"]
    assert references["value"].iloc[-1] == pytest.approx(last["value"].iloc[-2], abs=1e-4)


def test_references_that_predicted_all_studies_are_compared_with_the_first_row():
    own = predictions({"full": 0.5, "no_caption": 0.5})
    whole = predictions({"full": 3.0}).assign(method="supervised")
    part = whole[whole["study_id"] != "P0"].assign(method="half done")
    compared = report.reference_comparison(own, pd.concat([whole, part]))
    assert compared["row"].unique().tolist() == ["full", "supervised"]
    better = compared[(compared["row"] == "supervised") & (compared["statistic"] == "auc")].iloc[0]
    assert better["difference"] > 0 and better["p"] < 0.05
