"""Training samples of a frame store: two frames, the first one, and sixteen actions.

A window begins at a row and reaches `horizon` rows on; where it leaves its episode, the first or
last row stands in, as in ManiFlow's sampler: with one row of padding before and fifteen after, an
episode of L rows has L + 1 windows. Only the first `observed` rows of a window are looked at, so
only their frames are read. A batch is a pure function of (seed, step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from loom.errors import UserError
from loom.sampling import Shard, epoch_indices

from maniflow_overlay.arms import Arm, Fuse, Mode
from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.data.path_layers import PathLayers
from maniflow_overlay.data.picture_buffers import PictureBuffers
from maniflow_overlay.data.pictures import read_pictures

ALONE = Shard()


@dataclass(frozen=True)
class WindowShape:
    """How a window is cut.

    Attributes:
        horizon: Rows of a window.
        observed: Rows whose pictures and states are looked at.
        before: Rows of padding before an episode.
        after: Rows of padding behind it.
    """

    horizon: int = 16
    observed: int = 2
    before: int = 1
    after: int = 15


class Windows:
    """All windows of some episodes.

    Args:
        begins: First row of each episode.
        ends: Behind the last row of each episode.
        shape: How a window is cut.
    """

    def __init__(self, begins: np.ndarray, ends: np.ndarray, shape: WindowShape) -> None:
        if len(begins) != len(ends) or (ends <= begins).any():
            raise ValueError("every episode needs a row")
        counts = ends - begins + shape.before + shape.after + 1 - shape.horizon
        counts = np.maximum(counts, 0)
        self.shape = shape
        self._begins, self._ends = begins, ends
        self._episode = np.repeat(np.arange(len(begins)), counts)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._start = np.arange(len(self._episode)) - first[self._episode] - shape.before

    def __len__(self) -> int:
        return len(self._episode)

    def rows(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of some windows, (n, horizon), and of their first frames, (n,)."""
        episode = self._episode[windows]
        begin, end = self._begins[episode], self._ends[episode]
        rows = (begin + self._start[windows])[:, None] + np.arange(self.shape.horizon)
        return np.clip(rows, begin[:, None], end[:, None] - 1), begin


def validation_episodes(count: int, share: float, seed: int) -> np.ndarray:
    """Choose the episodes to keep back, as ManiFlow does: at least one if any, never all.

    Returns:
        (count,) bool.
    """
    mask = np.zeros(count, dtype=bool)
    if share > 0:
        chosen = min(max(1, round(count * share)), count - 1)
        mask[np.random.default_rng(seed).choice(count, size=chosen, replace=False)] = True
    return mask


class Batch(NamedTuple):
    """Samples of one step. Pictures are RGB; with six channels the path is a second picture.

    Attributes:
        current: (B, observed, pictures, H, W, 3) uint8; one picture, or raw and path.
        initial: (B, pictures, H, W, 3) uint8, the episode's first frame; None if it is not shown.
        state: (B, observed, 14) float32.
        action: (B, horizon, 14) float32.
        task: (B,) int64, which of the store's tasks.
        episode: (B,) int64, which of the store's episodes.
    """

    current: np.ndarray
    initial: np.ndarray | None
    state: np.ndarray
    action: np.ndarray
    task: np.ndarray
    episode: np.ndarray


class Batches:
    """Batches of a store by step.

    Args:
        store: With the frames.
        layers: The drawn paths; needed for any `show` but `none`.
        windows: Which samples there are.
        show: Where the path is seen: on the episode's first frame, on the current ones, on both.
            With `none` there is neither a path nor the first frame.
        fuse: Drawn over the picture, or as a picture of its own beside it.
        batch: Samples of a step over all processes.
        seed: Of the order.
    """

    def __init__(
        self,
        store: FrameStore,
        layers: PathLayers | None,
        windows: Windows,
        *,
        show: Mode = "none",
        fuse: Fuse = "overlay",
        batch: int = 64,
        seed: int = 0,
    ) -> None:
        if show != "none" and layers is None:
            raise UserError(
                f"{store.folder}: {show} needs paths", hint="data attach-paths STORE PATHS.jsonl"
            )
        self._store, self._layers, self._windows = store, layers, windows
        self._arm, self._fuse = Arm(show, fuse), fuse
        self._batch, self._seed = batch, seed
        self._buffers = PictureBuffers()

    def __call__(self, step: int, shard: Shard = ALONE) -> Batch:
        """Return the samples of a step for one process."""
        return self.samples(self.chosen(step, shard))

    def chosen(self, step: int, shard: Shard = ALONE) -> np.ndarray:
        """Return the windows of a step for one process, (n,) int64."""
        return epoch_indices(len(self._windows), self._seed, step, self._batch, shard)

    def __len__(self) -> int:
        return len(self._windows)

    def samples(self, windows: np.ndarray) -> Batch:
        """Return these windows."""
        rows, first = self._windows.rows(windows)
        seen = rows[:, : self._windows.shape.observed]
        current = self._pictures(seen.reshape(-1), drawn=self._arm.draws_current)
        initial = None
        if self._arm.sees_initial:
            initial = self._pictures(first, drawn=True)
        episode = self._store.episode_of(first)
        return Batch(
            current.reshape(*seen.shape, *current.shape[1:]),
            initial,
            self._store.state[seen],
            self._store.action[rows],
            self._store.task_of_episode[episode],
            episode,
        )

    def instructions(self, episodes: np.ndarray, draw: np.ndarray | None = None) -> list[str]:
        """Return an instruction for each of some episodes; empty where an episode has none.

        Args:
            episodes: (n,) which of the store's episodes.
            draw: (n,) in [0, 1), chooses one of an episode's texts; None takes the first.
        """
        shares = np.zeros(len(episodes)) if draw is None else draw
        chosen = []
        for number, share in zip(episodes.tolist(), shares.tolist(), strict=True):
            texts = self._store.episodes[number].instructions
            chosen.append(texts[int(share * len(texts))] if texts else "")
        return chosen

    def _pictures(self, rows: np.ndarray, *, drawn: bool) -> np.ndarray:
        """Return (n, pictures, H, W, 3)."""
        shape = self._store.shape
        beside = drawn and self._fuse == "concat6"
        size = (len(rows), 2 if beside else 1, shape.height, shape.width, 3)
        layers = self._layers if drawn else None
        return read_pictures(self._store, layers, rows, self._buffers.take(size))
