"""Readable twin of the native student kernels: marching, grouped networks, compositing.

The equations, for samples k = 0, 1, ... of a ray, front to back, one step apart:

    tau_k = softplus(clamp(raw_k, +-30))         optical depth of one step
    alpha_k = 1 - exp(-tau_k),  T_k = exp(-sum_{j<k} tau_j),  w_k = T_k alpha_k
    rgb = sum w_k sigmoid(c_k),  transmittance = T_n,  depth = sum w_k t_k
    features = sum w_k (A_c z_k + b_c) = sum_c (A_c sum_{k in c} w_k z_k + b_c sum_{k in c} w_k)

The last line is why the 128-D head costs little: it is linear, so it is applied once per pair of a
ray and a cell. Marching is float32; the rest follows the dtype of the weights (float64 in tests).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from featdistill.models.kilo_layout import (
    LIVE_TRANSMITTANCE,
    RAW_LIMIT,
    NetworkShape,
    RayOutputs,
    Samples,
    Volume,
)

CHUNK = 32  # samples of one cell that go through one batched product


def intersect_box(box: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances [r] at which rays enter and leave the box; enter >= leave is a miss."""
    parallel = directions.abs() < 1e-9
    outside = parallel & ((origins < box[0]) | (origins > box[1]))
    inverse = 1.0 / torch.where(parallel, torch.ones_like(directions), directions)
    first, second = (box[0] - origins) * inverse, (box[1] - origins) * inverse
    infinite = torch.full_like(first, torch.inf)
    near = torch.where(parallel, -infinite, torch.minimum(first, second)).amax(dim=1)
    far = torch.where(parallel, infinite, torch.maximum(first, second)).amin(dim=1)
    miss = outside.any(dim=1) | parallel.all(dim=1)
    return near.clamp(min=0.0), torch.where(miss, torch.zeros_like(far), far)


