"""Recordings of ROS: written with `rosbags`, read back as a dataset."""

from __future__ import annotations

import gc
import io
import tracemalloc

import numpy as np
import pytest
from end2race.cli import app
from end2race.data.calibration import IDENTITY, level_camera, write_calibration
from end2race.data.dataset import open_dataset
from end2race.data.images import read_image
from end2race.data.importers import bags
from end2race.data.importers.target import Target
from end2race.data.lidar_files import read_points
from loom.errors import UserError
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("rosbags")
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

KINDS = ("ros1", "ros2", "mcap")
FRAMES, PERIOD = 6, 10**8
BEGIN = 1_700_000_000 * 10**9


class Recording:
    """Writes a car that drives for half a second, or for so many frames."""

    def __init__(self, kind, frames=FRAMES, size=(8, 16)):
        self.kind, self.frames = kind, frames
        self.store = get_typestore(Stores.ROS1_NOETIC if kind == "ros1" else Stores.ROS2_HUMBLE)
        name = "ackermann_msgs/msg/AckermannDriveStamped"
        self.store.register(get_types_from_msg(bags._ACKERMANN, name))
        self.rng = np.random.default_rng(0)
        self.clouds = [self.rng.uniform(-9, 9, (12, 4)).astype(np.float32) for _ in range(frames)]
        self.pictures = self.rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8)

    def type(self, name):
        return self.store.types[name]

    def header(self, time, frame="car"):
        stamp = self.type("builtin_interfaces/msg/Time")(time // 10**9, time % 10**9)
        given = {"seq": 0} if self.kind == "ros1" else {}
        return self.type("std_msgs/msg/Header")(stamp=stamp, frame_id=frame, **given)

    def cloud(self, time, points, padding=0):
        field = self.type("sensor_msgs/msg/PointField")
        names = ("x", "y", "z", "intensity")
        step = 20
        rows = np.zeros((len(points), step), np.uint8)
        places = dict(zip(names, (0, 4, 8, 16), strict=True))
        for column, name in enumerate(names):
            rows[:, places[name] : places[name] + 4] = (
                np.ascontiguousarray(points[:, column]).view(np.uint8).reshape(-1, 4)
            )
        # Two rows of points, each with bytes at its end that are no point.
        rows = rows.reshape(2, -1)
        rows = np.concatenate([rows, np.full((2, padding), 255, np.uint8)], axis=1)
        return self.type("sensor_msgs/msg/PointCloud2")(
            header=self.header(time),
            height=2,
            width=len(points) // 2,
            fields=[field(n, places[n], 7, 1) for n in names],
            is_bigendian=False,
            point_step=step,
            row_step=rows.shape[1],
            data=rows.ravel(),
            is_dense=True,
        )

    def scan(self, time, ranges):
        return self.type("sensor_msgs/msg/LaserScan")(
            header=self.header(time),
            angle_min=-1.0,
            angle_max=1.0,
            angle_increment=1.0,
            time_increment=0.0,
            scan_time=0.1,
            range_min=0.1,
            range_max=10.0,
            ranges=np.array(ranges, np.float32),
            intensities=np.array([], np.float32),
        )

    def drive(self, time, angle, speed):
        drive = self.type("ackermann_msgs/msg/AckermannDrive")(angle, 0.0, speed, 0.0, 0.0)
        return self.type("ackermann_msgs/msg/AckermannDriveStamped")(self.header(time), drive)

    def odometry(self, time, speed):
        vector = self.type("geometry_msgs/msg/Vector3")
        twist = self.type("geometry_msgs/msg/Twist")(vector(speed, 0.0, 0.0), vector(0.0, 0.0, 0.0))
        covariance = np.zeros(36)
        point = self.type("geometry_msgs/msg/Point")(0.0, 0.0, 0.0)
        turn = self.type("geometry_msgs/msg/Quaternion")(0.0, 0.0, 0.0, 1.0)
        pose = self.type("geometry_msgs/msg/Pose")(point, turn)
        return self.type("nav_msgs/msg/Odometry")(
            self.header(time),
            "base",
            self.type("geometry_msgs/msg/PoseWithCovariance")(pose, covariance),
            self.type("geometry_msgs/msg/TwistWithCovariance")(twist, covariance),
        )

    def compressed(self, time, picture):
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, format="PNG")
        data = np.frombuffer(stream.getvalue(), np.uint8)
        return self.type("sensor_msgs/msg/CompressedImage")(self.header(time), "png", data)

    def raw(self, time, picture):
        height, width = picture.shape[:2]
        rows = np.ascontiguousarray(picture[..., ::-1]).reshape(height, -1)
        rows = np.concatenate([rows, np.zeros((height, 3), np.uint8)], axis=1)
        return self.type("sensor_msgs/msg/Image")(
            self.header(time), height, width, "bgr8", 0, width * 3 + 3, rows.ravel()
        )

    def messages(self):
        for i in range(self.frames):
            time = BEGIN + i * PERIOD
            yield "/points", time, self.cloud(time, self.clouds[i], padding=7)
            yield "/scan", time, self.scan(time, [1.0, 2.0 + i, 99.0])
            for late in (-3 * 10**7, 10**7):  # commands come more often than frames
                yield "/drive", time + late, self.drive(time + late, 0.1 * i, 3.0 + i)
            if i != 2:
                yield "/odom", time - 2 * 10**7, self.odometry(time - 2 * 10**7, 2.0 + i)
            yield "/camera", time + 10**6, self.compressed(time + 10**6, self.pictures[i])
            yield "/raw", time, self.raw(time, self.pictures[i])

    def write(self, folder):
        if self.kind == "ros1":
            path, opened = folder / "drive.bag", Writer1(folder / "drive.bag")
        else:
            path = folder / "drive"
            plugin = {"ros2": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}[self.kind]
            opened = Writer2(path, version=9, storage_plugin=plugin)
        with opened as writer:
            connections = {}
            for topic, time, message in self.messages():
                name = message.__msgtype__
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, name, typestore=self.store)
                serialize = (
                    self.store.serialize_ros1 if self.kind == "ros1" else self.store.serialize_cdr
                )
                writer.write(connections[topic], time, serialize(message, name))
        return path


