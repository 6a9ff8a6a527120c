"""The file that knows what was asked and answered: `raw.jsonl`, appended and never rewritten.

Each line is one event of one frame: `asked` before a call goes out, `answered` or `failed` when it
is over, with `terminal` on the last one of a frame; `question` describes what a digest stands for.
A line is one system call, so that `kill -9` loses at most the calls that were under way; of those
`asked` tells. Readers of the answers (`paths parse`) need nothing but this file.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from loom.errors import UserError
from loom.files import explained

from maniflow_overlay.paths.frames import FrameKey
from maniflow_overlay.paths.grammar import Status

RAW = "raw.jsonl"
EVENTS = ("question", "asked", "answered", "failed")


@dataclass
class FrameState:
    """What is known of one frame under one question.

    Attributes:
        answers: Answers so far; a re-ask goes on behind them.
        truncations: Those of them that were cut off.
        failures: Failed calls that were the frame's own.
        status: The terminal status, or None.
    """

    answers: int = 0
    truncations: int = 0
    failures: int = 0
    status: str | None = None


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Read the events of a journal; a torn last line, as a kill leaves it, is no event.

    Raises:
        UserError: A line is damaged; the message names it.
    """
    with explained(path):
        content = path.read_bytes()
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = json.loads(line)
            if event["event"] not in EVENTS:
                raise ValueError(f"unknown event {event['event']!r}")
            if event["event"] != "question":
                _key(event)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: damaged line ({error})",
                hint="remove the line: its frame will be asked again",
            ) from error
        yield event


def _key(event: dict[str, Any]) -> tuple[FrameKey, str]:
    """Return the frame and the question of an event."""
    key = FrameKey(event["task"], event["episode"], event["frame"])
    if not isinstance(key.task, str) or type(key.episode) is not int or type(key.frame) is not int:
        raise ValueError(f"no frame is named {key!r}")
    return key, event["question"]


class Journal:
    """Appends events and knows, after a restart, how far each frame is.

    Use it as a context manager: one process at a time holds a folder.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is read or made yet."""
        self.folder = folder
        self.path = folder / RAW
        self._lock = FileLock(folder / ".lock")
        self._states: dict[tuple[FrameKey, str], FrameState] = {}
        self._questions: set[str] = set()
        self._file = -1

    def __enter__(self) -> Self:
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.folder}: another process is generating paths here",
                hint="wait for it, or give another folder",
            ) from None
        try:
            with explained(self.path):
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                self._cut_torn_line()
            for event in read_events(self.path):
                self._learn(event)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()

    def _cut_torn_line(self) -> None:
        """Remove the part of a line that a killed process left at the end."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)

    def _learn(self, event: dict[str, Any]) -> None:
        if event["event"] == "question":
            self._questions.add(event["question"])
            return
        state = self._states.setdefault(_key(event), FrameState())
        if event["event"] == "answered":
            state.answers += 1
            state.truncations += event["status"] == Status.TRUNCATED
        elif event["event"] == "failed" and event.get("charged"):
            state.failures += 1
        if event.get("terminal"):
            state.status = event["status"]

    def state(self, key: FrameKey, question: str) -> FrameState:
        """Return how far a frame is."""
        return self._states.setdefault((key, question), FrameState())

    def knows(self, question: str) -> bool:
        """Whether a question of this digest is described already."""
        return question in self._questions

    def append(self, event: str, **fields: Any) -> None:
        """Write one event and take note of it.

        Raises:
            UserError: The disk refused.
        """
        line = json.dumps({"event": event, **fields}, ensure_ascii=False, allow_nan=False)
        content = line.encode() + b"\n"
        with explained(self.path):
            if os.write(self._file, content) < len(content):  # the disk took the beginning only
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._learn({"event": event, **fields})
