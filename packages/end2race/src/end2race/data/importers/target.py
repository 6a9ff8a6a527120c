"""What all importers do: join a dataset, clean clouds, count what was left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from loom.errors import UserError

from end2race.data.calibration import IDENTITY, Calibration, Pose, read_calibration
from end2race.data.dataset import (
    FILE,
    SPLITS,
    DatasetFile,
    DatasetInfo,
    read_info,
    segment_directories,
)
from end2race.data.lidar_files import looks_like_other, size_problem
from end2race.data.segments import SEGMENT_NAME
from end2race.data.writer import SegmentWriter, write_info

_COLUMNS = {4: [0, 1, 2, 3], 8: [0, 1, 2, 4]}


class Target:
    """The dataset that recordings are imported into: clouds of 4 numbers, angles in degrees.

    Attributes:
        camera: The calibrated camera; None: images are left out.
        dropped: What was left out, by reason.
        frames: Frames that were written.
    """

    def __init__(
        self,
        root: Path,
        rate_hz: float,
        source: str,
        calibration: Path | None = None,
        *,
        angles_checked: bool = False,
    ) -> None:
        """Begin a dataset, or join one.

        Args:
            root: Its folder.
            rate_hz: Frames per second.
            source: Where the recordings come from, in words.
            calibration: A `calibration.json` of camera and LiDAR.
            angles_checked: The caller vouches for the unit of small wheel angles.

        Raises:
            UserError: The dataset is there in another form, at another rate, or with another
                calibration than the one that is given.
        """
        self.root = root
        self.camera: Calibration | None = None
        lidar: Pose = IDENTITY
        if calibration is not None:
            self.camera, lidar = read_calibration(calibration)
        if (root / FILE).is_file() and segment_directories(root):  # else nothing follows from it
            info = read_info(root)
            if (info.lidar_num_features, info.units.wheel_angle) != (4, "degrees"):
                raise UserError(
                    f"{root} has {info.lidar_num_features} numbers per point and angles in "
                    f"{info.units.wheel_angle}; imports write 4 and degrees",
                    hint="import into another folder",
                )
            if info.rate_hz != rate_hz:
                raise UserError(
                    f"{root} has {info.rate_hz:g} frames per second, not {rate_hz:g}",
                    hint="say --rate-hz as it was begun, or import into another folder",
                )
            if calibration is not None and not _same(info, self.camera, lidar):
                raise UserError(
                    f"{root} was begun with another calibration than {calibration}",
                    hint="import into another folder, or leave --calibration out to keep the first",
                )
            self.camera = info.calibration
        else:
            file = DatasetFile(
                lidar_num_features=4,
                rate_hz=rate_hz,
                source=source,
                wheel_angles_checked=angles_checked,
            )
            write_info(root, file, self.camera, lidar)
        self.dropped: Counter[str] = Counter()
        self.frames = 0

    def segment(self, split: str, name: str) -> SegmentWriter:
        """Begin a segment.

        Raises:
            UserError: There is no such split, the name makes no key of a window, or it is taken.
        """
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}", hint=f"take one of {', '.join(SPLITS)}")
        if not SEGMENT_NAME.fullmatch(name):
            raise UserError(
                f"a segment named {name!r} makes no key of a window",
                hint="take at most 128 letters, digits, _, - and inner dots",
            )
        return SegmentWriter(self.root, split, name)

    def write(
        self,
        writer: SegmentWriter,
        timestamp_ns: int,
        velocity: float,
        wheel_angle_deg: float,
        points: np.ndarray,
        image: np.ndarray | None = None,
        target_velocity: float | None = None,
    ) -> None:
        """Write a frame without the points that are not finite; leave out one without points.

        Args:
            writer: Of the segment.
            timestamp_ns: Time.
            velocity: In m/s.
            wheel_angle_deg: Positive to the left.
            points: float32 [n, 4].
            image: uint8 [h, w, 3].
            target_velocity: In m/s.
        """
        finite = np.isfinite(points).all(axis=1)
        self.dropped["points that are not finite"] += int((~finite).sum())
        if not finite.any():
            self.dropped["frames without a point"] += 1
            return
        writer.append(
            timestamp_ns,
            velocity,
            wheel_angle_deg,
            points=points[finite],
            image=image,
            target_velocity=target_velocity,
        )
        self.frames += 1

    def summary(self) -> str:
        """Say what was written and what was left out."""
        left = [f"{count:,} {what}" for what, count in self.dropped.items() if count]
        return f"{self.frames:,} frames in {self.root}" + (
            f"; left out: {', '.join(left)}" if left else ""
        )


def _same(info: DatasetInfo, camera: Calibration | None, lidar: Pose) -> bool:
    """Whether a dataset's calibration is that of this camera and this LiDAR."""
    digests = [each and each.sha256 for each in (info.calibration, camera)]
    return digests[0] == digests[1] and info.lidar_sensor.numbers() == lidar.numbers()


def points_of_bytes(content: bytes, num_features: int, place: Path) -> np.ndarray:
    """Return points [n, 4] of a `.bin` file's bytes; values may be anything.

    Raises:
        UserError: The file is cut short, or has the other number of values per point.
    """
    problem = size_problem(len(content), num_features) if content else ""
    if problem:
        raise UserError(
            f"{place}: {problem}",
            hint="copy the file again, or name the right --lidar-num-features",
        )
    numbers = np.frombuffer(content, "<f4")
    if len(numbers) % 8 == 0:
        pairs = numbers.reshape(-1, 8)  # two points of 4 or one of 8, whichever it is
        finite = pairs[np.isfinite(pairs[:, :4]).all(axis=1)]
        if other := looks_like_other(finite.reshape(-1, num_features)):
            raise UserError(
                f"{place}: taken for {num_features} numbers per point, but {other}",
                hint="import the recordings apart, each with its own --lidar-num-features",
            )
    return numbers.reshape(-1, num_features)[:, _COLUMNS[num_features]]
