import csv
import json

import numpy as np
import pytest
from end2race.data.batches import BatchReader
from end2race.data.dataset import open_dataset
from end2race.data.images import read_image
from end2race.data.lidar_files import read_points
from end2race.data.windows import windows
from loom.errors import UserError

CSV = "train/segment_0000/meta/data.csv"


def rewrite_csv(root, change, name=CSV):
    """Apply `change(rows)` to the table, header included."""
    path = root / name
    rows = list(csv.reader(path.read_text().splitlines()))
    change(rows)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def rewrite_info(root, **changes):
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def message(root) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(root)
    assert caught.value.hint
    return caught.value.message


def test_what_was_written_is_read_again(small):
    dataset = open_dataset(small({"train": (4,), "valid": (3,)}))
    train, valid = dataset.segments
    assert (train.split, train.name, len(train)) == ("train", "segment_0000", 4)
    assert valid.split == "valid"
    np.testing.assert_allclose(valid.wheel_angle, [-1, 0, 1])
    np.testing.assert_allclose(valid.velocity, [1, 1.1, 1.2], atol=1e-6)
    assert np.all(np.diff(train.timestamp_ns) == 100_000_000)
    rng = np.random.default_rng(0)
    expected = rng.uniform(-5, 5, (6, 4)).astype(np.float32)
    image = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_points(train.directory / train.lidar_files[0], 4), expected)
    np.testing.assert_array_equal(read_image(train.directory / train.image_files[0], 16, 8), image)


def test_eight_numbers_per_point_give_x_y_z_and_intensity(tmp_path):
    rows = np.arange(80, dtype=np.float32).reshape(10, 8) / 7
    rows[:, 3], rows[:, 5] = 0, np.arange(10)
    (tmp_path / "a.bin").write_bytes(rows.tobytes())
    np.testing.assert_array_equal(read_points(tmp_path / "a.bin", 8), rows[:, [0, 1, 2, 4]])
    ring_bytes = rows.copy()
    ring_bytes[:, 5] = np.arange(10, dtype=np.uint32).view(np.float32)  # as a uint16 in memory
    for content in (rows, ring_bytes):
        (tmp_path / "a.bin").write_bytes(content.tobytes())
        with pytest.raises(UserError, match="files of 8"):
            read_points(tmp_path / "a.bin", 4)
    four = np.random.default_rng(0).uniform(1, 2, (10, 4)).astype(np.float32)
    (tmp_path / "a.bin").write_bytes(four.tobytes())
    with pytest.raises(UserError, match="files of 4"):
        read_points(tmp_path / "a.bin", 8)


def test_a_flat_scan_of_zeros_is_not_taken_for_eight_numbers(tmp_path):
    angle = np.linspace(-2, 2, 360, dtype=np.float32)
    scan = np.stack([np.cos(angle), np.sin(angle), 0 * angle, 0 * angle], axis=1)
    (tmp_path / "a.bin").write_bytes(scan.tobytes())
    np.testing.assert_array_equal(read_points(tmp_path / "a.bin", 4), scan)


def test_windows_are_those_whose_label_exists(small):
    dataset = open_dataset(small({"train": (7, 9, 3)}))
    found = windows(dataset, "train", seq_len=3, stride=2)
    expected = [
        f"train/{segment.name}:{start}"
        for segment in dataset.segments
        for start in range(0, 100, 2)
        if start + 3 - 1 + 1 < len(segment)  # the last input is start + 2, its label one later
    ]
    assert [window.key for window in found] == expected
    with pytest.raises(UserError, match="the speed label the input"):
        windows(dataset, "train", 3, target_shift=0)
    with pytest.raises(UserError, match="no window of 9 frames"):
        windows(dataset, "train", 9)


