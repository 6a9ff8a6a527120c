"""Claims about the torch twin and the student: networks, marching, compositing, pruning."""

import math

import pytest
import torch
from featdistill.models import kilo_torch, occupancy
from featdistill.models.kilo_layout import NetworkShape
from featdistill.models.student import Student
from featdistill.student_config import StudentConfig
from torch import nn

BOX = torch.tensor([[-1.0, -0.5, -0.75], [1.0, 0.5, 0.75]])


def make_student(
    *, occupied=None, hidden=32, frequencies=(4, 2), resolution=16, steps=32, grid=(4, 3, 2), seed=0
):
    config = StudentConfig(
        grid_resolution=grid,
        hidden_dim=hidden,
        position_frequencies=frequencies[0],
        direction_frequencies=frequencies[1],
        steps_per_axis=steps,
        occupancy_resolution=resolution,
    )
    if occupied is None:
        occupied = torch.ones(occupancy.voxel_shape(BOX, resolution), dtype=torch.uint8)
    student = Student(config, BOX, occupied, torch.Generator().manual_seed(seed))
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        student.weights += 0.1 * torch.randn(student.weights.shape, generator=noise)
        student.head += 0.1 * torch.randn(student.head.shape, generator=noise)
    return student


def random_rays(n, seed=0):
    """Rays from a sphere of radius 3 towards the box, a few of which miss it."""
    generator = torch.Generator().manual_seed(seed)
    origins = nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1) * 3.0
    targets = (torch.rand(n, 3, generator=generator) - 0.5) * 1.6
    return origins, nn.functional.normalize(targets - origins, dim=1)


def one_network(row, shape, local, direction):
    """Evaluate one sample in float64 by `nn.functional.linear` on matrices cut out by hand."""
    h, p, d = shape.hidden, shape.position_inputs, shape.direction_inputs
    cut = iter(range(0))

    def take(*size):
        nonlocal row
        block, row = row[: math.prod(size)].reshape(size), row[math.prod(size) :]
        return block

    def encode(x, frequencies):
        values = [x]
        for k in range(frequencies):
            values += [(x * 2**k).sin(), (x * 2**k).cos()]
        return torch.cat(values)

    del cut
    linear = nn.functional.linear
    first = linear(encode(local, (p - 3) // 6), take(p, h).T, take(h)).relu()
    z = linear(first, take(h, h).T, take(h)).relu()
    density = take(h) @ z
    feature = linear(z, take(h, h).T, take(h))
    inputs = torch.cat([feature, encode(direction, (d - 3) // 6)])
    hidden = linear(inputs, take(h + d, h).T, take(h)).relu()
    colour = take(3, h) @ hidden
    bias = take(16)
    assert len(row) == 0
    return torch.cat([colour + bias[:3], (density + bias[3])[None]]), z


@pytest.mark.parametrize(("hidden", "frequencies"), [(32, (4, 2)), (48, (10, 4))])
def test_grouped_networks_equal_a_loop_of_linear_layers(hidden, frequencies):
    shape = NetworkShape(hidden, *frequencies)
    generator = torch.Generator().manual_seed(0)
    weights = 0.2 * torch.randn(5, shape.parameters, generator=generator, dtype=torch.float64)
    cell = torch.tensor([3, 0, 3, 4, 0, 3] + [1] * 40, dtype=torch.int32)  # cell 2 is empty
    local = torch.rand(len(cell), 3, generator=generator, dtype=torch.float64) * 2 - 1
    local[0], local[1] = 1.0, -1.0  # on the corners of the cell
    directions = nn.functional.normalize(
        torch.randn(len(cell), 3, generator=generator, dtype=torch.float64), dim=1
    )
    upstream = torch.randn(len(cell), 4 + hidden, generator=generator, dtype=torch.float64)

    ours = weights.clone().requires_grad_()
    raw, z = kilo_torch.network(ours, shape, cell, local, directions)
    (torch.cat([raw, z], dim=1) * upstream).sum().backward()

    theirs = weights.clone().requires_grad_()
    rows = [
        torch.cat(one_network(theirs[c], shape, x, d))
        for c, x, d in zip(cell, local, directions, strict=True)
    ]
    expected = torch.stack(rows)
    (expected * upstream).sum().backward()

    assert torch.allclose(torch.cat([raw, z], dim=1), expected, atol=1e-12)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-11)
    assert ours.grad[2].eq(0).all()
    assert ours.grad[3].ne(0).any()
