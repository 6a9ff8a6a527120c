"""ResNet-18 without its classifier (He et al. 2016), under torchvision's parameter names.

    conv1 7x7/2, norm, ReLU, max-pool 3x3/2, then four stages of two blocks with 64, 128, 256 and
    512 channels; each stage but the first halves the picture. A block of convolutions C and norms N
with a shortcut S is y = ReLU(S x + N(C(ReLU(N(C x))))).

A picture of 224 comes out as a 7x7 map of 512 channels. Two kinds of normalisation: groups of 16
channels, for weights that begin at random, and batch statistics that stay frozen, for weights that
were trained elsewhere (R3M): a policy's batches are too alike to estimate them anew. Both have the
same number of parameters, 11,176,512.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["group", "batch"]
CHANNELS = 512
STRIDE = 32
_GROUP = 16


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation that always uses its stored statistics; scale and shift do learn."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        """Stay in evaluation mode."""
        return super().train(False)


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(channels // _GROUP, channels)
    return FrozenBatchNorm(channels).eval()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        """Make the layers; the shortcut gets a 1x1 convolution where the shape changes."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = _norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = _norm(norm, outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(norm, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(shortcut + self.bn2(self.conv2(x)))


class ResNet18(nn.Module):
    """The trunk: pictures to a map of 512 channels."""

    def __init__(self, channels: int = 3, norm: Norm = "group") -> None:
        """Make the layers.

        Args:
            channels: Of the pictures: 3, or 6 with a path picture beside the RGB one.
            norm: See the module.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = _norm(norm, 64)
        self.layer1 = self._stage(64, 64, 1, norm)
        self.layer2 = self._stage(64, 128, 2, norm)
        self.layer3 = self._stage(128, 256, 2, norm)
        self.layer4 = self._stage(256, CHANNELS, 2, norm)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(inputs, outputs, stride, norm), BasicBlock(outputs, outputs, 1, norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W), standardised, to (n, 512, H / 32, W / 32)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def widen_stem(weight: Tensor, channels: int) -> Tensor:
    """Extend the (64, 3, 7, 7) filters of `conv1` by channels that begin at zero.

    What the network says of a picture is then unchanged until the new channels have learnt.
    """
    extra = torch.zeros(weight.shape[0], channels - weight.shape[1], *weight.shape[2:])
    return torch.cat([weight, extra.to(weight)], dim=1)
