"""Segmentations against each other, and what a segmentation alone gives away.

A boundary at step t begins a segment at t. WindowDiff (Pevzner and Hearst 2002) and P_k (Beeferman
1999) count windows in which two segmentations disagree; the covering (Arbelaez 2011) and the mutual
information compare segments as sets of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from loom.evaluation.statistics import Undefined

Array = np.ndarray

CLOCK_SHARE, CLOCK_CV, CLOCK_INTERVALS = 0.8, 0.1, 4
"""A detector with this share of equal intervals, or so little variation, is a clock."""
SILENT_RATE = 1e-3
"""A detector with fewer boundaries per step is silent."""
ALWAYS_ON_RATE = 0.5


def segment_ids(boundary: Array) -> Array:
    """Return (T,) the number of the segment that each step is in."""
    return np.cumsum(boundary)


def spells(labels: Array) -> Array:
    """Return (T,) bool, the steps at which a label differs from the one before."""
    return np.concatenate([[False], labels[1:] != labels[:-1]])


def window(event: Array) -> int:
    """Return the usual window of WindowDiff and P_k: half the mean true segment, at least 2."""
    return max(2, round(len(event) / (int(event.sum()) + 1) / 2))


def window_diff(boundary: Array, event: Array, width: int) -> float | Undefined:
    """Return the share of windows with another number of boundaries than of events."""
    return _disagreement(boundary, event, width, counted=True)


def p_k(boundary: Array, event: Array, width: int) -> float | Undefined:
    """Return the share of windows where one has a boundary inside and the other has none."""
    return _disagreement(boundary, event, width, counted=False)


def _disagreement(boundary: Array, event: Array, width: int, *, counted: bool) -> float | Undefined:
    if width > len(event):
        return Undefined(f"a window of {width} in {len(event)} steps")
    ours, true = (
        np.convolve(each.astype(np.int64), np.ones(width, np.int64), mode="valid")
        for each in (boundary, event)
    )
    wrong = ours != true if counted else (ours > 0) != (true > 0)
    return float(wrong.mean())


def overlaps(first: Array, second: Array) -> Array:
    """Return the table of step counts by (segment of the first, segment of the second)."""
    rows, columns = (np.unique(each, return_inverse=True)[1] for each in (first, second))
    table = np.zeros((rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def covering(boundary: Array, event: Array) -> float:
    """Return the best overlap (intersection over union) of each true segment, by its length."""
    table = overlaps(segment_ids(event), segment_ids(boundary))
    true, ours = table.sum(axis=1), table.sum(axis=0)
    union = true[:, None] + ours[None] - table
    return float((true * (table / union).max(axis=1)).sum() / true.sum())


def mutual_information(first: Array, second: Array) -> float | Undefined:
    """Return I(first; second) over the mean of their entropies, of two labellings of the steps.

    A finer labelling gains by being finer: read it beside a periodic detector of the same rate.
    """
    table = overlaps(first, second) / len(first)
    if table.size == 1:
        return Undefined("both are one segment")
    if 1 in table.shape:
        return 0.0
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    entropies = -(rows * np.log(rows)).sum() - (columns * np.log(columns)).sum()
    seen = table > 0
    information = (table[seen] * np.log(table[seen] / np.outer(rows, columns)[seen])).sum()
    return max(0.0, float(2 * information / entropies))  # rounding may fall below


@dataclass(frozen=True)
class Shape:
    """What the boundaries of a detector look like without any truth.

    Attributes:
        count: Boundaries in all.
        rate: Boundaries per step.
        interval_cv: Deviation of the intervals over their episode's mean; 0 a clock, 1 chance.
        common_interval: The commonest interval.
        common_share: Share of the intervals that equal it.
        flags: Of `silent`, `always_on` and `clock`, those that hold.
    """

    count: int
    rate: float
    interval_cv: float | Undefined
    common_interval: int | Undefined
    common_share: float | Undefined
    flags: tuple[str, ...]


def shape(boundaries: Sequence[Array]) -> Shape:
    """Describe the boundaries of all episodes, and flag a detector that has collapsed."""
    count = sum(int(boundary.sum()) for boundary in boundaries)
    rate = count / sum(len(boundary) for boundary in boundaries)
    by_episode = [np.diff(np.flatnonzero(boundary)) for boundary in boundaries]
    by_episode = [gaps for gaps in by_episode if len(gaps)]
    if not by_episode:
        none = Undefined("no two boundaries in one episode")
        return Shape(count, rate, none, none, none, ("silent",) if rate < SILENT_RATE else ())
    gaps = np.concatenate(by_episode)
    values, counts = np.unique(gaps, return_counts=True)
    common, share = int(values[counts.argmax()]), float(counts.max() / len(gaps))
    # A clock may tick faster in one episode than in another.
    cv = float(np.concatenate([each / each.mean() for each in by_episode]).std())
    flags = {
        "silent": rate < SILENT_RATE,
        "always_on": rate >= ALWAYS_ON_RATE,
        "clock": common > 1
        and (share >= CLOCK_SHARE or cv <= CLOCK_CV)
        and len(gaps) >= CLOCK_INTERVALS,
    }
    named = tuple(name for name, holds in flags.items() if holds)
    return Shape(count, rate, cv, common, share, named)
