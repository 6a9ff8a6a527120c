"""What this thread needs of a machine, beyond the core's checks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from loom.doctor import Check, Finding

SLOWEST_FRAME_MS = 5.0


def checks() -> Sequence[Check]:
    """The thread's own checks."""
    return (Check("simulator", check_simulator), Check("expert", check_expert))


def check_simulator() -> Finding:
    """Check that the sensors are compiled, and how long a frame of both takes."""
    from end2race.sim.appearance import PLAIN
    from end2race.sim.sensors import camera, lidar, see, sweep
    from end2race.sim.track import procedural_track

    track = procedural_track(np.random.default_rng(0))
    pose = track.pose(0)
    eye, scanner, rng = camera(), lidar(), np.random.default_rng(0)
    times = []
    for _ in range(20):  # the first one compiles, or loads what was compiled before
        began = time.perf_counter()
        see(track.field, PLAIN, eye, pose, rng)
        sweep(track.field, scanner, pose, rng)
        times.append(1000 * (time.perf_counter() - began))
    frame_ms = float(np.median(times))
    detail = f"{frame_ms:.2f} ms for a camera image and a LiDAR cloud"
    if frame_ms > SLOWEST_FRAME_MS:
        fix = "unset NUMBA_DISABLE_JIT, and see that no other job holds this core"
        return Finding("warn", f"{detail}, which is slow", fix)
    return Finding("ok", detail)


def check_expert() -> Finding:
    """Check that the expert laps a track and a car that goes straight on does not."""
    from end2race.sim.closed_loop import ConstantDriver, ExpertDriver, drive, entries, unseen_tracks

    (expert,) = drive(ExpertDriver(), entries(unseen_tracks(1), [0]))
    (straight,) = drive(ConstantDriver(0.0, 2.0), entries(unseen_tracks(1), [0]))
    detail = (
        f"the expert drives {expert.progress:.0%} of a lap, a constant command "
        f"{straight.progress:.0%}"
    )
    if not expert.completed or straight.completed:
        return Finding("fail", detail, "the simulator is wrong: reinstall, train nothing on it")
    return Finding("ok", detail)
