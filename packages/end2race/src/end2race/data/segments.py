"""One segment: a drive without a break, its rows read from `meta/data.csv`."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from loom.errors import UserError
from loom.files import read_text

CSV_FILE = "meta/data.csv"
REQUIRED = ("velocity", "wheel_angle")
FILE_COLUMNS = ("lidar_filepath", "image_filepath")
OPTIONAL = ("timestamp_ns", "target_velocity")
SEGMENT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""Names of folders that make keys of windows."""

_FASTEST = 150.0  # m/s; anything above is another unit or damage

_LONGEST_NAME = 255
"""Bytes that file systems allow in one part of a path."""


@dataclass(frozen=True)
class Segment:
    """The frames of one drive, all arrays of one length n.

    Attributes:
        split: train, valid or test.
        name: the folder's name.
        directory: the folder.
        timestamp_ns: int64 [n], increasing.
        velocity: float32 [n], m/s.
        wheel_angle: float32 [n], degrees, positive to the left.
        target_velocity: float32 [n], m/s, the commanded speed; None where it was not recorded.
        lidar_files: n paths relative to the folder; empty where there is no LiDAR.
        image_files: n paths relative to the folder; None where there is no camera.
        columns: the columns of the CSV file.
        csv_sha256: digest of the CSV file as it was read.
        image_directory: what the images' paths are relative to, where that is another folder.
    """

    split: str
    name: str
    directory: Path
    timestamp_ns: np.ndarray
    velocity: np.ndarray
    wheel_angle: np.ndarray
    target_velocity: np.ndarray | None
    lidar_files: tuple[str, ...]
    image_files: tuple[str, ...] | None
    columns: tuple[str, ...] = ()
    csv_sha256: str = ""
    image_directory: Path | None = None

    def __len__(self) -> int:
        return len(self.velocity)


def read_segment(directory: Path, rate_hz: float, angles_in_radians: bool = False) -> Segment:
    """Read a segment's CSV file.

    Args:
        directory: `<root>/<split>/<name>`.
        rate_hz: Frames per second, used where nothing gives time stamps.
        angles_in_radians: Convert `wheel_angle` to degrees.

    Raises:
        UserError: a column is missing, a number is none, a path leaves the folder, or the time does
            not go forward; the message has file, line and column.
    """
    path = directory / CSV_FILE
    if not path.is_file():
        raise UserError(
            f"{directory}: no {CSV_FILE}; a recording that was interrupted has none",
            hint="remove the folder, or record the segment again",
        )
    text = read_text(path)
    columns, rows = _read_table(path, text)
    wheel_angle = _numbers(path, columns, rows, "wheel_angle")
    velocity = _numbers(path, columns, rows, "velocity")
    too_fast = np.flatnonzero(np.abs(velocity) > _FASTEST)
    if too_fast.size:
        row = int(too_fast[0])
        raise UserError(
            f"{path}: line {row + 2}: velocity {velocity[row]:g} is not a speed in m/s",
            hint="convert the column to m/s",
        )
    files = {name: _files(path, columns, rows, name) for name in FILE_COLUMNS}
    has_target = "target_velocity" in columns
    return Segment(
        split=directory.parent.name,
        name=directory.name,
        directory=directory,
        timestamp_ns=_timestamps(path, columns, rows, files["lidar_filepath"], rate_hz),
        velocity=velocity.astype(np.float32),
        wheel_angle=(np.rad2deg(wheel_angle) if angles_in_radians else wheel_angle).astype(
            np.float32
        ),
        target_velocity=_numbers(path, columns, rows, "target_velocity").astype(np.float32)
        if has_target
        else None,
        lidar_files=files["lidar_filepath"] or (),
        image_files=files["image_filepath"],
        columns=tuple(columns),
        csv_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _read_table(path: Path, text: str) -> tuple[dict[str, int], list[list[str]]]:
    """Return column -> index and the rows, all of the header's length."""
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (ValueError, csv.Error) as error:
        why = "the file is empty" if isinstance(error, ValueError) else str(error)
        raise UserError(f"{path}: {why}", hint="record the segment again") from error
    columns = {name.strip(): index for index, name in enumerate(header)}
    refuse_twice(path, [name.strip() for name in header], (*REQUIRED, *OPTIONAL, *FILE_COLUMNS))
    missing = [name for name in REQUIRED if name not in columns]
    if not any(name in columns for name in FILE_COLUMNS):
        missing.append(" or ".join(FILE_COLUMNS))
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(columns)}",
            hint="the columns are listed in docs/end2race.md, section Data",
        )
    while rows and not any(rows[-1]):
        rows.pop()
    if not rows:
        raise UserError(f"{path}: no row below the header", hint="remove the segment")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(
                f"{path}: line {number} has {len(row)} values, the header has {len(header)}",
                hint="the file was cut short or edited; restore it, or drop the line",
            )
    return columns, rows


