"""A world model: frames in, latent dynamics, and predictions of frame and reward.

Frames are standardised per pixel before the encoder, and predicted as Bernoulli probabilities of
their values in [0, 1], with a decoder whose bias starts at the mean frame. On 16 x 16 PinPad images
both matter more than anything else tried: they make the model see where the player is.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinpad.models.distributions import TwoHot, bernoulli_log_probability
from pinpad.models.dynamics import Dynamics, Rollout, Weighted
from pinpad.models.frames import begin_with, frame_decoder, frame_encoder
from pinpad.models.layers import mlp, zero_last
from pinpad.models.rssm import Rssm, RssmSettings
from pinpad.models.vta import Vta, VtaSettings

STD_FLOOR = 0.1
REWARD_BINS, REWARD_LIMIT = 63, 300.0


@dataclass(frozen=True)
class WorldSettings:
    """Sizes of encoder and heads; `depth` 0 stands for plain networks."""

    embedding: int = 128
    decoder: int = 256
    reward: int = 128
    depth: int = 0
    image_scale: float = 3.0


SIZES = WorldSettings()


class Seen(NamedTuple):
    """Windows as tensors, time first: frames (t, b, pixels) in [0, 1], actions one-hot."""

    frame: Tensor
    action: Tensor
    reward: Tensor
    is_first: Tensor


class WorldModel(nn.Module):
    """Encoder, dynamics, decoder and reward head."""

    dynamics: Dynamics[Any]
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        pixels: int,
        actions: int,
        dynamics: RssmSettings | VtaSettings,
        settings: WorldSettings = SIZES,
    ) -> None:
        """Make the networks.

        Args:
            pixels: Values of a frame, h * w * 3.
            actions: Number of actions.
            dynamics: Which latent dynamics, by their settings.
            settings: Sizes of encoder and heads.
        """
        super().__init__()
        self.settings = settings
        self.encoder, width = frame_encoder(pixels, settings.embedding, settings.depth)
        if isinstance(dynamics, VtaSettings):
            self.dynamics = Vta(width, actions, dynamics)
        else:
            self.dynamics = Rssm(width, actions, dynamics)
        features = self.dynamics.feature_dim
        self.decoder = frame_decoder(features, pixels, settings.decoder, settings.depth)
        self.two_hot = TwoHot(REWARD_BINS, REWARD_LIMIT)
        self.reward = zero_last(mlp(features, [settings.reward], REWARD_BINS))
        self.register_buffer("pixel_mean", torch.full((pixels,), 0.5))
        self.register_buffer("pixel_std", torch.full((pixels,), 0.5))

    @torch.no_grad()
    def fit_pixels(self, mean: Tensor, std: Tensor) -> None:
        """Standardise by these frames' statistics, and begin by predicting their mean.

        Args:
            mean: (pixels,) of frames in [0, 1].
            std: (pixels,).
        """
        self.pixel_mean.copy_(mean)
        self.pixel_std.copy_(std)
        begin_with(self.decoder, mean)

    def embed(self, frame: Tensor) -> Tensor:
        """Return (..., embedding) of frames (..., pixels)."""
        return self.encoder((frame - self.pixel_mean) / (self.pixel_std + STD_FLOOR))

    def rollout(self, seen: Seen, generator: torch.Generator | None = None) -> Rollout:
        """Filter windows."""
        embedding = self.embed(seen.frame)
        return self.dynamics.observe(embedding, seen.action, seen.is_first, generator)

    def losses(
        self, seen: Seen, generator: torch.Generator | None = None
    ) -> tuple[dict[str, Weighted], Rollout]:
        """Return every part of the loss, and the rollout that it is of."""
        rollout = self.rollout(seen, generator)
        frame = -bernoulli_log_probability(self.decoder(rollout.feature), seen.frame).sum(-1)
        reward = self.two_hot.loss(self.reward(rollout.feature), seen.reward)
        parts = {
            "image": Weighted(frame.mean(), self.settings.image_scale),
            "reward": Weighted(reward.mean(), 1.0),
        }
        return parts | rollout.losses, rollout

    def predicted_frame(self, feature: Tensor) -> Tensor:
        """Return (..., pixels) in [0, 1]."""
        return self.decoder(feature).float().sigmoid()

    def predicted_reward(self, feature: Tensor) -> Tensor:
        """Return (...) expected rewards."""
        return self.two_hot.mean(self.reward(feature))


def squared_error(predicted: Tensor, frame: Tensor) -> Tensor:
    """Return (...) the sum over pixels: what a reconstruction is judged by.

    The cross-entropy of soft targets does not reach 0 and says little.
    """
    return functional.mse_loss(predicted.float(), frame.float(), reduction="none").sum(-1)
