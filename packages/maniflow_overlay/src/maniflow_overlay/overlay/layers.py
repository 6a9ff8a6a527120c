"""A drawn path as the pixels that it covers, so that drawing again is one scatter.

A line of OpenCV without anti-aliasing covers a pixel or leaves it, and none of its colours is
black: what is not black after drawing on black is the drawing, and `covered_by` is exact for every
background. Where the drawing is scaled down with its picture, as the notes do (drawn at 320x240,
trained at 224x224), covered and free pixels mix; then `difference` holds what changed against one
picture, exact for that picture only.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from maniflow_overlay.gripper_path import GripperPath
from maniflow_overlay.overlay.drawing import draw_path_rgb


@dataclass(frozen=True, eq=False)
class SparseLayer:
    """Pixels to set in a picture of one size.

    Attributes:
        width: Of the picture.
        height: Of the picture.
        index: (n,) uint32, row-major pixel numbers, ascending.
        value: (n, 3) uint8, RGB.
    """

    width: int
    height: int
    index: np.ndarray
    value: np.ndarray

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Set the pixels in a contiguous (H, W, 3) uint8 RGB image, in place, and return it."""
        if image.shape != (self.height, self.width, 3):
            raise ValueError(
                f"a layer of {self.width}x{self.height} over an image of shape {image.shape}"
            )
        if not image.flags.c_contiguous or image.dtype != np.uint8:
            raise ValueError("the image must be contiguous uint8: it is changed in place")
        # Three bytes as one item: half the time of an (n, 3) assignment.
        image.reshape(-1).view("V3")[self.index] = self.value.reshape(-1).view("V3")
        return image


def covered_by(path: GripperPath, width: int, height: int) -> SparseLayer:
    """Return the layer that equals drawing `path` into any picture of this size."""
    on_black = draw_path_rgb(np.zeros((height, width, 3), np.uint8), path)
    return _layer(on_black.max(axis=-1) > 0, on_black)


def scaled_down(
    path: GripperPath, drawn_at: tuple[int, int], width: int, height: int
) -> SparseLayer:
    """Return a path drawn at one size and scaled to another, without its soft edge.

    The notes draw into pictures of 320x240 and scale them down bilinearly, which narrows the line
    and turns circles into ellipses. The same is done here to the drawing on black and to its
    coverage; a pixel that is covered by at least half takes the drawing's colour, the others stay
    free. So the layer is still one for every background.

    Args:
        path: Relative coordinates.
        drawn_at: Width and height of the drawing.
        width: Of the layer.
        height: Of the layer.
    """
    if drawn_at == (width, height):
        return covered_by(path, width, height)
    on_black = draw_path_rgb(np.zeros((drawn_at[1], drawn_at[0], 3), np.uint8), path)
    covered = (on_black.max(axis=-1) > 0).astype(np.float32)
    share = cv2.resize(covered, (width, height), interpolation=cv2.INTER_LINEAR)
    colour = cv2.resize(
        on_black.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
    )
    colour = colour / np.maximum(share, 0.5)[..., None]
    return _layer(share >= 0.5, np.clip(np.rint(colour), 1, 255).astype(np.uint8))


def difference(raw: np.ndarray, drawn: np.ndarray) -> SparseLayer:
    """Return the layer that turns `raw` into `drawn`, both (H, W, 3) uint8 RGB."""
    if raw.shape != drawn.shape:
        raise ValueError(f"images of shapes {raw.shape} and {drawn.shape}")
    return _layer((raw != drawn).any(axis=-1), drawn)


def _layer(mask: np.ndarray, drawn: np.ndarray) -> SparseLayer:
    height, width = mask.shape
    index = np.flatnonzero(mask)
    return SparseLayer(width, height, index.astype(np.uint32), drawn.reshape(-1, 3)[index])
