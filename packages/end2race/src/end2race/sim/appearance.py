"""What a track looks like: colours and pattern, which a camera sees and a LiDAR does not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_LEAST_CONTRAST = 0.25  # between a wall's colours and the ground, as Euclidean distance in RGB


class Appearance(NamedTuple):
    """Colours as float64 [3] in 0..1.

    Attributes:
        wall: first colour of the checkered walls.
        wall_other: their second colour.
        ground: the road.
        stripe: the line along each wall.
        sky: what is above the walls.
        checker_m: edge of a wall's check.
        stripe_m: width of the line; 0 for none.
        grain: how much the road's brightness varies from place to place.
        gain: brightness of the whole picture.
        noise: standard deviation of the pixels' noise.
    """

    wall: np.ndarray
    wall_other: np.ndarray
    ground: np.ndarray
    stripe: np.ndarray
    sky: np.ndarray
    checker_m: float
    stripe_m: float
    grain: float
    gain: float
    noise: float


PLAIN = Appearance(
    wall=np.array([0.75, 0.15, 0.12]),
    wall_other=np.array([0.9, 0.9, 0.88]),
    ground=np.array([0.35, 0.35, 0.37]),
    stripe=np.array([0.95, 0.95, 0.95]),
    sky=np.array([0.55, 0.7, 0.9]),
    checker_m=0.5,
    stripe_m=0.1,
    grain=0.1,
    gain=1.0,
    noise=0.02,
)
"""The appearance of `--appearance fixed`."""


def random_appearance(rng: np.random.Generator) -> Appearance:
    """Draw an appearance; walls differ enough from the road that an eye could see them."""
    ground = rng.uniform(0.05, 0.95, 3)
    walls = []
    while len(walls) < 2:
        colour = rng.uniform(0.05, 0.95, 3)
        if np.linalg.norm(colour - ground) >= _LEAST_CONTRAST:
            walls.append(colour)
    return Appearance(
        wall=walls[0],
        wall_other=walls[1],
        ground=ground,
        stripe=rng.uniform(0.05, 0.95, 3),
        sky=rng.uniform(0.05, 0.95, 3),
        checker_m=float(rng.uniform(0.2, 1.0)),
        stripe_m=float(rng.choice([0.0, rng.uniform(0.04, 0.15)])),
        grain=float(rng.uniform(0.0, 0.25)),
        gain=float(rng.uniform(0.7, 1.2)),
        noise=float(rng.uniform(0.01, 0.04)),
    )
