"""Pictures from the command line: a student's views, a film of it, its file, a teacher's views."""

from __future__ import annotations

import math
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from loom.device import choose_device
from loom.errors import UserError
from loom.files import write_atomic
from loom.film import require_film_name, write_film
from loom.progress import Progress

from featdistill.assess import render_views, write_teacher_views
from featdistill.data.nerf_synthetic import read_cameras
from featdistill.data.ply import ply_of, read_ply
from featdistill.data.png import make_folder
from featdistill.data.renders import driver_figures
from featdistill.data.rgba import BACKGROUNDS, composite
from featdistill.features import gaussian_features
from featdistill.models.raster import render
from featdistill.models.student import render_image
from featdistill.orbit import circle, orbit_camera, orbit_of
from featdistill.restore import restore_student
from featdistill.student_file import read_student, write_student
from featdistill.student_onnx import write_onnx
from featdistill.teacher_views import cameras_of

SECONDS_PER_TURN = 6.0
EXPORTS = (".safetensors", ".onnx")


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
    device: str = "auto",
    require_driver: bool = False,
) -> Path:
    """Render the evaluation views of a student; return the render folder.

    Raises:
        UserError: There is no intact checkpoint, no such view or device, or `require_driver` and
            the driver gives no figures.
    """
    chosen = choose_device(device)
    if require_driver and driver_figures().name is None:
        disabled = os.environ.get("KILOGS_DISABLE_NVML") == "1"
        raise UserError(
            "--enable-nvml, but the driver gives no figures"
            + (" (KILOGS_DISABLE_NVML=1)" if disabled else ""),
            hint="leave it out: without it the figures are null where there is no accelerator",
        )
    restored = restore_student(checkpoint, config)
    cameras = cameras_of(restored.config.data, "test", restored.run)
    if start >= len(cameras):
        raise UserError(
            f"--start-frame {start}, but there are {len(cameras)} views",
            hint=f"frames are 0 to {len(cameras) - 1}",
        )
    folder = output or restored.run / "renders" / f"step_{restored.step:06d}"
    total = len(cameras) - start if count is None else min(count, len(cameras) - start)
    progress = Progress("render", total)
    render_views(
        restored.student.to(chosen),
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


def render_film(
    checkpoint: Path, output: Path, *, frames: int, background: str, device: str = "auto"
) -> Path:
    """Render one turn about a student, from the first evaluation view, as a moving picture.

    Raises:
        UserError: The file is no .webp, .gif or .mp4, there is no intact checkpoint, or no such
            device.
    """
    require_film_name(output)
    chosen = choose_device(device)
    restored = restore_student(checkpoint)
    cameras = cameras_of(restored.config.data, "test", restored.run)
    target = restored.student.box.mean(dim=0)
    student = restored.student.to(chosen)
    turn = circle(orbit_of(cameras.centres[0], target), frames)
    progress = Progress("film", frames)
    pictures = []
    for number, place in enumerate(turn, start=1):
        rgba, _ = render_image(student, orbit_camera(place, target, cameras, cameras.width))
        pictures.append(composite(rgba.cpu().numpy(), BACKGROUNDS[background]))
        progress.update(number)
    progress.close()
    write_film(output, pictures, len(pictures) / SECONDS_PER_TURN)
    return output


def export_student(checkpoint: Path, output: Path) -> str:
    """Write a student file and say how large it is and what half precision costs.

    The cost is measured on the first evaluation view: the file is read back and rendered beside the
    student that it was written from. A name that ends with .onnx gets the networks alone.
    """
    if output.suffix not in EXPORTS:
        raise UserError(
            f"{output}: a student is written as {' or '.join(EXPORTS)}",
            hint="name it FILE.safetensors for a renderer, FILE.onnx for the networks alone",
        )
    restored = restore_student(checkpoint)
    make_folder(output.parent)
    write = write_onnx if output.suffix == ".onnx" else write_student
    written = write(restored.student, output)
    contents = (
        f"{output}: {written.size / 1e6:.1f} MB, {written.cells} networks "
        f"({written.dropped} that pruning emptied left out)"
    )
    if output.suffix == ".onnx":
        return contents
    camera = cameras_of(restored.config.data, "test", restored.run)[0]
    with torch.no_grad():
        students = restored.student, read_student(output)
        pair = [render_image(s, camera, precision="float32")[0] for s in students]
    error = (pair[0] - pair[1])[..., :3].abs()
    psnr = -10 * math.log10(max(error.square().mean().item(), 1e-20))
    return (
        f"{contents}; half precision leaves the first view at {psnr:.1f} dB against the student's "
        f"own and moves a colour by at most {255 * error.max().item():.2f}/255"
    )


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
