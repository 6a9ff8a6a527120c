"""The same table without GL: a gripper that takes what it closes on, painted as polygons.

Blocks are boxes seen through the same pinhole camera, drawn farthest first. There are no forces: a
gripper that closes around a block's middle carries it, one that lets go drops it straight down, and
an open or closed gripper that comes down beside a block leaves it where it is. Layouts, actions,
limits, curtain and success are those of the MuJoCo scene.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from maniflow_overlay.sim import colours
from maniflow_overlay.sim.camera import TableCamera
from maniflow_overlay.sim.scene import (
    BLOCK_HALF_M,
    GOAL_RADIUS_M,
    Layout,
    Observation,
    Situation,
    draw_layout,
    hidden,
    reachable,
    vector_of,
)

GRASP_M = 0.028  # how far the block's middle may be from the tip when the fingers close
CURTAIN_SHARE = 0.9
_FRACTION_BITS = 4  # of OpenCV's fixed-point coordinates
# Corners of a box as signs of x, y and z: the bottom counter-clockwise, then the top.
_CORNERS = np.array([(x, y, z) for z in (-1, 1) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))])
_FACES = (  # corners of the faces that can be seen, farthest first, and their brightness
    ([0, 3, 7, 4], 0.75),
    ([1, 2, 6, 5], 0.8),
    ([0, 1, 5, 4], 0.65),
    ([4, 5, 6, 7], 1.0),
)


class Planar:
    """The scene without physics.

    Args:
        camera: What it is seen by.
    """

    def __init__(self, camera: TableCamera | None = None) -> None:
        self.camera = camera or TableCamera()
        self.situation = Situation(0)
        self.layout: Layout = draw_layout(0)
        self.steps = 0
        self._tip = self.layout.tip
        self._opening = 1.0
        self._blocks = np.zeros((0, 3))
        self._held: int | None = None
        self._grip_offset = np.zeros(3)
        self._projection = self.camera.intrinsic() @ self.camera.camera_from_world()

    def reset(self, seed: int, *, occluded: bool = False, marked: bool = False) -> Observation:
        """Begin the episode of a seed."""
        self.situation = Situation(seed, occluded, marked)
        self.layout = draw_layout(seed)
        self.steps = 0
        self._tip = self.layout.tip.copy()
        self._opening = 1.0
        heights = np.full(len(self.layout.blocks), BLOCK_HALF_M)
        self._blocks = np.column_stack([self.layout.blocks, heights])
        self._held = None
        return self._observation()

    def step(self, action: np.ndarray) -> Observation:
        """Move towards an action, (14,), at most `STEP_M`."""
        self._tip, opening = reachable(action, self._tip)
        if self._held is not None:
            self._blocks[self._held] = self._tip + self._grip_offset
        if opening > 0.5 >= self._opening and self._held is not None:
            self._blocks[self._held, 2] = BLOCK_HALF_M
            self._held = None
        elif opening <= 0.5 < self._opening:
            self._close()
        self._opening = opening
        self.steps += 1
        return self._observation()

    def _close(self) -> None:
        gap = self._blocks - self._tip
        nearest = int(np.linalg.norm(gap, axis=1).argmin())
        if np.linalg.norm(gap[nearest]) <= GRASP_M:
            # The fingers close along x and take the middle of the block between them.
            self._held = nearest
            self._grip_offset = gap[nearest] * [0, 1, 1]

    def picture(self) -> np.ndarray:
        """Return what the camera sees, (H, W, 3) uint8 RGB."""
        camera = self.camera
        image = np.empty((camera.height, camera.width, 3), np.uint8)
        image[:] = _bytes(colours.TABLE)
        situation, layout = self.situation, self.layout
        if situation.marked:
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            rim = layout.goal + GOAL_RADIUS_M * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            flat = np.column_stack([rim, np.zeros(len(rim))])
            _fill(image, self._fixed_point(flat), _bytes(colours.GOAL))
        for number in np.argsort(-self._blocks[:, 1]):
            recognised = situation.marked and number == layout.target
            colour = colours.MARKED_BLOCK if recognised else colours.BLOCK
            self._box(image, self._blocks[number], (BLOCK_HALF_M,) * 3, colour)
        self._hand(image)
        if hidden(self):
            height, width = image.shape[:2]
            top, left = (round(side * (1 - CURTAIN_SHARE) / 2) for side in (height, width))
            image[top : height - top, left : width - left] = _bytes(colours.CURTAIN)
        return image

    def close(self) -> None:
        """Give the renderer back: there is none."""

    @property
    def tip_m(self) -> np.ndarray:
        """Where the gripper's tip is, (3,)."""
        return self._tip.copy()

    @property
    def opening(self) -> float:
        """How far the gripper was told to open, 0 to 1."""
        return self._opening

    @property
    def blocks_m(self) -> np.ndarray:
        """Where the blocks' centres are, (3, 3)."""
        return self._blocks.copy()

    def _hand(self, image: np.ndarray) -> None:
        spread = self._opening if self._held is None else max(self._opening, 0.5)
        for side in (-1, 1):
            middle = self._tip + [side * (0.006 + 0.05 * spread), 0, 0.018]
            self._box(image, middle, (0.006, 0.02, 0.03), colours.FINGER)
        self._box(image, self._tip + [0, 0, 0.06], (0.055, 0.02, 0.012), colours.HAND)

    def _box(
        self,
        image: np.ndarray,
        middle: np.ndarray,
        half: Sequence[float],
        colour: tuple[float, float, float],
    ) -> None:
        corners = _CORNERS * half + middle
        corners[:, 2] = np.maximum(corners[:, 2], 0)
        pixels = self._fixed_point(corners)
        for face, brightness in _FACES:
            _fill(image, pixels[face], _bytes(colour, brightness))

    def _fixed_point(self, points_m: np.ndarray) -> np.ndarray:
        """Project to OpenCV's fixed-point pixels, (n, 2) int32."""
        seen = points_m @ self._projection[:, :3].T + self._projection[:, 3]
        # OpenCV's pixel centres are integers, the camera's are halves.
        pixels = seen[:, :2] / seen[:, 2:] - 0.5
        return np.round(pixels * 2**_FRACTION_BITS).astype(np.int32)

    def _observation(self) -> Observation:
        return Observation(self.picture(), vector_of(self._tip, self._opening))


def _fill(image: np.ndarray, corners: np.ndarray, colour: tuple[int, int, int]) -> None:
    cv2.fillConvexPoly(image, corners, colour, cv2.LINE_8, _FRACTION_BITS)


def _bytes(colour: tuple[float, float, float], brightness: float = 1.0) -> tuple[int, int, int]:
    red, green, blue = (round(255 * brightness * value) for value in colour)
    return red, green, blue
