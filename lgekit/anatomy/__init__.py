"""Label maps, AHA segments, the standard frame and the polar view."""
