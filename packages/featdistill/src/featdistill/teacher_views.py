"""A teacher and the cameras that it is seen from, as a configuration names them.

A run keeps copies of both in `inputs/`. What looks at it or judges it again takes those, wherever
the run lies and whatever has become of the files that its configuration names: a teacher that has
been fitted further is not the one that this student learned from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from loom.errors import UserError
from loom.files import write_atomic
from loom.run import Run

from featdistill.cameras import Cameras, orbit_poses
from featdistill.config import FEATURE_DIM, DataSection
from featdistill.data.nerf_synthetic import read_cameras
from featdistill.data.ply import ply_of, read_ply
from featdistill.data.png import make_folder
from featdistill.data.transforms import content_at
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
    teacher = teacher_of(data, run.dir)
    if data.teacher is not None and data.teacher.exists():
        run.use("teacher", ply_of(data.teacher))
    for split in ("train", "test"):
        path = camera_file(data, split)
        if path.exists():
            run.use(f"{split}_cameras", path)
    run.info(f"loaded gaussian teacher features with dimension {FEATURE_DIM}")
    return teacher


def teacher_of(data: DataSection, run: Path | None = None) -> Teacher:
    """Read the teacher and the cameras that a configuration names.

    Args:
        data: What to read.
        run: Directory of the run that the configuration belongs to: its copies are taken, where it
            has some.

    Raises:
        UserError: One of them is not named, missing or damaged.
    """
    if data.teacher is None or (data.scene is None and data.camera_json is None):
        raise UserError(
            "data.teacher and data.scene are not both set",
            hint="give data.scene=FOLDER data.teacher=point_cloud.ply, or neither for the "
            "embedded brick model",
        )
    gaussians = read_ply(ply_of(_copy_or(data.teacher, run, "point_cloud.ply")))
    cameras = {split: cameras_of(data, split, run) for split in ("train", "test")}
    centre = field.bounding_box(gaussians).mean(dim=0)
    distance = (cameras["train"].centres - centre).norm(dim=1).mean().item()
    return Teacher(gaussians, cameras["train"], cameras["test"], distance)


def cameras_of(data: DataSection, split: str, run: Path | None = None) -> Cameras:
    """Read the training ("train") or evaluation ("test") cameras, as `teacher_of` does."""
    path = _copy_or(camera_file(data, split), run, f"transforms_{split}.json")
    return read_cameras(path, width=data.width)


def remember_inputs(data: DataSection, run: Path) -> None:
    """Copy the teacher and the camera files into a run's `inputs/`, where they are not yet there.

    Of a camera file they say the size of the images that the run uses.
    """
    make_folder(run / "inputs")
    if data.teacher is not None and not _copy(run, "point_cloud.ply").exists():
        write_atomic(_copy(run, "point_cloud.ply"), ply_of(data.teacher).read_bytes())
    for split in ("train", "test"):
        to = _copy(run, f"transforms_{split}.json")
        if not to.exists():
            path = camera_file(data, split)
            cameras = read_cameras(path, width=data.width)
            write_atomic(to, json.dumps(content_at(path, cameras.width, cameras.height)))


def _copy(run: Path, name: str) -> Path:
    return run / "inputs" / name


def _copy_or(path: Path, run: Path | None, name: str) -> Path:
    return _copy(run, name) if run is not None and _copy(run, name).exists() else path


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
