"""LiDAR and camera in two folders: joined by key, and refused where they are not one drive."""

import csv
import io
import shutil
from pathlib import Path

import pytest
import torch
from end2race.cli import app
from end2race.data.batches import BatchReader
from end2race.data.camera_root import join_camera
from end2race.data.dataset import open_dataset
from end2race.data.windows import windows
from end2race.driving import answer
from end2race.restore import restore
from loom.errors import UserError
from typer.testing import CliRunner


def rewrite(root: Path, change) -> None:
    """Let `change` edit the rows of every data.csv."""
    for path in root.glob("*/*/meta/data.csv"):
        rows = change(list(csv.DictReader(path.read_text().splitlines())))
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue())


def without(column: str):
    return lambda rows: [{k: v for k, v in row.items() if k != column} for row in rows]


@pytest.fixture
def apart(small, tmp_path):
    """One dataset, the same without its camera, and the same without its LiDAR."""
    whole = small({"train": (6, 7), "valid": (5,)}, target=True)
    lidar, camera = tmp_path / "lidar", tmp_path / "camera"
    for root, sensor, column in (
        (lidar, "camera", "image_filepath"),
        (camera, "lidar", "lidar_filepath"),
    ):
        shutil.copytree(whole, root)
        rewrite(root, without(column))
        for folder in root.glob(f"*/*/{sensor}"):
            shutil.rmtree(folder)
    return whole, lidar, camera


def batch_of(dataset):
    reader = BatchReader(dataset, windows(dataset, "train", 3), images=True, points=True)
    return reader.read(range(len(reader)))


def test_two_folders_give_the_batches_of_one(apart):
    whole, lidar, camera = apart
    alone = open_dataset(lidar)
    joined = join_camera(alone, camera, ("train", "valid"))
    ours, theirs = batch_of(joined), batch_of(open_dataset(whole))
    assert ours.keys == theirs.keys
    for name in ("images", "points", "speed", "steering_input", "actions"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert joined.fingerprint("train") == alone.fingerprint("train")  # its cache stays valid


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"frames, but .*lidar"),
        (
            lambda rows: [r | {"timestamp_ns": int(r["timestamp_ns"]) + 6 * 10**7} for r in rows],
            "6",
        ),
    ],
)
def test_folders_that_are_not_one_drive_are_refused(apart, change, message):
    _, lidar, camera = apart
    rewrite(camera, change)
    with pytest.raises(UserError, match=message):
        join_camera(open_dataset(lidar), camera, ("train", "valid"))


def test_a_camera_folder_without_a_segment_or_a_camera_is_refused(apart):
    _, lidar, camera = apart
    shutil.rmtree(camera / "train" / "segment_0001")
    with pytest.raises(UserError, match="has no train/segment_0001"):
        join_camera(open_dataset(lidar), camera, ("train", "valid"))
    with pytest.raises(UserError, match="no column image_filepath"):
        join_camera(open_dataset(lidar), lidar, ("train", "valid"))
    (camera / "calibration.json").unlink()
    with pytest.raises(UserError, match="no camera in its calibration"):
        join_camera(open_dataset(lidar), camera, ("train", "valid"))


def test_a_student_learns_and_is_judged_with_its_images_in_another_folder(apart, tmp_path):
    whole, lidar, camera = apart
    given = ["--seq_len", "3", "--max_steps", "1", "--batch_size", "2"]
    two = ["--data_root", str(lidar), "--camera_root", str(camera)]
    for name, roots in (("one", ["--data_root", str(whole)]), ("two", two)):
        call = ["train-student", *roots, *given, "--run-dir", str(tmp_path / name)]
        done = CliRunner().invoke(app, call)
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["eval-student", *two, "--student_ckpt", str(tmp_path / "two")])
    assert done.exit_code == 0, done.output
    batch = batch_of(open_dataset(whole))
    models = [restore(tmp_path / name).model for name in ("one", "two")]
    assert torch.equal(*(answer(model, batch)[0] for model in models))
