"""Images in other colours: a student should learn where walls are, not what paint they have.

Each chosen window gets a random linear map of its colours, the 1 x 1 case of the random
convolutions of Xu et al. (ICLR 2021), scaled back to the images' own mean and contrast. All frames
of a window get the same map; edges stay where they are.
"""

import numpy as np
import torch
from torch import Tensor

_MEAN, _CONTRAST = 120.0, 60.0  # of the pictures that come out


def colour_maps(rng: np.random.Generator, windows: int, share: float) -> np.ndarray:
    """Draw a map [3, 3] for each window: random for a share of them, else the identity.

    Args:
        rng: Source of randomness.
        windows: How many maps.
        share: Probability of a random one.
    """
    maps = rng.standard_normal((windows, 3, 3)).astype(np.float32)
    chosen = rng.random(windows) < share
    return np.where(chosen[:, None, None], maps, np.eye(3, dtype=np.float32))


def mix_colours(images: Tensor, maps: np.ndarray) -> Tensor:
    """Apply colour maps to windows; an identity leaves its window untouched.

    Args:
        images: uint8 [B, T, H, W, 3].
        maps: float32 [B, 3, 3].
    """
    mixed = images.clone()
    for index, matrix in enumerate(maps):
        if np.array_equal(matrix, np.eye(3)):
            continue
        pixels = images[index].to(torch.float32).flatten(0, 2) @ torch.from_numpy(matrix).T
        spread = pixels.std(0, keepdim=True).mean().clamp(min=1.0)
        pixels = (pixels - pixels.mean(0)) * (_CONTRAST / spread) + _MEAN
        mixed[index] = pixels.clamp(0, 255).round().to(torch.uint8).view_as(images[index])
    return mixed
