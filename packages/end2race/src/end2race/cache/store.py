"""The teacher cache: answers of the teacher, found by window, on disk as raw shards.

    cache.json           whose answers on which data, see `end2race.cache.info`
    shard-000000.bin     records, see `end2race.cache.shards`
    shard-000000.json    their keys and check sums; written last
    ...

One `append` is one shard, committed as a whole, so a killed export loses at most what it had not
appended. A window's `actions` and `gru_out` are its own record; `bev_vec` and `bev_feat` belong to
frames, and a frame that several windows share is stored with the first of them. Reading goes
through memory maps and copies only what is asked for.
"""

from __future__ import annotations

import fcntl
import os
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from loom.errors import UserError
from loom.files import explained

from end2race.cache.info import (
    FILE,
    SCOPES,
    CacheInfo,
    Expected,
    disagreements,
    read_info,
)
from end2race.cache.keys import Place, parse_key
from end2race.cache.shards import Records, Shard, remove_shard, shard_numbers, write_shard
from end2race.cache.shared_frames import new_frames

_OPEN_SHARDS = 512


class _Located(NamedTuple):
    """Where a window lies: its record, and its frames as runs of neighbouring records."""

    shard: Shard
    row: int
    runs: tuple[tuple[Shard, int, int], ...]


@dataclass(frozen=True)
class Coverage:
    """How much of what is wanted a cache holds."""

    wanted: int
    found: int

    @property
    def share(self) -> float:
        """Fraction found; 1 if nothing is wanted."""
        return self.found / self.wanted if self.wanted else 1.0

    def __str__(self) -> str:
        return f"{self.found} of {self.wanted} windows ({100 * self.share:.1f} %)"


