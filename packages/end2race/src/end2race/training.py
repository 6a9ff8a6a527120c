"""What the two trainings share: windows, batches as a function of the step, the call of the loop.

A batch is drawn from one stream of windows, or from two: where only some windows carry the expert's
label, each batch holds a fixed share of labelled ones, so every process of a group has the same
number of them and the mean over processes is the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from loom.device import choose_device
from loom.errors import UserError
from loom.loop import Every, FitResult, Losses, Prefetch, Shard, TrainState, fit
from loom.native import cores_for_kernels
from loom.run import Run
from loom.sampling import draw_rng, epoch_indices

from end2race.augment import colour_maps, mix_colours
from end2race.config import DriverConfig, TrainSection
from end2race.data.batches import Batch, BatchReader
from end2race.data.camera_root import join_camera
from end2race.data.dataset import Dataset, open_dataset
from end2race.data.windows import Window, windows
from end2race.driving import Driving
from end2race.evaluate import ActionErrors, actor_of, open_loop_errors
from end2race.restore import ModelFile, begin_from, build, save_model, write_model_file

C = TypeVar("C", bound=DriverConfig)


@dataclass(frozen=True)
class Drives:
    """The windows of a training.

    Attributes:
        dataset: Where they come from.
        train: All windows of the training split.
        labelled: Which of them carry the expert's label, bool [len(train)].
        reader: Reads them.
        validation: Reads the windows of the validation split; None without validation.
    """

    dataset: Dataset
    train: tuple[Window, ...]
    labelled: np.ndarray
    reader: BatchReader
    validation: BatchReader | None


def open_drives(
    config: DriverConfig, run: Run, sensor: str, labelled_segments: Sequence[str] | None = None
) -> Drives:
    """Open the dataset of a training and list its windows.

    Args:
        config: The settings.
        run: Notes which data it is.
        sensor: `lidar` or `camera`.
        labelled_segments: Names of the training segments with labels; all of them if None.

    Raises:
        UserError: Whatever is wrong with the data, a labelled segment that is not there included.
    """
    data = config.data
    if data.root is None:
        raise UserError("no dataset is given", hint="name one with --data-root or data.root=FOLDER")
    validates = config.train.validate_interval is not None
    splits = (data.train_split, data.val_split) if validates else (data.train_split,)
    dataset = open_dataset(data.root, splits)
    if data.camera_root is not None and sensor == "camera":
        dataset = join_camera(dataset, data.camera_root, splits)
    declared = dataset.info.lidar_num_features
    if data.lidar_num_features not in (None, declared):
        raise UserError(
            f"{data.root} declares {declared} numbers per LiDAR point, not "
            f"{data.lidar_num_features}",
            hint="its dataset.json decides how the files are read; correct it if it is wrong",
        )
    for split in splits:
        run.use(f"data/{split}", dataset.fingerprint(split))
    if sensor == "camera" and dataset.info.calibration is not None:
        run.use("camera", dataset.info.calibration.sha256)

    def listed(split: str) -> tuple[Window, ...]:
        return tuple(windows(dataset, split, data.seq_len, data.stride, data.target_shift))

    train = listed(data.train_split)
    labelled = np.ones(len(train), bool)
    if labelled_segments is not None:
        names = {dataset.segments[window.segment].name for window in train}
        if absent := sorted(set(labelled_segments) - names):
            raise UserError(
                f"{data.root}: no window of the labelled segments {', '.join(absent)} in "
                f"{data.train_split}",
                hint=f"there are {', '.join(sorted(names)[:8])}",
            )
        chosen = frozenset(labelled_segments)
        labelled = np.array([dataset.segments[w.segment].name in chosen for w in train])
    lidar, camera = sensor == "lidar", sensor == "camera"
    reader = BatchReader(dataset, train, points=lidar, images=camera, labelled=labelled)
    validation = None
    if validates:
        validation = BatchReader(dataset, listed(data.val_split), points=lidar, images=camera)
    return Drives(dataset, train, labelled, reader, validation)


class Batches:
    """The training batch of a step for a shard: a pure function.

    Args:
        reader: Of the training windows.
        streams: Window indices to draw from and how many of them go into a batch; each stream is
            its own endless sequence of permutations.
        train: Shares of withheld inputs.
        seed: Of the order and of what is withheld.
    """

    def __init__(
        self,
        reader: BatchReader,
        streams: Sequence[tuple[np.ndarray, int]],
        train: TrainSection,
        seed: int,
    ) -> None:
        self._reader, self._streams, self._train, self._seed = reader, streams, train, seed

    def __call__(self, step: int, shard: Shard) -> Batch:
        """Return the shard's part of the batch of a step."""
        chosen, speed_known, steering_known, maps = [], [], [], []
        for number, (indices, count) in enumerate(self._streams):
            drawn = epoch_indices(len(indices), self._seed + number, step, count, shard)
            chosen.append(indices[drawn])
            part = slice(*shard.bounds(count))
            rng = draw_rng(self._seed, step, f"withheld {number}")
            known = rng.random((2, count))[:, part]
            speed_known.append(known[0] >= self._train.speed_dropout)
            steering_known.append(known[1] >= self._train.steering_dropout)
            colours = draw_rng(self._seed, step, f"colours {number}")
            maps.append(colour_maps(colours, count, self._train.colour_mixing)[part])
        batch = self._reader.read(np.concatenate(chosen))
        if batch.images is not None and self._train.colour_mixing > 0:
            batch = replace(batch, images=mix_colours(batch.images, np.concatenate(maps)))
        return replace(
            batch,
            speed=_withheld(batch.speed, speed_known),
            steering_input=_withheld(batch.steering_input, steering_known),
        )


