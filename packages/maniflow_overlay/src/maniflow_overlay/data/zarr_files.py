"""Zarr stores of others, in and out: RoboTwin 1.0's, and the layout of the notes.

    data/head_camera (N, 3, H, W) uint8       RoboTwin 1.0
    data/overlay_image (N, 3, H, W) float32   the notes, values 0 to 1 (0 to 255 is read as well)
    data/state, data/action (N, 14) float32
    meta/episode_ends (episodes,) int64

A chunk that is not there reads as zeros, which would be black pictures and still arms. The chunks
are therefore counted against what the shape asks for before anything is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from loom.errors import UserError
from loom.files import explained
from numcodecs import Blosc

from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.data.path_layers import PathLayers

PICTURES = ("head_camera", "overlay_image")
CHUNK = 100
# What zarr and its codecs raise for damaged content, depending on where the damage is.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True, eq=False)
class ZarrEpisodes:
    """A zarr store as a list of episodes.

    Attributes:
        path: The store.
        ends: (episodes,) int64, behind the last row of each.
        state: (N, vector) float32.
        action: (N, vector) float32.
    """

    path: Path
    ends: np.ndarray
    state: np.ndarray
    action: np.ndarray
    _pictures: Any

    def rows(self, number: int) -> slice:
        """Return the rows of an episode."""
        begin = int(self.ends[number - 1]) if number else 0
        return slice(begin, int(self.ends[number]))

    def pictures(self, number: int) -> Iterator[np.ndarray]:
        """Yield the pictures of an episode, (H, W, 3) uint8 RGB."""
        rows = self.rows(number)
        for begin in range(rows.start, rows.stop, CHUNK):
            try:
                block = self._pictures[begin : min(begin + CHUNK, rows.stop)]
            except _DAMAGE as error:
                raise UserError(
                    f"{self.path}: pictures from row {begin} on are damaged: {error}"
                ) from error
            yield from np.moveaxis(_to_bytes(block, self.path), 1, -1)


def _to_bytes(block: np.ndarray, path: Path) -> np.ndarray:
    """Return pictures of any range as uint8."""
    if block.dtype == np.uint8:
        return block
    if not np.isfinite(block).all() or block.min() < 0 or block.max() > 255:
        raise UserError(f"{path}: pictures outside of 0 to 255, or not finite")
    scale = 255 if block.max() <= 1 else 1
    return np.rint(block * scale).astype(np.uint8)


def read_zarr(path: Path) -> ZarrEpisodes:
    """Open a store of RoboTwin 1.0 or of the notes, whole or not at all.

    Raises:
        UserError: An array or a chunk is missing, lengths do not match, a value is not finite.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder", hint="give the folder NAME.zarr")
    try:
        root = zarr.open_group(str(path), mode="r")
        named = [name for name in PICTURES if f"data/{name}" in root]
        if not named:
            raise UserError(f"{path}: neither data/head_camera nor data/overlay_image is there")
        pictures = _array(root, f"data/{named[0]}", path)
        state = np.asarray(_array(root, "data/state", path)[:], np.float32)
        action = np.asarray(_array(root, "data/action", path)[:], np.float32)
        ends = np.asarray(_array(root, "meta/episode_ends", path)[:])
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    lengths = {named[0]: pictures.shape[0], "state": len(state), "action": len(action)}
    if len(set(lengths.values())) > 1 or pictures.ndim != 4 or pictures.shape[1] != 3:
        raise UserError(f"{path}: lengths or shapes do not match: {lengths}, {pictures.shape}")
    for name, values in (("state", state), ("action", action)):
        if values.ndim != 2 or values.shape != state.shape or not np.isfinite(values).all():
            raise UserError(f"{path}: data/{name} of shape {values.shape} or not finite")
    rising = ends.ndim == 1 and len(ends) and ends.dtype.kind in "iu" and ends[0] > 0
    if not rising or (np.diff(ends.astype(np.int64)) <= 0).any() or ends[-1] != len(state):
        raise UserError(f"{path}: meta/episode_ends does not rise to {len(state)} rows")
    return ZarrEpisodes(path, ends.astype(np.int64), state, action, pictures)


def _array(root: Any, name: str, path: Path) -> Any:
    """Return an array all of whose chunks are there."""
    if name not in root or not isinstance(root[name], zarr.Array):
        raise UserError(f"{path}: the array {name} is missing")
    array = root[name]
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name} is {array.dtype}, expected numbers")
    if array.nchunks_initialized < array.nchunks:
        raise UserError(
            f"{path}: {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks of "
            f"{name} are missing; they would read as zeros",
            hint="copy the store again; zarr 3 leaves out chunks that are all zero, unless told "
            "write_empty_chunks",
        )
    return array


def export_zarr(
    store: FrameStore, layers: PathLayers | None, path: Path, *, as_float: bool = True
) -> None:
    """Write a store in the notes' layout, with the paths drawn in where there are some.

    Args:
        store: With the frames.
        layers: Their paths, drawn over the pictures; None leaves them raw.
        path: Folder to make.
        as_float: float32 from 0 to 1 as in the notes, else uint8 at a quarter of the size.
    """
    if path.exists():
        raise UserError(f"{path} exists", hint="give another name, or remove it")
    side = (3, store.shape.height, store.shape.width)
    compressor = Blosc("zstd", 3, Blosc.SHUFFLE)
    rows = len(store)
    with explained(path):
        root = zarr.open_group(str(path), mode="w", zarr_format=2)
        pictures = _create(root, "data/overlay_image", (rows, *side), as_float, compressor)
        for begin in range(0, rows, CHUNK):
            numbers = np.arange(begin, min(begin + CHUNK, rows))
            frames = store.read_frames(numbers)
            if layers is not None:
                layers.paint(frames, numbers)
            block = np.moveaxis(frames, -1, 1)
            pictures[begin : begin + len(numbers)] = (
                block.astype(np.float32) / 255 if as_float else block
            )
        for name, values in (("state", store.state), ("action", store.action)):
            _create(root, f"data/{name}", values.shape, True, compressor)[:] = values
        ends = root.create_array(
            "meta/episode_ends",
            shape=store.ends.shape,
            chunks=store.ends.shape,
            dtype="i8",
            compressors=None,
            config={"write_empty_chunks": True},
        )
        ends[:] = store.ends


def _create(root: Any, name: str, shape: tuple[int, ...], as_float: bool, compressor: Any) -> Any:
    return root.create_array(
        name,
        shape=shape,
        chunks=(min(CHUNK, shape[0]), *shape[1:]),
        dtype="f4" if as_float else "u1",
        compressors=[compressor],
        config={"write_empty_chunks": True},
    )
