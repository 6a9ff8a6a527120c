"""Curiosity: how much an ensemble disagrees about what comes next (Plan2Explore, Sekar 2020).

Each member predicts the features of the next state from those of this one and the action. Where
data are plenty they agree, so what is left of their variance is what can still be learnt.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinpad.models.layers import mlp


class Disagreement(nn.Module):
    """An ensemble of one-step predictions."""

    def __init__(self, features: int, actions: int, units: int, members: int) -> None:
        """Make the networks.

        Args:
            features: Width of a state's features.
            actions: Number of actions, given one-hot.
            units: Width of the hidden layer.
            members: How many networks.
        """
        super().__init__()
        networks = [mlp(features + actions, [units], features) for _ in range(members)]
        self.members = nn.ModuleList(networks)

    def _predict(self, feature: Tensor, action: Tensor) -> Tensor:
        """Return (members, ..., features)."""
        given = torch.cat([feature, action], -1)
        return torch.stack([member(given).float() for member in self.members])

    def bonus(self, feature: Tensor, action: Tensor) -> Tensor:
        """Return (...) the deviation among the members, averaged over the features."""
        return self._predict(feature, action).std(0).mean(-1)

    def loss(self, feature: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """Return the squared error on what was seen.

        Args:
            feature: (t, b, f); no gradient flows into it.
            action: (t, b, a), the action that led to each frame.
            is_first: (t, b) bool; nothing leads to the first frame of an episode.
        """
        feature = feature.detach()
        predicted = self._predict(feature[:-1], action[1:])
        target = feature[1:].expand_as(predicted)
        error = functional.mse_loss(predicted, target, reduction="none").mean((0, -1))
        known = (~is_first[1:]).float()
        return (error * known).sum() / known.sum().clamp_min(1)