def test_a_batch_holds_the_frames_in_the_ego_frame_and_the_shifted_labels(small):
    dataset = open_dataset(small())
    listed = windows(dataset, "train", seq_len=3, target_shift=2)
    labelled = np.arange(len(listed)) % 2 == 0
    reader = BatchReader(dataset, listed, images=True, points=True, labelled=labelled)
    chosen = [len(listed) - 1, 0]
    batch = reader.read(chosen)
    assert batch.keys == (listed[-1].key, "train/segment_0000:0")
    assert batch.labelled.tolist() == [bool(labelled[i]) for i in chosen]
    for b, index in enumerate(chosen):
        window = listed[index]
        segment = dataset.segments[window.segment]
        for t in range(3):
            frame = window.start + t
            cloud = read_points(segment.directory / segment.lidar_files[frame], 4)
            cloud[:, :3] += np.float32([0.2, 0.0, 0.3])
            mine = batch.points[batch.point_frame == b * 3 + t].numpy()
            np.testing.assert_allclose(mine, cloud, atol=1e-6)
            picture = read_image(segment.directory / segment.image_files[frame], 16, 8)
            np.testing.assert_array_equal(batch.images[b, t].numpy(), picture)
            assert batch.speed[b, t, 0] == segment.velocity[frame]
            before = segment.wheel_angle[frame - 1] if frame else 0
            assert batch.steering_input[b, t, 0] == before
            expected = [segment.wheel_angle[frame], segment.velocity[frame + 2]]
            assert batch.actions[b, t].tolist() == expected
    assert batch.point_frame.diff().min() >= 0


def test_a_commanded_speed_is_the_label_and_needs_no_later_frame(small):
    dataset = open_dataset(small({"train": (5,)}, target=True))
    listed = windows(dataset, "train", seq_len=5)
    batch = BatchReader(dataset, listed, images=False, points=False).read([0])
    assert batch.images is None
    assert batch.points.shape == (0, 4)
    np.testing.assert_allclose(batch.actions[0, :, 1], 9 + np.arange(5) / 10, rtol=1e-6)


def test_reading_with_and_without_memory_gives_the_same(small):
    dataset = open_dataset(small())
    listed = windows(dataset, "train", seq_len=2)
    with_room = BatchReader(dataset, listed, images=True, points=True)
    without = BatchReader(dataset, listed, images=True, points=True, cache_bytes=300)
    for _ in range(2):
        first, second = with_room.read([0, 1, 5]), without.read([0, 1, 5])
        assert first.points.equal(second.points)
        assert first.images.equal(second.images)


def test_the_fingerprint_follows_the_rows_and_the_form_of_the_files(small):
    root = small({"train": (4, 4), "valid": (4,)})
    before = open_dataset(root)
    rewrite_csv(root, lambda rows: rows[2].__setitem__(1, "1.5"))
    after = open_dataset(root)
    assert before.fingerprint("train") != after.fingerprint("train")
    assert before.fingerprint("valid") == after.fingerprint("valid")
    assert open_dataset(root, ("train",)).fingerprint("train") == after.fingerprint("train")


def test_the_fingerprint_follows_the_lidar_s_pose_and_not_the_camera_s(small):
    """What a teacher answers depends on where the LiDAR sits, and on no camera."""
    root = small()
    path = root / "calibration.json"
    before, content = open_dataset(root), json.loads(path.read_text())
    content["cameras"]["front"]["translation"][2] += 0.1
    path.write_text(json.dumps(content))
    other_camera = open_dataset(root)
    assert other_camera.fingerprint("train") == before.fingerprint("train")
    assert other_camera.info.calibration.sha256 != before.info.calibration.sha256
    content["lidar"]["translation"][2] += 0.1
    path.write_text(json.dumps(content))
    assert open_dataset(root).fingerprint("train") != before.fingerprint("train")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[0].__setitem__(2, "steer"), "no column wheel_angle"),
        (lambda rows: rows[3].__setitem__(1, "fast"), "line 4: velocity is 'fast'"),
        (lambda rows: rows[3].__setitem__(2, "nan"), "line 4: wheel_angle is 'nan'"),
        (lambda rows: rows[2].__setitem__(1, "720"), "line 3: velocity 720 is not a speed"),
        (lambda rows: rows[4].pop(), "line 5 has 4 values, the header has 5"),
        (lambda rows: rows[2].__setitem__(3, "../../../x.bin"), "line 3: lidar_filepath is"),
        (lambda rows: rows[2].__setitem__(3, "lidar/none.bin"), "line 3: lidar_filepath lidar/no"),
        (lambda rows: rows[5].__setitem__(4, "camera/none.png"), "line 6: image_filepath camera"),
        (lambda rows: rows[3].__setitem__(0, rows[2][0]), "line 4: timestamp_ns"),
        (lambda rows: [row.append(row[1]) for row in rows], "2 columns are called velocity"),
        (lambda rows: [row.append(row[4]) for row in rows], "2 columns are called image_filepath"),
        (lambda rows: rows.__delitem__(slice(1, None)), "no row below the header"),
        (lambda rows: rows.clear(), "the file is empty"),
    ],
)
def test_a_wrong_table_is_named_with_its_line(small, change, expected):
    root = small({"train": (7,)})
    rewrite_csv(root, change)
    assert f"data.csv: {expected}" in message(root)


