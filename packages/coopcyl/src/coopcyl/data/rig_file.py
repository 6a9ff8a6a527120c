"""A rig described by hand, for images that belong to no data set: `coopcyl stitch rig.yaml`.

cameras:
  - name: front
    image: front.png          # relative to this file
    fov_deg: 100              # or intrinsic: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    position: [2.5, 0, 1.0]   # metres: x forward, y right, z up
    rotation: [0, 0, 0]       # degrees: roll, yaw, pitch, as CARLA has them
    depth: front_depth.npy    # optional: z-depth in metres, .npy or CARLA's 24-bit .png
origin: [0, 0, 0]             # where the panorama's axes stand; [-0.5, 0, 1.9] for OPV2V
"""

from pathlib import Path
from typing import Annotated, Self

import numpy as np
from loom.config import Config, resolve
from loom.errors import UserError
from pydantic import Field, model_validator

from coopcyl.data.depth import read_carla_rgb24, read_npy
from coopcyl.data.errors import DataError
from coopcyl.data.images import read_png
from coopcyl.geometry.rig import Camera, Rig, intrinsic_of_fov, mount

Finite = Annotated[float, Field(allow_inf_nan=False)]
Triple = tuple[Finite, Finite, Finite]


class CameraEntry(Config):
    """One camera and its picture."""

    name: str
    image: Path
    fov_deg: Annotated[float, Field(gt=0, lt=180)] | None = None
    intrinsic: tuple[Triple, Triple, Triple] | None = None
    position: Triple
    rotation: Triple = (0.0, 0.0, 0.0)
    depth: Path | None = None

    @model_validator(mode="after")
    def _one_lens(self) -> Self:
        if (self.fov_deg is None) == (self.intrinsic is None):
            raise ValueError("a camera has either fov_deg or intrinsic")
        return self


class RigFile(Config):
    """The cameras of one vehicle."""

    cameras: tuple[CameraEntry, ...] = Field(min_length=1)
    origin: Triple = (0.0, 0.0, 0.0)


def read_rig_file(path: Path) -> tuple[Rig, list[np.ndarray], list[np.ndarray] | None]:
    """Read a rig with its images and, where every camera has one, their z-depths.

    Raises:
        UserError: The file, an image or a depth is missing or wrong.
    """
    if path.is_dir():
        raise UserError(
            f"{path}: is a folder, and a rig is a YAML file of cameras and images",
            hint="docs/coopcyl.md shows one, under Data",
        )
    content = resolve(RigFile, path).config
    images = [read_png(path.parent / each.image, "RGB") for each in content.cameras]
    cameras = []
    for each, image in zip(content.cameras, images, strict=True):
        height, width = image.shape[:2]
        intrinsic = (
            np.array(each.intrinsic)
            if each.intrinsic is not None
            else intrinsic_of_fov(width, height, each.fov_deg or 0.0)
        )
        cords = (*each.position, *each.rotation)
        pose = mount(cords, (*content.origin, 0.0, 0.0, 0.0))
        try:
            cameras.append(Camera(each.name, width, height, intrinsic, pose))
        except ValueError as error:
            raise UserError(f"{path}: {error}", hint="correct this camera") from error
    try:
        rig = Rig(tuple(cameras))
    except ValueError as error:
        raise UserError(f"{path}: {error}", hint="give each camera its own name") from error
    with_depth = [each for each in content.cameras if each.depth is not None]
    if not with_depth:
        return rig, images, None
    if len(with_depth) < len(cameras):
        raise UserError(
            f"{path}: {len(with_depth)} of {len(cameras)} cameras have a depth",
            hint="give every camera a depth, or none",
        )
    return (
        rig,
        images,
        [_depth(path.parent, each.depth, c) for each, c in zip(with_depth, cameras, strict=True)],
    )


def _depth(folder: Path, name: Path | None, camera: Camera) -> np.ndarray:
    assert name is not None
    path = folder / name
    depth = read_carla_rgb24(path) if path.suffix == ".png" else read_npy(path)
    if depth.shape != (camera.height, camera.width):
        raise DataError(
            f"{path}: depth of {depth.shape[1]}x{depth.shape[0]} pixels, the image has "
            f"{camera.width}x{camera.height}",
            hint="render depth and image at one size",
        )
    return depth
