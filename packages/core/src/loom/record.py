"""Metrics of one run: a JSONL file that is the truth, a CSV and TensorBoard events derived from it.

Every call to `Records.record` appends one line to `metrics.jsonl` with one write, so a killed
process loses at most the line it was writing. The CSV has one header and one row per step: when a
key appears for the first time the file is written anew, atomically, with the wider header. An
event file gets its first scalar in the same write as its own header, so the 88-byte file that
draws nothing cannot occur.

JSON has no number for NaN and the infinities. They are stored as the strings "NaN", "Infinity" and
"-Infinity" and come back as floats; None, "could not be measured", is null and an empty CSV cell.
"""

import csv
import io
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loom.errors import UserError
from loom.files import explained, write_atomic

METRICS_FILE = "metrics.jsonl"
TABLE_FILE = "training_metrics.csv"
EVENTS_FOLDER = "tensorboard"

Row = dict[str, float | None]

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Records:
    """Writer of the metrics of one run; a context manager.

    Args:
        directory: the run's directory.
        resume_step: continue a run from this step; rows of later steps are dropped first. None for
            a new run, which must not find the rows of another.
        on_notice: receives one sentence for each thing that had to be dropped.
    """

    def __init__(
        self,
        directory: Path,
        resume_step: int | None = None,
        *,
        on_notice: Callable[[str], None] = lambda notice: None,
    ) -> None:
        self._directory = directory
        path = directory / METRICS_FILE
        if resume_step is not None:
            _drop_rows_after(path, resume_step, on_notice)
        elif path.exists() and path.stat().st_size:
            raise UserError(
                f"{path}: holds the rows of another run",
                hint="resume that run, or archive its directory",
            )
        with explained(path):
            self._lines = _AppendedFile(path)
            self._table = _Table(directory)
            self._events = _EventFile(directory / EVENTS_FOLDER, resume_step)

    def record(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Append the metrics of a step to all three formats, and flush.

        Raises:
            ValueError: a key or a value that no reader could make sense of; nothing is written.
            UserError: the disk refused; the rows before are intact.
        """
        if self._lines.closed:
            raise ValueError(f"step {step} was recorded after the records had been closed")
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"step {step!r} is not a whole number from 0 on")
        values = {key: _scalar(key, value) for key, value in metrics.items()}
        self._table.check(values)
        row: Row = {"step": step, "time": round(time.time(), 3), **values}
        with explained(self._directory / METRICS_FILE):
            self._lines.append(_to_json(row))
            self._table.add(row)
            self._events.add(row)

    def rows(self) -> list[Row]:
        """Return what has been recorded so far, as `read_records` does."""
        return read_records(self._directory)

    def close(self) -> None:
        """Close the files; closing twice does no harm."""
        self._lines.close()
        self._table.close()
        self._events.close()

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_records(directory: Path) -> list[Row]:
    """Return one row per step: {"step": ..., "time": ..., key: value}.

    What was recorded in several calls at one step is one row; a last line that is still being
    written is left out.

    Raises:
        UserError: a line before the last one is damaged; names the file and the line.
    """
    rows: list[Row] = []
    for _, row in _complete_lines(directory / METRICS_FILE):
        if rows and rows[-1]["step"] == row["step"]:
            rows[-1].update(row)
        else:
            rows.append(row)
    return rows


def _complete_lines(path: Path) -> Iterator[tuple[bytes, Row]]:
    """Yield (line, row) for each line that ends in a newline."""
    with explained(path):
        content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            row = {k: _NOT_FINITE[v] if isinstance(v, str) else v for k, v in row.items()}
            if not isinstance(row["step"], int):
                raise ValueError(f"step {row['step']!r}")
            if not all(value is None or isinstance(value, int | float) for value in row.values()):
                raise ValueError("a value that is no number")
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path}:{number}: not a row of metrics: {line[:60]!r}",
                hint="delete the damaged line, or archive the run and start anew",
            ) from error
        yield line, row


def _drop_rows_after(path: Path, step: int, on_notice: Callable[[str], None]) -> None:
    """Cut the rows of later steps, and a torn last line, out of the JSONL file."""
    if not path.exists():
        return
    lines = list(_complete_lines(path))
    kept = [line for line, row in lines if (row["step"] or 0) <= step]
    size = sum(len(line) for line, _ in lines)
    torn = path.stat().st_size - size
    if torn:
        on_notice(f"{path.name}: dropped {torn} bytes of a row that had not been written whole")
    if len(kept) < len(lines):
        on_notice(f"{path.name}: dropped {len(lines) - len(kept)} rows after step {step}")
    if torn or len(kept) < len(lines):
        write_atomic(path, b"".join(kept))


def _scalar(key: str, value: float | None) -> float | None:
    if key in ("step", "time") or not key:
        raise ValueError(f"{key!r} cannot be the name of a metric")
    if value is None:
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        raise ValueError(f"{key}: {value!r} is not a number")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {value!r} is not a number") from error


def storable(value: float | None) -> float | str | None:
    """Return what stands for the value in JSON."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def json_safe(value: Any) -> Any:
    """Return a tree of mappings and lists with the floats that JSON lacks as `storable` text."""
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return storable(value) if isinstance(value, float) else value


def _to_json(row: Row) -> bytes:
    text = json.dumps({k: storable(v) for k, v in row.items()}, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


class _AppendedFile:
    """A file that grows by whole pieces: a piece that does not fit leaves no trace."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self.size = self._file.seek(0, os.SEEK_END)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def append(self, data: bytes) -> None:
        """Write the data with one call, as long as the disk takes it whole."""
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self._file.truncate(self.size)
            raise
        self.size += len(data)

    def cut(self, size: int) -> None:
        """Forget everything after the first `size` bytes."""
        self._file.truncate(size)
        self.size = size

    def close(self) -> None:
        self._file.close()


class _Table:
    """`training_metrics.csv`: a column per key, in order of appearance, and a row per step."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / TABLE_FILE
        self._columns: dict[str, str] = {}  # column -> key
        self._last: Row = {}
        self._last_start = 0
        self._rebuild()

    def check(self, keys: Iterable[str]) -> None:
        """Refuse two keys that would share a column."""
        owners = {"step": "step", "time": "time"} | self._columns
        for key in keys:
            owner = owners.setdefault(_column(key), key)
            if owner != key:
                raise ValueError(f"{owner!r} and {key!r} would share the column {_column(key)!r}")

    def add(self, row: Row) -> None:
        """Append a row that is already in the JSONL file, or widen the row of the same step."""
        if not {_column(key) for key in row} <= self._columns.keys():
            self._file.close()
            self._rebuild()
            return
        if self._last and self._last["step"] == row["step"]:
            row = self._last | row
            self._file.cut(self._last_start)
        self._last, self._last_start = row, self._file.size
        self._file.append(self._line(row))

    def close(self) -> None:
        self._file.close()

    def _rebuild(self) -> None:
        """Write the whole table from the JSONL file, under the union of all keys."""
        rows = read_records(self._directory)
        self._columns = {_column(key): key for row in rows for key in row}
        if rows:
            header = _csv_line(self._columns)
            body = [self._line(row) for row in rows]
            write_atomic(self._path, b"".join([header, *body]))
        else:
            write_atomic(self._path, b"")
        self._file = _AppendedFile(self._path)
        self._last = rows[-1] if rows else {}
        self._last_start = self._file.size - (len(body[-1]) if rows else 0)

    def _line(self, row: Row) -> bytes:
        return _csv_line("" if row.get(key) is None else row[key] for key in self._columns.values())


def _column(key: str) -> str:
    return key.removeprefix("metric/")


def _csv_line(cells: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


class _EventFile:
    """One TensorBoard event file, written without importing torch or tensorflow.

    A resumed run starts a file of its own whose first event tells TensorBoard to forget the steps
    that the run before had gone beyond the checkpoint (`SessionLog.START`, known elsewhere as
    `purge_step`).
    """

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        # The classes of a protocol buffer exist at run time only, out of a type checker's sight.
        from tensorboard.compat.proto.event_pb2 import (
            Event,  # ty: ignore[import-not-found]
            SessionLog,  # ty: ignore[import-not-found]
        )
        from tensorboard.compat.proto.summary_pb2 import Summary  # ty: ignore[import-not-found]
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._framed = Event, Summary, RecordWriter
        events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if resume_step is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))
        events.append(self._scalars(resume_step or 0, time.time(), {"run/started": 1.0}))
        self._file = _AppendedFile(folder / _event_file_name(folder))
        self._append(*events)

    def add(self, row: Row) -> None:
        """Append one event with all measured values of the row."""
        values = {k: v for k, v in row.items() if k not in ("step", "time") and v is not None}
        if values:
            self._append(self._scalars(int(row["step"] or 0), row["time"] or 0.0, values))

    def close(self) -> None:
        self._file.close()

    def _scalars(self, step: int, wall_time: float, values: Mapping[str, float]):
        points = [self._summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        return self._event(wall_time=wall_time, step=step, summary=self._summary(value=points))

    def _append(self, *events) -> None:
        buffer = io.BytesIO()
        writer = self._framed(buffer)
        for event in events:
            writer.write(event.SerializeToString())
        self._file.append(buffer.getvalue())


def _event_file_name(folder: Path) -> str:
    """Return a name that sorts after those already there: TensorBoard reads in that order."""
    names = (path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*"))
    stamps = [int(stamp) for stamp in names if stamp.isdecimal()]  # others are not of TensorBoard
    stamp = max([int(time.time()), *(s + 1 for s in stamps)])
    return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
