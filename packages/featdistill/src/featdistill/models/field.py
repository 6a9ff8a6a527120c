"""The teacher as a density and colour field in space: what a volume phase distils.

A gaussian whose centre lies on a ray should gather the optical depth -ln(1 - opacity) there, as it
does on the screen, so its extinction along the way is

    sigma_i(x) = -ln(1 - o_i) / (sqrt(2 pi) s_i) * exp(-m_i(x)^2 / 2),

with m_i the Mahalanobis distance and s_i the geometric mean of its three standard deviations, each
widened by the blur that the rasteriser adds on the screen. Colours mix in proportion to sigma.
"""

import ctypes
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from loom import native
from loom.errors import UserError
from torch import Tensor

from featdistill.gaussians import Gaussians, rotation_matrices
from featdistill.models.spherical_harmonics import sh_basis

REACH = 3.0
"""Standard deviations beyond which a gaussian does not count as density."""

SOLID_OPACITY = 0.02
SOLID_REACH = 2.3
"""Which gaussians, and how far around them, the student's first occupancy covers."""

BOX_MARGIN = 0.06

SCREEN_BLUR_PX2 = 0.3
"""Variance that 3DGS adds to each projected gaussian, in square pixels."""

GRID = 64
MAX_OPACITY = 0.99
SOURCE = Path(__file__).parent.parent / "csrc" / "field.cpp"


class FieldSample(NamedTuple):
    """The field at n points."""

    extinction: Tensor  # [n] optical depth per unit of length
    rgb: Tensor  # [n, 3]


class _Prepared(NamedTuple):
    """Per gaussian, what a query needs; all float32 and contiguous."""

    means: Tensor  # [g, 3]
    deviations: Tensor  # [g, 3] along the world's axes
    inverse: Tensor  # [g, 6] inverse covariance xx xy xz yy yz zz
    peak: Tensor  # [g]
    sh: Tensor  # [g, 3, 16]


def screen_blur(focal_px: float, distance: float) -> float:
    """Return the rasteriser's blur as a standard deviation in world units at a distance."""
    return math.sqrt(SCREEN_BLUR_PX2) * distance / focal_px


def library() -> native.Library | native.Unavailable:
    """The compiled kernel, or why there is none."""
    return native.library("featdistill_field", sources=[SOURCE])


def query_field(
    gaussians: Gaussians,
    points: Tensor,
    directions: Tensor,
    *,
    blur: float,
    reach: float = REACH,
    impl: str = "auto",
) -> FieldSample:
    """Return the teacher's extinction and colour at points in space, without gradients.

    Args:
        gaussians: The teacher.
        points: [n, 3] world coordinates.
        directions: [n, 3] unit vectors from a viewer to each point.
        blur: Standard deviation in world units added to each gaussian in quadrature.
        reach: Standard deviations beyond which a gaussian does not count.
        impl: auto, torch or cpu.
    """
    prepared = _prepare(gaussians, blur)
    basis = sh_basis(directions)
    kernel = library()
    if native.choose(impl, kernel, points.device) == "torch":
        return _query_torch(prepared, points, basis, reach)
    assert isinstance(kernel, native.Library)
    return _query_cpu(kernel, prepared, points.contiguous(), basis.contiguous(), reach)


def mix_channels(
    gaussians: Gaussians, points: Tensor, channels: Tensor, *, blur: float, impl: str = "auto"
) -> Tensor:
    """Return what gaussians carry, mixed at points in proportion to their extinction there.

    Args:
        gaussians: The teacher.
        points: [n, 3] world coordinates.
        channels: Any quantities per gaussian, [g, C].
        blur: As in `query_field`.
        impl: auto, torch or cpu.

    Returns:
        [n, C]; where there is no density, the smallest value of each channel.
    """
    # Three channels at a time take the place of a colour without view dependence, which is held
    # above zero.
    lowest = channels.amin(dim=0)
    directions = torch.zeros_like(points)
    constant = sh_basis(directions[:1])[0, 0]
    parts = []
    for first in range(0, channels.shape[1], 3):
        part = channels[:, first : first + 3] - lowest[first : first + 3]
        sh = torch.zeros_like(gaussians.sh)
        sh[:, 0, : part.shape[1]] = part / constant
        carrier = replace(gaussians, sh=sh)
        found = query_field(carrier, points, directions, blur=blur, impl=impl).rgb - 0.5
        parts.append(found[:, : part.shape[1]] + lowest[first : first + 3])
    return torch.cat(parts, dim=1)


