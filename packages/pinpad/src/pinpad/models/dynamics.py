"""What the two kinds of latent dynamics have in common: how they are run and what comes out."""

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

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
    """

    read: Tensor
    logit: Tensor
    prior_logit: Tensor
    forced: Tensor


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

    def observe(
        self,
        embedding: Tensor,
        action: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Rollout[S]:
        """Filter windows; their first frames count as beginnings of episodes."""
        ...

    def imagine(self, state: S, action: Tensor, generator: torch.Generator | None = None) -> S:
        """Return the state after an action (b, a), drawn without seeing."""
        ...

    def feature(self, state: S) -> Tensor:
        """Return what heads and policies see of states."""
        ...
