"""Write small cohorts for tests: a ring of myocardium around a cavity."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torchio as tio
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SPACING = (1.5, 1.25, 10.0)


def ring(shape=(24, 28, 4), scar: bool = True, scale: float = 1.0) -> np.ndarray:
    """Labels in the internal codes: cavity, myocardium, scar in all slices, an RV to the left."""
    x, y = np.mgrid[: shape[0], : shape[1]] / scale - np.array([12, 14])[:, None, None]
    radius = np.hypot(x * SPACING[0], y * SPACING[1])
    plane = np.where(radius < 6, 1, np.where(radius < 11, 2, 0))
    if scar:
        plane[(plane == 2) & (x > 0) & (np.abs(y) < 5)] = 3
    plane[(plane == 0) & (x < -7) & (np.abs(y) < 8)] = 5
    return np.repeat(plane[:, :, None], shape[2], axis=2).astype(np.uint8)


def picture(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """An image that goes with the labels, int16, without exact zeros."""
    grey = np.array([40, 200, 60, 220, 70, 190])[labels]
    return (grey + np.random.default_rng(seed).integers(1, 9, labels.shape)).astype(np.int16)


def save(path: Path, array: np.ndarray, spacing=SPACING, affine=None) -> Path:
    """Write a NIfTI file with the spacing in pixdim; ``affine`` may say something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag([*spacing[:3], 1.0]) if affine is None else affine)
    if affine is not None:
        image.header.set_zooms((*spacing, *[1.0] * (array.ndim - 3)))
        image.header.set_sform(affine, code=1)
    image.to_filename(path)
    return path


def write_format(path: Path, array: np.ndarray) -> Path:
    """Write an array in the format that the name says, on the grid diag(SPACING)."""
    if path.suffix in (".mha", ".nrrd"):
        tio.ScalarImage(tensor=array[None], affine=np.diag([*SPACING, 1.0])).save(path)
        return path
    kind = nib.Nifti2Image if path.name.startswith("2") else nib.Nifti1Image
    kind(array, np.diag([*SPACING, 1.0])).to_filename(path)
    return path


def patch_header(path: Path, field: str, value) -> None:
    """Overwrite a field in the header of an uncompressed NIfTI file without nibabel's checks."""
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    header[field] = value
    data[:348] = header.binaryblock
    path.write_bytes(bytes(data))


def write_emidec(root: Path, cases=("Case_N001", "Case_P002")) -> Path:
    """Write a cohort in EMIDEC's layout, which has no RV code."""
    for number, case in enumerate(cases):
        labels = ring(scar="_P" in case)
        labels[labels == 5] = 0
        save(root / case / "Images" / f"{case}.nii.gz", picture(labels, number))
        save(root / case / "Contours" / f"{case}.nii.gz", labels)
    return root


def write_table(root: Path, rows: list[dict[str, str]]) -> Path:
    """Write a manifest.csv with the columns of the rows."""
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False, errors="surrogateescape")
    return root / "manifest.csv"


def write_own(root: Path, studies: int = 3) -> list[dict[str, str]]:
    """Write a user's own cohort, uncompressed, and return the rows of its manifest.csv."""
    rows = []
    for number in range(studies):
        name = f"s{number}"
        labels = ring(scar=number % 2 == 0)
        save(root / f"{name}.nii", picture(labels, number))
        save(root / f"{name}_mask.nii", labels)
        ill = "Subendocardial enhancement of the inferior wall."
        row = {"study_id": name, "image": f"{name}.nii", "labels": f"{name}_mask.nii"}
        row |= {"report": "No late enhancement." if number % 2 else ill}
        row |= {"split": ("train", "validation", "test")[number % 3], "patient_id": name}
        rows.append(row)
    write_table(root, rows)
    return rows


# Identifying elements that a scanner writes. None may leave the DICOM reader.
SECRETS = {"PatientName": "Doe^Jane", "PatientID": "HOSP-778812", "PatientBirthDate": "19610423"}
SECRETS |= {"InstitutionName": "St Elsewhere", "ReferringPhysicianName": "Strange^Stephen"}
SECRETS |= {"StudyDate": "20240517", "AccessionNumber": "ACC-99", "ImageComments": "call 555-0199"}
SECRETS |= {"StudyDescription": "Cardiac MR of Mrs Doe", "DeviceSerialNumber": "SN-40404"}
# Elements of every file. SliceLocation and InstanceNumber are wrong.
DICOM = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR", "PixelSpacing": [1.25, 1.5]}
DICOM |= {"ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM"], "SliceThickness": 8.0}
DICOM |= {"SliceLocation": 0.0, "InstanceNumber": 1, "PhotometricInterpretation": "MONOCHROME2"}
DICOM |= {"SamplesPerPixel": 1, "PixelRepresentation": 0, "BitsAllocated": 16, "BitsStored": 16}
DICOM |= {"HighBit": 15}


def write_dicom(folder, array, positions, right=(0.0, 0.8, -0.6), down=(1.0, 0.0, 0.0), **fields):
    """Write ``(columns, rows, slices)`` at ``positions`` (mm) as one series; return the paths.
    ``fields`` overwrite elements; None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    uids = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
    paths = []
    for number, height in enumerate(positions):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = DICOM["SOPClassUID"]
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"IM{len(list(folder.iterdir())):04d}"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        place = np.array([5.0, -3.0, 2.0]) + height * np.cross(right, down)
        tags = {"Rows": array.shape[1], "Columns": array.shape[0], "SOPInstanceUID": generate_uid()}
        tags |= {"ImageOrientationPatient": [*right, *down], "ImagePositionPatient": place.tolist()}
        for key, value in (SECRETS | DICOM | uids | tags | fields).items():
            if value is not None:
                setattr(data, key, value)
        data.PixelData = array[:, :, number].T.astype(np.uint16).tobytes()
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
