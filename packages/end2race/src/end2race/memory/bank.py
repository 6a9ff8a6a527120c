"""The memory bank: situations by descriptor, and what the teacher did in each.

A bank is an index into a teacher cache. It holds the descriptors' unit vectors and the windows they
belong to; actions, vectors and recurrent states stay in the cache. On disk:

    memory.json     kind, cache (path and teacher), windows, mean, scale, settings
    vectors.npy     float32 (n, D), unit vectors in the order of segments and starts

Neighbours in time are nearly the same situation, so a window never recalls windows of its own
segment that begin within `exclude_frames` of it: in training it would otherwise recall itself.

How much the recalled actions can be trusted follows from their agreement: confidence is
1 / (1 + v / v0), v being the weighted variance of the neighbours' wheel angles and v0 the median of
v over the bank itself.
"""

from __future__ import annotations

import hashlib
import io
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loom.errors import UserError
from loom.files import explained, read_json, write_atomic, write_json

from end2race.cache.keys import Place, parse_key
from end2race.cache.store import TeacherCache
from end2race.memory.descriptors import Kind, Space, fit_space
from end2race.memory.search import Backend, Index, new_index

FORMAT, VERSION = "end2race memory bank", 1
FILE, VECTORS = "memory.json", "vectors.npy"
K, TAU = 8, 0.1
_CALIBRATION_QUERIES = 2000


class Recall(NamedTuple):
    """What m queries were reminded of.

    Attributes:
        rows: int64 [m, k], rows of the bank, nearest first; -1 where there are fewer.
        similarity: float32 [m, k], cosines; -inf where there is no neighbour.
        weights: float32 [m, k], softmax of similarity / tau; 0 where there is no neighbour.
        fields: Weighted means, each [m, T, ...].
        variance: float32 [m], weighted variance of the neighbours' wheel angles in degrees^2, mean
            over the frames; infinite without neighbours.
        confidence: float32 [m] in [0, 1]; 0 without neighbours.
    """

    rows: np.ndarray
    similarity: np.ndarray
    weights: np.ndarray
    fields: dict[str, np.ndarray]
    variance: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class MemoryBank:
    """A bank in memory; see `build` and `open`.

    Attributes:
        cache: Where the values are.
        windows: Keys of the windows, in the order of segments and starts.
        vectors: float32 [n, D], their unit vectors.
        space: Makes such vectors of descriptors.
        kind: Of the descriptors.
        index: Finds neighbours among the vectors.
        variance_scale: The variance at which confidence is a half, degrees^2.
    """

    cache: TeacherCache
    windows: tuple[str, ...]
    vectors: np.ndarray
    space: Space
    kind: Kind
    index: Index
    variance_scale: float

    @classmethod
    def build(
        cls,
        cache: TeacherCache,
        descriptors: Mapping[str, np.ndarray],
        kind: Kind,
        backend: Backend = "auto",
    ) -> MemoryBank:
        """Make a bank of windows that are in a cache.

        Args:
            cache: Holds them all.
            descriptors: Of each window, float32 [D].
            kind: What they are made of.
            backend: How neighbours are found.

        Raises:
            UserError: A window is not in the cache, or there are fewer than two.
        """
        if absent := cache.missing(descriptors):
            raise UserError(
                f"{cache.directory} has nothing on {len(absent)} windows, the first is {absent[0]}",
                hint="export the split first",
            )
        if len(descriptors) < 2:
            raise UserError(
                f"a memory of {len(descriptors)} windows", hint="export more of the dataset"
            )
        windows = tuple(sorted(descriptors, key=parse_key))
        table = np.stack([descriptors[key] for key in windows]).astype(np.float32)
        if not np.isfinite(table).all():
            raise UserError("a descriptor is not finite", hint="check the dataset: validate-data")
        space = fit_space(table, kind)
        vectors = space.unit(table)
        bank = cls(cache, windows, vectors, space, kind, new_index(vectors, backend), 1.0)
        chosen = np.unique(
            np.linspace(0, len(windows) - 1, _CALIBRATION_QUERIES).round().astype(np.int64)
        )
        asked = [windows[row] for row in chosen]
        variance = bank.recall(vectors[chosen], asking=asked, fields=()).variance
        known = variance[np.isfinite(variance)]
        scale = float(np.median(known)) if len(known) else 1.0
        return cls(cache, windows, vectors, space, kind, bank.index, max(scale, 1e-12))

    def recall(
        self,
        vectors: np.ndarray,
        *,
        asking: Sequence[str] | None = None,
        k: int = K,
        tau: float = TAU,
        fields: Sequence[str] = ("actions",),
        exclude_frames: int | None = None,
    ) -> Recall:
        """Recall what the teacher did in the situations most like these.

        Args:
            vectors: Unit vectors [m, D]; `space.unit` makes them of descriptors.
            asking: The windows that ask, m keys; those near them in time are left out. None: they
                are of other data.
            k: Neighbours.
            tau: Temperature of their weights.
            fields: Whose means are wanted, of those that the cache holds.
            exclude_frames: A window of the same segment is left out if its start is nearer than
                this; None: the T frames of a window, so that no frame is shared.
        """
        if k < 1 or not tau > 0:
            raise UserError(f"k {k} and tau {tau} must be positive")
        excluded = self._near(asking, exclude_frames) if asking is not None else None
        rows, similarity = self.index.search(vectors, k, excluded)
        weights = _softmax(similarity / tau)
        found = np.maximum(rows, 0)
        keys, inverse = np.unique(found, return_inverse=True)
        inverse = inverse.reshape(found.shape)  # numpy 2.0 gives it flat
        names = dict.fromkeys(("actions", *fields))
        values = self.cache.read([self.windows[row] for row in keys], list(names))
        means = {
            name: np.einsum("mk,mk...->m...", weights, values[name][inverse]) for name in names
        }
        angles = values["actions"][inverse][..., 0]  # [m, k, T]
        spread = np.square(angles - means["actions"][:, None, :, 0]).mean(axis=-1)
        variance = np.einsum("mk,mk->m", weights, spread)
        variance = np.where(rows[:, 0] < 0, np.inf, variance).astype(np.float32)
        confidence = (1 / (1 + variance / self.variance_scale)).astype(np.float32)
        wanted = {name: means[name] for name in fields}
        return Recall(rows, similarity, weights, wanted, variance, confidence)

    def _near(self, asking: Sequence[str], exclude_frames: int | None) -> np.ndarray:
        """Return for each asking window the range of rows that are too near to it."""
        radius = self.cache.info.seq_len if exclude_frames is None else exclude_frames
        ranges = np.empty((len(asking), 2), np.int64)
        for position, key in enumerate(asking):
            segment, start = parse_key(key)
            ranges[position] = (
                self._row_of(Place(segment, start - radius + 1)),
                self._row_of(Place(segment, start + radius)),
            )
        return ranges

    def _row_of(self, place: Place) -> int:
        """Return the first row whose place is not before this one."""
        return bisect_left(self.windows, place, key=parse_key)

    def save(self, directory: Path) -> None:
        """Write the bank into a folder that holds none.

        Raises:
            UserError: There is a file already, or the disk refuses.
        """
        with explained(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise UserError(
                    f"{directory} is not empty", hint="give another folder, or remove it"
                )
        stream = io.BytesIO()
        np.save(stream, self.vectors, allow_pickle=False)
        write_atomic(directory / VECTORS, stream.getvalue())
        write_json(
            directory / FILE,
            {
                "format": FORMAT,
                "version": VERSION,
                "kind": self.kind,
                "cache": os.path.relpath(self.cache.directory, directory),
                "teacher_sha256": self.cache.info.teacher_sha256,
                "vectors_sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
                "variance_scale": self.variance_scale,
                "mean": self.space.mean.tolist(),
                "scale": self.space.scale.tolist(),
                "windows": list(self.windows),
            },
        )

    @classmethod
    def open(
        cls, directory: Path, cache_dir: Path | None = None, backend: Backend = "auto"
    ) -> MemoryBank:
        """Open a bank and the cache it points into.

        Args:
            directory: Its folder.
            cache_dir: The cache, where it has been moved; None: where it was.
            backend: How neighbours are found.

        Raises:
            UserError: The bank is damaged, or the cache is of another teacher.
        """
        directory = Path(directory)
        path = directory / FILE
        if not path.is_file():
            raise UserError(
                f"{directory} is no memory bank: it has no {FILE}",
                hint="make one with `end2race memory build`",
            )
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path} does not describe a memory bank", hint="build it again")
        try:
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']!r}, this program reads {VERSION}")
            windows, kind, space, vectors = _read_parts(directory, content)
            relative, teacher = str(content["cache"]), str(content["teacher_sha256"])
            scale = float(content["variance_scale"])
        except (KeyError, TypeError, ValueError, EOFError, UserError) as error:
            raise UserError(f"{path}: damaged memory ({error})", hint="build it again") from error
        cache = TeacherCache.open(cache_dir or Path(os.path.normpath(directory / relative)))
        if cache.info.teacher_sha256 != teacher:
            raise UserError(
                f"{cache.directory} is of teacher {cache.info.teacher_sha256[:12]}, the memory of "
                f"{teacher[:12]}",
                hint="name the cache it was built on with --cache-dir, or build it again",
            )
        if absent := cache.missing(windows):
            raise UserError(
                f"{cache.directory} has nothing on {len(absent)} windows of the memory, the first "
                f"is {absent[0]}",
                hint="export the split again, or build the memory again",
            )
        return cls(cache, windows, vectors, space, kind, new_index(vectors, backend), scale)


