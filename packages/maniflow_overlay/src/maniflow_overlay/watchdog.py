"""A thread that speaks up when no step ends.

The notes took a training for deadlocked because its progress bar wrote into a buffer. Here, when
nothing has been said for eight and a half seconds because a step takes long, a line tells for how
long, also through a pipe; after `limit_s` the stacks of all threads are written once into the run's
`stacks.txt`, so that what it really waits for can be read.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from loom.run import LOG_FILE

STACKS = "stacks.txt"
SILENCE_S = 8.5
LONG_STEP_S = 1.5  # shorter ones end in time for the progress line, due after eight seconds
_POLLS = 30


class Watchdog:
    """Watches the time since the last step; used as a context manager.

    Args:
        directory: Of the run; its log tells when something was last said.
        say: Takes a line for the log.
        warn: Takes the one line that says where the stacks are.
        limit_s: Without a step for so long, the stacks are written.
        silence_s: Without a line for so long, a long step is spoken of.
        long_step_s: How long a step is long.
        clock: Seconds that only grow; the wall clock may jump.
    """

    def __init__(
        self,
        directory: Path,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        *,
        limit_s: float,
        silence_s: float = SILENCE_S,
        long_step_s: float = LONG_STEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._stacks = directory / LOG_FILE, directory / STACKS
        self._say, self._warn = say, warn
        self._limit_s, self._silence_s, self._long_step_s = limit_s, silence_s, long_step_s
        self._clock = clock
        self._said = clock()
        self._last = ("the run began", self._said)
        self._written = self._log_time()
        self._dumped: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def step_ended(self, step: int) -> None:
        """Note that a step is complete."""
        self._last = (f"step {step} ended", self._clock())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(min(self._silence_s, self._limit_s) / _POLLS):
            self.look()

    def look(self) -> None:
        """Say or write what is due by now; the thread does this thirty times in each silence."""
        what, since = self._last
        now = self._clock()
        waited = now - since
        if self._written != (written := self._log_time()):
            self._said, self._written = now, written
        if waited >= self._long_step_s and now - self._said >= self._silence_s:
            self._said = now
            self._say(f"[wait] {waited:.0f} s since {what}; still at work")
        if waited >= self._limit_s and self._dumped != since:
            self._dumped = since
            self._dump(waited, what)

    def _log_time(self) -> float:
        """Return when the log was last written to, only to see that it was."""
        return self._log.stat().st_mtime if self._log.is_file() else 0.0

    def _dump(self, waited: float, what: str) -> None:
        with self._stacks.open("a", encoding="utf-8") as stream:
            stream.write(f"no step ended in the {waited:.1f} s since {what}\n")
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)
        self._warn(f"[watchdog] no step ended for {waited:.1f} s: all stacks are in {self._stacks}")
