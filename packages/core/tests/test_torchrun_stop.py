"""A live `torchrun` that is told to end, or misses a gate: what process 0 leaves is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from loom.checkpoint import Checkpoints

from packages.core.tests import tiny_training as tiny

pytestmark = [pytest.mark.dist, pytest.mark.slow]

TINY = Path(tiny.__file__)
PAUSE_S = 1.5  # a step is longer than the second within which two signals are the same one


@contextmanager
def torchrun(mode: str, run: Path, option: object) -> Generator[subprocess.Popen]:
    """Start or resume a training of two processes; what is left of it at the end is killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*command, str(TINY), mode, str(run), str(option)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def finish(run: Path) -> dict:
    """Let a training run to its end; return its last checkpoint, without how fast it was."""
    with torchrun("stoppable", run, 0.0) as process:
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    newest = Checkpoints(run / "checkpoints").load_newest()
    assert newest is not None
    assert newest.step == 40
    metrics = newest.state["ledger"]["metrics"]
    for key in [key for key in metrics if key.startswith("perf/")]:
        del metrics[key]
    return newest.state


def processes_of(folder: Path, process: subprocess.Popen) -> list[int]:
    """Wait until both are within a step; return their ids by rank."""
    deadline = time.monotonic() + 300
    while True:
        files = [path for path in (folder / "rank0", folder / "rank1") if path.exists()]
        said = [path.read_text().split() for path in files]
        if len(said) == 2 and all(len(words) == 2 and int(words[1]) >= 1 for words in said):
            return [int(words[0]) for words in said]
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    return finish(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.parametrize("told", ["torchrun", "both processes"])
def test_both_processes_stop_at_one_step_with_a_checkpoint_and_the_resume_is_exact(
    tmp_path, undisturbed, told
):
    with torchrun("stoppable", tmp_path / "run", PAUSE_S) as process:
        ranks = processes_of(tmp_path, process)
        for pid in [process.pid] if told == "torchrun" else ranks:
            os.kill(pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output  # torchrun's own code, for a stop as for a failure
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    status = json.loads((tmp_path / "run" / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "stopped", output
    (step,) = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert 1 <= step < 40
    assert status["reason"].startswith(f"SIGTERM at step {step}; its checkpoint is saved")
    assert tiny.differing(undisturbed, finish(tmp_path / "run")) == []


def test_a_missed_gate_leaves_its_state_and_the_page_that_comes_after_it(tmp_path):
    with torchrun("fails", tmp_path / "run", "gate") as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "metric/error" in output
    status = json.loads((tmp_path / "run" / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "gate_missed"
    assert (tmp_path / "run" / "report.html").exists()
