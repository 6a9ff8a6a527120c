"""Frames to embeddings and back: plain networks for 16 x 16 pixels, convolutions for 64 x 64.

Frames are (..., pixels), flattened from (height, width, 3), in [0, 1]. The convolutions halve or
double the side, with a kernel of 4, until it is 4 pixels, and normalise each image as a whole: over
the few channels of a pixel alone, as DreamerV3 does, LayerNorm takes longer than the convolution.
"""

import math

import torch
from torch import Tensor, nn

from pinpad.models.layers import NORM_EPS, mlp

CHANNELS, SMALLEST = 3, 4


def frame_encoder(pixels: int, width: int, depth: int) -> tuple[nn.Module, int]:
    """Return a network from frames to embeddings, and the width of these.

    Args:
        pixels: Values of a frame, h * w * 3.
        width: Of a plain network's layers.
        depth: Channels after the first convolution, doubled by each; 0 for a plain network.
    """
    if depth == 0:
        return mlp(pixels, [width, width]), width
    encoder = ConvEncoder(pixels, depth)
    return encoder, encoder.width


def frame_decoder(features: int, pixels: int, width: int, depth: int) -> nn.Module:
    """Return a network from features to the logits of frames."""
    if depth == 0:
        return mlp(features, [width], pixels)
    return ConvDecoder(features, pixels, depth)


@torch.no_grad()
def begin_with(decoder: nn.Module, mean: Tensor) -> None:
    """Let a decoder's last bias be the logits of a mean frame (pixels,)."""
    logit = mean.clamp(0.01, 0.99).logit()
    last = decoder[-1] if isinstance(decoder, nn.Sequential) else decoder
    if not isinstance(last, nn.Linear | ConvDecoder) or last.bias is None:
        raise TypeError(f"the decoder ends with {type(last).__name__}, which has no bias")
    last.bias.copy_(logit)


def side_of(pixels: int) -> int:
    """Return the side of a square frame that halves down to 4 pixels.

    Raises:
        ValueError: There is no such frame.
    """
    side = math.isqrt(pixels // CHANNELS)
    halvings = max(0, side // SMALLEST).bit_length() - 1
    if side * side * CHANNELS != pixels or halvings < 1 or SMALLEST << halvings != side:
        raise ValueError(f"frames of {pixels} values are not square with a side of 8, 16, 32, ...")
    return side


class ConvEncoder(nn.Module):
    """Convolutions of stride 2 down to 4 x 4 pixels."""

    def __init__(self, pixels: int, depth: int) -> None:
        """Make the layers.

        Args:
            pixels: Values of a frame.
            depth: Channels after the first layer.
        """
        super().__init__()
        self.side = side_of(pixels)
        layers: list[nn.Module] = []
        channels, side, outputs = CHANNELS, self.side, depth
        while side > SMALLEST:
            layers.append(nn.Conv2d(channels, outputs, 4, stride=2, padding=1, bias=False))
            layers += [nn.GroupNorm(1, outputs, eps=NORM_EPS), nn.SiLU()]
            channels, side, outputs = outputs, side // 2, outputs * 2
        self.layers = nn.Sequential(*layers)
        self.width = channels * SMALLEST**2

    def forward(self, frame: Tensor) -> Tensor:
        """Return (..., width) of frames (..., pixels)."""
        images = frame.reshape(-1, self.side, self.side, CHANNELS).permute(0, 3, 1, 2)
        return self.layers(images).flatten(1).unflatten(0, frame.shape[:-1])


class ConvDecoder(nn.Module):
    """Transposed convolutions of stride 2 up from 4 x 4 pixels, and a bias for each pixel."""

    def __init__(self, features: int, pixels: int, depth: int) -> None:
        """Make the layers.

        Args:
            features: Width of the input.
            pixels: Values of a frame.
            depth: Channels before the last layer.
        """
        super().__init__()
        halvings = (side_of(pixels) // SMALLEST).bit_length() - 1
        channels = depth * 2 ** (halvings - 1)
        self.enter = nn.Linear(features, channels * SMALLEST**2)
        layers: list[nn.Module] = []
        for _ in range(halvings - 1):
            layers.append(
                nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False)
            )
            layers += [nn.GroupNorm(1, channels // 2, eps=NORM_EPS), nn.SiLU()]
            channels //= 2
        layers.append(nn.ConvTranspose2d(channels, CHANNELS, 4, stride=2, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)
        self.bias = nn.Parameter(torch.zeros(pixels))

    def forward(self, feature: Tensor) -> Tensor:
        """Return (..., pixels) logits of features (..., f)."""
        small = self.enter(feature).reshape(-1, SMALLEST, SMALLEST, self._channels)
        images = self.layers(small.permute(0, 3, 1, 2))
        logits = images.permute(0, 2, 3, 1).flatten(1).unflatten(0, feature.shape[:-1])
        return logits + self.bias

    @property
    def _channels(self) -> int:
        return self.enter.out_features // SMALLEST**2
