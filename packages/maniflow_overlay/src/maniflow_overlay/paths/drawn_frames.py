"""Frames with their paths drawn in, as pictures: to look at, or for any model that takes them.

TASK/episode_07/frames/frame_0042.png  ->  OUT/TASK/episode_07/overlay/frame_0042.png
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from loom.errors import UserError
from loom.files import explained

from maniflow_overlay.overlay.pictures import drawn_bgr, read_picture_bgr, write_png_bgr
from maniflow_overlay.paths.frames import FrameFile
from maniflow_overlay.paths.table import read_paths

OVERLAY = "overlay"


def draw_frames(
    frames: Sequence[FrameFile],
    paths: Path,
    output: Path,
    *,
    path_only: bool = False,
    done: Callable[[int], None] = lambda count: None,
) -> int:
    """Write every frame with its path; one without is written as it is, or black if alone.

    Args:
        frames: What to draw into.
        paths: File of paths.
        output: Folder of the tasks.
        path_only: The path alone, on black.
        done: Is told after each frame how many there are.

    Returns:
        How many frames have a path.

    Raises:
        UserError: None of them has, or a file cannot be read.
    """
    known = {row.key: row.path for row in read_paths(paths)}
    with_path = sum(known.get(frame.key) is not None for frame in frames)
    if not with_path:
        raise UserError(
            f"{paths} has no path for any of {len(frames)} frames",
            hint="tasks, episode and frame numbers must be those of the frames",
        )
    for count, frame in enumerate(frames, 1):
        task, episode, number = frame.key
        folder = output / task / f"episode_{episode:02d}" / OVERLAY
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        image = drawn_bgr(read_picture_bgr(frame.path), known.get(frame.key), path_only)
        write_png_bgr(folder / f"frame_{number:04d}.png", image)
        done(count)
    return with_path
