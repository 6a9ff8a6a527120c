"""Where the sensors sit and how the camera projects.

Frames: ego x forward, y left, z up, origin on the ground below the rear axle; camera x right,
y down, z forward. A pose takes sensor coordinates to ego coordinates,

    p_ego = R p_sensor + t
    (u, v) = (fx X/Z + cx, fy Y/Z + cy),      (X, Y, Z) = R^T (p_ego - t)

and a pixel covers [i, i + 1), so its centre is at i + 0.5. The JSON is that of nuScenes: `cameras`
by name with `intrinsic`, `width`, `height`, `translation` and `rotation` (quaternion w x y z), and
`lidar` with a pose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loom.errors import UserError
from loom.files import read_json, write_json

FILE = "calibration.json"
CAMERA = "front"

_SIDES = ("width", "height")
_LARGEST = 1 << 16

CAMERA_AXES_IN_EGO = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Rotation camera -> ego of a level camera that looks forward: columns are its x, y, z axes."""


@dataclass(frozen=True)
class Pose:
    """Rotation [3, 3] and translation [3] (m) that take sensor coordinates to ego coordinates."""

    rotation: np.ndarray
    translation: np.ndarray

    def to_ego(self, points: np.ndarray) -> np.ndarray:
        """Take points [n, 3] from the sensor's frame to the ego frame."""
        return points @ self.rotation.T + self.translation

    def from_ego(self, points: np.ndarray) -> np.ndarray:
        """Take points [n, 3] from the ego frame to the sensor's frame."""
        return (points - self.translation) @ self.rotation

    def numbers(self) -> list[float]:
        """Return rotation and translation to nine digits, to tell poses apart by."""
        return _rounded(self.rotation) + _rounded(self.translation)


IDENTITY = Pose(np.eye(3), np.zeros(3))


@dataclass(frozen=True)
class Calibration:
    """A pinhole camera on the car: `intrinsic` [3, 3] in pixels, image size, pose in the ego."""

    intrinsic: np.ndarray
    width: int
    height: int
    rotation: np.ndarray
    translation: np.ndarray

    @property
    def pose(self) -> Pose:
        """The camera's pose in the ego frame."""
        return Pose(self.rotation, self.translation)

    @property
    def sha256(self) -> str:
        """A digest of all of it."""
        facts = [_rounded(self.intrinsic), self.width, self.height, self.pose.numbers()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def project(self, points_ego: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project ego points.

        Args:
            points_ego: [n, 3] in metres.

        Returns:
            Pixels (u, v) [n, 2], of meaning only where the depth is positive, and depths [n] (m).
        """
        camera = self.pose.from_ego(np.asarray(points_ego, np.float64))
        depth = camera[:, 2]
        homogeneous = camera @ self.intrinsic.T
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = homogeneous[:, :2] / depth[:, None]
        return pixels, depth


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 9) + 0.0 for value in np.ravel(values)]  # 0.0 takes the sign of -0


def level_camera(
    width: int, height: int, focal_px: float, position_m: tuple[float, float, float]
) -> Calibration:
    """Return a level camera that looks forward, its principal point in the image's middle."""
    intrinsic = np.array([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]])
    return Calibration(intrinsic, width, height, CAMERA_AXES_IN_EGO, np.asarray(position_m, float))


def rotation_of_quaternion(wxyz: np.ndarray) -> np.ndarray:
    """Return the rotation matrix of a unit quaternion (w, x, y, z)."""
    w, x, y, z = wxyz
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of_rotation(rotation: np.ndarray) -> np.ndarray:
    """Return the unit quaternion (w, x, y, z), w >= 0, of a rotation matrix.

    It is the eigenvector of Bar-Itzhack's symmetric matrix (2000), stable at every angle.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation
    symmetric = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    quaternion = np.linalg.eigh(symmetric)[1][:, -1]
    return quaternion if quaternion[0] >= 0 else -quaternion


def write_calibration(path: Path, camera: Calibration | None, lidar: Pose) -> None:
    """Write the calibration of a car with a LiDAR and at most one camera."""
    cameras = {}
    if camera is not None:
        cameras[CAMERA] = {
            "intrinsic": camera.intrinsic.tolist(),
            "width": camera.width,
            "height": camera.height,
            **_pose_as_json(camera.pose),
        }
    write_json(path, {"cameras": cameras, "lidar": _pose_as_json(lidar)})


def read_calibration(path: Path) -> tuple[Calibration | None, Pose]:
    """Read the front camera (None where there is none) and the LiDAR's pose.

    Raises:
        UserError: a number is missing or not finite, a matrix has the wrong shape, a rotation is no
            rotation; the message names the file and the place in it.
    """
    content = read_json(path)
    lidar = _pose(path, "lidar", _section(path, content, "lidar"))
    cameras = _section(path, content, "cameras")
    if not cameras:
        return None, lidar
    name = CAMERA if CAMERA in cameras else next(iter(cameras))
    place = f"cameras.{name}"
    entry = _section(path, cameras, name)
    intrinsic = _numbers(path, f"{place}.intrinsic", entry.get("intrinsic"), (3, 3))
    if not (intrinsic[0, 0] > 0 and intrinsic[1, 1] > 0 and np.all(intrinsic[2] == (0, 0, 1))):
        raise _wrong(path, f"{place}.intrinsic", "[[fx, s, cx], [0, fy, cy], [0, 0, 1]]")
    width, height = (_size(path, f"{place}.{side}", entry.get(side)) for side in _SIDES)
    pose = _pose(path, place, entry)
    return Calibration(intrinsic, width, height, pose.rotation, pose.translation), lidar


def _pose_as_json(pose: Pose) -> dict[str, list[float]]:
    return {
        "translation": pose.translation.tolist(),
        "rotation": quaternion_of_rotation(pose.rotation).tolist(),
    }


def _pose(path: Path, place: str, entry: Mapping[str, Any]) -> Pose:
    translation = _numbers(path, f"{place}.translation", entry.get("translation"), (3,))
    quaternion = _numbers(path, f"{place}.rotation", entry.get("rotation"), (4,))
    length = float(np.linalg.norm(quaternion))
    if abs(length - 1) > 1e-3:
        raise _wrong(path, f"{place}.rotation", "a unit quaternion w, x, y, z")
    return Pose(rotation_of_quaternion(quaternion / length), translation)


def _size(path: Path, place: str, value: Any) -> int:
    if not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise _wrong(path, place, f"a whole number from 1 to {_LARGEST}")
    return value


def _section(path: Path, content: Any, key: str) -> Mapping[str, Any]:
    found = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise _wrong(path, key, "an object")
    return found


def _numbers(path: Path, place: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.array(np.nan)
    if array.shape != shape or not np.all(np.isfinite(array)):
        raise _wrong(path, place, f"{' x '.join(map(str, shape))} finite numbers")
    return array


def _wrong(path: Path, place: str, expected: str) -> UserError:
    return UserError(
        f"{path}: {place} is not what a calibration has there; expected {expected}",
        hint="the layout is in docs/end2race.md, section Data",
    )
