"""Where depth comes from: four formats beside OPV2V's images, which have none of their own.

    npy          {root}/{split}/{scenario}/{agent}/{time}_camera{i}_depth.npy: float z-depth, metres
    carla_rgb24  the same name as .png: z = (R + 256 G + 65536 B) / (2^24 - 1) * 1000 m
    opv2v_h      {root}/.../{time}_depth{i}.png: 8-bit z-depth in whole metres, 255 is far
    lidar        the vehicle's own .pcd projected into the camera: sparse, and hidden points show

All are read as z-depth in metres, float32, 0 where there is none. Nothing is filled in.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Literal, get_args

import numpy as np

from coopcyl.data.errors import DataError
from coopcyl.data.images import read_bytes, read_png
from coopcyl.data.pcd import read_pcd
from coopcyl.data.tree import AgentFrame
from coopcyl.geometry.carla import CV_FROM_UE
from coopcyl.geometry.rig import Camera

DepthFormat = Literal["none", "npy", "carla_rgb24", "opv2v_h", "lidar"]
DEPTH_FORMATS: tuple[DepthFormat, ...] = get_args(DepthFormat)
CARLA_FAR_M = 1000.0
_CARLA_STEPS = 2**24 - 1
_EIGHT_BIT_FAR = 255
_MAX_NPY_HEADER = 10_000


@dataclass(frozen=True)
class DepthSource:
    """A depth format and the root of its files.

    Attributes:
        format: One of `DEPTH_FORMATS`.
        root: Root of the depth tree; None: that of the images.
    """

    format: DepthFormat = "npy"
    root: Path | None = None

    @property
    def dense(self) -> bool:
        """Whether a surface always has a depth, so that none means sky."""
        return self.format in {"npy", "carla_rgb24", "opv2v_h"}

    def path(self, frame: AgentFrame, camera: str) -> Path | None:
        """Return the file that holds a camera's depth; None where there is none."""
        folder = (self.root or frame.root) / frame.split / frame.scenario / str(frame.agent)
        match self.format:
            case "npy":
                return folder / f"{frame.time}_{camera}_depth.npy"
            case "carla_rgb24":
                return folder / f"{frame.time}_{camera}_depth.png"
            case "opv2v_h":
                return folder / f"{frame.time}_depth{camera.removeprefix('camera')}.png"
            case "lidar":
                return frame.pcd
        return None

    def read(self, frame: AgentFrame, cameras: tuple[Camera, ...]) -> list[np.ndarray]:
        """Read the z-depth `(height, width)` float32 of each camera; 0 where there is none."""
        if self.format == "none":
            return [np.zeros((c.height, c.width), np.float32) for c in cameras]
        if self.format == "lidar":
            points = read_pcd(frame.pcd) @ CV_FROM_UE[:3, :3].T
            return [project_points(points, camera) for camera in cameras]
        depths = []
        for camera in cameras:
            path = self.path(frame, camera.name)
            assert path is not None
            depth = _READERS[self.format](path)
            if depth.shape != (camera.height, camera.width):
                raise DataError(
                    f"{path}: depth of {depth.shape[1]}x{depth.shape[0]} pixels, the image has "
                    f"{camera.width}x{camera.height}",
                    hint="render depth and image at one size; neither is scaled here",
                )
            depths.append(depth)
        return depths


def read_npy(path: Path) -> np.ndarray:
    """Read a float z-depth; what is not finite or not positive becomes 0."""
    stream = BytesIO(read_bytes(path, "depth"))
    try:
        array = np.lib.format.read_array(
            stream, allow_pickle=False, max_header_size=_MAX_NPY_HEADER
        )
    except (
        ValueError,
        EOFError,
        OSError,
        MemoryError,
        TypeError,
        SyntaxError,
        TokenError,
    ) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path}: no readable array: {reason}", hint="the file is damaged: render it again"
        ) from error
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(
            f"{path}: an array of {array.dtype} {array.shape}, expected floats (height, width)",
            hint="store z-depth in metres as float32; integers would be another unit",
        )
    with np.errstate(over="ignore"):
        depth = array.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def read_carla_rgb24(path: Path) -> np.ndarray:
    """Read CARLA's 24-bit depth picture."""
    r, g, b = np.moveaxis(read_png(path, "RGB", "depth").astype(np.float64), -1, 0)
    return ((r + 256 * g + 65536 * b) / _CARLA_STEPS * CARLA_FAR_M).astype(np.float32)


def read_opv2v_h(path: Path) -> np.ndarray:
    """Read an 8-bit depth picture in whole metres; its largest value means far away."""
    metres = read_png(path, "L", "depth")
    return np.where(metres < _EIGHT_BIT_FAR, metres, 0).astype(np.float32)


_READERS = {"npy": read_npy, "carla_rgb24": read_carla_rgb24, "opv2v_h": read_opv2v_h}


def encode_carla_rgb24(z_depth_m: np.ndarray) -> np.ndarray:
    """Return CARLA's depth picture `(h, w, 3)` uint8 of a z-depth; 0 becomes the far end."""
    far = np.where(z_depth_m > 0, z_depth_m, CARLA_FAR_M).clip(max=CARLA_FAR_M)
    code = np.rint(far / CARLA_FAR_M * _CARLA_STEPS).astype(np.uint32)
    return np.stack([code & 255, code >> 8 & 255, code >> 16], axis=-1).astype(np.uint8)


def encode_opv2v_h(z_depth_m: np.ndarray) -> np.ndarray:
    """Return the 8-bit depth picture `(h, w)` of a z-depth; 0 and beyond 254 m become far."""
    known = (z_depth_m > 0) & (z_depth_m < _EIGHT_BIT_FAR - 0.5)
    return np.where(known, np.rint(z_depth_m), _EIGHT_BIT_FAR).astype(np.uint8)


def project_points(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the z-depth image of points in the rig frame (OpenCV axes): the nearest of each pixel.

    Args:
        points: `(n, 3)`.
        camera: Where to project.

    Returns:
        `(height, width)` float32, 0 where no point falls.
    """
    pixels, z = camera.project(points)
    inside = camera.contains(pixels)
    column, row = np.floor(pixels[inside]).astype(np.int64).T
    depth = np.full(camera.height * camera.width, np.inf, np.float32)
    np.minimum.at(depth, row * camera.width + column, z[inside].astype(np.float32))
    return np.where(np.isfinite(depth), depth, 0).reshape(camera.height, camera.width)
