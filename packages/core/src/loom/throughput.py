"""How fast a loop is, and how much of its time it waits for data."""

import time
from collections.abc import Generator
from contextlib import contextmanager


class Throughput:
    """Clock of a training loop between two records; evaluations and saves do not count."""

    def __init__(self) -> None:
        """Start the clock."""
        self._restart()

    def _restart(self) -> None:
        self._started = time.perf_counter()
        self._elsewhere = self._waited = 0.0
        self._steps = 0

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Count the block as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def elsewhere(self) -> Generator[None]:
        """Leave the block out: it is not training."""
        began = time.perf_counter()
        yield
        self._elsewhere += time.perf_counter() - began

    def step(self) -> None:
        """Count one step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return the figures since the last reading, and start again."""
        spent = max(time.perf_counter() - self._started - self._elsewhere, 1e-9)
        figures = {
            "perf/steps_per_s": self._steps / spent,
            "perf/data_wait_share": min(1.0, self._waited / spent),
        }
        self._restart()
        return figures
