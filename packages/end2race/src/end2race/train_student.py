"""Training of the camera student: behaviour cloning and distillation from a teacher's cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from loom import distributed
from loom.errors import UserError
from loom.loop import FitResult, Losses, Shard
from loom.run import Run

from end2race.config import StudentConfig
from end2race.data.batches import Batch
from end2race.data.dataset import Dataset, open_dataset
from end2race.data.windows import windows
from end2race.driving import answer
from end2race.losses import Distillation, TeacherAnswers, behaviour_cloning
from end2race.models.presets import preset
from end2race.models.student import CameraBEVStudent
from end2race.restore import ModelFile, camera_file
from end2race.teaching import open_teaching
from end2race.training import Batches, Drives, new_model, open_drives, train_driver


@dataclass(frozen=True)
class StudentBatch:
    """Windows, and what the teacher said about them."""

    windows: Batch
    teacher: TeacherAnswers | None


def train_student(config: StudentConfig, run: Run) -> tuple[CameraBEVStudent, FitResult]:
    """Train a student into an open run directory; it goes on where a resumed run had stopped."""
    drives = open_drives(config, run, "camera", labelled_segments(config, run))
    file = ModelFile(
        kind="student",
        preset=config.preset,
        seq_len=config.data.seq_len,
        target_shift=config.data.target_shift,
        view_transform=config.view_transform,
        camera=camera_file(drives.dataset.info.calibration),
    )
    model: CameraBEVStudent = new_model(config, run, file)
    announce(run, config, drives)
    teaching = open_teaching(config, run, drives, config.kd.fields)
    distillation = None
    if teaching is not None:
        distillation = Distillation(
            config.kd, preset(config.preset), teaching.shapes, model.backbone.map_channels
        )
    streams = window_streams(config, drives, distils=teaching is not None)
    draw = Batches(drives.reader, streams, config.train, run.seed)

    def batch(step: int, shard: Shard) -> StudentBatch:
        windows = draw(step, shard)
        return StudentBatch(windows, teaching.ask(windows.keys) if teaching else None)

    weights = config.action_weights

    def loss(model: CameraBEVStudent, batch: StudentBatch, step: int) -> Losses:
        windows = batch.windows
        actions, _, aux = answer(model, windows, distillation.aux if distillation else ())
        terms = behaviour_cloning(actions, windows.actions, windows.labelled, weights)
        if distillation is None or batch.teacher is None:
            return Losses(terms)
        terms |= distillation.terms(actions, aux, batch.teacher.to(actions.device))
        return Losses(terms, {"metric/kd_confidence": batch.teacher.confidence.mean()})

    learning = sum(len(indices) for indices, _ in streams)
    result = train_driver(
        config,
        run,
        file,
        drives,
        batch=batch,
        loss=loss,
        model=model,
        extras={"adapters": distillation} if distillation and len(distillation.adapters) else None,
        steps=config.train.steps(learning),
    )
    return model, result


def labelled_segments(config: StudentConfig, run: Run) -> tuple[str, ...] | None:
    """Return the names of the segments whose labels are used; None for all.

    A fraction takes whole segments, drawn from the seed: neighbouring windows share frames, so a
    fraction of windows would leak the labels of the others. Segments too short for a window have
    none to draw.
    """
    if config.labelled_segments:
        return config.labelled_segments
    if config.label_fraction == 1.0 or config.data.root is None:
        return None
    data = config.data
    dataset: Dataset = open_dataset(config.data.root, (data.train_split,))
    listed = windows(dataset, data.train_split, data.seq_len, data.stride, data.target_shift)
    names = sorted({dataset.segments[window.segment].name for window in listed})
    count = math.ceil(round(config.label_fraction * len(names), 9))  # 0.07 x 100 is 7
    chosen = run.rng("labelled segments").permutation(len(names))[:count]
    return tuple(names[index] for index in sorted(chosen))


def window_streams(
    config: StudentConfig, drives: Drives, *, distils: bool
) -> list[tuple[np.ndarray, int]]:
    """Return which windows a batch is drawn from, and how many of each kind.

    Without a teacher only labelled windows teach anything; with one, a batch has its share of
    labelled windows, and the rest comes from the others.
    """
    labelled, others = (np.flatnonzero(drives.labelled == kind) for kind in (True, False))
    size = config.train.batch_size
    if not distils or not len(others):
        if not len(labelled):
            raise UserError("no window has a label", hint="raise label_fraction")
        return [(labelled, size)]
    if not len(labelled):
        return [(others, size)]
    count = min(max(1, round(config.labelled_share * size)), size)
    if count == size:
        return [(labelled, size)]
    parts = distributed.shard().world * config.train.accumulate
    if count % parts or size % parts:
        raise UserError(
            f"{count} labelled windows of a batch of {size} cannot be split evenly over {parts} "
            "parts (processes x train.accumulate)",
            hint="raise train.batch_size or labelled_share",
        )
    return [(labelled, count), (others, size - count)]


def announce(run: Run, config: StudentConfig, drives: Drives) -> None:
    """Say what the student learns from."""
    labelled = int(drives.labelled.sum())
    run.info(
        f"[data] {labelled:,} of {len(drives.train):,} training windows of "
        f"{config.data.seq_len} frames carry the expert's label"
    )
    steer, speed, _ = config.action_weights
    run.info(f"[loss] against labels: {steer:g} x degrees^2 + {speed:g} x (m/s)^2")
    if not config.kd.fields:
        run.info("[kd] every weight is 0: behaviour cloning alone")
    elif not config.kd.has_teacher:
        run.info("[kd] no teacher cache: behaviour cloning alone (--teacher-cache-dir takes one)")
