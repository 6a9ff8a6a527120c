"""Trainings that are killed, and trainings of several processes.

A script, because a process that forks must not have computed anything yet.
`killed_training.py kill FOLDER KILLS SEED ARGUMENT...` runs `featdistill train` once in peace, and
once killed with SIGKILL at random moments and resumed each time, in forked children that share one
import of torch.
`killed_training.py observe FOLDER ARGUMENT...` runs it in this process, which torchrun may have
started, and writes the rays that its batches held.
`killed_training.py tarry SECONDS ARGUMENT...` runs it in this process and judges it so much later.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from featdistill import supervision, training_run
from featdistill.assess import Assessment
from featdistill.cli import main as featdistill
from featdistill.config import TrainConfig
from featdistill.models.student import Student
from loom.loop import FitResult
from loom.run import Run
from loom.sampling import Shard


def run(arguments: list[str], log: Path | None = None) -> int:
    """Run the command line as a process would; return its exit code."""
    torch.set_num_threads(1)
    supervision.POINT_POOL = 20_000
    sys.argv = ["featdistill", *arguments]
    with contextlib.ExitStack() as closing:
        if log is not None:
            stream = closing.enter_context(log.open("a", encoding="utf-8"))
            closing.enter_context(contextlib.redirect_stdout(stream))
            closing.enter_context(contextlib.redirect_stderr(stream))
        try:
            featdistill()
        except SystemExit as error:
            return int(error.code or 0)
    return 0


def start(arguments: list[str], log: Path) -> int:
    """Run the command line in a forked process; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = run(arguments, log)
        finally:
            os._exit(code)
    return pid


def kill_until_done(folder: Path, kills: int, seed: int, arguments: list[str]) -> None:
    """Train in peace; train killed and resumed. The final weights are for others to compare."""
    log = folder / "log.txt"
    whole = start(["train", *arguments, "--run-dir", str(folder / "whole")], log)
    require_success(os.waitpid(whole, 0)[1], log)
    moments, killed, steps = random.Random(seed), 0, []
    target = folder / "killed"
    while True:
        mode = ["--resume"] if (target / "run.json").exists() else arguments
        pid = start(["train", *mode, "--run-dir", str(target)], log)
        if killed < kills:
            if killed % 4 != 3:  # three of four in the midst of steps and saves, one while starting
                wait_for_another_checkpoint(target / "checkpoints", pid)
            time.sleep(moments.uniform(0.0, 0.12))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            break
        killed += 1
        steps.append(newest(target / "checkpoints"))
    require_success(status, log)
    print(f"killed {killed}; newest checkpoints then {steps}")


def newest(checkpoints: Path) -> str:
    """Return the name of the newest checkpoint."""
    return max((path.name for path in checkpoints.glob("step_*")), default="none")


def wait_for_another_checkpoint(checkpoints: Path, pid: int) -> None:
    """Wait until the process has written a checkpoint, or has ended."""
    before = newest(checkpoints)
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if newest(checkpoints) != before:
            return
        time.sleep(0.002)


def require_success(status: int, log: Path) -> None:
    """End with the log if a child failed."""
    if status:
        raise SystemExit(f"status {status}\n{log.read_text(encoding='utf-8')[-3000:]}")


def observe(folder: Path, arguments: list[str]) -> int:
    """Train; write the rays of each step, and the occupancy that this process ends with."""
    seen: dict[int, tuple[int, int, torch.Tensor]] = {}
    occupancy: list[torch.Tensor] = []
    draw, train = supervision.RaySampler.batch, training_run.train

    def watched(self: supervision.RaySampler, step: int, shard: Shard) -> supervision.RayBatch:
        batch = draw(self, step, shard)
        seen[step] = (shard.rank, shard.world, torch.cat([batch.origins, batch.directions], 1))
        return batch

    def trained(config: TrainConfig, run: Run) -> tuple[Student, FitResult]:
        student, result = train(config, run)
        occupancy.append(student.occupancy)
        return student, result

    supervision.RaySampler.batch = watched
    training_run.train = trained
    code = run(["train", *arguments])
    rank = os.environ.get("RANK", "0")
    torch.save({"rays": seen, "occupancy": occupancy[0]}, folder / f"seen_{rank}.pt")
    return code


def tarry(seconds: float, arguments: list[str]) -> int:
    """Train; before the judgement leave the other processes time to end."""
    judge = training_run.judge

    def late(*given: Any) -> Assessment:
        time.sleep(seconds)
        return judge(*given)

    training_run.judge = late
    return run(["train", *arguments])


def import_what_training_imports() -> None:
    """Load what torch and the run import at first use, for all children at once."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    for name in (
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.summary.writer.record_writer",
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    mode, first = sys.argv[1:3]
    if mode == "kill":
        import_what_training_imports()
        kill_until_done(Path(first), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    elif mode == "observe":
        raise SystemExit(observe(Path(first), sys.argv[3:]))
    else:
        raise SystemExit(tarry(float(first), sys.argv[3:]))
