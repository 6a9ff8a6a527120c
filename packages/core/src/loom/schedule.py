"""Values over training as pure functions of the global step.

A step is the number of completed updates, so `at(0)` rules the first update. Nothing here knows the
number of processes, the length of a loader or an epoch: a run resumed anywhere, on any number of
processes, sees the same value at the same step.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """Anything with a value at each step."""

    def at(self, step: int) -> float:
        """Return the value at a step."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def at(self, step: int) -> float:
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class Ramp:
    """From `start` at step `begin` to `end` at step `begin + over`; flat before and after."""

    start: float
    end: float
    over: int
    begin: int = 0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if self.over < 0:
            raise ValueError(f"a ramp over {self.over} steps; 0 or more")
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"ramp shape {self.shape!r}; linear or cosine")

    def at(self, step: int) -> float:
        """Return the value at a step; a ramp over 0 steps is a jump at `begin`."""
        if step >= self.begin + self.over:
            return self.end
        part = max(0.0, (step - self.begin) / self.over) if self.over else 0.0
        if self.shape == "cosine":
            part = 0.5 * (1.0 - math.cos(math.pi * part))
        return self.start + (self.end - self.start) * part


@dataclass(frozen=True)
class WarmupCosine:
    """Rise to `peak` in `warmup` updates, then fall to `floor` at `total` along half a cosine.

    The first update has `peak / warmup`, not 0, and the last of the warm-up has `peak`:
    `at(s) = peak (s + 1) / warmup` for `s < warmup`, then, with
    `t = (s - warmup) / (total - warmup)`,
    `at(s) = floor + (peak - floor) (1 + cos(pi t)) / 2`, and `floor` after `total`.
    """

    peak: float
    warmup: int
    total: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.total:
            raise ValueError(f"a warm-up of {self.warmup} steps in a total of {self.total}")

    def at(self, step: int) -> float:
        """Return the value at a step."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if step >= self.total:
            return self.floor
        part = (step - self.warmup) / (self.total - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1.0 + math.cos(math.pi * part))


@dataclass(frozen=True)
class Piecewise:
    """Values at given steps, held until the next one or joined by lines; flat outside.

    `Piecewise(((0, 1e-3), (30_000, 1e-4)))` drops at step 30,000.
    """

    knots: tuple[tuple[int, float], ...]
    shape: Literal["hold", "linear"] = "hold"

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.knots]
        if not steps or any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
            raise ValueError(f"knots need one or more rising steps, not {steps}")
        if self.shape not in ("hold", "linear"):
            raise ValueError(f"piecewise shape {self.shape!r}; hold or linear")

    def at(self, step: int) -> float:
        """Return the value at a step."""
        begin, value = self.knots[0]
        for end, following in self.knots[1:]:
            if step < end:
                if self.shape == "hold":
                    return value
                return Ramp(value, following, over=end - begin, begin=begin).at(step)
            begin, value = end, following
        return value


def warmup_cosine(step: int, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Return `WarmupCosine(...)` at a step."""
    return WarmupCosine(peak, warmup, total, floor).at(step)


def ramp(
    step: int,
    start: float,
    end: float,
    over: int,
    begin: int = 0,
    shape: Literal["linear", "cosine"] = "linear",
) -> float:
    """Return `Ramp(...)` at a step."""
    return Ramp(start, end, over, begin, shape).at(step)


def is_monotone(schedule: Schedule, steps: int, *, falling: bool = False) -> bool:
    """Tell whether a schedule never falls (or never rises) over the steps `0..steps`."""
    values = [schedule.at(step) for step in range(steps + 1)]
    if falling:
        values.reverse()
    return all(a <= b for a, b in zip(values, values[1:], strict=False))
