"""Where a student may be filled: voxels on a box, the cells that they touch, and pruning.

Start loose and prune by what training has shown: a voxel whose samples never had a rendered weight
w = T alpha above a threshold, over many batches, contributes nothing to any picture. A tight guess
made before training is a hard cap on quality; a voxel dropped late costs nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def voxel_shape(box: Tensor, resolution: int) -> tuple[int, int, int]:
    """Return voxels per axis, nearly cubic, with `resolution` of them on the longest axis."""
    extent = (box[1] - box[0]).double()
    counts = (extent / extent.max() * resolution).round().clamp_min(1).int().tolist()
    return (counts[0], counts[1], counts[2])


def voxel_centres(box: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the centres of all voxels in world coordinates, [vx, vy, vz, 3]."""
    axes = [(torch.arange(n) + 0.5) / n for n in shape]
    unit = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return box[0] + unit * (box[1] - box[0])


def chebyshev_distance(occupancy: Tensor) -> Tensor:
    """Return the distance, in voxels along the worst axis, to the next filled voxel (uint8)."""
    filled = occupancy.cpu().numpy() > 0
    if not filled.any():
        return torch.full_like(occupancy, 255, dtype=torch.uint8)
    distance = ndimage.distance_transform_cdt(~filled, metric="chessboard")
    return torch.from_numpy(np.minimum(distance, 255).astype(np.uint8))


def dilate(occupancy: Tensor, voxels: int = 1) -> Tensor:
    """Fill every voxel within `voxels` of a filled one, diagonals included."""
    return (chebyshev_distance(occupancy) <= voxels).to(torch.uint8)


def touched_cells(occupancy: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Number the grid cells that share volume with a filled voxel; -1 elsewhere, int32 [grid].

    Voxel i of n spans [i, i+1) / n of an axis, cell j of g spans [j, j+1) / g; they overlap where
    i g < (j + 1) n and j n < (i + 1) g, in integers and thus without rounding.
    """
    touched = occupancy.cpu().numpy() > 0
    for axis, cells in enumerate(grid):
        voxels = occupancy.shape[axis]
        moved = np.moveaxis(touched, axis, 0)
        merged = [
            moved[j * voxels // cells : -(-(j + 1) * voxels // cells)].any(axis=0)
            for j in range(cells)
        ]
        touched = np.moveaxis(np.stack(merged), 0, axis)
    index = np.full(grid, -1, dtype=np.int32)
    index[touched] = np.arange(touched.sum(), dtype=np.int32)
    return torch.from_numpy(index)


def prune(occupancy: Tensor, max_weight: Tensor, threshold: float) -> Tensor:
    """Drop filled voxels whose largest rendered weight stayed below `threshold`."""
    return occupancy * (max_weight >= threshold).to(occupancy.dtype)
