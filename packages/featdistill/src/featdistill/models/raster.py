"""Render gaussians: one interface over the native kernel and the torch twin.

Everything is premultiplied: `rgb` and `depth` are sums over weights w_i = T_i alpha_i that add up
to 1 - transmittance, so an image over a background b is rgb + transmittance * b, and the expected
depth of a pixel is depth / (1 - transmittance). Depth is measured along the optical axis.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from loom import native
from torch import Tensor
from torch.autograd.function import once_differentiable

from featdistill.cameras import Cameras
from featdistill.gaussians import Gaussians
from featdistill.models.projection import View, view_of
from featdistill.models.raster_torch import TILE_PX, render_pixels_torch, render_torch

SOURCE = Path(__file__).parent.parent / "csrc" / "raster.cpp"
SPLAT_FLOATS = 16
MOMENTS = 10  # sums per gaussian and tile that the backward pass keeps beside the channels


class Rendered(NamedTuple):
    """An image of gaussians; colours, depth and channels are premultiplied."""

    rgb: Tensor  # [h, w, 3]
    transmittance: Tensor  # [h, w]
    depth: Tensor  # [h, w]
    channels: Tensor  # [h, w, C]


class RenderedPixels(NamedTuple):
    """Chosen pixels of an image of gaussians; channels are premultiplied."""

    channels: Tensor  # [r, C]
    transmittance: Tensor  # [r]


def render(
    gaussians: Gaussians, camera: Cameras, *, channels: Tensor | None = None, impl: str = "auto"
) -> Rendered:
    """Render one view; differentiable in the gaussians and the channels.

    Args:
        gaussians: The model; float32 for the native kernel, any float type for the torch twin.
        camera: Cameras of a single view.
        channels: Further quantities per gaussian to be blended like the colour, [n, C].
        impl: "auto", "torch", or "cpu" (the native kernel).
    """
    view = view_of(camera)
    if _implementation(gaussians, impl) == "torch":
        blended, transmittance = render_torch(gaussians, view, channels)
    else:
        rgb, depth, more, transmittance = _NativeRender.apply(view, *gaussians.tensors(), channels)
        return Rendered(rgb.permute(1, 2, 0), transmittance, depth, more.permute(1, 2, 0))
    return Rendered(blended[..., :3], transmittance, blended[..., 3], blended[..., 4:])


@torch.no_grad()
def render_pixels(
    gaussians: Gaussians, camera: Cameras, pixels: Tensor, channels: Tensor, *, impl: str = "auto"
) -> RenderedPixels:
    """Blend only the channels [n, C] at integer pixels [r, 2] (x, y) of one view; no gradient.

    Raises:
        ValueError: a pixel lies outside the image.
    """
    view = view_of(camera)
    limit = pixels.new_tensor([view.width, view.height])
    if ((pixels < 0) | (pixels >= limit)).any():
        raise ValueError(f"a pixel lies outside the image of {view.width} x {view.height}")
    if _implementation(gaussians, impl) == "torch":
        return RenderedPixels(*render_pixels_torch(gaussians, view, pixels, channels))
    plan = _project(view, gaussians, colors=False)
    channels, pixels = channels.detach().contiguous(), pixels.contiguous()
    blended = torch.empty(len(pixels), channels.shape[1])
    transmittance = torch.empty(len(pixels))
    _kernel().pixels(
        plan.view,
        native.pointer(plan.splats, torch.float32),
        native.pointer(channels, torch.float32),
        channels.shape[1],
        native.pointer(plan.starts, torch.int64),
        native.pointer(plan.items, torch.int32),
        len(pixels),
        native.pointer(pixels, torch.int64),
        native.pointer(blended, torch.float32),
        native.pointer(transmittance, torch.float32),
        native.threads(),
    )
    return RenderedPixels(blended, transmittance)


def library() -> native.Library | native.Unavailable:
    """The compiled kernel, or why there is none."""
    return native.library("featdistill_raster", sources=[SOURCE])


def _implementation(gaussians: Gaussians, impl: str) -> str:
    if impl == "auto" and gaussians.means.dtype != torch.float32:
        return "torch"
    return native.choose(impl, library(), gaussians.means.device)


class _View(ctypes.Structure):
    """`raster::View`."""

    _fields_ = [
        ("rotation", ctypes.c_float * 9),
        ("translation", ctypes.c_float * 3),
        ("center", ctypes.c_float * 3),
        ("focal", ctypes.c_float),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class _Kernel:
    """The C functions of csrc/raster.cpp."""

    project: Callable
    list_tiles: Callable
    blend: Callable
    backward: Callable
    pixels: Callable


def _kernel() -> _Kernel:
    built = library()
    if isinstance(built, native.Unavailable):
        raise RuntimeError(built.reason)
    return _functions(built)


@functools.cache
def _functions(library: native.Library) -> _Kernel:
    p, view = ctypes.c_void_p, ctypes.POINTER(_View)
    size, integer = ctypes.c_int64, ctypes.c_int

    def function(name: str, argtypes: list[Any], restype: Any = None) -> Callable:
        return library.function(f"raster_{name}", argtypes, restype)

    return _Kernel(
        project=function("project", [view, size, *[p] * 9, integer], size),
        list_tiles=function("list", [view, size, *[p] * 6]),
        blend=function("blend", [view, p, p, integer, *[p] * 4, integer]),
        backward=function(
            "backward",
            [view, size, *[p] * 8, integer, *[p] * 6, integer, *[p] * 8, integer],
        ),
        pixels=function("pixels", [view, p, p, integer, p, p, size, *[p] * 3, integer]),
    )


@dataclass(frozen=True)
class _Plan:
    """Projected gaussians of one view, listed per tile from near to far."""

    view: _View
    splats: Tensor  # [n, 16] raster::Splat
    offsets: Tensor  # [n + 1] first pair of each gaussian
    starts: Tensor  # [tiles + 1] first pair of each tile
    items: Tensor  # [pairs] gaussian
    slots: Tensor  # [pairs] place of the pair in the order of gaussians


def _project(view: View, gaussians: Gaussians, *, colors: bool) -> _Plan:
    kernel, n = _kernel(), len(gaussians)
    matrix = view.view_from_world
    packed = _View(
        (ctypes.c_float * 9)(*matrix[:3, :3].flatten().tolist()),
        (ctypes.c_float * 3)(*matrix[:3, 3].tolist()),
        (ctypes.c_float * 3)(*view.center.tolist()),
        view.focal_px,
        view.width,
        view.height,
    )
    splats = torch.empty(n, SPLAT_FLOATS)
    rects = torch.empty(n, 4, dtype=torch.int32)
    order = torch.empty(n, dtype=torch.int32)
    offsets = torch.empty(n + 1, dtype=torch.int64)
    raw = _raw_pointers(gaussians)
    visible = kernel.project(
        packed,
        n,
        *(raw if colors else [*raw[:4], None]),
        native.pointer(splats, torch.float32),
        native.pointer(rects, torch.int32),
        native.pointer(order, torch.int32),
        native.pointer(offsets, torch.int64),
        native.threads(),
    )
    pairs = int(offsets[-1])
    tiles = -(-view.width // TILE_PX) * -(-view.height // TILE_PX)
    starts = torch.empty(tiles + 1, dtype=torch.int64)
    items = torch.empty(pairs, dtype=torch.int32)
    slots = torch.empty(pairs, dtype=torch.int64)
    kernel.list_tiles(
        packed,
        visible,
        native.pointer(order, torch.int32),
        native.pointer(rects, torch.int32),
        native.pointer(offsets, torch.int64),
        native.pointer(starts, torch.int64),
        native.pointer(items, torch.int32),
        native.pointer(slots, torch.int64),
    )
    return _Plan(packed, splats, offsets, starts, items, slots)


def _raw_pointers(gaussians: Gaussians) -> list[ctypes.c_void_p]:
    """Return the addresses of the five tensors in the kernel's order."""
    return [native.pointer(tensor.detach(), torch.float32) for tensor in gaussians.tensors()]


