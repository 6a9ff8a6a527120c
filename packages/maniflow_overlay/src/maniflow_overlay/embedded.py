"""The data that a training without a store learns from: made-up episodes, written once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from maniflow_overlay.data.commands import attach_command, convert_command, oracle_command
from maniflow_overlay.data.frame_store import MANIFEST
from maniflow_overlay.data.path_layers import FOLDER, STATUS
from maniflow_overlay.data.synthetic import Scene, write_task

ROOT = Path("data/maniflow_overlay/synthetic")
STORE = ROOT / "store"
TASK, EPISODES, SIZE = "move_block", 40, "64x64"


def embedded_store(say: Callable[[str], None]) -> Path:
    """Return the store of made-up episodes; write it if it is not there yet."""
    if (STORE / MANIFEST).is_file() and (STORE / FOLDER / STATUS).is_file():
        return STORE
    say(f"[data] writing {EPISODES} made-up episodes and their paths to {ROOT}, once")
    shutil.rmtree(STORE, ignore_errors=True)
    episodes, paths = ROOT / "episodes", ROOT / "paths.jsonl"
    write_task(episodes, TASK, EPISODES, Scene(seed=0))
    oracle_command(episodes, paths, [], "head", tolerance=0.02, noise=0.0, seed=0)
    convert_command(episodes, STORE, [], "head", SIZE)
    attach_command(STORE, paths)
    return STORE
