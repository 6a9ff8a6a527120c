"""Claims about voxels: distances, cells that are touched, dilation, pruning."""

import pytest
import torch
from featdistill.models import occupancy


def random_voxels(shape, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < share).to(torch.uint8)


def test_voxels_are_nearly_cubic_and_the_longest_axis_has_the_resolution():
    box = torch.tensor([[-0.67, -1.2, -0.37], [0.67, 1.2, 1.03]])
    shape = occupancy.voxel_shape(box, 128)
    assert shape == (71, 128, 75)
    sizes = (box[1] - box[0]) / torch.tensor(shape)
    assert sizes.max() / sizes.min() < 1.02
    centres = occupancy.voxel_centres(box, shape)
    assert centres.shape == (*shape, 3)
    assert torch.allclose(centres[0, 0, 0], box[0] + sizes / 2)
    assert torch.allclose(centres[-1, -1, -1], box[1] - sizes / 2)
    assert occupancy.voxel_shape(torch.tensor([[0.0, 0, 0], [1.0, 1e-4, 1]]), 8) == (8, 1, 8)


def test_distance_is_the_chebyshev_distance_to_the_next_filled_voxel():
    voxels = random_voxels((7, 9, 5), 0.04)
    assert 0 < voxels.sum() < 30
    filled = voxels.nonzero()
    every = torch.ones_like(voxels).nonzero()
    slow = (every[:, None] - filled[None]).abs().amax(dim=2).amin(dim=1).view(voxels.shape)
    assert torch.equal(occupancy.chebyshev_distance(voxels).long(), slow)
    assert torch.equal(occupancy.dilate(voxels, 2).long(), (slow <= 2).long())


def test_distance_of_an_empty_grid_is_the_largest():
    empty = torch.zeros(3, 4, 5, dtype=torch.uint8)
    assert occupancy.chebyshev_distance(empty).eq(255).all()


@pytest.mark.parametrize("grid", [(4, 3, 5), (7, 9, 5), (10, 2, 6), (1, 1, 1)])
def test_a_cell_is_touched_where_a_filled_voxel_overlaps_it(grid):
    voxels = random_voxels((7, 9, 5), 0.05)
    index = occupancy.touched_cells(voxels, grid)
    for cell in torch.ones(grid).nonzero().tolist():
        overlaps = any(
            all(
                v * g < (c + 1) * n and c * n < (v + 1) * g
                for v, c, n, g in zip(voxel, cell, voxels.shape, grid, strict=True)
            )
            for voxel in voxels.nonzero().tolist()
        )
        assert (index[tuple(cell)] >= 0).item() == overlaps
    rows = index[index >= 0]
    assert rows.tolist() == list(range(len(rows)))


def test_pruning_keeps_exactly_the_filled_voxels_at_or_above_the_threshold():
    voxels = torch.tensor([[[1, 1, 1, 0, 0]]], dtype=torch.uint8)
    weights = torch.tensor([[[0.5, 0.01, 0.0099, 0.9, 0.0]]])
    assert occupancy.prune(voxels, weights, 0.01).flatten().tolist() == [1, 1, 0, 0, 0]
