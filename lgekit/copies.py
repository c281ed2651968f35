"""The same image under two patients' names: one person twice, or a file copied by mistake. Folds must not part them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lgekit.errors import InputError
from lgekit.studies import Cohort, Study
from lgekit.volumes import Fault

REMEDY = "Remove one of the two, or give both the same patient_id (reading counts them as one patient)"


class SeenImages:
    """The images met so far, by digest: study and patient."""

    def __init__(self) -> None:
        self.owners: dict[str, tuple[str, str]] = {}

    @staticmethod
    def digest(study: Study) -> str:
        """32 hex digits of an image's values and shape."""
        pixels = study.pixels
        return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest()

    def elsewhere(self, study: Study) -> tuple[str, str] | None:
        """Study and patient that brought this image, value by value, before; None if nobody or the same patient."""
        owner = self.owners.setdefault(self.digest(study), (study["study_id"], study["patient_id"]))
        return owner if owner[1] != study["patient_id"] else None

    def faults(self, study: Study) -> list[Fault]:
        """The fault of a study whose image another patient has too."""
        owner = self.elsewhere(study)
        if owner is None:
            return []
        problem = f"the same image as {owner[0]} of patient {owner[1]}"
        return [Fault(study["study_id"], study["study_id"], problem, REMEDY, truth_only=True)]


def join_copies(studies: list[Study]) -> list[UserWarning]:
    """Give patients with the same image one ``patient_id``, that of the first; a warning for each such image."""
    seen, notes = SeenImages(), []
    for study in studies:
        owner = seen.elsewhere(study)
        if owner is None:
            continue
        notes.append(UserWarning(f"{study['study_id']}: the same image as {owner[0]}; counted as patient {owner[1]}"))
        ours = study["patient_id"]
        for one in studies:
            if one["patient_id"] == ours:
                one["patient_id"] = owner[1]
        names = seen.owners.items()
        seen.owners = {key: (name, owner[1] if patient == ours else patient) for key, (name, patient) in names}
    return notes


def refuse_shared(cohort: Cohort, further: Sequence[Cohort]) -> None:
    """Refuse cohorts for pretraining that hold an image of the cohort itself: its test masks would be learned.

    Raises:
        InputError: naming the first such study.
    """
    own = {SeenImages.digest(study): study["study_id"] for study in cohort.studies}
    for other in further:
        for study in other.studies:
            if (name := own.get(SeenImages.digest(study))) is not None:
                problem = f"its study {study['study_id']} has the image of {name} in {cohort.name}"
                raise InputError(other.name, problem, "Leave this cohort out of pretrain_on.")
