"""The rules of PinPad for one room, in plain numbers.

The player walks over a room with numbered pads. Stepping on a pad writes it into a sequence of the
last `pads` entries, unless it is the entry written last. When the sequence reads 1, 2, ..., pads,
the step pays 10 and a pause of 10 steps begins, at whose end the player is put on a random cell and
the sequence is empty. The order within a step is that of the original (Hafner et al., "Deep
Hierarchical Planning from Pixels", 2022, environment of its release):

1. the pause counts down; at its end respawn, and the action still applies in this step;
2. the player moves unless a wall is in the way;
3. the pad at the cell *aimed at* is written: a move against a wall from a pad writes nothing, a
   wait on a pad does, and so does a move over the same pad after a respawn;
4. reward, if the target is complete and no pause runs.

Pads of the target are distinct, so the longest end of the sequence that is a beginning of the
target follows from its last length: pad t makes it t if it was t - 1, else 1 for pad 1, else 0.
"""

from collections.abc import Callable

import numpy as np

from pinpad.envs.events import Events
from pinpad.envs.images import PLAYER, STRIP_ROW, pictures
from pinpad.envs.layouts import COLORS, room

REWARD = 10.0
PAUSE = 10
LENGTH = 2000


class PinPad:
    """One room. It draws no random numbers: spawns are given to it."""

    def __init__(self, layout: str, *, size: int = 64, length: int = LENGTH) -> None:
        """Make a room that has yet to be reset.

        Args:
            layout: `three` to `eight`.
            size: Pixels of an image's side, a multiple of 16.
            length: Steps of an episode.
        """
        if length < 1:
            raise ValueError(f"an episode of {length} steps")
        self.room = room(layout)
        self.length = length
        self._pictures = pictures(layout, size)
        self._next_cell = self.room.next_cell.tolist()
        self._touched = self.room.touched.tolist()
        self._pad = self.room.pad.tolist()
        self._position = [tuple(place) for place in self.room.position.tolist()]
        self.cell = 0
        self.steps = 0
        self.countdown = 0
        self.progress = 0
        self.sequence: list[int] = []

    @property
    def position(self) -> tuple[int, int]:
        """X and y of the player."""
        return self._position[self.cell]

    @property
    def over(self) -> bool:
        """Whether the episode has had all its steps."""
        return self.steps >= self.length

    def reset(self, spawn: int) -> None:
        """Begin an episode at a cell; standing on a pad writes nothing yet."""
        self._respawn(spawn)
        self.steps = 0
        self.countdown = 0

    def step(self, action: int, draw: Callable[[], int]) -> Events:
        """Apply an action.

        Args:
            action: 0 to 4, see `MOVES`.
            draw: Gives the cell of a respawn, called only when there is one.
        """
        respawn = self.countdown == 1
        if self.countdown:
            self.countdown -= 1
        if respawn:
            self._respawn(draw())
        before, cell, progress = self._pad[self.cell], self.cell, self.progress
        touched = self._touched[cell][action]
        self.cell = self._next_cell[cell][action]
        under = self._pad[self.cell]
        appended = bool(touched) and (not self.sequence or self.sequence[-1] != touched)
        if appended:
            self._append(touched)
        won = appended and self.progress == self.room.pads and not self.countdown
        in_pause = self.countdown > 0
        if won:
            self.countdown = PAUSE
        self.steps += 1
        return Events(
            pad_enter=under != before and under > 0,
            pad_leave=under != before and before > 0,
            sequence_append=appended,
            progress=self.progress > progress,
            wrong_pad=appended and self.progress <= progress and not in_pause,
            reward=won,
            respawn=respawn,
            wall_bump=action > 0 and self.cell == cell,
        )

    def image(self) -> np.ndarray:
        """Draw (size, size, 3) uint8 by [y, x]."""
        scale = self._pictures.scale
        under = self._pad[self.cell]
        image = self._pictures.backgrounds[int(self.countdown > 0), under].copy()
        x, y = self._position[self.cell]
        image[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale] = PLAYER
        strip = image[STRIP_ROW * scale : (STRIP_ROW + 1) * scale]
        for index, pad in enumerate(self.sequence):
            left = (2 * index + 1) * scale
            strip[:, left : left + scale] = COLORS[pad - 1]
        return image

    def _respawn(self, spawn: int) -> None:
        self.cell = spawn
        self.sequence = []
        self.progress = 0

    def _append(self, pad: int) -> None:
        self.sequence = [*self.sequence, pad][-self.room.pads :]
        if pad == self.progress + 1:
            self.progress = pad
        else:
            self.progress = int(pad == 1)
