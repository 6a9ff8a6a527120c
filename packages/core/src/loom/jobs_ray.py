"""Jobs on the machines of a Ray cluster, with the files and promises of `Local`.

    for event in Ray(address="10.0.0.1:6379").run(sweep, root):
        print(event)

Ray carries a job to its machine and tells which machines live; the job is a process of its own
there, watched by `loom.jobs_node`. All machines see the sweep's folder and the jobs' directories
under the same paths, and have this package installed: nothing is shipped to them. A slot is one
processor of the cluster.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from loom.errors import UserError
from loom.jobs_loop import run_jobs
from loom.jobs_node import order_line
from loom.jobs_process import POLL_S, Ending, without_inputs
from loom.jobs_ray_cluster import Machines, connect, first_line, import_ray
from loom.jobs_spec import Event, Job, Sweep

FORWARDED = ("LOOM_", "OMP_NUM_THREADS", "MUJOCO_GL")
"""Beginnings of the variables that a job gets from the process that runs the sweep."""


class Ray:
    """Runs jobs on a Ray cluster."""

    def __init__(
        self,
        slots: int | None = None,
        *,
        address: str | None = None,
        gpus: bool = False,
        grace_s: float = 10.0,
    ) -> None:
        """Name the cluster and how much of it is used.

        Args:
            slots: How many one-slot jobs run at once; as many as the cluster holds, if None.
            address: `HOST:PORT` of the cluster's head, or `local` for one that lives on this
                machine as long as the sweep. If None: that of `RAY_ADDRESS`, or the cluster that
                this machine belongs to, or else `local`.
            gpus: Whether a slot is also one GPU, handed out through `CUDA_VISIBLE_DEVICES`.
            grace_s: How long a job that is told to end has before it is killed.
        """
        self._limit, self._address, self._gpus, self._grace_s = slots, address, gpus, grace_s
        self._machines = Machines(gpus)
        self._attempts: list[_RayAttempt] = []

    def run(
        self, sweep: Sweep, root: Path, resume: bool = False, *, retry_failed: bool = False
    ) -> Generator[Event]:
        """Run the jobs that are not done, and yield what happens as it happens.

        Args and errors are those of `Local.run`; without a cluster at the address, a `UserError`.
        """
        return run_jobs(self, sweep, root, resume, retry_failed=retry_failed)

    @contextmanager
    def open(self, sweep: Sweep) -> Generator[None]:
        """Join the cluster, and leave it afterwards."""
        ray = import_ray()
        before = _sigterm_handler()
        try:
            connect(self._address, self._limit)
            if before is not None:  # Ray puts its own in its place
                signal.signal(signal.SIGTERM, before)
            self._require_room(sweep)
            self._remote = ray.remote(run_on_node)
            yield
        finally:
            ray.shutdown()
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def slots(self) -> int:
        """Return how many one-slot jobs the cluster holds now; it may have lost a machine."""
        total = sum(machine.slots for machine in self._machines.alive().values())
        return total if self._limit is None else min(total, self._limit)

    def start(
        self, job: Job, slots: Sequence[int], directory: Path, log: Path
    ) -> _RayAttempt | Ending:
        """Hand a job to the cluster."""
        if ending := without_inputs(job, directory):
            return ending
        machine = self._freest(job.slots)
        if machine is None:
            return Ending("failed", f"no machine has room for its {job.slots} slots any more")
        env = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(FORWARDED) and name not in job.env
        }
        order = order_line(job, directory, log, env, self._grace_s)
        affinity = import_ray().util.scheduling_strategies.NodeAffinitySchedulingStrategy
        task = self._remote.options(
            name=job.name,
            num_cpus=job.slots,
            num_gpus=job.slots if self._gpus else 0,
            max_retries=0,
            scheduling_strategy=affinity(machine, soft=False),
        )
        before = _size(log)
        attempt = _RayAttempt(
            task.remote(order),
            job.slots,
            machine,
            self._machines,
            self._grace_s,
            has_begun=lambda: _size(log) > before,
        )
        self._attempts = [one for one in self._attempts if not one.over] + [attempt]
        return attempt

    def _freest(self, slots: int) -> str | None:
        """Return the machine with most free slots of those that could ever hold so many.

        It is chosen here and not by Ray, because Ray notices that a task's machine is gone only
        when its connection breaks, and a machine without power breaks none for minutes.
        """
        alive = self._machines.alive()
        free = {name: machine.slots for name, machine in alive.items() if machine.slots >= slots}
        for attempt in self._attempts:
            if not attempt.over and attempt.machine in free:
                free[attempt.machine] -= attempt.slots
        return max(free, key=lambda name: free[name], default=None)

    def _require_room(self, sweep: Sweep) -> None:
        """Refuse a job that no machine has room for, since it would wait for ever."""
        most = max((machine.slots for machine in self._machines.alive().values()), default=0)
        most = most if self._limit is None else min(most, self._limit)
        for job in sweep.jobs:
            if job.slots > most:
                raise UserError(
                    f"job {job.name} needs {job.slots} slots, no machine has more than {most}",
                    hint="see `ray status` for the cluster's machines",
                )


class _RayAttempt:
    """A job that the cluster holds."""

    def __init__(
        self,
        task: Any,
        slots: int,
        machine: str,
        machines: Machines,
        grace_s: float,
        *,
        has_begun: Callable[[], bool],
    ) -> None:
        self.slots, self.machine, self.over = slots, machine, False
        self._task, self._machines, self._grace_s = task, machines, grace_s
        self._has_begun, self._begun = has_begun, False
        self._address = machines.alive()[machine].address
        self._asked = 0

    @property
    def where(self) -> dict[str, Any]:
        return {"host": None, "node": self._address, "ray_task": self._task.task_id().hex()}

    def poll(self, stops: int) -> Ending | None:
        ray = import_ray()
        if stops > self._asked:
            self._asked = stops
            ray.cancel(self._task, force=stops > 1)
        ready, _ = ray.wait([self._task], timeout=0)
        if ready:
            self.over = True
            return self._ending(ray)
        if self.machine not in self._machines.alive():
            self.over = True
            return self._gone(f"its machine {self._address} went away")
        return None

    def waits_for(self) -> str:
        """Say what Ray lacks for it; others may use the cluster, too."""
        self._begun = self._begun or self._has_begun()
        return "" if self._begun else self._machines.room(self.machine, self.slots)

    def kill(self) -> Ending:
        ray = import_ray()
        self._asked, self.over = 2, True
        ray.cancel(self._task, force=True)
        ray.wait([self._task], timeout=self._grace_s)
        return Ending("interrupted", "")

    def _ending(self, ray: ModuleType) -> Ending:
        try:
            return Ending(**ray.get(self._task))
        except ray.exceptions.OutOfMemoryError as error:
            return Ending("failed", f"its machine ran out of memory: {first_line(error)}")
        except (
            ray.exceptions.NodeDiedError,
            ray.exceptions.LocalRayletDiedError,
            ray.exceptions.OwnerDiedError,
            ray.exceptions.TaskUnschedulableError,
            ray.exceptions.WorkerCrashedError,
        ) as error:
            return self._gone(first_line(error))
        except ray.exceptions.RayError as error:
            if self._asked:
                return Ending("interrupted", "")
            return Ending("failed", f"Ray could not run it: {first_line(error)}")

    def _gone(self, why: str) -> Ending:
        return Ending("interrupted", "") if self._asked else Ending("lost", why)


def _size(log: Path) -> int:
    """Return the bytes of a log; its first line tells that an attempt has begun."""
    return log.stat().st_size if log.exists() else 0


def run_on_node(order: str) -> dict[str, Any]:
    """Run one job and return its ending: the body of a Ray task.

    `ray.cancel` raises KeyboardInterrupt here, between two instructions; the job is then asked to
    end and its ending is awaited.

    Args:
        order: What `loom.jobs_node.order_line` makes.
    """
    # A cluster that was started in the background ignores SIGINT, and then so does `cancel`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "loom.jobs_node"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    unsent = order.encode()
    while supervisor.poll() is None:
        try:
            if unsent:
                supervisor.stdin.write(unsent)
                supervisor.stdin.flush()
                unsent = b""
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            unsent += b"stop\n"
    with supervisor:
        answer = supervisor.stdout.read()
    if not answer:
        return Ending("failed", f"its watcher ended with status {supervisor.returncode}")._asdict()
    ending = json.loads(answer)
    return {**ending, "facts": {**ending["facts"], "host": os.uname().nodename}}


def _sigterm_handler() -> Any:
    """Return the handler of SIGTERM; None outside of the main thread, where none can be set."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.getsignal(signal.SIGTERM)