def locate(volume: Volume, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return cell row [n] (-1: none), flat voxel [n] and cell-local position [n, 3] of points."""
    cells = torch.tensor(volume.cell_index.shape, device=points.device)
    voxels = torch.tensor(volume.occupancy.shape, device=points.device)
    extent = volume.box[1] - volume.box[0]
    in_voxels = (points - volume.box[0]) * (voxels / extent)
    voxel = in_voxels.floor().long().clamp_min(0).minimum(voxels - 1)
    in_cells = (points - volume.box[0]) * (cells / extent)
    cell = in_cells.floor().long().clamp_min(0).minimum(cells - 1)
    local = (2.0 * (in_cells - cell) - 1.0).clamp(-1.0, 1.0)
    row = volume.cell_index[cell[..., 0], cell[..., 1], cell[..., 2]]
    flat = (voxel[..., 0] * voxels[1] + voxel[..., 1]) * voxels[2] + voxel[..., 2]
    return row, flat.int(), local


def march(volume: Volume, origins: Tensor, directions: Tensor, jitter: Tensor) -> Samples:
    """Place samples at enter + (k + jitter) step and keep those in filled voxels."""
    near, far = intersect_box(volume.box, origins, directions)
    longest = torch.nan_to_num((far - near).amax(), nan=0.0).item() if len(near) else 0.0
    device = origins.device
    steps = torch.arange(max(0, int(longest / volume.step) + 2), dtype=torch.float32, device=device)
    distance = near[:, None] + (steps + jitter[:, None]) * volume.step
    points = origins[:, None] + distance[..., None] * directions[:, None]
    row, voxel, local = locate(volume, points)
    filled = volume.occupancy.flatten()[voxel.long()] > 0
    keep = (distance < far[:, None]) & filled & (row >= 0)
    ray = torch.arange(len(origins), dtype=torch.int32, device=device)[:, None].expand_as(keep)
    ray_start = functional.pad(keep.sum(dim=1).cumsum(dim=0), (1, 0))
    return Samples(ray_start, ray[keep], row[keep], voxel[keep], distance[keep], local[keep])


def encode(values: Tensor, frequencies: int) -> Tensor:
    """Return x, then sin(2^k x) and cos(2^k x) for k = 0.. : [n, 3] -> [n, 3 + 6 frequencies]."""
    octaves = [values]
    for k in range(frequencies):
        octaves += [torch.sin(values * 2.0**k), torch.cos(values * 2.0**k)]
    return torch.cat(octaves, dim=-1)


def network(
    weights: Tensor, shape: NetworkShape, cell: Tensor, local: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Evaluate each sample by the network of its cell.

    Args:
        weights: [cells, P], see `NetworkShape.blocks`.
        shape: sizes of a network.
        cell: row of `weights` for each sample, [n].
        local: cell-local positions, [n, 3].
        directions: unit view directions, [n, 3].

    Returns:
        raw [n, 4] (red, green, blue, density before their activations) and the trunk z [n, hidden].
    """
    order = torch.argsort(cell, stable=True)
    counts = torch.bincount(cell, minlength=len(weights))
    chunks = (counts + CHUNK - 1) // CHUNK
    first_chunk = chunks.cumsum(0) - chunks
    rank = (
        torch.arange(len(cell), device=cell.device)
        - (counts.cumsum(0) - counts)[cell[order].long()]
    )
    slot = first_chunk[cell[order].long()] * CHUNK + rank  # a cell's samples fill its own chunks

    total = int(chunks.sum())
    rows = torch.repeat_interleave(chunks)
    inputs = torch.cat([local, directions], dim=1).to(weights.dtype)
    padded = inputs.new_zeros(total * CHUNK, 6).index_copy(0, slot, inputs[order])
    padded = padded.unflatten(0, (total, CHUNK))

    net = shape.blocks(weights[rows])
    position = encode(padded[..., :3], shape.position_frequencies)
    direction = encode(padded[..., 3:], shape.direction_frequencies)
    first = torch.baddbmm(net.position_bias[:, None], position, net.position).relu()
    z = torch.baddbmm(net.trunk_bias[:, None], first, net.trunk).relu()
    density = (z * net.density[:, None]).sum(dim=-1, keepdim=True)
    feature = torch.baddbmm(net.feature_bias[:, None], z, net.feature)
    colour_inputs = torch.cat([feature, direction], dim=-1)
    hidden = torch.baddbmm(net.colour_hidden_bias[:, None], colour_inputs, net.colour_hidden)
    colour = hidden.relu() @ net.colour.transpose(1, 2)
    raw = torch.cat([colour, density], dim=-1) + net.output_bias[:, None, :4]

    back = torch.empty_like(order).scatter_(0, order, slot)  # sample -> slot
    return raw.flatten(0, 1)[back], z.flatten(0, 1)[back]


def ray_weights(samples: Samples, density: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight [s], transmittance before the sample [s] and behind the last one [r]."""
    ray = samples.ray.long()
    counts = samples.ray_start.diff()
    rank = torch.arange(len(ray), device=ray.device) - samples.ray_start[ray]
    width = int(counts.max()) if len(counts) else 0
    depth = functional.softplus(density.clamp(-RAW_LIMIT, RAW_LIMIT))
    padded = depth.new_zeros(len(counts), width + 1).index_put((ray, rank + 1), depth)
    passed = torch.exp(-padded.cumsum(dim=1))
    before = passed[ray, rank]
    return before * -torch.expm1(-depth), before, passed[:, -1]


def composite(
    samples: Samples,
    raw: Tensor,
    z: Tensor,
    head: Tensor,
    shape: NetworkShape,
    feature_rays: int,
    max_weight: Tensor | None = None,
) -> RayOutputs:
    """Blend samples along rays; `max_weight` (per voxel, flat) is raised to the weights seen."""
    with torch.no_grad():
        weight, before, _ = ray_weights(samples, raw[:, 3])
        if max_weight is not None:
            seen = weight.to(max_weight.dtype)
            max_weight.scatter_reduce_(0, samples.voxel.long(), seen, reduce="amax")
        live = (before >= LIVE_TRANSMITTANCE)[:, None]
    raw = torch.where(live, raw, raw.detach())
    z = torch.where(live, z, z.detach())
    weight, _, transmittance = ray_weights(samples, raw[:, 3])
    ray, rays = samples.ray.long(), len(samples.ray_start) - 1
    rgb = raw.new_zeros(rays, 3).index_add(0, ray, weight[:, None] * torch.sigmoid(raw[:, :3]))
    depth = raw.new_zeros(rays).index_add(0, ray, weight * samples.distance.to(raw.dtype))

    count = int(samples.ray_start[feature_rays])
    pairs = torch.stack([samples.ray[:count], samples.cell[:count]], dim=1)
    pairs, segment = torch.unique_consecutive(pairs, dim=0, return_inverse=True)
    ones = torch.ones_like(z[:count, :1])
    weighted = weight[:count, None] * torch.cat([z[:count], ones], dim=1)
    sums = raw.new_zeros(len(pairs), shape.hidden + 1).index_add(0, segment, weighted)
    matrices = head.unflatten(1, (shape.hidden + 1, shape.features))[pairs[:, 1].long()]
    per_segment = torch.bmm(sums[:, None], matrices)[:, 0]
    features = raw.new_zeros(feature_rays, shape.features)
    features = features.index_add(0, pairs[:, 0].long(), per_segment)
    return RayOutputs(rgb, transmittance, depth, features)


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
    """March, evaluate and composite in plain differentiable torch."""
    samples = march(volume, origins, directions, jitter)
    raw, z = network(weights, shape, samples.cell, samples.local, directions[samples.ray.long()])
    return composite(samples, raw, z, head, shape, feature_rays, max_weight)
