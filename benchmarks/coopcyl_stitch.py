"""Four images of 800x600 to one panorama of 1008x252: our stitch beside two others, one process.

    uv run python benchmarks/coopcyl_stitch.py [--repeats 7] [--data FOLDER]

`notes` is what the notes' pipeline does for each frame, without its crop: geometry worked out
again, bilinear interpolation in numpy, and a blend of the cameras weighted by the cosine to their
axes. `grid_sample` has its grids and weights ready and interpolates the four images in one batch.
`ours` copies the images into the mosaic and remaps it; the mosaic alone is what a loader pays that
decodes into it. Single-thread CPU time, best of the repeats, which take turns.

With the files of a synthetic vehicle (written to a temporary folder unless one is given) it also
measures decoding and stitching together, and the cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from coopcyl.data.cache import StitchedCache
from coopcyl.data.depth import DepthSource
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.synth.write import SynthOptions, write_tree
from coopcyl.data.tree import read_tree
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import Rig, opv2v_rig
from coopcyl.geometry.stitch_table import build_table
from torch.nn import functional

PANORAMA = Panorama(1008, 252, "equirect_band", -45, 45)


def stitch_like_the_notes(images: list[np.ndarray], rig: Rig) -> np.ndarray:
    """Work out the geometry, interpolate and blend, all for this frame."""
    directions = PANORAMA.directions()
    total = np.zeros((*directions.shape[:2], 3))
    weights = np.zeros(directions.shape[:2])
    for image, camera in zip(images, rig.cameras, strict=True):
        own = directions @ camera.pose_rig_from_camera[:3, :3]
        pixels, z = camera.project_directions(own)
        inside = camera.contains(pixels)
        u, v = (np.clip(pixels[inside] - 0.5, 0, [camera.width - 1, camera.height - 1])).T
        left, top = np.floor(u).astype(int), np.floor(v).astype(int)
        right, bottom = (
            np.minimum(left + 1, camera.width - 1),
            np.minimum(top + 1, camera.height - 1),
        )
        a, b = (u - left)[:, None], (v - top)[:, None]
        colour = (image[top, left] * (1 - a) + image[top, right] * a) * (1 - b) + (
            image[bottom, left] * (1 - a) + image[bottom, right] * a
        ) * b
        total[inside] += colour * z[inside, None]
        weights[inside] += z[inside]
    return (total / np.maximum(weights, 1e-6)[..., None]).astype(np.uint8)


class GridSample:
    """The same blend by torch, its grids and weights computed once."""

    def __init__(self, rig: Rig) -> None:
        directions = PANORAMA.directions()
        grids, weights = [], []
        for camera in rig.cameras:
            pixels, z = camera.project_directions(directions @ camera.pose_rig_from_camera[:3, :3])
            inside = camera.contains(pixels)
            size = np.array([camera.width, camera.height])
            grids.append(np.where(inside[..., None], pixels / size * 2 - 1, -2))
            weights.append(np.where(inside, z, 0))
        self.grid = torch.tensor(np.stack(grids), dtype=torch.float32)
        weight = torch.tensor(np.stack(weights), dtype=torch.float32)
        self.weight = (weight / weight.sum(0).clamp_min(1e-6))[:, None]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Stitch uint8 `(cameras, height, width, 3)`."""
        planes = images.permute(0, 3, 1, 2).float()
        sampled = functional.grid_sample(
            planes, self.grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        return (sampled * self.weight).sum(0).byte()


def measure(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the best CPU seconds of each action; they take turns, the first one not counted."""
    best = dict.fromkeys(actions, float("inf"))
    for turn in range(repeats + 1):
        for name, action in actions.items():
            count = 1 if name == "notes" else 5
            begin = time.process_time()
            for _ in range(count):
                action()
            spent = (time.process_time() - begin) / count
            if turn:
                best[name] = min(best[name], spent)
    return best


def stitching(repeats: int) -> None:
    """Print the time of each way to stitch images that are in memory."""
    rig = opv2v_rig()
    rng = np.random.default_rng(0)
    smooth = [
        cv2.resize(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (800, 600)) for _ in "1234"
    ]
    table, grid = build_table(rig, PANORAMA), GridSample(rig)
    mosaic = table.place(smooth, table.new_mosaic())
    batch = torch.from_numpy(np.stack(smooth))
    best = measure(
        {
            "notes": lambda: stitch_like_the_notes(smooth, rig),
            "grid_sample": lambda: grid(batch),
            "ours": lambda: table.stitch_mosaic(table.place(smooth, mosaic)),
            "ours, mosaic ready": lambda: table.stitch_mosaic(mosaic),
        },
        repeats,
    )
    ours, theirs = table.stitch(smooth), stitch_like_the_notes(smooth, rig)
    alone = np.isclose(grid.weight.max(0).values[0].numpy(), 1.0) & table.coverage
    difference = np.abs(ours[alone].astype(int) - theirs[alone]).max()
    assert difference <= 8, f"the pictures differ by {difference} where one camera sees"
    print(
        f"{'method':<20} {'ms':>8} {'per second':>11} {'notes / it':>11} {'grid_sample / it':>17}"
    )
    for name, seconds in best.items():
        print(
            f"{name:<20} {1e3 * seconds:8.2f} {1 / seconds:11.1f} {best['notes'] / seconds:11.1f} "
            f"{best['grid_sample'] / seconds:17.1f}"
        )


def loading(repeats: int, folder: Path) -> None:
    """Print the time of reading a vehicle's panorama from its files and from the cache."""
    source = DepthSource("npy")
    agent = read_tree(folder, "train", source).frames[0].agents[0]
    reader = PanoramaReader(PANORAMA, source)
    cache = StitchedCache(folder / "cache", reader)
    best = measure(
        {"files": lambda: reader.read(agent), "cache": lambda: cache.read(agent)}, repeats
    )
    for name, seconds in best.items():
        print(f"a view from the {name:<6} {1e3 * seconds:8.2f} ms {1 / seconds:8.1f} per second")


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description="Compare ways to stitch a panorama.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", type=Path, help="Folder with a synthetic split `train`.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    stitching(arguments.repeats)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary)
        if arguments.data is None:
            write_tree(folder, SynthOptions(scenarios=1, vehicles=(1, 1), depth=("npy",)))
        loading(arguments.repeats, folder)


if __name__ == "__main__":
    main()
