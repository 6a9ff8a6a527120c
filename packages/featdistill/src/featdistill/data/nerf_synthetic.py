"""Scenes in the NeRF-synthetic ("Blender") layout: `transforms_<split>.json` and RGBA PNG files.

    scene/transforms_train.json    {"camera_angle_x": 0.69, "frames": [{"file_path": "./train/r_0",
    scene/train/r_0.png              "transform_matrix": 4x4 camera-to-world, OpenGL axes}, ...]}

Views keep the order of the JSON file, which is by number (r_2 before r_10) where a directory
listing is not. Smaller images come from an integer box filter over premultiplied colours; a plain
filter would mix the arbitrary colour of transparent pixels into the silhouettes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
import zipfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from loom.errors import UserError
from torch import Tensor

from featdistill.cameras import Cameras, focal_from_angle
from featdistill.data.png import decode_png, read_bytes, write_png, write_whole
from featdistill.data.rgba import box_filter, premultiply

_RIGID_TOLERANCE = 1e-3
_WORTH_CACHING_PIXELS = 4_000_000  # about 0.1 s of decoding; smaller sets are simply decoded again
_CACHE_FORMAT = "views-1"


@dataclass(frozen=True)
class Views:
    """Posed images of one split.

    Attributes:
        cameras: One camera per image, in the same order.
        rgba: uint8 [n, h, w, 4], straight alpha.
        sha256: Digest of what was read (poses, names, image files, size); empty if it was made.
    """

    cameras: Cameras
    rgba: Tensor
    sha256: str = ""

    def __post_init__(self) -> None:
        expected = (len(self.cameras), self.cameras.height, self.cameras.width, 4)
        if tuple(self.rgba.shape) != expected or self.rgba.dtype != torch.uint8:
            found = f"{self.rgba.dtype} {list(self.rgba.shape)}"
            raise ValueError(f"rgba must be uint8 {list(expected)}, not {found}")

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, key: int | slice | Sequence[int]) -> Views:
        """Choose views; an integer gives a set of one."""
        if isinstance(key, int):
            key = [key]
        cameras = self.cameras[key]
        chosen = key if isinstance(key, slice) else [range(len(self))[i] for i in key]
        return Views(cameras, self.rgba[chosen])

    def premultiplied(self) -> Tensor:
        """Return float32 [n, h, w, 4] with colours multiplied by alpha, as losses need them."""
        return premultiply(self.rgba)


class _Frame(NamedTuple):
    """One entry of a transforms file, checked."""

    index: int
    name: str
    image: Path
    pose: list[list[float]]


def read_views(
    folder: Path,
    split: str,
    *,
    width: int | None = None,
    limit: int | None = None,
    skip: Collection[int] = (),
) -> Views:
    """Read a split of a NeRF-synthetic folder.

    Decoded images are kept in the cache under the digest of their files, as 300 images of 800x800
    take ten seconds to decode.

    Args:
        folder: The folder with `transforms_<split>.json`.
        split: "train", "test" or "val".
        width: Width in pixels to filter down to; the files' width must be a multiple of it.
        limit: Read only this many frames, after `skip`.
        skip: Positions in the JSON file of frames to leave out, before they are checked.

    Raises:
        UserError: Anything is missing, damaged or inconsistent; the message names the file and the
            frame.
    """
    folder = Path(folder)
    path = folder / f"transforms_{split}.json"
    angle, frames = _read_transforms(path, folder, limit, skip)
    digests = [hashlib.sha256(read_bytes(frame.image)).hexdigest() for frame in frames]
    key = hashlib.sha256(json.dumps([_CACHE_FORMAT, width, digests]).encode()).hexdigest()
    rgba = _read_cache(key)
    if rgba is None or len(rgba) != len(frames):
        rgba, source_pixels = _decode(frames, path, width)
        if source_pixels >= _WORTH_CACHING_PIXELS:
            _write_cache(key, rgba)
    poses = torch.tensor([frame.pose for frame in frames], dtype=torch.float64)
    described = [split, angle, poses.tolist(), [frame.name for frame in frames], key]
    cameras = Cameras(
        poses.float(),
        width=rgba.shape[2],
        height=rgba.shape[1],
        focal_px=focal_from_angle(rgba.shape[2], angle),
        names=tuple(frame.name for frame in frames),
    )
    sha256 = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return Views(cameras, torch.from_numpy(rgba), sha256)


def write_views(folder: Path, split: str, views: Views) -> None:
    """Write a split in the layout that `read_views` reads; the JSON file comes last.

    Images go to `<split>/<last part of the view's name>.png`.
    """
    folder = Path(folder)
    stems = [name.rsplit("/", 1)[-1] for name in views.cameras.names]
    if len(set(stems)) != len(stems):
        raise ValueError("two views would be written to one file; rename them")
    for stem, pixels in zip(stems, views.rgba.numpy(), strict=True):
        write_png(folder / split / f"{stem}.png", pixels)
    cameras = views.cameras
    poses = cameras.poses_world_from_camera.tolist()
    content = {
        "camera_angle_x": 2 * math.atan(0.5 * cameras.width / cameras.focal_px),
        "frames": [
            {"file_path": f"./{split}/{stem}", "transform_matrix": pose}
            for stem, pose in zip(stems, poses, strict=True)
        ],
    }
    data = json.dumps(content, indent=1).encode()
    write_whole(folder / f"transforms_{split}.json", data)


def _read_transforms(
    path: Path, folder: Path, limit: int | None, skip: Collection[int]
) -> tuple[float, list[_Frame]]:
    """Read and check the JSON file; returns camera_angle_x and the chosen frames."""
    content = _read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with camera_angle_x and frames")
    angle = content.get("camera_angle_x")
    if not _is_number(angle) or not 0 < angle < math.pi:
        raise UserError(
            f"{path}: camera_angle_x is {_shown(angle)}, expected an angle in (0, pi)",
            hint="it is the horizontal field of view in radians; export the cameras again",
        )
    entries = content.get("frames")
    if not isinstance(entries, list):
        raise UserError(f"{path}: frames is {_shown(entries)}, expected a list")
    chosen = [index for index in range(len(entries)) if index not in set(skip)][:limit]
    if not chosen:
        raise UserError(
            f"{path}: no frames to read ({len(entries)} in the file, {len(skip)} to be skipped,"
            f" limit {limit})",
            hint="export at least one view, or ask for fewer to be left out",
        )
    frames = [_check_frame(index, entries[index], path, folder) for index in chosen]
    first: dict[Path, int] = {}
    for frame in frames:
        if first.setdefault(frame.image, frame.index) != frame.index:
            raise UserError(
                f"{path}: frames {first[frame.image]} and {frame.index} both name {frame.name}",
                hint="one of them has the wrong file_path; export the cameras again",
            )
    return float(angle), frames


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        found = sorted(p.name for p in path.parent.glob("transforms*.json"))
        raise UserError(
            f"{path} is missing",
            hint=f"the folder has {', '.join(found)}"
            if found
            else "give a folder in NeRF-synthetic layout, or make one: `featdistill scene synth`",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {error}", hint="copy the file again, or export the cameras again"
        ) from error


def _check_frame(index: int, entry: Any, path: Path, folder: Path) -> _Frame:
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
            f"{where}: file_path {_shown(file_path)} leaves the folder {folder}",
            hint="paths are relative to the JSON file and stay below it",
        )
    stem = relative.as_posix().removesuffix(".png")
    pose = _check_pose(entry.get("transform_matrix"), where, remedy)
    return _Frame(index, stem, folder / f"{stem}.png", pose)


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
    if np.abs(matrix[:3, 3]).max() > 1e6:
        raise UserError(
            f"{where}: the camera stands at {matrix[:3, 3].tolist()}, further than 1e6", hint=remedy
        )
    return rows


def _is_number(value: Any) -> bool:
    """True for a finite JSON number (an integer too large for a float is none)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300


