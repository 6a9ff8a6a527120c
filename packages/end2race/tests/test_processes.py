"""A training that is killed, or split over processes, is the training that it would have been."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loom.checkpoint import Checkpoints
from loom.record import read_records

SCRIPT = Path(__file__).with_name("killed_training.py")


def script(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights and the optimiser's moments of the newest checkpoint."""
    loaded = Checkpoints(run / "checkpoints").load_newest()
    assert loaded is not None
    moments = loaded.state["optimizer"]["state"]
    found = dict(loaded.state["model"])
    found |= {f"{i}/{k}": v for i, each in moments.items() for k, v in each.items()}
    return found


def first_gradients(run: Path) -> dict[int, torch.Tensor]:
    """A tenth of each parameter's gradient at the first update: Adam's mean after one."""
    state = Checkpoints(run / "checkpoints").load(1).state["optimizer"]["state"]
    return {parameter: moments["exp_avg"] for parameter, moments in state.items()}


def untimed(run: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")}
        for row in read_records(run)
    ]


@pytest.mark.slow
def test_a_training_killed_eight_times_ends_with_the_bits_of_an_uninterrupted_one(small, tmp_path):
    root = small({"train": (9, 9), "valid": (7,)}, target=True)
    assert "killed 8" in script("kill", tmp_path, root, 8)
    whole, killed = (final_tensors(tmp_path / name) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for key, value in whole.items():
        assert torch.equal(killed[key], value), key
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "killed")
    assert len(json.loads((tmp_path / "killed" / "run.json").read_text())["resumes"]) >= 4


@pytest.mark.dist
def test_two_processes_train_and_validate_as_one_does(small, tmp_path):
    """Their gradient is one process's to 1e-6 of its norm.

    A batch of 4 is summed in another order than two of 2, and where a gradient is rounding alone
    Adam makes a whole step of it; so weights are compared where the sums are the same, below.
    """
    root = small({"train": (9, 9), "valid": (7,)}, target=True)  # 5 windows of validation: odd
    for world in (1, 2):
        script("group", tmp_path, root, world, 2, free_port())
    one, two = (tmp_path / f"world{world}" for world in (1, 2))
    alone, together = first_gradients(one), first_gradients(two)
    assert alone.keys() == together.keys()
    whole = torch.stack([gradient.norm() for gradient in alone.values()]).norm()
    assert whole > 0.01
    for parameter, gradient in alone.items():
        gap = (together[parameter] - gradient).abs().max()
        assert gap <= 1e-6 * whole, parameter
    for first, second in zip(untimed(one), untimed(two), strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    judged = [json.loads((run / "evaluation" / "open_loop.json").read_text()) for run in (one, two)]
    assert judged[0]["samples"] == judged[1]["samples"] == 15
    for name, found in judged[0]["drivers"].items():
        assert found == pytest.approx(judged[1]["drivers"][name], rel=1e-4), name


@pytest.mark.dist
def test_two_processes_have_the_bits_of_one_that_takes_their_batches_in_turn(small, tmp_path):
    """Half a gradient plus half another is their mean to the bit: so are weights and moments."""
    root = small({"train": (9, 9), "valid": (7,)}, target=True)
    script("parts", tmp_path, root, 2, 6)
    script("group", tmp_path, root, 2, 6, free_port())
    alone, together = (final_tensors(tmp_path / name) for name in ("parts", "world2"))
    assert alone.keys() == together.keys()
    for key, value in alone.items():
        assert torch.equal(together[key], value), key
