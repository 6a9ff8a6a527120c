"""From a bird's-eye view to a feature map and one vector.

`StridedBackbone` keeps the place of things in its vector, which driving needs: averaging the map
tells that there is a wall, not on which side. `PyramidBackbone` is that of PointPillars (Lang et
al. 2019, section 2.2), whose vector is the average, as in the notes.
"""

import torch
from torch import Tensor, nn

from end2race.models.presets import Preset


class StridedBackbone(nn.Module):
    """Convolutions that halve the view; the vector is a linear layer on the flattened map."""

    def __init__(self, in_channels: int, preset: Preset) -> None:
        super().__init__()
        stages = []
        for width, layers in zip(preset.backbone.widths, preset.backbone.layers, strict=True):
            for layer in range(layers):
                stride = 2 if layer == 0 else 1
                stages += [
                    nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False),
                    nn.GroupNorm(8, width),
                    nn.ReLU(),
                ]
                in_channels = width
        self.stages = nn.Sequential(*stages)
        scale = 2 ** len(preset.backbone.widths)
        pixels = (preset.grid.rows // scale) * (preset.grid.columns // scale)
        self.map_channels = in_channels
        self.vec_proj = nn.Sequential(nn.Linear(in_channels * pixels, preset.bev_dim), nn.ReLU())

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map [n, c, h, w] and the vector [n, D] of views [n, in, rows, columns]."""
        feature_map = self.stages(view)
        return feature_map, self.vec_proj(feature_map.flatten(1))


class PyramidBackbone(nn.Module):
    """Three stages at 1/2, 1/4 and 1/8, brought to 1/2 and joined; the vector is the average."""

    def __init__(self, in_channels: int, preset: Preset) -> None:
        super().__init__()
        joined = 2 * in_channels
        self.blocks, self.deblocks = nn.ModuleList(), nn.ModuleList()
        for stage, (width, layers) in enumerate(
            zip(preset.backbone.widths, preset.backbone.layers, strict=True)
        ):
            convolutions = []
            for layer in range(layers):
                stride = 2 if layer == 0 else 1
                convolutions += [
                    nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(width, eps=1e-3, momentum=0.01),
                    nn.ReLU(),
                ]
                in_channels = width
            self.blocks.append(nn.Sequential(*convolutions))
            scale = 2**stage
            self.deblocks.append(
                nn.Sequential(
                    nn.ConvTranspose2d(width, joined, scale, scale, bias=False),
                    nn.BatchNorm2d(joined, eps=1e-3, momentum=0.01),
                    nn.ReLU(),
                )
            )
        self.map_channels = joined * len(self.blocks)
        self.vec_proj = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(self.map_channels, preset.bev_dim),
            nn.ReLU(),
        )

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map [n, c, h, w] and the vector [n, D] of views [n, in, rows, columns]."""
        raised = []
        for block, deblock in zip(self.blocks, self.deblocks, strict=True):
            view = block(view)
            raised.append(deblock(view))
        feature_map = torch.cat(raised, 1)
        return feature_map, self.vec_proj(feature_map)


def new_backbone(in_channels: int, preset: Preset) -> StridedBackbone | PyramidBackbone:
    """Build the backbone that a preset names."""
    kinds = {"strided": StridedBackbone, "pyramid": PyramidBackbone}
    return kinds[preset.backbone.kind](in_channels, preset)
