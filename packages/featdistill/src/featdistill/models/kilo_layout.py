"""Shapes that the native kernels, their torch twins and the student agree on.

One cell holds one network (KiloNeRF, Fig. 3): position -> hidden -> hidden = z; density from z;
z -> feature (linear); feature and view direction -> hidden -> colour. Its parameters are one flat
row: blocks of `hidden` columns, input-major, so that a kernel reads a row of outputs for an input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

RAW_LIMIT = 30.0
"""Raw densities are clamped to +-30: optical depths from 1e-13 to 30 per step, never infinite."""

LIVE_TRANSMITTANCE = 1e-3
"""Samples behind a transmittance below this receive no gradient."""


class NetworkBlocks(NamedTuple):
    """Views into `weights` [cells, P]; the last axis of a matrix is its output."""

    position: Tensor  # [cells, position_inputs, hidden]
    position_bias: Tensor  # [cells, hidden]
    trunk: Tensor  # [cells, hidden, hidden]
    trunk_bias: Tensor  # [cells, hidden]
    density: Tensor  # [cells, hidden]
    feature: Tensor  # [cells, hidden, hidden]
    feature_bias: Tensor  # [cells, hidden]
    colour_hidden: Tensor  # [cells, hidden + direction_inputs, hidden]
    colour_hidden_bias: Tensor  # [cells, hidden]
    colour: Tensor  # [cells, 3, hidden]: one row of inputs per colour
    output_bias: Tensor  # [cells, 16]: red, green, blue, density, 12 of padding


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of the network of one cell."""

    hidden: int
    position_frequencies: int
    direction_frequencies: int
    features: int = 128

    @property
    def position_inputs(self) -> int:
        """Inputs of the first layer: x, then sin(2^k x) and cos(2^k x) of three coordinates."""
        return 3 + 6 * self.position_frequencies

    @property
    def direction_inputs(self) -> int:
        """Inputs of the colour branch besides the feature."""
        return 3 + 6 * self.direction_frequencies

    @property
    def block_shapes(self) -> NetworkBlocks:
        """Shape of each block of one cell, in the order in which they are stored."""
        h = self.hidden
        shapes = (
            (self.position_inputs, h), (h,), (h, h), (h,), (h,), (h, h), (h,),
            (h + self.direction_inputs, h), (h,), (3, h), (16,),
        )  # fmt: skip
        return NetworkBlocks(*shapes)  # ty: ignore[invalid-argument-type]  shapes, not tensors

    @property
    def parameters(self) -> int:
        """P, the length of a cell's row: a multiple of 16, so that every block is aligned."""
        return sum(math.prod(shape) for shape in self.block_shapes)

    @property
    def head_parameters(self) -> int:
        """Length of a cell's head row: `hidden` rows of weights and one row of biases."""
        return (self.hidden + 1) * self.features

    def blocks(self, weights: Tensor) -> NetworkBlocks:
        """Split [cells, P] into named views."""
        sizes = [math.prod(shape) for shape in self.block_shapes]
        parts = torch.split(weights, sizes, dim=-1)
        views = [
            part.unflatten(-1, shape) if len(shape) > 1 else part
            for part, shape in zip(parts, self.block_shapes, strict=True)
        ]
        return NetworkBlocks(*views)


@dataclass(frozen=True)
class Volume:
    """Where a student can be anything but empty, and which network answers there.

    Attributes:
        box: corners (minimum, maximum) in world coordinates, float32 [2, 3].
        occupancy: 1 where a voxel may be filled, uint8 [vx, vy, vz].
        distance: Chebyshev distance in voxels to the next filled one (0 inside), uint8.
        cell_index: row of `weights` for a grid cell, -1 where none is, int32 [gx, gy, gz].
        step: distance of samples along a ray, in world units.
    """

    box: Tensor
    occupancy: Tensor
    distance: Tensor
    cell_index: Tensor
    step: float


class Samples(NamedTuple):
    """Samples in filled voxels, rays one after the other and front to back within a ray."""

    ray_start: Tensor  # [r + 1] int64: samples of ray i are ray_start[i] : ray_start[i + 1]
    ray: Tensor  # [s] int32
    cell: Tensor  # [s] int32, row of `weights`
    voxel: Tensor  # [s] int32, flat index into the occupancy
    distance: Tensor  # [s] float32 along the ray, world units
    local: Tensor  # [s, 3] float32, position in the cell in [-1, 1]


class RayOutputs(NamedTuple):
    """What a ray sees.

    `rgb` is premultiplied (over black); `depth` is sum_k w_k t_k, so divide it by the opacity
    1 - transmittance for a mean distance; `features` are composited with the same weights.
    """

    rgb: Tensor  # [r, 3]
    transmittance: Tensor  # [r]
    depth: Tensor  # [r]
    features: Tensor  # [k, features], of the first k rays
