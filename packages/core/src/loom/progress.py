"""How far a run is: a line for people, `status.json` for programs.

The line is the same on a terminal and through a pipe:
`(特徴蒸留_教師52d) [48/50000]:   0%|          | 48/50000 [00:05<1:43:05]`. A terminal gets it
rewritten in place and cut to the width of the window; a pipe or a file gets whole lines, each
flushed, the first at once, then one per interval, the last always.

`status.json` holds the same numbers for `read_status`. A thread rewrites it every few seconds with
a new heartbeat, also while one step takes minutes: a reader can tell a slow run from a dead one.
"""

import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from tqdm import tqdm

from loom.errors import UserError
from loom.files import read_json, write_json

STATUS_FILE = "status.json"
HEARTBEAT_SECONDS = 2.0
TERMINAL_SECONDS = 0.1
LINE_SECONDS = 8.0  # a line waits for the end of a step: one of two seconds still fits into ten

_BAR = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"


def format_line(name: str, n: int, total: int, elapsed: float, start: int = 0) -> str:
    """Return the progress line; the time left follows from the steps since `start`."""
    meter = tqdm.format_meter(n, total, elapsed, initial=start, bar_format=_BAR)
    return f"({name}) [{n}/{total}]: {meter}"


class Progress:
    """Reporter of one stretch of steps.

    Args:
        name: what is going on, in the user's words and script.
        total: the step at which it ends.
        start: the step at which it begins, more than 0 after a resume.
        stream: where the line goes; standard output if None.
        interval: seconds between two lines where the stream is not a terminal.
        log: receives the lines that a pipe would get, whatever the stream is.
        enabled: False prints nothing: every rank but the first, a quiet run.
    """

    def __init__(
        self,
        name: str,
        total: int,
        start: int = 0,
        stream: TextIO | None = None,
        interval: float = LINE_SECONDS,
        *,
        log: Callable[[str], None] | None = None,
        enabled: bool = True,
    ) -> None:
        self.name, self.total, self.start, self.n = name, total, start, start
        self._stream = sys.stdout if stream is None else stream
        self._log = log or (lambda line: None)
        self._enabled = enabled
        self._terminal = enabled and self._stream.isatty()
        self._interval = interval
        self._note = ""
        self._began = self._updated = time.monotonic()
        self._next_line = self._next_redraw = self._began
        self._shown: int | None = None  # the step of the last whole line
        self._closed = False
        self._show(self._began)
        self._next_line = self._next_redraw = self._began  # the first step is shown at once, too

    @property
    def steps_per_second(self) -> float | None:
        """Mean rate from the start to the last update; None before the first step."""
        elapsed = self._updated - self._began
        return (self.n - self.start) / elapsed if self.n > self.start and elapsed > 0 else None

    def status(self) -> dict[str, Any]:
        """Return the fields for `status.json`."""
        rate = self.steps_per_second
        return {
            "phase": self.name,
            "step": self.n,
            "total": self.total,
            "rate": rate,
            "eta_s": (self.total - self.n) / rate if rate else None,
        }

    def update(self, n: int, note: str = "") -> None:
        """Say that step `n` is done; the note (a loss, a rate) stands after the bracket."""
        now = time.monotonic()
        self.n, self._note, self._updated = n, note, now
        if (
            n >= self.total
            or now >= self._next_line
            or (self._terminal and now >= self._next_redraw)
        ):
            self._show(now)

    def clear(self) -> None:
        """Make room on a terminal for another line; the next update draws again."""
        if self._terminal:
            self._write("\r\x1b[K")
            self._next_redraw = 0.0

    def close(self) -> None:
        """Show the last state if it has not been shown, and leave the line."""
        if self._closed:
            return
        if self._shown != self.n:
            self._next_line = 0.0
            self._show(time.monotonic())
        if self._terminal:
            self._write("\n")
        self._closed = True

    def _show(self, now: float) -> None:
        line = format_line(self.name, self.n, self.total, now - self._began, self.start)
        line = f"{line} {self._note}".rstrip()
        if self._terminal:
            self._write("\r" + _cut(line, self._stream) + "\x1b[K")
            self._next_redraw = now + TERMINAL_SECONDS
        if now >= self._next_line or self.n >= self.total:
            if not self._terminal:
                self._write(line + "\n")
            self._log(line)
            self._next_line = now + self._interval
            self._shown = self.n

    def _write(self, text: str) -> None:
        if self._enabled:
            write_text(self._stream, text)


def write_text(stream: TextIO, text: str) -> None:
    """Write and flush; a stream that cannot spell a character gets `?` instead of an error."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


def _cut(line: str, stream: TextIO) -> str:
    """Cut a line to the columns of the terminal, counting two for a wide character."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    limit = (columns or shutil.get_terminal_size().columns) - 1
    return line if cell_len(line) <= limit else set_cell_size(line, limit)


class Heartbeat:
    """Owner of `status.json`: a thread that rewrites it every few seconds.

    Args:
        directory: the run's directory.
        fields: what the file begins with.
        live: called at each beat for the fields that change by the step.
        interval: seconds between two beats.
    """

    def __init__(
        self,
        directory: Path,
        fields: Mapping[str, Any],
        live: Callable[[], Mapping[str, Any]] = dict,
        interval: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._path = directory / STATUS_FILE
        self._fields = {
            "state": "running",
            **fields,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "interval_s": interval,
        }
        self._live = live
        self._interval = interval
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.write()
        self._thread.start()

    def set(self, **fields: Any) -> None:
        """Merge fields; they are on disk with the next beat.

        Raises:
            TypeError: JSON has no such value.
            ValueError: NaN or infinity.
        """
        json.dumps(fields, allow_nan=False)  # fails here, not in the thread that writes
        with self._lock:
            self._fields.update(fields)

    def get(self, name: str) -> Any:
        """Return a field as it was last set."""
        with self._lock:
            return self._fields.get(name)

    def write(self) -> None:
        """Write the file now; a slow disk does not hold up `set`."""
        with self._writing:
            with self._lock:
                self._fields.update(self._live())
                fields = {**self._fields, "heartbeat": time.time()}
            write_json(self._path, fields)

    def stop(self, **fields: Any) -> None:
        """End the thread and write the last state; stopping twice does no harm."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self.set(**fields)
        self.write()

    def _beat(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.write()
            except (OSError, UserError):
                continue  # a full disk must not end the heartbeat: the next beat may find room


def read_status(directory: Path, limit: float = 60.0) -> dict[str, Any]:
    """Return the status of a run as far as it can be told from its directory.

    A run that says `running` but whose process is gone, or whose last heartbeat is more than
    `limit` seconds old, is given back as `died` with a reason.

    Raises:
        UserError: there is no readable status file.
    """
    status = read_json(directory / STATUS_FILE)
    try:
        if status.get("state") != "running":
            return status
        age = time.time() - status["heartbeat"]
        pid, host, patience = status["pid"], status["host"], max(limit, 5 * status["interval_s"])
        gone = host == socket.gethostname() and not _is_alive(pid)
    except (AttributeError, KeyError, TypeError, OverflowError) as error:
        raise UserError(
            f"{directory / STATUS_FILE}: not what Loom wrote: {error!r}",
            hint="the file was edited or is another program's; remove it",
        ) from error
    reason = ""
    if gone:
        reason = f"process {pid} on {host} is gone; its last sign of life was {age:.0f} s ago"
    elif age > patience:
        reason = f"no sign of life from process {pid} on {host} for {age:.0f} s"
    return {**status, "state": "died", "reason": reason} if reason else status


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
