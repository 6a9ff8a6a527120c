"""A training from the command line to its page: store, training, validation, table, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from loom.config import Resolved, resolve
from loom.drawing import print_table
from loom.run import Run
from loom.run_directory import settings_of

from maniflow_overlay.config import TrainConfig
from maniflow_overlay.embedded import embedded_store
from maniflow_overlay.figures import write_report
from maniflow_overlay.open_loop import MEASURES, SCORES, read_scores
from maniflow_overlay.train import train


def run_training(
    source: Path | None,
    overrides: Sequence[str] | None,
    flags: Mapping[str, Any],
    *,
    directory: Path | None = None,
    resume: bool = False,
    archive: bool = False,
) -> Path:
    """Train, validate on every window, write the page; return the run directory."""
    source = settings_of(source, directory, resume=resume, thread="maniflow_overlay")
    whole = resolve(TrainConfig, source).config.steps
    resolved = resolve(TrainConfig, source, overrides, flags=flags)
    if not (resume and directory is not None and not directory.exists()):  # which is refused below
        resolved = _with_store(resolved, overrides, flags)
    with Run.open(
        "maniflow_overlay",
        TrainConfig,
        resolved,
        directory=directory,
        resume=resume,
        archive=archive,
    ) as run:
        if source is not None and run.config.num_epochs is None:
            run.shorten("steps", whole, run.config.steps)
        train(run.config, run)
    if run.is_main:
        scores, about = read_scores(run.dir / SCORES)
        print_table(
            ("", *MEASURES), [(name, *(row[m] for m in MEASURES)) for name, row in scores.items()]
        )
        typer.echo(about)
        typer.echo(f"report: {write_report(run.dir)}")
    return run.dir


def _with_store(
    resolved: Resolved[TrainConfig], overrides: Sequence[str] | None, flags: Mapping[str, Any]
) -> Resolved[TrainConfig]:
    """Fill in the simulated episodes where the configuration names no store."""
    if resolved.config.store is not None:
        return resolved
    typer.echo(
        "[data] no store given: training on episodes of the simulated table "
        "(--store FOLDER takes your own, made by `data convert` and `data attach-paths`)"
    )
    store = embedded_store(typer.echo)
    source = None if resolved.source == "defaults" else Path(resolved.source)
    return resolve(TrainConfig, source, overrides, flags={**flags, "store": store})
