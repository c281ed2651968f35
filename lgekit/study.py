"""A study is a TorchIO subject with a report, findings and landmarks. A cohort holds studies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd
import torch
import torchio as tio
from sklearn.model_selection import StratifiedGroupKFold

from lgekit.errors import InputError
from lgekit.findings import Findings

# Codes of label maps. Readers translate the codes of each data set into these.
BACKGROUND, CAVITY, MYOCARDIUM, SCAR, NO_REFLOW, RV = range(6)
LABEL_NAMES = ("background", "LV cavity", "myocardium", "scar", "no-reflow", "RV cavity")
SCARRED = (SCAR, NO_REFLOW)
WALL_CODES = (MYOCARDIUM, *SCARRED)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Landmarks:
    """Right-ventricular insertion points, as angles seen from the LV centre.

    Degrees in [0, 360), counter-clockwise on a screen where the first array axis points right and
    the second points down (0 = right, 90 = up), measured in millimetres. NaN: unknown.
    """

    anterior_rvip_deg: float
    inferior_rvip_deg: float
    confidence: float = 1.0  # 0: a guess, 1: certain

    @property
    def angles(self) -> np.ndarray:
        """Both angles, ``(2,)``: anterior, inferior."""
        return np.array([self.anterior_rvip_deg, self.inferior_rvip_deg])

    @property
    def mirrored(self) -> bool:
        """True if anterior → septum → inferior runs clockwise: a mirrored standard display."""
        return bool((self.anterior_rvip_deg - self.inferior_rvip_deg) % 360 < 180)


class Study(tio.Subject):
    """One LGE study: a TorchIO subject, which every TorchIO transform and loader accepts.

    Each entry is a key and an attribute: ``study["report"]`` is ``study.report``.
    """

    image: tio.ScalarImage  # (1, X, Y, slices) float32, with its affine in mm
    labels: tio.LabelMap  # optional, same shape, uint8; see `label_map`
    study_id: str
    patient_id: str
    report: str
    report_source: str  # clinical, masks, phantom or none
    findings: Findings | None  # ground truth, for evaluation only
    landmarks: Landmarks | None
    split: str  # one of `SPLITS`, or empty

    def __init__(self, *args, **kwargs):
        if not args:
            defaults = {"report": "", "report_source": "none", "split": ""}
            defaults |= {"findings": None, "landmarks": None, "patient_id": kwargs.get("study_id")}
            kwargs = defaults | kwargs
        super().__init__(*args, **kwargs)

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, value)
        self.__dict__[key] = value  # TorchIO copies entries to attributes only once

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __getitem__(self, item: Literal["image"]) -> tio.ScalarImage: ...
        @overload
        def __getitem__(self, item: Literal["labels"]) -> tio.LabelMap: ...
        @overload
        def __getitem__(self, item: Literal["findings"]) -> Findings | None: ...
        @overload
        def __getitem__(self, item: Literal["landmarks"]) -> Landmarks | None: ...
        @overload
        def __getitem__(self, item: Literal["study_id", "patient_id", "report"]) -> str: ...
        @overload
        def __getitem__(self, item: Any) -> Any: ...
        def __getitem__(self, item: Any) -> Any: ...

    @classmethod
    def from_arrays(cls, study_id: str, image, spacing, labels=None, **fields) -> Study:
        """Make a study from ``(X, Y, slices)`` arrays; ``labels`` are codes such as `SCAR`.

        ``spacing`` is in mm on the three axes; for slices, thickness + gap. ``fields`` are further
        entries (``report``, ``findings``, …). The ``study_id`` must identify no person.
        """
        affine = np.diag([*map(float, spacing), 1.0])
        pixels = torch.as_tensor(np.ascontiguousarray(image), dtype=torch.float32)
        fields["image"] = tio.ScalarImage(tensor=pixels[None], affine=affine)
        if labels is not None:
            codes = torch.as_tensor(np.ascontiguousarray(labels), dtype=torch.uint8)
            fields["labels"] = tio.LabelMap(tensor=codes[None], affine=affine)
        return cls(study_id=study_id, **fields)

    @property
    def pixels(self) -> np.ndarray:
        """The image, ``(X, Y, slices)`` float32; it shares memory with the tensor."""
        return self["image"].data[0].numpy()

    @property
    def label_map(self) -> np.ndarray | None:
        """The labels, ``(X, Y, slices)`` uint8, or None."""
        return self["labels"].data[0].numpy() if "labels" in self else None

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Millimetres per voxel along the three axes."""
        x, y, slices = map(float, self["image"].spacing)
        return x, y, slices


