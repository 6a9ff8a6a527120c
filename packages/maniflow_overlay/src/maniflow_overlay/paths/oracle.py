"""The path that really was taken: end-effector poses projected into the picture.

HAMSTER trains its policies on such paths, not on its model's: the tip of the active arm is
projected by the camera, simplified by Ramer-Douglas-Peucker with the points kept at which the
gripper opens or closes, and disturbed by Gaussian noise of 0.01.
"""

from __future__ import annotations

import numpy as np
from loom.errors import UserError

from maniflow_overlay.data.robotwin import TIP_OFFSET_M, Arm, Camera, Episode
from maniflow_overlay.gripper_path import GripperPath

TOLERANCE = 0.02
NOISE = 0.01


def project(points_m: np.ndarray, camera: Camera, row: int, size: tuple[int, int]) -> np.ndarray:
    """Project world points to relative picture coordinates.

    Args:
        points_m: (n, 3).
        camera: Its pose at `row` is used for all points.
        row: Of the camera.
        size: Width and height of the picture.

    Returns:
        (n, 2); NaN for points behind the camera.
    """
    homogeneous = np.concatenate([points_m, np.ones((len(points_m), 1))], axis=1)
    seen = homogeneous @ camera.camera_from_world[row].T @ camera.intrinsic[row].T
    depth = np.where(seen[:, 2:] > 1e-6, seen[:, 2:], np.nan)
    return seen[:, :2] / depth / np.array(size, dtype=np.float64)


def tip_positions(arm: Arm, offset_m: float = TIP_OFFSET_M) -> np.ndarray:
    """Return the (T, 3) positions of the gripper's tip: the pose moved along its own x axis."""
    w, x, y, z = (arm.quaternion / np.linalg.norm(arm.quaternion, axis=1, keepdims=True)).T
    x_axis = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=1)
    return arm.position_m + offset_m * x_axis


def simplify(points: np.ndarray, keep: np.ndarray, tolerance: float) -> np.ndarray:
    """Choose points so that no other lies farther than `tolerance` from the line through them.

    Args:
        points: (n, 2).
        keep: (n,) bool, points to keep in any case; the ends always are.
        tolerance: Largest distance.

    Returns:
        Ascending indices.
    """
    chosen = {0, len(points) - 1, *np.flatnonzero(keep).tolist()}
    ends = sorted(chosen)
    pieces = list(zip(ends[:-1], ends[1:], strict=True))
    while pieces:
        first, last = pieces.pop()
        if last - first < 2:
            continue
        between = points[first + 1 : last]
        line = points[last] - points[first]
        squared = line @ line
        along = np.clip((between - points[first]) @ line / squared, 0, 1) if squared else 0
        nearest = points[first] + np.multiply.outer(along, line)
        distance = np.linalg.norm(between - nearest, axis=1)
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            middle = first + 1 + worst
            chosen.add(middle)
            pieces += [(first, middle), (middle, last)]
    return np.array(sorted(chosen))


def active_arm(arms: tuple[Arm, Arm]) -> Arm:
    """Return the arm that moves more."""
    travel = [np.abs(np.diff(arm.position_m, axis=0)).sum() for arm in arms]
    return arms[int(travel[1] > travel[0])]


def oracle_path(
    episode: Episode,
    row: int,
    size: tuple[int, int],
    *,
    tolerance: float = TOLERANCE,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> GripperPath:
    """Return the path from a row to the episode's end, as seen by the camera at that row.

    Args:
        episode: With camera and poses.
        row: From where.
        size: Width and height of the picture.
        tolerance: Of the simplification, relative.
        noise: Standard deviation of the points, relative.
        rng: Draws the noise.

    Raises:
        UserError: The episode has no camera or no poses, or the arm is behind the camera.
    """
    if episode.camera is None or episode.arms is None:
        raise UserError(
            f"{episode.source}: no camera or no end-effector poses",
            hint="the older layout needs intrinsic_cv, extrinsic_cv and /endpose",
        )
    arm = active_arm(episode.arms)
    points = project(tip_positions(arm)[row:], episode.camera, row, size)
    if not np.isfinite(points).all():
        raise UserError(f"{episode.source}: the gripper is behind the camera at row {row}")
    return drawn_from(points, arm.opening[row:] > 0.5, tolerance=tolerance, noise=noise, rng=rng)


def drawn_from(
    points: np.ndarray,
    opened: np.ndarray,
    *,
    tolerance: float = TOLERANCE,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> GripperPath:
    """Return the simplified, disturbed path of a way in the picture.

    Args:
        points: (n, 2), relative.
        opened: (n,) bool, whether the gripper is open from each point on.
        tolerance: Of the simplification, relative.
        noise: Standard deviation of the points, relative.
        rng: Draws the noise.
    """
    changed = np.diff(opened, prepend=opened[:1]) != 0
    chosen = simplify(points, changed, tolerance)
    points = points[chosen]
    if noise > 0:
        if rng is None:
            raise ValueError("noise needs a generator")
        points = points + rng.normal(0, noise, points.shape)
    return GripperPath(np.clip(points, 0, 1), opened[chosen].astype(np.uint8))