def refuse_twice(path: Path, header: Sequence[str], read: Sequence[str]) -> None:
    """Raise a `UserError` if one of the columns that are read is there twice."""
    for name in read:
        if header.count(name) > 1:
            raise UserError(
                f"{path}: {header.count(name)} columns are called {name}",
                hint="keep the right one, or rename the others",
            )


def _numbers(path: Path, columns: dict[str, int], rows: list[list[str]], name: str) -> np.ndarray:
    """Return one column as float64 [n]."""
    index = columns[name]
    values = np.empty(len(rows))
    for number, row in enumerate(rows):
        try:
            values[number] = float(row[index])
        except ValueError:
            values[number] = math.nan
        if not math.isfinite(values[number]):
            raise UserError(
                f"{path}: line {number + 2}: {name} is {row[index]!r}, expected a finite number",
                hint="fill the value in, or drop the line",
            )
    return values


def _files(
    path: Path, columns: dict[str, int], rows: list[list[str]], name: str
) -> tuple[str, ...] | None:
    """Return one column of paths, each inside the segment's folder.

    A backslash, as recordings made on Windows have, is taken for a slash.
    """
    if name not in columns:
        return None
    found = tuple(row[columns[name]].replace("\\", "/") for row in rows)
    for number, each in enumerate(found, 2):
        parts = PurePosixPath(each)
        too_long = any(len(part.encode()) > _LONGEST_NAME for part in parts.parts)
        outside = parts.is_absolute() or ".." in parts.parts
        if not each or "\0" in each or too_long or outside:
            raise UserError(
                f"{path}: line {number}: {name} is {each[:100]!r}, expected a path inside the "
                "segment",
                hint="write it relative to the segment's folder, such as lidar/000001.bin",
            )
    return found


def _timestamps(
    path: Path,
    columns: dict[str, int],
    rows: list[list[str]],
    clouds: tuple[str, ...] | None,
    rate_hz: float,
) -> np.ndarray:
    """Take the time stamps from their column, else from the clouds' names, else from the rate."""
    texts = [row[columns["timestamp_ns"]] for row in rows] if "timestamp_ns" in columns else None
    if texts is None:
        stems = [PurePosixPath(each).stem for each in clouds or ()]
        if not stems or not all(stem.isdecimal() and len(stem) == 19 for stem in stems):
            return (np.arange(len(rows)) * (1e9 / rate_hz)).astype(np.int64)
        texts = stems
    times = []
    for number, text in enumerate(texts, 2):
        try:
            times.append(int(text))
        except ValueError:
            times.append(-1)
        if not 0 <= times[-1] < 1 << 63 or (len(times) > 1 and times[-1] <= times[-2]):
            raise UserError(
                f"{path}: line {number}: timestamp_ns {text!r} is no nanosecond count after the "
                "one above",
                hint="sort the rows by time and drop doubles",
            )
    return np.array(times, np.int64)