@pytest.fixture(scope="module", params=KINDS)
def recorded(request, tmp_path_factory):
    recording = Recording(request.param)
    return recording, recording.write(tmp_path_factory.mktemp(request.param))


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["import", "bag", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def stored(root):
    (segment,) = open_dataset(root, ("train",)).segments
    return segment, [read_points(segment.directory / name, 4) for name in segment.lidar_files]


def test_clouds_commands_and_speeds_come_together_by_time(recorded, tmp_path):
    recording, path = recorded
    named = ("--src", path, "--out", tmp_path / "o", "--lidar-topic", "/points")
    output = run(*named, "--odom-topic", "/odom", "--sync-tol-ms", 50)
    assert "5 frames" in output
    assert "1 frames without a partner within 50 ms" in output
    segment, points = stored(tmp_path / "o")
    kept = [0, 1, 3, 4, 5]  # the odometry of frame 2 was lost
    assert segment.timestamp_ns.tolist() == [BEGIN + i * PERIOD for i in kept]
    assert segment.velocity.tolist() == [2.0 + i for i in kept]
    assert segment.target_velocity.tolist() == [3.0 + i for i in kept]
    assert np.allclose(segment.wheel_angle, np.rad2deg(0.1) * np.array(kept), atol=1e-4)
    for cloud, i in zip(points, kept, strict=True):
        assert np.array_equal(cloud, recording.clouds[i])


@pytest.mark.parametrize("topic", ["/camera", "/raw"])
def test_images_are_taken_over_with_a_calibration(recorded, tmp_path, topic):
    recording, path = recorded
    write_calibration(tmp_path / "c.json", level_camera(16, 8, 9.0, (0, 0, 0)), IDENTITY)
    named = ("--src", path, "--lidar-topic", "/points", "--image-topic", topic)
    run(*named, "--out", tmp_path / "o", "--calibration", tmp_path / "c.json")
    segment, _ = stored(tmp_path / "o")
    for name, picture in zip(segment.image_files, recording.pictures[1:], strict=True):
        assert np.array_equal(read_image(segment.directory / name, 16, 8), picture)
    assert "no camera is calibrated" in run(*named, "--out", tmp_path / "without")
    write_calibration(tmp_path / "d.json", level_camera(20, 8, 9.0, (0, 0, 0)), IDENTITY)
    refused = run(*named, "--out", tmp_path / "x", "--calibration", tmp_path / "d.json", code=2)
    assert "16 x 8 pixels" in refused


class Photographed(Recording):
    """Only clouds, commands and images; image k is recorded with cloud k, taken at `taken[k]`."""

    def __init__(self, kind, taken, size):
        super().__init__(kind, len(taken), size)
        self.taken = taken
        self.pictures[:] = np.arange(len(taken), dtype=np.uint8)[:, None, None, None]

    def messages(self):
        for i, taken in enumerate(self.taken):
            time = BEGIN + i * PERIOD
            yield "/points", time, self.cloud(time, self.clouds[i])
            yield "/drive", time, self.drive(time, 0.1, 3.0)
            yield "/raw", time, self.raw(BEGIN + taken * PERIOD, self.pictures[i])


def import_images(path, root, size):
    camera = level_camera(size[1], size[0], 9.0, (0, 0, 0))
    calibration = root.parent / f"{root.name}.json"
    write_calibration(calibration, camera, IDENTITY)
    target = Target(root, 10, "test", calibration)
    bags.import_bag(path, bags.Topics("/points", "/drive", image="/raw"), target, "train", "s")
    return open_dataset(root, ("train",)).segments[0]


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_arrive_in_any_order_come_to_the_frames_of_their_time(kind, tmp_path):
    """The first frame is left out, since no command before it says how fast the car was."""
    for name, taken in {
        "swapped": [0, 2, 1, 3, 5, 4, 6, 7],
        "back": list(range(19, -1, -1)),
        "random": np.random.default_rng(0).permutation(30).tolist(),
        "twice": [0, 1, 1, 2, 3, 3],  # the first one that arrived is taken
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        segment = import_images(
            Photographed(kind, taken, (8, 16)).write(folder), folder / "out", (8, 16)
        )
        kept = [i for i in range(len(taken)) if i in taken][1:]
        assert segment.timestamp_ns.tolist() == [BEGIN + i * PERIOD for i in kept]
        for time, file in zip(segment.timestamp_ns, segment.image_files, strict=True):
            wanted = min(range(len(taken)), key=lambda k: abs(BEGIN + taken[k] * PERIOD - time))
            assert (read_image(segment.directory / file, 16, 8) == wanted).all()


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_images_of_a_recording(kind, tmp_path):
    """Twenty more images of 300 kB each, 6 MB, take less than a fifth of one of them.

    The first import pays for what is loaded once, so that it is not compared.
    """
    size, peaks = (200, 500), []
    for name, frames in (("first", 10), ("few", 10), ("many", 30)):
        folder = tmp_path / name
        folder.mkdir()
        path = Photographed(kind, range(frames), size).write(folder)
        gc.collect()
        tracemalloc.start()
        try:
            segment = import_images(path, folder / "out", size)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(segment) == frames - 1
    assert peaks[2] - peaks[1] < 60_000


def test_a_recording_that_changes_between_its_two_readings_is_refused(tmp_path, monkeypatch):
    path = Photographed("ros1", range(6), (8, 16)).write(tmp_path)
    whole, calls = bags._Bag.recorded, []

    def changing(self, topic, begin=None):
        calls.append(topic)
        for number, (time, recorded, message) in enumerate(whole(self, topic, begin)):
            if calls.count("/raw") < 2 or topic != "/raw" or number < 3:
                yield time, recorded, message
            elif shifted:
                yield time + 1, recorded, message

    monkeypatch.setattr(bags._Bag, "recorded", changing)
    for shifted in (False, True):
        calls.clear()
        with pytest.raises(UserError, match="/raw: its images are not read twice"):
            import_images(path, tmp_path / f"o{shifted}", (8, 16))


def test_a_scan_becomes_points_and_the_speed_is_the_command_of_the_frame_before(recorded, tmp_path):
    """Not that of the message before: between two frames it is the label already."""
    _, path = recorded
    output = run("--src", path, "--out", tmp_path / "o", "--lidar-topic", "/scan")
    assert "1 frames whose command or speed is not known" in output
    segment, points = stored(tmp_path / "o")
    assert segment.velocity.tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert segment.target_velocity.tolist() == [4.0, 5.0, 6.0, 7.0, 8.0]
    for i, cloud in enumerate(points, 1):  # the third beam met nothing
        expected = [[np.cos(-1), np.sin(-1), 0, 0], [2.0 + i, 0, 0, 0]]
        assert np.allclose(cloud, expected, atol=1e-6)


def test_wrong_topics_and_types_are_named(recorded, tmp_path):
    _, path = recorded
    named = ("--src", path, "--out", tmp_path / "o", "--lidar-topic")
    absent = run(*named, "/velodyne", code=2)
    assert "no topic /velodyne" in absent
    assert "/points (sensor_msgs/msg/PointCloud2)" in absent
    assert "expected PointCloud2 or LaserScan" in run(*named, "/odom", code=2)
    assert "expected AckermannDrive" in run(*named, "/points", "--drive-topic", "/odom", code=2)
    assert "expected Odometry" in run(*named, "/points", "--odom-topic", "/drive", code=2)
    write_calibration(tmp_path / "c.json", level_camera(16, 8, 9.0, (0, 0, 0)), IDENTITY)
    seen = ("--calibration", tmp_path / "c.json", "--image-topic")
    named = ("--src", path, "--out", tmp_path / "seen", "--lidar-topic", "/points")
    assert "expected CompressedImage" in run(*named, *seen, "/odom", code=2)
    assert "expected an image of rgb8" in run(*named, *seen, "/points", code=2)
    named = ("--src", path, "--out", tmp_path / "o", "--lidar-topic")
    late = run(*named, "/points", "--sync-tol-ms", 1, code=2)
    assert "no frame has all its parts" in late


@pytest.mark.parametrize("flips", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_recordings_are_refused_or_read_never_worse(recorded, tmp_path, flips):
    _, path = recorded
    file = path if path.is_file() else next(p for p in path.iterdir() if p.suffix != ".yaml")
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    try:
        for number in range(4 + flips):
            if number < 4:
                file.write_bytes(whole[: len(whole) * number // 4])
            else:
                content = bytearray(whole)
                for _ in range(8):
                    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
                file.write_bytes(content)
            named = ("--src", path, "--out", tmp_path / f"o{number}", "--lidar-topic", "/points")
            done = CliRunner().invoke(app, ["import", "bag", *map(str, named)])
            assert done.exit_code in (0, 2), done.output
    finally:
        file.write_bytes(whole)


def test_a_bag_that_points_out_of_itself_is_refused(tmp_path):
    path = Recording("ros1").write(tmp_path)
    whole = path.read_bytes()
    place = whole.index(b"chunk_pos=") + len(b"chunk_pos=")
    far = b"\xff" * 7 + b"\x7f"
    path.write_bytes(whole[:place] + far + whole[place + 8 :])
    refused = run("--src", path, "--out", tmp_path / "o", "--lidar-topic", "/points", code=2)
    assert "cannot be read as a recording" in refused


def test_a_recording_that_is_not_there_and_a_missing_library_are_named(tmp_path, monkeypatch):
    named = ("--src", tmp_path / "x.bag", "--out", tmp_path / "o", "--lidar-topic", "/points")
    assert "does not exist" in run(*named, code=2)
    monkeypatch.setitem(__import__("sys").modules, "rosbags.highlevel", None)
    assert "end2race[ros]" in run(*named, code=2)
