"""Pillars against a dictionary of points in float64, a dense maximum, and each twin the other."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from end2race.models.grid import BevGrid
from end2race.models.pillars import PillarEncoder, pillar_max, pillarise, scatter_to_grid

GRID = BevGrid((-2.8, 10.0), (-6.4, 6.4), (-1.0, 2.0), 0.2)
SMALL = BevGrid((0.0, 2.0), (-1.0, 1.0), (-1.0, 1.0), 0.5)
IMPLS = ("torch", "cpu")


def cloud(n, seed, frames=3, grid=GRID):
    """Points in and around the box; some on cell edges, some not finite."""
    rng = np.random.default_rng(seed)
    low = np.array([grid.x_m[0], grid.y_m[0], grid.z_m[0], 0.0])
    high = np.array([grid.x_m[1], grid.y_m[1], grid.z_m[1], 1.0])
    points = (low - 1 + rng.random((n, 4)) * (high - low + 2)).astype(np.float32)
    edges = rng.random(n) < 0.2
    column = rng.integers(-1, grid.columns + 2, edges.sum())
    points[edges, 0] = grid.x_m[0] + column * grid.cell_m
    bad = rng.random(n) < 0.02
    points[bad, rng.integers(0, 4, bad.sum())] = rng.choice([np.nan, np.inf, -np.inf], bad.sum())
    return torch.from_numpy(points), torch.from_numpy(rng.integers(0, frames, n))


def dictionary_of_points(points, point_frame, grid):
    """The definition, point by point in Python's float64."""
    cells = defaultdict(list)
    for index, (point, frame) in enumerate(zip(points.tolist(), point_frame.tolist(), strict=True)):
        if not all(map(math.isfinite, point)):
            continue
        x, y, z, _ = point
        column = math.floor((x - grid.x_m[0]) / grid.cell_m)
        row = math.floor((y - grid.y_m[0]) / grid.cell_m)
        inside = 0 <= column < grid.columns and 0 <= row < grid.rows
        if inside and grid.z_m[0] <= z < grid.z_m[1]:
            cells[frame, row, column].append(index)
    features, cell, pillar = {}, [], {}
    for number, ((frame, row, column), members) in enumerate(sorted(cells.items())):
        cell.append((frame * grid.rows + row) * grid.columns + column)
        rows = np.array([points[i].tolist() for i in members])
        mean = rows[:, :3].mean(0)
        centre = np.array([(column + 0.5) * grid.cell_m + grid.x_m[0],
                           (row + 0.5) * grid.cell_m + grid.y_m[0]])  # fmt: skip
        for index, point in zip(members, rows, strict=True):
            features[index] = np.concatenate([point, point[:3] - mean, point[:2] - centre])
            pillar[index] = number
    kept = sorted(features)
    table = np.array([features[i] for i in kept]).reshape(-1, 9)
    return table, [pillar[i] for i in kept], cell


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("seed", range(4))
def test_cells_and_features_are_those_of_a_dictionary_in_float64(impl, seed):
    points, frame = cloud(700, seed)
    found = pillarise(points, frame, GRID, 3, impl=impl)
    features, pillar, cell = dictionary_of_points(points, frame, GRID)
    assert found.cell.tolist() == cell
    assert found.pillar.tolist() == pillar
    np.testing.assert_allclose(found.features.numpy(), features, rtol=0, atol=2e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("x", "y", "z", "cell"),
    [
        (0.0, -1.0, -1.0, 0),  # the lower corner is inside
        (0.5, -1.0, 0.0, 1),  # an edge belongs to the upper cell
        (math.nextafter(0.5, 0), -1.0, 0.0, 1),  # rounds to 0.5 in float32
        (0.49, -0.5, 0.0, 4),
        (2.0, 0.0, 0.0, None),  # the upper edge is outside
        (0.0, 1.0, 0.0, None),
        (0.0, 0.0, 1.0, None),
        (-0.25, 0.0, 0.0, None),  # truncation would put it into column 0
        (1.9999, 0.9999, 0.9999, 15),
        (math.nan, 0.0, 0.0, None),
        (0.0, math.inf, 0.0, None),
        (1e30, 0.0, 0.0, None),
    ],
)
def test_an_edge_belongs_to_the_cell_above_it(impl, x, y, z, cell):
    found = pillarise(torch.tensor([[x, y, z, 1.0]]), torch.tensor([0]), SMALL, 1, impl=impl)
    assert found.cell.tolist() == ([] if cell is None else [cell])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_batch_whose_last_frame_is_empty_keeps_its_size(impl):
    torch.manual_seed(0)  # some channel is above zero
    encoder = PillarEncoder(SMALL, 5, batch_norm=False)
    points = torch.tensor([[0.1, 0.0, 0.0, 1.0], [9.0, 0.0, 0.0, 1.0]])
    view = encoder(points, torch.tensor([0, 2]), 3, impl=impl)
    assert view.shape == (3, 5, SMALL.rows, SMALL.columns)
    assert view[0].abs().sum() > 0
    assert (view[1:] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_batch_without_any_point_is_an_empty_view_with_zero_gradients(impl, batch_norm):
    encoder = PillarEncoder(SMALL, 5, batch_norm=batch_norm)
    nothing = torch.empty(0, dtype=torch.int64)
    view = encoder(torch.empty(0, 4), nothing, 2, impl=impl)
    assert view.shape == (2, 5, SMALL.rows, SMALL.columns)
    view.sum().backward()
    assert (encoder.linear.weight.grad == 0).all()


def test_a_lone_point_is_normalised_by_what_the_training_has_seen():
    encoder = PillarEncoder(SMALL, 5, batch_norm=True).eval()
    encoder.norm.running_mean.uniform_(-1, 1)
    encoder.norm.running_var.uniform_(0.1, 3)
    lone = torch.tensor([[0.1, 0.0, 0.0, 1.0]])
    frame = torch.zeros(1, dtype=torch.int64)
    together = encoder(torch.cat([lone, lone]), torch.tensor([0, 1]), 2)
    assert encoder(lone, frame, 1)[0].equal(together[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_permuted_points_give_the_same_view(impl):
    points, frame = cloud(2_000, 1)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    one = pillarise(points, frame, GRID, 3, impl=impl)
    other = pillarise(points[order], frame[order], GRID, 3, impl=impl)
    assert torch.equal(one.cell, other.cell)
    maxima = [
        pillar_max(each.features, each.pillar, len(each.cell), impl=impl) for each in (one, other)
    ]
    assert torch.equal(maxima[0][:, :4], maxima[1][:, :4])
    torch.testing.assert_close(maxima[0], maxima[1], rtol=0, atol=1e-6)


def test_the_twins_are_bit_equal_on_200_clouds():
    for seed in range(200):
        points, frame = cloud(1 + 7 * seed, seed)
        twins = [pillarise(points, frame, GRID, 3, impl=impl) for impl in IMPLS]
        for name, *pair in zip(twins[0]._fields, *twins, strict=True):
            assert torch.equal(*pair), f"{name} of cloud {seed}"
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(len(twins[0].pillar), 6, generator=generator).relu()  # many ties
        weight = torch.randn(len(twins[0].cell), 6, generator=generator)
        largest, gradients = [], []
        for impl, found in zip(IMPLS, twins, strict=True):
            leaf = values.clone().requires_grad_()
            largest.append(pillar_max(leaf, found.pillar, len(found.cell), impl=impl))
            (largest[-1] * weight).sum().backward()
            gradients.append(leaf.grad)
        assert torch.equal(*largest), f"maximum of cloud {seed}"
        assert torch.equal(*gradients), f"gradient of cloud {seed}"


@pytest.mark.parametrize("impl", IMPLS)
def test_the_maximum_and_its_gradient_are_those_of_a_dense_masked_maximum(impl):
    points, frame = cloud(400, 3)
    found = pillarise(points, frame, GRID, 3, impl=impl)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(found.pillar), 4, generator=generator)
    weight = torch.randn(len(found.cell), 4, generator=generator)
    ours, dense = (values.clone().requires_grad_() for _ in range(2))
    largest = pillar_max(ours, found.pillar, len(found.cell), impl=impl)
    member = found.pillar[None] == torch.arange(len(found.cell))[:, None]
    reference = dense[None].masked_fill(~member[..., None], -torch.inf).amax(1)
    assert torch.equal(largest, reference)
    (largest * weight).sum().backward()
    (reference * weight).sum().backward()
    assert torch.equal(ours.grad, dense.grad)


def test_the_gradient_of_the_maximum_passes_gradcheck():
    pillar = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    values = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values.requires_grad_()
    torch.autograd.gradcheck(lambda v: pillar_max(v, pillar, 3), values)


def test_the_grid_is_indexed_row_by_y_and_column_by_x():
    points = torch.tensor([[1.6, -0.9, 0.0, 1.0]])  # x in the last column, y in the first row
    found = pillarise(points, torch.tensor([0]), SMALL, 1)
    view = scatter_to_grid(torch.ones(1, 1), found.cell, SMALL, 1)
    assert view[0, 0].nonzero().tolist() == [[0, 3]]


def test_points_of_another_layout_are_refused():
    with pytest.raises(ValueError, match=r"\[n, 4\] float32"):
        pillarise(torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64), SMALL, 1)
