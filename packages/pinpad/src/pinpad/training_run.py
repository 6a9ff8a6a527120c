"""A training from the command line to its page, and the judgement of a finished one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from loom.config import Resolved, resolve
from loom.drawing import print_table
from loom.errors import UserError
from loom.run import Run
from loom.run_directory import settings_of

from pinpad.figures import write_report
from pinpad.train_config import PRESETS, TrainConfig, preset_names


def resolve_training(
    source: Path | None,
    overrides: Sequence[str] | None,
    preset: str | None = None,
    flags: dict[str, Any] | None = None,
) -> Resolved[TrainConfig]:
    """Lay file, preset, overrides and options over the defaults, in this order.

    Raises:
        UserError: There is no such preset, or a setting is wrong.
    """
    if preset is not None and preset not in preset_names():
        raise UserError(f"{preset!r} is no preset", hint=f"there are {', '.join(preset_names())}")
    chosen = [] if preset is None else [f"preset={preset}"]
    return resolve(TrainConfig, source, [*chosen, *(overrides or ())], groups=PRESETS, flags=flags)


def run_training(
    source: Path | None,
    overrides: Sequence[str] | None,
    *,
    preset: str | None = None,
    flags: dict[str, Any] | None = None,
    directory: Path | None = None,
    resume: bool = False,
    archive: bool = False,
) -> Path:
    """Train an agent, or a world model with `wm_only`; return the run directory."""
    source = settings_of(source, directory, resume=resume, thread="pinpad")
    resolved = resolve_training(source, overrides, preset, flags)
    with Run.open(
        "pinpad", TrainConfig, resolved, directory=directory, resume=resume, archive=archive
    ) as run:
        import torch

        torch.set_num_threads(run.config.threads)
        if run.config.wm_only:
            from pinpad.train_world import train_world

            train_world(run.config, run)
        else:
            from pinpad.train import train

            train(run.config, run)
    from pinpad import returns

    if earned := returns.read_returns(run.dir / "evaluation"):
        print_table(returns.COLUMNS, returns.table(earned))
    typer.echo(f"report: {write_report(run.dir)}")
    return run.dir


def evaluate_run(
    path: Path,
    *,
    task: str | None,
    rooms: int | None,
    steps: int | None,
    seed: int,
    as_json: bool = False,
) -> None:
    """Judge the agent of a run beside uniform play and the oracle, and print the table."""
    import torch

    from pinpad import returns
    from pinpad.restore import restore_agent

    agent, config = restore_agent(path)
    torch.set_num_threads(config.threads)
    judging = config.judging(seed=seed, task=task, rooms=rooms, steps=steps)
    print_table(returns.COLUMNS, returns.table(returns.compare(agent, judging)), as_json=as_json)
