"""Grouped tiny networks: the native kernel beside three torch paths, in one process.

    uv run python benchmarks/featdistill_mlp.py [--points 140000] [--repeats 5]

140,000 points fall into 2,000 cells, evenly or unevenly (lognormal). The torch paths get points
that are sorted by cell already, the kernel sorts them itself; all build their own encodings.
Single-thread CPU time, best of the repeats, which take turns so that a busy machine hits all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from featdistill.models import kilo, kilo_torch
from featdistill.models.cell_adam import CellAdam
from featdistill.models.kilo_layout import NetworkShape
from loom import native
from torch import Tensor
from torch.nn import functional

CELLS = 2000


def cells_of_points(points: int, uneven: bool, generator: torch.Generator) -> Tensor:
    """Draw the cell of each point, sorted; every cell has at least one."""
    share = torch.ones(CELLS)
    if uneven:
        share = torch.randn(CELLS, generator=generator).mul(0.5).exp()
    drawn = torch.multinomial(share, points - CELLS, replacement=True, generator=generator)
    return torch.cat([drawn, torch.arange(CELLS)]).sort().values.int()


def layers(product: Callable, shape: NetworkShape, position: Tensor, direction: Tensor) -> Tensor:
    """Evaluate a network by `product(inputs, matrix name, bias name)`."""
    first = product(position, "position", "position_bias").relu()
    z = product(first, "trunk", "trunk_bias").relu()
    feature = product(z, "feature", "feature_bias")
    hidden = product(torch.cat([feature, direction], dim=-1), "colour_hidden", "colour_hidden_bias")
    return torch.cat([product(hidden.relu(), "colour", ""), product(z, "density", "")], dim=-1)


def padded_matrices(weights: Tensor, shape: NetworkShape) -> dict[str, Tensor]:
    """Return the matrices with rows and columns in multiples of 4 floats, as _grouped_mm wants."""
    net = shape.blocks(weights)

    def pad(matrix: Tensor) -> Tensor:
        rows, columns = matrix.shape[-2:]
        return functional.pad(matrix, (0, -columns % 4, 0, -rows % 4))

    return {
        "position": pad(net.position),
        "trunk": net.trunk,
        "feature": net.feature,
        "colour_hidden": pad(net.colour_hidden),
        "colour": pad(net.colour.transpose(1, 2)),
        "density": pad(net.density[..., None]),
        "position_bias": net.position_bias,
        "trunk_bias": net.trunk_bias,
        "feature_bias": net.feature_bias,
        "colour_hidden_bias": net.colour_hidden_bias,
    }


def grouped_mm(weights: Tensor, shape: NetworkShape, cell: Tensor, x: Tensor, d: Tensor) -> Tensor:
    """Evaluate sorted points by torch._grouped_mm."""
    matrices = padded_matrices(weights, shape)
    offsets = torch.bincount(cell, minlength=len(weights)).cumsum(0).int()
    index = cell.long()

    def product(inputs: Tensor, matrix: str, bias: str) -> Tensor:
        out = torch._grouped_mm(inputs, matrices[matrix], offs=offsets)
        return out + matrices[bias][index] if bias else out

    position = functional.pad(kilo_torch.encode(x, shape.position_frequencies), (0, 1))
    direction = functional.pad(kilo_torch.encode(d, shape.direction_frequencies), (0, 1))
    return layers(product, shape, position, direction)


def padded_bmm(weights: Tensor, shape: NetworkShape, cell: Tensor, x: Tensor, d: Tensor) -> Tensor:
    """Evaluate sorted points by one batched product, padded to the fullest cell."""
    matrices = padded_matrices(weights, shape)
    counts = torch.bincount(cell, minlength=len(weights))
    width = int(counts.max())
    index = cell.long()
    slot = index * width + torch.arange(len(cell)) - (counts.cumsum(0) - counts)[index]

    def spread(values: Tensor) -> Tensor:
        whole = values.new_zeros(len(weights) * width, values.shape[1])
        return whole.index_copy(0, slot, values).unflatten(0, (len(weights), width))

    def product(inputs: Tensor, matrix: str, bias: str) -> Tensor:
        if not bias:
            return torch.bmm(inputs, matrices[matrix])
        return torch.baddbmm(matrices[bias][:, None], inputs, matrices[matrix])

    position = functional.pad(kilo_torch.encode(x, shape.position_frequencies), (0, 1))
    direction = functional.pad(kilo_torch.encode(d, shape.direction_frequencies), (0, 1))
    return layers(product, shape, spread(position), spread(direction)).flatten(0, 1)[slot]


def addmm_loop(weights: Tensor, shape: NetworkShape, cell: Tensor, x: Tensor, d: Tensor) -> Tensor:
    """Evaluate sorted points cell by cell."""
    matrices = {name: m.unbind(0) for name, m in padded_matrices(weights, shape).items()}
    counts = torch.bincount(cell, minlength=len(weights)).tolist()
    position = functional.pad(kilo_torch.encode(x, shape.position_frequencies), (0, 1))
    direction = functional.pad(kilo_torch.encode(d, shape.direction_frequencies), (0, 1))
    results = []
    parts = zip(position.split(counts), direction.split(counts), strict=True)
    for c, (one_position, one_direction) in enumerate(parts):

        def product(inputs: Tensor, matrix: str, bias: str, c: int = c) -> Tensor:
            if not bias:
                return inputs @ matrices[matrix][c]
            return torch.addmm(matrices[bias][c], inputs, matrices[matrix][c])

        results.append(layers(product, shape, one_position, one_direction))
    return torch.cat(results)


def native_kernel(
    weights: Tensor, shape: NetworkShape, cell: Tensor, x: Tensor, d: Tensor
) -> Tensor:
    """Evaluate points in any order by the kernel."""
    return kilo.network(weights, shape, cell, x, d)


PATHS: dict[str, Callable[..., Tensor]] = {
    "torch._grouped_mm": grouped_mm,
    "padded bmm": padded_bmm,
    "loop of addmm": addmm_loop,
    "native": native_kernel,
}


def cpu_ms(call: Callable[[], object]) -> float:
    """Return the CPU time of one call in milliseconds."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def measure(shape: NetworkShape, points: int, uneven: bool, repeats: int) -> dict[str, list[float]]:
    """Return [forward, forward + backward, forward + backward + Adam] in ms for every path."""
    generator = torch.Generator().manual_seed(0)
    cell = cells_of_points(points, uneven, generator)
    x = torch.rand(points, 3, generator=generator) * 2 - 1
    d = functional.normalize(torch.randn(points, 3, generator=generator), dim=1)
    bound = 0.7 * (6 / shape.hidden) ** 0.5
    weights = (torch.rand(CELLS, shape.parameters, generator=generator) * 2 - 1) * bound
    weights = torch.nn.Parameter(weights)
    upstream = {n: torch.randn(points, n, generator=generator) for n in (4, 8)}
    adam = torch.optim.Adam([weights], lr=1e-9, betas=(0.9, 0.99))
    cell_adam = CellAdam([weights], lr=1e-9)
    best = {name: [float("inf")] * 3 for name in PATHS}
    for _ in range(repeats):
        for name, path in PATHS.items():

            def forward(path: Callable[..., Tensor] = path) -> Tensor:
                return path(weights, shape, cell, x, d)

            def learn() -> None:
                out = forward()  # the padded paths return columns of zeros besides the four
                out.backward(upstream[out.shape[1]])

            with torch.no_grad():
                times = [cpu_ms(forward)]
            weights.grad = None
            times.append(cpu_ms(learn))
            times.append(times[1] + cpu_ms(cell_adam.step if name == "native" else adam.step))
            best[name] = [min(a, b) for a, b in zip(best[name], times, strict=True)]
    return best


