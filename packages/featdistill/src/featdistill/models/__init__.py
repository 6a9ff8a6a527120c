"""Models: gaussians, rasteriser, student."""
