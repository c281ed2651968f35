"""DICOM series that the tests write: order, grid, contrast, faults, and no trace of the person."""

import pickle
import re
import warnings

import numpy as np
import pydicom
import pytest
from cohort_files import SECRETS, picture, ring, write_dicom
from command_line import lgekit

from lgekit.data import readers
from lgekit.data.readers import check_cohort, list_studies, read_cohort
from lgekit.errors import InputError

ARRAY = picture(ring())
HEIGHTS = [0, 10, 20, 30]


def test_slices_are_ordered_along_the_normal_and_the_grid_is_right(tmp_path):
    order = [2, 0, 3, 1]  # file names, instance numbers and SliceLocation all say something else
    write_dicom(tmp_path / "a" / "b", ARRAY[:, :, order], [10.0 * index for index in order])
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    assert np.array_equal(study.pixels, ARRAY)
    assert np.allclose(study.spacing_mm, (1.5, 1.25, 10.0))  # PixelSpacing is (rows, columns)
    # Position of voxel (3, 2, 1) by hand: DICOM (left, back, up) → NIfTI (right, front, up).
    right, down = np.array([0.0, 0.8, -0.6]), np.array([1.0, 0.0, 0.0])
    offset = 3 * 1.5 * right + 2 * 1.25 * down + 10 * np.cross(right, down)
    x, y, z = np.array([5.0, -3, 2]) + offset
    assert np.allclose(study["image"].affine @ [3, 2, 1, 1], [-x, -y, z, 1])


def test_nothing_that_identifies_a_person_is_kept(tmp_path):
    write_dicom(tmp_path, ARRAY, HEIGHTS, SeriesInstanceUID="1.2.826.0.1.99887766")
    cohort = read_cohort(f"dicom:{tmp_path}")
    kept = repr(cohort.manifest.to_dict()) + repr(dict(cohort.studies[0]))
    entries = list_studies(f"dicom:{tmp_path}")
    stored = pickle.dumps((entries, [dict(study) for study in cohort.studies]))
    for secret in [*SECRETS.values(), "99887766", "Doe", "Jane"]:
        assert secret not in kept and secret.encode() not in stored
    assert cohort.studies[0]["study_id"].startswith("series_")


