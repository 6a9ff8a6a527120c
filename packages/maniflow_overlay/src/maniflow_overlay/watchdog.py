"""A thread that speaks up when no step ends.

The notes took a training for deadlocked because its progress bar wrote into a buffer. Here a line
says every few seconds how long the step has been under way, also through a pipe; after `limit_s`
the stacks of all threads are written once into the run's `stacks.txt`, so that what it really
waits for can be read.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

STACKS = "stacks.txt"
SPEAK_S = 8.0


class Watchdog:
    """Watches the time since the last step; used as a context manager.

    Args:
        directory: Where `stacks.txt` goes.
        say: Takes a line for the log.
        warn: Takes the one line that says where the stacks are.
        limit_s: Without a step for so long, the stacks are written.
        speak_s: Without a step for so long, a line says so, and again each time.
    """

    def __init__(
        self,
        directory: Path,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        *,
        limit_s: float,
        speak_s: float = SPEAK_S,
    ) -> None:
        self._path = directory / STACKS
        self._say, self._warn = say, warn
        self._limit_s, self._speak_s = limit_s, speak_s
        self._last = (0, time.monotonic())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def step_ended(self, step: int) -> None:
        """Note that a step is complete."""
        self._last = (step, time.monotonic())

    def __enter__(self) -> Self:
        self.step_ended(0)
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
        seen, spoken, dumped = self._last, 0, False
        while not self._end.wait(min(self._speak_s, self._limit_s) / 8):
            if self._last != seen:
                seen, spoken, dumped = self._last, 0, False
            waited = time.monotonic() - seen[1]
            if waited >= (spoken + 1) * self._speak_s:
                spoken = int(waited / self._speak_s)
                self._say(f"[wait] {waited:.0f} s since step {seen[0]} ended; still at work")
            if waited >= self._limit_s and not dumped:
                dumped = True
                self._dump(waited, seen[0])

    def _dump(self, waited: float, step: int) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"no step for {waited:.1f} s after step {step}\n")
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)
        self._warn(f"[watchdog] no step ended for {waited:.1f} s: all stacks are in {self._path}")
