"""Stitched panoramas on disk, because decoding four PNG files costs ten times the stitching.

An entry's name is a hash of everything it depends on: panorama, depth format, largest range, and
path, size and time of each source file. So an entry is never stale: other settings or a touched
file give another name. Entries are written whole or not at all and carry a check sum; one that is
damaged all the same is refused by name, or made again and counted, as the user chose.

A training reads every view many times, and to name an entry nine files are asked for their time.
What was read therefore stays in memory, up to `memory_mb`.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loom.files import explained, write_atomic

from coopcyl.data.errors import DataError
from coopcyl.data.panoramas import PanoramaReader, StitchedFrame
from coopcyl.data.tree import AgentFrame
from coopcyl.geometry.rig import Camera, Rig
from coopcyl.geometry.view import View

FORMAT = 1
_MAGIC = b"coopcyl panorama\n"
_DIGEST = 32


@dataclass
class CacheCounts:
    """What a cache did so far.

    Attributes:
        hits: Entries that were read.
        misses: Views that were stitched and written.
        rebuilt: Damaged entries that were made again.
    """

    hits: int = 0
    misses: int = 0
    rebuilt: int = 0


class StitchedCache:
    """A reader that keeps what it stitched.

    Args:
        folder: Where the entries are; made if needed.
        reader: Reads what is not there yet.
        strict: Refuse a damaged entry instead of making it again.
        memory_mb: How much of what was read stays in memory, where changes of files go unnoticed.
    """

    def __init__(
        self, folder: Path, reader: PanoramaReader, *, strict: bool = True, memory_mb: int = 0
    ) -> None:
        self.folder = folder
        self.reader = reader
        self.strict = strict
        self.counts = CacheCounts()
        self._kept: dict[AgentFrame, StitchedFrame] = {}
        self._room = memory_mb * 1_000_000

    def read(self, frame: AgentFrame) -> View:
        """Return one vehicle's view, from memory or its entry where there is one."""
        stitched = self._kept.get(frame)
        if stitched is None:
            stitched = self._read(frame)
            size = stitched.rgb.nbytes + stitched.range_code.nbytes
            if size <= self._room:
                self._room -= size
                self._kept[frame] = stitched
        return self.reader.view(frame, stitched)

    def _read(self, frame: AgentFrame) -> StitchedFrame:
        path = self.path(frame)
        damaged = False
        if path.exists():
            try:
                stitched = _unpack(path, self.reader)
            except DataError:
                if self.strict:
                    raise
                damaged = True
            else:
                self.counts.hits += 1
                return stitched
        stitched = self.reader.stitch(frame)
        with explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _pack(stitched))
        self.counts.rebuilt += damaged
        self.counts.misses += not damaged
        return stitched

    def path(self, frame: AgentFrame) -> Path:
        """Return the entry's file.

        Raises:
            DataError: A source file is missing.
        """
        reader = self.reader
        sources = [frame.yaml, *map(frame.image, frame.cameras)]
        depths = {reader.depth.path(frame, camera) for camera in frame.cameras}
        sources += sorted(path for path in depths if path)
        settings = [
            FORMAT,
            vars(reader.panorama),
            reader.supersample,
            reader.depth.format,
            reader.max_range_m,
        ]
        state = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for source in sources:
            try:
                facts = source.stat()
            except FileNotFoundError as error:
                raise DataError(
                    f"{source}: the file is missing", hint="copy it again, or skip this frame"
                ) from error
            state.update(f"\n{source.absolute()} {facts.st_size} {facts.st_mtime_ns}".encode())
        name = state.hexdigest()
        return self.folder / name[:2] / f"{name}.pano"


def _pack(stitched: StitchedFrame) -> bytes:
    """Return an entry: magic, SHA-256 of the rest, header length, JSON header, arrays."""
    header = {
        "shape": stitched.range_code.shape,
        "pose": stitched.pose_world_from_rig.tolist(),
        "cameras": [
            {
                "name": camera.name,
                "width": camera.width,
                "height": camera.height,
                "intrinsic": camera.intrinsic.tolist(),
                "pose": camera.pose_rig_from_camera.tolist(),
            }
            for camera in stitched.rig.cameras
        ],
    }
    text = json.dumps(header).encode()
    arrays = stitched.rgb.tobytes() + stitched.range_code.astype("<u2").tobytes()
    content = struct.pack("<I", len(text)) + text + arrays
    return _MAGIC + hashlib.sha256(content).digest() + content


def _unpack(path: Path, reader: PanoramaReader) -> StitchedFrame:
    with explained(path):
        data = path.read_bytes()
    begin = len(_MAGIC) + _DIGEST
    content = memoryview(data)[begin:]
    digest = data[len(_MAGIC) : begin]
    if not data.startswith(_MAGIC) or hashlib.sha256(content).digest() != digest:
        raise DataError(
            f"{path}: this cache entry is damaged ({len(data)} bytes, its check sum is wrong)",
            hint="remove this file, it is then made again; `coopcyl cache` has --rebuild-damaged",
        )
    (length,) = struct.unpack_from("<I", content)
    header = json.loads(bytes(content[4 : 4 + length]))
    h, w = header["shape"]
    assert (h, w) == (reader.panorama.height, reader.panorama.width)
    arrays = content[4 + length :]
    cameras = tuple(
        Camera(
            each["name"],
            each["width"],
            each["height"],
            np.array(each["intrinsic"]),
            np.array(each["pose"]),
        )
        for each in header["cameras"]
    )
    return StitchedFrame(
        np.frombuffer(arrays, np.uint8, h * w * 3).reshape(h, w, 3),
        np.frombuffer(arrays, "<u2", h * w, h * w * 3).reshape(h, w),
        Rig(cameras),
        np.array(header["pose"]),
    )
