"""The scene and teacher that every clone can make: brick model, camera folder, fitted gaussians.

They are made once, under `data/featdistill` of the working directory, and used by any command that
is given no data of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from loom.config import resolve
from loom.run import Run

SCENE = Path("data/featdistill/bricks")
TEACHER = Path("data/featdistill/bricks-teacher")

TEACHER_SETTINGS = (
    "name=bricks-teacher",
    "gaussians=8000",
    "start.resolution=64",
    "train.max_steps=1200",
    "log_interval=100",
)
"""What fits 100x100 views of the bricks in under a CPU-minute."""


def embedded_scene(say: Callable[[str], None], folder: Path = SCENE) -> Path:
    """Return the folder of the brick scene; ray-trace it if it is not there yet."""
    from featdistill.data.bricks import write_scene

    if write_scene(folder):
        say(f"[data] the embedded brick scene was ray-traced to {folder}")
    return folder


def embedded_teacher(
    say: Callable[[str], None], scene: Path = SCENE, directory: Path = TEACHER
) -> Path:
    """Return the run directory of the brick scene's teacher; fit it if it is not there yet."""
    from featdistill.teacher import fit_teacher
    from featdistill.teacher_config import TeacherConfig

    ply = directory / "point_cloud.ply"
    if not ply.is_file():
        say(f"[data] fitting the embedded teacher in {directory}")
        resolved = resolve(TeacherConfig, overrides=TEACHER_SETTINGS, flags={"data.scene": scene})
        unfinished = (directory / "run.json").is_file()
        with Run.open(
            "featdistill", TeacherConfig, resolved, directory=directory, resume=unfinished
        ) as run:
            fit_teacher(run.config, run)
    return directory
