"""Picture files, and a path drawn into one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from loom.errors import UserError
from loom.files import explained, write_atomic

from maniflow_overlay.gripper_path import GripperPath, read_path
from maniflow_overlay.overlay.drawing import draw_path_bgr


def read_picture_bgr(path: Path) -> np.ndarray:
    """Read a PNG or JPEG file as (H, W, 3) uint8 BGR.

    Raises:
        UserError: The file is missing, or no picture can be read from it.
    """
    with explained(path):
        content = path.read_bytes()
    image = None
    if content:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{path}: not a picture that can be decoded", hint="give PNG or JPEG")
    return image


def write_png_bgr(path: Path, image: np.ndarray) -> None:
    """Write a (H, W, 3) uint8 BGR image as PNG, whole or not at all."""
    done, content = cv2.imencode(".png", image)
    if not done:
        raise UserError(f"{path}: an image of shape {image.shape} cannot be written as PNG")
    write_atomic(path, content.tobytes())


def render(picture: Path, path: Path, output: Path, *, path_only: bool = False) -> None:
    """Write a picture with a path drawn in, or the path on black in the picture's size."""
    require_png(output)
    write_png_bgr(output, drawn_bgr(read_picture_bgr(picture), read_path(path), path_only))


def require_png(output: Path) -> None:
    """Refuse to write PNG into a file of another name.

    Raises:
        UserError: It does not end in .png.
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"{output}: not a .png file", hint="name a PNG file to write")


def drawn_bgr(image: np.ndarray, path: GripperPath | None, path_only: bool) -> np.ndarray:
    """Return a picture, or black in its size, with a path drawn in if there is one."""
    if path_only:
        image = np.zeros_like(image)
    return image if path is None else draw_path_bgr(image, path)
