"""What the two kinds of latent dynamics have in common: how they are run and what comes out.

A state is a NamedTuple of tensors (..., width). Both kinds balance their divergences alike: the
prior learns from `dyn KL(sg q || p)`, the posterior from `rep KL(q || sg p)`, each free below some
nats (Hafner 2023, equation 5).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from pinpad.models.layers import where_first

S = TypeVar("S")


@dataclass(frozen=True)
class Weighted:
    """A part of a loss and its weight."""

    value: Tensor
    weight: float


@dataclass(frozen=True)
class Boundaries:
    """What a model with boundaries decided in a rollout; each (t, b).

    Attributes:
        read: 1 where a segment begins, else 0.
        logit: Of READ, from the frames (posterior), as it was before a rule.
        prior_logit: Of READ, predicted from the step before (online prior).
        forced: Where a rule made the decision.
        abs_surprise: Nats by which the frame moved the abstract state, as part of the surprise.
    """

    read: Tensor
    logit: Tensor
    prior_logit: Tensor
    forced: Tensor
    abs_surprise: Tensor


@dataclass(frozen=True)
class Rollout(Generic[S]):
    """The latent states of a batch of windows, (t, b, ...) throughout.

    Attributes:
        feature: (t, b, f) what heads and policies see.
        state: The states themselves.
        losses: Divergences between what was seen and what had been expected, with weights.
        surprise: (t, b) nats by which the frame moved the latent that explains it.
        boundaries: Of a model that has any.
        metrics: What else was measured, scalars.
    """

    feature: Tensor
    state: S
    losses: dict[str, Weighted]
    surprise: Tensor
    boundaries: Boundaries | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Dynamics(Protocol[S]):
    """Latent dynamics: filters what is seen, and goes on without seeing."""

    feature_dim: int

    def zeros(self, batch: int, like: Tensor) -> S:
        """Return the state before a beginning, on the device of a tensor."""
        ...

    def observe(
        self,
        embedding: Tensor,
        action: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Rollout[S]:
        """Filter windows; their first frames count as beginnings of episodes."""
        ...

    def filter(
        self,
        state: S,
        embedding: Tensor,
        action: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> S:
        """Return the state after an action (b, a) and its frame (b, e): how an agent sees."""
        ...

    def imagine(self, state: S, action: Tensor, generator: torch.Generator | None = None) -> S:
        """Return the state after an action (b, a), drawn without seeing."""
        ...

    def feature(self, state: S) -> Tensor:
        """Return what heads and policies see of states."""
        ...


class Beginnings(NamedTuple):
    """Where the episodes of windows begin.

    Attributes:
        first: (t, b) bool; the first frame of each window counts.
        anywhere: For each step, whether an episode begins in any window.
        action: (t, b, a) nothing where an episode begins: no action led there.
    """

    first: Tensor
    anywhere: list[bool]
    action: Tensor


def beginnings(is_first: Tensor, action: Tensor) -> Beginnings:
    """Return where the episodes of windows (t, b) begin, with their actions (t, b, a)."""
    first = is_first.clone()
    first[0] = True
    nothing = torch.zeros_like(action)
    return Beginnings(first, first.any(1).tolist(), torch.where(first[..., None], nothing, action))


def begun(state: S, first: Tensor) -> S:
    """Return a state with zeros where an episode begins (b,)."""
    parts = cast(Sequence[Tensor], state)
    return type(state)(*(where_first(first, part) for part in parts))


def stacked(states: Sequence[S]) -> S:
    """Return states (b, ...) of successive steps as one (t, b, ...)."""
    parts = zip(*cast(Sequence[Sequence[Tensor]], states), strict=True)
    return type(states[0])(*(torch.stack(part) for part in parts))


def at(state: S, index: Any) -> S:
    """Return an entry, or several, of the leading dimensions of a state."""
    return type(state)(*(part[index] for part in cast(Sequence[Tensor], state)))


class Balance(NamedTuple):
    """How prior and posterior share a divergence."""

    dyn_scale: float
    rep_scale: float
    free_nats: float

    def losses(self, dyn: Tensor, rep: Tensor) -> dict[str, Weighted]:
        """Return both parts of divergences (t, b), without a gradient below the free nats."""
        return {
            "dyn": Weighted(self._free(dyn), self.dyn_scale),
            "rep": Weighted(self._free(rep), self.rep_scale),
        }

    def _free(self, kl: Tensor) -> Tensor:
        return functional.relu(kl - self.free_nats).mean() + self.free_nats
