"""The teacher cache: raw shards beside the notes' `.npz` files and one HDF5 file, in one run.

    uv run --with h5py python benchmarks/end2race_cache.py [--windows 5000] [--hidden 640]

Windows of T = 5 frames with actions, a 256-vector per frame and a recurrent state per frame, as the
notes' teacher gives them, in float32, written in order and read one by one in random order from the
page cache. The shards hold a frame once and the others T times; reading gives the same arrays in
all of them. The shards are forced to the disk and checked against their check sums at the first
read; `npz` has its own check sums, HDF5 none. Reads are CPU time of one thread, best of the
repeats; writes are CPU time, with wall time beside it, since forcing to the disk is waiting.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from end2race.cache.info import CacheInfo
from end2race.cache.npz_compat import file_name
from end2race.cache.store import TeacherCache

T, ACTIONS, VECTOR, SHARD, SEGMENT = 5, 2, 256, 512, 1000
Arrays = dict[str, np.ndarray]


def answers(windows: int, hidden: int) -> tuple[list[str], Arrays]:
    """Make the answers of a teacher on segments of 1000 windows."""
    rng = np.random.default_rng(0)
    keys, vectors = [], []
    for begin in range(0, windows, SEGMENT):
        count = min(SEGMENT, windows - begin)
        keys += [f"train/segment_{begin // SEGMENT:04d}:{start}" for start in range(count)]
        frames = rng.standard_normal((count + T - 1, VECTOR), np.float32)
        vectors.append(frames[np.arange(count)[:, None] + np.arange(T)])
    return keys, {
        "actions": rng.standard_normal((windows, T, ACTIONS), np.float32),
        "gru_out": rng.standard_normal((windows, T, hidden), np.float32),
        "bev_vec": np.concatenate(vectors),
    }


class Shards:
    """Ours."""

    def __init__(self, folder: Path, hidden: int) -> None:
        """Choose a folder."""
        self.folder = folder
        shapes = {"actions": (T, ACTIONS), "gru_out": (T, hidden), "bev_vec": (VECTOR,)}
        self.info = CacheInfo("0" * 64, {"train": "0"}, T, 1, "float32", shapes)

    def write(self, keys: list[str], arrays: Arrays) -> None:
        """Append shard by shard."""
        cache = TeacherCache.create(self.folder, self.info)
        for i in range(0, len(keys), SHARD):
            rows = slice(i, i + SHARD)
            cache.append(keys[rows], {name: array[rows] for name, array in arrays.items()})

    def reader(self, keys: list[str]) -> Callable[[int], Arrays]:
        """Open anew, so that every record is checked again."""
        cache, names = TeacherCache.open(self.folder, self.info), list(self.info.fields)
        return lambda row: cache.read([keys[row]], names)


class Npz:
    """One file per window, as in the notes (compressed) or without compression."""

    def __init__(self, folder: Path, *, compressed: bool) -> None:
        """Choose a folder."""
        self.folder, self.save = folder, np.savez_compressed if compressed else np.savez

    def write(self, keys: list[str], arrays: Arrays) -> None:
        """Write every file in place, as the notes do."""
        self.folder.mkdir()
        for row, key in enumerate(keys):
            values = {name: array[row] for name, array in arrays.items()}
            self.save(self.folder / file_name(key), **values)

    def reader(self, keys: list[str]) -> Callable[[int], Arrays]:
        """Read a file."""

        def read(row: int) -> Arrays:
            with np.load(self.folder / file_name(keys[row]), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}

        return read


class Hdf5:
    """One file, a chunked data set per field."""

    def __init__(self, folder: Path) -> None:
        """Choose a folder."""
        self.folder = folder

    def write(self, keys: list[str], arrays: Arrays) -> None:
        """Write whole data sets."""
        self.folder.mkdir()
        with h5py.File(self.folder / "cache.h5", "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, chunks=(16, *array.shape[1:]))

    def reader(self, keys: list[str]) -> Callable[[int], Arrays]:
        """Read a row of each data set; the row number is taken for known."""
        file = h5py.File(self.folder / "cache.h5", "r")
        sets = {name: file[name] for name in ("actions", "gru_out", "bev_vec")}
        return lambda row: {name: each[row] for name, each in sets.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=5000)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    keys, arrays = answers(given.windows, given.hidden)
    order = np.random.default_rng(1).permutation(len(keys))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {
            "npz compressed (the notes)": Npz(folder / "compressed", compressed=True),
            "npz": Npz(folder / "plain", compressed=False),
            "HDF5, chunks of 16": Hdf5(folder / "hdf5"),
            "shards (ours)": Shards(folder / "shards", given.hidden),
        }
        write, wall, read = {}, {}, {store: [] for store in stores}
        for label, store in stores.items():
            cpu, clock = time.process_time(), time.perf_counter()
            store.write(keys, arrays)
            write[label] = (time.process_time() - cpu) / len(keys)
            wall[label] = (time.perf_counter() - clock) / len(keys)
        again = []
        for _ in range(given.repeats):
            for label, store in stores.items():
                reader = store.reader(keys)
                began = time.process_time()
                for row in order:
                    found = reader(row)
                read[label].append((time.process_time() - began) / len(keys))
                for field, values in arrays.items():
                    assert np.array_equal(found[field].reshape(values[row].shape), values[row])
            began = time.process_time()
            for row in order:
                reader(row)
            again.append((time.process_time() - began) / len(keys))
        print(f"{len(keys)} windows, T {T}, hidden {given.hidden}; microseconds per window")
        print(f"{'':<28}{'write CPU':>10}{'wall':>8}{'read':>8}{'MB':>8}")
        ours = "shards (ours)"
        for label, store in stores.items():
            size = sum(p.stat().st_size for p in store.folder.iterdir()) / 1e6
            print(
                f"{label:<28}{1e6 * write[label]:>10.1f}{1e6 * wall[label]:>8.1f}"
                f"{1e6 * min(read[label]):>8.1f}{size:>8.1f}"
            )
        print(f"{'  read a second time':<28}{'':>18}{1e6 * min(again):>8.1f}")
        for label in stores:
            if label != ours:
                reads = min(read[label]) / min(read[ours])
                writes, waits = write[label] / write[ours], wall[label] / wall[ours]
                print(f"against {label}: reads {reads:.1f}x, writes {writes:.1f}x ({waits:.1f}x)")


if __name__ == "__main__":
    main()
