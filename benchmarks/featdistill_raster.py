"""The rasteriser: the native kernel beside its torch twin, in one process.

    uv run python benchmarks/featdistill_raster.py [--gaussians 15000] [--size 200] [--repeats 5]

Gaussians of a pixel or two lie on a sphere that fills the image as an object does, seen from the
distance of the NeRF-synthetic cameras. Single-thread CPU time, median of the repeats; the two take
turns so that a busy machine hits both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from featdistill.cameras import Cameras, orbit_poses
from featdistill.gaussians import Gaussians
from featdistill.models import raster
from featdistill.models.raster import render, render_pixels
from loom import native

CHANNELS, PIXELS = 52, 512


def sphere(n: int, generator: torch.Generator) -> Gaussians:
    """Gaussians near a sphere of radius 1."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    directions = torch.nn.functional.normalize(normal(n, 3), dim=1)
    spacing = (4 * torch.pi / n) ** 0.5
    return Gaussians(
        means=directions * (1 + 0.02 * normal(n, 1)),
        log_scales=0.3 * normal(n, 3) + torch.tensor(0.5 * spacing).log(),
        rotations=normal(n, 4),
        opacity_logits=normal(n) + 1,
        sh=0.2 * normal(n, 16, 3),
    )


def forward(gaussians: Gaussians, camera: Cameras, impl: str) -> None:
    """Render without a gradient."""
    with torch.no_grad():
        render(gaussians, camera, impl=impl)


def forward_backward(gaussians: Gaussians, camera: Cameras, impl: str) -> None:
    """Render, and compute the gradient of every parameter."""
    leaves = [tensor.requires_grad_() for tensor in gaussians.map(torch.clone).tensors()]
    shown = render(Gaussians(*leaves), camera, impl=impl)
    (shown.rgb.square().mean() + shown.transmittance.square().mean()).backward()


def milliseconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gaussians", type=int, default=15_000)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    library = native.library("featdistill_raster", sources=[raster.SOURCE])
    if isinstance(library, native.Unavailable):
        raise SystemExit(f"no kernel to compare: {library.reason}")

    generator = torch.Generator().manual_seed(0)
    gaussians = sphere(arguments.gaussians, generator)
    focal_px = arguments.size * 1111.11 / 800
    poses = orbit_poses(1, 4.03, generator)
    camera = Cameras(poses, arguments.size, arguments.size, focal_px, ("view",))
    pixels = torch.randint(arguments.size, (PIXELS, 2), generator=generator)
    channels = torch.randn(arguments.gaussians, CHANNELS, generator=generator)

    print(f"{arguments.gaussians} gaussians, {arguments.size}x{arguments.size}, {library.isa}")
    print(f"{'':34}{'kernel':>12}{'torch twin':>14}{'ratio':>9}")
    for name, work in (("forward", forward), ("forward + backward", forward_backward)):
        times: dict[str, list[float]] = {"cpu": [], "torch": []}
        for _ in range(arguments.repeats + 1):
            for impl, values in times.items():
                values.append(milliseconds(lambda w=work, i=impl: w(gaussians, camera, i)))
        ours, twin = (statistics.median(times[impl][1:]) for impl in ("cpu", "torch"))
        print(f"{name:34}{ours:9.1f} ms{twin:11.1f} ms{twin / ours:9.1f}")
    chosen = statistics.median(
        milliseconds(lambda: render_pixels(gaussians, camera, pixels, channels, impl="cpu"))
        for _ in range(4 * arguments.repeats)
    )
    print(f"{f'{PIXELS} pixels x {CHANNELS} channels':34}{chosen:9.1f} ms")


if __name__ == "__main__":
    main()
