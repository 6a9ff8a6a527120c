"""A speed label that can be read off the inputs shows in a student that has lost its eyes."""

import json
from pathlib import Path

import numpy as np
import pytest
from end2race.data.calibration import Pose, level_camera
from end2race.data.dataset import DatasetFile
from end2race.data.writer import SegmentWriter, write_info
from end2race.evaluate import LEAK_SHARE
from end2race.training_run import run_student

SETTINGS = {
    "train.max_steps": 80,
    "train.batch_size": 8,
    "train.validate_interval": 80,
    "train.clip_norm": None,
    "train.lr": 1e-2,
    "train.colour_mixing": 0.0,
    "train.speed_dropout": 0.0,
    "data.seq_len": 1,
    "loss.steer_weight": 0.0,
    "loss.speed_weight": 1.0,
}


def write_drives(root: Path, *, label_is_the_input: bool) -> Path:
    """Drives in which the wanted speed is the image's brightness, or the present speed."""
    camera = level_camera(16, 8, 10.0, (0.2, 0.0, 0.2))
    write_info(root, DatasetFile(lidar_num_features=4), camera, Pose(np.eye(3), np.zeros(3)))
    rng = np.random.default_rng(0)
    for split, name, frames in (("train", "segment_0000", 120), ("valid", "segment_0001", 40)):
        writer = SegmentWriter(root, split, name)
        for frame, (wanted, other) in enumerate(rng.uniform(1, 5, (frames, 2))):
            speed, seen = (wanted, other) if label_is_the_input else (other, wanted)
            writer.append(
                (frame + 1) * 100_000_000,
                velocity=speed,
                wheel_angle=float(frame % 5),
                points=rng.uniform(-5, 5, (4, 4)).astype(np.float32),
                image=np.full((8, 16, 3), round(50 * seen), np.uint8),
                target_velocity=wanted,
            )
        writer.close()
    return root


@pytest.mark.parametrize("leaks", [False, True])
def test_a_trained_student_without_its_eyes_tells_whether_the_label_leaks(tmp_path, leaks, capsys):
    root = write_drives(tmp_path / "set", label_is_the_input=leaks)
    run = run_student(None, (), {"data.root": root, **SETTINGS}, directory=tmp_path / "run")
    judged = json.loads((run / "evaluation" / "open_loop.json").read_text())
    seeing = judged["drivers"]["model"]["speed_mse"] / judged["drivers"]["constant"]["speed_mse"]
    assert seeing < 0.3  # it has learned, so that the blind one says something
    assert (judged["blanked_speed_unexplained"] > LEAK_SHARE) is not leaks
    assert ("LEAK: the label is read off the inputs" in judged["leak"]) is leaks
    assert judged["leak"] in capsys.readouterr().out
    assert judged["leak"].split(":")[0] in (run / "report.html").read_text(encoding="utf-8")
