"""SPECs, what a prediction may see, and `check`: more than 40 kinds of malformed input, each caught with a remedy."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cohort_files import patch_header, picture, ring, save, write_emidec, write_own, write_table

from lgekit.data import readers
from lgekit.data import readers as specs
from lgekit.data.readers import check_cohort, iterate_studies, pretraining_specs, read_cohort
from lgekit.errors import InputError
from lgekit.workbook import Session


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("emidek:data", "names no kind of cohort.*emidec"),
        ("data/emidec", "names no kind of cohort"),
        ("", "names no kind of cohort"),
        ("emidec:", "path is empty"),
        ("acdc:nowhere", "no such folder"),
        ("manifest:nowhere.csv", "no such file"),
        ("phantom:studis=3", "studis=3.*studies"),
        ("phantom:studies=many", "studies=many is not of type int"),
        ("phantom:studies=0", "at least one"),
        ("phantom:studies=2,studies=3", "given twice"),
        ("phantom:studies", "name=value"),
    ],
)
def test_wrong_spec_is_one_clear_error(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        read_cohort(spec)
    assert caught.value.remedy
    try:
        faults = check_cohort(
            spec
        )  # a path that is not there is a fault of the cohort, a wrong kind is the caller's
    except InputError as error:
        assert str(error) == str(caught.value)
    else:
        assert [str(fault.error()) for fault in faults] == [str(caught.value)]


def test_specs_are_taken_apart_without_the_readers():
    assert set(specs.KINDS) == {"phantom", *readers.READERS}
    mine = ["manifest:Meine Fälle/x.csv", "acdc:data/acdc", "phantom:studies=3"]
    for asked in (mine, mine[:1], mine[::-1]):
        assert (
            specs.split_specs("  ".join(asked) + " ")
            == asked
            == pretraining_specs("emidec:e", " ".join(asked))
        )
    assert specs.split_specs("acdc:a\nmnms:My data: new/mnms") == [
        "acdc:a",
        "mnms:My data: new/mnms",
    ]
    assert pretraining_specs("emidec:e", "none") == []


def test_phantom_spec_passes_its_options_on():
    cohort = read_cohort("phantom:studies=3,seed=4")
    assert len(cohort) == 3
    assert cohort.fingerprint == read_cohort("phantom:seed=4,studies=3").fingerprint
    alone = read_cohort("phantom:studies=3,seed=4", images_only=True)
    assert alone.studies[0].label_map is None and not alone.manifest["report"].any()
    assert alone.manifest["scar"].isna().all()
    assert [s["study_id"] for s in iterate_studies("phantom:studies=3,seed=4")] == list(
        cohort.manifest["study_id"]
    )


def test_images_only_opens_neither_masks_nor_reports_nor_landmarks(tmp_path):
    root = write_emidec(tmp_path)
    spec = f"emidec:{root}"
    before = read_cohort(spec, images_only=True)
    for mask in root.glob("*/Contours/*"):
        mask.write_bytes(b"not a NIfTI file")
    (root / "rvip.csv").write_text("case,nonsense\nCase_N001,1\n")
    with pytest.raises(InputError):
        read_cohort(spec)
    after = read_cohort(spec, images_only=True)
    assert [study["study_id"] for study in iterate_studies(spec, images_only=True)] == [
        "Case_N001",
        "Case_P002",
    ]
    assert after.fingerprint == before.fingerprint
    for study in after.studies:
        assert "labels" not in study and "clinical" not in study
        assert study["report"] == "" and study["findings"] is None and study["landmarks"] is None


def test_images_only_goes_on_where_only_the_table_of_truth_is_wrong(tmp_path):
    rows = write_own(tmp_path)
    rows[0]["report"], rows[1]["split"] = "missing.txt", "holdout"
    spec = f"manifest:{write_table(tmp_path, rows)}"
    assert len(check_cohort(spec)) == 2
    assert len(read_cohort(spec, images_only=True)) == 3


def test_reading_works_from_a_read_only_folder_and_leaves_nothing(tmp_path):
    root = write_emidec(tmp_path / "data")
    before = sorted(root.rglob("*"))
    for path in [root, *before]:
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    try:
        assert len(read_cohort(f"emidec:{root}")) == 2
    finally:
        for path in [root, *before]:
            os.chmod(path, 0o755 if path.is_dir() else 0o644)
    assert sorted(root.rglob("*")) == before


# ---- 40 kinds of malformed input, and more: name → (what is done to a sound cohort, words of the fault) ----


def image(change: Callable[[np.ndarray], np.ndarray], spacing=(1.5, 1.25, 10.0)):
    def spoil(root: Path, rows: list[dict[str, str]]) -> None:
        save(root / "s1.nii", change(picture(ring(scar=False)).astype(np.float32)), spacing)

    return spoil


def mask(change: Callable[[np.ndarray], np.ndarray], **options):
    def spoil(root: Path, rows: list[dict[str, str]]) -> None:
        save(root / "s1_mask.nii", change(ring(scar=False).astype(np.float32)), **options)

    return spoil


def pixdim(*values: float):
    def spoil(root: Path, rows: list[dict[str, str]]) -> None:
        patch_header(root / "s1.nii", "pixdim", [1, *values, 1, 0, 0, 0])

    return spoil


def file(name: str, content: bytes | None):
    def spoil(root: Path, rows: list[dict[str, str]]) -> None:
        path = root / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return spoil


def cut(name: str):
    def spoil(root: Path, rows: list[dict[str, str]]) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])

    return spoil


def cut_gzip(root: Path, rows: list[dict[str, str]]) -> None:
    path = save(root / "s1.nii.gz", picture(ring()))
    path.write_bytes(path.read_bytes()[:400])
    rows[1]["image"] = path.name


def row(**cells: str):
    def spoil(root: Path, rows: list[dict[str, str]]) -> None:
        for other in rows:
            for key in cells:
                other.setdefault(key, "")
        rows[1] |= cells

    return spoil


def text(content: bytes):
    def spoil(root: Path, rows: list[dict[str, str]]) -> None:
        (root / "s1.txt").write_bytes(content)
        rows[1]["report"] = "s1.txt"

    return spoil


def put(array: np.ndarray, value: float) -> np.ndarray:
    array[12, 14, 1] = value
    return array


def rename(old: str, new: str):
    def spoil(root: Path, rows: list[dict[str, str]]) -> None:
        for cells in rows:
            cells[new] = cells.pop(old)

    return spoil


SPOILED = {
    "image missing": (file("s1.nii", None), "no such file"),
    "image is a folder": (row(image="."), "no such file"),
    "image cut short": (cut("s1.nii"), "cannot be read as NIfTI"),
    "gzip cut short": (cut_gzip, "cannot be read as NIfTI"),
    "image empty file": (file("s1.nii", b""), "cannot be read as NIfTI"),
    "image is text": (file("s1.nii", b"patient,age\n" * 99), "cannot be read as NIfTI"),
    "image 4-D": (image(lambda a: np.stack([a, a], -1)), "4 dimensions (24, 28, 4, 2)"),
    "image 2-D": (image(lambda a: a[..., 0], (1.5, 1.25, 1.0)), "2 dimensions"),
    "image NaN": (image(lambda a: put(a, np.nan)), "1 voxels that are NaN or infinite"),
    "image infinite": (image(lambda a: put(a, -np.inf)), "1 voxels that are NaN or infinite"),
    "image constant": (image(lambda a: a * 0 + 7), "every voxel is 7"),
    "image complex": (image(lambda a: a.astype(np.complex64)), "complex64"),
    "spacing zero": (pixdim(1.5, 0, 10), "not positive"),
    "spacing negative": (pixdim(-1.5, 1.25, 10), "not positive"),
    "spacing NaN": (pixdim(1.5, np.nan, 10), "not positive"),
    "spacing absurdly large": (image(lambda a: a, (1.5, 1.25, 1000.0)), "absurd"),
    "spacing absurdly small": (image(lambda a: a, (0.0015, 0.00125, 0.01)), "absurd"),
    "mask missing": (file("s1_mask.nii", None), "no such file"),
    "mask cut short": (cut("s1_mask.nii"), "cannot be read as NIfTI"),
    "mask of another shape": (
        mask(lambda a: a[:-1]),
        "shape (23, 28, 4) on an image of shape (24, 28, 4)",
    ),
    "mask 4-D": (mask(lambda a: a[..., None].repeat(2, -1)), "4 dimensions"),
    "mask unknown code": (mask(lambda a: put(a, 9)), "unknown label code 9"),
    "mask of another data set": (mask(lambda a: a * 100), "unknown label code 100"),
    "mask between codes": (mask(lambda a: put(a, 1.5)), "unknown label code 1.5"),
    "mask NaN": (mask(lambda a: put(a, np.nan)), "NaN"),
    "mask empty": (mask(lambda a: a * 0), "the mask is empty"),
    "mask turned": (mask(lambda a: a, affine=np.diag([1.5, -1.25, 10, 1])), "another orientation"),
    "report empty": (row(report="  "), "report is empty"),
    "report file empty": (text(b" \n"), "report is empty"),
    "report file not UTF-8": (text("Narbe für".encode("latin-1")), "not UTF-8"),
    "report file missing": (row(report="nowhere.txt"), "report cannot be read"),
    "table not UTF-8": (row(report="\udcfc"), "not UTF-8"),
    "study id twice": (row(study_id="s0"), "2 studies have this id"),
    "study id empty": (row(study_id=""), "cannot name a file"),
    "study id a path": (row(study_id="../s1"), "cannot name a file"),
    "image cell empty": (row(image=""), "image is empty"),
    "patient in two splits": (row(patient_id="s0"), "2 splits: train, validation"),
    "unknown split": (row(split="hold-out"), "unknown split 'hold-out'"),
    "unknown report source": (row(report_source="radiologist"), "unknown report_source"),
    "findings not JSON": (row(findings="{inferior"), "not JSON"),
    "findings of an unknown wall": (
        row(findings='[{"walls": ["upper"], "levels": [], "depth": "mid-wall"}]'),
        "upper",
    ),
    "angle not a number": (row(anterior_rvip_deg="left", inferior_rvip_deg="10"), "not landmarks"),
    "confidence above 1": (
        row(anterior_rvip_deg="90", inferior_rvip_deg="10", rvip_confidence="66"),
        "not landmarks",
    ),
    "column missing": (rename("image", "picture"), "column 'image' is missing"),
    "column misspelt": (rename("labels", "lables"), "unknown column 'lables'"),
    "column twice": (rename("split", "report "), "two columns have the same name"),
    "table empty": (file("manifest.csv", b""), "column 'study_id' is missing"),
    "table without rows": (file("manifest.csv", b"study_id,image\n"), "has no rows"),
    "row too long": (
        file("manifest.csv", b"study_id,image\ns0,s0.nii,extra\n"),
        "more fields than columns",
    ),
    "table not closed": (
        file("manifest.csv", b'study_id,image\ns0,"s0.nii\n'),
        "not a readable table",
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_malformed_input_is_caught_by_check_and_by_reading(tmp_path, kind):
    spoil, words = SPOILED[kind]
    rows = write_own(tmp_path)
    assert check_cohort(f"manifest:{tmp_path / 'manifest.csv'}") == []
    spoil(tmp_path, rows)
    if not kind.startswith(("table empty", "table without", "row too", "table not closed")):
        with (tmp_path / "manifest.csv").open(
            "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    spec = f"manifest:{tmp_path / 'manifest.csv'}"
    faults = check_cohort(spec)
    assert len(faults) == 1, faults
    assert words in faults[0].problem
    assert faults[0].where and len(faults[0].remedy) > 10
    with pytest.raises(InputError) as caught:
        read_cohort(spec)
    assert words in caught.value.problem and "\n" not in str(caught.value)


def no_image(root: Path) -> None:
    (root / "Case_P002" / "Images" / "Case_P002.nii.gz").unlink()


def two_images(root: Path) -> None:
    images = root / "Case_P002" / "Images"
    (images / "Case_P002.nii.gz").rename(images / "x.nii.gz")
    save(images / "y.nii.gz", picture(ring()))


def empty_contours(root: Path) -> None:
    (root / "Case_P002" / "Contours" / "Case_P002.nii.gz").unlink()


def landmarks(content: str):
    return lambda root: (root / "rvip.csv").write_text(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_image, "holds no image"),
        (two_images, "holds no image"),
        (empty_contours, "no such file"),
        (landmarks("case,angle\nCase_P002,3\n"), "column 'anterior_rvip_deg' is missing"),
        (
            landmarks("case,anterior_rvip_deg,inferior_rvip_deg,confidence\nCase_P002,x,1,high\n"),
            "not landmarks",
        ),
        (
            landmarks("case,anterior_rvip_deg,inferior_rvip_deg,confidence\nCase_P002,2,1,sure\n"),
            "not landmarks",
        ),
    ],
)
def test_malformed_emidec_folder(tmp_path, spoil, words):
    spoil(write_emidec(tmp_path))
    (fault,) = check_cohort(f"emidec:{tmp_path}")
    assert words in fault.problem and fault.remedy


def test_one_image_under_two_patients_names_is_listed_and_kept_in_one_split(tmp_path):
    rows = write_own(tmp_path, studies=6)
    (tmp_path / "s4.nii").write_bytes((tmp_path / "s1.nii").read_bytes())
    rows[5] |= {"patient_id": "s4"}  # another study of the patient
    for cells in rows:
        cells["split"] = ""
    spec = f"manifest:{write_table(tmp_path, rows)}"
    (fault,) = check_cohort(spec)
    assert (
        fault.study_id == "s4"
        and "the same image as s1" in fault.problem
        and "patient_id" in fault.remedy
    )
    with pytest.warns(UserWarning, match="s4: the same image as s1"):
        studies = read_cohort(spec).studies
    assert [study["patient_id"] for study in studies] == ["s0", "s1", "s2", "s3", "s1", "s1"]
    assert len({studies[number]["split"] for number in (1, 4, 5)}) == 1
    rows[4]["patient_id"] = rows[5]["patient_id"] = "s1"
    assert check_cohort(f"manifest:{write_table(tmp_path, rows)}") == []  # the remedy helps


def test_a_notebook_shows_no_report_that_may_identify_a_person(tmp_path):
    rows = write_own(tmp_path)
    session = Session("notebook", f"manifest:{tmp_path / 'manifest.csv'}", "smoke", 0, tmp_path)
    assert len(session.cohort()) == 3
    rows[1]["report"] = "Patient name: Jane Doe, seen on 12/03/2021. No late enhancement."
    write_table(tmp_path, rows)
    with pytest.raises(
        InputError, match="s1, report: the report may identify a person: date, name"
    ) as caught:
        session.cohort()
    assert "Doe" not in str(caught.value)
    assert len(session.cohort(show_identifiers=True)) == 3


def test_check_lists_every_fault_and_does_not_stop_at_the_first(tmp_path):
    rows = write_own(tmp_path, studies=6)
    (tmp_path / "s0.nii").unlink()
    save(tmp_path / "s1_mask.nii", ring()[:-1])
    rows[2]["report"] = "nowhere.txt"
    save(tmp_path / "s3.nii", np.full((24, 28, 4), np.nan, np.float32), (1.5, 1.25, 900.0))
    rows[4]["split"] = "later"
    faults = check_cohort(f"manifest:{write_table(tmp_path, rows)}")
    assert sorted(fault.study_id for fault in faults) == ["s0", "s1", "s2", "s3", "s3", "s4"]


@pytest.mark.parametrize("kind", sorted(readers.EXPECTED))
def test_a_folder_without_studies_says_what_it_should_hold(tmp_path, kind):
    (fault,) = check_cohort(f"{kind}:{tmp_path}")
    assert "no study found" in fault.problem and readers.EXPECTED[kind] in fault.remedy


@pytest.mark.slow
def test_check_of_1000_studies_takes_less_than_two_minutes(tmp_path):
    labels = ring((128, 128, 10))
    for number in range(1000):
        case = tmp_path / f"Case_P{number:03d}"
        save(case / "Images" / f"{case.name}.nii.gz", picture(labels, number))
        save(case / "Contours" / f"{case.name}.nii.gz", np.where(labels == 5, 0, labels))
    start = time.perf_counter()
    assert check_cohort(f"emidec:{tmp_path}") == []
    assert time.perf_counter() - start < 120
