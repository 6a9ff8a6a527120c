"""The expert: pure pursuit of the centreline at a speed that the next curves allow.

Pure pursuit (Coulter 1992) steers along the circle through the rear axle and a point of the path at
the lookahead distance l,

    delta = atan(2 L sin(alpha) / l),

with alpha the direction of that point in the car. The speed is at most sqrt(a_lat / |curvature|),
and so that the car can brake and accelerate at a_long between the points of the track.
"""

from __future__ import annotations

import math

import numpy as np

from end2race.sim.car import CarState
from end2race.sim.kernels import FASTEST_M_S, LARGEST_WHEEL_ANGLE_RAD, WHEELBASE_M
from end2race.sim.track import Track

LATERAL_M_S2 = 5.0
LONGITUDINAL_M_S2 = 4.0
LOOKAHEAD_M, LOOKAHEAD_S = 0.7, 0.22


def speed_profile(track: Track) -> np.ndarray:
    """Return the expert's speed [n] (m/s) at each point of the centreline."""
    curvature = np.maximum(np.abs(track.curvature), 1e-6)
    speed = np.minimum(FASTEST_M_S, np.sqrt(LATERAL_M_S2 / curvature))
    gained = 2 * LONGITUDINAL_M_S2 * track.spacing_m
    count = len(speed)
    for index in range(2 * count):  # twice around, since the lap is closed
        here, following = index % count, (index + 1) % count
        speed[following] = min(speed[following], math.sqrt(speed[here] ** 2 + gained))
        here, before = -index % count, (-index - 1) % count
        speed[before] = min(speed[before], math.sqrt(speed[here] ** 2 + gained))
    return speed


class Expert:
    """Drives one track; it knows where the car is, which no sensor says."""

    def __init__(self, track: Track) -> None:
        """Plan the speed of a lap."""
        self.track = track
        self.speed = speed_profile(track)

    def command(self, state: CarState, nearest: int) -> tuple[float, float]:
        """Return wheel angle (rad) and target speed (m/s).

        Args:
            state: Where the car is.
            nearest: Index of the centreline point next to it.
        """
        lookahead = LOOKAHEAD_M + LOOKAHEAD_S * state.speed
        steps = max(1, round(lookahead / self.track.spacing_m))
        target = self.track.centreline[(nearest + steps) % len(self.track.centreline)]
        dx, dy = target[0] - state.x, target[1] - state.y
        alpha = math.atan2(dy, dx) - state.yaw
        wheel = math.atan(2 * WHEELBASE_M * math.sin(alpha) / max(math.hypot(dx, dy), 1e-6))
        wheel = min(max(wheel, -LARGEST_WHEEL_ANGLE_RAD), LARGEST_WHEEL_ANGLE_RAD)
        return wheel, float(self.speed[(nearest + 2) % len(self.speed)])
