"""What can be said of runs from their directories alone: list and follow.

Nothing here talks to a running process. Folders may be half-written, damaged or foreign; a list
shows what it can and never fails on one of them.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from loom.config import read_yaml
from loom.errors import UserError
from loom.files import read_json
from loom.gates import by_gate
from loom.progress import format_line, read_status
from loom.record import read_records
from loom.run_directory import CONFIG_FILE, GATES_FILE, RUN_FILE, STATUS_FILE

DEPTH = 3  # runs/THREAD/NAME, or a folder above
SWEEP_FILE = "sweep.json"
EXIT_CODES = {"running": 0, "finished": 0, "stopped": 0, "gate_missed": 3}
"""State of a run -> exit code of `loom watch`; any other state is a 1."""


@dataclass(frozen=True)
class Summary:
    """One line of a list of runs; None where the directory does not say."""

    path: str
    thread: str | None
    state: str
    step: int | None
    total: int | None
    metric: str | None
    """The metric that tells runs apart: that of the first gate, else the first one recorded."""
    value: float | None
    gates_passed: int
    gates: int
    began: str | None
    age_s: float | None
    """Seconds since the run began."""
    reason: str | None


def find_runs(root: Path) -> list[Summary]:
    """Return the runs below a folder, the newest last; archived ones are left out.

    Raises:
        UserError: There is no such folder, or it may not be read.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: there is no such folder",
            hint="a training makes runs/ in the folder where it starts; start one, or name another",
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(
            f"{root}: permission denied, so nothing is known of its runs",
            hint="check the owner and mode of the folder",
        )
    summaries = [summary(path) for path in _run_directories(root, DEPTH, set())]
    return sorted(summaries, key=lambda each: each.began or "")


def _run_directories(folder: Path, depth: int, seen: set[Path]) -> Iterator[Path]:
    """Yield each run once, by its own name where links lead to it as well."""
    if (real := folder.resolve()) in seen:
        return
    seen.add(real)
    try:
        is_run = any((folder / name).is_file() for name in (RUN_FILE, STATUS_FILE))
        if is_run:  # the runs of a sweep are below its own folder
            depth = DEPTH if (folder / SWEEP_FILE).is_file() else 0
        children = sorted(path for path in folder.iterdir() if path.is_dir()) if depth else []
    except OSError:
        return  # a folder of somebody else
    if is_run:
        yield folder
    for child in sorted(children, key=Path.is_symlink):
        if not child.name.startswith(".") and child.name != "archive":
            yield from _run_directories(child, depth - 1, seen)