def _shown(value: Any) -> str:
    """A value of unknown kind and length, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _decode(frames: list[_Frame], path: Path, width: int | None) -> tuple[np.ndarray, int]:
    """Decode and filter all images; returns uint8 [n, h, w, 4] and the number of pixels decoded."""
    source = decode_png(read_bytes(frames[0].image), frames[0].image, "RGBA").shape
    factor = _factor(source, width, frames[0].image)

    def decode(frame: _Frame) -> np.ndarray:
        pixels = decode_png(read_bytes(frame.image), frame.image, "RGBA")
        if pixels.shape != source:
            raise UserError(
                f"{frame.image} (frame {frame.index}) has {pixels.shape[1]}x{pixels.shape[0]}"
                f" pixels, but {frames[0].image} has {source[1]}x{source[0]}",
                hint=f"all images of {path.name} must have one size; render this one again",
            )
        return box_filter(pixels, factor)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # decoding releases the lock
        rgba = np.stack(list(pool.map(decode, frames)))
    return rgba, len(frames) * source[0] * source[1]


def _factor(source: tuple[int, ...], width: int | None, image: Path) -> int:
    height, full = source[:2]
    if width is None:
        return 1
    factor = full // width if width > 0 else 0
    if factor < 1 or factor > 256 or full != factor * width or height % factor:
        choices = [full // k for k in range(1, 257) if full % k == 0 and height % k == 0]
        raise UserError(
            f"{image} has {full}x{height} pixels, which cannot be box-filtered to width {width}",
            hint=f"choose one of {', '.join(map(str, choices[:12]))}",
        )
    return factor


def _cache_path(key: str) -> Path:
    root = os.environ.get("LOOM_CACHE")
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loom"
    return Path(root) / "views" / f"{key}.npz"


def _read_cache(key: str) -> np.ndarray | None:
    """Return the decoded images, or None when there are none or they do not pass their CRC."""
    try:
        with np.load(_cache_path(key), allow_pickle=False) as stored:
            rgba = stored["rgba"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return rgba if rgba.dtype == np.uint8 and rgba.ndim == 4 and rgba.shape[3] == 4 else None


def _write_cache(key: str, rgba: np.ndarray) -> None:
    """Keep decoded images. A cache that cannot be written costs time only, so it only warns."""
    stream = BytesIO()
    np.savez(stream, rgba=rgba)
    try:
        write_whole(_cache_path(key), stream.getvalue())
    except UserError as error:
        warnings.warn(f"decoded images are not kept: {error}", stacklevel=3)
