"""Pillars and splat: the native operations beside torch, on one core.

    uv run python benchmarks/end2race_ops.py [--rounds 15]

`twin` is the package's own torch implementation, which equals the native one to the bit; `float32`
is the leaner way to write it in torch, in single precision and without an order of the pillars.
CPU time of one thread, best of the rounds; errors against float64. The claims: pillarisation at
least 4 times the twin at 20,000 and 100,000 points, the splat at least 1.5 times `index_add`. The
first calls warm the caches, so fewer than 5 rounds judge nothing.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from end2race.models.grid import BevGrid
from end2race.models.pillars import pillar_max, pillarise
from end2race.models.splat import splat
from loom.drawing import print_table
from torch import Tensor

FEWEST_ROUNDS = 5  # on which a claim is judged
GRID = BevGrid((-10.24, 10.24), (-10.24, 10.24), (-3.0, 1.0), 0.16)


class Splat(NamedTuple):
    """Sizes of a splat."""

    name: str
    images: int
    pixels: int
    bins: int
    channels: int
    cells: int


SPLATS = (
    Splat("8 racing images", 8, 128, 24, 24, 4096),
    Splat("80 racing images", 80, 128, 24, 16, 4096),
    Splat("1 image of LSS", 1, 880, 41, 64, 40_000),
)


def best_ms(call: Callable[[], object], rounds: int) -> float:
    """Return the shortest CPU time of a call in milliseconds."""
    call()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return 1e3 * min(times)


def float32_pillars(points: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Compute the nine features in single precision, one frame."""
    column = torch.floor((points[:, 0] - grid.x_m[0]) / grid.cell_m)
    row = torch.floor((points[:, 1] - grid.y_m[0]) / grid.cell_m)
    inside = (column >= 0) & (column < grid.columns) & (row >= 0) & (row < grid.rows)
    inside &= (points[:, 2] >= grid.z_m[0]) & (points[:, 2] < grid.z_m[1])
    points, row, column = points[inside], row[inside], column[inside]
    cell = (row * grid.columns + column).long()
    sums = torch.zeros(grid.cells, 4).index_add_(
        0, cell, torch.cat([points[:, :3], torch.ones(len(points), 1)], 1)
    )
    means = sums[:, :3] / sums[:, 3:].clamp(min=1)
    centre = torch.stack([column, row], 1) + 0.5
    centre = centre * grid.cell_m + torch.tensor([grid.x_m[0], grid.y_m[0]])
    features = [points, points[:, :3] - means[cell], points[:, :2] - centre]
    return torch.cat(features, 1), cell


def measure_pillars(count: int, rounds: int) -> tuple[list[object], list[object]]:
    """Return the rows of pillarisation and of the maximum."""
    rng = np.random.default_rng(0)
    low, high = (-11.4, -11.4, -3.0, 0.0), (11.4, 11.4, 1.0, 1.0)
    points = torch.from_numpy(rng.uniform(low, high, (count, 4)).astype(np.float32))
    frame = torch.zeros(count, dtype=torch.int64)
    twin, kernel = (
        best_ms(lambda impl=impl: pillarise(points, frame, GRID, 1, impl=impl), rounds)
        for impl in ("torch", "cpu")
    )
    single = best_ms(lambda: float32_pillars(points, GRID), rounds)
    found = pillarise(points, frame, GRID, 1)
    values = torch.randn(len(found.pillar), 64, requires_grad=True)

    def learn(impl: str) -> None:
        values.grad = None
        pillar_max(values, found.pillar, len(found.cell), impl=impl).sum().backward()

    def index_reduce() -> None:
        values.grad = None
        start = torch.full((len(found.cell), 64), -torch.inf)
        start.index_reduce(0, found.pillar, values, "amax").sum().backward()

    maxima = [best_ms(lambda impl=impl: learn(impl), rounds) for impl in ("torch", "cpu")]
    reduced = best_ms(index_reduce, rounds)
    name = f"{count:,} points, {len(found.cell):,} pillars"
    return (
        [f"pillarise {name}", twin, single, kernel, twin / kernel, single / kernel],
        [f"max, forward + backward, {name}", maxima[0], reduced, maxima[1],
         maxima[0] / maxima[1], reduced / maxima[1]],
    )  # fmt: skip


def measure_splat(size: Splat, rounds: int) -> tuple[list[object], float, float]:
    """Return the row of a splat, and the largest errors of the twin and the kernel."""
    rng = np.random.default_rng(0)
    cell = rng.integers(0, size.cells, (size.pixels, size.bins))
    cell[rng.random(cell.shape) < 0.2] = -1
    where = torch.from_numpy(cell.astype(np.int32))
    depth = torch.rand(size.images, size.pixels, size.bins).softmax(-1)
    features = torch.randn(size.images, size.pixels, size.channels)
    times = [
        best_ms(lambda impl=impl: splat(depth, features, where, size.cells, impl=impl), rounds)
        for impl in ("torch", "cpu")
    ]
    exact = splat(depth.double(), features.double(), where, size.cells)
    errors = [
        float((splat(depth, features, where, size.cells, impl=impl) - exact).abs().max())
        for impl in ("torch", "cpu")
    ]
    return [f"splat, {size.name}", *times, times[0] / times[1]], errors[0], errors[1]


def main() -> None:
    """Measure and say whether the claims hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "index_reduce")  # it is called beta
    torch.manual_seed(0)
    pillars = [measure_pillars(count, rounds) for count in (20_000, 100_000)]
    rows = [row for pair in pillars for row in pair]
    print_table(("ms", "twin", "float32", "native", "x twin", "x float32"), rows)
    splats = [measure_splat(size, rounds) for size in SPLATS]
    print_table(("ms", "index_add", "native", "x"), [row for row, _, _ in splats])
    for (name, *_), twin, kernel in splats:
        print(f"{name}: largest error {twin:.1e} with index_add, {kernel:.1e} native")
    if rounds < FEWEST_ROUNDS:
        print(f"claims not judged: --rounds {rounds}, {FEWEST_ROUNDS} at least")
        return
    held = all(float(str(pair[0][4])) >= 4 for pair in pillars)
    held &= all(float(str(row[3])) >= 1.5 and kernel <= twin for row, twin, kernel in splats)
    print(f"claims {'hold' if held else 'MISSED'}")


if __name__ == "__main__":
    main()
