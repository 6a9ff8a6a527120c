"""The policy's weights spread over the processes of a group by torch's `fully_shard` (FSDP2).

Each block of the transformer and each picture encoder is a unit that is whole while it computes;
else every process holds a part of its weights, gradients, averages and optimiser state. A policy is
asked by `context` and `velocity`, so both count as its forward pass.
"""

from __future__ import annotations

import torch
from loom import distributed
from loom.errors import UserError
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from maniflow_overlay.policy.model import OverlayPolicy


def shard_policies(*policies: OverlayPolicy, device: torch.device) -> None:
    """Spread policies, each in itself, in place; parameters are new objects afterwards.

    Raises:
        UserError: There is one process only.
    """
    world = distributed.shard().world
    if world == 1:
        raise UserError(
            "shard=fsdp2 spreads weights over processes, and there is one",
            hint="torchrun --nproc-per-node 2 -m maniflow_overlay train ..., or shard=none",
        )
    mesh = init_device_mesh(device.type, (world,))
    for policy in policies:
        for unit in (*policy.ditx.blocks, *policy.encoder.trunks, policy):
            # Also the outermost, which keeps its weights whole by default: a teacher that nobody
            # learns has no backward pass that would spread them again.
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        for method in ("context", "velocity"):
            register_fsdp_forward_method(policy, method)
