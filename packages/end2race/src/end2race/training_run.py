"""A training from the command line to its page: settings, training, judgement, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from loom.config import resolve
from loom.drawing import print_table
from loom.errors import UserError
from loom.files import read_json, write_json
from loom.report import Report
from loom.report_run import run_report
from loom.run import Run
from loom.run_directory import settings_of

from end2race.config import DriverConfig, StudentConfig, TeacherConfig
from end2race.driving import sensor_of
from end2race.embedded import default_dataset
from end2race.evaluate import OpenLoop, open_loop
from end2race.train_student import labelled_segments
from end2race.training import open_drives, target_mean

THREAD = "end2race"
OPEN_LOOP_FILE = "evaluation/open_loop.json"
COLUMNS = ("steer_mse", "steer_mae", "speed_mse", "speed_mae", "overall_weighted_mse")

Trainer = Callable[[Any, Run], tuple[Any, Any]]


def run_teacher(
    source: Path | None = None,
    overrides: Sequence[str] | None = (),
    flags: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Train a teacher into a run directory of its own; see `run_training`."""
    from end2race.train_teacher import train_teacher

    return run_training(TeacherConfig, train_teacher, source, overrides, flags, **options)


def run_student(
    source: Path | None = None,
    overrides: Sequence[str] | None = (),
    flags: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Train a student into a run directory of its own; see `run_training`."""
    from end2race.train_student import train_student

    return run_training(StudentConfig, train_student, source, overrides, flags, **options)


def run_training(
    model: type[DriverConfig],
    train: Trainer,
    source: Path | None,
    overrides: Sequence[str] | None,
    flags: Mapping[str, Any] | None = None,
    *,
    directory: Path | None = None,
    resume: bool = False,
    archive: bool = False,
    quiet: bool = False,
    csv_path: Path | None = None,
) -> Path:
    """Train, judge on the validation windows, write the page.

    Args:
        model: Class of the settings.
        train: `train_teacher` or `train_student`.
        source: Settings file, or a run to repeat.
        overrides: `KEY=VALUE` on top.
        flags: First-class options by dotted key.
        directory: Of the run.
        resume: Go on with the run in the directory.
        archive: Move an old run aside.
        quiet: Print nothing; the log gets everything all the same.
        csv_path: Also put the records here.

    Returns:
        The run directory.
    """
    source = settings_of(source, directory, resume=resume, thread=THREAD)
    resolved = resolve(model, source, overrides, flags=flags)
    if resolved.config.data.root is None:
        root = default_dataset(typer.echo)
        typer.echo(f"[data] no dataset given: training on {root} (--data-root takes your own)")
        resolved = resolve(model, source, overrides, flags={**(flags or {}), "data.root": root})
    with Run.open(
        THREAD,
        model,
        resolved,
        directory=directory,
        resume=resume,
        archive=archive,
        quiet=quiet,
    ) as run:
        trained, _ = train(run.config, run)
        judged = judge(run, trained)
    if run.is_main:
        if csv_path is not None:
            csv_path.parent.mkdir(parents=True, exist_ok=True)
            csv_path.write_bytes((run.dir / "training_metrics.csv").read_bytes())
        page = write_report(run.dir)
        if not quiet:
            if judged is not None:
                print_open_loop(judged)
            typer.echo(f"report: {page}")
    return run.dir


def judge(run: Run[Any], model: Any) -> OpenLoop | None:
    """Compare the trained model with the trivial drivers on the validation windows."""
    config: DriverConfig = run.config
    if config.train.validate_interval is None:
        return None
    labelled = labelled_segments(config, run) if isinstance(config, StudentConfig) else None
    drives = open_drives(config, run, sensor_of(model), labelled)
    if drives.validation is None:
        return None
    judged = open_loop(model, drives.validation, target_mean(drives))
    if run.is_main:
        write_json(run.path(*OPEN_LOOP_FILE.split("/")), judged.to_json())
    return judged


def print_open_loop(judged: OpenLoop) -> None:
    """Print the drivers, one line each."""
    rows = [(name, *(found[key] for key in COLUMNS)) for name, found in judged.rows().items()]
    print_table(("open loop", *COLUMNS), rows)
    typer.echo(judged.leak_line)


def write_report(directory: Path) -> Path:
    """Write the page of a training run; return its path."""
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such run", hint="`loom runs` lists the runs")

    def judgement(report: Report) -> None:
        path = directory / OPEN_LOOP_FILE
        if not path.is_file():
            return
        judged = read_json(path)
        rows = [(name, *(row[key] for key in COLUMNS)) for name, row in judged["drivers"].items()]
        report.heading("Open loop, on the validation windows")
        report.table(("driver", *COLUMNS), rows)
        report.text(
            "Steering in degrees, speed in m/s, mse in their squares. The blanked driver is the "
            "model without its sensor; the constant one gives the mean of the labels that were "
            "learned from; the copycat repeats the last wheel angle and the present speed, and "
            "would drive into the first wall: open-loop errors do not rank drivers."
        )
        if "leak" in judged:
            report.text(judged["leak"])

    return run_report(directory, judgement).write(directory / "report.html")
