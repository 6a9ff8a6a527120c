"""Fill a cache: the teacher's answers on every window of a split, shard by shard.

The work is planned from what is missing: full shards of windows in the data set's order, each cut
into batches from its beginning. An export that is killed and resumed therefore shows the teacher
the same batches, and writes the same bytes, as one that was left alone.

Nothing here knows a neural network: the teacher is a callable from a batch to arrays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from loom.sampling import Prefetch, Shard

from end2race.cache.info import SCOPES, CacheInfo
from end2race.cache.store import TeacherCache

Outputs = Mapping[str, np.ndarray]
"""Answers on n windows: `actions` (n, T, A), `gru_out` (n, T, H), `bev_vec` (n, T, D) and, where it
is wanted, `bev_feat` (n, T, C, H, W)."""
B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)

SHARD_WINDOWS = 512
_SHARD_BYTES = 2**26


class Reader(Protocol[B_co]):
    """Where batches come from: `end2race.data.batches.BatchReader`, or a test's own."""

    def read(self, indices: Sequence[int]) -> B_co:
        """Return windows by their positions in the plan's list of keys."""
        ...


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        written: Windows whose answers were computed and stored.
        found: Windows that were there before.
        seconds: Wall time.
    """

    written: int
    found: int
    seconds: float


def field_shapes(outputs: Outputs) -> dict[str, tuple[int, ...]]:
    """Return the shape of one record of each field, from answers on any windows."""
    return {
        name: values.shape[1:] if SCOPES[name] == "window" else values.shape[2:]
        for name, values in outputs.items()
    }


def shard_windows(info: CacheInfo) -> int:
    """Return how many windows make a shard: 512, or as many as 64 MiB hold."""
    window = info.record_bytes("window") + info.seq_len * info.record_bytes("frame")
    return int(np.clip(_SHARD_BYTES // window, 1, SHARD_WINDOWS))


@dataclass(frozen=True)
class Exporter(Generic[B]):
    """A teacher, its data, and how both are taken through.

    Attributes:
        teacher: Answers a batch; must depend on nothing else.
        reader: Reads batches.
        keys: The windows, in the reader's order.
        batch_size: Windows that the teacher sees at once.
        ahead: Batches that a thread reads in advance.
    """

    teacher: Callable[[B], Outputs]
    reader: Reader[B]
    keys: Sequence[str]
    batch_size: int
    ahead: int = 0

    def fill(
        self, cache: TeacherCache, say_done: Callable[[int], None] = lambda count: None
    ) -> Exported:
        """Store every window that the cache lacks.

        Args:
            cache: Opened; no other process may write into it meanwhile.
            say_done: Told after each batch how many of `keys` have been answered.

        Raises:
            UserError: Another export is at work, or the answers cannot be stored.
        """
        began = time.monotonic()
        with cache.writing():
            shards = self.shards(cache)
            todo = sum(map(len, shards))
            found = len(self.keys) - todo
            plan = [batch for rows in shards for batch in self._batches(rows)]
            done = found
            answers: list[Outputs] = []
            pending: list[str] = []
            for rows, outputs in zip(plan, self._answers(plan), strict=True):
                answers.append(outputs)
                pending += [self.keys[row] for row in rows]
                if len(pending) == len(shards[0]):
                    cache.append(pending, _joined(answers))
                    del shards[0]
                    answers, pending = [], []
                done += len(rows)
                say_done(done)
        return Exported(todo, found, time.monotonic() - began)

    def shards(self, cache: TeacherCache) -> list[list[int]]:
        """Cut what a cache lacks into shards: positions in `keys`, in their order."""
        absent = set(cache.missing(self.keys))
        todo = [row for row, key in enumerate(self.keys) if key in absent]
        size = shard_windows(cache.info)
        return [todo[i : i + size] for i in range(0, len(todo), size)]

    def answers(self, rows: Sequence[int]) -> Outputs:
        """Answer the windows of one shard, in the batches in which `fill` does."""
        return _joined(list(self._answers(self._batches(rows))))

    def _batches(self, rows: Sequence[int]) -> list[Sequence[int]]:
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

    def verify(
        self,
        cache: TeacherCache,
        batches: int = 8,
        say_done: Callable[[int], None] = lambda n: None,
    ) -> dict[str, float]:
        """Compare stored answers with the live teacher's on evenly spread batches.

        Returns:
            For each field the largest difference, relative to the field's largest value.
        """
        starts = range(0, len(self.keys), self.batch_size)
        chosen = sorted({starts[int(i)] for i in np.linspace(0, len(starts) - 1, batches)})
        plan = [range(len(self.keys))[begin : begin + self.batch_size] for begin in chosen]
        gaps = dict.fromkeys(cache.info.fields, 0.0)
        for count, (rows, live) in enumerate(zip(plan, self._answers(plan), strict=True), 1):
            stored = cache.read([self.keys[row] for row in rows], list(gaps))
            for name, values in stored.items():
                scale = float(np.abs(live[name]).max(initial=1e-12))
                gaps[name] = max(gaps[name], float(np.abs(values - live[name]).max()) / scale)
            say_done(count)
        return gaps

    def _answers(self, plan: Sequence[Sequence[int]]) -> Any:
        """Yield the teacher's answers on each batch; a thread reads ahead."""

        def read(step: int, _: Shard) -> B | None:
            return self.reader.read(plan[step]) if step < len(plan) else None

        batches = Prefetch(read, self.ahead)
        try:
            for step in range(len(plan)):
                batch = batches(step)
                assert batch is not None  # only steps past the end read nothing
                yield self.teacher(batch)
        finally:
            batches.close()


def _joined(answers: Sequence[Outputs]) -> dict[str, np.ndarray]:
    """Put the answers on several batches end to end."""
    return {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}