def test_paths_written_on_windows_are_read(small):
    root = small()
    there = open_dataset(root)
    for segment in there.segments:
        path = segment.directory / "meta" / "data.csv"
        path.write_text(path.read_text().replace("/", "\\"))
        assert "lidar\\" in path.read_text()
    found = open_dataset(root)
    assert [s.lidar_files for s in found.segments] == [s.lidar_files for s in there.segments]
    path.write_text(path.read_text().replace("lidar\\", "lidar\\..\\..\\lidar\\", 1))
    with pytest.raises(UserError, match="expected a path inside"):
        open_dataset(root)


def test_radians_where_degrees_are_declared_are_found_and_can_be_declared(small):
    root = small({"train": (60, 60)})
    original = {}
    for name in ("segment_0000", "segment_0001"):

        def to_radians(rows, name=name):
            original[name] = [0.3 * np.sin(i) for i in range(len(rows) - 1)]
            for row, angle in zip(rows[1:], original[name], strict=True):
                row[2] = f"{angle:.9g}"

        rewrite_csv(root, to_radians, f"train/{name}/meta/data.csv")
    assert "looks like radians" in message(root)
    rewrite_info(root, wheel_angles_checked=True)
    assert np.abs(open_dataset(root).segments[0].wheel_angle).max() < 1
    rewrite_info(root, units={"wheel_angle": "radians"})
    read = open_dataset(root).segments[0].wheel_angle
    np.testing.assert_allclose(read, np.rad2deg(original["segment_0000"]), rtol=1e-6)


def test_degrees_where_radians_are_declared_are_found(small):
    root = small({"train": (30,)})
    rewrite_info(root, units={"wheel_angle": "radians"})
    assert "more than half a turn" in message(root)


def test_a_truncated_and_an_empty_cloud_are_found_when_the_dataset_is_opened(small):
    root = small({"train": (4,)})
    cloud = sorted((root / "train/segment_0000/lidar").iterdir())[1]
    content = cloud.read_bytes()
    cloud.write_bytes(content[:-3])
    assert f"{cloud.name}: 109 bytes are not a whole number of points" in message(root)
    cloud.write_bytes(b"")
    assert f"{cloud.name}: empty cloud" in message(root)


def test_points_that_are_not_finite_are_refused(tmp_path):
    points = np.ones((5, 4), np.float32)
    points[3, 1] = np.nan
    (tmp_path / "a.bin").write_bytes(points.tobytes())
    with pytest.raises(UserError, match="1 of 5 points .* the first is point 3"):
        read_points(tmp_path / "a.bin", 4)


def test_a_damaged_picture_and_one_of_another_size_are_refused(small):
    path = sorted((small({"train": (2,)}) / "train/segment_0000/camera").iterdir())[0]
    with pytest.raises(UserError, match="16 x 8 pixels, but the calibration says 8 x 8"):
        read_image(path, 8, 8)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="no picture that can be read"):
        read_image(path, 16, 8)


def test_an_unfinished_segment_and_a_folder_without_a_dataset_are_named(small, tmp_path):
    root = small({"train": (4,)})
    (root / "train/segment_0009").mkdir()
    assert "segment_0009: no meta/data.csv" in message(root)
    (tmp_path / "empty").mkdir()
    assert "no dataset.json" in message(tmp_path / "empty")
    (root / "dataset.json").write_text('{"lidar_num_features": 5}')
    assert "lidar_num_features" in message(root)


def test_damaged_bytes_end_in_a_user_error_or_in_a_dataset(small):
    root = small({"train": (3,)})
    rng = np.random.default_rng(5)
    for name in ("dataset.json", "calibration.json", CSV):
        content = (root / name).read_bytes()
        for _ in range(60):
            damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            (root / name).write_bytes(damaged)
            try:
                open_dataset(root)
            except UserError as error:
                assert str(root) in error.message
        (root / name).write_bytes(content)


def test_a_dataset_without_a_camera_can_be_read_for_its_lidar(small):
    root = small({"train": (4,)})
    rewrite_csv(root, lambda rows: [row.pop() for row in rows])
    dataset = open_dataset(root)
    listed = windows(dataset, "train", 2)
    assert len(BatchReader(dataset, listed, images=False, points=True).read([0]).points) > 0
    with pytest.raises(UserError, match="no column image_filepath"):
        BatchReader(dataset, listed, images=True, points=False)
