"""What a situation is looked up by: vectors that similar situations share.

| kind | made of | known to |
|---|---|---|
| `teacher` | the teacher's bird's-eye-view vector of the last frame | who has LiDAR |
| `camera` | edges of the last image, speeds and previous wheel angles | the student, too |

The camera's descriptor needs no training. It counts edges by direction in the cells of a raster (as
HOG does, Dalal and Triggs 2005) and takes them without sign, since a wall that is brighter than the
ground on one track is darker on another; the square root keeps one strong edge from deciding alone.

A `Space` turns descriptors into unit vectors: it takes off the mean of the bank, without which all
cosines are close to 1, and gives the parts of a descriptor their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["teacher", "camera"]

ROWS, COLUMNS, DIRECTIONS = 6, 12, 4
EGO_WEIGHT = 0.5
"""Share of the squared distances between camera descriptors that speeds and angles make up."""


def teacher_descriptor(bev_vec: np.ndarray) -> np.ndarray:
    """Return [n, D] of vectors [n, T, D]: those of the last frame."""
    return np.ascontiguousarray(bev_vec[:, -1], np.float32)


def camera_descriptor(
    images: np.ndarray, speed: np.ndarray, steering_input: np.ndarray
) -> np.ndarray:
    """Describe windows by what a camera student is given.

    Args:
        images: uint8 [n, T, H, W, 3]; the last frame is taken.
        speed: [n, T, 1], m/s.
        steering_input: [n, T, 1], the earlier wheel angle in degrees.

    Returns:
        float32 [n, ROWS * COLUMNS * DIRECTIONS + 2 T]: edges, then the numbers of the ego vehicle.
    """
    edges = edge_histograms(images[:, -1])
    ego = np.concatenate([speed[..., 0], steering_input[..., 0]], axis=1)
    return np.concatenate([edges, ego], axis=1, dtype=np.float32)


def edge_histograms(images: np.ndarray) -> np.ndarray:
    """Count edges by direction and place.

    Args:
        images: uint8 [n, H, W, 3], at least ROWS x COLUMNS pixels larger by 2.

    Returns:
        float32 [n, ROWS * COLUMNS * DIRECTIONS], each row of length 1 (0 where nothing is seen).
    """
    grey = images.astype(np.float32).sum(axis=-1)
    across = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    down = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    strength = np.hypot(across, down)
    # An edge and its negative have one direction; directions are counted from -22.5 degrees on,
    # an angle that differences of whole numbers never make, so rounding decides nothing.
    turn = (np.arctan2(down, across) + np.pi / (2 * DIRECTIONS)) % np.pi
    direction = np.minimum((turn * (DIRECTIONS / np.pi)).astype(np.int64), DIRECTIONS - 1)
    n, height, width = strength.shape
    row = np.arange(height) * ROWS // height
    column = np.arange(width) * COLUMNS // width
    cell = (row[:, None] * COLUMNS + column) * DIRECTIONS
    size = ROWS * COLUMNS * DIRECTIONS
    bins = direction + cell + (np.arange(n) * size)[:, None, None]
    counts = np.bincount(bins.ravel(), strength.ravel(), n * size).reshape(n, size)
    rooted = np.sqrt(counts)
    return (rooted / np.maximum(np.linalg.norm(rooted, axis=1, keepdims=True), 1e-12)).astype(
        np.float32
    )


@dataclass(frozen=True)
class Space:
    """The map from descriptors to unit vectors.

    Attributes:
        mean: float32 [D], of the bank's descriptors.
        scale: float32 [D], factor of each number.
    """

    mean: np.ndarray
    scale: np.ndarray

    def unit(self, descriptors: np.ndarray) -> np.ndarray:
        """Return unit vectors [n, D]; a descriptor that is the mean itself becomes zero."""
        centred = (np.asarray(descriptors, np.float32) - self.mean) * self.scale
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        return np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)


def fit_space(descriptors: np.ndarray, kind: Kind) -> Space:
    """Fit mean and scales to a bank's descriptors [n, D]."""
    mean = descriptors.mean(axis=0)
    scale = np.ones(descriptors.shape[1], np.float32)
    if kind == "camera":
        edges = ROWS * COLUMNS * DIRECTIONS
        spread = descriptors.var(axis=0)
        ego = np.sqrt(np.maximum(spread[edges:], 1e-12))
        seen = max(float(spread[:edges].sum()), 1e-12)
        moving = len(ego)
        scale[edges:] = np.sqrt(EGO_WEIGHT / (1 - EGO_WEIGHT) * seen / moving) / ego
        scale[edges:][ego < 1e-5] = 0.0  # a number that never changes tells nothing
    return Space(mean.astype(np.float32), scale)
