"""Consistency flow (ManiFlow): the targets of training, and how actions are drawn.

With normalised actions a, noise x0 ~ N(0, I) and x_t = (1 - t) x0 + t a, the network f(x, t, s)
learns two things at once, each from its own part of a batch (3/4 and 1/4):

    flow          t ~ 0.999 Beta(1, 1.5), s = 0:            f -> a - x0
    consistency   t in {0, 0.1, .., 0.9}, d ~ U(0, 1), t' = min(t + d, 1):
                  x1 = x_t' + (1 - t') f_ema(x_t', t', d)   where the teacher would end
                  f(x_t, t, d) -> (x1 - x_t) / (1 - t)      and the straight way there

Both mean squared errors count the same. With `absolute` targets, s says where the step ends instead
of how long it is: t' for the network and t' + d for its teacher. Actions are drawn by Euler's
method: x <- x + f(x, i / N, 1 / N) / N for i = 0 .. N - 1, from x0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

TimeKind = Literal["beta", "uniform", "lognorm"]
StepKind = Literal["relative", "absolute"]
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, H, A) actions, (B,) time, (B,) step -> (B, H, A) velocity."""

_GRID = 10  # times of the consistency part are i / 10
_SHORT = 0.999


class FlowDraws(NamedTuple):
    """The random part of a batch, as arrays; samples of the consistency part have `delta` > 0.

    Attributes:
        noise: (B, H, A) float32, x0.
        time: (B,) float32, t.
        delta: (B,) float32, d; 0 in the flow part.
        consistency: (B,) bool, which samples are in the consistency part.
    """

    noise: np.ndarray
    time: np.ndarray
    delta: np.ndarray
    consistency: np.ndarray

    def part(self, rows: slice | np.ndarray) -> FlowDraws:
        """Return some samples."""
        return FlowDraws(*(array[rows] for array in self))


def consistency_part(count: int, share: float) -> np.ndarray:
    """Choose the samples of the consistency part by their place in the batch, evenly spread.

    Every contiguous part of the batch then has nearly the same share, and which sample plays which
    role does not depend on the number of processes.

    Returns:
        (count,) bool.
    """
    places = np.arange(count + 1) * share
    return np.diff(np.floor(places + 1e-9)) > 0


def draw_times(kind: TimeKind, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw times of the flow part, (count,) in [0, 1)."""
    if kind == "beta":
        return _SHORT * rng.beta(1.0, 1.5, count)
    if kind == "lognorm":
        return 1.0 / (1.0 + np.exp(-rng.normal(size=count)))
    return rng.uniform(0.0, 1.0, count)


def draw_flow(
    count: int,
    horizon: int,
    action_dim: int,
    rng: np.random.Generator,
    *,
    share: float = 0.25,
    times: TimeKind = "beta",
) -> FlowDraws:
    """Draw noise, times and steps of a batch of `count` samples."""
    noise = rng.standard_normal((count, horizon, action_dim), dtype=np.float32)
    consistency = consistency_part(count, share)
    flow_time = draw_times(times, count, rng)
    grid_time = rng.integers(0, _GRID, count) / _GRID
    delta = np.where(consistency, rng.uniform(0.0, 1.0, count), 0.0)
    time = np.where(consistency, grid_time, flow_time)
    return FlowDraws(noise, time.astype(np.float32), delta.astype(np.float32), consistency)


def between(noise: Tensor, actions: Tensor, time: Tensor) -> Tensor:
    """Return x_t, (B, H, A), for (B,) times."""
    time = time[:, None, None]
    return (1 - time) * noise + time * actions


def asked_step(time: Tensor, delta: Tensor, kind: StepKind) -> Tensor:
    """Return what the network is told about the step: d, or where it ends."""
    return delta if kind == "relative" else time + delta


def consistency_target(
    teacher: Velocity,
    noise: Tensor,
    actions: Tensor,
    time: Tensor,
    delta: Tensor,
    kind: StepKind = "relative",
) -> Tensor:
    """Return the velocity (B, H, A) that leads from x_t to where the teacher ends.

    Args:
        teacher: The averaged network.
        noise: (B, H, A), x0.
        actions: (B, H, A), normalised.
        time: (B,), at most 0.9.
        delta: (B,), d.
        kind: What the network is told about the step.
    """
    later = (time + delta).clamp(max=1.0)
    ahead = between(noise, actions, later)
    with torch.no_grad():
        guess = teacher(ahead, later, asked_step(later, delta, kind))
    end = ahead + (1 - later)[:, None, None] * guess
    return (end - between(noise, actions, time)) / (1 - time)[:, None, None]


def euler(velocity: Velocity, noise: Tensor, steps: int, kind: StepKind = "relative") -> Tensor:
    """Follow the flow from noise to actions in equal steps.

    Args:
        velocity: The network.
        noise: (B, H, A), x0.
        steps: How many.
        kind: What the network is told about the step.

    Returns:
        (B, H, A) normalised actions.
    """
    x = noise
    delta = noise.new_full((len(noise),), 1.0 / steps)
    for number in range(steps):
        time = noise.new_full((len(noise),), number / steps)
        x = x + velocity(x, time, asked_step(time, delta, kind)) / steps
    return x
