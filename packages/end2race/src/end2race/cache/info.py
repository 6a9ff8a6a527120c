"""`cache.json`: what a cache holds, whose answers they are, and on which data they were given.

A cached answer is of use only to a student that would have got the same from the live teacher.
So the teacher (a digest of its weights and settings), the data (a digest per split) and the window
length stand in the cache, and a reader that expects something else is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loom.errors import UserError
from loom.files import read_json, write_json

FORMAT = "end2race teacher cache"
VERSION = 1
FILE = "cache.json"
SCOPES = {"actions": "window", "gru_out": "window", "bev_vec": "frame", "bev_feat": "frame"}
"""Fields and what one record of each belongs to.

`bev_vec` and `bev_feat` depend on one frame only, and windows of stride 1 share all but one of
their frames: stored per frame they take a T-th of the space.
"""
DTYPES = {"float32": "<f4", "float16": "<f2"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SPLIT = re.compile(r"[a-z]{1,32}")
_MAX_VALUES = 2**31


@dataclass(frozen=True)
class CacheInfo:
    """Content of `cache.json`.

    Attributes:
        teacher_sha256: Digest of the teacher's weights and settings, not of its file.
        data: Fingerprint of each split that has been exported.
        seq_len: Frames per window, T.
        stride: Frames between the starts of two windows.
        dtype: `float32` or `float16`, of all fields but `actions`, which stay float32.
        fields: Shape of one record: `actions` (T, A), `gru_out` (T, H), `bev_vec` (D,), `bev_feat`
            (C, H, W).
        origin: Where the answers were computed, for people; never compared.
    """

    teacher_sha256: str
    data: Mapping[str, str]
    seq_len: int
    stride: int
    dtype: str
    fields: Mapping[str, tuple[int, ...]]
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no cache can be made of.

        Raises:
            ValueError: A value is out of its range.
        """
        _require(_DIGEST.fullmatch(self.teacher_sha256), f"teacher digest {self.teacher_sha256!r}")
        for split, digest in self.data.items():
            _require(_SPLIT.fullmatch(split), f"split {split!r}")
            _require(isinstance(digest, str) and digest, f"fingerprint of {split}: {digest!r}")
        for name, value in {"seq_len": self.seq_len, "stride": self.stride}.items():
            _require(type(value) is int and 0 < value < 10**6, f"{name} {value!r}")
        _require(self.dtype in DTYPES, f"dtype {self.dtype!r}, expected {' or '.join(DTYPES)}")
        _require(self.fields, "no fields")
        for name, shape in self.fields.items():
            _require(name in SCOPES, f"field {name!r}, expected some of {', '.join(SCOPES)}")
            sizes = all(type(size) is int and size > 0 for size in shape)
            whole = sizes and len(shape) > 0 and math.prod(shape) < _MAX_VALUES
            _require(whole, f"{name} of shape {shape}")
            timed = SCOPES[name] == "window"
            _require(not timed or shape[0] == self.seq_len, f"{name} of shape {shape} per window")

    def stored_dtype(self, name: str) -> str:
        """Return the numpy type of a field on disk, little-endian."""
        return DTYPES["float32" if name == "actions" else self.dtype]

    def record_bytes(self, scope: str) -> int:
        """Return the size of one record of a `window` or of a `frame`."""
        return sum(
            math.prod(shape) * int(self.stored_dtype(name)[-1])
            for name, shape in self.fields.items()
            if SCOPES[name] == scope
        )

    def write(self, directory: Path) -> None:
        """Write `cache.json` atomically."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "teacher_sha256": self.teacher_sha256,
            "data": dict(sorted(self.data.items())),
            "seq_len": self.seq_len,
            "stride": self.stride,
            "dtype": self.dtype,
            "fields": {name: list(shape) for name, shape in self.fields.items()},
            "key": "split/segment:start",
            "origin": dict(self.origin),
        }
        write_json(directory / FILE, content)


@dataclass(frozen=True)
class Expected:
    """What a reader needs a cache to be; None is not compared.

    Attributes:
        teacher_sha256: Digest of the teacher.
        data: Fingerprints of the splits that will be read. A split that the cache lacks is no
            contradiction: its windows are missing, and `TeacherCache.missing` says so.
        seq_len: Frames per window.
        stride: Frames between the starts of two windows.
        dtype: Type on disk.
        fields: Shape of each field that will be read.
    """

    teacher_sha256: str | None = None
    data: Mapping[str, str] | None = None
    seq_len: int | None = None
    stride: int | None = None
    dtype: str | None = None
    fields: Mapping[str, tuple[int, ...]] | None = None


def disagreements(found: CacheInfo, expected: CacheInfo | Expected) -> list[str]:
    """Name each point in which a cache is not what is expected, as `what: is, expected ...`."""
    lines = []
    for name in ("teacher_sha256", "seq_len", "stride", "dtype"):
        is_now, wanted = getattr(found, name), getattr(expected, name)
        if wanted is not None and is_now != wanted:
            lines.append(f"{name} {str(is_now)[:12]}, expected {str(wanted)[:12]}")
    for split, wanted in (expected.data or {}).items():
        is_now = found.data.get(split, wanted)
        if is_now != wanted:
            lines.append(f"data of {split} {is_now[:12]}, expected {wanted[:12]}")
    for name, shape in (expected.fields or {}).items():
        is_now = found.fields.get(name)
        if is_now is None:
            lines.append(f"no {name}, expected shape {tuple(shape)}")
        elif is_now != tuple(shape):
            lines.append(f"{name} of shape {is_now}, expected {tuple(shape)}")
    return lines


def read_info(directory: Path) -> CacheInfo:
    """Read `cache.json`.

    Raises:
        UserError: There is none, or it is damaged or of another version.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        raise UserError(
            f"{directory} is no teacher cache: it has no {FILE}",
            hint="make one with `end2race export-cache --cache-dir DIR`; a folder of .npz files is "
            "taken over with `end2race cache convert`",
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a teacher cache", hint="give another folder")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: version {content.get('version')!r}, this program reads {VERSION}",
            hint="export the cache again",
        )
    try:
        return CacheInfo(
            teacher_sha256=_text(content["teacher_sha256"]),
            data={_text(key): _text(value) for key, value in content["data"].items()},
            seq_len=content["seq_len"],
            stride=content["stride"],
            dtype=_text(content["dtype"]),
            fields={_text(key): tuple(value) for key, value in content["fields"].items()},
            origin={_text(key): _text(value) for key, value in content["origin"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged description of a cache ({error})", hint="export the cache again"
        ) from error


def _require(holds: Any, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
