"""Camera frames as PNG files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from loom.errors import UserError
from loom.files import explained
from PIL import Image


def read_image(path: Path, width: int, height: int) -> np.ndarray:
    """Read a picture as uint8 [height, width, 3].

    Raises:
        UserError: it is missing, damaged, or of another size than the calibration says.
    """
    with explained(path):
        content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.size != (width, height):
                raise UserError(
                    f"{path}: {picture.width} x {picture.height} pixels, but the calibration "
                    f"says {width} x {height}",
                    hint="the camera's intrinsic holds for one size only: resize both together",
                )
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: no picture that can be read ({error})",
            hint="copy the file again, or drop its row",
        ) from error


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 [height, width, 3] as PNG."""
    with explained(path):
        Image.fromarray(image).save(path, format="PNG", compress_level=1)
