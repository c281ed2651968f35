"""A heat map of a study's view as one number for each AHA segment: what a bull's-eye shows."""

from __future__ import annotations

import numpy as np
import torch

from lgekit.anatomy import ANTERIOR_RVIP_DEG, known_landmarks, segment_map, segment_number
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
    landmarks = known_landmarks(study)
    if landmarks is None or landmarks.confidence < settings.min_confidence:
        return {}
    if study.label_map is None or not Ventricle.of(study.label_map).area.any():
        return {}
    of_view = _polar_segments if settings.frame == "polar" else _image_segments
    segments = of_view(view, study, settings)
    return {int(n): float(heat[segments == n].mean()) for n in np.unique(segments[segments > 0])}


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
