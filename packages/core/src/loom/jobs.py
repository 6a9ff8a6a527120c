"""Run many independent commands, here or on other machines, and keep the truth about them on disk.

    for event in Local(slots=2).run(Sweep("boundary4", jobs), root):
        print(event)

A job is a command line with a working directory and limits; an executor knows nothing of what it
computes. One failure never ends the rest. Under `root`:

    sweep.json     the jobs as given
    status.json    replaced at every change and every few seconds: state of the sweep and its jobs
    events.jsonl   one line per event, appended
    logs/NAME.log  what the job printed, over all its attempts
    jobs/NAME/     its working directory, unless it names one

With `resume=True` only what is not done runs: a job is done when it ended with status 0, its
outputs are there, and no job that it comes `after` runs again. `kill -9` of the executor loses
nothing but the attempts under way, which the next run ends before it starts them again.

`Local` runs them here, `loom.jobs_ray.Ray` on the machines of a Ray cluster, and
`loom.jobs_sbatch.Sbatch` as an array of SLURM; `executor` makes the one that a user names.
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Protocol

from loom.errors import UserError
from loom.jobs_local import Local
from loom.jobs_spec import NAME, Event, Job, Sweep, SweepInterrupted

__all__ = ["NAME", "Event", "Executor", "Job", "Local", "Sweep", "SweepInterrupted", "executor"]


class Executor(Protocol):
    """What runs the jobs of a sweep."""

    def run(
        self, sweep: Sweep, root: Path, resume: bool = False, *, retry_failed: bool = False
    ) -> Generator[Event]:
        """Run the jobs that are not done, and yield what happens as it happens."""
        ...


def executor(
    name: str, slots: int | None = None, *, devices: Sequence[str] = (), grace_s: float = 10.0
) -> Executor:
    """Return the executor that a user names.

    Args:
        name: `local`, `ray`, `ray:HOST:PORT`, `ray+gpu` (a slot is also a GPU), `sbatch`, or
            `sbatch:FILE` with lines for the top of the script.
        slots: How many one-slot jobs run at once; 1 here, elsewhere what there is, if None.
        devices: This machine's accelerators, to be handed out one per slot.
        grace_s: How long a job that is told to end has before it is killed.

    Raises:
        UserError: There is no such executor, or it hands out its own accelerators.
    """
    kind, _, argument = name.partition(":")
    if devices and kind != "local":
        raise UserError(
            f"the executor {name} hands out accelerators itself",
            hint="drop the list of devices; name ray+gpu, or a file with `#SBATCH --gpus=1`",
        )
    if name == "local":
        return Local(slots or 1, devices=devices, grace_s=grace_s)
    if kind in ("ray", "ray+gpu"):
        from loom.jobs_ray import Ray

        gpus = kind == "ray+gpu"
        return Ray(slots, address=argument or None, gpus=gpus, grace_s=grace_s)
    if kind == "sbatch":
        from loom.jobs_sbatch import Sbatch

        return Sbatch(slots, header=Path(argument) if argument else None, grace_s=grace_s)
    raise UserError(
        f"there is no executor {name!r}",
        hint="write local, ray, ray:HOST:PORT, ray+gpu, sbatch or sbatch:FILE",
    )
