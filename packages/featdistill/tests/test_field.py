"""The teacher's field in space: against integrals in closed form and a slow loop in float64."""

import math

import numpy as np
import pytest
import torch
from featdistill.gaussians import Gaussians
from featdistill.models import field
from loom import native


def some_gaussians(count: int, seed: int = 0) -> Gaussians:
    draw = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.rand(count, 3, generator=draw) * 2 - 1,
        log_scales=torch.rand(count, 3, generator=draw) * 1.5 - 3.0,
        rotations=torch.randn(count, 4, generator=draw),
        opacity_logits=torch.randn(count, generator=draw) * 2,
        sh=torch.randn(count, 16, 3, generator=draw) * 0.2,
    )


def unit(count: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=-1)


def quaternion_matrix(q: np.ndarray) -> np.ndarray:
    w, v = q[0], q[1:]
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def extinction_by_hand(gaussians: Gaussians, point: np.ndarray, blur: float) -> float:
    total = 0.0
    for i in range(len(gaussians)):
        q = gaussians.rotations[i].double().numpy()
        axes = quaternion_matrix(q / np.linalg.norm(q))
        deviations = np.sqrt(np.exp(2 * gaussians.log_scales[i].double().numpy()) + blur**2)
        whitened = (axes.T @ (point - gaussians.means[i].double().numpy())) / deviations
        m2 = whitened @ whitened
        if m2 < 9:
            opacity = min(1 / (1 + math.exp(-gaussians.opacity_logits[i].item())), 0.99)
            size = np.prod(deviations) ** (1 / 3)
            total += -math.log(1 - opacity) / (math.sqrt(2 * math.pi) * size) * math.exp(-m2 / 2)
    return total


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_extinction_matches_a_loop_in_float64(impl):
    if impl == "cpu" and isinstance(field.library(), native.Unavailable):
        pytest.skip("no compiler here")
    gaussians = some_gaussians(60)
    points = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sample = field.query_field(gaussians, points, unit(40, 2), blur=0.03, impl=impl)
    expected = [extinction_by_hand(gaussians, p, 0.03) for p in points.double().numpy()]
    np.testing.assert_allclose(sample.extinction.numpy(), expected, rtol=2e-4, atol=1e-6)


def test_the_kernel_equals_its_twin_colours_included():
    if isinstance(field.library(), native.Unavailable):
        pytest.skip("no compiler here")
    gaussians = some_gaussians(300, seed=3)
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(4)) * 2.4 - 1.2
    views = unit(2000, 5)
    slow = field.query_field(gaussians, points, views, blur=0.01, impl="torch")
    fast = field.query_field(gaussians, points, views, blur=0.01, impl="cpu")
    torch.testing.assert_close(fast.extinction, slow.extinction, rtol=1e-3, atol=1e-4)
    seen = slow.extinction > 1e-3
    assert 0.1 < seen.float().mean() < 1.0
    torch.testing.assert_close(fast.rgb[seen], slow.rgb[seen], rtol=1e-3, atol=1e-3)


def test_a_ray_through_a_round_gaussian_gathers_its_opacity():
    opacity = 0.7
    gaussians = Gaussians(
        means=torch.zeros(1, 3),
        log_scales=torch.full((1, 3), math.log(0.1)),
        rotations=torch.tensor([[1.0, 0, 0, 0]]),
        opacity_logits=torch.tensor([math.log(opacity / (1 - opacity))]),
        sh=torch.zeros(1, 16, 3),
    )
    t = torch.linspace(-0.5, 0.5, 2001)
    points = torch.stack([t, torch.zeros_like(t), torch.zeros_like(t)], dim=-1)
    sample = field.query_field(gaussians, points, unit(2001, 0), blur=0.0)
    depth = torch.trapezoid(sample.extinction, t).item()
    # The tails beyond three deviations are left out: they hold 0.27 % of the optical depth.
    assert 1 - math.exp(-depth) == pytest.approx(opacity, abs=2e-3)


def test_empty_space_has_no_density_and_a_grey_colour():
    sample = field.query_field(some_gaussians(5), torch.full((3, 3), 40.0), unit(3, 1), blur=0.0)
    assert sample.extinction.tolist() == [0, 0, 0]
    assert sample.rgb.tolist() == [[0.5] * 3] * 3


def test_the_screen_blur_is_the_rasterisers_at_that_distance():
    assert field.screen_blur(focal_px=277.78, distance=4.031) == pytest.approx(0.00795, abs=1e-5)


def test_solid_is_within_so_many_deviations_of_a_gaussian_that_can_be_seen():
    gaussians = Gaussians(
        means=torch.tensor([[0.0, 0, 0], [5.0, 0, 0]]),
        log_scales=torch.tensor([[0.2, 0.1, 0.1], [0.2, 0.1, 0.1]]).log(),
        rotations=torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
        opacity_logits=torch.tensor([3.0, -6.0]),
        sh=torch.zeros(2, 16, 3),
    )
    along = torch.tensor([[0.45, 0, 0], [0.47, 0, 0], [0, 0.22, 0], [0, 0.24, 0], [5.0, 0, 0]])
    assert field.solid(gaussians, along, blur=0.0).tolist() == [True, False, True, False, False]
    box = field.bounding_box(gaussians)
    torch.testing.assert_close(box, torch.tensor([[-0.06] * 3, [0.06] * 3]))
    blurred = field.bounding_box(gaussians, blur=0.1)
    torch.testing.assert_close(blurred, torch.tensor([[-0.23] * 3, [0.23] * 3]))
