"""ROS 1 bags, ROS 2 bags and MCAP files, read without ROS by the library `rosbags`.

Each LiDAR message becomes a frame with the command, the odometry and the image nearest to it in
time; a frame of which one is farther away than the tolerance is left out and counted. Time is that
of the message's header where it has one, else that of the recording.

| topic | message |
|---|---|
| LiDAR | sensor_msgs PointCloud2 or LaserScan |
| drive | ackermann_msgs AckermannDriveStamped or AckermannDrive (steering in radians) |
| odometry | nav_msgs Odometry; without it the speed is the command of the frame before |
| image | sensor_msgs CompressedImage or Image (rgb8, bgr8, mono8) |
"""

from __future__ import annotations

import io
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loom.errors import UserError
from loom.files import disk_error
from PIL import Image

from end2race.data.importers.end2race_csv import scan_points
from end2race.data.importers.target import Target

_ACKERMANN = """
std_msgs/Header header
AckermannDrive drive
================================================================================
MSG: ackermann_msgs/AckermannDrive
float32 steering_angle
float32 steering_angle_velocity
float32 speed
float32 acceleration
float32 jerk
"""
_POINT_TYPES = dict(enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"), 1))
_CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}


@dataclass(frozen=True)
class Topics:
    """Names of the topics; None is not read."""

    lidar: str
    drive: str
    odometry: str | None = None
    image: str | None = None

    def named(self) -> list[str]:
        """Return those that are read."""
        return [name for name in (self.lidar, self.drive, self.odometry, self.image) if name]


@dataclass(frozen=True)
class _Series:
    """Values over time."""

    times: np.ndarray
    values: np.ndarray

    def nearest(self, time: int, tolerance_ns: int) -> int | None:
        """Return the index of the value nearest in time; None if it is too far away."""
        after = int(np.searchsorted(self.times, time))
        around = [i for i in (after - 1, after) if 0 <= i < len(self.times)]
        best = min(around, key=lambda i: abs(int(self.times[i]) - time), default=None)
        near = best is not None and abs(int(self.times[best]) - time) <= tolerance_ns
        return best if near else None


def import_bag(
    source: Path,
    topics: Topics,
    target: Target,
    split: str,
    name: str,
    tolerance_ms: float = 50.0,
) -> None:
    """Write a recording as one segment.

    Args:
        source: A `.bag` or `.mcap` file, or the folder of a ROS 2 bag.
        topics: What to read.
        target: The dataset; images are taken over if it has a camera.
        split: Of the segment.
        name: Of the segment.
        tolerance_ms: Greatest distance in time of what belongs together.

    Raises:
        UserError: The recording is damaged, a topic is missing or of another type, or no frame has
            all its parts.
    """
    tolerance_ns = round(tolerance_ms * 1e6)
    with _opened(source, topics) as bag, target.segment(split, name) as writer:
        drive, odometry, images = _controls(bag, topics, target)
        last, commanded = -1, math.nan
        for time, message in bag.messages(topics.lidar):
            command = drive.nearest(time, tolerance_ns)
            state = command if odometry is None else odometry.nearest(time, tolerance_ns)
            picture = None if images is None else images.nearest(time, tolerance_ns)
            unseen = images is not None and picture is None
            if command is None or state is None or unseen:
                target.dropped[f"frames without a partner within {tolerance_ms:g} ms"] += 1
                continue
            if time <= last:
                target.dropped["frames that go back in time"] += 1
                continue
            angle, wanted = drive.values[command]
            # Commands may come at 100 Hz: the message before is nearly the label itself.
            speed = commanded if odometry is None else float(odometry.values[state][0])
            commanded = float(wanted)
            if not np.isfinite((angle, wanted, speed)).all():
                target.dropped["frames whose command or speed is not known"] += 1
                continue
            target.write(
                writer,
                time,
                speed,
                math.degrees(angle),
                _points(message, topics.lidar),
                _image(images.values[picture], target, topics) if images is not None else None,
                float(wanted),
            )
            last = time
        if not target.frames:
            raise UserError(
                f"{source}: no frame has all its parts: {target.summary()}",
                hint="compare the topics with `rosbags` or `ros2 bag info`, or raise --sync-tol-ms",
            )


class _Bag:
    """An opened recording."""

    def __init__(self, reader: Any, source: Path) -> None:
        self._reader, self.source = reader, source

    def messages(self, topic: str) -> Iterator[tuple[int, Any]]:
        """Yield time in nanoseconds and message of a topic."""
        connections = [each for each in self._reader.connections if each.topic == topic]
        for connection, recorded, raw in self._reader.messages(connections=connections):
            message = self._reader.deserialize(raw, connection.msgtype)
            stamp = getattr(getattr(message, "header", None), "stamp", None)
            time = 0 if stamp is None else int(stamp.sec) * 10**9 + int(stamp.nanosec)
            yield (time if time > 0 else int(recorded)), message


@contextmanager
def _opened(source: Path, topics: Topics) -> Generator[_Bag]:
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError as error:
        raise UserError(
            "rosbags is not installed, which reads recordings",
            hint="uv pip install 'end2race[ros]'",
        ) from error
    if not source.exists():
        raise UserError(f"{source} does not exist", hint="give a .bag, a .mcap or a bag's folder")
    types = get_typestore(Stores.ROS2_HUMBLE)
    types.register(get_types_from_msg(_ACKERMANN, "ackermann_msgs/msg/AckermannDriveStamped"))
    try:
        with AnyReader([source], default_typestore=types) as reader:
            missing = [name for name in topics.named() if name not in reader.topics]
            if missing:
                known = ", ".join(
                    f"{topic} ({info.msgtype})" for topic, info in sorted(reader.topics.items())
                )
                raise UserError(
                    f"{source}: no topic {', '.join(missing)}; it has {known or 'none'}",
                    hint="name the topics with --lidar-topic, --drive-topic and so on",
                )
            yield _Bag(reader, source)
    except UserError:
        raise
    except Exception as error:  # whatever the library says about a damaged recording
        if isinstance(error, OSError) and disk_error(error) is not None:
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{source}: cannot be read as a recording: {type(error).__name__}: {reason}",
            hint="copy it again; `rosbags-convert` or `mcap recover` mend some recordings",
        ) from error