def train_driver(
    config: DriverConfig,
    run: Run,
    file: ModelFile,
    drives: Drives,
    *,
    batch: Callable[[int, Shard], Any],
    loss: Callable[[Any, Any, int], Losses],
    model: Driving,
    extras: Mapping[str, Any] | None = None,
    steps: int,
) -> FitResult:
    """Train a model in place.

    Args:
        config: The settings.
        run: Where it is recorded.
        file: What the model is; written beside the checkpoints.
        drives: For the validation.
        batch: The data of a step for a shard; pure.
        loss: The losses of such a batch.
        model: What learns.
        extras: Modules that learn with it and are no part of it.
        steps: Updates in all.
    """
    if run.is_main:
        write_model_file(run.dir, file)
    section = config.train
    for module in (model, *(extras or {}).values()):
        module.to(choose_device(config.device))
    groups: list[dict[str, Any]] = [{"name": "model", "params": list(model.parameters())}]
    for name, extra in (extras or {}).items():
        groups.append({"name": name, "params": list(extra.parameters())})
    optimizer = torch.optim.AdamW(groups, lr=section.lr, weight_decay=section.weight_decay)
    state = TrainState(model, optimizer, extras=extras)
    rate = section.rate(steps)
    evaluation = None
    if section.validate_interval is not None:
        evaluation = Every(section.validate_interval, lambda m: validation_metrics(m, drives))
    source = Prefetch(batch, config.data.prefetch) if config.data.prefetch else None
    try:
        with cores_for_kernels():
            result = fit(
                run,
                state,
                steps=steps,
                batch=source or batch,
                loss=loss,
                lr=rate.at,
                evaluate=evaluation,
                gates=config.gates,
                accumulate=section.accumulate,
                clip_norm=section.clip_norm,
                log_interval=config.log_interval,
                checkpoint_interval=config.checkpoint_interval,
                metric_for_best="-metric/overall_weighted_mse" if evaluation else None,
                progress_name=f"{file.kind} {file.preset}",
            )
    finally:
        if source is not None:
            source.close()
    if run.is_main and config.save_path is not None:
        save_model(config.save_path, model, file)
        run.info(f"[model] written to {config.save_path}")
    return result


def new_model(config: DriverConfig, run: Run, file: ModelFile) -> Any:
    """Build the model of a training: weights from the seed, or from another run."""
    with torch.random.fork_rng([]):
        torch.manual_seed(run.generator("init").initial_seed())
        model = build(file)
    if config.init_path is not None:
        left = begin_from(
            model,
            config.init_path,
            strict=config.init_strict,
            skip_output_layer=config.init_skip_output_layer,
        )
        rest = f"; new are {len(left)}: {', '.join(left[:4])}{' ...' * (len(left) > 4)}"
        run.info(f"[init] weights of {config.init_path}{rest if left else ''}")
    return model


def validation_metrics(model: Driving, drives: Drives) -> dict[str, float | None]:
    """Return the open-loop errors on the validation split."""
    if drives.validation is None:
        return {}
    errors = open_loop_errors(actor_of(model), drives.validation)
    return {f"metric/{name}": value for name, value in errors.metrics().items()}


def target_mean(drives: Drives) -> np.ndarray:
    """Return the mean action of the labelled training windows: the constant driver."""
    errors = ActionErrors()
    kept = [w for w, labelled in zip(drives.train, drives.labelled, strict=True) if labelled]
    reader = BatchReader(drives.dataset, kept or drives.train, points=False, images=False)
    for begin in range(0, len(reader), 256):
        actions = reader.read(range(begin, min(begin + 256, len(reader)))).actions.numpy()
        errors.update(actions, actions)
    return errors.target_mean


def _withheld(values: torch.Tensor, known: Sequence[np.ndarray]) -> torch.Tensor:
    """Put NaN where a window's values [B, T, 1] are not known."""
    mask = torch.from_numpy(np.concatenate(known))
    return values.masked_fill(~mask[:, None, None], torch.nan)
