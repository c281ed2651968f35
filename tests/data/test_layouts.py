"""Small copies of public data sets: codes, ids, patients, landmarks; real ones if present."""

import re
import warnings
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from cohort_files import SPACING, picture, ring, save, write_emidec, write_format

from lgekit.data.readers import check_cohort, count_files, read_cohort
from lgekit.errors import InputError

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real studies are not on this machine")
MYOPS = (0, 500, 200, 2221, 0, 600)  # codes of the data set, in the order of the internal codes


def recoded(labels, codes) -> np.ndarray:
    return np.array(codes, np.int16)[labels]


def test_emidec(tmp_path):
    root = write_emidec(tmp_path)
    save(root / "Case_101" / "Images" / "Case_101.nii.gz", picture(ring()))  # of the test set
    columns = "case,anterior_rvip_deg,inferior_rvip_deg,septum_mid_deg,confidence"
    (root / "rvip.csv").write_text(f"{columns}\nCase_P002,290,-170,,medium\n")
    cohort = read_cohort(f"emidec:{root}")
    assert cohort.manifest["study_id"].tolist() == ["Case_101", "Case_N001", "Case_P002"]
    assert cohort.manifest["scar"].tolist() == [None, False, True]
    assert cohort.manifest["report_source"].tolist() == ["none", "masks", "masks"]
    unlabelled, normal, ill = cohort.studies
    assert unlabelled.label_map is None and unlabelled["report"] == ""
    assert (ill["landmarks"].anterior_rvip_deg, ill["landmarks"].inferior_rvip_deg) == (290, 190)
    assert ill["landmarks"].confidence == 0.66
    assert np.allclose(ill.spacing_mm, SPACING)
    assert set(np.unique(ill.label_map)) == {0, 1, 2, 3}


def test_contradictory_headers_give_one_warning_for_the_cohort(tmp_path):
    root = write_emidec(tmp_path)
    for number, path in enumerate(sorted(root.glob("*/Images/*"))):
        save(path, picture(ring(), number), SPACING, affine=np.eye(4))  # as in official files
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        cohort = read_cohort(f"emidec:{root}")
    assert ["pixdim is used" in str(one.message) for one in caught] == [True]
    assert np.allclose(cohort.studies[0].spacing_mm, SPACING)
    assert check_cohort(f"emidec:{root}") == []


def test_acdc_has_landmarks_but_neither_findings_nor_reports(tmp_path):
    labels = ring((72, 84, 4), scar=False, scale=3)
    frame = tmp_path / "training" / "patient001" / "patient001_frame01.nii.gz"
    save(frame, picture(labels))
    save(frame.with_name("patient001_frame01_gt.nii.gz"), recoded(labels, (0, 3, 2, 0, 0, 1)))
    save(frame.with_name("patient001_4d.nii.gz"), np.ones((4, 4, 4, 2), np.int16))
    (study,) = read_cohort(f"acdc:{tmp_path}").studies
    assert np.array_equal(study.label_map, labels)
    assert study["patient_id"] == "patient001" and study["study_id"] == "patient001_frame01"
    assert study["findings"] is None and study["report"] == ""  # cine does not show scar
    landmarks = study["landmarks"]  # the RV is at the left, and the stack is not mirrored
    assert 90 < landmarks.anterior_rvip_deg < 180 < landmarks.inferior_rvip_deg < 270
    assert not landmarks.mirrored and landmarks.confidence > 0.5


def test_mnms_frames_come_from_the_labels(tmp_path):
    labels = ring(scar=False)
    theirs = recoded(labels, (0, 1, 2, 0, 0, 3))
    cine = np.stack([picture(labels, seed) for seed in range(4)], axis=-1)
    mask = np.zeros(cine.shape, np.int16)
    mask[..., 1] = mask[..., 3] = theirs
    save(tmp_path / "Training" / "A1" / "A1_sa.nii.gz", cine)
    save(tmp_path / "Training" / "A1" / "A1_sa_gt.nii.gz", mask)
    save(tmp_path / "dataset" / "001" / "001_SA_ED.nii.gz", cine[..., 0])
    save(tmp_path / "dataset" / "001" / "001_SA_ED_gt.nii.gz", theirs)
    save(tmp_path / "dataset" / "001" / "001_LA_ED.nii.gz", cine[..., 0])
    studies = {study["study_id"]: study for study in read_cohort(f"mnms:{tmp_path}").studies}
    assert sorted(studies) == ["001_SA_ED", "A1_sa_ED", "A1_sa_ES"]
    assert all(np.array_equal(study.label_map, labels) for study in studies.values())
    assert np.array_equal(studies["A1_sa_ES"].pixels, cine[..., 3])
    assert studies["001_SA_ED"]["patient_id"] == "001"
    (tmp_path / "Training" / "A1" / "A1_sa_gt.nii.gz").unlink()
    (fault,) = check_cohort(f"mnms:{tmp_path}")
    assert "end-diastole" in fault.problem and fault.study_id == "A1_sa"


