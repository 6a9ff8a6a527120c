"""LiDAR point clouds in the PCD format of the Point Cloud Library (version 0.7), ASCII or binary.

OPV2V's clouds are written by Open3D with the fields `x y z rgb`, where the colour holds the
intensity. Only the coordinates are read; points that are not finite are dropped.
"""

from pathlib import Path

import numpy as np
from loom.files import explained

from coopcyl.data.errors import DataError
from coopcyl.data.images import read_bytes

_MAX_POINTS = 10_000_000
_TYPES = {"F": {4: "<f4", 8: "<f8"}, "I": {1: "<i1", 2: "<i2", 4: "<i4", 8: "<i8"}}
_TYPES["U"] = {size: name.replace("i", "u") for size, name in _TYPES["I"].items()}


def read_pcd(path: Path) -> np.ndarray:
    """Read the points `(n, 3)` float32 in the LiDAR's frame (Unreal axes)."""
    data = read_bytes(path, "point cloud")
    header, body = _header(data, path)
    names, count = header["FIELDS"], _count(header, path)
    try:
        columns = [names.index(axis) for axis in "xyz"]
        sizes = [int(size) for size in header["SIZE"]]
        repeats = [int(n) for n in header.get("COUNT", ["1"] * len(names))]
        types = [_TYPES[t][s] for t, s in zip(header["TYPE"], sizes, strict=True)]
        if repeats != [1] * len(names) or len(types) != len(names):
            raise ValueError("fields of more than one value")
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{path}: fields {' '.join(names)} cannot be read: {error}",
            hint="write the cloud with the fields x y z and any scalars",
        ) from error
    kind = header["DATA"][0] if header["DATA"] else ""
    if kind == "ascii":
        points = _ascii(body, len(names), columns, count, path)
    elif kind == "binary":
        points = _binary(body, types, columns, count, path)
    else:
        raise DataError(
            f"{path}: DATA {kind or 'nothing'} is not read",
            hint="convert it: pcl_convert_pcd_ascii_binary IN OUT 1",
        )
    return points[np.isfinite(points).all(axis=-1)]


def write_pcd(path: Path, points: np.ndarray) -> None:
    """Write points `(n, 3)` as binary float32 with the field `rgb` that Open3D expects."""
    n = len(points)
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z rgb\n"
        "SIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        f"WIDTH {n}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA binary\n"
    )
    table = np.zeros((n, 4), "<f4")
    table[:, :3] = points
    with explained(path):
        path.write_bytes(header.encode() + table.tobytes())


def _header(data: bytes, path: Path) -> tuple[dict[str, list[str]], bytes]:
    """Split the file after its DATA line."""
    entries: dict[str, list[str]] = {}
    position = 0
    for _ in range(64):
        end = data.find(b"\n", position)
        if end < 0:
            break
        words = data[position:end].decode("latin-1").split()
        position = end + 1
        if words and not words[0].startswith("#"):
            entries[words[0]] = words[1:]
        if words and words[0] == "DATA":
            missing = {"FIELDS", "SIZE", "TYPE", "POINTS"} - entries.keys()
            if not missing:
                return entries, data[position:]
            break
    raise DataError(
        f"{path}: no header of a PCD file (FIELDS, SIZE, TYPE, POINTS, DATA)",
        hint="the file is damaged or of another format",
    )


def _count(header: dict[str, list[str]], path: Path) -> int:
    text = " ".join(header["POINTS"])
    if not text.isascii() or not text.isdigit() or int(text[:12]) > _MAX_POINTS:
        raise DataError(
            f"{path}: POINTS {text[:20]!r}, expected 0 to {_MAX_POINTS}", hint="copy the file again"
        )
    return int(text)


def _binary(
    body: bytes, types: list[str], columns: list[int], count: int, path: Path
) -> np.ndarray:
    sizes = [np.dtype(name).itemsize for name in types]
    if len(body) < sum(sizes) * count:
        raise DataError(
            f"{path}: cut short: {len(body)} bytes of points, {sum(sizes) * count} needed",
            hint="copy the file again",
        )
    table = np.frombuffer(body, np.uint8, sum(sizes) * count).reshape(count, sum(sizes))
    points = np.empty((count, len(columns)), np.float32)
    for position, i in enumerate(columns):
        begin = sum(sizes[:i])
        field = np.ascontiguousarray(table[:, begin : begin + sizes[i]])
        points[:, position] = field.view(types[i])[:, 0]
    return points


def _ascii(body: bytes, fields: int, columns: list[int], count: int, path: Path) -> np.ndarray:
    words = body.split()
    if len(words) < fields * count:
        raise DataError(
            f"{path}: cut short: {len(words) // fields} of {count} points",
            hint="copy the file again",
        )
    table = np.array(words[: fields * count]).reshape(count, fields)[:, columns]
    try:
        return table.astype(np.float32)
    except ValueError as error:
        raise DataError(f"{path}: {error}", hint="copy the file again") from error
