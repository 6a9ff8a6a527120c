"""The whole job at the simulated table: record, draw paths, train, act, compare, report.

Two small policies are trained on the same episodes, one that sees no path and one that sees it on
the first and the current picture, and both act beside the expert and two that need no learning.
"""

from __future__ import annotations

import time
from pathlib import Path

import typer
from loom import run_directory

from maniflow_overlay.embedded import embedded_store
from maniflow_overlay.evaluation.run import matrix_command
from maniflow_overlay.training_run import run_training

ARMS = ("none", "initial_current")
TRAINING = (
    "preset=tiny",
    "n_obs_steps=1",
    "horizon=4",
    "n_action_steps=2",
    "batch_size=32",
    "lr=3e-3",
    "lr_warmup_steps=100",
    "clip_norm=1",
    # In so few updates the consistency part's teacher has little to teach.
    "flow_batch_ratio=1",
    "consistency_batch_ratio=0",
    "val_every=1000",
    "checkpoint_every=1000",
    # The camera stands still, an action is a place on the table and the light never changes: moved
    # pictures would teach what is not so, and changed colours what never happens.
    *(f"augment.{name}=0" for name in ("rotation_deg", "brightness", "contrast", "saturation")),
    "augment.hue=0",
    "augment.crop=1",
)
"""What makes a policy useful in a few CPU-minutes."""
STEPS, EPISODES = 1500, 40


def run_demo(directory: Path | None) -> Path:
    """Run the demo; return its folder, in which each training and the matrix is a run."""
    began = time.process_time()
    folder = directory or run_directory.choose(Path("runs/maniflow_overlay"), "demo", resume=False)
    store = embedded_store(typer.echo)
    trained = [
        run_training(
            None, TRAINING, {"store": store, "mode": mode, "steps": STEPS}, directory=folder / mode
        )
        for mode in ARMS
    ]
    matrix_command(
        None, (), trained, EPISODES, None, directory=folder / "matrix", resume=False, archive=False
    )
    typer.echo(f"{time.process_time() - began:.0f} CPU-seconds in all")
    return folder
