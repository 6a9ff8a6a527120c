"""The loader: frame store beside the notes' float32 layout, batches of 64, in one process.

    uv run python benchmarks/maniflow_overlay_loader.py [--frames 2000] [--folder DIR] [--repeats 5]

The notes' data set keeps (N, 3, 224, 224) float32 in memory and hands out, for each sample, the
whole horizon of 16 current pictures and 16 times the first one, then collates. It is measured on
300 frames, since its time does not depend on their number. CPU time of one thread, best of the
repeats, which take turns. `resident` is what this process holds more after all frames of the store
went through it once. 17,255 frames are the notes' data: 2.6 GB on disk.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from maniflow_overlay.data.convert import Rows, Source, convert
from maniflow_overlay.data.frame_store import FrameStore, StoreShape
from maniflow_overlay.data.path_layers import PathLayers, write_layers
from maniflow_overlay.data.windows import Batches, Windows, WindowShape
from maniflow_overlay.gripper_path import GripperPath, path_from_rows

BATCH, HORIZON, EPISODE, SIDE = 64, 16, 115, 224
NOTES_FRAMES = 300


def build(folder: Path, frames: int) -> tuple[FrameStore, PathLayers]:
    """Write a store of noise and a path for every frame."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    (folder / "source").write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()

    def source(number: int, rows: int) -> Source:
        vectors = np.full((rows, 14), number, np.float32)

        def read() -> Rows:
            pictures = (base + np.uint8((number + row) % 256) for row in range(rows))
            return Rows("task", number, "noise", digest, pictures, vectors, vectors, ())

        return Source("task", number, folder / "source", read)

    lengths = [min(EPISODE, frames - begin) for begin in range(0, frames, EPISODE)]
    sources = [source(number, rows) for number, rows in enumerate(lengths)]
    convert(sources, folder / "store", StoreShape(SIDE, SIDE, 14), about={})
    store = FrameStore(folder / "store")
    paths: list[GripperPath | None] = []
    for _ in range(frames):
        rows = [[*rng.uniform(0, 1, 2).tolist(), int(rng.integers(2))] for _ in range(5)]
        paths.append(path_from_rows(rows, "benchmark"))
    write_layers(store, paths, ["ok"] * frames, "benchmark")
    return store, PathLayers(store)


def notes_batch(images: np.ndarray, vectors: np.ndarray, starts: np.ndarray) -> dict:
    """Collate a batch as the notes' data set gives it."""
    samples = [
        {
            "current": images[start : start + HORIZON].copy(),
            "initial": np.repeat(images[:1], HORIZON, axis=0),
            "state": vectors[start : start + HORIZON].copy(),
            "action": vectors[start : start + HORIZON].copy(),
        }
        for start in starts
    ]
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def resident_mb() -> float:
    """Return the memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(store: FrameStore, layers: PathLayers, repeats: int) -> None:
    """Print a row per arm, then the notes' layout."""
    windows = Windows(store.begins, store.ends, WindowShape())
    arms = {
        "none": Batches(store, None, windows),
        "current": Batches(store, layers, windows, show="current"),
        "initial_current": Batches(store, layers, windows, show="initial_current"),
        "six channels": Batches(store, layers, windows, show="initial_current", fuse="concat6"),
    }
    best = dict.fromkeys([*arms, "notes"], float("inf"))
    rng = np.random.default_rng(1)
    images = rng.random((NOTES_FRAMES, 3, SIDE, SIDE), dtype=np.float32)
    vectors = np.zeros((NOTES_FRAMES, 14), np.float32)
    for repeat in range(repeats):
        for name, batches in arms.items():
            step = 3 * repeat
            for offset in range(3):
                spent = seconds(lambda b=batches, s=step + offset: b(s))
                best[name] = min(best[name], spent)
        starts = rng.integers(0, NOTES_FRAMES - HORIZON, BATCH)
        best["notes"] = min(
            best["notes"], seconds(lambda s=starts: notes_batch(images, vectors, s))
        )
    print(f"{'arm':>16} {'ms/sample':>10} {'times':>6}")
    for name, spent in best.items():
        print(f"{name:>16} {1000 * spent / BATCH:10.3f} {best['notes'] / spent:6.1f}")


def main() -> None:
    """Build, measure memory, measure time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        begin = time.process_time()
        store, layers = build(Path(folder), options.frames)
        size = len(store) * store.shape.frame_bytes / 1e9
        print(f"{len(store)} frames, {size:.2f} GB, written in {time.process_time() - begin:.1f} s")
        before = resident_mb()
        for row in range(0, len(store), BATCH):
            rows = np.arange(row, min(row + BATCH, len(store)))
            layers.paint(store.read_frames(rows), rows)
        print(f"resident: {resident_mb():.0f} MB, {resident_mb() - before:.0f} more by reading all")
        measure(store, layers, options.repeats)


if __name__ == "__main__":
    main()