def test_no_warning_shows_a_value_of_the_header(tmp_path):
    uid = "1.3.12.2.1107.5.2.19.0045.03.77665544"  # pydicom would warn about the leading zero
    with pydicom.config.disable_value_validation():
        write_dicom(tmp_path, ARRAY, HEIGHTS, SeriesInstanceUID=uid, StudyInstanceUID=uid + "\\1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(read_cohort(f"dicom:{tmp_path}")) == 1
    assert not any("7766" in str(one.message) or "pydicom" in one.filename for one in caught)


def test_two_series_of_one_patient_share_an_id_that_does_not_change(tmp_path):
    write_dicom(tmp_path / "1", ARRAY, HEIGHTS)
    write_dicom(tmp_path / "2", ARRAY, HEIGHTS)
    write_dicom(tmp_path / "3", ARRAY + 1, HEIGHTS, PatientID="another")
    table = read_cohort(f"dicom:{tmp_path}").manifest
    assert sorted(table["patient_id"].value_counts()) == [1, 2]
    alone = read_cohort(f"dicom:{tmp_path / '3'}").manifest
    row = table[table["study_id"] == alone["study_id"][0]].iloc[0]
    assert (row["patient_id"], row["split"]) == (alone["patient_id"][0], alone["split"][0])


def test_phase_sensitive_images_are_preferred_and_signed(tmp_path):
    rescaled = {"RescaleSlope": 2.0, "RescaleIntercept": -300.0}
    write_dicom(tmp_path, ARRAY, HEIGHTS, SeriesInstanceUID="1.2.3.4")
    kind = ["ORIGINAL", "PRIMARY", "PSIR"]
    write_dicom(tmp_path, ARRAY, HEIGHTS, SeriesInstanceUID="1.2.3.4", ImageType=kind, **rescaled)
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    assert study.pixels.dtype == np.float32
    assert np.allclose(study.pixels, 2.0 * ARRAY - 300) and study.pixels.min() < 0


def test_unequal_gaps_warn_and_are_listed_by_check(tmp_path):
    write_dicom(tmp_path / "Mueller_Hans" / "LGE", ARRAY, [0, 10, 20, 40])
    words = r"\[10.0, 10.0, 20.0\] mm; 10.00 mm is used"
    with pytest.warns(UserWarning, match=words) as caught:
        read_cohort(f"dicom:{tmp_path}")
    assert not any("Mueller" in str(warning.message) for warning in caught)  # may be a person
    (fault,) = check_cohort(f"dicom:{tmp_path}")
    assert "unequal" in fault.problem and "all its slices" in fault.remedy
    assert "Mueller_Hans" in fault.where and fault.study_id in fault.where


@pytest.mark.parametrize(("length", "name"), [(140, ""), (300, "a.dcm"), (600, "a.IMA"), (900, "")])
def test_an_image_cut_off_within_its_header_is_a_fault(tmp_path, length, name):
    cut = write_dicom(tmp_path, ARRAY, HEIGHTS)[3]  # the last slice: no gap would tell
    content = cut.read_bytes()[:length]
    cut.unlink()
    cut.with_name(name or cut.name).write_bytes(content)
    with pytest.raises(InputError, match="cut off"):
        read_cohort(f"dicom:{tmp_path}", images_only=True)


def test_files_without_pixels_of_their_own_are_ignored(tmp_path):
    write_dicom(tmp_path, ARRAY, HEIGHTS)
    (tmp_path / "DICOMDIR").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("hello")
    for kind in ("1.2.840.10008.5.1.4.1.1.88.22", "1.3.12.2.1107.5.9.1"):  # a report, a vendor's
        (path,) = write_dicom(tmp_path / kind, ARRAY[..., :1], [0], SOPClassUID=kind)
        data = pydicom.dcmread(path)
        del data.Rows, data.Columns, data.PixelData
        data.file_meta.MediaStorageSOPClassUID = kind
        data.save_as(path)
    assert check_cohort(f"dicom:{tmp_path}") == [] and len(read_cohort(f"dicom:{tmp_path}")) == 1


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned into its pixels"),
        ({"Modality": "CT"}, "modality 'CT' is not MR"),
        ({"NumberOfFrames": 4}, "multi-frame"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"ImagePositionPatient": None}, "no usable ImagePositionPatient"),
        ({"PixelSpacing": [0, 0]}, "absurd"),
        ({"ImagePositionPatient": [0, 0, 0]}, "position of another"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "pixels cannot be read"),
    ],
)
def test_a_series_that_cannot_be_used_is_a_fault(tmp_path, fields, problem):
    write_dicom(tmp_path, ARRAY, HEIGHTS, **fields)
    (fault,) = check_cohort(f"dicom:{tmp_path}")
    assert problem in fault.problem and fault.remedy
    assert not any(secret in str(fault) for secret in SECRETS.values())


def test_a_localizer_and_a_broken_file_are_faults(tmp_path):
    one = {"array": ARRAY[..., :1], "positions": [0], "SeriesInstanceUID": "1.2.3"}
    write_dicom(tmp_path / "a", **one)
    write_dicom(tmp_path / "a", **one, right=(1.0, 0.0, 0.0), down=(0.0, 0.0, -1.0))
    (tmp_path / "cut.dcm").write_bytes(b"\0" * 128 + b"DIC")
    broken, localizer = (fault.problem for fault in check_cohort(f"dicom:{tmp_path}"))
    assert "not a readable DICOM" in broken and "not parallel" in localizer


SCAR, NONE = "LGE: subendocardial scar of the inferior wall.", "LGE: no late enhancement."


@pytest.fixture
def export(tmp_path):
    """Two patients."""
    for number in (7, 8):
        ids = {"PatientID": f"P-01{number}", "AccessionNumber": f"A{number}"}
        write_dicom(tmp_path / str(number), ARRAY + number, HEIGHTS, **ids)
    return tmp_path


