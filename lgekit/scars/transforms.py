"""TorchIO transforms that paint synthetic scars, from the shape of a scar to its report."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torchio as tio
from scipy import ndimage
from torchio.transforms.augmentation.random_transform import RandomTransform
from torchio.transforms.intensity_transform import IntensityTransform

from lgekit.anatomy import segments as aha
from lgekit.anatomy.segments import wall_depth
from lgekit.errors import InputError
from lgekit.findings import LEVELS, WALLS, Findings, Scar, draw_findings
from lgekit.reports.reader import read_report
from lgekit.reports.writer import write_report
from lgekit.study import CAVITY, MYOCARDIUM, NO_REFLOW, RV, SCAR, WALL_CODES, Landmarks, Study

# Contrast of the scars of 40 EMIDEC infarcts (Lalande et al., Data 2020;5(4):89), over studies:
# median of enhancement / (blood - remote) 1.1, log-sd 0.33, and 0.15 between slices of one study.
# The signal of no-reflow is 0.5 +- 0.3 of the enhancement.
CONTRAST, CONTRAST_SPREAD, SLICE_SPREAD, PATCHINESS = 1.5, 0.30, 0.10, 0.22
MINIMUM_WALL_VOXELS = 30
SOFT_BORDER_MM = 8.0  # beyond this distance from a scar the image does not change
PLACEMENTS = 16  # shapes drawn for one scar
FINDINGS_DRAWN = 8  # findings drawn for one study before it stays unchanged

# Extent of each layer as a share of the wall's thickness.
LAYERS = {
    "subendocardial": (0.25, 0.68),
    "transmural": (0.8, 0.98),
    "mid-wall": (0.28, 0.45),
    "subepicardial": (0.28, 0.5),
}
BINS = 180  # angular bins of 2 degrees
BIN_DEG = (np.arange(BINS) + 0.5) * 360 / BINS

# Waves around the circle, scaled so that a random sum of them has variance 1.
_WAVES = np.arange(1, 17)
_ANGLES = np.radians(BIN_DEG)[:, None] * _WAVES
_BASIS = np.concatenate([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1).astype(np.float32)
_BASIS *= np.tile(1 / np.sqrt(1 + (_WAVES / 4) ** 2), 2)
_BASIS /= np.sqrt((_BASIS**2).sum(1).mean())


def random_fields(rng: np.random.Generator, count: int, slices: int) -> np.ndarray:
    """Draw smooth fields of variance 1, continuous over slices: ``(count, bins, slices)``."""
    waves = rng.standard_normal((count, 2 * len(_WAVES), slices)).astype(np.float32)
    for s in range(1, slices):
        waves[..., s] = 0.7 * waves[..., s - 1] + 0.714 * waves[..., s]
    return _BASIS @ waves


def _degrees_inside(scar: Scar, levels: tuple[str, ...]) -> np.ndarray:
    """Signed distance of each angular bin to the border of the walls, ``(bins, 4 thirds)`` degrees.

    180 if the whole circle is chosen, -180 if nothing is. At the apical level, where AHA segments
    are wider than walls, a bin must be in both.
    """
    wall = (BIN_DEG - 60) % 360 // 60
    in_walls = np.isin(wall, [WALLS.index(name) for name in scar.walls or WALLS])
    result = np.full((BINS, 4), -180.0, np.float32)
    for third in [LEVELS.index(level) for level in levels]:
        chosen = in_walls.copy()
        if third < 3:
            chosen &= np.isin(aha.segment_number(BIN_DEG, third), list(scar.segments))
        result[:, third] = 180 if chosen.all() else -180
        if 0 < chosen.sum() < BINS:
            ring = np.tile(chosen, 3)
            inside, outside = map(ndimage.distance_transform_edt, (ring, ~ring))
            degrees = (2 * (inside - outside) - np.where(ring, 1, -1)) * 180 / BINS
            result[:, third] = degrees[BINS : 2 * BINS]
    return result


@dataclass(frozen=True)
class Region:
    """The shape of one scar; arrays over the wall's voxels in and near it."""

    voxels: np.ndarray  # indices into the painter's arrays
    depth_mm: np.ndarray  # distance inside the scar's border, mm; negative outside
    membership: np.ndarray  # share of scar in the voxel, 0 … 1, with the grey zone
    core: np.ndarray  # distance inside the no-reflow core, mm; negative outside


