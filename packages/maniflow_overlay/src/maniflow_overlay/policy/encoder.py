"""Pictures to feature maps: a ResNet-18 or three convolutions, shared by all views or one for each.

Pictures arrive in [0, 1] and are standardised here with ImageNet's mean and deviation, as R3M's
weights want it; a path picture in channels 4 to 6 likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from maniflow_overlay.policy import resnet
from maniflow_overlay.policy.presets import PolicyShape
from maniflow_overlay.policy.resnet import ResNet18

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALL = (32, 48, 64)
_PATCH = 4


class SmallTrunk(nn.Module):
    """Patches of 4x4, then two 3x3 convolutions of stride 2: 64x64 becomes 4x4, 64 channels."""

    def __init__(self, channels: int) -> None:
        """Make the layers."""
        super().__init__()
        widths = (channels, *_SMALL)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, _PATCH, _PATCH) if k == 0 else nn.Conv2d(a, b, 3, 2, 1)
            for k, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(b // 8, b) for b in _SMALL)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to (n, 64, H / 16, W / 16)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(conv(x)))
        return x


class PictureEncoder(nn.Module):
    """One trunk per view, or one for all."""

    mean: Tensor
    inverse_deviation: Tensor

    def __init__(self, shape: PolicyShape, generator: torch.Generator) -> None:
        """Make the trunks and draw their weights from `generator`."""
        super().__init__()
        size, channels = shape.size, shape.arm.channels
        count = 1 if size.share else shape.views
        if size.trunk == "resnet18":
            norm: resnet.Norm = "batch" if shape.pretrained else "group"
            self.trunks = nn.ModuleList(ResNet18(channels, norm) for _ in range(count))
            self.channels, stride = resnet.CHANNELS, resnet.STRIDE
        else:
            self.trunks = nn.ModuleList(SmallTrunk(channels) for _ in range(count))
            self.channels, stride = _SMALL[-1], _PATCH * 4
        self.places = -(-shape.height // stride) * -(-shape.width // stride)
        repeat = channels // 3
        self.register_buffer("mean", torch.tensor(MEAN * repeat).view(-1, 1, 1), persistent=False)
        inverse = (1 / torch.tensor(DEVIATION * repeat)).view(-1, 1, 1)
        self.register_buffer("inverse_deviation", inverse, persistent=False)
        for module in self.trunks.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, current: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Encode both views.

        Args:
            current: (n, channels, H, W) in [0, 1].
            initial: (m, channels, H, W), or None.

        Returns:
            Their maps, (n, channels', H', W') and (m, channels', H', W').
        """
        seen = self._standardised(current)
        if initial is None:
            return self.trunks[0](seen), None
        first = self._standardised(initial)
        if len(self.trunks) == 2:
            return self.trunks[0](seen), self.trunks[1](first)
        both = self.trunks[0](torch.cat([seen, first]))
        return both[: len(seen)], both[len(seen) :]

    def _standardised(self, pictures: Tensor) -> Tensor:
        return (pictures - self.mean) * self.inverse_deviation