def bounding_box(gaussians: Gaussians, *, blur: float = 0.0) -> Tensor:
    """Return the corners [2, 3] of a box around every gaussian that can be seen.

    Args:
        gaussians: The teacher.
        blur: The rasteriser's blur in world units: what is seen reaches so much further.

    Raises:
        UserError: No gaussian has an opacity above `SOLID_OPACITY`.
    """
    seen = gaussians.means[gaussians.opacities > SOLID_OPACITY]
    if not len(seen):
        raise UserError(
            f"none of the teacher's {len(gaussians)} gaussians has an opacity above "
            f"{SOLID_OPACITY}: there is nothing to distil",
            hint="look at the teacher with `featdistill teacher info`",
        )
    margin = max(BOX_MARGIN, SOLID_REACH * blur)
    return torch.stack([seen.amin(dim=0) - margin, seen.amax(dim=0) + margin])


def solid(gaussians: Gaussians, points: Tensor, *, blur: float) -> Tensor:
    """Say which points [..., 3] lie within `SOLID_REACH` deviations of a gaussian, bool [...]."""
    seen = gaussians.opacities > SOLID_OPACITY
    flat = points.reshape(-1, 3)
    directions = torch.zeros_like(flat)  # only the extinction is asked for
    sample = query_field(
        gaussians.map(lambda rows: rows[seen]), flat, directions, blur=blur, reach=SOLID_REACH
    )
    return (sample.extinction > 0).reshape(points.shape[:-1])


def _prepare(gaussians: Gaussians, blur: float) -> _Prepared:
    with torch.no_grad():
        variances = gaussians.scales.square() + blur * blur
        axes = rotation_matrices(gaussians.rotations)
        covariance = torch.einsum("nij,nj,nkj->nik", axes, variances, axes)
        inverse = torch.einsum("nij,nj,nkj->nik", axes, 1 / variances, axes)
        size = variances.log().mean(dim=-1).div(2).exp()
        opacity = gaussians.opacities.clamp_max(MAX_OPACITY)
        peak = -torch.log1p(-opacity) / (math.sqrt(2 * math.pi) * size)
        rows, columns = torch.triu_indices(3, 3)
        return _Prepared(
            gaussians.means.detach().contiguous(),
            covariance.diagonal(dim1=1, dim2=2).sqrt().contiguous(),
            inverse[:, rows, columns].contiguous(),
            peak.contiguous(),
            gaussians.sh.detach().transpose(1, 2).contiguous(),
        )


def _query_torch(prepared: _Prepared, points: Tensor, basis: Tensor, reach: float) -> FieldSample:
    """The readable twin: every gaussian against every point, in slices of points."""
    extinction, rgb = [], []
    for part, part_basis in zip(points.split(1024), basis.split(1024), strict=True):
        offset = part[:, None] - prepared.means  # (p, g, 3)
        outer = torch.stack(
            [
                offset[..., i] * offset[..., j] * (1 if i == j else 2)
                for i, j in torch.triu_indices(3, 3).T.tolist()
            ],
            dim=-1,
        )
        squared = (outer * prepared.inverse).sum(-1)
        near = squared < reach * reach
        sigma = torch.where(near, prepared.peak * torch.exp(-squared / 2), 0.0)  # (p, g)
        total = sigma.sum(dim=1)
        mixed = torch.einsum("pg,gck->pck", sigma, prepared.sh)
        colour = torch.einsum("pck,pk->pc", mixed, part_basis)
        share = torch.where(total > 0, 1 / total.clamp_min(1e-30), 0.0)
        extinction.append(total)
        rgb.append((colour * share[:, None] + 0.5).clamp_min(0))
    return FieldSample(torch.cat(extinction), torch.cat(rgb))


def _query_cpu(
    kernel: native.Library, prepared: _Prepared, points: Tensor, basis: Tensor, reach: float
) -> FieldSample:
    address, count, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    query = kernel.function(
        "field_query",
        [
            count,
            *[address] * 5,
            count,
            *[address] * 4,
            whole,
            ctypes.c_float,
            whole,
            address,
            address,
        ],  # fmt: skip
    )
    extent = reach * prepared.deviations
    low = (prepared.means - extent).amin(dim=0)
    high = (prepared.means + extent).amax(dim=0)
    extinction, rgb = points.new_empty(len(points)), torch.empty_like(points)

    def at(tensor: Tensor) -> ctypes.c_void_p:
        return native.pointer(tensor, torch.float32)

    query(
        len(prepared.means), *map(at, prepared),
        len(points), at(points), at(basis), at(low), at(high), GRID, reach, native.threads(),
        at(extinction), at(rgb),
    )  # fmt: skip
    return FieldSample(extinction, rgb.clamp_min_(0))
