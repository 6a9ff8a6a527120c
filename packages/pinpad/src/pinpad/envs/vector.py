"""Many rooms at once: the same rules as `core`, one array operation for all of them.

A step is a handful of look-ups; an image is a copied background with the player's cell and the
sequence painted in. Each room has its own source of spawns, seeded as gymnasium seeds single
environments (seed, seed + 1, ...), so room i repeats the single environment with seed + i.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from pinpad.envs.core import LENGTH, PAUSE, REWARD
from pinpad.envs.events import EVENTS, Events
from pinpad.envs.images import Painter
from pinpad.envs.layouts import MOVES, room

MOST_PADS = 8
_STATE = ("cell", "last", "progress", "countdown", "steps", "sequence", "over")


class PinPadVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A batch of rooms of one layout; the step after the end of an episode is its reset.

    The state is public, one entry for each room: `cell`, `last` (pad written last, 0 for none),
    `progress`, `countdown`, `steps`, `sequence` (0 where it is empty) and `over`.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(
        self,
        num_envs: int,
        layout: str,
        *,
        size: int = 64,
        length: int = LENGTH,
        copy: bool = True,
    ) -> None:
        """Make rooms.

        Args:
            num_envs: How many.
            layout: `three` to `eight`.
            size: Pixels of an image's side, a multiple of 16.
            length: Steps of an episode.
            copy: Whether each step returns images of its own; without it they are overwritten by
                the next step, which saves more than half of the time.
        """
        if num_envs < 1 or length < 1:
            raise ValueError(f"{num_envs} rooms with episodes of {length} steps")
        self.num_envs, self.length, self.copy = num_envs, length, copy
        self.room = room(layout)
        self.single_observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.single_action_space = spaces.Discrete(len(MOVES))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._painter = Painter(layout, size, num_envs)
        self._each = np.arange(num_envs)
        self._all = np.ones(num_envs, bool)
        self._streams: list[np.random.Generator] = []

        self.cell = np.zeros(num_envs, np.int16)
        self.last = np.zeros(num_envs, np.int8)
        self.progress = np.zeros(num_envs, np.int8)
        self.countdown = np.zeros(num_envs, np.int8)
        self.steps = np.zeros(num_envs, np.int64)
        self.sequence = np.zeros((num_envs, MOST_PADS), np.int8)
        self.over = np.zeros(num_envs, bool)

    @property
    def position(self) -> np.ndarray:
        """(rooms, 2) int8, x and y of the players."""
        return self.room.position[self.cell]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every room.

        Args:
            seed: Of room 0, those of the others count up from it; or one for each room.
            options: Not used.
        """
        if seed is not None or not self._streams:
            self._seed(seed)
        self._begin(self._each)
        self.over = np.zeros(self.num_envs, bool)
        nothing = Events(*[np.zeros(self.num_envs, bool) for _ in EVENTS])
        return self.images(), self._info(nothing, self._all)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Apply one action in each room; rooms whose episode was over are reset instead."""
        if not self._streams:
            raise ResetNeeded("the rooms have not begun: call reset()")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions have shape {actions.shape}, expected ({self.num_envs},)")
        if actions.min() < 0 or actions.max() >= len(MOVES):
            raise ValueError(f"actions lie in [{actions.min()}, {actions.max()}], not in [0, 4]")
        is_first = self.over
        events = self._advance(np.where(is_first, 0, actions))
        if is_first.any():
            self._begin(np.flatnonzero(is_first))
            events = Events(*[event & ~is_first for event in events])
        self.over = self.steps >= self.length
        rewards = np.where(events.reward, REWARD, 0.0)
        info = self._info(events, is_first)
        return self.images(), rewards, np.zeros(self.num_envs, bool), self.over, info

    def snapshot(self) -> dict[str, np.ndarray | str]:
        """Return the state of every room and of its source of spawns, to go on from later."""
        streams = [stream.bit_generator.state for stream in self._streams]
        rooms = {name: getattr(self, name).copy() for name in _STATE}
        return rooms | {"streams": json.dumps(streams)}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot of as many rooms of this layout."""
        for name in _STATE:
            own, saved = getattr(self, name), np.array(snapshot[name])
            if own.shape != saved.shape or own.dtype != saved.dtype:
                raise ValueError(f"{name} is {saved.dtype} {saved.shape}, not {own.shape}")
            setattr(self, name, saved)
        self._seed(None)
        for stream, state in zip(self._streams, json.loads(snapshot["streams"]), strict=True):
            stream.bit_generator.state = state

    def _seed(self, seed: int | Sequence[int | None] | None) -> None:
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} rooms")
        self._streams = [np.random.Generator(np.random.PCG64(each)) for each in seeds]

    def _draw_cells(self, which: np.ndarray) -> list[int]:
        cells = self.room.cells
        return [int(self._streams[i].integers(cells)) for i in which.tolist()]

    def _begin(self, which: np.ndarray) -> None:
        self._respawn(which)
        self.steps[which] = 0
        self.countdown[which] = 0

    def _respawn(self, which: np.ndarray) -> None:
        self.cell[which] = self._draw_cells(which)
        self.sequence[which] = 0
        self.last[which] = 0
        self.progress[which] = 0

    def _advance(self, actions: np.ndarray) -> Events:
        """Apply the rules of `core`, in their order, to every room that is not over."""
        tables = self.room
        respawn = (self.countdown == 1) & ~self.over
        np.maximum(self.countdown - 1, 0, out=self.countdown)
        if respawn.any():
            self._respawn(np.flatnonzero(respawn))
        cell = self.cell
        before = tables.pad[cell]
        touched = tables.touched[cell, actions]
        self.cell = tables.next_cell[cell, actions]
        under = tables.pad[self.cell]
        appended = (touched > 0) & (touched != self.last)
        progress = self.progress
        in_pause = self.countdown > 0
        won = np.zeros(self.num_envs, bool)
        if appended.any():
            self._append(np.flatnonzero(appended), touched)
            # The target is complete without a pause only in the step that completes it: the
            # sequence is emptied in the step in which a pause ends.
            won = appended & (self.progress == tables.pads) & ~in_pause
            self.countdown[won] = PAUSE
        self.steps += 1
        moved = under != before
        grown = self.progress > progress
        return Events(
            pad_enter=moved & (under > 0),
            pad_leave=moved & (before > 0),
            sequence_append=appended,
            progress=grown,
            wrong_pad=appended & ~grown & ~in_pause,
            reward=won,
            respawn=respawn,
            wall_bump=(actions > 0) & (self.cell == cell),
        )

    def _append(self, which: np.ndarray, touched: np.ndarray) -> None:
        pads = self.room.pads
        pad = touched[which]
        sequence = self.sequence[which]
        length = np.count_nonzero(sequence, axis=1)
        full = length == pads
        sequence[full, : pads - 1] = sequence[full, 1:pads]
        sequence[np.arange(len(which)), np.minimum(length, pads - 1)] = pad
        self.sequence[which] = sequence
        self.last = self.last.copy()
        self.last[which] = pad
        self.progress = self.progress.copy()
        follows = pad == self.progress[which] + 1
        self.progress[which] = np.where(follows, pad, pad == 1)

    def images(self) -> np.ndarray:
        """Return what every room shows now, (rooms, size, size, 3) uint8."""
        images = self._painter.draw(self.cell, self.countdown > 0, self.sequence)
        return images.copy() if self.copy else images

    def _info(self, events: Events, is_first: np.ndarray) -> dict[str, Any]:
        """Return the state and events under the keys of the single environment."""
        info = {f"event_{name}": value for name, value in zip(EVENTS, events, strict=True)}
        info["position"] = self.room.position[self.cell]
        info["sequence"] = self.sequence[:, : self.room.pads].copy()
        info["progress"] = self.progress.copy()
        info["countdown"] = self.countdown.copy()
        info["is_first"] = is_first
        # gymnasium's own wrappers look up which rooms gave a value.
        return info | {f"_{name}": self._all for name in info}
