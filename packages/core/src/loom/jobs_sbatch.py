"""Jobs as an array of SLURM, for sites without Ray, with the files and promises of `Local`.

    for event in Sbatch(header=Path("site.sbatch")).run(sweep, root):
        print(event)

Jobs that come after one another are one task of the array and run in its order; `array.sbatch`,
beside the sweep's other files, starts `python -m loom.jobs_array` on the machine that SLURM
chose. The tasks write `status.json` and `events.jsonl` themselves, in turn, so the state is right
whether or not anybody follows it. The process that submitted the array only follows; when it is
hung up, the array goes on, and a resume follows it again. A signal to it ends the array.

A task that is told to end (SIGUSR1, 90 s before its time is up, or SIGTERM, when another job takes
its place) ends its job, which has time for a checkpoint, and asks to be queued again.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from loom.errors import UserError
from loom.files import explained, read_json, read_text, write_atomic
from loom.jobs_array import LOCK_FILE, chains, command, settle, turn
from loom.jobs_loop import stop_requests, sweep_lock
from loom.jobs_process import POLL_S
from loom.jobs_spec import Event, Sweep, SweepInterrupted
from loom.jobs_state import (
    EVENTS_FILE,
    STATUS_FILE,
    SWEEP_FILE,
    SweepState,
    left_to_do,
    require_same,
    take_over,
)

SCRIPT_FILE = "array.sbatch"
WARNING_S = 90
"""How long before the end of its time SLURM warns a task."""


class Sbatch:
    """Runs jobs as an array of SLURM."""

    def __init__(
        self,
        slots: int | None = None,
        *,
        header: Path | None = None,
        grace_s: float = 30.0,
        poll_s: float = 5.0,
    ) -> None:
        """Say what the site needs.

        Args:
            slots: How many tasks of the array run at once; as many as SLURM lets, if None.
            header: Lines for the top of the script: `#SBATCH --partition=...`, `module load ...`.
            grace_s: How long a job that is told to end has before it is killed.
            poll_s: How often the queue is asked.
        """
        self._slots, self._header, self._grace_s, self._poll_s = slots, header, grace_s, poll_s

    def run(
        self, sweep: Sweep, root: Path, resume: bool = False, *, retry_failed: bool = False
    ) -> Generator[Event]:
        """Submit the jobs that are not done, and yield what happens as it happens.

        Args and errors are those of `Local.run`; without SLURM on this machine, a `UserError`.
        """
        if shutil.which("sbatch") is None:
            raise UserError(
                "there is no `sbatch` on this machine",
                hint="run this on a login node of the cluster, or with --executor local",
            )
        root = Path(root).absolute()
        with sweep_lock(root), stop_requests() as caught:
            events = _Tail(root / EVENTS_FILE)
            array = self._array_under_way(sweep, root) if resume else ""
            if not array:
                array = self._submit_what_is_left(sweep, root, resume, retry_failed)
            else:
                with turn(sweep, root, follows=True) as state:
                    state.event("started", "", f"follows array job {array} again")
            yield from self._follow(sweep, root, array, events, caught)
        if caught:
            raise SweepInterrupted(caught[0], root)

    def _array_under_way(self, sweep: Sweep, root: Path) -> str:
        """Return the array of an earlier call that SLURM still knows, or ""."""
        array = _array_in_queue(root)
        if not array:
            return ""
        require_same(sweep, root)
        if len(Sweep.read(root / SWEEP_FILE).jobs) != len(sweep.jobs):
            raise UserError(
                f"{root}: jobs cannot be added or left out while array job {array} is under way",
                hint="wait until it has ended, then resume",
            )
        return array

    def _submit_what_is_left(
        self, sweep: Sweep, root: Path, resume: bool, retry_failed: bool
    ) -> str:
        known = take_over(sweep, root, resume)
        state = SweepState(sweep, root, known)
        state.event("started", "", f"{len(sweep.jobs)} jobs, for an array of SLURM")
        waiting, _ = left_to_do(state, known, retry_failed=retry_failed)
        names = {job.name for job in waiting}
        for name in names:
            state.jobs[name]["state"] = "waiting"
        tasks = [i for i, chain in enumerate(chains(sweep)) if names & {job.name for job in chain}]
        if not tasks:
            state.finish(interrupted=False)
            state.event(state.value, "", state.summary())
            return ""
        state.write()
        write_atomic(root / SCRIPT_FILE, self.script(sweep, root, tasks))
        with FileLock(root / LOCK_FILE):  # the first task may begin before its number is noted
            array = command("sbatch", "--parsable", str(root / SCRIPT_FILE)).partition(";")[0]
            state.extra |= {"array": {"id": array.strip(), "stop": False}, "followed": time.time()}
            state.write()
        return array.strip()

    def script(self, sweep: Sweep, root: Path, tasks: Sequence[int]) -> str:
        """Return the text of an array job.

        Args:
            sweep: Its jobs.
            root: Folder of the sweep, on a file system that all machines share.
            tasks: Which of its `chains` to run.
        """
        header = read_text(self._header).rstrip() if self._header else ""
        limit = f"%{self._slots}" if self._slots else ""
        output = shlex.quote(f"{root}/logs/array-%A_%a.log")
        python = shlex.join([sys.executable, "-m", "loom.jobs_array"])
        lines = (
            "#!/bin/bash",
            f"#SBATCH --job-name={shlex.quote(sweep.name)}",
            f"#SBATCH --array={','.join(map(str, tasks))}{limit}",
            f"#SBATCH --cpus-per-task={max(job.slots for job in sweep.jobs)}",
            f"#SBATCH --output={output}",
            "#SBATCH --open-mode=append",
            "#SBATCH --requeue",
            f"#SBATCH --signal=B:USR1@{WARNING_S}",
            *([header] if header else []),
            f"exec {python} {shlex.quote(str(root))} {self._grace_s:g}",
        )
        return "\n".join(lines) + "\n"

    def _follow(
        self, sweep: Sweep, root: Path, array: str, events: _Tail, caught: Sequence[int]
    ) -> Generator[Event]:
        """Yield what the tasks write until the sweep has ended."""
        asked_at, cancelled = time.monotonic(), False
        while True:
            for event in events:
                yield event
                if not event.job and event.kind != "started":
                    return
            if caught and not cancelled:
                cancelled = True
                with turn(sweep, root, follows=True) as state:
                    state.extra["array"]["stop"] = True
                command("scancel", array)
            if time.monotonic() - asked_at >= self._poll_s:
                asked_at = time.monotonic()
                gone = not _in_queue(array)
                with turn(sweep, root, follows=True) as state:
                    if gone:
                        settle(state)
            time.sleep(min(self._poll_s, 4 * POLL_S))


def cancel(root: Path) -> str:
    """End the array of a sweep that nobody follows; return its number, or "" if there is none."""
    array = _array_in_queue(root)
    if not array:
        return ""
    with turn(Sweep.read(root / SWEEP_FILE), root) as state:
        state.extra["array"]["stop"] = True
    command("scancel", array)
    return array


class _Tail:
    """The events that are appended to a file from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def __iter__(self) -> Iterator[Event]:
        if not self._path.exists():
            return
        with explained(self._path), self._path.open("rb") as stream:
            stream.seek(self._offset)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                event = Event(**json.loads(line))
            except (ValueError, TypeError):
                continue  # a kill had torn it; status.json is right all the same
            yield event


def _array_in_queue(root: Path) -> str:
    """Return the array that a sweep's status names, if SLURM still has work of it.

    SLURM lists tasks for a while after they have ended; a sweep that is over does not wait for it.
    """
    status = read_json(root / STATUS_FILE) if (root / STATUS_FILE).exists() else {}
    if status.get("state") in ("finished", "failed"):
        return ""
    array = str((status.get("array") or {}).get("id", ""))
    return array if array and _in_queue(array) else ""


def _in_queue(array: str) -> bool:
    """Whether SLURM still has a task of an array to run, or cannot say at the moment."""
    done = subprocess.run(
        ["squeue", "--noheader", "--jobs", array, "--format", "%i"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return "invalid job id" not in done.stderr.lower()
    return bool(done.stdout.strip())
