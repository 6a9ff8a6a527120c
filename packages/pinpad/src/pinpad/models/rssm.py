"""The recurrent state-space model of DreamerV3: one deterministic and one discrete state per step.

h_t = GRU(h_{t-1}, [s_{t-1}, a_t])          a_t led to frame t
prior     p(s_t | h_t)
posterior q(s_t | h_t, e_t)                 e_t embeds frame t
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pinpad.models.dynamics import Balance, Rollout, beginnings, begun, stacked
from pinpad.models.latents import Drawn, Latent, divergence
from pinpad.models.layers import NormedGru, mlp, where_first


@dataclass(frozen=True)
class RssmSettings:
    """Sizes and weights of an RSSM."""

    deter: int = 128
    variables: int = 8
    classes: int = 8
    hidden: int = 128
    unimix: float = 0.01
    free_nats: float = 1.0
    dyn_scale: float = 0.5
    rep_scale: float = 0.1

    @property
    def balance(self) -> Balance:
        """How prior and posterior share the divergence."""
        return Balance(self.dyn_scale, self.rep_scale, self.free_nats)

    @property
    def latent(self) -> Latent:
        """What the stochastic state is."""
        return Latent(self.variables, self.classes, self.unimix)


class RssmState(NamedTuple):
    """A state: `deter` (..., deter) and one-hot `stoch` (..., variables * classes)."""

    deter: Tensor
    stoch: Tensor


class Rssm(nn.Module):
    """Discrete latent dynamics without boundaries."""

    def __init__(self, embedding: int, actions: int, settings: RssmSettings) -> None:
        """Make the networks.

        Args:
            embedding: Width of a frame's embedding.
            actions: Number of actions, given one-hot.
            settings: Sizes and weights.
        """
        super().__init__()
        self.settings = settings
        self.latent = settings.latent
        self.stoch_dim = self.latent.width
        self.feature_dim = settings.deter + self.stoch_dim
        self.enter = mlp(self.stoch_dim + actions, [settings.hidden])
        self.cell = NormedGru(settings.hidden, settings.deter)
        self.prior = mlp(settings.deter, [settings.hidden], self.stoch_dim)
        self.posterior = mlp(settings.deter + embedding, [settings.hidden], self.stoch_dim)

    def feature(self, state: RssmState) -> Tensor:
        """Return both parts of states side by side."""
        return torch.cat(state, -1)

    def observe(
        self,
        embedding: Tensor,
        action: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Rollout[RssmState]:
        """Filter windows.

        Args:
            embedding: (t, b, e) of the frames.
            action: (t, b, a) one-hot, the action that led to each frame.
            is_first: (t, b) bool, where an episode begins; each window's first frame counts so.
            generator: Draws the latents.
        """
        steps, batch = is_first.shape
        state = self.zeros(batch, embedding)
        first, begins, action = beginnings(is_first, action)
        states, posteriors = [], []
        for t in range(steps):
            if begins[t]:
                state = begun(state, first[t])
            state, posterior = self._see(state, embedding[t], action[t], generator)
            states.append(state)
            posteriors.append(posterior)
        both, posterior = stacked(states), stacked(posteriors)
        prior = self.latent.distribution(self.prior(both.deter))
        dyn = divergence(posterior.detach(), prior)
        rep = divergence(posterior, prior.detach())
        return Rollout(
            feature=self.feature(both),
            state=both,
            losses=self.settings.balance.losses(dyn, rep),
            surprise=dyn.detach(),
            metrics={
                "kl": dyn.detach().mean(),
                "prior_entropy": prior.detach().entropy().mean(),
                "posterior_entropy": posterior.detach().entropy().mean(),
            },
        )

    def filter(
        self,
        state: RssmState,
        embedding: Tensor,
        action: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> RssmState:
        """Return the state after an action (b, a) and its frame (b, e)."""
        state, action = begun(state, is_first), where_first(is_first, action)
        return self._see(state, embedding, action, generator)[0]

    def imagine(
        self, state: RssmState, action: Tensor, generator: torch.Generator | None = None
    ) -> RssmState:
        """Return states (b, ...) after actions (b, a), drawn from the prior."""
        deter = self._advance(state.deter, state.stoch, action)
        prior = self.latent.distribution(self.prior(deter))
        return RssmState(deter, prior.sample(generator))

    def _see(
        self,
        state: RssmState,
        embedding: Tensor,
        action: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[RssmState, Drawn]:
        """Return the state (b, ...) after a frame, and its posterior."""
        deter = self._advance(state.deter, state.stoch, action)
        posterior = self.latent.distribution(self.posterior(torch.cat([deter, embedding], -1)))
        return RssmState(deter, posterior.sample(generator)), posterior

    def _advance(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        return self.cell(self.enter(torch.cat([stoch, action], -1)), deter)

    def zeros(self, batch: int, like: Tensor) -> RssmState:
        """Return the state before a beginning, on the device of a tensor."""
        zeros = torch.zeros(batch, self.settings.deter + self.stoch_dim, device=like.device)
        return RssmState(*zeros.split([self.settings.deter, self.stoch_dim], -1))
