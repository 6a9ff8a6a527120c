"""Claims about the torch twin and the student: networks, marching, compositing, pruning."""

import math
from dataclasses import replace

import pytest
import torch
from featdistill.models import kilo_torch, occupancy
from featdistill.models.kilo_layout import NetworkShape
from featdistill.models.student import Student, query, render_rays
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
        student.weights.add_(torch.randn(student.weights.shape, generator=noise), alpha=0.1)
        student.head.add_(torch.randn(student.head.shape, generator=noise), alpha=0.1)
    return student


def gradient_of(tensor):
    assert tensor.grad is not None
    return tensor.grad


def random_rays(n, seed=0):
    """Rays from a sphere of radius 3 towards the box, a few of which miss it."""
    generator = torch.Generator().manual_seed(seed)
    origins = nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1) * 3.0
    targets = (torch.rand(n, 3, generator=generator) - 0.5) * 1.6
    return origins, nn.functional.normalize(targets - origins, dim=1)


def one_network(row, shape, local, direction):
    """Evaluate one sample in float64 by `nn.functional.linear` on matrices cut out by hand."""
    h, p, d = shape.hidden, shape.position_inputs, shape.direction_inputs

    def take(*size):
        nonlocal row
        block, row = row[: math.prod(size)].reshape(size), row[math.prod(size) :]
        return block

    def encode(x, frequencies):
        values = [x]
        for k in range(frequencies):
            values += [(x * 2**k).sin(), (x * 2**k).cos()]
        return torch.cat(values)

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
    assert torch.allclose(gradient_of(ours), gradient_of(theirs), atol=1e-11)
    assert gradient_of(ours)[2].eq(0).all()
    assert gradient_of(ours)[3].ne(0).any()


def slab_student(raw_density, low, high):
    """A student whose networks return one density and colour, filled where low <= x < high."""
    shape = occupancy.voxel_shape(BOX, 16)
    x = occupancy.voxel_centres(BOX, shape)[..., 0]
    student = make_student(occupied=((x > low) & (x < high)).to(torch.uint8))
    with torch.no_grad():
        student.weights.zero_()
        student.shape.blocks(student.weights).output_bias[:, 3] = raw_density
        student.shape.blocks(student.weights).output_bias[:, 0] = 2.0
    return student


