"""A panorama from one centre, made with depth: to look at, never to learn from.

Cameras stand up to three metres apart, so a panorama without a centre has seams where the camera
changes. With depth they can be closed: every pixel of every camera is thrown onto the panorama of
the LiDAR and the nearest one stays; then each panorama pixel asks the cameras for its colour, and
only one that sees this very surface may answer. What no camera sees from there stays black. It
needs depth, which is what is to be predicted, and it has holes: so it is for the eye alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from coopcyl.geometry.carla import transform
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import Camera, Rig

_TOLERANCE_M, _TOLERANCE_SHARE = 0.3, 0.02
_LEAST_NEIGHBOURS = 3


class CentralView(NamedTuple):
    """What the LiDAR's place would see.

    Attributes:
        rgb: `(h, w, 3)` uint8, black where nothing is known.
        range_m: `(h, w)` float32 from the rig's origin, 0 where nothing is known.
    """

    rgb: np.ndarray
    range_m: np.ndarray


def central_view(
    rig: Rig,
    images: Sequence[np.ndarray],
    z_depths_m: Sequence[np.ndarray],
    panorama: Panorama,
) -> CentralView:
    """Return the panorama from the rig's origin.

    Args:
        rig: The cameras.
        images: `(height, width, 3)` uint8 of each.
        z_depths_m: `(height, width)` of each, 0 where there is none.
        panorama: What is made.
    """
    nearest = np.full(panorama.height * panorama.width, np.inf, np.float32)
    for camera, depth in zip(rig.cameras, z_depths_m, strict=True):
        place, range_m = _thrown(camera, depth, panorama)
        np.minimum.at(nearest, place, range_m)
    known = nearest.reshape(panorama.height, panorama.width)
    range_m = _filled(np.where(np.isfinite(known), known, 0))
    points = range_m[..., None] * panorama.directions()
    rgb = np.zeros((*range_m.shape, 3), np.uint8)
    best = np.zeros(range_m.shape)
    for camera, image, depth in zip(rig.cameras, images, z_depths_m, strict=True):
        pixels, z = camera.project(points)
        sees, cosine = _sees(camera, depth, pixels, z), z / np.maximum(range_m, 1e-6)
        wins = sees & (range_m > 0) & (cosine > best)
        column, row = np.moveaxis(np.where(wins[..., None], pixels - 0.5, 0), -1, 0)
        colours = cv2.remap(
            image,
            column.astype(np.float32),
            row.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        rgb[wins], best[wins] = colours[wins], cosine[wins]
    return CentralView(rgb, np.where(best > 0, range_m, 0).astype(np.float32))


def _thrown(camera: Camera, depth: np.ndarray, panorama: Panorama) -> tuple[np.ndarray, np.ndarray]:
    """Return flat panorama pixels and ranges of a camera's points."""
    known = np.isfinite(depth) & (depth > 0)
    own = camera.pixel_rays()[known] * depth[known][:, None]
    points = transform(camera.pose_rig_from_camera, own)
    column, row = np.floor(panorama.pixels_of_directions(points)).astype(np.int64).T
    inside = (row >= 0) & (row < panorama.height)
    place = row * panorama.width + column % panorama.width
    return place[inside], np.linalg.norm(points, axis=-1).astype(np.float32)[inside]


def _filled(range_m: np.ndarray) -> np.ndarray:
    """Give pixels between known ones the nearest range around them; columns wrap."""
    padded = np.pad(range_m, ((1, 1), (0, 0)))
    around = np.stack(
        [
            np.roll(padded, (down, right), (0, 1))[1:-1]
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if (down, right) != (0, 0)
        ]
    )
    known = around > 0
    nearest = np.where(known, around, np.inf).min(axis=0)
    fill = (range_m == 0) & (known.sum(axis=0) >= _LEAST_NEIGHBOURS)
    return np.where(fill, nearest, range_m)


def _sees(camera: Camera, depth: np.ndarray, pixels: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Tell where a camera sees the surface itself and not one before it."""
    inside = camera.contains(pixels) & (z > 0)
    column, row = np.floor(np.where(inside[..., None], pixels, 0)).astype(np.int64).T
    shown = depth[row.T, column.T]
    tolerance = np.maximum(_TOLERANCE_M, _TOLERANCE_SHARE * z)
    return inside & (shown > 0) & (np.abs(shown - z) < tolerance)
