"""A study is a TorchIO subject with a report, findings and landmarks; a cohort is a dataset of studies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torchio as tio
from sklearn.model_selection import StratifiedGroupKFold

from lgekit.errors import InputError

# The one internal code for label maps; readers translate every data set's own codes into it.
BACKGROUND, CAVITY, MYOCARDIUM, SCAR, NO_REFLOW, RV = range(6)
LABEL_NAMES = ("background", "LV cavity", "myocardium", "scar", "no-reflow", "RV cavity")
WALL_CODES = (MYOCARDIUM, SCAR, NO_REFLOW)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Landmarks:
    """Right-ventricular insertion points as angles seen from the LV centre.

    Degrees in [0, 360), counter-clockwise with the array's first axis to the right and its second axis pointing
    down on the screen (0 = right, 90 = up), measured in millimetres (pixels may be anisotropic).

    Attributes:
        anterior_rvip_deg: anterior insertion point; NaN where unknown.
        inferior_rvip_deg: inferior insertion point; NaN where unknown.
        confidence: 0 (a guess) to 1 (sure).
    """

    anterior_rvip_deg: float
    inferior_rvip_deg: float
    confidence: float = 1.0

    @property
    def mirrored(self) -> bool:
        """True where anterior → septum → inferior runs clockwise, the mirror image of the standard display."""
        return bool((self.anterior_rvip_deg - self.inferior_rvip_deg) % 360 < 180)


class Study(tio.Subject):
    """One LGE study: a TorchIO subject, so that every TorchIO transform and loader takes it.

    Keys: ``image`` (ScalarImage, ``(1, X, Y, slices)`` float32, affine in mm) and optionally ``labels`` (LabelMap of
    the same shape, uint8, codes as above); ``study_id``, ``patient_id``, ``report``, ``report_source`` (``clinical``,
    ``masks``, ``phantom``, ``none``), ``findings`` (truth, for evaluation only), ``landmarks``, ``split``.
    """

    if TYPE_CHECKING:  # TorchIO types every value as object

        def __getitem__(self, key: Any) -> Any: ...

    def __init__(self, *args, **kwargs):
        if not args:
            for key, default in (
                ("report", ""),
                ("report_source", "none"),
                ("findings", None),
                ("landmarks", None),
                ("split", ""),
            ):
                kwargs.setdefault(key, default)
            if "study_id" in kwargs:
                kwargs.setdefault("patient_id", kwargs["study_id"])
        super().__init__(*args, **kwargs)

    @classmethod
    def from_arrays(
        cls, study_id: str, image, spacing: Sequence[float], labels=None, **fields
    ) -> Study:
        """Make a study from arrays.

        Args:
            study_id: a name that identifies no person.
            image: ``(X, Y, slices)``, any real dtype; stored as float32.
            spacing: millimetres per voxel along the three axes; the slice axis holds slice thickness + gap.
            labels: ``(X, Y, slices)`` in the internal codes, or None.
            fields: further keys (``report``, ``findings``, …).
        """
        affine = np.diag([*map(float, spacing), 1.0])
        image = torch.as_tensor(np.ascontiguousarray(image), dtype=torch.float32)[
            None
        ]  # (1, X, Y, S)
        fields["image"] = tio.ScalarImage(tensor=image, affine=affine)
        if labels is not None:
            labels = torch.as_tensor(np.ascontiguousarray(labels), dtype=torch.uint8)[None]
            fields["labels"] = tio.LabelMap(tensor=labels, affine=affine)
        return cls(study_id=study_id, **fields)

    @property
    def pixels(self) -> np.ndarray:
        """The image as ``(X, Y, slices)`` float32, sharing memory with the tensor."""
        return self["image"].data[0].numpy()

    @property
    def label_map(self) -> np.ndarray | None:
        """The labels as ``(X, Y, slices)``, or None."""
        return self["labels"].data[0].numpy() if "labels" in self else None

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Millimetres per voxel along the array's three axes."""
        x, y, slices = map(float, self["image"].spacing)
        return x, y, slices


class Cohort(tio.SubjectsDataset):
    """Studies with a manifest: a TorchIO ``SubjectsDataset``, so every TorchIO loader works on it.

    Attributes:
        name: the SPEC it was read from, or what the caller calls it.
        manifest: one row a study: ``study_id, patient_id, split, report, report_source, scar``; ``scar`` is the
            presence of scar (True, False or missing where unknown).
    """

    def __init__(self, studies: Iterable[Study], name: str = "", transform=None):
        self.name = name
        self.studies: list[Study] = list(studies)
        super().__init__(self.studies, transform=transform)
        self.manifest = pd.DataFrame(
            [
                {
                    key: study[key]
                    for key in ("study_id", "patient_id", "split", "report", "report_source")
                }
                | {"scar": study["findings"].present if study["findings"] is not None else None}
                for study in self.studies
            ],
            columns=["study_id", "patient_id", "split", "report", "report_source", "scar"],
        )

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def split(self, name: str) -> Cohort:
        """The studies of one split (``train``, ``validation`` or ``test``). Raises InputError where it has none."""
        if not (found := [study for study in self.studies if study["split"] == name]):
            raise InputError(
                self.name,
                f"the split {name!r} holds no study",
                "Give more patients, or a split column.",
            )
        return Cohort(found, f"{self.name} [{name}]")

    def subset(self, study_ids: Iterable[str]) -> Cohort:
        """The studies with these ids, in the cohort's order."""
        wanted = set(study_ids)
        return Cohort([study for study in self.studies if study["study_id"] in wanted], self.name)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any pixel, label, report or split of the cohort."""
        digest = hashlib.sha256()
        for study in self.studies:
            spacing = np.round(study.spacing_mm, 4).tolist()  # NIfTI keeps 32 bits of it
            digest.update(
                repr((study["study_id"], study["report"], study["split"], spacing)).encode()
            )
            digest.update(np.ascontiguousarray(study.pixels).tobytes())
            if study.label_map is not None:
                digest.update(np.ascontiguousarray(study.label_map).tobytes())
        return digest.hexdigest()[:16]


def hash_unit(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: the same on every machine, and for ever."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_of(
    patient_id: str, present: bool | None, seed: int = 0, fractions=(0.6, 0.2, 0.2)
) -> str:
    """The split of a patient, from a hash of the id: adding studies moves nobody.

    Args:
        patient_id: the patient, whose studies all get the same split.
        present: presence of scar; it only salts the hash, so that positives and negatives are drawn apart.
        seed: another seed, another split.
        fractions: shares of train, validation and test.
    """
    draw = hash_unit(f"{seed}/{present}/{patient_id}")
    edges = np.cumsum(fractions)
    return SPLITS[int(np.searchsorted(edges[:-1], draw, side="right"))]


def patient_folds(cohort: Cohort, folds: int, seed: int) -> np.ndarray:
    """Fold number of each study, ``(studies,)`` int: patients whole, stratified by presence where it is known.

    Raises:
        InputError: fewer than ``folds`` patients with scar and as few without.
    """
    present = cohort.manifest["scar"].map({True: 1, False: 0}).fillna(0).to_numpy(int)
    groups = cohort.manifest["patient_id"].to_numpy()
    fold = np.empty(len(present), dtype=int)
    largest = int(
        np.bincount(present).max(initial=0)
    )  # scikit-learn wants the larger class in every fold
    if largest < folds:
        problem = f"{largest} studies with scar or without, whichever is more, for {folds} folds"
        raise InputError(cohort.name, problem, "Give more studies, or lower the number of folds.")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(present)), present, groups)):
        fold[held_out] = number
    return fold
