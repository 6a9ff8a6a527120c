"""Frames that several windows share: each is stored once, with the first window that shows it.

That is right only if a frame's features depend on nothing but the frame. So wherever a frame occurs
again, its features are compared with those of its first occurrence.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
from loom.errors import UserError

from end2race.cache.info import SCOPES, CacheInfo
from end2race.cache.keys import Place, format_key
from end2race.cache.shards import Records

_SAME = 1e-4
"""Largest difference of one frame's features between two windows, relative to their largest value:
rounding in another batch, not another answer."""


def new_frames(
    places: Sequence[Place],
    values: Mapping[str, np.ndarray],
    info: CacheInfo,
    stored: Mapping[str, Container[int]],
) -> Records:
    """Gather each frame that is not stored yet, from the first window that has it.

    Args:
        places: Where n windows begin.
        values: Of each field (n, T, *field shape).
        info: Of the cache.
        stored: Segment -> frames that are there.

    Raises:
        UserError: A frame's features differ from one window to the next.
    """
    names = [name for name in info.fields if SCOPES[name] == "frame"]
    if not names:
        return Records([], {})
    first_of: dict[tuple[str, int], int] = {}
    source: list[int] = []  # for each frame of each window the flat row it is taken from
    for segment, start in places:
        for frame in range(start, start + info.seq_len):
            source.append(first_of.setdefault((segment, frame), len(source)))
    new = {
        place: row for place, row in first_of.items() if place[1] not in stored.get(place[0], ())
    }
    flat = {name: values[name].reshape(len(source), *info.fields[name]) for name in names}
    for name in names:
        _check_shared(name, flat[name], np.array(source), places, info.seq_len)
    rows = list(new.values())
    keys = [format_key(*place) for place in new]
    return Records(keys, {name: flat[name][rows] for name in names})


def _check_shared(
    name: str, rows: np.ndarray, source: np.ndarray, places: Sequence[Place], seq_len: int
) -> None:
    """Refuse features that depend on more than their frame."""
    repeated = np.flatnonzero(source != np.arange(len(source)))
    if not len(repeated):
        return
    shared, first = rows[repeated], rows[source[repeated]]
    gap = np.abs(shared - first).max(initial=0)
    if gap <= _SAME * np.abs(first).max(initial=0):
        return
    worst = repeated[np.abs(shared - first).reshape(len(repeated), -1).max(axis=1).argmax()]
    window, step = divmod(int(worst), seq_len)
    segment, start = places[window]
    raise UserError(
        f"{name} of {format_key(segment, start + step)} differs by {gap:.3g} between two windows: "
        "the teacher's features depend on more than the frame",
        hint="a cache stores them once per frame; is the teacher in evaluation mode?",
    )
