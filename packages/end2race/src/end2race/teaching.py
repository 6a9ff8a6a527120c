"""What a student hears from its teacher about a window: from the cache, or from memory.

A window that is in the cache has the teacher's own answer. One that is not, such as a camera drive
without LiDAR, can be told what the teacher did in the situations most like it, weighted by how much
those agree; what it is looked up by is known to the student, so no LiDAR is needed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loom.errors import UserError
from loom.run import Run

from end2race.cache.info import Expected, disagreements
from end2race.cache.store import TeacherCache
from end2race.config import StudentConfig
from end2race.data.batches import BatchReader
from end2race.data.windows import Window
from end2race.losses import TeacherAnswers
from end2race.memory.bank import MemoryBank
from end2race.memory.recollection import describe_all, excluded_frames
from end2race.training import Drives

Ask = Callable[[Sequence[str]], TeacherAnswers]


@dataclass(frozen=True)
class Teaching:
    """A source of answers.

    Attributes:
        ask: From the keys of windows to what the teacher says about them.
        shapes: Of the fields, as the cache has them.
    """

    ask: Ask
    shapes: Mapping[str, tuple[int, ...]]


class CachedTeacher:
    """Reads answers from a cache.

    Args:
        cache: The teacher's.
        fields: Which of its fields.
        skip_missing: Leave out windows without an answer; otherwise they are an error.
    """

    def __init__(self, cache: TeacherCache, fields: Sequence[str], *, skip_missing: bool) -> None:
        self._cache, self._fields, self._skip = cache, tuple(fields), skip_missing

    def __call__(self, keys: Sequence[str]) -> TeacherAnswers:
        """Return the answers about windows, zero with confidence 0 where there is none."""
        absent = set(self._cache.missing(keys)) if self._skip else set()
        found = [row for row, key in enumerate(keys) if key not in absent]
        values = self._cache.read([keys[row] for row in found], self._fields)
        return _placed(values, found, len(keys), np.ones(len(found), np.float32))


class RememberingTeacher:
    """Answers from a cache, and from memory where the cache has none.

    Args:
        cached: Answers what the cache has; None asks the memory about every window.
        bank: The memory.
        vectors: Unit vectors of the windows that the memory is asked about, by key.
        fields: Which fields.
        k: Neighbours.
        tau: Temperature of their weights.
        exclude_frames: As in `MemoryBank.recall`.
    """

    def __init__(
        self,
        cached: CachedTeacher | None,
        bank: MemoryBank,
        vectors: Mapping[str, np.ndarray],
        fields: Sequence[str],
        *,
        k: int,
        tau: float,
        exclude_frames: int | None = None,
    ) -> None:
        self._cached, self._bank, self._vectors = cached, bank, vectors
        self._fields, self._k, self._tau = tuple(fields), k, tau
        self._exclude_frames = exclude_frames

    def __call__(self, keys: Sequence[str]) -> TeacherAnswers:
        """Return the answers about windows; recalled ones count by their confidence."""
        asked = [row for row, key in enumerate(keys) if key in self._vectors]
        known = self._cached(keys) if self._cached is not None else None
        if not asked:
            if known is None:
                raise ValueError("windows that neither cache nor memory was asked about")
            return known
        names = [keys[row] for row in asked]
        recalled = self._bank.recall(
            np.stack([self._vectors[name] for name in names]),
            asking=names,
            k=self._k,
            tau=self._tau,
            fields=self._fields,
            exclude_frames=self._exclude_frames,
        )
        told = _placed(recalled.fields, asked, len(keys), recalled.confidence)
        if known is None:
            return told
        from_memory = torch.zeros(len(keys), dtype=torch.bool)
        from_memory[asked] = True
        fields = {
            name: torch.where(_like(from_memory, values), told.fields[name], values)
            for name, values in known.fields.items()
        }
        return TeacherAnswers(fields, torch.where(from_memory, told.confidence, known.confidence))


def open_teaching(
    config: StudentConfig, run: Run, drives: Drives, fields: Sequence[str]
) -> Teaching | None:
    """Open the teacher's cache and the memory, and hold them to the windows; None without any.

    Args:
        config: The settings.
        run: Notes which teacher it is.
        drives: The windows.
        fields: What will be asked for.

    Raises:
        UserError: The cache is of other data or another window length, lacks a field that has a
            weight, or lacks windows for which there is no memory and no leave to skip.
    """
    section = config.kd
    if not section.has_teacher:
        return None
    cache = cached = None
    if section.cache_dir is not None:
        cache = _open_cache(section.cache_dir, config, run, drives, fields)
        skips = section.missing == "skip" or section.memory == "topk"
        cached = CachedTeacher(cache, fields, skip_missing=skips)
    if section.memory_dir is not None:
        bank = _open_memory(section.memory_dir, config, fields)
        if cache is not None:
            require_one_teacher(bank.cache, cache, fields, allow_stale=section.allow_stale)
        run.use("memory", bank.cache.info.teacher_sha256)
        absent = [w for w in drives.train if cache is None or w.key not in cache]
        vectors = asking_vectors(bank, drives, absent)
        run.info(
            f"[kd] the memory of {len(bank.windows):,} windows is asked about {len(vectors):,}"
        )
        ask = RememberingTeacher(
            cached,
            bank,
            vectors,
            fields,
            k=section.topk,
            tau=section.tau,
            exclude_frames=excluded_frames(bank, drives.dataset, config.data.train_split),
        )
        return Teaching(ask, bank.cache.info.fields)
    if cache is None or cached is None:
        return None
    coverage = cache.coverage([window.key for window in drives.train])
    if not coverage.found or (coverage.found < coverage.wanted and section.missing == "error"):
        raise UserError(
            f"{section.cache_dir} answers only {coverage}",
            hint="finish the export with --resume; --kd-missing skip distils what is there, and "
            "--memory topk answers the rest by the most similar windows",
        )
    return Teaching(cached, cache.info.fields)


def _open_cache(
    directory: Path, config: StudentConfig, run: Run, drives: Drives, fields: Sequence[str]
) -> TeacherCache:
    """Open a cache of the training's data; see `open_teaching`."""
    split = config.data.train_split
    fingerprint = {split: drives.dataset.fingerprint(split)}
    expected = Expected(data=fingerprint, seq_len=config.data.seq_len)
    cache = TeacherCache.open(directory, expected, allow_stale=config.kd.allow_stale)
    require_fields(cache, fields)
    run.use("teacher", cache.info.teacher_sha256)
    run.info(f"[kd] the cache answers {cache.coverage([window.key for window in drives.train])}")
    return cache


