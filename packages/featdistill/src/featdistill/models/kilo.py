"""Native student kernels."""

from __future__ import annotations

import torch
from loom.errors import UserError


def available(impl: str, device: torch.device) -> bool:
    """Say whether the native kernels run."""
    if impl == "cpu":
        raise UserError(f"impl=cpu is not available on {device}")
    return False
