"""RandomScar: a TorchIO transform that paints a scar into a study and rewrites its labels, findings and report.

The paper's synthetic-data step [P]: a controller draws wall, level and depth; the candidate region is the chosen AHA
segments ∩ the chosen layer; the text is written from the same draw. Painting itself is in :mod:`lgekit.scar_canvas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torchio as tio
from torchio.transforms.augmentation.random_transform import RandomTransform
from torchio.transforms.intensity_transform import IntensityTransform

from lgekit.anatomy import findings_from_labels
from lgekit.errors import InputError
from lgekit.findings import Findings, Scar
from lgekit.reports import read_report, write_report
from lgekit.scar_canvas import prepare_canvas
from lgekit.studies import NO_REFLOW, SCAR, Study

__all__ = ["AddScar", "RandomScar", "ScarHost", "prepare_canvas", "stated_findings"]


def stated_findings(subject: tio.Subject) -> Findings:
    """What is said of a study: its report where it has one, else its ``findings``, else what its labels show.

    The report comes first because training may use no other truth than the text.
    """
    if subject.get("report"):
        return read_report(str(subject["report"]))
    return _known_findings(subject)


def _known_findings(subject: tio.Subject) -> Findings:
    found = cast("Findings | None", subject.get("findings"))
    if found is None and isinstance(subject, Study) and subject.label_map is not None:
        found = findings_from_labels(subject)
    return found or Findings()


def _has_scar(subject: tio.Subject, label_name: str) -> bool:
    labels = subject.get_image(label_name).data if label_name in subject else torch.zeros(1)
    return bool(((labels == SCAR) | (labels == NO_REFLOW)).any()) or stated_findings(subject).present


class AddScar(IntensityTransform):
    r"""Paint given scars into a late gadolinium enhancement study, and rewrite its words.

    Writes the image, the label map (codes 3 scar, 4 no-reflow), ``findings``, ``report``, ``report_source``
    (``"synthetic"``) and ``scar_note`` (``"painted"``).

    Args:
        findings: scars to add to those that the study has.
        seed: borders, texture and the report's wording follow from it.
        note: why nothing was painted; with it the study stays as it is, and ``scar_note`` says why. It is how
            :class:`RandomScar` leaves a reason in the history.
        style: writer's style of the report (see :func:`lgekit.reports.write_report`); None draws one.
        image_name, label_name: keys of the image and of the label map (background 0, LV cavity 1, myocardium 2,
            scar 3, no-reflow 4, RV 5).
        **kwargs: See [`Transform`][torchio.transforms.Transform] for additional keyword arguments.

    Raises:
        InputError: labels or landmarks are missing, or the scar cannot be placed as described.

    Examples:
        >>> from lgekit.findings import Findings, Scar
        >>> from lgekit.phantom import phantom_study
        >>> from lgekit.scars import AddScar
        >>> inferior = Findings(Scar(walls=("inferior",), levels=("basal", "mid"), depth="subendocardial"))
        >>> scarred = AddScar(inferior, seed=3)(phantom_study(0, seed=0, prevalence=0.0))
        >>> scarred["findings"].walls
        frozenset({'inferior'})
    """

    def __init__(
        self,
        findings: Findings | Scar,
        seed: int = 0,
        note: str = "",
        style: str | None = None,
        image_name: str = "image",
        label_name: str = "labels",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.findings = Findings((findings,)) if isinstance(findings, Scar) else findings
        if not isinstance(self.findings, Findings):
            raise InputError("findings", f"{type(findings).__name__} given", "Give Findings or a Scar.")
        self.seed, self.note, self.style = int(seed), note, style
        self.image_name, self.label_name = image_name, label_name
        self.args_names = ["findings", "seed", "note", "style", "image_name", "label_name"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        if self.note or not self.findings.present:
            subject["scar_note"] = self.note or "unchanged: no scar asked for"
            return subject
        canvas = prepare_canvas(subject, self.image_name, self.label_name)
        image, labels = canvas.paint(self.findings, np.random.default_rng(self.seed))
        before = stated_findings(subject), _known_findings(subject)
        subject.get_image(self.image_name).set_data(torch.from_numpy(image)[None])
        subject.get_image(self.label_name).set_data(torch.from_numpy(labels)[None])
        subject.update(_words(*before, self.findings, self.seed, self.style))
        return subject


def _words(stated: Findings, known: Findings, added: Findings, seed: int, style: str | None) -> dict[str, Any]:
    """What is said of a study after scars were added to what its report stated and what was known of it."""
    report = write_report(Findings(stated.scars + added.scars), np.random.default_rng([seed, 1]), style=style)
    about = {"findings": Findings(known.scars + added.scars), "report": report}
    return about | {"report_source": "synthetic", "scar_note": "painted"}


class ScarHost:
    """A study measured once, to paint many random scars into copies of it: what :class:`RandomScar` paints, quicker.

    Args:
        study: with labels and landmarks (see :func:`lgekit.scar_canvas.prepare_canvas`), without scar.
        prevalence: see :class:`RandomScar`.

    Raises:
        InputError: the study cannot take a scar.
    """

    def __init__(self, study: Study, prevalence: str = "clinical"):
        self.study, self.prevalence = study, prevalence
        self.canvas = prepare_canvas(study)
        self.stated, self.known = stated_findings(study), _known_findings(study)

    def paint(self, seed: int) -> Study:
        """A copy of the study with the scar that this seed paints; what does not change is shared.

        Raises:
            InputError: no scar drawn from this seed fits the study.
        """
        found, painting, image, labels = self.canvas.paint_random(np.random.default_rng(seed), self.prevalence)
        affine = self.study.get_image("image").affine
        fields = dict(self.study) | {
            "image": tio.ScalarImage(tensor=torch.from_numpy(image)[None], affine=affine),
            "labels": tio.LabelMap(tensor=torch.from_numpy(labels)[None], affine=affine),
        }
        return Study(fields | _words(self.stated, self.known, found, painting, None))


class RandomScar(RandomTransform, IntensityTransform):
    r"""Paint a random scar into a late gadolinium enhancement study with a given probability, and rewrite its words.

    The controller draws walls, levels, depth, transmurality and no-reflow; the scar is painted into the chosen AHA
    segments ∩ the chosen layer of the wall, and looks as the study's own blood, myocardium, noise and point spread
    make it look. Levels that the slices do not show are left out; a draw that does not fit is drawn again.
    A study that cannot take a scar comes back as it was: ``scar_note`` and the history say why.

    Works in the scanner's grid (any rotation, mirroring, slice order) and in the standard frame. Chance comes from
    PyTorch's global generator, as in all TorchIO transforms, and ``subject.history`` replays.

    Args:
        p: probability that a study gets a scar.
        prevalence: ``"clinical"`` draws a disease and a pattern typical of it, ``"uniform"`` draws all walls, levels
            and depths alike (see :func:`lgekit.findings.draw_scar`).
        findings: take the scars from here instead: one :class:`~lgekit.findings.Findings`, or several to choose from.
        only_scar_free: leave studies alone that have scar in their labels or their report.
        style: writer's style of the report; None draws one.
        image_name, label_name: keys of the image and of the label map (codes as in :class:`AddScar`).
        **kwargs: See [`Transform`][torchio.transforms.Transform] for additional keyword arguments.

    Raises:
        InputError: unknown ``prevalence``, or ``findings`` of another type.

    Examples:
        >>> import torch, torchio as tio
        >>> from lgekit.phantom import phantom_study
        >>> from lgekit.scars import RandomScar
        >>> transform = tio.Compose([RandomScar(p=1), tio.RandomNoise(std=0.01)])
        >>> _ = torch.manual_seed(0)
        >>> scarred = transform(phantom_study(0, seed=0, prevalence=0.0))
        >>> scarred["findings"].present, scarred["report_source"], scarred.history[0].name
        (True, 'synthetic', 'AddScar')
    """

    def __init__(
        self,
        p: float = 0.5,
        prevalence: str = "clinical",
        findings: Findings | Scar | Sequence[Findings] | None = None,
        only_scar_free: bool = True,
        style: str | None = None,
        image_name: str = "image",
        label_name: str = "labels",
        **kwargs,
    ):
        super().__init__(p=p, **kwargs)
        if prevalence not in ("clinical", "uniform"):
            raise InputError("prevalence", f"unknown value {prevalence!r}", "Use clinical or uniform.")
        if isinstance(findings, Scar):
            findings = Findings((findings,))
        self.findings = (findings,) if isinstance(findings, Findings) else findings and tuple(findings)
        if self.findings and not all(isinstance(choice, Findings) for choice in self.findings):
            raise InputError("findings", f"{findings!r}", "Give Findings, or a list of Findings.")
        self.prevalence, self.only_scar_free, self.style = prevalence, only_scar_free, style
        self.image_name, self.label_name = image_name, label_name

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        seed = self._get_random_seed()
        options: dict[str, Any] = {"style": self.style, "image_name": self.image_name, "label_name": self.label_name}
        options |= self._get_base_args()
        try:
            found, painting = self.get_params(subject, seed)
        except InputError as error:
            return AddScar(Findings(), seed, note=f"unchanged: {error}", **options)(subject)
        return AddScar(found, painting, **options)(subject)

    def get_params(self, subject: tio.Subject, seed: int) -> tuple[Findings, int]:
        """Findings that fit the study, and the seed that paints them.

        Raises:
            InputError: the reason why the study stays as it is.
        """
        if self.only_scar_free and _has_scar(subject, self.label_name):
            raise InputError(
                str(subject.get("study_id", "study")), "has a scar", "Pass only_scar_free=False to add one."
            )
        canvas = prepare_canvas(subject, self.image_name, self.label_name)
        return canvas.draw(np.random.default_rng(seed), self.prevalence, self.findings or ())
