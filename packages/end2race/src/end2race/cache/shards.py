"""One shard of a cache: a file of fixed-size records and the index that commits it.

    shard-000012.bin     windows' records, end to end, then frames' records
    shard-000012.json    keys of both in that order, SHA-256 of the file, CRC-32 of every record

The `.bin` is forced to the disk and named first, the `.json` last: a shard exists once its index
does. What a killed writer leaves behind (a temporary file, a `.bin` without index) is no shard and
is written over.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loom.errors import UserError
from loom.files import explained, read_json, sha256_file, write_atomic

from end2race.cache.info import SCOPES, CacheInfo
from end2race.cache.keys import Place, parse_key

_INDEX = re.compile(r"shard-([0-9]{6})\.json")
REPAIR = (
    "`end2race cache verify --repair DIR` drops what is damaged; the same export-cache command "
    "with --resume then fills the gap"
)


class Records(NamedTuple):
    """Records of one scope before they are written.

    Attributes:
        keys: One per record.
        values: Array of shape `(n, *field shape)` for each field of the scope.
    """

    keys: Sequence[str]
    values: Mapping[str, np.ndarray]


def record_dtype(info: CacheInfo, scope: str) -> np.dtype:
    """Return the packed layout of one record of a `window` or of a `frame`."""
    return np.dtype(
        [
            (name, info.stored_dtype(name), shape)
            for name, shape in info.fields.items()
            if SCOPES[name] == scope
        ]
    )


def shard_numbers(directory: Path) -> list[int]:
    """Return the numbers of the committed shards, ascending."""
    with explained(directory):
        names = [path.name for path in directory.iterdir()]
    return sorted(int(match[1]) for name in names if (match := _INDEX.fullmatch(name)))


def data_path(directory: Path, number: int) -> Path:
    """Return the file of a shard's records."""
    return directory / f"shard-{number:06d}.bin"


def index_path(directory: Path, number: int) -> Path:
    """Return the file of a shard's index."""
    return directory / f"shard-{number:06d}.json"


def write_shard(
    directory: Path, number: int, info: CacheInfo, windows: Records, frames: Records
) -> None:
    """Write and commit a shard.

    Raises:
        UserError: A value is not finite, or leaves the range of float16; or the disk refused.
    """
    tables = [_pack(info, "window", windows), _pack(info, "frame", frames)]
    checksums = [zlib.crc32(row) for table in tables for row in _rows(table)]
    content = b"".join(table.tobytes() for table in tables)
    index = {
        "windows": list(windows.keys),
        "frames": list(frames.keys),
        "sha256": hashlib.sha256(content).hexdigest(),
        "crc32": checksums,
    }
    write_atomic(data_path(directory, number), content)
    write_atomic(index_path(directory, number), json.dumps(index, separators=(",", ":")) + "\n")


def _pack(info: CacheInfo, scope: str, records: Records) -> np.ndarray:
    """Lay values out as records."""
    table = np.empty(len(records.keys), record_dtype(info, scope))
    for name in table.dtype.names or ():
        with np.errstate(over="ignore"):  # a value too large for float16 is reported below
            table[name] = records.values[name]
        finite = np.isfinite(table[name])
        if not finite.all():
            row = int(np.argwhere(~finite.reshape(len(table), -1).all(axis=1))[0, 0])
            value = records.values[name][row][~finite[row]][0]
            raise UserError(
                f"{name} of {records.keys[row]} holds {value}, which {table[name].dtype} cannot",
                hint="the teacher diverged, or its features need --dtype fp32",
            )
    return table


def _rows(table: np.ndarray) -> np.ndarray:
    """View records as rows of bytes."""
    return table.view(np.uint8).reshape(len(table), table.dtype.itemsize)


