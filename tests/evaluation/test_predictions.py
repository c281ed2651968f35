"""Tables of predictions that people have edited: each cell that cannot be used is named by study and column."""

import json
import warnings

import pandas as pd
import pytest
from cohort_files import write_own, write_table
from command_line import lgekit, refused

from lgekit.data.readers import read_cohort
from lgekit.errors import InputError
from lgekit.evaluation.scores import in_both, read_predictions
from lgekit.findings import WALLS

FOUR = json.dumps([0.1, 0.2, 0.3, 0.4])


@pytest.fixture
def cohort(tmp_path):
    rows = write_own(tmp_path, 4)
    rows[1] |= {"study_id": "NA", "patient_id": "NA"}
    return read_cohort(f"manifest:{write_table(tmp_path, rows)}")


@pytest.fixture
def table(cohort):
    names = list(cohort.manifest["study_id"])
    columns = {
        "study_id": names,
        "p_lge": [0.9, 0.1, 0.8, 0.2],
        **{f"p_{wall}": 0.5 for wall in WALLS},
    }
    columns |= {
        "slice_weights": FOUR,
        "attention": FOUR,
        "segments": json.dumps([None, *[0.5] * 16]),
        "caption": "",
    }
    return pd.DataFrame(columns)


def written(table, folder):
    table.to_csv(folder / "out.csv", index=False)
    return folder / "out.csv"


def test_a_study_called_na_is_one(cohort, table, tmp_path):
    read, studies = in_both(written(table, tmp_path), cohort)
    assert read["study_id"].tolist() == ["s0", "NA", "s2", "s3"] and len(studies) == 4
    numbered = table.assign(study_id=["007", "NA", "nan", "1e5"])
    assert read_predictions(written(numbered, tmp_path))["study_id"].tolist() == [
        "007",
        "NA",
        "nan",
        "1e5",
    ]


@pytest.mark.parametrize(
    ("column", "cell", "problem"),
    [
        ("p_lge", "0,5", "'0,5' is not a number"),
        ("p_lge", "", "is empty"),
        ("p_lge", "50", "50.0 is not between 0 and 1"),
        ("p_inferior", "high", "'high' is not a number"),
        ("slice_weights", "[0.1, 0.2, 0.3]", "holds 3 numbers, not 4"),
        ("slice_weights", "[0.1, 0.2, 0.3", "is not a JSON list"),
        ("slice_weights", "[0.1, null, 0.3, 0.4]", "is not a list of one number a slice"),
        ("slice_weights", "", "is not a JSON list"),
        ("slice_weights", "0.5", "is not a list"),
        ("attention", "[1]", "holds 1 numbers, not 4"),
        ("segments", "[0.5]", "holds 1 numbers, not 17"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named(cohort, table, tmp_path, column, cell, problem):
    table[column] = table[column].astype(object)
    table.loc[2, column] = cell
    path = written(table, tmp_path)
    with pytest.raises(InputError) as caught:
        in_both(path, cohort)
    assert caught.value.where == f"{path}, s2, {column}" and problem in caught.value.problem
    refused("score", path, f"manifest:{tmp_path}/manifest.csv", mentions=f"s2, {column}: ")


def test_cells_that_may_be_empty(cohort, table, tmp_path):
    table.loc[0, ["attention", "segments", "caption", "p_inferior"]] = None
    read, _ = in_both(written(table, tmp_path), cohort)
    assert len(read) == 4 and read["p_lge"].dtype == float
    done = lgekit("score", tmp_path / "out.csv", f"manifest:{tmp_path}/manifest.csv")
    assert done.returncode == 0 and "4 predictions" in done.stdout, done.stderr


def test_rows_of_no_study_are_named(cohort, table, tmp_path):
    path = written(pd.concat([table, table.tail(1).assign(study_id="s9")]), tmp_path)
    with pytest.warns(UserWarning, match="1 rows are of no study of .*: 's9'"):
        assert len(in_both(path, cohort)[0]) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_both(written(table, tmp_path), cohort)
        done = lgekit(
            "score", tmp_path / "out.csv", f"manifest:{tmp_path}/manifest.csv", "--split", "test"
        )
    assert "no study of" not in done.stderr  # those of the other splits are left out on purpose
