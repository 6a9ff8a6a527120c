"""The notes' own layout, as their MORAI recordings have it: our layout without `dataset.json`.

    <src>/{train,valid,test}/segment_XXXX/meta/data.csv    velocity, wheel_angle, ...
                                         /lidar/<timestamp>.bin

Nothing in it says whether a point is 4 numbers or 8; that is decided once for the whole source. The
clouds are written anew with 4, without points that are not finite.
"""

from __future__ import annotations

from pathlib import Path

from loom.errors import UserError
from loom.files import explained

from end2race.data.dataset import SPLITS, segment_directories
from end2race.data.images import read_image
from end2race.data.importers.clouds import one_form
from end2race.data.importers.target import Target, points_of_bytes
from end2race.data.segments import Segment, read_segment


def import_morai(
    source: Path,
    target: Target,
    rate_hz: float,
    num_features: int | None = None,
    *,
    radians: bool = False,
    angles_checked: bool = False,
) -> None:
    """Write every segment of a source.

    Args:
        source: The folder with `train`, `valid` and `test`.
        target: The dataset; images are taken over if it has a camera.
        rate_hz: Frames per second, where nothing gives time stamps.
        num_features: Numbers per point; None: one guess for all files.
        radians: Wheel angles are in radians.
        angles_checked: The caller vouches for their unit.

    Raises:
        UserError: There is no segment, or one cannot be read.
    """
    segments = [
        read_segment(directory, rate_hz, radians)
        for directory in segment_directories(source, SPLITS)
    ]
    files = [each.directory / name for each in segments for name in each.lidar_files]
    if not files:
        raise UserError(
            f"{source}: no segment with clouds in {', '.join(SPLITS)}",
            hint="segments are folders like train/segment_0001 with meta/data.csv and lidar/",
        )
    largest = max(float(abs(each.wheel_angle).max()) for each in segments)
    if not angles_checked and 0 < largest < 1 and sum(map(len, segments)) >= 100:
        raise UserError(
            f"{source}: no wheel angle exceeds {largest:.4g}, which looks like radians",
            hint="say --angle-unit radians, or --angle-unit degrees if the car drove that straight",
        )
    features = num_features or one_form(files)
    for segment in segments:
        _write(segment, target, features)


def _write(segment: Segment, target: Target, features: int) -> None:
    if not segment.lidar_files:
        target.dropped["segments without clouds"] += 1
        return
    camera = target.camera
    wanted = segment.target_velocity
    with target.segment(segment.split, segment.name) as writer:
        for row, name in enumerate(segment.lidar_files):
            path = segment.directory / name
            with explained(path):
                points = points_of_bytes(path.read_bytes(), features, path)
            image = None
            if camera is not None and segment.image_files is not None:
                picture = segment.directory / segment.image_files[row]
                image = read_image(picture, camera.width, camera.height)
            target.write(
                writer,
                int(segment.timestamp_ns[row]),
                float(segment.velocity[row]),
                float(segment.wheel_angle[row]),
                points,
                image,
                None if wanted is None else float(wanted[row]),
            )
