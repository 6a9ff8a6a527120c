"""An evaluation from the command line: a model on a split, as table, CSV row and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loom.device import choose_device
from loom.drawing import print_table
from loom.errors import UserError
from loom.files import read_text, write_atomic, write_json

from end2race.cache.info import Expected
from end2race.cache.store import TeacherCache
from end2race.data.batches import Batch, BatchReader
from end2race.data.calibration import Calibration
from end2race.data.camera_root import join_camera
from end2race.data.dataset import Dataset, open_dataset
from end2race.data.windows import Window, windows
from end2race.driving import sensor_of
from end2race.embedded import default_dataset
from end2race.evaluate import ActionErrors, actor_of, copycat, open_loop, open_loop_errors
from end2race.restore import CameraFile, restore


def evaluate_driver(
    kind: str,
    checkpoint: Path,
    *,
    data_root: Path | None,
    camera_root: Path | None,
    split: str,
    seq_len: int | None,
    batch_size: int,
    names: Sequence[str],
    weights: Sequence[float],
    csv_path: Path | None,
    json_path: Path | None,
    device: str,
    cache_dir: Path | None,
    as_json: bool = False,
    say: Callable[[str], None],
) -> dict[str, dict[str, float | None]]:
    """Evaluate a model on every window of a split and print one line for each driver.

    Args:
        kind: `teacher` or `student`.
        checkpoint: Run directory, checkpoint or model file.
        data_root: The dataset; the embedded one if None.
        camera_root: The dataset of the images, if they are not there.
        split: Which windows.
        seq_len: Frames of a window; as in training if None.
        batch_size: Windows at a time; changes no figure beyond rounding.
        names: Of the action's components.
        weights: Of the overall error.
        csv_path: Gets a row for the model.
        json_path: Gets the figures of every driver.
        device: auto, cpu or cuda.
        cache_dir: A teacher's answers to compare with as well.
        as_json: Print the table as JSON.
        say: Receives what the table does not say.

    Returns:
        Metrics of every driver.
    """
    ActionErrors().check_names(names, weights)
    restored = restore(checkpoint, kind)
    restored.model.to(choose_device(device))
    root = data_root if data_root is not None else default_dataset(say)
    dataset = open_dataset(root, (split,))
    if camera_root is not None:
        dataset = join_camera(dataset, camera_root, (split,))
    listed = windows(
        dataset, split, seq_len or restored.file.seq_len, target_shift=restored.file.target_shift
    )
    camera = sensor_of(restored.model) == "camera"
    if camera and not same_camera(restored.file.camera, dataset.info.calibration):
        say(
            f"[camera] the images are of another camera than the student's: it lifts them by its "
            f"own calibration, not by that of {camera_root or root}"
        )
    if not camera and (note := restored.other_lidar(dataset.info.lidar_beams, root)):
        say(note)
    reader = BatchReader(dataset, listed, images=camera, points=not camera)
    mean = open_loop_errors(
        copycat, BatchReader(dataset, listed, images=False, points=False), 256
    ).target_mean
    judged = open_loop(restored.model, reader, mean, batch_size)
    rows = judged.rows(names, weights)
    extra: dict[str, Any] = {}
    if cache_dir is not None:
        kd = teacher_errors(restored.model, cache_dir, dataset, listed, split, batch_size)
        rows["to teacher"] = kd.metrics(names, weights)
        extra = {f"kd_{name}": value for name, value in rows["to teacher"].items()}
    columns = [f"{name}_{what}" for name in names for what in ("mse", "mae", "r2")]
    columns.append("overall_weighted_mse")
    print_table(
        (f"{split} ({judged.drivers['model'].count:,})", *columns),
        [(driver, *(found[column] for column in columns)) for driver, found in rows.items()],
        as_json=as_json,
    )
    say("[constant] gives the mean of these windows' own labels, which no driver knows beforehand")
    say(judged.leak_line)
    if csv_path is not None:
        named = {"split": split, "ckpt": str(checkpoint)}
        append_row(csv_path, {**named, **rows["model"], **extra})
    if json_path is not None:
        leak = judged.leak
        facts = {"split": split, "checkpoint": str(checkpoint), "blanked_speed_unexplained": leak}
        write_json(json_path, {**facts, "drivers": rows})
    return rows


def same_camera(own: CameraFile | None, other: Calibration | None) -> bool:
    """Whether a student was made for the camera of a dataset."""
    if own is None or other is None:
        return own is other
    return all(
        np.allclose(getattr(own, name), getattr(other, name), atol=1e-6)
        for name in CameraFile.model_fields
    )


@torch.no_grad()
def teacher_errors(
    model: Any,
    cache_dir: Path,
    dataset: Dataset,
    listed: Sequence[Window],
    split: str,
    batch_size: int,
) -> ActionErrors:
    """Compare a model's actions with those in a teacher's cache, on the windows that it holds."""
    expected = Expected(data={split: dataset.fingerprint(split)}, seq_len=listed[0].seq_len)
    cache = TeacherCache.open(cache_dir, expected)
    absent = set(cache.missing([window.key for window in listed]))
    held = [window for window in listed if window.key not in absent]
    if not held:
        raise UserError(
            f"{cache_dir} has no answer on a window of {split}",
            hint=f"export it with --split {split}",
        )
    camera = sensor_of(model) == "camera"
    reader = BatchReader(dataset, held, images=camera, points=not camera)
    act, errors = actor_of(model), ActionErrors()
    for begin in range(0, len(held), batch_size):
        batch: Batch = reader.read(range(begin, min(begin + batch_size, len(held))))
        errors.update(act(batch).cpu().numpy(), cache.read(batch.keys, ["actions"])["actions"])
    return errors


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file; an older one keeps its rows and gets the columns it lacks."""
    rows: list[dict[str, Any]] = []
    columns: list[str] = []
    if path.is_file():
        reader = csv.DictReader(io.StringIO(read_text(path)))
        columns, rows = list(reader.fieldnames or ()), list(reader)
    columns += [name for name in row if name not in columns]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*({key: old.get(key, "") for key in columns} for old in rows), row])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue())
