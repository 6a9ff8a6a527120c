"""A 1:10 race car as a kinematic bicycle, and when it has hit a wall.

    x' = v cos yaw,   y' = v sin yaw,   yaw' = v tan(delta) / L,

for the rear axle, integrated at 100 Hz; the wheel turns at a limited rate and the speed follows its
command with limited acceleration. The numbers are those of the F1TENTH car. Commanded speeds are
clamped: no driver wins by going faster than the car may.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from numba import njit

from end2race.sim.field import Field, distance_at

WHEELBASE_M = 0.33
LENGTH_M, WIDTH_M = 0.58, 0.31
OVERHANG_M = (LENGTH_M - WHEELBASE_M) / 2
LARGEST_WHEEL_ANGLE_RAD = 0.4189
WHEEL_RATE_RAD_S = 3.2
FASTEST_M_S = 6.0
ACCELERATION_M_S2 = 6.0
SPEED_GAIN_PER_S = 8.0

CONTROL_HZ = 10
SUBSTEPS = 10


class CarState(NamedTuple):
    """Rear axle in the world (m, rad), speed (m/s), angle of the front wheels (rad)."""

    x: float
    y: float
    yaw: float
    speed: float
    wheel_angle: float


@njit(cache=True)
def clearance(field: Field, x: float, y: float, yaw: float) -> float:
    """Return the least signed distance (m) of the car's corners to the walls."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    least = 1e9
    for along in (-OVERHANG_M, WHEELBASE_M + OVERHANG_M):
        for across in (-WIDTH_M / 2, WIDTH_M / 2):
            corner_x = x + cos * along - sin * across
            corner_y = y + sin * along + cos * across
            least = min(least, distance_at(field, corner_x, corner_y))
    return least


@njit(cache=True)
def _advance(field, x, y, yaw, speed, wheel, wheel_command, speed_command):
    dt = 1.0 / (CONTROL_HZ * SUBSTEPS)
    wheel_command = min(max(wheel_command, -LARGEST_WHEEL_ANGLE_RAD), LARGEST_WHEEL_ANGLE_RAD)
    speed_command = min(max(speed_command, 0.0), FASTEST_M_S)
    for _ in range(SUBSTEPS):
        turn = WHEEL_RATE_RAD_S * dt
        wheel += min(max(wheel_command - wheel, -turn), turn)
        push = SPEED_GAIN_PER_S * (speed_command - speed)
        speed += min(max(push, -ACCELERATION_M_S2), ACCELERATION_M_S2) * dt
        x += speed * math.cos(yaw) * dt
        y += speed * math.sin(yaw) * dt
        yaw += speed * math.tan(wheel) / WHEELBASE_M * dt
        if clearance(field, x, y, yaw) < 0:
            return x, y, yaw, speed, wheel, True
    return x, y, yaw, speed, wheel, False


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
    *moved, hit = _advance(field, *state, float(wheel_angle_rad), float(speed_m_s))
    return CarState(*moved), bool(hit)
