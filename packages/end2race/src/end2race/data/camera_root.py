"""A camera recorded apart from the LiDAR: two folders, joined by the keys of their segments.

The folder of the LiDAR gives clouds, speeds, angles and labels, and its digest, so a teacher's
cache of it stays valid. The other one gives the images and the camera's calibration. Frame i of
`train/segment_0001` is the same moment in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from loom.errors import UserError

from end2race.data.dataset import Dataset, open_dataset
from end2race.data.segments import CSV_FILE, Segment


def join_camera(dataset: Dataset, camera_root: Path, splits: Sequence[str]) -> Dataset:
    """Return a dataset with the images and the camera of another folder.

    Args:
        dataset: Clouds and controls.
        camera_root: Folder of a dataset with images, segments of the same names.
        splits: Which ones to join.

    Raises:
        UserError: The folder has no camera, lacks a segment, or a segment's frames are not those of
            the other folder: another number, or more than half a frame apart in time.
    """
    seen = open_dataset(camera_root, splits)
    if seen.info.calibration is None:
        raise UserError(
            f"{seen.root}: no camera in its calibration",
            hint="add calibration.json with the camera's intrinsic, size and pose",
        )
    by_key = {(segment.split, segment.name): segment for segment in seen.segments}
    half_frame_ns = 0.5e9 / dataset.info.rate_hz
    joined = []
    for segment in dataset.segments:
        images = by_key.get((segment.split, segment.name))
        if images is None:
            raise UserError(
                f"{seen.root} has no {segment.split}/{segment.name}",
                hint=f"give the segment the name that it has in {dataset.root}",
            )
        _require_same_frames(segment, images, half_frame_ns)
        joined.append(
            replace(segment, image_files=images.image_files, image_directory=images.directory)
        )
    info = replace(dataset.info, calibration=seen.info.calibration)
    return Dataset(dataset.root, info, tuple(joined))


def _require_same_frames(segment: Segment, images: Segment, half_frame_ns: float) -> None:
    path = images.directory / CSV_FILE
    if images.image_files is None:
        raise UserError(f"{path}: no column image_filepath", hint="name the images in it")
    if len(images) != len(segment):
        raise UserError(
            f"{path}: {len(images)} frames, but {segment.directory} has {len(segment)}",
            hint="one row for each frame of the LiDAR, in its order",
        )
    if "timestamp_ns" not in segment.columns or "timestamp_ns" not in images.columns:
        return
    apart = np.abs(images.timestamp_ns - segment.timestamp_ns)
    if apart.max() > half_frame_ns:
        row = int(apart.argmax())
        raise UserError(
            f"{path}: line {row + 2}: {apart[row] / 1e6:.0f} ms from its frame of the LiDAR",
            hint="join the recordings by time first; keys follow the order of the rows",
        )
