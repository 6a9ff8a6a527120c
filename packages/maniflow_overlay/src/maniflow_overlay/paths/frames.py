"""Frames on disk as the notes lay them out: `TASK/episode_07/frames/frame_0042.png`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

from loom.errors import UserError

_EPISODE = re.compile(r"episode_?(\d{1,9})")
_FRAME = re.compile(r"frame_?(\d{1,9})\.(png|jpg|jpeg)", re.I)


class FrameKey(NamedTuple):
    """Names one frame."""

    task: str
    episode: int
    frame: int

    def __str__(self) -> str:
        return f"{self.task}/episode_{self.episode:02d}/frame_{self.frame:04d}"


@dataclass(frozen=True)
class FrameFile:
    """A frame and its picture."""

    key: FrameKey
    path: Path


def find_frames(root: Path, tasks: Collection[str] = ()) -> list[FrameFile]:
    """List the frames below a folder, in order of task, episode and frame.

    Args:
        root: Folder of the tasks.
        tasks: Only these; all if empty.

    Raises:
        UserError: There is no such folder, task or frame, or one frame has two pictures.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder", hint="give the folder that holds TASK/episode_NN"
        )
    missing = sorted(task for task in tasks if not (root / task).is_dir())
    if missing:
        raise UserError(f"{root}: no folder for the task {', '.join(missing)}")
    found: dict[FrameKey, Path] = {}
    for path in root.glob("*/episode*/frames/*"):
        episode = _EPISODE.fullmatch(path.parts[-3])
        frame = _FRAME.fullmatch(path.name)
        task = path.parts[-4]
        if not episode or not frame or (tasks and task not in tasks):
            continue
        key = FrameKey(task, int(episode[1]), int(frame[1]))
        if key in found:
            raise UserError(f"{key} has two pictures: {found[key]} and {path}")
        found[key] = path
    if not found:
        raise UserError(
            f"{root}: no frames", hint="expected TASK/episode_07/frames/frame_0042.png or .jpg"
        )
    return [FrameFile(key, found[key]) for key in sorted(found)]


def select_frames(
    frames: list[FrameFile],
    *,
    stride: int = 1,
    most: int | None = None,
    episodes: int | None = None,
) -> list[FrameFile]:
    """Keep every `stride`-th frame of each episode, the first always, and at most `most` of them.

    Args:
        frames: In order, as `find_frames` lists them.
        stride: 16 asks for the path that a policy with an action chunk of 16 will see.
        most: 1 keeps the first frame alone.
        episodes: Only so many of each task, the first ones; None keeps all.
    """
    if stride < 1:
        raise UserError(f"stride {stride} is less than 1")
    kept = []
    for _, task in groupby(frames, key=lambda frame: frame.key.task):
        by_episode = groupby(task, key=lambda frame: frame.key.episode)
        for _, episode in islice(by_episode, episodes):
            kept += list(episode)[::stride][:most]
    return kept