@pytest.mark.parametrize(
    ("key", "ids"), [("PatientID", ["P-017", "P-018"]), ("AccessionNumber", ["A7", "A8"])]
)
def test_reports_are_joined_by_an_id_that_is_not_kept(export, key, ids):
    spec = f"dicom:{export}"
    (export / "second.txt").write_text(NONE)
    (export / "Reports.CSV").write_text(f'{key},report\n{ids[0]},"{SCAR}"\n{ids[1]},second.txt\n')
    assert check_cohort(spec) == []
    cohort = read_cohort(spec)
    assert sorted(cohort.manifest["report"]) == [NONE, SCAR]
    assert sorted(cohort.manifest["scar"].astype(bool)) == [False, True]
    assert set(cohort.manifest["report_source"]) == {"clinical"}
    assert readers.count_files(spec).startswith("10 files seen = 10 read + 0 left out")
    stored = pickle.dumps((list_studies(spec), [dict(study) for study in cohort.studies]))
    assert not any(name.encode() in stored for name in ids)
    assert not read_cohort(spec, images_only=True).manifest["report"].any()


@pytest.mark.parametrize(
    ("table", "problems"),
    [
        ("PatientID,text\nP-017,x", ["column 'report' is missing"]),
        ("name,report\nP-017,x", ["0 of its columns say which"]),
        ("PatientID,AccessionNumber,report\nP-017,A7,x", ["2 of its columns say which"]),
        ("PatientID,report\nP-017,x\nP-018,", ["report is empty"]),
        ("PatientID,report\nP-017,x", ["no row of reports.csv"]),
        ("PatientID,report\nP-017,x\nP-018,y\nP-019,z", ["0 series without report have this"]),
        ("PatientID,report\nP-017,x\nP-018,y\nP-018,z", ["0 series without report have this"]),
        ("PatientID,report\nP-017,x\nP-018,N/A", ["report is empty"]),
        ("PatientID,report,report_sorce\nP-017,x,\nP-018,,none", ["report is empty"]),
        ("PatientID,report,accession_number,report_source\nP-017,x,1,\nP-018,,2,none", []),
    ],
)
def test_faults_of_the_table_of_reports_name_rows_and_nobody(export, table, problems):
    (export / "reports.csv").write_text(table)
    faults = check_cohort(f"dicom:{export}")
    assert len(faults) == len(problems)
    for fault, problem in zip(faults, problems, strict=True):
        assert problem in fault.problem and fault.remedy and fault.truth_only
        assert "P-01" not in f"{fault.where} {fault.problem}"
    if problems:
        with pytest.raises(InputError, match=problems[0]):
            read_cohort(f"dicom:{export}")
    assert len(read_cohort(f"dicom:{export}", images_only=True)) == 2


def account(tmp_path) -> str:
    return lgekit("check", f"dicom:{tmp_path}").stdout.splitlines()[-1]


@pytest.mark.parametrize("suffix", ["", ".dcm"])
@pytest.mark.parametrize("syntax", [(True, True), (False, True), (False, False)])
def test_files_without_preamble_and_meta_header_are_read(tmp_path, suffix, syntax):
    for path in write_dicom(tmp_path, ARRAY, HEIGHTS):
        data = pydicom.dcmread(path)
        if not syntax[1]:
            data.PixelData = data.pixel_array.astype(">u2").tobytes()
        plain = pydicom.Dataset({tag: data[tag] for tag in data.keys()})
        path.unlink()
        how = dict(zip(("implicit_vr", "little_endian"), syntax, strict=True))
        pydicom.dcmwrite(path.with_name(path.name + suffix), plain, **how)
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    assert np.array_equal(study.pixels, ARRAY)
    assert account(tmp_path).startswith("4 files seen = 4 read + 0 left out")


