"""The folder that a render command leaves, and any other folder of numbered PNG files.

    renders/00000.png        the frame on a background, 8 bit RGB: for eyes and direct comparison
    rgba_npz/00000.npz       "rgba": float16 [h, w, 4], premultiplied, linear in alpha
    depth/00000.npy          float32 [h, w], distance along the ray in world units
    render_stats.json        frames per second, peak memory, and the accelerator's own figures

Frames are known by the last number in their name and read in that order: 2 before 10, and "r_7.png"
of a data set is frame 7 of a render. Straight alpha would make a second convention, so there is
none: colours in `rgba_npz` go over a background B as C + (1 - alpha) B.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from loom.arrays import read_npz, write_npz
from loom.errors import UserError
from loom.files import write_atomic, write_json
from torch import Tensor

from featdistill.data.png import make_folder, write_png
from featdistill.data.rgba import BACKGROUNDS, composite

STATS_FILE = "render_stats.json"
_NUMBER = re.compile(r"(\d+)(?!.*\d)")


def write_frame(
    folder: Path,
    number: int,
    rgba: Tensor | np.ndarray,
    *,
    depth: Tensor | np.ndarray | None = None,
    background: str = "white",
    store_rgba: bool = True,
) -> None:
    """Write one rendered frame.

    Args:
        folder: The render folder.
        number: Position of the frame in its split; it becomes the file name.
        rgba: Premultiplied floats, [h, w, 4].
        depth: Distance along the ray in world units, [h, w].
        background: "white" or "black", under the PNG.
        store_rgba: Whether to keep `rgba_npz` too, which evaluation on any background needs.

    Raises:
        UserError: A value is not finite, or the disk refuses.
    """
    pixels = np.asarray(rgba, dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise UserError(
            f"frame {number} has {np.count_nonzero(~np.isfinite(pixels))} values that are not"
            " finite",
            hint="the checkpoint diverged; render an earlier one",
        )
    stem = f"{number:05d}"
    if store_rgba:
        rounded = pixels.astype(np.float16)
        write_npz(folder / "rgba_npz" / f"{stem}.npz", {"rgba": rounded}, compress=True)
    if depth is not None:
        stream = BytesIO()
        np.save(stream, np.asarray(depth, dtype=np.float32))
        make_folder(folder / "depth")
        write_atomic(folder / "depth" / f"{stem}.npy", stream.getvalue())
    write_png(folder / "renders" / f"{stem}.png", composite(pixels, BACKGROUNDS[background]))


def find_pictures(folder: Path) -> dict[int, Path]:
    """Find the PNG files of a folder, by number and in that order.

    The folder may hold them itself, or be a render folder, or hold one (`*/renders/renders`).

    Raises:
        UserError: There are none, or it is not clear which are meant.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder", hint="give the folder that holds the PNG files"
        )
    nested = [place for place in (folder, folder / "renders") if any(place.glob("*.png"))]
    nested = nested or [p for p in sorted(folder.rglob("renders")) if any(p.glob("*.png"))]
    if not nested:
        raise UserError(
            f"{folder} holds no PNG files, nor does a folder `renders` in it",
            hint="render the frames first, or give the folder that holds them",
        )
    if len(nested) > 1 and nested[0] != folder:
        listed = ", ".join(str(place) for place in nested[:4])
        raise UserError(f"{folder} holds several sets of PNG files: {listed}", hint="give one")
    return by_number(nested[0], ".png")


def find_rgba(folder: Path) -> dict[int, Path]:
    """Find `rgba_npz` of a render folder by number; empty where the folder is not there."""
    return by_number(Path(folder) / "rgba_npz", ".npz")


