"""Jobs as subprocesses of this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loom import processes
from loom.errors import UserError
from loom.jobs_loop import run_jobs
from loom.jobs_process import Ending, JobProcess, start
from loom.jobs_spec import Event, Job, Sweep


class Local:
    """Runs jobs on this machine."""

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
        self._slots = len(self.devices) or slots
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
        return run_jobs(self, sweep, root, resume, retry_failed=retry_failed)

    @contextmanager
    def open(self, sweep: Sweep) -> Generator[None]:
        """Refuse a sweep with a job that can never run here."""
        for job in sweep.jobs:
            if job.slots > self._slots:
                raise UserError(f"job {job.name} needs {job.slots} slots, there are {self._slots}")
            if job.memory_mb is not None and not processes.can_measure():
                raise UserError(f"job {job.name}: memory_mb needs /proc, which is not here")
        yield

    def slots(self) -> int:
        """Return how many one-slot jobs run at once."""
        return self._slots

    def start(
        self, job: Job, slots: Sequence[int], directory: Path, log: Path
    ) -> _LocalAttempt | Ending:
        """Start a job; a command that cannot be started is a failure of that job alone."""
        devices = [self.devices[slot] for slot in slots] if self.devices else []
        env = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        process = start(job, directory, log, env)
        if isinstance(process, Ending):
            return process
        return _LocalAttempt(process, devices, self.grace_s)


class _LocalAttempt:
    """A process with its share of the devices."""

    def __init__(self, process: JobProcess, devices: Sequence[str], grace_s: float) -> None:
        self._process, self._devices, self._grace_s = process, devices, grace_s

    @property
    def where(self) -> dict[str, Any]:
        return {**self._process.where, "devices": list(self._devices)}

    def poll(self, stops: int) -> Ending | None:
        return self._process.poll(stops, self._grace_s)

    def waits_for(self) -> str:
        return ""

    def kill(self) -> Ending:
        return self._process.kill()
