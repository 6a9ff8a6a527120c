"""The value that a 3D Gaussian Splatting model is: one row of raw parameters per gaussian.

Raw means "as stored in a 3DGS `point_cloud.ply`": scales as logarithms, opacities as logits,
rotations as quaternions (w, x, y, z) that need not have unit length, colours as spherical-harmonic
coefficients. The activated quantities of Kerbl et al. 2023, section 5, are methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SH_COEFFICIENTS = 16
"""Coefficients per colour channel at degree 3, the degree of every 3DGS release."""


@dataclass(frozen=True)
class Gaussians:
    """Raw parameters of n gaussians.

    Attributes:
        means: centres in world coordinates, [n, 3].
        log_scales: natural logarithm of the standard deviations along the own axes, [n, 3].
        rotations: quaternions w, x, y, z from own axes to the world, not normalised, [n, 4].
        opacity_logits: opacity before the sigmoid, [n].
        sh: colour coefficients, [n, 16, 3]; row 0 is the constant term (`f_dc`).
    """

    means: Tensor
    log_scales: Tensor
    rotations: Tensor
    opacity_logits: Tensor
    sh: Tensor

    def __post_init__(self) -> None:
        n = self.means.shape[0]
        expected = {
            "means": (n, 3),
            "log_scales": (n, 3),
            "rotations": (n, 4),
            "opacity_logits": (n,),
            "sh": (n, SH_COEFFICIENTS, 3),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"Gaussians.{name} has shape {found}, expected {shape}")

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def opacities(self) -> Tensor:
        """Opacity in (0, 1), [n]."""
        return torch.sigmoid(self.opacity_logits)

    @property
    def scales(self) -> Tensor:
        """Standard deviations in world units, [n, 3]."""
        return torch.exp(self.log_scales)

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussians:
        """Return the gaussians with `function` applied to each tensor (select rows, move, cast)."""
        return Gaussians(*(function(tensor) for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the five tensors in the order of the fields."""
        return (self.means, self.log_scales, self.rotations, self.opacity_logits, self.sh)


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Return the rotation matrices [n, 3, 3] of quaternions (w, x, y, z) of any length [n, 4]."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*quaternions.shape[:-1], 3, 3)
