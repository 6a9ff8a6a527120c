"""A policy small enough for tests, with weights that do something from the start."""

from __future__ import annotations

from dataclasses import replace

import torch
from maniflow_overlay.arms import Arm, Fuse, Mode
from maniflow_overlay.policy.model import OverlayPolicy
from maniflow_overlay.policy.presets import PolicyShape

SHAPE = PolicyShape("tiny", Arm("initial_current"), 16, 20, 14, 14, (), 8, 2, 7)


def shape(mode: Mode = "initial_current", fuse: Fuse = "overlay", **changes) -> PolicyShape:
    return replace(SHAPE, arm=Arm(mode, fuse), **changes)


def stirred(policy_shape: PolicyShape = SHAPE, seed: int = 0) -> OverlayPolicy:
    """A network whose every parameter is off its beginning: at first it answers zero."""
    generator = torch.Generator().manual_seed(seed)
    model = OverlayPolicy(policy_shape, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
