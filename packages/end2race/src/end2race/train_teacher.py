"""Training of the LiDAR teacher: behaviour cloning of the expert."""

from __future__ import annotations

import numpy as np
from loom.loop import FitResult, Losses
from loom.run import Run

from end2race.config import TeacherConfig
from end2race.data.batches import Batch
from end2race.driving import answer
from end2race.losses import behaviour_cloning
from end2race.models.teacher import LiDARBEVTeacher
from end2race.restore import ModelFile
from end2race.training import Batches, new_model, open_drives, train_driver


def train_teacher(config: TeacherConfig, run: Run) -> tuple[LiDARBEVTeacher, FitResult]:
    """Train a teacher into an open run directory; it goes on where a resumed run had stopped."""
    drives = open_drives(config, run, "lidar")
    count = len(drives.train)
    run.info(
        f"[data] {count:,} training windows of {config.data.seq_len} frames, "
        f"{len(drives.validation or ()):,} for validation"
    )
    file = ModelFile(
        kind="teacher",
        preset=config.preset,
        seq_len=config.data.seq_len,
        target_shift=config.data.target_shift,
        lidar_beams=drives.dataset.info.lidar_beams,
    )
    model: LiDARBEVTeacher = new_model(config, run, file)

    weights = config.loss.weights()

    def loss(model: LiDARBEVTeacher, batch: Batch, step: int) -> Losses:
        actions = answer(model, batch)[0]
        return Losses(behaviour_cloning(actions, batch.actions, batch.labelled, weights))

    result = train_driver(
        config,
        run,
        file,
        drives,
        batch=Batches(
            drives.reader, [(np.arange(count), config.train.batch_size)], config.train, run.seed
        ),
        loss=loss,
        model=model,
        steps=config.train.steps(count),
    )
    return model, result
