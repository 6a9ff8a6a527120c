"""A dataset on disk: splits of segments, each one drive with its frames in order.

    <root>/dataset.json                     units, form of the LiDAR files, rate, columns
    <root>/calibration.json                 poses and camera
    <root>/{train,valid,test}/segment_0001/meta/data.csv
                                           /lidar/*.bin
                                           /camera/*.png

A row of `data.csv` is one frame: `velocity` (m/s), `wheel_angle` (positive to the left),
`lidar_filepath` and, where there are, `timestamp_ns`, `target_velocity` (m/s), `image_filepath`;
paths are relative to the segment. Everything that can be known without decoding the frames is
checked when the dataset is opened, so that no training ends hours later at a missing file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from loom.config import Config
from loom.errors import UserError
from loom.files import read_json

from end2race.data.calibration import FILE as CALIBRATION_FILE
from end2race.data.calibration import IDENTITY, Calibration, Pose, read_calibration
from end2race.data.lidar_files import size_problem
from end2race.data.segments import CSV_FILE, Segment, read_segment

FILE = "dataset.json"
SPLITS = ("train", "valid", "test")
FORMAT_VERSION = 1

_FEWEST_FRAMES = 100  # below that, small wheel angles prove nothing about their unit
_SMALL_ANGLE = 1.0


class Units(Config):
    """The units of the columns; angles are converted to degrees when they are read."""

    velocity: Literal["m/s"] = "m/s"
    wheel_angle: Literal["degrees", "radians"] = "degrees"


class DatasetFile(Config):
    """The content of `dataset.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    units: Units = Units()
    lidar_num_features: Literal[4, 8]
    rate_hz: float = pydantic.Field(10.0, gt=0, le=1000)
    columns: tuple[str, ...] = ()
    wheel_angles_checked: bool = False
    source: str = ""
    lidar_beams: int | None = pydantic.Field(None, ge=1)


@dataclass(frozen=True)
class DatasetInfo:
    """What holds for a whole dataset.

    Attributes:
        format_version: version of the layout.
        units: units of the columns on disk.
        lidar_num_features: numbers per point in the `.bin` files, 4 or 8.
        lidar_sensor: pose of the LiDAR in the ego frame.
        calibration: the front camera, or None where there is none.
        rate_hz: frames per second.
        columns: what the CSV files are expected to have; empty where it is not declared.
        wheel_angles_checked: the owner has confirmed that the unit of small angles is right.
        source: where the data comes from, in words.
        lidar_beams: beams of the LiDAR one above the other, or None where it is not declared.
    """

    format_version: int
    units: Units
    lidar_num_features: int
    lidar_sensor: Pose
    calibration: Calibration | None
    rate_hz: float
    columns: tuple[str, ...]
    wheel_angles_checked: bool = False
    source: str = ""
    lidar_beams: int | None = None


@dataclass(frozen=True)
class Dataset:
    """An open dataset: its facts and its segments, in the order of splits and names."""

    root: Path
    info: DatasetInfo
    segments: tuple[Segment, ...]

    def of_split(self, split: str) -> tuple[int, ...]:
        """Return the indices of a split's segments."""
        return tuple(i for i, segment in enumerate(self.segments) if segment.split == split)

    def fingerprint(self, split: str) -> str:
        """Return a SHA-256 of a split: its CSV files, how its files are read, the LiDAR's pose.

        The clouds and images themselves are not read; a changed recording changes the CSV.
        """
        facts = [
            self.info.lidar_num_features,
            self.info.units.wheel_angle,
            self.info.lidar_sensor.numbers(),
            [[s.name, s.csv_sha256] for s in self.segments if s.split == split],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def open_dataset(root: Path, splits: Sequence[str] = SPLITS) -> Dataset:
    """Open a dataset and check everything that needs no decoding.

    Args:
        root: The folder with `dataset.json`.
        splits: The splits to read; one that does not exist is empty.

    Raises:
        UserError: the first problem that was found, with its file and place.
    """
    root = Path(root)
    info = read_info(root)
    segments = []
    for directory in segment_directories(root, splits):
        segment = read_segment(directory, info.rate_hz, info.units.wheel_angle == "radians")
        for problem in segment_problems(segment, info):
            raise problem
        segments.append(segment)
    if not segments:
        raise UserError(
            f"{root}: no segment in {', '.join(splits)}",
            hint=f"a segment is a folder like {root.name}/train/segment_0001 with {CSV_FILE}",
        )
    dataset = Dataset(root, info, tuple(segments))
    for problem in unit_problems(dataset):
        raise problem
    return dataset


def segment_directories(root: Path, splits: Sequence[str] = SPLITS) -> list[Path]:
    """Return the folders of the segments, by split and name."""
    return [
        directory
        for split in splits
        if (root / split).is_dir()
        for directory in sorted((root / split).iterdir())
        if directory.is_dir() and not directory.name.startswith(".")
    ]


def read_info(root: Path) -> DatasetInfo:
    """Read `dataset.json` and the calibration beside it."""
    path = Path(root) / FILE
    if not path.is_file():
        raise UserError(
            f"{root}: no {FILE}, so nothing says how its files are to be read",
            hint="`end2race import` writes it for recordings in other layouts; "
            "`end2race sim-collect` makes a dataset",
        )
    try:
        read = DatasetFile.model_validate_json(json.dumps(read_json(path)))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: {place}: {first['msg'].lower()}",
            hint="the keys and their values are in docs/end2race.md, section Data",
        ) from error
    calibration, lidar_sensor = None, IDENTITY
    if (path.parent / CALIBRATION_FILE).is_file():
        calibration, lidar_sensor = read_calibration(path.parent / CALIBRATION_FILE)
    return DatasetInfo(
        read.format_version,
        read.units,
        read.lidar_num_features,
        lidar_sensor,
        calibration,
        read.rate_hz,
        read.columns,
        read.wheel_angles_checked,
        read.source,
        read.lidar_beams,
    )


def segment_problems(segment: Segment, info: DatasetInfo) -> Iterator[UserError]:
    """Find what is wrong with a segment's files, without decoding them."""
    path = segment.directory / CSV_FILE
    missing = [column for column in info.columns if column not in segment.columns]
    if missing:
        yield UserError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(segment.columns)}",
            hint=f"add the column, or take it out of `columns` in {FILE}",
        )
    for row, name in enumerate(segment.lidar_files):
        cloud = segment.directory / name
        if not cloud.is_file():
            yield _missing(path, row, "lidar_filepath", name)
            continue
        problem = size_problem(cloud.stat().st_size, info.lidar_num_features)
        if problem:
            yield UserError(
                f"{cloud}: {problem} ({path.name}, line {row + 2})",
                hint="the recording or the copy was cut short: copy the file again, or drop "
                "its row",
            )
    for row, name in enumerate(segment.image_files or ()):
        if not (segment.directory / name).is_file():
            yield _missing(path, row, "image_filepath", name)


def unit_problems(dataset: Dataset) -> Iterator[UserError]:
    """Find wheel angles whose size contradicts the unit that is declared."""
    angles = np.concatenate([segment.wheel_angle for segment in dataset.segments])
    unit = dataset.info.units.wheel_angle
    largest = float(np.abs(angles).max(initial=0.0))
    path = dataset.root / FILE
    if unit == "radians" and largest > math.degrees(math.pi):
        yield UserError(
            f"{path}: wheel_angle is declared in radians, but reaches "
            f"{math.radians(largest):.4g}, more than half a turn",
            hint='write "units": {"wheel_angle": "degrees"}',
        )
    suspicious = len(angles) >= _FEWEST_FRAMES and 0 < largest < _SMALL_ANGLE
    if unit == "degrees" and suspicious and not dataset.info.wheel_angles_checked:
        yield UserError(
            f"{path}: wheel_angle is declared in degrees, but never exceeds {largest:.4g} in "
            f"{len(angles):,} frames, which looks like radians",
            hint='write "units": {"wheel_angle": "radians"}; if the car really drove that '
            'straight, "wheel_angles_checked": true',
        )


def _missing(path: Path, row: int, column: str, name: str) -> UserError:
    return UserError(
        f"{path}: line {row + 2}: {column} {name} is not there",
        hint="copy the file, or drop the row",
    )