def _read_parts(
    directory: Path, content: Mapping[str, Any]
) -> tuple[tuple[str, ...], Kind, Space, np.ndarray]:
    """Read windows, kind, space and vectors.

    Raises:
        KeyError, TypeError, ValueError, EOFError, UserError: A part is damaged.
    """
    windows = tuple(content["windows"])
    places = [parse_key(key) for key in windows]
    if places != sorted(set(places)):
        raise ValueError("the windows are not in order")
    kind = content["kind"]
    if kind not in ("teacher", "camera"):
        raise ValueError(f"kind {kind!r}")
    with explained(directory / VECTORS):
        data = (directory / VECTORS).read_bytes()
    if hashlib.sha256(data).hexdigest() != content["vectors_sha256"]:
        raise ValueError(f"{VECTORS} differs from its SHA-256")
    vectors = np.load(io.BytesIO(data), allow_pickle=False)
    mean = np.array(content["mean"], np.float32)
    scale = np.array(content["scale"], np.float32)
    if vectors.shape != (len(windows), *mean.shape) or mean.shape != scale.shape:
        raise ValueError("vectors, windows and mean do not fit each other")
    return windows, kind, Space(mean, scale), vectors


def _softmax(values: np.ndarray) -> np.ndarray:
    """Return weights [m, k] that add up to 1, or to 0 where every value is -inf."""
    largest = values.max(axis=1, keepdims=True)
    powers = np.exp(values - np.where(np.isfinite(largest), largest, 0.0))
    total = powers.sum(axis=1, keepdims=True)
    return np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)
