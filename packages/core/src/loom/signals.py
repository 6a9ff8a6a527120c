"""A signal ends a training at the next step boundary, after a checkpoint.

Handlers only set a flag: saving inside one could hang, or store half a step.
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any


class StopSignals:
    """Turns SIGTERM, SIGUSR1 and SIGINT into a flag that is read at the step boundary.

    A second signal ends the process at once. Those within the first second count as the same one:
    a terminal's Ctrl-C reaches a worker directly and again through its launcher. Handlers are
    restored on the way out; outside of the main thread, where none can be set, nothing happens.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, same_within_s: float = 1.0) -> None:
        """Take the time within which a repeated signal is the same one."""
        self._same_within_s = same_within_s
        self._received = 0
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> int:
        """Return the number of the first signal that came, or 0."""
        return self._received

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
        elif now - self._received_at > self._same_within_s:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def exit_code(number: int) -> int:
    """Return how a stopped process exits: 0 after SIGUSR1, which asks to be requeued."""
    return 0 if number == signal.SIGUSR1 else 128 + number
