"""The files of a sweep: what is true of each job, and the events that made it so.

One process at a time writes them. That of `Local` and Ray is the executor, for as long as it holds
`sweep.lock`; the tasks of a SLURM array take turns by `status.lock`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loom import processes
from loom.errors import UserError
from loom.files import append_line, read_json, write_json
from loom.jobs_process import Ending, missing_outputs
from loom.jobs_spec import Event, Job, Sweep

SWEEP_FILE, STATUS_FILE, EVENTS_FILE = "sweep.json", "status.json", "events.jsonl"
HEARTBEAT_S = 5.0
OVER = ("done", "failed", "skipped")
"""States of a job that need nothing more."""

Known = Mapping[str, Mapping[str, Any]]


class SweepState:
    """What `status.json` holds, and the only writer of `events.jsonl`."""

    def __init__(
        self, sweep: Sweep, root: Path, known: Known, value: str = "running", **extra: Any
    ) -> None:
        """Take up what is known of each job, and show that the sweep is alive.

        Args:
            sweep: Its jobs.
            root: Its folder.
            known: Entries of `status.json` by job.
            value: State of the sweep as a whole.
            extra: Further fields of `status.json`.
        """
        self.sweep, self.root, self.extra = sweep, root, extra
        self.value = value
        self.jobs: dict[str, dict[str, Any]] = {
            job.name: dict(known.get(job.name, {"state": "waiting", "attempts": 0}))
            for job in sweep.jobs
        }
        self._beat = time.monotonic()
        self.write()

    def directory(self, job: Job) -> Path:
        """Return where a job runs."""
        return job.directory if job.directory is not None else self.root / "jobs" / job.name

    def log(self, job: Job) -> Path:
        """Return the file of what a job prints."""
        return self.root / "logs" / f"{job.name}.log"

    def begin(self, job: Job, where: Mapping[str, Any]) -> Event:
        """Record that a job runs, before anything else can happen to it.

        Args:
            job: The job.
            where: What names its process and place, as far as that is known.
        """
        self.jobs[job.name] = {
            "state": "running",
            "attempts": self.jobs[job.name]["attempts"] + 1,
            "pid": None,
            "process_start": None,
            "host": socket.gethostname(),
            "started": time.time(),
            **where,
        }
        self.write()
        return self.event("started", job.name, " ".join(map(str, job.command)))

    def wait(self, job: Job, why: str) -> Event:
        """Record what a job waits for, whether it was handed out already or not."""
        self.jobs[job.name]["detail"] = why
        self.write()
        return self.event("waiting", job.name, why)

    def go_on(self, job: Job) -> None:
        """Record that a job waits no longer."""
        self.jobs[job.name].pop("detail", None)
        self.write()

    def end(self, job: Job, ending: Ending) -> Event:
        """Record the end of an attempt; a job that is lost waits for another one."""
        value = "waiting" if ending.state == "lost" else ending.state
        self.jobs[job.name].update(
            state=value, detail=ending.detail, ended=time.time(), **ending.facts
        )
        self.write()
        return self.event(ending.state, job.name, ending.detail)

    def event(self, kind: str, job: str, detail: str) -> Event:
        """Append an event to `events.jsonl` and return it."""
        event = Event(time.time(), kind, job, detail)
        append_line(self.root / EVENTS_FILE, json.dumps(asdict(event), ensure_ascii=False))
        return event

    def heartbeat(self) -> None:
        """Show in `status.json` that the sweep is alive."""
        if time.monotonic() - self._beat >= HEARTBEAT_S:
            self.write()

    def finish(self, *, interrupted: bool) -> None:
        """Record how the sweep as a whole ended."""
        states = [entry["state"] for entry in self.jobs.values()]
        if interrupted:
            self.value = "interrupted"
        else:
            self.value = "finished" if all(state == "done" for state in states) else "failed"
        self.write()

    def summary(self) -> str:
        """Return the number of jobs in each state, as in `7 done, 1 failed`."""
        states = [entry["state"] for entry in self.jobs.values()]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

    def write(self) -> None:
        """Replace `status.json`; `loom runs` reads it as it reads that of a run."""
        self._beat = time.monotonic()
        content = {
            "thread": "sweep",
            "name": self.sweep.name,
            "state": self.value,
            "reason": self.summary(),
            "step": sum(entry["state"] in OVER for entry in self.jobs.values()),
            "total": len(self.jobs),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "heartbeat": time.time(),
            "interval_s": HEARTBEAT_S,
            **self.extra,
            "jobs": self.jobs,
        }
        write_json(self.root / STATUS_FILE, content)


def take_over(sweep: Sweep, root: Path, resume: bool) -> dict[str, dict[str, Any]]:
    """Write `sweep.json`, or check it on resume; return what is known of each job.

    Processes that a killed executor left behind on this machine are ended first.

    Raises:
        UserError: The folder holds another sweep, or one that is not to be resumed.
    """
    path = root / SWEEP_FILE
    if path.exists() and not resume:
        raise UserError(f"{root} holds a sweep already", hint="resume it, or give another folder")
    known: dict[str, dict[str, Any]] = {}
    if path.exists():
        require_same(sweep, root)
        known = _jobs_by_name(root / STATUS_FILE) if (root / STATUS_FILE).exists() else {}
    for entry in known.values():
        if entry["state"] == "running":
            entry["state"] = "interrupted"
            if is_alive_here(entry):
                processes.kill_session(entry["pid"])
    write_json(path, sweep.description())
    return known


def require_same(sweep: Sweep, root: Path) -> None:
    """See that no job is another one than when the sweep began; new ones may be added.

    Raises:
        UserError: A job changed, or there is no sweep.
    """
    was = {job.name: job.description() for job in Sweep.read(root / SWEEP_FILE).jobs}
    now = {job.name: job.description() for job in sweep.jobs}
    changed = [name for name, job in now.items() if was.get(name, job) != job]
    if changed:
        raise UserError(
            f"{root}: {', '.join(changed)} changed since the sweep began",
            hint="give the changed jobs another name, or the sweep another folder",
        )


def _jobs_by_name(path: Path) -> dict[str, dict[str, Any]]:
    """Read what a `status.json` knows of each job."""
    content = read_json(path)
    known = content.get("jobs") if isinstance(content, dict) else None
    needed = {"state", "attempts"}
    if not isinstance(known, dict) or not all(
        isinstance(entry, dict) and needed <= entry.keys() for entry in known.values()
    ):
        raise UserError(
            f"{path}: not what a sweep writes",
            hint="the file was edited or is another program's; without it every job runs again",
        )
    return known


def is_alive_here(entry: Mapping[str, Any]) -> bool:
    """Whether the process of a job's entry runs on this machine."""
    here = entry.get("host", socket.gethostname()) == socket.gethostname()
    start, pid = entry.get("process_start"), entry.get("pid")
    return here and start is not None and pid is not None and processes.start_time(pid) == start


def why_skip(job: Job, known: Mapping[str, Any], directory: Path, *, retry_failed: bool) -> str:
    """Return why a job need not run, or ""."""
    if known.get("state") == "done" and not missing_outputs(job, directory):
        return "done before"
    if known.get("state") == "failed" and not retry_failed:
        return f"failed before: {known.get('detail', '')}"
    return ""


def left_to_do(
    state: SweepState, known: Known, *, retry_failed: bool
) -> tuple[list[Job], list[Event]]:
    """Return the jobs that have to run, and an event for each that need not.

    What comes after a job that runs again runs again.
    """
    waiting: list[Job] = []
    events = []
    for job in state.sweep.jobs:
        entry, directory = known.get(job.name, {}), state.directory(job)
        why = why_skip(job, entry, directory, retry_failed=retry_failed)
        if why and not any(other.name in job.after for other in waiting):
            events.append(state.event("skipped", job.name, why))
        else:
            waiting.append(job)
    return waiting, events
