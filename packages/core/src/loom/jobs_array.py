"""One task of a SLURM array: a chain of jobs of a sweep, run where SLURM chose.

`array.sbatch` starts `python -m loom.jobs_array ROOT GRACE_S`, with the number of the chain in
`SLURM_ARRAY_TASK_ID`. The tasks write the files of the sweep in turn, under `status.lock`. A task
that finds its own job under way was cut off with its machine, and starts it again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from loom.errors import UserError
from loom.files import read_json
from loom.jobs_process import POLL_S, Ending, start
from loom.jobs_spec import Job, Sweep
from loom.jobs_state import HEARTBEAT_S, OVER, STATUS_FILE, SWEEP_FILE, SweepState

LOCK_FILE = "status.lock"


def chains(sweep: Sweep) -> list[list[Job]]:
    """Return the jobs that come after one another together, each in the order of the sweep."""
    place: dict[str, int] = {}
    groups: list[list[Job]] = []
    for job in sweep.jobs:
        joined = sorted({place[name] for name in job.after})
        target = joined[0] if joined else len(groups)
        if not joined:
            groups.append([])
        groups[target] += [job, *(one for other in joined[1:] for one in groups[other])]
        for other in joined[1:]:
            groups[other] = []
        place.update((one.name, target) for one in groups[target])
    order = {job.name: index for index, job in enumerate(sweep.jobs)}
    return [sorted(group, key=lambda job: order[job.name]) for group in groups if group]


def run_task(root: Path, index: int, grace_s: float) -> bool:
    """Run what is left of one chain; return whether it was told to end before its end.

    Args:
        root: Folder of the sweep.
        index: Which of its `chains`.
        grace_s: How long a job that is told to end has.
    """
    sweep = Sweep.read(root / SWEEP_FILE)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: told.append(number))
    for job in chains(sweep)[index]:
        if told:
            break
        with turn(sweep, root) as state:
            entry = state.jobs[job.name]
            if entry["state"] in OVER:
                continue
            if entry["state"] == "running":
                state.end(job, Ending("lost", f"its machine {entry['host']} went away"))
            process = start(job, state.directory(job), state.log(job), {})
            if isinstance(process, Ending):
                state.end(job, process)
                continue
            state.begin(job, process.where)
        beat_at = time.monotonic()
        while (ending := process.poll(min(1, len(told)), grace_s)) is None:
            time.sleep(POLL_S)
            if time.monotonic() - beat_at >= 2 * HEARTBEAT_S:
                beat_at = time.monotonic()
                with turn(sweep, root):
                    pass
        with turn(sweep, root) as state:
            state.end(job, ending)
    with turn(sweep, root) as state:
        if all(entry["state"] in OVER for entry in state.jobs.values()):
            settle(state)
        return any(state.jobs[job.name]["state"] not in OVER for job in chains(sweep)[index])


@contextmanager
def turn(sweep: Sweep, root: Path, *, follows: bool = False) -> Generator[SweepState]:
    """Be the only one to write the state of the sweep for a moment.

    `status.json` names the process that follows the sweep, and a task's where none has for a while.
    """
    with FileLock(root / LOCK_FILE):
        status = read_json(root / STATUS_FILE)
        extra: dict[str, Any] = {
            "array": status.get("array"),
            "followed": status.get("followed", 0),
        }
        if follows:
            extra["followed"] = time.time()
        elif time.time() - extra["followed"] < 6 * HEARTBEAT_S:
            extra |= {"pid": status["pid"], "host": status["host"]}
        state = SweepState(sweep, root, status["jobs"], value=status["state"], **extra)
        yield state
        state.write()


def settle(state: SweepState) -> None:
    """Record the end of a sweep whose tasks have all ended, unless one of them has."""
    if state.value != "running":
        return
    for job in state.sweep.jobs:
        if state.jobs[job.name]["state"] == "running":
            state.end(job, Ending("interrupted", "SLURM ended it"))
    over = all(entry["state"] in OVER for entry in state.jobs.values())
    state.finish(interrupted=not over)
    state.event(state.value, "", state.summary())


def command(*words: str) -> str:
    """Run a command of SLURM and return what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())[:300]
        raise UserError(
            f"{words[0]} ended with status {done.returncode}: {said}",
            hint="see what your site asks for, and put it into --executor sbatch:FILE",
        )
    return done.stdout


def main(arguments: Sequence[str]) -> None:
    """Run a task of the array as SLURM starts it: `ROOT GRACE_S`."""
    root, grace_s = arguments
    left = run_task(Path(root), int(os.environ["SLURM_ARRAY_TASK_ID"]), float(grace_s))
    if left and not read_json(Path(root) / STATUS_FILE)["array"]["stop"]:
        task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        command("scontrol", "requeue", task)


if __name__ == "__main__":
    main(sys.argv[1:])
