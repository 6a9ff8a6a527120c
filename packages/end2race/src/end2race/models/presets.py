"""Sizes of teacher and student by name.

`racing` suits a 1:10 car on a track of about 2 m width and one CPU core; `racing-fine` halves its
cells. `kitti` has the shapes of the notes' teacher: PointPillars on 432 x 496 cells of 0.16 m, a
feature map of 384 x 248 x 216, a vector of 256 and a recurrent state of 640.
"""

from dataclasses import dataclass
from typing import Literal

from loom.errors import UserError

from end2race.models.grid import BevGrid
from end2race.models.lift_splat import DepthBins


@dataclass(frozen=True)
class BackbonePreset:
    """The network that reads a bird's-eye view.

    Attributes:
        kind: `strided` halves the view once per width and reads a vector off the flattened map, so
            it knows where things are; `pyramid` is PointPillars' backbone and neck, whose vector is
            the map's average.
        widths: Channels of the stages.
        layers: Convolutions of each stage.
    """

    kind: Literal["strided", "pyramid"]
    widths: tuple[int, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class PolicyPreset:
    """The recurrent head.

    Attributes:
        embedding: Width of the embeddings of speed and steering.
        hidden: Width of the recurrent state.
        action_scale: What one unit of the last layer means: degrees, m/s.
        action_offset: The action at zero: degrees, m/s.
    """

    embedding: int
    hidden: int
    action_scale: tuple[float, float]
    action_offset: tuple[float, float]


@dataclass(frozen=True)
class CameraPreset:
    """How an image becomes features on the grid.

    Attributes:
        widths: Channels of the image encoder's stages; each halves the image.
        channels: Channels that are lifted into the view.
        bins: Depths.
    """

    widths: tuple[int, ...]
    channels: int
    bins: DepthBins

    @property
    def stride_px(self) -> int:
        """Image pixels for one pixel of the features."""
        return 2 ** len(self.widths)


@dataclass(frozen=True)
class Preset:
    """Teacher and student on one grid."""

    name: str
    grid: BevGrid
    pillar_channels: int
    batch_norm: bool
    backbone: BackbonePreset
    bev_dim: int
    policy: PolicyPreset
    camera: CameraPreset


_RACING_POLICY = PolicyPreset(
    embedding=16, hidden=128, action_scale=(10.0, 2.0), action_offset=(0.0, 3.0)
)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="racing",
            grid=BevGrid((-2.8, 10.0), (-6.4, 6.4), (-0.5, 2.0), 0.2),
            pillar_channels=16,
            batch_norm=False,
            backbone=BackbonePreset("strided", widths=(32, 48, 64), layers=(1, 1, 1)),
            bev_dim=128,
            policy=_RACING_POLICY,
            camera=CameraPreset(widths=(16, 32, 48), channels=16, bins=DepthBins(0.4, 0.4, 24)),
        ),
        Preset(
            name="racing-fine",
            grid=BevGrid((-2.8, 10.0), (-6.4, 6.4), (-0.5, 2.0), 0.1),
            pillar_channels=16,
            batch_norm=False,
            backbone=BackbonePreset("strided", widths=(24, 32, 48, 64), layers=(1, 1, 1, 1)),
            bev_dim=128,
            policy=_RACING_POLICY,
            camera=CameraPreset(widths=(16, 32, 48), channels=16, bins=DepthBins(0.4, 0.2, 48)),
        ),
        Preset(
            name="kitti",
            grid=BevGrid((0.0, 69.12), (-39.68, 39.68), (-3.0, 1.0), 0.16),
            pillar_channels=64,
            batch_norm=True,
            backbone=BackbonePreset("pyramid", widths=(64, 128, 256), layers=(4, 6, 6)),
            bev_dim=256,
            policy=PolicyPreset(
                embedding=32, hidden=640, action_scale=(1.0, 1.0), action_offset=(0.0, 0.0)
            ),
            camera=CameraPreset(
                widths=(32, 64, 128, 256), channels=64, bins=DepthBins(1.0, 1.0, 68)
            ),
        ),
    )
}


def preset(name: str) -> Preset:
    """Return the preset of a name."""
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}", hint=f"take one of {', '.join(PRESETS)}")
    return PRESETS[name]
