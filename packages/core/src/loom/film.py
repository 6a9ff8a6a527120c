"""Moving pictures: WebP and GIF by Pillow, MP4 (H.264) by ffmpeg where imageio-ffmpeg is there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from loom.errors import UserError
from loom.files import explained, write_atomic

FILMS = (".webp", ".gif", ".mp4")


def require_film_name(path: Path) -> None:
    """Refuse a name that no film can be written under, before anything is rendered.

    Raises:
        UserError: The suffix is unknown, or MP4 without imageio-ffmpeg.
    """
    if path.suffix.lower() not in FILMS:
        raise UserError(
            f"{path}: {path.suffix or 'no suffix'} is no film that can be written",
            hint=f"name it {' or '.join(FILMS)}",
        )
    if path.suffix.lower() == ".mp4":
        _ffmpeg(path)


def write_film(
    path: Path, pictures: Sequence[np.ndarray], rate_hz: float, *, quality: int = 90
) -> Path:
    """Write pictures of one size as a film, and return its path.

    Args:
        path: Ends with one of `FILMS`; its folder is made.
        pictures: uint8 [h, w, 3], one at least; MP4 leaves out an odd last row or column.
        rate_hz: Pictures a second.
        quality: Of WebP, 0 to 100.

    Raises:
        UserError: See `require_film_name`; or the disk refuses, and what was there is intact.
    """
    require_film_name(path)
    if not pictures:
        raise ValueError("no picture to write")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        content = _mp4(path, pictures, rate_hz)
    else:
        content = _animation(path, pictures, rate_hz, quality)
    write_atomic(path, content)
    return path


def _animation(path: Path, pictures: Sequence[np.ndarray], rate_hz: float, quality: int) -> bytes:
    first, *others = [Image.fromarray(picture) for picture in pictures]
    stream = BytesIO()
    first.save(
        stream,
        format=path.suffix[1:].upper(),
        save_all=True,
        append_images=others,
        duration=round(1000 / rate_hz),
        loop=0,
        quality=quality,  # GIF has no such setting and passes over it
        method=2,
    )
    return stream.getvalue()


def _mp4(path: Path, pictures: Sequence[np.ndarray], rate_hz: float) -> bytes:
    height, width = (side - side % 2 for side in pictures[0].shape[:2])  # H.264 wants even sizes
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "film.mp4"
        writer = _ffmpeg(path).write_frames(
            str(scratch), (width, height), fps=rate_hz, macro_block_size=2, quality=8
        )
        writer.send(None)
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture[:height, :width]))
        writer.close()
        return scratch.read_bytes()


def _ffmpeg(path: Path):
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(
            f"{path}: MP4 needs imageio-ffmpeg",
            hint="uv pip install imageio-ffmpeg, or end the name with .webp",
        ) from error
    return imageio_ffmpeg
