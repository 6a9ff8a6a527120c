"""The episodes that every clone can make, used by commands that are given none.

They are recorded once, under `data/pinpad` of the working directory.
"""

from collections.abc import Callable
from pathlib import Path

EPISODES = Path("data/pinpad/three")


def embedded_episodes(say: Callable[[str], None], folder: Path = EPISODES) -> Path:
    """Return a folder of 20 episodes of `three` by four scripted players."""
    from pinpad.data.collect import collect
    from pinpad.data.players import parse_mix

    if not (folder.is_dir() and any(folder.glob("*.npz"))):
        mix = parse_mix("uniform,sticky,babble,oracle:0.1")
        collect(folder, "three", mix, 20, length=1000, size=64, seed=0)
        say(f"[data] 20 scripted episodes of pinpad_three were recorded to {folder}")
    return folder
