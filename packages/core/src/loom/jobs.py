"""Run many independent commands on this machine, and keep the truth about them on disk.

    for event in Local(slots=2).run(Sweep("boundary4", jobs), root):
        print(event)

A job is a command line with a working directory and limits; the executor knows nothing of what it
computes. Each job is a subprocess in a session of its own, so that a time-out, a memory limit or a
signal ends the whole tree; one failure never ends the rest. Under `root`:

    sweep.json     the jobs as given
    status.json    replaced at every change and every few seconds: state of the sweep and its jobs
    events.jsonl   one line per event, appended
    logs/NAME.log  what the job printed, over all its attempts
    jobs/NAME/     its working directory, unless it names one

With `resume=True` only what is not done runs: a job is done when it ended with status 0, its
outputs are there, and no job that it comes `after` runs again. `kill -9` of the executor loses
nothing but the attempts under way, which the next run ends before it starts them again.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from loom import processes
from loom.errors import UserError
from loom.files import append_line, explained, read_json, write_json

POLL_S = 0.05
MEMORY_POLL_S = 0.5
HEARTBEAT_S = 5.0
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]{0,150}")
LAST_LINE_BYTES = 4096


@dataclass(frozen=True)
class Job:
    """A command with its place and its limits.

    Attributes:
        name: Unique in the sweep; names its log and its folder.
        command: Program and arguments.
        directory: Where it runs; by default a folder of its own under the sweep's root.
        outputs: Paths, relative to the directory, that must exist when it is done.
        after: Jobs before it in the list that must have ended, well or not, before it starts.
        inputs: Paths, relative to the directory, without which it is skipped.
        timeout_s: It is ended after this long.
        memory_mb: It is ended when its processes together hold more than this.
        slots: How many of the executor's slots it takes; with devices, how many devices.
        env: Added to the environment.
    """

    name: str
    command: Sequence[str]
    directory: Path | None = None
    outputs: Sequence[str] = ()
    after: Sequence[str] = ()
    inputs: Sequence[str] = ()
    timeout_s: float | None = None
    memory_mb: float | None = None
    slots: int = 1
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(f"job name {self.name!r} cannot be a file name")
        if isinstance(self.command, str) or not self.command:
            raise UserError(f"job {self.name}: the command must be a list of words")
        if self.slots < 1:
            raise UserError(f"job {self.name}: slots={self.slots} is less than 1")

    def description(self) -> dict[str, Any]:
        """Return the job as it stands in `sweep.json`."""
        directory = str(self.directory) if self.directory is not None else None
        return {
            **asdict(self),
            "command": [str(word) for word in self.command],
            "directory": directory,
            "outputs": list(self.outputs),
            "after": list(self.after),
            "inputs": list(self.inputs),
            "env": dict(self.env),
        }


@dataclass(frozen=True)
class Sweep:
    """A named list of jobs, started in this order."""

    name: str
    jobs: Sequence[Job]

    def __post_init__(self) -> None:
        names = [job.name for job in self.jobs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"sweep {self.name}: two jobs are named {', '.join(twice)}")
        for index, job in enumerate(self.jobs):
            unknown = [name for name in job.after if name not in names[:index]]
            if unknown:
                raise UserError(f"job {job.name}: {', '.join(unknown)} is not a job before it")


@dataclass(frozen=True)
class Event:
    """Something that happened: `job` is empty for the sweep itself.

    `kind` is one of started, skipped, done, failed, interrupted for a job; the sweep ends with
    finished (every job is done), failed or interrupted. Skipped is a job that need not run again,
    and, as its state too, one whose inputs are missing.
    """

    time: float
    kind: str
    job: str
    detail: str = ""

    def __str__(self) -> str:
        subject = self.job or "sweep"
        return f"{subject}: {self.kind}" + (f", {self.detail}" if self.detail else "")


class SweepInterrupted(UserError):
    """A signal stopped the sweep; its jobs were ended and `resume` completes it."""

    def __init__(self, number: int, root: Path) -> None:
        name = signal.Signals(number).name
        super().__init__(
            f"the sweep was stopped by {name}", hint=f"resume completes what {root} lacks"
        )
        self.exit_code = 128 + number


@dataclass
class _Running:
    """A job under way."""

    job: Job
    process: subprocess.Popen[bytes]
    devices: tuple[str, ...]
    begin: float
    log_begin: int  # where this attempt begins in the log
    ended_because: str = ""
    kill_at: float = math.inf  # when patience with SIGTERM ends
    peak_mb: float = 0.0


class Local:
    """Runs jobs as subprocesses of this process."""

    def __init__(
        self, slots: int = 1, *, devices: Sequence[str] = (), grace_s: float = 10.0
    ) -> None:
        """Set how much runs at once.

        Args:
            slots: How many one-slot jobs run at once.
            devices: Accelerators to hand out through `CUDA_VISIBLE_DEVICES`, one per slot; given,
                they set the number of slots.
            grace_s: How long a job that is told to end has before it is killed.
        """
        self.devices = tuple(map(str, devices))
        self.slots = len(self.devices) or slots
        self.grace_s = grace_s

    def run(
        self, sweep: Sweep, root: Path, resume: bool = False, *, retry_failed: bool = False
    ) -> Generator[Event]:
        """Run the jobs that are not done, and yield what happens as it happens.

        Args:
            sweep: The jobs.
            root: Folder of the sweep.
            resume: Go on with the sweep that `root` holds: jobs that are done are not run again.
            retry_failed: On resume, run the jobs again that had failed.

        Raises:
            UserError: `root` holds another sweep, or another process runs this one, or a job needs
                more slots than there are.
            SweepInterrupted: SIGINT or SIGTERM came; all jobs were ended.
        """
        for job in sweep.jobs:
            if job.slots > self.slots:
                raise UserError(f"job {job.name} needs {job.slots} slots, there are {self.slots}")
            if job.memory_mb is not None and not processes.can_measure():
                raise UserError(f"job {job.name}: memory_mb needs /proc, which is not here")
        root = Path(root).absolute()
        with explained(root):
            (root / "logs").mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(root / "sweep.lock", timeout=0), _signals() as caught:
                before = _take_over(sweep, root, resume)
                state = _State(sweep, root, before)
                yield from self._run(sweep, state, before, retry_failed, caught)
        except Timeout as error:
            raise UserError(
                f"{root}: another process is running this sweep",
                hint="wait for it, or end the process that status.json names",
            ) from error
        if caught:
            raise SweepInterrupted(caught[0], root)

    def _run(
        self,
        sweep: Sweep,
        state: _State,
        before: Mapping[str, Mapping[str, Any]],
        retry_failed: bool,
        caught: list[int],
    ) -> Generator[Event]:
        yield state.event("started", "", f"{len(sweep.jobs)} jobs, {self.slots} slots")
        waiting: list[Job] = []
        for job in sweep.jobs:
            why = _why_skip(job, before.get(job.name, {}), state.directory(job), retry_failed)
            if why and not any(other.name in job.after for other in waiting):
                yield state.event("skipped", job.name, why)
            else:
                waiting.append(job)
        running: list[_Running] = []
        free_slots, free_devices = self.slots, list(self.devices)
        try:
            while (waiting and not caught) or running:
                while not caught and (job := _next_ready(waiting, running)):
                    if job.slots > free_slots:
                        break
                    waiting.remove(job)
                    taken = tuple(free_devices[: job.slots])
                    started = self._start(job, taken, state)
                    if isinstance(started, Event):
                        yield started
                        continue
                    running.append(started)
                    free_slots -= job.slots
                    del free_devices[: job.slots]
                    yield state.event("started", job.name, " ".join(job.command))
                time.sleep(POLL_S)
                self._enforce(running, caught, state)
                for ended in [one for one in running if one.process.poll() is not None]:
                    running.remove(ended)
                    free_slots += ended.job.slots
                    free_devices.extend(ended.devices)
                    yield self._close(ended, state)
        finally:  # also when the caller leaves the loop, or something here breaks
            for one in running:
                one.ended_because = one.ended_because or "interrupted"
                processes.kill_session(one.process.pid)
                one.process.wait()
            for one in running:
                self._close(one, state)
            state.finish(interrupted=bool(waiting or running or caught))
        yield state.event(state.value, "", state.summary())

    def _start(self, job: Job, devices: tuple[str, ...], state: _State) -> _Running | Event:
        """Start a job; a command that cannot be started is a failure of that job alone."""
        environment = {**os.environ, **job.env}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        directory = state.directory(job)
        missing = [path for path in job.inputs if not (directory / path).exists()]
        if missing:
            return state.change(job, "skipped", f"missing {', '.join(missing)}")
        command = [str(word) for word in job.command]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with state.log(job).open("ab") as log:
                log.write(f"$ {' '.join(command)}\n".encode())
                log.flush()
                log_begin = log.tell()
                process = subprocess.Popen(
                    command,
                    cwd=directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            return state.change(job, "failed", f"cannot be started: {error}")
        state.begin(job, process.pid, devices)
        return _Running(job, process, devices, time.monotonic(), log_begin)

    def _enforce(self, running: Sequence[_Running], caught: Sequence[int], state: _State) -> None:
        """Tell jobs to end that are over a limit or interrupted; kill those that do not."""
        now = time.monotonic()
        measured = state.measure_due(now)
        for one in running:
            job, process = one.job, one.process
            if measured and job.memory_mb is not None:
                used = processes.session_memory_mb(process.pid, job.memory_mb)
                one.peak_mb = max(one.peak_mb, used)
            reason, patience_s = "", self.grace_s
            if caught:
                reason = "interrupted"
            elif job.timeout_s is not None and now - one.begin > job.timeout_s:
                reason = f"timed out after {job.timeout_s:g} s"
            elif job.memory_mb is not None and one.peak_mb > job.memory_mb:
                reason = f"used {one.peak_mb:.0f} MB of memory, the limit is {job.memory_mb:g} MB"
                patience_s = 0.0  # it may be about to take the machine down
            if reason and not one.ended_because:
                one.ended_because = reason
                one.kill_at = now + patience_s
                processes.terminate_group(process.pid)
            if now >= one.kill_at or len(caught) > 1:
                processes.kill_session(process.pid)
        state.heartbeat(now)

    def _close(self, one: _Running, state: _State) -> Event:
        """Settle an ended job: what it left running is killed, its end is judged and recorded."""
        processes.kill_session(one.process.pid)
        code, job = one.process.returncode, one.job
        seconds = time.monotonic() - one.begin
        numbers = {"exit": code, "seconds": round(seconds, 3), "peak_mb": round(one.peak_mb, 1)}
        missing = _missing_outputs(job, state.directory(job))
        if one.ended_because == "interrupted":
            return state.change(job, "interrupted", "", **numbers)
        if one.ended_because:
            return state.change(job, "failed", one.ended_because, **numbers)
        if code != 0:
            said = _last_line(state.log(job), one.log_begin)
            detail = processes.describe_exit(code) + (f": {said}" if said else "")
            return state.change(job, "failed", detail, **numbers)
        if missing:
            detail = f"exit status 0, but it left no {', '.join(missing)}"
            return state.change(job, "failed", detail, **numbers)
        return state.change(job, "done", f"{seconds:.1f} s", **numbers)


class _State:
    """The sweep's files: what is true of each job, and the events that made it so."""

    def __init__(self, sweep: Sweep, root: Path, before: Mapping[str, Mapping[str, Any]]) -> None:
        self.root = root
        self.value = "running"
        self.jobs: dict[str, dict[str, Any]] = {
            job.name: dict(before.get(job.name, {"state": "waiting", "attempts": 0}))
            for job in sweep.jobs
        }
        self.name = sweep.name
        self._beat = self._measured = time.monotonic()
        self._write()

    def directory(self, job: Job) -> Path:
        return job.directory if job.directory is not None else self.root / "jobs" / job.name

    def log(self, job: Job) -> Path:
        return self.root / "logs" / f"{job.name}.log"

    def begin(self, job: Job, pid: int, devices: Sequence[str]) -> None:
        """Record that a job runs, before anything else can happen to it."""
        self.jobs[job.name] = {
            "state": "running",
            "attempts": self.jobs[job.name]["attempts"] + 1,
            "pid": pid,
            "process_start": processes.start_time(pid),
            "started": time.time(),
            "devices": list(devices),
        }
        self._write()

    def change(self, job: Job, value: str, detail: str, **numbers: float) -> Event:
        """Record the end of a job."""
        entry = self.jobs[job.name]
        entry.update(state=value, detail=detail, ended=time.time(), **numbers)
        self._write()
        return self.event(value, job.name, detail)

    def event(self, kind: str, job: str, detail: str) -> Event:
        """Append an event to `events.jsonl` and return it."""
        event = Event(time.time(), kind, job, detail)
        append_line(self.root / "events.jsonl", json.dumps(asdict(event), ensure_ascii=False))
        return event

    def measure_due(self, now: float) -> bool:
        """Whether it is time to look at the jobs' memory again."""
        if now - self._measured < MEMORY_POLL_S:
            return False
        self._measured = now
        return True

    def heartbeat(self, now: float) -> None:
        """Show in `status.json` that the executor is alive."""
        if now - self._beat >= HEARTBEAT_S:
            self._write()

    def finish(self, *, interrupted: bool) -> None:
        """Record how the sweep as a whole ended."""
        states = [entry["state"] for entry in self.jobs.values()]
        if interrupted:
            self.value = "interrupted"
        else:
            self.value = "finished" if all(state == "done" for state in states) else "failed"
        self._write()

    def summary(self) -> str:
        """Return the number of jobs in each state, as in `7 done, 1 failed`."""
        states = [entry["state"] for entry in self.jobs.values()]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

    def _write(self) -> None:
        self._beat = time.monotonic()
        content = {
            "name": self.name,
            "state": self.value,
            "pid": os.getpid(),
            "heartbeat": time.time(),
            "jobs": self.jobs,
        }
        write_json(self.root / "status.json", content)


