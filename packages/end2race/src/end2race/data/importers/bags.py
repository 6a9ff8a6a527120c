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

import math
from array import array
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from loom.errors import UserError
from loom.files import disk_error

from end2race.data.importers.bag_messages import other_type, pixels_of, points_of
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
    """Numbers over time: times int64 [n] in their order, values [n, columns]."""

    times: np.ndarray
    values: np.ndarray

    @classmethod
    def sorted(cls, times: array[int], values: array[Any], columns: int) -> Self:
        """Return the series of values that were taken at these times, one row after another."""
        order = np.argsort(times, kind="stable")
        table = np.asarray(values).reshape(len(times), columns)
        return cls(np.asarray(times, np.int64)[order], table[order])

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

    However long it is, one cloud and one image are in memory at a time, besides the chunks of the
    file that `rosbags` has open. What grows is small: 24 bytes for a command and for an image, 16
    for a speed, the library's index (some 200 bytes for a message of a ROS 1 bag), and a row of the
    table for a frame that is written. Images are read twice: for their times, then one by one.

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
    camera = target.camera if topics.image else None
    if topics.image and camera is None:
        target.dropped["images, since no camera is calibrated (--calibration)"] += 1
    # Two readings that go on side by side need a file each.
    album = nullcontext() if camera is None else _opened(source, topics)
    with _opened(source, topics) as bag, album as second, target.segment(split, name) as writer:
        drive, odometry = _commands(bag, topics.drive), _speeds(bag, topics.odometry)
        images = None if second is None else _Images(second, str(topics.image))
        last, commanded = -1, math.nan
        for time, message in bag.messages(topics.lidar):
            command = drive.nearest(time, tolerance_ns)
            state = command if odometry is None else odometry.nearest(time, tolerance_ns)
            picture = None if images is None else images.series.nearest(time, tolerance_ns)
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
            points = points_of(message, topics.lidar)
            pixels = None
            if images is not None and picture is not None and camera is not None:
                pixels = pixels_of(images.read(picture), images.topic, camera)
            target.write(writer, time, speed, math.degrees(angle), points, pixels, float(wanted))
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
        """Yield time in nanoseconds and message of a topic, in the order of the recording."""
        for time, _, message in self.recorded(topic):
            yield time, message

    def recorded(self, topic: str, begin: int | None = None) -> Iterator[tuple[int, int, Any]]:
        """Yield the same with the time of recording between them, from such a time on."""
        connections = [each for each in self._reader.connections if each.topic == topic]
        found = self._reader.messages(connections=connections, start=begin)
        for connection, recorded, raw in found:
            message = self._reader.deserialize(raw, connection.msgtype)
            stamp = getattr(getattr(message, "header", None), "stamp", None)
            time = 0 if stamp is None else int(stamp.sec) * 10**9 + int(stamp.nanosec)
            yield (time if time > 0 else int(recorded)), int(recorded), message


class _Images:
    """The images of a topic, of which one is in memory at a time.

    Attributes:
        topic: Its name.
        series: When they were taken; the values say which one of the recording it is, and when it
            was recorded.
    """

    def __init__(self, bag: _Bag, topic: str) -> None:
        """Read through the topic for its times."""
        self._bag, self.topic = bag, topic
        times, places = array("q"), array("q")
        for number, (time, recorded, _) in enumerate(bag.recorded(topic)):
            times.append(time)
            places.extend((number, recorded))
        self.series = _Series.sorted(times, places, 2)
        self._number = -1  # of the image at hand
        self._image: Any = None
        self._following = bag.recorded(topic)

    def read(self, index: int) -> Any:
        """Return the message of an index of the series.

        Frames take images forwards, as they were recorded, so this reads on. An image that lies
        farther back, since they did not arrive in the order of their times, is looked up anew.

        Raises:
            UserError: It is not there any more.
        """
        number, begin = self.series.values[index].tolist()
        if number < self._number:
            places = self.series.values
            self._number = int(places[places[:, 1] >= begin, 0].min()) - 1
            self._following = self._bag.recorded(self.topic, begin)
        while self._number < number:
            time, _, self._image = next(self._following, (None, None, None))
            self._number += 1
            if time is None or (self._number == number and time != self.series.times[index]):
                raise UserError(
                    f"{self.topic}: its images are not read twice in the same order",
                    hint="is the recording still being written? else it is damaged: copy it again",
                )
        return self._image


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


def _commands(bag: _Bag, topic: str) -> _Series:
    """Read the commands, [n, 2]: wheel angle (rad) and speed (m/s)."""
    times, values = array("q"), array("d")
    for time, message in bag.messages(topic):
        drive = getattr(message, "drive", message)
        if not hasattr(drive, "steering_angle"):
            raise other_type(topic, message, "AckermannDriveStamped or AckermannDrive")
        times.append(time)
        values.extend((float(drive.steering_angle), float(drive.speed)))
    return _Series.sorted(times, values, 2)


def _speeds(bag: _Bag, topic: str | None) -> _Series | None:
    """Read the speeds, [n, 1] (m/s)."""
    if topic is None:
        return None
    times, values = array("q"), array("d")
    for time, message in bag.messages(topic):
        twist = getattr(getattr(message, "twist", None), "twist", None)
        if twist is None:
            raise other_type(topic, message, "Odometry")
        times.append(time)
        values.append(float(twist.linear.x))
    return _Series.sorted(times, values, 1)
