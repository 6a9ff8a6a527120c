"""Windows of recorded episodes: the batches that a world model learns from.

A batch is a pure function of (seed, step): a window begins anywhere in an episode, except that a
share of them is made to contain a reward, which in sparse tasks is what makes its prediction
learnable at all. The reward's place in such a window is uniform.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from loom.errors import UserError
from loom.sampling import Shard, draw_rng

from pinpad.data.episodes import Episode

Array = np.ndarray

WHOLE = Shard()


@dataclass(frozen=True)
class Windows:
    """A batch of windows, time first.

    Attributes:
        image: (t, b, h, w, 3) uint8.
        action: (t, b) int64, the action that led to each frame.
        reward: (t, b) float32.
        is_first: (t, b) bool.
    """

    image: Array
    action: Array
    reward: Array
    is_first: Array


def starts_around(
    row: Array, begin: Array | int, end: Array | int, length: int, rng: np.random.Generator
) -> Array:
    """Draw where windows begin that contain given rows, each at a uniform place.

    Args:
        row: (n,) rows that the windows contain.
        begin: First row that a window may hold.
        end: The row after the last one.
        length: Rows of a window.
        rng: Draws the places.
    """
    earliest, latest = np.maximum(row - length + 1, begin), np.minimum(row, end - length)
    return rng.integers(earliest, latest + 1)


class WindowSampler:
    """Draws windows from episodes that are held in memory."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        *,
        batch_size: int,
        batch_length: int,
        reward_windows: float,
        seed: int,
    ) -> None:
        """Hold the episodes.

        Args:
            episodes: At least one of `batch_length` frames; shorter ones are left out.
            batch_size: Windows in a batch.
            batch_length: Frames of a window.
            reward_windows: Share of the windows that contain a reward, where there is any.
            seed: Of the draws.

        Raises:
            UserError: No episode is long enough, or their images differ in size.
        """
        long_enough = [episode for episode in episodes if len(episode) >= batch_length]
        if not long_enough:
            raise UserError(
                f"no episode has {batch_length} frames, the longest has "
                f"{max((len(e) for e in episodes), default=0)}",
                hint="collect longer episodes, or lower batch_length",
            )
        sizes = {episode.image.shape[1:] for episode in long_enough}
        if len(sizes) > 1:
            raise UserError(f"the episodes have images of {sorted(sizes)}", hint="use one size")
        self.batch_size, self.batch_length, self.seed = batch_size, batch_length, seed
        self.image = np.concatenate([episode.image for episode in long_enough])
        self.action = np.concatenate([e.action for e in long_enough]).astype(np.int64)
        self.reward = np.concatenate([episode.reward for episode in long_enough])
        self.is_first = np.concatenate([episode.is_first for episode in long_enough])
        lengths = np.array([len(episode) for episode in long_enough])
        ends = np.cumsum(lengths)
        self._begins: Array = np.repeat(ends - lengths, lengths)
        self._ends: Array = np.repeat(ends, lengths)
        rows = np.arange(len(self.image))
        self._starts = rows[rows + batch_length <= self._ends]
        self._paid = np.flatnonzero(self.reward)
        self._prioritised = round(reward_windows * batch_size) if len(self._paid) else 0

    def starts(self, step: int) -> Array:
        """Return (batch_size,) the rows at which the windows of a step begin."""
        rng = draw_rng(self.seed, step, "windows")
        starts = self._starts[rng.integers(0, len(self._starts), self.batch_size)]
        paid = self._paid[rng.integers(0, max(1, len(self._paid)), self._prioritised)]
        starts[: self._prioritised] = starts_around(
            paid, self._begins[paid], self._ends[paid], self.batch_length, rng
        )
        return starts

    def batch(self, step: int, shard: Shard = WHOLE) -> Windows:
        """Return a shard's windows of a step."""
        begin, end = shard.bounds(self.batch_size)
        rows = self.starts(step)[begin:end] + np.arange(self.batch_length)[:, None]
        return Windows(self.image[rows], self.action[rows], self.reward[rows], self.is_first[rows])
