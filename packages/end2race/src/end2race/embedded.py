"""The dataset that every clone can make, used by commands that are given none.

It is recorded once in the simulator, under `data/end2race` of the working directory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

DATASET = Path("data/end2race/racing")
TRACKS = {"train": 12, "valid": 4}
DRIVES, FRAMES = 2, 40


def default_dataset(say: Callable[[str], None], folder: Path = DATASET) -> Path:
    """Return the folder of the embedded dataset; record it if it is not there yet.

    It is recorded beside its place and moved there as a whole, so it is complete or absent.
    """
    from end2race.data.dataset import FILE
    from end2race.sim.collect import Collection, collect

    if not (folder / FILE).is_file():
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        frames = sum(
            collect(unfinished, split, Collection(tracks=tracks, drives=DRIVES, frames=FRAMES))
            for split, tracks in TRACKS.items()
        )
        unfinished.rename(folder)
        say(f"[data] {frames:,} frames of the simulator were recorded to {folder}")
    return folder
