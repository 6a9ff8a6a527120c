"""The canonical drawing of a path: HAMSTER's style as `overlay_utils` of the notes has it.

Three drawings of that name exist that differ in colours; this one is red for closed and blue for
open markers and a line from true blue (start) to red (end). With s = max(min(W, H) / 512, 1):

1. Corner points are pixels (int(x W), int(y H)); x = 1 therefore lies outside, where OpenCV clips.
2. Circles of radius int(7 s), outlines of int(2 s), at the first point and wherever the state of
   the gripper differs from the point before.
3. Over them a line of 99 pieces between 100 samples, equally spaced in arc length, truncated to
   pixels, each piece in the jet colour of its start.

Lengths and samples are float32 throughout, as NumPy 2 evaluates the original loop; sums in float64
move single pixels. A path without gripper states (PEEK) has no markers.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from maniflow_overlay.gripper_path import OPEN, GripperPath

SAMPLES = 100
REFERENCE_SIDE_PX = 512
OPEN_RGB = (0, 0, 255)
CLOSED_RGB = (255, 0, 0)

_NUMBERS = np.arange(SAMPLES, dtype=np.float32)

# Breakpoints (position, value) of the colour map jet.
_JET = (
    ((0.0, 0.0), (0.35, 0.0), (0.66, 1.0), (0.89, 1.0), (1.0, 0.5)),
    ((0.0, 0.0), (0.125, 0.0), (0.375, 1.0), (0.64, 1.0), (0.91, 0.0), (1.0, 0.0)),
    ((0.0, 0.5), (0.11, 1.0), (0.34, 1.0), (0.65, 0.0), (1.0, 0.0)),
)


@cache
def line_colours() -> np.ndarray:
    """Return the (100, 3) uint8 RGB colours of the samples: jet, through its table of 256."""
    grid = np.linspace(0, 1, 256)
    table = np.stack([np.interp(grid, *np.transpose(channel)) for channel in _JET], axis=-1)
    entry = np.minimum((np.linspace(0, 1, SAMPLES) * 256).astype(int), 255)
    colours = (table[entry] * 255).astype(np.uint8)
    colours.setflags(write=False)
    return colours


@cache
def _colour_tuples(*, bgr: bool) -> tuple[list[tuple[int, ...]], tuple[int, ...], tuple[int, ...]]:
    """Return line, open and closed colours in the order of the image's channels."""
    order = slice(None, None, -1) if bgr else slice(None)
    lines = [tuple(colour[order]) for colour in line_colours().tolist()]
    return lines, OPEN_RGB[order], CLOSED_RGB[order]


def path_pixels(path: GripperPath, width: int, height: int) -> np.ndarray:
    """Return the (n, 2) int64 pixels of a path's points, truncated towards zero.

    Coordinates far outside are held at 100,000 pixels, beyond which OpenCV's integers overflow.
    """
    size = np.array([width, height], dtype=np.float64)
    return np.clip(np.trunc(path.points * size), -100_000, 100_000).astype(np.int64)


def sample_line(corners: np.ndarray) -> np.ndarray | None:
    """Walk a polygonal line at 100 equal steps of arc length.

    Args:
        corners: (n, 2) pixels.

    Returns:
        (100, 2) int32 pixels, or None where the line has no length.
    """
    if len(corners) < 2:
        return None
    points = corners.astype(np.float32)
    steps = points[1:] - points[:-1]
    lengths = np.sqrt(steps[:, 0] * steps[:, 0] + steps[:, 1] * steps[:, 1])
    reached = np.zeros(len(points), np.float32)
    np.cumsum(lengths, out=reached[1:])
    if reached[-1] == 0:
        return None
    wanted = _NUMBERS * (
        reached[-1] / np.float32(SAMPLES - 1)
    )  # numpy.linspace(0, reached[-1], 100)
    wanted[-1] = reached[-1]
    piece = np.minimum(np.searchsorted(reached[1:], wanted), len(points) - 2)
    length = reached[1:] - reached[:-1]
    length[length == 0] = 1  # such a piece is met only at its start, with nothing to divide
    share = np.minimum((wanted - reached[piece]) / length[piece], 1)[:, None]
    return ((1 - share) * points[piece] + share * points[piece + 1]).astype(np.int32)


def _draw(image: np.ndarray, path: GripperPath, *, bgr: bool) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image of {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
    if not image.flags.c_contiguous or not image.flags.writeable:
        raise ValueError("the image must be contiguous and writeable: it is drawn on in place")
    if not len(path):
        return
    height, width = image.shape[:2]
    scale = max(min(width, height) / REFERENCE_SIDE_PX, 1)
    thickness = max(1, int(2 * scale))
    lines, opened, closed = _colour_tuples(bgr=bgr)
    corners = path_pixels(path, width, height)
    if path.gripper is not None:
        before = None
        for state, corner in zip(path.gripper.tolist(), corners.tolist(), strict=True):
            if state != before:
                colour = opened if state == OPEN else closed
                cv2.circle(image, corner, int(7 * scale), colour, thickness)
            before = state
    samples = sample_line(corners)
    if samples is None:
        return
    ends = samples.tolist()
    for start, end, colour in zip(ends[:-1], ends[1:], lines[:-1], strict=True):
        cv2.line(image, start, end, colour, thickness)


def draw_path_bgr(image: np.ndarray, path: GripperPath) -> np.ndarray:
    """Draw a path into a (H, W, 3) uint8 image whose channels are blue, green, red.

    The image is changed in place and returned.
    """
    _draw(image, path, bgr=True)
    return image


def draw_path_rgb(image: np.ndarray, path: GripperPath) -> np.ndarray:
    """Draw a path into a (H, W, 3) uint8 image whose channels are red, green, blue.

    The image is changed in place and returned.
    """
    _draw(image, path, bgr=False)
    return image


def path_image_rgb(path: GripperPath, width: int, height: int) -> np.ndarray:
    """Return the path alone on black, (H, W, 3) uint8 RGB: approach B's second image."""
    return draw_path_rgb(np.zeros((height, width, 3), np.uint8), path)
