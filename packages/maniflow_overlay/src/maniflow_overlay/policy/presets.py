"""The three sizes of the policy, and everything that fixes a network's shape.

    parity    the notes' network: a ResNet-18 per view, all features in one context token
    spatial   one ResNet-18 for all pictures, 7x7 tokens from each, a token per state
    tiny      where each of 48 features is, a token a picture: a minute on a CPU

`parity` attends to a single token, so its cross-attention has nothing to choose from: 4.7 million
of its parameters get no gradient. It is there to compare with; `spatial` is what to train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from maniflow_overlay.arms import Arm

PresetName = Literal["parity", "spatial", "tiny"]


@dataclass(frozen=True)
class DitxShape:
    """Sizes of the transformer.

    Attributes:
        action_dim: Numbers of an action.
        horizon: Actions at a time.
        context_dim: Numbers of a context token.
        context_length: Most context tokens.
        width: Channels.
        depth: Blocks.
        heads: Of both attentions.
        time_width: Of the sinusoidal code of t and s.
        dropout: Of the self-attention's weights.
    """

    action_dim: int
    horizon: int
    context_dim: int
    context_length: int
    width: int = 512
    depth: int = 8
    heads: int = 8
    time_width: int = 128
    dropout: float = 0.1


@dataclass(frozen=True)
class Preset:
    """One size.

    Attributes:
        trunk: The picture encoder.
        tokens: `flat`: pooled features and states in one token; `spatial`: one per place.
        share: One encoder for all pictures, or one for current and one for initial.
        width: Channels of the transformer.
        depth: Its blocks.
        heads: Its heads.
        time_width: Sines and cosines for a time.
        flat_length: Positions per observed step that a flat context has, used or not.
        dropout: Of the self-attention's weights.
        horizon: Actions at a time.
        normalise_state: Whether states are mapped to their limits, as actions always are.
        lr: Learning rate that suits the size.
    """

    trunk: Literal["resnet18", "small"]
    tokens: Literal["flat", "spatial"]
    share: bool
    width: int = 512
    depth: int = 8
    heads: int = 8
    time_width: int = 128
    flat_length: int = 512
    dropout: float = 0.1
    horizon: int = 16
    normalise_state: bool = True
    lr: float = 1e-4


PRESETS: Mapping[PresetName, Preset] = {
    "parity": Preset("resnet18", "flat", share=False, normalise_state=False),
    "spatial": Preset("resnet18", "spatial", share=True),
    "tiny": Preset(
        "small",
        "spatial",
        share=True,
        width=64,
        depth=2,
        heads=4,
        time_width=32,
        dropout=0.0,
        horizon=8,
        lr=3e-3,
    ),
}


@dataclass(frozen=True)
class PolicyShape:
    """Everything that a policy's tensors depend on.

    Attributes:
        preset: Name of the size.
        arm: What it sees.
        height: Of the pictures.
        width: Of the pictures.
        state_dim: Numbers of a state.
        action_dim: Numbers of an action.
        tasks: Names that the policy tells apart by an embedding; one or none needs no embedding.
        horizon: Actions at a time.
        observed: Steps that are looked at.
        action_steps: Actions that are carried out before it looks again.
        pretrained: Whether the encoder takes weights with batch statistics.
        text_width: Numbers of an instruction's token; 0: it takes no instructions.
        text_encoder: Digest of the encoder that the tokens come from.
    """

    preset: PresetName
    arm: Arm
    height: int
    width: int
    state_dim: int
    action_dim: int
    tasks: tuple[str, ...] = ()
    horizon: int = 16
    observed: int = 2
    action_steps: int = 15
    pretrained: bool = False
    text_width: int = 0
    text_encoder: str = ""

    def __post_init__(self) -> None:
        last = self.observed - 1 + self.action_steps
        if self.observed < 1 or self.action_steps < 1 or last > self.horizon:
            raise ValueError(
                f"{self.action_steps} actions from step {self.observed - 1} on end at {last}, "
                f"behind the horizon of {self.horizon}"
            )

    @property
    def size(self) -> Preset:
        """The preset of that name."""
        return PRESETS[self.preset]

    @property
    def views(self) -> int:
        """Kinds of pictures: the current frames, and the initial one if it is seen."""
        return 2 if self.arm.sees_initial else 1

    @property
    def pictures(self) -> int:
        """Pictures of one observation."""
        return self.observed + int(self.arm.sees_initial)

    def ditx(self, channels: int, places: int) -> DitxShape:
        """Return the transformer's shape for an encoder's output of `channels` at `places`."""
        size = self.size
        if size.tokens == "flat":
            dim = self.observed * (self.views * channels + self.state_dim)
            length = size.flat_length * self.observed
        else:
            dim, length = channels, self.pictures * places
        return DitxShape(
            self.action_dim,
            self.horizon,
            dim,
            length,
            size.width,
            size.depth,
            size.heads,
            size.time_width,
            size.dropout,
        )
