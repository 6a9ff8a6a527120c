"""Which samples a step sees: a pure function of (seed, step, rank, world).

The sample order is one endless stream: a permutation of the data set for epoch 0, then another for
epoch 1, and so on. Step `s` takes the positions `[s b, (s + 1) b)` of it, and each process a
contiguous part of those. So every epoch covers the data exactly once, resume needs no sampler
state, and any number of processes sees the same batches. The permutation is a keyed Feistel network
on the index bits (Luby & Rackoff 1988; the cycle is walked until an index is in range, Black &
Rogaway 2002): a batch costs the same for a million samples as for ten, and nothing is stored.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from loom.errors import UserError

B = TypeVar("B")
_ROUNDS = 8


@dataclass(frozen=True)
class Shard:
    """One process's part of the work: `rank` of `world`."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of a world of {self.world}")

    def split(self, part: int, parts: int) -> "Shard":
        """Return a part of this shard, as for the micro-batches of an accumulated step."""
        return Shard(self.rank * parts + part, self.world * parts)

    def bounds(self, count: int) -> tuple[int, int]:
        """Return this shard's half-open range of `count` items; sizes differ by at most one."""
        return count * self.rank // self.world, count * (self.rank + 1) // self.world


def epoch_indices(n: int, seed: int, step: int, batch: int, shard: Shard = Shard()) -> np.ndarray:
    """Return the sample indices of a step for one shard.

    Args:
        n: Samples in the data set.
        seed: Of the order.
        step: Completed updates.
        batch: Samples of the step over all shards.
        shard: Which part of the batch.

    Returns:
        `(batch / world,)` int64. A batch may straddle two epochs.

    Raises:
        UserError: The data set is empty or the batch cannot be split evenly, in which case the mean
            of the shards' gradients would not be the gradient of the mean.
    """
    if n < 1:
        raise UserError("the data set has no samples", hint="check the data folder and the split")
    if batch % shard.world:
        raise UserError(
            f"a batch of {batch} cannot be split evenly over {shard.world} parts",
            hint="make the batch size a multiple of processes x accumulation",
        )
    begin, end = shard.bounds(batch)
    position = step * batch + np.arange(begin, end, dtype=np.int64)
    epoch, within = np.divmod(position, n)
    indices = np.empty(len(position), dtype=np.int64)
    for number in np.unique(epoch):
        chosen = epoch == number
        indices[chosen] = permuted(within[chosen], n, _key(f"epoch {number}", seed))
    return indices


def permuted(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Map indices in `[0, n)` by the pseudo-random permutation of a 64-bit key.

    Args:
        index: int64, any shape.
        n: Size of the domain.
        key: Which permutation.

    Returns:
        int64, the same shape.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = _mix(np.uint64(key) + np.arange(1, _ROUNDS + 1, dtype=np.uint64))
    values = index.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():  # the network permutes [0, 4^half) ⊇ [0, n): at most 4 turns on average
        left, right = values[outside] >> half, values[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        values[outside] = (left << half) | right
        outside = values >= n
    return values.astype(np.int64)


def draw_rng(seed: int, step: int, name: str) -> np.random.Generator:
    """Return the generator of a step's draws for one purpose.

    It is the same in every process: draw for the whole batch and keep the shard's part.

    Args:
        seed: Of the run.
        step: Completed updates.
        name: The purpose, such as `jitter`; different names are independent.
    """
    return np.random.Generator(np.random.Philox(key=_key(name, seed), counter=[0, 0, 0, step]))


class Prefetch(Generic[B]):
    """A `batch(step, shard)` whose next values are prepared in a thread.

    Because a batch is a pure function of its step, the batches to come are known: after step `s` of
    a shard, `s + 1 .. s + ahead` of the same shard are computed while the model learns.
    """

    def __init__(self, batch: Callable[[int, Shard], B], ahead: int = 2) -> None:
        """Wrap a pure `batch`; it is called from another thread."""
        self._batch = batch
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._coming: dict[tuple[int, Shard], Future[B]] = {}

    def __call__(self, step: int, shard: Shard = Shard()) -> B:
        """Return the batch of a step; an error of the thread is raised here."""
        wanted = self._coming.pop((step, shard), None)
        for key in [key for key in self._coming if not step <= key[0] <= step + self._ahead]:
            self._coming.pop(key).cancel()
        if wanted is None:
            wanted = self._pool.submit(self._batch, step, shard)
        for following in range(step + 1, step + self._ahead + 1):
            if (following, shard) not in self._coming:
                task = self._pool.submit(self._batch, following, shard)
                self._coming[following, shard] = task
        return wanted.result()

    def close(self) -> None:
        """Drop what was prepared and end the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()


def _key(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _mix(value: np.ndarray) -> np.ndarray:
    """Spread every bit over the 64 (the finaliser of splitmix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
