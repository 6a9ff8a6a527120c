"""Where the object can be: voxels whose projection lies in every silhouette (Laurentini 1994)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from featdistill.cameras import Cameras

COARSE_RESOLUTION = 64


class Hull(NamedTuple):
    """The occupied voxels of a visual hull."""

    centers: Tensor  # [m, 3] world
    surface: Tensor  # [m] bool: at least one of the six neighbours is empty
    voxel: float  # edge length, world units


def visual_hull(cameras: Cameras, silhouettes: Tensor, resolution: int) -> Hull:
    """Carve the hull, first coarsely to find its box, then with `resolution` voxels along it.

    Args:
        cameras: Views from around the object.
        silhouettes: [n, h, w] bool. A view does not carve what lies beside its image; what most
            views do not see does not belong to the hull.
        resolution: Voxels along the longest edge of the hull's box.
    """
    center, half = _seen_cube(cameras)
    voxel = 2 * half / COARSE_RESOLUTION
    inside, points = _carve(cameras, silhouettes, center - half, center + half, voxel)
    if not inside.any():
        return Hull(points[inside], inside[inside], voxel)
    low = points[inside].amin(0) - voxel
    high = points[inside].amax(0) + voxel
    voxel = (high - low).max().item() / resolution
    inside, points = _carve(cameras, silhouettes, low, high, voxel)
    return Hull(points[inside], _has_empty_neighbour(inside)[inside], voxel)


def _seen_cube(cameras: Cameras) -> tuple[Tensor, float]:
    """The point nearest to all optical axes, and how far a view reaches around it."""
    poses = cameras.poses_world_from_camera
    origins, axes = poses[:, :3, 3], -poses[:, :3, 2]
    across = torch.eye(3).to(poses) - axes[:, :, None] * axes[:, None, :]
    center = torch.linalg.lstsq(across.sum(0), (across @ origins[:, :, None]).sum(0)).solution[:, 0]
    distance = (origins - center).norm(dim=1).max().item()
    return center, distance * 0.5 * max(cameras.width, cameras.height) / cameras.focal_px


def _carve(
    cameras: Cameras, silhouettes: Tensor, low: Tensor, high: Tensor, voxel: float
) -> tuple[Tensor, Tensor]:
    """Return which voxels of a box are inside all silhouettes [x, y, z], and their centres."""
    counts = ((high - low) / voxel).ceil().long().tolist()
    axes = [low[k] + (torch.arange(count) + 0.5) * voxel for k, count in enumerate(counts)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    flat = points.reshape(-1, 3)
    left = torch.arange(len(flat))
    views_that_see = torch.zeros(len(flat), dtype=torch.long)
    size = torch.tensor([cameras.width, cameras.height])
    for view, silhouette in enumerate(silhouettes):
        pixels, depth = cameras.project(torch.full((len(left),), view), flat[left])
        pixel = pixels.round().long()
        seen = (depth > 0) & ((pixel >= 0) & (pixel < size)).all(dim=1)
        x, y = torch.minimum(pixel.clamp_min(0), size - 1).unbind(1)
        views_that_see[left] += seen
        left = left[silhouette[y, x] | ~seen]
    left = left[2 * views_that_see[left] > len(silhouettes)]
    inside = torch.zeros(len(flat), dtype=torch.bool)
    inside[left] = True
    return inside.reshape(counts), points


def _has_empty_neighbour(inside: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(inside, (1,) * 6)
    full = torch.ones_like(inside)
    for axis in range(3):
        for shift in (-1, 1):
            full &= padded.roll(shift, axis)[1:-1, 1:-1, 1:-1]
    return ~full
