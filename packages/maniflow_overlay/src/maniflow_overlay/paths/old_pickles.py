"""Paths of the notes, kept as pickles: `TASK/episode_07/paths/frame_0042.pkl`.

A pickle can call any function when it is loaded. These hold lists of `(x, y, gripper)`, at most as
NumPy values, so the reader knows the names that those need and refuses a file with any other one.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from loom.errors import UserError
from loom.files import explained

from maniflow_overlay.gripper_path import GripperPath, path_from_rows
from maniflow_overlay.paths.frames import FrameKey
from maniflow_overlay.paths.table import IMPORTED, PathRow

LARGEST_BYTES = 2**20
_FILE = re.compile(r"(?:trajectory_)?(?:path_)?(?:frame_)?(\d{1,9})\.pkl")
_EPISODE = re.compile(r"episode_?(\d{1,9})")


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which old protocols write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _empty_array(*ignored: Any) -> np.ndarray:
    """Stand in for `_reconstruct`: shape and content follow, and are checked, by `__setstate__`."""
    return np.zeros(0, np.int8)


def _array(data: bytes, kind: np.dtype, shape: tuple[int, ...], order: Any, *_: Any) -> np.ndarray:
    """Stand in for `_frombuffer`, by which protocol 5 keeps arrays."""
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _scalar(kind: np.dtype, data: bytes) -> Any:
    """Stand in for `scalar`."""
    return np.frombuffer(data, kind)[0]


_CORES = ("numpy.core", "numpy._core")
_HARMLESS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): "ndarray",  # met only as an argument
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.multiarray", "_reconstruct"): _empty_array for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _array for core in _CORES},
}


class _Reader(pickle.Unpickler):
    """Knows what NumPy's values need and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _HARMLESS[module, name]


def read_pickle(path: Path) -> GripperPath:
    """Read a pickled list of `(x, y, gripper)` or `(x, y)`.

    Raises:
        UserError: It holds anything else; code in it is named and not run.
    """
    with explained(path):
        content = path.read_bytes()
    if len(content) > LARGEST_BYTES:
        raise UserError(f"{path}: {len(content)} bytes are too many for a path")
    try:
        value = _Reader(io.BytesIO(content)).load()
        rows = [list(map(_number, row)) for row in value]
    except UserError:
        raise
    # A damaged pickle can fail in any way: the unpickler checks little by itself.
    except Exception as error:
        raise UserError(
            f"{path}: not a pickled list of points ({type(error).__name__}: {error})",
            hint="the file may hold code, which is never run; parse the raw answers instead",
        ) from error
    return path_from_rows(rows, str(path))


def _number(value: Any) -> float | int:
    """Turn a number of any kind into Python's."""
    plain = value.item() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise TypeError(f"{plain!r} is no number")
    return int(plain) if float(plain).is_integer() else plain


def import_pickles(root: Path) -> list[PathRow]:
    """Read every path below a folder of the notes; points outside are held at the border.

    Raises:
        UserError: A file is damaged or holds code, or there are none.
    """
    rows = []
    for path in sorted(root.glob("*/episode*/paths/*.pkl")):
        episode, frame = _EPISODE.fullmatch(path.parts[-3]), _FILE.fullmatch(path.name)
        if not episode or not frame:
            raise UserError(f"{path}: the name tells no episode and frame")
        points = read_pickle(path)
        inside = GripperPath(np.clip(points.points, 0, 1), points.gripper)
        repairs = () if inside == points else ("clipped",)
        key = FrameKey(path.parts[-4], int(episode[1]), int(frame[1]))
        usable = inside if len(inside) else None
        rows.append(PathRow(key, IMPORTED, usable, repairs))
    if not rows:
        raise UserError(f"{root}: no TASK/episode_NN/paths/*.pkl")
    return rows
