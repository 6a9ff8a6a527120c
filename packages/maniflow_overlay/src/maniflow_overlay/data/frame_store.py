"""The frame store: every frame once, as raw bytes, found by its row number.

    frames.u8       (rows, H, W, 3) uint8 RGB, end to end
    state.f32       (rows, 14) little-endian float32
    action.f32      (rows, 14)
    manifest.json   shape, episodes with their sources and check sums; written last

The notes' layout keeps a horizon of 16 float32 pictures per sample, and the episode's first picture
16 times; a policy looks at two frames and the first one. Here a sample reads those three, by one
`pread` each: what is read stays in the page cache and does not count as memory of this process,
no file position is shared, so worker processes of any start method can read, and nothing has to be
decoded. The first frame of an episode is a row number, not a copy.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loom.errors import UserError
from loom.files import explained, read_json, write_json

FORMAT = "maniflow_overlay frame store"
VERSION = 1
FRAMES, STATE, ACTION, MANIFEST = "frames.u8", "state.f32", "action.f32", "manifest.json"
_BLOCK = 2**22


@dataclass(frozen=True)
class StoredEpisode:
    """An episode of a store.

    Attributes:
        task: Name.
        number: Of the episode within its task.
        rows: How many frames.
        source: File name it came from.
        source_sha256: Of that file.
        frames_sha256: Of its part of `frames.u8`.
        state_sha256: Of its part of `state.f32`.
        action_sha256: Of its part of `action.f32`.
        instructions: Texts that describe the task.
    """

    task: str
    number: int
    rows: int
    source: str
    source_sha256: str
    frames_sha256: str
    state_sha256: str
    action_sha256: str
    instructions: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoreShape:
    """Sizes that every frame of a store has."""

    width: int
    height: int
    vector: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.width * self.height * 3


def write_manifest(folder: Path, shape: StoreShape, episodes: list[StoredEpisode]) -> None:
    """Write the file that makes a folder a store."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(shape),
        "rows": sum(episode.rows for episode in episodes),
        "episodes": [asdict(episode) for episode in episodes],
    }
    write_json(folder / MANIFEST, manifest)


class FrameStore:
    """A store, opened for reading. It can be pickled: the copy opens its own files."""

    def __init__(self, folder: Path) -> None:
        """Open a store.

        Raises:
            UserError: There is none, it is of another version, or a file has not the size that the
                manifest tells.
        """
        self.folder = Path(folder)
        self.shape, self.episodes = _read_manifest(self.folder)
        self.ends = np.cumsum([episode.rows for episode in self.episodes], dtype=np.int64)
        self.tasks = sorted({episode.task for episode in self.episodes})
        numbers = [self.tasks.index(episode.task) for episode in self.episodes]
        self.task_of_episode = np.array(numbers, dtype=np.int64)
        rows = int(self.ends[-1])
        vector_bytes = self.shape.vector * 4
        sizes = {FRAMES: self.shape.frame_bytes, STATE: vector_bytes, ACTION: vector_bytes}
        for name, size in sizes.items():
            with explained(self.folder / name):
                found = (self.folder / name).stat().st_size
            if found != rows * size:
                raise UserError(
                    f"{self.folder / name} has {found} bytes, {rows} rows need {rows * size}",
                    hint="the store is damaged: convert the episodes again",
                )
        self.state = self._vectors(STATE)
        self.action = self._vectors(ACTION)
        with explained(self.folder / FRAMES):
            self.descriptor = os.open(self.folder / FRAMES, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __reduce__(self) -> tuple[type[FrameStore], tuple[Path]]:
        return FrameStore, (self.folder,)

    @property
    def begins(self) -> np.ndarray:
        """Row number of each episode's first frame, (episodes,) int64."""
        return np.concatenate([[0], self.ends[:-1]])

    def episode_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the episode that each row belongs to."""
        return np.searchsorted(self.ends, rows, side="right")

    def read_frames(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Read frames by row number.

        Args:
            rows: (n,) integers in [0, len).
            out: (n, H, W, 3) uint8, each frame contiguous; made if None.

        Returns:
            (n, H, W, 3) uint8 RGB.
        """
        shape = (len(rows), self.shape.height, self.shape.width, 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        whole = out.shape == shape and out.dtype == np.uint8
        if not whole or not out[:1].flags.c_contiguous:
            raise ValueError(f"frames of {shape} cannot be read into {out.dtype} {out.shape}")
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a store of {len(self)}")
        size = self.shape.frame_bytes
        for frame, row in zip(out, np.asarray(rows).tolist(), strict=True):
            if os.preadv(self.descriptor, [frame.reshape(-1).data], row * size) != size:
                raise UserError(f"{self.folder / FRAMES}: row {row} cannot be read whole")
        return out

    def _vectors(self, name: str) -> np.ndarray:
        values = np.fromfile(self.folder / name, "<f4").reshape(-1, self.shape.vector)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise UserError(f"{self.folder / name}: row {row} is not finite")
        return values

    def verify(self) -> list[str]:
        """Read everything and return what differs from its check sum; empty is good."""
        complaints = []
        vector_bytes = self.shape.vector * 4
        sizes = {FRAMES: self.shape.frame_bytes, STATE: vector_bytes, ACTION: vector_bytes}
        for name, size in sizes.items():
            with explained(self.folder / name), (self.folder / name).open("rb") as stream:
                for episode in self.episodes:
                    expected = getattr(episode, f"{name.partition('.')[0]}_sha256")
                    if _part_sha256(stream, episode.rows * size) != expected:
                        place = f"episode {episode.number} of {episode.task}"
                        complaints.append(f"{self.folder / name}: {place} is damaged")
        return complaints


def _part_sha256(stream: Any, count: int) -> str:
    """Return the SHA-256 of the next `count` bytes."""
    digest = hashlib.sha256()
    while count > 0:
        block = stream.read(min(count, _BLOCK))
        if not block:
            break
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> tuple[StoreShape, list[StoredEpisode]]:
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / FRAMES).is_file()
        raise UserError(
            f"{folder} is no frame store"
            + (": its conversion was not finished" if unfinished else ""),
            hint="run `data convert` again with the same arguments"
            if unfinished
            else "make one: maniflow-overlay data convert SOURCE STORE",
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a frame store")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: version {manifest.get('version')!r}, this program reads {VERSION}",
            hint="convert the episodes again",
        )
    try:
        shape = StoreShape(*(_positive(manifest[key]) for key in ("width", "height", "vector")))
        episodes = [read_stored_episode(fields) for fields in manifest["episodes"]]
        if not episodes or sum(episode.rows for episode in episodes) != manifest["rows"]:
            raise ValueError("the rows of the episodes do not add up")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged manifest ({error!r})", hint="convert the episodes again"
        ) from error
    return shape, episodes


def _positive(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"{value!r} is no size")
    return value


def read_stored_episode(fields: dict[str, Any]) -> StoredEpisode:
    """Make an episode of its JSON form.

    Raises:
        ValueError, KeyError, TypeError: It is of another form.
    """
    given: dict[str, Any] = {**fields, "instructions": tuple(fields["instructions"])}
    episode = StoredEpisode(**given)
    _positive(episode.rows)
    texts = [value for key, value in given.items() if key not in ("number", "rows", "instructions")]
    if not all(isinstance(text, str) for text in (*texts, *episode.instructions)):
        raise TypeError("a name or check sum is no text")
    if type(episode.number) is not int:
        raise TypeError(f"episode {episode.number!r}")
    return episode
