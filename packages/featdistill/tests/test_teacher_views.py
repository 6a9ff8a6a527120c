"""What a run keeps of the files that it was made from, and when it reads its copies."""

import json
import shutil

import pytest
import torch
from featdistill.config import DataSection
from featdistill.teacher_views import cameras_of, remember_inputs, teacher_of


@pytest.fixture
def data(tiny, tmp_path):
    """A scene and a teacher of this test's own; its camera files leave the size to the images."""
    shutil.copytree(tiny.scene, tmp_path / "scene")
    shutil.copy(tiny.teacher, tmp_path / "teacher.ply")
    for split in ("train", "test"):
        path = tmp_path / "scene" / f"transforms_{split}.json"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in facts.items() if k not in ("w", "h")}))
    return DataSection(scene=tmp_path / "scene", teacher=tmp_path / "teacher.ply")


def move_cameras(data, by):
    """Shift every test camera along x."""
    path = data.scene / "transforms_test.json"
    facts = json.loads(path.read_text())
    for frame in facts["frames"]:
        frame["transform_matrix"][0][3] += by
    path.write_text(json.dumps(facts))


def test_a_run_keeps_the_teacher_and_the_cameras_with_the_size_of_their_images(data, tmp_path):
    run = tmp_path / "run"
    remember_inputs(data, run)
    assert sorted(path.name for path in (run / "inputs").iterdir()) == [
        "point_cloud.ply",
        "transforms_test.json",
        "transforms_train.json",
    ]
    assert (run / "inputs" / "point_cloud.ply").read_bytes() == data.teacher.read_bytes()
    for split in ("train", "test"):
        copy = json.loads((run / "inputs" / f"transforms_{split}.json").read_text())
        whole = json.loads((data.scene / f"transforms_{split}.json").read_text())
        assert copy == {**whole, "w": 28, "h": 28}


def test_copies_are_taken_once_and_go_before_files_that_have_changed_or_gone(data, tmp_path):
    run = tmp_path / "run"
    remember_inputs(data, run)
    before, taught = cameras_of(data, "test", run), data.teacher.read_bytes()
    move_cameras(data, 1.0)
    data.teacher.write_bytes(b"another one")
    remember_inputs(data, run)  # as a resume does
    assert not torch.equal(cameras_of(data, "test").centres, before.centres)
    assert torch.equal(cameras_of(data, "test", run).centres, before.centres)
    assert (run / "inputs" / "point_cloud.ply").read_bytes() == taught
    shutil.rmtree(data.scene)
    data.teacher.unlink()
    assert torch.equal(cameras_of(data, "test", run).centres, before.centres)
    kept = teacher_of(data, run)
    assert len(kept.gaussians) > 0
    assert torch.equal(kept.evaluation.centres, before.centres)
    assert kept.evaluation.width == before.width == 28


def test_the_copy_at_another_width_keeps_the_field_of_view_of_a_focal_length(data, tmp_path):
    for split in ("train", "test"):
        path = data.scene / f"transforms_{split}.json"
        facts = json.loads(path.read_text())
        del facts["camera_angle_x"]
        lens = {"fl_x": 40.0, "fl_y": 40.0, "cx": 14.0, "cy": 14.0, "w": 28, "h": 28}
        facts["frames"][0]["fl_x"] = 40.0
        path.write_text(json.dumps(facts | lens))
    half = data.model_copy(update={"width": 14})
    remember_inputs(half, tmp_path / "run")
    before = cameras_of(half, "test")
    shutil.rmtree(data.scene)
    after = cameras_of(half, "test", tmp_path / "run")
    assert before.focal_px == pytest.approx(20.0)
    assert after.focal_px == before.focal_px
    assert (after.width, after.height) == (14, 14)
