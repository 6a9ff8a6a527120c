"""Rays against a ground plane and oriented boxes.

Coordinates are Unreal's (x forward, y right, z up) in a world whose ground is the plane z = 0. A
camera's rays have length 1 along its axis, so the ray parameter of a hit is the z-depth itself.
Each box is tested only against the pixels that its outline can reach, near boxes first.
"""

from typing import NamedTuple

import numpy as np

GROUND = -1
SKY = -2
_NEAR_M = 0.05
_SLAB_FACES = 6
_EDGES = [
    (i, j) for i in range(8) for j in range(i + 1, 8) if (i ^ j) in (1, 2, 4)
]  # corners are numbered by the signs of their three coordinates


class Boxes(NamedTuple):
    """Oriented boxes.

    Attributes:
        centres: `(n, 3)`.
        rotations: `(n, 3, 3)` world from box.
        halves: `(n, 3)` half sizes.
    """

    centres: np.ndarray
    rotations: np.ndarray
    halves: np.ndarray

    def corners(self) -> np.ndarray:
        """Return `(n, 8, 3)` corners; bit k of the number is the sign along axis 2 - k."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        own = signs * self.halves[:, None]
        return np.einsum("nij,nkj->nki", self.rotations, own) + self.centres[:, None]


class Hits(NamedTuple):
    """What rays end on.

    Attributes:
        depth: Ray parameter, inf for the sky.
        target: Index of the box, `GROUND` or `SKY`.
        face: 2 axis + (1 where the face looks along the positive axis), for boxes.
        local: `(..., 3)` point in the box's frame, or in the world for the ground.
    """

    depth: np.ndarray
    target: np.ndarray
    face: np.ndarray
    local: np.ndarray


def camera_rays(pose: np.ndarray, focal: float, width: int, height: int) -> np.ndarray:
    """Return `(height, width, 3)` rays of a camera with a centred principal point.

    Args:
        pose: 4x4 world from camera, Unreal axes (x is the camera's axis).
        focal: In pixels.
        width: Of the image.
        height: Of the image.
    """
    right = (np.arange(width) + 0.5 - width / 2) / focal
    up = (height / 2 - np.arange(height) - 0.5) / focal
    own = np.stack([np.ones((height, width)), *np.meshgrid(right, up)], axis=-1)
    return own @ pose[:3, :3].T


def cast_camera(
    boxes: Boxes, pose: np.ndarray, focal: float, rays: np.ndarray, ignore: int = SKY
) -> Hits:
    """Cast the rays of `camera_rays`.

    Args:
        boxes: The world.
        pose: 4x4 world from camera.
        focal: In pixels.
        rays: Of this camera.
        ignore: Index of a box that is not there.
    """
    height, width = rays.shape[:2]
    depth, target = _ground(pose[:3, 3], rays)
    in_camera = (boxes.corners() - pose[:3, 3]) @ pose[:3, :3]
    nearest = in_camera[..., 0].min(axis=1)
    for index in np.argsort(nearest):
        window = _window(in_camera[index], focal, width, height)
        if index == ignore or window is None:
            continue
        part = depth[window]
        if part.max() <= nearest[index]:
            continue
        entry = _slab(boxes, index, pose[:3, 3], rays[window])
        closer = entry < part
        part[closer] = entry[closer]
        target[window][closer] = index
    return _localised(boxes, pose[:3, 3], rays, depth, target)


def cast_rays(boxes: Boxes, origin: np.ndarray, rays: np.ndarray, ignore: int = SKY) -> Hits:
    """Cast rays `(..., 3)` from one point against every box."""
    depth, target = _ground(origin, rays)
    for index in range(len(boxes.centres)):
        if index != ignore:
            entry = _slab(boxes, index, origin, rays)
            closer = entry < depth
            depth[closer] = entry[closer]
            target[closer] = index
    return _localised(boxes, origin, rays, depth, target)


def _ground(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore"):
        depth = np.where(rays[..., 2] < 0, -origin[2] / rays[..., 2], np.inf)
    return depth, np.where(np.isfinite(depth), GROUND, SKY)


def _slab(boxes: Boxes, index: int, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return the ray parameter at which rays enter a box, inf where they miss it."""
    rotation, half = boxes.rotations[index], boxes.halves[index]
    start = (origin - boxes.centres[index]) @ rotation
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / (rays @ rotation)
        first, second = (-half - start) * inverse, (half - start) * inverse
    entry = np.minimum(first, second).max(axis=-1)
    leave = np.maximum(first, second).min(axis=-1)
    return np.where((entry <= leave) & (entry > _NEAR_M), entry, np.inf)


def _window(
    corners: np.ndarray, focal: float, width: int, height: int
) -> tuple[slice, slice] | None:
    """Return the rows and columns that a box's outline can reach.

    The outline is that of the box cut off at the near plane, whose corners are the box's own in
    front of the plane and the points where its edges cross the plane.
    """
    visible = [corner for corner in corners if corner[0] > _NEAR_M]
    for i, j in _EDGES:
        a, b = corners[i], corners[j]
        if (a[0] > _NEAR_M) != (b[0] > _NEAR_M):
            visible.append(a + (b - a) * ((_NEAR_M - a[0]) / (b[0] - a[0])))
    if not visible:
        return None
    points = np.array(visible)
    u = points[:, 1] / points[:, 0] * focal + width / 2
    v = height / 2 - points[:, 2] / points[:, 0] * focal
    left, right = max(0, int(np.floor(u.min()))), min(width, int(np.ceil(u.max())) + 1)
    top, bottom = max(0, int(np.floor(v.min()))), min(height, int(np.ceil(v.max())) + 1)
    if left >= right or top >= bottom:
        return None
    return slice(top, bottom), slice(left, right)


def _localised(
    boxes: Boxes, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray, target: np.ndarray
) -> Hits:
    """Add the face and the point in the own frame to each hit."""
    reach = np.where(np.isfinite(depth), depth, 0)
    points = origin + reach[..., None] * rays
    local = points.copy()
    face = np.full(depth.shape, _SLAB_FACES, np.int8)
    for index in np.unique(target[target >= 0]):
        here = target == index
        own = (points[here] - boxes.centres[index]) @ boxes.rotations[index]
        share = own / boxes.halves[index]
        axis = np.abs(share).argmax(axis=-1)
        positive = np.take_along_axis(share, axis[:, None], axis=-1)[:, 0] > 0
        local[here] = own
        face[here] = 2 * axis + positive
    return Hits(depth, target, face, local)
