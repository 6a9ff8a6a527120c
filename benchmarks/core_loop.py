"""What the core adds to a training step and to a checkpoint, beside plain torch in the same run.

Claims: `fit` (records, progress, finite guard, signals) costs at most 1 % of a 50 ms step, and a
checkpoint at most 1.3 times a `torch.save` with fsync. Both sides of each pair take turns; figures
are medians, steps in CPU seconds of one thread, saves in wall time.

    uv run python benchmarks/core_loop.py [--turns N]
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from loom.checkpoint import Checkpoints
from loom.config import Config
from loom.loop import Losses, Term, TrainState, fit
from loom.run import Run
from loom.schedule import Constant
from torch import nn

WIDTH, ROWS, TURNS = 512, 640, 5
SAVED_MB = 100


class BenchConfig(Config):
    """A run needs a configuration."""

    seed: int = 0


def network(width: int) -> nn.Module:
    """Return a network of five layers: 1.3 million weights at width 512."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(5):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers)


def bare_steps(width: int, rows: int, steps: int) -> float:
    """Return the CPU seconds of a step of the shortest loop that learns the same."""
    model = network(width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    inputs = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    began = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model(inputs).square().mean().backward()
        optimizer.step()
    return (time.process_time() - began) / steps


def fit_steps(width: int, rows: int, steps: int) -> float:
    """Return the CPU seconds of a step of `fit`, its records among them."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "run"
        with Run.open("bench", BenchConfig, directory=directory, quiet=True) as run:
            model = network(width)
            state = TrainState(model, torch.optim.Adam(model.parameters(), lr=1e-4))
            inputs = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
            marks: list[float] = []
            fit(
                run,
                state,
                steps=steps + 2,
                batch=lambda step, shard: inputs,
                loss=lambda model, x, step: Losses({"a": Term(model(x).square().mean())}),
                lr=Constant(1e-4).at,
                before_step=lambda step: marks.append(time.process_time()),
            )
            # From the second step on: the first opens the record files. The last one saves.
            return (marks[-1] - marks[1]) / (len(marks) - 2)


def norm_seconds() -> float:
    """Return the CPU seconds of the gradient norms of the large network, which grow with it."""
    model = network(WIDTH)
    model(torch.randn(1, WIDTH)).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    began = time.process_time()
    for _ in range(300):
        torch._foreach_norm(gradients)
    return (time.process_time() - began) / 300


def plain_save(state: dict, directory: Path) -> None:
    """Write as most training scripts do, and wait for the disk."""
    path = directory / "plain.pt"
    torch.save(state, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def in_turns(first: Callable[[], float], second: Callable[[], float], turns: int) -> list[float]:
    """Return the median of each, measured alternately, and the median of the pairs' ratios."""
    pairs = [(first(), second()) for _ in range(turns)]
    ratio = median(b / a for a, b in pairs)
    return [median(a for a, _ in pairs), median(b for _, b in pairs), ratio]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print one line for each claim."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=TURNS, help="measurements of each pair")
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    bare_steps(WIDTH, ROWS, 3)
    fit_steps(WIDTH, ROWS, 3)
    bare, ours, ratio = in_turns(
        lambda: bare_steps(WIDTH, ROWS, 60), lambda: fit_steps(WIDTH, ROWS, 60), turns
    )
    print(f"step    torch {bare * 1e3:.2f} ms  fit {ours * 1e3:.2f} ms  ratio {ratio:.4f}")
    # The difference of two steps of 50 ms drowns in noise; that of two short ones does not.
    short, short_ours, _ = in_turns(
        lambda: bare_steps(32, 1, 500), lambda: fit_steps(32, 1, 500), turns
    )
    added, norms = short_ours - short, norm_seconds()
    print(
        f"step    fit adds {added * 1e6:.0f} us, and {norms * 1e6:.0f} us for the norms of 1.3 "
        f"million gradients: {(added + norms) / 0.050:.2%} of 50 ms (claim: at most 1 %)"
    )
    tensors = {f"w{i}": torch.randn(500_000) for i in range(SAVED_MB // 2)}
    state = {"model": tensors}
    directory = Path(tempfile.mkdtemp(dir="."))
    try:
        checkpoints = Checkpoints(directory / "checkpoints")
        step = iter(range(1_000_000))
        plain, saved, ratio = in_turns(
            lambda: timed(lambda: plain_save(state, directory)),
            lambda: timed(lambda: checkpoints.save(next(step), state)),
            3 * turns,
        )
        print(
            f"save    torch.save + fsync {plain * 1e3:.0f} ms  checkpoint {saved * 1e3:.0f} ms  "
            f"ratio {ratio:.2f} for {SAVED_MB} MB (claim: at most 1.3, with a core free; "
            f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)"
        )
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
