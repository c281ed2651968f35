"""The bring-your-own layout: written whole or not at all, and read back as the same cohort."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from cohort_files import SPACING, picture, ring, write_own, write_table

from lgekit.data import manifest as manifests
from lgekit.data.manifest import write_manifest
from lgekit.data.readers import check_cohort, read_cohort
from lgekit.errors import InputError
from lgekit.findings import Findings, Scar
from lgekit.study import Cohort, Landmarks, Study

REPORT = 'LGE: "transmural", inferior.\nSecond line, with commas; – and ünicode.'


def two_studies() -> Cohort:
    scar = Scar(
        walls=("inferior",),
        levels=("basal", "mid"),
        depth="transmural",
        transmurality=80,
        no_reflow=True,
    )
    full = Study.from_arrays(
        "a-1",
        picture(ring()) + 0.25,
        SPACING,
        ring(),
        patient_id="p",
        report=REPORT,
        report_source="clinical",
        findings=Findings((scar,)),
        landmarks=Landmarks(211.5, 101.25, 0.66),
        split="test",
    )
    bare = Study.from_arrays(
        "b", picture(ring(), 1), (1.0, 2.0, 8.0), split="train", report_source="none"
    )
    return Cohort([full, bare], "two")


def test_round_trip_gives_the_same_cohort(tmp_path):
    cohort = two_studies()
    path = write_manifest(cohort, tmp_path / "out")
    assert path == tmp_path / "out" / "manifest.csv"
    again = read_cohort(f"manifest:{path}")
    assert again.fingerprint == cohort.fingerprint
    for before, after in zip(cohort.studies, again.studies, strict=True):
        for key in (
            "study_id",
            "patient_id",
            "split",
            "report",
            "report_source",
            "findings",
            "landmarks",
        ):
            assert before[key] == after[key], key
        assert np.array_equal(before["image"].affine, after["image"].affine)
        assert before["image"].data.dtype == after["image"].data.dtype
    assert again.studies[0]["labels"].data.dtype == cohort.studies[0]["labels"].data.dtype
    assert again.manifest.equals(cohort.manifest)


def test_same_cohort_gives_the_same_bytes(tmp_path):
    files = []
    for name in ("one", "two"):
        write_manifest(two_studies(), tmp_path / name)
        files.append(
            {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        )
    assert files[0] == files[1] and len(files[0]) == 4


def test_unknown_insertion_point_stays_unknown(tmp_path):
    cohort = two_studies()
    cohort.studies[0]["landmarks"] = replace(
        cohort.studies[0]["landmarks"], inferior_rvip_deg=float("nan")
    )
    again = read_cohort(f"manifest:{write_manifest(cohort, tmp_path / 'out')}").studies[0][
        "landmarks"
    ]
    assert again.anterior_rvip_deg == 211.5 and np.isnan(again.inferior_rvip_deg)


def test_a_folder_with_content_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not an empty folder"):
        write_manifest(two_studies(), tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_nothing_half_written_stays_behind(tmp_path):
    cohort = two_studies()
    del cohort.studies[1]["landmarks"]  # the second study fails while it is written
    with pytest.raises(KeyError):
        write_manifest(cohort, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_used_and_duplicates_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    write_manifest(two_studies(), tmp_path / "out")
    cohort = two_studies()
    cohort.studies[1]["study_id"] = "a-1"
    with pytest.raises(InputError, match="two studies have this id"):
        write_manifest(cohort, tmp_path / "other")


def test_two_columns_are_enough(tmp_path):
    rows = write_own(tmp_path)
    table = write_table(
        tmp_path, [{key: row[key] for key in ("study_id", "image")} for row in rows]
    )
    cohort = read_cohort(f"manifest:{table}")
    assert len(cohort) == 3 and set(cohort.manifest["report_source"]) == {"none"}
    assert all(cohort.manifest["split"].isin(["train", "validation", "test"]))
    assert cohort.manifest["scar"].isna().all()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("REPORT", "report"),
        ("Reports", "report"),
        ("PatientID", "patient_id"),
        ("Patient_ID", "patient_id"),
        ("patient id", "patient_id"),
        ("patient", "patient_id"),
        ("mask", "labels"),
        ("Segmentation", "labels"),
        ("report-source", "report_source"),
        ("Report_Sorce", "report_source"),
        ("Anterior RVIP deg", "anterior_rvip_deg"),
    ],
)
def test_a_misspelt_column_is_named_with_what_was_meant(tmp_path, written, meant):
    rows = [
        {key: value for key, value in row.items() if key != meant} for row in write_own(tmp_path)
    ]
    spec = f"manifest:{write_table(tmp_path, [row | {written: ''} for row in rows])}"
    faults = [fault for fault in check_cohort(spec) if "column" in fault.problem]
    assert [fault.problem for fault in faults] == [f"unknown column {written!r}"]
    assert f"Did you mean {meant!r}?" in faults[0].remedy
    with pytest.raises(InputError, match="unknown column"):
        read_cohort(spec)
    assert len(read_cohort(spec, images_only=True)) == 3  # a prediction needs none of them


def test_columns_of_the_users_own_are_let_be(tmp_path):
    own = (
        "age",
        "Sex",
        "image_id",
        "PatientName",
        "comment",
        "scanner",
        "patient_age",
        "study date",
        "mask_drawn_by",
    )
    own += ("Report_ID", "reporter", "reported", "report_no")
    rows = [row | dict.fromkeys(own, "x") for row in write_own(tmp_path)]
    assert check_cohort(f"manifest:{write_table(tmp_path, rows)}") == []
    rows = [row | {"mask": "x", "PatientID": "y"} for row in rows]  # beside labels and patient_id
    assert check_cohort(f"manifest:{write_table(tmp_path, rows)}") == []


def test_masks_without_reports_get_reports_and_say_so(tmp_path):
    rows = write_own(tmp_path)
    table = write_table(
        tmp_path, [{key: row[key] for key in ("study_id", "image", "labels")} for row in rows]
    )
    cohort = read_cohort(f"manifest:{table}")
    assert set(cohort.manifest["report_source"]) == {"masks"}
    assert cohort.manifest["scar"].tolist() == [True, False, True]
    assert (cohort.manifest["report"].str.len() > 10).all()


def test_report_cell_may_name_a_text_file(tmp_path):
    rows = write_own(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "s0.txt").write_text(REPORT + "\n", encoding="utf-8")
    rows[0]["report"] = "texts/s0.txt"
    cohort = read_cohort(f"manifest:{write_table(tmp_path, rows)}")
    assert cohort.studies[0]["report"] == REPORT
    assert set(cohort.manifest["report_source"]) == {"clinical"}


def test_a_study_may_state_that_it_has_no_report(tmp_path):
    rows = [row | {"report_source": ""} for row in write_own(tmp_path)]
    rows[1] |= {"report": "", "report_source": "none"}
    rows[2] |= {"report": "", "report_source": "masks"}
    cohort = read_cohort(f"manifest:{write_table(tmp_path, rows)}")
    assert cohort.manifest["report_source"].tolist() == ["clinical", "none", "masks"]
    assert cohort.studies[1]["report"] == "" and cohort.studies[2]["report"]


def test_reports_alone_give_the_findings_for_evaluation(tmp_path):
    rows = write_own(tmp_path)
    table = write_table(
        tmp_path, [{key: row[key] for key in ("study_id", "image", "report")} for row in rows]
    )
    cohort = read_cohort(f"manifest:{table}")
    assert cohort.manifest["scar"].tolist() == [True, False, True]
    assert cohort.studies[0]["findings"].walls == {"inferior"}


def test_a_patient_keeps_the_split_that_one_row_gives(tmp_path):
    rows = write_own(tmp_path)
    rows[1] |= {"patient_id": "s0", "split": ""}
    cohort = read_cohort(f"manifest:{write_table(tmp_path, rows)}")
    assert cohort.studies[1]["split"] == cohort.studies[0]["split"] == "train"


def test_drawn_splits_do_not_move_when_studies_are_added(tmp_path):
    rows = [row | {"split": "", "patient_id": ""} for row in write_own(tmp_path, 8)]
    few = read_cohort(f"manifest:{write_table(tmp_path, rows[:4])}").manifest["split"].tolist()
    many = read_cohort(f"manifest:{write_table(tmp_path, rows)}").manifest["split"].tolist()
    assert many[:4] == few


def test_findings_column_is_plain_json(tmp_path):
    import pandas as pd

    table = pd.read_csv(write_manifest(two_studies(), tmp_path / "out"))
    assert list(table) == [*manifests.COLUMNS, *manifests.LANDMARK_COLUMNS]
    assert json.loads(table["findings"][0])[0]["walls"] == ["inferior"]