MYOPS_2020 = "train25/myops_training_101_DE.nii.gz", "train25_myops_gd/myops_training_101_gd.nii.gz"
CARE = "Case3001/Case3001_LGE.nii.gz", "Case3001/Case3001_gd.nii.gz"


@pytest.mark.parametrize(("image", "mask"), [MYOPS_2020, CARE])
def test_myops(tmp_path, image, mask):
    labels = ring()
    theirs = recoded(labels, MYOPS)
    theirs[12, 21] = 1220  # oedema is myocardium on LGE
    assert (labels[12, 21] == 2).all()
    save(tmp_path / image, picture(labels))
    save(tmp_path / image.replace("DE", "T2").replace("LGE", "T2"), picture(labels))
    save(tmp_path / mask, theirs)
    (study,) = read_cohort(f"myops:{tmp_path}").studies
    assert np.array_equal(study.label_map, labels)
    assert study["findings"].present and study["report_source"] == "masks"
    assert study["landmarks"] is None  # an axial header does not tell anterior from inferior


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_affine_tells_which_insertion_point_is_anterior(tmp_path, mirrored):
    labels = ring((72, 84, 4), scale=3)
    to_base = np.array([-0.7, -0.6, 0.4]) / np.linalg.norm([-0.7, -0.6, 0.4])
    right = np.cross([0, 0, 1.0], to_base) / np.linalg.norm(to_base[:2])
    down = np.cross(to_base, right) * (-1 if mirrored else 1)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([right, down, to_base], axis=1) * SPACING
    save(tmp_path / "Case1" / "Case1_LGE.nii.gz", picture(labels), affine=affine)
    save(tmp_path / "Case1" / "Case1_gd.nii.gz", recoded(labels, MYOPS), affine=affine)
    (study,) = read_cohort(f"myops:{tmp_path}").studies
    low = 180 if mirrored else 90  # the RV is at the left
    assert low < study["landmarks"].anterior_rvip_deg < low + 90
    assert study["landmarks"].mirrored is mirrored and study["findings"].walls


def test_bids_with_lookup_table(tmp_path):
    labels, derived = ring(), tmp_path / "derivatives" / "hand"
    anat, segmentation = tmp_path / "sub-01" / "anat", derived / "sub-01" / "anat"
    save(anat / "sub-01_acq-LGE_T1w.nii.gz", picture(labels))
    save(anat / "sub-01_T1w.nii.gz", picture(labels))
    theirs = recoded(labels, (0, 10, 20, 30, 0, 40))
    save(segmentation / "sub-01_acq-LGE_dseg.nii.gz", theirs)
    codes = "index\tname\n10\tLV cavity\n20\tmyocardium\n30\tscar\n40\tRV cavity\n"
    (derived / "dseg.tsv").write_text(codes)
    people = "participant_id\treport\tsplit\nsub-01\tLateral scar.\ttest\n"
    (tmp_path / "participants.tsv").write_text(people)
    (study,) = read_cohort(f"bids:{tmp_path}").studies
    assert np.array_equal(study.label_map, labels)
    assert study["patient_id"] == "sub-01" and study["split"] == "test"
    assert (study["report"], study["report_source"]) == ("Lateral scar.", "clinical")
    (derived / "dseg.tsv").write_text("index\tname\n10\tventricle\n")
    with pytest.raises(InputError, match="unknown label 10 'ventricle'"):
        read_cohort(f"bids:{tmp_path}")


def test_reports_written_from_masks_do_not_depend_on_the_rest_of_the_cohort(tmp_path):
    few = read_cohort(f"emidec:{write_emidec(tmp_path / 'a')}").manifest
    names = ("Case_P001", "Case_N001", "Case_P002")
    many = read_cohort(f"emidec:{write_emidec(tmp_path / 'b', names)}").manifest
    assert few["report"].all() and few["report"].tolist() == many["report"].tolist()[::2]


@needs_data
def test_real_emidec_cohort():
    cohort = read_cohort(f"emidec:{DATA / 'emidec'}")
    assert len(cohort) == 60 and cohort.manifest["scar"].sum() == 40
    assert cohort.manifest["patient_id"].nunique() == 59
    for study in cohort.studies:
        assert study["landmarks"].mirrored  # all 60 are stored mirrored (data/README.md)
        assert study["findings"].present == ("_P" in study["study_id"])
        assert study.spacing_mm[2] == 10 and study["report_source"] == "masks"


