"""The dataset and the teacher that every clone can make, used by commands that are given none.

The dataset is recorded once in the simulator, and the teacher trained once on it, under
`data/end2race` of the working directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

DATASET = Path("data/end2race/racing")
TEACHER = Path("data/end2race/teacher")
TRACKS = {"train": 12, "valid": 2}
DRIVES, FRAMES = 4, 40

TEACHER_SETTINGS = ("train.max_steps=200",)
"""Enough for laps on tracks that it has not seen, in under a CPU-minute."""


def default_dataset(say: Callable[[str], None], folder: Path = DATASET) -> Path:
    """Return the folder of the embedded dataset; record it if it is not there yet.

    It is recorded beside its place and moved there as a whole, so it is complete or absent. Of
    several processes one records it, and the others wait for it.
    """
    from end2race.data.dataset import FILE
    from end2race.sim.collect import Collection, collect

    if (folder / FILE).is_file():
        return folder
    with _alone(folder.parent):
        if (folder / FILE).is_file():
            return folder
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        frames = sum(
            collect(unfinished, split, Collection(tracks=tracks, drives=DRIVES, frames=FRAMES))
            for split, tracks in TRACKS.items()
        )
        unfinished.rename(folder)
        say(f"[data] {frames:,} frames of the simulator were recorded to {folder}")
    return folder


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Wait until no other process of ours works in a folder."""
    from loom.files import explained

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def default_teacher(
    say: Callable[[str], None], directory: Path = TEACHER, folder: Path = DATASET
) -> Path:
    """Return the run directory of the embedded teacher; train it if it is not there yet."""
    from loom.progress import STATUS_FILE, read_status

    from end2race.training_run import run_teacher

    begun = (directory / STATUS_FILE).is_file()
    if not begun or read_status(directory)["state"] != "finished":
        root = default_dataset(say, folder)
        say(f"[data] training the embedded teacher in {directory}")
        run_teacher(
            overrides=TEACHER_SETTINGS, flags={"data.root": root}, directory=directory, resume=begun
        )
    return directory