class TeacherCache:
    """A cache opened for reading and appending; see `create` and `open`."""

    def __init__(self, directory: Path, info: CacheInfo, shards: Iterable[Shard]) -> None:
        """Index opened shards."""
        self.directory, self.info = Path(directory), info
        self._shards: list[Shard] = []
        self._windows: dict[str, tuple[Shard, int, Place]] = {}
        self._frames: dict[str, dict[int, tuple[Shard, int]]] = {}
        self._located: dict[str, _Located] = {}
        self._mapped: OrderedDict[int, Shard] = OrderedDict()
        self._per_window = [name for name in info.fields if SCOPES[name] == "window"]
        self._per_frame = [name for name in info.fields if SCOPES[name] == "frame"]
        for shard in shards:
            self._take(shard)

    @classmethod
    def create(cls, directory: Path, info: CacheInfo) -> TeacherCache:
        """Start an empty cache in a folder that holds none.

        Raises:
            UserError: There is a cache already, or the folder holds other files.
        """
        directory = Path(directory)
        with explained(directory):
            directory.mkdir(parents=True, exist_ok=True)
            # A creation that was killed leaves a temporary file, which `writing` clears away.
            if any(not path.match(f".{FILE}.*.tmp") for path in directory.iterdir()):
                what = "a teacher cache" if (directory / FILE).is_file() else "other files"
                raise UserError(
                    f"{directory} already holds {what}",
                    hint="go on with --resume, or give an empty folder as --cache-dir",
                )
        info.write(directory)
        return cls(directory, info, ())

    @classmethod
    def open(
        cls,
        directory: Path,
        expect: CacheInfo | Expected | None = None,
        *,
        allow_stale: bool = False,
    ) -> TeacherCache:
        """Open a cache.

        Args:
            directory: Its folder.
            expect: What it must be; None asks for nothing.
            allow_stale: Take it although it disagrees. Fields that are not there, or have another
                shape, are refused all the same.

        Raises:
            UserError: It is of another teacher, data set or window length, or damaged.
        """
        directory = Path(directory)
        info = read_info(directory)
        complaints = disagreements(info, expect) if expect is not None else []
        if complaints and not allow_stale:
            raise UserError(
                f"{directory} is stale: {'; '.join(complaints)}",
                hint="export it again into another --cache-dir; `train-student --allow-stale` "
                "takes it as it is",
            )
        if expect is not None:
            unusable = disagreements(info, Expected(seq_len=expect.seq_len, fields=expect.fields))
            if unusable:
                raise UserError(
                    f"{directory} cannot be used, stale or not: {'; '.join(unusable)}",
                    hint="export it again with the same --seq-len and, for bev_feat, with "
                    "--save-bev-feat",
                )
        return cls(
            directory, info, (Shard.open(directory, n, info) for n in shard_numbers(directory))
        )

    def __len__(self) -> int:
        return len(self._windows)

    def __contains__(self, key: str) -> bool:
        found = self._windows.get(key)
        return found is not None and not self._absent_frames(found[2])

    @property
    def keys(self) -> tuple[str, ...]:
        """Windows in the order in which they were appended."""
        return tuple(self._windows)

    @property
    def frame_count(self) -> int:
        """Frames that are stored, each once."""
        return sum(map(len, self._frames.values()))

    def frames_of(self, segment: str) -> int:
        """Return how many frames of a segment such as `train/segment_0001` are stored."""
        return len(self._frames.get(segment, ()))

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return sum(shard.size for shard in self._shards)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return those windows that are not there with all their frames, in the given order."""
        return [key for key in keys if key not in self]

    def coverage(self, keys: Sequence[str]) -> Coverage:
        """Count how many of these windows are there."""
        return Coverage(len(keys), len(keys) - len(self.missing(keys)))

    def read(self, keys: Sequence[str], fields: Sequence[str]) -> dict[str, np.ndarray]:
        """Read windows in any order.

        Args:
            keys: n windows.
            fields: Names among `info.fields`.

        Returns:
            For each field a new float32 array: `actions` (n, T, A), `gru_out` (n, T, H), `bev_vec`
            (n, T, D), `bev_feat` (n, T, C, H, W).

        Raises:
            UserError: A window or field is not there, or a record is damaged.
        """
        windows, frames = [], []
        for name in fields:
            shape = self._shape_of_one(name)
            target = np.empty((len(keys), *shape), np.float32)
            (windows if SCOPES[name] == "window" else frames).append((name, target))
        for position, key in enumerate(keys):
            place = self._located.get(key) or self._locate(key)
            columns = self._columns(place.shard)
            for name, target in windows:
                target[position] = columns[name][place.row]
            if frames:
                step = 0
                for shard, first, count in place.runs:
                    columns = self._columns(shard)
                    for name, target in frames:
                        target[position, step : step + count] = columns[name][first : first + count]
                    step += count
        return dict((*windows, *frames))

    def append(self, keys: Sequence[str], values: Mapping[str, np.ndarray]) -> int:
        """Commit windows as one shard; what is there already is not written again.

        Args:
            keys: n windows, none twice.
            values: For each field of the cache n windows with all their T frames: `actions`
                (n, T, A), `gru_out` (n, T, H), `bev_vec` (n, T, D), `bev_feat` (n, T, C, H, W).

        Returns:
            How many windows were new.

        Raises:
            UserError: A key is malformed, a value not finite, or a frame's features differ from
                one window to the next, so that they cannot be stored per frame.
            ValueError: The arrays do not fit the cache.
        """
        self._check_shapes(keys, values)
        new_windows = [row for row, key in enumerate(keys) if key not in self._windows]
        windows = Records(
            [keys[row] for row in new_windows],
            {name: values[name][new_windows] for name in self._per_window},
        )
        frames = new_frames([parse_key(key) for key in keys], values, self.info, self._frames)
        if windows.keys or frames.keys:
            self._write(self.next_number, windows, frames)
        return len(new_windows)

    def commit(
        self,
        number: int,
        keys: Sequence[str],
        values: Mapping[str, np.ndarray],
        earlier: Iterable[str],
    ) -> None:
        """Commit windows as the shard of a plan whose shards are written in any order.

        Args:
            number: Of the shard, which is not there yet.
            keys: n windows, none twice and none of them there.
            values: As for `append`.
            earlier: The windows of the plan's earlier shards, there or not; the frames that they
                show are left to them, so that the bytes are those of an export in order.

        Raises:
            UserError: As for `append`.
        """
        self._check_shapes(keys, values)
        stored = {segment: set(frames) for segment, frames in self._frames.items()}
        for segment, start in map(parse_key, earlier):
            stored.setdefault(segment, set()).update(range(start, start + self.info.seq_len))
        windows = Records(keys, {name: values[name] for name in self._per_window})
        frames = new_frames([parse_key(key) for key in keys], values, self.info, stored)
        self._write(number, windows, frames)

    @property
    def next_number(self) -> int:
        """Number that a new shard gets."""
        return max((shard.number for shard in self._shards), default=-1) + 1

    def windows_of(self, number: int) -> tuple[str, ...] | None:
        """Return the windows of a shard, or None if there is no such shard."""
        return next((shard.windows for shard in self._shards if shard.number == number), None)

    def holds_any(self, keys: Iterable[str]) -> bool:
        """Tell whether a record of any of these windows is there, with its frames or without."""
        return any(key in self._windows for key in keys)

    def _write(self, number: int, windows: Records, frames: Records) -> None:
        write_shard(self.directory, number, self.info, windows, frames)
        self._take(Shard.open(self.directory, number, self.info))

    @contextmanager
    def writing(self, *, together: bool = False) -> Generator[None]:
        """Hold the cache for writing, and take up what was committed since it was opened.

        Args:
            together: Others may hold it so as well: the jobs of one plan, each with shards of its
                own. Alone, a writer also clears away what a killed one has left.

        Raises:
            UserError: Another process writes into it.
        """
        with explained(self.directory):
            descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            try:
                fcntl.flock(
                    descriptor, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | fcntl.LOCK_NB
                )
            except OSError as error:
                raise UserError(
                    f"{self.directory}: another process writes into this cache",
                    hint="wait until it has ended",
                ) from error
            if not together:
                self._sweep()
            known = {shard.number for shard in self._shards}
            for number in shard_numbers(self.directory):
                if number not in known:  # committed by another process since this one looked
                    self._take(Shard.open(self.directory, number, self.info))
            yield
        finally:
            os.close(descriptor)

    def add_split(self, split: str, fingerprint: str) -> None:
        """Note the data of a split before its windows are appended.

        Raises:
            UserError: The split was exported from other data.
        """
        known = self.info.data.get(split, fingerprint)
        if known != fingerprint:
            raise UserError(
                f"{self.directory} holds {split} of other data: {known[:12]}, not "
                f"{fingerprint[:12]}",
                hint="give another --cache-dir",
            )
        if split not in self.info.data:
            info = replace(self.info, data={**self.info.data, split: fingerprint})
            info.write(self.directory)
            self.info = info

    def damages(self) -> Generator[tuple[int, str]]:
        """Read every shard and yield the number of each damaged one with a complaint."""
        for shard in self._shards:
            if complaint := shard.damage():
                yield shard.number, complaint

    def _take(self, shard: Shard) -> None:
        """Index a shard."""
        for row, (key, place) in enumerate(zip(shard.windows, shard.window_places, strict=True)):
            if key in self._windows:
                raise UserError(f"{self.directory}: {key} stands in two shards")
            self._windows[key] = (shard, row, place)
        for row, place in enumerate(shard.frame_places):
            self._frames.setdefault(place.segment, {})[place.frame] = (shard, row)
        self._shards.append(shard)

    def _locate(self, key: str) -> _Located:
        """Find a window's records and compare them with their check sums."""
        runs: list[tuple[Shard, int, int]] = []
        try:
            shard, row, (segment, start) = self._windows[key]
            if self._per_frame:
                stored = self._frames[segment]
                for frame in range(start, start + self.info.seq_len):
                    _extend(runs, *stored[frame])
        except KeyError:
            raise UserError(
                f"{self.directory} has nothing on {key}",
                hint="export this split with the same --seq-len and a --stride that reaches it",
            ) from None
        self._columns(shard)
        shard.check("window", row)
        for holder, first, count in runs:
            self._columns(holder)
            holder.check("frame", first, count)
        located = self._located[key] = _Located(shard, row, tuple(runs))
        return located

    def _columns(self, shard: Shard) -> dict[str, np.ndarray]:
        """Return a shard's fields, mapped; the shard that was mapped first makes room."""
        if shard.number not in self._mapped:
            self._mapped[shard.number] = shard
            if len(self._mapped) > _OPEN_SHARDS:
                self._mapped.popitem(last=False)[1].release()
        return shard.columns

    def _shape_of_one(self, name: str) -> tuple[int, ...]:
        """Return the shape in which a window's values of a field are read."""
        shape = self.info.fields.get(name)
        if shape is None:
            raise UserError(
                f"{self.directory} holds no {name}, only {', '.join(self.info.fields)}",
                hint="bev_feat is exported with --save-bev-feat",
            )
        return shape if SCOPES[name] == "window" else (self.info.seq_len, *shape)

    def _absent_frames(self, place: Place) -> bool:
        """Tell whether a frame of a window is not there."""
        if not self._per_frame:
            return False
        stored = self._frames.get(place.segment, {})
        return any(place.frame + step not in stored for step in range(self.info.seq_len))

    def _check_shapes(self, keys: Sequence[str], values: Mapping[str, np.ndarray]) -> None:
        if len(set(keys)) != len(keys):
            raise ValueError("a key stands twice")
        if set(values) != set(self.info.fields):
            raise ValueError(f"fields {sorted(values)}, the cache has {sorted(self.info.fields)}")
        for name in self.info.fields:
            expected = (len(keys), *self._shape_of_one(name))
            if values[name].shape != expected:
                raise ValueError(f"{name} {values[name].shape}, expected {expected}")

    def _sweep(self) -> None:
        """Remove temporary files and records without index."""
        for path in self.directory.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                path.unlink()
        committed = set(shard_numbers(self.directory))
        for path in self.directory.glob("shard-??????.bin"):
            if path.stem[6:].isdigit() and int(path.stem[6:]) not in committed:
                path.unlink()


def _extend(runs: list[tuple[Shard, int, int]], shard: Shard, row: int) -> None:
    """Add a record to runs of neighbouring records."""
    if runs:
        holder, first, count = runs[-1]
        if holder is shard and first + count == row:
            runs[-1] = (shard, first, count + 1)
            return
    runs.append((shard, row, 1))


def repair(directory: Path) -> list[str]:
    """Remove every damaged shard of a cache and return what was wrong with each.

    Raises:
        UserError: `cache.json` itself cannot be read.
    """
    directory = Path(directory)
    info = read_info(directory)
    complaints = []
    for number in shard_numbers(directory):
        try:
            complaint = Shard.open(directory, number, info).damage()
        except UserError as error:
            complaint = error.message
        if complaint:
            complaints.append(complaint)
            remove_shard(directory, number)
    return complaints
