"""The SLURM script of docs/scale.md under bash, with stand-ins for what a cluster has."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "scale.md"

STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo host-a; echo host-b; else echo "$*" >> calls; fi',
    # A training as Loom's: it stops with a checkpoint when it is told to, and goes on from there.
    "torchrun": """
        trap 'sleep 0.5; echo checkpoint >> calls; exit 143' TERM
        mkdir -p runs/opv2v; touch runs/opv2v/run.json
        echo "$*" >> starts
        case "$*" in *--resume*) echo finished >> calls; exit ${CODE:-0};; esac
        sleep 60 & wait
    """,
}


@pytest.fixture
def batch(tmp_path):
    """Return what starts the script as SLURM's batch shell."""
    script = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", DOCUMENT.read_text(), re.S)
    assert script
    (tmp_path / "job.sh").write_text(script[1])
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "host-[a,b]",
    }

    def start(**more: str) -> subprocess.Popen:
        command = ["bash", "job.sh"]
        return subprocess.Popen(command, cwd=tmp_path, env=environment | more)

    return start


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warned_training_saves_before_it_is_queued_again_and_then_resumes(
    tmp_path, batch, number
):
    job = batch()
    deadline = time.monotonic() + 30
    while not lines(tmp_path / "starts"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(number)
    assert job.wait(30) == 0
    assert lines(tmp_path / "calls") == ["checkpoint", "requeue 17"]
    assert batch().wait(30) == 0
    assert lines(tmp_path / "calls") == ["checkpoint", "requeue 17", "finished"]
    first, second = lines(tmp_path / "starts")
    assert "--rdzv-endpoint=host-a:29500" in first
    assert "--nnodes=2" in first
    assert first.endswith("-m coopcyl train --root OPV2V --run-dir runs/opv2v")
    assert second == f"{first} --resume"


def test_a_training_that_fails_is_not_queued_again(tmp_path, batch):
    (tmp_path / "runs" / "opv2v").mkdir(parents=True)
    (tmp_path / "runs" / "opv2v" / "run.json").touch()
    assert batch(CODE="3").wait(30) == 3
    assert lines(tmp_path / "calls") == ["finished"]