def by_number(folder: Path, suffix: str) -> dict[int, Path]:
    """List the files with a suffix by the last number in their name, in that order.

    Raises:
        UserError: A name has no number, or two names have the same.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.glob(f"*{suffix}")):
        match = _NUMBER.search(path.stem)
        if match is None:
            raise UserError(f"{path} has no frame number in its name", hint="move it elsewhere")
        other = found.setdefault(int(match[1]), path)
        if other is not path:
            raise UserError(
                f"{other} and {path.name} are both frame {int(match[1])}",
                hint="keep one numbered file per frame in a folder",
            )
    return dict(sorted(found.items()))


def read_rgba(path: Path) -> np.ndarray:
    """Read one file of `rgba_npz` as premultiplied float32 [h, w, 4].

    Raises:
        UserError: The file is damaged or holds something else.
    """
    rgba = read_npz(path, ["rgba"])["rgba"]
    if rgba.ndim != 3 or rgba.shape[2] != 4 or rgba.dtype.kind != "f":
        raise UserError(
            f"{path}: rgba is {rgba.dtype} {list(rgba.shape)}, expected floats [h, w, 4]",
            hint="render the frame again with this version",
        )
    values = rgba.astype(np.float32)
    if not np.isfinite(values).all() or values[..., 3].min() < -0.01 or values[..., 3].max() > 1.01:
        raise UserError(
            f"{path}: alpha must be finite and in [0, 1], but spans"
            f" [{values[..., 3].min():.3g}, {values[..., 3].max():.3g}]",
            hint="render the frame again; if that repeats, the checkpoint diverged",
        )
    return values


@dataclass(frozen=True)
class RenderStats:
    """What rendering cost. A figure that could not be measured is None."""

    frames: int
    width: int
    height: int
    seconds: float
    avg_fps: float
    device: str
    peak_memory_mib: float
    gpu_peak_memory_mib: float | None = None
    gpu_name: str | None = None
    gpu_memory_used_mib: float | None = None
    gpu_power_w: float | None = None
    gpu_utilization_percent: float | None = None


def write_stats(folder: Path, stats: RenderStats) -> None:
    """Write `render_stats.json`."""
    make_folder(folder)
    write_json(folder / STATS_FILE, asdict(stats))


def measure_stats(
    frames: int,
    width: int,
    height: int,
    seconds: float,
    *,
    device: str = "cpu",
    gpu_peak_memory_mib: float | None = None,
) -> RenderStats:
    """Add the machine's figures to a measured rendering time.

    Args:
        frames: How many frames were rendered.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        seconds: Wall time for all frames, without writing the files.
        device: The torch device that rendered; a CUDA device adds what its driver reports.
        gpu_peak_memory_mib: `torch.cuda.max_memory_allocated`, where it applies.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    driver = driver_figures() if device.startswith("cuda") else DriverFigures()
    return RenderStats(
        frames=frames,
        width=width,
        height=height,
        seconds=seconds,
        avg_fps=frames / seconds if seconds > 0 else 0.0,
        device=device,
        peak_memory_mib=peak / unit,
        gpu_peak_memory_mib=gpu_peak_memory_mib,
        gpu_name=driver.name,
        gpu_memory_used_mib=driver.memory_used_mib,
        gpu_power_w=driver.power_w,
        gpu_utilization_percent=driver.utilization_percent,
    )


class DriverFigures(NamedTuple):
    """What the driver (NVML) says of a device; None where it does not."""

    name: str | None = None
    memory_used_mib: float | None = None
    power_w: float | None = None
    utilization_percent: float | None = None


def driver_figures() -> DriverFigures:
    """Ask NVML, through nvidia-smi, for the figures of the first visible device."""
    program = shutil.which("nvidia-smi")
    if program is None or os.environ.get("KILOGS_DISABLE_NVML") == "1":
        return DriverFigures()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    query = "name,memory.used,power.draw,utilization.gpu"
    command = [program, f"--id={first}", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return DriverFigures()
    return parse_driver_line(done.stdout) if done.returncode == 0 else DriverFigures()


def parse_driver_line(text: str) -> DriverFigures:
    """Read a line "name, MiB, W, %" of nvidia-smi; "[N/A]" and the like become None."""
    cells = [cell.strip() for cell in text.strip().split("\n")[0].rsplit(",", 3)]
    if len(cells) != 4:
        return DriverFigures()
    figures = [float(c) if re.fullmatch(r"\d+(\.\d+)?", c) else None for c in cells[1:]]
    return DriverFigures(cells[0], *figures)
