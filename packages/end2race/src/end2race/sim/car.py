"""A 1:10 race car as a kinematic bicycle, and when it has hit a wall.

    x' = v cos yaw,   y' = v sin yaw,   yaw' = v tan(delta) / L,

for the rear axle, integrated at 100 Hz; the wheel turns at a limited rate and the speed follows its
command with limited acceleration. The numbers are those of the F1TENTH car. Commanded speeds are
clamped: no driver wins by going faster than the car may.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from end2race.sim.kernels import Field, drive_period


class CarState(NamedTuple):
    """Rear axle in the world (m, rad), speed (m/s), angle of the front wheels (rad)."""

    x: float
    y: float
    yaw: float
    speed: float
    wheel_angle: float


def advance(
    field: Field, state: CarState, wheel_angle_rad: float, speed_m_s: float
) -> tuple[CarState, bool]:
    """Drive one control period (0.1 s) under a command.

    Args:
        field: The walls.
        state: Where the car is.
        wheel_angle_rad: Commanded wheel angle, positive to the left; clamped.
        speed_m_s: Commanded speed; clamped to 0 .. `FASTEST_M_S`.

    Returns:
        The new state, and whether the car has hit a wall, where it then stands.

    Raises:
        ValueError: the command is not finite.
    """
    if not (math.isfinite(wheel_angle_rad) and math.isfinite(speed_m_s)):
        raise ValueError(f"a command must be finite, not {wheel_angle_rad}, {speed_m_s}")
    *moved, hit = drive_period(field, *state, float(wheel_angle_rad), float(speed_m_s))
    return CarState(*moved), bool(hit)
