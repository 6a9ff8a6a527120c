"""The boundary figures of earlier runs, by their definitions, so that old numbers can be compared.

Known faults of these definitions, kept here and mended in `evaluate`: the p value cannot fall below
1 / (permutations + 1) and its null ignores bursts; `delta` takes every step that ties with the 90th
percentile of the pixel difference, 60 % of random play in pinpad_three; recall is not looked at;
reset frames count.
"""

from typing import Any

import numpy as np
from loom.evaluation.statistics import Undefined, auc

Array = np.ndarray


def frame_delta(image: Array) -> Array:
    """Return (T,) float64, the mean absolute difference of each frame to the one before; 0 first.

    Args:
        image: (T, h, w, 3) uint8.
    """
    delta = np.zeros(len(image))
    for t in range(1, len(image)):
        difference = np.abs(image[t].astype(np.float32) - image[t - 1].astype(np.float32))
        delta[t] = difference.mean()
    return delta


def delta_events(delta: Array, percentile: float = 90.0) -> Array:
    """Return (T,) bool, the differences at or above a percentile of their own episode."""
    return delta >= np.percentile(delta, percentile)


def event_metrics(
    name: str, boundary: Array, read_prob: Array | None, event: Array, *, permutations: int = 50
) -> dict[str, Any]:
    """Return the figures of one kind of event in one episode; None where one is undefined.

    Args:
        name: Of the event.
        boundary: (T,) bool.
        read_prob: (T,) P(READ), if there is one.
        event: (T,) bool.
        permutations: Placements drawn for the p value.
    """
    count, rate = int(boundary.sum()), float(event.mean())
    at_boundary = float(event[boundary].mean()) if count else None
    ranking = auc(read_prob, event) if read_prob is not None else None
    return {
        "event": name,
        "event_rate": rate,
        "boundary_rate": float(boundary.mean()),
        "event_at_boundary": at_boundary,
        "event_at_nonboundary": float(event[~boundary].mean()) if count < len(event) else None,
        "lift_over_event_rate": at_boundary / rate if at_boundary is not None and rate else None,
        "auc_read_prob": None if isinstance(ranking, Undefined) else ranking,
        "perm_observed": at_boundary,
        "perm_p_value": _placement_p(boundary, event, permutations),
        "periodic_baseline": _periodic_baseline(event, count),
    }


def delta_summary(delta: Array, boundary: Array, percentile: float = 90.0) -> dict[str, Any]:
    """Return the pixel difference at boundaries and elsewhere, and Cohen's d between them."""
    at, elsewhere = delta[boundary], delta[~boundary]
    return {
        "frame_delta_mean_boundary": float(at.mean()) if len(at) else None,
        "frame_delta_mean_nonboundary": float(elsewhere.mean()) if len(elsewhere) else None,
        "frame_delta_cohen_d": cohen_d(at, elsewhere),
        "frame_delta_percentile": percentile,
    }


def cohen_d(first: Array, second: Array) -> float | None:
    """Return the difference of means over the root of the mean variance."""
    if len(first) == 0 or len(second) == 0:
        return None
    variances = [each.var(ddof=1) if len(each) > 1 else 0.0 for each in (first, second)]
    pooled = sum(variances) / 2
    return float((first.mean() - second.mean()) / np.sqrt(pooled)) if pooled else None


def _placement_p(boundary: Array, event: Array, permutations: int) -> float | None:
    count = int(boundary.sum())
    if count == 0:
        return None
    rng = np.random.default_rng(0)
    observed = event[boundary].mean()
    drawn = [
        event[rng.choice(len(event), size=count, replace=False)].mean() for _ in range(permutations)
    ]
    return float((np.sum(np.array(drawn) >= observed) + 1) / (permutations + 1))


def _periodic_baseline(event: Array, count: int) -> float | None:
    if count == 0:
        return None
    period = max(1, round(len(event) / count))
    return float(event[np.arange(0, len(event), period)[:count]].mean())
