"""Render folders from the command line: a student's views, a teacher's views."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from loom.errors import UserError
from loom.files import write_atomic
from loom.progress import Progress

from featdistill.assess import render_views
from featdistill.data.nerf_synthetic import read_cameras
from featdistill.data.npz import npy_bytes
from featdistill.data.renders import driver_figures, write_frame
from featdistill.features import gaussian_features
from featdistill.models.raster import render
from featdistill.restore import restore_student
from featdistill.supervision import render_frames
from featdistill.teacher_run import read_teacher_model
from featdistill.train import camera_file


def render_run(
    checkpoint: Path,
    *,
    config: Path | None = None,
    output: Path | None = None,
    store_rgba: bool = False,
    start: int = 0,
    count: int | None = None,
    background: str = "white",
    require_driver: bool = False,
) -> Path:
    """Render the evaluation views of a student; return the render folder."""
    if require_driver and driver_figures().name is None:
        disabled = os.environ.get("KILOGS_DISABLE_NVML") == "1"
        raise UserError(
            "--enable-nvml, but the driver gives no figures"
            + (" (KILOGS_DISABLE_NVML=1)" if disabled else ""),
            hint="leave it out: without it the figures are null where there is no accelerator",
        )
    restored = restore_student(checkpoint, config)
    data = restored.config.data
    cameras = read_cameras(camera_file(data, "test"), width=data.width)
    if start >= len(cameras):
        raise UserError(
            f"--start-frame {start}, but there are {len(cameras)} views",
            hint=f"frames are 0 to {len(cameras) - 1}",
        )
    folder = output or restored.run / "renders" / f"step_{restored.step:06d}"
    total = len(cameras) - start if count is None else min(count, len(cameras) - start)
    progress = Progress("render", total)
    render_views(
        restored.student,
        cameras,
        folder,
        start=start,
        count=count,
        store_rgba=store_rgba,
        background=background,
        progress=progress.update,
    )
    progress.close()
    return folder
