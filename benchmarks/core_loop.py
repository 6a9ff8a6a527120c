"""What the core adds to a training step and to a checkpoint, beside plain torch in the same run.

Claims: `fit` (records, progress, finite guard, signals) costs at most 1 % of a step of 1.3 million
weights on 640 rows, which takes 50 ms of a Zen 4 core. A checkpoint costs at most 1.25 times the
CPU time of a `torch.save` and a SHA-256 one after the other; since it hashes in a thread of its own
while the disk writes, a run waits at most 1.3 times as long as for `torch.save` and fsync alone,
where a processor is free for that thread. On a busy machine this last claim is not judged.

Both sides of each pair take turns. Steps and waits are medians, CPU times of a save the best ones:
two threads on one core make each other's time longer.

    uv run python benchmarks/core_loop.py [--turns N]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from loom.checkpoint import Checkpoints
from loom.config import Config
from loom.files import sha256_file
from loom.loop import Losses, Term, TrainState, fit
from loom.processors import usable_processors
from loom.run import Run
from loom.schedule import Constant
from torch import nn

WIDTH, ROWS, TURNS = 512, 640, 5
SAVED_MB = 100
MOST_OF_A_STEP, MOST_CPU, MOST_WAIT = 0.01, 1.25, 1.3
FEWEST_TURNS = 3  # on which a claim is judged
IDLE = 0.3  # load that a machine has by itself


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


class Cost(NamedTuple):
    """What a call took, in seconds."""

    wall: float
    cpu: float


def cost(work: Callable[[], object]) -> Cost:
    """Run it once."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def verdict(value: float, most: float, turns: int, reason: str = "") -> str:
    """Say whether a claim holds, or why that cannot be said."""
    if turns < FEWEST_TURNS:
        reason = f"--turns {turns}, {FEWEST_TURNS} at least"
    said = f"not judged: {reason}" if reason else "holds" if value <= most else "MISSED"
    return f"claim: at most {most:g}, {said}"


def measure_steps(turns: int) -> None:
    """Print what `fit` adds to a step."""
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
    share = (added + norms) / bare
    print(
        f"step    fit adds {added * 1e6:.0f} us, and {norms * 1e6:.0f} us for the norms of 1.3 "
        f"million gradients: {share:.4f} of such a step ({verdict(share, MOST_OF_A_STEP, turns)})"
    )


def measure_saves(turns: int, directory: Path, busy: str) -> None:
    """Print what a checkpoint costs, and how long a run waits for it.

    Args:
        turns: Three saves each in a turn.
        directory: On the disk that is measured.
        busy: Why the wait cannot be judged.
    """
    state = {"model": {f"w{i}": torch.randn(500_000) for i in range(SAVED_MB // 2)}}
    checkpoints = Checkpoints(directory / "checkpoints")
    plain, hashed, ours = [], [], []
    for step in range(3 * turns):
        plain.append(cost(lambda: plain_save(state, directory)))
        hashed.append(cost(lambda: sha256_file(directory / "plain.pt")))
        ours.append(cost(lambda step=step: checkpoints.save(step, state)))
    parts, whole = (min(each.cpu for each in costs) for costs in (plain, ours))
    parts += min(each.cpu for each in hashed)
    print(
        f"save    {SAVED_MB} MB, CPU: torch.save, fsync and SHA-256 {parts * 1e3:.0f} ms  "
        f"checkpoint {whole * 1e3:.0f} ms  ratio {whole / parts:.2f} "
        f"({verdict(whole / parts, MOST_CPU, turns)})"
    )
    alone, with_hash = (median(each.wall for each in costs) for costs in (plain, ours))
    ratio = median(mine.wall / theirs.wall for mine, theirs in zip(ours, plain, strict=True))
    print(
        f"save    {SAVED_MB} MB, wait: torch.save and fsync {alone * 1e3:.0f} ms  "
        f"checkpoint {with_hash * 1e3:.0f} ms  ratio {ratio:.2f} "
        f"({verdict(ratio, MOST_WAIT, turns, busy)})"
    )


def main() -> None:
    """Measure and print each claim with its verdict."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=TURNS, help="measurements of each pair")
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    load, processors = os.getloadavg()[0], usable_processors()
    free = load <= processors - 2 + IDLE  # one for the run, one for the thread that hashes
    busy = "" if free else f"load {load:.1f} on {processors} processors"
    measure_steps(turns)
    with tempfile.TemporaryDirectory(dir=".") as place:
        measure_saves(turns, Path(place), busy)


if __name__ == "__main__":
    main()
