"""Numbers of a joint or an action, mapped so that the data's limits become -1 and 1.

    y = scale x + offset,   scale = 2 / (max - min),   offset = -1 - scale min

A dimension that spans less than `range_eps` is only moved, so that its smallest value is 0: scaling
it would blow its noise up to the full range. One that spans little more than that, such as an arm
that stays where it is, is the case to look out for; `idle_warnings` names each.
"""

from __future__ import annotations

import numpy as np
import torch
from loom.errors import UserError
from torch import Tensor, nn

RANGE_EPS = 1e-4
IDLE_SHARE = 0.01


class LimitsNormaliser(nn.Module):
    """An affine map for each dimension; its numbers are saved with the policy."""

    scale: Tensor
    offset: Tensor

    def __init__(self, dimensions: int) -> None:
        """Begin as the identity."""
        super().__init__()
        self.register_buffer("scale", torch.ones(dimensions))
        self.register_buffer("offset", torch.zeros(dimensions))

    def fit(self, values: np.ndarray, range_eps: float = RANGE_EPS) -> None:
        """Take the limits of (n, dimensions) values.

        Raises:
            UserError: A value is not finite.
        """
        low, high = _limits(values)
        span = high - low
        still = span < range_eps
        scale = 2.0 / np.where(still, 2.0, span)
        offset = np.where(still, -low, -1.0 - scale * low)
        self.scale.copy_(torch.from_numpy(scale))
        self.offset.copy_(torch.from_numpy(offset))

    def forward(self, values: Tensor) -> Tensor:
        """Map (..., dimensions) to the normalised range."""
        return values * self.scale + self.offset

    def inverse(self, values: Tensor) -> Tensor:
        """Map (..., dimensions) back."""
        return (values - self.offset) / self.scale


def idle_warnings(values: np.ndarray, what: str, range_eps: float = RANGE_EPS) -> list[str]:
    """Name the dimensions that hardly move and would be blown up to the full range.

    Args:
        values: (n, dimensions).
        what: Of what they are dimensions, for the message.
        range_eps: Below it a dimension is not scaled.

    Returns:
        One sentence for each dimension that spans at least `range_eps`, and less than a hundredth
        of what the widest one does.
    """
    low, high = _limits(values)
    span = high - low
    widest = float(span.max())
    idle = np.flatnonzero((span >= range_eps) & (span < IDLE_SHARE * widest))
    return [
        f"{what} dimension {k} spans only {span[k]:.2g} (the widest {widest:.2g}) and is blown up "
        f"{2 / span[k]:.0f} times by the normaliser; range_eps above {span[k]:.2g} keeps it still"
        for k in idle.tolist()
    ]


def _limits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0].tolist()
        raise UserError(f"row {row}, dimension {column} is not finite: nothing can be normalised")
    values = values.astype(np.float64)
    return values.min(axis=0), values.max(axis=0)
