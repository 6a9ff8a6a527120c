"""Arrays in `.npz` archives, believed only after their check sums.

numpy reads an archive lazily and takes its headers for granted; here every member is unpacked and
checked before anything in it is interpreted, pickles are refused, and so is an archive that unpacks
to more than it may.
"""

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np

from loom.errors import UserError
from loom.files import explained, write_atomic

LARGEST_BYTES = 2**30
"""Most that the arrays of one archive may hold together."""

_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,  # zipfile's word for a method of compression that it does not know
    SyntaxError,  # of a header, which is a Python literal
    TypeError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Write an archive whole or not at all, making its folder."""
    stream = BytesIO()
    save = np.savez_compressed if compress else np.savez
    save(stream, allow_pickle=False, **arrays)
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, stream.getvalue())


def read_npz(
    path: Path, names: Collection[str] | None = None, *, largest: int = LARGEST_BYTES
) -> dict[str, np.ndarray]:
    """Read arrays of an archive.

    Args:
        path: The file.
        names: Which; None reads all of them.
        largest: Most bytes that they may hold together.

    Raises:
        UserError: The file is missing, damaged, too large or holds Python objects, or it has no
            array of a name that was asked for.
    """
    with explained(path):
        content = path.read_bytes()
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            missing = [name for name in names or () if name not in members]
            if missing:
                raise UserError(
                    f"{path} has no array {', '.join(missing)}; it has {', '.join(members)}",
                    hint="check that it is the file you meant",
                )
            wanted = {name: archive.getinfo(members[name]) for name in names or members}
            size = sum(member.file_size for member in wanted.values())
            if size > largest:
                raise ValueError(
                    f"its arrays would be {size:,} bytes, at most {largest:,} are read"
                )
            unpacked = {name: _unpacked(archive, member) for name, member in wanted.items()}
        return {name: _array(data) for name, data in unpacked.items()}
    except _DAMAGE as error:
        raise UserError(
            f"{path}: not a readable .npz file ({error})",
            hint="it was cut short while it was written, or is another kind of file",
        ) from error


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack a member to the size that it claims; `ZipFile.read` would first unpack all of it."""
    with archive.open(member) as stream:
        return stream.read(member.file_size)


def _array(data: bytes) -> np.ndarray:
    """Interpret one member: a header, and exactly as many bytes as it announces."""
    stream = BytesIO(data)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"an array of format {version}")
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which is never read")
    rest = data[stream.tell() :]
    if len(rest) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(rest)} bytes for {dtype} of shape {shape}")
    flat = np.frombuffer(rest, dtype).copy()
    return flat.reshape(shape, order="F" if fortran else "C")
