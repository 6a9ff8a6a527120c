"""The loop of an executor that stays: start what may start, settle what has ended, stop on signals.

`Local` and Ray differ in where an attempt runs; the order of jobs, the slots, the files and the
promise that each job ends exactly once are the same and stand here.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from filelock import FileLock, Timeout

from loom.errors import UserError
from loom.files import explained
from loom.jobs_process import POLL_S, Ending
from loom.jobs_spec import Event, Job, Sweep, SweepInterrupted
from loom.jobs_state import SweepState, left_to_do, take_over

MAX_LOSSES = 3
"""A job that is lost so often with its machine may be what brings machines down: it has failed."""

PATIENCE_S = 5.0
"""After so long it is said that a job waits although there is room, and for what."""


class Attempt(Protocol):
    """A job under way somewhere."""

    @property
    def where(self) -> Mapping[str, Any]:
        """What its entry in `status.json` says of its place."""
        ...

    def poll(self, stops: int) -> Ending | None:
        """Return its ending, or None while it runs; `stops` counts the requests to end."""
        ...

    def waits_for(self) -> str:
        """Say what it waits for at its place before it can begin, or ""."""
        ...

    def kill(self) -> Ending:
        """End it at once."""
        ...


class Place(Protocol):
    """Where jobs run."""

    def open(self, sweep: Sweep) -> AbstractContextManager[None]:
        """Make ready, and tidy up afterwards; raises `UserError` where a job can never run."""
        ...

    def slots(self) -> int:
        """Return how many one-slot jobs can run at once now."""
        ...

    def start(self, job: Job, slots: Sequence[int], directory: Path, log: Path) -> Attempt | Ending:
        """Start a job in the slots of these numbers; what cannot be started has ended."""
        ...


def run_jobs(
    place: Place, sweep: Sweep, root: Path, resume: bool, *, retry_failed: bool
) -> Generator[Event]:
    """Run the jobs that are not done at a place, and yield what happens as it happens.

    Raises:
        UserError: `root` holds another sweep, or another process runs this one, or a job can never
            run at this place.
        SweepInterrupted: SIGINT or SIGTERM came; all jobs were ended.
    """
    root = Path(root).absolute()
    with place.open(sweep), sweep_lock(root), stop_requests() as caught:
        known = take_over(sweep, root, resume)
        state = SweepState(sweep, root, known)
        yield state.event("started", "", f"{len(sweep.jobs)} jobs, {place.slots()} slots")
        waiting, skipped = left_to_do(state, known, retry_failed=retry_failed)
        yield from skipped
        yield from _Loop(place, state, waiting, caught).run()
    if caught:
        raise SweepInterrupted(caught[0], root)


class _Running(NamedTuple):
    """An attempt under way with the numbers of the slots it holds."""

    job: Job
    attempt: Attempt
    slots: tuple[int, ...]
    since: float


class _Loop:
    """Jobs that wait, and attempts under way with the slots they hold."""

    def __init__(
        self, place: Place, state: SweepState, waiting: list[Job], caught: Sequence[int]
    ) -> None:
        self._place, self._state, self._caught = place, state, caught
        self._waiting = waiting
        self._running: list[_Running] = []
        self._losses: Counter[str] = Counter()
        self._held_up: tuple[str, float] | None = None  # the next job, and since when
        self._told: set[str] = set()  # jobs of which it was said that they wait
        self._looked_at = 0.0

    def run(self) -> Generator[Event]:
        try:
            while (self._waiting and not self._caught) or self._running:
                yield from self._start_what_may()
                time.sleep(POLL_S)
                yield from self._settle_what_ended()
                yield from self._say_what_has_not_begun()
                self._state.heartbeat()
        finally:  # also when the caller leaves the loop, or something here breaks
            left = bool(self._waiting or self._running or self._caught)
            endings = [(one.job, one.attempt.kill()) for one in self._running]
            for job, ending in endings:
                self._state.end(job, ending)
            self._state.finish(interrupted=left)
        yield self._state.event(self._state.value, "", self._state.summary())

    def _start_what_may(self) -> Generator[Event]:
        while not self._caught and (job := self._next_ready()):
            taken = {slot for one in self._running for slot in one.slots}
            free = [slot for slot in range(self._place.slots()) if slot not in taken]
            if job.slots > len(free):
                yield from self._say_that_it_is_held_up(job, len(free))
                return
            self._waiting.remove(job)
            self._told.discard(job.name)
            self._held_up = None
            slots = tuple(free[: job.slots])
            directory, log = self._state.directory(job), self._state.log(job)
            started = self._place.start(job, slots, directory, log)
            if isinstance(started, Ending):
                yield self._state.end(job, started)
            else:
                self._running.append(_Running(job, started, slots, time.monotonic()))
                yield self._state.begin(job, started.where)

    def _next_ready(self) -> Job | None:
        """Return the first job that waits for no other one."""
        unfinished = {job.name for job in self._waiting} | {one.job.name for one in self._running}
        return next((job for job in self._waiting if unfinished.isdisjoint(job.after)), None)

    def _say_that_it_is_held_up(self, job: Job, free: int) -> Generator[Event]:
        """Say that the next job lacks slots: some lie idle, or nothing runs that could free one."""
        if self._running and not free:
            self._held_up = None  # the usual case: all slots are at work
            return
        if self._held_up is None or self._held_up[0] != job.name:
            self._held_up = (job.name, time.monotonic())
        if job.name in self._told or time.monotonic() - self._held_up[1] < PATIENCE_S:
            return
        self._told.add(job.name)
        total = self._place.slots()
        why = f"it asks for {job.slots} slots, {free} of {total} are free"
        if job.slots > total:
            why += "; so many there are not any more"
        yield self._state.wait(job, why)

    def _say_what_has_not_begun(self) -> Generator[Event]:
        """Say which attempts still wait at their place, and forget it once they have begun."""
        now = time.monotonic()
        if now - self._looked_at < min(1.0, PATIENCE_S):
            return
        self._looked_at = now
        for one in self._running:
            if now - one.since < PATIENCE_S:
                continue
            why, told = one.attempt.waits_for(), one.job.name in self._told
            if why and not told:
                self._told.add(one.job.name)
                yield self._state.wait(one.job, why)
            elif told and not why:
                self._told.discard(one.job.name)
                self._state.go_on(one.job)

    def _settle_what_ended(self) -> Generator[Event]:
        for one in list(self._running):
            ending = one.attempt.poll(len(self._caught))
            if ending is None:
                continue
            self._running.remove(one)
            self._told.discard(one.job.name)
            if ending.state == "lost":
                ending = self._after_loss(one.job, ending)
            yield self._state.end(one.job, ending)

    def _after_loss(self, job: Job, ending: Ending) -> Ending:
        self._losses[job.name] += 1
        if self._losses[job.name] >= MAX_LOSSES:
            times = f"lost {MAX_LOSSES} times with the machine it ran on"
            return ending._replace(state="failed", detail=f"{times}, at last: {ending.detail}")
        self._waiting.append(job)
        self._waiting.sort(key=self._state.sweep.jobs.index)
        return ending


@contextmanager
def sweep_lock(root: Path) -> Generator[None]:
    """Make the folder of a sweep and be the only process that runs it.

    Raises:
        UserError: Another process runs it, or the folder cannot be made.
    """
    with explained(root):
        (root / "logs").mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "sweep.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{root}: another process is running this sweep",
            hint="wait for it, or end the process that status.json names",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def stop_requests() -> Generator[list[int]]:
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
