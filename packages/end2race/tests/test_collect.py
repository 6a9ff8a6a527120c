import json
import math

import numpy as np
import pytest
from end2race.data.dataset import open_dataset
from end2race.sim.car import CarState
from end2race.sim.collect import Collection, collect, record_drive
from end2race.sim.expert import Expert
from end2race.sim.sensors import camera, lidar
from end2race.sim.track import procedural_track
from loom.errors import UserError

SMALL = Collection(tracks=2, drives=2, frames=6, camera=camera(32, 16), lidar=lidar(2, azimuths=40))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    assert collect(folder, "train", SMALL) == 24
    collect(folder, "valid", SMALL)
    return folder


def scene(segment):
    return json.loads((segment.directory / "meta/scene.json").read_text())


def test_a_collection_opens_as_a_dataset_of_equal_drives(root):
    dataset = open_dataset(root)
    assert [len(segment) for segment in dataset.segments] == [6] * 8
    assert dataset.info.calibration.width == 32
    np.testing.assert_allclose(dataset.info.lidar_sensor.translation, [0.2, 0, 0.3])
    assert all(np.all(np.diff(s.timestamp_ns) == 100_000_000) for s in dataset.segments)


def test_no_track_is_in_two_splits_and_every_drive_looks_different(root):
    dataset = open_dataset(root)
    tracks = {
        split: {scene(s)["track"] for s in dataset.segments if s.split == split}
        for split in ("train", "valid")
    }
    assert not tracks["train"] & tracks["valid"]
    assert len({str(scene(segment)["appearance"]) for segment in dataset.segments}) == 8


def test_the_same_seed_records_the_same_bytes_and_another_seed_others(root, tmp_path):
    def content(folder):
        return {
            path.relative_to(folder): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    collect(tmp_path / "again", "train", SMALL)
    collect(tmp_path / "other", "train", Collection(**vars(SMALL) | {"seed": 1}))
    first = {path: data for path, data in content(root).items() if path.parts[0] != "valid"}
    assert content(tmp_path / "again") == first
    assert content(tmp_path / "other").keys() == first.keys()
    assert content(tmp_path / "other") != first


def test_labels_are_the_experts_own_while_the_car_is_pushed():
    track = procedural_track(np.random.default_rng(0))
    expert = Expert(track)
    frames = record_drive(track, expert, 40, 0.04, np.random.default_rng(1))
    wheel, pushed = 0.0, []
    for frame, after in zip(frames[:-1], frames[1:], strict=True):
        nearest = int(np.argmin(((track.centreline - frame.pose[:2]) ** 2).sum(axis=1)))
        state = CarState(*frame.pose, frame.speed, wheel)
        wheel_angle, speed = expert.command(state, nearest)
        assert math.degrees(wheel_angle) == pytest.approx(frame.wheel_angle_deg)
        assert speed == frame.target_speed
        # The yaw that the car made shows the angle that was executed.
        made = (after.pose[2] - frame.pose[2]) / 0.1
        executed = math.degrees(math.atan(made * 0.33 / max((frame.speed + after.speed) / 2, 0.1)))
        pushed.append(executed - frame.wheel_angle_deg)
    assert np.std(pushed) > 1.0  # degrees; without noise the rate limit alone leaves less
    quiet = record_drive(track, expert, 40, 0.0, np.random.default_rng(1))
    yaw = np.unwrap([frame.pose[2] for frame in quiet])
    speed = np.array([frame.speed for frame in quiet])
    executed = np.rad2deg(np.arctan(np.diff(yaw) / 0.1 * 0.33 / (speed[1:] + speed[:-1]) * 2))
    labels = np.array([frame.wheel_angle_deg for frame in quiet[:-1]])
    assert np.std(executed[10:] - labels[10:]) < 0.5


def test_noise_that_always_ends_at_the_wall_is_refused():
    track = procedural_track(np.random.default_rng(0))
    with pytest.raises(UserError, match="none of 50 drives of 80 frames"):
        record_drive(track, Expert(track), 80, 2.0, np.random.default_rng(0))


def test_a_split_is_never_overwritten_and_sensors_are_never_mixed(root):
    with pytest.raises(UserError, match="train: is there already"):
        collect(root, "train", SMALL)
    with pytest.raises(UserError, match="another camera"):
        collect(root, "test", Collection(**vars(SMALL) | {"camera": camera(64, 32)}))
    assert open_dataset(root).info.lidar_beams == 2
    with pytest.raises(UserError, match="recorded with 2 beams, not 3"):
        collect(root, "test", Collection(**vars(SMALL) | {"lidar": lidar(3, azimuths=40)}))


def test_a_dataset_from_before_the_beams_were_kept_opens_and_grows(tmp_path):
    one = Collection(**vars(SMALL) | {"tracks": 1, "drives": 1})
    collect(tmp_path, "train", one)
    kept = json.loads((tmp_path / "dataset.json").read_text())
    assert kept.pop("lidar_beams") == 2
    fingerprint = open_dataset(tmp_path).fingerprint("train")
    (tmp_path / "dataset.json").write_text(json.dumps(kept))
    collect(tmp_path, "valid", one)
    dataset = open_dataset(tmp_path)
    assert dataset.info.lidar_beams is None
    assert dataset.fingerprint("train") == fingerprint


def test_a_recording_that_is_stopped_leaves_no_split_and_can_be_made_again(root, tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, "train", SMALL, stop)
    with pytest.raises(UserError, match="no segment"):
        open_dataset(tmp_path)
    assert collect(tmp_path, "train", SMALL) == 24
    again = open_dataset(tmp_path).fingerprint("train")
    assert again == open_dataset(root).fingerprint("train")