class ScarPainter:
    """A study that was measured once, to paint many scars into it.

    It needs ``landmarks`` (both RV insertion points) or a labelled right ventricle. The arrays from
    ``x`` to ``smooth`` (local mean of the wall) are over the voxels of the wall, with their place
    in the box around it. ``thirds``, ``levels``, ``remote`` and ``blood`` (medians) are per slice.
    """

    def __init__(self, study: tio.Subject):
        self.study, name = study, str(study.get("study_id", "study"))
        if not {"image", "labels"} <= set(study):
            remedy = f"It has {', '.join(study)}. The heart network makes labels."
            raise InputError(name, "has no image or no labels", remedy)
        stack, labels = study.get_image("image"), study.get_image("labels").data[0].numpy()
        self.spacing, self.labels = tuple(map(float, stack.spacing[:2])), labels
        self.image = np.ascontiguousarray(stack.data[0].numpy(), dtype=np.float32)
        if stack.data.shape != (1, *labels.shape):
            problem = f"image {tuple(stack.data.shape)}, labels {labels.shape}"
            raise InputError(name, problem, "Give both the shape (1, X, Y, slices).")
        healthy = int((labels == MYOCARDIUM).sum())
        if healthy < MINIMUM_WALL_VOXELS:
            remedy = f"A scar needs {MINIMUM_WALL_VOXELS} or more (code 2)."
            raise InputError(name, f"{healthy} voxels of healthy myocardium", remedy)
        landmarks = cast("Landmarks | None", study.get("landmarks"))
        if landmarks is None and (labels == RV).any():
            landmarks = aha.insertion_points(labels, self.spacing)
        self._measure_wall(labels, landmarks)
        if not np.isfinite(self.image[self.box]).all():
            raise InputError(name, "NaN or infinite values around the heart", "Repair the image.")
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
        # thickness: area of the wall in each of 24 sectors over the length of its middle line
        sector = 24 * stored + (angle // 15).astype(int) % 24
        voxels = np.bincount(sector)
        length = np.bincount(sector, radius) / np.maximum(voxels, 1) * np.radians(15)
        thickness = voxels * spacing[0] * spacing[1] / np.maximum(length, 1.0)
        self.thickness_mm = thickness[sector].astype(np.float32)
        has_wall = np.isin(np.arange(labels.shape[2]), stored)
        self.thirds = np.where(has_wall, ventricle.thirds, -1)[self.box[2]]
        self.levels = ventricle.levels[self.box[2]].astype(np.float32)

    def _measure_intensities(self, image: np.ndarray, labels: np.ndarray) -> None:
        healthy, cavity = labels == MYOCARDIUM, labels == CAVITY
        heart = np.isin(labels, WALL_CODES) | cavity
        place = self.x, self.y, self.plane
        self.free = healthy[place]
        values, middle = image[place], self.free & (np.abs(self.depth - 0.5) < 0.3)
        deep, slices = ndimage.binary_erosion(cavity, np.ones((3, 3, 1))), range(self.slices)
        self.blood = _medians([image[..., s][deep[..., s]] for s in slices])
        self.remote = _medians([values[middle & (self.plane == s)] for s in slices])

        def smoothed(array: np.ndarray, sigma_mm: float) -> np.ndarray:
            sigma = [sigma_mm / self.spacing[0], sigma_mm / self.spacing[1], 0]
            return ndimage.gaussian_filter(array, sigma)

        weight = smoothed(healthy.astype(np.float32), 2.25)
        mean = smoothed(np.where(healthy, image, 0), 2.25) / np.maximum(weight, 1e-3)
        self.smooth = np.where(weight[place] > 0.05, mean[place], self.remote[self.plane])
        self.noise = float(1.4826 * np.median(np.abs(values - self.smooth)[middle]))
        share = np.maximum(smoothed(heart.astype(np.float32), 4), 0.05)
        residual = image - smoothed(np.where(heart, image, 0), 4) / share
        inside = ndimage.binary_erosion(heart, np.ones((3, 3, 1)))
        self.blur = [_point_spread(residual, inside, axis) for axis in (0, 1)]
        self.whole_numbers = bool((image == np.rint(image)).all())

    def fit(self, findings: Findings) -> Findings:
        """Remove levels that the stack does not show, and scars that have no other level."""
        kept = []
        for scar in findings.scars:
            levels = tuple(name for name in scar.levels if LEVELS.index(name) in self.thirds)
            if levels or not scar.levels:
                kept.append(replace(scar, levels=levels))
        return Findings(tuple(kept))

    def draw_region(self, scar: Scar, rng: np.random.Generator) -> Region:
        """Draw the shape of a scar, until walls, levels, depth and extent measure as ``scar`` says.

        Attributes that the scar leaves open are drawn.
        """
        levels = scar.levels or tuple(LEVELS[third] for third in range(3) if third in self.thirds)
        missing = [level for level in levels if LEVELS.index(level) not in self.thirds]
        least, most = (66, 100) if scar.depth == "transmural" else (0, 84)
        if not scar.segments:
            raise InputError("findings", f"{scar} names neither wall nor level", "Give it some.")
        if scar.depth and not least <= (scar.transmurality or 75) <= most:
            remedy = "Transmural means 75 % of the wall or more."
            raise InputError("findings", f"{scar.depth}, {scar.transmurality} %", remedy)
        if missing:
            raise InputError("findings", f"no slice shows {missing[0]!r}", "Leave this level out.")
        degrees = _degrees_inside(scar, levels)
        near = degrees[self.bin, self.thirds[self.plane]] > -12
        voxels = np.flatnonzero(near & self.free)
        for _ in range(PLACEMENTS if len(voxels) >= 6 else 0):
            region = self._draw_once(voxels, degrees, scar, rng)
            if region is not None:
                return region
        problem = f"{scar} does not fit the {len(voxels)} healthy voxels there"
        raise InputError("findings", problem, "Choose other walls or levels, or a larger scar.")

    def _draw_once(self, voxels, degrees, scar: Scar, rng: np.random.Generator) -> Region | None:
        """Draw one shape; None if it does not measure as the scar says."""
        slices, plane, bins = self.slices, self.plane[voxels], self.bin[voxels]
        own = degrees[bins, self.thirds[plane]]
        depth, thickness = self.depth[voxels], self.thickness_mm[voxels]
        layer, around = scar.depth or "subendocardial", scar.circumference
        lateral, surface, patch = random_fields(rng, 3, slices)[:, bins, plane]

        # the layer's share of the wall, and the depth of the middle of a mid-wall layer
        aim = rng.uniform(*LAYERS[layer])
        if scar.transmurality is not None:
            aim = scar.transmurality / 100
            if layer == "subendocardial":  # beyond, an error of 10 points reads as another layer
                aim = float(np.clip(aim, 0.2, 0.67))
        elif scar.pattern == "linear":
            aim = 0.28
        centre = rng.uniform(0.46, 0.54)

        # taper: 0 in the middle of the scar's slices, up to 1 at the basal and the apical end
        with_scar = np.unique(plane)
        low, high = self.levels[with_scar].min(), self.levels[with_scar].max()
        along = 2 * (self.levels - low) / max(high - low, 1e-6) - 1
        ends = rng.uniform(0, 1, 2) * (len(with_scar) > 1)
        taper = np.clip(np.where(along < 0, -along * ends[0], along * ends[1]), 0, 1)

        # sideways: mm inside the lateral border, which is about `edge` degrees inside the walls
        half = np.clip(degrees.max(0), 0, 90)  # half the width of the walls in each third
        if around:
            chosen = np.count_nonzero(degrees[:, half > 0] > 0, axis=0) * 360 / BINS
            most = 0.8 * half.max()
            edge = np.full(slices, np.clip((chosen.mean() - 3.6 * around) / 2, 0, most))
        else:
            share = (rng.uniform(0.05, 0.45) + 0.25 * taper) * min(1, 2 * aim)
            edge = np.minimum(half[self.thirds] * share, 45)
        whole = (own >= 180) & (self.thirds[plane] < 3)
        if whole.any() and scar.pattern != "diffuse":
            # large infarcts leave a gap between two walls
            gap = 1.8 * (100 - around) if around else rng.uniform(10, 45)
            middle = 60 * rng.integers(6) + rng.normal(0, 5)
            from_middle = np.abs((BIN_DEG[bins] - middle + 180) % 360 - 180)
            own = np.where(whole, from_middle - min(gap, 50), own)
            edge, half = np.where(half[self.thirds] >= 90, 0, edge), np.maximum(half, 30)
        inner = own - edge[plane] + 4 * lateral * np.minimum(half[self.thirds[plane]] / 60, 1)
        inner = np.where(own >= 180, 180, np.minimum(inner, own))
        sideways = np.radians(inner) * self.radius_mm[voxels]
        if scar.pattern == "patchy":
            sideways = np.minimum(sideways, (patch + 0.4) * 5)

        # across: mm inside the border of the layer, which is thinner at the scar's edges and ends
        ramp = np.clip(inner / rng.uniform(8, 25), 0, 1)
        uneven = np.exp(rng.normal(0, 0.16, slices))[plane]
        flank = 1 - rng.uniform(0.2, 0.7) * (1 - ramp * ramp * (3 - 2 * ramp))
        profile = uneven * flank * (1 - 0.3 * taper[plane])
        rough = np.minimum(1.2, 0.14 * thickness) * surface

        def across(extent: float) -> np.ndarray:
            if layer == "mid-wall":
                from_centre = np.abs(depth - centre - 0.05 * patch)
                inside = (extent * profile / 2 - from_centre) * thickness + rough / 2
                return np.minimum(inside, (0.4 - np.abs(depth - 0.5)) * thickness)
            from_border = 1 - depth if layer == "subepicardial" else depth
            return (extent * profile - from_border) * thickness + rough

        extent = aim
        if scar.transmurality or layer in ("subendocardial", "transmural"):
            low, high, size = 0.05, 2.0, self.cell_size.sum(2)
            for _ in range(7):  # bisection for the extent that gives the transmurality
                extent = (low + high) / 2
                filled = self.cell[voxels[np.minimum(sideways, across(extent)) > 0]]
                reached = aha.transmurality_of(aha.count_cells(filled, slices).sum(2), size)
                low, high = (extent, high) if reached < aim else (low, extent)
        inside = np.minimum(sideways, across(extent))
        mask = inside > 0
        if mask.sum() < 3 or not self._agrees(voxels[mask], scar, layer):
            return None
        core = np.full(len(voxels), -9.0, np.float32)
        if scar.no_reflow:
            spared = depth * thickness - rng.uniform(0.2, 1)  # a rim of scar towards the cavity
            core = np.minimum(np.minimum(inside, spared), 2.5) + 0.5 * patch
            core = np.where(mask, core - np.quantile(core[mask], 1 - rng.uniform(0.08, 0.3)), -9.0)
        grey_zone = rng.uniform(0.8, 2.2)  # mm
        share = 1 / (1 + np.exp(-np.clip(inside / grey_zone, -30, 30)))
        return Region(voxels, inside, np.clip((share - 0.05) / 0.9, 0, 1), core)

    def _agrees(self, scarred: np.ndarray, scar: Scar, layer: str) -> bool:
        """Whether the voxels measure as the scar: walls, levels, depth; percentages within 10."""
        counts = aha.count_cells(self.cell[scarred], self.slices)
        measured = aha.scars_in_words(self.cell_size, counts, np.zeros_like(counts), self.thirds)
        walls = {name for one in measured for name in one.walls}
        levels = {name for one in measured for name in one.levels}
        scar_size, size = counts.sum(2), self.cell_size.sum(2)
        around = 100 * (scar_size > 0.1 * size)[scar_size.any(1)].mean()  # sectors with scar
        off = [around - (scar.circumference or around)]
        if scar.transmurality:
            off += [(one.transmurality or 0) - scar.transmurality for one in measured]
        return (
            walls == set(scar.walls or WALLS)
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

    def _paint_region(self, region: Region, rng, image: np.ndarray, labels: np.ndarray) -> None:
        """Paint one scar into the box, in place."""
        place = tuple(axis[region.voxels] for axis in (self.x, self.y, self.plane))
        mask = region.depth_mm > 0
        inside = tuple(axis[mask] for axis in place)
        labels[inside] = np.where(region.core > 0, NO_REFLOW, SCAR)[mask]
        rise, share, scar = fields = np.zeros((3, *image.shape), np.float32)
        rise[place], share[place] = self._enhancement(region, rng), region.membership
        scar[inside] = 1
        rise, share = ndimage.gaussian_filter(fields[:2], (0, *self.blur, 0), mode="constant")
        for n in np.unique(inside[2]):
            away = ndimage.distance_transform_edt(scar[..., n] == 0, sampling=self.spacing)
            painted = image[..., n] + rise[..., n]
            painted = np.rint(painted) if self.whole_numbers else painted
            changed = (away < SOFT_BORDER_MM) & (share[..., n] > 0.02)
            image[..., n] = np.where(changed, painted, image[..., n])

    def _enhancement(self, region: Region, rng: np.random.Generator) -> np.ndarray:
        """Rise of the signal in each voxel of the region before the point spread."""
        voxels = region.voxels
        plane, bins, depth = self.plane[voxels], self.bin[voxels], self.depth[voxels]
        contrast = CONTRAST * np.exp(np.clip(rng.normal(0, CONTRAST_SPREAD), -0.7, 0.7))
        by_slice = np.exp(rng.normal(0, SLICE_SPREAD, self.slices))
        height = contrast * np.maximum(self.blood - self.remote, 2.5 * self.noise) * by_slice
        patch = random_fields(rng, 2, self.slices)
        patchiness = patch[0][bins, plane] * (1 - depth) + patch[1][bins, plane] * depth
        wanted = self.remote[plane] + height[plane] * (1 + PATCHINESS * patchiness)
        rise = np.clip(wanted - self.smooth[voxels], 0, 1.25 * height[plane])
        darker = np.clip(rng.normal(0.5, 0.25), 0.1, 1.0)
        core = np.clip(0.5 + region.core, 0, 1)
        return (rise * region.membership * (1 - darker * core)).astype(np.float32)

    def random_copy(self, seed: int) -> Study:
        """Copy the study with the scar that :class:`RandomScar` would paint with this seed.

        InputError if none fits.
        """
        found, own_seed, *painted = self.draw(np.random.default_rng(seed))
        return cast(Study, _with_scar(deepcopy(self.study), found, own_seed, *painted))

    def draw(self, rng: np.random.Generator, prevalence: str = "clinical"):
        """Draw findings that fit this study, and paint them.

        Returns the findings, the seed with which :meth:`paint` paints them, image and labels.
        """
        reason = InputError("findings", "no drawn findings fit the slices", "Give more slices.")
        for _ in range(FINDINGS_DRAWN):
            found = self.fit(draw_findings(rng, prevalence))
            seed = int(rng.integers(2**31))
            if found.present:
                try:
                    return found, seed, *self.paint(found, np.random.default_rng(seed))
                except InputError as error:
                    reason = error
        raise reason


def _medians(groups: list[np.ndarray]) -> np.ndarray:
    """Median of each slice; the median of all slices for a slice with fewer than 8 voxels."""
    everything = np.concatenate(groups)
    overall = np.median(everything) if len(everything) else 0.0
    medians = [np.median(group) if len(group) >= 8 else overall for group in groups]
    return np.array(medians, np.float32)


def _point_spread(residual: np.ndarray, inside: np.ndarray, axis: int) -> float:
    """Standard deviation (voxels) of the point spread along an axis, from correlated noise.

    White noise blurred by a Gaussian has the autocorrelation exp(-1 / (4 sd²)) at distance 1.
    """
    before = (slice(None),) * axis
    first, second = (*before, slice(None, -1)), (*before, slice(1, None))
    both = inside[first] & inside[second]
    power = float((residual[inside] ** 2).mean()) if inside.any() else 0.0
    if both.sum() < 50 or power <= 0:
        return 0.8
    correlation = float((residual[first] * residual[second])[both].mean()) / power
    return float(np.clip(np.sqrt(-0.25 / np.log(np.clip(correlation, 0.01, 0.95))), 0.6, 2.0))


def stated_findings(subject: tio.Subject) -> Findings:
    """Return the findings of the report; without one, those of ``findings``, else of the labels.

    The report comes first because training must not use any other truth.
    """
    report = subject.get("report")
    return read_report(str(report)) if report else _known_findings(subject)


def _known_findings(subject: tio.Subject) -> Findings:
    found = cast("Findings | None", subject.get("findings"))
    if found is None and isinstance(subject, Study) and subject.label_map is not None:
        found = aha.findings_from_labels(subject)
    return found or Findings()


def _with_scar(
    subject: tio.Subject, added: Findings, seed: int, image: np.ndarray, labels: np.ndarray
) -> tio.Subject:
    """Put painted arrays into a subject, and rewrite its findings and report."""
    stated, known = stated_findings(subject), _known_findings(subject)
    subject.get_image("image").set_data(torch.from_numpy(image)[None])
    subject.get_image("labels").set_data(torch.from_numpy(labels)[None])
    report = write_report(Findings(stated.scars + added.scars), np.random.default_rng([seed, 1]))
    fields = {"findings": Findings(known.scars + added.scars), "report": report}
    subject.update(fields | {"report_source": "synthetic", "scar_note": "painted"})
    return subject


class AddScar(IntensityTransform):
    r"""Paint given scars into a late gadolinium enhancement study, and rewrite its report.

    Changes ``image``, ``labels`` (codes 3 scar, 4 no-reflow), ``findings`` and ``report``;
    ``report_source`` becomes ``"synthetic"``, and ``scar_note`` ``"painted"``.

    Args:
        findings: scars to add to those of the study.
        seed: determines borders, texture and the wording of the report.
        **kwargs: see :class:`torchio.transforms.Transform`.

    Raises:
        InputError: labels or landmarks are missing, or a scar cannot be placed as described.

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
        if not isinstance(self.findings, Findings):
            problem = f"{type(findings).__name__} given"
            raise InputError("findings", problem, "Give Findings or a Scar.")
        self.seed, self.args_names = int(seed), ["findings", "seed"]
        self.painted: tuple[np.ndarray, np.ndarray] | None = None  # by RandomScar, to save time

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        rng = np.random.default_rng(self.seed)
        painted = self.painted or ScarPainter(subject).paint(self.findings, rng)
        return _with_scar(subject, self.findings, self.seed, *painted)


class RandomScar(RandomTransform, IntensityTransform):
    r"""Paint a random scar into a late gadolinium enhancement study, and rewrite its report.

    Its intensities follow the study's own blood, myocardium, noise and point spread. A study that
    has a scar (in its labels or report) or cannot take one is unchanged; ``scar_note`` gives the
    reason. Works on the scanner's grid and in the standard frame, with PyTorch's
    global random numbers.

    Args:
        p: probability that a study gets a scar.
        prevalence: ``"clinical"`` draws a disease and a typical pattern of it; ``"uniform"`` draws
            all walls, levels and depths equally often (see :func:`lgekit.findings.draw_scar`).
        **kwargs: see :class:`torchio.transforms.Transform`.

    Examples:
        >>> import torch, torchio as tio, lgekit as lk
        >>> (study,) = lk.phantom_cohort(1, seed=0, prevalence=0.0).studies
        >>> transform = tio.Compose([lk.RandomScar(p=1), tio.RandomNoise(std=0.01)])
        >>> _ = torch.manual_seed(0)
        >>> scarred = transform(study)
        >>> scarred["findings"].present, scarred["report_source"], scarred.history[0].name
        (True, 'synthetic', 'AddScar')
    """

    def __init__(self, p: float = 0.5, prevalence: str = "clinical", **kwargs):
        super().__init__(p=p, **kwargs)
        if prevalence not in ("clinical", "uniform"):
            problem = f"unknown value {prevalence!r}"
            raise InputError("prevalence", problem, "Use clinical or uniform.")
        self.prevalence = prevalence

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        rng = np.random.default_rng(self._get_random_seed())
        try:
            labels = subject.get_image("labels").data if "labels" in subject else 0
            if np.isin(labels, aha.SCARRED).any() or stated_findings(subject).present:
                name = str(subject.get("study_id", "study"))
                raise InputError(name, "has a scar", "AddScar adds one.")
            found, seed, *painted = ScarPainter(subject).draw(rng, self.prevalence)
        except InputError as error:
            subject["scar_note"] = f"unchanged: {error}"
            return subject
        scar = AddScar(found, seed, **cast(dict, self._get_base_args()))
        scar.painted = tuple(painted)
        return scar(subject)
