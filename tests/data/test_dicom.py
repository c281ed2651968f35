"""DICOM series that the tests write: order, grid, contrast, and nothing of the person kept."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pydicom
import pytest
from cohort_files import SECRETS, picture, ring, write_dicom

from lgekit.data.nifti import SliceGapWarning
from lgekit.data.readers import check_cohort, list_entries, read_cohort
from lgekit.errors import InputError

ARRAY = picture(ring())


def test_slices_are_ordered_along_the_normal_and_the_grid_is_right(tmp_path):
    order = [2, 0, 3, 1]  # file names, instance numbers and SliceLocation all say something else
    write_dicom(tmp_path / "a" / "b", ARRAY[:, :, order], [10.0 * index for index in order])
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    assert np.array_equal(study.pixels, ARRAY)
    assert np.allclose(study.spacing_mm, (1.5, 1.25, 10.0))  # PixelSpacing is (rows, columns)
    # DICOM (left, back, up) → NIfTI (right, front, up): the position of voxel (i, j, k), by hand
    right, down = np.array([0.0, 0.8, -0.6]), np.array([1.0, 0.0, 0.0])
    position = (
        np.array([5.0, -3, 2]) + 3 * 1.5 * right + 2 * 1.25 * down + 10 * np.cross(right, down)
    )
    assert np.allclose(
        study["image"].affine @ [3, 2, 1, 1], [-position[0], -position[1], position[2], 1]
    )


def test_nothing_that_identifies_a_person_is_kept(tmp_path):
    write_dicom(tmp_path, ARRAY, [0, 10, 20, 30], series="1.2.826.0.1.99887766")
    spec = f"dicom:{tmp_path}"
    cohort = read_cohort(spec)
    kept = repr(cohort.manifest.to_dict()) + repr(dict(cohort.studies[0]))
    stored = pickle.dumps((list(list_entries(spec)), [dict(study) for study in cohort.studies]))
    for secret in [*SECRETS.values(), "99887766", "Doe", "Jane"]:
        assert secret not in kept
        assert secret.encode() not in stored
    assert cohort.studies[0]["study_id"].startswith("series_")


def test_burned_in_annotation_is_refused_and_the_message_names_nobody(tmp_path):
    write_dicom(tmp_path, ARRAY, [0, 10, 20, 30], BurnedInAnnotation="YES")
    with pytest.raises(InputError, match="burned into its pixels") as caught:
        read_cohort(f"dicom:{tmp_path}")
    assert not any(secret in str(caught.value) for secret in SECRETS.values())


def test_patient_of_two_series_is_one_patient_and_ids_are_stable(tmp_path):
    write_dicom(tmp_path / "1", ARRAY, [0, 10, 20, 30])
    write_dicom(tmp_path / "2", ARRAY, [0, 10, 20, 30])
    write_dicom(tmp_path / "3", ARRAY + 1, [0, 10, 20, 30], PatientID="another")
    table = read_cohort(f"dicom:{tmp_path}").manifest
    assert sorted(table["patient_id"].value_counts()) == [1, 2]
    alone = read_cohort(f"dicom:{tmp_path / '3'}").manifest
    row = table[table["study_id"] == alone["study_id"][0]].iloc[0]
    assert (row["patient_id"], row["split"]) == (alone["patient_id"][0], alone["split"][0])


def test_phase_sensitive_images_are_preferred_and_signed(tmp_path):
    series = "1.2.3.4"
    write_dicom(tmp_path, ARRAY, [0, 10, 20, 30], series=series)
    kind = ["ORIGINAL", "PRIMARY", "PSIR"]
    write_dicom(
        tmp_path,
        ARRAY,
        [0, 10, 20, 30],
        series=series,
        ImageType=kind,
        RescaleSlope=2.0,
        RescaleIntercept=-300.0,
    )
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    assert study["contrast"] == "psir"
    assert np.allclose(study.pixels, 2.0 * ARRAY - 300)
    assert study.pixels.min() < 0


def test_unequal_gaps_warn_and_are_listed_by_check(tmp_path):
    write_dicom(tmp_path / "Mueller_Hans" / "LGE", ARRAY, [0, 10, 20, 40])
    with pytest.warns(
        SliceGapWarning, match=r"\[10.0, 10.0, 20.0\] mm; 10.00 mm is used"
    ) as caught:
        read_cohort(f"dicom:{tmp_path}")
    assert not any(
        "Mueller" in str(warning.message) for warning in caught
    )  # the pseudonym beside the name, in a log
    (fault,) = check_cohort(f"dicom:{tmp_path}")
    assert "unequal" in fault.problem and "all its slices" in fault.remedy
    assert "Mueller_Hans" in fault.where and fault.study_id in fault.where


def test_other_files_are_passed_over(tmp_path):
    write_dicom(tmp_path, ARRAY, [0, 10, 20, 30])
    (tmp_path / "DICOMDIR").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("hello")
    assert len(read_cohort(f"dicom:{tmp_path}")) == 1


@pytest.mark.parametrize("length", [140, 300, 450, 600, 800, 950])
@pytest.mark.parametrize("name", ["", "a.dcm", "a.IMA"])
def test_an_image_cut_off_within_its_header_is_a_fault(tmp_path, length, name):
    paths = write_dicom(tmp_path, ARRAY, [0, 10, 20, 30])
    cut = paths[3].with_name(name or paths[3].name)  # the last slice: no gap would tell
    content = paths[3].read_bytes()
    paths[3].unlink()
    cut.write_bytes(content[:length])
    (fault,) = check_cohort(f"dicom:{tmp_path}")
    assert fault.where == str(cut) and "cut off" in fault.problem and not fault.truth_only
    with pytest.raises(InputError, match="cut off"):
        read_cohort(f"dicom:{tmp_path}", images_only=True)


@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.22", "SR"),  # a report
        ("1.2.840.10008.5.1.4.1.1.11.1", "PR"),  # a presentation state
        ("1.3.12.2.1107.5.9.1", "MR"),  # what vendors export beside the images: Siemens,
        ("1.3.46.670589.11.0.0.12.2", "MR"),  # Philips,
        ("1.2.840.113619.4.27", "MR"),  # GE
    ],
)
@pytest.mark.parametrize("name", ["other", "other.dcm"])
def test_a_file_that_never_had_pixels_is_passed_over(tmp_path, kind, modality, name):
    write_dicom(tmp_path, ARRAY, [0, 10, 20, 30])
    (path,) = write_dicom(tmp_path / "b", ARRAY[..., :1], [0], SOPClassUID=kind, Modality=modality)
    data = pydicom.dcmread(path)
    del data.Rows, data.Columns, data.PixelData
    data.file_meta.MediaStorageSOPClassUID = kind
    data.save_as(path.with_name(name))
    path.unlink()
    assert check_cohort(f"dicom:{tmp_path}") == [] and len(read_cohort(f"dicom:{tmp_path}")) == 1


def test_a_file_without_permission_is_a_fault(tmp_path, monkeypatch):
    paths = write_dicom(tmp_path, ARRAY, [0, 10, 20, 30])
    read = pydicom.dcmread

    def denied(file, **options):
        if file == paths[3]:
            raise PermissionError(13, "Permission denied")
        return read(file, **options)

    monkeypatch.setattr(pydicom, "dcmread", denied)
    (fault,) = check_cohort(f"dicom:{tmp_path}")
    assert fault.where == str(paths[3]) and "PermissionError" in fault.problem


def test_no_warning_shows_a_value_of_the_header(tmp_path):
    uid = (
        "1.3.12.2.1107.5.2.19.0045.03.77665544"  # a zero in front: pydicom would warn, and show it
    )
    with pydicom.config.disable_value_validation():
        write_dicom(
            tmp_path,
            ARRAY,
            [0, 10, 20, 30],
            series=uid,
            StudyInstanceUID=uid + "\\1",
            FrameOfReferenceUID=uid,
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cohort = read_cohort(f"dicom:{tmp_path}")
    assert len(cohort) == 1 and not [
        str(warning.message) for warning in caught if "7766" in str(warning.message)
    ]
    assert not any("pydicom" in warning.filename for warning in caught)


SCAR, NONE = "LGE: subendocardial scar of the inferior wall.", "LGE: no late enhancement."


def export_of_two(root):
    """Two patients, of whom the first has two series of one exam."""
    write_dicom(root / "1" / "a", ARRAY, [0, 10, 20, 30], PatientID="P-017", AccessionNumber="A1")
    write_dicom(
        root / "1" / "b", ARRAY + 1, [0, 10, 20, 30], PatientID="P-017", AccessionNumber="A1"
    )
    write_dicom(root / "2", ARRAY + 2, [0, 10, 20, 30], PatientID="P-018", AccessionNumber="A2")


@pytest.mark.parametrize(
    ("key", "ids"), [("PatientID", ("P-017", "P-018")), ("AccessionNumber", ("A1", "A2"))]
)
def test_reports_are_joined_by_an_id_that_is_not_kept(tmp_path, key, ids):
    export_of_two(tmp_path)
    (tmp_path / "second.txt").write_text(NONE)
    (tmp_path / "reports.csv").write_text(f'{key},report\n{ids[0]},"{SCAR}"\n{ids[1]},second.txt\n')
    assert check_cohort(f"dicom:{tmp_path}") == []
    cohort = read_cohort(f"dicom:{tmp_path}")
    assert sorted(study["report"] for study in cohort.studies) == [NONE, SCAR, SCAR]
    assert sorted(cohort.manifest["scar"].astype(bool)) == [False, True, True]
    assert set(cohort.manifest["report_source"]) == {"clinical"}
    assert len({study["patient_id"] for study in cohort.studies if study["report"] == SCAR}) == 1
    stored = pickle.dumps(
        (list(list_entries(f"dicom:{tmp_path}")), [dict(study) for study in cohort.studies])
    )
    assert not any(name.encode() in stored for name in ids)
    assert not any(
        study["report"] for study in read_cohort(f"dicom:{tmp_path}", images_only=True).studies
    )


@pytest.mark.parametrize(
    ("table", "problems"),
    [
        ("PatientID,text\nP-017,x", ["column 'report' is missing"]),
        ("name,report\nP-017,x", ["0 of its columns say which"]),
        ("PatientID,AccessionNumber,report\nP-017,A1,x", ["2 of its columns say which"]),
        ("PatientID,report\nP-017,x\nP-018,", ["report is empty", "no row of reports.csv"]),
        ("PatientID,report\nP-017,x\nP-018,y\nP-019,z", ["no image has this PatientID"]),
        ("PatientID,report\nP-017,x\nP-018,y\nP-018,z", ["have a report already"]),
        ("PatientID,report,report_source\nP-017,x,\nP-018,,none", []),
        ("PatientID,report,report_sorce\nP-017,x,\nP-018,,none", ["unknown column 'report_sorce'"]),
        ("patient_id,report\nP-017,x\nP-018,y", ["unknown column 'patient_id'"]),
        ("PatientID,report,accession_number,Sex\nP-017,x,1,F\nP-018,y,2,M", []),
    ],
)
def test_faults_of_the_table_of_reports_name_rows_and_nobody(tmp_path, table, problems):
    export_of_two(tmp_path)
    (tmp_path / "reports.csv").write_text(table)
    faults = check_cohort(f"dicom:{tmp_path}")
    assert len(faults) == len(problems)
    for fault, problem in zip(faults, problems, strict=True):
        assert problem in fault.problem and fault.remedy and fault.truth_only
    assert "P-01" not in "".join(f"{fault.where} {fault.problem}" for fault in faults)
    if problems:
        with pytest.raises(InputError, match=problems[0]):
            read_cohort(f"dicom:{tmp_path}")
    assert (
        len(read_cohort(f"dicom:{tmp_path}", images_only=True)) == 3
    )  # a prediction needs no report


def test_the_table_of_reports_is_found_however_it_is_written_and_is_one(tmp_path):
    export_of_two(tmp_path)
    (tmp_path / "Reports.CSV").write_text(f"PatientID,report\nP-017,{SCAR}\nP-018,{NONE}\n")
    assert all(study["report"] for study in read_cohort(f"dicom:{tmp_path}").studies)
    if (tmp_path / "reports.csv").exists():
        pytest.skip("this file system does not tell small letters from capitals")
    (tmp_path / "reports.csv").write_text("PatientID,report\n")
    (fault,) = check_cohort(f"dicom:{tmp_path}")
    assert "a second table of reports" in fault.problem and fault.truth_only


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"Modality": "CT"}, "modality 'CT' is not MR"),
        ({"NumberOfFrames": 4}, "multi-frame"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"ImagePositionPatient": None}, "no usable ImagePositionPatient"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "no usable ImageOrientationPatient"),
        ({"PixelSpacing": [0, 0]}, "not positive"),
        ({"ImagePositionPatient": [0, 0, 0]}, "position of another"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "pixels cannot be read"),
    ],
)
def test_series_that_cannot_be_used(tmp_path, fields, problem):
    write_dicom(tmp_path, ARRAY, [0, 10, 20, 30], **fields)
    faults = check_cohort(f"dicom:{tmp_path}")
    assert len(faults) == 1 and problem in faults[0].problem and faults[0].remedy


def test_localizer_and_broken_file_are_faults(tmp_path):
    write_dicom(tmp_path / "a", ARRAY[..., :1], [0], series="1.2.3")
    write_dicom(
        tmp_path / "a",
        ARRAY[..., :1],
        [0],
        right=(1.0, 0.0, 0.0),
        down=(0.0, 0.0, -1.0),
        series="1.2.3",
    )
    (tmp_path / "cut.dcm").write_bytes(b"\0" * 128 + b"DIC")
    problems = [fault.problem for fault in check_cohort(f"dicom:{tmp_path}")]
    assert any("not parallel" in problem for problem in problems)
    assert any("not a readable DICOM" in problem for problem in problems)
