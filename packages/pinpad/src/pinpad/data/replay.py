"""The memory of an agent that acts: the last steps of many rooms, side by side.

A frame is stored as what it is drawn from (cell, pause, sequence), 11 bytes in place of 12,288 at
64 x 64, and drawn again when it is sampled: nothing is lost, and a checkpoint holds the whole
memory. Row t of room b is frame t of that room, after `action[t]`; an episode's first frame has
`is_first`, action 0 and no reward.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from loom.sampling import Shard, draw_rng

from pinpad.data.windows import WHOLE, Windows, starts_around
from pinpad.envs.images import Painter
from pinpad.envs.vector import MOST_PADS, PinPadVectorEnv

Array = np.ndarray


class Replay:
    """A ring of steps for each room; the oldest ones are forgotten."""

    def __init__(
        self,
        layout: str,
        rooms: int,
        capacity: int,
        *,
        size: int,
        batch_size: int,
        batch_length: int,
        reward_windows: float,
        recent_windows: float = 0.0,
        recent_steps: int = 0,
        seed: int,
    ) -> None:
        """Make an empty memory.

        Args:
            layout: `three` to `eight`.
            rooms: How many are remembered side by side.
            capacity: Steps of each room.
            size: Pixels of an image's side.
            batch_size: Windows in a batch.
            batch_length: Frames of a window.
            reward_windows: Share of the windows that contain a reward, once there is any.
            recent_windows: Share of the windows that lie in the newest steps.
            recent_steps: How many of a room's steps those are.
            seed: Of the draws.
        """
        if capacity < batch_length:
            raise ValueError(f"a memory of {capacity} steps for windows of {batch_length}")
        self.rooms, self.capacity, self.size, self.layout = rooms, capacity, size, layout
        self.batch_size, self.batch_length = batch_size, batch_length
        self.reward_windows, self.seed = reward_windows, seed
        self.recent_windows, self.recent_steps = recent_windows, recent_steps
        self.total = 0
        self._rows = {
            "cell": np.zeros((capacity, rooms), np.int16),
            "pause": np.zeros((capacity, rooms), bool),
            "sequence": np.zeros((capacity, rooms, MOST_PADS), np.int8),
            "action": np.zeros((capacity, rooms), np.int8),
            "reward": np.zeros((capacity, rooms), np.float32),
            "is_first": np.zeros((capacity, rooms), bool),
        }
        self._paid: deque[tuple[int, int]] = deque()  # (step, room), oldest first
        self._painters: dict[int, Painter] = {}

    def __len__(self) -> int:
        """Return the frames held, over all rooms."""
        return min(self.total, self.capacity) * self.rooms

    @property
    def rewards(self) -> int:
        """How many of the steps held have paid."""
        return len(self._paid)

    def add(self, envs: PinPadVectorEnv, action: Array, reward: Array, is_first: Array) -> None:
        """Remember the state that the rooms are in, and what led to it.

        Args:
            envs: The rooms after their step.
            action: (rooms,) what was done; taken as 0 where an episode begins.
            reward: (rooms,) what it paid.
            is_first: (rooms,) bool.
        """
        row = self.total % self.capacity
        self._rows["cell"][row] = envs.cell
        self._rows["pause"][row] = envs.countdown > 0
        self._rows["sequence"][row] = envs.sequence
        self._rows["action"][row] = np.where(is_first, 0, action)
        self._rows["reward"][row] = reward
        self._rows["is_first"][row] = is_first
        self._paid.extend((self.total, int(room)) for room in np.flatnonzero(reward))
        self.total += 1
        while self._paid and self._paid[0][0] < self._oldest:
            self._paid.popleft()

    def batch(self, step: int, shard: Shard = WHOLE) -> Windows:
        """Return a shard's windows of a step: a pure function of the step and what is held."""
        rng = draw_rng(self.seed, step, "replay")
        starts = rng.integers(self._oldest, self.total - self.batch_length + 1, self.batch_size)
        rooms = rng.integers(0, self.rooms, self.batch_size)
        count = round(self.reward_windows * self.batch_size) if self._paid else 0
        chosen = [self._paid[i] for i in rng.integers(0, max(1, len(self._paid)), count)]
        if chosen:
            paid, rooms[:count] = np.array(chosen).T
            starts[:count] = starts_around(paid, self._oldest, self.total, self.batch_length, rng)
        newest = round(self.recent_windows * self.batch_size)
        if newest:
            last = self.total - self.batch_length
            first = min(last, max(self._oldest, self.total - self.recent_steps))
            starts[-newest:] = rng.integers(first, last + 1, newest)
        begin, end = shard.bounds(self.batch_size)
        steps = starts[begin:end] + np.arange(self.batch_length)[:, None]
        return self.windows(steps, rooms[begin:end])

    def windows(self, steps: Array, rooms: Array) -> Windows:
        """Return the frames of given steps (t, b) of rooms (b,)."""
        place = steps % self.capacity, np.broadcast_to(rooms, steps.shape)
        row = {name: values[place] for name, values in self._rows.items()}
        image = self._painter(steps.size).draw(
            row["cell"].ravel(), row["pause"].ravel(), row["sequence"].reshape(-1, MOST_PADS)
        )
        return Windows(
            image.reshape(*steps.shape, *image.shape[1:]).copy(),
            row["action"].astype(np.int64),
            row["reward"],
            row["is_first"],
        )

    def mean_reward(self, since: int) -> float:
        """Return the mean reward of a step from step `since` on."""
        steps = np.arange(max(since, self._oldest), self.total)
        return float(self._rows["reward"][steps % self.capacity].mean())

    def frames(self, count: int) -> Array:
        """Return (count, size, size, 3) frames drawn evenly from all that is held."""
        rng = draw_rng(self.seed, 0, "frames")
        steps = rng.integers(self._oldest, self.total, (1, count))
        found = self.windows(steps, rng.integers(0, self.rooms, count)).image[0]
        del self._painters[count]  # it holds as many images again
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what is held, for a checkpoint."""
        held = min(self.total, self.capacity)
        rows = {name: torch.from_numpy(values[:held]) for name, values in self._rows.items()}
        return rows | {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what another memory of the same rooms and capacity held."""
        self.total = int(state["total"])
        held = min(self.total, self.capacity)
        for name, values in self._rows.items():
            values[:held] = state[name].numpy()
        steps = np.arange(self._oldest, self.total)
        paid = np.argwhere(self._rows["reward"][steps % self.capacity])
        self._paid = deque((int(step) + self._oldest, int(room)) for step, room in paid)

    @property
    def _oldest(self) -> int:
        return max(0, self.total - self.capacity)

    def _painter(self, count: int) -> Painter:
        if count not in self._painters:
            self._painters[count] = Painter(self.layout, self.size, count)
        return self._painters[count]
