"""Race tracks: a closed centreline with a width, and the walls on both sides of it.

A procedural track is a circle whose radius is a random Fourier series of the angle,

    r(a) = 1 + sum_k c_k cos(k a + p_k),      k = 2 ... 6,

scaled to its length; curves that are too tight for the walls, or that come near themselves, are
drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from end2race.sim.kernels import Field

SPACING_M = 0.1
CELL_M = 0.1
HALF_WIDTH_M = 1.1

_LENGTH_M = (60.0, 90.0)
_BENT, _TIGHTEST = 0.3, 0.6  # 1/m, the sharpest curve of a lap
_WALL_GAP_M = 0.6  # least distance of two parts of the road
_BEHIND_M = 0.5  # how far behind a wall the distance is known
_FINE_M = 0.02


@dataclass(frozen=True)
class Track:
    """A closed centreline, its points `SPACING_M` apart, and the distance field of its walls.

    Attributes:
        name: what tables call it.
        centreline: float64 [n, 2] (m), in driving order; the first point follows the last.
        heading: float64 [n], direction of travel (rad).
        curvature: float64 [n] (1/m), positive in left turns.
        half_width: float64 [n] (m), to the nearer wall.
        field: signed distance to the walls.
    """

    name: str
    centreline: np.ndarray
    heading: np.ndarray
    curvature: np.ndarray
    half_width: np.ndarray
    field: Field

    @property
    def spacing_m(self) -> float:
        """Distance of neighbouring points along the centreline."""
        following = np.roll(self.centreline, -1, axis=0)
        return float(np.linalg.norm(following - self.centreline, axis=1).mean())

    @property
    def length_m(self) -> float:
        """Length of a lap along the centreline."""
        return self.spacing_m * len(self.centreline)

    def pose(self, index: int) -> tuple[float, float, float]:
        """Return x, y (m) and yaw (rad) of a car on a point of the centreline."""
        x, y = self.centreline[index]
        return float(x), float(y), float(self.heading[index])

    def nearest(self, x: float, y: float, around: int, reach: int) -> tuple[int, float]:
        """Find the nearest centreline point among `reach` points on each side of index `around`.

        Returns:
            Its index and the lateral offset (m), positive to the left of the centreline.
        """
        window = np.arange(around - reach, around + reach + 1) % len(self.centreline)
        offset = np.array([x, y]) - self.centreline[window]
        best = int(np.argmin((offset**2).sum(axis=1)))
        index = int(window[best])
        left = np.array([-np.sin(self.heading[index]), np.cos(self.heading[index])])
        return index, float(offset[best] @ left)


def procedural_track(rng: np.random.Generator, name: str = "procedural") -> Track:
    """Draw a track that a car can drive, in a random direction."""
    while True:
        angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
        radius = np.ones_like(angle)
        for order in range(2, 7):
            size = rng.uniform(0, 0.5 / order)
            radius += size * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
        if radius.min() < 0.2:
            continue
        curve = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        perimeter = np.linalg.norm(np.roll(curve, -1, axis=0) - curve, axis=1).sum()
        curve *= rng.uniform(*_LENGTH_M) / perimeter
        if rng.random() < 0.5:
            curve = curve[::-1]
        centreline = resample_closed(curve, SPACING_M)
        if is_drivable(centreline, HALF_WIDTH_M):
            return track_from_centreline(name, centreline, np.full(len(centreline), HALF_WIDTH_M))


def is_drivable(centreline: np.ndarray, half_width_m: float) -> bool:
    """Whether the lap has a real curve, none is too tight, and no two parts of the road meet."""
    _, curvature = direction(centreline)
    if not _BENT <= np.abs(curvature).max() <= _TIGHTEST:
        return False
    closest = 2 * half_width_m + _WALL_GAP_M
    pairs = KDTree(centreline).query_pairs(closest, output_type="ndarray")
    apart = np.abs(pairs[:, 0] - pairs[:, 1])
    apart = np.minimum(apart, len(centreline) - apart) * SPACING_M
    return not np.any(apart > 2 * closest)


def track_from_centreline(name: str, centreline: np.ndarray, half_width: np.ndarray) -> Track:
    """Build a track whose walls stand at `half_width` [n] (m) on both sides of the centreline."""
    heading, curvature = direction(centreline)
    field = field_of_centreline(centreline, half_width)
    return Track(name, centreline, heading, curvature, half_width, field)


def field_of_centreline(centreline: np.ndarray, half_width: np.ndarray) -> Field:
    """Return half width less distance to the centreline: the distance to walls parallel to it.

    It is zero exactly on the wall, also where the width changes along the track.
    """
    fine = max(1, round(SPACING_M / _FINE_M))
    following = np.roll(centreline, -1, axis=0)
    share = (np.arange(fine) / fine)[None, :, None]
    points = (centreline[:, None] * (1 - share) + following[:, None] * share).reshape(-1, 2)
    wide = (
        half_width[:, None] * (1 - share[..., 0]) + np.roll(half_width, -1)[:, None] * share[..., 0]
    )
    wide = wide.reshape(-1)

    margin = wide.max() + _BEHIND_M + 2 * CELL_M
    x0, y0 = points.min(axis=0) - margin
    columns, rows = (np.ceil((points.max(axis=0) + margin - (x0, y0)) / CELL_M)).astype(int) + 1
    grid_y, grid_x = np.mgrid[0:rows, 0:columns]
    cells = np.stack([grid_x.ravel() * CELL_M + x0, grid_y.ravel() * CELL_M + y0], axis=1)
    reach = wide.max() + _BEHIND_M
    distance, index = KDTree(points).query(cells, distance_upper_bound=reach)
    known = np.isfinite(distance)
    values = np.full(len(cells), -_BEHIND_M)
    values[known] = wide[index[known]] - distance[known]
    return Field(values.reshape(rows, columns).astype(np.float32), float(x0), float(y0), CELL_M)


def resample_closed(curve: np.ndarray, spacing_m: float) -> np.ndarray:
    """Return points of a closed polyline [m, 2] about `spacing_m` apart along it."""
    closed = np.concatenate([curve, curve[:1]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    count = max(8, round(along[-1] / spacing_m))
    wanted = np.linspace(0, along[-1], count, endpoint=False)
    return np.stack([np.interp(wanted, along, closed[:, axis]) for axis in range(2)], axis=1)


def direction(centreline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return heading [n] (rad) and curvature [n] (1/m) of a closed curve."""
    forward = np.roll(centreline, -1, axis=0) - np.roll(centreline, 1, axis=0)
    heading = np.arctan2(forward[:, 1], forward[:, 0])
    turn = np.roll(heading, -1) - np.roll(heading, 1)
    turn = (turn + np.pi) % (2 * np.pi) - np.pi
    return heading, turn / np.linalg.norm(forward, axis=1)
