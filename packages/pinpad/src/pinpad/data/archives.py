"""Read `.npz` files that others wrote, without pickles and with a name for what is wrong."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from loom.errors import UserError
from loom.files import explained


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an `.npz` file.

    Raises:
        UserError: The file is missing, damaged, or holds Python objects.
    """
    with explained(path):
        content = path.read_bytes()
    try:
        # From memory: numpy leaves the file open when the archive is damaged.
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        AttributeError,
        RuntimeError,  # zipfile's word for a method of compression that it does not know
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"{path}: not a readable .npz file ({error})",
            hint="it was cut short while it was written, or is another kind of file",
        ) from error
