"""One array in an `.npz` archive, believed only after its check sum."""

from __future__ import annotations

import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from loom.errors import UserError
from loom.files import explained, write_atomic

from featdistill.data.png import make_folder

_LARGEST_BYTES = 2**34


def write_npz(path: Path, name: str, array: np.ndarray, *, compress: bool = False) -> None:
    """Write an archive that holds one array, whole or not at all, making the folder."""
    stream = BytesIO()
    arrays = {name: array}
    if compress:
        np.savez_compressed(stream, **arrays)  # ty: ignore[invalid-argument-type] - its allow_pickle
    else:
        np.savez(stream, **arrays)  # ty: ignore[invalid-argument-type] - its allow_pickle
    make_folder(path.parent)
    write_atomic(path, stream.getvalue())


def read_npz(path: Path, name: str) -> np.ndarray:
    """Read one array. Its bytes are unpacked and checked before anything in them is interpreted.

    Raises:
        UserError: The file is missing or damaged, or has no such array.
    """
    with explained(path):
        data = path.read_bytes()
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > _LARGEST_BYTES:
                raise ValueError(f"an array of {member.file_size} bytes")
            content = archive.read(member)
        return np.lib.format.read_array(BytesIO(content), allow_pickle=False)
    except KeyError as error:
        raise UserError(f"{path} has no array `{name}`", hint="write the file again") from error
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(f"{path} is damaged: {error}", hint="write the file again") from error
