"""The whole job on the embedded scene: ray-trace, fit, distil, judge, report."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from featdistill.assess import STUDENT_TEACHER, gate_results, read_results, stored_means
from featdistill.training_run import run_training

SETTINGS = (
    "name=demo",
    "train.max_steps=1500",
    "train.points=50000",
    "train.rays=2048",
    "data.extra_poses=100",
    "evaluation.interval=250",
    "checkpoint_interval=500",
)
"""What makes a distillation short at 100x100."""


def run_demo(directory: Path | None, *, archive: bool) -> int:
    """Run the demo; return 0, or 3 if a gate that was evaluated is missed."""
    began = time.process_time()
    run = run_training(None, SETTINGS, directory=directory, archive=archive)
    answers = gate_results(stored_means(read_results(run)[STUDENT_TEACHER]))
    typer.echo(f"{time.process_time() - began:.0f} CPU-seconds in all")
    missed = [answer for answer in answers if answer.value is not None and not answer.passed]
    return 3 if missed else 0
