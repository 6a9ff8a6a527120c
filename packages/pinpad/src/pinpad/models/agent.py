"""A DreamerV3 agent: it learns a world model, and to act from what it imagines in it.

From states of a batch the actor acts for `horizon` steps without seeing. With lambda returns R_t of
the imagined rewards, values v and the return scale s, the losses of that part are

    actor    - log pi(a_t) sg((R_t - v_t) / max(1, s)) - entropy H(pi)      (REINFORCE)
    critic   cross-entropy of its distribution to R_t and to its slow copy

Episodes of PinPad end by the clock only, so there is no continuation head: what comes is always
discounted alike. The steps of a trajectory count alike too, as the paper writes it; its public code
weighs step k by discount^k.
"""

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pinpad.models.distributions import sample_one_hot
from pinpad.models.dynamics import Weighted
from pinpad.models.exploration import Disagreement
from pinpad.models.policy import Actor, Critic, ReturnScale, lambda_returns
from pinpad.models.world import Seen, WorldModel

S = TypeVar("S")


@dataclass(frozen=True)
class BehaviourSettings:
    """Sizes and weights of acting."""

    units: int = 128
    layers: int = 2
    horizon: int = 15
    starts: int = 256
    discount: float = 0.99
    lam: float = 0.95
    entropy: float = 3e-3
    unimix: float = 0.01
    slow_rate: float = 0.02
    explorers: int = 0
    explorer_units: int = 128


class Interest(NamedTuple):
    """What counts as reward in imagination: the task's, and novelty."""

    task: float = 1.0
    novelty: float = 0.0


TASK = Interest()


class Imagined(NamedTuple):
    """Imagined trajectories.

    Attributes:
        feature: (h + 1, n, f) of the states, the first one seen.
        action: (h, n, a) one-hot.
    """

    feature: Tensor
    action: Tensor


class Agent(nn.Module, Generic[S]):
    """World model, actor and critic."""

    def __init__(self, world: WorldModel, actions: int, settings: BehaviourSettings) -> None:
        """Make the networks of acting.

        Args:
            world: The world model.
            actions: Number of actions.
            settings: Sizes and weights.
        """
        super().__init__()
        self.settings, features = settings, world.dynamics.feature_dim
        self.world = world
        self.actor = Actor(features, settings.units, settings.layers, actions, settings.unimix)
        self.critic = Critic(features, settings.units, settings.layers, settings.slow_rate)
        self.scale = ReturnScale()
        self.explorers = (
            Disagreement(features, actions, settings.explorer_units, settings.explorers)
            if settings.explorers
            else None
        )

    @property
    def device(self) -> torch.device:
        """Where the agent lives."""
        return self.world.pixel_mean.device

    @torch.no_grad()
    def act(
        self,
        state: S,
        frame: Tensor,
        action: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[S, Tensor]:
        """See a frame and draw an action.

        Args:
            state: Before the frame.
            frame: (b, pixels) in [0, 1].
            action: (b, a) one-hot, what led to the frame.
            is_first: (b,) bool, where an episode begins.
            generator: Draws latents and actions.

        Returns:
            The state after the frame, and (b, a) one-hot actions.
        """
        dynamics = self.world.dynamics
        state = dynamics.filter(state, self.world.embed(frame), action, is_first, generator)
        return state, self.actor.draw(dynamics.feature(state), generator)

    def losses(
        self,
        seen: Seen,
        generator: torch.Generator | None,
        interest: Interest = TASK,
        *,
        behaviour: bool = True,
    ) -> tuple[dict[str, Weighted], dict[str, Tensor]]:
        """Return every part of the loss, and what was measured.

        Args:
            seen: Windows.
            generator: Draws latents and imagined actions.
            interest: What counts as reward.
            behaviour: Whether actor and critic learn too.
        """
        parts, rollout = self.world.losses(seen, generator)
        metrics = dict(rollout.metrics)
        if self.explorers is not None:
            error = self.explorers.loss(rollout.feature, seen.action, seen.is_first)
            parts["explorers"] = Weighted(error, 1.0)
        if behaviour:
            start = self._starts(rollout.state, generator)
            imagined = self.imagine(start, generator)
            acting, measured = self._behaviour(imagined, interest)
            parts, metrics = parts | acting, metrics | measured
        return parts, metrics

    def _starts(self, state: Any, generator: torch.Generator | None) -> Any:
        """Choose some of the states (t, b, ...) at random."""
        count = state[0].shape[0] * state[0].shape[1]
        device = state[0].device
        chosen = torch.randperm(count, generator=generator, device=device)[: self.settings.starts]
        return type(state)(*(part.flatten(0, 1)[chosen] for part in state))

    @torch.no_grad()
    def imagine(self, state: S, generator: torch.Generator | None) -> Imagined:
        """Act from states (n, ...) for the horizon without seeing."""
        dynamics = self.world.dynamics
        features, actions = [dynamics.feature(state)], []
        for _ in range(self.settings.horizon):
            actions.append(sample_one_hot(self.actor(features[-1]), generator))
            state = dynamics.imagine(state, actions[-1], generator)
            features.append(dynamics.feature(state))
        return Imagined(torch.stack(features), torch.stack(actions))

    @torch.no_grad()
    def reward(self, imagined: Imagined, interest: Interest) -> Tensor:
        """Return (h, n) what each imagined action is worth by itself."""
        reward = interest.task * self.world.predicted_reward(imagined.feature[1:])
        if self.explorers is not None and interest.novelty:
            bonus = self.explorers.bonus(imagined.feature[:-1], imagined.action)
            reward = reward + interest.novelty * bonus
        return reward

    def _behaviour(
        self, imagined: Imagined, interest: Interest
    ) -> tuple[dict[str, Weighted], dict[str, Tensor]]:
        settings, before = self.settings, imagined.feature[:-1]
        reward = self.reward(imagined, interest)
        logits = self.critic.network(imagined.feature)
        with torch.no_grad():
            value = self.critic.two_hot.mean(logits)
            returns = lambda_returns(reward, value, settings.discount, settings.lam)
            advantage = (returns - value[:-1]) / self.scale.update(returns)
        policy = self.actor(before)
        entropy = -(policy.exp() * policy).sum(-1)
        chosen = (policy * imagined.action).sum(-1)
        actor = -(chosen * advantage).mean() - settings.entropy * entropy.mean()
        parts = {
            "actor": Weighted(actor, 1.0),
            "critic": Weighted(self.critic.loss(logits[:-1], before, returns).mean(), 1.0),
        }
        metrics = {
            "actor_entropy": entropy.detach().mean(),
            "imagined_reward": reward.mean(),
            "imagined_return": returns.mean(),
            "value": value.mean(),
            "return_low": self.scale.low.clone(),
            "return_high": self.scale.high.clone(),
        }
        return parts, metrics
