"""Training of the camera student: behaviour cloning and distillation from a teacher's cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from loom.errors import UserError
from loom.loop import FitResult, Losses, Shard
from loom.run import Run

from end2race.cache.info import Expected
from end2race.cache.store import TeacherCache
from end2race.config import StudentConfig
from end2race.data.batches import Batch
from end2race.data.dataset import Dataset, open_dataset
from end2race.driving import answer
from end2race.losses import Distillation, TeacherAnswers, behaviour_cloning
from end2race.models.presets import preset
from end2race.models.student import CameraBEVStudent
from end2race.restore import ModelFile, camera_file
from end2race.training import Batches, Drives, new_model, open_drives, train_driver


@dataclass(frozen=True)
class StudentBatch:
    """Windows, and what the teacher said about them."""

    windows: Batch
    teacher: TeacherAnswers | None


class CachedTeacher:
    """Reads the answers that the distillation needs.

    Args:
        cache: The teacher's.
        fields: Which of its fields.
        skip_missing: Leave out windows without an answer; otherwise they are an error.
    """

    def __init__(self, cache: TeacherCache, fields: Sequence[str], *, skip_missing: bool) -> None:
        self._cache, self._fields, self._skip = cache, tuple(fields), skip_missing

    def __call__(self, keys: Sequence[str]) -> TeacherAnswers:
        """Return the answers about windows, zero with confidence 0 where there is none."""
        absent = set(self._cache.missing(keys)) if self._skip else set()
        found = [row for row, key in enumerate(keys) if key not in absent]
        read = self._cache.read([keys[row] for row in found], self._fields)
        fields = {}
        for name, values in read.items():
            whole = np.zeros((len(keys), *values.shape[1:]), np.float32)
            whole[found] = values
            fields[name] = torch.from_numpy(whole)
        confidence = torch.zeros(len(keys))
        confidence[found] = 1.0
        return TeacherAnswers(fields, confidence)


def train_student(config: StudentConfig, run: Run) -> tuple[CameraBEVStudent, FitResult]:
    """Train a student into an open run directory; it goes on where a resumed run had stopped."""
    drives = open_drives(config, run, "camera", labelled_segments(config, run))
    file = ModelFile(
        kind="student",
        preset=config.preset,
        seq_len=config.data.seq_len,
        view_transform=config.view_transform,
        camera=camera_file(drives.dataset.info.calibration),
    )
    model: CameraBEVStudent = new_model(config, run, file)
    cache = open_cache(config, run, drives)
    distillation = teacher = None
    if cache is not None:
        fields = cache.info.fields
        distillation = Distillation(
            config.kd, preset(config.preset), fields, model.backbone.map_channels
        )
        teacher = CachedTeacher(
            cache, distillation.fields, skip_missing=config.kd.missing == "skip"
        )
    streams = window_streams(config, drives, distils=cache is not None)
    draw = Batches(drives.reader, streams, config.train, run.seed)
    announce(run, config, drives, cache)

    def batch(step: int, shard: Shard) -> StudentBatch:
        windows = draw(step, shard)
        return StudentBatch(windows, teacher(windows.keys) if teacher else None)

    def loss(model: CameraBEVStudent, batch: StudentBatch, step: int) -> Losses:
        windows = batch.windows
        actions, _, aux = answer(model, windows, distillation.aux if distillation else ())
        terms = behaviour_cloning(actions, windows.actions, windows.labelled, config.loss)
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
    fraction of windows would leak the labels of the others.
    """
    if config.labelled_segments:
        return config.labelled_segments
    if config.label_fraction == 1.0 or config.data.root is None:
        return None
    dataset: Dataset = open_dataset(config.data.root, (config.data.train_split,))
    names = sorted(segment.name for segment in dataset.segments)
    count = math.ceil(config.label_fraction * len(names))
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
    return [(labelled, count), (others, size - count)] if count < size else [(labelled, size)]


def open_cache(config: StudentConfig, run: Run, drives: Drives) -> TeacherCache | None:
    """Open the teacher's cache and hold it to the dataset and the windows; None without one.

    Raises:
        UserError: It is of other data or another window length, lacks a field that has a weight, or
            lacks windows and `kd.missing` is `error`.
    """
    section = config.kd
    if section.cache_dir is None:
        return None
    split = config.data.train_split
    expected = Expected(
        data={split: drives.dataset.fingerprint(split)}, seq_len=config.data.seq_len
    )
    cache = TeacherCache.open(section.cache_dir, expected, allow_stale=section.allow_stale)
    run.use("teacher", cache.info.teacher_sha256)
    weights = {
        "bev_vec": section.bevvec_weight,
        "gru_out": section.temporal_weight,
        "bev_feat": section.bevfeat_weight,
    }
    absent = [name for name, weight in weights.items() if weight and name not in cache.info.fields]
    if absent:
        raise UserError(
            f"{section.cache_dir} holds no {', '.join(absent)}",
            hint="export it with --save-bev-feat, or set that weight to 0",
        )
    coverage = cache.coverage([window.key for window in drives.train])
    if coverage.found < coverage.wanted and section.missing == "error":
        raise UserError(
            f"{section.cache_dir} answers only {coverage}",
            hint="finish the export with --resume; --kd-missing skip distils what is there",
        )
    run.info(f"[kd] the cache answers {coverage}")
    return cache


def announce(run: Run, config: StudentConfig, drives: Drives, cache: TeacherCache | None) -> None:
    """Say what the student learns from."""
    labelled = int(drives.labelled.sum())
    run.info(
        f"[data] {labelled:,} of {len(drives.train):,} training windows of "
        f"{config.data.seq_len} frames carry the expert's label"
    )
    if cache is None:
        run.info("[kd] no teacher cache: behaviour cloning alone (--teacher-cache-dir takes one)")
