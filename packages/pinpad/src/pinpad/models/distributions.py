"""Distributions of a world model, all of them in fp32 whatever the layers around them run in.

Half precision breaks distributions in ways that no clamp mends: fp16 noise is exactly 0 once in
4,096 draws and its logarithm -inf, and two of those make NaN; `1 - 1e-8` is 1; a squared error over
an image is inf. So logits are widened here, before any logarithm, and noise is drawn in fp32.

Every draw takes a generator. Shapes: `...` are batch dimensions.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_UNIFORM = 1e-6
"""Uniform draws stay this far from 0 and 1: about 13.8 in logistic noise."""


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Return sign(x) (exp|x| - 1), the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class TwoHot(torch.nn.Module):
    """A scalar as a categorical over bins that lie evenly in symlog space (Hafner 2023, sec. 3).

    The target of a value puts its weight on the two bins around it, so that their mean is the value
    itself; the loss is the cross-entropy. With all logits equal the mean is exactly 0.
    """

    bins: Tensor

    def __init__(self, count: int = 63, largest: float = 300.0) -> None:
        """Lay out the bins.

        Args:
            count: How many; odd, so that 0 is one of them.
            largest: The values of the outermost two, plus and minus.
        """
        super().__init__()
        if count < 3 or count % 2 == 0:
            raise ValueError(f"{count} bins; an odd number, 3 or more")
        end = symlog(torch.tensor(largest, dtype=torch.float64))
        half = symexp(torch.linspace(0.0, float(end), count // 2 + 1, dtype=torch.float64))
        bins = torch.cat([-half.flip(0)[:-1], half]).float()
        self.register_buffer("bins", bins, persistent=False)

    def encode(self, value: Tensor) -> Tensor:
        """Return (..., bins) weights that sum to 1; values beyond the last bin count as it.

        Args:
            value: (...) any real numbers.
        """
        last = len(self.bins) - 1
        value = value.float().clamp(float(self.bins[0]), float(self.bins[-1]))
        above = torch.searchsorted(self.bins, value.contiguous()).clamp(1, last)
        below = above - 1
        left, right = self.bins[below], self.bins[above]
        upper = (value - left) / (right - left)
        weights = torch.zeros(*value.shape, last + 1, device=value.device)
        weights.scatter_(-1, below[..., None], (1 - upper)[..., None])
        return weights.scatter_(-1, above[..., None], upper[..., None])

    def mean(self, logits: Tensor) -> Tensor:
        """Return (...) the expected value; the two sides are summed apart so that they cancel."""
        weighted = logits.float().softmax(-1) * self.bins
        half = len(self.bins) // 2
        return weighted[..., half + 1 :].sum(-1) + weighted[..., :half].flip(-1).sum(-1)

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Return (...) the cross-entropy of the logits (..., bins) to a value (...)."""
        return -(self.encode(value) * logits.float().log_softmax(-1)).sum(-1)


def unimix(logits: Tensor, share: float, dim: int = -1) -> Tensor:
    """Return log-probabilities with a share of the uniform distribution mixed in.

    Args:
        logits: Any shape.
        share: From 0 to 1; no probability falls below share / classes.
        dim: That of the classes.
    """
    logits = logits.float()
    if share == 0:
        return logits.log_softmax(dim)
    probabilities = (1 - share) * logits.softmax(dim) + share / logits.shape[dim]
    return probabilities.log()


def sample_one_hot(
    log_probabilities: Tensor, generator: torch.Generator | None, dim: int = -1
) -> Tensor:
    """Draw one-hot vectors whose gradient is that of the probabilities.

    Args:
        log_probabilities: Any shape, normalised over the classes.
        generator: Draws the noise, on the device of the logits.
        dim: That of the classes.
    """
    probabilities = log_probabilities.float().exp()
    cumulated = probabilities.detach().cumsum(dim)
    total = cumulated.narrow(dim, -1, 1)
    level = torch.empty_like(total).uniform_(generator=generator) * total
    # Rounding may lift a level to the total itself, which lies in no class.
    winner = (cumulated <= level).sum(dim, keepdim=True).clamp_max_(cumulated.shape[dim] - 1)
    hard = torch.zeros_like(cumulated).scatter_(dim, winner, 1.0)
    if not probabilities.requires_grad:
        return hard
    return hard + (probabilities - probabilities.detach())


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) (...), summed over the variables.

    Args:
        p: (..., variables, classes) normalised log-probabilities, or classes first.
        q: The same of the other distribution.
    """
    p, q = p.float(), q.float()
    return (p.exp() * (p - q)).sum((-2, -1))


_NORMAL_ENTROPY = 0.5 * (1 + math.log(2 * math.pi))


class Normal(NamedTuple):
    """Independent normal distributions, fp32."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw with a gradient to mean and deviation."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + self.std * noise

    def detach(self) -> "Normal":
        """Return it without a gradient."""
        return Normal(self.mean.detach(), self.std.detach())

    def entropy(self) -> Tensor:
        """Return (...) nats, summed over the last dimension."""
        return (self.std.log() + _NORMAL_ENTROPY).sum(-1)


def normal_from(parameters: Tensor, smallest_std: float = 0.1) -> Normal:
    """Make a distribution of (..., 2 n) unbounded parameters; the deviation lies in (0.1, 2.1)."""
    mean, raw = parameters.float().chunk(2, -1)
    return Normal(mean, 2 * torch.sigmoid(raw / 2) + smallest_std)


def normal_kl(p: Normal, q: Normal) -> Tensor:
    """Return KL(p || q) (...), summed over the last dimension."""
    ratio = (p.std / q.std).square()
    distance = ((p.mean - q.mean) / q.std).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(Bernoulli(sigmoid p) || Bernoulli(sigmoid q)) from logits of any size."""
    p, q = p.float(), q.float()
    chance = p.sigmoid()
    yes = functional.logsigmoid(p) - functional.logsigmoid(q)
    no = functional.logsigmoid(-p) - functional.logsigmoid(-q)
    return chance * yes + (1 - chance) * no


def bernoulli_log_probability(logits: Tensor, value: Tensor) -> Tensor:
    """Return log p(value) (...), also for values between 0 and 1 (cross-entropy, negated)."""
    return -functional.binary_cross_entropy_with_logits(
        logits.float(), value.float(), reduction="none"
    )


class BoundaryDraw(NamedTuple):
    """A boundary: 0 or 1 with the gradient of its relaxation, and that relaxation's logit."""

    hard: Tensor
    relaxed_logit: Tensor


def sample_boundary(
    logit: Tensor, temperature: float, generator: torch.Generator | None
) -> BoundaryDraw:
    """Draw READ (1) or COPY (0) from one logit by logistic noise (binary concrete).

    The law of the hard value is Bernoulli(sigmoid(logit)) at every temperature; the temperature
    only shapes the gradient, which is that of sigmoid((logit + noise) / temperature).

    Args:
        logit: (...) of any precision and size.
        temperature: Of the relaxation, above 0.
        generator: Draws the noise, always in fp32.
    """
    with torch.autocast(logit.device.type, enabled=False):
        logit = logit.float()
        uniform = torch.empty_like(logit).uniform_(generator=generator)
        uniform = uniform.clamp(SMALLEST_UNIFORM, 1 - SMALLEST_UNIFORM)
        noisy = logit + uniform.log() - (-uniform).log1p()
        relaxed_logit = noisy / temperature
        relaxed = relaxed_logit.sigmoid()
        # The difference is exactly 0, so that COPY keeps what it copies to the bit.
        return BoundaryDraw((noisy > 0).float() + (relaxed - relaxed.detach()), relaxed_logit)
