"""Tracks from folders of the F1TENTH kind: a centreline as CSV and, where there is one, a map.

`*_centerline.csv` has rows `x_m, y_m, w_tr_right_m, w_tr_left_m` below a header that begins with
`#`. `*_map.yaml` is that of the ROS map server (`image`, `resolution`, `origin`, `negate`,
`occupied_thresh`): with it the walls are where the picture has them, without it they stand at the
narrower of the two widths.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from loom.config import read_yaml
from loom.errors import UserError
from loom.files import read_text
from PIL import Image
from scipy.ndimage import distance_transform_edt

from end2race.sim.kernels import Field, distance_at
from end2race.sim.track import SPACING_M, Track, direction, field_of_centreline, resample_closed

_COLUMNS = 4


def read_tracks(folder: Path) -> list[Track]:
    """Read every track of a folder: its own, or those of the folders in it, by name.

    Raises:
        UserError: there is none, or one of them cannot be read.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*centerline.csv")) or sorted(folder.glob("*/*centerline.csv"))
    if not files:
        raise UserError(
            f"{folder}: no *_centerline.csv, here or one folder below",
            hint="take a folder of f1tenth_racetracks, or leave --track-dir out for "
            "procedural tracks",
        )
    return [read_track(path) for path in files]


def read_track(path: Path) -> Track:
    """Read one track from its centreline file and the `*_map.yaml` beside it."""
    table = _read_table(path)
    points = resample_closed(table[:, :2], SPACING_M)
    closed = np.vstack([table, table[:1]])  # rows may stand at uneven distances
    along = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(closed[:, :2], axis=0), axis=1)))
    wanted = np.linspace(0, along[-1], len(points), endpoint=False)
    half_width = np.interp(wanted, along, closed[:, 2:].min(axis=1))
    map_file = _map_beside(path)
    field = field_of_centreline(points, half_width) if map_file is None else read_map(map_file)
    clearance = np.array([distance_at(field, x, y) for x, y in points])
    if clearance.min() <= 0:
        index = int(np.argmin(clearance))
        raise UserError(
            f"{path}: the centreline is inside a wall at x {points[index, 0]:.2f} m, "
            f"y {points[index, 1]:.2f} m",
            hint=f"check origin and resolution in {map_file.name}"
            if map_file
            else "check the widths",
        )
    heading, curvature = direction(points)
    return Track(_name(path), points, heading, curvature, half_width, field)


def _name(path: Path) -> str:
    return path.stem.removesuffix("_centerline")


def _map_beside(path: Path) -> Path | None:
    """Return the map of a centreline: the one of its name, else the only one in its folder.

    Raises:
        UserError: There are several, none of its name.
    """
    maps = sorted(path.parent.glob("*_map.yaml"))
    own = [each for each in maps if each.name == f"{_name(path)}_map.yaml"]
    if len(own or maps) > 1:
        raise UserError(
            f"{path}: {len(maps)} maps are beside it, none is {_name(path)}_map.yaml",
            hint="name its map like the centreline, or give each track a folder",
        )
    return next(iter(own or maps), None)


def read_map(path: Path) -> Field:
    """Read a ROS map and return the signed distance to its walls, by a distance transform."""
    content = read_yaml(path)
    image = path.parent / Path(str(content.get("image", ""))).name
    resolution = _number(path, content, "resolution")
    origin = content.get("origin")
    if not isinstance(origin, list) or len(origin) < 2 or not all(map(_is_number, origin)):
        raise UserError(
            f"{path}: origin is {origin!r}, expected [x, y, yaw]", hint="see map_server"
        )
    if len(origin) > 2 and origin[2]:
        raise UserError(f"{path}: a turned map is not supported", hint="set the yaw to 0")
    try:
        with Image.open(image) as picture:
            brightness = np.asarray(picture.convert("L"), np.float64) / 255
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{image}: no picture that can be read ({error})", hint=f"it is named in {path.name}"
        ) from error
    occupied = brightness if content.get("negate") else 1 - brightness
    free = (occupied < _number(path, content, "occupied_thresh", 0.45))[::-1]  # row 0 is the lowest
    # A wall runs half a cell beyond the last free centre, on either side of the boundary.
    inside = distance_transform_edt(free) - 0.5
    outside = distance_transform_edt(~free) - 0.5
    signed = np.where(free, inside, -outside) * resolution
    corner = [float(value) for value in origin[:2]]
    return Field(
        np.ascontiguousarray(signed, np.float32),
        corner[0] + resolution / 2,
        corner[1] + resolution / 2,
        resolution,
    )


def _number(path: Path, content: dict[str, Any], key: str, default: float | None = None) -> float:
    value = content.get(key, default)
    if not _is_number(value) or not value > 0:
        raise UserError(
            f"{path}: {key} is {value!r}, expected a positive number",
            hint="see the map_server documentation",
        )
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_table(path: Path) -> np.ndarray:
    """Return rows x, y, right and left width; float64 [m, 4], m >= 8."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            values = [float(part) for part in line.split(",")]
        except ValueError:
            values = []
        if len(values) != _COLUMNS or not np.all(np.isfinite(values)) or min(values[2:]) <= 0:
            raise UserError(
                f"{path}: line {number}: expected x_m, y_m, w_tr_right_m, w_tr_left_m, got "
                f"{line[:60]!r}",
                hint="four numbers and commas, widths positive",
            )
        rows.append(values)
    if len(rows) < 8:
        raise UserError(f"{path}: only {len(rows)} points", hint="a lap needs at least 8")
    return np.array(rows)
