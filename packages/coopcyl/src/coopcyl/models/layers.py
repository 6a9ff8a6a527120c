"""Layers for panoramas: what leaves at the right edge comes in at the left one.

All work on `(n, channels, rows, columns)`. Columns wrap; above and below there is nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

_GROUPS = 8


class TurnConv(nn.Module):
    """A 3x3 convolution that wraps in azimuth, with group normalisation and GELU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=(1, 0), bias=False)
        self.norm = nn.GroupNorm(_GROUPS, channels_out)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(n, channels_out, rows / stride, columns / stride)`."""
        wrapped = torch.cat([features[..., -1:], features, features[..., :1]], dim=-1)
        return functional.gelu(self.norm(self.conv(wrapped)))


class Residual(nn.Module):
    """Two wrapping convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(TurnConv(channels, channels), TurnConv(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        return features + self.layers(features)


class ColumnMixer(nn.Module):
    """Lets each pixel see its whole column.

    The range of a facade follows from the row of its foot, which is in the same column and may be
    far below; a perceptron over the column gets there in one step.
    """

    def __init__(self, channels: int, rows: int, narrow: int = 16, hidden: int = 160) -> None:
        super().__init__()
        self.narrow, self.rows = narrow, rows
        self.reduce = nn.Sequential(nn.GroupNorm(_GROUPS, channels), nn.Conv2d(channels, narrow, 1))
        self.mix = nn.Sequential(
            nn.Linear(narrow * rows, hidden), nn.GELU(), nn.Linear(hidden, narrow * rows), nn.GELU()
        )
        self.expand = nn.Conv2d(narrow, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        n, _, rows, columns = features.shape
        flat = self.reduce(features).permute(0, 3, 1, 2).reshape(n, columns, -1)
        mixed = self.mix(flat).view(n, columns, self.narrow, rows).permute(0, 2, 3, 1)
        return features + self.expand(mixed)


class Attention(nn.Module):
    """Attention of tokens to tokens, then a perceptron; pre-norm, residual."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * channels),
            nn.GELU(),
            nn.Linear(2 * channels, channels),
        )

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        """Return tokens `(n, k, channels)` that have looked at others `(n, m, channels)`."""
        n, _, channels = tokens.shape
        source = self.norm(others)

        def split(tensor: Tensor) -> Tensor:
            return tensor.view(n, -1, self.heads, channels // self.heads).transpose(1, 2)

        query = split(self.query(self.norm(tokens)))
        key, value = (split(part) for part in self.key_value(source).chunk(2, dim=-1))
        found = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(found.transpose(1, 2).reshape(n, -1, channels))
        return tokens + self.mlp(tokens)
