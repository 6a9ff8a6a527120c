"""Four commands of SLURM on one machine: `sbatch`, `squeue`, `scancel`, `scontrol requeue`.

`install(folder)` makes them; a controller runs each task of an array with bash, as many at once as
the array allows, once more when it asked to be queued again, even where the array was cancelled.
`warn` and `cut_off` are what a scheduler or a broken machine do.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")
ARRAY = "4711"


def install(folder: Path) -> Path:
    """Write the commands into a folder and return it; `FAKE_SLURM` in the environment names it."""
    folder.mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def tasks_alive(folder: Path) -> dict[str, int]:
    """Return the process of each task that runs."""
    return {path.suffix[1:]: int(path.read_text()) for path in folder.glob("task.*")}


def warn(folder: Path, number: int) -> None:
    """Send a signal to every task's batch shell."""
    for pid in tasks_alive(folder).values():
        os.kill(pid, number)


def cut_off(folder: Path) -> None:
    """Kill every task with all that it started; SLURM queues the tasks of a lost machine again."""
    for task, pid in tasks_alive(folder).items():
        (folder / f"requeue.{task}").touch()
        os.killpg(pid, signal.SIGKILL)


def _sbatch(folder: Path, arguments: list[str]) -> None:
    assert arguments[0] == "--parsable", arguments
    script = Path(arguments[1])
    (folder / "submissions").open("a").write(script.read_text())
    while (folder / "controller").exists():  # there is one number for all arrays
        time.sleep(0.01)
    subprocess.Popen(
        [sys.executable, "-S", __file__, "controller", str(script)],
        start_new_session=True,
        stdout=(folder / "controller.log").open("a"),
        stderr=subprocess.STDOUT,
    )
    while not (folder / "controller").exists():
        time.sleep(0.01)
    print(f"{ARRAY};cluster")


def _controller(folder: Path, arguments: list[str]) -> None:
    (folder / "controller").write_text(str(os.getpid()))
    script = Path(arguments[0])
    array = re.search(r"^#SBATCH --array=([0-9,]+)(?:%([0-9]+))?$", script.read_text(), re.M)
    assert array
    waiting, running = array[1].split(","), {}
    while waiting or running:
        if (folder / "cancelled").exists():
            waiting.clear()
            (folder / "cancelled").unlink()
        while waiting and len(running) < int(array[2] or 99):
            task = waiting.pop(0)
            running[task] = subprocess.Popen(
                ["bash", str(script)],
                env={**os.environ, "SLURM_ARRAY_JOB_ID": ARRAY, "SLURM_ARRAY_TASK_ID": task},
                start_new_session=True,
            )
            (folder / f"task.{task}").write_text(str(running[task].pid))
        for task, process in list(running.items()):
            if process.poll() is not None:
                del running[task]
                (folder / f"task.{task}").unlink()
                if (folder / f"requeue.{task}").exists():
                    (folder / f"requeue.{task}").unlink()
                    waiting.append(task)
        time.sleep(0.02)
    (folder / "controller").unlink()


def _squeue(folder: Path, arguments: list[str]) -> None:
    assert arguments == ["--noheader", "--jobs", ARRAY, "--format", "%i"], arguments
    if (folder / "unreachable").exists():
        with (folder / "unreachable").open("a") as calls:
            calls.write(".")
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    if not (folder / "controller").exists():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print(f"{ARRAY}_[0]")


def _scancel(folder: Path, arguments: list[str]) -> None:
    assert arguments == [ARRAY], arguments
    (folder / "cancelled").touch()
    warn(folder, signal.SIGTERM)


def _scontrol(folder: Path, arguments: list[str]) -> None:
    assert arguments[0] == "requeue", arguments
    (folder / f"requeue.{arguments[1].removeprefix(f'{ARRAY}_')}").touch()


if __name__ == "__main__":
    known = {"sbatch": _sbatch, "squeue": _squeue, "scancel": _scancel, "scontrol": _scontrol}
    known["controller"] = _controller
    known[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), sys.argv[2:])
