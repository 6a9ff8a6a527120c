"""How sure a number is: intervals, tests and aggregates, each with its rule for "undefined".

A statistic of nothing is not a number: undefined input gives `Undefined(reason)`, which prints as
its reason and cannot be taken for a value, instead of a NaN that travels. Every function that draws
takes a generator. Frames of one recording are correlated in time, so their labels must be permuted
by circular shifts (`shift_test`), not one by one, which would find significance in any slow signal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

Array = np.ndarray
Alternative = Literal["greater", "less", "two-sided"]


@dataclass(frozen=True)
class Undefined:
    """The answer where there is none, with the reason; false in a condition."""

    reason: str

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"undefined: {self.reason}"


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float
    confidence: float
    n: int


class Test(NamedTuple):
    """A permutation test: p is never below `floor`, the smallest value these draws can give."""

    statistic: float
    p: float
    floor: float
    n_permutations: int


def bootstrap_interval(
    values: Sequence[float] | Array,
    rng: np.random.Generator,
    *,
    statistic: Callable[..., Array] = np.mean,
    confidence: float = 0.95,
    resamples: int = 9_999,
    method: Literal["BCa", "percentile"] = "BCa",
) -> Interval | Undefined:
    """Return the bootstrap interval of a statistic of independent values.

    Args:
        values: (n,) one value per independent unit (scene, run, episode).
        rng: Draws the resamples.
        statistic: Takes `axis`, like `np.mean` and `np.median`.
        confidence: Coverage aimed at.
        resamples: Number of bootstrap samples.
        method: "BCa" (Efron 1987) corrects bias and skew, "percentile" does not.
    """
    data = _finite(values)
    if isinstance(data, Undefined):
        return data
    if len(data) < 2:
        return Undefined(f"{len(data)} value, an interval needs 2")
    estimate = float(statistic(data, axis=0))
    if np.ptp(data) == 0:  # BCa divides by zero, though every resample agrees and this is exact
        return Interval(estimate, estimate, estimate, confidence, len(data))
    found = stats.bootstrap(
        (data,),
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        method=method,
        rng=rng,
        vectorized=True,
        batch=max(1, 2_000_000 // len(data)),
    ).confidence_interval
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return Undefined("all resamples agree, the BCa correction has no value")
    return Interval(estimate, float(found.low), float(found.high), confidence, len(data))


def mean_interval(
    values: Sequence[float] | Array, confidence: float = 0.95
) -> Interval | Undefined:
    """Return the mean with Student's t interval.

    For a few runs, where a bootstrap, which cannot leave the values it was given, is too narrow.
    Exact for independent normal values.

    Args:
        values: (n,) one value per independent unit.
        confidence: Coverage.
    """
    data = _finite(values)
    if isinstance(data, Undefined):
        return data
    if len(data) < 2:
        return Undefined(f"{len(data)} value, an interval needs 2")
    mean = float(data.mean())
    half = float(stats.t.ppf((1 + confidence) / 2, len(data) - 1) * stats.sem(data))
    return Interval(mean, mean - half, mean + half, confidence, len(data))


def difference_interval(
    first: Sequence[float] | Array, second: Sequence[float] | Array, confidence: float = 0.95
) -> Interval | Undefined:
    """Return the mean of the second less that of the first, with Welch's t interval.

    For two groups of a few independent runs, whose spreads need not be equal. Values that belong
    together in pairs have a narrower one: `mean_interval` of their differences.

    Args:
        first: (n,) one value per independent unit.
        second: (m,) those of the other group; n + m is the `n` of the interval.
        confidence: Coverage.
    """
    one, two = _finite(first), _finite(second)
    if isinstance(one, Undefined):
        return one
    if isinstance(two, Undefined):
        return two
    if (fewest := min(len(one), len(two))) < 2:
        return Undefined(f"{fewest} value in a group, an interval needs 2")
    mean = float(two.mean() - one.mean())
    squares = np.array([one.var(ddof=1) / len(one), two.var(ddof=1) / len(two)])
    if squares.sum() == 0:  # all agree: there are no degrees of freedom to estimate
        half = 0.0
    else:
        freedom = squares.sum() ** 2 / (squares**2 / (len(one) - 1, len(two) - 1)).sum()
        half = float(stats.t.ppf((1 + confidence) / 2, freedom) * math.sqrt(squares.sum()))
    return Interval(mean, mean - half, mean + half, confidence, len(one) + len(two))


def permutation_test(
    treated: Sequence[float] | Array,
    control: Sequence[float] | Array,
    rng: np.random.Generator,
    *,
    permutations: int = 9_999,
    alternative: Alternative = "two-sided",
) -> Test | Undefined:
    """Test whether the mean of independent values differs between two groups.

    The p value is (1 + #{permuted >= observed}) / (n + 1) (Phipson and Smyth 2010): the observed
    labelling counts as one, so p is never zero.
    """
    first, second = _finite(treated), _finite(control)
    if isinstance(first, Undefined):
        return first
    if isinstance(second, Undefined):
        return second
    pooled, count = np.concatenate([first, second]), len(first)
    total = pooled.sum()

    def difference(sum_of_first: Array | float) -> Array:
        return np.asarray(sum_of_first / count - (total - sum_of_first) / (len(pooled) - count))

    observed = float(difference(pooled[:count].sum()))
    drawn = np.array(
        [difference(rng.permutation(pooled)[:count].sum()) for _ in range(permutations)]
    )
    return _test(observed, drawn, alternative)


def shift_test(
    signal: Sequence[float] | Array,
    labels: Sequence[bool] | Array,
    rng: np.random.Generator,
    *,
    statistic: Callable[[Array, Array], float] | None = None,
    permutations: int = 9_999,
    minimum_shift: int = 1,
    alternative: Alternative = "greater",
) -> Test | Undefined:
    """Test whether a signal is related to labels of the same recording, by circular shifts.

    A shift keeps the serial correlation of both and breaks only their alignment. With fewer
    distinct shifts than asked for, every one is taken once and the test is exact.

    Args:
        signal: (time,) values.
        labels: (time,) events.
        rng: Draws the shifts.
        statistic: (signal, shifted labels) -> value; by default the mean at events less the rest.
        permutations: At most this many shifts.
        minimum_shift: Shorter shifts, in either direction, are not drawn: the correlation time.
        alternative: Which side counts as extreme.
    """
    data = _finite(signal)
    if isinstance(data, Undefined):
        return data
    events = np.asarray(labels, dtype=bool)
    if events.shape != data.shape:
        raise ValueError(f"signal has shape {data.shape}, labels {events.shape}")
    if not events.any() or events.all():
        return Undefined(f"{int(events.sum())} events in {len(events)} time steps")
    shifts = np.arange(minimum_shift, len(data) - minimum_shift + 1)
    if len(shifts) == 0:
        return Undefined(f"no shift of {minimum_shift} or more in {len(data)} time steps")
    if len(shifts) > permutations:
        shifts = rng.choice(shifts, permutations, replace=False)
    measure = statistic or _mean_at_events_less_rest
    drawn = np.array([measure(data, np.roll(events, shift)) for shift in shifts])
    return _test(measure(data, events), drawn, alternative)


def iqm(scores: Sequence[float] | Array) -> float | Undefined:
    """Return the interquartile mean: the mean of the middle half (Agarwal et al. 2021)."""
    data = _finite(np.ravel(scores))
    return data if isinstance(data, Undefined) else float(stats.trim_mean(data, 0.25))


def stratified_interval(
    scores: Sequence[Sequence[float]] | Array,
    rng: np.random.Generator,
    *,
    aggregate: Callable[[Array], float] | None = None,
    confidence: float = 0.95,
    resamples: int = 2_000,
) -> Interval | Undefined:
    """Return the interval of an aggregate over runs x tasks (Agarwal et al. 2021, section 4).

    Runs are resampled within each task, tasks are kept: the interval is about these tasks.

    Args:
        scores: (runs, tasks).
        rng: Draws the resamples.
        aggregate: (runs, tasks) -> value; the interquartile mean by default.
        confidence: Coverage aimed at, by percentiles.
        resamples: Number of bootstrap samples.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"scores have shape {table.shape}, expected (runs, tasks)")
    if table.size == 0 or not np.isfinite(table).all():
        return Undefined(f"{int(np.isfinite(table).sum())} of {table.size} scores are finite")
    runs, tasks = table.shape
    if runs < 2:
        return Undefined(f"{runs} run, an interval needs 2")
    measure = aggregate or (lambda sample: float(stats.trim_mean(sample.ravel(), 0.25)))
    rows = rng.integers(0, runs, size=(resamples, runs, tasks))
    drawn = [measure(np.take_along_axis(table, picked, axis=0)) for picked in rows]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(measure(table)), float(low), float(high), confidence, runs)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval | Undefined:
    """Return the score interval of a proportion (Wilson 1927); it stays sound at 0 and n."""
    if not 0 <= successes <= max(n, 0):
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Undefined("0 trials")
    z = float(stats.norm.ppf((1 + confidence) / 2))
    rate = successes / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(rate, low, high, confidence, n)


