"""Situations of a dataset, described and answered from memory; what `--memory topk` learns from.

    remember = Recollection(bank, fields=("actions", "bev_vec", "gru_out"))
    recall = remember(batch)          # recall.fields, recall.confidence

A bank of kind `camera` answers any window that has images, also one whose LiDAR nobody recorded. A
bank of kind `teacher` answers windows that are in the cache, by what the teacher saw there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from end2race.cache.store import TeacherCache
from end2race.data.batches import Batch, BatchReader
from end2race.data.dataset import Dataset
from end2race.memory.bank import TAU, K, MemoryBank, Recall
from end2race.memory.descriptors import Kind, camera_descriptor, teacher_descriptor

_BATCH = 32


def describe(batch: Batch, kind: Kind, cache: TeacherCache) -> np.ndarray:
    """Return a descriptor [B, D] of each window of a batch.

    Args:
        batch: With images, if the kind is `camera`.
        kind: What the descriptors are made of.
        cache: Holds the windows, if the kind is `teacher`.
    """
    if kind == "teacher":
        return teacher_descriptor(cache.read(batch.keys, ["bev_vec"])["bev_vec"])
    if batch.images is None:
        raise ValueError("a camera memory is asked with images")
    images, speed, steering = (
        each.cpu().numpy() for each in (batch.images, batch.speed, batch.steering_input)
    )
    return camera_descriptor(images, speed, steering)


def describe_all(
    reader: BatchReader,
    kind: Kind,
    cache: TeacherCache,
    say_done: Callable[[int], None] = lambda count: None,
) -> dict[str, np.ndarray]:
    """Return the descriptor of every window of a reader, by key."""
    found: dict[str, np.ndarray] = {}
    for begin in range(0, len(reader), _BATCH):
        batch = reader.read(range(begin, min(begin + _BATCH, len(reader))))
        found.update(zip(batch.keys, describe(batch, kind, cache), strict=True))
        say_done(len(found))
    return found


def excluded_frames(bank: MemoryBank, dataset: Dataset, split: str) -> int | None:
    """Return what `MemoryBank.recall` shall leave out for windows of a dataset.

    Windows that the bank was built of do not recall what shares a frame with them (None). Those of
    other data may be called by the same keys, but share nothing (0).
    """
    same = bank.cache.info.data.get(split) == dataset.fingerprint(split)
    return None if same else 0


@dataclass(frozen=True)
class Recollection:
    """A memory bank as a function of a batch.

    Attributes:
        bank: The bank.
        fields: What is recalled.
        k: Neighbours of each window.
        tau: Temperature of their weights.
        exclude_frames: As in `MemoryBank.recall`.
    """

    bank: MemoryBank
    fields: Sequence[str]
    k: int = K
    tau: float = TAU
    exclude_frames: int | None = None

    def __call__(self, batch: Batch) -> Recall:
        """Recall what the teacher did in situations like those of a batch, but not in them."""
        described = describe(batch, self.bank.kind, self.bank.cache)
        return self.bank.recall(
            self.bank.space.unit(described),
            asking=batch.keys,
            k=self.k,
            tau=self.tau,
            fields=self.fields,
            exclude_frames=self.exclude_frames,
        )
