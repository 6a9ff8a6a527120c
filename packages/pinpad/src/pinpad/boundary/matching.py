"""Boundaries against events, instant by instant: matches within a tolerance, and score rankings."""

from typing import NamedTuple

import numpy as np
from loom.evaluation.statistics import Undefined

Array = np.ndarray


class Match(NamedTuple):
    """One-to-one matches of boundaries with events: how many, of how many of each."""

    matched: int
    boundaries: int
    events: int

    @property
    def precision(self) -> float | Undefined:
        """Share of the boundaries that have an event of their own."""
        if self.boundaries == 0:
            return Undefined("no boundaries")
        return self.matched / self.boundaries

    @property
    def recall(self) -> float | Undefined:
        """Share of the events that have a boundary of their own."""
        return self.matched / self.events if self.events else Undefined("no events")

    @property
    def f1(self) -> float | Undefined:
        """Harmonic mean of precision and recall: 2 matched / (boundaries + events)."""
        if self.events == 0:
            return Undefined("no events")
        return 2 * self.matched / (self.boundaries + self.events)


def match(boundary: Array, event: Array, tolerance: int) -> Match:
    """Match boundaries with events that are at most `tolerance` steps away, each used once.

    Going through both in order and taking each pair that is near enough gives the largest number of
    matches, because all tolerances are equal.

    Args:
        boundary: (T,) bool.
        event: (T,) bool.
        tolerance: Steps.
    """
    left, right = np.flatnonzero(boundary), np.flatnonzero(event)
    i = j = matched = 0
    while i < len(left) and j < len(right):
        distance = left[i] - right[j]
        if abs(distance) <= tolerance:
            matched += 1
            i, j = i + 1, j + 1
        elif distance < 0:
            i += 1
        else:
            j += 1
    return Match(matched, len(left), len(right))


def average_precision(score: Array, event: Array) -> float | Undefined:
    """Return the sum of precision times gain in recall over all thresholds; ties fall together.

    Args:
        score: (T,) higher means rather a boundary.
        event: (T,) bool.
    """
    events = int(event.sum())
    if events == 0:
        return Undefined("no events")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(event[order])
    last_of_tie = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    true, taken = hits[last_of_tie], last_of_tie + 1
    gain = np.diff(true, prepend=0) / events
    return float((gain * true / taken).sum())


def top(score: Array, count: int) -> Array:
    """Return (T,) bool, the `count` highest scores after frame 0; of equal ones the earlier.

    Args:
        score: (T,) scores; that of frame 0, the reset, takes no part.
        count: How many; at most T - 1.
    """
    chosen = np.zeros(len(score), bool)
    chosen[1 + np.argsort(-score[1:], kind="stable")[: max(count, 0)]] = True
    return chosen
