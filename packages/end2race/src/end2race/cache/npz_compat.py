"""The notes' teacher cache: one compressed `.npz` per window, in one folder.

    train__segment_0001_123.npz     actions (T, A), gru_out (T, H), bev_vec (T, D)[, bev_feat]

The notes make a file's name by writing `__` for `/` and `_` for `:`. Over all strings that is not
one to one (`train/segment_1:23` and `train/segment_1_23` share a file); over well-formed keys it
is, since a split holds no `_` and a start nothing but digits. So a name is taken apart again, and
one that gives no key is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from loom.arrays import read_npz, write_npz
from loom.errors import UserError
from loom.files import explained

from end2race.cache.export import SHARD_WINDOWS, field_shapes
from end2race.cache.info import SCOPES, CacheInfo
from end2race.cache.keys import parse_key
from end2race.cache.store import TeacherCache

_ALIASES = {"bev_vec_seq": "bev_vec", "bev_feat_seq": "bev_feat"}
_LARGEST_BYTES = 2**30


def file_name(key: str) -> str:
    """Return the notes' file name of a window."""
    return key.replace("/", "__").replace(":", "_") + ".npz"


def key_of(name: str) -> str:
    """Return the window that a file belongs to.

    Raises:
        UserError: The name is that of no window.
    """
    split, _, rest = name.removesuffix(".npz").partition("__")
    segment, _, start = rest.rpartition("_")
    key = f"{split}/{segment}:{start}"
    parse_key(key)
    return key


def read_entry(path: Path) -> dict[str, np.ndarray]:
    """Read the known arrays of one file, each (T, ...) float32.

    Raises:
        UserError: The file is damaged, holds objects, or lacks `actions`.
    """
    arrays = {}
    for stem, array in read_npz(path, largest=_LARGEST_BYTES).items():
        name = _ALIASES.get(stem, stem)
        if name in SCOPES:
            if array.dtype.kind not in "fiu":
                raise UserError(f"{path}: {name} is {array.dtype}", hint="numbers were expected")
            arrays[name] = array.astype(np.float32)
    if "actions" not in arrays:
        raise UserError(f"{path} holds no actions", hint="it is not a file of a teacher cache")
    return arrays


def list_folder(folder: Path) -> dict[str, Path]:
    """Return window -> file in the order of segments and starts.

    Raises:
        UserError: There is no such file, or the name of one belongs to no window.
    """
    with explained(folder):
        found = {key_of(path.name): path for path in folder.iterdir() if path.suffix == ".npz"}
    if not found:
        raise UserError(
            f"{folder} holds no .npz files", hint="give the notes' teacher_cache folder"
        )
    return {key: found[key] for key in sorted(found, key=parse_key)}


def describe(files: Mapping[str, Path], data: Mapping[str, str], dtype: str) -> CacheInfo:
    """Describe the cache that a folder becomes.

    The notes' files do not say which teacher they come from, so the digest of all of them stands in
    for it.

    Args:
        files: From `list_folder`.
        data: Fingerprint of each split that occurs in it.
        dtype: `float32` or `float16`.

    Raises:
        UserError: A file is damaged, or a split has no fingerprint.
    """
    splits = {parse_key(key).split for key in files}
    if lacking := splits - set(data):
        raise UserError(
            f"nothing is known of the data of {', '.join(sorted(lacking))}",
            hint="give the data set the files were made of as --data-root",
        )
    digest = hashlib.sha256()
    for key, path in files.items():
        with explained(path), path.open("rb") as stream:
            digest.update(key.encode() + hashlib.file_digest(stream, "sha256").digest())
    path = next(iter(files.values()))
    first = read_entry(path)
    try:
        return CacheInfo(
            teacher_sha256=digest.hexdigest(),
            data={split: data[split] for split in sorted(splits)},
            seq_len=len(first["actions"]),
            stride=1,
            dtype=dtype,
            fields=field_shapes({name: array[None] for name, array in first.items()}),
            origin={"imported": "a folder of .npz files"},
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: no answers of a teacher ({error})") from error


def import_folder(
    files: Mapping[str, Path], cache: TeacherCache, say: Callable[[int], None] = lambda n: None
) -> int:
    """Copy files into a cache and return how many windows were new.

    Args:
        files: From `list_folder`.
        cache: Opened; its fields, shapes and T are what the files must have.
        say: Told how many files have been read.

    Raises:
        UserError: A file is damaged, or has other fields or shapes.
    """
    with cache.writing():
        todo = cache.missing(files)
        for begin in range(0, len(todo), SHARD_WINDOWS):
            chunk = todo[begin : begin + SHARD_WINDOWS]
            cache.append(chunk, _stacked([files[key] for key in chunk], cache.info))
            say(begin + len(chunk))
    return len(todo)


def _stacked(files: Sequence[Path], info: CacheInfo) -> dict[str, np.ndarray]:
    """Read files and put their arrays on top of each other."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in info.fields}
    for path in files:
        arrays = read_entry(path)
        for name, shape in info.fields.items():
            wanted = shape if SCOPES[name] == "window" else (info.seq_len, *shape)
            found = arrays[name].shape if name in arrays else None
            if found != wanted:
                raise UserError(
                    f"{path}: {name} {found or 'is not there'}, the cache has {wanted}",
                    hint="all files must come from one teacher and one --seq-len",
                )
            columns[name].append(arrays[name])
    return {name: np.stack(rows) for name, rows in columns.items()}


def export_folder(cache: TeacherCache, folder: Path) -> Iterator[int]:
    """Write one compressed file per window; yield how many have been written."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for count, key in enumerate(cache.keys, 1):
        arrays = cache.read([key], list(cache.info.fields))
        entry = {field: values[0] for field, values in arrays.items()}
        write_npz(folder / file_name(key), entry, compress=True)
        yield count
