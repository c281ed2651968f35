"""The old place of draw_region, for lgekit.evaluation.realism."""

from lgekit.scars.transforms import draw_region

__all__ = ["draw_region"]
