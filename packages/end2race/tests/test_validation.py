"""`validate-data`: each fault is named, all of them at once, and a whole dataset passes."""

from __future__ import annotations

import json
import shutil
import zlib

import numpy as np
import pytest
from end2race.cli import app
from end2race.data.dataset import open_dataset
from end2race.data.leaks import copied_labels
from end2race.data.validation import validate
from typer.testing import CliRunner


def faults(root, **options):
    return {
        (finding.level, finding.check)
        for finding in validate(root, **options).findings
        if finding.level != "ok"
    }


def details(root):
    return "\n".join(f"{f.detail} {f.fix}" for f in validate(root).findings if f.level != "ok")


@pytest.fixture
def root(small):
    return small({"train": (12, 14), "valid": (13,)})


def cloud(root, row=3, segment="segment_0000", split="train"):
    return sorted((root / split / segment / "lidar").iterdir())[row]


def table(root, segment="segment_0000", split="train"):
    return root / split / segment / "meta" / "data.csv"


def test_a_whole_dataset_passes_with_one_line_per_check(root):
    found = validate(root)
    assert found.passed
    warned = {finding.check for finding in found.findings if finding.level == "warn"}
    assert warned <= {"clouds"}  # the small clouds of this dataset
    assert found.counts["train"] == {"segments": 2, "frames": 26}
    assert {finding.check for finding in found.findings} >= {"units", "splits", "labels", "timing"}


def damage_truncated(root):
    path = cloud(root)
    path.write_bytes(path.read_bytes()[:-3])


def damage_empty(root):
    cloud(root).write_bytes(b"")


def damage_nan(root):
    points = np.ones((20, 4), np.float32)
    points[7, 1] = np.nan
    cloud(root).write_bytes(points.tobytes())


def damage_other_form(root):
    rows = np.random.default_rng(0).uniform(1, 9, (20, 8)).astype(np.float32)
    rows[:, 3], rows[:, 5] = 0, np.arange(20) % 4
    cloud(root).write_bytes(rows.tobytes())


def damage_missing_cloud(root):
    cloud(root).unlink()


def damage_missing_image(root):
    next((root / "train" / "segment_0001" / "camera").iterdir()).unlink()


def damage_image(root):
    next((root / "train" / "segment_0001" / "camera").iterdir()).write_bytes(b"\x89PNG\r\n")


def damage_column(root):
    path = table(root)
    path.write_text(path.read_text().replace("wheel_angle", "steer"))


def damage_number(root):
    path = table(root)
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace(lines[4].split(",")[1], "fast")
    path.write_text("\n".join(lines))


def damage_names(root):
    (root / "train" / "segment_0000").rename(root / "train" / "segment 0")


def damage_overlap(root):
    shutil.copytree(root / "train" / "segment_0001", root / "valid" / "segment_0009")


@pytest.mark.parametrize(
    ("damage", "check", "words"),
    [
        (damage_truncated, "files", "not a whole number of points"),
        (damage_empty, "files", "empty cloud"),
        (damage_nan, "clouds", "the first is point 7"),
        (damage_other_form, "clouds", "dataset.json declares 4 numbers per point"),
        (damage_missing_cloud, "files", "is not there"),
        (damage_missing_image, "files", "image_filepath"),
        (damage_image, "images", "no picture that can be read"),
        (damage_column, "table", "no column wheel_angle"),
        (damage_number, "table", "velocity is 'fast'"),
        (damage_names, "names", "makes no key"),
        (damage_overlap, "splits", "train/segment_0001 and valid/segment_0009 hold the same"),
    ],
)
def test_each_fault_is_found_and_named(root, damage, check, words):
    damage(root)
    assert ("fail", check) in faults(root)
    assert words in details(root)


def test_all_faults_are_listed_at_once(root):
    for damage in (damage_truncated, damage_image, damage_overlap):
        damage(root)
    checks = {check for level, check in faults(root) if level == "fail"}
    assert checks >= {"files", "images", "splits"}


def test_a_part_of_a_drive_with_new_times_and_names_is_found_in_the_other_split(root):
    lines = table(root, "segment_0001").read_text().splitlines()
    target = table(root, "segment_0002", "valid")
    there = target.read_text().splitlines()
    names = there[0].split(",")
    columns = [names.index("velocity"), names.index("wheel_angle")]
    for row in range(3, 10):
        own, other = there[row].split(","), lines[row + 2].split(",")
        for column in columns:
            own[column] = other[column]
        there[row] = ",".join(own)
    target.write_text("\n".join(there) + "\n")
    assert "valid/segment_0002 hold the same stretch of 7 frames" in details(root)


def test_a_car_that_stands_is_no_overlap(root):
    for split, segment in (("train", "segment_0000"), ("valid", "segment_0002")):
        path = table(root, segment, split)
        names, *lines = path.read_text().splitlines()
        places = [names.split(",").index(n) for n in ("velocity", "wheel_angle")]
        rows = [line.split(",") for line in lines]
        for row in rows:
            for place in places:
                row[place] = "0"
        path.write_text("\n".join([names, *(",".join(row) for row in rows)]) + "\n")
    assert ("fail", "splits") not in faults(root)


