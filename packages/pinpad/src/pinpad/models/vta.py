"""Variational temporal abstraction: a latent that changes only at boundaries (Kim 2019).

Two levels and a boundary m_t, READ (1) or COPY (0):

    m_t       q: two convolutions over the embeddings of neighbouring frames (it looks ahead);
              p: a linear map of the observation level's state at t - 1 and a_t (online)
    c_t = READ ? GRU([z, s, h]_{t-1}, a_t, c_{t-1}) : c_{t-1}   abstract belief
    z_t = READ ? draw given c_t[, e_t] : z_{t-1}          abstract state
    h_t = READ ? init(c_t, z_t) : GRU([s_{t-1}, a_t, c_t, z_t], h_{t-1})   observation belief
    s_t = draw given h_t[, e_t]                           observation state

In the paper the abstract level hears nothing from below, c_t = GRU(z_{t-1}, c_{t-1}): it expects
the next segment without knowing what the player does (`abs_input = abstract`). With
`abs_input = observation` its prior knows the observation level's state and the action too.

Latents are normal as in the paper (`classes = 0`) or categories as in DreamerV3, and then their
width is `stoch x classes`.

With `at_read = carry` a READ leaves the observation belief as it is: h_t = GRU(...) always. What
lasts over a boundary, such as where the player is, then need not be told anew by z.

The posteriors of z and s filter (they see frame t, not the rest of the segment), because an agent
acts with them; it takes its boundaries from p, since q looks ahead. The boundary has one logit and
logistic noise, in fp32.

Losses: KL of s, KL of z at READ times `abs_scale` (1 in the paper), both together free below one
nat and balanced as in an RSSM; KL of the boundary's posterior and prior, in both directions, so
that the detector feels its prior; and optionally a pull of its rate:
`scale KL(Bernoulli(q_t) || Bernoulli(rate))`.

Rules may overrule the logit: a segment of `max_seg_len` steps ends (READ), after `max_seg_num`
segments nothing more is read (COPY). In the paper they bind the prior while training and READ has
precedence. `force = both` binds the posterior too, at all times; with a high `force_scale` that is
a clock, which `forced` shows. `force_scale` 0 switches the rules off, whatever the lengths are.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pinpad.models.detector import BoundaryDetector
from pinpad.models.distributions import bernoulli_kl, sample_boundary
from pinpad.models.dynamics import (
    Balance,
    Boundaries,
    Rollout,
    Weighted,
    at,
    beginnings,
    begun,
    stacked,
)
from pinpad.models.latents import Drawn, Latent, divergence
from pinpad.models.layers import NormedGru, mlp, where_first


@dataclass(frozen=True)
class VtaSettings:
    """Sizes, rules and weights of a VTA."""

    abs_belief: int = 128
    abs_stoch: int = 32
    obs_belief: int = 128
    obs_stoch: int = 32
    classes: int = 0
    unimix: float = 0.01
    hidden: int = 128
    max_seg_len: int = 50
    max_seg_num: int = 200
    boundary_temp: float = 1.0
    boundary_force_scale: float = 0.0
    force: Literal["prior", "both"] = "prior"
    precedence: Literal["read", "copy"] = "read"
    at_read: Literal["begin", "carry"] = "begin"
    abs_input: Literal["abstract", "observation"] = "abstract"
    boundary_rate: float = 0.0
    boundary_scale: float = 0.0
    mask_scale: float = 1.0
    abs_scale: float = 1.0
    free_nats: float = 1.0
    dyn_scale: float = 0.5
    rep_scale: float = 0.1

    @property
    def balance(self) -> Balance:
        """How priors and posteriors share the divergences."""
        return Balance(self.dyn_scale, self.rep_scale, self.free_nats)

    @property
    def abs_latent(self) -> Latent:
        """What the abstract state is."""
        return Latent(self.abs_stoch, self.classes, self.unimix)

    @property
    def obs_latent(self) -> Latent:
        """What the observation level's state is."""
        return Latent(self.obs_stoch, self.classes, self.unimix)


