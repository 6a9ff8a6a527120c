"""A folder of clouds, KITTI's `.bin` or `.pcd`, with a table of speeds and wheel angles.

The files in the order of their names are the frames; names that differ by one number, `7.pcd` and
`10.pcd`, go by it. The table has a row for each: `velocity` (m/s), `wheel_angle` (degrees, positive
to the left) and, if it has them, `timestamp_ns` and `target_velocity` (m/s). KITTI itself records
no wheel angle, so there is always a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

import numpy as np
from loom.errors import UserError
from loom.files import explained

from end2race.data.importers.pcd import read_pcd
from end2race.data.importers.tables import read_columns
from end2race.data.importers.target import Target, points_of_bytes
from end2race.data.lidar_files import guess_num_features

_SAMPLE = 8
_NUMBERED = re.compile(r"(.*?)([0-9]+(?:\.[0-9]+)?)")


def import_clouds(
    source: Path,
    suffix: str,
    controls: Path,
    target: Target,
    split: str,
    name: str,
    rate_hz: float,
    num_features: int | None = None,
) -> None:
    """Write a folder of clouds as one segment.

    Args:
        source: The folder.
        suffix: `.bin` or `.pcd`.
        controls: The table.
        target: The dataset.
        split: Of the segment.
        name: Of the segment.
        rate_hz: Frames per second, where the table has no time stamps.
        num_features: Numbers per point of `.bin` files; None: one guess for all of them.

    Raises:
        UserError: Files and rows do not match, or one of them cannot be read.
    """
    with explained(source):
        files = in_order(path for path in source.iterdir() if path.suffix.lower() == suffix)
    if not files:
        raise UserError(f"{source} holds no {suffix} files", hint="give the folder of the clouds")
    columns = read_columns(controls, ("velocity", "wheel_angle"))
    rows = len(columns["velocity"])
    if rows != len(files):
        raise UserError(
            f"{controls} has {rows} rows, {source} has {len(files)} clouds",
            hint="one row for each cloud, in the order of the files' names",
        )
    times = columns.get("timestamp_ns", np.arange(rows) * (1e9 / rate_hz)).astype(np.int64)
    late = np.flatnonzero(np.diff(times, prepend=-1) <= 0)
    if late.size:
        raise UserError(
            f"{controls}: line {late[0] + 2}: timestamp_ns {times[late[0]]} is not after the one "
            "above",
            hint="sort rows and clouds by time and drop doubles",
        )
    if suffix == ".bin" and num_features is None:
        num_features = one_form(files)
    wanted = columns.get("target_velocity")
    with target.segment(split, name) as writer:
        for row, path in enumerate(files):
            if suffix == ".pcd":
                points = read_pcd(path)
            else:
                with explained(path):
                    points = points_of_bytes(path.read_bytes(), num_features or 4, path)
            target.write(
                writer,
                int(times[row]),
                float(columns["velocity"][row]),
                float(columns["wheel_angle"][row]),
                points,
                target_velocity=None if wanted is None else float(wanted[row]),
            )


def in_order(files: Iterable[Path]) -> list[Path]:
    """Sort files by the number that ends their names, if that is all they differ by; else by name.

    Names without leading zeros are out of order as text: 10 comes before 7.
    """
    by_name = sorted(path for path in files if not path.name.startswith("."))
    numbered = [_NUMBERED.fullmatch(path.stem) for path in by_name]
    found = [match for match in numbered if match is not None]
    if len(found) < len(by_name) or len({match[1] for match in found}) > 1:
        return by_name
    numbers = {path: Decimal(match[2]) for path, match in zip(by_name, found, strict=True)}
    return sorted(by_name, key=lambda path: numbers[path])


def one_form(files: list[Path]) -> int:
    """Decide once for all files whether a point is 4 numbers or 8.

    Raises:
        UserError: Two of them look different.
    """
    chosen = [files[int(i)] for i in np.unique(np.linspace(0, len(files) - 1, _SAMPLE).round())]
    found = {}
    for path in chosen:
        with explained(path):
            content = path.read_bytes()
        if content:
            found.setdefault(guess_num_features(content), path)
    if len(found) > 1:
        raise UserError(
            f"{found[4]} looks like 4 numbers per point, {found[8]} like 8",
            hint="import the recordings apart, each with its own --lidar-num-features",
        )
    return next(iter(found), 4)
