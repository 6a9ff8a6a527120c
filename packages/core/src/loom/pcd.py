"""Point clouds in the PCD format of the Point Cloud Library, version 0.7.

The header names the fields and their types. `ascii` and `binary` hold the points one after another,
`binary_compressed` one field after another, compressed with LZF; whoever can unpack that says how.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MOST_POINTS = 20_000_000
_LONGEST_HEADER = 10_000
_TYPES = {"F": {4: "<f4", 8: "<f8"}, "I": {1: "<i1", 2: "<i2", 4: "<i4", 8: "<i8"}}
_TYPES["U"] = {size: name.replace("i", "u") for size, name in _TYPES["I"].items()}

Unpack = Callable[[np.ndarray, np.ndarray], int | np.integer]
"""Unpacks the first array of bytes into the second one and returns how many it wrote."""


class _Header(NamedTuple):
    layout: np.dtype
    points: int
    data: str


def parse_pcd(content: bytes, unpack_lzf: Unpack | None = None) -> np.ndarray:
    """Return the points of a file as a structured array; its fields have the names of the header.

    A name that is there twice, or `_` for padding, gets its number behind it.

    Args:
        content: The file's bytes.
        unpack_lzf: What unpacks `binary_compressed`; None refuses such files.

    Raises:
        ValueError: It is damaged, no PCD file, or has no x, y and z.
    """
    try:
        header, body = _header(content)
        if header.data == "ascii":
            return _ascii(header, body)
        if header.data == "binary":
            return _binary(header, body)
        if header.data == "binary_compressed" and unpack_lzf is not None:
            return _compressed(header, body, unpack_lzf)
    except (KeyError, IndexError, OverflowError, struct.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    raise ValueError(f"DATA {header.data} is not read")


def coordinates(table: np.ndarray) -> np.ndarray:
    """Return x, y and z of parsed points as float32 [n, 3]."""
    return np.stack([table[axis].astype(np.float32) for axis in "xyz"], axis=1)


def _header(content: bytes) -> tuple[_Header, bytes]:
    """Split a file after its DATA line."""
    entries: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in entries:
        end = content.find(b"\n", position)
        if end < 0 or end > _LONGEST_HEADER:
            raise ValueError("no header that ends with DATA")
        words = content[position:end].decode("latin-1").split()
        position = end + 1
        if words and not words[0].startswith("#"):
            entries[words[0]] = words[1:]
    names = entries["FIELDS"]
    sizes = [int(size) for size in entries["SIZE"]]
    counts = [int(count) for count in entries.get("COUNT", ["1"] * len(names))]
    points = int(entries["POINTS"][0])
    if not 0 <= points <= MOST_POINTS or any(not 1 <= count <= 1024 for count in counts):
        raise ValueError(f"{points} points with fields of {counts} values")
    fields = []
    for number, (name, kind, size, count) in enumerate(
        zip(names, entries["TYPE"], sizes, counts, strict=True)
    ):
        unique = name if names.index(name) == number and name != "_" else f"{name} {number}"
        fields.append((unique, _TYPES[kind][size], (count,) if count > 1 else ()))
    layout: np.dtype = np.dtype(fields)
    if any(layout[axis].subdtype for axis in "xyz"):
        raise ValueError("a coordinate of several values")
    return _Header(layout, points, entries["DATA"][0]), content[position:]


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
        raise ValueError(f"cut short: {len(body)} bytes of points, {needed} needed")
    return np.frombuffer(body, header.layout, header.points)


def _compressed(header: _Header, body: bytes, unpack_lzf: Unpack) -> np.ndarray:
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
