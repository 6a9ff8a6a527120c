"""What a sweep is: jobs with their limits, and the events of their lives.

Plain values that every executor takes and that `sweep.json` and `events.jsonl` hold.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from loom.errors import UserError
from loom.files import read_json

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]{0,150}")


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

    @classmethod
    def from_description(cls, content: Mapping[str, Any]) -> Job:
        """Return the job that `description` describes."""
        job = cls(**content)
        return job if job.directory is None else replace(job, directory=Path(job.directory))


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

    def description(self) -> dict[str, Any]:
        """Return the sweep as it stands in `sweep.json`."""
        return {"name": self.name, "jobs": [job.description() for job in self.jobs]}

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """Read a `sweep.json`.

        Raises:
            UserError: It is missing, damaged, or not what a sweep writes.
        """
        content = read_json(path)
        try:
            return cls(content["name"], [Job.from_description(job) for job in content["jobs"]])
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not what a sweep writes ({error!r})",
                hint="the file was edited or is another program's",
            ) from error


@dataclass(frozen=True)
class Event:
    """Something that happened: `job` is empty for the sweep itself.

    `kind` is one of waiting, started, skipped, done, failed, interrupted, lost for a job; the sweep
    ends with finished (every job is done), failed or interrupted. Waiting is a job that could run
    if there were room, with what it asks for and what is free, once it has waited for some seconds;
    one that was handed to a cluster may wait after it started. Skipped is a job that need not run
    again, and, as its state too, one whose inputs are missing. Lost is an attempt whose machine
    went away; the job starts again.
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
