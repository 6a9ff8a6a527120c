"""Colour as a function of direction: real spherical harmonics to degree 3, in the order of 3DGS.

Coefficient l*l + l + m belongs to degree l and order m = -l..l. The sign convention (with the
Condon-Shortley phase, so that degree 1 reads -y, z, -x) is that of the 3DGS and PlenOctrees code.
A gaussian's colour is max(0, 0.5 + sum_k coefficient_k Y_k(direction)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DEGREE_0 = 0.5 * math.sqrt(1 / math.pi)
DEGREE_1 = math.sqrt(3 / (4 * math.pi))
DEGREE_2 = (
    0.5 * math.sqrt(15 / math.pi),
    0.25 * math.sqrt(5 / math.pi),
    0.25 * math.sqrt(15 / math.pi),
)
DEGREE_3 = (
    0.25 * math.sqrt(35 / (2 * math.pi)),
    0.5 * math.sqrt(105 / math.pi),
    0.25 * math.sqrt(21 / (2 * math.pi)),
    0.25 * math.sqrt(7 / math.pi),
    0.25 * math.sqrt(105 / math.pi),
)


def sh_basis(directions: Tensor) -> Tensor:
    """Return the 16 basis functions [..., 16] at unit directions [..., 3]."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [
        torch.full_like(x, DEGREE_0),
        -DEGREE_1 * y,
        DEGREE_1 * z,
        -DEGREE_1 * x,
        DEGREE_2[0] * x * y,
        -DEGREE_2[0] * y * z,
        DEGREE_2[1] * (2 * zz - xx - yy),
        -DEGREE_2[0] * x * z,
        DEGREE_2[2] * (xx - yy),
        -DEGREE_3[0] * y * (3 * xx - yy),
        DEGREE_3[1] * x * y * z,
        -DEGREE_3[2] * y * (4 * zz - xx - yy),
        DEGREE_3[3] * z * (2 * zz - 3 * xx - 3 * yy),
        -DEGREE_3[2] * x * (4 * zz - xx - yy),
        DEGREE_3[4] * z * (xx - yy),
        -DEGREE_3[0] * x * (xx - 3 * yy),
    ]
    return torch.stack(basis, dim=-1)


def sh_colors(sh: Tensor, directions: Tensor) -> Tensor:
    """Return the colours [n, 3] of coefficients [n, 16, 3] seen along unit directions [n, 3]."""
    return (torch.einsum("nk,nkc->nc", sh_basis(directions), sh) + 0.5).clamp_min(0.0)


def sh_from_color(colors: Tensor) -> Tensor:
    """Return the constant coefficients [n, 3] that show `colors` [n, 3] from everywhere."""
    return (colors - 0.5) / DEGREE_0
