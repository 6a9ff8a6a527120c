"""The share of a panorama that a rig can fill, worked out from its frusta.

Each camera sees a pyramid of four planes through its centre. A direction is seen where it is on the
inner side of all four, which needs no projection and no image, so this shares no code with the
stitch table and can be held against it.
"""

import numpy as np

from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import Camera, Rig

_COLUMNS = 720
_ROWS = 361


def expected_coverage(rig: Rig, panorama: Panorama) -> float:
    """Return the share of a panorama's area that the rig's cameras see, in [0, 1].

    The area is sampled on a grid of its own, half a degree wide and finer in height, independent of
    the panorama's size; the result is good to about 1e-3.
    """
    grid = Panorama(
        _COLUMNS,
        _ROWS,
        panorama.projection,
        panorama.elevation_min_deg,
        panorama.elevation_max_deg,
    )
    directions = grid.directions()
    seen = np.zeros(directions.shape[:2], bool)
    for camera in rig.cameras:
        seen |= _in_frustum(camera, directions)
    return float(seen.mean())


def _in_frustum(camera: Camera, directions: np.ndarray) -> np.ndarray:
    """Test directions against the four planes through a camera's centre and its image's edges."""
    k, size = camera.intrinsic, (camera.width, camera.height)
    inside = np.ones(directions.shape[:-1], bool)
    for axis in range(2):
        focal, centre = k[axis, axis], k[axis, 2]
        for edge, sign in ((0.0, 1.0), (size[axis], -1.0)):
            normal = np.zeros(3)
            normal[axis] = sign * focal
            normal[2] = sign * (centre - edge)
            inside &= directions @ (camera.pose_rig_from_camera[:3, :3] @ normal) >= 0
    return inside
