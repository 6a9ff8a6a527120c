"""What the player sees: 16 x 16 cells, drawn over pictures that are made once.

Everything but the player and the sequence depends on two small numbers, whether the pause after a
win runs and which pad the player stands on, so there are 2 (pads + 1) backgrounds in all. An image
is a function of (cell, pause, sequence); `Painter` is that function for many rooms at once.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from loom.errors import UserError

from pinpad.envs.layouts import COLORS, HEIGHT, WIDTH, room

WALL, FLOOR, FLOOR_IN_PAUSE, PLAYER = (192, 192, 192), (255, 255, 255), (223, 255, 223), (0, 0, 0)
STRIP_ROW = HEIGHT
"""Row of cells below the room that shows the sequence, item i at column 2 i + 1."""


@dataclass(frozen=True)
class Pictures:
    """Everything that is drawn, at one size.

    Attributes:
        scale: Pixels of a cell.
        backgrounds: (2, pads + 1, size, size, 3) uint8 by [pause, pad under the player].
        palette: (9, 3) uint8, colour of a sequence item; 0 is an empty place.
    """

    scale: int
    backgrounds: np.ndarray
    palette: np.ndarray


@cache
def pictures(layout: str, size: int) -> Pictures:
    """Draw the backgrounds of a layout.

    Args:
        layout: Any spelling of a layout.
        size: Pixels of a side, a multiple of 16: 16 shows each cell as one pixel, without a loss.

    Raises:
        UserError: The size is not a multiple of 16.
    """
    if size < WIDTH or size % WIDTH:
        raise UserError(
            f"size is {size}, but an image is 16 x 16 whole cells",
            hint="take 16 (one pixel per cell) or 64 (as in the original)",
        )
    tables = room(layout)
    colors = np.array(COLORS, np.float64)
    pale = ((10 * colors + 90 * 255) / 100).astype(np.uint8)
    cells = np.empty((2, tables.pads + 1, WIDTH, WIDTH, 3), np.uint8)
    cells[0], cells[1] = FLOOR, FLOOR_IN_PAUSE
    for under in range(tables.pads + 1):
        for pad in range(1, tables.pads + 1):
            where = np.argwhere(tables.tiles == pad)
            color = COLORS[pad - 1] if pad == under else pale[pad - 1]
            cells[:, under, where[:, 1], where[:, 0]] = color
    wall = np.argwhere(tables.tiles < 0)
    cells[:, :, wall[:, 1], wall[:, 0]] = WALL
    cells[:, :, HEIGHT:] = WALL
    scale = size // WIDTH
    backgrounds = cells.repeat(scale, axis=2).repeat(scale, axis=3)
    palette = np.array([WALL, *COLORS], np.uint8)
    backgrounds.setflags(write=False)
    palette.setflags(write=False)
    return Pictures(scale, backgrounds, palette)


class Painter:
    """Draws many rooms at once, into one array that it keeps."""

    def __init__(self, layout: str, size: int, count: int) -> None:
        """Make the array.

        Args:
            layout: Any spelling of a layout.
            size: Pixels of a side, a multiple of 16.
            count: Rooms drawn at once.
        """
        self._room = room(layout)
        self._pictures = pictures(layout, size)
        self._backgrounds = self._pictures.backgrounds.reshape(-1, size, size, 3)
        self._images = np.empty((count, size, size, 3), np.uint8)
        scale = self._pictures.scale
        self._cells = self._images.reshape(count, WIDTH, scale, WIDTH, scale, 3)
        self._strip = self._cells[:, STRIP_ROW, :, 1::2]
        self._each = np.arange(count)

    def draw(self, cell: np.ndarray, pause: np.ndarray, sequence: np.ndarray) -> np.ndarray:
        """Return (count, size, size, 3) uint8, overwritten by the next call.

        Args:
            cell: (count,) cells of the players.
            pause: (count,) bool, whether the pause after a win runs.
            sequence: (count, 8) pads written, 0 for an empty place.
        """
        background = pause.astype(np.intp) * (self._room.pads + 1) + self._room.pad[cell]
        np.take(self._backgrounds, background, axis=0, out=self._images, mode="clip")
        position = self._room.position[cell]
        self._cells[self._each, position[:, 1], :, position[:, 0]] = PLAYER
        self._strip[:] = self._pictures.palette[sequence][:, None, :, None]
        return self._images
