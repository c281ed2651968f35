"""The old place of draw_region, for lgekit.evaluation.realism."""


def draw_region(geometry, free, scar, rng):
    """Call ``geometry.draw_region``."""
    return geometry.draw_region(scar, rng)
