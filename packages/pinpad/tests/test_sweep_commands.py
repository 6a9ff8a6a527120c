"""Sweeps of real trainings, each a process of its own."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from loom.checkpoint import Checkpoints
from loom.record import read_records
from pinpad.sweep.state import read_sweep

TINY = [
    "dyn_deter=16", "dyn_hidden=16", "dyn_stoch=4", "dyn_discrete=4", "vta_abs_belief=16",
    "vta_abs_stoch=4", "vta_obs_belief=16", "vta_obs_stoch=4", "batch_size=8", "batch_length=10",
    "time_limit=100", "prefill=400", "log_every=1", "gates=[]", "wm_only=true",
]  # fmt: skip
OPTIONS = ["--episodes", "2", "--permutations", "19", "--jobs", "2"]

FAULTS = """
import os, signal, sys, time
words = " ".join(sys.orig_argv)
if "train" in words and "name=segfault_seed0" in words:
    os.kill(os.getpid(), signal.SIGSEGV)
if "train" in words and "name=hang_seed0" in words:
    time.sleep(600)
"""


def command(*arguments):
    return [sys.executable, "-m", "pinpad", *map(str, arguments)]


def pinpad(*arguments, **environment):
    return subprocess.run(
        command(*arguments), env=os.environ | environment, capture_output=True, text=True
    )


def conditions(path, **settings):
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.slow
def test_a_segfault_a_nan_and_a_hang_leave_the_fourth_condition_to_finish(tmp_path):
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)
    rssm = {"dynamics_type": "rssm"}
    file = conditions(
        tmp_path / "c.yaml", segfault=rssm, nan=rssm | {"model_lr": 1e30}, hang=rssm,
        good={"dynamics_type": "vta"},
    )  # fmt: skip
    root = tmp_path / "root"
    done = pinpad(
        *("sweep", "--conditions", file, "--logroot", root, "--timeout", 150, *OPTIONS),
        *("updates=6", "eval_every=3", *TINY),
        PYTHONPATH=str(tmp_path / "faults"),
    )
    assert done.returncode == 1, done.stderr
    runs = {run.name: run for run in read_sweep(root).runs}
    assert {name: run.state for name, run in runs.items()} == {
        "segfault_seed0": "failed",
        "nan_seed0": "failed",
        "hang_seed0": "failed",
        "good_seed0": "done",
    }
    assert "segmentation fault" in runs["segfault_seed0"].detail
    assert "is nan at step 1" in runs["nan_seed0"].detail
    assert "timed out after 150 s" in runs["hang_seed0"].detail
    assert (root / "good_seed0" / "evaluation" / "boundary_grid.png").stat().st_size > 1000
    shown = pinpad("monitor", root, "--once").stdout
    for text in ("segmentation fault", "is nan", "timed out", "4 of 4 ended, 3 failed"):
        assert text in shown


def fingerprint(root):
    """Everything that a run computed: weights, records, boundaries."""
    run = root / "vta_seed0"
    weights = hashlib.sha256()
    state = Checkpoints(run / "checkpoints").load_newest().state
    for key, tensor in sorted(state["model"].items()):
        weights.update(key.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    records = [
        {key: value for key, value in row.items() if key != "time" and not key.startswith("perf/")}
        for row in read_records(run)
    ]
    judged = json.loads((run / "evaluation" / "boundary_eval.json").read_text())["judgements"]
    return weights.hexdigest(), records, judged


@pytest.mark.slow
def test_ctrl_c_leaves_a_sweep_that_resume_completes_to_the_bit(tmp_path):
    file = conditions(tmp_path / "c.yaml", vta={"dynamics_type": "vta"})
    settings = [*OPTIONS, "--conditions", file, "updates=200", "eval_every=100", *TINY]
    whole = pinpad("sweep", "--logroot", tmp_path / "whole", *settings)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        command("sweep", "--logroot", tmp_path / "parts", *settings), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not under_way(tmp_path / "parts"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert {run.state for run in read_sweep(tmp_path / "parts").runs} == {"interrupted"}
    done = pinpad("sweep", "--resume", "--logroot", tmp_path / "parts", "--jobs", 1)
    assert done.returncode == 0, done.stderr
    jobs = json.loads((tmp_path / "parts" / "status.json").read_text())["jobs"]
    assert jobs["vta_seed0.train"]["attempts"] == 2
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "parts")


def under_way(root):
    """Whether the training has made some steps."""
    if not (root / "status.json").is_file():
        return False
    return all(5 < run.step < 190 for run in read_sweep(root).runs)