@needs_data
def test_real_acdc_cohort():
    spec = f"acdc:{DATA / 'acdc'}"
    copies = check_cohort(spec)  # the frames of one patient are stored under two names
    assert [copy.study_id for copy in copies] == ["patient076_frame01", "patient076_frame12"]
    assert all("patient074" in copy.problem for copy in copies)
    with pytest.warns(UserWarning, match="counted as patient patient074"):
        cohort = read_cohort(spec)
    assert len(cohort) == 120 and cohort.manifest["patient_id"].nunique() == 59
    assert cohort.manifest.groupby("patient_id")["split"].nunique().max() == 1
    assert not any(study["landmarks"].mirrored for study in cohort.studies)
    volumes = np.bincount(cohort.studies[0].label_map.ravel(), minlength=6)
    assert volumes[[1, 2, 5]].all() and not volumes[[3, 4]].any()


def write_bids(root, names=("sub-1_ses-1_acq-LGE_T1w", "sub-1_ses-2_acq-LGE_T1w")):
    for number, name in enumerate(names):
        place = root / "/".join(re.findall("(?:sub|ses)-[^_]+", name)) / "anat"
        save(place / f"{name}.nii.gz", picture(ring(), number))
    return f"bids:{root}"


def test_bids_masks_belong_to_their_own_images_wherever_they_lie(tmp_path):
    names = ("sub-1_acq-LGE", "sub-1_acq-LGE_rec-PSIR")
    spec, anat = write_bids(tmp_path, [f"{name}_T1w" for name in names]), tmp_path / "sub-1/anat"
    for name, own in zip(names, (ring(), ring(scar=False)), strict=True):
        mask = f"{name}_desc-a_dseg.nii.gz"
        save(tmp_path / "derivatives/hand/sub-1/anat" / mask, own)
        assert len(read_cohort(spec)) == 2
        (tmp_path / "derivatives/hand/sub-1/anat" / mask).rename(anat / mask)
    assert read_cohort(spec).manifest["scar"].tolist() == [True, False]
    (anat / "sub-1_acq-LGE_T1w.nii.gz").rename(anat / "sub-1_acq-LGE_rec-PSIR_bold.nii.gz")
    assert "could be of 2 images" in " ".join(one.problem for one in check_cohort(spec))


def test_two_sessions_have_two_reports_and_na_is_none(tmp_path):
    spec = write_bids(tmp_path)
    people = tmp_path / "participants.tsv"
    people.write_text("participant_id\treport\tsplit\nsub-1\tLateral scar.\ttest\n")
    faults = check_cohort(spec)
    assert ["one report for the 2 sessions" in one.problem for one in faults] == [True, True]
    people.write_text("participant_id\treport\tsplit\nsub-1\tn/a\ttest\n")
    study = read_cohort(spec).studies[0]
    assert (study["report"], study["report_source"]) == ("", "none")
    rows = "sub-1\tses-1\tLateral scar.\nsub-1\tses-2\tNo late enhancement.\n"
    people.write_text(f"participant_id\tsession_id\treport\n{rows}")
    reports = read_cohort(spec).manifest["report"].tolist()
    assert reports == ["Lateral scar.", "No late enhancement."]
    people.write_text("participant_id\tsplit\nsub-1\ttest\nsub-1\ttrain\n")
    assert "two rows are of sub-1" in check_cohort(spec)[0].problem


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_unicode_form_are_found(tmp_path, forms):
    table, disk = (normalize(form, "Größe/Fälle é") for form in forms)
    (tmp_path / disk).parent.mkdir()
    save(tmp_path / f"{disk}.nii.gz", picture(ring()))
    (tmp_path / f"{disk}.txt").write_text(normalize(forms[1], "Spätes Enhancement inferior."))
    (tmp_path / "m.csv").write_text(f"study_id,image,report\na,{table}.nii.gz,{table}.txt\n")
    (study,) = read_cohort(f"manifest:{tmp_path / 'm.csv'}").studies
    assert study["report"].startswith("Spätes")
    save(tmp_path / normalize(forms[0], "Case_é/Images/a.nii.gz"), picture(ring()))
    save(tmp_path / normalize(forms[1], "Case_é/Contours/a.nii.gz"), ring() % 5)
    assert read_cohort(f"emidec:{tmp_path}").studies[0].label_map is not None


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.NII", "a.nii.gz"])
def test_a_layout_reads_every_kind_of_file_and_accounts_for_the_rest(tmp_path, name):
    for case, array in (("Images", picture(ring())), ("Contours", ring() % 5)):
        (tmp_path / "Case_P1" / case).mkdir(parents=True)
        path = write_format(tmp_path / "Case_P1" / case / name, array)
        path.with_name(f"._{name}").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "rvip.csv").write_text("case,anterior_rvip_deg,inferior_rvip_deg\nCase_P1,9,200\n")
    (tmp_path / "notes.txt").write_text("x")
    save(tmp_path / "other.nii.gz", picture(ring()))
    assert check_cohort(f"emidec:{tmp_path}") == []
    assert read_cohort(f"emidec:{tmp_path}").manifest["scar"].tolist() == [True]
    account = "8 files seen = 3 read + 5 left out (2 no images of this layout, "
    assert count_files(f"emidec:{tmp_path}") == f"{account}3 system files) + 0 with a fault"
