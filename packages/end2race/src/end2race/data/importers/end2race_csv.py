"""The CSV files of the End2Race paper: a 2-D scan and the expert's command in each row.

Columns `time`, `steer` (radians), `desired_speed` (m/s), `lidar_0` ... `lidar_N` (m). The paper
gives the network the desired speed of the row before as its speed, and so does this: the first row
has none and is left out. Beams become points at height 0; a beam that reached its limit, or that
is not positive, met nothing and becomes none.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from loom.errors import UserError
from loom.files import explained

from end2race.data.importers.tables import read_columns
from end2race.data.importers.target import Target

FIELD_OF_VIEW_RAD = 4.7
RANGE_LIMIT_M = 30.0


def import_episodes(
    source: Path, target: Target, split: str, field_of_view_rad: float, range_limit_m: float
) -> None:
    """Write a CSV file, or each one of a folder, as a segment of its own, named after the file.

    Raises:
        UserError: There is none, or one cannot be read.
    """
    with explained(source):
        files = sorted(source.glob("*.csv")) if source.is_dir() else [source]
    if not files:
        raise UserError(f"{source} holds no .csv files", hint="give the folder of the episodes")
    for path in files:
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"segment_{path.stem}")
        import_episode(path, target, split, name, field_of_view_rad, range_limit_m)


def import_episode(
    path: Path,
    target: Target,
    split: str,
    name: str,
    field_of_view_rad: float = FIELD_OF_VIEW_RAD,
    range_limit_m: float = RANGE_LIMIT_M,
) -> None:
    """Write one episode as one segment.

    Args:
        path: The CSV file.
        target: The dataset.
        split: Of the segment.
        name: Of the segment.
        field_of_view_rad: From the first beam (right) to the last one (left).
        range_limit_m: What a beam shows that met nothing.

    Raises:
        UserError: A column is missing or a number is none.
    """
    columns = read_columns(path, ("time", "steer", "desired_speed", "lidar_0"))
    beams = 0
    while f"lidar_{beams}" in columns:
        beams += 1
    named = sum(column.startswith("lidar_") for column in columns)
    if beams != named or beams < 2:
        raise UserError(
            f"{path}: lidar_{beams} is missing or not a number, but there are {named} beams",
            hint="the beams are numbered from 0 without a gap",
        )
    time = columns["time"]
    if len(time) < 2 or not (np.diff(time) > 0).all():
        raise UserError(f"{path}: `time` does not go forward", hint="sort the rows by time")
    ranges = np.stack([columns[f"lidar_{beam}"] for beam in range(beams)], axis=1)
    angles = np.linspace(-field_of_view_rad / 2, field_of_view_rad / 2, beams)
    speed = columns["desired_speed"]
    with target.segment(split, name) as writer:
        for row in range(1, len(time)):
            target.write(
                writer,
                round((time[row] - time[0]) * 1e9),
                float(speed[row - 1]),
                math.degrees(columns["steer"][row]),
                scan_points(ranges[row], angles, range_limit_m),
                target_velocity=float(speed[row]),
            )


def scan_points(
    ranges: np.ndarray,
    angles: np.ndarray,
    limit_m: float,
    nearest_m: float = 0.0,
    intensities: np.ndarray | None = None,
) -> np.ndarray:
    """Return the points float32 [n, 4] of a 2-D scan, at height 0.

    Args:
        ranges: [beams] in metres; beams that are not between `nearest_m` and `limit_m` met nothing.
        angles: [beams] in radians, positive to the left.
        limit_m: The reach.
        nearest_m: The least distance.
        intensities: [beams]; 0 if None.
    """
    with np.errstate(invalid="ignore"):
        met = (ranges > nearest_m) & (ranges < limit_m)
    points = np.zeros((int(met.sum()), 4), np.float32)
    points[:, 0] = ranges[met] * np.cos(angles[met])
    points[:, 1] = ranges[met] * np.sin(angles[met])
    if intensities is not None:
        points[:, 3] = intensities[met]
    return points
