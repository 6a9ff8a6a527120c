"""The colour basis against scipy and by quadrature."""

import math

import numpy as np
import torch
from featdistill.models.spherical_harmonics import sh_basis, sh_colors, sh_from_color
from scipy.special import sph_harm_y


def directions(n):
    draw = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(draw, dim=1)


def test_the_basis_is_scipys_in_the_order_and_with_the_signs_of_3dgs():
    points = directions(200)
    x, y, z = points.numpy().T
    theta, phi = np.arccos(z), np.arctan2(y, x)
    columns = []
    for degree in range(4):
        for order in range(-degree, degree + 1):  # negative orders hold the sines
            value = sph_harm_y(degree, abs(order), theta, phi)
            real = value.imag if order < 0 else value.real
            columns.append(real * (math.sqrt(2) if order else 1))
    expected = np.stack(columns, axis=1)
    np.testing.assert_allclose(sh_basis(points).numpy(), expected, atol=1e-12)


def test_the_basis_is_orthonormal_on_the_sphere():
    nodes, weights = np.polynomial.legendre.leggauss(8)  # exact to degree 15 in z
    angles = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
    z = torch.from_numpy(nodes).repeat_interleave(16)
    radius = (1 - z**2).sqrt()
    points = torch.stack([radius * angles.cos().repeat(8), radius * angles.sin().repeat(8), z], 1)
    area = torch.from_numpy(weights).repeat_interleave(16) * 2 * math.pi / 16
    basis = sh_basis(points)
    gram = basis.T @ (basis * area[:, None])
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_constant_coefficients_show_their_colour_from_everywhere():
    color = torch.rand(50, 3, dtype=torch.float64)
    sh = torch.zeros(50, 16, 3, dtype=torch.float64)
    sh[:, 0] = sh_from_color(color)
    torch.testing.assert_close(sh_colors(sh, directions(50)), color)


def test_a_colour_is_never_negative():
    sh = torch.zeros(5, 16, 3, dtype=torch.float64)
    sh[:, 0] = -10
    assert torch.all(sh_colors(sh, directions(5)) == 0)
