"""All that a network may see of a vehicle: its image and its rig. Nothing here knows a pose.

A panorama of several cameras has no centre, so each pixel comes with the origin and the direction
of its ray. Both follow from the rig and are known without any ground truth.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from coopcyl.geometry.view import View


class ViewInput(NamedTuple):
    """Panoramas of n vehicles.

    Attributes:
        image: `(n, 3, h, w)` float32 in [0, 1].
        rays: `(n, 3, h, w)` float32 unit directions, rig frame (x right, y down, z forward).
        origins: `(n, 3, h, w)` float32 origins of the rays, metres; 0 where no camera looks.
        covered: `(n, h, w)` bool, where a camera looks.
    """

    image: Tensor
    rays: Tensor
    origins: Tensor
    covered: Tensor

    def to(self, device: torch.device | str) -> "ViewInput":
        """Return the same on another device."""
        return ViewInput(*(tensor.to(device) for tensor in self))


def view_input(view: View) -> ViewInput:
    """Return the input of one view, n = 1. Ranges, masks of surfaces and poses are not touched."""
    image = view.rgb.astype(np.float32) / np.float32(255)
    return as_input(image, view.table.directions, view.ray_origins(), view.coverage)


def as_input(
    image: np.ndarray, rays: np.ndarray, origins: np.ndarray, covered: np.ndarray
) -> ViewInput:
    """Turn arrays `([n,] h, w, 3)` and `([n,] h, w)` into tensors with the channels first."""
    size = covered.shape[-2:]

    def channels_first(array: np.ndarray) -> Tensor:
        whole = np.ascontiguousarray(array.reshape(-1, *size, 3))
        return torch.from_numpy(whole).permute(0, 3, 1, 2).contiguous()

    return ViewInput(
        channels_first(image.astype(np.float32)),
        channels_first(rays.astype(np.float32)),
        channels_first(origins.astype(np.float32)),
        torch.from_numpy(np.array(covered).reshape(-1, *size)),
    )


def stack(inputs: list[ViewInput]) -> ViewInput:
    """Join inputs of the same size along n."""
    return ViewInput(*(torch.cat(parts) for parts in zip(*inputs, strict=True)))
