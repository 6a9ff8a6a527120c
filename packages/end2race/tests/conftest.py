"""A dataset of a few frames that is written in a moment."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from end2race.data.calibration import Pose, level_camera
from end2race.data.dataset import DatasetFile
from end2race.data.writer import SegmentWriter, write_info

LIDAR = Pose(np.eye(3), np.array([0.2, 0.0, 0.3]))


def write_small(root: Path, lengths: dict[str, tuple[int, ...]], *, target: bool = False) -> Path:
    """Write segments of these lengths by split; every value follows from segment and frame."""
    camera = level_camera(16, 8, 10.0, (0.2, 0.0, 0.2))
    write_info(root, DatasetFile(lidar_num_features=4), camera, LIDAR)
    number = 0
    for split, counts in lengths.items():
        for count in counts:
            writer = SegmentWriter(root, split, f"segment_{number:04d}")
            rng = np.random.default_rng(number)
            for frame in range(count):
                points = rng.uniform(-5, 5, (6 + frame % 3, 4)).astype(np.float32)
                writer.append(
                    1_000_000_000 + frame * 100_000_000,
                    velocity=number + frame / 10,
                    wheel_angle=-number + frame,
                    points=points,
                    image=rng.integers(0, 256, (8, 16, 3), dtype=np.uint8),
                    target_velocity=9 + frame / 10 if target else None,
                )
            writer.close()
            number += 1
    return root


@pytest.fixture
def small(tmp_path) -> Callable[..., Path]:
    """Writes a dataset of given segment lengths into a folder of its own."""

    def make(lengths: dict[str, tuple[int, ...]] | None = None, *, target: bool = False) -> Path:
        return write_small(tmp_path / "set", lengths or {"train": (7, 9)}, target=target)

    return make