def _take_over(sweep: Sweep, root: Path, resume: bool) -> dict[str, dict[str, Any]]:
    """Write `sweep.json`, or check it on resume; return what is known of each job.

    Processes that a killed executor left behind are ended first.
    """
    described = {"name": sweep.name, "jobs": [job.description() for job in sweep.jobs]}
    path, status = root / "sweep.json", root / "status.json"
    if path.exists() and not resume:
        raise UserError(f"{root} holds a sweep already", hint="resume it, or give another folder")
    known: dict[str, dict[str, Any]] = {}
    if path.exists():
        was = {job["name"]: job for job in read_json(path)["jobs"]}
        changed = [j["name"] for j in described["jobs"] if was.get(j["name"], j) != j]
        if changed:
            raise UserError(
                f"{root}: {', '.join(changed)} changed since the sweep began",
                hint="give the changed jobs another name, or the sweep another folder",
            )
        known = read_json(status)["jobs"] if status.exists() else {}
    for entry in known.values():
        if entry["state"] == "running":
            entry["state"] = "interrupted"
            if processes.start_time(entry["pid"]) == entry["process_start"] is not None:
                processes.kill_session(entry["pid"])
    write_json(path, described)
    return known


def _why_skip(job: Job, known: Mapping[str, Any], directory: Path, retry_failed: bool) -> str:
    """Return why a job need not run, or ""."""
    if known.get("state") == "done" and not _missing_outputs(job, directory):
        return "done before"
    if known.get("state") == "failed" and not retry_failed:
        return f"failed before: {known.get('detail', '')}"
    return ""


def _next_ready(waiting: Sequence[Job], running: Sequence[_Running]) -> Job | None:
    """Return the first job that waits for no other one."""
    unfinished = {job.name for job in waiting} | {one.job.name for one in running}
    return next((job for job in waiting if unfinished.isdisjoint(job.after)), None)


def _missing_outputs(job: Job, directory: Path) -> list[str]:
    return [output for output in job.outputs if not (directory / output).exists()]


def _last_line(log: Path, begin: int) -> str:
    """Return the last line that an attempt printed, but for a hint: in Python, the exception."""
    with log.open("rb") as stream:
        stream.seek(max(begin, stream.seek(0, os.SEEK_END) - LAST_LINE_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    said = (line.strip() for line in reversed(lines) if not line.startswith("hint: "))
    return next((line[:200] for line in said if line), "")


@contextmanager
def _signals() -> Generator[list[int]]:
    """Collect SIGINT and SIGTERM in a list for as long as the block lasts.

    Only the main thread may do this; in another one, the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
