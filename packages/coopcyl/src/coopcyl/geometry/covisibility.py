"""Where points appear in somebody's panorama, and whether they are seen there.

The inverse of a non-central panorama has no closed form, because each camera has its own centre. A
point is projected from each camera's centre; it appears where the pixel that it falls on belongs to
that camera.
"""

from typing import NamedTuple

import numpy as np

from coopcyl.geometry.carla import inverse, transform
from coopcyl.geometry.view import View

RELATIVE_TOLERANCE = 0.03
ABSOLUTE_TOLERANCE_M = 0.3


class Appearance(NamedTuple):
    """Where points appear in a panorama.

    Attributes:
        pixels: `(n, 2)` in edge coordinates, NaN where a point appears nowhere.
        range_m: `(n,)` from the camera that has the pixel, NaN likewise.
    """

    pixels: np.ndarray
    range_m: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """`(n,)` bool: whether a point appears at all."""
        return np.isfinite(self.range_m)


def appear(view: View, points_rig: np.ndarray) -> Appearance:
    """Project points `(n, 3)` of the rig frame into a view's panorama."""
    panorama = view.table.panorama
    pixels = np.full((len(points_rig), 2), np.nan)
    ranges = np.full(len(points_rig), np.nan)
    for index, origin in enumerate(view.origins):
        away = points_rig - origin
        found = panorama.pixels_of_directions(away)
        column, row = np.floor(found).astype(np.int64).T
        inside = (row >= 0) & (row < panorama.height)
        owner = view.table.camera[row.clip(0, panorama.height - 1), column % panorama.width]
        here = inside & (owner == index)
        pixels[here] = found[here]
        ranges[here] = np.linalg.norm(away[here], axis=-1)
    return Appearance(pixels, ranges)


def seen(view: View, appearance: Appearance) -> np.ndarray:
    """Tell which points are the surface that the view shows where they appear, `(n,)` bool."""
    inside = appearance.inside
    column, row = np.floor(np.where(inside[:, None], appearance.pixels, 0)).astype(np.int64).T
    shown = view.range_m[row, column % view.table.panorama.width]
    tolerance = ABSOLUTE_TOLERANCE_M + RELATIVE_TOLERANCE * shown
    difference = np.abs(np.where(inside, appearance.range_m, 0) - shown)
    return inside & (shown > 0) & (difference < tolerance)


def relative_pose(reference: View, other: View) -> np.ndarray:
    """Return the 4x4 pose that maps the other view's rig frame to the reference's."""
    return inverse(reference.pose_world_from_rig) @ other.pose_world_from_rig


def overlap(first: View, second: View, stride: int = 4) -> float:
    """Return the share of the first view's points that the second view sees, in [0, 1].

    Args:
        first: Whose points are asked for.
        second: Who may see them.
        stride: Only every so many columns and rows are taken.
    """
    chosen = first.depth_valid[::stride, ::stride]
    points = first.points()[::stride, ::stride][chosen].astype(np.float64)
    if not len(points):
        return 0.0
    in_second = transform(relative_pose(second, first), points)
    return float(seen(second, appear(second, in_second)).mean())