@dataclass
class Shard:
    """A committed shard, opened for reading.

    A record is compared with its check sum when it is first read in this process; the SHA-256 of
    the whole file is for `verify`, which reads everything.
    """

    directory: Path
    number: int
    info: CacheInfo
    windows: tuple[str, ...]
    frames: tuple[str, ...]
    window_places: tuple[Place, ...]
    frame_places: tuple[Place, ...]
    sha256: str
    crc32: tuple[int, ...]
    _checked: bytearray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Note that no record has been checked yet."""
        self._checked = bytearray(len(self.crc32))

    @classmethod
    def open(cls, directory: Path, number: int, info: CacheInfo) -> Shard:
        """Read a shard's index and compare it with the size of its records.

        Raises:
            UserError: The index is damaged, or the records are missing or cut short.
        """
        path = index_path(directory, number)
        try:
            shard = cls(directory, number, info, *_read_index(read_json(path)))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged index ({error})", hint=REPAIR) from error
        except UserError as error:
            raise UserError(f"{path}: damaged index: {error.message}", hint=REPAIR) from error
        records = data_path(directory, number)
        size = records.stat().st_size if records.is_file() else 0
        if size != shard.size:
            raise UserError(
                f"{records} has {size} bytes, its index tells of {shard.size}", hint=REPAIR
            )
        return shard

    @property
    def size(self) -> int:
        """Bytes of the records."""
        windows = len(self.windows) * self.info.record_bytes("window")
        return windows + len(self.frames) * self.info.record_bytes("frame")

    @cached_property
    def _bytes(self) -> np.ndarray:
        """The mapped file."""
        path = data_path(self.directory, self.number)
        with explained(path):
            mapped = np.memmap(path, np.uint8, "r") if self.size else np.empty(0, np.uint8)
        return np.asarray(mapped)  # a plain view: indexing a memmap costs several times that

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Views `(n, *field shape)` of each field, in the type on disk."""
        edge = len(self.windows) * self.info.record_bytes("window")
        parts = {"window": self._bytes[:edge], "frame": self._bytes[edge:]}
        tables = {
            scope: part.view(record_dtype(self.info, scope))
            for scope, part in parts.items()
            if self.info.record_bytes(scope)
        }
        return {name: tables[SCOPES[name]][name] for name in self.info.fields}

    def release(self) -> None:
        """Unmap the file; the next read maps it again."""
        self.__dict__.pop("columns", None)
        self.__dict__.pop("_bytes", None)

    def check(self, scope: str, first: int, count: int = 1) -> None:
        """Compare records with their check sums, each once.

        Raises:
            UserError: A record is damaged.
        """
        window_bytes, size = self._record_bytes
        offset, begin = first, 0
        if scope == "window":
            size = window_bytes
        else:
            offset, begin = first + len(self.windows), len(self.windows) * window_bytes
        if self._checked.find(0, offset, offset + count) < 0:
            return
        data = memoryview(self._bytes)  # ty: ignore[invalid-argument-type] - an array is a buffer
        for row in range(count):
            at = begin + (first + row) * size
            if zlib.crc32(data[at : at + size]) != self.crc32[offset + row]:
                key = (*self.windows, *self.frames)[offset + row]
                path = data_path(self.directory, self.number)
                raise UserError(f"{path}: the {scope} {key} is damaged", hint=REPAIR)
        self._checked[offset : offset + count] = b"\1" * count

    @cached_property
    def _record_bytes(self) -> tuple[int, int]:
        return self.info.record_bytes("window"), self.info.record_bytes("frame")

    def damage(self) -> str:
        """Compare the whole file with its SHA-256; return a complaint, empty if it is whole."""
        path = data_path(self.directory, self.number)
        return "" if sha256_file(path) == self.sha256 else f"{path} differs from its SHA-256"

    def remove(self) -> None:
        """Delete the shard, its index first."""
        remove_shard(self.directory, self.number)


def remove_shard(directory: Path, number: int) -> None:
    """Delete a shard, readable or not: the index first, so that it never lacks its records."""
    for path in (index_path(directory, number), data_path(directory, number)):
        with explained(path):
            path.unlink(missing_ok=True)


def _read_index(content: Any) -> tuple[Any, ...]:
    """Check the form of an index and return the arguments of `Shard` from `windows` on.

    Raises:
        KeyError, TypeError, ValueError, UserError: It is not one.
    """
    if not isinstance(content, dict):
        raise TypeError("no table")
    windows, frames = tuple(content["windows"]), tuple(content["frames"])
    places = [tuple(map(parse_key, keys)) for keys in (windows, frames)]
    if len(set(windows)) != len(windows) or len(set(frames)) != len(frames):
        raise ValueError("a key stands twice")
    checksums = tuple(content["crc32"])
    whole = all(type(value) is int and 0 <= value < 2**32 for value in checksums)
    if not whole or len(checksums) != len(windows) + len(frames):
        raise ValueError("the check sums do not fit the keys")
    if not isinstance(content["sha256"], str):
        raise TypeError("SHA-256 is no text")
    return windows, frames, *places, content["sha256"], checksums
