"""LiDAR point clouds in the PCD format of the Point Cloud Library, ASCII or binary.

OPV2V's clouds are written by Open3D with the fields `x y z rgb`, where the colour holds the
intensity. Only the coordinates are read; points that are not finite are dropped.
"""

from pathlib import Path

import numpy as np
from loom.files import write_atomic
from loom.pcd import coordinates, parse_pcd

from coopcyl.data.errors import DataError
from coopcyl.data.images import read_bytes


def read_pcd(path: Path) -> np.ndarray:
    """Read the points `(n, 3)` float32 in the LiDAR's frame (Unreal axes)."""
    try:
        points = coordinates(parse_pcd(read_bytes(path, "point cloud")))
    except ValueError as error:
        raise DataError(
            f"{path}: no point cloud that can be read ({error})",
            hint="copy it again; a compressed one: pcl_convert_pcd_ascii_binary IN OUT 1",
        ) from error
    return points[np.isfinite(points).all(axis=-1)]


def write_pcd(path: Path, points: np.ndarray) -> None:
    """Write points `(n, 3)` as binary float32 with the field `rgb` that Open3D expects."""
    n = len(points)
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z rgb\n"
        "SIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        f"WIDTH {n}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA binary\n"
    )
    table = np.zeros((n, 4), "<f4")
    table[:, :3] = points
    write_atomic(path, header.encode() + table.tobytes(), sync=False)
