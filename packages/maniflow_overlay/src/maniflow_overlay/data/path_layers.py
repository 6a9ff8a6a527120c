"""The drawn paths of a frame store, apart from its frames: one sparse layer per row.

    paths/layers.bin     per row: n pixel numbers (uint32), then n RGB values (uint8)
    paths/offset.i64     (rows + 1,) where each row's part begins
    paths/status.json    version, size, where the paths come from, check sums, counts by status

One store therefore serves every way of training: without paths, on the first picture, on the
current one, over the picture or beside it. A row without a usable path has an empty layer.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from loom.errors import UserError
from loom.files import explained, read_json, sha256_file, write_atomic, write_json

from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.gripper_path import GripperPath
from maniflow_overlay.overlay.layers import SparseLayer, scaled_down

VERSION = 1
FOLDER, LAYERS, OFFSET, STATUS = "paths", "layers.bin", "offset.i64", "status.json"
_PIXEL_BYTES = 7


def write_layers(
    store: FrameStore,
    paths: Sequence[GripperPath | None],
    statuses: Sequence[str],
    source: str,
    *,
    drawn_at: tuple[int, int] | None = None,
) -> dict[str, int]:
    """Draw one path per row and write the layers.

    Args:
        store: Gets them.
        paths: One per row, None where there is none.
        statuses: One per row, for the counts.
        source: Where the paths come from, kept as text.
        drawn_at: Width and height at which they are drawn, before they are scaled to the store's
            size; None draws them at that size.

    Returns:
        Rows by status.
    """
    if len(paths) != len(store):
        raise ValueError(f"{len(paths)} paths for {len(store)} rows")
    draw_layers(store, paths, _cleared(store), drawn_at=drawn_at)
    return _complete(store, statuses, source, drawn_at)


def draw_layers(
    store: FrameStore,
    paths: Sequence[GripperPath | None],
    folder: Path,
    *,
    drawn_at: tuple[int, int] | None = None,
) -> None:
    """Draw the paths of successive rows of a store into `layers.bin` and `offset.i64`.

    Args:
        store: Its size is drawn for.
        paths: One per row, None where there is none.
        folder: Gets the files, the offsets last.
        drawn_at: As for `write_layers`.
    """
    size = drawn_at or (store.shape.width, store.shape.height)
    last: tuple[GripperPath | None, bytes] = (None, b"")
    lengths = []
    with _whole(folder / LAYERS) as stream:
        for path in paths:
            if path != last[0]:  # held paths are drawn once
                last = (path, _packed(path, store, size))
            stream.write(last[1])
            lengths.append(len(last[1]))
    _write_offsets(folder, lengths)


def join_layers(
    store: FrameStore,
    parts: Sequence[Path],
    statuses: Sequence[str],
    source: str,
    *,
    drawn_at: tuple[int, int] | None = None,
) -> dict[str, int]:
    """Make the layers of a store of what `draw_layers` wrote for all of its rows, part by part.

    Raises:
        UserError: A part is damaged, or they are not all of the rows.
    """
    folder = _cleared(store)
    lengths: list[int] = []
    with _whole(folder / LAYERS) as stream:
        for part in parts:
            with explained(part):
                offset = np.fromfile(part / OFFSET, "<i8")
                content = (part / LAYERS).read_bytes()
            if len(offset) == 0 or offset[-1] != len(content):
                raise UserError(f"{part} is damaged", hint=f"remove {part.parent}")
            stream.write(content)
            lengths += np.diff(offset).tolist()
    if len(lengths) != len(store):
        raise UserError(
            f"{len(lengths)} rows in the parts of {store.folder}, it has {len(store)}",
            hint=f"remove {parts[0].parent}",
        )
    _write_offsets(folder, lengths)
    return _complete(store, statuses, source, drawn_at)


def _cleared(store: FrameStore) -> Path:
    """Return the folder of the layers; without a status there are none."""
    folder = store.folder / FOLDER
    with explained(folder):
        folder.mkdir(exist_ok=True)
        (folder / STATUS).unlink(missing_ok=True)
    return folder


@contextmanager
def _whole(path: Path) -> Generator[BinaryIO]:
    """Write a large file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with explained(temporary), temporary.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    with explained(path):
        temporary.replace(path)


def _write_offsets(folder: Path, lengths: Sequence[int]) -> None:
    offset = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    write_atomic(folder / OFFSET, offset.astype("<i8").tobytes())


