"""The teacher's renders: whole frames, and the part of them that rays are drawn from.

400 frames of 800x800 would take 5 GB as floats. Two thirds of their pixels are empty and far from
anything, and a colour needs no more than half precision (its rounding is 70 dB below white), so
that `Foreground` takes a quarter of that: 16 bytes a pixel, on LEGO 3.2 MB a frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from loom.errors import UserError
from loom.run import Run
from torch import Tensor

from featdistill.cameras import Cameras
from featdistill.gaussians import Gaussians
from featdistill.models.raster import render

FOREGROUND_ALPHA = 0.01
FOREGROUND_MARGIN_PX = 2

MEMORY_FILE = Path("/proc/meminfo")
PEAK = 1.4
"""Memory while the frames are joined, as a multiple of what they take afterwards."""


class TeacherFrames(NamedTuple):
    """The teacher's renders of n views of the same size."""

    cameras: Cameras
    rgb: Tensor  # [n, h, w, 3] premultiplied
    transmittance: Tensor  # [n, h, w]
    depth: Tensor  # [n, h, w] alpha-weighted mean distance along the ray, world units

    def on_background(self, value: float) -> Tensor:
        """The frames as 8-bit pictures [n, h, w, 3] on a grey background of this value."""
        rgb = self.rgb + self.transmittance[..., None] * value
        return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


class Foreground(NamedTuple):
    """The pixels of n views where the teacher shows something, and a margin around them."""

    cameras: Cameras
    pixels: Tensor  # [p] int32, (view h + y) w + x, rising
    first: Tensor  # [n + 1] where each view's pixels begin
    rgb: Tensor  # [p, 3] half, premultiplied
    transmittance: Tensor  # [p] half
    depth: Tensor  # [p] float, as in TeacherFrames

    @property
    def size_bytes(self) -> int:
        """Memory of the pixels."""
        held = (self.pixels, self.rgb, self.transmittance, self.depth)
        return sum(tensor.nbytes for tensor in held)


def each_frame(
    gaussians: Gaussians, cameras: Cameras, impl: str = "auto"
) -> Iterator[TeacherFrames]:
    """Render the views of the teacher one by one."""
    stretch = _distance_per_depth(cameras)
    for index in range(len(cameras)):
        with torch.no_grad():
            view = render(gaussians, cameras[index], impl=impl)
        alpha = (1 - view.transmittance).clamp_min(1e-6)
        depth = view.depth / alpha * stretch
        yield TeacherFrames(cameras[index], view.rgb[None], view.transmittance[None], depth[None])


def render_frames(gaussians: Gaussians, cameras: Cameras, impl: str = "auto") -> TeacherFrames:
    """Render every view of the teacher."""
    frames = list(each_frame(gaussians, cameras, impl))
    columns = list(zip(*frames, strict=True))[1:]
    return TeacherFrames(cameras, *(torch.cat(column) for column in columns))


def _distance_per_depth(cameras: Cameras) -> Tensor:
    """Length of each pixel's ray per unit of depth along the optical axis, [h, w]."""
    y, x = torch.meshgrid(
        torch.arange(cameras.height) + 0.5 - cameras.height / 2,
        torch.arange(cameras.width) + 0.5 - cameras.width / 2,
        indexing="ij",
    )
    return (1 + (x.square() + y.square()) / cameras.focal_px**2).sqrt()


def foreground(cameras: Cameras, frames: Iterable[TeacherFrames]) -> Foreground:
    """Keep the pixels worth drawing of frames that together show all views of `cameras`.

    Raises:
        UserError: There are more pixels than 32 bits number.
    """
    total = len(cameras) * cameras.height * cameras.width
    if total > torch.iinfo(torch.int32).max:
        raise UserError(
            f"{len(cameras)} views of {cameras.width}x{cameras.height} have {total} pixels, more "
            f"than {torch.iinfo(torch.int32).max}",
            hint="take fewer random poses (data.extra_poses) or smaller pictures (data.width)",
        )
    pixels, rgb, transmittance, depth = [], [], [], []
    counts, done = [0], 0
    for frame in frames:
        for view in range(len(frame.cameras)):
            flat = _near_something(frame.transmittance[view])
            pixels.append((flat + done * frame.transmittance[view].numel()).to(torch.int32))
            rgb.append(frame.rgb[view].reshape(-1, 3)[flat].half())
            transmittance.append(frame.transmittance[view].flatten()[flat].half())
            depth.append(frame.depth[view].flatten()[flat])
            counts.append(len(flat))
            done += 1
    if done != len(cameras):
        raise ValueError(f"{done} frames of {len(cameras)} views")
    whole = []
    for column in (pixels, rgb, transmittance, depth):
        whole.append(torch.cat(column))
        column.clear()  # two copies of everything would be the peak of a training's memory
    return Foreground(cameras, whole[0], torch.tensor(counts).cumsum(0), *whole[1:])


def load_frames(gaussians: Gaussians, cameras: Cameras, run: Run) -> Foreground:
    """Render the views that a run learns from and keep their foreground, with a progress line.

    Where that will not fit into memory, a warning says so before.
    """
    first = foreground(cameras[:1], each_frame(gaussians, cameras[:1]))
    expected, free = len(cameras) * first.size_bytes, available_bytes()
    if free is not None and PEAK * expected > free:
        run.warn(
            f"{len(cameras)} views of {cameras.width}x{cameras.height} will take about "
            f"{PEAK * expected / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free: take "
            "fewer random poses (data.extra_poses) or smaller pictures (data.width)"
        )
    progress = run.progress("teacher frames", len(cameras))

    def frames() -> Iterator[TeacherFrames]:
        for number, frame in enumerate(each_frame(gaussians, cameras), start=1):
            yield frame
            progress.update(number)

    shown = foreground(cameras, frames())
    progress.close()
    return shown


def available_bytes() -> int | None:
    """Return the memory that programs can still have; None where the system does not say."""
    try:
        lines = MEMORY_FILE.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kibibytes[0]) if kibibytes else None


def _near_something(transmittance: Tensor) -> Tensor:
    """Flat indices of the pixels with some alpha within the margin."""
    size = 2 * FOREGROUND_MARGIN_PX + 1
    shown = (1 - transmittance > FOREGROUND_ALPHA).float()
    wide = torch.nn.functional.max_pool2d(
        shown[None, None], size, stride=1, padding=FOREGROUND_MARGIN_PX
    )
    return torch.nonzero(wide.flatten()).flatten()
