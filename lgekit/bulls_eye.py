"""A heat map of a study's view, or what its slices say, as one number for each AHA segment: what a bull's-eye shows."""

from __future__ import annotations

import numpy as np
import torch

from lgekit.anatomy import ANTERIOR_RVIP_DEG, known_landmarks, segment_map, segment_number
from lgekit.findings import LEVELS, WALLS, segment_of
from lgekit.polar import INSIDE, OUTSIDE
from lgekit.settings import FitSettings
from lgekit.stages import REACH, View
from lgekit.standardize import StandardizeShortAxis
from lgekit.studies import Study
from lgekit.ventricle import Ventricle


def segment_means(heat: np.ndarray, view: View, study: Study, settings: FitSettings) -> dict[int, float]:
    """Mean of a heat map over the wall of each AHA segment.

    Args:
        heat: `(slices, height, width)` on the view, as `lgekit.zeroshot.heat_map` gives.
        view: what `lgekit.stages.make_view` made of the study.
        study: located: its labels and landmarks say where the wall and its segments are.
        settings: of the view.

    Returns:
        Segment 1–17 → mean; segments that no slice of the view shows are missing, all of them where no heart was found,
        or no insertion points sure enough to turn it by.
    """
    if not segments_known(study, settings):
        return {}
    of_view = _polar_segments if settings.frame == "polar" else _image_segments
    segments = of_view(view, study, settings)
    return {int(n): float(heat[segments == n].mean()) for n in np.unique(segments[segments > 0])}


def segments_known(study: Study, settings: FitSettings) -> bool:
    """Whether a located study shows a heart, and insertion points sure enough to tell its segments by."""
    return _turned(study, settings) and bool(Ventricle.of(study.label_map).area.any())


def _turned(study: Study, settings: FitSettings) -> bool:
    landmarks = known_landmarks(study)
    return landmarks is not None and landmarks.confidence >= settings.min_confidence and study.label_map is not None


def segment_maxima(
    walls: np.ndarray, present: np.ndarray, view: View, study: Study, settings: FitSettings
) -> dict[int, float]:
    """What slices that were asked one by one say of each AHA segment: the most that a slice of its ring says of its
    wall. An apical segment of two walls takes the larger; the apex (17) has no wall and takes presence.

    Segments as in Cerqueira 2002, doi:10.1161/hc0402.102975. A scar in one slice of a ring is in the segment, hence
    the maximum [O].

    Args:
        walls: `(slices, 6)` probability of scar in each wall, for each slice of the view.
        present: `(slices,)` probability of scar anywhere, likewise.
        view: what `lgekit.stages.make_view` made of the study.
        study: located: its labels say which ring each slice lies in.
        settings: of the view.

    Returns:
        Segment 1–17 → probability; segments that no slice of the view shows are missing, all of them where
        `segments_known` is False or the view is not turned by the insertion points.
    """
    if settings.orientation != "rvip" or not _turned(study, settings):
        return {}
    rings = Ventricle.of(study.label_map).thirds[view.own_slices]  # -1 where there is no heart
    values: dict[int, float] = {}
    for third, level in enumerate(LEVELS[:3]):
        for wall, name in enumerate(WALLS):
            segment, told = segment_of(name, level), walls[rings == third, wall]
            if len(told):
                values[segment] = max(float(told.max()), values.get(segment, 0.0))
    return values | ({17: float(present[rings == 3].max())} if (rings == 3).any() else {})


def _polar_segments(view: View, study: Study, settings: FitSettings) -> np.ndarray:
    """Segment of each sample of the polar view `(slices, depths, angles)`, 0 beside the wall.

    The first column is the anterior insertion point (where it is not, no segment is known); the apex (17) is a slice
    with a wall and no cavity.
    """
    if settings.orientation != "rvip":
        return np.zeros(tuple(view.images.shape[i] for i in (0, 2, 3)), np.uint8)
    inside, outside = REACH if settings.masks == "predicted" else (INSIDE, OUTSIDE)
    depth = -inside + (1 + inside + outside) * (np.arange(settings.depths) + 0.5) / settings.depths
    wall = (depth >= 0) & (depth <= 1)
    frame_deg = ANTERIOR_RVIP_DEG + 360 * np.arange(settings.angles) / settings.angles
    segments = np.zeros(tuple(view.images.shape[i] for i in (0, 2, 3)), np.uint8)
    for number, third in enumerate(Ventricle.of(study.label_map).thirds[view.own_slices]):
        if third >= 0:
            segments[number, wall] = 17 if third == 3 else segment_number(frame_deg, third)
    return segments


def _image_segments(view: View, study: Study, settings: FitSettings) -> np.ndarray:
    """Segment of each pixel of the image view `(slices, pixels, pixels)`, 0 outside the wall."""
    landmarks = known_landmarks(study)
    if landmarks is None or study.label_map is None:
        return np.zeros(tuple(view.images.shape[i] for i in (0, 2, 3)), np.uint8)
    stored = segment_map(study.label_map, study.spacing_mm, landmarks)
    transform = StandardizeShortAxis(
        settings.pixels, orientation=settings.orientation, min_confidence=settings.min_confidence
    )
    frame = transform.find_frame(study)
    drawn = frame.to_frame(torch.from_numpy(stored)[None], nearest=True)[0].numpy()  # (X, Y, slices)
    own = stored.shape[2] - 1 - view.own_slices if frame.reversed_slices else view.own_slices
    return np.moveaxis(drawn, 2, 0)[own]
