"""Watch over one job on the machine that a cluster chose: `python -m loom.jobs_node`.

A cluster's worker starts this program, writes one line with the job to its standard input and reads
one line with the ending from its standard output. A further line asks the job to end, a second one
ends it at once, and so does the end of the input: a worker that is gone leaves nothing running.

While it runs, the attempt holds `logs/NAME.lock` on the file system that all machines share. A
machine that was given up but still works keeps the next attempt waiting, so two attempts of a job
never work in its folder at the same time.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from loom.jobs_process import POLL_S, Ending, start
from loom.jobs_spec import Job

LOCK_PATIENCE_S = 600.0  # Ray's own patience with a head that is cut off is a minute
_STDIN = 0


def order_line(job: Job, directory: Path, log: Path, env: Mapping[str, str], grace_s: float) -> str:
    """Return what to write to the program's standard input."""
    order = {
        "job": job.description(),
        "directory": str(directory),
        "log": str(log),
        "env": dict(env),
        "grace_s": grace_s,
    }
    return json.dumps(order) + "\n"


class _Requests:
    """What comes through standard input: the order, then requests to stop."""

    def __init__(self) -> None:
        self._stops = 0
        content = b""
        while b"\n" not in content:
            chunk = os.read(_STDIN, 65536)
            if not chunk:
                raise SystemExit("loom.jobs_node is started by an executor, not by hand")
            content += chunk
        line, _, rest = content.partition(b"\n")
        self.order = json.loads(line)
        self._stops += rest.count(b"\n")

    def stops(self) -> int:
        """Return how often a stop was asked for; a parent that is gone asks twice."""
        while select.select([_STDIN], [], [], 0)[0]:
            chunk = os.read(_STDIN, 4096)
            if not chunk:
                return 2
            self._stops += chunk.count(b"\n")
        return self._stops


def _watch(requests: _Requests) -> Ending:
    order = requests.order
    job, log = Job.from_description(order["job"]), Path(order["log"])
    lock = FileLock(log.parent / f"{job.name}.lock")
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            lock.acquire(timeout=POLL_S)
            break
        except Timeout:
            if requests.stops():
                return Ending("interrupted", "")
            if time.monotonic() > deadline:
                return Ending("failed", "an earlier attempt still runs on another machine")
    with lock:
        process = start(job, Path(order["directory"]), log, order["env"])
        if isinstance(process, Ending):
            return process
        while (ending := process.poll(requests.stops(), order["grace_s"])) is None:
            time.sleep(POLL_S)
        return ending


def main() -> None:
    """Run the job that standard input names, in a child of the process that was started.

    A Ray worker that ends kills its own children, and so would leave the job without a watcher.
    """
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    ending = _watch(_Requests())
    sys.stdout.write(json.dumps(ending._asdict()) + "\n")


if __name__ == "__main__":
    main()