def test_no_file_vanishes_without_a_reason(tmp_path):
    paths = write_dicom(tmp_path / "a", ARRAY, HEIGHTS)
    for name in ("a/._IM0000", "__MACOSX/a/._IM0001", ".DS_Store", "a/Thumbs.db", "DICOMDIR"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(paths[0].read_bytes()[:600])
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.4 " + bytes(range(256)) * 9)
    (tmp_path / "a" / "IM0000 (1).dcm").write_bytes(paths[0].read_bytes())
    (tmp_path / "linked").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert check_cohort(f"dicom:{tmp_path}") == []
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    assert np.array_equal(study.pixels, ARRAY)
    counts = re.findall(r"\d+", account(tmp_path))
    seen, read, left, *reasons, faulty = map(int, counts)
    assert seen == read + left and left == sum(reasons) and (read, faulty) == (4, 0)
    (tmp_path / "cut.dcm").write_bytes(b"\0" * 128 + b"DIC")
    assert account(tmp_path).endswith("+ 1 with a fault")


@pytest.mark.parametrize("phase_sensitive", [False, True])
def test_one_series_uid_for_each_slice_is_one_stack(tmp_path, phase_sensitive):
    exam = {"StudyInstanceUID": "1.2.3"}
    for number, height in enumerate(HEIGHTS):
        own = {"array": ARRAY[..., [number]], "positions": [height]} | exam
        write_dicom(tmp_path, **own, SeriesInstanceUID=f"1.2.3.{number}")
        if phase_sensitive:
            own["array"] = own["array"] + 7
            kind = {"ImageType": ["ORIGINAL", "PRIMARY", "PSIR"]}
            write_dicom(tmp_path, **own, **kind, SeriesInstanceUID=f"1.2.4.{number}")
    right, down = (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)
    write_dicom(tmp_path, ARRAY[..., :1], [0], right=right, down=down, **exam)  # a long axis
    write_dicom(tmp_path, ARRAY[..., :1], [0], FlipAngle=70, **exam)  # another acquisition
    stack = max(read_cohort(f"dicom:{tmp_path}").studies, key=lambda study: study.pixels.size)
    assert len(read_cohort(f"dicom:{tmp_path}")) == 3
    assert np.array_equal(stack.pixels, ARRAY + 7 * phase_sensitive)
    table = f"SeriesInstanceUID,report\n1.2.{3 + phase_sensitive}.2,{NONE}\n"
    (tmp_path / "reports.csv").write_text(table)
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    assert study["report"] and study.pixels.shape == ARRAY.shape
    assert "2 other series" in account(tmp_path)


def test_slices_of_two_patients_under_one_series_uid_are_not_mixed(tmp_path):
    write_dicom(tmp_path, ARRAY, HEIGHTS, SeriesInstanceUID="1.2", PatientID="a")
    write_dicom(tmp_path, ARRAY, [5, 15, 25, 35], SeriesInstanceUID="1.2", PatientID="b")
    assert "2 studies have this id" in [one.problem for one in check_cohort(f"dicom:{tmp_path}")]


def made(fields, data=None):
    """A data set with these fields."""
    data = pydicom.Dataset() if data is None else data
    for name, value in fields.items():
        setattr(data, name, value)
    return data


def slopes(number, slope, intercept):
    return {slope: 2.0 + number, intercept: -30.0 * number}


RESCALE = ("RescaleSlope", "RescaleIntercept")
REAL = ("RealWorldValueSlope", "RealWorldValueIntercept")


def lut(number):
    return np.arange(number, 300 + number).astype("<u2").tobytes()


LUT = {"LUTDescriptor": [300, 0, 16], "ModalityLUTType": "US"}
# What the header of a slice says, and what its pixels then mean.
SCALES = {
    "slope": (lambda n: slopes(n, *RESCALE), lambda pixels, n: pixels * (2.0 + n) - 30 * n),
    "real world": (
        lambda n: {"RealWorldValueMappingSequence": [made(slopes(n, *REAL))]},
        lambda pixels, n: pixels * (2.0 + n) - 30 * n,
    ),
    "lookup": (
        lambda n: {"ModalityLUTSequence": [made(LUT | {"LUTData": lut(n)})]},
        lambda pixels, n: pixels + n,
    ),
    "slope alone": (lambda n: {"RescaleSlope": 3}, lambda pixels, n: pixels * 3),
    "empty slope": (lambda n: dict.fromkeys(RESCALE), lambda pixels, n: pixels),
    "Philips": (lambda n: {"RescaleSlope": 4.0 + n}, lambda pixels, n: pixels * 2.0 * (n + 1)),
}


@pytest.mark.parametrize("kind", SCALES)
def test_pixels_are_read_on_the_scale_of_the_header(tmp_path, kind):
    fields, expected = SCALES[kind]
    for number, path in enumerate(write_dicom(tmp_path, ARRAY, HEIGHTS)):
        data = made(fields(number), pydicom.dcmread(path))
        if kind == "Philips":
            block = data.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
            block.add_new(0x0E, "FL", 0.5 / (number + 1))
        data.save_as(path)
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    for number in range(4):
        assert np.allclose(study.pixels[..., number], expected(ARRAY[..., number], number))


def test_inverted_images_are_turned_back(tmp_path):
    inverse = {"PhotometricInterpretation": "MONOCHROME1"}
    paths = write_dicom(tmp_path, 4095 - ARRAY, HEIGHTS, **inverse)
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    assert np.ptp(study.pixels - ARRAY) == 0  # scar is brighter than muscle again
    made({"PhotometricInterpretation": "MONOCHROME2"}, pydicom.dcmread(paths[0])).save_as(paths[0])
    (fault,) = check_cohort(f"dicom:{tmp_path}")
    assert "MONOCHROME1" in fault.problem


@pytest.mark.parametrize("thickness", [0.8, 1.3, 1.5, 8.0])
def test_slices_of_a_series_are_its_slices_however_thin(tmp_path, thickness):
    heights = np.arange(4) * thickness
    write_dicom(tmp_path, ARRAY, heights, SliceThickness=thickness)
    assert np.array_equal(read_cohort(f"dicom:{tmp_path}").studies[0].pixels, ARRAY)


@pytest.mark.parametrize("apart", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("thickness", [8.0, None])
def test_a_stack_acquired_twice_is_named(tmp_path, apart, thickness):
    heights = [*HEIGHTS, *(height + apart for height in HEIGHTS)]
    twice = np.concatenate([ARRAY, ARRAY], axis=2)
    write_dicom(tmp_path, twice, heights, SliceThickness=thickness)
    (fault,) = check_cohort(f"dicom:{tmp_path}")
    assert "acquired twice" in fault.problem or apart / 10 > 0.25 and thickness is None


def test_evenly_overlapping_slices_are_a_warning_unless_3d(tmp_path):
    for kind in ("2D", "3D"):  # acquired twice at half the gap, or one slab interpolated
        write_dicom(tmp_path / kind, ARRAY, [0, 5, 10, 15], MRAcquisitionType=kind)
        assert ("twice" in str(check_cohort(f"dicom:{tmp_path / kind}"))) == (kind == "2D")


def test_images_too_large_for_memory_are_refused_by_their_header(tmp_path):
    for path in write_dicom(tmp_path / "large", ARRAY, HEIGHTS):
        made({"Rows": 30000, "Columns": 30000}, pydicom.dcmread(path)).save_as(path)
    bomb = write_dicom(tmp_path / "bomb", ARRAY[..., :1], [0])[0]
    data = made({"PixelData": bytes(10**7)}, pydicom.dcmread(bomb))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(bomb)
    problems = sorted(one.problem for one in check_cohort(f"dicom:{tmp_path}"))
    assert [problem[:16] for problem in problems] == ["claims 3600 mill", "is a deflated fi"]


def test_which_series_of_an_exam_is_lge_is_asked(tmp_path):
    for number in range(3):
        ids = {"PatientID": "P-1", "StudyInstanceUID": "1.9", "SeriesInstanceUID": f"1.9.{number}"}
        write_dicom(tmp_path / str(number), ARRAY + number, HEIGHTS, **ids)
    (tmp_path / "reports.csv").write_text(f"PatientID,report\nP-1,{SCAR}\n")
    (fault,) = (one for one in check_cohort(f"dicom:{tmp_path}") if one.truth_only)
    assert "3 series without report" in fault.problem and "SeriesInstanceUID" in fault.remedy
    (tmp_path / "reports.csv").write_text(f"SeriesInstanceUID,report\n1.9.1,{SCAR}\n")
    (study,) = read_cohort(f"dicom:{tmp_path}").studies
    assert study["report"] == SCAR and np.array_equal(study.pixels, ARRAY + 1)
    assert "8 other series of an exam with LGE" in account(tmp_path)


@pytest.mark.parametrize("exams", [3, 6])
def test_all_exams_under_one_patient_id_are_named(tmp_path, exams):
    for number in range(exams):
        write_dicom(tmp_path, ARRAY + number, HEIGHTS, PatientID="ANONYMOUS")
    (fault,) = check_cohort(f"dicom:{tmp_path}")
    assert f"{exams} of {exams} studies are of this patient" in fault.problem
    with pytest.warns(UserWarning, match="studies are of this patient"):
        assert len(read_cohort(f"dicom:{tmp_path}")) == exams
