"""Splat image features into the cells of a grid: one call over the native kernel and its twin."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from loom import native
from torch import Tensor
from torch.autograd.function import once_differentiable

from end2race.models.splat_torch import splat_torch

SOURCE = Path(__file__).parent.parent / "csrc" / "splat.cpp"


def library() -> native.Library | native.Unavailable:
    """The compiled kernel; without contraction it equals the twin's forward to the bit."""
    return native.library("end2race_splat", sources=[SOURCE], flags=["-ffp-contract=off"])


def splat(
    depth: Tensor, features: Tensor, cell: Tensor, cells: int, *, impl: str = "auto"
) -> Tensor:
    """Sum features, weighted by depth probability, into cells: [n, cells, c]; differentiable.

    Args:
        depth: Weight of each pixel's depth bins, [n, pixels, bins].
        features: [n, pixels, c]; float32 for the native kernel.
        cell: Where each bin of each pixel falls, [pixels, bins] int32 below `cells`; negative
            outside of the grid.
        cells: Cells of the grid.
        impl: auto, torch or cpu.
    """
    if impl == "auto" and features.dtype != torch.float32:
        impl = "torch"
    if native.choose(impl, library(), features.device) == "torch":
        return splat_torch(depth, features, cell, cells)
    return _Splat.apply(depth, features, cell, cells)


@functools.cache
def _bound(found: native.Library, name: str) -> Any:
    p, size = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "splat_forward": [*[p] * 3, *[size] * 5, p, ctypes.c_int],
        "splat_backward": [*[p] * 4, *[size] * 5, p, p, ctypes.c_int],
    }
    return found.function(name, signatures[name])


def _function(name: str) -> Any:
    found = library()
    if isinstance(found, native.Unavailable):
        raise RuntimeError(found.reason)
    return _bound(found, name)


class _Splat(torch.autograd.Function):
    """The native splat."""

    @staticmethod
    def forward(ctx: Any, depth: Tensor, features: Tensor, cell: Tensor, cells: int) -> Tensor:
        depth, features, cell = depth.contiguous(), features.contiguous(), cell.contiguous()
        images, pixels, bins = depth.shape
        channels = features.shape[2]
        out = features.new_zeros(images, cells, channels)
        _function("splat_forward")(
            native.pointer(depth, torch.float32),
            native.pointer(features, torch.float32),
            native.pointer(cell, torch.int32),
            *(images, pixels, bins, channels, cells),
            native.pointer(out, torch.float32),
            native.threads(),
        )
        ctx.save_for_backward(depth, features, cell)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, None, None]:
        depth, features, cell = ctx.saved_tensors
        images, pixels, bins = depth.shape
        d_out = d_out.contiguous()
        d_depth, d_features = torch.zeros_like(depth), torch.zeros_like(features)
        _function("splat_backward")(
            native.pointer(d_out, torch.float32),
            native.pointer(depth, torch.float32),
            native.pointer(features, torch.float32),
            native.pointer(cell, torch.int32),
            *(images, pixels, bins, features.shape[2], d_out.shape[1]),
            native.pointer(d_depth, torch.float32),
            native.pointer(d_features, torch.float32),
            native.threads(),
        )
        return d_depth, d_features, None, None
