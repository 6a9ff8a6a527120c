"""Native student kernels behind the calls of `kilo_torch`, with their gradients.

Backward recomputes the activations of the networks: they are forty times the size of what is kept,
and reading them back would cost more than the products. Each cell's gradient is summed by one
thread in the order of its samples, so results are bit-equal for any number of threads.
"""

from __future__ import annotations

import weakref
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loom import native
from torch import Tensor

from featdistill.models.kilo_layout import NetworkShape, RayOutputs, Samples, Volume

CSRC = Path(__file__).parent.parent / "csrc"

_POINTERS = (c_void_p,)
_SIGNATURES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "kilo_march": ((*_POINTERS * 5, c_float, c_int64, *_POINTERS * 4, c_int), c_void_p),
    "kilo_march_collect": ((c_void_p, c_int64, *_POINTERS * 6), None),
    "kilo_image": (
        (
            *_POINTERS * 5,
            c_float,
            c_int64,
            *_POINTERS * 2,
            c_int64,
            c_int,
            c_int,
            c_int,
            c_void_p,
            c_int64,
            c_int,
            c_float,
            *_POINTERS * 2,
            c_int,
        ),
        None,
    ),
    "kilo_has_bfloat16": ((), c_int),
    "kilo_sort": ((*_POINTERS * 2, c_int64, c_int64, *_POINTERS * 2), None),
    "kilo_network_forward": (
        (c_int, c_int, c_int, c_void_p, c_int64, *_POINTERS * 7, c_int64, c_int),
        None,
    ),
    "kilo_network_backward": (
        (c_int, c_int, c_int, c_void_p, c_int64, *_POINTERS * 7, c_int64, c_void_p, c_int),
        None,
    ),
    "kilo_composite_forward": (
        (c_int64, *_POINTERS * 5, c_int, c_int64, c_int64, *_POINTERS * 7, c_int),
        None,
    ),
    "kilo_composite_backward": (
        (c_int64, *_POINTERS * 4, c_int, c_int64, c_int64, *_POINTERS * 10, c_int),
        None,
    ),
}


class _Buffers:
    """Memory for gradients, used again once the last tensor on it is gone.

    A gradient of 37 MB is too large for the allocator's free lists: every step would map fresh
    pages and fault each one in, which takes a third of the time of the backward pass itself.
    """

    KEPT = 4

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def empty_like(self, tensor: Tensor) -> Tensor:
        """Return an uninitialised tensor of the same shape."""
        shape = tuple(tensor.shape)
        found = next((i for i, held in enumerate(self._free) if held.shape == shape), None)
        held = np.empty(shape, np.float32) if found is None else self._free.pop(found)
        lent = held[...]  # dies with the tensor's storage, which returns the memory
        weakref.finalize(lent, self._take_back, held).atexit = False
        return torch.from_numpy(lent)

    def _take_back(self, held: np.ndarray) -> None:
        self._free.append(held)
        del self._free[: -self.KEPT]


_buffers = _Buffers()


def library() -> native.Library | native.Unavailable:
    """Return the compiled kernels; without contraction marching equals the twin's bit by bit."""
    sources = [CSRC / "kilo.cpp", CSRC / "kilo_image.cpp"]
    return native.library("featdistill_kilo", sources=sources, flags=["-ffp-contract=off"])


def available(impl: str, device: torch.device) -> bool:
    """Say whether `impl` means the native kernels for tensors on this device."""
    return native.choose(impl, library(), device) == "cpu"


@lru_cache(maxsize=64)
def _bound(found: native.Library, name: str) -> Any:
    argtypes, restype = _SIGNATURES[name]
    return found.function(name, argtypes, restype)


def _function(name: str) -> Any:
    found = library()
    if isinstance(found, native.Unavailable):
        raise RuntimeError(found.reason)
    return _bound(found, name)


def _floats(tensor: Tensor | None) -> c_void_p:
    return native.pointer(tensor, torch.float32)


def _ints(tensor: Tensor | None) -> c_void_p:
    return native.pointer(tensor, torch.int32)


def _longs(tensor: Tensor) -> c_void_p:
    return native.pointer(tensor, torch.int64)


def _bytes(tensor: Tensor | None) -> c_void_p:
    return native.pointer(tensor, torch.uint8)


def _volume_arguments(volume: Volume) -> tuple[list[Any], list[Tensor]]:
    """Return the leading arguments of a march, and the tensors that must outlive the call."""
    voxels = torch.tensor(volume.occupancy.shape, dtype=torch.int32)
    cells = torch.tensor(volume.cell_index.shape, dtype=torch.int32)
    arguments = [
        _floats(volume.box), _ints(voxels), _bytes(volume.distance), _ints(cells),
        _ints(volume.cell_index), volume.step,
    ]  # fmt: skip
    return arguments, [voxels, cells]


