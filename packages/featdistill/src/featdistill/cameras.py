"""Pinhole cameras in the NeRF-synthetic convention, and the rays of their pixels.

A pose is a camera-to-world matrix with OpenGL axes (x right, y up, z back: the camera looks along
its own -z). Pixel (x, y) has integer indices from the top left, its centre is at +0.5, and the
principal point is (width / 2, height / 2), so the ray of a pixel in the camera's frame is

    d = ((x + 0.5 - width / 2) / f, -(y + 0.5 - height / 2) / f, -1) / norm.

The view matrix has the OpenCV axes of gaussian splatting instead (x right, y down, z forward).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Rays(NamedTuple):
    """Half-lines in the world; `directions` have unit length, so a parameter t is a distance."""

    origins: Tensor  # [r, 3]
    directions: Tensor  # [r, 3]


@dataclass(frozen=True)
class Cameras:
    """The cameras of some views, which share one image size and one focal length.

    Attributes:
        poses_world_from_camera: [n, 4, 4], OpenGL axes.
        width: Image width in pixels.
        height: Image height in pixels.
        focal_px: Focal length in pixels, the same for x and y.
        names: One name per view, such as "test/r_0".
    """

    poses_world_from_camera: Tensor
    width: int
    height: int
    focal_px: float
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.poses_world_from_camera.shape)
        if len(shape) != 3 or shape[1:] != (4, 4):
            raise ValueError(f"poses_world_from_camera must be [n, 4, 4], not {list(shape)}")
        if len(self.names) != shape[0]:
            raise ValueError(f"{len(self.names)} names for {shape[0]} poses")

    def __len__(self) -> int:
        return self.poses_world_from_camera.shape[0]

    def __getitem__(self, key: int | slice | Sequence[int]) -> Cameras:
        """Choose views; an integer gives the cameras of one view, so n stays in the shapes."""
        if isinstance(key, slice):
            chosen = list(range(len(self))[key])
        elif isinstance(key, int):
            chosen = [range(len(self))[key]]
        else:
            chosen = [range(len(self))[i] for i in key]
        return replace(
            self,
            poses_world_from_camera=self.poses_world_from_camera[chosen],
            names=tuple(self.names[i] for i in chosen),
        )

    def same_as(self, other: Cameras) -> bool:
        """Say whether poses, image size and focal length are those of `other`, in its order."""
        poses = self.poses_world_from_camera, other.poses_world_from_camera
        lenses = [(each.width, each.height, each.focal_px) for each in (self, other)]
        return lenses[0] == lenses[1] and torch.equal(*poses)

    @property
    def centres(self) -> Tensor:
        """The camera centres in the world, [n, 3]."""
        return self.poses_world_from_camera[:, :3, 3]

    def view_from_world(self) -> Tensor:
        """Return [n, 4, 4] matrices from the world to OpenCV axes (x right, y down, z forward).

        The rotation is inverted by transposition: poses are rigid (the readers check it).
        """
        flip = self.poses_world_from_camera.new_tensor([1.0, -1.0, -1.0])
        rotation = self.poses_world_from_camera[:, :3, :3] * flip  # columns: x right, y down, z fwd
        view = torch.zeros_like(self.poses_world_from_camera)
        view[:, :3, :3] = rotation.transpose(1, 2)
        view[:, :3, 3] = -torch.einsum("nji,nj->ni", rotation, self.centres)
        view[:, 3, 3] = 1.0
        return view

    def rays(self, view: Tensor, pixels: Tensor) -> Rays:
        """Return the rays through the centres of pixels.

        Args:
            view: Index of the view of each ray, [r] int64, or [1] for all.
            pixels: Integer pixel (x, y) of each ray, [r, 2]; a float is an offset from the same
                grid, so (x + 0.25, y) passes a quarter of a pixel right of the centre.
        """
        poses = self.poses_world_from_camera[view]
        offset = pixels.to(poses.dtype) + 0.5
        x = (offset[:, 0] - self.width / 2) / self.focal_px
        y = (self.height / 2 - offset[:, 1]) / self.focal_px
        in_camera = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
        in_world = torch.einsum("rij,rj->ri", poses[:, :3, :3], in_camera)
        origins = poses[:, :3, 3].expand(len(pixels), 3)
        return Rays(origins, torch.nn.functional.normalize(in_world, dim=-1))

    def image_rays(self, view: int) -> Rays:
        """Return the rays of a whole image in row-major order, [height * width, 3] each."""
        y, x = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        pixels = torch.stack([x, y], dim=-1).reshape(-1, 2)
        return self[view].rays(torch.zeros(1, dtype=torch.int64), pixels)

    def project(self, view: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points: the inverse of `rays`.

        Args:
            view: Index of the view for each point, [r] int64.
            points: World points, [r, 3].

        Returns:
            Pixels [r, 2] in the indices that `rays` takes (a pixel's centre is an integer), and
            depth along the viewing axis [r], positive before the camera.
        """
        matrices = self.view_from_world()[view]
        local = torch.einsum("rij,rj->ri", matrices[:, :3, :3], points) + matrices[:, :3, 3]
        depth = local[:, 2]
        centre = local.new_tensor([self.width / 2, self.height / 2])
        return local[:, :2] / depth[:, None] * self.focal_px + centre - 0.5, depth

    def resized(self, width: int, height: int) -> Cameras:
        """Return the same views in another image size.

        Raises:
            ValueError: The size has other proportions, so that one focal length cannot serve it.
        """
        if width * self.height != height * self.width:
            raise ValueError(
                f"{width}x{height} has other proportions than {self.width}x{self.height}"
            )
        focal_px = self.focal_px * width / self.width
        return replace(self, width=width, height=height, focal_px=focal_px)


