"""Distil a 3D Gaussian Splatting teacher into a KiloNeRF student."""
