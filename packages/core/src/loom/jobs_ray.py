"""Jobs on the machines of a Ray cluster, with the files and promises of `Local`.

    for event in Ray(address="10.0.0.1:6379").run(sweep, root):
        print(event)

Ray chooses the machine and tells when one is gone; the job itself is a process of its own there,
watched by `loom.jobs_node`. All machines see the sweep's folder and the jobs' directories under the
same paths, and have this package installed: nothing is shipped to them. A slot is one processor of
the cluster.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from loom.errors import UserError
from loom.jobs_loop import run_jobs
from loom.jobs_node import order_line
from loom.jobs_process import POLL_S, Ending, without_inputs
from loom.jobs_spec import Event, Job, Sweep

OBJECT_STORE_BYTES = 80 << 20  # nothing travels through it; Ray asks for 75 MB at least
SLOTS_AGE_S = 1.0
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
        self._counted, self._counted_at = 0, -SLOTS_AGE_S

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
        ray = _import_ray()
        before = _sigterm_handler()
        try:
            self._connect(ray)
            if before is not None:  # Ray puts its own in its place
                signal.signal(signal.SIGTERM, before)
            self._require_room(ray, sweep)
            self._remote = ray.remote(run_on_node)
            yield
        finally:
            ray.shutdown()
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def slots(self) -> int:
        """Return how many one-slot jobs the cluster holds now; it may have lost a machine."""
        if time.monotonic() - self._counted_at >= SLOTS_AGE_S:
            total = _import_ray().cluster_resources()
            self._counted = int(total.get("GPU" if self._gpus else "CPU", 0))
            self._counted_at = time.monotonic()
        return self._counted if self._limit is None else min(self._counted, self._limit)

    def start(
        self, job: Job, slots: Sequence[int], directory: Path, log: Path
    ) -> _RayAttempt | Ending:
        """Hand a job to the cluster."""
        if ending := without_inputs(job, directory):
            return ending
        env = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(FORWARDED) and name not in job.env
        }
        order = order_line(job, directory, log, env, self._grace_s)
        task = self._remote.options(
            name=job.name,
            num_cpus=job.slots,
            num_gpus=job.slots if self._gpus else 0,
            max_retries=0,
            scheduling_strategy="SPREAD",
        )
        return _RayAttempt(task.remote(order), self._grace_s)

    def _connect(self, ray: ModuleType) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        own = options | {
            "num_cpus": self._limit or _processors(),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
        if self._address != "local":
            try:
                ray.init(self._address or os.environ.get("RAY_ADDRESS", "auto"), **options)
                return
            except (ConnectionError, RuntimeError, ValueError) as error:
                if self._address is not None or "RAY_ADDRESS" in os.environ:
                    raise UserError(
                        f"no Ray cluster could be joined: {_first_line(error)}",
                        hint="start one with `ray start --head`, with one RAY_AUTH_TOKEN for all",
                    ) from error
        try:
            ray.init("local", **own)
        except Exception as error:  # Ray raises it as such
            raise UserError(
                f"Ray could not be started here: {_first_line(error)}",
                hint="a busy machine may take more than Ray's 30 s; its logs are in /tmp/ray",
            ) from error

    def _require_room(self, ray: ModuleType, sweep: Sweep) -> None:
        """Refuse a job that no machine has room for, since it would wait for ever."""
        kind = "GPU" if self._gpus else "CPU"
        most = max(
            (node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]), default=0
        )
        most = most if self._limit is None else min(most, self._limit)
        for job in sweep.jobs:
            if job.slots > most:
                raise UserError(
                    f"job {job.name} needs {job.slots} slots, no machine has more than {most:g}",
                    hint="see `ray status` for the cluster's machines",
                )


class _RayAttempt:
    """A job that the cluster holds."""

    def __init__(self, task: Any, grace_s: float) -> None:
        self._task, self._grace_s = task, grace_s
        self._asked = 0

    @property
    def where(self) -> dict[str, Any]:
        return {"host": None, "ray_task": self._task.task_id().hex()}

    def poll(self, stops: int) -> Ending | None:
        ray = _import_ray()
        if stops > self._asked:
            self._asked = stops
            ray.cancel(self._task, force=stops > 1)
        ready, _ = ray.wait([self._task], timeout=0)
        return self._ending(ray) if ready else None

    def kill(self) -> Ending:
        ray = _import_ray()
        self._asked = 2
        ray.cancel(self._task, force=True)
        ray.wait([self._task], timeout=self._grace_s)
        return Ending("interrupted", "")

    def _ending(self, ray: ModuleType) -> Ending:
        try:
            return Ending(**ray.get(self._task))
        except ray.exceptions.OutOfMemoryError as error:
            return Ending("failed", f"its machine ran out of memory: {_first_line(error)}")
        except (
            ray.exceptions.NodeDiedError,
            ray.exceptions.LocalRayletDiedError,
            ray.exceptions.OwnerDiedError,
            ray.exceptions.WorkerCrashedError,
        ) as error:
            if self._asked:
                return Ending("interrupted", "")
            return Ending("lost", _first_line(error))
        except ray.exceptions.RayError as error:
            if self._asked:
                return Ending("interrupted", "")
            return Ending("failed", f"Ray could not run it: {_first_line(error)}")


def run_on_node(order: str) -> dict[str, Any]:
    """Run one job and return its ending: the body of a Ray task.

    `ray.cancel` raises KeyboardInterrupt here, between two instructions; the job is then asked to
    end and its ending is awaited.

    Args:
        order: What `loom.jobs_node.order_line` makes.
    """
    import ray

    supervisor = subprocess.Popen(
        [sys.executable, "-m", "loom.jobs_node"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    if supervisor.stdin is None or supervisor.stdout is None:
        raise AssertionError("both are pipes")
    message: bytes | None = order.encode()
    while supervisor.poll() is None:
        try:
            if message is not None:
                supervisor.stdin.write(message)
                supervisor.stdin.flush()
                message = None
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            message = b"stop\n"
    with supervisor:
        answer = supervisor.stdout.read()
    if not answer:
        return Ending("failed", f"its watcher ended with status {supervisor.returncode}")._asdict()
    ending = json.loads(answer)
    node = {"host": os.uname().nodename, "node": ray.util.get_node_ip_address()}
    return {**ending, "facts": {**ending["facts"], **node}}


def _import_ray() -> ModuleType:
    # Nothing is reported to anybody, and workers are not started through `uv run`, which would
    # pack this folder and send it to them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError(
            "the executor `ray` needs the library Ray, which is not installed",
            hint="uv pip install 'loom-core[ray]' on every machine, or use `sbatch` or `local`",
        ) from error
    return ray


def _sigterm_handler() -> Any:
    """Return the handler of SIGTERM; None outside of the main thread, where none can be set."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.getsignal(signal.SIGTERM)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
