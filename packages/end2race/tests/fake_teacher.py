"""A teacher without a network: answers that are a function of the frames a window shows."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from end2race.cache.export import field_shapes
from end2race.cache.info import CacheInfo
from end2race.cache.keys import format_key, parse_key

T, A, D, H, MAP = 3, 2, 6, 5, (2, 3, 3)


class Frames(NamedTuple):
    """What the fake reader reads: the frames of n windows, by key."""

    windows: list[list[str]]


class FakeReader:
    def __init__(self, keys: Sequence[str], seq_len: int = T) -> None:
        self.keys, self.seq_len = keys, seq_len

    def read(self, indices: Sequence[int]) -> Frames:
        windows = []
        for index in indices:
            segment, start = parse_key(self.keys[index])
            windows.append([format_key(segment, start + t) for t in range(self.seq_len)])
        return Frames(windows)


def of_frame(key: str, size: int, seed: int = 0) -> np.ndarray:
    """Values in [-1, 1) that a frame is known by."""
    rng = np.random.default_rng(zlib.crc32(key.encode()) + seed)
    return rng.uniform(-1, 1, size).astype(np.float32)


class FakeTeacher:
    def __init__(self, seed: int = 0, *, maps: bool = False) -> None:
        self.seed, self.maps, self.batches = seed, maps, []

    def __call__(self, batch: Frames) -> dict[str, np.ndarray]:
        self.batches.append([window[0] for window in batch.windows])
        frames = np.array(
            [[of_frame(key, 2 * D, self.seed) for key in window] for window in batch.windows]
        )
        history = np.cumsum(frames, axis=1, dtype=np.float32)  # depends on where a window starts
        answers = {
            "actions": history[..., :A],
            "gru_out": history[..., A : A + H],
            "bev_vec": frames[..., :D],
        }
        if self.maps:
            size = int(np.prod(MAP))
            rows = [[of_frame(key, size, 7) for key in window] for window in batch.windows]
            answers["bev_feat"] = np.array(rows).reshape(*frames.shape[:2], *MAP)
        return answers


def window_keys(segments: int = 2, frames: int = 12, split: str = "train") -> list[str]:
    return [
        f"{split}/segment_{number:04d}:{start}"
        for number in range(segments)
        for start in range(frames - T + 1)
    ]


def info_for(teacher: FakeTeacher, dtype: str = "float32", **changed: object) -> CacheInfo:
    shapes = field_shapes(teacher(FakeReader(window_keys()).read([0])))
    teacher.batches.clear()
    given = {
        "teacher_sha256": f"{teacher.seed:064x}",
        "data": {"train": "d" * 64},
        "seq_len": T,
        "stride": 1,
        "dtype": dtype,
        "fields": shapes,
    }
    return CacheInfo(**{**given, **changed})
