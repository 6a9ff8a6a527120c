"""Gaussians as a trainable module, with one optimiser group per kind of parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featdistill.gaussians import Gaussians

GROUPS = ("means", "log_scales", "rotations", "opacity_logits", "sh_constant", "sh_rest")


class GaussianModel(nn.Module):
    """A fixed number of gaussians that learn; `forward` gives them as a value.

    The constant and the view-dependent coefficients are separate parameters because they learn at
    different rates.
    """

    means: Tensor
    log_scales: Tensor
    rotations: Tensor
    opacity_logits: Tensor
    sh_constant: Tensor  # [n, 1, 3]
    sh_rest: Tensor  # [n, 15, 3]

    def __init__(self, start: Gaussians) -> None:
        """Begin at the values of `start`."""
        super().__init__()
        values = (*start.tensors()[:4], start.sh[:, :1], start.sh[:, 1:])
        for name, value in zip(GROUPS, values, strict=True):
            self.register_parameter(name, nn.Parameter(value.detach().clone().contiguous()))

    def forward(self) -> Gaussians:
        """Return the gaussians, connected to the parameters."""
        sh = torch.cat([self.sh_constant, self.sh_rest], dim=1)
        return Gaussians(self.means, self.log_scales, self.rotations, self.opacity_logits, sh)

    def groups(self) -> list[dict]:
        """Return the optimiser groups, each with its name."""
        return [{"name": name, "params": [getattr(self, name)]} for name in GROUPS]
