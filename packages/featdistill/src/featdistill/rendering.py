"""Render folders from the command line: a student's views, a teacher's views."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from loom.errors import UserError
from loom.files import write_atomic
from loom.progress import Progress

from featdistill.assess import render_views, write_teacher_views
from featdistill.data.nerf_synthetic import read_cameras
from featdistill.data.ply import ply_of, read_ply
from featdistill.data.renders import driver_figures
from featdistill.features import gaussian_features
from featdistill.models.raster import render
from featdistill.restore import restore_student
from featdistill.teacher_views import camera_file


def render_run(
    checkpoint: Path,
    *,
    config: Path | None = None,
    output: Path | None = None,
    chunk: int | None = None,
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
        chunk=chunk,
        store_rgba=store_rgba,
        background=background,
        progress=progress.update,
    )
    progress.close()
    return folder


def render_teacher(
    teacher: Path,
    cameras: Path,
    output: Path,
    *,
    width: int | None = None,
    features: bool = False,
    background: str = "white",
) -> None:
    """Render a teacher's views of a camera file: RGBA, depth and, on demand, the 52 features.

    Features are alpha-composited, premultiplied, unscaled: `features/00000.npy`, float16
    [h, w, 52].
    """
    gaussians = read_ply(ply_of(teacher))
    views = read_cameras(cameras, width=width)
    write_teacher_views(gaussians, views, output, background)
    if not features:
        return
    values = gaussian_features(gaussians)
    (output / "features").mkdir(exist_ok=True)
    for number in range(len(views)):
        with torch.no_grad():
            shown = render(gaussians, views[number], channels=values)
        stream = BytesIO()
        np.save(stream, shown.channels.numpy().astype(np.float16))
        write_atomic(output / "features" / f"{number:05d}.npy", stream.getvalue())
