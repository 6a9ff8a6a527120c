"""`status`: what a run's directory says, read by another process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import typer
from loom.runs import EXIT_CODES, status_line
from loom.runs import follow as states

_SHOWN = ("loss/total", "metric/action_mse", "perf/steps_per_s", "perf/data_wait_share")


def show_status(run: Path, *, follow: bool = False, as_json: bool = False) -> int:
    """Print the state of a run, once or at each change; return the exit code."""
    status: dict[str, Any] = {}
    for status in states(run, once=not follow):
        typer.echo(json.dumps(status) if as_json else _line(status))
    return EXIT_CODES.get(str(status.get("state")), 1)


def _line(status: dict[str, Any]) -> str:
    parts = [status_line(status)]
    metrics = status.get("metrics")
    if isinstance(metrics, dict):
        parts += [f"{key} {metrics[key]:.4g}" for key in _SHOWN if metrics.get(key) is not None]
    if status.get("state") == "running":
        age = max(0.0, time.time() - status["heartbeat"])  # clocks of two hosts may differ
        parts.append(f"heartbeat {age:.0f} s ago")
    return ", ".join(parts)
