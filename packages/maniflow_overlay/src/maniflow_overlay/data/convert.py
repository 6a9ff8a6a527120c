"""Convert episodes to a frame store, resumable: what was converted is not converted again.

Episodes are appended to the store's files one after the other; a line of `conversion.jsonl` says
that one is complete. After a kill the files are cut back to the last complete episode. The store
comes out the same, to the byte, however often the conversion was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from filelock import FileLock, Timeout
from loom.errors import UserError
from loom.files import append_line, explained, sha256_file

from maniflow_overlay.data.frame_store import (
    ACTION,
    FRAMES,
    MANIFEST,
    STATE,
    StoredEpisode,
    StoreShape,
    read_stored_episode,
    write_manifest,
)

JOURNAL = "conversion.jsonl"


@dataclass(frozen=True, eq=False)
class Rows:
    """What a store keeps of one episode.

    Attributes:
        task: Name.
        number: Of the episode.
        source: File name.
        source_sha256: Of that file.
        pictures: Yields (h, w, 3) uint8 RGB pictures of any size, one per row.
        state: (rows, vector) float32.
        action: (rows, vector) float32.
        instructions: Texts that describe the task.
    """

    task: str
    number: int
    source: str
    source_sha256: str
    pictures: Iterator[np.ndarray]
    state: np.ndarray
    action: np.ndarray
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """An episode that is to be converted: its name, its file's check sum, and how to read it."""

    task: str
    number: int
    path: Path
    read: Callable[[], Rows]


def convert(
    sources: Sequence[Source],
    folder: Path,
    shape: StoreShape,
    *,
    about: dict[str, Any],
    done: Callable[[int], None] = lambda episodes: None,
) -> int:
    """Write a store, or go on with one that was interrupted.

    Args:
        sources: The episodes in order.
        folder: Of the store.
        shape: Pictures are scaled to it.
        about: Further settings that the result depends on; a different value on resume is refused.
        done: Is told after each episode how many are complete.

    Returns:
        How many episodes were converted now.

    Raises:
        UserError: An episode cannot be read, the disk is full, or the folder holds something else.
    """
    settings = {**asdict(shape), **about}
    with _only_writer(folder):
        require_unfinished(folder)
        episodes = _complete(folder, sources, settings)
        _cut_back(folder, shape, episodes)
        if episodes:
            done(len(episodes))
        before = len(episodes)
        for source in sources[before:]:
            episode = _append(folder, shape, source.read())
            append_line(folder / JOURNAL, json.dumps(asdict(episode)), sync=True)
            episodes.append(episode)
            done(len(episodes))
        write_manifest(folder, shape, episodes)
        (folder / JOURNAL).unlink()
    return len(episodes) - before


def require_unfinished(folder: Path) -> None:
    """Refuse to convert into a store that is whole.

    Raises:
        UserError: It is.
    """
    if (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is a finished store", hint="give another folder")


@contextmanager
def _only_writer(folder: Path) -> Generator[None]:
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process converts into it") from None
    try:
        yield
    finally:
        lock.release()


def _complete(
    folder: Path, sources: Sequence[Source], settings: dict[str, Any]
) -> list[StoredEpisode]:
    """Read which episodes are complete, and make sure that they are those of `sources`."""
    journal = folder / JOURNAL
    header = json.dumps({"settings": settings}, sort_keys=True)
    if not journal.is_file():
        foreign = [path.name for path in folder.iterdir() if path.name != ".lock"]
        if foreign:
            raise UserError(
                f"{folder} is not empty: {', '.join(sorted(foreign)[:3])}",
                hint="give a new folder",
            )
        append_line(journal, header, sync=True)
        return []
    lines = _whole_lines(journal)
    if not lines:
        append_line(journal, header, sync=True)
        return []
    if lines[0].decode(errors="replace") != header:
        raise UserError(
            f"{folder} was begun with other settings: {lines[0].decode(errors='replace')[:300]}",
            hint=f"now {header}; give a new folder, or the settings of before",
        )
    episodes = []
    for number, line in enumerate(lines[1:], 2):
        try:
            episodes.append(read_stored_episode(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{journal}:{number}: damaged line ({error!r})", hint="remove the folder"
            ) from error
    names = [(episode.task, episode.number) for episode in episodes]
    if names != [(source.task, source.number) for source in sources[: len(names)]]:
        raise UserError(
            f"{folder} was begun with other episodes", hint="give all of them, or a new folder"
        )
    for episode, source in zip(episodes, sources, strict=False):
        if sha256_file(source.path) != episode.source_sha256:
            raise UserError(
                f"{source.path} has changed since it was converted", hint="remove the folder"
            )
    return episodes


def _whole_lines(journal: Path) -> list[bytes]:
    """Return the lines of the journal; remove the part of one that a killed process left."""
    with explained(journal):
        content = journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(journal, len(whole))
    return whole.split(b"\n")[:-1]


def _cut_back(folder: Path, shape: StoreShape, episodes: list[StoredEpisode]) -> None:
    """Remove what follows the last complete episode."""
    rows = sum(episode.rows for episode in episodes)
    vector_bytes = shape.vector * 4
    sizes = {FRAMES: shape.frame_bytes, STATE: vector_bytes, ACTION: vector_bytes}
    for name, size in sizes.items():
        with explained(folder / name):
            (folder / name).touch()
            found = (folder / name).stat().st_size
            if found < rows * size:
                raise UserError(
                    f"{folder / name} has {found} bytes, {rows * size} were written",
                    hint="remove the folder",
                )
            os.truncate(folder / name, rows * size)


def _append(folder: Path, shape: StoreShape, rows: Rows) -> StoredEpisode:
    """Append an episode to the store's files and force it to the disk."""
    expected = (len(rows.state), shape.vector)
    if rows.state.shape != expected or rows.action.shape != expected or not len(rows.state):
        raise UserError(
            f"{rows.source}: states {rows.state.shape} and actions {rows.action.shape}, "
            f"expected (rows, {shape.vector}) both"
        )
    digest = hashlib.sha256()
    count = 0
    with explained(folder / FRAMES), (folder / FRAMES).open("ab") as stream:
        for picture in rows.pictures:
            frame = scaled(picture, shape.width, shape.height)
            digest.update(frame.data)
            stream.write(frame.data)
            count += 1
        stream.flush()
        os.fsync(stream.fileno())
    if count != len(rows.state):
        raise UserError(f"{rows.source}: {count} pictures and {len(rows.state)} states")
    return StoredEpisode(
        rows.task,
        rows.number,
        count,
        rows.source,
        rows.source_sha256,
        digest.hexdigest(),
        _append_vectors(folder / STATE, rows.state),
        _append_vectors(folder / ACTION, rows.action),
        rows.instructions,
    )


def _append_vectors(path: Path, values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0].tolist()
        raise UserError(f"{path.name}: row {row}, joint {column} is not finite")
    content = values.astype("<f4").tobytes()
    with explained(path), path.open("ab") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(content).hexdigest()


def scaled(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return a contiguous picture of this size, scaled bilinearly as the notes' converter does."""
    if picture.shape[:2] == (height, width):
        return np.ascontiguousarray(picture)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
