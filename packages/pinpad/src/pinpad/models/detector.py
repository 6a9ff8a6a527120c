"""The boundary's posterior: where a segment begins, by the frames around it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinpad.models.layers import mlp


class BoundaryDetector(nn.Module):
    """One logit for each frame from it and its neighbours.

    Two convolutions of 3 frames see two frames ahead and two back; each is one matrix product over
    neighbours side by side, which for windows this short takes a sixth of a convolution's time.
    LayerNorm, unlike BatchNorm, does the same in training and evaluation, and forgets a broken
    batch.
    """

    def __init__(self, embedding: int, hidden: int) -> None:
        """Make the layers.

        Args:
            embedding: Width of a frame's embedding.
            hidden: Width of the layers.
        """
        super().__init__()
        self.convolutions = nn.ModuleList([mlp(3 * embedding, [hidden]), mlp(3 * hidden, [hidden])])
        self.logit = nn.Linear(hidden, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (t, b) logits of READ for embeddings (t, b, e)."""
        x = embedding
        for convolution in self.convolutions:
            x = convolution(_with_neighbours(x))
        return self.logit(x)[..., 0].float()


def _with_neighbours(x: Tensor) -> Tensor:
    """Return (t, b, 3 w): what comes before, now and after, zeros beyond the ends of (t, b, w)."""
    padded = functional.pad(x, (0, 0, 0, 0, 1, 1))
    return torch.cat([padded[:-2], x, padded[2:]], -1)
