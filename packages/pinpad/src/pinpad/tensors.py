"""From recorded or remembered images to what models take."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pinpad.data.windows import Windows
from pinpad.envs.layouts import MOVES
from pinpad.models.world import Seen

CPU = torch.device("cpu")


def frames(image: np.ndarray, device: torch.device = CPU) -> Tensor:
    """Return images (..., h, w, 3) uint8 as (..., pixels) in [0, 1]."""
    return torch.from_numpy(image).to(device).flatten(-3).float() / 255


def one_hot(action: np.ndarray, device: torch.device = CPU) -> Tensor:
    """Return (..., 5) of action numbers (...) int64."""
    return functional.one_hot(torch.from_numpy(action).to(device), len(MOVES)).float()


def seen(windows: Windows, device: torch.device = CPU) -> Seen:
    """Return windows as tensors."""
    return Seen(
        frames(windows.image, device),
        one_hot(windows.action, device),
        torch.from_numpy(windows.reward).to(device),
        torch.from_numpy(windows.is_first).to(device),
    )


def pixel_statistics(image: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each pixel of frames in [0, 1]."""
    flat = image.reshape(len(image), -1)
    total, squares = np.zeros(flat.shape[1]), np.zeros(flat.shape[1])
    for part in np.array_split(flat, max(1, len(flat) // 4096)):  # bounds the memory
        values = part / 255
        total += values.sum(0)
        squares += (values**2).sum(0)
    mean = total / len(flat)
    std = np.sqrt(np.maximum(squares / len(flat) - mean**2, 0))
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
