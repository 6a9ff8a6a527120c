"""Lift-splat against nested loops in float64, known geometry, and each twin the other."""

import math

import numpy as np
import pytest
import torch
from end2race.models.grid import BevGrid
from end2race.models.lift_splat import (
    DepthBins,
    IdentityViewTransform,
    LiftSplat,
    cells_of_points,
    frustum_points,
)
from end2race.models.splat import splat

IMPLS = ("torch", "cpu")
GRID = BevGrid((-1.0, 3.0), (-2.0, 2.0), (-1.0, 2.0), 0.5)


class Camera:
    """A pinhole camera that looks forward, turned to the left by `yaw` and down by `pitch`."""

    def __init__(self, width=16, height=8, focal_px=8.0, yaw=0.0, pitch=0.0):
        self.width, self.height = width, height
        self.intrinsic = np.array([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1]])
        level = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        c, s, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        nod = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        self.rotation = turn @ nod @ level
        self.translation = np.array([0.2, 0.1, 0.3])


def random_case(seed, images=2, pixels=6, bins=5, channels=3, cells=7):
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(images, pixels, bins, generator=generator)
    features = torch.randn(images, pixels, channels, generator=generator)
    cell = torch.randint(-2, cells, (pixels, bins), generator=generator, dtype=torch.int32)
    return depth, features, cell, cells


def nested_loops(depth, features, cell, cells):
    """The definition in Python's float64."""
    view = np.zeros((len(depth), cells, features.shape[2]))
    for image in range(len(depth)):
        for pixel in range(cell.shape[0]):
            for step in range(cell.shape[1]):
                where = int(cell[pixel, step])
                for channel in range(features.shape[2]):
                    if where >= 0:
                        weight = float(depth[image, pixel, step])
                        view[image, where, channel] += weight * float(
                            features[image, pixel, channel]
                        )
    return view


def running_sum_splat(depth, features, cell, cells):
    """Sort by cell, sum all, take differences: the trick that float32 does not forgive."""
    images, _, channels = features.shape
    lifted = (depth[..., None] * features[:, :, None]).flatten(1, 2)
    order = torch.argsort(cell.flatten(), stable=True)
    total = lifted[:, order].cumsum(1)
    ends = torch.searchsorted(cell.flatten()[order], torch.arange(-1, cells), right=True)
    padded = torch.cat([total.new_zeros(images, 1, channels), total], 1)
    return padded[:, ends[1:]] - padded[:, ends[:-1]]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("seed", range(3))
def test_the_splat_is_that_of_nested_loops_in_float64(impl, seed):
    case = random_case(seed)
    view = splat(*case, impl=impl)
    np.testing.assert_allclose(view.numpy(), nested_loops(*case), rtol=0, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_large_value_elsewhere_does_not_drown_a_small_one(impl):
    depth = torch.ones(1, 4, 1)
    features = torch.tensor([[[3e7], [0.125], [-1.5], [2e7]]])
    cell = torch.tensor([[0], [1], [2], [3]], dtype=torch.int32)
    expected = nested_loops(depth, features, cell, 4)
    np.testing.assert_allclose(splat(depth, features, cell, 4, impl=impl), expected, atol=1e-5)
    trick = running_sum_splat(depth, features, cell, 4).numpy()
    assert abs(trick - expected).max() > 0.1  # what this test would not let through


def test_the_twins_are_equal_forward_to_the_bit_and_backward_closely():
    for seed in range(60):
        channels = 1 + 3 * (seed % 12)
        depth, features, cell, cells = random_case(seed, pixels=9 + seed, channels=channels)
        weight = torch.randn(2, cells, channels, generator=torch.Generator().manual_seed(seed))
        views, gradients = [], []
        for impl in IMPLS:
            leaves = [depth.clone().requires_grad_(), features.clone().requires_grad_()]
            views.append(splat(*leaves, cell, cells, impl=impl))
            (views[-1] * weight).sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        assert torch.equal(*views), seed
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_splat_passes_gradcheck():
    depth, features, cell, cells = random_case(0)
    leaves = [depth.double().requires_grad_(), features.double().requires_grad_()]
    torch.autograd.gradcheck(lambda d, f: splat(d, f, cell, cells), leaves)


def test_points_just_outside_the_lower_edges_are_outside():
    points = np.array([[-1.2, 0, 0], [0, -2.3, 0], [0, 0, -1.1], [-1.0, -2.0, -1.0], [3.0, 0, 0]])
    assert cells_of_points(points, GRID).tolist() == [-1, -1, -1, 0, -1]


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.4, 0.0), (-0.2, 0.15)])
def test_every_lifted_point_projects_back_to_its_pixel_centre_and_depth(yaw, pitch):
    camera, bins = Camera(yaw=yaw, pitch=pitch), DepthBins(0.5, 0.25, 6)
    points = frustum_points(camera, bins, stride_px=4)
    assert points.shape == (2 * 4, 6, 3)
    for pixel, row in enumerate(points):
        v, u = divmod(pixel, 4)
        for step, point in enumerate(row):
            x, y, z = camera.rotation.T @ (point - camera.translation)
            assert z == pytest.approx(0.5 + 0.25 * (step + 0.5))
            assert 8 * x / z + 8 == pytest.approx(4 * (u + 0.5))
            assert 8 * y / z + 4 == pytest.approx(4 * (v + 0.5))


def test_a_point_on_the_left_of_the_image_lies_on_the_left_of_the_car():
    points = frustum_points(Camera(), DepthBins(1.0, 1.0, 1), stride_px=4)
    assert points[0, 0, 1] > 0 > points[3, 0, 1]  # first and last column: y is to the left
    assert points[0, 0, 2] > points[4, 0, 2]  # upper and lower row: z is up


def test_a_certain_depth_puts_a_pixel_into_the_cell_of_that_depth():
    camera, bins = Camera(), DepthBins(0.0, 0.5, 6)
    view = LiftSplat(camera, GRID, bins, stride_px=4, in_channels=1, channels=1)
    points = frustum_points(camera, bins, stride_px=4)
    with torch.no_grad():
        view.head.weight.zero_()
        view.head.bias.zero_()
        view.head.bias[-1] = 1.0  # every pixel has the feature 1
        for step in range(bins.count):
            view.head.bias[: bins.count] = -1e4
            view.head.bias[step] = 1e4
            found = view(torch.zeros(1, 1, 2, 4))[0, 0]
            expected = torch.zeros(GRID.rows, GRID.columns)
            for x, y, z in points[:, step]:
                row, column = math.floor((y + 2) / 0.5), math.floor((x + 1) / 0.5)
                if 0 <= row < GRID.rows and 0 <= column < GRID.columns and -1 <= z < 2:
                    expected[row, column] += 1
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_another_depth_gives_another_view():
    torch.manual_seed(0)
    view = LiftSplat(Camera(), GRID, DepthBins(0.5, 0.5, 4), stride_px=4, in_channels=3, channels=2)
    features = torch.randn(1, 3, 2, 4)
    before = view(features)
    with torch.no_grad():
        view.head.bias[0] += 2.0
    after = view(features)
    assert (before - after).abs().max() > 1e-3
    before.square().sum().backward()
    assert view.head.weight.grad[: view.bins.count].abs().max() > 1e-4


def test_the_identity_view_knows_no_camera():
    view = IdentityViewTransform(GRID, in_channels=3, channels=2)
    assert view(torch.randn(2, 3, 2, 4)).shape == (2, 2, GRID.rows, GRID.columns)
