"""What `pinpad doctor` checks beside the machine: the environment pays, and it is PinPad.

A reward that never comes looks like an agent that does not learn. The oracle therefore plays every
layout; and anybody's trace of any PinPad can be replayed, which names the first step that differs.
"""

from functools import partial
from pathlib import Path

import numpy as np
from loom.doctor import Check, Finding
from loom.errors import UserError

ROOMS, STEPS = 8, 400


def oracle_return(layout: str, *, rooms: int = ROOMS, steps: int = STEPS, seed: int = 0) -> float:
    """Return the oracle's mean return over rooms that run for `steps`."""
    from pinpad.envs.oracle import oracle_actions
    from pinpad.envs.vector import PinPadVectorEnv

    envs = PinPadVectorEnv(rooms, layout, size=16, length=steps, copy=False)
    envs.reset(seed=seed)
    total = 0.0
    for _ in range(steps):
        actions = oracle_actions(layout, envs.cell, envs.progress, envs.countdown)
        total += float(np.sum(envs.step(actions)[1]))
    return total / rooms


def check_oracle() -> Finding:
    """Check that a player who knows the way earns reward in every layout."""
    from pinpad.envs.layouts import LAYOUTS

    returns = {name: oracle_return(name) for name in LAYOUTS}
    detail = ", ".join(f"{name} {value:.0f}" for name, value in returns.items())
    poor = [name for name, value in returns.items() if value <= 0]
    if poor:
        return Finding(
            "fail",
            f"the oracle earns nothing in {', '.join(poor)} ({detail} per {STEPS} steps)",
            "the environment does not pay: reinstall the package, train nothing on it",
        )
    return Finding("ok", f"the oracle earns {detail} per {STEPS} steps")


def check_trace(path: Path) -> Finding:
    """Replay one trace, images included."""
    from pinpad.data.traces import read_trace, replay

    trace = read_trace(path)
    mismatch = replay(trace)
    if mismatch is not None:
        return Finding(
            "fail",
            f"{path.name}: {mismatch}",
            "either this environment or the traced one is not PinPad",
        )
    steps, blocks = len(trace), len(trace.image_digests)
    return Finding("ok", f"{steps:,} steps and {blocks} image digests of {trace.layout} agree")


def checks(traces: Path | None = None) -> list[Check]:
    """Return the thread's checks; with a folder of traces, one more for each.

    Raises:
        UserError: The folder holds no traces.
    """
    found = [Check("oracle", check_oracle)]
    if traces is not None:
        from pinpad.data.traces import trace_files

        if not traces.exists():
            raise UserError(f"{traces}: no such folder", hint="give the folder with the traces")
        found += [
            Check(f"trace {path.stem}", partial(check_trace, path)) for path in trace_files(traces)
        ]
    return found
