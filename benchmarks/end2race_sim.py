"""One frame of the simulator: a camera image and a LiDAR cloud, on one core.

    uv run python benchmarks/end2race_sim.py [--frames 300]

Each sensor is timed over many places on five tracks, noise included, after it has been compiled:
single-thread CPU time, median over rounds. `numpy` is the same LiDAR azimuths marched through the
same walls by array operations, as one would write it without a compiler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from end2race.sim.appearance import PLAIN
from end2race.sim.kernels import Field
from end2race.sim.sensors import camera, lidar, see, sweep
from end2race.sim.track import procedural_track
from scipy.ndimage import map_coordinates

ROUNDS = 5
CLAIM_MS = 1.0


def march_with_numpy(field: Field, x: float, y: float, yaw: float, azimuths: int) -> np.ndarray:
    """March all rays of a turn at once; returns ranges (m)."""
    angle = yaw + 2 * np.pi * (np.arange(azimuths) + 0.5) / azimuths - np.pi
    dx, dy = np.cos(angle), np.sin(angle)
    reached = np.zeros(azimuths)
    for _ in range(60):
        u = (x + reached * dx - field.x0) / field.cell_m
        v = (y + reached * dy - field.y0) / field.cell_m
        free = map_coordinates(field.values, [v, u], order=1, mode="nearest")
        if np.all(free < 1e-3):
            break
        reached = np.minimum(reached + 0.9 * np.maximum(free, 0), 12.0)
    return reached


def milliseconds(frames: int, work: Callable[[int], object]) -> float:
    """Return the median CPU time of one call (ms)."""
    work(0)
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for number in range(frames):
            work(number)
        rounds.append(1000 * (time.process_time() - began) / frames)
    return float(np.median(rounds))


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--frames", type=int, default=300)
    frames = parser.parse_args().frames
    tracks = [procedural_track(np.random.default_rng(seed)) for seed in range(5)]
    places = [
        (t, t.pose(17 * n % len(t.centreline))) for n in range(frames) for t in tracks[n % 5 :][:1]
    ]
    eye, rng = camera(), np.random.default_rng(0)

    def look(n: int) -> object:
        return see(places[n][0].field, PLAIN, eye, places[n][1], rng)

    seen = milliseconds(frames, look)
    print(f"camera {eye.width}x{eye.height}, noise included: {seen:.3f} ms")
    scans = {}
    for beams in (1, 8, 32):
        scanner = lidar(beams)
        scans[beams] = milliseconds(
            frames, lambda n, s=scanner: sweep(places[n][0].field, s, places[n][1], rng)
        )
        print(f"LiDAR {beams} beams x {scanner.azimuths}: {scans[beams]:.3f} ms")
    by_numpy = milliseconds(
        max(1, frames // 10), lambda n: march_with_numpy(places[n][0].field, *places[n][1], 360)
    )
    print(f"numpy, 360 rays, no points made: {by_numpy:.3f} ms, {by_numpy / scans[1]:.0f}x ours")
    both = seen + scans[8]
    verdict = "reached" if both <= CLAIM_MS else "missed"
    print(f"camera + 8-beam LiDAR: {both:.3f} ms; at most {CLAIM_MS} ms is {verdict}")


if __name__ == "__main__":
    main()
