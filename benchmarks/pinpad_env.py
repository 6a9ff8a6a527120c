"""Steps per second of PinPad: batches and one room, beside gymnasium's vectors and an original.

    uv run python benchmarks/pinpad_env.py [--seconds 1.0] [--original FILE]

Uniform actions on `eight`, images drawn at every step. `--original` takes the file `pinpad.py` of a
Director or DreamerV3 checkout, which is measured beside ours; without it the ratio is to
gymnasium's own vector of our rooms. Single-thread CPU time, best of three.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv
from pinpad.envs.single import PinPadEnv
from pinpad.envs.vector import PinPadVectorEnv

LAYOUT = "eight"


def rate(step: Callable[[int], object], steps_per_call: int, seconds: float) -> float:
    """Return steps per CPU-second, the best of three stretches."""
    best = 0.0
    for _ in range(3):
        calls, begin = 0, time.process_time()
        while (spent := time.process_time() - begin) < seconds / 3:
            step(calls)
            calls += 1
        best = max(best, calls * steps_per_call / spent)
    return best


def batch(rooms: int, size: int, copy: bool) -> Callable[[int], object]:
    """Return a step of our batched environment."""
    envs = PinPadVectorEnv(rooms, LAYOUT, size=size, copy=copy)
    envs.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 5, (256, rooms))
    return lambda call: envs.step(actions[call % 256])


def single() -> Callable[[int], object]:
    """Return a step of our single environment."""
    env = PinPadEnv(LAYOUT)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 5, 256).tolist()

    def step(call: int) -> None:
        if env.step(actions[call % 256])[3]:
            env.reset()

    return step


def gymnasium_vector(rooms: int) -> Callable[[int], object]:
    """Return a step of gymnasium's own vector of our single environment."""
    envs = SyncVectorEnv([lambda: PinPadEnv(LAYOUT)] * rooms)
    envs.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 5, (256, rooms))
    return lambda call: envs.step(actions[call % 256])


def original(path: Path) -> Callable[[int], object]:
    """Return a step of an original `pinpad.py`, whose base class and spaces it does not need."""
    stand_in: Any = types.ModuleType("embodied")
    stand_in.Env, stand_in.Space = object, lambda *args: None
    for name in ("embodied", "elements"):
        sys.modules.setdefault(name, stand_in)
    spec = importlib.util.spec_from_file_location("original_pinpad", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        env = module.PinPad(LAYOUT, length=2000)
    env.step({"action": 0, "reset": True})
    actions = np.random.default_rng(0).integers(0, 5, 256).tolist()
    return lambda call: env.step({"action": actions[call % 256], "reset": False})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU-seconds for each row")
    parser.add_argument("--original", type=Path, help="pinpad.py of the original")
    options = parser.parse_args()
    base = rate(gymnasium_vector(8), 8, options.seconds)
    rows = [("gymnasium SyncVectorEnv of ours, 8, 64x64", base)]
    if options.original:
        base = rate(original(options.original), 1, options.seconds)
        rows.insert(0, ("original, one room, 64x64", base))
    rows.append(("ours, one room, 64x64", rate(single(), 1, options.seconds)))
    for rooms, size, copy in (
        (1, 64, False),
        (64, 64, False),
        (256, 64, False),
        (256, 64, True),
        (1024, 64, False),
        (64, 16, False),
        (256, 16, False),
    ):
        name = f"ours, {rooms} rooms, {size}x{size}{', own copies' if copy else ''}"
        rows.append((name, rate(batch(rooms, size, copy), rooms, options.seconds)))
    for name, value in rows:
        print(f"{name:<46} {value:>12,.0f} steps/s {value / base:>8.1f}x")


if __name__ == "__main__":
    main()
