"""Windows: the short sequences on which a recurrent driver is trained, each with its key.

A key such as `train/segment_0001:123` names split, segment and first frame. It identifies a window
in the teacher cache and pairs LiDAR with camera.
"""

from __future__ import annotations

from dataclasses import dataclass

from loom.errors import UserError

from end2race.data.dataset import Dataset


@dataclass(frozen=True)
class Window:
    """`seq_len` frames of one segment.

    Attributes:
        key: `split/segment:start`.
        segment: index of the segment in the dataset.
        start: its first frame.
        seq_len: its number of frames.
        target_shift: frames between an input and the velocity that is its label.
    """

    key: str
    segment: int
    start: int
    seq_len: int
    target_shift: int


def windows(
    dataset: Dataset, split: str, seq_len: int, stride: int = 1, target_shift: int = 1
) -> list[Window]:
    """List the windows of a split.

    A segment of n frames has starts 0, stride, ... up to n - seq_len, less `target_shift` where the
    speed label is the velocity that many frames later; a segment that records `target_velocity`
    needs no later frame.

    Raises:
        UserError: no window fits, the split is empty, or `target_shift` is 0: the label would then
            be the speed that the network is given.
    """
    if min(seq_len, stride) < 1:
        raise UserError(f"seq_len {seq_len} and stride {stride} must be 1 or more")
    if target_shift < 1:
        raise UserError(
            f"target_shift {target_shift} makes the speed label the input itself",
            hint="use target_shift 1: the speed one frame later",
        )
    found = []
    for index in dataset.of_split(split):
        segment = dataset.segments[index]
        later = 0 if segment.target_velocity is not None else target_shift
        found += [
            Window(f"{split}/{segment.name}:{start}", index, start, seq_len, target_shift)
            for start in range(0, len(segment) - seq_len - later + 1, stride)
        ]
    if not found:
        lengths = [len(dataset.segments[index]) for index in dataset.of_split(split)]
        what = f"the longest of {len(lengths)} has {max(lengths)} frames" if lengths else "none"
        raise UserError(
            f"{dataset.root}: no window of {seq_len} frames in split {split} (segments: {what})",
            hint="record longer segments, or take a shorter seq_len",
        )
    return found
