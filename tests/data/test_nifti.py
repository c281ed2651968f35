"""Grid, slice axis and faults of single volumes, compared with arrays of known answers."""

from itertools import permutations

import nibabel as nib
import numpy as np
import pytest
from cohort_files import SPACING, picture, ring, save, write_format

from lgekit.data import nifti
from lgekit.data.manifest import INTERNAL_CODES
from lgekit.errors import InputError


@pytest.fixture
def read(tmp_path):
    def save_and_read(array, spacing=SPACING, affine=None, name="a.nii.gz"):
        return nifti.read_nifti(save(tmp_path / name, array, spacing, affine))

    return save_and_read


def test_pixdim_wins_over_the_affine_with_a_warning(read):
    with pytest.warns(UserWarning, match="pixdim is used"):
        volume = read(picture(ring()), (1.6, 0.9, 10.0), np.eye(4))
    assert not volume.trusted
    assert np.allclose(volume.spacing, (1.6, 0.9, 10.0))


def test_a_consistent_header_keeps_its_directions(read):
    affine = np.array([[-1.6, 0, 0, 3], [0, 0, 10.0, 4], [0, 0.9, 0, 5], [0, 0, 0, 1]])
    volume = read(picture(ring()), (1.6, 0.9, 10.0), affine)
    assert np.allclose(volume.affine, affine) and volume.trusted


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1), (0, 1, 2)])
def test_slice_axis_has_the_largest_spacing(read, order):
    image = picture(ring())
    volume = read(image.transpose(order), tuple(SPACING[index] for index in order))
    assert np.array_equal(volume.array.transpose(nifti.axis_order(volume)), image)


def test_slice_axis_of_isotropic_and_of_single_slice_volumes(read, tmp_path):
    with pytest.raises(InputError, match="which axis runs through the slices") as caught:
        nifti.axis_order(read(picture(ring()), (1.5, 1.5, 1.5)))
    assert "set_dim_info(slice=2)" in caught.value.remedy
    image = nib.load(tmp_path / "a.nii.gz")
    image.header.set_dim_info(slice=2)  # the remedy
    image.to_filename(tmp_path / "b.nii")
    assert nifti.axis_order(nifti.read_nifti(tmp_path / "b.nii"))[2] == 2
    assert nifti.axis_order(read(picture(ring())[:, :1], (1.5, 1.0, 1.0)))[2] == 1
    assert nifti.axis_order(read(picture(ring()), (1.5, 1.5, 1.2)))[2] == 2


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("thickness", [0.8, 1.25, 1.5, 1.6])
def test_slice_axis_of_thin_slices_is_that_of_closed_rings_or_the_long_axis(read, order, thickness):
    spacing = np.array([1.5, 1.25, thickness])[list(order)]
    labels = ring((24, 28, 30)).transpose(order)
    axis = order.index(2)
    assert nifti.axis_order(read(picture(labels), spacing), labels)[2] == axis
    towards = nifti.TO_BASE  # the only axis near it is the slice axis
    aside = np.cross(towards, [0, 0, 1.0])
    axes = np.stack([aside, np.cross(aside, towards), towards], axis=1)
    affine = np.eye(4)
    affine[:3, :3] = (axes / np.linalg.norm(axes, axis=0))[:, list(order)] * spacing
    assert nifti.axis_order(read(picture(labels), spacing, affine))[2] == axis


@pytest.mark.parametrize("name", ["2.nii", "2.nii.gz", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("frames", [0, 1])
def test_every_kind_of_file_gives_the_same_volume(tmp_path, name, frames):
    array = picture(ring())
    if frames and not name.endswith(("mha", "nrrd")):
        array = array[..., None]  # a single frame as 4-D
    volume = nifti.read_nifti(write_format(tmp_path / name, array))
    assert np.array_equal(volume.array, picture(ring())) and volume.trusted
    assert np.allclose(volume.affine, np.diag([*SPACING, 1.0]))


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Nifti1Pair])
@pytest.mark.parametrize("name", ["a.img", "a.hdr"])
def test_a_pair_of_files_is_named(tmp_path, kind, name):
    kind(picture(ring()), np.eye(4)).to_filename(tmp_path / name)
    with pytest.raises(InputError, match="is not one NIfTI file but"):
        nifti.read_nifti(tmp_path / name)


def test_a_file_whose_name_hides_its_compression_is_named(tmp_path):
    for name, other in (("a.nii.gz", "b.nii"), ("a.nii", "b.nii.gz")):
        save(tmp_path / name, picture(ring())).rename(tmp_path / other)
        with pytest.raises(InputError, match="compressed, but its name says otherwise"):
            nifti.read_nifti(tmp_path / other)


def test_a_turned_mask_is_refused_only_where_both_headers_can_be_trusted(read):
    labels = ring()
    image = read(picture(labels), affine=np.diag([*SPACING, 1.0]))
    nominal = read(picture(labels), affine=np.eye(4))
    mask = read(labels, affine=np.diag([-1.5, 1.25, 10.0, 1.0]))
    assert nifti.recode(mask, INTERNAL_CODES, nominal) is not None
    with pytest.raises(InputError, match="mask orientation or place"):
        nifti.recode(mask, INTERNAL_CODES, image)


@pytest.mark.parametrize("axis", range(3))
def test_sform_and_qform_that_disagree_in_direction_are_named_and_not_used(tmp_path, axis):
    affine, other = np.diag([*SPACING, 1.0]), np.diag([*SPACING, 1.0])
    other[axis] *= -1
    other[axis - 1] *= -1
    image = nib.Nifti1Image(picture(ring()), affine)
    image.set_sform(affine, 1)
    image.set_qform(other, 1)
    image.to_filename(tmp_path / "a.nii")
    volume = nifti.read_nifti(tmp_path / "a.nii")
    assert "sform and qform" in volume.doubts[0][0] and not volume.trusted
    image.set_qform(affine, 1)
    image.to_filename(tmp_path / "a.nii")
    assert nifti.read_nifti(tmp_path / "a.nii").doubts == []


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("shift", [0.4, 40.0])
def test_a_mask_whose_header_lies_beside_its_image_is_named(read, axis, shift):
    labels, affine, moved = ring(), np.diag([*SPACING, 1.0]), np.diag([*SPACING, 1.0])
    moved[axis, 3] = shift
    image, mask = read(picture(labels), affine=affine), read(labels, affine=moved)
    if shift < 1:
        assert np.array_equal(nifti.recode(mask, INTERNAL_CODES, image), labels)
        return
    with pytest.raises(InputError, match="place differs from its image's, by 40 mm") as caught:
        nifti.recode(mask, INTERNAL_CODES, image)
    assert caught.value.remedy.startswith("Copy the image's affine")


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flip", range(3))
def test_a_mask_on_the_same_grid_is_turned_to_its_image(read, order, flip):
    labels, affine = ring(), np.diag([*SPACING, 1.0])
    turned = np.flip(labels, flip).transpose(order)
    other = affine.copy()
    other[flip, 3] = affine[flip, flip] * (labels.shape[flip] - 1)
    other[flip, flip] *= -1
    spacing = tuple(SPACING[index] for index in order)
    image = read(picture(labels), affine=affine)
    mask = read(turned, spacing, other[:, [*order, 3]])
    assert np.array_equal(nifti.recode(mask, INTERNAL_CODES, image), labels)


@pytest.mark.parametrize("factor", [0.99994, 1.0005])
def test_codes_that_were_scaled_are_read(read, factor):
    mask = read((ring() * factor).astype(np.float32))
    assert np.array_equal(nifti.recode(mask, INTERNAL_CODES, read(picture(ring()))), ring())
