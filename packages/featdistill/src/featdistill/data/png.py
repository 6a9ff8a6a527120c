"""8-bit PNG files, read with every check sum verified and written whole or not at all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from loom import png
from loom.errors import UserError
from loom.files import explained, write_atomic
from PIL import Image

_RGBA_COLOUR_TYPE = 6  # in the header's byte 25


def read_png(path: Path, mode: str) -> np.ndarray:
    """Read a PNG as uint8 [h, w, 3] or [h, w, 4].

    Args:
        path: The file.
        mode: "RGBA" or "RGB", which the file must have: an alpha channel is never invented, nor
            one dropped.

    Raises:
        UserError: The file is missing, damaged, too large, or has other channels.
    """
    return decode_png(read_bytes(path), path, mode)


def read_any_png(path: Path) -> np.ndarray:
    """Read a PNG as uint8 [h, w, 3], or [h, w, 4] if it has an alpha channel."""
    data = read_bytes(path)
    has_alpha = len(data) > 25 and data[25] == _RGBA_COLOUR_TYPE
    return decode_png(data, path, "RGBA" if has_alpha else "RGB")


def read_bytes(path: Path) -> bytes:
    """Read an image file, or say in one line why that is impossible."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = (
            "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        )
        raise UserError(
            f"{path} {reason}", hint="copy the image there, or correct the path that names it"
        ) from error


def decode_png(data: bytes, path: Path, mode: str) -> np.ndarray:
    """Decode the bytes of a PNG; see `read_png`. `path` is what messages name."""
    try:
        found, pixels = png.decode_png(data)
    except ValueError as error:
        raise _unreadable(path, error) from error
    if found != mode:
        remedy = {
            "RGBA": "export the images with a transparent background (an alpha channel)",
            "RGB": "convert the image to 8-bit RGB",
        }[mode]
        raise UserError(f"{path} has channels {found}, expected {mode}", hint=remedy)
    return pixels


def png_size(path: Path) -> tuple[int, int]:
    """Return width and height from the header of a PNG, without decoding it."""
    with explained(path), path.open("rb") as stream:
        head = stream.read(png.HEADER_BYTES)
    try:
        return png.png_size(head)
    except ValueError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: ValueError) -> UserError:
    hint = "copy or render this image again; pictures are 8-bit PNG"
    return UserError(f"{path} cannot be read ({error})", hint=hint)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [h, w, 3 or 4] as PNG, whole or not at all, making the folder."""
    stream = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG")
    make_folder(path.parent)
    write_atomic(path, stream.getvalue())


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, or say why the disk refuses."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
