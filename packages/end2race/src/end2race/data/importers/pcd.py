"""Point clouds in the PCD format, with intensity: ascii, binary and binary_compressed (LZF)."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
from loom.errors import UserError
from loom.files import explained
from loom.pcd import coordinates, parse_pcd

_INTENSITY = ("intensity", "i", "reflectivity")


def read_pcd(path: Path) -> np.ndarray:
    """Read points float32 [n, 4]: x, y, z, intensity (0 where the file has none).

    Raises:
        UserError: The file is damaged, or has no x, y and z.
    """
    with explained(path):
        content = path.read_bytes()
    try:
        table = parse_pcd(content, unpack_lzf)
    except ValueError as error:
        raise UserError(
            f"{path}: no point cloud that can be read ({error})",
            hint="PCD files of version 0.7 with the fields x y z are read; copy the file again",
        ) from error
    single = [name for name in table.dtype.names or () if table.dtype[name].subdtype is None]
    named = [name for name in _INTENSITY if name in single]
    intensity = table[named[0]].astype(np.float32) if named else np.zeros(len(table), np.float32)
    return np.column_stack([coordinates(table), intensity])


@numba.njit(cache=True)
def unpack_lzf(packed: np.ndarray, out: np.ndarray) -> np.int64:
    """Unpack LZF (M. Lehmann's liblzf) and return the bytes written; -1 if it is damaged.

    A control byte below 32 is followed by so many literal bytes and one more. Otherwise its upper
    three bits are a length (7: one more byte follows), its lower five and the next byte a distance
    back into what has been written.
    """
    position = written = np.int64(0)
    while position < packed.size:
        control = np.int64(packed[position])
        position += 1
        if control < 32:
            count = control + 1
            if position + count > packed.size or written + count > out.size:
                return np.int64(-1)
            out[written : written + count] = packed[position : position + count]
            position += count
            written += count
            continue
        count = control >> 5
        if count == 7:
            if position >= packed.size:
                return np.int64(-1)
            count += np.int64(packed[position])
            position += 1
        if position >= packed.size:
            return np.int64(-1)
        source = written - ((control & 31) << 8) - np.int64(packed[position]) - 1
        position += 1
        count += 2
        if source < 0 or written + count > out.size:
            return np.int64(-1)
        for step in range(count):  # the source may overlap what is being written
            out[written + step] = out[source + step]
        written += count
    return written
