"""Pictures to features: a ResNet-18 or a small trunk, shared by all views or one for each.

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
_PATCH, _HIDDEN, _FEATURES = 4, 32, 48
_SHARPNESS = 4.0


class SmallTrunk(nn.Module):
    """Patches of 4x4, two layers on each, and where each of 48 features is: a spatial softmax.

    A feature's map m gives its expected place, sum_p softmax(4 m)_p (x_p, y_p), from -1 to 1
    (Levine et al. 2016, section 5.1). Where things are is all that a path tells, and what they are
    is told by colour, so no patch looks at its neighbours. With sharp maps even random features
    tell places apart, and learning does not wait for them: a linear map of fresh features finds
    block and goal of a drawn path within 2 to 3 cm.
    """

    def __init__(self, channels: int) -> None:
        """Make the layers."""
        super().__init__()
        self.patches = nn.Conv2d(channels, _HIDDEN, _PATCH, _PATCH)
        self.features = nn.Conv2d(_HIDDEN, _FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to (n, 96, 1, 1): 48 times x, then 48 times y."""
        maps = self.features(functional.relu(self.patches(x)))
        height, width = maps.shape[-2:]
        share = (_SHARPNESS * maps).flatten(2).softmax(dim=-1)
        across = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device).repeat(height)
        down = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device)
        down = down.repeat_interleave(width)
        return torch.cat([share @ across, share @ down], dim=1)[..., None, None]


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
            self.places = -(-shape.height // stride) * -(-shape.width // stride)
        else:
            self.trunks = nn.ModuleList(SmallTrunk(channels) for _ in range(count))
            self.channels, self.places = 2 * _FEATURES, 1
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
