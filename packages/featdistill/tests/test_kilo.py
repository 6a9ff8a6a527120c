"""Claims about the native kernels: equal to the float64 twin, at every instruction set."""

import pytest
import torch
from featdistill.cameras import Cameras, orbit_poses
from featdistill.models import kilo, kilo_torch
from featdistill.models.kilo_layout import RayOutputs
from featdistill.models.student import query, render_image, render_rays
from loom import native
from loom.errors import UserError
from loom.native.toolchain import cpu_levels
from torch import nn

pytestmark = pytest.mark.skipif(
    isinstance(kilo.library(), native.Unavailable), reason="no compiler"
)


def gradient_of(tensor):
    assert tensor.grad is not None
    return tensor.grad


@pytest.fixture(params=cpu_levels())
def isa(request, monkeypatch):
    """Run the test once for every instruction set of this machine."""
    monkeypatch.setenv("LOOM_ISA", request.param)
    found = kilo.library()
    assert isinstance(found, native.Library)
    assert found.isa == request.param


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def relative_error(ours, theirs):
    return ((ours.double() - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("filled", [0.02, 0.3, 1.0])
def test_marching_yields_the_samples_of_the_twin_bit_by_bit(isa, filled, make_student, random_rays):
    student = make_student(filled=filled)
    origins, directions, jitter = random_rays(400)
    ours = kilo.march(student.volume, origins, directions, jitter)
    theirs = kilo_torch.march(student.volume, origins, directions, jitter)
    assert len(theirs.ray) > 50
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(mine, reference.to(mine.dtype))


@pytest.mark.parametrize(
    ("hidden", "frequencies"), [(32, (4, 2)), (48, (4, 2)), (32, (10, 4)), (48, (10, 4))]
)
def test_rendering_and_its_gradients_equal_the_float64_twin(
    isa, hidden, frequencies, make_student, random_rays
):
    student = make_student(hidden, frequencies)
    origins, directions, jitter = random_rays(300)
    weights = student.weights.detach().double().requires_grad_()
    head = student.head.detach().double().requires_grad_()
    theirs = kilo_torch.render(
        weights, head, student.shape, student.volume, origins, directions, jitter, 100
    )
    ours = render_rays(student, origins, directions, jitter=jitter, feature_rays=100, impl="cpu")

    noise = torch.Generator().manual_seed(2)
    upstream = [torch.randn(x.shape, generator=noise) for x in ours]
    torch.autograd.backward(list(ours), upstream)
    torch.autograd.backward(list(theirs), [u.double() for u in upstream])

    for name, mine, reference in zip(RayOutputs._fields, ours, theirs, strict=True):
        assert relative_error(mine, reference) < 1e-5, name
    assert relative_error(gradient_of(student.weights), gradient_of(weights)) < 1e-4
    assert relative_error(gradient_of(student.head), gradient_of(head)) < 1e-4
    for name, mine, reference in zip(
        student.shape.blocks(weights)._fields,
        student.shape.blocks(gradient_of(student.weights)),
        student.shape.blocks(gradient_of(weights)),
        strict=True,
    ):
        assert relative_error(mine, reference) < 1e-3, name


@pytest.mark.parametrize("samples_per_cell", [1, 7, 33, 200])
def test_scattered_points_equal_the_float64_twin_for_any_count_per_cell(
    isa, samples_per_cell, make_student
):
    student = make_student()
    noise = torch.Generator().manual_seed(3)
    cell = torch.arange(len(student.weights), dtype=torch.int32).repeat(samples_per_cell)
    cell = cell[(cell != 4) & (cell != len(student.weights) - 1)]  # cells without a point
    cell = cell[torch.randperm(len(cell), generator=noise)]
    local = torch.rand(len(cell), 3, generator=noise) * 2 - 1
    local[::5] = local[::5].sign()  # on the faces and corners
    directions = nn.functional.normalize(torch.randn(len(cell), 3, generator=noise), dim=1)
    upstream = torch.randn(len(cell), 4, generator=noise)

    weights = student.weights.detach().double().requires_grad_()
    theirs, _ = kilo_torch.network(
        weights, student.shape, cell, local.double(), directions.double()
    )
    theirs.backward(upstream.double())
    ours = kilo.network(student.weights, student.shape, cell, local, directions)
    ours.backward(upstream)

    assert relative_error(ours, theirs) < 1e-5
    assert relative_error(gradient_of(student.weights), gradient_of(weights)) < 1e-5
    assert gradient_of(student.weights)[4].eq(0).all()


def test_no_gradient_reaches_samples_behind_an_opaque_surface(isa, make_student):
    student = make_student(filled=1.0)
    with torch.no_grad():  # opaque in front (x > 0), coloured behind
        student.shape.blocks(student.weights).output_bias[:, 3] = 8.0
    origins = torch.tensor([[3.0, 0.1, 0.2]])
    directions = torch.tensor([[-1.0, 0.0, 0.0]])
    samples = kilo.march(student.volume, origins, directions, torch.tensor([0.5]))
    outputs = render_rays(student, origins, directions, feature_rays=1, impl="cpu")
    assert outputs.transmittance.item() < 1e-3
    torch.autograd.backward(list(outputs), [torch.ones_like(x) for x in outputs])
    touched = gradient_of(student.weights).ne(0).any(dim=1).nonzero()[:, 0]
    assert touched.tolist() == [int(samples.cell[0])]
    assert len(samples.cell.unique()) > 1


def test_huge_raw_values_stay_finite(isa, make_student, random_rays):
    student = make_student(filled=1.0)
    bias = student.shape.blocks(student.weights.detach()).output_bias
    for value in (1e6, -1e6, 1e30):
        bias[::2, 3], bias[1::2, 3] = value, -value
        bias[:, :3] = value
        student.weights.grad = student.head.grad = None
        outputs = render_rays(student, *random_rays(50)[:2], feature_rays=20, impl="cpu")
        torch.autograd.backward(list(outputs), [torch.ones_like(x) for x in outputs])
        for tensor in (*outputs, gradient_of(student.weights), gradient_of(student.head)):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("impl", ["cpu", "torch"])
def test_raw_densities_are_clamped_at_thirty(impl, make_student, random_rays):
    student = make_student(filled=1.0)
    with torch.no_grad():
        student.weights.zero_()
        student.shape.blocks(student.weights).output_bias[:, 3] = -1e6
    origins, directions, jitter = random_rays(50)
    rgb = render_rays(student, origins, directions, jitter=jitter, impl=impl).rgb
    counts = kilo_torch.march(student.volume, origins, directions, jitter).ray_start.diff()
    expected = counts[:, None].double() * torch.sigmoid(torch.tensor(-30.0, dtype=torch.float64))
    assert relative_error(rgb, (0.5 * expected).expand(-1, 3)) < 1e-4
    rgb.sum().backward()
    assert student.shape.blocks(gradient_of(student.weights)).output_bias[:, 3].eq(0).all()


def test_results_do_not_depend_on_the_number_of_threads(one_thread, make_student, random_rays):
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        student = make_student()
        origins, directions, jitter = random_rays(300)
        seen = student.new_max_weight()
        outputs = render_rays(
            student, origins, directions, jitter=jitter, feature_rays=50, max_weight=seen
        )
        torch.autograd.backward(list(outputs), [torch.ones_like(x) for x in outputs])
        camera = Cameras(orbit_poses(1, 3.0, torch.Generator()), 24, 24, 30.0, ("a",))
        picture = render_image(student, camera)
        results.append(
            (*outputs, seen, gradient_of(student.weights), gradient_of(student.head), *picture)
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradients_may_arrive_strided(one_thread, make_student, random_rays):
    student = make_student()
    outputs = render_rays(student, *random_rays(200)[:2], feature_rays=50, impl="cpu")
    total = torch.stack([x.sum() for x in outputs]).sum()  # hands back expanded scalars
    (total * -3.0).backward(retain_graph=True)
    strided, student.weights.grad = gradient_of(student.weights), None
    torch.autograd.backward(list(outputs), [torch.full_like(x, -3.0) for x in outputs])
    assert torch.equal(strided, gradient_of(student.weights))


def test_gradients_of_two_steps_are_apart(one_thread, make_student, random_rays):
    """Memory of a gradient is used again only after the gradient is gone."""
    student = make_student()
    rays = random_rays(64)[:2]

    def gradient(scale):
        student.weights.grad = None
        (render_rays(student, *rays, impl="cpu").rgb.sum() * scale).backward()
        return gradient_of(student.weights)

    first = gradient(1.0)
    kept = first.clone()
    second = gradient(-2.0)
    assert torch.equal(first, kept)
    assert torch.allclose(second, -2.0 * kept, rtol=1e-4, atol=1e-4)
    address = second.data_ptr()
    del second
    assert gradient(1.0).data_ptr() == address
    assert torch.equal(first, kept)


def test_max_weight_collects_the_largest_weight_of_each_voxel(isa, make_student, random_rays):
    student = make_student()
    origins, directions, jitter = random_rays(300)
    ours, theirs = student.new_max_weight(), student.new_max_weight()
    render_rays(student, origins, directions, jitter=jitter, max_weight=ours, impl="cpu")
    samples = kilo_torch.march(student.volume, origins, directions, jitter)
    raw, _ = kilo_torch.network(
        student.weights.double(), student.shape, samples.cell, samples.local,
        directions[samples.ray.long()],
    )  # fmt: skip
    passed, ray = 1.0, -1
    for k in range(len(samples.ray)):  # a slow loop over all samples
        if samples.ray[k] != ray:
            passed, ray = 1.0, samples.ray[k]
        alpha = torch.sigmoid(raw[k, 3]).item()
        voxel = int(samples.voxel[k])
        theirs.view(-1)[voxel] = max(theirs.view(-1)[voxel].item(), passed * alpha)
        passed *= 1 - alpha
    assert theirs.max() > 0.1
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_picture_equals_all_samples_of_the_twin_up_to_what_the_stop_leaves(isa, make_student):
    student = make_student(filled=0.6)
    with torch.no_grad():
        student.shape.blocks(student.weights).output_bias[:, 3] += 1.0
    camera = Cameras(orbit_poses(1, 2.5, torch.Generator()), 40, 40, 50.0, ("a",))
    rgba, depth = render_image(student, camera, impl="torch")
    exact = {"impl": "cpu", "precision": "float32"}
    every_rgba, every_depth = render_image(student, camera, stop_transmittance=0.0, **exact)
    assert torch.allclose(every_rgba, rgba, atol=1e-5)
    assert torch.allclose(every_depth, depth, atol=1e-4)
    stopped, _ = render_image(student, camera, stop_transmittance=0.05, **exact)
    left = (stopped - rgba).abs().max().item()
    assert 1e-3 < left < 0.05
    inside = Cameras(torch.eye(4)[None], 16, 16, 20.0, ("inside the box",))
    assert torch.allclose(
        render_image(student, inside, stop_transmittance=0.0, **exact)[0],
        render_image(student, inside, impl="torch")[0],
        atol=1e-5,
    )


@pytest.mark.parametrize("filled", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("frequencies", [(4, 2), (5, 1), (10, 4)])
@pytest.mark.parametrize(("bfloat16", "bound"), [(False, 1e-5), (True, 2 / 255)])
def test_the_colours_of_pictures_equal_the_float64_twin(
    isa, filled, frequencies, bfloat16, bound, make_student, random_rays
):
    """Rays that miss, of length zero, along faces of cells, and through empty cells among them."""
    student = make_student(frequencies=frequencies, filled=filled)
    if bfloat16 and not kilo.has_bfloat16(student.shape):
        pytest.skip("no products in bfloat16 here")
    weights = student.weights.detach()
    origins, directions, _ = random_rays(1500)
    theirs = kilo_torch.render(
        weights.double(), student.head.detach().double(), student.shape, student.volume,
        origins, directions, torch.full((1500,), 0.5), 0,
    )  # fmt: skip
    rgba, depth = kilo.render_image(
        weights, student.shape, student.volume, origins, directions, 0.0, bfloat16=bfloat16
    )
    assert (theirs.transmittance == 1).sum() > 10
    assert rgba[3:5].eq(0).all()
    assert (rgba[:, :3] - theirs.rgb).abs().max() <= bound
    assert (1 - rgba[:, 3] - theirs.transmittance).abs().max() <= bound
    assert (depth - theirs.depth).abs().max() <= 10 * bound


def test_pictures_are_the_same_bits_for_any_order_of_the_rays(isa, make_student):
    student = make_student(filled=0.6)
    camera = Cameras(orbit_poses(1, 2.5, torch.Generator()), 70, 45, 50.0, ("a",))
    in_tiles = render_image(student, camera)
    in_blocks = render_image(student, camera, chunk=999)
    assert in_tiles[0][..., 3].max() > 0.5
    assert all(torch.equal(a, b) for a, b in zip(in_tiles, in_blocks, strict=True))


def test_query_is_the_same_with_and_without_the_kernel(isa, make_student):
    student = make_student()
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(200, 3, generator=generator) - 0.5) * 2.4
    directions = nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=1)
    ours, mask = query(student, points, directions, impl="cpu")
    ours.sum().backward()
    gradient, student.weights.grad = gradient_of(student.weights), None
    theirs, other = query(student, points, directions, impl="torch")
    theirs.sum().backward()
    assert torch.equal(mask, other)
    assert (student.cell_index < 0).any()
    assert 0 < mask.sum() < 200
    assert ours[~mask].eq(0).all()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert relative_error(gradient, gradient_of(student.weights).double()) < 1e-5


def test_a_kernel_that_cannot_be_had_is_an_error_only_when_it_is_named(make_student):
    with pytest.raises(UserError, match="impl=cuda"):
        render_rays(make_student(), torch.zeros(1, 3), torch.ones(1, 3), impl="cuda")