def _controls(
    bag: _Bag, topics: Topics, target: Target
) -> tuple[_Series, _Series | None, _Series | None]:
    """Read commands [n, 2] (rad, m/s), speeds [n, 1] (m/s) and undecoded images."""
    commands = []
    for time, message in bag.messages(topics.drive):
        drive = getattr(message, "drive", message)
        if not hasattr(drive, "steering_angle"):
            raise _other_type(topics.drive, message, "AckermannDriveStamped or AckermannDrive")
        commands.append((time, (float(drive.steering_angle), float(drive.speed))))
    speeds = []
    for time, message in bag.messages(topics.odometry) if topics.odometry else ():
        if not hasattr(message, "twist"):
            raise _other_type(str(topics.odometry), message, "Odometry")
        speeds.append((time, (float(message.twist.twist.linear.x),)))
    images = []
    if topics.image and target.camera is None:
        target.dropped["images, since no camera is calibrated (--calibration)"] += 1
    elif topics.image:
        images = list(bag.messages(topics.image))
    with_images = bool(topics.image) and target.camera is not None
    return (
        _series(commands),
        _series(speeds) if topics.odometry else None,
        _series(images) if with_images else None,
    )


def _series(rows: Sequence[tuple[int, Any]]) -> _Series:
    ordered = sorted(rows, key=lambda row: row[0])
    values = np.empty(len(ordered), object)
    values[:] = [value for _, value in ordered]
    return _Series(np.array([time for time, _ in ordered], np.int64), values)


def _other_type(topic: str, message: Any, expected: str) -> UserError:
    return UserError(
        f"{topic} carries {type(message).__name__}, expected {expected}",
        hint="name the right topic",
    )


def _points(message: Any, topic: str) -> np.ndarray:
    """Return the points float32 [n, 4] of a PointCloud2 or a LaserScan."""
    if hasattr(message, "ranges"):
        ranges = np.asarray(message.ranges, np.float64)
        angles = message.angle_min + message.angle_increment * np.arange(len(ranges))
        strengths = np.asarray(message.intensities, np.float64)
        return scan_points(
            ranges,
            angles,
            float(message.range_max),
            float(message.range_min),
            strengths if len(strengths) == len(ranges) else None,
        )
    if not hasattr(message, "point_step"):
        raise _other_type(topic, message, "PointCloud2 or LaserScan")
    fields = {field.name: field for field in message.fields}
    rows, columns = int(message.height), int(message.width)
    step, row_step = int(message.point_step), int(message.row_step)
    data = np.asarray(message.data, np.uint8)
    fits = (
        all(axis in fields and fields[axis].datatype in _POINT_TYPES for axis in "xyz")
        and step * columns <= row_step
        and row_step * rows <= len(data)
    )
    order = ">" if message.is_bigendian else "<"
    chosen = [fields[name] for name in ("x", "y", "z", "intensity") if name in fields]
    kinds = [np.dtype(order + _POINT_TYPES.get(each.datatype, "u1")) for each in chosen]
    ends = [each.offset + kind.itemsize for each, kind in zip(chosen, kinds, strict=True)]
    if not fits or any(end > step for end in ends):
        raise UserError(
            f"{topic}: a cloud of {rows} x {columns} points of {step} bytes does not fit its "
            f"{len(data)} bytes or has no x, y, z",
            hint="the recording is damaged, or of another kind of cloud",
        )
    table = data[: rows * row_step].reshape(rows, row_step)[:, : columns * step]
    table = table.reshape(-1, step)
    points = np.zeros((len(table), 4), np.float32)
    for column, (each, kind) in enumerate(zip(chosen, kinds, strict=True)):
        part = np.ascontiguousarray(table[:, each.offset : each.offset + kind.itemsize])
        points[:, column] = part.view(kind)[:, 0]
    return points


def _image(message: Any, target: Target, topics: Topics) -> np.ndarray:
    """Return the picture uint8 [h, w, 3] of a CompressedImage or an Image."""
    data = np.asarray(message.data, np.uint8)
    camera = target.camera
    if hasattr(message, "format"):
        try:
            with Image.open(io.BytesIO(data.tobytes())) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{topics.image}: no picture that can be read ({error})",
                hint="the recording is damaged",
            ) from error
    else:
        channels = _CHANNELS.get(getattr(message, "encoding", ""))
        if channels is None:
            raise _other_type(str(topics.image), message, f"an image of {', '.join(_CHANNELS)}")
        height, width, step = int(message.height), int(message.width), int(message.step)
        if step < width * channels or len(data) < height * step:
            raise UserError(f"{topics.image}: a picture that is cut short", hint="copy it again")
        rows = data[: height * step].reshape(height, step)[:, : width * channels]
        pixels = rows.reshape(height, width, channels)
        pixels = pixels[..., ::-1] if message.encoding == "bgr8" else pixels
        pixels = np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3)))
    if camera is not None and pixels.shape[:2] != (camera.height, camera.width):
        raise UserError(
            f"{topics.image}: {pixels.shape[1]} x {pixels.shape[0]} pixels, the calibration says "
            f"{camera.width} x {camera.height}",
            hint="the camera's intrinsic holds for one size only",
        )
    return pixels
