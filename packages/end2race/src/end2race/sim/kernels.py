"""Everything of the simulator that is compiled, in one file.

numba keeps compiled functions on disk and compiles again when their own file has changed. What they
call in other files, and the constants they use from there, it does not look at; so all of it is
here, and an update of the package can never run an old wall against a new camera.

The signed distance to the walls is positive on the road and negative behind a wall, bilinear
between the centres of a grid's cells. A ray advances by the distance it reads (sphere tracing), so
it cannot pass a wall, and it ends where the distance is zero: the wall's place is known far better
than the size of a cell.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

WALL_HEIGHT_M = 0.5
GROUND_INTENSITY, WALL_INTENSITY = 0.2, 0.8

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

_SAFETY = 0.9  # a wall that is not parallel to the centreline is a little nearer than `values` says
_HIT_M = 1e-3
_MOST_STEPS = 200
_FARTHEST_M = 60.0
_STRIPE_FROM_WALL_M = 0.05
_GRAIN_PER_M = 10.0


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


@njit(cache=True)
def _grain(x: float, y: float) -> float:
    """Return a number in -1 .. 1 that is constant in each small square of the ground."""
    i = np.int64(math.floor(x * _GRAIN_PER_M))
    j = np.int64(math.floor(y * _GRAIN_PER_M))
    h = np.uint64(i * 73856093) ^ np.uint64(j * 19349663)
    h = (h ^ (h >> np.uint64(15))) * np.uint64(0x2C1B3C6D)
    h = h ^ (h >> np.uint64(12))
    return (h & np.uint64(0xFFFF)) / 32767.5 - 1.0


@njit(cache=True)
def render(field, look, lens, position, pose, noise):
    """Render an image; see `sensors.see`. Noise [height, width] is added to every channel.

    `lens` is (fx, fy, cx, cy) in pixels, `position` the camera's in the ego frame (m).
    """
    fx, fy, cx, cy = lens
    forward, left, above = position
    x, y, yaw = pose
    cos, sin = math.cos(yaw), math.sin(yaw)
    eye_x = x + cos * forward - sin * left
    eye_y = y + sin * forward + cos * left
    height, width = noise.shape
    image = np.empty((height, width, 3), np.uint8)
    for u in range(width):
        side = -(u + 0.5 - cx) / fx  # to the left, for one metre ahead
        ahead_x, ahead_y = cos - sin * side, sin + cos * side  # world step for one metre of depth
        stretch = math.hypot(ahead_x, ahead_y)
        reached = cast(field, eye_x, eye_y, ahead_x / stretch, ahead_y / stretch, _FARTHEST_M)
        depth = reached / stretch
        wall_x, wall_y = eye_x + depth * ahead_x, eye_y + depth * ahead_y
        for v in range(height):
            slope = (v + 0.5 - cy) / fy
            level = above - depth * slope
            light = look.gain
            if level > WALL_HEIGHT_M:
                colour = look.sky
            elif level >= 0:
                checks = (
                    math.floor(wall_x / look.checker_m)
                    + math.floor(wall_y / look.checker_m)
                    + math.floor(level / look.checker_m)
                )
                colour = look.wall if checks % 2 == 0 else look.wall_other
            else:
                near = above / slope
                ground_x, ground_y = eye_x + near * ahead_x, eye_y + near * ahead_y
                from_wall = distance_at(field, ground_x, ground_y) - _STRIPE_FROM_WALL_M
                if 0 <= from_wall < look.stripe_m:
                    colour = look.stripe
                else:
                    colour = look.ground
                    light *= 1 + look.grain * _grain(ground_x, ground_y)
            for channel in range(3):
                value = 255 * (colour[channel] * light + noise[v, u])
                image[v, u, channel] = min(max(value, 0.0), 255.0)
    return image


@njit(cache=True)
def scan(field, position, slopes, longest, pose, noise):
    """Return one turn of a LiDAR, see `sensors.sweep`; noise [azimuths, beams] in metres.

    `slopes` are the tangents of the beams' elevations.
    """
    forward, left, above = position
    x, y, yaw = pose
    eye_x = x + math.cos(yaw) * forward - math.sin(yaw) * left
    eye_y = y + math.sin(yaw) * forward + math.cos(yaw) * left
    azimuths, beams = noise.shape
    points = np.empty((azimuths * beams, 4), np.float32)
    count = 0
    for a in range(azimuths):
        azimuth = 2 * math.pi * (a + 0.5) / azimuths - math.pi
        cos, sin = math.cos(azimuth), math.sin(azimuth)
        reached = cast(
            field, eye_x, eye_y, math.cos(yaw + azimuth), math.sin(yaw + azimuth), longest
        )
        for b in range(beams):
            slope = slopes[b]
            distance, intensity = reached, WALL_INTENSITY
            if slope < 0 and above / -slope < reached:
                distance, intensity = above / -slope, GROUND_INTENSITY
            elif reached >= longest or above + reached * slope > WALL_HEIGHT_M:
                continue
            distance += noise[a, b] / math.sqrt(1 + slope * slope)
            points[count, 0] = distance * cos
            points[count, 1] = distance * sin
            points[count, 2] = distance * slope
            points[count, 3] = intensity
            count += 1
    return points[:count].copy()


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
def drive_period(field, x, y, yaw, speed, wheel, wheel_command, speed_command):
    """Drive 0.1 s, see `car.advance`; returns the new state and whether a wall was hit."""
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
