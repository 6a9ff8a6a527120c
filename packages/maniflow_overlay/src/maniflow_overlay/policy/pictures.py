"""From stored bytes to the network's input, in training and in use.

`as_input` is what every prediction sees. `varied` is the same for training, with `augmentation`
between reading the frame and laying the path over it; with draws that change nothing both agree.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from maniflow_overlay.arms import Arm
from maniflow_overlay.policy.augmentation import (
    AugmentTensors,
    change_colours,
    composite,
    crop_and_rotate,
)


def as_input(pictures: Tensor) -> Tensor:
    """Map (..., H, W, C) bytes to (..., C, H, W) in [0, 1]."""
    return pictures.movedim(-1, -3).float() / 255


def varied(
    current: Tensor, initial: Tensor | None, arm: Arm, draws: AugmentTensors
) -> tuple[Tensor, Tensor | None]:
    """Return the varied input of a training batch.

    Args:
        current: (B, T, P, H, W, 3) bytes: the frame and, with P = 2, its path on black.
        initial: (B, P, H, W, 3) bytes, or None.
        arm: Decides whether the path is laid over the frame or put beside it.
        draws: How each sample is changed.

    Returns:
        (B, T, channels, H, W) and (B, channels, H, W) or None, in [0, 1].
    """
    frames, paths = _frame_and_path(current)
    if initial is not None:
        first_frame, first_path = _frame_and_path(initial[:, None])
        frames, paths = torch.cat([frames, first_frame], 2), torch.cat([paths, first_path], 2)
    planes = change_colours(frames, draws)
    if arm.channels == 3:
        planes = composite(planes, paths)
    else:
        planes = torch.cat([planes, paths / 255], dim=1)
    moved = crop_and_rotate(planes, draws).transpose(1, 2)
    if initial is None:
        return moved, None
    return moved[:, :-1], moved[:, -1]


def _frame_and_path(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, N, P, H, W, 3) bytes into two (B, 3, N, H, W); a missing path is black."""
    planes = pictures.movedim(-1, 1)
    frames = planes[:, :, :, 0]
    return frames, planes[:, :, :, 1] if planes.shape[3] == 2 else torch.zeros_like(frames)


def plain(current: Tensor, initial: Tensor | None, arm: Arm) -> tuple[Tensor, Tensor | None]:
    """Return the input of a batch whose paths are in place already; shapes as in `varied`."""
    first = None if initial is None else _merged(initial, arm.channels)
    return _merged(current, arm.channels), first


def _merged(pictures: Tensor, channels: int) -> Tensor:
    """Put (..., P, H, W, 3) bytes into (..., channels, H, W); what is missing is black."""
    merged = as_input(pictures).flatten(-4, -3)
    missing = channels - merged.shape[-3]
    return functional.pad(merged, (0, 0, 0, 0, 0, missing)) if missing else merged
