"""The data that a training without a store learns from: the expert at the table, recorded once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from loom.files import explained
from loom.progress import Progress

from maniflow_overlay.data.commands import attach_command, convert_command
from maniflow_overlay.data.frame_store import MANIFEST
from maniflow_overlay.data.path_layers import FOLDER, STATUS
from maniflow_overlay.sim.choice import chosen_scene
from maniflow_overlay.sim.collect import MIXED, PATHS, Collection, collect

ROOT = Path("data/maniflow_overlay")
EPISODES, SIZE = 400, "64x64"


def embedded_store(say: Callable[[str], None]) -> Path:
    """Return the store of recorded episodes, with mixed paths; write it if it is not there yet.

    The MuJoCo scene where it can be drawn, else the planar one; each has a folder of its own.
    """
    scene = chosen_scene("auto", say)
    root = ROOT / scene
    store = root / "store"
    if _whole(store):  # also where nothing can be written
        return store
    with explained(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
    with lock:  # trainings that begin together wait for the first
        if _whole(store):
            return store
        say(f"[data] recording {EPISODES} episodes of the {scene} scene in {root}, once")
        shutil.rmtree(store, ignore_errors=True)
        episodes = root / "episodes"
        progress = Progress("collect", EPISODES)
        try:
            collect(Collection(("pick_place",), EPISODES, scene), episodes, progress.update)
        finally:
            progress.close()
        convert_command(episodes, store, [], "head", SIZE)
        attach_command(store, episodes / PATHS / f"{MIXED}.jsonl")
        return store


def _whole(store: Path) -> bool:
    """Tell whether a store is complete, with its paths."""
    return (store / MANIFEST).is_file() and (store / FOLDER / STATUS).is_file()
