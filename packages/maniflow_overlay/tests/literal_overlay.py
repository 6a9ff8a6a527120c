"""The canonical overlay as a slow loop, point by point, the way the notes' `overlay_utils` reads.

Shares nothing with the package: colours come from scalar interpolation of jet's breakpoints, and
every step is a Python loop. Run it to write the recorded drawings again:

    uv run python packages/maniflow_overlay/tests/literal_overlay.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

CASES = Path(__file__).with_name("overlay_cases.json")
JET = {
    "red": [(0.0, 0.0), (0.35, 0.0), (0.66, 1.0), (0.89, 1.0), (1.0, 0.5)],
    "green": [(0.0, 0.0), (0.125, 0.0), (0.375, 1.0), (0.64, 1.0), (0.91, 0.0), (1.0, 0.0)],
    "blue": [(0.0, 0.5), (0.11, 1.0), (0.34, 1.0), (0.65, 0.0), (1.0, 0.0)],
}


def jet_rgb(position: float) -> tuple[int, int, int]:
    """Evaluate jet as matplotlib does: through a table of 256 entries."""
    entry = min(int(position * 256), 255) / 255
    channels = []
    for points in JET.values():
        for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
            if x0 <= entry <= x1:
                value = y0 + (y1 - y0) * (entry - x0) / (x1 - x0)
                break
        channels.append(int(value * 255))
    return channels[0], channels[1], channels[2]


COLOURS_RGB = [jet_rgb(position) for position in np.linspace(0, 1, 100)]


def draw_literally(image: np.ndarray, rows: list[list[float]]) -> np.ndarray:
    """Draw `[x, y, gripper]` or `[x, y]` rows into a BGR image, in place."""
    height, width = image.shape[:2]
    scale = max(min(width, height) / 512.0, 1)
    radius, thickness = int(7 * scale), max(1, int(2 * scale))
    pixels = [(int(row[0] * width), int(row[1] * height)) for row in rows]
    for i, row in enumerate(rows):
        if len(row) == 3 and (i == 0 or row[2] != rows[i - 1][2]):
            colour = (0, 0, 255) if row[2] == 0 else (255, 0, 0)
            cv2.circle(image, pixels[i], radius, colour, thickness)
    if len(rows) < 2:
        return image
    points = np.array(pixels, dtype=np.float32)
    distances = [np.float32(0)]
    for i in range(1, len(points)):
        distances.append(distances[-1] + np.linalg.norm(points[i] - points[i - 1]))
    if distances[-1] == 0:
        return image
    samples = []
    index = 0
    for sample in np.linspace(0, distances[-1], 100):
        while index < len(points) - 2 and sample > distances[index + 1]:
            index += 1
        length = distances[index + 1] - distances[index]
        if length == 0:
            point = points[index]
        else:
            t = np.clip((sample - distances[index]) / length, 0, 1)
            point = (1 - t) * points[index] + t * points[index + 1]
        samples.append(point.astype(np.int32))
    for i in range(99):
        red, green, blue = COLOURS_RGB[i]
        start, end = (tuple(map(int, p)) for p in samples[i : i + 2])
        cv2.line(image, start, end, (blue, green, red), thickness)
    return image


def noise(width: int, height: int, seed: int) -> np.ndarray:
    """Return the recorded drawings' background."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_rows(rng: np.random.Generator, *, gripper: bool = True) -> list[list[float]]:
    """Draw a path with repeated points, borders and corners off the image among its points."""
    rows: list[list[float]] = []
    for _ in range(int(rng.integers(1, 9))):
        x, y = rng.uniform(-0.05, 1.05, 2).round(int(rng.integers(2, 17))).tolist()
        kind = rng.random()
        if kind < 0.15:
            x = float(rng.integers(0, 2))
        elif kind < 0.35 and rows:
            x, y = rows[-1][:2]
        rows.append([x, y, int(rng.integers(0, 2))] if gripper else [x, y])
    return rows


def write_cases() -> None:
    """Write a dozen small recorded drawings."""
    rng = np.random.default_rng(20_251_210)
    sizes = [(224, 224), (320, 240), (96, 128), (1024, 768)]
    cases = []
    for number in range(12):
        width, height = sizes[number % len(sizes)]
        seed = int(rng.integers(2**31))
        rows = random_rows(rng)
        digest = hashlib.sha256(draw_literally(noise(width, height, seed), rows).tobytes())
        cases.append(
            {
                "width": width,
                "height": height,
                "background_seed": seed,
                "path": rows,
                "sha256_bgr": digest.hexdigest(),
            }
        )
    CASES.write_text(json.dumps({"cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_cases()
