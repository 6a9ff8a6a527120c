"""What a latent variable is drawn from: a normal distribution, or categories as in DreamerV3."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pinpad.models.distributions import (
    Normal,
    categorical_kl,
    normal_from,
    normal_kl,
    sample_one_hot,
    unimix,
)


class Categories(NamedTuple):
    """Independent categorical variables: (..., classes, variables) log-probabilities.

    The classes do not come last, because a softmax over so few that lie side by side takes four
    times as long.
    """

    log_probability: Tensor

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw (..., classes * variables) one-hot, with the gradient of the probabilities."""
        return sample_one_hot(self.log_probability, generator, dim=-2).flatten(-2)

    def detach(self) -> "Categories":
        """Return it without a gradient."""
        return Categories(self.log_probability.detach())

    def entropy(self) -> Tensor:
        """Return (...) nats, summed over the variables."""
        return -(self.log_probability.exp() * self.log_probability).sum((-2, -1))


Drawn = Normal | Categories
"""What a latent is drawn from."""


@dataclass(frozen=True)
class Latent:
    """The kind of a latent and its size; `classes` 0 stands for normal variables."""

    variables: int
    classes: int = 0
    unimix: float = 0.01

    @property
    def width(self) -> int:
        """Values of a draw."""
        return self.variables * max(1, self.classes)

    @property
    def parameters(self) -> int:
        """Values that a network has to give for the distribution."""
        return self.variables * (self.classes or 2)

    def distribution(self, parameters: Tensor) -> Drawn:
        """Return the distribution of (..., parameters) unbounded values."""
        if self.classes == 0:
            return normal_from(parameters)
        logits = parameters.unflatten(-1, (self.classes, self.variables))
        return Categories(unimix(logits, self.unimix, dim=-2))


def divergence(p: Drawn, q: Drawn) -> Tensor:
    """Return KL(p || q) (...), summed over the variables.

    Raises:
        TypeError: They are of different kinds.
    """
    if isinstance(p, Normal) and isinstance(q, Normal):
        return normal_kl(p, q)
    if isinstance(p, Categories) and isinstance(q, Categories):
        return categorical_kl(p.log_probability, q.log_probability)
    raise TypeError(f"no divergence between {type(p).__name__} and {type(q).__name__}")
