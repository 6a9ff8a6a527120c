"""What to do and what it is worth: actor, critic, and the returns that both learn from.

Both read the features of a world model's states. The critic is a two-hot distribution over returns,
held near a slow copy of itself; the actor's advantages are divided by the range of returns, as far
as that is above 1, so that one entropy weight fits sparse and dense rewards (Hafner 2023, sec. 3).
"""

import copy

import torch
from torch import Tensor, nn

from pinpad.models.distributions import TwoHot, sample_one_hot, unimix
from pinpad.models.layers import mlp, zero_last

RETURN_BINS, RETURN_LIMIT = 63, 300.0


class Actor(nn.Module):
    """A categorical policy that never quite excludes an action."""

    def __init__(self, features: int, units: int, layers: int, actions: int, mix: float) -> None:
        """Make the network; it begins uniform.

        Args:
            features: Width of a state's features.
            units: Width of the layers.
            layers: How many.
            actions: Number of actions.
            mix: Share of the uniform policy that is always in it.
        """
        super().__init__()
        self.mix = mix
        self.network = zero_last(mlp(features, [units] * layers, actions))

    def forward(self, feature: Tensor) -> Tensor:
        """Return (..., actions) log-probabilities."""
        return unimix(self.network(feature), self.mix)

    def draw(self, feature: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return (..., actions) one-hot actions."""
        return sample_one_hot(self(feature), generator).detach()


class Critic(nn.Module):
    """A distribution over returns, and a copy of it that follows slowly."""

    def __init__(self, features: int, units: int, layers: int, follow: float) -> None:
        """Make the networks; every return is 0 at first.

        Args:
            features: Width of a state's features.
            units: Width of the layers.
            layers: How many.
            follow: Share of the way that the slow copy goes after each update.
        """
        super().__init__()
        self.rate = follow
        self.two_hot = TwoHot(RETURN_BINS, RETURN_LIMIT)
        self.network = zero_last(mlp(features, [units] * layers, RETURN_BINS))
        self.slow = copy.deepcopy(self.network).requires_grad_(False)

    def forward(self, feature: Tensor) -> Tensor:
        """Return (...) expected returns."""
        return self.two_hot.mean(self.network(feature))

    def loss(self, logits: Tensor, feature: Tensor, target: Tensor) -> Tensor:
        """Return (...) the cross-entropy to returns (...) and to what the slow copy says.

        Args:
            logits: (..., bins) what `network` gives for the features.
            feature: (..., f) of states.
            target: (...) their returns.
        """
        with torch.no_grad():
            slow = self.two_hot.mean(self.slow(feature))
            wanted = self.two_hot.encode(target) + self.two_hot.encode(slow)
        return -(wanted * logits.float().log_softmax(-1)).sum(-1)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the slow copy; once after each update."""
        slow = [parameter.detach() for parameter in self.slow.parameters()]
        current = [parameter.detach() for parameter in self.network.parameters()]
        torch._foreach_lerp_(slow, current, self.rate)


class ReturnScale(nn.Module):
    """A running range of returns, from their 5th to their 95th percentile."""

    low: Tensor
    high: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        """Begin with a range of 0.

        Args:
            decay: Share of the old range that an update keeps.
        """
        super().__init__()
        self.decay = decay
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Take returns of any shape into account; return what to divide advantages by, >= 1."""
        levels = torch.tensor([0.05, 0.95], device=returns.device)
        low, high = torch.quantile(returns.detach().float().flatten(), levels)
        self.low.lerp_(low, 1 - self.decay)
        self.high.lerp_(high, 1 - self.decay)
        return (self.high - self.low).clamp_min(1.0)


def lambda_returns(reward: Tensor, value: Tensor, discount: float, lam: float) -> Tensor:
    """Return (h, n) the mixture of all n-step returns (Sutton & Barto, section 12.1).

        R_t = r_{t+1} + discount ((1 - lam) v_{t+1} + lam R_{t+1}),    R_h = v_h

    Args:
        reward: (h, n), entry t is what the action of step t earned, r_{t+1}.
        value: (h + 1, n) of the states before each action and after the last one.
        discount: From 0 to 1.
        lam: From 0 (one step) to 1 (the whole horizon).
    """
    following, returns = value[-1], []
    for t in range(len(reward) - 1, -1, -1):
        following = reward[t] + discount * ((1 - lam) * value[t + 1] + lam * following)
        returns.append(following)
    return torch.stack(returns[::-1])
