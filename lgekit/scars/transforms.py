"""Paint synthetic scars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torchio as tio
from scipy import ndimage
from torchio.transforms.augmentation.random_transform import RandomTransform
from torchio.transforms.intensity_transform import IntensityTransform

from lgekit.anatomy.segments import findings_from_labels, insertion_points
from lgekit.errors import InputError
from lgekit.findings import LEVELS, Findings, Scar, draw_findings
from lgekit.reports.reader import read_report
from lgekit.reports.writer import write_report
from lgekit.scars.region import (
    Geometry,
    Region,
    draw_region,
    random_fields,
    wall_geometry,
)
from lgekit.study import (
    CAVITY,
    MYOCARDIUM,
    NO_REFLOW,
    RV,
    SCAR,
    WALL_CODES,
    Landmarks,
    Study,
)

# What scars look like in the 40 infarcts of EMIDEC that the project develops on (Lalande et al., Data 2020, 5(4), 89),
# over studies: enhancement / (blood - remote) has the median 1.1 and a log-sd of 0.33, 0.15 between slices of one
# study; no-reflow lies at 0.5 +- 0.3 of the enhancement.
CONTRAST, CONTRAST_SPREAD, SLICE_SPREAD, PATCHINESS = 1.5, 0.30, 0.10, 0.22
MINIMUM_WALL_VOXELS = 30
SOFT_BORDER_MM = 8.0  # grey zone and point spread end here
DRAWS = 8  # findings drawn for one study before it is left as it is


@dataclass(frozen=True)
class ScarCanvas:
    """A study ready to be painted: geometry, and what its intensities are like. Make it with `prepare_canvas`.

    Attributes:
        spacing: mm in plane.
        image, labels: the study's arrays, ``(X, Y, slices)`` float32 and uint8; never written to.
        geometry: the wall's coordinates.
        remote, blood: medians of myocardium and cavity in each slice of the box, ``(slices,)``.
        smooth: local mean within the wall, ``(voxels,)``; with ``remote`` it follows bias field and partial volume.
        noise: standard deviation of the wall about ``smooth``, one number.
        blur: matrices ``(x, x)`` and ``(y, y)`` that apply the study's point spread to a slice of the box.
        whole_numbers: the image holds integers only, so the painted one does too.
        free: voxels of healthy wall that may become scar, ``(voxels,)`` bool.
    """

    study_id: str
    spacing: tuple[float, float]
    image: np.ndarray
    labels: np.ndarray
    geometry: Geometry
    remote: np.ndarray
    blood: np.ndarray
    smooth: np.ndarray
    noise: float
    blur: tuple[np.ndarray, np.ndarray]
    whole_numbers: bool
    free: np.ndarray

    def levels_present(self) -> tuple[str, ...]:
        """Levels (of `LEVELS`) that the stack of slices shows; few stacks hold the apex."""
        return tuple(
            level for third, level in enumerate(LEVELS) if (self.geometry.thirds == third).any()
        )

    def fit(self, findings: Findings) -> Findings:
        """The findings without levels that this stack does not show; scars that have no other level are left out."""
        shown = self.levels_present()
        kept = []
        for scar in findings.scars:
            levels = tuple(level for level in scar.levels if level in shown)
            if levels or not scar.levels:
                kept.append(replace(scar, levels=levels))
        return Findings(tuple(kept))

    def paint(self, findings: Findings, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Paint scars.

        Args:
            findings: where; each scar must name a wall or a level that the stack shows.
            rng: the only source of chance.

        Returns:
            New image and labels, ``(X, Y, slices)`` float32 and uint8. More than 8 mm from the new scar the image is
            bit-identical, and so are slices without it; no label outside the healthy wall changes.

        Raises:
            InputError: where a scar cannot be placed as described.
        """
        return self._paint_regions(self._regions(findings, rng), rng)

    def paint_random(
        self, rng: np.random.Generator, prevalence: str = "clinical"
    ) -> tuple[Findings, int, np.ndarray, np.ndarray]:
        """:meth:`draw` and :meth:`paint` in one, the place of the scars drawn once: findings, seed, image, labels."""
        found, seed, regions, painting = self._draw(rng, prevalence)
        return found, seed, *self._paint_regions(regions, painting)

    def draw(
        self,
        rng: np.random.Generator,
        prevalence: str = "clinical",
        choices: Sequence[Findings] = (),
    ) -> tuple[Findings, int]:
        """Draw findings that fit this study, and the seed of a generator with which `paint` places them.

        Args:
            rng: the only source of chance.
            prevalence: see :func:`lgekit.findings.draw_scar`.
            choices: findings to choose from instead.

        Raises:
            InputError: none of 8 draws fits; the reason of the last.
        """
        return self._draw(rng, prevalence, choices)[:2]

    def _draw(
        self, rng: np.random.Generator, prevalence: str, choices: Sequence[Findings] = ()
    ) -> tuple[Findings, int, list[Region], np.random.Generator]:
        """Findings that fit, their seed, and what `paint` would draw from it: the regions, and its generator after."""
        reason = InputError(
            self.study_id, "no findings drawn fit its slices", "Choose others, or more slices."
        )
        for _ in range(DRAWS):
            drawn = (
                choices[int(rng.integers(len(choices)))]
                if choices
                else draw_findings(rng, prevalence)
            )
            found, seed = self.fit(drawn), int(rng.integers(2**31))
            if not found.present:
                continue
            painting = np.random.default_rng(seed)
            try:
                regions = self._regions(found, painting)
            except InputError as error:
                reason = error
                continue
            return found, seed, regions, painting
        raise reason

    def _regions(self, findings: Findings, rng: np.random.Generator) -> list[Region]:
        return [draw_region(self.geometry, self.free, scar, rng) for scar in findings.scars]

    def _paint_regions(
        self, regions: list[Region], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        image, labels = self.image.copy(), self.labels.copy()
        for region in regions:
            self._paint_one(region, rng, image[self.geometry.box], labels[self.geometry.box])
        return image, labels

    def _paint_one(
        self, region: Region, rng: np.random.Generator, image: np.ndarray, labels: np.ndarray
    ) -> None:
        x, y, plane = np.unravel_index(self.geometry.index[region.voxels], self.geometry.shape)
        mask = region.depth_mm > 0
        labels[x[mask], y[mask], plane[mask]] = np.where(region.core > 0, NO_REFLOW, SCAR)[mask]
        # only slices with scar, and only the rectangle around it
        (left, right), (top, bottom) = (
            (
                max(int(v.min()) - int(SOFT_BORDER_MM / h) - 1, 0),
                int(v.max()) + int(SOFT_BORDER_MM / h) + 2,
            )
            for v, h in ((x[mask], self.spacing[0]), (y[mask], self.spacing[1]))
        )
        planes = np.unique(plane[mask])
        local = image[left:right, top:bottom]
        inside = np.isin(plane, planes) & (x >= left) & (x < right) & (y >= top) & (y < bottom)
        place = np.searchsorted(planes, plane[inside]), x[inside] - left, y[inside] - top
        field = np.zeros(
            (3, len(planes), *local.shape[:2]), np.float32
        )  # rise, share of scar, the mask
        for layer, values in zip(
            field, (self._enhancement(region, rng), region.membership, mask), strict=True
        ):
            layer[place] = values[inside]
        rise, share = (
            self.blur[0][left:right, left:right]
            @ field[:2]
            @ self.blur[1][top:bottom, top:bottom].T
        )
        for n, k in enumerate(planes):
            near = (
                ndimage.distance_transform_edt(field[2, n] == 0, sampling=self.spacing)
                < SOFT_BORDER_MM
            )
            painted = local[..., k] + rise[n]
            painted = np.rint(painted) if self.whole_numbers else painted
            local[..., k] = np.where(near & (share[n] > 0.02), painted, local[..., k])

    def _enhancement(self, region: Region, rng: np.random.Generator) -> np.ndarray:
        """Rise of the signal in each voxel of the region before the point spread, ``(region voxels,)``."""
        geometry, voxels = self.geometry, region.voxels
        plane, bins, depth = geometry.plane[voxels], geometry.bin[voxels], geometry.depth[voxels]
        contrast = CONTRAST * np.exp(np.clip(rng.normal(0, CONTRAST_SPREAD), -0.7, 0.7))
        by_slice = np.exp(rng.normal(0, SLICE_SPREAD, geometry.shape[2]))
        height = (
            contrast * np.maximum(self.blood - self.remote, 2.5 * self.noise) * by_slice
        )  # (slices,)
        patch = random_fields(rng, 2, geometry.shape[2])
        patchiness = patch[0][bins, plane] * (1 - depth) + patch[1][bins, plane] * depth
        height_here = height[plane] * (1 + PATCHINESS * patchiness)
        rise = np.clip(
            self.remote[plane] + height_here - self.smooth[voxels], 0, 1.25 * height[plane]
        )
        darker = np.clip(rng.normal(0.5, 0.25), 0.1, 1.0)
        core = np.clip(0.5 + region.core, 0, 1)
        return (rise * region.membership * (1 - darker * core)).astype(np.float32)


def prepare_canvas(
    study: tio.Subject, image_name: str = "image", label_name: str = "labels"
) -> ScarCanvas:
    """Measure a study once, to paint many scars into it.

    Args:
        study: image and label map ``(1, X, Y, slices)``, any rotation, mirroring and slice order, with ``landmarks``
            (both RV insertion points) or a labelled right ventricle to find them from, which is less sure.
        image_name, label_name: their keys.

    Raises:
        InputError: no labels, another shape, under 30 voxels of wall, unknown landmarks, NaN.
    """
    name = str(study.get("study_id", "study"))
    for key in (image_name, label_name):
        if key not in study:
            raise InputError(
                name,
                f"has no {key!r}",
                f"It has {', '.join(study.keys())}; labels come from the heart network.",
            )
    stack, labels = study.get_image(image_name), study.get_image(label_name).data[0].numpy()
    image, spacing = stack.data[0].numpy(), tuple(float(value) for value in stack.spacing)
    if stack.data.shape[0] != 1:
        raise InputError(
            name, f"{stack.data.shape[0]} channels", "Give one channel, (1, X, Y, slices)."
        )
    if image.shape != labels.shape:
        raise InputError(
            name, f"labels {labels.shape}, image {image.shape}", "Give labels of the image's shape."
        )
    count = int(np.isin(labels, WALL_CODES).sum())
    if count < MINIMUM_WALL_VOXELS:
        raise InputError(
            name,
            f"{count} voxels of myocardium",
            f"A scar needs {MINIMUM_WALL_VOXELS} or more (codes 2-4).",
        )
    landmarks = cast("Landmarks | None", study.get("landmarks"))
    if landmarks is None and (labels == RV).any():
        landmarks = insertion_points(labels, spacing)
    if landmarks is None:
        raise InputError(
            name,
            "RV insertion points unknown",
            "Give landmarks, an RV label, or run the heart network.",
        )
    geometry = wall_geometry(labels, spacing, landmarks)
    image = np.ascontiguousarray(image, dtype=np.float32)
    crop, codes = image[geometry.box], labels[geometry.box]
    if not np.isfinite(crop).all():
        raise InputError(name, "NaN or infinite values around the heart", "Repair the image.")
    wall = np.isin(codes, WALL_CODES)
    healthy = codes == MYOCARDIUM
    flat = geometry.index
    values, middle = (
        crop.reshape(-1)[flat],
        healthy.reshape(-1)[flat] & (np.abs(geometry.depth - 0.5) < 0.3),
    )
    slices = range(geometry.shape[2])
    if not middle.any():
        raise InputError(
            name, "no healthy myocardium", "Choose a study whose wall is not all scar."
        )
    cavity = codes == CAVITY
    deep = ndimage.binary_erosion(cavity, np.ones((3, 3, 1)))
    blood_of = [crop[..., s][deep[..., s]] for s in slices]
    remote_of = [values[middle & (geometry.plane == s)] for s in slices]
    remote, blood = _medians(remote_of), _medians(blood_of)
    scale = [1.5 / spacing[0] * 1.5, 1.5 / spacing[1] * 1.5, 0]
    weight = ndimage.gaussian_filter(healthy.astype(np.float32), scale)
    mean = ndimage.gaussian_filter(np.where(healthy, crop, 0), scale) / np.maximum(weight, 1e-3)
    mean = mean.reshape(-1)[flat]
    smooth = np.where(weight.reshape(-1)[flat] > 0.05, mean, remote[geometry.plane])
    noise = float(1.4826 * np.median(np.abs(values - smooth)[middle]))
    heart = wall | cavity
    spread = [4 / spacing[0], 4 / spacing[1], 0]
    share = np.maximum(ndimage.gaussian_filter(heart.astype(np.float32), spread), 0.05)
    residual = crop - ndimage.gaussian_filter(np.where(heart, crop, 0), spread) / share
    inside = ndimage.binary_erosion(heart, np.ones((3, 3, 1)))
    blur = [
        _blur_matrix(crop.shape[axis], _point_spread(residual, inside, axis)) for axis in (0, 1)
    ]
    whole = bool((crop == np.rint(crop)).all())
    free = healthy.reshape(-1)[flat]
    return ScarCanvas(
        *(name, (spacing[0], spacing[1]), image, labels, geometry, remote, blood),
        *(smooth, noise, (blur[0], blur[1]), whole, free),
    )


def _medians(groups: list[np.ndarray]) -> np.ndarray:
    """Median of each slice; of all slices together where a slice has fewer than 8 voxels."""
    everything = np.concatenate(groups)
    overall = np.median(everything) if len(everything) else 0.0
    return np.array(
        [np.median(group) if len(group) >= 8 else overall for group in groups], np.float32
    )


def _point_spread(residual: np.ndarray, inside: np.ndarray, axis: int) -> float:
    """Standard deviation of the point spread along an axis, in voxels, from how alike neighbouring noise is.

    White noise under a Gaussian of standard deviation ``sd`` has autocorrelation exp(-1 / (4 sd²)) at distance 1, and
    scanner and storage blur noise and object alike (interpolated images do; at least 0.6 voxels where noise is white).

    Args:
        residual: image less its local mean, ``(x, y, slices)``.
        inside: where to look, bool of the same shape.
    """
    first, second = (
        (slice(None, -1), slice(1, None))
        if axis == 0
        else ((slice(None), slice(None, -1)), (slice(None), slice(1, None)))
    )
    both = inside[first] & inside[second]
    power = float((residual[inside] ** 2).mean()) if inside.any() else 0.0
    if both.sum() < 50 or power <= 0:
        return 0.8
    alike = float((residual[first] * residual[second])[both].mean()) / power
    return float(np.clip(np.sqrt(-0.25 / np.log(np.clip(alike, 0.01, 0.95))), 0.6, 2.0))


def _blur_matrix(count: int, sd: float) -> np.ndarray:
    """A Gaussian as a ``(count, count)`` matrix, cut at 4 standard deviations."""
    apart = np.abs(np.arange(count)[:, None] - np.arange(count)[None])
    kernel = np.where(apart <= np.ceil(4 * sd), np.exp(-0.5 * np.minimum(apart / sd, 20) ** 2), 0)
    return (kernel / kernel[count // 2].sum()).astype(np.float32)


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
    return (
        bool(((labels == SCAR) | (labels == NO_REFLOW)).any()) or stated_findings(subject).present
    )


class AddScar(IntensityTransform):
    r"""Paint given scars into a late gadolinium enhancement study, and rewrite its words.

    Writes the image, the label map (codes 3 scar, 4 no-reflow), ``findings``, ``report``, ``report_source``
    (``"synthetic"``) and ``scar_note`` (``"painted"``).

    Args:
        findings: scars to add to those that the study has.
        seed: borders, texture and the report's wording follow from it.
        note: why nothing was painted; with it the study stays as it is, and ``scar_note`` says why. It is how
            :class:`RandomScar` leaves a reason in the history.
        style: writer's style of the report (see :func:`lgekit.reports.writer.write_report`); None draws one.
        image_name, label_name: keys of the image and of the label map (background 0, LV cavity 1, myocardium 2,
            scar 3, no-reflow 4, RV 5).
        **kwargs: See [`Transform`][torchio.transforms.Transform] for additional keyword arguments.

    Raises:
        InputError: labels or landmarks are missing, or the scar cannot be placed as described.

    Examples:
        >>> from lgekit.findings import Findings, Scar
        >>> from lgekit.data.phantom import phantom_study
        >>> from lgekit.scars.transforms import AddScar
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
            raise InputError(
                "findings", f"{type(findings).__name__} given", "Give Findings or a Scar."
            )
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


def _words(
    stated: Findings, known: Findings, added: Findings, seed: int, style: str | None
) -> dict[str, Any]:
    """What is said of a study after scars were added to what its report stated and what was known of it."""
    report = write_report(
        Findings(stated.scars + added.scars), np.random.default_rng([seed, 1]), style=style
    )
    about = {"findings": Findings(known.scars + added.scars), "report": report}
    return about | {"report_source": "synthetic", "scar_note": "painted"}


class ScarHost:
    """A study measured once, to paint many random scars into copies of it: what :class:`RandomScar` paints, quicker.

    Args:
        study: with labels and landmarks (see :func:`lgekit.scars.transforms.prepare_canvas`), without scar.
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
        found, painting, image, labels = self.canvas.paint_random(
            np.random.default_rng(seed), self.prevalence
        )
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
        >>> from lgekit.data.phantom import phantom_study
        >>> from lgekit.scars.transforms import RandomScar
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
            raise InputError(
                "prevalence", f"unknown value {prevalence!r}", "Use clinical or uniform."
            )
        if isinstance(findings, Scar):
            findings = Findings((findings,))
        self.findings = (
            (findings,) if isinstance(findings, Findings) else findings and tuple(findings)
        )
        if self.findings and not all(isinstance(choice, Findings) for choice in self.findings):
            raise InputError("findings", f"{findings!r}", "Give Findings, or a list of Findings.")
        self.prevalence, self.only_scar_free, self.style = prevalence, only_scar_free, style
        self.image_name, self.label_name = image_name, label_name

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        seed = self._get_random_seed()
        options: dict[str, Any] = {
            "style": self.style,
            "image_name": self.image_name,
            "label_name": self.label_name,
        }
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
                str(subject.get("study_id", "study")),
                "has a scar",
                "Pass only_scar_free=False to add one.",
            )
        canvas = prepare_canvas(subject, self.image_name, self.label_name)
        return canvas.draw(np.random.default_rng(seed), self.prevalence, self.findings or ())
