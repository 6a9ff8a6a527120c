"""Training pictures that vary: colours first, then the path on top, then crop and rotation.

The colours change by one affine map per sample, x' = M x + b, the product of

    brightness   x' = f x
    contrast     x' = f x + (1 - f) mean grey of the picture
    saturation   x' = f x + (1 - f) grey of the pixel
    hue          a rotation about the grey axis in YIQ

so nothing is clipped in between and it costs one 3x3 product per pixel. The path is not in the
picture yet: its colours mean time, and stay what they are. Crop and rotation are one bilinear
resampling with the same draw for every picture and channel of a sample, so the first frame, the
current ones and their paths stay in register.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maniflow_overlay.config import AugmentConfig

GREY = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


class AugmentDraws(NamedTuple):
    """One row per sample: how its pictures are changed.

    Attributes:
        brightness: (B,) factor.
        contrast: (B,) factor.
        saturation: (B,) factor.
        hue_rad: (B,) angle of the rotation.
        angle_rad: (B,) rotation of the picture.
        shift: (B, 2) centre of the crop, in half pictures.
        scale: (B,) side of the crop.
    """

    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue_rad: np.ndarray
    angle_rad: np.ndarray
    shift: np.ndarray
    scale: np.ndarray

    def part(self, rows: slice | np.ndarray) -> AugmentDraws:
        """Return some samples."""
        return AugmentDraws(*(array[rows] for array in self))


class AugmentTensors(NamedTuple):
    """The same on a device."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue_rad: Tensor
    angle_rad: Tensor
    shift: Tensor
    scale: Tensor


def draw_augmentation(count: int, config: AugmentConfig, rng: np.random.Generator) -> AugmentDraws:
    """Draw how `count` samples are changed."""

    def around(centre: float, amount: float) -> np.ndarray:
        return rng.uniform(centre - amount, centre + amount, count).astype(np.float32)

    slack = 1 - config.crop
    return AugmentDraws(
        around(1, config.brightness),
        around(1, config.contrast),
        around(1, config.saturation),
        around(0, 2 * math.pi * config.hue),
        around(0, math.radians(config.rotation_deg)),
        rng.uniform(-slack, slack, (count, 2)).astype(np.float32),
        np.full(count, config.crop, np.float32),
    )


def change_colours(planes: Tensor, draws: AugmentTensors) -> Tensor:
    """Change the colours of pictures.

    Args:
        planes: (B, 3, N, H, W) bytes.
        draws: One row per sample.

    Returns:
        (B, 3, N, H, W) float32, clipped to [0, 1].
    """
    values = planes.float()
    grey = values.new_tensor(GREY)
    turned = _hue(draws.hue_rad, values) @ _saturation(draws.saturation, grey)
    matrix = (draws.contrast * draws.brightness / 255)[:, None, None] * turned
    # Contrast pulls towards the mean grey of the brightened picture, a grey that neither
    # saturation nor hue changes.
    mean = torch.einsum("c,bcn->bn", grey / 255, values.mean(dim=(3, 4)))
    offset = ((1 - draws.contrast) * draws.brightness)[:, None] * mean
    changed = torch.bmm(matrix, values.flatten(2)).view_as(values)
    return changed.add_(offset[:, None, :, None, None]).clamp_(0, 1)


def _saturation(factor: Tensor, grey: Tensor) -> Tensor:
    identity = torch.eye(3, device=grey.device)
    to_grey = grey.expand(3, 3)
    return factor[:, None, None] * identity + (1 - factor)[:, None, None] * to_grey


def _hue(angle: Tensor, like: Tensor) -> Tensor:
    to_yiq = like.new_tensor(_YIQ)
    rotation = like.new_zeros(len(angle), 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(to_yiq) @ rotation @ to_yiq


def composite(rgb: Tensor, path: Tensor) -> Tensor:
    """Lay drawn paths over pictures: what is not black is the path.

    Args:
        rgb: (B, 3, ...) in [0, 1].
        path: (B, 3, ...) bytes.
    """
    drawn = (path[:, :1] | path[:, 1:2] | path[:, 2:]) != 0
    return torch.where(drawn, path / 255, rgb)


def crop_and_rotate(planes: Tensor, draws: AugmentTensors) -> Tensor:
    """Resample (B, ..., H, W) planes; all of a sample the same way, edges are repeated."""
    height, width = planes.shape[-2:]
    cos, sin = draws.angle_rad.cos() * draws.scale, draws.angle_rad.sin() * draws.scale
    theta = planes.new_empty(len(planes), 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos, -sin * (height / width)
    theta[:, 1, 0], theta[:, 1, 1] = sin * (width / height), cos
    theta[:, :, 2] = draws.shift
    flat = planes.flatten(1, -3)
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    moved = functional.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    return moved.view_as(planes)
