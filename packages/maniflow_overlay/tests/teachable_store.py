"""A small store that something can be learnt from.

The state of each episode goes from the middle to a place and stays there; a bright square shows the
place on the first frame, and the path shows it on every one. After the first row the states give
the direction away, too: that a policy beats trivial answers here does not tell that it looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from maniflow_overlay.data.convert import Rows, Source, convert
from maniflow_overlay.data.frame_store import FrameStore, StoreShape
from maniflow_overlay.data.path_layers import write_layers
from maniflow_overlay.gripper_path import GripperPath, path_from_rows

SIDE, ROWS, VECTOR = 16, 10, 4


def make_teachable(
    folder: Path,
    episodes: int = 24,
    tasks: int = 1,
    seed: int = 0,
    said: Mapping[str, tuple[str, ...]] | None = None,
) -> Path:
    """Write the store with its paths and return its folder.

    With `said`, tasks and their texts, the place is left for the first task and right for the
    others, and no picture shows it.
    """
    names = list(said) if said else [f"task{number}" for number in range(tasks)]
    rng = np.random.default_rng(seed)
    places = rng.uniform(0.15, 0.85, (episodes, 2))
    sources, paths = [], []
    (folder / "source").write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()
    for number, place in enumerate(places):
        task = names[number % len(names)]
        texts = said[task] if said else ("reach",)
        if said:
            place[0] = 0.2 if task == names[0] else 0.8
        steps = np.minimum(np.arange(ROWS + 1) / (ROWS - 3), 1)[:, None]
        way = (1 - steps) * [0.5, 0.5] + steps * place
        still = np.full((ROWS + 1, 1), 0.2)
        vectors = np.concatenate([way, still, steps], axis=1).astype(np.float32)
        pictures = np.full((ROWS, SIDE, SIDE, 3), 60, np.uint8)
        x, y = (place * SIDE).astype(int)
        if not said:
            pictures[0, max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = 230

        def read(number=number, vectors=vectors, pictures=pictures, task=task, texts=texts) -> Rows:
            frames = (picture.copy() for picture in pictures)
            return Rows(task, number, "made", digest, frames, vectors[:-1], vectors[1:], texts)

        sources.append(Source(task, number, folder / "source", read))
        line = [[0.5, 0.5, 1], [*place.tolist(), 0]]
        path: GripperPath | None = path_from_rows(line, "made")
        paths += [path] * ROWS
    convert(sources, folder / "store", StoreShape(SIDE, SIDE, VECTOR), about={})
    store = FrameStore(folder / "store")
    write_layers(store, paths, ["ok"] * len(paths), "made")
    return folder / "store"
