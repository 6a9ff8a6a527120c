"""What one vehicle sees: a non-central panorama with its rays, ranges and three masks.

The masks answer three questions and are never mixed:

    coverage        does any camera look there?  A constant of the rig: nothing to learn.
    depth_valid     is there ground truth for the range?  From the source depth alone.
    non_ambiguous   does the ray end on a surface that others could see, rather than in the sky,
                    on the own vehicle or beyond the range?  This one is learned.

With sparse depth (a projected LiDAR) a pixel without depth may still show a surface, so
`non_ambiguous` is unknown there, and None as a whole.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from coopcyl.geometry.stitch_table import StitchTable


class Box(NamedTuple):
    """An axis-parallel box in the rig frame (OpenCV axes), metres."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Tell which points `(..., 3)` lie inside."""
        inside = np.ones(points.shape[:-1], bool)
        for axis, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            inside &= (points[..., axis] >= low) & (points[..., axis] <= high)
        return inside


# A car of 5.2 x 2.3 m under its LiDAR. Its floor is 20 cm above the road, which stays outside.
OWN_VEHICLE = Box((-1.15, -0.2, -2.1), (1.15, 1.7, 3.1))


@dataclass(frozen=True, eq=False)
class View:
    """One vehicle's panorama at one time.

    Attributes:
        agent: The vehicle's id.
        rgb: `(h, w, 3)` uint8, black where no camera looks.
        range_m: `(h, w)` float32 along each ray, 0 where it is not known.
        table: The rays' directions and the camera of each pixel.
        origins: `(cameras, 3)` the cameras' centres in the rig frame.
        pose_world_from_rig: 4x4, OpenCV axes on both sides.
        max_range_m: Beyond this a depth counts as none.
        dense_depth: Whether every pixel that shows a surface has a depth.
        own_vehicle: What is the vehicle itself.
    """

    agent: int
    rgb: np.ndarray
    range_m: np.ndarray
    table: StitchTable
    origins: np.ndarray
    pose_world_from_rig: np.ndarray
    max_range_m: float
    dense_depth: bool
    own_vehicle: Box = OWN_VEHICLE

    @property
    def coverage(self) -> np.ndarray:
        """`(h, w)` bool: whether a camera looks there."""
        return self.table.coverage

    @cached_property
    def depth_valid(self) -> np.ndarray:
        """`(h, w)` bool: whether the range is known and within `max_range_m`."""
        return (self.range_m > 0) & (self.range_m <= self.max_range_m)

    @cached_property
    def non_ambiguous(self) -> np.ndarray | None:
        """`(h, w)` bool: whether a surface is seen that is not the own vehicle; None if unknown."""
        if not self.dense_depth:
            return None
        return self.coverage & self.depth_valid & ~self.own_vehicle.contains(self.points())

    def ray_origins(self) -> np.ndarray:
        """Return `(h, w, 3)` float32 origins of the rays; zero where no camera looks."""
        return self.table.ray_origins(self.origins)

    def points(self) -> np.ndarray:
        """Return `(h, w, 3)` float32 points in the rig frame; meaningful where `depth_valid`."""
        return self.ray_origins() + self.range_m[..., None] * self.table.directions


class CentralTargets(NamedTuple):
    """The same points seen from the rig's origin, as models with one centre per view expect.

    Attributes:
        directions: `(h, w, 3)` float32 unit vectors from the origin to each point.
        depth_along_ray_m: `(h, w)` float32 distances from the origin, 0 without depth.
    """

    directions: np.ndarray
    depth_along_ray_m: np.ndarray


def central_targets(view: View) -> CentralTargets:
    """Write a view's points as direction and distance from the rig's origin.

    Pixels without depth keep their own direction, which is that of a point at infinity.
    """
    points = view.points()
    distance = np.where(view.depth_valid, np.linalg.norm(points, axis=-1), 0)
    known = distance[..., None] > 0
    unit = np.divide(points, distance[..., None], out=points.copy(), where=known)
    return CentralTargets(
        np.where(known, unit, view.table.directions).astype(np.float32),
        distance.astype(np.float32),
    )
