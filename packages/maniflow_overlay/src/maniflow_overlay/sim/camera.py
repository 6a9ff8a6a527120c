"""The camera of the simulated table, as a pinhole in OpenCV's convention.

A point p of the world is seen at pixel (u, v) with depth w, where

    w (u, v, 1) = K (R p + t),    K = [[f, 0, W/2], [0, f, H/2], [0, 0, 1]],
    f = H / (2 tan(fovy / 2))

with R, t taking the world to camera axes: x right, y down, z forward. MuJoCo's cameras look along
their negative z axis with y up, which is this one turned by half a turn about x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TableCamera:
    """A camera that looks at the middle of the table.

    Attributes:
        width: Of the picture in pixels.
        height: Of the picture in pixels.
        position_m: Where it stands in the world.
        target_m: What is in the middle of its picture.
        fovy_deg: Angle of view from top to bottom.
    """

    width: int = 128
    height: int = 128
    position_m: tuple[float, float, float] = (0.0, -0.3, 0.7)
    target_m: tuple[float, float, float] = (0.0, 0.0, 0.02)
    fovy_deg: float = 33.0

    def rotation(self) -> np.ndarray:
        """Return R, (3, 3), whose rows are the camera's axes in the world: right, down, forward."""
        forward = np.subtract(self.target_m, self.position_m)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    def intrinsic(self) -> np.ndarray:
        """Return K, (3, 3), in pixels."""
        focal = self.height / 2 / np.tan(np.radians(self.fovy_deg) / 2)
        return np.array([[focal, 0, self.width / 2], [0, focal, self.height / 2], [0, 0, 1.0]])

    def camera_from_world(self) -> np.ndarray:
        """Return [R | t], (3, 4)."""
        rotation = self.rotation()
        return np.column_stack([rotation, -rotation @ np.array(self.position_m)])

    def mujoco_axes(self) -> str:
        """Return MuJoCo's `xyaxes`: where the picture's right and up point in the world."""
        right, down, _ = self.rotation()
        return " ".join(f"{value:.12g}" for value in (*right, *-down))
