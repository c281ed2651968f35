"""TorchIO transforms that paint synthetic scars, from the shape of a scar to its report."""

from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torchio as tio
from scipy import ndimage
from scipy.special import expit
from torchio.transforms.augmentation.random_transform import RandomTransform
from torchio.transforms.intensity_transform import IntensityTransform

from lgekit.anatomy import segments as aha
from lgekit.anatomy.segments import wall_depth
from lgekit.errors import InputError
from lgekit.findings import LEVELS, WALLS, Findings, Scar, draw_findings
from lgekit.reports.reader import read_report
from lgekit.reports.writer import write_report
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, SCAR, Landmarks, Study

# Contrast of the scars of 40 EMIDEC infarcts (Lalande et al., Data 2020;5(4):89), over studies:
# median of enhancement / (blood - remote) 1.1, log-sd 0.33.
# The signal of no-reflow is 0.5 +- 0.3 of the enhancement.
CONTRAST, CONTRAST_SPREAD, PATCHINESS = 1.5, 0.30, 0.22
MINIMUM_WALL_VOXELS = 30
GREY_ZONE_MM = 0.8, 2.0  # softness of a scar's border
REACH_MM = 8.0  # beyond this distance from a scar the image does not change
BLUR = 1.0  # standard deviation of the point spread, in voxels [O]
PLACEMENTS = 16  # shapes drawn for one scar
FINDINGS_DRAWN = 8  # findings drawn for one study before it stays unchanged

# Extent of each layer as a share of the wall's thickness.
LAYERS = {"subendocardial": (0.25, 0.68), "transmural": (0.8, 0.98)}
LAYERS |= {"mid-wall": (0.28, 0.45), "subepicardial": (0.28, 0.5)}
BINS = 180  # angular bins of 2 degrees
BIN_DEG = (np.arange(BINS) + 0.5) * 360 / BINS


def random_fields(rng: np.random.Generator, count: int, slices: int) -> np.ndarray:
    """Draw smooth fields of variance 1 on the ring of bins: ``(count, bins, slices)``."""
    noise = rng.standard_normal((count, BINS, slices), np.float32)
    smooth = ndimage.gaussian_filter(noise, (0, 4, 0.8), mode=("nearest", "wrap", "nearest"))
    return smooth / smooth.std()


def _degrees_inside(scar: Scar, levels: tuple[str, ...]) -> np.ndarray:
    """Degrees of each bin inside the walls, ``(bins, 4 thirds)``: 180 all around, -180 nowhere."""
    wall = (BIN_DEG - 60) % 360 // 60
    in_walls = np.isin(wall, [WALLS.index(name) for name in scar.walls or WALLS])
    result = np.full((BINS, 4), -180.0, np.float32)
    for third in [LEVELS.index(level) for level in levels]:
        chosen = in_walls.copy()
        if third < 3:  # apical segments are wider than walls: a bin must be in both
            chosen &= np.isin(aha.segment_number(BIN_DEG, third), list(scar.segments))
        result[:, third] = 180 if chosen.all() else -180
        if 0 < chosen.sum() < BINS:
            ring = np.tile(chosen, 3)
            inside, outside = map(ndimage.distance_transform_edt, (ring, ~ring))
            degrees = (2 * (inside - outside) - np.where(ring, 1, -1)) * 180 / BINS
            result[:, third] = degrees[BINS : 2 * BINS]
    return result


