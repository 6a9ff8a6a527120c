"""Keys of windows and frames: `train/segment_0001:123`.

A window's key names its split, its segment and the frame it starts at; the key of a single frame
has the same form. A key is data: it is written into indices and looked up in tables, and never
becomes a part of a path. Still only the one spelling is accepted, so that no two keys mean the same
window and a damaged index is noticed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from loom.errors import UserError

_KEY = re.compile(r"([a-z]{1,32})/([A-Za-z0-9_][A-Za-z0-9_.-]{0,127}):(0|[1-9][0-9]{0,8})")


class Place(NamedTuple):
    """Where a window begins, or where a frame stands.

    Attributes:
        segment: `train/segment_0001`, unique within a data set.
        frame: Row of the segment's `data.csv`, from 0.
    """

    segment: str
    frame: int

    @property
    def split(self) -> str:
        """`train`, `valid` or `test`."""
        return self.segment.partition("/")[0]


def parse_key(key: object) -> Place:
    """Take a key apart.

    Raises:
        UserError: It is not of the form `split/SEGMENT:START`.
    """
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        shown = repr(key)
        raise UserError(
            f"{shown[:80] + '...' if len(shown) > 80 else shown} is no key of a window",
            hint="keys read like train/segment_0001:123: split in lower case, segment of at most "
            "128 letters, digits, _, - and inner dots, first frame without leading zeros; rename "
            "a segment's folder that has other characters",
        )
    split, segment, start = match.groups()
    return Place(f"{split}/{segment}", int(start))


def format_key(segment: str, frame: int) -> str:
    """Return the key of a frame, or of the window that starts there."""
    return f"{segment}:{frame}"
