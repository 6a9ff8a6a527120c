"""A teacher training that is killed and resumed, and one of several processes.

A script, because a process that forks must not have computed anything yet.
`killed_training.py kill FOLDER ROOT KILLS` trains once in peace and once killed with SIGKILL at
random moments and resumed each time. `killed_training.py group FOLDER ROOT WORLD STEPS PORT` trains
in WORLD processes over gloo; `killed_training.py parts FOLDER ROOT PARTS STEPS` in one process that
takes each batch in PARTS micro-batches, which are those of so many processes.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from end2race.training_run import run_teacher

SETTINGS = {
    "train.max_steps": 12,
    "train.batch_size": 4,
    "train.validate_interval": 4,
    "data.seq_len": 3,
    "log_interval": 1,
    "checkpoint_interval": 1,
}


def train(root: Path, directory: Path, *, resume: bool, steps: int, parts: int) -> None:
    """Run the training as the command does."""
    torch.set_num_threads(1)
    flags = {"data.root": root, **SETTINGS, "train.max_steps": steps, "train.accumulate": parts}
    run_teacher(flags=flags, directory=directory, resume=resume, quiet=True)


def forked(
    root: Path,
    directory: Path,
    *,
    resume: bool = False,
    steps: int = SETTINGS["train.max_steps"],
    parts: int = 1,
    **environment: str,
) -> int:
    """Train in a forked process; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ.update(environment)
            train(root, directory, resume=resume, steps=steps, parts=parts)
            code = 0
        finally:
            os._exit(code)
    return pid


def kill_until_done(folder: Path, root: Path, kills: int) -> None:
    """Train in peace; train killed and resumed."""
    require(os.waitpid(forked(root, folder / "whole"), 0)[1])
    moments, killed, target = random.Random(0), 0, folder / "killed"
    while True:
        resume = (target / "config.yaml").is_file()
        pid = forked(root, target, resume=resume)
        if killed < kills:
            before = newest(target)
            while newest(target) == before and os.waitid(os.P_PID, pid, QUIET) is None:
                time.sleep(0.002)
            time.sleep(moments.uniform(0.0, 0.05))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            break
        killed += 1
    require(status)
    print(f"killed {killed}")


QUIET = os.WEXITED | os.WNOHANG | os.WNOWAIT


def newest(run: Path) -> str:
    """Return the name of a run's newest checkpoint."""
    return max((path.name for path in (run / "checkpoints").glob("step_*")), default="none")


def group(folder: Path, root: Path, world: int) -> None:
    """Train in several processes."""
    pids = [
        forked(
            root,
            folder / f"world{world}",
            steps=int(sys.argv[5]),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world),
            LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=sys.argv[6],
        )
        for rank in range(world)
    ]
    for pid in pids:
        require(os.waitpid(pid, 0)[1])


def in_parts(folder: Path, root: Path, parts: int) -> None:
    """Train in one process, each batch in parts."""
    require(os.waitpid(forked(root, folder / "parts", steps=int(sys.argv[5]), parts=parts), 0)[1])


def require(status: int) -> None:
    """End if a child failed."""
    if status:
        raise SystemExit(f"a training ended with status {status}")


if __name__ == "__main__":
    mode, place, data, number = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    {"kill": kill_until_done, "group": group, "parts": in_parts}[mode](place, data, number)
