"""The status file of earlier sweeps: shell assignments, replaced as a whole every second.

    run_name=pinpad_vta_force0_t1_seed0
    run_index=2
    total_runs=4
    step=1200
    steps_target=40000
    percent=3
    updated=2026-01-06T09:46:58+00:00

and what those could not say: the state, how many ended how, the time left, and a heartbeat, by
which a reader tells a sweep that goes on from one that has died.
"""

import shlex
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loom.errors import UserError
from loom.files import read_text, write_atomic
from loom.progress import format_line

from pinpad.sweep.state import SweepState, read_sweep

STATUS_FILE = "pinpad_status.env"
INTERVAL_S, PROGRESS_S = 1.0, 10.0
"""Between two versions of the file, and between two lines of progress."""


def fields(state: SweepState) -> dict[str, Any]:
    """Return the assignments of a state."""
    run = state.current or max(
        (each for each in state.runs if each.state != "waiting"),
        key=lambda each: each.index,
        default=state.runs[0],
    )
    eta = state.eta_s
    return {
        "run_name": run.name,
        "run_index": run.index,
        "total_runs": len(state.runs),
        "step": run.step,
        "steps_target": run.total,
        "percent": int(100 * run.trained),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        "state": state.state,
        "stage": run.stage,
        "overall_percent": int(100 * state.share),
        "ok": state.count("done"),
        "failed": state.count("failed"),
        "waiting": state.count("waiting"),
        "eta_s": "" if eta is None else int(eta),
        "steps_per_second": "" if run.rate is None else f"{run.rate:.2f}",
        "pid": state.pid,
        "heartbeat": int(time.time()),
        "logroot": state.logroot,
    }


def write_status_file(path: Path, state: SweepState) -> None:
    """Replace the file."""
    lines = [f"{key}={shlex.quote(str(value))}\n" for key, value in fields(state).items()]
    write_atomic(path, "".join(lines))


def read_status_file(path: Path) -> dict[str, str]:
    """Return the assignments of a status file.

    Raises:
        UserError: A line is no assignment.
    """
    found = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        key, equals, value = line.partition("=")
        try:
            words = shlex.split(value)
        except ValueError:
            equals = ""
        if not equals or not key.isidentifier() or len(words) > 1:
            raise UserError(f"{path}:{number}: no assignment: {line[:60]}", hint="it was edited")
        found[key] = words[0] if words else ""
    return found


def progress_line(state: SweepState) -> str:
    """Return how far the run under way and the whole sweep are; nothing if none is training."""
    run = state.current
    if run is None or not run.total or run.stage != "train":
        return ""
    elapsed_s = run.step / run.rate if run.rate else 0.0
    name = f"{run.index}/{len(state.runs)} {run.name}"
    return f"{format_line(name, run.step, run.total, elapsed_s)}, all {100 * state.share:.0f}%"


class StatusWriter:
    """Rewrites the status file every second for as long as a block lasts, and says the progress."""

    def __init__(self, logroot: Path, path: Path, say: Callable[[str], None]) -> None:
        """Name the sweep and the file, and who prints lines of progress."""
        self._logroot, self._path, self._say = logroot, path, say
        self._said_at, self._said = time.monotonic(), ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="status file", daemon=True)

    def __enter__(self) -> "StatusWriter":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def _beat(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._write()

    def _write(self) -> None:
        try:
            state = read_sweep(self._logroot)
            write_status_file(self._path, state)
        except (OSError, UserError):
            return  # a full disk or a torn moment must not end the sweep: the next beat tries again
        line = progress_line(state)
        if line and line != self._said and time.monotonic() - self._said_at >= PROGRESS_S:
            self._said_at, self._said = time.monotonic(), line
            self._say(line)


def log_root(path: Path) -> Path:
    """Return the log root that is meant: a folder itself, or the one a status file names.

    Raises:
        UserError: There is neither.
    """
    if path.is_file():
        named = read_status_file(path).get("logroot")
        if not named:
            raise UserError(f"{path}: names no log root", hint="give the folder of the sweep")
        return Path(named)
    if not path.is_dir():
        raise UserError(
            f"{path}: there is no such log root or status file",
            hint="give the folder of the sweep; its status file is there once its first run begins",
        )
    return path
