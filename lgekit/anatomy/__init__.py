"""Anatomy of a study: geometry of label maps, AHA segments, the standard frame and the polar view."""
