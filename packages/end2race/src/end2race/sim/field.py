"""The signed distance to the walls on a grid, and rays marched through it.

`values[j, i]` is the distance (m) from the centre of a cell to the nearest wall, positive on the
road and negative behind the wall; between centres it is bilinear. A ray advances by the distance it
reads (sphere tracing), so it cannot pass a wall, and it ends where the distance is zero: the wall's
place is known far better than the size of a cell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

_SAFETY = 0.9  # a wall that is not parallel to the centreline is a little nearer than `values` says
_HIT_M = 1e-3
_MOST_STEPS = 200


class Field(NamedTuple):
    """Signed distances (m) at cell centres.

    Attributes:
        values: float32 [rows, columns].
        x0: x of the centre of column 0 (m).
        y0: y of the centre of row 0 (m).
        cell_m: Distance of neighbouring centres.
    """

    values: np.ndarray
    x0: float
    y0: float
    cell_m: float


@njit(cache=True)
def distance_at(field: Field, x: float, y: float) -> float:
    """Return the signed distance at a point (m); outside the grid that of its nearest edge."""
    rows, columns = field.values.shape
    u = min(max((x - field.x0) / field.cell_m, 0.0), columns - 1.001)
    v = min(max((y - field.y0) / field.cell_m, 0.0), rows - 1.001)
    i, j = int(u), int(v)
    a, b = u - i, v - j
    low = field.values[j, i] * (1 - a) + field.values[j, i + 1] * a
    high = field.values[j + 1, i] * (1 - a) + field.values[j + 1, i + 1] * a
    return low * (1 - b) + high * b


@njit(cache=True)
def cast(field: Field, x: float, y: float, dx: float, dy: float, longest_m: float) -> float:
    """Return how far a ray from (x, y) along the unit vector (dx, dy) goes until the wall.

    Returns `longest_m` where there is no wall up to there, and 0 from behind a wall.
    """
    reached = 0.0
    for _ in range(_MOST_STEPS):
        free = distance_at(field, x + reached * dx, y + reached * dy)
        if free < _HIT_M:
            break
        reached += _SAFETY * free
        if reached >= longest_m:
            return longest_m
    return reached
