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
from loom.errors import UserError

from end2race.data.calibration import CAMERA_AXES_IN_EGO, Calibration, Pose, level_camera
from end2race.sim.appearance import Appearance
from end2race.sim.kernels import WALL_HEIGHT_M, Field, render, scan

CAMERA_POSITION_M = (0.25, 0.0, 0.25)
LIDAR_POSITION_M = (0.2, 0.0, 0.3)

_LEVEL = 1e-3  # radians and pixels


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
    def beams(self) -> int:
        """How many rays there are one above the other."""
        return len(self.elevations_rad)

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


def require_level(camera: Calibration) -> None:
    """Refuse a camera that `see` cannot stand in for.

    Raises:
        UserError: It is turned in the car, its axes are skewed, or it looks over the walls.
    """
    turned = np.abs(camera.rotation - CAMERA_AXES_IN_EGO).max() > _LEVEL
    if turned or abs(camera.intrinsic[0, 1]) > _LEVEL:
        raise UserError(
            "the simulator's camera is level and looks forward; this one is turned in the car",
            hint="a student sees only through the camera that it was calibrated for: judge it on "
            "recordings, with eval-student",
        )
    if not 0 < camera.translation[2] < WALL_HEIGHT_M:
        raise UserError(
            f"a camera {camera.translation[2]:g} m above the ground: the simulator's walls are "
            f"{WALL_HEIGHT_M:g} m high, and it looks neither over nor under them",
            hint="judge the student on recordings, with eval-student",
        )


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
        camera: A level camera that looks forward, see `require_level`.
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
    return render(field, look, (fx, fy, cx, cy), tuple(camera.translation), pose, noise)


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
    return scan(field, position, slopes, sensor.longest_m, pose, noise)
