"""LaProp with adaptive gradient clipping, the optimiser of DreamerV3's 2024 revision.

LaProp (Ziyin 2020) normalises the gradient by its running magnitude before it takes the momentum,
so a tiny `eps` is safe where Adam's ratio of two running means is not:

    v <- b2 v + (1 - b2) g^2,   m <- b1 m + (1 - b1) g / (sqrt(v / (1 - b2^n)) + eps)
    w <- w - lr m / (1 - b1^n)

Clipping is per tensor: |g| <= clip max(|w|, smallest) (Brock 2021, there per row).
"""

from collections.abc import Iterable
from typing import Any

import torch
from loom.optimizer import GroupOptimizer
from torch import Tensor

SMALLEST_NORM = 1e-3


class LaProp(GroupOptimizer):
    """The optimiser; parameters without a gradient stand still."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float = 0.3,
    ) -> None:
        """Name what is learnt.

        Args:
            params: Parameters, or groups of them.
            lr: Rate.
            betas: Decay of the momentum and of the squared gradient.
            eps: Added to the magnitude.
            clip: Largest gradient of a tensor relative to its norm; 0 clips nothing.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "clip": clip})

    def update(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        """Update all parameters of a group at once."""
        if group["clip"]:
            gradients = _clipped(parameters, gradients, group["clip"])
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["momentum"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
            state["step"] += 1
        beta, beta_square = group["betas"]
        states = [self.state[parameter] for parameter in parameters]
        squares = [state["square"] for state in states]
        momenta = [state["momentum"] for state in states]
        torch._foreach_mul_(squares, beta_square)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta_square)
        size = torch._foreach_div(squares, [1 - beta_square ** s["step"] for s in states])
        torch._foreach_sqrt_(size)
        torch._foreach_add_(size, group["eps"])
        torch._foreach_lerp_(momenta, torch._foreach_div(gradients, size), 1 - beta)
        moves = torch._foreach_div(momenta, [1 - beta ** s["step"] for s in states])
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])


def _clipped(parameters: list[Tensor], gradients: list[Tensor], clip: float) -> list[Tensor]:
    """Return gradients none of which is larger than `clip` times its tensor."""
    largest = torch._foreach_clamp_min(torch._foreach_norm(parameters), SMALLEST_NORM)
    torch._foreach_mul_(largest, clip)
    excess = torch._foreach_div(torch._foreach_norm(gradients), largest)
    return list(torch._foreach_div(gradients, torch._foreach_clamp_min(excess, 1.0)))
