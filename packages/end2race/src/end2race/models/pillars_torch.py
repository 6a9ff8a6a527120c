"""Dynamic pillars in plain torch: the readable twin of `csrc/pillar.cpp`.

Every point inside the grid's box belongs to the pillar of its cell; none is dropped and none is
padded (the dynamic voxelisation of Zhou et al. 2020, where PointPillars caps points and pillars).
Cells and means are computed in float64 from float32 points, in the order of the points, which is
what makes both twins agree to the bit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from end2race.models.grid import BevGrid

FEATURES = 9  # x y z intensity, offsets to the pillar's mean (3), to its cell's centre (2)


class Pillars(NamedTuple):
    """The points inside the grid, each with its pillar; pillars are sorted by cell."""

    features: Tensor  # [k, 9] float32
    pillar: Tensor  # [k] int64, 0..m-1
    cell: Tensor  # [m] int64, ascending: (frame * rows + row) * columns + column


def pillarise_torch(points: Tensor, point_frame: Tensor, grid: BevGrid, frames: int) -> Pillars:
    """Assign points to pillars and describe each by nine features.

    Args:
        points: x y z (ego frame, m) and intensity, [n, 4] float32.
        point_frame: The frame of each point, [n] int64.
        grid: Box and cells.
        frames: How many frames there are, those without any point included.
    """
    rows, columns = grid.rows, grid.columns
    x, y, z = points[:, :3].double().unbind(1)
    column = torch.floor((x - grid.x_m[0]) / grid.cell_m)
    row = torch.floor((y - grid.y_m[0]) / grid.cell_m)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    inside &= (z >= grid.z_m[0]) & (z < grid.z_m[1])  # a comparison with NaN is false
    inside &= torch.isfinite(points[:, 3]) & (point_frame >= 0) & (point_frame < frames)
    kept = inside.nonzero()[:, 0]
    points, row, column = points[kept], row[kept].long(), column[kept].long()
    cell_of_point = (point_frame[kept] * rows + row) * columns + column

    occupied = torch.zeros(frames * grid.cells, dtype=torch.bool, device=points.device)
    occupied[cell_of_point] = True
    cell = occupied.nonzero()[:, 0]
    pillar = (torch.cumsum(occupied, 0) - 1)[cell_of_point]

    position = points[:, :3].double()
    sums = position.new_zeros(len(cell), 3).index_add_(0, pillar, position)
    counts = torch.bincount(pillar, minlength=len(cell))
    means = (sums / counts[:, None]).float()
    centre_x = ((column.double() + 0.5) * grid.cell_m + grid.x_m[0]).float()
    centre_y = ((row.double() + 0.5) * grid.cell_m + grid.y_m[0]).float()
    offsets = [points[:, 0] - centre_x, points[:, 1] - centre_y]
    features = torch.cat([points, points[:, :3] - means[pillar], torch.stack(offsets, 1)], 1)
    return Pillars(features, pillar, cell)


def pillar_max_torch(values: Tensor, pillar: Tensor, pillars: int) -> Tensor:
    """Return the largest value of each pillar and channel, [pillars, c].

    Of equal values the first one gets the gradient. Every pillar has at least one point.

    Args:
        values: [k, c], any floating type.
        pillar: [k] int64.
        pillars: How many there are.
    """
    with torch.no_grad():
        index = pillar[:, None].expand_as(values)
        largest = values.new_full((pillars, values.shape[1]), -torch.inf)
        largest.scatter_reduce_(0, index, values, "amax")
        order = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
        wins = (values == largest[pillar]) | values.isnan()
        first = torch.where(wins, order, len(values))
        winner = torch.full_like(largest, len(values), dtype=torch.int64)
        winner.scatter_reduce_(0, index, first, "amin")
    return values.gather(0, winner)
