"""A path of the gripper in the picture: what a vision-language model answers and an overlay shows.

Coordinates are relative: x from the left edge (0) to the right (1), y from the top down. Each point
carries the gripper's state from there on, 0 closed and 1 open, unless the model gives none (PEEK).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loom.errors import UserError
from loom.files import read_json

CLOSED, OPEN = 0, 1


@dataclass(frozen=True, eq=False)
class GripperPath:
    """Points in order, with the gripper's state at each.

    Attributes:
        points: (n, 2) float64, relative x and y.
        gripper: (n,) uint8, 0 closed and 1 open; None when it is not known.
    """

    points: np.ndarray
    gripper: np.ndarray | None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 2:
            raise ValueError(f"points of shape {self.points.shape}, expected (n, 2)")
        if self.gripper is not None and self.gripper.shape != self.points.shape[:1]:
            raise ValueError(f"{self.gripper.shape} gripper states for {len(self)} points")

    def __len__(self) -> int:
        return len(self.points)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GripperPath):
            return NotImplemented
        return self.rows() == other.rows()

    __hash__ = None

    def rows(self) -> list[list[float | int]]:
        """Return `[x, y, gripper]` per point, or `[x, y]` without states: the form in JSON."""
        if self.gripper is None:
            return self.points.tolist()
        return [
            [x, y, g] for (x, y), g in zip(self.points.tolist(), self.gripper.tolist(), strict=True)
        ]


def path_from_rows(rows: Any, source: str) -> GripperPath:
    """Make a path of `[x, y, gripper]` or `[x, y]` rows, as they stand in JSON.

    Args:
        rows: The value as it was read.
        source: Where it was read, for messages.

    Raises:
        UserError: A row is something else; the message names it.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise UserError(f"{source}: expected a list of points, found {_shown(rows)}")
    widths = set()
    for number, row in enumerate(rows):
        listed = isinstance(row, Sequence) and not isinstance(row, str | bytes)
        if not listed or len(row) not in (2, 3) or not all(map(_finite, row)):
            raise UserError(
                f"{source}: point {number} is {_shown(row)}",
                hint="a point is [x, y, gripper] or [x, y], finite numbers",
            )
        if len(row) == 3 and row[2] not in (CLOSED, OPEN):
            raise UserError(
                f"{source}: point {number} has the gripper state {_shown(row[2])}",
                hint="0 is closed, 1 is open",
            )
        widths.add(len(row))
    if len(widths) > 1:
        raise UserError(f"{source}: some points have a gripper state and some have none")
    points = np.array([row[:2] for row in rows], dtype=np.float64).reshape(-1, 2)
    if widths == {2}:
        return GripperPath(points, None)
    return GripperPath(points, np.array([row[2] for row in rows], dtype=np.uint8))


def read_path(path: Path) -> GripperPath:
    """Read a JSON file that holds the points of one path."""
    return path_from_rows(read_json(path), str(path))


def _finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 1e9 and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
