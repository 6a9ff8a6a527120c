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
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loom.arrays import read_npz, write_npz
from loom.errors import UserError
from loom.files import write_json
from loom.native.toolchain import cache_dir
from loom.processors import usable_processors
from torch import Tensor

from featdistill.cameras import Cameras, focal_from_angle
from featdistill.data.png import decode_png, png_size, read_bytes, write_png
from featdistill.data.rgba import box_filter, premultiply
from featdistill.data.transforms import Frame, Transforms, read_transforms

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


def read_cameras(
    path: Path,
    *,
    width: int | None = None,
    limit: int | None = None,
    skip: Collection[int] = (),
) -> Cameras:
    """Read only the cameras of a `transforms_<split>.json`; its images need not be there.

    The image size is "w" and "h" of the file where it has them, else that of the first image, else
    `width` squared.

    Raises:
        UserError: The file is missing or damaged, or tells no image size.
    """
    transforms = read_transforms(Path(path), limit=limit, skip=skip)
    first = transforms.frames[0].image
    size = transforms.size
    if size is None and first.exists():
        size = png_size(first)
    if size is None and width is not None:
        size = (width, width)
    if size is None:
        raise UserError(
            f"{path} has no image size (w, h), and its first image {first} is missing",
            hint="give a width, or put the images where the file says",
        )
    height = size[1] if width is None else size[1] * width / size[0]
    if height != int(height) or height < 1:
        raise UserError(
            f"{path}: images of {size[0]}x{size[1]} have no whole height at width {width}",
            hint=f"choose a width that divides {size[0]} evenly",
        )
    return _cameras(transforms, width or size[0], int(height))


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
    path = Path(folder) / f"transforms_{split}.json"
    transforms = read_transforms(path, limit=limit, skip=skip)
    frames = transforms.frames
    digests = [hashlib.sha256(read_bytes(frame.image)).hexdigest() for frame in frames]
    key = hashlib.sha256(json.dumps([_CACHE_FORMAT, width, digests]).encode()).hexdigest()
    rgba = _read_cache(key)
    if rgba is None or len(rgba) != len(frames):
        rgba, source_pixels = _decode(transforms, width)
        if source_pixels >= _WORTH_CACHING_PIXELS:
            _write_cache(key, rgba)
    described = [transforms.camera_angle_x, [(frame.name, frame.pose) for frame in frames], key]
    sha256 = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    cameras = _cameras(transforms, rgba.shape[2], rgba.shape[1])
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
    write_json(folder / f"transforms_{split}.json", content)


def _cameras(transforms: Transforms, width: int, height: int) -> Cameras:
    return Cameras(
        torch.tensor([frame.pose for frame in transforms.frames], dtype=torch.float32),
        width=width,
        height=height,
        focal_px=focal_from_angle(width, transforms.camera_angle_x),
        names=tuple(frame.name for frame in transforms.frames),
    )


def _decode(transforms: Transforms, width: int | None) -> tuple[np.ndarray, int]:
    """Decode and filter all images; returns uint8 [n, h, w, 4] and the number of pixels decoded."""
    frames = transforms.frames
    source = decode_png(read_bytes(frames[0].image), frames[0].image, "RGBA").shape
    factor = _factor(source, width, frames[0].image)

    def decode(frame: Frame) -> np.ndarray:
        pixels = decode_png(read_bytes(frame.image), frame.image, "RGBA")
        if pixels.shape != source:
            raise UserError(
                f"{frame.image} (frame {frame.index}) has {pixels.shape[1]}x{pixels.shape[0]}"
                f" pixels, but {frames[0].image} has {source[1]}x{source[0]}",
                hint=f"the images of {transforms.path.name} need one size; render this one again",
            )
        return box_filter(pixels, factor)

    with ThreadPoolExecutor(max_workers=usable_processors()) as pool:  # decoding releases the lock
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


def _cache_file(key: str) -> Path:
    return cache_dir().with_name("views") / f"{key}.npz"


def _read_cache(key: str) -> np.ndarray | None:
    """Return the decoded images, or None when there are none or they do not pass their CRC."""
    path = _cache_file(key)
    if not path.exists():
        return None
    try:
        rgba = read_npz(path, ["rgba"])["rgba"]
    except UserError:
        return None
    return rgba if rgba.dtype == np.uint8 and rgba.ndim == 4 and rgba.shape[3] == 4 else None


def _write_cache(key: str, rgba: np.ndarray) -> None:
    """Keep decoded images. A cache that cannot be written costs time only, so it only warns."""
    try:
        write_npz(_cache_file(key), {"rgba": rgba})
    except UserError as error:
        warnings.warn(f"decoded images are not kept: {error}", stacklevel=3)
