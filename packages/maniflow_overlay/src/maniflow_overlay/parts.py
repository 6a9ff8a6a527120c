"""Work cut into parts that run as jobs, here or on a cluster; each part writes a file of its own.

    data convert EPISODES STORE --jobs 8 --executor sbatch:header.txt
        STORE.parts/sweep.json, logs/     the sweep
        STORE.parts/part-3-of-8           what the third job wrote
        STORE                             all parts in order, the same bytes as without jobs

A job is the same command with `--part 3/8`, which can also be typed on any machine that sees the
files. The same command goes on where it was interrupted: parts that are done are kept, the others
run again, and joining them begins anew or goes on, so nothing is missing and nothing there twice.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loom.errors import UserError
from loom.jobs import Job, Sweep
from loom.jobs import executor as make_executor
from loom.processors import usable_processors

T = TypeVar("T")
_MOST = 10_000


@dataclass(frozen=True)
class Part:
    """The `number`-th of `count` parts, from 1."""

    number: int
    count: int

    @classmethod
    def read(cls, text: str) -> Part:
        """Read K/N.

        Raises:
            UserError: It is not of this form.
        """
        found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
        if not found or int(found[1]) > int(found[2]):
            raise UserError(f"the part {text!r} is not K/N", hint="as in 3/8: the third of eight")
        return cls(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"part-{self.number}-of-{self.count}"

    def of(self, things: Sequence[T]) -> Sequence[T]:
        """Return its share of things in order; shares differ by one at most."""
        ends = [len(things) * number // self.count for number in (self.number - 1, self.number)]
        return things[slice(*ends)]

    def path(self, output: Path) -> Path:
        """Return where it is written, to be joined to an output."""
        return _folder(output) / self.name


WHOLE = Part(1, 1)


@dataclass(frozen=True)
class Spread:
    """How a command is spread over jobs.

    Attributes:
        jobs: Into how many; None: it is not.
        executor: Where they run, as `loom.jobs.executor` reads it.
        part: Which of them this process is; None: it is none.
    """

    jobs: int | None = None
    executor: str = "local"
    part: Part | None = None

    @classmethod
    def read(cls, jobs: int | None, executor: str, part: str | None) -> Spread:
        """Read the options of a command.

        Raises:
            UserError: They do not belong together.
        """
        if part is not None and (jobs is not None or executor != "local"):
            raise UserError("--part is the work of one job", hint="drop --jobs and --executor")
        if jobs is None and executor != "local":
            raise UserError(f"--executor {executor} needs --jobs", hint="--jobs 8: in eight parts")
        if jobs is not None and jobs > _MOST:
            raise UserError(f"{jobs} jobs", hint=f"{_MOST} at most")
        return cls(jobs, executor, None if part is None else Part.read(part))


ALONE = Spread()


def _folder(output: Path) -> Path:
    output = output.absolute()
    return output.with_name(f"{output.name}.parts")


def run_parts(
    command: Sequence[str | Path],
    output: Path,
    jobs: int,
    executor: str,
    *,
    made: str = "",
    say: Callable[[str], Any] = print,
) -> list[Path]:
    """Run a command of this package in parts, those that are not done yet.

    Args:
        command: Words behind `maniflow-overlay`; each job gets `--part K/N` behind them.
        output: What the parts will be joined to.
        jobs: How many parts.
        executor: As `loom.jobs.executor` reads it.
        made: File below a part that shows that it is whole; "": the part is a file.
        say: Is told what happens.

    Returns:
        What the parts wrote, in order.

    Raises:
        UserError: A part failed; the message names its log.
    """
    root = _folder(output)
    parts = [Part(number + 1, jobs) for number in range(jobs)]
    program = [sys.executable, "-m", "maniflow_overlay", *map(str, command)]
    written = [part.path(output) for part in parts]
    sweep = Sweep(
        "parts",
        [
            Job(
                part.name,
                [*program, "--part", f"{part.number}/{part.count}"],
                directory=Path.cwd(),
                outputs=[str(path / made)],
            )
            for part, path in zip(parts, written, strict=True)
        ],
    )
    slots = min(jobs, usable_processors()) if executor == "local" else None
    resume = (root / "sweep.json").is_file()
    failed = []
    for event in make_executor(executor, slots).run(sweep, root, resume, retry_failed=True):
        say(str(event))
        if event.job and event.kind == "failed":
            failed.append(event.job)
    if failed:
        raise UserError(
            f"{', '.join(failed[:5])} failed: {root / 'logs' / f'{failed[0]}.log'}",
            hint="the same command runs what is missing",
        )
    return written


def remove_parts(output: Path) -> None:
    """Remove the parts of an output that is whole."""
    shutil.rmtree(_folder(output))