def focal_from_angle(width: int, camera_angle_x: float) -> float:
    """Return the focal length in pixels of a horizontal field of view in radians."""
    return 0.5 * width / math.tan(0.5 * camera_angle_x)


def look_at(positions: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """Return OpenGL poses [n, 4, 4] at `positions` [n, 3] that look at `target` [3].

    Args:
        positions: Camera centres in the world, [n, 3].
        target: The point in the middle of every image, [3].
        up: World direction that points up in the images, [3]; z by default. A camera that looks
            along it takes the world's y as up instead, as no direction is preferred there.
    """
    up = positions.new_tensor([0.0, 0.0, 1.0]) if up is None else up
    back = torch.nn.functional.normalize(positions - target, dim=-1)
    right = torch.linalg.cross(up.expand_as(back), back)
    fallback = torch.linalg.cross(back.new_tensor([0.0, 1.0, 0.0]).expand_as(back), back)
    right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, fallback, right)
    right = torch.nn.functional.normalize(right, dim=-1)
    poses = torch.eye(4, dtype=positions.dtype).repeat(len(positions), 1, 1)
    poses[:, :3, 0] = right
    poses[:, :3, 1] = torch.linalg.cross(back, right)
    poses[:, :3, 2] = back
    poses[:, :3, 3] = positions
    return poses


def orbit_poses(
    n: int, radius: float, generator: torch.Generator, *, height: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Draw random poses on a sphere about the origin, which they look at with z up.

    Height over radius is uniform, which is uniform in area on the sphere (Archimedes); the default
    is the upper hemisphere of the NeRF-synthetic training views.

    Args:
        n: Number of poses.
        radius: Distance from the origin.
        generator: Where the random numbers come from.
        height: Range of camera z / radius.

    Returns:
        [n, 4, 4] OpenGL poses.
    """
    sample = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    z = height[0] + (height[1] - height[0]) * sample[:, 0]
    azimuth = 2 * math.pi * sample[:, 1]
    in_plane = (1 - z * z).clamp_min(0).sqrt()
    positions = torch.stack([in_plane * azimuth.cos(), in_plane * azimuth.sin(), z], dim=-1)
    return look_at(radius * positions, torch.zeros(3, dtype=torch.float64)).float()
