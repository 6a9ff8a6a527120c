"""Recorded drawings: replay a file of cases and name the first that comes out differently.

A file is a JSON object with `cases`, each with `width`, `height`, `background_seed`, `path` (rows
of `[x, y, gripper]`) and `sha256_bgr`, the hash of the drawn image's bytes. The background is
`numpy.random.default_rng(background_seed).integers(0, 256, (height, width, 3), dtype=uint8)`,
taken as BGR.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loom.errors import UserError
from loom.files import read_json

from maniflow_overlay.gripper_path import GripperPath, path_from_rows
from maniflow_overlay.overlay.drawing import draw_path_bgr

LARGEST_SIDE_PX = 16_384


@dataclass(frozen=True)
class RecordedDrawing:
    """One drawing: what was drawn, and the hash of what came out."""

    width: int
    height: int
    background_seed: int
    path: GripperPath
    sha256_bgr: str

    def background_bgr(self) -> np.ndarray:
        """Return the noise that the path is drawn on."""
        shape = (self.height, self.width, 3)
        return np.random.default_rng(self.background_seed).integers(0, 256, shape, dtype=np.uint8)

    def drawn_sha256(self) -> str:
        """Draw the path and return the hash of the image's bytes."""
        drawn = draw_path_bgr(self.background_bgr(), self.path)
        return hashlib.sha256(drawn.tobytes()).hexdigest()


def read_cases(path: Path) -> list[RecordedDrawing]:
    """Read a file of recorded drawings.

    Raises:
        UserError: The file is missing, damaged or of another form; the message names the place.
    """
    content = read_json(path)
    cases = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(cases, list) or not cases:
        raise UserError(
            f"{path}: no list `cases`, or an empty one",
            hint="expected recorded drawings: width, height, background_seed, path, sha256_bgr",
        )
    return [_case(case, f"{path}: case {number}") for number, case in enumerate(cases)]


def _case(case: Any, place: str) -> RecordedDrawing:
    if not isinstance(case, dict):
        raise UserError(f"{place} is not an object")
    bounds = {
        "width": (1, LARGEST_SIDE_PX),
        "height": (1, LARGEST_SIDE_PX),
        "background_seed": (0, 2**128),
    }
    for key, (low, high) in bounds.items():
        value = case.get(key)
        if type(value) is not int or not low <= value <= high:
            raise UserError(f"{place}: {key} is {value!r}, expected an integer of {low} to {high}")
    digest = case.get("sha256_bgr")
    if not isinstance(digest, str) or len(digest) != 64:
        raise UserError(f"{place}: sha256_bgr is {digest!r}, expected 64 hex digits")
    path = path_from_rows(case.get("path"), f"{place}, path")
    return RecordedDrawing(
        case["width"], case["height"], case["background_seed"], path, digest.lower()
    )


def first_difference(cases: list[RecordedDrawing]) -> str | None:
    """Replay the cases in order; describe the first that differs, or return None."""
    for number, case in enumerate(cases):
        drawn = case.drawn_sha256()
        if drawn != case.sha256_bgr:
            return (
                f"case {number} differs: {case.width}x{case.height}, background_seed "
                f"{case.background_seed}, {len(case.path)} points: drawn {drawn}, "
                f"recorded {case.sha256_bgr}"
            )
    return None
