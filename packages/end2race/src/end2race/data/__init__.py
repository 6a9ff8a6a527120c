"""Drives on disk: segments of LiDAR clouds, camera images and controls, read, checked, written."""
