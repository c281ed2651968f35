"""A user's own table of studies, and a cohort written as a table, completely or not at all."""

import numpy as np
import pandas as pd
import pytest
from cohort_files import SPACING, picture, ring, write_own, write_table

from lgekit.data.manifest import COLUMNS, LANDMARK_COLUMNS, read_table, write_manifest
from lgekit.data.readers import check_cohort, read_cohort
from lgekit.errors import InputError
from lgekit.findings import Findings, Scar
from lgekit.study import Cohort, Landmarks, Study

REPORT = 'LGE: "transmural", inferior.\nSecond line, with commas; – and ünicode.'


def two_studies() -> Cohort:
    scar = Scar(("inferior",), ("basal", "mid"), "transmural", 80, no_reflow=True)
    known = {"patient_id": "p", "report": REPORT, "report_source": "clinical", "split": "test"}
    known |= {"findings": Findings((scar,)), "landmarks": Landmarks(211.5, float("nan"), 0.66)}
    full = Study.from_arrays("001", picture(ring()) + 0.25, SPACING, ring(), **known)
    bare = Study.from_arrays("NA", picture(ring(), 1), (1.0, 2.0, 8.0), split="train")
    return Cohort([full, bare], "two")


def test_a_cohort_is_written_and_read_back_the_same(tmp_path):
    cohort = two_studies()
    path = write_manifest(cohort, tmp_path / "out")
    assert path == tmp_path / "out" / "manifest.csv"
    again = read_cohort(f"manifest:{path}")
    assert again.fingerprint == cohort.fingerprint and again.manifest.equals(cohort.manifest)
    for before, after in zip(cohort.studies, again.studies, strict=True):
        assert before["findings"] == after["findings"]
        assert repr(before["landmarks"]) == repr(after["landmarks"])  # NaN is not equal to itself
        assert np.array_equal(before["image"].affine, after["image"].affine)
        assert before["image"].data.dtype == after["image"].data.dtype
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(table) == COLUMNS + LANDMARK_COLUMNS
    assert table["study_id"].tolist() == ["001", "NA"]
    assert '"walls": ["inferior"]' in table["findings"][0]


def test_the_same_cohort_gives_the_same_bytes(tmp_path):
    one, two = (write_manifest(two_studies(), tmp_path / name).parent for name in ("one", "two"))
    files = [path.relative_to(one) for path in one.rglob("*.*")]
    assert len(files) == 4
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_writing_is_all_or_nothing_and_only_into_an_empty_folder(tmp_path):
    cohort = two_studies()
    del cohort.studies[1]["landmarks"]  # the second study fails while it is written
    with pytest.raises(KeyError):
        write_manifest(cohort, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    write_manifest(two_studies(), tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="not an empty folder"):
        write_manifest(two_studies(), tmp_path / "out")
    cohort = two_studies()
    cohort.studies[1]["study_id"] = "001"
    with pytest.raises(InputError, match="001: two studies have this id"):
        write_manifest(cohort, tmp_path / "other")
    assert sorted(tmp_path.rglob("*")) == before


def test_tables_are_read_as_text(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes('\ufeffid, name ,note\r\n001, NA ,"a, ""b""\nc"\r\n\r\n1e5\r\n'.encode())
    first, short = read_table(path, ("id", "name"))
    assert first == {"id": "001", "name": "NA", "note": 'a, "b"\nc'}
    assert short == {"id": "1e5", "name": "", "note": ""}


@pytest.mark.parametrize(
    ("columns", "source", "scar"),
    [
        (["study_id", "image"], "none", [None] * 3),
        (["study_id", "image", "labels"], "masks", [True, False, True]),
        (["study_id", "image", "report"], "clinical", [True, False, True]),
    ],
)
def test_two_columns_are_enough_and_every_other_one_is_used(tmp_path, columns, source, scar):
    rows = [{key: row[key] for key in columns} for row in write_own(tmp_path)]
    cohort = read_cohort(f"manifest:{write_table(tmp_path, rows)}")
    assert set(cohort.manifest["report_source"]) == {source}
    assert cohort.manifest["scar"].tolist() == scar
    assert all(cohort.manifest["split"].isin(["train", "validation", "test"]))
    assert (cohort.manifest["report"].str.len() > 10).all() == (source != "none")


@pytest.mark.parametrize(
    ("written", "meant"), [("PatientID", "patient_id"), ("Anterior RVIP deg", "anterior_rvip_deg")]
)
def test_a_misspelt_column_is_named_with_what_was_meant(tmp_path, written, meant):
    rows = write_own(tmp_path)
    for row in rows:
        row.pop(meant, None)
        row[written] = ""
    spec = f"manifest:{write_table(tmp_path, rows)}"
    (fault,) = (fault for fault in check_cohort(spec) if "column" in fault.problem)
    assert fault.problem == f"unknown column {written!r}"
    assert f"Did you mean {meant!r}?" in fault.remedy
    assert len(read_cohort(spec, images_only=True)) == 3  # a prediction needs none of them


def test_the_users_own_columns_are_ignored(tmp_path):
    own = "age Sex image_id PatientName comment patient patient_age mask mask_drawn_by Report_ID"
    rows = [row | dict.fromkeys(own.split(), "x") for row in write_own(tmp_path)]
    assert check_cohort(f"manifest:{write_table(tmp_path, rows)}") == []
    rows = [row | {"PatientID": "y"} for row in rows]  # with patient_id
    assert check_cohort(f"manifest:{write_table(tmp_path, rows)}") == []


def test_a_report_is_text_a_file_or_missing_for_a_stated_reason(tmp_path):
    rows = write_own(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "s0.txt").write_text(REPORT + "\n", encoding="utf-8")
    rows[0]["report"] = "texts/s0.txt"
    rows[1] |= {"report": "", "report_source": "none"}
    rows[2] |= {"report": "", "report_source": "masks"}
    cohort = read_cohort(f"manifest:{write_table(tmp_path, rows)}")
    assert cohort.manifest["report_source"].tolist() == ["clinical", "none", "masks"]
    first, second, third = cohort.manifest["report"]
    assert first == REPORT and second == "" and third


def test_a_patient_has_one_split_and_adding_studies_moves_no_patient(tmp_path):
    rows = write_own(tmp_path, 8)
    rows[1] |= {"patient_id": "s0", "split": ""}
    splits = read_cohort(f"manifest:{write_table(tmp_path, rows[:3])}").manifest["split"]
    assert splits.tolist() == ["train", "train", "test"]
    rows = [row | {"split": "", "patient_id": ""} for row in rows]
    few = read_cohort(f"manifest:{write_table(tmp_path, rows[:4])}").manifest["split"].tolist()
    many = read_cohort(f"manifest:{write_table(tmp_path, rows)}").manifest["split"].tolist()
    assert many[:4] == few
