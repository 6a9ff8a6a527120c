"""What this thread needs of a machine, beyond the core's checks."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from loom.doctor import Check, Finding
from loom.errors import UserError

from coopcyl.guard import require_this_checkout

OPV2V_COVERAGE = 0.857  # of a band of +-45 degrees, by the rig's frusta
SLOWEST_STITCH_MS = 50.0
_EXTRAS = {"mapanything": "model=mapanything", "rerun": "--rerun"}


def checks() -> Sequence[Check]:
    """The thread's own checks."""
    return (
        Check("checkout", check_checkout),
        Check("panorama", check_panorama),
        Check("extras", check_extras),
    )


def check_checkout() -> Finding:
    """Check that whoever stands in a checkout imports its code."""
    imported = Path(__file__).parent
    try:
        require_this_checkout(Path.cwd(), imported)
    except UserError as error:
        return Finding("fail", error.message, error.hint)
    return Finding("ok", f"coopcyl is imported from {imported}")


def check_panorama() -> Finding:
    """Check that OPV2V's cameras cover what follows from their frusta, and how long one takes."""
    from coopcyl.geometry.panorama import Panorama
    from coopcyl.geometry.rig import opv2v_rig
    from coopcyl.geometry.stitch_table import build_table

    rig = opv2v_rig()
    table = build_table(rig, Panorama(elevation_min_deg=-45, elevation_max_deg=45))
    images = [np.zeros((camera.height, camera.width, 3), np.uint8) for camera in rig.cameras]
    times = []
    for _ in range(5):
        began = time.perf_counter()
        table.stitch(images)
        times.append(1000 * (time.perf_counter() - began))
    milliseconds, coverage = min(times), float(table.coverage.mean())
    detail = f"{coverage:.3f} covered, {milliseconds:.1f} ms from four images of 800x600"
    if abs(coverage - OPV2V_COVERAGE) > 0.003:
        return Finding(
            "fail",
            f"{detail}; {OPV2V_COVERAGE} follows from the cameras",
            "the geometry is wrong: install coopcyl again, train nothing with it",
        )
    if milliseconds > SLOWEST_STITCH_MS:
        return Finding("warn", f"{detail}, which is slow", "see that no other job holds this core")
    return Finding("ok", detail)


def check_extras() -> Finding:
    """Name what is not installed and what it would be for; nothing else needs it."""
    absent = [
        f"{package} ({use})"
        for package, use in _EXTRAS.items()
        if importlib.util.find_spec(package) is None
    ]
    return Finding("ok", f"not installed: {', '.join(absent)}" if absent else "all installed")
