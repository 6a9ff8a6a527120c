"""Resumes and stops: a run that is interrupted at any moment ends as if it had not been."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loom.checkpoint import Checkpoints
from loom.errors import GateMissed, UserError
from loom.gates import Gate
from loom.loop import Every, TrainState, fit
from loom.record import read_records
from loom.run import Run
from loom.schedule import Constant
from loom.signals import StopSignals
from torch import nn

from packages.core.tests import tiny_training as tiny

TINY = Path(tiny.__file__)


pytestmark = pytest.mark.usefixtures("one_thread")


def rows_without_clock(directory):
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")}
        for row in read_records(directory)
    ]


# Resuming ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "own"])
@pytest.mark.parametrize("seed", [0, 1])
def test_resume_matches_an_uninterrupted_run(tmp_path, optimizer, seed):
    options = {"optimizer": optimizer, "log_interval": 3, "clip_norm": 0.5, "accumulate": 2}
    whole, result = tiny.train(tmp_path / "whole", **options)
    stop_at = random.Random(seed).randrange(2, 39)
    tiny.train(tmp_path / "parts", steps=stop_at, **options, checkpoint_interval=5)
    torch.rand(7)  # whatever else the process draws in between
    resumed, again = tiny.train(tmp_path / "parts", resume=True, **options)
    assert tiny.differing(whole.state_dict(), resumed.state_dict()) == []
    assert result.step == again.step == 40
    shared = [r for r in rows_without_clock(tmp_path / "parts") if r["step"] != stop_at]
    assert shared == [r for r in rows_without_clock(tmp_path / "whole") if r["step"] != stop_at]


def test_evaluating_more_often_does_not_change_the_training(tmp_path):
    rare, _ = tiny.train(tmp_path / "rare")
    each_step = Every(1, lambda model: {"metric/weight": tiny.norm(model)})
    often, _ = tiny.train(tmp_path / "often", evaluate=each_step)
    assert tiny.differing(rare.state_dict(), often.state_dict()) == []


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path, kills):
    command = [sys.executable, str(TINY), "kill", str(tmp_path), str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"killed {kills}; differing []"


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path):
    whole, _ = tiny.train(tmp_path / "whole")
    tiny.train(tmp_path / "run", steps=20, checkpoint_interval=8)
    os.truncate(tmp_path / "run" / "checkpoints" / "step_000020" / "state.pt", 999)
    resumed, _ = tiny.train(tmp_path / "run", resume=True)
    assert tiny.differing(whole.state_dict(), resumed.state_dict()) == []
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "damaged checkpoint: state.pt has 999 bytes" in log
    assert "step_000016 at step 16" in log


def test_a_finished_run_resumed_does_nothing_and_says_the_same(tmp_path):
    _, result = tiny.train(tmp_path, steps=6)
    state, again = tiny.train(tmp_path, steps=6, resume=True)
    assert (again.step, again.metrics) == (6, result.metrics)
    assert state.step == 6


def test_a_run_resumed_beyond_its_new_end_is_still_judged(tmp_path):
    def broken(step):
        if step == 12:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        tiny.train(tmp_path, checkpoint_interval=10, before_step=broken)
    gate = Gate("metric/weight", "<", 0.0)
    with pytest.raises(GateMissed, match="metric/weight"):
        tiny.train(tmp_path, steps=8, resume=True, gates=[gate])


def test_the_checkpoint_of_another_model_is_a_user_error(tmp_path):
    tiny.train(tmp_path, steps=2)
    with Run.open("tiny", tiny.TinyConfig, directory=tmp_path, resume=True, quiet=True) as run:
        model = nn.Linear(4, 1)
        state = TrainState(model, torch.optim.SGD(model.parameters()))
        with pytest.raises(UserError, match="other extras"):
            fit(run, state, steps=4, batch=None, loss=None, lr=Constant(0.1).at)


# Stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGUSR1", 0), ("SIGINT", 130)])
def test_a_signal_saves_at_the_step_boundary_and_the_resume_is_exact(tmp_path, number, code):
    whole, _ = tiny.train(tmp_path / "whole")
    handlers = [signal.getsignal(s) for s in StopSignals.SIGNALS]

    def at_step_17(step):
        if step == 17:
            os.kill(os.getpid(), getattr(signal, number))

    with pytest.raises(SystemExit) as caught:
        tiny.train(tmp_path / "parts", before_step=at_step_17)
    assert caught.value.code == code
    assert Checkpoints(tmp_path / "parts" / "checkpoints").steps()[-1] == 18
    status = (tmp_path / "parts" / "status.json").read_text(encoding="utf-8")
    assert '"stopped"' in status
    assert f"{number} at step 18" in status
    assert handlers == [signal.getsignal(s) for s in StopSignals.SIGNALS]
    resumed, _ = tiny.train(tmp_path / "parts", resume=True)
    assert tiny.differing(whole.state_dict(), resumed.state_dict()) == []


def test_a_second_signal_quits_at_once():
    pid = os.posix_spawn(
        sys.executable,
        [
            sys.executable,
            "-c",
            (
                "import os, signal\n"
                "from loom.signals import StopSignals\n"
                "with StopSignals(same_within_s=0.0) as signals:\n"
                "    os.kill(os.getpid(), signal.SIGUSR1)\n"
                "    assert signals.received == signal.SIGUSR1\n"
                "    os.kill(os.getpid(), signal.SIGTERM)\n"
                "    print('never reached')\n"
            ),
        ],
        os.environ,
    )
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_the_same_signal_by_two_ways_is_one():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGINT
