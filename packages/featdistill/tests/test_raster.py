"""The rasteriser against a slow loop in float64, closed forms, gsplat and its other builds."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from featdistill.cameras import Cameras, orbit_poses
from featdistill.gaussians import Gaussians
from featdistill.models import raster
from featdistill.models.projection import project, view_of
from featdistill.models.raster import render, render_pixels
from loom import native
from loom.native.toolchain import cpu_levels

NAMES = ("means", "log_scales", "rotations", "opacity_logits", "sh", "channels")


@pytest.fixture
def kernel(monkeypatch):
    """Skip where no compiler can be had: the twin is tested all the same."""
    library = native.library("featdistill_raster", sources=[raster.SOURCE])
    if isinstance(library, native.Unavailable):
        pytest.skip(library.reason)
    return library


def scene(n, *, seed=0, dtype=torch.float32, log_scale=-2.5):
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    gaussians = Gaussians(
        means=normal(n, 3) * 0.6,
        log_scales=normal(n, 3) * 0.4 + log_scale,
        rotations=normal(n, 4),
        opacity_logits=normal(n) * 2,
        sh=normal(n, 16, 3) * 0.3,
    )
    return gaussians.map(lambda tensor: tensor.to(dtype))


def camera(width=21, height=18, *, focal_px=25.0, seed=3, dtype=torch.float32):
    poses = orbit_poses(1, 3.0, torch.Generator().manual_seed(seed)).to(dtype)
    return Cameras(poses, width, height, focal_px, ("view",))


def looking_at_origin(distance, width, height, focal_px, dtype=torch.float64):
    """A camera on the +z axis that looks down on the origin."""
    pose = torch.eye(4, dtype=dtype)[None]
    pose[0, 2, 3] = distance
    return Cameras(pose, width, height, focal_px, ("view",))


def slow_image(values, view, channels):
    """Every gaussian over every pixel, one after the other, in numpy float64.

    Returns [h, w, 3 + 1 + C + 1]: colour, depth, channels, transmittance.
    """
    means, log_scales, rotations, logits, sh = (np.asarray(v, np.float64) for v in values)
    pose = view.poses_world_from_camera[0].double().numpy()
    to_camera = (pose[:3, :3] * [1, -1, -1]).T
    y, x = np.mgrid[: view.height, : view.width] + 0.5
    out = np.zeros((view.height, view.width, 4 + channels.shape[1]))
    t = np.ones((view.height, view.width))
    open_ = np.ones_like(t, bool)
    local = (means - pose[:3, 3]) @ to_camera.T
    for i in np.argsort(local[:, 2], kind="stable"):
        cx, cy, z = local[i]
        if z <= 0.2:
            continue
        w, a, b, c = rotations[i] / np.linalg.norm(rotations[i])
        cross = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
        turn = np.eye(3) + 2 * w * cross + 2 * cross @ cross  # Rodrigues for a unit quaternion
        sigma = turn @ np.diag(np.exp(2 * log_scales[i])) @ turn.T
        f = view.focal_px
        limit_x, limit_y = 1.3 * view.width / (2 * f), 1.3 * view.height / (2 * f)
        sx, sy = np.clip(cx / z, -limit_x, limit_x), np.clip(cy / z, -limit_y, limit_y)
        jacobian = np.array([[f / z, 0, -f * sx / z], [0, f / z, -f * sy / z]])
        covariance = jacobian @ to_camera @ sigma @ to_camera.T @ jacobian.T + 0.3 * np.eye(2)
        d = np.stack([x - (f * cx / z + view.width / 2), y - (f * cy / z + view.height / 2)], -1)
        power = -0.5 * np.einsum("hwi,ij,hwj->hw", d, np.linalg.inv(covariance), d)
        alpha = np.minimum(0.99, np.exp(power) / (1 + np.exp(-logits[i])))
        open_ &= ~((alpha >= 1 / 255) & (t * (1 - alpha) < 1e-4))
        alpha = np.where(open_ & (alpha >= 1 / 255), alpha, 0)
        color = np.maximum(0, 0.5 + slow_basis(means[i] - pose[:3, 3]) @ sh[i])
        out += (t * alpha)[..., None] * np.concatenate([color, [z], channels[i]])
        t = t * (1 - alpha)
    return np.concatenate([out, t[..., None]], -1)


def slow_basis(direction):
    """Real spherical harmonics by scipy, in the order and with the signs of 3DGS."""
    from scipy.special import sph_harm_y

    x, y, z = direction / np.linalg.norm(direction)
    theta, phi = np.arccos(z), np.arctan2(y, x)
    values = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            complex_value = sph_harm_y(degree, abs(order), theta, phi)
            part = complex_value.imag if order < 0 else complex_value.real
            values.append(part * (math.sqrt(2) if order else 1))
    return np.array(values)


def stacked(rendered):
    parts = [rendered.rgb, rendered.depth[..., None], rendered.channels]
    return torch.cat([*parts, rendered.transmittance[..., None]], -1)


def gradients(gaussians, channels, view, impl, weights):
    leaves = [t.clone().requires_grad_() for t in (*gaussians.tensors(), channels)]
    rendered = render(Gaussians(*leaves[:5]), view, channels=leaves[5], impl=impl)
    (stacked(rendered) * weights).sum().backward()
    return [leaf.grad for leaf in leaves]


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_an_image_is_what_a_slow_loop_in_float64_gives(impl, kernel):
    gaussians, view, channels = scene(60), camera(37, 29), torch.randn(60, 3)
    expected = slow_image(gaussians.tensors(), view, channels.double().numpy())
    found = stacked(render(gaussians, view, channels=channels, impl=impl))
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_kernel_gradients_are_the_finite_differences_of_the_slow_loop(kernel):
    gaussians, view = scene(7, seed=5), camera(12, 10, focal_px=14.0)
    channels = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(10, 12, 7, generator=torch.Generator().manual_seed(2))
    found = gradients(gaussians, channels, view, "cpu", weights)

    values = [t.double().numpy() for t in (*gaussians.tensors(), channels)]
    step = 1e-5
    for name, value, gradient in zip(NAMES, values, found, strict=True):
        expected = np.zeros(value.size)
        for i in range(value.size):
            losses = []
            for sign in (1, -1):
                original = value.flat[i]
                value.flat[i] = original + sign * step
                losses.append((slow_image(values[:5], view, values[5]) * weights.numpy()).sum())
                value.flat[i] = original
            expected[i] = (losses[0] - losses[1]) / (2 * step)
        error = np.linalg.norm(gradient.numpy().ravel() - expected) / np.linalg.norm(expected)
        assert error < 1e-4, name


def test_kernel_gradients_agree_with_the_float64_twin_over_many_tiles(kernel):
    gaussians, channels = scene(400, log_scale=-3.2), torch.randn(400, 5)
    gaussians.opacity_logits[::4] = 7.0  # above 0.99 in the middle, where alpha does not follow
    view = camera(53, 38, focal_px=60.0)
    weights = torch.randn(38, 53, 10, generator=torch.Generator().manual_seed(0))
    exact_view = dataclasses.replace(
        view, poses_world_from_camera=view.poses_world_from_camera.double()
    )
    exact = gaussians.map(torch.Tensor.double)
    expected = gradients(exact, channels.double(), exact_view, "torch", weights.double())
    found = gradients(gaussians, channels, view, "cpu", weights)
    for name, gradient, reference in zip(NAMES, found, expected, strict=True):
        assert relative_error(gradient, reference) < 1e-4, name


def test_gradients_without_a_loss_on_depth_agree_with_those_of_a_zero_loss(kernel):
    gaussians, view, channels = scene(100), camera(40, 33), torch.randn(100, 2)
    weights = torch.randn(33, 40, 7, generator=torch.Generator().manual_seed(0))
    weights[..., 3] = 0  # the depth
    whole = gradients(gaussians, channels, view, "cpu", weights)
    leaves = [t.clone().requires_grad_() for t in (*gaussians.tensors(), channels)]
    rendered = render(Gaussians(*leaves[:5]), view, channels=leaves[5])
    loss = (rendered.rgb * weights[..., :3]).sum()
    loss = loss + (rendered.channels * weights[..., 4:6]).sum()
    (loss + (rendered.transmittance * weights[..., 6]).sum()).backward()
    for leaf, expected in zip(leaves, whole, strict=True):
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-5)


def test_the_twin_passes_gradcheck_in_float64():
    gaussians, view = scene(3, seed=5, dtype=torch.float64), camera(4, 3, dtype=torch.float64)
    view = dataclasses.replace(view, focal_px=5.0)
    leaves = [t.requires_grad_() for t in gaussians.tensors()]

    def image(*tensors):
        return stacked(render(Gaussians(*tensors), view, channels=tensors[0], impl="torch"))

    assert torch.autograd.gradcheck(image, leaves, fast_mode=True)


def test_projection_is_that_of_gsplat(kernel):
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    gaussians, view = scene(200), camera(160, 120, focal_px=150.0)
    covariances, _ = _quat_scale_to_covar_preci(
        torch.nn.functional.normalize(gaussians.rotations, dim=1),
        gaussians.scales,
        compute_preci=False,
    )
    intrinsics = torch.tensor([[[150.0, 0, 80.0], [0, 150.0, 60.0], [0, 0, 1]]])
    radii, means_px, depths, conics, _ = _fully_fused_projection(
        gaussians.means, covariances, view.view_from_world(), intrinsics, 160, 120, near_plane=0.2
    )
    seen = (radii[0] > 0).all(dim=1)
    assert seen.sum() > 50
    splats = project(gaussians, view_of(view))
    packed = raster._project(view_of(view), gaussians, colors=True).splats
    ours = {
        "means": (splats.means_px, packed[:, 0:2], means_px[0]),
        "conics": (splats.conics, packed[:, 2:5], conics[0]),
        "depths": (splats.depths, packed[:, 12], depths[0]),
    }
    both = seen & splats.visible
    assert both.sum() > 50
    for twin, kernels, expected in ours.values():
        torch.testing.assert_close(twin[both], expected[both], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kernels[both], expected[both], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_one_round_gaussian_fades_as_the_closed_form_says(impl, kernel):
    sigma, distance, focal, opacity = 0.3, 4.0, 20.0, 0.8
    gaussian = Gaussians(
        means=torch.zeros(1, 3),
        log_scales=torch.full((1, 3), math.log(sigma)),
        rotations=torch.tensor([[2.0, 0, 0, 0]]),
        opacity_logits=torch.tensor([math.log(opacity / (1 - opacity))]),
        sh=torch.zeros(1, 16, 3),
    )
    view = looking_at_origin(distance, 31, 31, focal, torch.float32)
    rendered = render(gaussian, view, impl=impl)
    variance = (sigma * focal / distance) ** 2 + 0.3
    y, x = torch.meshgrid(torch.arange(31.0) - 15, torch.arange(31.0) - 15, indexing="ij")
    alpha = opacity * torch.exp(-0.5 * (x**2 + y**2) / variance)
    alpha[alpha < 1 / 255] = 0
    torch.testing.assert_close(1 - rendered.transmittance, alpha, rtol=0, atol=1e-5)
    torch.testing.assert_close(rendered.rgb[..., 1], 0.5 * alpha, rtol=0, atol=1e-5)
    torch.testing.assert_close(rendered.depth, distance * alpha, rtol=0, atol=1e-4)


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_a_pixel_is_finished_before_its_transmittance_falls_below_1e_4(impl, kernel):
    n = 6
    means = torch.zeros(n, 3)
    means[:, 2] = -torch.arange(n) * 0.1
    stack = Gaussians(
        means=means,
        log_scales=torch.full((n, 3), 1.0),
        rotations=torch.eye(4)[:1].repeat(n, 1),
        opacity_logits=torch.full((n,), math.log(0.9 / 0.1)),
        sh=torch.zeros(n, 16, 3),
    )
    rendered = render(stack, looking_at_origin(4.0, 9, 9, 9.0, torch.float32), impl=impl)
    # 0.1^3 stands, 0.1^4 = 1e-4 computed in float32 is the border, 0.1^5 is never taken.
    assert 0.9e-4 < rendered.transmittance[4, 4].item() < 1.1e-3


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_gaussians_behind_the_camera_or_beside_the_image_are_ignored(impl, kernel):
    gaussians = scene(30)
    unseen = gaussians.means.clone()
    unseen[:15] = torch.tensor([0.0, 0.0, 9.0])
    unseen[15:] = torch.tensor([50.0, 0.0, 0.0])
    leaves = [t.clone().requires_grad_() for t in (unseen, *gaussians.tensors()[1:])]
    view = looking_at_origin(4.0, 20, 20, 20.0, torch.float32)
    rendered = render(Gaussians(*leaves), view, impl=impl)
    assert torch.all(rendered.transmittance == 1)
    if impl == "cpu":
        rendered.rgb.sum().backward()
        assert all(torch.all(leaf.grad == 0) for leaf in leaves)


def test_no_value_of_a_parameter_crashes_the_kernel(kernel):
    values = [0.0, 1e30, -1e30, math.inf, -math.inf, math.nan]
    for which in range(5):
        for value in values:
            tensors = [t.clone() for t in scene(20).tensors()]
            tensors[which][::2] = value
            leaves = [t.requires_grad_() for t in tensors]
            rendered = render(Gaussians(*leaves), camera(), impl="cpu")
            rendered.rgb.sum().backward()


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_chosen_pixels_equal_those_of_the_whole_image(impl, kernel):
    gaussians, view, channels = scene(300), camera(45, 37), torch.randn(300, 52)
    pixels = torch.stack([torch.randint(45, (200,)), torch.randint(37, (200,))], 1)
    whole = render(gaussians, view, channels=channels, impl=impl)
    found = render_pixels(gaussians, view, pixels, channels, impl=impl)
    x, y = pixels.unbind(1)
    torch.testing.assert_close(found.channels, whole.channels[y, x], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.transmittance, whole.transmittance[y, x])


def test_pixels_outside_the_image_are_refused():
    with pytest.raises(ValueError, match="outside the image of 21 x 18"):
        render_pixels(scene(3), camera(), torch.tensor([[21, 0]]), torch.zeros(3, 1))


def test_results_are_equal_bit_for_bit_for_any_number_of_threads(kernel):
    gaussians, view, channels = scene(500), camera(60, 50), torch.randn(500, 2)
    weights = torch.randn(50, 60, 7, generator=torch.Generator().manual_seed(0))
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 1, 3):
            torch.set_num_threads(count)
            results.append(gradients(gaussians, channels, view, "cpu", weights))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_builds_for_all_instruction_sets_agree(kernel, monkeypatch):
    gaussians, view, channels = scene(300), camera(60, 50), torch.randn(300, 3)
    weights = torch.randn(50, 60, 8, generator=torch.Generator().manual_seed(0))
    images, grads = [], []
    for level in cpu_levels():
        monkeypatch.setenv("LOOM_ISA", level)
        assert native.library("featdistill_raster", sources=[raster.SOURCE]).isa == level
        images.append(stacked(render(gaussians, view, channels=channels, impl="cpu")))
        grads.append(gradients(gaussians, channels, view, "cpu", weights))
    assert len(images) >= 1
    for image, gradient in zip(images[1:], grads[1:], strict=True):
        torch.testing.assert_close(image, images[0], rtol=0, atol=2e-5)
        for name, found, expected in zip(NAMES, gradient, grads[0], strict=True):
            assert relative_error(found, expected.double()) < 1e-4, name
