"""What a sweep's log root says: which run is where, how far all of it is, whether anybody is alive.

Everything is read from disk (the executor's `status.json`, each training's own), so a monitor needs
no conversation with the process that runs the sweep, nor that process to be alive.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loom.config import resolve
from loom.errors import UserError
from loom.files import read_json
from loom.progress import read_status

from pinpad.sweep.plan import SETTINGS_FILE, STAGES, Member, SweepSettings, members

STALE_S = 30.0
"""A sweep that says nothing for so long, though it beats every five seconds, is dead."""


@dataclass(frozen=True)
class RunState:
    """One condition with one seed.

    Attributes:
        name: Of its directory.
        index: Its place in the sweep, from 1.
        state: waiting, running, done, failed or interrupted; what its training ended as, or, where
            that went well, what came after it.
        stage: `train`, `judge` or `draw`, the one under way or the one that decided.
        step: Of its training.
        total: Steps of its training; 0 while that is not known.
        rate: Steps per second.
        detail: Why it failed, or what was skipped.
    """

    name: str
    index: int
    state: str
    stage: str
    step: int
    total: int
    rate: float | None
    detail: str

    @property
    def trained(self) -> float:
        """Return how much of its training was done, also of one that failed."""
        return min(1.0, self.step / self.total) if self.total else 0.0

    @property
    def share(self) -> float:
        """Return how much of it is over: a training counts by its steps, its end as all."""
        return 1.0 if self.state in ("done", "failed") else self.trained


@dataclass(frozen=True)
class SweepState:
    """A whole sweep.

    Attributes:
        logroot: Its folder.
        state: running, finished, failed, interrupted, or `dead`: it says running and nobody is.
        pid: Of the process that runs or ran it.
        age_s: Seconds since its last heartbeat.
        runs: In their order.
    """

    logroot: str
    state: str
    pid: int
    age_s: float
    runs: tuple[RunState, ...]

    @property
    def share(self) -> float:
        """Return how much of the sweep is over."""
        return sum(run.share for run in self.runs) / len(self.runs)

    @property
    def current(self) -> RunState | None:
        """Return the first run under way."""
        return next((run for run in self.runs if run.state == "running"), None)

    def count(self, state: str) -> int:
        """Return how many runs are in a state."""
        return sum(run.state == state for run in self.runs)

    @property
    def eta_s(self) -> float | None:
        """Return the seconds left, if trainings go on at the rate of those under way."""
        active = [run for run in self.runs if run.state == "running" and run.rate and run.total]
        rate = sum((run.rate or 0) / run.total for run in active)  # trainings per second
        left = sum(1 - run.share for run in self.runs)
        return left / rate if rate else None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        runs = [asdict(run) | {"percent": round(100 * run.trained, 1)} for run in self.runs]
        return {
            "logroot": self.logroot,
            "state": self.state,
            "pid": self.pid,
            "heartbeat_age_s": round(self.age_s, 1),
            "percent": round(100 * self.share, 1),
            "eta_s": self.eta_s,
            "runs": runs,
        }


def read_settings(logroot: Path) -> SweepSettings:
    """Return the settings that a log root was made with.

    Raises:
        UserError: There is no sweep in it.
    """
    if not (logroot / SETTINGS_FILE).is_file():
        raise UserError(f"{logroot}: no sweep is in it", hint="give the log root of a sweep")
    return resolve(SweepSettings, logroot / SETTINGS_FILE).config


def read_sweep(logroot: Path) -> SweepState:
    """Return the state of a sweep.

    Raises:
        UserError: There is no sweep in it, or its files are damaged.
    """
    listed = members(read_settings(logroot))
    path = logroot / "status.json"
    status = read_json(path) if path.is_file() else {}
    try:
        jobs = status.get("jobs", {})
        age = time.time() - status.get("heartbeat", _last_written(logroot))
        state, pid = str(status.get("state", "running")), int(status.get("pid", 0))
        runs = tuple(
            _run_state(logroot, member, number, jobs)
            for number, member in enumerate(listed, start=1)
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not what a sweep writes ({error!r})", hint="it was edited; remove it"
        ) from error
    if state == "running" and age > STALE_S:
        state = "dead"
    return SweepState(str(logroot), state, pid, age, runs)


def _last_written(logroot: Path) -> float:
    """Return when a sweep whose jobs have not begun last wrote: it may be recording episodes."""
    times = [logroot.stat().st_mtime]
    for folder in logroot.glob(".*.partial"):
        with suppress(FileNotFoundError):  # it is renamed as soon as it is complete
            times.append(folder.stat().st_mtime)
    return max(times)


def _run_state(
    logroot: Path, member: Member, number: int, jobs: Mapping[str, Mapping[str, Any]]
) -> RunState:
    entries = {stage: jobs.get(member.job(stage), {}) for stage in STAGES}
    states = {stage: str(entry.get("state", "waiting")) for stage, entry in entries.items()}
    stage = _deciding(states)
    state = states[stage]
    detail = str(entries[stage].get("detail", "")) if state not in ("done", "running") else ""
    step, total, rate = _progress(logroot / member.name)
    return RunState(member.name, number, state, stage, step, total, rate, detail)


def _deciding(states: Mapping[str, str]) -> str:
    """Return the stage that says what a run's state is.

    One under way, else the first that did not go well, else the last one reached.
    """
    for wanted in ("running", "failed", "interrupted", "skipped", "waiting"):
        found = next((stage for stage in STAGES if states[stage] == wanted), None)
        if found:
            return found
    return STAGES[-1]


def _progress(run: Path) -> tuple[int, int, float | None]:
    """Return step, total and steps per second of a training as far as its status says."""
    try:
        status = read_status(run)
    except (UserError, KeyError, TypeError):
        return 0, 0, None  # it has not begun
    step, total, rate = (status.get(key) for key in ("step", "total", "rate"))
    return (
        step if isinstance(step, int) else 0,
        total if isinstance(total, int) else 0,
        float(rate) if isinstance(rate, int | float) and status["state"] == "running" else None,
    )
