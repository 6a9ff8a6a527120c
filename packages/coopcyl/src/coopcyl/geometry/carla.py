"""Poses as CARLA and the Unreal Engine write them, and as OpenCV expects them.

CARLA's axes are left-handed: x forward, y right, z up. A pose there is six numbers,
`[x, y, z, roll, yaw, pitch]` in metres and degrees, and its rotation is `Rz(yaw) Ry(-pitch)
Rx(-roll)` of the usual right-handed matrices: positive pitch lifts the nose, positive roll lifts
the left side. Another order or sign agrees with this one on a flat road and is wrong by degrees on
a slope. OpenCV's axes are x right, y down, z forward; `to_opencv` changes between them.

A 4x4 pose named `a_from_b` maps coordinates of frame b to those of frame a.
"""

import numpy as np

CV_FROM_UE = np.array([[0.0, 1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
CV_FROM_UE.setflags(write=False)


def pose_from_cords(cords: np.ndarray | list[float] | tuple[float, ...]) -> np.ndarray:
    """Return the 4x4 pose, in Unreal axes, of six numbers as OPV2V's YAML holds them.

    Args:
        cords: `[x, y, z, roll, yaw, pitch]`, metres and degrees.
    """
    x, y, z, roll, yaw, pitch = (float(value) for value in cords)
    cr, cy, cp = np.cos(np.radians([roll, yaw, pitch]))
    sr, sy, sp = np.sin(np.radians([roll, yaw, pitch]))
    return np.array(
        [
            [cp * cy, cy * sp * sr - sy * cr, -cy * sp * cr - sy * sr, x],
            [cp * sy, sy * sp * sr + cy * cr, -sy * sp * cr + cy * sr, y],
            [sp, -cp * sr, cp * cr, z],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )


def cords_from_pose(pose: np.ndarray) -> np.ndarray:
    """Return `[x, y, z, roll, yaw, pitch]` of a 4x4 pose in Unreal axes."""
    roll = np.arctan2(-pose[2, 1], pose[2, 2])
    yaw = np.arctan2(pose[1, 0], pose[0, 0])
    pitch = np.arctan2(pose[2, 0], np.hypot(pose[0, 0], pose[1, 0]))
    return np.concatenate([pose[:3, 3], np.degrees([roll, yaw, pitch])])


def to_opencv(pose_ue: np.ndarray) -> np.ndarray:
    """Write a pose between two frames of Unreal axes in OpenCV axes on both sides."""
    return CV_FROM_UE @ pose_ue @ CV_FROM_UE.T


def to_unreal(pose_cv: np.ndarray) -> np.ndarray:
    """Write a pose between two frames of OpenCV axes in Unreal axes on both sides."""
    return CV_FROM_UE.T @ pose_cv @ CV_FROM_UE


def inverse(pose: np.ndarray) -> np.ndarray:
    """Return the inverse of a rigid pose."""
    rotation = pose[:3, :3].T
    result = np.eye(4)
    result[:3, :3] = rotation
    result[:3, 3] = -rotation @ pose[:3, 3]
    return result


def transform(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points `(..., 3)` by a pose."""
    return points @ pose[:3, :3].T + pose[:3, 3]


def rotation_angle_deg(rotation: np.ndarray) -> float:
    """Return the angle of a 3x3 rotation, exact near 0 and near 180 degrees as well."""
    axis = [
        rotation[2, 1] - rotation[1, 2],
        rotation[0, 2] - rotation[2, 0],
        rotation[1, 0] - rotation[0, 1],
    ]
    return float(np.degrees(np.arctan2(np.linalg.norm(axis), np.trace(rotation) - 1)))


def is_rigid(pose: np.ndarray, tolerance: float = 1e-4) -> bool:
    """Tell whether a 4x4 matrix is a finite rotation and translation without mirror or scale."""
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        return False
    rotation = pose[:3, :3]
    return bool(
        np.abs(rotation @ rotation.T - np.eye(3)).max() < tolerance
        and np.linalg.det(rotation) > 0
        and np.abs(pose[3] - [0, 0, 0, 1]).max() < tolerance
    )
