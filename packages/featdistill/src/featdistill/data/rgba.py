"""Straight and premultiplied alpha, the only place that converts one into the other.

PNG files hold *straight* 8-bit colours; sums of colours (filtering, rendering, losses) are right
only for *premultiplied* ones, C = alpha * c, which go over a background B as C + (1 - alpha) B.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
BACKGROUNDS = {"white": WHITE, "black": BLACK}


def premultiply(straight: Tensor) -> Tensor:
    """Turn straight uint8 [..., 4] into premultiplied float32 [..., 4] in [0, 1]."""
    values = straight.float() / 255
    values[..., :3] *= values[..., 3:]
    return values


def straighten(premultiplied: np.ndarray) -> np.ndarray:
    """Turn premultiplied floats [..., 4] in [0, 1] into straight uint8, rounded to nearest.

    A pixel whose alpha rounds to 0 becomes all zero.
    """
    alpha = np.clip(premultiplied[..., 3:], 0.0, 1.0)
    colour = np.clip(premultiplied[..., :3], 0.0, alpha) / np.maximum(alpha, 1e-8)
    straight = np.rint(np.concatenate([colour, alpha], axis=-1) * 255).astype(np.uint8)
    return straight * (straight[..., 3:] > 0)


def composite(premultiplied: np.ndarray, background: tuple[float, float, float]) -> np.ndarray:
    """Put premultiplied floats [..., 4] over a background; uint8 [..., 3], rounded to nearest."""
    clear = 1.0 - premultiplied[..., 3:]
    colour = premultiplied[..., :3] + clear * np.asarray(background, premultiplied.dtype)
    return np.rint(np.clip(colour, 0.0, 1.0) * 255).astype(np.uint8)


def box_filter(straight: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of `factor` x `factor` pixels, weighting each colour by its alpha.

    Args:
        straight: uint8 [h, w, 4]; both sides are multiples of `factor`.
        factor: At most 256, so that the integer sums are exact.

    Returns:
        Straight uint8 [h / factor, w / factor, 4], rounded to nearest.
    """
    if factor == 1:
        return straight
    alpha = straight[..., 3].astype(np.uint32)
    weighted = np.concatenate([straight[..., :3] * alpha[..., None], alpha[..., None]], axis=-1)
    rows = weighted.reshape(-1, factor, *weighted.shape[1:]).sum(axis=1, dtype=np.uint32)
    blocks = rows.reshape(len(rows), -1, factor, 4).sum(axis=2, dtype=np.uint64)
    total = blocks[..., 3:]
    colour = (2 * blocks[..., :3] + total) // np.maximum(2 * total, 1)
    mean = (2 * total + factor**2) // (2 * factor**2)
    return (np.concatenate([colour, mean], axis=-1) * (mean > 0)).astype(np.uint8)
