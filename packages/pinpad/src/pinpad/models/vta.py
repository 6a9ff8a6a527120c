"""Variational temporal abstraction: a latent that changes only at boundaries (Kim 2019).

Two levels and a boundary m_t, READ (1) or COPY (0):

    m_t       q: two convolutions over the embeddings of neighbouring frames (it looks ahead);
              p: a linear map of the observation level's state at t - 1 and a_t (online)
    c_t = READ ? GRU(z_{t-1}, c_{t-1}) : c_{t-1}          abstract belief
    z_t = READ ? draw of N(c_t[, e_t])  : z_{t-1}         abstract state
    h_t = READ ? init(c_t, z_t) : GRU([s_{t-1}, a_t, c_t, z_t], h_{t-1})   observation belief
    s_t = draw of N(h_t[, e_t])                           observation state

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
from torch.nn import functional

from pinpad.models.distributions import (
    Normal,
    bernoulli_kl,
    normal_from,
    normal_kl,
    sample_boundary,
)
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
from pinpad.models.layers import NORM_EPS, NormedGru, mlp, where_first


@dataclass(frozen=True)
class VtaSettings:
    """Sizes, rules and weights of a VTA."""

    abs_belief: int = 128
    abs_stoch: int = 32
    obs_belief: int = 128
    obs_stoch: int = 32
    hidden: int = 128
    max_seg_len: int = 50
    max_seg_num: int = 200
    boundary_temp: float = 1.0
    boundary_force_scale: float = 0.0
    force: Literal["prior", "both"] = "prior"
    precedence: Literal["read", "copy"] = "read"
    at_read: Literal["begin", "carry"] = "begin"
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
    abs_posterior: Normal
    obs_posterior: Normal
    forced: Tensor


class BoundaryDetector(nn.Module):
    """The boundary's posterior: one logit for each frame from it and its neighbours.

    Two convolutions of 3 frames see two frames ahead and two back. LayerNorm, unlike BatchNorm,
    does the same in training and evaluation, and forgets a broken batch.
    """

    def __init__(self, embedding: int, hidden: int) -> None:
        """Make the layers.

        Args:
            embedding: Width of a frame's embedding.
            hidden: Width of the layers.
        """
        super().__init__()
        self.convolutions = nn.ModuleList(
            [nn.Conv1d(embedding, hidden, 3, padding=1), nn.Conv1d(hidden, hidden, 3, padding=1)]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, eps=NORM_EPS) for _ in range(2))
        self.logit = nn.Linear(hidden, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (t, b) logits of READ for embeddings (t, b, e)."""
        x = embedding
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            # (t, b, e) -> (b, e, t) and back
            x = convolution(x.permute(1, 2, 0)).permute(2, 0, 1)
            x = functional.silu(norm(x))
        return self.logit(x)[..., 0].float()


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
        abstract = settings.abs_belief + settings.abs_stoch
        observation = settings.obs_belief + settings.obs_stoch
        hidden = [settings.hidden]
        self.feature_dim = abstract + observation
        self.detector = BoundaryDetector(embedding, settings.hidden)
        self.next_boundary = nn.Linear(observation + actions, 1)
        self.abs_cell = NormedGru(settings.abs_stoch, settings.abs_belief)
        self.abs_prior = mlp(settings.abs_belief, hidden, 2 * settings.abs_stoch)
        self.abs_posterior = mlp(settings.abs_belief + embedding, hidden, 2 * settings.abs_stoch)
        self.obs_enter = mlp(settings.obs_stoch + actions + abstract, hidden)
        self.obs_cell = NormedGru(settings.hidden, settings.obs_belief)
        self.obs_begin = (
            mlp(abstract, hidden, settings.obs_belief) if settings.at_read == "begin" else None
        )
        self.obs_prior = mlp(settings.obs_belief, hidden, 2 * settings.obs_stoch)
        self.obs_posterior = mlp(settings.obs_belief + embedding, hidden, 2 * settings.obs_stoch)

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
        found: list[_Step] = []
        for t in range(steps):
            if begins[t]:
                state = begun(state, first[t])
            read, forced = self._posterior_boundary(logit[t], state, first[t], generator)
            found.append(self._step(state, action[t], read, embedding[t], forced, generator))
            state = found[-1].state
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
        return self._step(state, action, read, embedding, torch.zeros_like(read), generator).state

    def imagine(
        self, state: VtaState, action: Tensor, generator: torch.Generator | None = None
    ) -> VtaState:
        """Return states (b, ...) after actions (b, a); boundary and latents from their priors."""
        read = self._prior_boundary(state, action, generator)
        return self._step(state, action, read, None, torch.zeros_like(read), generator).state

    def _prior_boundary(
        self, state: VtaState, action: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draw READ (b, 1) as the state before a frame and the action that leads to it say."""
        logit = self._next(state, action)
        if self.settings.force == "both" or self.training:
            logit, _ = self._overruled(logit, state)
        return sample_boundary(logit, self.settings.boundary_temp, generator).hard[:, None]

    def _next(self, state: VtaState, action: Tensor) -> Tensor:
        """Return logits (...) of READ in the next step."""
        seen = torch.cat([state.obs_belief, state.obs_stoch, action], -1)
        return self.next_boundary(seen)[..., 0].float()

    def _posterior_boundary(
        self, logit: Tensor, state: VtaState, first: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return READ (b, 1), and whether a rule and not the detector decided (b, 1)."""
        forced = torch.zeros_like(first)
        if self.settings.force == "both":
            logit, forced = self._overruled(logit, state)
        if self.training:
            read = sample_boundary(logit, self.settings.boundary_temp, generator).hard
        else:
            read = (logit > 0).float()
        read = torch.where(first, torch.ones_like(read), read)
        return read[:, None], (forced & ~first)[:, None]

    def _overruled(self, logit: Tensor, state: VtaState) -> tuple[Tensor, Tensor]:
        """Return logits (b,) after the rules, and where one of them holds (b,)."""
        scale = self.settings.boundary_force_scale
        too_long = state.length[:, 0] >= self.settings.max_seg_len
        too_many = state.number[:, 0] >= self.settings.max_seg_num
        if scale == 0:
            return logit, torch.zeros_like(too_long)
        read, copy = torch.full_like(logit, 2 * scale), torch.full_like(logit, -2 * scale)
        if self.settings.precedence == "read":
            logit = torch.where(too_long, read, torch.where(too_many, copy, logit))
        else:
            logit = torch.where(too_many, copy, torch.where(too_long, read, logit))
        return logit, too_long | too_many

    def _step(
        self,
        last: VtaState,
        action: Tensor,
        read: Tensor,
        embedding: Tensor | None,
        forced: Tensor,
        generator: torch.Generator | None,
    ) -> _Step:
        """Advance both levels; without an embedding the latents come from their priors."""
        keep = 1 - read
        belief = read * self.abs_cell(last.abs_stoch, last.abs_belief) + keep * last.abs_belief
        abstract = self._latent(self.abs_prior, self.abs_posterior, belief, embedding)
        stoch = read * abstract.sample(generator) + keep * last.abs_stoch
        above = torch.cat([belief, stoch], -1)
        entered = self.obs_enter(torch.cat([last.obs_stoch, action, above], -1))
        obs_belief = self.obs_cell(entered, last.obs_belief)
        if self.obs_begin is not None:
            begun = torch.tanh(self.obs_begin(above).float())
            obs_belief = read * begun + keep * obs_belief
        observation = self._latent(self.obs_prior, self.obs_posterior, obs_belief, embedding)
        decided = read.detach()
        state = VtaState(
            belief,
            stoch,
            obs_belief,
            observation.sample(generator),
            length=torch.where(decided > 0.5, 1.0, last.length + 1),
            number=last.number + decided,
        )
        return _Step(state, read, abstract, observation, forced)

    def _latent(
        self, prior: nn.Module, posterior: nn.Module, belief: Tensor, embedding: Tensor | None
    ) -> Normal:
        if embedding is None:
            return normal_from(prior(belief))
        return normal_from(posterior(torch.cat([belief, embedding], -1)))

    def zeros(self, batch: int, like: Tensor) -> VtaState:
        """Return the state before a beginning, on the device of a tensor."""
        s = self.settings
        widths = (s.abs_belief, s.abs_stoch, s.obs_belief, s.obs_stoch, 1, 1)
        return VtaState(*(torch.zeros(batch, width, device=like.device) for width in widths))

    def _rollout(
        self, found: list[_Step], logit: Tensor, action: Tensor, first: Tensor
    ) -> Rollout[VtaState]:
        settings = self.settings
        states, reads, abs_posteriors, obs_posteriors, forced = zip(*found, strict=True)
        state, abs_q, obs_q = map(stacked, (states, abs_posteriors, obs_posteriors))
        read = torch.stack(reads)[..., 0]
        abs_p = normal_from(self.abs_prior(state.abs_belief))
        obs_p = normal_from(self.obs_prior(state.obs_belief))
        price = settings.abs_scale * read
        dyn_abs = price * normal_kl(abs_q.detach(), abs_p)
        rep_abs = price * normal_kl(abs_q, abs_p.detach())
        dyn_obs, rep_obs = normal_kl(obs_q.detach(), obs_p), normal_kl(obs_q, obs_p.detach())
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
            surprise=(dyn_obs + dyn_abs).detach(),
            boundaries=Boundaries(
                read.detach(),
                logit.detach(),
                prior_logit.detach(),
                forced_all,
                dyn_abs.detach(),
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
        if self.training or self.settings.force == "both":
            flat = VtaState(*(part.flatten(0, 1) for part in before))
            predicted = self._overruled(predicted.flatten(), flat)[0].view_as(predicted)
        return torch.cat([logit[:1].detach(), predicted])
