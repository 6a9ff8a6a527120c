"""Drawing paths: the package beside the literal loop, in one process, same bytes.

    uv run python benchmarks/maniflow_overlay_drawing.py [--paths 200] [--repeats 5]

The literal loop is the one that the tests hold the drawing against; it looks its colours up.
`notes` is that loop as the notes have it, which ask matplotlib for the colours of every picture.
Single-thread CPU time, best of the repeats, which take turns so that a busy machine hits all.
`layer` sets the pixels of a path that was drawn once, which is what the loader does for each
sample.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from maniflow_overlay.gripper_path import path_from_rows
from maniflow_overlay.overlay.drawing import draw_path_bgr
from maniflow_overlay.overlay.layers import covered_by

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "packages" / "maniflow_overlay" / "tests"))
from literal_overlay import draw_literally  # noqa: E402  # ty: ignore[import-not-found]

SIZES = [(224, 224), (320, 240), (640, 480), (1024, 1024)]


def draw_as_the_notes(image: np.ndarray, row: list) -> None:
    """Evaluate the colour map, as the notes do for each picture, and draw."""
    (mpl.colormaps["jet"](np.linspace(0, 1, 100))[:, :3] * 255).astype(np.uint8)
    draw_literally(image, row)


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    """Print one row per image size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    rows = [
        [[*rng.uniform(0, 1, 2).tolist(), int(rng.integers(2))] for _ in range(5)]
        for _ in range(options.paths)
    ]
    paths = [path_from_rows(row, "benchmark") for row in rows]
    columns = ("notes ms", "literal ms", "drawing ms", "times notes", "times literal", "layer ms")
    print(f"{'size':>11}", *(f"{column:>13}" for column in columns))
    for width, height in SIZES:
        image = np.zeros((height, width, 3), np.uint8)
        layers = [covered_by(path, width, height) for path in paths]
        ways: dict[str, Callable[[], object]] = {
            "notes": lambda image=image: [draw_as_the_notes(image, row) for row in rows],
            "literal": lambda image=image: [draw_literally(image, row) for row in rows],
            "drawing": lambda image=image: [draw_path_bgr(image, path) for path in paths],
            "layer": lambda image=image, layers=layers: [layer.apply(image) for layer in layers],
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(options.repeats):
            for name, work in ways.items():
                best[name] = min(best[name], seconds(work) / len(paths) * 1000)
        numbers = [best["notes"], best["literal"], best["drawing"]]
        numbers += [best[name] / best["drawing"] for name in ("notes", "literal")]
        print(f"{width}x{height}".rjust(11), *(f"{n:13.3f}" for n in (*numbers, best["layer"])))


if __name__ == "__main__":
    main()