class _NativeRender(torch.autograd.Function):
    """Colours, depth, channels (as planes) and transmittance of one view by the native kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        view: View,
        means: Tensor,
        log_scales: Tensor,
        rotations: Tensor,
        opacity_logits: Tensor,
        sh: Tensor,
        channels: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raw = [t.contiguous() for t in (means, log_scales, rotations, opacity_logits, sh)]
        gaussians = Gaussians(*raw)
        plan = _project(view, gaussians, colors=True)
        extra = 0 if channels is None else channels.shape[1]
        channels = None if channels is None else channels.contiguous()
        planes = torch.empty(4 + extra, view.height, view.width)
        transmittance = torch.empty(view.height, view.width)
        _kernel().blend(
            plan.view,
            native.pointer(plan.splats, torch.float32),
            native.pointer(channels, torch.float32),
            extra,
            native.pointer(plan.starts, torch.int64),
            native.pointer(plan.items, torch.int32),
            native.pointer(planes, torch.float32),
            native.pointer(transmittance, torch.float32),
            native.threads(),
        )
        ctx.plan, ctx.extra = plan, extra
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*raw, channels, planes, transmittance)
        return planes[:3].clone(), planes[3].clone(), planes[4:].clone(), transmittance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        d_rgb, d_depth, d_more, d_transmittance = grads
        *raw, channels, planes, transmittance = ctx.saved_tensors
        gaussians, plan, extra = Gaussians(*raw), ctx.plan, ctx.extra
        height, width = transmittance.shape
        held = 3 if d_depth is None else 4
        d_planes = torch.zeros(held + extra, height, width)
        if d_rgb is not None:
            d_planes[:3] = d_rgb
        if d_depth is not None:
            d_planes[3] = d_depth
        if d_more is not None and extra:
            d_planes[held:] = d_more
        if d_transmittance is None:
            d_transmittance = torch.zeros_like(transmittance)
        d_transmittance = d_transmittance.contiguous()
        moments = torch.empty(len(plan.items), MOMENTS + extra)
        d_raw = Gaussians(*(torch.empty_like(tensor) for tensor in raw))
        d_channels = torch.empty_like(channels) if ctx.needs_input_grad[6] else None
        _kernel().backward(
            plan.view,
            len(gaussians),
            *_raw_pointers(gaussians),
            native.pointer(plan.splats, torch.float32),
            native.pointer(plan.offsets, torch.int64),
            native.pointer(channels, torch.float32),
            extra,
            native.pointer(plan.starts, torch.int64),
            native.pointer(plan.items, torch.int32),
            native.pointer(plan.slots, torch.int64),
            native.pointer(planes, torch.float32),
            native.pointer(transmittance, torch.float32),
            native.pointer(d_planes, torch.float32),
            held,
            native.pointer(d_transmittance, torch.float32),
            native.pointer(moments, torch.float32),
            *_raw_pointers(d_raw),
            native.pointer(d_channels, torch.float32),
            native.threads(),
        )
        return (None, *d_raw.tensors(), d_channels)
