"""The whole way on a synthetic town: write, validate, train briefly, judge, draw."""

import time
from pathlib import Path

import typer
from loom.errors import GateMissed

from coopcyl.embedded import open_town
from coopcyl.judging import Question, run_rendering
from coopcyl.train_config import TrainConfig
from coopcyl.training_run import run_training
from coopcyl.validate import validate

SETTINGS = (
    "name=demo",
    "train_params.epochs=5",
    "eval_interval=250",
    "checkpoint_interval=250",
    "gates=[{metric: metric/share_of_identity, op: <=, threshold: 0.3, "
    'otherwise: "less than 70 % of the distance between the vehicles was found"}]',
)
"""500 steps of 4 pairs."""

VALIDATED = 10


def run_demo(directory: Path | None, *, archive: bool) -> int:
    """Run the demo; return 0, or 3 if the data or the result does not hold."""
    began = time.process_time()
    config = TrainConfig()
    tree = open_town(config.dataset, config.dataset.split, typer.echo)
    checked = validate(tree, config.reader(), VALIDATED, typer.echo)
    failed = [check for check in checked.checks if check.level == "fail"]
    for check in failed:
        typer.echo(f"[validate] {check.name}: {check.detail}")
    typer.echo(f"[validate] {len(checked.checks) - len(failed)} of {len(checked.checks)} hold")
    if failed:
        return 3
    try:
        run = run_training(None, SETTINGS, directory=directory, archive=archive)
    except GateMissed as missed:
        typer.echo(f"error: {missed.message}", err=True)
        return missed.exit_code
    typer.echo(run_rendering(Question(run), frame="0", output=run / "scenes"))
    typer.echo(f"{time.process_time() - began:.0f} CPU-seconds in all")
    return 0
