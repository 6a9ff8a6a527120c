"""A teacher and the cameras that it is seen from, as a configuration names them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from loom.errors import UserError
from loom.run import Run

from featdistill.cameras import Cameras, orbit_poses
from featdistill.config import FEATURE_DIM, DataSection
from featdistill.data.nerf_synthetic import read_cameras
from featdistill.data.ply import ply_of, read_ply
from featdistill.gaussians import Gaussians
from featdistill.models import field


class Teacher(NamedTuple):
    """A teacher and the cameras that a run looks at it from."""

    gaussians: Gaussians
    training: Cameras
    evaluation: Cameras
    typical_distance: float  # of the training cameras to the centre of the teacher, world units


def read_teacher(data: DataSection, run: Run) -> Teacher:
    """Read the teacher and the cameras, and register what the run depends on."""
    teacher = teacher_of(data)
    if data.teacher is not None:
        run.use("teacher", ply_of(data.teacher))
    for split in ("train", "test"):
        run.use(f"{split}_cameras", camera_file(data, split))
    run.info(f"loaded gaussian teacher features with dimension {FEATURE_DIM}")
    return teacher


def teacher_of(data: DataSection) -> Teacher:
    """Read the teacher and the cameras that a configuration names.

    Raises:
        UserError: One of them is not named, missing or damaged.
    """
    if data.teacher is None or (data.scene is None and data.camera_json is None):
        raise UserError(
            "data.teacher and data.scene are not both set",
            hint="give data.scene=FOLDER data.teacher=point_cloud.ply, or neither for the "
            "embedded brick model",
        )
    gaussians = read_ply(ply_of(data.teacher))
    cameras = {
        split: read_cameras(camera_file(data, split), width=data.width)
        for split in ("train", "test")
    }
    centre = field.bounding_box(gaussians).mean(dim=0)
    distance = (cameras["train"].centres - centre).norm(dim=1).mean().item()
    return Teacher(gaussians, cameras["train"], cameras["test"], distance)


def camera_file(data: DataSection, split: str) -> Path:
    """Return the camera file of the training ("train") or evaluation ("test") views."""
    explicit = data.camera_json if split == "train" else data.eval_camera_json
    if explicit is not None:
        return explicit
    folder = data.scene or (data.camera_json.parent if data.camera_json else Path())
    return folder / f"transforms_{split}.json"


def with_extra_poses(cameras: Cameras, count: int, generator: torch.Generator) -> Cameras:
    """Add random poses on the upper hemisphere at the cameras' own mean distance."""
    if not count:
        return cameras
    radius = cameras.centres.norm(dim=1).mean().item()
    poses = orbit_poses(count, radius, generator)
    return Cameras(
        torch.cat([cameras.poses_world_from_camera, poses]),
        cameras.width,
        cameras.height,
        cameras.focal_px,
        cameras.names + tuple(f"extra/{i}" for i in range(count)),
    )
