"""Grid, slice axis and faults of single volumes, against arrays whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from cohort_files import SPACING, patch_header, picture, ring, save

from lgekit.data import nifti as volumes
from lgekit.data.public import EMIDEC_CODES, INTERNAL_CODES


def test_pixdim_wins_over_the_affine_with_a_note(tmp_path):
    path = save(tmp_path / "a.nii.gz", picture(ring()), (1.6, 0.9, 10.0), affine=np.eye(4))
    volume = volumes.read_nifti(path)
    assert "pixdim says [1.6, 0.9, 10.0] mm, the affine [1.0, 1.0, 1.0]" in str(volume.notes[0])
    assert not volume.faults and not volume.trusted
    assert np.allclose(volume.spacing, (1.6, 0.9, 10.0))


def test_agreeing_header_gives_no_note_and_keeps_directions(tmp_path):
    affine = np.array([[-1.6, 0, 0, 3], [0, 0, 10.0, 4], [0, 0.9, 0, 5], [0, 0, 0, 1]])
    volume = volumes.read_nifti(
        save(tmp_path / "a.nii.gz", picture(ring()), (1.6, 0.9, 10.0), affine)
    )
    assert np.allclose(volume.affine, affine) and volume.trusted
    assert not volume.notes


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_axis_is_the_one_with_the_largest_spacing(tmp_path, axis):
    image = picture(ring())
    order = [0, 1]
    order.insert(axis, 2)
    spacing = tuple(SPACING[index] for index in order)
    volume = volumes.read_nifti(save(tmp_path / "a.nii.gz", image.transpose(order), spacing))
    assert volumes.slice_axis(volume) == axis
    array, affine = volumes.to_study_axes(volume, axis)
    assert np.array_equal(array, image)
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), SPACING)


def test_slice_axis_of_isotropic_and_single_slice_volumes(tmp_path):
    isotropic = volumes.read_nifti(save(tmp_path / "i.nii.gz", picture(ring()), (1.5, 1.5, 1.5)))
    assert volumes.slice_axis(isotropic) == 2
    single = volumes.read_nifti(
        save(tmp_path / "s.nii.gz", picture(ring())[:, :1], (1.5, 1.0, 1.0))
    )
    assert volumes.slice_axis(single) == 1


def test_zero_spacing_is_seen_though_nibabel_repairs_it(tmp_path):
    path = save(tmp_path / "a.nii", picture(ring()))
    patch_header(path, "pixdim", [1, 1.5, 0, 10, 1, 0, 0, 0])
    volume = volumes.read_nifti(path)
    volumes.check_image(volume)
    assert [fault.problem for fault in volume.faults] == [
        "spacing [1.5, 0.0, 10.0] mm is not positive"
    ]


def test_units_of_the_header_are_read(tmp_path):
    path = save(tmp_path / "a.nii", picture(ring()), (1500.0, 1250.0, 10000.0))
    patch_header(path, "xyzt_units", 3)  # µm
    volume = volumes.read_nifti(path)
    volumes.check_image(volume)
    assert not volume.faults
    assert np.allclose(volume.spacing, SPACING)


def test_one_file_can_have_several_faults(tmp_path):
    image = picture(ring()).astype(np.float32)
    image[3, 3, 1] = np.nan
    volume = volumes.read_nifti(save(tmp_path / "a.nii.gz", image, (500.0, 1.0, 10.0)))
    volumes.check_image(volume)
    assert len(volume.faults) == 2
    assert (
        "1 voxels that are NaN" in volume.faults[0].problem and "absurd" in volume.faults[1].problem
    )


def test_frame_of_a_cine_file(tmp_path):
    cine = np.stack([picture(ring(), seed) for seed in range(3)], axis=-1)
    path = save(tmp_path / "a.nii.gz", cine)
    assert np.array_equal(volumes.read_nifti(path, 2).array, cine[..., 2])
    assert "no frame 3" in volumes.read_nifti(path, 3).faults[0].problem


def test_recode_leaves_its_input_alone_and_names_an_unknown_code(tmp_path):
    labels = ring()
    image = volumes.read_nifti(save(tmp_path / "i.nii.gz", picture(labels)))
    mask = volumes.read_nifti(save(tmp_path / "m.nii.gz", labels.astype(np.float32)))
    before = mask.array.copy()
    assert np.array_equal(volumes.recode(mask, INTERNAL_CODES, image), labels)
    assert np.array_equal(mask.array, before)
    assert volumes.recode(mask, EMIDEC_CODES, image) is None
    assert "unknown label code 5" in mask.faults[0].problem and str(tmp_path / "m.nii.gz") in str(
        mask.faults[0]
    )


def test_mask_in_another_orientation_is_refused_only_where_both_headers_can_be_believed(tmp_path):
    labels = ring()
    turned = np.diag([-1.5, 1.25, 10.0, 1.0])
    image = volumes.read_nifti(
        save(tmp_path / "i.nii.gz", picture(labels), affine=np.diag([*SPACING, 1.0]))
    )
    mask = volumes.read_nifti(save(tmp_path / "m.nii.gz", labels, affine=turned))
    assert volumes.recode(mask, INTERNAL_CODES, image) is None
    assert "another orientation" in mask.faults[0].problem
    plain = volumes.read_nifti(save(tmp_path / "p.nii.gz", picture(labels), affine=np.eye(4)))
    mask.faults.clear()
    assert volumes.recode(mask, INTERNAL_CODES, plain) is not None


def test_valid_region_is_cut_slice_by_slice_from_the_border():
    image = np.ones((8, 9, 2))
    image[:2] = 0
    image[4, 4, 0] = 0  # a dark pixel inside is data
    image[5, :, 1] = 0  # reaches the border
    before = image.copy()
    valid = volumes.valid_region(image)
    assert (
        not valid[:2].any() and valid[4, 4, 0] and not valid[5, :, 1].any() and valid[5, :, 0].all()
    )
    assert valid.dtype == bool and np.array_equal(image, before)


def test_mirrored_storage_is_told_from_an_oblique_affine_only():
    # a short axis: rows and columns at right angles to a long axis that points to the right, back and up
    long_axis = np.array([-0.7, -0.6, 0.4]) / np.linalg.norm([-0.7, -0.6, 0.4])
    right = np.cross([0, 0, 1.0], long_axis)
    right /= np.linalg.norm(right)
    down = np.cross(long_axis, right)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([right * 1.5, down * 1.5, -long_axis * 10], axis=1)
    assert volumes.storage_mirrored(affine) is False
    affine[:3, 0] *= -1
    assert volumes.storage_mirrored(affine) is True
    assert volumes.storage_mirrored(np.diag([-1.5, -1.5, 10, 1])) is None
