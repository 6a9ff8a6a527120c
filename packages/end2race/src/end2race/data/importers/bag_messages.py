"""What ROS messages hold: the points of a cloud or a scan, the pixels of an image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from loom.errors import UserError
from PIL import Image

from end2race.data.calibration import Calibration
from end2race.data.importers.end2race_csv import scan_points

_POINT_TYPES = dict(enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"), 1))
_CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}


def other_type(topic: str, message: Any, expected: str) -> UserError:
    """Return the error of a topic that carries another kind of message."""
    return UserError(
        f"{topic} carries {type(message).__name__}, expected {expected}",
        hint="name the right topic",
    )


def points_of(message: Any, topic: str) -> np.ndarray:
    """Return the points float32 [n, 4] of a PointCloud2 or a LaserScan.

    Raises:
        UserError: It is neither, or does not fit its bytes.
    """
    if hasattr(message, "ranges"):
        ranges = np.asarray(message.ranges, np.float64)
        angles = message.angle_min + message.angle_increment * np.arange(len(ranges))
        strengths = np.asarray(message.intensities, np.float64)
        return scan_points(
            ranges,
            angles,
            float(message.range_max),
            float(message.range_min),
            strengths if len(strengths) == len(ranges) else None,
        )
    if not hasattr(message, "point_step"):
        raise other_type(topic, message, "PointCloud2 or LaserScan")
    fields = {field.name: field for field in message.fields}
    rows, columns = int(message.height), int(message.width)
    step, row_step = int(message.point_step), int(message.row_step)
    data = np.asarray(message.data, np.uint8)
    fits = (
        all(axis in fields and fields[axis].datatype in _POINT_TYPES for axis in "xyz")
        and step * columns <= row_step
        and row_step * rows <= len(data)
    )
    order = ">" if message.is_bigendian else "<"
    chosen = [fields[name] for name in ("x", "y", "z", "intensity") if name in fields]
    kinds = [np.dtype(order + _POINT_TYPES.get(each.datatype, "u1")) for each in chosen]
    ends = [each.offset + kind.itemsize for each, kind in zip(chosen, kinds, strict=True)]
    if not fits or any(end > step for end in ends):
        raise UserError(
            f"{topic}: a cloud of {rows} x {columns} points of {step} bytes does not fit its "
            f"{len(data)} bytes or has no x, y, z",
            hint="the recording is damaged, or of another kind of cloud",
        )
    table = data[: rows * row_step].reshape(rows, row_step)[:, : columns * step]
    table = table.reshape(-1, step)
    points = np.zeros((len(table), 4), np.float32)
    for column, (each, kind) in enumerate(zip(chosen, kinds, strict=True)):
        part = np.ascontiguousarray(table[:, each.offset : each.offset + kind.itemsize])
        points[:, column] = part.view(kind)[:, 0]
    return points


def pixels_of(message: Any, topic: str, camera: Calibration) -> np.ndarray:
    """Return the picture uint8 [h, w, 3] of a CompressedImage or an Image.

    Raises:
        UserError: It is neither, is damaged, or has not the size that the camera is calibrated for.
    """
    if not hasattr(message, "data"):
        raise other_type(topic, message, "CompressedImage or Image")
    data = np.asarray(message.data, np.uint8)
    if hasattr(message, "format"):
        try:
            with Image.open(io.BytesIO(data.tobytes())) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{topic}: no picture that can be read ({error})",
                hint="the recording is damaged",
            ) from error
    else:
        channels = _CHANNELS.get(getattr(message, "encoding", ""))
        if channels is None:
            raise other_type(topic, message, f"an image of {', '.join(_CHANNELS)}")
        height, width, step = int(message.height), int(message.width), int(message.step)
        if step < width * channels or len(data) < height * step:
            raise UserError(f"{topic}: a picture that is cut short", hint="copy it again")
        rows = data[: height * step].reshape(height, step)[:, : width * channels]
        pixels = rows.reshape(height, width, channels)
        pixels = pixels[..., ::-1] if message.encoding == "bgr8" else pixels
        pixels = np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3)))
    if pixels.shape[:2] != (camera.height, camera.width):
        raise UserError(
            f"{topic}: {pixels.shape[1]} x {pixels.shape[0]} pixels, the calibration says "
            f"{camera.width} x {camera.height}",
            hint="the camera's intrinsic holds for one size only",
        )
    return pixels