def _open_memory(directory: Path, config: StudentConfig, fields: Sequence[str]) -> MemoryBank:
    """Open a memory that a camera can ask about windows of the training's length."""
    bank = MemoryBank.open(directory)
    if bank.kind != "camera":
        raise UserError(
            f"{directory} is looked up by what the {bank.kind} sees",
            hint="a student asks by its camera: build it with `memory build --keys camera`",
        )
    if bank.cache.info.seq_len != config.data.seq_len:
        raise UserError(
            f"{directory} remembers windows of {bank.cache.info.seq_len} frames, not "
            f"{config.data.seq_len}",
            hint="export and build it again with this --seq-len",
        )
    require_fields(bank.cache, fields)
    return bank


def require_fields(cache: TeacherCache, fields: Sequence[str]) -> None:
    """Refuse a cache that lacks a field which has a weight."""
    absent = [name for name in fields if name not in cache.info.fields]
    if absent:
        raise UserError(
            f"{cache.directory} holds no {', '.join(absent)}",
            hint="export it with --save-bev-feat, or set that weight to 0",
        )


def require_one_teacher(
    remembered: TeacherCache, cache: TeacherCache, fields: Sequence[str], *, allow_stale: bool
) -> None:
    """Refuse a memory of another teacher than the cache's: one adapter cannot serve two.

    Raises:
        UserError: The teachers differ, and that is not allowed, or the shapes of their answers do.
    """
    expected = Expected(
        teacher_sha256=None if allow_stale else cache.info.teacher_sha256,
        fields={name: cache.info.fields[name] for name in fields},
    )
    if complaints := disagreements(remembered.info, expected):
        raise UserError(
            f"the memory's answers in {remembered.directory} are not those of the teacher in "
            f"{cache.directory}: {'; '.join(complaints)}",
            hint="build the memory on a cache of the same teacher",
        )


def asking_vectors(
    bank: MemoryBank, drives: Drives, asked: Sequence[Window]
) -> dict[str, np.ndarray]:
    """Return the unit vector of each window by which a memory is asked about it."""
    reader = BatchReader(drives.dataset, asked, images=True, points=False)
    described = describe_all(reader, bank.kind, bank.cache)
    if not described:
        return {}
    vectors = bank.space.unit(np.stack(list(described.values())))
    return dict(zip(described, vectors, strict=True))


def _placed(
    values: Mapping[str, np.ndarray], rows: Sequence[int], count: int, confidence: np.ndarray
) -> TeacherAnswers:
    """Put answers at their windows' rows; zero with confidence 0 elsewhere."""
    fields = {}
    for name, found in values.items():
        whole = np.zeros((count, *found.shape[1:]), np.float32)
        whole[rows] = found
        fields[name] = torch.from_numpy(whole)
    weight = torch.zeros(count)
    weight[rows] = torch.from_numpy(confidence)
    return TeacherAnswers(fields, weight)


def _like(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return rows.reshape(-1, *[1] * (values.ndim - 1))
