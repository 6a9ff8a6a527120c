"""Writing a dataset: `dataset.json` first, then one segment after another.

A segment's CSV file is written last, so an interrupted recording is told by its absence and never
read by half.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from loom.config import plain
from loom.errors import UserError
from loom.files import explained, write_atomic, write_json

from end2race.data.calibration import FILE as CALIBRATION_FILE
from end2race.data.calibration import Calibration, Pose, write_calibration
from end2race.data.dataset import FILE, DatasetFile
from end2race.data.images import write_image
from end2race.data.lidar_files import write_points
from end2race.data.segments import CSV_FILE


def write_info(root: Path, info: DatasetFile, camera: Calibration | None, lidar: Pose) -> None:
    """Begin a dataset: write `dataset.json` and `calibration.json`."""
    with explained(root):
        root.mkdir(parents=True, exist_ok=True)
    write_calibration(root / CALIBRATION_FILE, camera, lidar)
    write_json(root / FILE, plain(info))


class SegmentWriter:
    """Writes the frames of one segment; `close` makes it a segment.

    In a `with` block it is closed at the end, or removed again where the block fails.
    """

    def __init__(self, root: Path, split: str, name: str) -> None:
        """Make the folder.

        Raises:
            UserError: it is there already, or the disk refuses.
        """
        self.directory = root / split / name
        if self.directory.exists():
            raise UserError(
                f"{self.directory}: is there already", hint="give another folder, or remove it"
            )
        with explained(self.directory):
            for part in ("meta", "lidar", "camera"):
                (self.directory / part).mkdir(parents=True)
        self._rows: list[dict[str, object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def append(
        self,
        timestamp_ns: int,
        velocity: float,
        wheel_angle: float,
        *,
        points: np.ndarray | None = None,
        image: np.ndarray | None = None,
        target_velocity: float | None = None,
    ) -> None:
        """Write one frame.

        Args:
            timestamp_ns: Time, greater than that of the frame before.
            velocity: Speed in m/s.
            wheel_angle: In the dataset's unit, positive to the left.
            points: float32 [n, 4], x, y, z in the LiDAR's frame and intensity.
            image: uint8 [height, width, 3].
            target_velocity: Commanded speed in m/s.
        """
        row: dict[str, object] = {
            "timestamp_ns": timestamp_ns,
            "velocity": f"{velocity:.6g}",
            "wheel_angle": f"{wheel_angle:.6g}",
        }
        if target_velocity is not None:
            row["target_velocity"] = f"{target_velocity:.6g}"
        stem = f"{timestamp_ns:019d}"
        if points is not None:
            row["lidar_filepath"] = f"lidar/{stem}.bin"
            write_points(self.directory / "lidar" / f"{stem}.bin", points)
        if image is not None:
            row["image_filepath"] = f"camera/{stem}.png"
            write_image(self.directory / "camera" / f"{stem}.png", image)
        if self._rows and row.keys() != self._rows[0].keys():
            raise ValueError(f"{self.directory}: frame {len(self._rows)} has other parts")
        self._rows.append(row)

    def close(self) -> None:
        """Write the CSV file; without a frame the segment is refused when it is read."""
        stream = io.StringIO()
        columns = list(self._rows[0]) if self._rows else []
        table = csv.DictWriter(stream, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(self._rows)
        for part in ("lidar", "camera"):
            folder = self.directory / part
            if not any(folder.iterdir()):
                folder.rmdir()
        write_atomic(self.directory / CSV_FILE, stream.getvalue())
