"""RoboTwin 2.0 episodes written: the counterpart of `robotwin`, in either HDF5 layout.

Pictures are handed to OpenCV's encoder as RGB, which takes them for BGR, as RoboTwin does it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import h5py
import numpy as np
from loom.files import explained, write_atomic

Layout = Literal["old", "new"]
CONFIGURATION = "demo_clean"


@dataclass(frozen=True, eq=False)
class Recording:
    """What is known of an episode of T steps.

    Attributes:
        pictures: T RGB pictures, (H, W, 3) uint8.
        vector: (T, 14) joints and openings.
        endposes: Left and right, (T, 7): position in metres, quaternion w x y z.
        intrinsic: (3, 3) of the head camera, pixels.
        camera_from_world: (3, 4), x right, y down, z forward.
        seen: Texts that describe the task.
        unseen: Texts kept back for tests.
    """

    pictures: Sequence[np.ndarray]
    vector: np.ndarray
    endposes: tuple[np.ndarray, np.ndarray]
    intrinsic: np.ndarray
    camera_from_world: np.ndarray
    seen: tuple[str, ...]
    unseen: tuple[str, ...] = ()


def episode_path(root: Path, task: str, number: int, layout: Layout = "old") -> Path:
    """Return where RoboTwin keeps an episode below its data folder."""
    if layout == "old":
        return root / task / CONFIGURATION / "data" / f"episode{number}.hdf5"
    return root / CONFIGURATION / task / "aloha" / "data" / f"episode_{number:07d}.hdf5"


def write_recording(path: Path, recording: Recording, layout: Layout = "old") -> None:
    """Write an episode whole or not at all; its folder is made."""
    jpegs = [cv2.imencode(".jpg", image)[1].tobytes() for image in recording.pictures]
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = BytesIO()
    with h5py.File(content, "w") as file:
        write = _write_old if layout == "old" else _write_new
        write(file, recording, jpegs)
    if layout == "old":  # before the episode: where that is, all of it is
        folder = path.parent.parent / "instructions"
        folder.mkdir(exist_ok=True)
        texts = {"seen": list(recording.seen), "unseen": list(recording.unseen)}
        (folder / f"{path.stem}.json").write_text(json.dumps(texts), encoding="utf-8")
    write_atomic(path, content.getvalue(), sync=False)


def _write_old(file: Any, recording: Recording, jpegs: list[bytes]) -> None:
    camera = file.create_group("observation/head_camera")
    camera["rgb"] = np.array(jpegs, dtype=f"S{max(map(len, jpegs))}")
    camera["intrinsic_cv"] = np.tile(recording.intrinsic, (len(jpegs), 1, 1))
    camera["extrinsic_cv"] = np.tile(recording.camera_from_world, (len(jpegs), 1, 1))
    joints, vector = file.create_group("joint_action"), recording.vector
    joints["left_arm"], joints["left_gripper"] = vector[:, :6], vector[:, 6]
    joints["right_arm"], joints["right_gripper"] = vector[:, 7:13], vector[:, 13]
    joints["vector"] = vector
    for side, pose, column in zip(("left", "right"), recording.endposes, (6, 13), strict=True):
        file[f"endpose/{side}_endpose"] = pose
        file[f"endpose/{side}_gripper"] = vector[:, column]


def _write_new(file: Any, recording: Recording, jpegs: list[bytes]) -> None:
    file["data_format_version"] = "1.0"
    file["instructions"] = json.dumps(list(recording.seen))
    file["additional_info/frequency"] = 16.67
    camera = file.create_group("vision/cam_head")
    camera["colors"] = np.array(jpegs[:-1], dtype=f"S{max(map(len, jpegs))}")
    camera["shape"] = np.array(recording.pictures[0].shape)
    camera["intrinsic_matrix"] = recording.intrinsic
    world_from_cv = np.linalg.inv(np.vstack([recording.camera_from_world, [0, 0, 0, 1]]))
    camera["extrinsics_matrix"] = world_from_cv @ np.diag([1.0, -1, -1, 1])
    for group, rows in (("state", slice(None, -1)), ("action", slice(1, None))):
        part = recording.vector[rows]
        for side, first in (("left", 0), ("right", 7)):
            file[f"{group}/{side}_arm_joint_states"] = part[:, first : first + 6]
            file[f"{group}/{side}_ee_joint_states"] = part[:, first + 6]
        for side, pose in zip(("left", "right"), recording.endposes, strict=True):
            file[f"{group}/{side}_ee_poses"] = pose[rows]
