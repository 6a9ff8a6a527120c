"""A frame store put together from stores that hold its episodes in parts.

The parts are appended as episodes are converted, by the same code: joining them is as resumable,
and the result has the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from loom.errors import UserError
from loom.files import sha256_file

from maniflow_overlay.data.convert import Rows, Source
from maniflow_overlay.data.frame_store import FrameStore

_FRAMES_AT_A_TIME = 16


def from_parts(sources: Sequence[Source], folders: Sequence[Path]) -> list[Source]:
    """Return the sources as they are read from stores that hold them in this order.

    Raises:
        UserError: The stores hold other episodes.
    """
    parts = [FrameStore(folder) for folder in folders]
    places = [(part, number) for part in parts for number in range(len(part.episodes))]
    found = [(part.episodes[n].task, part.episodes[n].number) for part, n in places]
    if found != [(source.task, source.number) for source in sources]:
        raise UserError(
            f"the parts from {folders[0]} on hold other episodes",
            hint=f"remove {folders[0].parent}",
        )
    return [
        replace(source, read=lambda source=source, place=place: _rows(source, *place))
        for source, place in zip(sources, places, strict=True)
    ]


def _rows(source: Source, part: FrameStore, number: int) -> Rows:
    episode = part.episodes[number]
    if sha256_file(source.path) != episode.source_sha256:
        raise UserError(
            f"{source.path} has changed since it was converted",
            hint=f"remove {part.folder.parent}",
        )
    rows = np.arange(part.begins[number], part.ends[number])
    return Rows(
        episode.task,
        episode.number,
        episode.source,
        episode.source_sha256,
        _pictures(part, rows),
        part.state[rows],
        part.action[rows],
        episode.instructions,
    )


def _pictures(part: FrameStore, rows: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(rows), _FRAMES_AT_A_TIME):
        yield from part.read_frames(rows[begin : begin + _FRAMES_AT_A_TIME])
