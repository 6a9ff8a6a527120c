"""Camera files: `transforms_<split>.json` of the NeRF-synthetic layout, read with suspicion.

    {"camera_angle_x": 0.69, "frames": [{"file_path": "./train/r_0", "transform_matrix": [[...]]}]}

A matrix is camera-to-world with OpenGL axes. Whatever cannot be a camera is refused with its place:
a NaN in one pose would otherwise surface as a student that learns nothing.

The files of instant-ngp and nerfstudio are close relatives. `fl_x` and `w` stand in for the angle;
a lens that is no pinhole with its centre in the middle of the picture is refused, not ignored.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from loom.errors import UserError
from loom.files import read_json

_RIGID_TOLERANCE = 1e-3
_FARTHEST = 1e6
_LONGEST_SIDE = 1 << 20  # pixels
_OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".exr")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_LENS = ("camera_angle_x", "fl_x", "fl_y", "cx", "cy", "w", "h", *_DISTORTION)


class Frame(NamedTuple):
    """One entry of a camera file, checked."""

    index: int  # its position in the file
    name: str  # file_path without "./" and ".png"
    image: Path
    pose: list[list[float]]  # 4x4


class Transforms(NamedTuple):
    """A camera file, checked."""

    path: Path
    camera_angle_x: float  # radians
    size: tuple[int, int] | None  # width and height, where the file gives "w" and "h"
    frames: tuple[Frame, ...]


def read_transforms(
    path: Path, *, limit: int | None = None, skip: Collection[int] = ()
) -> Transforms:
    """Read a camera file.

    Args:
        path: `transforms_<split>.json`; image paths are relative to its folder.
        limit: Take only this many frames, after `skip`.
        skip: Positions of frames to leave out, before they are checked.

    Raises:
        UserError: The file is missing or damaged, or a frame is; the message names it.
    """
    if not path.exists():
        raise UserError(f"{path} is missing", hint=hint_of_layout(path.parent))
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with camera_angle_x and frames")
    size = _check_size(content, path)
    angle = _check_angle(content, size, path)
    _require_pinhole(content, size, path)
    entries = content.get("frames")
    if not isinstance(entries, list):
        raise UserError(f"{path}: frames is {_shown(entries)}, expected a list")
    left_out = set(skip)
    chosen = [index for index in range(len(entries)) if index not in left_out][:limit]
    if not chosen:
        raise UserError(
            f"{path}: no frames to read ({len(entries)} in the file, {len(left_out)} to be skipped,"
            f" limit {limit})",
            hint="export at least one view, or ask for fewer to be left out",
        )
    for index in chosen:
        _require_no_lens_of_its_own(entries[index], content, f"{path}: frame {index}")
    frames = tuple(_check_frame(index, entries[index], path) for index in chosen)
    _require_distinct_images(path, frames)
    return Transforms(path, angle, size, frames)


def content_at(path: Path, width: int, height: int) -> dict[str, Any]:
    """Return what a camera file holds, for pictures of another size: its lens is the angle alone.

    Raises:
        UserError: As for `read_transforms`.
    """
    angle = read_transforms(path).camera_angle_x
    content = _without_lens(read_json(path))
    frames = [_without_lens(frame) for frame in content["frames"]]
    return content | {"frames": frames, "camera_angle_x": angle, "w": width, "h": height}


def _without_lens(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _LENS}


def hint_of_layout(folder: Path) -> str:
    """Say what to do about a folder that lacks a camera file, by what else is in it."""
    found = sorted(other.name for other in folder.glob("transforms*.json"))
    if found == ["transforms.json"]:
        return (
            "the folder has transforms.json: divide its frames into transforms_train.json and "
            "transforms_test.json"
        )
    if found:
        return f"the folder has {', '.join(found)}"
    if (folder / "sparse").is_dir():
        return (
            "the folder holds a COLMAP model: convert it to transforms_train.json and "
            "transforms_test.json, with undistorted RGBA pictures"
        )
    return "give a folder in NeRF-synthetic layout, or make one: `featdistill scene synth`"


def _check_angle(content: dict[str, Any], size: tuple[int, int] | None, path: Path) -> float:
    """Return the horizontal field of view in radians."""
    angle, focal = content.get("camera_angle_x"), content.get("fl_x")
    if angle is None and size is not None and _is_number(focal) and focal > 0:
        return 2 * math.atan(0.5 * size[0] / focal)
    if not _is_number(angle) or not 0 < angle < math.pi:
        raise UserError(
            f"{path}: camera_angle_x is {_shown(angle)}, expected an angle in (0, pi)",
            hint="it is the horizontal field of view in radians (fl_x and w give it too); export "
            "the cameras again",
        )
    return float(angle)


def _require_pinhole(content: dict[str, Any], size: tuple[int, int] | None, path: Path) -> None:
    """Refuse a lens that the rays of `Cameras` do not have, within half a pixel."""
    wrong = [key for key in _DISTORTION if content.get(key)]
    focal, other = content.get("fl_x"), content.get("fl_y")
    reach = max(size) / 2 if size else 400.0  # pixels from the centre to the rim
    if _is_number(focal) and _is_number(other) and abs(other - focal) * reach > 0.5 * abs(focal):
        wrong.append("fl_y")
    for key, pixels in zip(("cx", "cy"), size or (), strict=False):
        if _is_number(content.get(key)) and abs(content[key] - pixels / 2) > 0.5:
            wrong.append(key)
    if wrong:
        shown = ", ".join(f"{key} is {_shown(content[key])}" for key in wrong)
        raise UserError(
            f"{path}: {shown}, but only a pinhole camera with one focal length and its centre in "
            "the middle of the picture is rendered",
            hint="resample the pictures to such a camera (undistort them, crop them about the "
            "principal point) and export the cameras again",
        )


def _require_no_lens_of_its_own(entry: Any, content: dict[str, Any], where: str) -> None:
    """Refuse a frame with another lens or size than the file gives for all."""
    own = [] if not isinstance(entry, dict) else [key for key in _LENS if key in entry]
    differing = [key for key in own if entry[key] != content.get(key)]
    if differing:
        raise UserError(
            f"{where} has its own {', '.join(differing)}; all frames of a file share one camera",
            hint="render or undistort all pictures with the same camera",
        )


def _require_distinct_images(path: Path, frames: tuple[Frame, ...]) -> None:
    first: dict[Path, int] = {}
    for frame in frames:
        if first.setdefault(frame.image, frame.index) != frame.index:
            raise UserError(
                f"{path}: frames {first[frame.image]} and {frame.index} both name {frame.name}",
                hint="one of them has the wrong file_path; export the cameras again",
            )


def _check_size(content: dict[str, Any], path: Path) -> tuple[int, int] | None:
    size = content.get("w"), content.get("h")
    if size == (None, None):
        return None
    width, height = size
    whole = isinstance(width, int) and isinstance(height, int)
    if not whole or not (0 < width <= _LONGEST_SIDE and 0 < height <= _LONGEST_SIDE):
        raise UserError(
            f"{path}: the image size w, h is {_shown(width)}, {_shown(height)}, expected two"
            f" integers from 1 to {_LONGEST_SIDE}",
            hint="correct them, or remove both: the size of the images counts then",
        )
    return width, height


def _check_frame(index: int, entry: Any, path: Path) -> Frame:
    """Check one frame: a file inside the folder and a finite rigid pose."""
    where = f"{path}: frame {index}"
    remedy = f"export the cameras again, or drop the frame with skip=[{index}]"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {_shown(entry)}, expected an object", hint=remedy)
    file_path = entry.get("file_path")
    if not isinstance(file_path, str) or not file_path:
        raise UserError(f"{where}: file_path is {_shown(file_path)}, expected text", hint=remedy)
    # Compared as text, not resolved: a linked folder is fine, a path that walks out of it is not.
    relative = Path(os.path.normpath(file_path))
    outside = relative.is_absolute() or relative.parts[:1] in ((), ("..",))
    if outside or "\0" in file_path:
        raise UserError(
            f"{where}: file_path {_shown(file_path)} leaves the folder {path.parent}",
            hint="paths are relative to the JSON file and stay below it",
        )
    stem = relative.as_posix().removesuffix(".png")
    image = stem if relative.suffix.lower() in _OTHER_PICTURES else f"{stem}.png"
    pose = _check_pose(entry.get("transform_matrix"), where, remedy)
    return Frame(index, stem, path.parent / image, pose)


def _check_pose(value: Any, where: str, remedy: str) -> list[list[float]]:
    rows = value if isinstance(value, list) else []
    shape = [len(row) if isinstance(row, list) else 0 for row in rows]
    if shape != [4, 4, 4, 4]:
        found = f"has rows of {shape} numbers" if shape else f"is {_shown(value)}"
        raise UserError(f"{where}: transform_matrix {found}, expected 4x4", hint=remedy)
    for i, row in enumerate(rows):
        for j, number in enumerate(row):
            if not _is_number(number):
                raise UserError(
                    f"{where}: transform_matrix[{i}][{j}] is {_shown(number)}, expected a finite"
                    " number",
                    hint=remedy,
                )
    matrix = np.array(rows, dtype=np.float64)
    rotation = matrix[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):  # huge numbers are judged, not warned about
        skew = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
        determinant = float(np.linalg.det(rotation))
    rigid = skew <= _RIGID_TOLERANCE and determinant > 0
    if not rigid or np.abs(matrix[3] - [0, 0, 0, 1]).max() > _RIGID_TOLERANCE:
        raise UserError(
            f"{where}: transform_matrix is not a rigid camera-to-world matrix (its rotation is off"
            f" by {skew:.2g}, determinant {determinant:.3g}, last row {matrix[3].tolist()})",
            hint=f"remove scale and mirroring from the cameras; or {remedy.split(', or ')[1]}",
        )
    if np.abs(matrix[:3, 3]).max() > _FARTHEST:
        raise UserError(
            f"{where}: the camera stands at {matrix[:3, 3].tolist()}, further than {_FARTHEST:g}",
            hint=remedy,
        )
    return rows


def _is_number(value: Any) -> TypeGuard[int | float]:
    """True for a finite JSON number (an integer too large for a float is none)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300


def _shown(value: Any) -> str:
    """A value of unknown kind and length, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