def _complete(
    store: FrameStore,
    statuses: Sequence[str],
    source: str,
    drawn_at: tuple[int, int] | None,
) -> dict[str, int]:
    """Write the status, which makes the files the layers of a store; return rows by status."""
    if len(statuses) != len(store):
        raise ValueError(f"{len(statuses)} statuses for {len(store)} rows")
    folder = store.folder / FOLDER
    counts = dict(sorted(Counter(statuses).items()))
    status = {
        "version": VERSION,
        "width": store.shape.width,
        "height": store.shape.height,
        "source": source,
        "drawn_at": list(drawn_at or (store.shape.width, store.shape.height)),
        "rows": counts,
        "layers_sha256": sha256_file(folder / LAYERS),
        "offset_sha256": sha256_file(folder / OFFSET),
    }
    write_json(folder / STATUS, status)
    return counts


def _packed(path: GripperPath | None, store: FrameStore, size: tuple[int, int]) -> bytes:
    if path is None:
        return b""
    layer = scaled_down(path, size, store.shape.width, store.shape.height)
    return layer.index.astype("<u4").tobytes() + layer.value.tobytes()


class PathLayers:
    """The layers of a store, opened for reading; can be pickled like the store."""

    def __init__(self, store: FrameStore) -> None:
        """Open the layers.

        Raises:
            UserError: The store has none, or they are damaged or of another size.
        """
        self._store = store
        self.folder = store.folder / FOLDER
        status = _read_status(self.folder, store)
        self.counts: dict[str, int] = status["rows"]
        self.offset = np.fromfile(self.folder / OFFSET, "<i8")
        size = (self.folder / LAYERS).stat().st_size
        steps = np.diff(self.offset)
        sound = len(self.offset) == len(store) + 1 and self.offset[0] == 0
        if (
            not sound
            or self.offset[-1] != size
            or (steps < 0).any()
            or (steps % _PIXEL_BYTES).any()
        ):
            raise UserError(f"{self.folder} is damaged", hint="run `data attach-paths` again")
        self.descriptor = os.open(self.folder / LAYERS, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)

    def __reduce__(self) -> tuple[type[PathLayers], tuple[FrameStore]]:
        return PathLayers, (self._store,)

    def read(self, row: int) -> SparseLayer:
        """Read the layer of a row.

        Raises:
            UserError: It is damaged.
        """
        begin, end = self.offset[row : row + 2].tolist()
        content = os.pread(self.descriptor, end - begin, begin)
        count = (end - begin) // _PIXEL_BYTES
        shape = self._store.shape
        whole = len(content) == end - begin
        index = np.frombuffer(content, "<u4", count if whole else 0)
        if not whole or (count and int(index.max()) >= shape.width * shape.height):
            raise UserError(
                f"{self.folder / LAYERS}: the path of row {row} is damaged",
                hint="run `data attach-paths` again",
            )
        value = np.frombuffer(content, np.uint8, offset=4 * count).reshape(count, 3)
        return SparseLayer(shape.width, shape.height, index, value)

    def paint(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Draw each row's path into its image.

        Args:
            images: (n, H, W, 3) uint8 RGB, each contiguous; changed in place and returned.
            rows: (n,) row numbers.
        """
        for image, row in zip(images, np.asarray(rows).tolist(), strict=True):
            self.read(row).apply(image)
        return images

    def verify(self) -> list[str]:
        """Return what differs from its check sum; empty is good."""
        status = read_json(self.folder / STATUS)
        named = {LAYERS: status["layers_sha256"], OFFSET: status["offset_sha256"]}
        return [
            f"{self.folder / name} is damaged"
            for name, digest in named.items()
            if sha256_file(self.folder / name) != digest
        ]


def _read_status(folder: Path, store: FrameStore) -> dict[str, Any]:
    path = folder / STATUS
    if not path.is_file():
        raise UserError(
            f"{store.folder} has no paths",
            hint="add them: maniflow-overlay data attach-paths STORE PATHS.jsonl",
        )
    status = read_json(path)
    needed = {"version", "width", "height", "rows", "layers_sha256", "offset_sha256"}
    if not isinstance(status, dict) or not needed <= status.keys():
        raise UserError(f"{path} is damaged", hint="run `data attach-paths` again")
    if status["version"] != VERSION:
        raise UserError(
            f"{path}: version {status['version']!r}, this program reads {VERSION}",
            hint="run `data attach-paths` again",
        )
    if (status["width"], status["height"]) != (store.shape.width, store.shape.height):
        raise UserError(f"{path}: drawn for another size", hint="run `data attach-paths` again")
    return status