def march(volume: Volume, origins: Tensor, directions: Tensor, jitter: Tensor) -> Samples:
    """Place samples as `kilo_torch.march` does, skipping empty space by its distance field."""
    rays = len(origins)
    arguments, kept = _volume_arguments(volume)
    ray_start = torch.empty(rays + 1, dtype=torch.int64)
    handle = _function("kilo_march")(
        *arguments, rays, _floats(origins), _floats(directions), _floats(jitter),
        _longs(ray_start), native.threads(),
    )  # fmt: skip
    del kept
    count = int(ray_start[-1])
    ray, cell, voxel = (torch.empty(count, dtype=torch.int32) for _ in range(3))
    distance, local = torch.empty(count), torch.empty(count, 3)
    _function("kilo_march_collect")(
        handle, rays, _longs(ray_start), _ints(ray), _ints(cell), _ints(voxel),
        _floats(distance), _floats(local),
    )  # fmt: skip
    return Samples(ray_start, ray, cell, voxel, distance, local)


def _sort(cell: Tensor, cells: int, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the samples in order of their cells, and where each cell starts in that order."""
    order = torch.empty(len(cell), dtype=torch.int32)
    start = torch.empty(cells + 1, dtype=torch.int32)
    _function("kilo_sort")(_ints(cell), _bytes(live), len(cell), cells, _ints(order), _ints(start))
    return order, start


def _network_forward(
    weights: Tensor,
    shape: NetworkShape,
    cell: Tensor,
    local: Tensor,
    directions: Tensor,
    ray: Tensor | None,
    z_count: int,
) -> tuple[Tensor, Tensor]:
    """Return raw [s, 4] and the trunk z [z_count, hidden] of the first z_count samples."""
    order, start = _sort(cell, len(weights))
    raw = torch.empty(len(cell), 4)
    z = torch.empty(z_count, shape.hidden)
    _function("kilo_network_forward")(
        shape.hidden, shape.position_frequencies, shape.direction_frequencies,
        _floats(weights), len(weights), _ints(order), _ints(start), _floats(local),
        _floats(directions), _ints(ray), _floats(raw), _floats(z), z_count, native.threads(),
    )  # fmt: skip
    return raw, z


def _network_backward(
    weights: Tensor,
    shape: NetworkShape,
    cell: Tensor,
    local: Tensor,
    directions: Tensor,
    ray: Tensor | None,
    d_raw: Tensor,
    d_z: Tensor,
    live: Tensor | None,
) -> Tensor:
    """Return the gradient of `weights` [cells, P]: exact zeros for cells without live samples."""
    order, start = _sort(cell, len(weights), live)
    grad = _buffers.empty_like(weights)
    _function("kilo_network_backward")(
        shape.hidden, shape.position_frequencies, shape.direction_frequencies,
        _floats(weights), len(weights), _ints(order), _ints(start), _floats(local),
        _floats(directions), _ints(ray), _floats(d_raw), _floats(d_z), len(d_z), _floats(grad),
        native.threads(),
    )  # fmt: skip
    return grad


class _Network(torch.autograd.Function):
    """Grouped networks on scattered samples."""

    @staticmethod
    def forward(ctx, weights, shape, cell, local, directions):
        raw, _ = _network_forward(weights, shape, cell, local, directions, None, 0)
        ctx.save_for_backward(weights, cell, local, directions)
        ctx.shape = shape
        return raw

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_raw):
        weights, cell, local, directions = ctx.saved_tensors
        no_head = torch.empty(0, ctx.shape.hidden)
        grad = _network_backward(
            weights, ctx.shape, cell, local, directions, None, d_raw.contiguous(), no_head, None
        )
        return grad, None, None, None, None


def network(
    weights: Tensor, shape: NetworkShape, cell: Tensor, local: Tensor, directions: Tensor
) -> Tensor:
    """Return raw [n, 4] of scattered samples, see `kilo_torch.network`; `weights` learn."""
    inputs = (cell.contiguous(), local.contiguous(), directions.contiguous())
    return _Network.apply(weights, shape, *inputs)


class _Trunk(torch.autograd.Function):
    """The trunk z of grouped networks on scattered samples."""

    @staticmethod
    def forward(ctx, weights, shape, cell, local, directions):
        _, z = _network_forward(weights, shape, cell, local, directions, None, len(cell))
        ctx.save_for_backward(weights, cell, local, directions)
        ctx.shape = shape
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_z):
        weights, cell, local, directions = ctx.saved_tensors
        no_raw = torch.zeros(len(cell), 4)
        grad = _network_backward(
            weights, ctx.shape, cell, local, directions, None, no_raw, d_z.contiguous(), None
        )
        return grad, None, None, None, None


def trunk(
    weights: Tensor, shape: NetworkShape, cell: Tensor, local: Tensor, directions: Tensor
) -> Tensor:
    """Return the trunk z [n, hidden] of scattered samples, see `kilo_torch.network`."""
    inputs = (cell.contiguous(), local.contiguous(), directions.contiguous())
    return _Trunk.apply(weights, shape, *inputs)


class _Render(torch.autograd.Function):
    """From rays to what they see."""

    @staticmethod
    def forward(ctx, weights, head, shape, samples, directions, feature_rays, max_weight):
        rays, cells = len(samples.ray_start) - 1, len(weights)
        z_count = int(samples.ray_start[feature_rays])
        raw, z = _network_forward(
            weights, shape, samples.cell, samples.local, directions, samples.ray, z_count
        )
        rgb, transmittance, depth = torch.empty(rays, 3), torch.empty(rays), torch.empty(rays)
        features = torch.empty(feature_rays, shape.features)
        _function("kilo_composite_forward")(
            rays, _longs(samples.ray_start), _floats(samples.distance), _ints(samples.cell),
            _ints(samples.voxel), _floats(raw), shape.hidden, cells, feature_rays, _floats(z),
            _floats(head), _floats(rgb), _floats(transmittance), _floats(depth),
            _floats(features), _floats(max_weight), native.threads(),
        )  # fmt: skip
        ctx.save_for_backward(weights, head, directions, raw, z, *samples)
        ctx.shape, ctx.feature_rays = shape, feature_rays
        return rgb, transmittance, depth, features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        d_rgb, d_transmittance, d_depth, d_features = (g.contiguous() for g in gradients)
        weights, head, directions, raw, z, *fields = ctx.saved_tensors
        samples = Samples(*fields)
        rays, cells = len(samples.ray_start) - 1, len(weights)
        d_raw, d_z = torch.empty_like(raw), torch.empty_like(z)
        d_head = _buffers.empty_like(head) if ctx.feature_rays else None
        live = torch.empty(len(raw), dtype=torch.uint8)
        _function("kilo_composite_backward")(
            rays, _longs(samples.ray_start), _floats(samples.distance), _ints(samples.cell),
            _floats(raw), ctx.shape.hidden, cells, ctx.feature_rays, _floats(z), _floats(head),
            _floats(d_rgb), _floats(d_transmittance), _floats(d_depth), _floats(d_features),
            _floats(d_raw), _floats(d_z), _floats(d_head), _bytes(live), native.threads(),
        )  # fmt: skip
        d_weights = _network_backward(
            weights, ctx.shape, samples.cell, samples.local, directions, samples.ray, d_raw, d_z,
            live,
        )  # fmt: skip
        return d_weights, d_head, None, None, None, None, None


def render(
    weights: Tensor,
    head: Tensor,
    shape: NetworkShape,
    volume: Volume,
    origins: Tensor,
    directions: Tensor,
    jitter: Tensor,
    feature_rays: int,
    max_weight: Tensor | None = None,
) -> RayOutputs:
    """Render rays, see `kilo_torch.render`; `weights` and `head` receive gradients."""
    origins, directions = origins.contiguous(), directions.contiguous()
    samples = march(volume, origins, directions, jitter.contiguous())
    outputs = _Render.apply(weights, head, shape, samples, directions, feature_rays, max_weight)
    return RayOutputs(*outputs)


def has_bfloat16(shape: NetworkShape) -> bool:
    """Say whether pictures of such networks can be rendered with products in bfloat16."""
    return shape.hidden == 32 and bool(_function("kilo_has_bfloat16")())


def render_image(
    weights: Tensor,
    shape: NetworkShape,
    volume: Volume,
    origins: Tensor,
    directions: Tensor,
    stop_transmittance: float,
    *,
    width: int = 0,
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return premultiplied rgba [r, 4] and depth [r] of rays that stop when nearly opaque.

    Args:
        weights: [cells, P].
        shape: Of the networks.
        volume: Where they are.
        origins: [r, 3].
        directions: [r, 3], unit.
        stop_transmittance: A ray ends where less light passes.
        width: Rays per row, if they are whole rows of a picture; 0 else. Changes only the speed.
        bfloat16: Multiply in bfloat16, where `has_bfloat16`.
    """
    arguments, kept = _volume_arguments(volume)
    origins, directions = origins.contiguous(), directions.contiguous()
    rgba, depth = torch.empty(len(origins), 4), torch.empty(len(origins))
    _function("kilo_image")(
        *arguments, len(origins), _floats(origins), _floats(directions), width, shape.hidden,
        shape.position_frequencies, shape.direction_frequencies, _floats(weights), len(weights),
        int(bfloat16), stop_transmittance, _floats(rgba), _floats(depth), native.threads(),
    )  # fmt: skip
    del kept
    return rgba, depth
