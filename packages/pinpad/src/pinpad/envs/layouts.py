"""The six rooms: which cells are pads, and tables that answer every question about a move.

A room is 16 cells wide and 14 high with walls at its border. Cells that are not walls are numbered
in the order x first, then y: 168 of them, and a spawn is a draw of one of these numbers. As the
map never changes, a move is a look-up: `next_cell[cell, action]` and `touched[cell, action]`.
"""

import difflib
from dataclasses import dataclass
from functools import cache

import numpy as np
from loom.errors import UserError

WIDTH, HEIGHT = 16, 14
MOVES = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
"""What actions 0 to 4 add to (x, y): stay, down, up, right, left."""

COLORS = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (255, 0, 255),
    (0, 255, 255),
    (128, 0, 128),
    (0, 128, 128),
)
"""RGB of pads 1 to 8."""

_SEVEN = (
    (1, (1, 3), (1, 2)),
    (1, (1, 2), (3, 3)),
    (2, (13, 14), (10, 10)),
    (2, (12, 14), (11, 12)),
    (3, (1, 2), (5, 8)),
    (4, (12, 14), (1, 2)),
    (4, (13, 14), (3, 3)),
    (5, (13, 14), (5, 8)),
    (6, (1, 2), (10, 10)),
    (6, (1, 3), (11, 12)),
    (7, (6, 9), (11, 12)),
)

LAYOUTS = {
    "three": ((1, (1, 4), (1, 4)), (2, (6, 9), (9, 12)), (3, (11, 14), (1, 4))),
    "four": (
        (1, (1, 4), (1, 4)),
        (2, (11, 14), (9, 12)),
        (3, (1, 4), (9, 12)),
        (4, (11, 14), (1, 4)),
    ),
    "five": (
        (1, (1, 3), (2, 5)),
        (2, (11, 14), (10, 12)),
        (3, (1, 3), (8, 11)),
        (4, (11, 14), (1, 3)),
        (5, (12, 14), (5, 8)),
    ),
    "six": (
        (1, (1, 3), (1, 3)),
        (2, (12, 14), (10, 12)),
        (3, (1, 2), (5, 8)),
        (4, (1, 3), (10, 12)),
        (5, (12, 14), (1, 3)),
        (6, (13, 14), (5, 8)),
    ),
    "seven": _SEVEN,
    "eight": (*_SEVEN, (8, (6, 9), (1, 2))),
}
"""Layout -> rectangles (pad, first and last x, first and last y)."""


@dataclass(frozen=True)
class Room:
    """A layout as tables over its cells.

    Attributes:
        name: `three` to `eight`.
        pads: How many pads; they are to be visited in the order 1, 2, ..., pads.
        tiles: (16, 14) int8 by [x, y]: -1 a wall, 0 free, else the pad.
        position: (cells, 2) int8, x and y of each cell.
        pad: (cells,) int8, the pad under each cell or 0.
        next_cell: (cells, 5) int16, where an action leads; a wall keeps the player in place.
        touched: (cells, 5) int8, the pad at the cell the action aims at, 0 for none and for walls.
    """

    name: str
    pads: int
    tiles: np.ndarray
    position: np.ndarray
    pad: np.ndarray
    next_cell: np.ndarray
    touched: np.ndarray

    @property
    def cells(self) -> int:
        """Number of cells that are not walls."""
        return len(self.position)


def layout_name(task: str) -> str:
    """Return the layout of a task name: `three`, `pinpad_three` or `Pinpad-Three-v0`.

    Raises:
        UserError: There is no such layout.
    """
    name = task.lower().removeprefix("pinpad").strip("_-").removesuffix("-v0")
    if name not in LAYOUTS:
        close = difflib.get_close_matches(name, LAYOUTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(LAYOUTS)}"
        raise UserError(f"{task!r} is not a PinPad layout", hint=hint)
    return name


@cache
def room(task: str) -> Room:
    """Return the tables of a layout; see `layout_name` for its spellings."""
    name = layout_name(task)
    tiles = np.full((WIDTH, HEIGHT), -1, np.int8)
    tiles[1:-1, 1:-1] = 0
    for pad, (left, right), (top, bottom) in LAYOUTS[name]:
        tiles[left : right + 1, top : bottom + 1] = pad
    position = np.argwhere(tiles >= 0).astype(np.int8)
    number = np.full(tiles.shape, -1, np.int16)
    number[tuple(position.T)] = np.arange(len(position))
    aimed = position[:, None].astype(np.int64) + np.array(MOVES)
    tile = tiles[aimed[..., 0], aimed[..., 1]]
    stay = np.arange(len(position), dtype=np.int16)[:, None]
    ahead = number[aimed[..., 0], aimed[..., 1]]
    tables = {
        "tiles": tiles,
        "position": position,
        "pad": tiles[tuple(position.T)],
        "next_cell": np.where(tile < 0, stay, ahead),
        "touched": np.maximum(tile, 0),
    }
    for table in tables.values():
        table.setflags(write=False)
    return Room(name, int(tiles.max()), **tables)