@pytest.mark.parametrize("impl", ["torch", "auto"])
@pytest.mark.parametrize("raw_density", [-3.0, 0.5, 4.0])
def test_a_slab_of_constant_density_has_the_opacity_of_beer_and_lambert(impl, raw_density):
    student = slab_student(raw_density, -0.5, 0.25)
    origins = torch.tensor([[-4.0, 0.1, 0.2], [0.0, 0.1, 0.2], [5.0, 0.2, -0.3]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    lengths = torch.tensor([0.75, 0.25, 0.75])  # the second ray starts inside the slab
    outputs = render_rays(student, origins, directions, impl=impl)
    per_unit = nn.functional.softplus(torch.tensor(raw_density)) / student.step
    opacity = 1 - torch.exp(-per_unit * lengths)
    assert torch.allclose(1 - outputs.transmittance, opacity, atol=1e-5)
    colour = torch.sigmoid(torch.tensor([2.0, 0.0, 0.0]))
    assert torch.allclose(outputs.rgb, opacity[:, None] * colour, atol=1e-5)

    # depth: sum of T alpha t over the middles of the steps, a geometric series
    step, alpha = student.step, torch.sigmoid(torch.tensor(raw_density)).item()
    count = round(0.75 / step)
    terms = [(1 - alpha) ** k * alpha * (3.5 + (k + 0.5) * step) for k in range(count)]
    assert outputs.depth[0].item() == pytest.approx(sum(terms), abs=1e-4)


@pytest.mark.parametrize("impl", ["torch", "auto"])
def test_rays_that_meet_nothing_see_nothing(impl):
    student = slab_student(3.0, -2.0, 2.0)
    origins = torch.tensor(
        [
            [3.0, 3.0, 3.0],  # points away
            [-3.0, 0.0, 0.0],  # the box is behind it
            [0.0, 2.0, 0.0],  # parallel to an axis, beside the box
            [0.0, 0.0, 0.0],  # no direction
            [-1.0, -1.5, 0.0],  # through one edge of the box only
        ]
    )
    diagonal = 0.5**0.5
    directions = torch.tensor(
        [[1.0, 0, 0], [-1.0, 0, 0], [1.0, 0, 0], [0.0, 0, 0], [-diagonal, diagonal, 0]]
    )
    outputs = render_rays(student, origins, directions, feature_rays=5, impl=impl)
    assert outputs.transmittance.eq(1).all()
    for seen in (outputs.rgb, outputs.depth, outputs.features):
        assert seen.eq(0).all()
    none = render_rays(student, torch.zeros(0, 3), torch.zeros(0, 3), impl=impl)
    assert none.rgb.shape == (0, 3)


@pytest.mark.parametrize("impl", ["torch", "auto"])
def test_axis_parallel_rays_on_a_face_of_the_box_are_finite(impl):
    student = make_student()
    origins = torch.tensor([[-3.0, 0.5, 0.75], [0.0, -3.0, -0.75], [1.0, 0.0, 4.0]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    outputs = render_rays(student, origins, directions, feature_rays=3, impl=impl)
    assert all(part.isfinite().all() for part in outputs)
    assert (outputs.transmittance < 1).all()


def test_jitter_moves_samples_by_a_share_of_a_step():
    student = make_student()
    origins, directions = random_rays(20)
    middle = kilo_torch.march(student.volume, origins, directions, torch.full((20,), 0.5))
    early = kilo_torch.march(student.volume, origins, directions, torch.full((20,), 0.25))
    first, second = middle.ray_start[:-1], early.ray_start[:-1]
    hit = (middle.ray_start.diff() > 0) & (early.ray_start.diff() > 0)
    moved = middle.distance[first[hit]] - early.distance[second[hit]]
    assert torch.allclose(moved, torch.full_like(moved, 0.25 * student.step), atol=1e-5)


@pytest.mark.parametrize("impl", ["torch", "auto"])
def test_composited_features_equal_the_head_applied_to_every_sample(impl):
    student = make_student()
    origins, directions = random_rays(40)
    outputs = render_rays(student, origins, directions, feature_rays=25, impl=impl)
    samples = kilo_torch.march(student.volume, origins, directions, torch.full((40,), 0.5))
    expected = torch.zeros(25, 128, dtype=torch.float64)
    passed, ray = 1.0, -1
    for k in range(int(samples.ray_start[25])):
        if int(samples.ray[k]) != ray:
            passed, ray = 1.0, int(samples.ray[k])
        cell = int(samples.cell[k])
        raw, z = one_network(
            student.weights[cell].detach().double(), student.shape,
            samples.local[k].double(), directions[ray].double(),
        )  # fmt: skip
        matrix = student.head[cell].detach().double().view(33, 128)
        alpha = torch.sigmoid(raw[3]).item()
        expected[ray] += passed * alpha * (z @ matrix[:32] + matrix[32])
        passed *= 1 - alpha
    assert expected.abs().max() > 0.1
    assert torch.allclose(outputs.features.double(), expected, atol=1e-5)


def test_query_agrees_with_what_rays_meet_there():
    student = make_student()
    origins, directions = random_rays(30)
    samples = kilo_torch.march(student.volume, origins, directions, torch.full((30,), 0.5))
    ray = samples.ray.long()
    points = origins[ray] + samples.distance[:, None] * directions[ray]
    raw, inside = query(student, points, directions[ray])
    expected, _ = kilo_torch.network(
        student.weights, student.shape, samples.cell, samples.local, directions[ray]
    )
    assert inside.all()
    assert (raw - expected).abs().median() < 1e-5  # borders may fall to a neighbour
    outside, mask = query(student, torch.full((1, 3), 7.0), directions[:1])
    assert not mask.any()
    assert outside.eq(0).all()


def test_pruning_never_drops_a_voxel_above_the_threshold():
    student = make_student()
    origins, directions = random_rays(200)
    seen = student.new_max_weight()
    before = render_rays(student, origins, directions, max_weight=seen)
    filled = student.occupancy.clone()
    share = student.prune(seen, 0.02)
    kept = student.occupancy > 0
    assert kept[seen >= 0.02].all()
    assert not kept[seen < 0.02].any()
    assert not (kept & (filled == 0)).any()
    assert share == pytest.approx(kept.float().mean().item())
    assert 0 < share < 1
    assert torch.equal(student.distance, occupancy.chebyshev_distance(student.occupancy))
    after = render_rays(student, origins, directions)
    counts = [
        len(kilo_torch.march(volume, origins, directions, torch.full((200,), 0.5)).ray)
        for volume in (replace(student.volume, occupancy=filled), student.volume)
    ]
    assert counts[1] < counts[0]
    assert (after.rgb - before.rgb).abs().max() < 0.02 * 8  # few samples of a ray were dropped


def test_a_student_is_rebuilt_from_its_state():
    student = make_student(seed=3)
    origins, directions = random_rays(50)
    seen = student.new_max_weight()
    render_rays(student, origins, directions, max_weight=seen)
    student.prune(seen, 0.05)  # more cells than the occupancy touches now
    again = Student.from_state(student.config, student.state_dict())
    loaded = make_student(seed=4)
    loaded.load_state_dict(student.state_dict())
    expected = render_rays(student, origins, directions, feature_rays=9)
    for other in (again, loaded):
        assert torch.equal(other.distance, student.distance)
        seen_again = render_rays(other, origins, directions, feature_rays=9)
        assert all(torch.equal(a, b) for a, b in zip(seen_again, expected, strict=True))


def test_all_cells_start_alike_and_the_generator_decides_how():
    shape = occupancy.voxel_shape(BOX, 16)
    occupied = torch.zeros(shape, dtype=torch.uint8)
    occupied[:4] = 1  # one of four columns of cells
    students = [
        Student(
            StudentConfig(grid_resolution=(4, 3, 2), occupancy_resolution=16),
            BOX,
            occupied,
            torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    ]
    first, same, other = students
    assert first.weights.shape == (6, 4688)
    assert first.weights.eq(first.weights[0]).all()
    assert torch.equal(first.projector.weight, same.projector.weight)
    assert torch.equal(first.weights, same.weights)
    assert not torch.equal(first.weights, other.weights)
    net = first.shape.blocks(first.weights.detach())
    assert net.output_bias[0, :4].tolist() == [0.0, 0.0, 0.0, -1.0]
    assert net.trunk.abs().max().item() == pytest.approx(0.7 * (6 / 32) ** 0.5, rel=0.02)
    with pytest.raises(ValueError, match=r"not \[16, 8, 12\]"):
        Student(first.config, BOX, occupied[:-1], torch.Generator())
