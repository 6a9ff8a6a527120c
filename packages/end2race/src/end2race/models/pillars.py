"""PointPillars' first stage: points to pillar features, pillar features to a bird's-eye view.

Lang et al. 2019 with dynamic voxelisation: a linear layer and the maximum over each pillar's
points, then the pillars' values at their cells and zeros elsewhere. `impl` chooses between the
native operations and their torch twins.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from loom import native
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from end2race.models.grid import BevGrid
from end2race.models.pillars_torch import FEATURES, Pillars, pillar_max_torch, pillarise_torch

SOURCE = Path(__file__).parent.parent / "csrc" / "pillar.cpp"


def library() -> native.Library | native.Unavailable:
    """The compiled kernels; without contraction they equal the twin's to the bit."""
    return native.library("end2race_pillar", sources=[SOURCE], flags=["-ffp-contract=off"])


def pillarise(
    points: Tensor, point_frame: Tensor, grid: BevGrid, frames: int, *, impl: str = "auto"
) -> Pillars:
    """Assign points to pillars and describe each by nine features.

    Points outside the box, and points that are not finite, are left out. A frame without any point
    has no pillar.

    Args:
        points: x y z (ego frame, m) and intensity, [n, 4] float32.
        point_frame: The frame of each point, [n] int64.
        grid: Box and cells.
        frames: How many frames there are, those without any point included.
        impl: auto, torch or cpu.
    """
    if points.dtype != torch.float32 or points.ndim != 2 or points.shape[1] != 4:
        raise ValueError(f"points are [n, 4] float32, not {list(points.shape)} {points.dtype}")
    if native.choose(impl, library(), points.device) == "torch":
        return pillarise_torch(points, point_frame, grid, frames)
    n = len(points)
    points, point_frame = points.contiguous(), point_frame.contiguous()
    slots = torch.zeros(frames * grid.cells, dtype=torch.int32)
    kept, pillar, cell = (torch.empty(n, dtype=torch.int64) for _ in range(3))
    features = torch.empty(n, FEATURES)
    pillars = ctypes.c_int64()
    count = _function("pillar_assign")(
        _grid(grid),
        native.pointer(points, torch.float32),
        native.pointer(point_frame, torch.int64),
        n,
        frames,
        native.pointer(slots, torch.int32),
        native.pointer(kept, torch.int64),
        native.pointer(pillar, torch.int64),
        native.pointer(cell, torch.int64),
        native.pointer(features, torch.float32),
        ctypes.byref(pillars),
    )
    return Pillars(features[:count], pillar[:count], cell[: pillars.value])


def pillar_max(values: Tensor, pillar: Tensor, pillars: int, *, impl: str = "auto") -> Tensor:
    """Return the largest value of each pillar and channel, [pillars, c]; differentiable.

    The native kernel keeps the winning points, so the backward pass is one assignment for each
    pillar and channel.

    Args:
        values: [k, c]; float32 for the native kernel.
        pillar: [k] int64, each of 0 .. pillars - 1 at least once.
        pillars: How many there are.
        impl: auto, torch or cpu.
    """
    if impl == "auto" and values.dtype != torch.float32:
        impl = "torch"
    if native.choose(impl, library(), values.device) == "torch":
        return pillar_max_torch(values, pillar, pillars)
    return _PillarMax.apply(values, pillar, pillars)


def scatter_to_grid(values: Tensor, cell: Tensor, grid: BevGrid, frames: int) -> Tensor:
    """Put pillars at their cells, zeros elsewhere: [frames, c, rows, columns], channels last."""
    flat = values.new_zeros(frames * grid.cells, values.shape[1])
    flat = flat.index_copy(0, cell, values)
    return flat.view(frames, grid.rows, grid.columns, -1).permute(0, 3, 1, 2)


class PillarEncoder(nn.Module):
    """Points of several frames to a bird's-eye view of learned features.

    Args:
        grid: Box and cells.
        channels: Width of the features.
        batch_norm: Normalise over the points of a batch, as the original does; without it the
            layer has a bias, and a frame's features do not depend on the other frames.
    """

    def __init__(self, grid: BevGrid, channels: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(FEATURES, channels, bias=not batch_norm)
        self.norm = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01) if batch_norm else None

    def forward(
        self, points: Tensor, point_frame: Tensor, frames: int, *, impl: str = "auto"
    ) -> Tensor:
        """Return [frames, channels, rows, columns]; cells without points are zero."""
        found = pillarise(points, point_frame, self.grid, frames, impl=impl)
        values = self.linear(found.features)
        fewest = 2 if self.training else 1  # one value has no variance to divide by
        if self.norm is not None and len(values) >= fewest:
            values = self.norm(values)
        largest = pillar_max(values, found.pillar, len(found.cell), impl=impl)
        return scatter_to_grid(torch.relu(largest), found.cell, self.grid, frames)


class _Grid(ctypes.Structure):
    """`Grid` of csrc/pillar.cpp."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("x_min", "y_min", "z_min", "z_max", "cell")),
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
    ]


def _grid(grid: BevGrid) -> _Grid:
    return _Grid(grid.x_m[0], grid.y_m[0], *grid.z_m, grid.cell_m, grid.rows, grid.columns)


@functools.cache
def _bound(found: native.Library, name: str) -> Any:
    p, size = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "pillar_assign": ([ctypes.POINTER(_Grid), p, p, size, size, *[p] * 6], size),
        "pillar_max_forward": ([p, p, size, size, size, p, p], None),
        "pillar_max_backward": ([p, p, size, size, p], None),
    }
    return found.function(name, *signatures[name])


def _function(name: str) -> Any:
    found = library()
    if isinstance(found, native.Unavailable):
        raise RuntimeError(found.reason)
    return _bound(found, name)


class _PillarMax(torch.autograd.Function):
    """The native maximum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, pillar: Tensor, pillars: int) -> Tensor:
        values, pillar = values.contiguous(), pillar.contiguous()
        points, channels = values.shape
        largest = values.new_empty(pillars, channels)
        winner = torch.empty(pillars, channels, dtype=torch.int32)
        _function("pillar_max_forward")(
            native.pointer(values, torch.float32),
            native.pointer(pillar, torch.int64),
            points,
            channels,
            pillars,
            native.pointer(largest, torch.float32),
            native.pointer(winner, torch.int32),
        )
        ctx.points = points
        ctx.save_for_backward(winner)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_largest: Tensor) -> tuple[Tensor, None, None]:
        (winner,) = ctx.saved_tensors
        d_largest = d_largest.contiguous()
        pillars, channels = d_largest.shape
        d_values = torch.zeros(ctx.points, channels)
        _function("pillar_max_backward")(
            native.pointer(d_largest, torch.float32),
            native.pointer(winner, torch.int32),
            pillars,
            channels,
            native.pointer(d_values, torch.float32),
        )
        return d_values, None, None