def test_one_cloud_in_two_splits_and_one_cloud_twice_in_a_drive(root):
    content = np.random.default_rng(9).uniform(-1, 1, (30, 4)).astype(np.float32).tobytes()
    cloud(root, 2).write_bytes(content)
    cloud(root, 3).write_bytes(content)
    assert ("warn", "clouds") in faults(root)
    assert "and 1 more hold the same cloud" in details(root)
    cloud(root, 1, "segment_0002", "valid").write_bytes(content)
    assert ("fail", "splits") in faults(root)


def test_clouds_that_share_a_check_sum_of_32_bits_are_not_the_same(root):
    """Among 65,000 clouds two such are likelier than not."""
    rng = np.random.default_rng(0)
    seen: dict[int, np.ndarray] = {}
    while True:
        points = rng.uniform(-5, 5, (10, 4)).astype(np.float32)
        other = seen.setdefault(zlib.crc32(points.tobytes()), points)
        if other is not points:
            break
    cloud(root).write_bytes(points.tobytes())
    cloud(root, segment="segment_0002", split="valid").write_bytes(other.tobytes())
    assert ("fail", "splits") not in faults(root)


def test_a_cloud_twice_in_folders_of_a_segment_is_no_overlap_of_splits(root):
    for segment in ("segment_0000", "segment_0001"):
        path, lidar = table(root, segment), root / "train" / segment / "lidar"
        (lidar / "top").mkdir()
        first, *_ = sorted(lidar.glob("*.bin"))
        np.ones((20, 4), np.float32).tofile(lidar / "top" / first.name)
        path.write_text(path.read_text().replace(first.name, f"top/{first.name}"))
    assert ("warn", "clouds") in faults(root)
    assert ("fail", "splits") not in faults(root)


def test_names_that_differ_by_case_only_are_told_once(root):
    shutil.copytree(root / "train" / "segment_0000", root / "train" / "Segment_0000")
    found = [f.detail for f in validate(root).findings if f.check == "names"]
    assert len(found) == 1
    assert found[0].endswith("Segment_0000 and segment_0000 differ by case only")


def test_radians_that_are_declared_as_degrees_are_found(small):
    root = small({"train": (60, 60)})
    for segment in ("segment_0000", "segment_0001"):
        path = table(root, segment)
        names, *lines = path.read_text().splitlines()
        place = names.split(",").index("wheel_angle")
        rows = [line.split(",") for line in lines]
        for row in rows:
            row[place] = f"{0.004 * float(row[place]):.6g}"
        path.write_text("\n".join([names, *(",".join(row) for row in rows)]) + "\n")
    assert ("fail", "units") in faults(root)
    assert "looks like radians" in details(root)


def test_a_label_that_is_the_input_is_a_leak(small):
    root = small({"train": (12,)}, target=True)
    assert ("fail", "labels") not in faults(root)
    path = table(root)
    names, *lines = path.read_text().splitlines()
    speed, target = (names.split(",").index(n) for n in ("velocity", "target_velocity"))
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[target] = row[speed]
    path.write_text("\n".join([names, *(",".join(row) for row in rows)]) + "\n")
    assert ("fail", "labels") in faults(root)
    assert "the label is the input" in details(root)


def test_copied_labels_are_shares_of_the_mean_predictors_error(root):
    (copied,) = [copied_labels(open_dataset(root, ("train",)).segments)]
    speeds, labels, before, angles = [], [], [], []
    for number, count in ((0, 12), (1, 14)):
        for frame in range(count - 1):
            speeds.append(number + frame / 10)
            labels.append(number + (frame + 1) / 10)
            before.append(-number + frame)
            angles.append(-number + frame + 1)
    speed = np.mean((np.array(labels) - speeds) ** 2) / np.var(labels)
    angle = np.mean((np.array(angles) - before) ** 2) / np.var(angles)
    assert copied.speed_share == pytest.approx(speed, rel=1e-5)
    assert copied.angle_share == pytest.approx(angle, rel=1e-5)
    assert not copied.commanded_is_present_speed


def test_a_missing_frame_is_a_gap(root):
    path = table(root)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:5] + lines[7:]) + "\n")
    assert ("warn", "timing") in faults(root)
    assert "1 gaps at 10 Hz, the first of 0.3 s before line 6" in details(root)


@pytest.mark.parametrize(("declared", "named"), [(5, True), (8, False), (14, False), (20, True)])
def test_a_rate_that_the_time_stamps_do_not_have_is_named(root, declared, named):
    """A recording of 20 Hz that is imported as one of 10 Hz has no late frame at all."""
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rate_hz": declared}))
    text = f"frames come at 10 Hz, dataset.json says {declared} correct rate_hz in dataset.json"
    assert (text in details(root)) == named
    assert validate(root).passed


def test_a_sample_of_the_files_is_quicker_and_sees_less(root):
    damage_nan(root)
    assert ("fail", "clouds") in faults(root)
    assert ("fail", "clouds") not in faults(root, files_per_segment=2)


def test_the_command_prints_a_table_or_json_and_its_exit_code_tells(root, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["validate-data", *map(str, arguments)])

    done = run("--data_root", root)
    assert done.exit_code == 0, done.output
    assert "passed" in done.output
    damage_nan(root)
    done = run("--data-root", root, "--json", "--output", tmp_path / "v.json")
    assert done.exit_code == 3
    shown = json.loads(done.output[done.output.index("{") :])
    assert shown == json.loads((tmp_path / "v.json").read_text())
    assert not shown["passed"]
    assert shown["copied"]["train"]["speed_share"] < 0.2
    assert run("--data-root", tmp_path / "none").exit_code == 3
