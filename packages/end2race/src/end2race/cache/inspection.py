"""What a cache holds, in words and rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from end2race.cache.keys import parse_key
from end2race.cache.store import TeacherCache


@dataclass(frozen=True)
class Inspection:
    """Facts about a cache.

    Attributes:
        facts: Name -> value.
        segments: Split, segment, windows and frames of each.
    """

    facts: dict[str, str]
    segments: list[tuple[str, str, int, int]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        names = ("split", "segment", "windows", "frames")
        rows = [dict(zip(names, row, strict=True)) for row in self.segments]
        return {**self.facts, "segments": rows}


def inspect_cache(directory: Path) -> Inspection:
    """Read a cache's description and indices, not its records."""
    cache = TeacherCache.open(directory)
    info = cache.info
    facts = {
        "teacher": info.teacher_sha256,
        **{f"data/{split}": digest for split, digest in sorted(info.data.items())},
        "windows": f"{len(cache)} of {info.seq_len} frames, stride {info.stride}",
        "frames": f"{cache.frame_count}, each once",
        "fields": ", ".join(f"{name} {list(shape)}" for name, shape in info.fields.items()),
        "dtype": info.dtype,
        "bytes": f"{cache.size}",
        **{f"origin/{name}": value for name, value in info.origin.items()},
    }
    windows = Counter(parse_key(key).segment for key in cache.keys)
    segments = []
    for segment, count in sorted(windows.items()):
        split, _, name = segment.partition("/")
        segments.append((split, name, count, cache.frames_of(segment)))
    return Inspection(facts, segments)
