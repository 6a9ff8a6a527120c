"""Poses, cameras and panoramas: numpy in float64, no files, no learning."""
