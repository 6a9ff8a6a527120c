"""Pictures of views: ranges and cameras in colour, points and boxes drawn into images."""

from collections.abc import Sequence

import cv2
import numpy as np

from coopcyl.data.frame_yaml import Vehicle
from coopcyl.geometry.carla import CV_FROM_UE, inverse, transform
from coopcyl.geometry.covisibility import appear
from coopcyl.geometry.rig import Camera
from coopcyl.geometry.stitch_table import NO_CAMERA
from coopcyl.geometry.view import View

_CAMERA_COLOURS = np.array(
    [[66, 133, 244], [219, 68, 55], [244, 180, 0], [15, 157, 88], [171, 71, 188], [0, 172, 193]],
    np.uint8,
)
_BOX_COLOUR = (255, 64, 64)
_FRONT_COLOUR = (64, 255, 64)
_NEAREST_M = 2.0
_STEPS = 48
_EDGES = [(i, j) for i in range(8) for j in range(i + 1, 8) if (i ^ j) in (1, 2, 4)]
_FRONT_CORNERS = 4  # corners 4 to 7 have the positive sign along the length


def range_picture(range_m: np.ndarray, max_range_m: float) -> np.ndarray:
    """Return ranges `(h, w)` as uint8 colours, red near to blue far, logarithmic; black: none."""
    with np.errstate(divide="ignore"):
        share = np.log(range_m / _NEAREST_M) / np.log(max_range_m / _NEAREST_M)
    code = (255 * (1 - np.nan_to_num(share, neginf=0.0).clip(0, 1))).astype(np.uint8)
    coloured = cv2.applyColorMap(code, cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where((range_m > 0)[..., None], coloured, 0).astype(np.uint8)


def mask_picture(mask: np.ndarray) -> np.ndarray:
    """Return a mask `(h, w)` as black and white."""
    return np.where(mask, 255, 0).astype(np.uint8)


def camera_picture(camera: np.ndarray) -> np.ndarray:
    """Return camera indices `(h, w)` as colours; black where there is none."""
    colour = _CAMERA_COLOURS[np.maximum(camera, 0) % len(_CAMERA_COLOURS)]
    return np.where((camera != NO_CAMERA)[..., None], colour, 0).astype(np.uint8)


def draw_points(image: np.ndarray, pixels: np.ndarray, range_m: np.ndarray) -> np.ndarray:
    """Return an image with points `(n, 2)` coloured by their range, the nearest on top."""
    drawn = image.copy()
    if not len(pixels):
        return drawn
    colours = range_picture(range_m[None], 100.0)[0]
    height, width = image.shape[:2]
    for i in np.argsort(-range_m):
        column, row = np.floor(pixels[i]).astype(int)
        part = drawn[max(0, row) : min(height, row + 2), max(0, column) : min(width, column + 2)]
        part[:] = colours[i]
    return drawn


def points_in_camera(image: np.ndarray, camera: Camera, points_rig: np.ndarray) -> np.ndarray:
    """Draw points of the rig frame into a camera's image."""
    pixels, z = camera.project(points_rig)
    inside = camera.contains(pixels)
    return draw_points(image, pixels[inside], z[inside])


def points_in_panorama(view: View, points_rig: np.ndarray) -> np.ndarray:
    """Draw points of the rig frame into a view's panorama."""
    where = appear(view, points_rig)
    return draw_points(view.rgb, where.pixels[where.inside], where.range_m[where.inside])


def box_lines(vehicle: Vehicle, pose_world_from_rig: np.ndarray) -> list[np.ndarray]:
    """Return the twelve edges of a vehicle's box as lines of points in the rig frame.

    The four edges round its front come last.
    """
    corners = transform(inverse(pose_world_from_rig), vehicle.corners() @ CV_FROM_UE[:3, :3].T)
    share = np.linspace(0, 1, _STEPS)[:, None]
    front = [i >= _FRONT_CORNERS and j >= _FRONT_CORNERS for i, j in _EDGES]
    order = sorted(range(len(_EDGES)), key=lambda k: front[k])
    return [corners[i] + share * (corners[j] - corners[i]) for i, j in (_EDGES[k] for k in order)]


def boxes_in_camera(
    image: np.ndarray, camera: Camera, boxes: Sequence[list[np.ndarray]]
) -> np.ndarray:
    """Draw boxes' edges into a camera's image, those round the front in green."""
    drawn = image.copy()
    for lines in boxes:
        for number, line in enumerate(lines):
            pixels, _ = camera.project(line)
            _draw_line(drawn, pixels, camera.contains(pixels), number >= len(lines) - 4)
    return drawn


def boxes_in_panorama(
    image: np.ndarray, view: View, boxes: Sequence[list[np.ndarray]]
) -> np.ndarray:
    """Draw boxes' edges into a view's panorama."""
    drawn = image.copy()
    for lines in boxes:
        for number, line in enumerate(lines):
            where = appear(view, line)
            _draw_line(drawn, where.pixels, where.inside, number >= len(lines) - 4)
    return drawn


def _draw_line(image: np.ndarray, pixels: np.ndarray, inside: np.ndarray, front: bool) -> None:
    """Draw the visible parts of a line; a part that jumps over the panorama's edge is left out."""
    colour = _FRONT_COLOUR if front else _BOX_COLOUR
    furthest = image.shape[1] / 4
    for k in range(len(pixels) - 1):
        if inside[k] and inside[k + 1] and abs(pixels[k + 1, 0] - pixels[k, 0]) < furthest:
            a, b = (tuple(int(v) for v in np.floor(pixels[i])) for i in (k, k + 1))
            cv2.line(image, a, b, colour, 1)