class VtaState(NamedTuple):
    """A state; every part is (..., width), `length` and `number` are (..., 1).

    Attributes:
        abs_belief: c.
        abs_stoch: z.
        obs_belief: h.
        obs_stoch: s.
        length: Steps of the current segment so far.
        number: Segments so far.
    """

    abs_belief: Tensor
    abs_stoch: Tensor
    obs_belief: Tensor
    obs_stoch: Tensor
    length: Tensor
    number: Tensor


class _Step(NamedTuple):
    """What one step of a rollout leaves for the losses."""

    state: VtaState
    read: Tensor
    abs_posterior: Drawn
    obs_posterior: Drawn
    forced: Tensor


class Vta(nn.Module):
    """Two-level latent dynamics with boundaries."""

    def __init__(self, embedding: int, actions: int, settings: VtaSettings) -> None:
        """Make the networks.

        Args:
            embedding: Width of a frame's embedding.
            actions: Number of actions, given one-hot.
            settings: Sizes, rules and weights.
        """
        super().__init__()
        self.settings = settings
        above, here = settings.abs_latent, settings.obs_latent
        self.abs_latent, self.obs_latent = above, here
        abstract = settings.abs_belief + above.width
        observation = settings.obs_belief + here.width
        hidden = [settings.hidden]
        self.feature_dim = abstract + observation
        self.detector = BoundaryDetector(embedding, settings.hidden)
        self.next_boundary = nn.Linear(observation + actions, 1)
        below = observation + actions if settings.abs_input == "observation" else 0
        self.abs_cell = NormedGru(above.width + below, settings.abs_belief)
        self.abs_prior = mlp(settings.abs_belief, hidden, above.parameters)
        self.abs_posterior = mlp(settings.abs_belief + embedding, hidden, above.parameters)
        self.obs_enter = mlp(here.width + actions + abstract, hidden)
        self.obs_cell = NormedGru(settings.hidden, settings.obs_belief)
        self.obs_begin = (
            mlp(abstract, hidden, settings.obs_belief) if settings.at_read == "begin" else None
        )
        self.obs_prior = mlp(settings.obs_belief, hidden, here.parameters)
        self.obs_posterior = mlp(settings.obs_belief + embedding, hidden, here.parameters)

    def feature(self, state: VtaState) -> Tensor:
        """Return both levels of states side by side."""
        return torch.cat(state[:4], -1)

    def observe(
        self,
        embedding: Tensor,
        action: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Rollout[VtaState]:
        """Filter windows; in evaluation mode a boundary is where its logit is above 0.

        Args:
            embedding: (t, b, e) of the frames.
            action: (t, b, a) one-hot, the action that led to each frame.
            is_first: (t, b) bool, where an episode begins; each window's first frame counts so.
            generator: Draws latents and boundaries.
        """
        steps, batch = is_first.shape
        first, begins, action = beginnings(is_first, action)
        logit = self.detector(embedding)
        state = self.zeros(batch, embedding)
        reads, never = self._boundaries(logit, first, generator), first.new_zeros(batch, 1)
        found: list[_Step] = []
        for t in range(steps):
            if begins[t]:
                state = begun(state, first[t])
            read, forced = reads[t], never
            if self._ruled:
                overruled, forced = self._overruled(logit[t], state)
                read = self._boundaries(overruled, first[t], generator)
                forced = (forced & ~first[t])[:, None]
            belief, stoch, abstract = self._abstract(
                state, action[t], read, embedding[t], generator
            )
            state, observation = self._below(
                state, action[t], read, (belief, stoch), embedding[t], generator
            )
            found.append(_Step(state, read, abstract, observation, forced))
        return self._rollout(found, logit, action, first)

    def filter(
        self,
        state: VtaState,
        embedding: Tensor,
        action: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> VtaState:
        """Return the state after an action (b, a) and its frame (b, e); the boundary is drawn
        from its prior, because the detector would have to see two frames more.
        """
        state, action = begun(state, is_first), where_first(is_first, action)
        read = self._prior_boundary(state, action, generator)
        read = torch.where(is_first[:, None], torch.ones_like(read), read)
        return self._advance(state, action, read, embedding, generator)

    def imagine(
        self, state: VtaState, action: Tensor, generator: torch.Generator | None = None
    ) -> VtaState:
        """Return states (b, ...) after actions (b, a); boundary and latents from their priors."""
        read = self._prior_boundary(state, action, generator)
        return self._advance(state, action, read, None, generator)

    def _prior_boundary(
        self, state: VtaState, action: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draw READ (b, 1) as the state before a frame and the action that leads to it say."""
        logit = self._next(state, action)
        if self._prior_ruled:
            logit, _ = self._overruled(logit, state)
        return sample_boundary(logit, self.settings.boundary_temp, generator).hard[:, None]

    def _next(self, state: VtaState, action: Tensor) -> Tensor:
        """Return logits (...) of READ in the next step."""
        seen = torch.cat([state.obs_belief, state.obs_stoch, action], -1)
        return self.next_boundary(seen)[..., 0].float()

    @property
    def _ruled(self) -> bool:
        """Whether a rule about segments binds the posterior, which then waits for the state."""
        return self.settings.force == "both" and self.settings.boundary_force_scale > 0

    @property
    def _prior_ruled(self) -> bool:
        """Whether a rule binds the prior; in the paper only while training."""
        return self._ruled or (self.training and self.settings.boundary_force_scale > 0)

    def _boundaries(
        self, logit: Tensor, first: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return READ (..., 1) by the detector's logits (...), and where an episode begins."""
        if self.training:
            read = sample_boundary(logit, self.settings.boundary_temp, generator).hard
        else:
            read = (logit > 0).float()
        return torch.where(first, 1.0, read)[..., None]

    def _overruled(self, logit: Tensor, state: VtaState) -> tuple[Tensor, Tensor]:
        """Return logits (b,) after the rules, and where one of them holds (b,)."""
        scale = self.settings.boundary_force_scale
        too_long = state.length[:, 0] >= self.settings.max_seg_len
        too_many = state.number[:, 0] >= self.settings.max_seg_num
        read, copy = torch.full_like(logit, 2 * scale), torch.full_like(logit, -2 * scale)
        if self.settings.precedence == "read":
            logit = torch.where(too_long, read, torch.where(too_many, copy, logit))
        else:
            logit = torch.where(too_many, copy, torch.where(too_long, read, logit))
        return logit, too_long | too_many

    def _advance(
        self,
        last: VtaState,
        action: Tensor,
        read: Tensor,
        embedding: Tensor | None,
        generator: torch.Generator | None,
    ) -> VtaState:
        """Return the state after a step, the abstract level computed only where it changes.

        What COPY would have read matters for the gradient of the boundary alone.
        """
        rows = read[:, 0].nonzero()[:, 0]
        seen = None if embedding is None else embedding[rows]
        belief, stoch, _ = self._abstract(at(last, rows), action[rows], read[rows], seen, generator)
        above = (
            last.abs_belief.index_copy(0, rows, belief),
            last.abs_stoch.index_copy(0, rows, stoch),
        )
        return self._below(last, action, read, above, embedding, generator)[0]

    def _abstract(
        self,
        last: VtaState,
        action: Tensor,
        read: Tensor,
        embedding: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Drawn]:
        """Return belief, state and distribution of the abstract level after a step."""
        heard = last.abs_stoch
        if self.settings.abs_input == "observation":
            heard = torch.cat([heard, last.obs_stoch, last.obs_belief, action], -1)
        # With a weight of 0 or 1 `lerp` gives one of both to the bit.
        belief = torch.lerp(last.abs_belief, self.abs_cell(heard, last.abs_belief), read)
        raw = self._latent(self.abs_prior, self.abs_posterior, belief, embedding)
        abstract = self.abs_latent.distribution(raw)
        stoch = torch.lerp(last.abs_stoch, abstract.sample(generator), read)
        return belief, stoch, abstract

    def _below(
        self,
        last: VtaState,
        action: Tensor,
        read: Tensor,
        abstract: tuple[Tensor, Tensor],
        embedding: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[VtaState, Drawn]:
        """Return the state after a step given its abstract part, and what its rest is drawn from.

        Without an embedding that is the prior.
        """
        above = torch.cat(abstract, -1)
        entered = self.obs_enter(torch.cat([last.obs_stoch, action, above], -1))
        belief = self.obs_cell(entered, last.obs_belief)
        if self.obs_begin is not None:
            begun = torch.tanh(self.obs_begin(above).float())
            belief = torch.lerp(belief, begun, read)
        raw = self._latent(self.obs_prior, self.obs_posterior, belief, embedding)
        observation = self.obs_latent.distribution(raw)
        decided = read.detach()
        state = VtaState(
            *abstract,
            belief,
            observation.sample(generator),
            length=torch.where(decided > 0.5, 1.0, last.length + 1),
            number=last.number + decided,
        )
        return state, observation

    def _latent(
        self, prior: nn.Module, posterior: nn.Module, belief: Tensor, embedding: Tensor | None
    ) -> Tensor:
        """Return the parameters of a level's distribution, with a frame or without."""
        if embedding is None:
            return prior(belief)
        return posterior(torch.cat([belief, embedding], -1))

    def zeros(self, batch: int, like: Tensor) -> VtaState:
        """Return the state before a beginning, on the device of a tensor."""
        s = self.settings
        above, here = self.abs_latent.width, self.obs_latent.width
        widths = (s.abs_belief, above, s.obs_belief, here, 1, 1)
        return VtaState(*(torch.zeros(batch, width, device=like.device) for width in widths))

    def _rollout(
        self, found: list[_Step], logit: Tensor, action: Tensor, first: Tensor
    ) -> Rollout[VtaState]:
        settings = self.settings
        states, reads, abs_posteriors, obs_posteriors, forced = zip(*found, strict=True)
        state, abs_q, obs_q = map(stacked, (states, abs_posteriors, obs_posteriors))
        read = torch.stack(reads)[..., 0]
        abs_p = self.abs_latent.distribution(self.abs_prior(state.abs_belief))
        obs_p = self.obs_latent.distribution(self.obs_prior(state.obs_belief))
        price = settings.abs_scale * read
        moved_abs = divergence(abs_q.detach(), abs_p)
        dyn_abs = price * moved_abs
        rep_abs = price * divergence(abs_q, abs_p.detach())
        abs_surprise = (read * moved_abs).detach()  # in nats, whatever they cost
        dyn_obs, rep_obs = divergence(obs_q.detach(), obs_p), divergence(obs_q, obs_p.detach())
        prior_logit = self._prior_logits(state, action, logit)
        chosen = (~first).float()  # the first step of an episode is a boundary by definition
        count = chosen.sum().clamp_min(1)
        dyn_boundary = (bernoulli_kl(logit.detach(), prior_logit) * chosen).sum() / count
        rep_boundary = (bernoulli_kl(logit, prior_logit.detach()) * chosen).sum() / count
        losses = settings.balance.losses(dyn_abs + dyn_obs, rep_abs + rep_obs) | {
            "boundary_dyn": Weighted(dyn_boundary, settings.mask_scale * settings.dyn_scale),
            "boundary_rep": Weighted(rep_boundary, settings.mask_scale * settings.rep_scale),
        }
        if settings.boundary_scale:
            rate = torch.tensor(settings.boundary_rate, device=logit.device).logit()
            pull = (bernoulli_kl(logit, rate.expand_as(logit)) * chosen).sum() / count
            losses["boundary_rate"] = Weighted(pull, settings.boundary_scale)
        forced_all = torch.stack(forced)[..., 0]
        made = read.detach() * chosen
        return Rollout(
            feature=self.feature(state),
            state=state,
            losses=losses,
            surprise=dyn_obs.detach() + abs_surprise,
            boundaries=Boundaries(
                read.detach(),
                logit.detach(),
                prior_logit.detach(),
                forced_all,
                abs_surprise,
            ),
            metrics={
                "kl": dyn_obs.detach().mean(),
                "boundary_ratio": made.sum() / count,
                "forced_share": (made * forced_all).sum() / made.sum().clamp_min(1),
                "boundary_probability": (logit.detach().sigmoid() * chosen).sum() / count,
            },
        )

    def _prior_logits(self, state: VtaState, action: Tensor, logit: Tensor) -> Tensor:
        """Return (t, b) the prior's logits: those of step t are predicted from step t - 1."""
        before = at(state, slice(None, -1))
        predicted = self._next(before, action[1:])
        if self._prior_ruled:
            flat = VtaState(*(part.flatten(0, 1) for part in before))
            predicted = self._overruled(predicted.flatten(), flat)[0].view_as(predicted)
        return torch.cat([logit[:1].detach(), predicted])
