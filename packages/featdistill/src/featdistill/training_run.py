"""A training run from the command line to its page: data, distillation, judgement, report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer
from loom import distributed
from loom.checkpoint import Checkpoints
from loom.config import Resolved, resolve
from loom.errors import GateMissed
from loom.run import Run
from loom.run_directory import claim, settings_of

from featdistill.assess import Assessment, assess, read_results
from featdistill.config import TrainConfig
from featdistill.data.nerf_synthetic import Views, read_views
from featdistill.embedded import SCENE, TEACHER, embedded_scene, embedded_teacher
from featdistill.figures import write_report
from featdistill.models.student import Student
from featdistill.restore import require_kind, restore_student
from featdistill.scoring import lpips_metric, print_judgement
from featdistill.teacher_views import Teacher, teacher_of
from featdistill.train import train


def run_training(
    source: Path | None,
    overrides: Sequence[str] | None,
    *,
    max_steps: int | None = None,
    log_interval: int | None = None,
    lpips_weights: Path | None = None,
    directory: Path | None = None,
    resume: bool = False,
    archive: bool = False,
) -> Path:
    """Train, judge every evaluation view, write the page; return the run directory."""
    if resume and directory is not None:
        require_kind(directory, "student")
    source = settings_of(source, directory, resume=resume, thread="featdistill")
    flags = {"train.max_steps": max_steps, "log_interval": log_interval}
    resolved = resolve(TrainConfig, source, overrides, flags=flags)
    whole = resolve(TrainConfig, source, overrides).config.train.max_steps
    resolved = _with_data(resolved, source, overrides, flags)
    if not resume:  # what is missing is named before there is a directory of a run
        teacher_of(resolved.config.data)
    run = Run.open(
        "featdistill",
        TrainConfig,
        resolved,
        directory=directory,
        resume=resume,
        archive=archive,
    )
    with distributed.group():
        try:
            with run:
                run.shorten("train.max_steps", whole, run.config.train.max_steps)
                _train_and_judge(run, lpips_weights)
        except GateMissed:
            if run.is_main and read_results(run.dir):
                _show(run.dir)
            raise
    if run.is_main:
        _show(run.dir)
    return run.dir


def _train_and_judge(run: Run[TrainConfig], lpips_weights: Path | None) -> None:
    """Train, then judge; a run that went to its end is judged even if it missed a gate."""
    try:
        student, result = train(run.config, run)
    except GateMissed:
        steps = Checkpoints(run.dir / "checkpoints").steps()
        if run.is_main and run.config.train.max_steps in steps:
            restored = restore_student(run.dir)
            judge(run, restored.student, restored.step, lpips_weights)
        raise
    if run.is_main:
        judge(run, student, result.step, lpips_weights)


def _show(directory: Path) -> None:
    print_judgement(directory)
    typer.echo(f"report: {write_report(directory)}")


def _with_data(
    resolved: Resolved[TrainConfig],
    source: Path | None,
    overrides: Sequence[str] | None,
    flags: dict[str, Any],
) -> Resolved[TrainConfig]:
    """Fill in the embedded scene and teacher where the configuration names no data at all."""
    data = resolved.config.data
    if any((data.scene, data.teacher, data.camera_json)):
        return resolved
    typer.echo(
        f"[data] no data.scene and data.teacher given: training on the embedded brick model in "
        f"{SCENE} (data.scene=FOLDER data.teacher=point_cloud.ply takes your own)"
    )
    embedded_scene(typer.echo)
    embedded_teacher(typer.echo)
    paths = {"data.scene": SCENE, "data.teacher": TEACHER}
    return resolve(TrainConfig, source, overrides, flags={**flags, **paths})


def judge(
    run: Run[TrainConfig], student: Student, step: int, lpips_weights: Path | None = None
) -> Assessment:
    """Score every evaluation view at the end of a run."""
    teacher = teacher_of(run.config.data, run.dir)
    return assess(
        student,
        teacher.gaussians,
        teacher.evaluation,
        ground_truth(run.config, teacher),
        run.dir,
        step=step,
        lpips=lpips_metric(lpips_weights),
        say=run.info,
    )


def assess_run(
    directory: Path, *, background: str, lpips_weights: Path | None, as_json: bool
) -> None:
    """Judge a training run again, and write its page again; with JSON nothing else is printed.

    It is no part of the training: the record of the run stays, so one that was stopped is not
    finished by it, and a run of another checkout or machine can be judged here.
    """
    say = partial(typer.echo, err=as_json)
    restored = restore_student(directory)
    lpips = lpips_metric(lpips_weights)
    claimed = claim(restored.run, resume=True)
    try:
        teacher = teacher_of(restored.config.data, restored.run)
        assess(
            restored.student,
            teacher.gaussians,
            teacher.evaluation,
            ground_truth(restored.config, teacher),
            restored.run,
            step=restored.step,
            lpips=lpips,
            background=background,
            sources=restored.sources(),
            say=say,
        )
    finally:
        claimed.lock.release()
    print_judgement(restored.run, as_json=as_json)
    say(f"report: {write_report(restored.run)}")


def ground_truth(config: TrainConfig, teacher: Teacher) -> Views | None:
    """Read the ground truth of the evaluation views, where the scene has their pictures.

    A scene whose test views are others by now than those of the run has none of them.
    """
    scene = config.data.scene
    if scene is None or config.data.eval_camera_json is not None:
        return None
    if not (scene / "transforms_test.json").is_file():
        return None
    views = read_views(scene, "test", width=teacher.evaluation.width)
    return views if views.cameras.same_as(teacher.evaluation) else None