class Cohort(tio.SubjectsDataset):
    """Studies with a manifest: a TorchIO ``SubjectsDataset``, which every TorchIO loader accepts.

    Attributes:
        name: the SPEC it was read from, or the caller's own name.
        manifest: one row per study; its column ``scar`` is missing where unknown.
    """

    def __init__(self, studies: Iterable[Study], name: str = ""):
        self.name = name
        self.studies: list[Study] = list(studies)
        super().__init__(self.studies)
        columns = ["study_id", "patient_id", "split", "report", "report_source"]
        rows = [[study[column] for column in columns] for study in self.studies]
        self.manifest = pd.DataFrame(rows, columns=columns)
        truth = (study["findings"] for study in self.studies)
        self.manifest["scar"] = [None if found is None else found.present for found in truth]

    def example(self) -> Study:
        """Return the first study by id with scar in 1-3 walls, else in more, else any."""

        def rank(study: Study) -> tuple[bool, bool, str]:
            walls = study["findings"].walls if study["findings"] is not None else ()
            return not 1 <= len(walls) <= 3, not walls, study["study_id"]

        return min(self.studies, key=rank)

    def split(self, name: str) -> Cohort:
        """Return the studies of one of `SPLITS`. Raises InputError if there are none."""
        found = [study for study in self.studies if study["split"] == name]
        if not found:
            remedy = "Give more patients, or a split column."
            raise InputError(self.name, f"the split {name!r} has no studies", remedy)
        return Cohort(found, f"{self.name} [{name}]")

    def subset(self, study_ids: Iterable[str]) -> Cohort:
        """Return the studies with these ids, in the cohort's order."""
        wanted = set(study_ids)
        return Cohort([study for study in self.studies if study["study_id"] in wanted], self.name)

    def patient_folds(self, folds: int, seed: int) -> np.ndarray:
        """Return the fold of each study, ``(studies,)`` int, by patient and stratified by scar.

        Raises InputError for too few patients, or studies of the larger class.
        """
        present = self.manifest["scar"].eq(True).to_numpy(int)
        groups = self.manifest["patient_id"].to_numpy()
        largest = min(len(set(groups)), int(np.bincount(present).max(initial=0)))
        if largest < folds:  # scikit-learn needs patients and the larger class in every fold
            problem = f"only {largest} patients, or studies with or without scar, for {folds} folds"
            raise InputError(self.name, problem, "Give more studies, or lower the number of folds.")
        fold = np.empty(len(present), dtype=int)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for number, (_, held_out) in enumerate(splitter.split(present, present, groups)):
            fold[held_out] = number
        return fold

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any pixel, label or split; reports are left out."""
        digest = hashlib.sha256()
        for study in self.studies:
            spacing = np.round(study.spacing_mm, 4).tolist()  # NIfTI keeps 32 bits of it
            fields = (study["study_id"], study["split"], spacing)
            digest.update(repr(fields).encode() + study.pixels.tobytes())
            if study.label_map is not None:
                digest.update(study.label_map.tobytes())
        return digest.hexdigest()[:16]


def hash_unit(text: str) -> float:
    """Return a number in [0, 1) that depends only on the text, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_of(patient_id: str, present: bool | None) -> str:
    """Return the split of a patient, 60:20:20, from a hash of the id: new studies move no patient.

    The patient's presence of scar salts the hash, so that each class is drawn separately.
    """
    draw = hash_unit(f"0/{present}/{patient_id}")
    return SPLITS[int(np.searchsorted((0.6, 0.8), draw, side="right"))]