def print_table(title: str, best: dict[str, list[float]], points: int) -> None:
    """Print milliseconds, samples per second and the kernel's lead over the best torch path."""
    print(f"\n{title}")
    print(f"{'path':20}{'forward':>20}{'forward+backward':>20}{'+ Adam':>20}")
    for name, times in best.items():
        cells = [f"{ms:7.1f} ms {points / ms / 1e3:5.2f} M/s" for ms in times]
        print(f"{name:20}" + "".join(f"{cell:>20}" for cell in cells))
    leads = [
        min(times[i] for name, times in best.items() if name != "native") / best["native"][i]
        for i in range(3)
    ]
    print(f"{'lead over torch':20}" + "".join(f"{lead:>19.1f}x" for lead in leads))


def main() -> None:
    """Measure even and uneven counts for the two encodings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=140_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = kilo.library()
    if isinstance(found, native.Unavailable):
        raise SystemExit(found.reason)
    print(f"{arguments.points:,} points in {CELLS:,} cells, one thread, {found.isa}")
    for frequencies in ((4, 2), (10, 4)):
        shape = NetworkShape(32, *frequencies)
        for uneven in (False, True):
            best = measure(shape, arguments.points, uneven, arguments.repeats)
            counts = "uneven" if uneven else "even"
            print_table(f"frequencies {frequencies[0]}/{frequencies[1]}, {counts} counts", best,
                        arguments.points)  # fmt: skip


if __name__ == "__main__":
    main()
