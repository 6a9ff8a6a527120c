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
"""

from loom.jobs_local import Local
from loom.jobs_spec import NAME, Event, Job, Sweep, SweepInterrupted

__all__ = ["NAME", "Event", "Job", "Local", "Sweep", "SweepInterrupted"]
