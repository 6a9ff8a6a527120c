"""Point clouds in the PCD format of the Point Cloud Library: ascii, binary, binary_compressed.

The header names the fields and their types; `binary` holds the points one after another,
`binary_compressed` one field after another, compressed with LZF.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from loom.errors import UserError
from loom.files import explained

_MOST_POINTS = 20_000_000
_KINDS = {"F": {4: "<f4", 8: "<f8"}, "I": {1: "<i1", 2: "<i2", 4: "<i4", 8: "<i8"}}
_KINDS["U"] = {size: name.replace("i", "u") for size, name in _KINDS["I"].items()}
_INTENSITY = ("intensity", "i", "reflectivity")


class _Header(NamedTuple):
    names: tuple[str, ...]
    layout: np.dtype
    points: int
    data: str


def read_pcd(path: Path) -> np.ndarray:
    """Read points float32 [n, 4]: x, y, z, intensity (0 where the file has none).

    Raises:
        UserError: The file is damaged, or has no x, y and z.
    """
    with explained(path):
        content = path.read_bytes()
    try:
        header, body = _header(content)
        table = _READERS[header.data](header, body)
        columns = [table[axis].astype(np.float32) for axis in "xyz"]
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise UserError(
            f"{path}: no point cloud that can be read ({error})",
            hint="PCD files of version 0.7 with the fields x y z are read; copy the file again",
        ) from error
    named = [name for name in _INTENSITY if name in header.names]
    intensity = table[named[0]].astype(np.float32) if named else np.zeros_like(columns[0])
    return np.stack([*columns, intensity], axis=1)


def _header(content: bytes) -> tuple[_Header, bytes]:
    """Split a file after its DATA line."""
    entries: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in entries:
        end = content.find(b"\n", position)
        if end < 0 or end > 10_000:
            raise ValueError("no header that ends with DATA")
        words = content[position:end].decode("latin-1").split()
        position = end + 1
        if words and not words[0].startswith("#"):
            entries[words[0]] = words[1:]
    names = entries["FIELDS"]
    sizes = [int(size) for size in entries["SIZE"]]
    counts = [int(count) for count in entries.get("COUNT", ["1"] * len(names))]
    points = int(entries["POINTS"][0])
    if not 0 <= points <= _MOST_POINTS or any(not 1 <= count <= 1024 for count in counts):
        raise ValueError(f"{points} points with fields of {counts} values")
    fields = []
    for number, (name, kind, size, count) in enumerate(
        zip(names, entries["TYPE"], sizes, counts, strict=True)
    ):
        unique = name if names.index(name) == number and name != "_" else f"{name} {number}"
        fields.append((unique, _KINDS[kind][size], (count,) if count > 1 else ()))
    layout: np.dtype = np.dtype(fields)
    if any(layout[axis].subdtype for axis in "xyz"):
        raise ValueError("a coordinate of several values")
    return _Header(tuple(names), layout, points, entries["DATA"][0]), content[position:]


def _ascii(header: _Header, body: bytes) -> np.ndarray:
    words = body.split()
    names = header.layout.names or ()
    widths = [int(np.prod(header.layout[name].shape, dtype=int)) for name in names]
    width = sum(widths)
    if len(words) != width * header.points:
        raise ValueError(f"{len(words)} numbers, {header.points} points need {width} each")
    values = np.array(words).reshape(header.points, width).astype(np.float64)
    table = np.zeros(header.points, header.layout)
    begin = 0
    for name, count in zip(names, widths, strict=True):
        kind = header.layout[name].base
        part = values[:, begin : begin + count].reshape(table[name].shape)
        table[name] = part if kind.kind == "f" else np.nan_to_num(part)
        begin += count
    return table


def _binary(header: _Header, body: bytes) -> np.ndarray:
    needed = header.layout.itemsize * header.points
    if len(body) < needed:
        raise ValueError(f"{len(body)} bytes of points, {needed} needed")
    return np.frombuffer(body, header.layout, header.points)


def _compressed(header: _Header, body: bytes) -> np.ndarray:
    packed, size = struct.unpack_from("<II", body)
    needed = header.layout.itemsize * header.points
    if size != needed or len(body) < 8 + packed:
        raise ValueError(f"{len(body) - 8} of {packed} bytes, for {size} of {needed}")
    data = np.empty(size, np.uint8)
    if unpack_lzf(np.frombuffer(body, np.uint8, packed, 8), data) != size:
        raise ValueError("damaged compression")
    table = np.empty(header.points, header.layout)
    begin = 0
    for name in header.layout.names or ():
        field = header.layout[name]
        end = begin + field.itemsize * header.points
        table[name] = data[begin:end].view(field.base).reshape(table[name].shape)
        begin = end
    return table


_READERS = {"ascii": _ascii, "binary": _binary, "binary_compressed": _compressed}


@numba.njit(cache=True)
def unpack_lzf(packed: np.ndarray, out: np.ndarray) -> np.int64:
    """Unpack LZF (M. Lehmann's liblzf) and return the bytes written; -1 if it is damaged.

    A control byte below 32 is followed by so many literal bytes and one more. Otherwise its upper
    three bits are a length (7: one more byte follows), its lower five and the next byte a distance
    back into what has been written.
    """
    position = written = np.int64(0)
    while position < packed.size:
        control = np.int64(packed[position])
        position += 1
        if control < 32:
            count = control + 1
            if position + count > packed.size or written + count > out.size:
                return np.int64(-1)
            out[written : written + count] = packed[position : position + count]
            position += count
            written += count
            continue
        count = control >> 5
        if count == 7:
            if position >= packed.size:
                return np.int64(-1)
            count += np.int64(packed[position])
            position += 1
        if position >= packed.size:
            return np.int64(-1)
        source = written - ((control & 31) << 8) - np.int64(packed[position]) - 1
        position += 1
        count += 2
        if source < 0 or written + count > out.size:
            return np.int64(-1)
        for step in range(count):  # the source may overlap what is being written
            out[written + step] = out[source + step]
        written += count
    return written
