"""8-bit PNG pictures: read with the check sums of their pixels verified, and written quickly."""

from pathlib import Path

import cv2
import numpy as np
from loom.files import write_atomic
from loom.png import decode_png

from coopcyl.data.errors import DataError

_CONVERTED = {"RGBA": "RGB", "P": "RGB"}
_QUICK = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def read_bytes(path: Path, what: str = "file") -> bytes:
    """Read a file of the data set, or say in one line why that is impossible."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: the {what} is missing",
            hint="download or copy it again, or list this frame in the skip file",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: the {what} cannot be read: {error.strerror}",
            hint="check the file's owner, mode and disk",
        ) from error


def read_png(path: Path, mode: str, what: str = "image") -> np.ndarray:
    """Read a PNG as uint8: `(h, w, 3)` for mode RGB, `(h, w)` for mode L.

    An alpha channel or a palette is converted; colour is never dropped for mode L.
    """
    try:
        found, pixels = decode_png(read_bytes(path, what), _CONVERTED if mode == "RGB" else None)
    except ValueError as error:
        raise DataError(
            f"{path}: the {what} cannot be read ({error})", hint="copy or render this image again"
        ) from error
    if found != mode:
        raise DataError(
            f"{path}: the {what} has channels {found}, expected {mode}",
            hint="convert it to 8 bits per channel, or set the right depth format",
        )
    return pixels


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 `(h, w)` or `(h, w, 3)` RGB as a PNG; the folder must exist."""
    write_atomic(path, png_bytes(pixels), sync=False)


def png_bytes(pixels: np.ndarray) -> bytes:
    """Return uint8 `(h, w)` or `(h, w, 3)` RGB as a PNG file's content."""
    ordered = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    return cv2.imencode(".png", np.ascontiguousarray(ordered), _QUICK)[1].tobytes()
