"""Batches of windows as tensors: clouds in the ego frame, images, speeds, angles, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from loom.errors import UserError
from torch import Tensor

from end2race.data.dataset import Dataset
from end2race.data.images import read_image
from end2race.data.lidar_files import read_points
from end2race.data.windows import Window

CACHE_BYTES = 2 << 30


@dataclass(frozen=True)
class Batch:
    """B windows of T frames.

    Attributes:
        keys: the windows' keys.
        points: float32 [P, 4], x, y, z (m, ego frame), intensity; of all frames together.
        point_frame: int64 [P], the frame b * T + t of each point, ascending.
        images: uint8 [B, T, H, W, 3], or None.
        speed: float32 [B, T, 1], m/s.
        steering_input: float32 [B, T, 1], degrees: the wheel angle one frame earlier, 0 at the
            beginning of a segment.
        actions: float32 [B, T, 2]: wheel angle (degrees) and target speed (m/s).
        labelled: bool [B]: whether the actions may be learned from.
    """

    keys: tuple[str, ...]
    points: Tensor
    point_frame: Tensor
    images: Tensor | None
    speed: Tensor
    steering_input: Tensor
    actions: Tensor
    labelled: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)


class BatchReader:
    """Reads windows by index; decoded frames are kept in memory up to a limit."""

    def __init__(
        self,
        dataset: Dataset,
        windows: Sequence[Window],
        *,
        images: bool,
        points: bool,
        labelled: np.ndarray | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Prepare to read.

        Args:
            dataset: Where the frames are.
            windows: What `windows()` has listed.
            images: Whether to read the camera.
            points: Whether to read the LiDAR; without it a batch has no point.
            labelled: bool [len(windows)], whether a window's actions may be learned from; all of
                them if None.
            cache_bytes: Limit of the memory for decoded frames.

        Raises:
            UserError: the dataset has no camera, or no LiDAR, and it is asked for.
        """
        self.dataset = dataset
        self.windows = tuple(windows)
        self._images, self._points = images, points
        self._labelled = np.ones(len(windows), bool) if labelled is None else labelled
        if self._labelled.shape != (len(windows),):
            raise ValueError(f"labelled is {self._labelled.shape} for {len(windows)} windows")
        self._cache: dict[tuple[str, int, int], np.ndarray] = {}
        self._cache_left = cache_bytes
        for index in {window.segment for window in windows}:
            segment = dataset.segments[index]
            absent = (points and not segment.lidar_files) or (images and not segment.image_files)
            if absent:
                what = "lidar_filepath" if points and not segment.lidar_files else "image_filepath"
                raise UserError(
                    f"{segment.directory}: no column {what}",
                    hint="take a dataset that has this sensor, or leave the split out",
                )
        if images and dataset.info.calibration is None:
            raise UserError(
                f"{dataset.root}: no camera in its calibration",
                hint="add calibration.json with the camera's intrinsic, size and pose",
            )

    def __len__(self) -> int:
        return len(self.windows)

    def read(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Read the windows with these indices, in this order."""
        chosen = [self.windows[int(index)] for index in indices]
        rows = [self._controls(window) for window in chosen]
        clouds = [cloud for window in chosen for cloud in self._clouds(window)]
        frame = np.repeat(np.arange(len(clouds)), [len(cloud) for cloud in clouds])
        points = np.concatenate(clouds) if clouds else np.empty((0, 4), np.float32)
        labelled = self._labelled[np.asarray(indices, np.int64)]
        return Batch(
            keys=tuple(window.key for window in chosen),
            points=torch.from_numpy(points),
            point_frame=torch.from_numpy(frame),
            images=self._stacked_images(chosen) if self._images else None,
            speed=_stack([speed for speed, _, _ in rows]),
            steering_input=_stack([previous for _, previous, _ in rows]),
            actions=_stack([actions for _, _, actions in rows]),
            labelled=torch.from_numpy(labelled),
        )

    def _controls(self, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return speed [T, 1], the earlier wheel angle [T, 1] and actions [T, 2] of a window."""
        segment = self.dataset.segments[window.segment]
        span = slice(window.start, window.start + window.seq_len)
        earlier = np.concatenate([[np.float32(0)], segment.wheel_angle[:-1]])[span]
        if segment.target_velocity is not None:
            target = segment.target_velocity[span]
        else:
            target = segment.velocity[window.start + window.target_shift :][: window.seq_len]
        actions = np.stack([segment.wheel_angle[span], target], axis=1)
        return segment.velocity[span, None], earlier[:, None], actions

    def _clouds(self, window: Window) -> list[np.ndarray]:
        """Return the clouds [n, 4] of a window's frames, in the ego frame."""
        if not self._points:
            return []
        return [
            self._kept("points", window.segment, frame, self._read_cloud)
            for frame in _frames(window)
        ]

    def _read_cloud(self, segment: int, frame: int) -> np.ndarray:
        drive, info = self.dataset.segments[segment], self.dataset.info
        cloud = read_points(drive.directory / drive.lidar_files[frame], info.lidar_num_features)
        cloud[:, :3] = info.lidar_sensor.to_ego(cloud[:, :3])
        return cloud

    def _stacked_images(self, chosen: Sequence[Window]) -> Tensor:
        images = [
            [
                self._kept("image", window.segment, frame, self._read_image)
                for frame in _frames(window)
            ]
            for window in chosen
        ]
        return torch.from_numpy(np.array(images))

    def _read_image(self, segment: int, frame: int) -> np.ndarray:
        drive, camera = self.dataset.segments[segment], self.dataset.info.calibration
        if drive.image_files is None or camera is None:
            raise ValueError(f"{drive.directory} has no camera")
        path = (drive.image_directory or drive.directory) / drive.image_files[frame]
        return read_image(path, camera.width, camera.height)

    def _kept(
        self, kind: str, segment: int, frame: int, read: Callable[[int, int], np.ndarray]
    ) -> np.ndarray:
        """Return a decoded frame from memory, or read it and keep it while there is room."""
        key = (kind, segment, frame)
        found = self._cache.get(key)
        if found is None:
            found = read(segment, frame)
            if found.nbytes <= self._cache_left:
                self._cache[key] = found
                self._cache_left -= found.nbytes
        return found


def _frames(window: Window) -> range:
    return range(window.start, window.start + window.seq_len)


def _stack(rows: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.float32))