class ScarPainter:
    """A study that was measured once, to paint many scars into it.

    It needs labels and ``landmarks`` (both RV insertion points). The arrays from ``x`` to
    ``smooth`` (local mean of the wall) are over the voxels of the wall, with their place in the box
    around it. ``thirds``, ``remote`` and ``blood`` (medians) are per slice.
    """

    def __init__(self, study: Study):
        labels = study.label_map
        if labels is None:
            raise InputError(study["study_id"], "no labels", "The heart network makes labels.")
        healthy = int((labels == MYOCARDIUM).sum())
        if healthy < MINIMUM_WALL_VOXELS:
            remedy = f"A scar needs {MINIMUM_WALL_VOXELS} or more (code 2)."
            raise InputError(study["study_id"], f"{healthy} voxels of healthy myocardium", remedy)
        self.study, self.labels, self.spacing = study, labels, study.spacing_mm[:2]
        self.image = study.pixels.astype(np.float32)
        self._measure_wall(labels, aha.known_landmarks(study))
        self.whole_numbers = bool((self.image[self.box] == np.rint(self.image[self.box])).all())
        self._measure_intensities(self.image[self.box], labels[self.box])

    def _measure_wall(self, labels: np.ndarray, landmarks: Landmarks | None) -> None:
        spacing = self.spacing
        ventricle, x, y, stored, angle = aha.wall_voxels(labels, spacing, landmarks)
        depth = wall_depth(labels, spacing)[x, y, stored]
        margins = [*(int(np.ceil(6 / size)) for size in spacing), 0]
        self.box = tuple(
            slice(max(int(place.min()) - margin, 0), min(int(place.max()) + 1 + margin, size))
            for place, margin, size in zip((x, y, stored), margins, labels.shape, strict=True)
        )
        left, top, first = (side.start for side in self.box)
        self.x, self.y, self.plane = x - left, y - top, stored - first
        self.slices = self.box[2].stop - first
        self.bin = np.minimum((angle * BINS / 360).astype(int), BINS - 1)
        self.cell = aha.wall_cell(self.plane, angle, depth)
        self.cell_size = aha.count_cells(self.cell, self.slices)
        self.depth = depth.astype(np.float32)
        centre = ventricle.centres[stored].T
        radius = np.hypot((x - centre[0]) * spacing[0], (y - centre[1]) * spacing[1])
        self.radius_mm = radius.astype(np.float32)
        # thickness: area of the slice's wall over the length of its middle line
        area = np.bincount(stored) * spacing[0] * spacing[1]
        length = 2 * np.pi * np.bincount(stored, radius) / np.maximum(np.bincount(stored), 1)
        self.thickness_mm = (area / np.maximum(length, 1.0)).astype(np.float32)[stored]
        has_wall = np.isin(np.arange(labels.shape[2]), stored)
        self.thirds = np.where(has_wall, ventricle.thirds, -1)[self.box[2]]

    def _measure_intensities(self, image: np.ndarray, labels: np.ndarray) -> None:
        healthy, place = labels == MYOCARDIUM, (self.x, self.y, self.plane)
        self.free = healthy[place]
        middle = self.free & (np.abs(self.depth - 0.5) < 0.3)
        blood = ndimage.binary_erosion(labels == CAVITY, np.ones((3, 3, 1)))
        self.blood = _medians(image[blood], np.nonzero(blood)[2], self.slices)
        self.remote = _medians(image[place][middle], self.plane[middle], self.slices)
        sigma = [2.25 / self.spacing[0], 2.25 / self.spacing[1], 0]
        smoothed = [
            ndimage.gaussian_filter(one, sigma)[place] for one in (image * healthy, 1.0 * healthy)
        ]
        mean = smoothed[0] / np.maximum(smoothed[1], 1e-3)
        self.smooth = np.where(smoothed[1] > 0.05, mean, self.remote[self.plane])

    def within_stack(self, findings: Findings) -> Findings:
        """Remove levels that the stack does not show, and scars that have no other level."""
        shown = {level for third, level in enumerate(LEVELS) if third in self.thirds}
        kept = [one for one in findings.scars if not one.levels or shown & set(one.levels)]
        return Findings(tuple(replace(one, levels=tuple(shown & set(one.levels))) for one in kept))

    def draw_region(self, scar: Scar, rng: np.random.Generator):
        """Draw the shape of a scar, until walls, levels, depth and extent measure as ``scar`` says.

        Attributes that the scar leaves open are drawn. Returns the wall's voxels in and near the
        scar (indices into the painter's arrays), and for each how far it is inside the scar and
        inside its core of no-reflow (mm; negative outside).
        """
        levels = scar.levels or tuple(LEVELS[third] for third in range(3) if third in self.thirds)
        degrees = _degrees_inside(scar, levels)
        near = degrees[self.bin, self.thirds[self.plane]] > -12
        voxels = np.flatnonzero(near & self.free)
        for _ in range(PLACEMENTS if len(voxels) >= 6 else 0):
            region = self._draw_once(voxels, degrees, scar, rng)
            if region is not None:
                return region
        problem = f"{scar} does not fit the {len(voxels)} healthy voxels there"
        remedy = "Choose other walls or levels, a larger scar, or percentages that suit the depth."
        raise InputError("findings", problem, remedy)

    def _draw_once(self, voxels, degrees, scar: Scar, rng: np.random.Generator):
        """Draw one shape; None if it does not measure as the scar says."""
        plane, bins = self.plane[voxels], self.bin[voxels]
        depth, thickness = self.depth[voxels], self.thickness_mm[voxels]
        layer, thirds = scar.depth or "subendocardial", self.thirds[plane]
        lateral, surface, patch = random_fields(rng, 3, self.slices)[:, bins, plane]

        # the layer's share of the wall
        aim = rng.uniform(*LAYERS[layer])
        if scar.transmurality is not None:
            aim = scar.transmurality / 100
            if layer == "subendocardial":  # beyond, an error of 10 points reads as another layer
                aim = float(np.clip(aim, 0.2, 0.67))
        elif scar.pattern == "linear":
            aim = 0.28

        # sideways: mm inside the lateral border, which is `edge` degrees inside the walls
        half = np.clip(degrees.max(0), 0, 90)  # half the width of the walls in each third
        edge = np.minimum(half * rng.uniform(0.05, 0.5) * min(1, 2 * aim), 45)
        if scar.circumference:
            chosen = np.count_nonzero(degrees[:, half > 0] > 0, axis=0).mean() * 360 / BINS
            edge[:] = np.clip((chosen - 3.6 * scar.circumference) / 2, 0, 0.8 * half.max())
        own = degrees[bins, thirds]
        inner = own - edge[thirds] + 4 * lateral * np.minimum(half[thirds] / 60, 1)
        inner = np.where(own >= 180, 180, np.minimum(inner, own - 1))
        sideways = np.radians(inner) * self.radius_mm[voxels]
        if scar.pattern == "patchy":
            sideways = np.minimum(sideways, (patch + 0.4) * 5)

        # across: mm inside the border of the layer, which is thinner at the scar's edges
        ramp = np.clip(inner / rng.uniform(8, 25), 0, 1)
        profile = 1 - rng.uniform(0.2, 0.7) * (1 - ramp) ** 2
        rough = np.minimum(1.2, 0.14 * thickness) * surface

        def across(extent: float) -> np.ndarray:
            if layer == "mid-wall":
                from_middle = np.abs(depth - 0.5 - 0.05 * patch)
                inside = (extent * profile / 2 - from_middle) * thickness + rough / 2
                return np.minimum(inside, (0.4 - np.abs(depth - 0.5)) * thickness)
            from_border = 1 - depth if layer == "subepicardial" else depth
            return (extent * profile - from_border) * thickness + rough

        if scar.transmurality or layer in ("subendocardial", "transmural"):
            wanted, low, high, size = aim, 0.05, 2.0, self.cell_size.sum(2)
            for _ in range(7):  # bisection for the extent that gives the transmurality
                aim = (low + high) / 2
                filled = self.cell[voxels[np.minimum(sideways, across(aim)) > 0]]
                reached = aha.transmurality_of(aha.count_cells(filled, self.slices).sum(2), size)
                low, high = (aim, high) if reached < wanted else (low, aim)
        inside = np.minimum(sideways, across(aim))
        mask = inside > 0
        if mask.sum() < 3 or not self._agrees(voxels[mask], scar, layer):
            return None
        core = np.full(len(voxels), -9.0, np.float32)
        if scar.no_reflow:
            spared = depth * thickness - rng.uniform(0.2, 1)  # a rim of scar towards the cavity
            core = np.minimum(np.minimum(inside, spared), 2.5) + 0.5 * patch
            core = np.where(mask, core - np.quantile(core[mask], 1 - rng.uniform(0.08, 0.3)), -9.0)
        return voxels, inside, core

    def _agrees(self, scarred: np.ndarray, scar: Scar, layer: str) -> bool:
        """Whether the voxels measure as the scar: walls, levels, depth; percentages within 10."""
        counts = aha.count_cells(self.cell[scarred], self.slices)
        measured = aha.scars_in_words(self.cell_size, counts, np.zeros_like(counts), self.thirds)
        levels = {name for one in measured for name in one.levels}
        scar_size, size = counts.sum(2), self.cell_size.sum(2)
        around = 100 * (scar_size > 0.1 * size)[scar_size.any(1)].mean()  # sectors with scar
        off = [around - (scar.circumference or around)]
        if scar.transmurality:
            off += [(one.transmurality or 0) - scar.transmurality for one in measured]
        return (
            Findings(measured).walls == set(scar.walls or WALLS)
            and levels == set(scar.levels or levels)
            and all(one.depth == layer for one in measured)
            and max(map(abs, off)) <= 10
        )

    def paint(self, findings: Findings, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Paint scars into new image and labels, ``(X, Y, slices)`` float32 and uint8.

        The image changes only in slices with the new scar and within 8 mm of it, the labels only in
        healthy wall. InputError if a scar cannot be placed as described.
        """
        regions = [self.draw_region(scar, rng) for scar in findings.scars]
        image, labels = self.image.copy(), self.labels.copy()
        for region in regions:
            self._paint_region(region, rng, image[self.box], labels[self.box])
        return image, labels

    def _paint_region(self, region: tuple, rng, image: np.ndarray, labels: np.ndarray) -> None:
        """Paint one scar into the box, in place."""
        voxels, inside, core = region
        place = self.x[voxels], self.y[voxels], self.plane[voxels]
        plane = place[2]
        grown = np.where(core > 0, NO_REFLOW, SCAR)
        labels[place] = np.where(inside > 0, grown, labels[place])
        contrast = CONTRAST * np.exp(np.clip(rng.normal(0, CONTRAST_SPREAD), -0.7, 0.7))
        height = contrast * np.abs(self.blood - self.remote)[plane]
        patch = random_fields(rng, 1, self.slices)[0, self.bin[voxels], plane]
        wanted = self.remote[plane] + height * (1 + PATCHINESS * patch)
        rise = np.zeros(image.shape, np.float32)
        rise[place] = np.clip(wanted - self.smooth[voxels], 0, 1.25 * height)
        rise[place] *= 1 - np.clip(rng.normal(0.9, 0.1), 0.7, 1.0) * np.clip(0.5 + core, 0, 1)
        rise[place] *= np.clip((expit(inside / rng.uniform(*GREY_ZONE_MM)) - 0.05) / 0.9, 0, 1)
        scar = np.zeros(image.shape, bool)
        scar[tuple(axis[inside > 0] for axis in place)] = True
        away = ndimage.distance_transform_edt(~scar, sampling=(*self.spacing, 1e3))  # in the slice
        rise = ndimage.gaussian_filter(rise, (BLUR, BLUR, 0), mode="constant", truncate=2)
        rise = np.where(away < REACH_MM, rise, 0)
        image += np.rint(rise) if self.whole_numbers else rise

    def random_copy(self, seed: int) -> Study:
        """Copy the study with the scar that `RandomScar` paints with this seed, or InputError."""
        found, own_seed, *painted = self.draw(np.random.default_rng(seed))
        return _with_scar(deepcopy(self.study), found, own_seed, *painted)

    def draw(self, rng: np.random.Generator):
        """Draw findings that fit, and paint them: findings, seed of `paint`, image, labels."""
        for _ in range(FINDINGS_DRAWN):
            found, seed = self.within_stack(draw_findings(rng)), int(rng.integers(2**31))
            with suppress(InputError):
                if found.present:
                    return found, seed, *self.paint(found, np.random.default_rng(seed))
        raise InputError("findings", "no drawn findings fit this heart", "Give more slices.")


def _medians(values: np.ndarray, plane: np.ndarray, slices: int) -> np.ndarray:
    """Median of each slice; the median of all slices for a slice with fewer than 8 values."""
    overall = np.median(values) if len(values) else 0.0
    groups = [values[plane == s] for s in range(slices)]
    medians = [np.median(group) if len(group) >= 8 else overall for group in groups]
    return np.array(medians, np.float32)


def stated_findings(study: Study) -> Findings:
    """Return the findings of the report; without one, those of ``findings``, else of the labels."""
    # The report comes first because training must not use any other truth.
    return read_report(study["report"]) if study["report"] else _known_findings(study)


def _known_findings(study: Study) -> Findings:
    if study["findings"] is None and study.label_map is not None:
        return aha.findings_from_labels(study)
    return study["findings"] or Findings()


def _with_scar(
    study: Study, added: Findings, seed: int, image: np.ndarray, labels: np.ndarray
) -> Study:
    """Put painted arrays into a study, and rewrite its findings and report."""
    stated, known = stated_findings(study), _known_findings(study)
    study["image"].set_data(torch.from_numpy(image)[None])
    study["labels"].set_data(torch.from_numpy(labels)[None])
    report = write_report(Findings(stated.scars + added.scars), np.random.default_rng([seed, 1]))
    fields = {"findings": Findings(known.scars + added.scars), "report": report}
    study.update(fields | {"report_source": "synthetic", "scar_note": "painted"})
    return study


class AddScar(IntensityTransform):
    r"""Paint given scars into a late gadolinium enhancement study, and rewrite its report.

    Changes ``image``, ``labels`` (codes 3 scar, 4 no-reflow), ``findings`` and ``report``;
    ``report_source`` becomes ``"synthetic"``, and ``scar_note`` ``"painted"``.

    ``seed`` decides borders, texture and the words of the report. InputError if labels or landmarks
    are missing, or a scar cannot be placed as described.

    Examples:
        >>> import lgekit as lk
        >>> (study,) = lk.phantom_cohort(1, seed=0, prevalence=0.0).studies
        >>> inferior = lk.Scar(walls=("inferior",), levels=("basal", "mid"), depth="subendocardial")
        >>> scarred = lk.AddScar(inferior, seed=3)(study)
        >>> scarred["findings"].walls
        frozenset({'inferior'})
        >>> 3 in study.label_map, 3 in scarred.label_map
        (False, True)
    """

    def __init__(self, findings: Findings | Scar, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.findings = Findings((findings,)) if isinstance(findings, Scar) else findings
        self.seed, self.args_names = int(seed), ["findings", "seed"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        study = cast(Study, subject)
        painted = ScarPainter(study).paint(self.findings, np.random.default_rng(self.seed))
        return _with_scar(study, self.findings, self.seed, *painted)


class RandomScar(RandomTransform, IntensityTransform):
    r"""Paint a random scar into a late gadolinium enhancement study, and rewrite its report.

    Disease and pattern are drawn at clinical prevalence (see :func:`lgekit.findings.draw_scar`);
    intensities follow the study's own blood and myocardium. ``p`` is the probability of a scar. A
    study that has a scar (in its labels or report) or cannot take one is unchanged; ``scar_note``
    gives the reason. Works on the scanner's grid and in the standard frame, with PyTorch's
    global random numbers.

    Examples:
        >>> import torch, torchio as tio, lgekit as lk
        >>> (study,) = lk.phantom_cohort(1, seed=0, prevalence=0.0).studies
        >>> transform = tio.Compose([lk.RandomScar(p=1), tio.RandomNoise(std=0.01)])
        >>> _ = torch.manual_seed(0)
        >>> scarred = transform(study)
        >>> scarred["findings"].present, scarred["report_source"], scarred.history[0].name
        (True, 'synthetic', 'AddScar')
    """

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        study, rng = cast(Study, subject), np.random.default_rng(self._get_random_seed())
        try:
            painter = ScarPainter(study)
            if np.isin(painter.labels, aha.SCARRED).any() or stated_findings(study).present:
                raise InputError(study["study_id"], "has a scar", "AddScar adds one.")
            found, seed, *_ = painter.draw(rng)
        except InputError as error:
            study["scar_note"] = f"unchanged: {error}"
            return study
        return AddScar(found, seed, **cast(dict, self._get_base_args()))(study)
