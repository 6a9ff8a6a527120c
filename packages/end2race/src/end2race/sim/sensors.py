"""The camera and the LiDAR of the car, ray-traced in the same walls and exactly calibrated.

The camera is level and the walls are vertical, so all pixels of a column look in one horizontal
direction: one ray finds the wall, and the rows follow in closed form. With the wall at depth Z, the
camera at height h and the row at slope y = (v - cy)/fy (positive downwards), a pixel sees

    the wall     where 0 <= h - Z y <= H,
    the ground   below it, at depth h / y,
    the sky      above it.

Walls have one height H > h, so a nearer wall always hides a farther one. The LiDAR has one ray for
each azimuth likewise, and its beams meet the ground or the wall along it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from end2race.data.calibration import Calibration, Pose, level_camera
from end2race.sim.appearance import Appearance
from end2race.sim.field import Field, cast, distance_at

WALL_HEIGHT_M = 0.5
GROUND_INTENSITY, WALL_INTENSITY = 0.2, 0.8

CAMERA_POSITION_M = (0.25, 0.0, 0.25)
LIDAR_POSITION_M = (0.2, 0.0, 0.3)
_STRIPE_FROM_WALL_M = 0.05
_GRAIN_PER_M = 10.0
_FARTHEST_M = 60.0


class Lidar(NamedTuple):
    """A spinning LiDAR on the car, level, with its rays spread evenly.

    Attributes:
        position_m: x, y, z in the ego frame.
        elevations_rad: float64 [beams], positive upwards.
        azimuths: directions in a turn.
        longest_m: horizontal range.
        range_noise_m: standard deviation along the ray.
    """

    position_m: tuple[float, float, float]
    elevations_rad: np.ndarray
    azimuths: int
    longest_m: float
    range_noise_m: float

    @property
    def pose(self) -> Pose:
        """The pose in the ego frame."""
        return Pose(np.eye(3), np.array(self.position_m))


def lidar(beams: int = 8, *, azimuths: int = 360, range_noise_m: float = 0.01) -> Lidar:
    """Return the car's LiDAR; its beams lie between 16 degrees down and 6 up."""
    elevations = np.deg2rad(np.linspace(-16, 6, beams) if beams > 1 else np.zeros(1))
    return Lidar(LIDAR_POSITION_M, elevations, azimuths, 12.0, range_noise_m)


def camera(width: int = 128, height: int = 64, *, field_of_view_deg: float = 100.0) -> Calibration:
    """Return the car's camera with its horizontal field of view."""
    focal = width / 2 / math.tan(math.radians(field_of_view_deg) / 2)
    return level_camera(width, height, focal, CAMERA_POSITION_M)


def see(
    field: Field,
    look: Appearance,
    camera: Calibration,
    pose: tuple[float, float, float],
    rng: np.random.Generator | None,
) -> np.ndarray:
    """Render what the camera sees.

    Args:
        field: The walls.
        look: The colours.
        camera: A level camera that looks forward.
        pose: x (m), y (m) and yaw (rad) of the car in the world.
        rng: Draws the pixels' noise; None leaves it out.

    Returns:
        uint8 [height, width, 3].
    """
    shape = (camera.height, camera.width)
    noise = np.zeros(shape, np.float32)
    if rng is not None:
        noise = np.float32(look.noise) * rng.standard_normal(shape, dtype=np.float32)
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsic
    return _render(field, look, (fx, fy, cx, cy), tuple(camera.translation), pose, noise)


def sweep(
    field: Field,
    sensor: Lidar,
    pose: tuple[float, float, float],
    rng: np.random.Generator | None,
) -> np.ndarray:
    """Return one turn of the LiDAR.

    Args:
        field: The walls.
        sensor: The LiDAR.
        pose: x (m), y (m) and yaw (rad) of the car in the world.
        rng: Draws the range noise; None leaves it out.

    Returns:
        float32 [n, 4]: x, y, z (m) in the LiDAR's frame, intensity; rays without a return are
        absent.
    """
    shape = (sensor.azimuths, len(sensor.elevations_rad))
    noise = np.zeros(shape, np.float32)
    if rng is not None:
        noise = np.float32(sensor.range_noise_m) * rng.standard_normal(shape, dtype=np.float32)
    position, slopes = sensor.position_m, np.tan(sensor.elevations_rad)
    return _sweep(field, position, slopes, sensor.longest_m, pose, noise)


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
def _render(field, look, lens, position, pose, noise):
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
def _sweep(field, position, slopes, longest, pose, noise):
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
