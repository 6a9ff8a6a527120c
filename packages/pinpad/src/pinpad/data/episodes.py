"""Episodes on disk: one `.npz` file each, in the layout that DreamerV3 ports write.

Frame t holds what the environment showed and paid *after* `action[t]`; frame 0 is the reset, its
action is 0. An episode of 1,000 steps has 1,001 frames, and its file is named `<name>-1001.npz`.
Ours also hold the true events and the state of the task; files without them can be evaluated
against pixel differences and rewards only.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from loom.arrays import read_npz
from loom.errors import UserError
from loom.files import write_atomic

from pinpad.envs.layouts import MOVES

_STATE = ("progress", "countdown")
_ROWS = ("action", "reward", "is_first", "is_last", *_STATE)


@dataclass(frozen=True)
class Episode:
    """One episode of T frames.

    Attributes:
        name: What it is called in tables.
        image: (T, h, w, 3) uint8.
        action: (T,) int8, the action that led to each frame.
        reward: (T,) float32.
        is_first: (T,) bool.
        is_last: (T,) bool.
        events: Event -> (T,) bool; empty if the file knows none.
        state: `progress` and `countdown`, (T,) int8 each; empty if the file has none.
        layout: `three` to `eight`, or empty.
        player: Who played, or empty.
    """

    name: str
    image: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    events: Mapping[str, np.ndarray] = field(default_factory=dict)
    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    layout: str = ""
    player: str = ""

    def __len__(self) -> int:
        return len(self.image)


def write_episode(folder: Path, episode: Episode) -> Path:
    """Write an episode atomically to `<name>-<frames>.npz` in a folder that exists."""
    path = folder / f"{episode.name}-{len(episode)}.npz"
    content = io.BytesIO()
    np.savez_compressed(
        content,
        image=episode.image,
        action=episode.action,
        reward=episode.reward,
        is_first=episode.is_first,
        is_last=episode.is_last,
        is_terminal=np.zeros(len(episode), bool),
        layout=np.array(episode.layout),
        player=np.array(episode.player),
        allow_pickle=False,
        **{f"event_{name}": value for name, value in episode.events.items()},
        **episode.state,
    )
    write_atomic(path, content.getvalue())
    return path


def read_episode(path: Path) -> Episode:
    """Read an episode of ours or of a DreamerV3 port (one-hot actions become numbers).

    Raises:
        UserError: The file is damaged, lacks `image`, `action` or `reward`, or its lengths differ.
    """
    arrays = read_npz(path)
    missing = [name for name in ("image", "action", "reward") if name not in arrays]
    if missing:
        raise UserError(
            f"{path}: an episode without {', '.join(missing)}",
            hint="an episode holds image (T, h, w, 3), action and reward",
        )
    image = arrays["image"]
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != 3 or len(image) == 0:
        raise UserError(
            f"{path}: image is {image.dtype} of shape {image.shape}, expected uint8 (T, h, w, 3)",
            hint="one frame for each step, and one for the reset",
        )
    frames = len(image)
    _require_numbers(path, arrays)
    action = arrays["action"]
    if action.ndim == 2:
        action = action.argmax(axis=1)
    wrong = np.flatnonzero((action < 0) | (action >= len(MOVES)))
    if len(wrong):
        first, most = wrong[0], len(MOVES) - 1
        raise UserError(
            f"{path}: action[{first}] is {action.flat[first]}, expected 0 to {most}",
            hint="the five actions of PinPad, as numbers or one-hot",
        )
    first, last = np.zeros(frames, bool), np.zeros(frames, bool)
    first[0], last[-1] = True, True
    rows = {
        "action": action.astype(np.int8),
        "reward": arrays["reward"].astype(np.float32),
        "is_first": arrays.get("is_first", first).astype(bool),
        "is_last": arrays.get("is_last", last).astype(bool),
    }
    events = {
        name.removeprefix("event_"): value.astype(bool)
        for name, value in arrays.items()
        if name.startswith("event_")
    }
    state = {name: arrays[name].astype(np.int8) for name in _STATE if name in arrays}
    for name, value in (rows | events | state).items():
        if value.shape != (frames,):
            raise UserError(
                f"{path}: {name} has shape {value.shape}, but there are {frames} frames",
                hint="every row has one entry for each frame; the file may be truncated",
            )
    return Episode(
        name=path.stem.removesuffix(f"-{frames}"),
        image=image,
        events=events,
        state=state,
        layout=str(arrays.get("layout", "")),
        player=str(arrays.get("player", "")),
        **rows,
    )


def _require_numbers(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """See that no row holds text or the like."""
    for name, values in arrays.items():
        row = name in _ROWS or name.startswith("event_")
        if row and values.dtype.kind not in "biuf":
            raise UserError(f"{path}: {name} holds {values.dtype}", hint="numbers were expected")


def require_same_frames(learnt: tuple[int, ...], judged: tuple[int, ...]) -> None:
    """See that a model is judged on frames of the shape (h, w, 3) that it learns from.

    Raises:
        UserError: It is not.
    """
    if learnt != judged:
        side = learnt[0]
        scripted = f"size={side} for scripted ones, " if learnt == (side, side, 3) else ""
        raise UserError(
            f"held-out frames are {judged}, those learnt from {learnt}",
            hint=f"use one size for both: {scripted}`pinpad collect --size` for recorded ones",
        )


def episode_files(folder: Path) -> list[Path]:
    """Return the episode files of a folder by name.

    Raises:
        UserError: There are none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no episodes, it is no folder", hint="check the path")
    found = sorted(folder.glob("*.npz"))
    if not found:
        raise UserError(
            f"{folder}: no episodes (.npz)", hint="`pinpad collect FOLDER` records some"
        )
    return found