def auc(scores: Sequence[float] | Array, labels: Sequence[bool] | Array) -> float | Undefined:
    """Return the area under the ROC curve: P(score at an event > score elsewhere), ties half."""
    data = _finite(scores)
    if isinstance(data, Undefined):
        return data
    events = np.asarray(labels, dtype=bool)
    if events.shape != data.shape:
        raise ValueError(f"scores have shape {data.shape}, labels {events.shape}")
    positive, negative = int(events.sum()), int((~events).sum())
    if positive == 0 or negative == 0:
        return Undefined(f"{positive} events and {negative} other values")
    ranks = stats.rankdata(data)
    return float((ranks[events].sum() - positive * (positive + 1) / 2) / (positive * negative))


def mcnemar(only_first: int, only_second: int) -> float | Undefined:
    """Return the exact two-sided p value that two paired classifiers err equally often.

    Args:
        only_first: Cases that only the first got right.
        only_second: Cases that only the second got right.
    """
    if only_first + only_second == 0:
        return Undefined("the two agree in every case")
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm(p_values: Sequence[float] | Array) -> Array:
    """Return p values adjusted for testing several hypotheses (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _test(observed: float, drawn: Array, alternative: Alternative) -> Test | Undefined:
    bad = int(np.count_nonzero(~np.isfinite(drawn))) + (not math.isfinite(observed))
    if bad:  # every comparison with NaN is false, which would pass for the smallest p
        return Undefined(f"the statistic is not finite for {bad} of {len(drawn) + 1} labellings")
    # Equal statistics computed in another order differ in the last bits and must count as equal.
    slack = 1e-12 * max(1.0, abs(observed), float(np.abs(drawn).max(initial=0.0)))
    floor = 1 / (len(drawn) + 1)
    above = (1 + np.count_nonzero(drawn >= observed - slack)) * floor
    below = (1 + np.count_nonzero(drawn <= observed + slack)) * floor
    p = {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}[alternative]
    least = min(1.0, 2 * floor) if alternative == "two-sided" else floor
    return Test(observed, float(p), least, len(drawn))


def _mean_at_events_less_rest(signal: Array, events: Array) -> float:
    return float(signal[events].mean() - signal[~events].mean())


def _finite(values: Sequence[float] | Array) -> Array | Undefined:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"values have shape {data.shape}, expected one axis")
    if len(data) == 0:
        return Undefined("no values")
    bad = int(np.count_nonzero(~np.isfinite(data)))
    return Undefined(f"{bad} of {len(data)} values are not finite") if bad else data
