"""Rows of a small store, kept in memory, and a store of them."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
from maniflow_overlay.data.convert import Rows, Source, convert
from maniflow_overlay.data.frame_store import FrameStore, StoreShape
from maniflow_overlay.data.path_layers import PathLayers, write_layers
from maniflow_overlay.gripper_path import GripperPath, path_from_rows

LENGTHS = (20, 7, 1, 31)
SHAPE = StoreShape(20, 16, 14)


def content() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, states and actions of all rows, every one different."""
    rng = np.random.default_rng(0)
    count = sum(LENGTHS)
    frames = rng.integers(0, 256, (count, SHAPE.height, SHAPE.width, 3), dtype=np.uint8)
    return frames, *rng.normal(size=(2, count, 14)).astype(np.float32)


def sources(folder: Path, wait_s: float = 0.0) -> list[Source]:
    """The same rows as episodes of two tasks."""
    frames, state, action = content()
    made = []
    begin = 0
    for number, length in enumerate(LENGTHS):
        part = slice(begin, begin + length)
        path = folder / f"source{number}.txt"
        path.write_text(f"episode {number}", encoding="utf-8")
        task = "click_bell" if number < 2 else "move_can_pot"

        def read(part=part, number=number, task=task, path=path) -> Rows:
            time.sleep(wait_s)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            pictures = (frame.copy() for frame in frames[part])
            return Rows(
                task, number, path.name, digest, pictures, state[part], action[part], ("do",)
            )

        made.append(Source(task, number, path, read))
        begin += length
    return made


def make_store(folder: Path) -> FrameStore:
    """Convert the rows."""
    convert(sources(folder), folder / "store", SHAPE, about={})
    return FrameStore(folder / "store")


def some_paths() -> list[GripperPath | None]:
    """One path per row; every fifth row has none, and rows 3 to 6 hold the same one."""
    rng = np.random.default_rng(1)
    paths: list[GripperPath | None] = []
    for row in range(sum(LENGTHS)):
        points = [[*rng.uniform(0, 1, 2).tolist(), int(rng.integers(2))] for _ in range(3)]
        paths.append(path_from_rows(points, "case") if row % 5 else None)
    paths[4:7] = [paths[3]] * 3
    return paths


def attach(store: FrameStore) -> PathLayers:
    paths = some_paths()
    write_layers(store, paths, ["ok" if path else "timeout" for path in paths], "test")
    return PathLayers(store)
