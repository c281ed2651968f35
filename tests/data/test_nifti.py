"""Grid, slice axis and faults of single volumes, compared with arrays of known answers."""

import numpy as np
import pytest
from cohort_files import SPACING, patch_header, picture, ring, save

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


def test_slice_axis_of_isotropic_and_of_single_slice_volumes(read):
    assert nifti.axis_order(read(picture(ring()), (1.5, 1.5, 1.5)))[2] == 2
    assert nifti.axis_order(read(picture(ring())[:, :1], (1.5, 1.0, 1.0)))[2] == 1


def test_units_of_the_header_are_read(tmp_path):
    path = save(tmp_path / "a.nii", picture(ring()), (1500.0, 1250.0, 10000.0))
    patch_header(path, "xyzt_units", 3)  # µm
    volume = nifti.read_nifti(path)
    nifti.check_image(volume)
    assert np.allclose(volume.spacing, SPACING)


def test_a_turned_mask_is_refused_only_where_both_headers_can_be_trusted(read):
    labels = ring()
    image = read(picture(labels), affine=np.diag([*SPACING, 1.0]))
    nominal = read(picture(labels), affine=np.eye(4))
    mask = read(labels, affine=np.diag([-1.5, 1.25, 10.0, 1.0]))
    assert nifti.recode(mask, INTERNAL_CODES, nominal) is not None
    with pytest.raises(InputError, match="mask orientation differs"):
        nifti.recode(mask, INTERNAL_CODES, image)
