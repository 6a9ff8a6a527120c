"""A circuit breaker: an endpoint that fails several times in a row gets a rest."""

from __future__ import annotations

from collections.abc import Callable


class Breaker:
    """Opens after `threshold` failures in a row; each further failure doubles the rest.

    Args:
        threshold: Failures in a row that open it.
        rest_s: The first rest.
        longest_s: The longest rest.
        clock: Seconds from any origin.
    """

    def __init__(
        self, threshold: int, rest_s: float, longest_s: float, clock: Callable[[], float]
    ) -> None:
        self._threshold, self._rest_s, self._longest_s = threshold, rest_s, longest_s
        self._clock = clock
        self._failures = 0
        self._until = 0.0

    def succeed(self) -> None:
        """Take note of a call that was answered."""
        self._failures, self._until = 0, 0.0

    def fail(self) -> None:
        """Take note of a call that was not."""
        self._failures += 1
        doublings = self._failures - self._threshold
        if doublings >= 0:
            rest = min(self._rest_s * 2 ** min(doublings, 30), self._longest_s)
            self._until = self._clock() + rest

    @property
    def open(self) -> bool:
        """Whether the endpoint has failed too often and not recovered since."""
        return self._failures >= self._threshold

    def rest(self) -> float:
        """Return the seconds until the endpoint may be tried again."""
        return max(0.0, self._until - self._clock())