def require_run(directory: Path, hint: str = "`loom runs` lists the runs") -> None:
    """Refuse a folder that no run has written to.

    Raises:
        UserError: It is missing, or has neither facts nor a status.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such run", hint="`loom runs` lists the runs")
    if not any((directory / name).is_file() for name in (RUN_FILE, STATUS_FILE)):
        raise UserError(f"{directory}: is not a run's directory", hint=hint)


def summary(directory: Path) -> Summary:
    """Return what a directory says of its run, whatever is missing or damaged in it."""
    run, _ = _attempt(lambda: read_json(directory / RUN_FILE))
    status, damage = _attempt(lambda: read_status(directory))
    answers = _last_answers(directory)
    metric, value = _key_metric(_typed(status, "metrics", dict) or {}, answers)
    began = _typed(run, "began", str)
    return Summary(
        path=str(directory),
        thread=_typed(run, "thread", str) or _typed(status, "thread", str),
        state=_typed(status, "state", str) or "unreadable",
        step=_typed(status, "step", int),
        total=_typed(status, "total", int),
        metric=metric,
        value=value,
        gates_passed=sum(answer.get("passed") is True for answer in answers),
        gates=len(answers),
        began=began,
        age_s=_seconds_since(began),
        reason=_typed(status, "reason", str) or damage,
    )


def _last_answers(directory: Path) -> list[Mapping[str, Any]]:
    """Return the last answer of each gate, in the order in which the gates were first asked."""
    if not (directory / GATES_FILE).is_file():
        return []
    try:
        answers = read_json(directory / GATES_FILE)
    except UserError:
        return []
    listed = answers if isinstance(answers, list) else []
    sound = (answer for answer in listed if isinstance(answer, Mapping))
    return list(dict(by_gate(sound, lambda answer, name: answer.get(name))).values())


def _key_metric(
    metrics: Mapping[str, Any], answers: list[Mapping[str, Any]]
) -> tuple[str | None, float | None]:
    """Return name and newest value of the metric by which this run is judged."""
    asked = [name for answer in answers if (name := _typed(answer, "metric", str))]
    measured = [name for name in metrics if name.startswith("metric/")]
    name = next(iter([*asked, *measured, *(name for name in metrics if "loss" in name)]), None)
    if name is None:
        return None, None
    known = [metrics.get(name), *(a.get("value") for a in answers if a.get("metric") == name)]
    value = next((each for each in known if isinstance(each, int | float)), None)
    try:
        return name.removeprefix("metric/"), None if value is None else float(value)
    except OverflowError:  # an integer of four hundred digits is not what Loom wrote
        return name.removeprefix("metric/"), None


def _seconds_since(began: str | None) -> float | None:
    try:
        then = datetime.strptime(began or "", "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return None
    return max(0.0, time.time() - then.timestamp())


def shown_gates(each: Summary) -> str:
    """Write how many gates were passed of how many that were asked; a dash without any."""
    return f"{each.gates_passed}/{each.gates}" if each.gates else "-"


def shown_age(seconds: float | None) -> str:
    """Write an age with its largest unit: 40 s, 12 min, 5 h, 3 d."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _attempt(read: Callable[[], Any]) -> tuple[Mapping[str, Any], str | None]:
    """Read a file of a run; return it and None, or nothing and what is wrong with it."""
    try:
        value = read()
    except UserError as error:
        return {}, error.message
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return {}, f"not what Loom writes: {error!r}"
    return (value, None) if isinstance(value, Mapping) else ({}, "not what Loom writes")


def _typed(values: Mapping[str, Any], key: str, kind: type) -> Any:
    value = values.get(key)
    return value if isinstance(value, kind) else None


def follow(
    directory: Path, *, once: bool = False, interval: float = 2.0
) -> Iterator[dict[str, Any]]:
    """Yield a run's status each time it changes, until the run has ended.

    Args:
        directory: The run's directory.
        once: Stop after the first.
        interval: Seconds between two looks.

    Raises:
        UserError: The directory has no readable status.
    """
    require_run(directory)
    shown: tuple[Any, ...] | None = None
    while True:
        status = read_status(directory)
        ended = status.get("state") != "running"
        key = tuple(status.get(name) for name in ("state", "phase", "step", "reason"))
        if key != shown:
            shown = key
            yield status
        if once or ended:
            return
        time.sleep(interval)


def status_line(status: Mapping[str, Any]) -> str:
    """Write a status in one line: progress while it runs, the end and its reason after."""
    state = status.get("state", "unknown")
    step, total = _typed(status, "step", int), _typed(status, "total", int)
    where = "" if step is None else f"step {step}" + ("" if total is None else f" of {total}")
    rate = status.get("rate")
    if state == "running" and step is not None and total and isinstance(rate, int | float) and rate:
        return format_line(str(status.get("phase", "")), step, total, step / rate)
    parts = [str(state), where, str(status.get("reason") or "")]
    return ", ".join(part for part in parts if part)


def saved_config(directory: Path) -> dict[str, Any]:
    """Return the configuration that a run was made with."""
    return read_yaml(directory / CONFIG_FILE)


def saved_origins(directory: Path) -> dict[str, str]:
    """Return where each value of a run's configuration came from; empty if it is not known."""
    run, _ = _attempt(lambda: read_json(directory / RUN_FILE))
    return dict(_typed(run, "config_origins", dict) or {})


def last_metrics(directory: Path) -> dict[str, float]:
    """Return the last measured value of every metric; none if nothing was recorded."""
    last: dict[str, float] = {}
    for row in read_records(directory):
        last.update({key: value for key, value in row.items() if value is not None})
    return {key: value for key, value in last.items() if key != "time"}
