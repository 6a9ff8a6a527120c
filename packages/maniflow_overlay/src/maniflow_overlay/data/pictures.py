"""The pictures of a batch: frames of a store, each with its path over it or on black beside it.

A native kernel reads and paints frame by frame, while each is still in the cache; without a
compiler, or where something cannot be read, the same is done here, with errors that say what.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from loom import native

from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.data.path_layers import PathLayers

SOURCE = Path(__file__).parent.parent / "csrc" / "pictures.cpp"


@functools.cache
def _kernel() -> Callable[..., int] | None:
    found = native.library("maniflow_overlay_pictures", sources=[SOURCE])
    if isinstance(found, native.Unavailable):
        return None
    whole, address = ctypes.c_int64, ctypes.c_void_p
    types = [ctypes.c_int, ctypes.c_int, address, address, whole, address, whole, whole]
    return found.function("read_pictures", [*types, ctypes.c_int], whole)


def read_pictures(
    store: FrameStore,
    layers: PathLayers | None,
    rows: np.ndarray,
    pictures: np.ndarray,
) -> np.ndarray:
    """Read frames and draw their paths.

    Args:
        store: With the frames.
        layers: Their paths; None draws none.
        rows: (n,) row numbers.
        pictures: (n, 1 or 2, H, W, 3) uint8, contiguous; with two pictures the path is drawn on
            black in the second, else over the frame.

    Returns:
        `pictures`.

    Raises:
        IndexError: A row is none of the store's.
        UserError: A frame cannot be read.
    """
    shape = store.shape
    wanted = (shape.height, shape.width, 3)
    if pictures.shape[2:] != wanted or pictures.shape[0] != len(rows) or pictures.shape[1] > 2:
        raise ValueError(f"pictures of {pictures.shape} for {len(rows)} rows of {wanted}")
    rows = np.ascontiguousarray(rows, np.int64)
    kernel = _kernel()
    if kernel is None or not _read_natively(kernel, store, layers, rows, pictures):
        _read_slowly(store, layers, rows, pictures)
    return pictures


def _read_natively(
    kernel: Callable[..., int],
    store: FrameStore,
    layers: PathLayers | None,
    rows: np.ndarray,
    pictures: np.ndarray,
) -> bool:
    """Return whether all could be read; if not, the slow way tells what is wrong."""
    sound = pictures.dtype == np.uint8 and pictures.flags.c_contiguous and pictures.flags.writeable
    if not sound or not len(rows) or rows.min() < 0 or rows.max() >= len(store):
        return False
    beside = pictures.shape[1] - 1
    stride, pixels = (1 + beside) * store.shape.frame_bytes, store.shape.frame_bytes // 3
    file, offset = (-1, None) if layers is None else (layers.descriptor, layers.offset.ctypes.data)
    target = rows.ctypes.data, len(rows), pictures.ctypes.data, stride, pixels, beside
    return kernel(store.descriptor, file, offset, *target) < 0


def _read_slowly(
    store: FrameStore, layers: PathLayers | None, rows: np.ndarray, pictures: np.ndarray
) -> None:
    store.read_frames(rows, pictures[:, 0])
    if pictures.shape[1] == 2:
        pictures[:, 1] = 0
    if layers is not None:
        layers.paint(pictures[:, -1], rows)
