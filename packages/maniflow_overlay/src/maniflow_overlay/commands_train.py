"""The commands of training: `train`, `status`, `report`, `config show`, `schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from loom.cli import (
    Archive,
    ConfigOption,
    JsonOption,
    Overrides,
    Resume,
    RunDir,
    add_config_commands,
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]


def register(app: typer.Typer) -> None:
    """Give an application the commands of training."""
    add_config_commands(app, "maniflow_overlay.config:TrainConfig")
    for command in (train, status, report):
        app.command()(command)


def train(
    config: ConfigOption = None,
    overrides: Overrides = None,
    store: Annotated[
        Path | None, typer.Option(help="Frame store; without one: the simulated table.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="parity, spatial or tiny.")] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="Where the path is seen: none, initial, current, initial_current."),
    ] = None,
    fuse: Annotated[
        str | None, typer.Option(help="overlay (approach A) or concat6 (approach B).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates in all.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows of an update.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything drawn.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    archive: Archive = False,
) -> None:
    """Train a policy on a frame store and validate it; the page of the run is written at the end.

    `config show` lists every setting with its value.

    Several processes: torchrun --nproc-per-node 2 -m maniflow_overlay train --run-dir RUN.
    """
    from maniflow_overlay.training_run import run_training

    flags = {
        "store": store,
        "preset": preset,
        "mode": mode,
        "fuse": fuse,
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
    }
    run_training(config, overrides, flags, directory=run_dir, resume=resume, archive=archive)


def status(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Follow the run until it ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say how far a run is, from its heartbeat; exit code 0 unless it failed, died or missed."""
    from maniflow_overlay.run_status import show_status

    raise typer.Exit(show_status(run, follow=follow, as_json=as_json))


def report(run: RunArgument) -> None:
    """Write the page of a training or of a matrix again."""
    from maniflow_overlay.evaluation.page import is_matrix, write_page
    from maniflow_overlay.figures import write_report

    typer.echo(f"report: {write_page(run) if is_matrix(run) else write_report(run)}")
