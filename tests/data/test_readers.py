"""SPECs, faults and their remedies, what a prediction may see, and where presence comes from."""

import numpy as np
import pytest
from cohort_files import patch_header, picture, ring, save, write_emidec, write_own, write_table
from command_line import lgekit

from lgekit.data import readers
from lgekit.data.readers import check_cohort, read_cohort
from lgekit.errors import InputError
from lgekit.reports.tables import cohort_summary, report_states
from lgekit.workbook import Session


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("emidek:data", "names no kind of cohort.*emidec"),
        ("mine.csv", "names no kind of cohort.*manifest:mine.csv"),
        ("emidec:", "no such folder"),
        ("acdc:nowhere", "no such folder"),
        ("manifest:nowhere.csv", "the table cannot be read .No such file"),
        ("phantom:studis=3", "studis.*studies"),
        ("phantom:studies=many", "option studies: found 'many'"),
        ("phantom:studies=0", "greater than or equal to 1"),
        ("phantom:studies=2,studies=3", "given twice"),
    ],
)
def test_a_wrong_spec_is_one_clear_error(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        read_cohort(spec)
    try:
        faults = check_cohort(spec)  # a missing path is a fault; a wrong kind is an error
    except InputError as error:
        faults = [error]
    assert [str(fault) for fault in faults] == [str(caught.value)]


def test_a_phantom_spec_passes_its_options_on():
    assert len(read_cohort("phantom:studies=3,seed=4")) == 3
    alone = read_cohort("phantom:studies=3,seed=4", images_only=True)
    assert alone.studies[0].label_map is None and not alone.manifest["report"].any()
    assert alone.manifest["scar"].isna().all()


def test_images_only_opens_neither_masks_nor_reports_nor_landmarks(tmp_path):
    spec = f"emidec:{write_emidec(tmp_path)}"
    before = read_cohort(spec, images_only=True)
    for mask in tmp_path.glob("*/Contours/*"):
        mask.write_bytes(b"not a NIfTI file")
    (tmp_path / "rvip.csv").write_text("case,nonsense\nCase_N001,1\n")
    with pytest.raises(InputError):
        read_cohort(spec)
    after = read_cohort(spec, images_only=True)
    assert after.fingerprint == before.fingerprint
    for study in after.studies:
        assert "labels" not in study
        assert study["report"] == "" and study["findings"] is None and study["landmarks"] is None


def image(change, **options):
    sound = picture(ring(scar=False)).astype(np.float32)
    return lambda root, rows: save(root / "s1.nii", change(sound.copy()), **options)


def mask(change, **options):
    sound = ring(scar=False).astype(np.float32)
    return lambda root, rows: save(root / "s1_mask.nii", change(sound.copy()), **options)


def voxel(value):
    def change(array):
        array[12, 14, 1] = value
        return array

    return change


def field(name, value):
    return lambda root, rows: patch_header(root / "s1.nii", name, value)


def pixdim(*values):
    return field("pixdim", [1, *values, 1, 0, 0, 0])


def many_slices(root, rows):
    for change in (image, mask):
        change(lambda array: np.repeat(array, 75, 2))(root, rows)


def content(name, change):
    return lambda root, rows: (root / name).write_bytes(change((root / name).read_bytes()))


def missing(name):
    return lambda root, rows: (root / name).unlink()


def row(**cells):
    return lambda root, rows: write_table(root, [rows[0], rows[1] | cells, *rows[2:]])


def rename(old, new):
    return lambda root, rows: write_table(root, [one | {new: one.pop(old)} for one in rows])


UPPER_WALL = '[{"walls": ["upper"], "levels": [], "depth": "mid-wall"}]'
SPOILED = {
    "image missing": (missing("s1.nii"), "no such file"),
    "image cut short": (content("s1.nii", lambda data: data[:2000]), "cannot be read as NIfTI"),
    "image is text": (content("s1.nii", lambda _: b"text " * 99), "cannot be read as NIfTI"),
    "image 4-D": (image(lambda a: np.stack([a, a], -1)), "4 dimensions (24, 28, 4, 2)"),
    "image NaN": (image(voxel(np.nan)), "voxels that are NaN"),
    "image beyond float32": (image(lambda a: voxel(1e300)(a.astype(float))), "infinite or beyond"),
    "image scaled by 1e38": (field("scl_slope", 1e38), "voxels that are NaN, infinite or beyond"),
    "image constant in float32": (image(lambda a: 3e9 + (a > 99).astype(float)), "every voxel is"),
    "image of 300 slices": (many_slices, "has 300 slices"),
    "image that claims 2 GB": (field("dim", [3, 1000, 1000, 400, 1, 1, 1, 1]), "claims 1000 ×"),
    "image after 3 GB of nothing": (field("vox_offset", 3e9), "after 3000000000 bytes"),
    "image constant": (image(lambda a: a * 0 + 7), "every voxel is 7"),
    "image complex": (image(lambda a: a.astype(np.complex64)), "complex64"),
    "spacing zero": (pixdim(1.5, 0, 10), "absurd"),
    "spacing NaN": (pixdim(1.5, np.nan, 10), "absurd"),
    "spacing absurdly large": (image(lambda a: a, spacing=(1.5, 1.25, 1e3)), "absurd"),
    "mask missing": (missing("s1_mask.nii"), "no such file"),
    "mask of another shape": (mask(lambda a: a[:-1]), "shape (23, 28, 4) on an image of shape (24"),
    "mask unknown code": (mask(voxel(9)), "unknown label code 9"),
    "mask between codes": (mask(voxel(1.5)), "unknown label code 1.5"),
    "mask NaN": (mask(voxel(np.nan)), "unknown label code nan"),
    "mask empty": (mask(lambda a: a * 0), "the mask is empty"),
    "mask turned": (mask(lambda a: a, affine=np.diag([1.5, -1.25, 10, 1])), "mask orientation"),
    "report empty": (row(report="  "), "report is empty"),
    "report file missing": (row(report="nowhere.txt"), "report cannot be read"),
    "table not UTF-8": (row(report="\udcfc"), "not UTF-8"),
    "study id twice": (row(study_id="s0"), "2 studies have this id"),
    "study id a path": (row(study_id="../s1"), "cannot name a file"),
    "image cell empty": (row(image=""), "image is empty"),
    "patient in two splits": (row(patient_id="s0"), "2 splits: train, validation"),
    "unknown split": (row(split="hold-out"), "unknown split 'hold-out'"),
    "unknown report source": (row(report_source="radiologist"), "unknown report_source"),
    "findings not JSON": (row(findings="{inferior"), "not JSON"),
    "findings of an unknown wall": (row(findings=UPPER_WALL), "upper"),
    "angle not a number": (row(anterior_rvip_deg="left"), "are no landmarks"),
    "confidence above 1": (row(anterior_rvip_deg="9", rvip_confidence="66"), "are no landmarks"),
    "column missing": (rename("image", "picture"), "column 'image' is missing"),
    "column twice": (rename("split", "report "), "two columns have the same name"),
    "table empty": (content("manifest.csv", lambda _: b""), "column 'study_id' is missing"),
    "table without rows": (content("manifest.csv", lambda data: data.split(b"\n")[0]), "no rows"),
    "table not closed": (content("manifest.csv", lambda data: data + b's4,"s4'), "not a readable"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_bad_input_is_found_by_check_and_by_reading(tmp_path, kind):
    spoil, words = SPOILED[kind]
    rows = write_own(tmp_path)
    spec = f"manifest:{tmp_path / 'manifest.csv'}"
    spoil(tmp_path, rows)
    (fault,) = check_cohort(spec)
    assert words in fault.problem and fault.where and len(fault.remedy) > 10
    with pytest.raises(InputError) as caught:
        read_cohort(spec)
    assert str(caught.value) == str(fault) and "\n" not in str(fault)
    if fault.truth_only:
        assert len(read_cohort(spec, images_only=True)) == 3
    if fault.study_id:  # what check finds, predict leaves out, and nothing else
        faults = {}
        predicted = [study["study_id"] for study in readers.stream_images(spec, faults=faults)]
        assert len(predicted) + len(faults) >= 2 and bool(faults) is not fault.truth_only


def test_the_tables_of_a_cohort_need_no_pixels(tmp_path):
    write_own(tmp_path)
    whole, tables = (
        read_cohort(f"manifest:{tmp_path / 'manifest.csv'}", pixels=pixels)
        for pixels in (True, False)
    )
    assert cohort_summary(tables) == cohort_summary(whole) and tables.studies[0].pixels.size == 1
    assert report_states(tables).equals(report_states(whole))
    assert tables.manifest.equals(whole.manifest)
    same = ("report", "landmarks", "findings", "split", "patient_id")
    for one, other in zip(whole.studies, tables.studies, strict=True):
        assert all(repr(one[name]) == repr(other[name]) for name in same)


RVIP = "case,anterior_rvip_deg,inferior_rvip_deg,confidence\nCase_P002,"


@pytest.mark.parametrize(
    ("lost", "rvip", "words"),
    [
        ("Images/Case_P002.nii.gz", f"{RVIP}2,1,low", "a mask without its image"),
        ("", "case,angle\nCase_P002,3\n", "'anterior_rvip_deg' is missing"),
        ("", f"{RVIP}x,1,high", "are no landmarks"),
        ("", f"{RVIP}2,1,sure", "are no landmarks"),
    ],
)
def test_a_malformed_emidec_folder(tmp_path, lost, rvip, words):
    write_emidec(tmp_path)
    (tmp_path / "rvip.csv").write_text(rvip)
    if lost:
        (tmp_path / "Case_P002" / lost).unlink()
    (fault,) = check_cohort(f"emidec:{tmp_path}")
    assert words in fault.problem and fault.remedy


def test_check_lists_every_fault(tmp_path):
    rows = write_own(tmp_path)
    assert check_cohort(f"manifest:{tmp_path / 'manifest.csv'}") == []
    (tmp_path / "s0.nii").unlink()
    save(tmp_path / "s1.nii", picture(ring()), (500.0, 1.0, 8.0))
    for name in ("s0", "s1"):
        save(tmp_path / f"{name}_mask.nii", ring()[:-4] + 90)
    rows[2] |= {"report": "nowhere.txt", "split": "later"}
    faults = check_cohort(f"manifest:{write_table(tmp_path, rows)}")
    assert sorted(fault.study_id for fault in faults) == ["s0", "s1", "s2", "s2"]


@pytest.mark.parametrize("kind", sorted(readers.LAYOUTS))
def test_the_error_for_a_folder_without_studies_says_what_is_expected(tmp_path, kind):
    (fault,) = check_cohort(f"{kind}:{tmp_path}")
    assert "no study found" in fault.problem and readers.LAYOUTS[kind]["expected"] in fault.remedy


def test_one_image_under_two_patients_is_listed_and_kept_in_one_split(tmp_path):
    rows = [one | {"split": ""} for one in write_own(tmp_path, studies=6)]
    (tmp_path / "s4.nii").write_bytes((tmp_path / "s1.nii").read_bytes())
    rows[5] |= {"patient_id": "s4"}  # another study of the patient
    spec = f"manifest:{write_table(tmp_path, rows)}"
    (fault,) = check_cohort(spec)
    assert fault.study_id == "s4" and "the same image as s1" in fault.problem
    with pytest.warns(UserWarning, match="s4: the same image as s1"):
        studies = read_cohort(spec).studies
    assert [study["patient_id"] for study in studies] == ["s0", "s1", "s2", "s3", "s1", "s1"]
    assert len({studies[number]["split"] for number in (1, 4, 5)}) == 1
    rows[4]["patient_id"] = rows[5]["patient_id"] = "s1"
    assert check_cohort(f"manifest:{write_table(tmp_path, rows)}") == []  # the remedy helps


def test_a_notebook_shows_no_report_that_may_identify_a_person(tmp_path):
    rows = write_own(tmp_path)
    session = Session(f"manifest:{tmp_path / 'manifest.csv'}", "smoke", 0, tmp_path)
    assert len(session.cohort()) == 3
    rows[1]["report"] = "Patient name: Jane Doe, seen on 12/03/2021. No late enhancement."
    write_table(tmp_path, rows)
    words = "s1, report: the report may identify a person: date, name"
    with pytest.raises(InputError, match=words) as caught:
        session.cohort()
    assert "Doe" not in str(caught.value)
    assert len(session.cohort(show_identifiers=True)) == 3


ILL, WELL = "Subendocardial late enhancement of the inferior wall.", "No late enhancement."


def outlined(root, reports, scar=()):
    """A cohort whose masks have no scar, except those of the studies with these numbers."""
    rows = write_own(root, len(reports))
    for number, (one, report) in enumerate(zip(rows, reports, strict=True)):
        save(root / one["labels"], ring(scar=number in scar))
        one |= {"report": report, "split": "", "report_source": "" if report else "none"}
    return f"manifest:{write_table(root, rows)}"


def test_reports_overrule_masks_that_only_outline_the_heart(tmp_path):
    spec = outlined(tmp_path, [ILL, WELL, ILL, WELL, "LVEF 60 %.", ""])
    cohort = read_cohort(spec)
    assert cohort.manifest["scar"].tolist()[:4] == [True, False, True, False]
    assert cohort.manifest["scar"].isna().tolist()[4:] == [True, True]  # silence is not "none"
    assert cohort.studies[0]["findings"].walls == {"inferior"}
    assert all(study.label_map is not None for study in cohort.studies)
    summary = "scar in 2, none in 2; masks of 6, none with scar outlined"
    assert summary in lgekit("check", spec).stdout
    table = tmp_path / "manifest.csv"
    table.write_text(table.read_text().replace(",none", ",masks"))
    study = read_cohort(spec).studies[5]  # no report is written from an outline
    assert study["report"] == "" and study["findings"] is None


@pytest.mark.parametrize(
    ("reports", "scar", "found"),
    [([ILL, WELL, ILL], {1}, [False, True, False]), (["Kein LGE.", WELL], (), [False, False])],
)
def test_otherwise_presence_comes_from_the_masks(tmp_path, reports, scar, found):
    spec = outlined(tmp_path, reports, scar)
    findings = [study["findings"] for study in read_cohort(spec).studies]
    assert [one.present if one else None for one in findings] == found
