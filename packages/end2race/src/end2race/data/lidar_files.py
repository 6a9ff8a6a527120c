"""LiDAR clouds as `.bin` files: float32 rows of 4 or 8 numbers, one form for a whole dataset.

| numbers per point | columns |
|---|---|
| 4 | x, y, z, intensity (KITTI) |
| 8 | x, y, z, pad, intensity, ring, and a time stamp in two (the memory of a PointXYZIRT) |

Nothing in a file says which of the two it is, so `dataset.json` does. A file that contradicts it is
refused: read in the wrong form, every second point would be noise, and nobody would notice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from loom.errors import UserError
from loom.files import explained

FORMS = (4, 8)
_COLUMNS = {4: [0, 1, 2, 3], 8: [0, 1, 2, 4]}
_FEWEST_ROWS = 8  # below that, coordinates could look like a ring column by chance
_DENORMAL = 1e-30  # a uint16 ring number, its four bytes read as float32, is smaller than this


def read_points(path: Path, num_features: int) -> np.ndarray:
    """Read one cloud.

    Args:
        path: The `.bin` file.
        num_features: Numbers per point that the dataset declares, 4 or 8.

    Returns:
        float32 [n, 4]: x, y, z (m, in the LiDAR's own frame) and intensity; n >= 1.

    Raises:
        UserError: the file is missing, empty, cut short, of the other form, or has a value that is
            not finite.
    """
    with explained(path):
        content = path.read_bytes()
    problem = size_problem(len(content), num_features)
    if problem:
        raise UserError(f"{path}: {problem}", hint=_SIZE_HINT)
    raw = np.frombuffer(content, "<f4").reshape(-1, num_features)
    other = looks_like_other(raw)
    if other:
        raise UserError(
            f"{path}: dataset.json declares {num_features} numbers per point, but {other}",
            hint="one dataset has one form: import the odd segments again, or correct "
            "lidar_num_features",
        )
    points = raw[:, _COLUMNS[num_features]]
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise UserError(
            f"{path}: {int((~finite).sum())} of {len(points)} points have a value that is not "
            f"finite, the first is point {first}",
            hint="drop the points without a return when the data is imported",
        )
    return np.ascontiguousarray(points, np.float32)


_SIZE_HINT = "the recording or the copy was cut short: copy the file again, or drop its row"


def size_problem(size: int, num_features: int) -> str:
    """Say what is wrong with a file of this many bytes; an empty text if nothing is."""
    row = 4 * num_features
    if size == 0:
        return "empty cloud, no point at all"
    if size % row:
        return f"{size} bytes are not a whole number of points of {row} bytes"
    return ""


def write_points(path: Path, points: np.ndarray) -> None:
    """Write a cloud [n, 4] (x, y, z, intensity) as float32 rows of 4."""
    with explained(path):
        path.write_bytes(np.ascontiguousarray(points, "<f4").tobytes())


def guess_num_features(content: bytes) -> int:
    """Guess the form of one file; an importer decides once for a whole dataset with this.

    Eight numbers per point are recognised by a pad column of zeros and a ring column of whole
    numbers (or the bytes of whole numbers), which coordinates never are together.
    """
    if len(content) % 32 or not content:
        return 4
    return 8 if _has_pad_and_ring(np.frombuffer(content, "<f4").reshape(-1, 8)) else 4


def _has_pad_and_ring(rows: np.ndarray) -> bool:
    pad, ring = rows[:, 3], rows[:, 5]
    if len(rows) < _FEWEST_ROWS or not np.all(np.abs(pad) < 1e-2):  # not where a value is NaN
        return False
    written_as_float = np.all((ring == np.rint(ring)) & (ring >= 0) & (ring < 256))
    return bool(written_as_float or np.all(np.abs(ring) < _DENORMAL))


def looks_like_other(raw: np.ndarray) -> str:
    """Say why rows [n, 4] or [n, 8] look like the other form; an empty text if they do not."""
    if raw.shape[1] == 8:
        pad = np.abs(raw[:, 3])
        return "" if np.all(pad < 1e-2) else "its pad column is not zero, as in files of 4"
    if len(raw) % 2:
        return ""
    rows = raw.reshape(-1, 8)
    return "it has the pad and ring columns of files of 8" if _has_pad_and_ring(rows) else ""
