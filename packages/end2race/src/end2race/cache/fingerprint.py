"""A teacher's identity: a digest of what it computes with, not of the file it lies in.

Saving a checkpoint again, or one with another optimiser state, is the same teacher; one changed
weight or setting is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch


def teacher_sha256(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> str:
    """Return 64 hex digits.

    Args:
        state: Parameters and buffers by name, as in `state_dict()`.
        settings: What the model was built with, as plain values.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(settings, sort_keys=True, allow_nan=False).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
